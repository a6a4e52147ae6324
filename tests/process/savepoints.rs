//! Savepoints that the tool asks a running job for.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::Test;
use crate::program::JOB;
use crate::support::{Bench, TOOL, files_below, send, wait_until};

pub const TESTS: &[Test] = &[
    ("a_savepoint_of_two_processes_is_restored_after_a_kill_at_other_parallelism", restored),
    ("a_restore_plan_says_what_would_become_of_each_state_and_touches_nothing", plan),
    ("a_savepoint_is_converted_to_another_number_of_key_groups_without_the_program", converted),
    ("the_tool_says_why_there_is_no_savepoint", refused),
];

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn tool(bench: &Bench, words: &[&str], to: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(TOOL);
    command.args(words).arg("--dir").arg(bench.checkpoints()).arg("--to").arg(to).args(more);
    command.output().unwrap()
}

/// Every committed line, and how often it is there.
fn lines(output: &Path) -> BTreeMap<String, u64> {
    let mut lines = BTreeMap::new();
    for entry in fs::read_dir(output).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            for line in fs::read_to_string(path).unwrap().lines() {
                *lines.entry(line.to_owned()).or_default() += 1;
            }
        }
    }
    lines
}

fn restored() {
    let bench = Bench::new(6);
    let to = bench.path("savepoint");
    let mut first = bench.start(bench.supervised(2, 1, &[]), "log-1");
    bench.wait_for_a_checkpoint();
    let wrote = tool(&bench, &["savepoint", "trigger"], &to, &["--json"]);
    assert!(wrote.status.success(), "{}\n{}", text(&wrote.stderr), first.said());
    let report: Value = serde_json::from_slice(&wrote.stdout).unwrap();
    assert_eq!((report["parallelism"].as_u64(), report["job"].as_str()), (Some(2), Some(JOB)));
    assert!(!bench.checkpoints().join(JOB).join("requests").exists(), "nothing is left of it");

    // The job goes on; then it is killed, and its checkpoints are of no use.
    bench.wait_for_a_checkpoint();
    let processes = first.children();
    assert!(first.kill(), "{}", first.said());
    processes.iter().for_each(|pid| send(*pid, rustix::process::Signal::KILL));
    wait_until("its processes are gone", || {
        processes.iter().all(|pid| !Path::new(&format!("/proc/{pid}")).exists())
    });
    let before = lines(&bench.args.output);
    assert!(before.values().all(|times| *times == 1));
    let moved = bench.path("elsewhere");
    fs::rename(&to, &moved).unwrap();

    // From there on at three workers, and stopped with another savepoint.
    let from = moved.display().to_string();
    let mut second = bench.start(bench.program(&["-w", "3", "--restore", &from]), "log-2");
    bench.wait_for_a_checkpoint();
    let last = bench.path("last");
    let stopped = tool(&bench, &["savepoint", "stop"], &last, &[]);
    assert!(stopped.status.success(), "{}\n{}", text(&stopped.stderr), second.said());
    second.succeeds();
    let from = last.display().to_string();
    bench.start(bench.supervised(2, 2, &["--restore", &from]), "log-3").succeeds();

    // What the runs since the savepoint have written: of each key all counts from some one on, each once.
    let mut after = lines(&bench.args.output);
    for (line, times) in before {
        *after.get_mut(&line).unwrap() -= times;
    }
    let mut counts: BTreeMap<u64, Vec<(u64, u64)>> = BTreeMap::new();
    for (line, times) in after.into_iter().filter(|(_, times)| *times > 0) {
        let (key, count) = line.split_once(' ').unwrap();
        counts.entry(key.parse().unwrap()).or_default().push((count.parse().unwrap(), times));
    }
    assert_eq!(counts.len() as u64, bench.args.keys);
    let (mut lost, mut doubled, mut restored) = (0, 0, 0);
    for counts in counts.values_mut() {
        counts.sort_unstable();
        let total = bench.args.records / bench.args.keys;
        restored += u64::from(counts[0].0 > 1);
        lost += total + 1 - counts[0].0 - counts.len() as u64;
        doubled += counts.iter().map(|(_, times)| times - 1).sum::<u64>();
    }
    assert_eq!((lost, doubled), (0, 0), "LOSS {lost} DUP {doubled}");
    assert!(restored > 0, "it began anew");
    bench.assert_directory_is_the_reachable_set();

    let ls = Command::new(TOOL).args(["state", "ls", "--json"]).arg(&last).output().unwrap();
    let ls: Value = serde_json::from_slice(&ls.stdout).unwrap();
    let states = ls["states"].as_array().unwrap();
    let count = states.iter().find(|state| state["operator"] == "count").unwrap();
    assert_eq!(count["entries"].as_u64(), Some(bench.args.keys));
    let line = states.iter().find(|state| state["operator"] == "last").unwrap();
    assert_eq!(
        (line["state"].as_str(), line["kind"].as_str()),
        (Some("line"), Some("operator list"))
    );
    assert!((1..=3).contains(&line["entries"].as_u64().unwrap()), "{line}");
    let dump = ["state", "dump", "--operator", "count"];
    let dump = Command::new(TOOL).args(dump).arg(&last).output().unwrap();
    let dumped: Vec<Value> =
        text(&dump.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let counts = |lines: &[Value]| -> BTreeMap<u64, u64> {
        let counts = lines.iter().filter(|line| line["state"] == "count");
        counts.map(|l| (l["key"].as_u64().unwrap(), l["value"].as_u64().unwrap())).collect()
    };
    let all = counts(&dumped);
    assert_eq!(all.len() as u64, bench.args.keys);
    let keyed = dumped.iter().filter(|line| line["state"] == "count");
    assert!(keyed.is_sorted_by_key(|line| line["key_group"].as_u64()));
    assert!(count["shape"] == "u64 -> u64" && count["fingerprint"].as_str().unwrap().len() == 16);

    let state = |words: &[&str]| Command::new(TOOL).arg("state").args(words).output().unwrap();
    let last = last.to_str().unwrap();
    let csv = state(&["dump", last, "--operator", "count", "--state", "count", "--format", "csv"]);
    let lines: Vec<String> = text(&csv.stdout).lines().map(str::to_owned).collect();
    assert_eq!(lines[0], "operator,state,key_group,last_update,key,value");
    let (key, value) = all.first_key_value().unwrap();
    let line = lines.iter().find(|line| line.ends_with(&format!(",,{key},{value}"))).unwrap();
    let group = line.split(',').nth(2).unwrap();
    let number = group.parse::<u64>().ok();
    assert_eq!(lines.len(), 1 + all.len());
    let of_group = state(&["dump", last, "--state", "count", "--key-group", group]);
    let of_group: Vec<Value> =
        text(&of_group.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(!of_group.is_empty() && of_group.len() < all.len());
    assert!(of_group.iter().all(|line| line["key_group"].as_u64() == number));
    let table = text(&state(&["dump", last, "--format", "table"]).stdout);
    assert!(table.starts_with("OPERATOR"), "{table}");

    let got = state(&["get", last, "--operator", "count", "--key", &key.to_string()]);
    let got_lines: Vec<Value> =
        text(&got.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((got.status.code(), counts(&got_lines)), (Some(0), [(*key, *value)].into()));
    assert_eq!(state(&["get", last, "--key", "x"]).status.code(), Some(1));

    // The counts of the first savepoint have grown, and what a count was is what it is not any more.
    assert_eq!(state(&["diff", last, last]).status.code(), Some(0));
    let earlier = moved.to_str().unwrap();
    let before = state(&["dump", earlier, "--state", "count"]);
    let before: Vec<Value> =
        text(&before.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let before = counts(&before);
    let diff = state(&["diff", earlier, last, "--operator", "count", "--state", "count"]);
    assert_eq!(diff.status.code(), Some(1), "{}", text(&diff.stderr));
    let mut patched = before.clone();
    for line in text(&diff.stdout).lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let key = line["key"].as_u64().unwrap();
        assert_eq!(line["before"].as_u64(), before.get(&key).copied(), "{line}");
        assert_eq!(line["change"], if before.contains_key(&key) { "changed" } else { "added" });
        patched.insert(key, line["after"].as_u64().unwrap());
    }
    assert!(patched == all && before != all);

    // A reader that has seen enough.
    let mut dump = Command::new(TOOL);
    dump.args(["state", "dump", last]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut closed = dump.spawn().unwrap();
    drop(closed.stdout.take());
    let closed = closed.wait_with_output().unwrap();
    assert!(closed.status.success(), "{}", text(&closed.stderr));
    assert_eq!(text(&closed.stderr), "");
}

fn plan() {
    let bench = Bench::new(1);
    bench.start(bench.program(&["-w", "2"]), "log").succeeds();
    let newest = bench.checkpoints().join(JOB).join(format!("chk/{}", bench.newest()));
    let everything = || {
        let files = files_below(&bench.checkpoints()).into_iter();
        let files: Vec<_> = files.chain(files_below(&bench.args.output)).collect();
        files.into_iter().map(|file| (fs::read(&file).unwrap(), file)).collect::<Vec<_>>()
    };
    let before = everything();
    let plan = |json: bool, more: &[&str]| {
        let mut command = Command::new(TOOL);
        command.arg("restore-plan").arg(&newest).args(json.then_some("--json")).arg("--");
        command.arg(std::env::current_exe().unwrap()).args(bench.args.to_arguments());
        command.args(&bench.flags).args(more).env(crate::program::ASK, "1").output().unwrap()
    };
    let actions = |output: &Output| {
        let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
        let states = plan["states"].as_array().unwrap().clone();
        let action = |state: &Value| {
            let text = |key: &str| state[key].as_str().unwrap_or("-").to_owned();
            format!("{} {} {}", text("action"), text("operator"), text("renamed_from"))
        };
        (states.iter().map(action).collect::<Vec<_>>(), plan["problems"].clone())
    };
    let fits = plan(true, &[]);
    assert_eq!(fits.status.code(), Some(0), "{}", text(&fits.stderr));
    let (states, problems) = actions(&fits);
    for operator in ["numbers", "count", "last", "counts"] {
        assert!(states.contains(&format!("map {operator} -")), "{states:?}");
    }
    assert_eq!(problems.as_array().unwrap().len(), 0);

    // The checkpoint's `count` becomes an operator that the program does not have.
    let renamed = plan(true, &["--rename-state", "count=totals"]);
    assert_eq!(renamed.status.code(), Some(1));
    let (states, problems) = actions(&renamed);
    assert!(states.contains(&"new count -".to_owned()), "{states:?}");
    assert!(states.iter().any(|state| state.starts_with("drop ")), "{states:?}");
    assert!(problems.to_string().contains("--allow-dropped-state"), "{problems}");
    let table = text(&plan(false, &["--max-parallelism", "64"]).stdout);
    assert!(table.contains("would NOT start") && table.contains("128"), "{table}");

    // What is in the checkpoint is of another shape than the program's.
    let narrow = plan(true, &["--bits", "32"]);
    assert_eq!(narrow.status.code(), Some(1));
    let (states, problems) = actions(&narrow);
    assert!(states.contains(&"mismatch count -".to_owned()), "{states:?}");
    let why = "count/count: value: the checkpoint holds u64, the program wants u32; \
               declare version 2 with a migration";
    assert!(problems[0].as_str().unwrap().ends_with(why), "{problems}");
    let text_plan = plan(false, &["--bits", "32"]);
    let table = text(&text_plan.stdout);
    assert!(table.contains(why) && table.contains("would NOT start"), "{table}");
    assert!(before == everything(), "it has touched something");
    // The program itself says the same.
    let mut started = bench.start(bench.program(&["-w", "2", "--bits", "32"]), "narrow");
    assert!(!started.wait().success());
    assert!(started.said().contains(why), "{}", started.said());
}

fn converted() {
    let bench = Bench::new(3);
    bench.start(bench.program(&["-w", "2"]), "log").succeeds();
    let newest = bench.checkpoints().join(JOB).join(format!("chk/{}", bench.newest()));
    let to = bench.path("converted");
    let convert = |more: &[&str]| {
        let mut command = Command::new(TOOL);
        command.args(["savepoint", "convert"]).arg(&newest).arg("--to").arg(&to).args(more);
        command.output().unwrap()
    };
    let none = convert(&["--max-parallelism", "40000"]);
    assert_eq!(none.status.code(), Some(2));
    assert!(text(&none.stderr).contains("40000 key groups"), "{}", text(&none.stderr));
    let wrote = convert(&["--max-parallelism", "13", "--json"]);
    assert!(wrote.status.success(), "{}", text(&wrote.stderr));
    let report: Value = serde_json::from_slice(&wrote.stdout).unwrap();
    assert_eq!((report["max_parallelism"].as_u64(), report["job"].as_str()), (Some(13), Some(JOB)));
    assert!(report["entries"].as_u64() >= Some(bench.args.keys));
    let again = convert(&["--max-parallelism", "13"]);
    assert!(text(&again.stderr).contains("exists already"), "{}", text(&again.stderr));

    let plan = |more: &[&str]| {
        let mut command = Command::new(TOOL);
        command.arg("restore-plan").arg(&to).arg("--").arg(std::env::current_exe().unwrap());
        command.args(bench.args.to_arguments()).args(&bench.flags).args(more);
        command.env(crate::program::ASK, "1").output().unwrap()
    };
    let fits = plan(&["--max-parallelism", "13"]);
    assert_eq!(fits.status.code(), Some(0), "{}{}", text(&fits.stdout), text(&fits.stderr));
    assert!(text(&plan(&[]).stdout).contains("would NOT start"));
    let ls = Command::new(TOOL).args(["state", "ls"]).arg(&to).output().unwrap();
    assert!(text(&ls.stdout).contains("13 key groups"), "{}", text(&ls.stdout));
}

fn refused() {
    let bench = Bench::new(4);
    let to = bench.path("savepoint");
    // Nobody has ever run here.
    fs::create_dir(bench.checkpoints()).unwrap();
    let none = tool(&bench, &["savepoint", "trigger"], &to, &["--timeout", "1s"]);
    assert_eq!(none.status.code(), Some(2));
    assert!(text(&none.stderr).contains("no checkpoint of any job"), "{}", text(&none.stderr));

    let mut job = bench.start(bench.program(&["-w", "2"]), "log");
    bench.wait_for_a_checkpoint();
    fs::create_dir(&to).unwrap();
    for command in ["trigger", "stop"] {
        let taken = tool(&bench, &["savepoint", command], &to, &[]);
        assert_eq!(taken.status.code(), Some(2));
        assert!(text(&taken.stderr).contains("exists already"), "{}", text(&taken.stderr));
    }
    job.succeeds();
    bench.assert_exactly_once();

    let absent = tool(&bench, &["savepoint", "stop"], &bench.path("x"), &["--timeout", "300ms"]);
    assert_eq!(absent.status.code(), Some(2));
    assert!(text(&absent.stderr).contains("is it running"), "{}", text(&absent.stderr));
    assert!(!bench.path("x").exists());
    bench.assert_directory_is_the_reachable_set();
}
