//! Tests of the supervisor, with real processes.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use super::*;
use crate::network::Secret;
use crate::network::testing::{Directory, eventually};

/// Set for a test binary that runs again as a supervisor: the script of its processes.
const SCRIPT: &str = "HIGHWATER_TEST_SCRIPT";
/// The directory of the test.
const DIRECTORY: &str = "HIGHWATER_TEST_DIRECTORY";

/// A process of the tests: counts its runs in `$d`, tells its id in `$d/<process>-<run>`, goes on
/// with `rest`.
fn script(directory: &Directory, rest: &str) -> String {
    format!(
        "d={}; p=$HIGHWATER_PROCESS; n=0
         while ! mkdir $d/$p-$n-run 2>/dev/null; do n=$((n+1)); done
         tell() {{ echo $1 > $d/.$2 && mv $d/.$2 $d/$2; }}
         tell $$ $p-$n
         {rest}",
        directory.path().display()
    )
}

fn supervision(script: String, processes: usize) -> Supervision {
    Supervision {
        program: "/bin/sh".into(),
        args: vec!["-c".into(), script.into()],
        processes,
        workers: None,
        restart: RestartStrategy::FixedDelay { attempts: 100, delay: Duration::from_millis(10) },
        runtime_dir: None,
    }
}

/// The process id that somebody wrote down under that name.
fn told(directory: &Directory, name: &str) -> Option<Pid> {
    let text = fs::read_to_string(directory.path().join(name)).ok()?;
    Pid::from_raw(text.trim().parse().unwrap())
}

fn await_told(directory: &Directory, name: &str) -> Pid {
    eventually(name, || told(directory, name))
}

/// Whether it is gone, or dead and only waits for its parent, which need not be ours.
fn is_gone(pid: Pid) -> bool {
    if test_kill_process(pid).is_err() {
        return true;
    }
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    stat.map_or(true, |stat| stat.contains(") Z"))
}

#[test]
fn processes_learn_who_they_are_and_their_success_is_ours() {
    let directory = Directory::new();
    let note = "echo \"$HIGHWATER_PROCESSES $HIGHWATER_WORKERS $HIGHWATER_SUPERVISED\" > $d/$p
        cp $HIGHWATER_HOSTFILE $d/hosts; cp -p $HIGHWATER_SECRET_FILE $d/secret-$p
        dirname $HIGHWATER_SECRET_FILE > $d/where; stat -c %a $(dirname $HIGHWATER_SECRET_FILE) > $d/mode";
    let mut supervision = supervision(script(&directory, note), 3);
    supervision.workers = Some(2);
    supervision.runtime_dir = Some(directory.path().join("run"));
    let outcome = supervise(supervision).unwrap();
    assert_eq!(outcome.end, End::Succeeded);
    assert_eq!((outcome.exit_code(), outcome.restarts, outcome.failures.len()), (0, 0, 0));

    let read = |name: &str| fs::read_to_string(directory.path().join(name)).unwrap();
    for process in ["0", "1", "2"] {
        assert_eq!(read(process).trim(), format!("3 2 {}", std::process::id()));
        Secret::load(&directory.path().join(format!("secret-{process}"))).unwrap();
    }
    let hosts = read("hosts");
    let mut hosts: Vec<_> = hosts.lines().collect();
    assert!(hosts.iter().all(|host| host.starts_with("127.0.0.1:")), "{hosts:?}");
    hosts.sort_unstable();
    hosts.dedup();
    assert_eq!(hosts.len(), 3);
    assert_eq!(read("mode").trim(), "700");
    let private = read("where");
    assert!(Path::new(private.trim()).starts_with(directory.path().join("run")));
    assert!(!Path::new(private.trim()).exists());
}

#[test]
fn a_killed_process_takes_the_others_along_and_all_start_again_at_once() {
    let directory = Directory::new();
    let rest = "if [ $n = 5 ]; then exit 0; fi
        sleep 60 & tell $! $p-$n-child; wait";
    let supervision = supervision(script(&directory, rest), 2);
    let running = thread::spawn(move || supervise(supervision));
    let mut fastest = Duration::MAX;
    for run in 0..5 {
        let names = [format!("0-{run}"), format!("1-{run}")];
        let pids = names.clone().map(|name| await_told(&directory, &name));
        let children = names.map(|name| await_told(&directory, &format!("{name}-child")));
        let killed = Instant::now();
        kill_process(pids[run % 2], Signal::KILL).unwrap();
        for process in 0..2 {
            await_told(&directory, &format!("{process}-{}", run + 1));
        }
        fastest = fastest.min(killed.elapsed());
        for pid in pids.into_iter().chain(children) {
            eventually("the end of the old processes", || is_gone(pid).then_some(()));
        }
    }
    let outcome = running.join().unwrap().unwrap();
    println!("from a kill to both running again, with a delay of 10 ms: {fastest:?}");
    assert!(fastest < Duration::from_millis(110), "{fastest:?}");
    assert_eq!((outcome.end.clone(), outcome.restarts), (End::Succeeded, 5));
    let causes: Vec<_> =
        outcome.failures.iter().map(|failure| (failure.process, failure.cause.clone())).collect();
    let expected: Vec<_> = (0..5).map(|run| (run % 2, Cause::Signalled(9))).collect();
    assert_eq!(causes, expected);
}

