//! The program whose processes are killed: it counts keys, and writes every count of every key to files.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::ValueEnum;
use highwater::prelude::*;

/// Makes this binary the program.
pub const ASK: &str = "PROCESS_TEST_PROGRAM";

/// The name of the job.
pub const JOB: &str = "counts";

/// What the program is to do.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Numbers to count
    #[arg(long)]
    pub records: u64,
    /// Numbers a second
    #[arg(long)]
    pub per_second: u64,
    /// Keys that they have
    #[arg(long)]
    pub keys: u64,
    /// Directory for the counts
    #[arg(long)]
    pub output: PathBuf,
    /// What is done with the numbers
    #[arg(long, value_enum, default_value_t)]
    pub shape: Shape,
    /// Count in so many bits
    #[arg(long, default_value_t = 64, overrides_with = "bits")]
    pub bits: u8,
}

/// What the program does with the numbers. The lines that come out are the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Shape {
    /// They are counted by key.
    #[default]
    Count,
    /// Every record is checked at each step and some of it is slow, so that channels are full.
    Slow,
    /// The same, and every record goes round a loop before it is counted.
    Loop,
}

/// How often a record goes round at the most.
const ROUNDS: u64 = 4;

/// A record that says what it is: a number, what goes with it, and a checksum of both.
type Checked = (u64, String, u32);

fn checked(number: u64) -> Checked {
    let text = format!("{number:x}").repeat(1 + (number % 13) as usize);
    let check = crc32c::crc32c_append(crc32c::crc32c(&number.to_le_bytes()), text.as_bytes());
    (number, text, check)
}

/// Ends the process if a record is not what it was: no restart makes that good.
fn look((number, text, check): &Checked) {
    let (_, expected_text, expected) = checked(*number);
    if *text != expected_text || *check != expected {
        eprintln!("{TORN} {number} {text} {check}");
        std::process::abort();
    }
}

/// What the program says when it ends itself.
pub const TORN: &str = "a torn record:";

/// Lets so many records pass in a millisecond.
fn slow(records: u32) -> impl FnMut() {
    let mut passed = 0;
    move || {
        passed += 1;
        if passed == records {
            passed = 0;
            // Fault: a slow operator.
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
}

/// Two sources into one keyed operator, with another exchange on one of the ways and perhaps a loop on the other.
fn slow_counts(job: &Job<'_>, args: &Args) {
    let Args { records, keys, shape, .. } = *args;
    let read = |name: &str, rest: u64| {
        let numbers = job.source(name, Generator::new(records / 2, move |i| 2 * i + rest));
        numbers.map(checked)
    };
    let mut pass = slow(20);
    let even = read("even", 0).channel_name("spread").rebalance().inspect(move |record| {
        look(record);
        pass();
    });
    let even = if shape == Shape::Loop { rounds(even) } else { even };
    let odd = read("odd", 1).channel_name("odds").key_by(move |(number, ..)| number % keys);
    let mut pass = slow(10);
    even.channel_name("evens")
        .key_by(move |(number, ..)| number % keys)
        .union(odd)
        .process("count", Value::<u64>::new("count"), move |key, record, count, out| {
            look(&record);
            pass();
            *count.or_default() += 1;
            out.emit(format!("{key} {}", count.or_default()));
        })
        .sink("counts", FileSink::lines(&args.output));
}

fn rounds(stream: Stream<'_, Checked>) -> Stream<'_, Checked> {
    stream.map(|record| (record.0 / 2 % ROUNDS, record)).iterate("rounds", |head| {
        let around = head.channel_name("around").key_by(|(left, record)| record.0 + left);
        let counted =
            around.process("visits", Value::<u64>::new("visits"), |_, round, seen, out| {
                let (left, record): (u64, Checked) = round;
                look(&record);
                *seen.or_default() += 1;
                out.emit((left, record));
            });
        let again = counted.clone().filter(|(left, _)| *left > 0);
        let out = counted.filter(|(left, _)| *left == 0).map(|(_, record)| record);
        (again.map(|(left, record)| (left - 1, record)), out)
    })
}

impl Args {
    /// The arguments by which the program reads these.
    pub fn to_arguments(&self) -> Vec<OsString> {
        vec![
            "--records".into(),
            self.records.to_string().into(),
            "--per-second".into(),
            self.per_second.to_string().into(),
            "--keys".into(),
            self.keys.to_string().into(),
            "--output".into(),
            self.output.clone().into(),
            "--shape".into(),
            self.shape.to_possible_value().expect("none is hidden").get_name().into(),
            "--bits".into(),
            self.bits.to_string().into(),
        ]
    }

    /// The lines that it writes, computed without Highwater.
    pub fn expected(&self) -> Vec<String> {
        let mut counts: BTreeMap<u64, u64> = BTreeMap::new();
        (0..self.records)
            .map(|number| {
                let count = counts.entry(number % self.keys).or_default();
                *count += 1;
                format!("{} {count}", number % self.keys)
            })
            .collect()
    }
}

pub fn is_asked_for() -> bool {
    std::env::var_os(ASK).is_some()
}

/// Keeps the last line of each worker.
fn keep_last(
    line: String,
    last: &mut OperatorListState<'_, String>,
    out: &mut Context<'_, String>,
) {
    last.replace([line.clone()]);
    out.emit(line);
}

pub fn run() -> ExitCode {
    let ran = highwater::run_with(JOB, |job, args: &Args| {
        if args.shape != Shape::Count {
            slow_counts(job, args);
            return Ok(());
        }
        let keys = args.keys;
        let numbers = job
            .source("numbers", Generator::new(args.records, |i| i).paced(0, args.per_second))
            .key_by(move |number| number % keys);
        if args.bits == 32 {
            numbers
                .process("count", Value::<u32>::new("count"), |key, _, count, out| {
                    *count.or_default() += 1;
                    out.emit(format!("{key} {}", count.or_default()));
                })
                .process("last", OperatorList::<String>::new("line"), keep_last)
                .sink("counts", FileSink::lines(&args.output));
            return Ok(());
        }
        numbers
            .process("count", Value::<u64>::new("count"), |key, _, count, out| {
                *count.or_default() += 1;
                out.emit(format!("{key} {}", count.or_default()));
            })
            .process("last", OperatorList::<String>::new("line"), keep_last)
            .sink("counts", FileSink::lines(&args.output));
        Ok(())
    });
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error}");
            ExitCode::FAILURE
        }
    }
}
