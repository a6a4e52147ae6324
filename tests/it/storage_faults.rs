//! A checkpoint directory that fails for real, while the job runs.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use highwater::format::record::CheckpointOutcome;
use highwater::prelude::*;

use crate::support::{Background, Scratch, assert_same, running_counts, store_in, wait_until};

/// A directory in which writing can be made to fail.
enum Failing {
    /// A small file system of its own, which is filled.
    Small(PathBuf),
    /// Where nobody may mount one, nobody is root either: then permissions count.
    Forbidden(PathBuf),
}

impl Failing {
    fn new(directory: PathBuf) -> Self {
        fs::create_dir(&directory).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=2m", "none"])
            .arg(&directory)
            .status()
            .is_ok_and(|status| status.success());
        if mounted { Self::Small(directory) } else { Self::Forbidden(directory) }
    }

    fn path(&self) -> &Path {
        let (Self::Small(path) | Self::Forbidden(path)) = self;
        path
    }

    fn filler(&self) -> PathBuf {
        self.path().join("filler")
    }

    /// From now on nothing can be written. Asserted, so that the test tests something.
    fn begin(&self, job: &Path) {
        match self {
            Self::Small(_) => {
                let mut filler = fs::File::create(self.filler()).unwrap();
                for size in [64 << 10, 4 << 10, 1] {
                    while filler.write(&vec![1; size]).is_ok_and(|written| written > 0) {}
                }
                let error = fs::write(self.path().join("probe"), [1; 8192]).unwrap_err();
                assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
                fs::remove_file(self.path().join("probe")).unwrap();
            }
            Self::Forbidden(_) => {
                set_mode(&job.join("chk"), 0o500);
                fs::write(job.join("chk/probe"), [1]).unwrap_err();
            }
        }
    }

    fn end(&self, job: &Path) {
        match self {
            Self::Small(_) => fs::remove_file(self.filler()).unwrap(),
            Self::Forbidden(_) => set_mode(&job.join("chk"), 0o700),
        }
    }

    fn why(&self) -> &'static str {
        match self {
            Self::Small(_) => "No space left on device",
            Self::Forbidden(_) => "Permission denied",
        }
    }
}

impl Drop for Failing {
    fn drop(&mut self) {
        if let Self::Small(path) = self {
            // A test that fails leaves no mount behind.
            let _ = Command::new("umount").arg("-l").arg(path).status();
        }
    }
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_full_disk_aborts_checkpoints_and_nothing_else() {
    let scratch = Scratch::new();
    let disk = Failing::new(scratch.checkpoints());
    let job_directory = disk.path().join(crate::support::JOB);
    let mut config = scratch.config(2);
    config.checkpoints.inline_bytes_max = 0;
    config.checkpoints.interval = Some(std::time::Duration::from_millis(20));
    let (keys, records) = (5_000, 100_000);
    let output = scratch.path("output");
    let to = output.clone();
    let job = Background::start(config, move |job| {
        job.source("numbers", Generator::new(records, |i| i).paced(0, 40_000))
            .key_by(move |n| n % keys)
            .process("count", Value::<u64>::new("count"), |key, _, count, out| {
                *count.or_default() += 1;
                out.emit(format!("{key} {}", count.or_default()));
            })
            // The output is on another disk, which is not full.
            .sink("out", FileSink::lines(&to));
        Ok(())
    });
    let counters = job.handle.counters();
    job.wait_for_checkpoints(2);
    disk.begin(&job_directory);
    wait_until("three checkpoints are aborted", || counters.checkpoints().aborted >= 3);
    assert!(!job.is_finished());
    let (read, complete) = (counters.source_records(), counters.checkpoints().completed.len());
    wait_until("the job has gone on", || counters.source_records() > read);
    disk.end(&job_directory);
    job.wait_for_checkpoints(complete + 2);
    let aborted: Vec<String> = store_in(disk.path())
        .history()
        .unwrap()
        .into_iter()
        .filter_map(|record| match record.outcome {
            CheckpointOutcome::Aborted { reason } => Some(reason),
            _ => None,
        })
        .collect();
    assert!(aborted.iter().any(|reason| reason.contains(disk.why())), "{aborted:?}");
    assert_eq!(counters.restarts(), 0);
    let handle = job.handle.clone();
    job.end().unwrap();
    assert_eq!(handle.counters().restarts(), 0);
    let expected = running_counts(records, |n| n % keys);
    let expected = expected.iter().map(|(key, count)| format!("{key} {count}"));
    assert_same(expected, crate::failure::committed_lines(&output));
    crate::support::assert_directory_is_the_reachable_set(disk.path());
}
