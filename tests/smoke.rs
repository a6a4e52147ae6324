//! smoke
use highwater::config::*;
use highwater::connect::*;
use highwater::ids::Name;
use highwater::job::*;
use std::time::Duration;

#[test]
fn smoke() {
    tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).with_test_writer().init();
    let mut config = JobConfig::new(Name::new("smoke").unwrap());
    config.workers = 2;
    config.checkpoints.interval = Some(Duration::from_millis(50));
    let dir = std::env::temp_dir().join(format!("hw-smoke-{}", std::process::id()));
    config.checkpoints.directory = Some(dir.clone());
    let collect = Collect::new();
    let seen = collect.handle();
    let sink = collect.clone();
    let handle = JobHandle::default();
    execute(config, &handle, move |job| {
        job.source("numbers", Generator::new(2_000_000, |i| (i % 1000, i)))
            .into_keyed(|pair: (u64, u64)| pair)
            .process("count", Value::<u64>::new("n"), |key, _value, n, cx| {
                let n = n.or_default();
                *n += 1;
                if *n == 2000 {
                    cx.emit((*key, *n));
                }
            })
            .sink("out", sink.clone());
        Ok(())
    })
    .unwrap();
    let mut all = seen.committed();
    all.sort();
    assert_eq!(all.len(), 1000);
    println!("{:?}", handle.counters().checkpoints());
    std::fs::remove_dir_all(dir).unwrap();
}
