//! Processes that are stopped: thought dead, and woken up later.

use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::Test;
use crate::support::{Bench, Running, send, wait_until};

pub const TESTS: &[Test] = &[
    ("a_stopped_process_is_noticed_and_the_supervisor_starts_all_again", supervised),
    ("a_stopped_worker_process_that_wakes_up_later_changes_nothing", || unsupervised(1)),
    ("a_stopped_coordinator_that_wakes_up_later_changes_nothing", || unsupervised(0)),
];

const HEARTBEAT: [&str; 4] = ["--heartbeat-interval", "100ms", "--heartbeat-timeout", "500ms"];

/// From the stop to the end of the other process: the timeout, and much room for a machine that is busy.
const NOTICED_WITHIN: Duration = Duration::from_secs(5);

fn supervised() {
    let bench = Bench::new(6);
    let mut supervisor = bench.start(bench.supervised(2, 1, &HEARTBEAT), "log");
    for stopped in [1, 0] {
        wait_until("both processes run", || supervisor.children().len() == 2);
        bench.wait_for_a_checkpoint();
        let running = supervisor.children();
        send(running[stopped], Signal::STOP);
        let start = Instant::now();
        wait_until("both processes were replaced", || {
            let now = supervisor.children();
            now.len() == 2 && now.iter().all(|pid| !running.contains(pid))
        });
        let took = start.elapsed();
        assert!(took < NOTICED_WITHIN, "{took:?}");
        println!("a stopped process was replaced after {took:?}");
    }
    supervisor.succeeds();
    assert!(supervisor.said().contains("is lost"), "{}", supervisor.said());
    bench.assert_exactly_once();
}

/// Starts two processes by hand, stops one, lets the other notice, and wakes the stopped one up when a new attempt has
/// taken over.
fn unsupervised(stopped: usize) {
    let bench = Bench::new(4);
    let (hosts, secret) = (bench.hostfile(2), bench.secret("secret"));
    let command = |process: usize| -> Command {
        let process = process.to_string();
        let mut command = bench.program(&HEARTBEAT);
        command.args(["-n", "2", "-w", "1", "-p", &process, "-h"]).arg(&hosts);
        command.arg("--secret-file").arg(&secret);
        command
    };
    let mut processes: Vec<Running> =
        (0..2).map(|process| bench.start(command(process), &format!("log-{process}"))).collect();
    bench.wait_for_a_checkpoint();
    bench.wait_for_a_checkpoint();
    processes[stopped].signal(Signal::STOP);
    let start = Instant::now();
    let status = processes[1 - stopped].wait();
    let took = start.elapsed();
    println!("the other process ended after {took:?}");
    assert!(took < NOTICED_WITHIN, "{took:?}");
    assert!(!status.success());
    let said = processes[1 - stopped].said();
    assert!(said.contains(&format!("process {stopped} is lost")), "{said}");

    let attempts = bench.attempts();
    let mut next = bench.start(bench.program(&["-w", "2"]), "log-next");
    bench.wait_for_a_checkpoint();
    processes[stopped].signal(Signal::CONT);
    let status = processes[stopped].wait();
    assert!(!status.success(), "{}", processes[stopped].said());
    next.succeeds();
    assert!(bench.attempts() > attempts);
    bench.assert_exactly_once();
}
