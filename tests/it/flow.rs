//! Flow control bounds memory, however slow the end of a job is.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use highwater::prelude::*;

use crate::support::{Background, Scratch, wait_until};

const CHILD: &str = "HIGHWATER_TEST_FLOW_CHILD";
/// How often the child looks at its memory.
const SAMPLES: u64 = 6;

/// Units: bytes that this process has in memory.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib << 10
}

/// An unlimited generator and a sink that sleeps, for six seconds; says what it measured every second. Runs in a process
/// of its own, because memory is a process's.
#[test]
fn unlimited_generator_child() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let scratch = Scratch::new();
    let mut config = scratch.config(2);
    config.checkpoints.interval = Some(Duration::from_millis(500));
    let job = Background::start(config, |job| {
        job.source("numbers", Generator::unbounded(|i| (i, format!("some text of record {i}"))))
            .key_by(|(n, _)| n % 1_000)
            .process("count", Value::<u64>::new("count"), |_, record, count, out| {
                *count.or_default() += 1;
                out.emit(record);
            })
            .rebalance()
            // Fault: a slow operator.
            .inspect(|_| std::thread::sleep(Duration::from_millis(1)))
            .sink("out", Discard::new());
        Ok(())
    });
    let start = Instant::now();
    for second in 1..=SAMPLES {
        // Pace: one sample a second.
        std::thread::sleep(Duration::from_secs(second).saturating_sub(start.elapsed()));
        let counters = job.handle.counters();
        let waiting = counters.source_records() - counters.sink_records();
        let taken = counters.sink_records();
        println!("sample {second} {} {waiting} {taken}", resident_bytes());
    }
    job.handle.cancel();
    job.end().unwrap();
}

#[test]
fn memory_stays_where_it_is_while_a_sink_is_slower_than_its_source() {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "flow::unlimited_generator_child", "--nocapture"])
        .env(CHILD, "1")
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(output.status.success(), "{:?}", output.status);
    let text = String::from_utf8(output.stdout).unwrap();
    let samples: Vec<Vec<u64>> = text
        .lines()
        .filter_map(|line| line.strip_prefix("sample "))
        .map(|line| line.split(' ').map(|word| word.parse().unwrap()).collect())
        .collect();
    assert_eq!(samples.len() as u64, SAMPLES, "{text}");
    for sample in &samples {
        println!("{sample:?}");
        // A record is 80 bytes or so. The budget begins at 1 MiB for each pair of workers, and there are two exchanges.
        assert!(sample[2] < 200_000, "{} records wait", sample[2]);
    }
    let (second, sixth) = (&samples[1], &samples[5]);
    assert!(sixth[3] > second[3], "the sink has taken records");
    let grown = sixth[1].saturating_sub(second[1]);
    assert!(grown < 32 << 20, "memory has grown by {grown} bytes");
}

/// Runs a job whose operator needs `record` for each record until channels have released `records`, and again as many.
/// Returns for each worker's channel how much waits, as the time that it takes, and the quantum.
fn queue_before_an_operator_of(record: Duration, records: u64) -> Vec<(Duration, u64)> {
    let scratch = Scratch::new();
    let mut config = scratch.config(2);
    config.checkpoints.interval = None;
    let job = Background::start(config, move |job| {
        job.source("numbers", Generator::unbounded(|i| i))
            .channel_name("exchange")
            .key_by(|n| n % 1_000)
            .process("slow", Value::<u64>::new("count"), move |_, n, count, out| {
                std::thread::sleep(record); // Fault: a slow operator.
                *count.or_default() += 1;
                out.emit(n);
            })
            .sink("out", Discard::new());
        Ok(())
    });
    let released = |at_least: u64| {
        wait_until("records are released", || {
            let channels = job.handle.counters().channels();
            channels.len() == 2 && channels.iter().all(|c| c.released_records >= at_least)
        });
        job.handle.counters().channels()
    };
    let before = released(records);
    let start = Instant::now();
    let after = released(2 * records);
    let time = start.elapsed();
    // On a busy machine a source may be late now and then.
    let mut queued = vec![0; after.len()];
    wait_until("something waits before every worker", || {
        for (queued, channel) in queued.iter_mut().zip(job.handle.counters().channels()) {
            *queued = channel.queued_records.max(*queued);
        }
        queued.iter().all(|queued| *queued > 0)
    });
    let balances = job.handle.counters().balances();
    assert_eq!(balances.len(), 4, "each worker to each");
    for balance in balances {
        // One read of a source, of at most 8,192 records, may be sent while there is room for one record.
        assert!(balance.outstanding_bytes < balance.budget_bytes + 8_192 * 32, "{balance:?}");
    }
    job.handle.cancel();
    job.end().unwrap();
    let queues = before.iter().zip(&after).zip(queued).map(|((before, after), queued)| {
        assert_eq!((after.name.as_str(), after.worker), (before.name.as_str(), before.worker));
        let each = time / u32::try_from(after.released_records - before.released_records).unwrap();
        (each * u32::try_from(queued).unwrap(), after.quantum)
    });
    queues.collect()
}

#[test]
fn what_waits_before_a_slow_operator_is_about_the_target_time_of_work_and_a_step_a_few_records() {
    for (record, records) in [(200, 5_000), (2_000, 600), (10_000, 60)] {
        let queues = queue_before_an_operator_of(Duration::from_micros(record), records);
        for (time, quantum) in queues {
            println!("{record} us a record: {time:?} of work waits, {quantum} records a step");
            // 200 ms is the target; a batch of each sender is always allowed.
            assert!(time < Duration::from_millis(1_000) + Duration::from_micros(record) * 300);
            // 5 ms is the target of a step; a sleep takes longer than it is told to, never less.
            assert!(quantum <= 1 + 2 * 5_000 / record, "{quantum} records of {record} us");
        }
    }
}
