//! `kill -9` at random moments of jobs whose barriers overtake records.

use std::time::Duration;

use rustix::process::Signal;

use crate::Test;
use crate::kills::exists;
use crate::program::{Shape, TORN};
use crate::support::{Bench, Random, Running, send, wait_until};

pub const TESTS: &[Test] = &[
    ("either_of_two_processes_is_killed_while_barriers_overtake_and_nothing_is_lost", || {
        either_of_two(Shape::Slow);
    }),
    ("either_of_two_processes_is_killed_while_records_go_round_a_loop", || {
        either_of_two(Shape::Loop);
    }),
    ("records_on_their_way_are_restored_by_other_numbers_of_processes", || {
        other_processes(Shape::Slow);
    }),
    ("records_that_go_round_are_restored_by_other_numbers_of_processes", || {
        other_processes(Shape::Loop);
    }),
    ("a_timeout_for_an_unknown_channel_is_refused_with_the_list_of_channels", unknown_channel),
    ("the_log_of_a_channel_that_has_gone_is_dropped_by_a_flag_only", gone),
];

/// Waits until a checkpoint completes that holds records on their way, and says how many.
fn wait_for_a_log(bench: &Bench) -> u64 {
    let mut records = 0;
    let before = bench.newest();
    wait_until("a checkpoint holds records on their way", || {
        records = bench.logged().values().sum();
        bench.newest() > before && records > 0
    });
    records
}

fn assert_whole(running: &Running) {
    let said = running.said();
    assert!(!said.contains(TORN), "{said}");
}

/// For kills whose victims the supervisor replaces: kills at random moments, and at least some of the restores are of
/// checkpoints that hold records.
fn either_of_two(shape: Shape) {
    const KILLS: u32 = 6;
    let mut random = Random::new();
    let bench = Bench::unaligned(shape, 60_000);
    let mut supervisor = bench.start(bench.supervised(2, 1, &[]), "log");
    let mut killed = Vec::new();
    let mut restored = Vec::new();
    for _ in 0..KILLS {
        let mut running = Vec::new();
        wait_until("both processes run again", || {
            running = supervisor.children();
            running.retain(|pid| !killed.contains(pid));
            running.len() == 2
        });
        wait_for_a_log(&bench);
        random.pause(Duration::from_millis(200));
        assert!(supervisor.is_running(), "{}", supervisor.said());
        send(running[random.below(2) as usize], Signal::KILL);
        wait_until("both are gone", || running.iter().all(|pid| !exists(*pid)));
        // The next ones have not completed a checkpoint yet, or hardly.
        restored.push(bench.logged().values().sum::<u64>());
        killed.extend(running);
    }
    supervisor.succeeds();
    assert_whole(&supervisor);
    println!("restored with {restored:?} records on their way");
    assert!(restored.iter().filter(|records| **records > 0).count() > KILLS as usize / 2);
    bench.assert_exactly_once();
}

fn other_processes(shape: Shape) {
    let mut random = Random::new();
    let bench = Bench::unaligned(shape, 80_000);
    let mut overtaken = std::collections::BTreeSet::new();
    for (run, (processes, workers)) in
        [(2, 1), (3, 1), (1, 2), (2, 2), (1, 1)].into_iter().enumerate()
    {
        let mut job = bench.start(bench.supervised(processes, workers, &[]), &format!("log-{run}"));
        wait_for_a_log(&bench);
        random.pause(Duration::from_millis(100));
        let processes = job.children();
        assert!(job.kill(), "it ended too early:\n{}", job.said());
        wait_until("its processes are gone", || processes.iter().all(|pid| !exists(*pid)));
        let logs = bench.logged();
        assert!(logs.values().sum::<u64>() > 0, "nothing is on its way");
        overtaken.extend(logs.into_keys());
        assert_whole(&job);
    }
    assert!(overtaken.contains("evens") && overtaken.contains("odds"), "{overtaken:?}");
    assert_eq!(overtaken.contains("rounds"), shape == Shape::Loop, "{overtaken:?}");
    let mut last = bench.start(bench.supervised(3, 1, &[]), "log-last");
    last.succeeds();
    assert_whole(&last);
    bench.assert_exactly_once();
}

fn unknown_channel() {
    let bench = Bench::unaligned(Shape::Slow, 1000);
    let flags = ["--channel-alignment-timeouts", "odds=none,nowhere=1s"];
    let ran = bench.program(&flags).output().unwrap();
    let said = String::from_utf8(ran.stderr).unwrap();
    assert!(!ran.status.success(), "{said}");
    assert!(said.contains("channel nowhere"), "{said}");
    assert!(["spread", "evens", "odds"].iter().all(|channel| said.contains(channel)), "{said}");
    assert_eq!(bench.newest(), 0);
}

fn gone() {
    let mut bench = Bench::unaligned(Shape::Loop, 20_000);
    let mut first = bench.start(bench.program(&["-w", "2"]), "log");
    let mut logs = std::collections::BTreeMap::new();
    wait_until("records go round in a checkpoint", || {
        logs = bench.logged();
        logs.contains_key("rounds")
    });
    assert!(first.kill(), "{}", first.said());
    logs = bench.logged();
    assert!(logs.contains_key("rounds"), "{logs:?}");
    let newest = bench.newest();
    // The same without the loop.
    bench.args.shape = Shape::Slow;
    let mut refused = bench.start(bench.program(&["-w", "2"]), "log-refused");
    assert!(!refused.wait().success(), "{}", refused.said());
    let said = refused.said();
    assert!(said.contains("rounds/in-flight") && said.contains("visits/visits"), "{said}");
    assert!(!said.contains("odds/in-flight") && said.contains("--allow-dropped-state"), "{said}");
    assert_eq!(bench.newest(), newest);
    let allow = ["-w", "2", "--allow-dropped-state"];
    let mut allowed = bench.start(bench.program(&allow), "log-allowed");
    allowed.succeeds();
    // All that is missing is what was in the loop: the last counts of some keys.
    let lost = bench.args.records - bench.lines();
    let in_loop = logs.get("rounds").unwrap() + logs.get("around").copied().unwrap_or(0);
    assert_eq!(lost, in_loop, "{logs:?}");
    bench.assert_directory_is_the_reachable_set();
}
