//! The protocol of barriers that overtake, explored in full within small bounds: workers with sources, a network, the real
//! [`Channel`](highwater::protocol::channel::Channel), operators behind gates, a coordinator, checkpoints, and a crash at
//! any point.
//!
//! Everything of it but the channel is a model of what the files of `src/runtime` do. In every state: I1 to I4. Of every
//! complete checkpoint: it is a consistent cut. Of every run: it comes to its end, and then every record is in the state
//! once. The last tests plant errors into the design and show that the model finds them, by the invariant that
//! should tell, and again by the outcome alone.

#![allow(clippy::unwrap_used, reason = "what is not as expected fails the test")]

mod explorer;
mod plan;
mod protocol;
mod state;

use std::collections::HashSet;

use explorer::{Explored, explore};
use plan::{Fault, Plan};
use protocol::{Job, Violation};
use state::{Checkpoint, Parts, State};

/// Explores a plan that must be right, and says how large it was.
fn holds(what: &str, plan: Plan, states_min: usize) -> (Job, Explored<State>) {
    let job = Job::new(plan);
    let explored = explore(&job).unwrap_or_else(|wrong| {
        panic!("{what}: {:?} after {} states: {:#?}", wrong.violation, wrong.states, wrong.steps)
    });
    let states = explored.states.len();
    println!("{what}: {states} states, {} steps, {} ends", explored.steps, explored.ends);
    assert!(states >= states_min, "{what}: only {states} states, the model has become smaller");
    (job, explored)
}

/// All complete checkpoints that a job could be restored from.
fn restorable(explored: &Explored<State>) -> HashSet<Parts> {
    explored.states.iter().filter_map(|state| state.restorable.as_deref().cloned()).collect()
}

/// Fails unless what the protocol is for has happened in some state.
fn happened((job, explored): &(Job, Explored<State>)) {
    let is_pending = |checkpoint: &&Checkpoint| matches!(checkpoint, Checkpoint::Pending(_));
    let mut states = explored.states.iter();
    let two = states.any(|state| state.checkpoints.iter().filter(is_pending).count() == 2);
    assert!(two || job.plan.checkpoints < 2, "no two checkpoints in progress");
    let checkpoints = restorable(explored);
    assert!(checkpoints.iter().any(Parts::in_flight), "no checkpoint with records in flight");
    assert!(checkpoints.iter().any(|parts| job.is_final(parts)), "no final checkpoint");
    // Of the second attempt: nothing is in flight there but what was restored and what is read again.
    let restored = |state: &State| state.crashes > 0 && state.in_flight();
    assert!(explored.states.iter().any(|state| restored(state)), "no records after a restore");
}

#[test]
fn every_run_of_three_workers_reflects_every_record_once() {
    // I1, I2, I3, I4
    let records: &[(usize, usize, &[usize])] = &[(0, 0, &[1]), (1, 0, &[1]), (2, 0, &[0])];
    let plan = Plan::new(3, records).checkpoints(2).crashes(1);
    happened(&holds("three workers", plan, 100_000));
}

#[test]
fn every_run_keeps_the_order_of_a_source() {
    let records: &[(usize, usize, &[usize])] = &[(0, 0, &[1]), (0, 0, &[1]), (1, 0, &[1])];
    let plan = Plan::new(2, records).checkpoints(2).crashes(1);
    happened(&holds("two records of one source", plan, 60_000));
}

#[test]
fn every_run_of_an_operator_with_two_inputs_reflects_every_record_once() {
    // I1: a gate behind two channels
    let records: &[(usize, usize, &[usize])] = &[(0, 0, &[0]), (1, 1, &[0])];
    let plan = Plan::new(2, records).checkpoints(2).crashes(1);
    happened(&holds("two inputs", plan, 80_000));
}

#[test]
fn every_run_without_an_alignment_timeout_comes_to_its_end_and_logs_nothing() {
    let records: &[(usize, usize, &[usize])] = &[(0, 0, &[1]), (0, 0, &[1]), (1, 0, &[1])];
    let plan = Plan::new(2, records).checkpoints(2).crashes(1).aligned();
    let (_, explored) = holds("aligned", plan, 5_000);
    let checkpoints = restorable(&explored);
    assert!(checkpoints.len() > 5 && !checkpoints.iter().any(Parts::in_flight));
}

#[test]
fn every_run_of_a_loop_reflects_every_round_of_every_record_once() {
    // I2: a record that goes round once, and one that does not
    let records: &[(usize, usize, &[usize])] = &[(0, 0, &[0, 1]), (1, 0, &[0])];
    let plan = Plan::new(2, records).checkpoints(2).crashes(1);
    happened(&holds("a loop", plan, 200_000));
    // One that goes round twice
    let plan = Plan::new(2, &[(0, 0, &[0, 1, 0])]).checkpoints(2).crashes(1);
    happened(&holds("a loop, two rounds", plan, 50_000));
}

