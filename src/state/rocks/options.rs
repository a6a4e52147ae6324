//! How RocksDB is set up: a few profiles, each a whole.
//!
//! What all have in common: no write-ahead log (a crash goes back to a checkpoint, never to the instance's own directory),
//! Bloom filters, index and filter blocks in the shared block cache so that they count in the budget, LZ4 above and Zstandard
//! in the last level, and universal compaction of files of like sizes.
//!
//! # Compaction
//! Leveled compaction rewrites a file whenever a few rows of its range have come down: where one row in a hundred changes between two
//! checkpoints, at random, that is all files, over and over. So files are only merged with others of like size: those
//! of some snapshots, and what came of that. What is settled is rewritten by [`merging`](super::merging), piece by piece, at a pace
//! that bounds what checkpoints upload. Where that does not keep up, since all rows change within a few snapshots, RocksDB
//! does it by itself: a family holds at most three times as many newer bytes as settled ones.

use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, DBCompactionStyle, DBCompressionType, LogLevel,
    Options, UniversalCompactOptions, UniversalCompactionStopStyle,
};

use super::budget::Budget;
use super::tails;

/// How RocksDB is tuned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Profile {
    /// For most machines.
    #[default]
    Default,
    /// For disks that turn: few, large reads and writes.
    SpinningDisk,
    /// For flash: small blocks, more compactions at once.
    FlashSsd,
    /// For little memory: small write buffers and files.
    LowMemory,
}

impl Profile {
    /// All of them, by their names on the command line.
    pub const NAMES: [(&'static str, Self); 4] = [
        ("default", Self::Default),
        ("spinning-disk", Self::SpinningDisk),
        ("flash-ssd", Self::FlashSsd),
        ("low-memory", Self::LowMemory),
    ];

    /// The profile of a name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::NAMES.into_iter().find(|(known, _)| *known == name).map(|(_, profile)| profile)
    }

    /// The number of families of one state, in all instances of a job together.
    pub(super) fn partitions(self) -> u16 {
        self.shape().partitions
    }

    fn shape(self) -> Shape {
        let default = Shape {
            partitions: 16,
            block_bytes: 8 << 10,
            write_buffer_bytes: 32 << 20,
            file_bytes: 16 << 20,
            background_jobs: 2,
            readahead_bytes: 256 << 10,
            filter_bits: 10.0,
        };
        match self {
            Self::Default => default,
            Self::SpinningDisk => Shape {
                block_bytes: 32 << 10,
                write_buffer_bytes: 64 << 20,
                file_bytes: 64 << 20,
                readahead_bytes: 4 << 20,
                ..default
            },
            Self::FlashSsd => Shape { block_bytes: 4 << 10, background_jobs: 4, ..default },
            Self::LowMemory => Shape {
                partitions: 4,
                write_buffer_bytes: 4 << 20,
                file_bytes: 4 << 20,
                filter_bits: 8.0,
                ..default
            },
        }
    }
}

/// All families of a state get their rows at the same pace: this lets them merge files at different times.
pub(super) fn stagger(options: &mut Options, partition: usize) {
    let later = partition as i32 % MERGED_MIN;
    options.set_level_zero_file_num_compaction_trigger(2 * MERGED_MIN + later);
}

/// Files of like sizes that are merged, at the least.
const MERGED_MIN: i32 = 8;

/// Units: bytes. With a smaller budget less is read ahead.
const SMALL_BUDGET: usize = 256 << 20;

struct Shape {
    /// Each has a write buffer, and files of its own in every checkpoint.
    partitions: u16,
    block_bytes: usize,
    /// Of one column family; all together are bounded by the budget.
    write_buffer_bytes: usize,
    file_bytes: u64,
    background_jobs: i32,
    readahead_bytes: usize,
    filter_bits: f64,
}

/// Options of an instance.
pub(super) fn database(profile: Profile, budget: &Budget) -> Options {
    let shape = profile.shape();
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_write_buffer_manager(budget.write_buffers());
    options.set_max_background_jobs(shape.background_jobs);
    // For each file that is merged, and there may be dozens: in proportion where the budget is small.
    let readahead_bytes = shape.readahead_bytes / SMALL_BUDGET.div_ceil(budget.total_bytes());
    options.set_compaction_readahead_size(readahead_bytes);
    options.set_max_open_files(512);
    options.set_skip_stats_update_on_db_open(true);
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    options.set_log_level(LogLevel::Warn);
    options.set_keep_log_file_num(1);
    options.set_max_log_file_size(1 << 20);
    options.set_manifest_preallocation_size(4 << 10);
    // A manifest that has grown is begun anew, so that checkpoints do not copy more and more of it.
    options.set_max_manifest_file_size(1 << 20);
    options.set_bytes_per_sync(1 << 20);
    options
}

/// Options of a column family.
pub(super) fn column(profile: Profile, budget: &Budget) -> Options {
    let shape = profile.shape();
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_size(shape.block_bytes);
    blocks.set_block_cache(budget.block_cache());
    blocks.set_bloom_filter(shape.filter_bits, false);
    blocks.set_optimize_filters_for_memory(true);
    blocks.set_cache_index_and_filter_blocks(true);
    blocks.set_cache_index_and_filter_blocks_with_high_priority(true);
    blocks.set_index_type(BlockBasedIndexType::BinarySearch);
    blocks.set_format_version(5);
    let mut options = Options::default();
    options.set_block_based_table_factory(&blocks);
    // No row of another kind of state is ever merged.
    options.set_merge_operator_associative(tails::OPERATOR, tails::merge);
    let total = budget.total_bytes();
    options.set_write_buffer_size((total / 16).clamp(256 << 10, shape.write_buffer_bytes));
    // There may be many families with a few rows each.
    options.set_arena_block_size((total / 2048).clamp(4 << 10, 256 << 10));
    options.set_max_write_buffer_number(3);
    options.set_target_file_size_base(shape.file_bytes);
    // One for each merge of files, so that what comes of it is several files and not one.
    options.set_num_levels(16);
    options.set_compaction_style(DBCompactionStyle::Universal);
    let mut universal = UniversalCompactOptions::default();
    universal.set_stop_style(UniversalCompactionStopStyle::Similar);
    universal.set_size_ratio(200);
    universal.set_min_merge_width(MERGED_MIN);
    universal.set_max_size_amplification_percent(300);
    options.set_universal_compaction_options(&universal);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_bottommost_compression_type(DBCompressionType::Zstd);
    // Flushes of a checkpoint every second are many small files; they may pile up a little before writes are slowed.
    options.set_level_zero_slowdown_writes_trigger(48);
    options.set_level_zero_stop_writes_trigger(96);
    options
}
