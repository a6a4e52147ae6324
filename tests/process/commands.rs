//! Flags, secrets, exit codes, and the tool's look at what a job has left.

use std::fs;
use std::process::{Command, Output};

use serde_json::Value;

use crate::Test;
use crate::program::JOB;
use crate::support::{Bench, TOOL, wait_until};

pub const TESTS: &[Test] = &[
    ("help_and_print_config_run_nothing", help),
    ("several_processes_without_a_secret_are_refused", no_secret),
    ("a_wrong_secret_is_named_as_such_and_lets_nobody_in", wrong_secret),
    ("a_secret_that_others_may_read_is_refused", exposed_secret),
    ("a_refused_restore_is_not_tried_again_by_the_supervisor", refused_restore),
    ("wrong_flags_are_not_tried_again_by_the_supervisor", wrong_flags),
    ("the_tool_shows_verifies_and_deletes_what_a_job_has_left", tool),
];

const FATAL: Option<i32> = Some(2);

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn help() {
    let bench = Bench::new(1);
    let help = bench.program(&["--help"]).output().unwrap();
    assert!(help.status.success());
    for part in ["--checkpoint-dir", "--secret-file", "--per-second", "--restore"] {
        assert!(text(&help.stdout).contains(part), "{}", text(&help.stdout));
    }
    let printed = bench.program(&["--print-config"]).output().unwrap();
    assert!(printed.status.success(), "{}", text(&printed.stderr));
    let config = text(&printed.stdout);
    assert!(config.contains("interval = \"50ms\""), "{config}");
    // What is printed can be read.
    let file = bench.path("config.toml");
    fs::write(&file, &config).unwrap();
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args(bench.args.to_arguments()).arg("--config").arg(&file).arg("--print-config");
    let again = again.env(crate::program::ASK, "1").output().unwrap();
    assert!(again.status.success(), "{}", text(&again.stderr));
    assert!(!bench.checkpoints().exists() && !bench.args.output.exists());
}

fn no_secret() {
    let bench = Bench::new(1);
    for process in ["0", "1"] {
        let ran = bench.program(&["-n", "2", "-p", process]).output().unwrap();
        assert_eq!(ran.status.code(), FATAL, "{}", text(&ran.stderr));
        assert!(text(&ran.stderr).contains("--secret-file"), "{}", text(&ran.stderr));
    }
    assert!(!bench.args.output.exists());
}

fn wrong_secret() {
    let bench = Bench::new(1);
    let hosts = bench.hostfile(2);
    let mut processes: Vec<_> = ["0", "1"]
        .into_iter()
        .map(|process| {
            let mut command = bench.program(&["-n", "2", "-p", process, "-h"]);
            command.arg(&hosts).arg("--secret-file").arg(bench.secret(&format!("s{process}")));
            bench.start(command, &format!("log-{process}"))
        })
        .collect();
    // A stranger may hold the port of a peer that is still to come: so they go on trying, and say why.
    wait_until("the one that connects says what is wrong", || {
        processes[1].said().contains("does not hold the same secret")
    });
    for process in &mut processes {
        assert!(process.kill(), "it still tries: {}", process.said());
    }
    assert_eq!(bench.newest(), 0);
    assert!(!bench.args.output.exists());
}

fn exposed_secret() {
    use std::os::unix::fs::PermissionsExt;
    let bench = Bench::new(1);
    let secret = bench.secret("secret");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o644)).unwrap();
    let mut command = bench.program(&["-n", "2", "-h"]);
    let ran = command.arg(bench.hostfile(2)).arg("--secret-file").arg(&secret).output().unwrap();
    assert_eq!(ran.status.code(), FATAL, "{}", text(&ran.stderr));
    assert!(text(&ran.stderr).contains("open to other users"), "{}", text(&ran.stderr));
}

fn refused_restore() {
    let bench = Bench::new(1);
    bench.start(bench.program(&["-w", "2"]), "log").succeeds();
    let attempts = bench.attempts();
    for (processes, flags) in [(1, ["--max-parallelism", "64"]), (2, ["--restore", "999999"])] {
        let mut supervisor = bench.start(bench.supervised(processes, 1, &flags), "log-refused");
        let status = supervisor.wait();
        assert_eq!(status.code(), FATAL, "{}", supervisor.said());
    }
    assert!(bench.attempts() <= attempts + 2, "it was tried once each");
    // The claims of those that were refused go with the next attempt that runs.
    bench.start(bench.program(&[]), "log").succeeds();
    bench.assert_exactly_once();
}

