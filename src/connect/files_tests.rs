//! Tests of the source of files.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use flate2::Compression as Level;
use flate2::write::GzEncoder;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};

use super::{CHUNK_BYTES, Files};
use crate::connect::conformance::{read_all, replays};
use crate::connect::{ConnectError, Source, SplitReader};

/// Writes a file into the directory, and returns its path.
fn put(directory: &Path, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let path = directory.join(name);
    std::fs::write(&path, content).unwrap();
    path
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Level::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

fn zstandard(content: &[u8]) -> Vec<u8> {
    compress_to_vec(content, CompressionLevel::Fastest)
}

/// Reads everything that a source has.
fn all(mut source: Files) -> Result<Vec<String>, ConnectError> {
    let mut lines = Vec::new();
    for split in source.splits(1)? {
        let mut reader = source.open(split)?;
        while crate::connect::ReadStatus::Finished != reader.read(&mut lines, 7)? {}
    }
    Ok(lines)
}

fn error(source: Files) -> String {
    let error = all(source).unwrap_err();
    format!("{error}: {:?}", error.source)
}

#[test]
fn lines_lose_their_ends_and_a_last_line_without_one_counts() {
    let directory = tempfile::tempdir().unwrap();
    for (content, lines) in [
        ("", vec![]),
        ("\n", vec![""]),
        ("a", vec!["a"]),
        ("a\n\r\nb\r\nc\r", vec!["a", "", "b", "c\r"]),
        ("a\rb\r\r\n", vec!["a\rb\r"]),
    ] {
        let path = put(directory.path(), "x", content);
        assert_eq!(replays(|| Files::lines([&path]), 1), lines, "{content:?}");
    }
}

#[test]
fn compressed_files_of_several_parts_replay_from_every_position() {
    let directory = tempfile::tempdir().unwrap();
    let (one, two) = ("first\nse", "cond\r\nthird");
    let zip = put(directory.path(), "a.gz", [gzip(one.as_bytes()), gzip(two.as_bytes())].concat());
    // A frame that decoders must skip: magic number, length, content.
    let skippable = [&[0x50, 0x2A, 0x4D, 0x18, 3, 0, 0, 0][..], b"???"].concat();
    let frames = [zstandard(one.as_bytes()), skippable, zstandard(two.as_bytes())].concat();
    let zst = put(directory.path(), "a.zst", frames);
    for path in [zip, zst] {
        assert_eq!(replays(|| Files::lines([&path]), 1), ["first", "second", "third"], "{path:?}");
    }
}

#[test]
fn a_long_compressed_file_is_skipped_in_steps_on_a_restore() {
    let directory = tempfile::tempdir().unwrap();
    let content: String = (0..100_000).map(|n| format!("line {n}\n")).collect();
    assert!(content.len() > 4 * CHUNK_BYTES);
    for path in [
        put(directory.path(), "a.gz", gzip(content.as_bytes())),
        put(directory.path(), "a.zst", zstandard(content.as_bytes())),
        put(directory.path(), "a.txt", &content),
    ] {
        let mut source = Files::lines([&path]);
        let mut reader = source.open(source.clone().splits(1).unwrap().remove(0)).unwrap();
        let mut batch = Vec::new();
        while batch.len() < 90_000 {
            let left = 90_000 - batch.len();
            reader.read(&mut batch, left).unwrap();
        }
        let mut restored = source.open(reader.split()).unwrap();
        // Asked while it still skips, it says the same position.
        assert_eq!(restored.split(), reader.split());
        let rest = read_all(&mut restored, 1_000);
        assert_eq!(rest.first().map(String::as_str), Some("line 90000"), "{path:?}");
        assert_eq!(rest.len(), 10_000);
    }
}

#[test]
fn a_truncated_or_damaged_compressed_file_is_an_error_and_not_an_end() {
    let directory = tempfile::tempdir().unwrap();
    let content: String = (0..9_000).map(|n| format!("line {n}\n")).collect();
    for (name, bytes) in
        [("a.gz", gzip(content.as_bytes())), ("a.zst", zstandard(content.as_bytes()))]
    {
        let path = put(directory.path(), name, &bytes[..bytes.len() / 2]);
        assert!(error(Files::lines([&path])).contains(name));
        let mut damaged = bytes.clone();
        let last = damaged.len() - if name == "a.gz" { 5 } else { 1 };
        damaged[last] ^= 1;
        put(directory.path(), name, damaged);
        assert!(error(Files::lines([&path])).contains("checksum"), "{name}");
        let path = put(directory.path(), name, "plain text");
        assert!(error(Files::lines([&path])).contains(name));
    }
}

#[test]
fn a_line_is_in_the_split_that_holds_its_first_byte() {
    let directory = tempfile::tempdir().unwrap();
    let content = "one\ntwo\r\n\nthree is longer\nfour";
    let path = put(directory.path(), "x", content);
    let expected: Vec<&str> = content.lines().collect();
    for bytes in 1..=content.len() as u64 + 1 {
        let make = || Files::lines([&path]).split_bytes(bytes);
        assert_eq!(replays(make, 1), expected, "cut every {bytes} bytes");
        let splits = make().splits(1).unwrap().len() as u64;
        assert_eq!(splits, (content.len() as u64).div_ceil(bytes));
    }
    let zip = put(directory.path(), "x.gz", gzip(content.as_bytes()));
    assert_eq!(Files::lines([&zip]).split_bytes(4).splits(1).unwrap().len(), 1);
}

#[test]
fn files_are_read_in_the_order_of_their_paths_each_once() {
    let directory = tempfile::tempdir().unwrap();
    let b = put(directory.path(), "b.txt", "b\n");
    let a = put(directory.path(), "a.txt", "a\n");
    put(directory.path(), ".hidden.txt", "hidden\n");
    std::fs::create_dir(directory.path().join("directory.txt")).unwrap();
    assert_eq!(all(Files::lines([&b, &a, &b])).unwrap(), ["a", "b"]);
    let pattern = directory.path().join("*.txt").to_str().unwrap().to_owned();
    assert_eq!(all(Files::glob(pattern)).unwrap(), ["a", "b"]);
}

#[test]
fn what_is_not_there_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let pattern = directory.path().join("*.nothing").to_str().unwrap().to_owned();
    assert!(error(Files::glob(&pattern)).contains(&pattern));
    assert!(error(Files::glob("a***b")).contains("is not a pattern"));
    assert!(error(Files::lines([directory.path().join("absent")])).contains("absent"));
    assert!(error(Files::lines([directory.path()])).contains("not a regular file"));
}

