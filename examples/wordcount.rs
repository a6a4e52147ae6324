//! Counts words, exactly once: every word of the input comes out once with each of its running counts.

use highwater::prelude::*;

/// What to count, and where to.
#[derive(clap::Args)]
struct Args {
    /// Files to read; plain, .gz or .zst.
    #[arg(long, default_value = "examples/data/*.txt")]
    input: String,
    /// Directory for the counts.
    #[arg(long, default_value = "counts")]
    output: std::path::PathBuf,
}

fn main() -> highwater::Result<()> {
    highwater::run_with("wordcount", |job, args: &Args| {
        job.source("lines", Files::glob(&args.input))
            .flat_map(|line| {
                let words = line.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty());
                words.map(str::to_lowercase).collect::<Vec<_>>()
            })
            .into_keyed(|word| (word, ()))
            .process("count", Value::<u64>::new("count"), |word, (), count, out| {
                let count = count.or_default();
                *count += 1;
                out.emit(format!("{word} {count}"));
            })
            .sink("counts", FileSink::lines(&args.output));
        Ok(())
    })
}
