//! Jobs over files: many of them, plain and compressed, over several workers, with failures and rescaling between.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use highwater::prelude::*;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};

use crate::failure::{Faults, committed_lines};
use crate::support::{
    Background, Random, Scratch, assert_same, files_below, quiet_panics, run, seed,
};

/// Writes files of lines, every third one compressed by gzip and every third one by zstd; returns all lines.
fn write_files(directory: &Path, files: u64, lines: u64) -> Vec<String> {
    std::fs::create_dir(directory).unwrap();
    let mut all = Vec::new();
    for file in 0..files {
        let mine: Vec<String> = (0..lines).map(|n| format!("{file}/{n} {}", n % 37)).collect();
        let text = mine.join("\n");
        let path = directory.join(format!("{file}.txt"));
        match file % 3 {
            0 => std::fs::write(path, text).unwrap(),
            1 => {
                let file = std::fs::File::create(path.with_extension("txt.gz")).unwrap();
                let mut out = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
                out.write_all(text.as_bytes()).unwrap();
                out.finish().unwrap();
            }
            _ => {
                let bytes = compress_to_vec(text.as_bytes(), CompressionLevel::Fastest);
                std::fs::write(path.with_extension("txt.zst"), bytes).unwrap();
            }
        }
        all.extend(mine);
    }
    all
}

#[test]
fn many_files_plain_and_compressed_are_read_once_through_failures_and_rescaling() {
    quiet_panics();
    let mut random = Random::new(seed());
    let scratch = Scratch::new();
    let expected = write_files(&scratch.path("input"), 17, 3_000);
    let pattern = scratch.path("input/*").display().to_string();
    let output = scratch.path("output");
    for workers in [1, 3, 2] {
        let places: Vec<u64> = (0..3).map(|_| random.below(9_000)).collect();
        let (pattern, to, faults) = (pattern.clone(), output.clone(), Faults::at(places));
        let planted = faults.clone();
        let job = Background::start(scratch.config(workers), move |job| {
            let faults = faults.clone();
            job.source("lines", Files::glob(&pattern))
                .inspect(move |_| {
                    faults.pass();
                    // Fault: a slow operator, so that it is stopped midway.
                    std::thread::sleep(std::time::Duration::from_micros(10));
                })
                .rebalance()
                .sink("out", FileSink::lines(&to));
            Ok(())
        });
        if workers == 2 {
            job.end().unwrap();
        } else {
            crate::support::wait_until("three panics and a checkpoint after them", || {
                planted.happened() == 3
            });
            job.wait_for_more_checkpoints(1);
            job.handle.stop();
            job.end().unwrap();
        }
        scratch.assert_directory_is_the_reachable_set();
    }
    assert_same(expected, committed_lines(&output));
    let is_pending =
        |path: &&std::path::PathBuf| path.extension().is_some_and(|it| it == "pending");
    assert_eq!(files_below(&output).iter().find(is_pending), None);
}

fn text() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data/paradise-lost.txt")
}

#[test]
fn the_word_count_gives_every_word_with_each_of_its_counts() {
    quiet_panics();
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    let mut expected = Vec::new();
    let text = std::fs::read_to_string(text()).unwrap();
    for word in text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()) {
        let word = word.to_lowercase();
        let count = counts.entry(word.clone()).or_default();
        *count += 1;
        expected.push(format!("{word} {count}"));
    }
    assert!(expected.len() > 50_000, "there are words to count");
    for workers in 1..=3 {
        let scratch = Scratch::new();
        let output = scratch.path("output");
        let (to, faults) = (output.clone(), Faults::at([20_000, 60_000]));
        let planted = faults.clone();
        run(scratch.config(workers), move |job| {
            let faults = faults.clone();
            job.source("lines", Files::lines([self::text()]).split_bytes(50_000))
                .flat_map(|line| {
                    let words = line.split(|c: char| !c.is_alphanumeric());
                    words.map(str::to_lowercase).collect::<Vec<_>>()
                })
                .filter(|word| !word.is_empty())
                .into_keyed(|word| (word, ()))
                .process("count", Value::<u64>::new("count"), move |word, (), count, out| {
                    faults.pass();
                    let count = count.or_default();
                    *count += 1;
                    out.emit(format!("{word} {count}"));
                })
                .sink("counts", FileSink::lines(&to));
            Ok(())
        })
        .unwrap();
        assert_eq!(planted.happened(), 2);
        let found = committed_lines(&output);
        let mut last: BTreeMap<String, u64> = BTreeMap::new();
        for line in &found {
            let (word, count) = line.split_once(' ').unwrap();
            let count: u64 = count.parse().unwrap();
            let largest = last.entry(word.to_owned()).or_default();
            *largest = count.max(*largest);
        }
        assert_eq!(last, counts, "the final counts");
        assert_same(expected.iter().cloned(), found);
        scratch.assert_directory_is_the_reachable_set();
    }
}
