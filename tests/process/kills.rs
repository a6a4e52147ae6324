//! `kill -9` at random moments.

use std::time::Duration;

use rustix::process::Signal;

use crate::Test;
use crate::support::{Bench, Random, send, wait_until};

pub const TESTS: &[Test] = &[
    ("one_process_is_killed_again_and_again_and_no_record_is_lost_or_doubled", one_process),
    ("either_of_two_processes_is_killed_and_the_supervisor_starts_both_again", two_processes),
    ("a_killed_job_goes_on_with_other_processes_and_workers", other_parallelism),
    ("a_killed_supervisor_takes_its_processes_along_and_the_job_goes_on", supervisor),
];

fn one_process() {
    const KILLS: u32 = 30;
    let mut random = Random::new();
    let bench = Bench::new(9);
    for _ in 0..KILLS {
        let mut program = bench.start(bench.program(&["-w", "2"]), "log");
        random.pause(Duration::from_millis(450));
        assert!(program.kill(), "it ended too early:\n{}", program.said());
    }
    assert!(bench.newest() > 0, "some checkpoint was complete in between");
    bench.start(bench.program(&["-w", "2"]), "log").succeeds();
    bench.assert_exactly_once();
}

fn two_processes() {
    const KILLS: u32 = 15;
    let mut random = Random::new();
    let bench = Bench::new(12);
    let mut supervisor = bench.start(bench.supervised(2, 1, &[]), "log");
    let mut killed = Vec::new();
    for _ in 0..KILLS {
        let mut running = Vec::new();
        wait_until("both processes run again", || {
            running = supervisor.children();
            running.retain(|pid| !killed.contains(pid));
            running.len() == 2
        });
        random.pause(Duration::from_millis(900));
        assert!(supervisor.is_running(), "{}", supervisor.said());
        send(running[random.below(2) as usize], Signal::KILL);
        killed.extend(running);
    }
    supervisor.succeeds();
    assert!(bench.newest() > 0);
    bench.assert_exactly_once();
}

fn other_parallelism() {
    let mut random = Random::new();
    let bench = Bench::new(8);
    // Each begins with a kill of the one before.
    let mut first = bench.start(bench.program(&["-w", "2"]), "log-1");
    bench.wait_for_a_checkpoint();
    random.pause(Duration::from_millis(300));
    assert!(first.kill());
    let mut second = bench.start(bench.supervised(2, 1, &[]), "log-2");
    bench.wait_for_a_checkpoint();
    random.pause(Duration::from_millis(300));
    let processes = second.children();
    assert!(second.kill());
    wait_until("its processes are gone", || processes.iter().all(|pid| !exists(*pid)));
    let mut third = bench.start(bench.program(&["-w", "3"]), "log-3");
    bench.wait_for_a_checkpoint();
    random.pause(Duration::from_millis(300));
    assert!(third.kill());
    bench.start(bench.supervised(3, 1, &[]), "log-4").succeeds();
    bench.assert_exactly_once();
}

fn supervisor() {
    let mut random = Random::new();
    let bench = Bench::new(5);
    for _ in 0..5 {
        let mut supervisor = bench.start(bench.supervised(2, 1, &[]), "log");
        wait_until("both processes run", || supervisor.children().len() == 2);
        random.pause(Duration::from_millis(600));
        let processes = supervisor.children();
        assert!(supervisor.kill(), "{}", supervisor.said());
        wait_until("its processes are gone", || processes.iter().all(|pid| !exists(*pid)));
    }
    bench.start(bench.supervised(2, 1, &[]), "log").succeeds();
    bench.assert_exactly_once();
}

/// Whether there is such a process that is not a zombie.
pub fn exists(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    !status.is_empty() && !status.contains("\nState:\tZ")
}