#[test]
fn a_fatal_exit_is_not_restarted_and_ends_the_others() {
    let directory = Directory::new();
    let rest = "if [ $p = 1 ]; then
            while [ ! -e $d/0-0 ]; do :; done; exit 2
        fi
        exec sleep 60";
    let outcome = supervise(supervision(script(&directory, rest), 2)).unwrap();
    assert_eq!(outcome.end, End::Fatal { process: 1 });
    assert_eq!((outcome.exit_code(), outcome.restarts), (exit::FATAL, 0));
    assert!(is_gone(told(&directory, "0-0").unwrap()));
    assert!(told(&directory, "0-1").is_none());
}

#[test]
fn a_fatal_exit_is_found_behind_the_loss_that_it_led_to() {
    let directory = Directory::new();
    for consequence in ["exit 75", "exit 101", "kill -ABRT $$"] {
        let directory = Directory::new();
        let rest = format!(
            "if [ $p = 1 ]; then tell 1 lost; {consequence}; fi
             while [ ! -e $d/lost ]; do :; done; exit 2"
        );
        let outcome = supervise(supervision(script(&directory, &rest), 2)).unwrap();
        assert_eq!(outcome.end, End::Fatal { process: 0 }, "{consequence}");
        assert!(told(&directory, "0-1").is_none());
    }
    // Without any other cause the loss itself is the failure.
    let rest = "if [ $n = 1 ]; then exit 0; fi; if [ $p = 1 ]; then exit 75; fi; exec sleep 60";
    let outcome = supervise(supervision(script(&directory, rest), 2)).unwrap();
    assert_eq!(outcome.end, End::Succeeded);
    assert_eq!(outcome.failures.len(), 1);
    assert_eq!(outcome.failures[0].cause, Cause::Exited(exit::PEER_LOST));
}

#[test]
fn a_job_that_always_fails_is_given_up_by_the_restart_strategy() {
    let directory = Directory::new();
    let mut supervision = supervision(script(&directory, "exit 1"), 1);
    supervision.restart =
        RestartStrategy::FixedDelay { attempts: 2, delay: Duration::from_millis(1) };
    let outcome = supervise(supervision).unwrap();
    assert!(matches!(outcome.end, End::GaveUp { .. }), "{outcome:?}");
    assert_eq!((outcome.exit_code(), outcome.restarts), (exit::FATAL, 2));
    assert_eq!(outcome.failures.len(), 3);
    assert!(outcome.failures.iter().all(|failure| failure.cause == Cause::Exited(1)));
    assert!(told(&directory, "0-2").is_some() && told(&directory, "0-3").is_none());
}

#[test]
fn each_set_of_processes_gets_ports_of_its_own() {
    let directory = Directory::new();
    let rest = "cp $HIGHWATER_HOSTFILE $d/hosts-$n; [ $n = 1 ]";
    let outcome = supervise(supervision(script(&directory, rest), 1)).unwrap();
    assert_eq!((outcome.end, outcome.restarts), (End::Succeeded, 1));
    let [first, second] =
        ["hosts-0", "hosts-1"].map(|name| fs::read(directory.path().join(name)).unwrap());
    assert_ne!(first, second);
}

#[test]
fn a_program_that_cannot_be_started_is_named() {
    let directory = Directory::new();
    let mut supervision = supervision(String::new(), 2);
    supervision.program = directory.path().join("missing");
    let error = supervise(supervision.clone()).unwrap_err();
    assert!(matches!(error, SupervisorError::Start { process: 0, .. }), "{error}");
    assert!(error.to_string().contains("missing"), "{error}");
    supervision.processes = 0;
    assert!(matches!(supervise(supervision), Err(SupervisorError::NoProcesses)));
}

#[test]
fn causes_are_told_in_words() {
    assert_eq!(Cause::Signalled(9).to_string(), "killed by signal 9 (SIGKILL)");
    assert_eq!(Cause::Exited(75).to_string(), "exited with code 75 (lost another process)");
    assert_eq!(Cause::Exited(42).to_string(), "exited with code 42");
}

