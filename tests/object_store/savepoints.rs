//! Savepoints in the bucket: asked for, looked into, converted, restored, taken over; and what is refused.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::thread::JoinHandle;

use highwater::bootstrap::SavepointWriter;
use highwater::config::{ClaimMode, JobConfig, RestoreFrom};
use highwater::job::{JobHandle, execute};
use highwater::prelude::*;
use highwater::storage::savepoint::Draft;
use highwater::storage::{Image, open_existing};

use crate::Test;
use crate::jobs::{
    assert_exactly_once, assert_only_what_is_reachable, config, expected, store, tool, wait_until,
};
use crate::program::{ASK, JOB};
use crate::server::Server;

pub const TESTS: &[Test] = &[
    ("a_savepoint_in_the_bucket_is_as_one_in_a_directory", savepoints),
    ("a_draft_in_the_bucket_is_one_writers_and_leaves_nothing", drafts),
];

const RECORDS: u64 = 40_000;
const KEYS: u64 = 97;

/// The counting of the program, from a source of its pace.
fn start(
    config: JobConfig,
    handle: &JobHandle,
    sink: &Collect<String>,
) -> JoinHandle<highwater::Result<()>> {
    let (handle, sink) = (handle.clone(), sink.clone());
    std::thread::spawn(move || {
        execute(config, &handle, move |job| {
            job.source("numbers", Generator::new(RECORDS, |i| i).paced(0, 20_000))
                .key_by(|n| n % KEYS)
                .process("count", Value::<u64>::new("count"), |key, _, count, out| {
                    *count.or_default() += 1;
                    out.emit(format!("{key} {}", *count.or_default()));
                })
                .sink("counts", sink.clone());
            Ok(())
        })
    })
}

/// What is below a URL.
fn names(url: &str) -> Vec<String> {
    let below = open_existing(Path::new(url)).unwrap().list(None).unwrap();
    below.into_iter().map(|(path, _)| path.into()).collect()
}

fn succeeds(arguments: &[&str], says: &str) {
    let (ok, said) = tool(arguments);
    assert!(ok && said.contains(says), "{arguments:?}: {said}");
}

fn savepoints(server: &Server) {
    let (url, other) = (server.url("savepoint-job"), server.url("savepoint-other"));
    let [monday, friday, converted] =
        ["monday", "friday", "converted"].map(|name| server.url(&format!("savepoints/{name}")));
    let (sink, handle) = (Collect::new(), JobHandle::default());
    let job = start(config(&url, 2), &handle, &sink);
    let completed = || handle.counters().checkpoints().completed.len();
    wait_until("a checkpoint is complete", || completed() >= 1);
    succeeds(&["savepoint", "trigger", "--dir", &url, "--to", &monday], &monday);
    assert_eq!(names(&monday).len(), 3, "a manifest and two parts: {:?}", names(&monday));
    for (to, why) in [(monday.as_str(), "exists already"), ("gs://bucket/x", "s3://bucket/prefix")]
    {
        let (ok, said) = tool(&["savepoint", "trigger", "--dir", &url, "--to", to]);
        assert!(!ok && said.contains(why), "{to}: {said}");
    }
    let info = handle.stop_with_savepoint(Path::new(&friday), false).unwrap();
    job.join().unwrap().unwrap();
    assert_eq!(info.path, Path::new(&friday));
    assert_only_what_is_reachable(&url);

    // Nothing of the job is needed from here on.
    let storage = store(&url).storage().clone();
    let blobs: Vec<_> = storage.list(None).unwrap().into_iter().map(|(path, _)| path).collect();
    storage.delete_all(&blobs).unwrap();
    succeeds(&["state", "ls", &friday], "count");
    let key = ["--operator", "count", "--state", "count", "--key", "7"];
    succeeds(&[&["state", "get", &friday], &key[..]].concat(), "7");
    succeeds(&["state", "dump", &friday, "--operator", "count", "--format", "jsonl"], "\"key\"");
    let (_, said) = tool(&["state", "diff", &monday, &friday]);
    assert!(said.contains("count"), "{said}");
    succeeds(
        &["savepoint", "convert", &friday, "--max-parallelism", "64", "--to", &converted],
        &converted,
    );
    assert_eq!(Image::open(Path::new(&converted)).unwrap().manifest().max_parallelism, 64);
    let mut plan = Command::new(env!("CARGO_BIN_EXE_highwater"));
    plan.args(["restore-plan", &friday, "--"]).arg(std::env::current_exe().unwrap());
    plan.args(["--records", "1", "--per-second", "1", "--keys", "1", "--output", "x"])
        .env(ASK, "1");
    let plan = plan.output().unwrap();
    let said = String::from_utf8([plan.stdout, plan.stderr].concat()).unwrap();
    assert!(said.contains("count") && said.contains(&info.epoch.to_string()), "{said}");

    // Restored at another parallelism, and taken over.
    let mut config = config(&other, 3);
    config.restore.from = RestoreFrom::Checkpoint(friday.clone());
    config.restore.claim_mode = ClaimMode::Claim;
    let rest = Collect::new();
    start(config, &JobHandle::default(), &rest).join().unwrap().unwrap();
    let (first, second) = (sink.handle().committed(), rest.handle().committed());
    assert!(second.len() < RECORDS as usize, "it did not start anew");
    let both: BTreeSet<String> = first.into_iter().chain(second).collect();
    assert_exactly_once(expected(RECORDS, KEYS), both);
    assert_only_what_is_reachable(&other);
    assert_eq!(names(&friday), Vec::<String>::new(), "it was taken over");
    assert!(!names(&monday).is_empty());
}

fn drafts(server: &Server) {
    let url = server.url("draft");
    let to = Path::new(&url);
    let mut draft = Draft::create(to).unwrap();
    let exists = Draft::create(to).unwrap_err().to_string();
    assert!(exists.contains("exists already"), "{exists}");
    let mut part = draft.part("1-0.part").unwrap();
    std::io::Write::write_all(&mut part, b"x").unwrap();
    part.finish().unwrap();
    assert_eq!(names(&url), ["1-0.part", "draft"]);
    assert!(Image::open(to).unwrap_err().to_string().contains("is not a checkpoint"));
    drop(draft);
    assert_eq!(names(&url), Vec::<String>::new());
    // A savepoint from iterators comes there as well.
    let count = Value::<u64>::new("count");
    let writer = SavepointWriter::create(to, JOB, 128).unwrap();
    writer.keyed("count", &count, (0..100_u64).map(|key| (key, key))).unwrap().finish().unwrap();
    let names = names(&url);
    assert!(names.len() == 2 && names.iter().any(|name| name == "manifest"), "{names:?}");
    assert_eq!(Image::open(to).unwrap().manifest().entries(), 100);
}
