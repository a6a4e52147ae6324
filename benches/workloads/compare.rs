//! The keyed count on bare timely and on Highwater, by turns, each in a fresh process.

use serde_json::{Value, json};

use crate::Measured;
use crate::args::{Args, Interval, Workload};
use crate::report::quantile;

/// Runs every side in every round, and relates the medians.
pub fn run(args: &Args) -> Measured {
    let every = args.checkpoint_interval.0.or(Some(std::time::Duration::from_secs(1)));
    let sides = [
        ("raw_timely", Workload::RawTimelyKeyedCount, Interval(None)),
        ("checkpoints_off", Workload::KeyedCount, Interval(None)),
        ("checkpoints_on", Workload::KeyedCount, Interval(every)),
    ];
    let mut runs: [Vec<Value>; 3] = Default::default();
    for round in 0..args.rounds.max(1) {
        for (at, (name, workload, checkpoint_interval)) in sides.into_iter().enumerate() {
            let own = Args { workload: Some(workload), checkpoint_interval, ..args.clone() };
            let report = own.run_in_process()?;
            if !args.json {
                println!(
                    "round {round} {name:<16} {:>6.2} s {:>6.2} M records/s {:>6.2} M records/cpu-s {:>6} MiB  {}",
                    report["seconds"].as_f64().unwrap_or(0.0),
                    report["records_per_second"].as_f64().unwrap_or(0.0) / 1e6,
                    report["records_per_cpu_second"].as_f64().unwrap_or(0.0) / 1e6,
                    report["peak_rss_bytes"].as_u64().unwrap_or(0) >> 20,
                    report["checkpoints"],
                );
            }
            if report["digest"] != runs[0].first().unwrap_or(&report)["digest"] {
                return Err(format!("{name} gave another digest than the first run: {report}"));
            }
            runs[at].push(report);
        }
    }
    let median = |at: usize| spread(&runs[at], "records_per_cpu_second").map_or(f64::NAN, |s| s[1]);
    let mut result = json!({
        "workload": "keyed-count",
        "parameters": runs[0][0]["parameters"],
        "rounds": args.rounds.max(1),
        "results": runs[0][0]["results"],
        "digest": runs[0][0]["digest"],
        "ratio_checkpoints_off": median(1) / median(0),
        "ratio_checkpoints_on": median(2) / median(0),
    });
    result["parameters"]["checkpoint_interval"] = json!(sides[2].2.to_string());
    for (at, (name, ..)) in sides.iter().enumerate() {
        result[*name] = json!({
            "seconds": spread(&runs[at], "seconds"),
            "records_per_second": spread(&runs[at], "records_per_second"),
            "cpu_seconds": spread(&runs[at], "cpu_seconds"),
            "records_per_cpu_second": spread(&runs[at], "records_per_cpu_second"),
            "peak_rss_bytes": spread(&runs[at], "peak_rss_bytes"),
            "checkpoints": runs[at].iter().map(|run| &run["checkpoints"]).collect::<Vec<_>>(),
        });
    }
    Ok(result)
}

/// Least, median and most of a number over the runs.
fn spread(runs: &[Value], field: &str) -> Option<[f64; 3]> {
    let mut numbers: Vec<f64> = runs.iter().filter_map(|run| run[field].as_f64()).collect();
    numbers.sort_unstable_by(f64::total_cmp);
    Some([*numbers.first()?, quantile(&numbers, 0.5)?, *numbers.last()?])
}