/// Not a test of its own: what the test binary does when the tests below run it again. As a
/// supervisor it runs the script, or itself where there is none; as a process of a supervisor it is
/// adopted and waits.
#[test]
fn as_another_process() {
    let Some(directory) = std::env::var_os(DIRECTORY) else { return };
    if std::env::var_os(environment::SUPERVISED).is_some() {
        assert!(adopt().unwrap());
        let process = std::env::var(environment::PROCESS).unwrap();
        let file = Path::new(&directory).join(format!("{process}-0"));
        let hidden = file.with_file_name(format!(".{process}"));
        fs::write(&hidden, std::process::id().to_string()).unwrap();
        fs::rename(&hidden, &file).unwrap();
        loop {
            thread::park();
        }
    }
    let mut supervision = match std::env::var(SCRIPT) {
        Ok(script) => supervision(script, 2),
        Err(_) => {
            let mut itself = supervision(String::new(), 2);
            itself.program = std::env::current_exe().unwrap();
            itself.args = again().map(Into::into).into();
            itself
        }
    };
    supervision.runtime_dir = Some(directory.into());
    supervision.restart =
        RestartStrategy::FixedDelay { attempts: 1, delay: Duration::from_secs(600) };
    std::process::exit(supervise(supervision).unwrap().exit_code());
}

fn again() -> [&'static str; 3] {
    ["supervisor::tests::as_another_process", "--exact", "--nocapture"]
}

/// A supervisor in a process of its own, killed at the end of the test at the latest.
struct Supervising(Child);

impl Supervising {
    fn start(directory: &Directory, rest: Option<&str>) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(again()).env(DIRECTORY, directory.path()).stdout(Stdio::null());
        if let Some(rest) = rest {
            command.env(SCRIPT, script(directory, rest));
        }
        Self(command.spawn().unwrap())
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    fn end(&mut self) -> Option<i32> {
        eventually("the end of the supervisor", || self.0.try_wait().unwrap()).code()
    }
}

impl Drop for Supervising {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn processes_die_with_a_killed_supervisor() {
    let directory = Directory::new();
    let mut supervising = Supervising::start(&directory, None);
    let pids = ["0-0", "1-0"].map(|name| await_told(&directory, name));
    assert!(pids.iter().all(|pid| !is_gone(*pid)));
    supervising.0.kill().unwrap();
    supervising.0.wait().unwrap();
    for pid in pids {
        eventually("the end of the processes", || is_gone(pid).then_some(()));
    }
}

#[test]
fn an_orphan_is_told_that_its_supervisor_is_gone() {
    let directory = Directory::new();
    let mut command = Command::new(std::env::current_exe().unwrap());
    // Process 1 is nobody's supervisor here.
    command.args(again()).env(DIRECTORY, directory.path()).env(environment::SUPERVISED, "1");
    let output = command.output().unwrap();
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr).into_owned()
        + &String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("Orphaned"), "{text}");
}

#[test]
fn a_supervisor_that_is_told_to_stop_lets_its_processes_end() {
    for signal in [Signal::TERM, Signal::INT] {
        let directory = Directory::new();
        let rest = "trap 'tell 1 $p-ended; exit 0' TERM; tell $$ $p-ready
            while :; do sleep 0.01; done";
        let mut supervising = Supervising::start(&directory, Some(rest));
        for name in ["0-ready", "1-ready"] {
            await_told(&directory, name);
        }
        supervising.signal(signal);
        assert_eq!(supervising.end(), Some(exit::OK));
        assert!(told(&directory, "0-ended").is_some() && told(&directory, "1-ended").is_some());
        // Nothing is left of the private directory.
        let left = fs::read_dir(directory.path()).unwrap().filter(|entry| {
            entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("highwater-")
        });
        assert_eq!(left.count(), 0);
    }
}

#[test]
fn a_second_signal_kills_processes_that_do_not_end() {
    let directory = Directory::new();
    let rest = "trap 'tell $$ $p-asked' TERM; tell $$ $p-ready; while :; do sleep 0.01; done";
    let mut supervising = Supervising::start(&directory, Some(rest));
    let pids = ["0-ready", "1-ready"].map(|name| await_told(&directory, name));
    supervising.signal(Signal::TERM);
    for name in ["0-asked", "1-asked"] {
        await_told(&directory, name);
    }
    supervising.signal(Signal::TERM);
    assert_eq!(supervising.end(), Some(128 + SIGTERM));
    assert!(pids.into_iter().all(is_gone));
}

#[test]
fn a_signal_ends_the_wait_for_a_restart() {
    let directory = Directory::new();
    let rest = "while [ ! -e $d/0-0 ] || [ ! -e $d/1-0 ]; do :; done; exit 1";
    let mut supervising = Supervising::start(&directory, Some(rest));
    let pids = ["0-0", "1-0"].map(|name| await_told(&directory, name));
    for pid in pids {
        eventually("the end of the processes", || is_gone(pid).then_some(()));
    }
    // The delay is ten minutes.
    supervising.signal(Signal::TERM);
    assert_eq!(supervising.end(), Some(128 + SIGTERM));
}