#[test]
fn every_run_of_a_loop_over_three_workers_reflects_every_round_once() {
    let plan = Plan::new(3, &[(0, 0, &[1, 2])]).checkpoints(2).crashes(1);
    happened(&holds("a loop over three workers", plan, 300_000));
}

#[test]
fn at_least_once_no_run_loses_a_record_and_some_double_one() {
    let records: &[(usize, usize, &[usize])] = &[(0, 0, &[0]), (1, 0, &[0])];
    let plan = || Plan::new(2, records).checkpoints(2).crashes(1);
    let (_, explored) = holds("at least once", plan().at_least_once(), 15_000);
    assert!(restorable(&explored).iter().all(|parts| !parts.in_flight()), "nothing is overtaken");
    // The same job, held to exactly once, is found out.
    finds(Fault::NoAlignment, plan(), [Violation::I1, Violation::Dup]);
}

#[test]
fn a_reduced_model_reaches_the_checkpoints_of_an_unreduced_one() {
    let plans: [(&str, Plan, usize); 3] = [
        ("records", Plan::new(2, &[(0, 0, &[0]), (1, 0, &[0])]).checkpoints(1), 6_000),
        ("barriers", Plan::new(2, &[(0, 0, &[1])]).checkpoints(2), 20_000),
        ("rounds", Plan::new(2, &[(0, 0, &[0, 1])]).checkpoints(1), 10_000),
    ];
    for (what, plan, states_min) in plans {
        let plan = plan.crashes(1);
        let (_, reduced) = holds(what, plan.clone(), 500);
        let (_, unreduced) = holds(&format!("{what}, unreduced"), plan.unreduced(), states_min);
        let checkpoints = restorable(&reduced);
        assert!(checkpoints.len() >= 3, "{what}: only {} checkpoints", checkpoints.len());
        assert_eq!(checkpoints, restorable(&unreduced), "{what}");
    }
}

/// Plants an error. The model must find the first violation when it looks at everything, the second when it looks
/// at what comes out in the end only.
fn finds(fault: Fault, plan: Plan, expected: [Violation; 2]) {
    let plan = plan.crashes(1).fault(fault);
    let plan = if plan.checkpoints == 0 { plan.checkpoints(1) } else { plan };
    let found = [plan.clone(), plan.outcome_only()].map(|plan| {
        let wrong = explore(&Job::new(plan)).err();
        let wrong = wrong.unwrap_or_else(|| panic!("{fault:?} is not found"));
        println!("{fault:?}: {:?} after {} states", wrong.violation, wrong.states);
        println!("    {:?}", wrong.steps);
        wrong.violation
    });
    assert_eq!(found, expected, "{fault:?}");
}

/// Two records for one operator.
fn exchange() -> Plan {
    Plan::new(2, &[(0, 0, &[0]), (1, 0, &[0])])
}

/// A record that goes round.
fn feedback() -> Plan {
    Plan::new(2, &[(0, 0, &[0, 1])])
}

#[test]
fn a_feedback_edge_that_does_not_log_stragglers_loses_records() {
    // I2
    finds(Fault::NoStragglerLog, feedback(), [Violation::I2, Violation::Loss]);
}

#[test]
fn a_batch_that_is_restamped_before_it_is_logged_is_lost() {
    // I2
    finds(Fault::RestampBeforeLog, exchange(), [Violation::I2, Violation::Loss]);
    finds(Fault::RestampBeforeLog, feedback(), [Violation::I2, Violation::Loss]);
}

#[test]
fn a_batch_that_is_logged_and_released_in_the_old_epoch_is_doubled() {
    // I2
    finds(Fault::NoRestamp, exchange(), [Violation::I2, Violation::Dup]);
}

#[test]
fn a_batch_that_keeps_its_capability_when_it_is_overtaken_stops_the_job() {
    finds(Fault::NoDelay, exchange(), [Violation::Stuck, Violation::Stuck]);
}

#[test]
fn a_gate_that_looks_at_its_own_worker_only_loses_records() {
    // I3
    finds(Fault::LocalFrontier, exchange(), [Violation::I3, Violation::Loss]);
}

#[test]
fn a_gate_that_looks_at_one_of_its_inputs_only_loses_records() {
    // I3
    let plan = Plan::new(2, &[(0, 0, &[0]), (1, 1, &[0])]);
    finds(Fault::OneInput, plan, [Violation::I3, Violation::Loss]);
}

#[test]
fn a_feedback_edge_that_closes_its_log_when_it_overtakes_loses_records() {
    finds(Fault::EarlyLog, feedback(), [Violation::CutLoss, Violation::Loss]);
}

#[test]
fn a_barrier_that_overtakes_before_it_arrives_and_logs_no_stragglers_loses_records() {
    // I2
    let plan = exchange().unreduced();
    finds(Fault::EarlyOvertaking, plan, [Violation::I2, Violation::Loss]);
}