#[test]
fn bytes_that_are_not_utf8_are_refused_by_file_and_offset_or_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = put(directory.path(), "latin.txt", b"one\ncaf\xE9\n");
    let message = error(Files::lines([&path]));
    assert!(message.contains("latin.txt is not UTF-8 at byte 7"), "{message}");
    assert_eq!(all(Files::lines([&path]).lossy()).unwrap(), ["one", "caf\u{FFFD}"]);
}

#[test]
fn a_line_that_is_too_long_is_refused_by_file_and_offset() {
    let directory = tempfile::tempdir().unwrap();
    for content in ["ab\n12345\n", "ab\n12345\r\n", "ab\n12345"] {
        let path = put(directory.path(), "x", content);
        assert_eq!(all(Files::lines([&path]).line_bytes_max(5)).unwrap(), ["ab", "12345"]);
        let message = error(Files::lines([&path]).line_bytes_max(4));
        assert!(message.contains("the line at byte 3 of"), "{message}");
    }
}

#[test]
fn a_file_that_shrank_or_changed_is_refused_by_name_unless_it_was_done() {
    let directory = tempfile::tempdir().unwrap();
    let path = put(directory.path(), "x", "one\ntwo\nthree\n");
    let mut source = Files::lines([&path]);
    let mut reader = source.open(source.clone().splits(1).unwrap().remove(0)).unwrap();
    reader.read(&mut Vec::new(), 1).unwrap();
    let begun = reader.split();
    read_all(&mut reader, 9);
    let done = reader.split();

    put(directory.path(), "x", "one\ntwo\n");
    let message = source.open(begun.clone()).unwrap_err().to_string();
    assert!(message.contains("has 8 bytes, and had at least 14"), "{message}");
    put(directory.path(), "x", "two\none\nthree\n");
    let message = source.open(begun.clone()).unwrap_err().to_string();
    assert!(message.contains("is another file"), "{message}");
    put(directory.path(), "x", "one\ntwo\nthree\nfour\n");
    let mut grown = source.open(begun.clone()).unwrap();
    assert_eq!(read_all(&mut grown, 9), ["two", "three", "four"]);
    std::fs::remove_file(&path).unwrap();
    assert!(source.open(begun).unwrap_err().to_string().contains("cannot be opened"));
    assert!(read_all(&mut source.open(done).unwrap(), 9).is_empty());
}

#[test]
fn the_example_text_is_whole() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data/paradise-lost.txt");
    let whole = all(Files::lines([&path])).unwrap();
    assert_eq!(whole.len(), 10_699);
    assert_eq!(whole[3], "Paradise Lost by John Milton ");
    assert_eq!(whole[70], "Of Man's first disobedience, and the fruit ");
    assert_eq!(all(Files::lines([&path]).split_bytes(64 << 10)).unwrap(), whole);
}
