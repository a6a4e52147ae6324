//! Tests of parts: what comes back, what is read, what damage does.

use std::cell::Cell;
use std::io::{Cursor, Read, Seek, SeekFrom};
use std::rc::Rc;

use super::*;
use crate::format::block::{FRAME_BYTES, PAYLOAD_BYTES_MAX};
use crate::format::tests::{every_prefix_is_refused, mutations_never_decode_to_something_else};
use crate::format::{FormatError, SectionKind, SectionOutput};
use crate::ids::KeyGroup;

fn header() -> PartHeader {
    PartHeader {
        job: Name::new("job").unwrap(),
        epoch: Epoch(7),
        attempt: Attempt(2),
        worker: 1,
        parallelism: 3,
        max_parallelism: 128,
    }
}

fn section(state: &str) -> SectionHeader {
    SectionHeader {
        operator: Name::new("count").unwrap(),
        state: Name::new(state).unwrap(),
        kind: SectionKind::KeyedValue,
        type_name: "u64".into(),
        type_version: 1,
        shape: crate::format::shape::EntryShape::default(),
    }
}

/// Sections of entries: each entry a key group and its bytes.
type Content = Vec<Vec<(u16, Vec<u8>)>>;

fn write(content: &Content) -> (Vec<u8>, PartSummary) {
    let mut part = PartWriter::new(Vec::new(), &header()).unwrap();
    for (number, entries) in content.iter().enumerate() {
        let mut section = part.section(&section(&format!("s{number}"))).unwrap();
        for (group, bytes) in entries {
            let mut fill = |out: &mut Vec<u8>| {
                out.extend_from_slice(bytes);
                Ok(())
            };
            section.entry(KeyGroup(*group), &mut fill).unwrap();
        }
    }
    part.finish().unwrap()
}

/// What a part says: for every section its header and, per block, groups, entries and bytes.
type Said = Vec<(SectionHeader, Vec<(u16, u16, u32, Vec<u8>)>)>;

fn read_all<R: Read + Seek>(reader: R, size: u64) -> Result<(PartHeader, Said), FormatError> {
    let mut part = PartReader::open(reader, size)?;
    let mut said = Vec::new();
    for section in 0..part.sections().len() {
        let header = part.sections()[section].header.clone();
        let mut blocks = part.blocks(section, 0..u16::MAX);
        let mut all = Vec::new();
        while let Some(block) = blocks.next()? {
            let EntryBlock { first_group, last_group, entries, bytes, .. } = block;
            all.push((first_group, last_group, entries, bytes.to_vec()));
        }
        said.push((header, all));
    }
    Ok((part.header().clone(), said))
}

fn decode(bytes: &[u8]) -> Result<(PartHeader, Said), FormatError> {
    read_all(Cursor::new(bytes), bytes.len() as u64)
}

fn small() -> Content {
    let entries = |count: u16| (0..count).map(|i| (i * 3, vec![i as u8; 5])).collect();
    vec![entries(4), entries(0), entries(7)]
}

#[test]
fn sections_come_back_in_order_with_their_entries() {
    let (bytes, summary) = write(&small());
    assert_eq!(summary.bytes, bytes.len() as u64);
    assert_eq!(summary.crc32c, crc32c::crc32c(&bytes));
    let (found, said) = decode(&bytes).unwrap();
    assert_eq!(found, header());
    assert_eq!(said.len(), 3);
    assert_eq!(said[0].0, section("s0"));
    assert_eq!(said[1].1, []);
    assert_eq!((said[2].1[0].0, said[2].1[0].1, said[2].1[0].2), (0, 18, 7));
    assert_eq!(said[2].1[0].3.len(), 35);
    assert_eq!((summary.sections[2].entries, summary.sections[2].bytes), (7, 35));
}

#[test]
fn a_part_without_sections_is_a_part() {
    let (bytes, _) = write(&Vec::new());
    assert_eq!(decode(&bytes).unwrap(), (header(), Vec::new()));
}

#[test]
fn blocks_roll_over_at_their_limit_and_a_larger_entry_has_one_of_its_own() {
    let large = 3 * PAYLOAD_BYTES_MAX;
    let sizes = [400_000, 400_000, 400_000, large, 10, PAYLOAD_BYTES_MAX - 12, 20];
    let entries: Vec<_> = (0_u16..).zip(sizes).map(|(g, n)| (g, vec![g as u8; n])).collect();
    let (bytes, summary) = write(&vec![entries]);
    let blocks = &summary.sections[0].blocks;
    let shape: Vec<_> = blocks.iter().map(|b| (b.first_group, b.last_group, b.entries)).collect();
    assert_eq!(shape, [(0, 1, 2), (2, 2, 1), (3, 3, 1), (4, 4, 1), (5, 5, 1), (6, 6, 1)]);
    for block in blocks.iter().filter(|block| block.first_group != 3) {
        assert!(block.length as usize <= FRAME_BYTES + PAYLOAD_BYTES_MAX);
    }
    let (_, said) = decode(&bytes).unwrap();
    let lengths: Vec<_> = said[0].1.iter().map(|block| block.3.len()).collect();
    assert_eq!(lengths, [800_000, 400_000, large, 10, PAYLOAD_BYTES_MAX - 12, 20]);
}

