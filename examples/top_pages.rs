//! The pages of a web log that were asked for most often, hour by hour.
//!
//! Two windows one behind the other: the first counts each page, on all workers; the second, which has one record for each
//! page and hour, puts the counts of an hour in order.
//!
//! `cargo run --example top_pages`, then look into `top`.

use std::path::PathBuf;
use std::time::Duration;

use highwater::prelude::*;
use highwater_operators::{Count, KeyedWindows, Windows};

mod access_log;
use access_log::Hit;

/// What to read, how many pages to tell, and where to write to.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Logs in the common log format; plain, .gz or .zst.
    #[arg(long, default_value = "examples/data/access.log")]
    pub input: String,
    /// Pages of each hour.
    #[arg(long, default_value_t = 3)]
    pub pages: usize,
    /// Directory for the result.
    #[arg(long, default_value = "top")]
    pub output: PathBuf,
}

/// The length of a window.
pub const HOUR: Duration = Duration::from_secs(60 * 60);

/// The job.
pub fn job(job: &Job<'_>, args: &Args) -> highwater::Result<()> {
    let time =
        EventTime::new(WatermarkStrategy::bounded(Duration::from_secs(60)), |line: &String| {
            access_log::time(line).unwrap_or(i64::MIN)
        });
    let pages = args.pages;
    job.source_with("log", Files::glob(&args.input), time)
        .flat_map(|line| Hit::parse(&line))
        .into_keyed(|hit| (hit.path, hit.at))
        .window(Windows::tumbling(HOUR), |at| *at)
        .aggregate("counts", Count::new())
        // A count belongs to the last moment of its window, and comes before the watermark passes that: so it is never late below.
        .into_keyed(|(page, window, count)| ((), (window.end - 1, count, page)))
        .window(Windows::tumbling(HOUR), |(at, ..)| *at)
        .process("ranking", move |(), window, mut counts, out| {
            // The most first; of equal ones in the order of their names, so that the result is the same in every run.
            counts.sort_by(|(_, a, page), (_, b, other)| b.cmp(a).then_with(|| page.cmp(other)));
            let hour = window.start.div_euclid(3_600_000);
            let (day, hour) = (hour.div_euclid(24), hour.rem_euclid(24));
            for (place, (_, count, page)) in (1..).zip(counts.into_iter().take(pages)) {
                out.emit(format!("day {day}, {hour:02}:00  {place}. {page} ({count})"));
            }
        })
        .sink("top", FileSink::lines(&args.output));
    Ok(())
}

fn main() -> highwater::Result<()> {
    highwater::run_with("top-pages", job)
}
