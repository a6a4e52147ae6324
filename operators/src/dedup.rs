//! Deduplication: the first record of each key.
//!
//! # Guarantee
//! "First" is the order in which records reach the worker that owns the key. That is the order of the source for
//! records of one split; between splits it is any, and may be another one in another run. What is emitted is
//! remembered in the same checkpoint as the position of the source, so a restart neither emits a key again nor
//! loses it.

use std::time::Duration;

use highwater::prelude::*;

use crate::duration::milliseconds;

/// Emits the first record of each key.
///
/// # Examples
/// ```
/// use highwater::config::JobConfig;
/// use highwater::ids::Name;
/// use highwater::job::{JobHandle, execute};
/// use highwater::prelude::*;
/// use highwater_operators::Dedup;
///
/// let collect = Collect::new();
/// let seen = collect.handle();
/// let config = JobConfig::new(Name::new("first-of-each")?);
/// execute(config, &JobHandle::default(), move |job| {
///     job.source("payments", Collection::new(vec![(7u64, 100u64), (8, 250), (7, 100)]))
///         .dedup("payments-once", |(id, _amount)| *id)
///         .sink("out", collect.clone());
///     Ok(())
/// })?;
/// assert_eq!(seen.committed(), [(7, 100), (8, 250)]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Dedup<'scope, D: Record>: Sized {
    /// Emits the first record of each key, for ever.
    ///
    /// State: every key that was ever seen stays, so it grows with the number of different keys. For a stream of
    /// ever new keys use [`dedup_within`](Self::dedup_within), or a key that comes back.
    fn dedup<K: Key>(self, name: &str, key: impl Fn(&D) -> K + 'static) -> Stream<'scope, D>;

    /// Emits a record unless one of the same key was emitted whose timestamp is at most `within` away.
    ///
    /// `timestamp` gives a record's event time in milliseconds, and should be what the source was given: what is
    /// remembered is forgotten by the watermark. `within` counts in whole milliseconds, rounded up.
    ///
    /// # Guarantee
    /// * Of two records of a key that are at most `within` apart and of which the second to arrive is not late, only
    ///   one is emitted. (Late: its timestamp is at or before the watermark. What could be near a record that is
    ///   not late is still remembered.)
    /// * A late record is compared with what is still remembered, and otherwise emitted: no key is lost, and
    ///   only lateness can let a duplicate through.
    /// * The first record of a key is always emitted.
    ///
    /// Nearness is to what was *emitted*: of records at 0, 8 and 16 with `within` 10 ms, those at 0 and 16 are.
    ///
    /// State: for each key the timestamps of what was emitted in the last `within` before the watermark, each with a timer
    /// that removes it; a key that never comes again leaves nothing.
    fn dedup_within<K: Key>(
        self,
        name: &str,
        within: Duration,
        timestamp: impl Fn(&D) -> i64 + 'static,
        key: impl Fn(&D) -> K + 'static,
    ) -> Stream<'scope, D>;
}

impl<'scope, D: Record> Dedup<'scope, D> for Stream<'scope, D> {
    fn dedup<K: Key>(self, name: &str, key: impl Fn(&D) -> K + 'static) -> Stream<'scope, D> {
        self.key_by(key).process(name, Value::<()>::new("seen"), |_key, record, seen, out| {
            if seen.get().is_none() {
                seen.set(());
                out.emit(record);
            }
        })
    }

    fn dedup_within<K: Key>(
        self,
        name: &str,
        within: Duration,
        timestamp: impl Fn(&D) -> i64 + 'static,
        key: impl Fn(&D) -> K + 'static,
    ) -> Stream<'scope, D> {
        let within = milliseconds(within);
        self.key_by(key).process_with_timers(
            name,
            Value::<Vec<i64>>::new("emitted"),
            move |_key, record, emitted, context| {
                let at = timestamp(&record);
                let near = |before: &i64| before.abs_diff(at) <= within;
                if emitted.get().is_some_and(|emitted| emitted.iter().any(near)) {
                    return;
                }
                context.emit(record);
                if !forgotten(at, within, context.watermark()) {
                    emitted.or_insert_with(|| Vec::with_capacity(1)).push(at);
                    context.register_event_timer(at.saturating_add_unsigned(within));
                }
            },
            move |_key, _timer, state, context| {
                let Some(emitted) = state.get_mut() else { return };
                let watermark = context.watermark();
                emitted.retain(|before| !forgotten(*before, within, watermark));
                if emitted.is_empty() {
                    state.take();
                }
            },
        )
    }
}

/// Whether no record after `watermark` can be at most `within` away from `emitted`.
fn forgotten(emitted: i64, within: u64, watermark: i64) -> bool {
    emitted <= watermark && emitted.abs_diff(watermark) >= within
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_be_near_a_record_that_is_not_late_is_not_forgotten() {
        let watermarks = [i64::MIN, -11, -10, 0, 1, 9, 10, i64::MAX - 1, i64::MAX];
        for watermark in watermarks {
            for emitted in watermarks {
                for within in [0, 1, 10, u64::MAX] {
                    let on_time = watermark.saturating_add(1);
                    let near = on_time > watermark && emitted.abs_diff(on_time) <= within;
                    let late = emitted <= watermark;
                    assert!(
                        !(near && forgotten(emitted, within, watermark)),
                        "emitted {emitted}, within {within}, watermark {watermark}"
                    );
                    assert!(late || !forgotten(emitted, within, watermark));
                }
            }
        }
    }
}