/// Counts what is read.
struct Counting(Cursor<Vec<u8>>, Rc<Cell<u64>>);

impl Read for Counting {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let count = self.0.read(out)?;
        self.1.set(self.1.get() + count as u64);
        Ok(count)
    }
}

impl Seek for Counting {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        self.0.seek(to)
    }
}

#[test]
fn a_reader_of_some_groups_reads_only_the_blocks_that_hold_them() {
    let entries: Vec<_> = (0..128_u16).map(|group| (group, vec![1; 300_000])).collect();
    let (bytes, _) = write(&vec![entries]);
    let size = bytes.len() as u64;
    let read_bytes = Rc::new(Cell::new(0));
    let mut part =
        PartReader::open(Counting(Cursor::new(bytes), read_bytes.clone()), size).unwrap();
    let mut blocks = part.blocks(0, 64..67);
    let mut groups = Vec::new();
    while let Some(block) = blocks.next().unwrap() {
        groups.push((block.first_group, block.last_group));
    }
    assert_eq!(groups, [(63, 65), (66, 68)]);
    assert!(read_bytes.get() < size / 10, "{} of {size} bytes were read", read_bytes.get());
    assert!(part.blocks(0, 0..0).next().unwrap().is_none());
}

#[test]
fn entries_out_of_order_and_failed_entries_make_the_part_unusable() {
    let mut part = PartWriter::new(Vec::new(), &header()).unwrap();
    let mut out = part.section(&section("a")).unwrap();
    out.entry(KeyGroup(5), &mut |_| Ok(())).unwrap();
    let error = out.entry(KeyGroup(4), &mut |_| Ok(())).unwrap_err();
    assert!(error.to_string().contains("key group 4 comes after one of 5"), "{error}");
    assert!(part.section(&section("b")).unwrap().entry(KeyGroup(0), &mut |_| Ok(())).is_err());
    assert!(part.finish().is_err());

    let mut part = PartWriter::new(Vec::new(), &header()).unwrap();
    let mut out = part.section(&section("a")).unwrap();
    let fail = &mut |bytes: &mut Vec<u8>| {
        bytes.push(1);
        Err(FormatError::Encode { what: "x".into(), why: "no".into() })
    };
    assert!(out.entry(KeyGroup(5), fail).is_err());
    assert!(part.finish().is_err());
}

#[test]
fn a_medium_that_fails_fails_the_part() {
    struct Full(usize);
    impl std::io::Write for Full {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 = self.0.checked_sub(bytes.len()).ok_or(std::io::ErrorKind::StorageFull)?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let (bytes, _) = write(&small());
    for room in 0..bytes.len() {
        let written = || {
            let mut part = PartWriter::new(Full(room), &header())?;
            for (number, entries) in small().iter().enumerate() {
                let mut out = part.section(&section(&format!("s{number}")))?;
                for (group, bytes) in entries {
                    out.entry(KeyGroup(*group), &mut |out| {
                        out.extend_from_slice(bytes);
                        Ok(())
                    })?;
                }
            }
            part.finish()
        };
        assert!(written().is_err(), "{room}");
    }
}

#[test]
fn a_damaged_part_is_refused() {
    let (bytes, _) = write(&small());
    let original = decode(&bytes).unwrap();
    every_prefix_is_refused(&bytes, decode);
    mutations_never_decode_to_something_else(&bytes, &original, decode);
}

#[test]
fn damage_in_a_block_is_reported_at_its_offset() {
    let (mut bytes, summary) = write(&small());
    let block = summary.sections[2].blocks[0];
    bytes[block.offset as usize + 40] ^= 1;
    match decode(&bytes) {
        Err(FormatError::Corrupt { offset, why }) => {
            assert_eq!(offset, block.offset);
            assert!(why.contains("checksum"), "{why}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn blocks_that_changed_places_are_refused() {
    // Both blocks are whole and of one length; only the index can tell.
    let content = vec![vec![(1, vec![1; 9])], vec![(2, vec![2; 9])]];
    let (mut bytes, summary) = write(&content);
    let place = |s: usize| {
        let block = summary.sections[s].blocks[0];
        block.offset as usize..block.offset as usize + block.length as usize
    };
    let (a, b) = (bytes[place(0)].to_vec(), bytes[place(1)].to_vec());
    bytes[place(0)].copy_from_slice(&b);
    bytes[place(1)].copy_from_slice(&a);
    assert!(decode(&bytes).unwrap_err().to_string().contains("the index says otherwise"));
}