fn wrong_flags() {
    let bench = Bench::new(1);
    let mut supervisor = bench.start(bench.supervised(2, 1, &["--nonsense"]), "log");
    let status = supervisor.wait();
    assert_eq!(status.code(), FATAL, "{}", supervisor.said());
    assert!(!bench.checkpoints().exists());
}

fn tool() {
    let bench = Bench::new(2).flag("--retained-checkpoints", "3");
    bench.start(bench.supervised(2, 1, &[]), "log").succeeds();
    let run = |arguments: &[&str]| -> Output {
        let mut command = Command::new(TOOL);
        command.arg("checkpoints").args(arguments).arg("--dir").arg(bench.checkpoints());
        command.output().unwrap()
    };
    let json = |arguments: &[&str]| -> Value {
        let ran = run(&[arguments, &["--json"]].concat());
        assert!(ran.status.success(), "{}", text(&ran.stderr));
        serde_json::from_slice(&ran.stdout).unwrap()
    };
    let list = json(&["list"]);
    assert_eq!(list["job"], JOB);
    let ids: Vec<u64> = list["checkpoints"]
        .as_array()
        .unwrap()
        .iter()
        .map(|checkpoint| checkpoint["id"].as_u64().unwrap())
        .collect();
    assert_eq!(ids.len(), 3, "{list}");
    assert!(list["history"].as_array().unwrap().len() > 3, "{list}");
    let human = run(&["list"]);
    assert!(human.status.success());
    assert!(ids.iter().all(|id| text(&human.stdout).contains(&id.to_string())));

    let show = json(&["show"]);
    assert_eq!(show["id"].as_u64(), ids.last().copied());
    assert_eq!(show["parallelism"], 2);
    let counted = show["states"]
        .as_array()
        .unwrap()
        .iter()
        .find(|state| state["operator"] == "count")
        .unwrap();
    assert_eq!(counted["entries"].as_u64(), Some(bench.args.keys), "{show}");
    let human = text(&run(&["show", &ids[0].to_string()]).stdout);
    assert!(human.contains("count") && human.contains("numbers"), "{human}");

    let verify = json(&["verify"]);
    assert_eq!(verify["problems"].as_array().unwrap().len(), 0, "{verify}");
    assert_eq!(verify["unreferenced"].as_array().unwrap().len(), 0, "{verify}");
    assert!(run(&["verify"]).status.success());

    let newest = ids[2].to_string();
    let refused = run(&["delete", &newest]);
    assert_eq!(refused.status.code(), FATAL);
    assert!(text(&refused.stderr).contains("--force"), "{}", text(&refused.stderr));
    let oldest = ids[0].to_string();
    assert_eq!(json(&["pin", &oldest])["changed"], true);
    assert_eq!(json(&["list"])["checkpoints"][0]["pinned"], true);
    let refused = run(&["delete", &oldest]);
    assert_eq!(refused.status.code(), FATAL);
    assert!(text(&refused.stderr).contains("unpin"), "{}", text(&refused.stderr));
    assert_eq!(json(&["unpin", &oldest])["pinned"], false);
    assert_eq!(json(&["delete", &oldest])["id"].as_u64(), Some(ids[0]));
    bench.assert_exactly_once();

    // One byte of the newest checkpoint.
    let manifest = bench.checkpoints().join(format!("{JOB}/chk/{newest}/manifest"));
    let mut bytes = fs::read(&manifest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&manifest, bytes).unwrap();
    let damaged = run(&["verify"]);
    assert_eq!(damaged.status.code(), Some(1));
    assert!(text(&damaged.stdout).contains("manifest"), "{}", text(&damaged.stdout));
    let nowhere = run(&["show", "77777"]);
    assert_eq!(nowhere.status.code(), FATAL);
    assert!(text(&nowhere.stderr).contains("77777"), "{}", text(&nowhere.stderr));
}
