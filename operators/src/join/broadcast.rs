//! Broadcast join: each record is looked up in a small table that every worker has whole.
//!
//! # Guarantee
//! A record is emitted when it comes, with the entry of its key at that moment. There is no order between the two streams:
//! a record may come before an entry that was sent earlier, and another run may pair it otherwise. Where that matters, use a
//! [temporal join](super::temporal).
//!
//! # State
//! The table, once on every worker. The records of the stream are not kept, and need no exchange. No watermark is
//! needed.

use highwater::job::MapKey;
use highwater::prelude::*;

/// Looks the records of a stream up in a table.
///
/// # Examples
/// ```
/// use highwater::config::JobConfig;
/// use highwater::ids::Name;
/// use highwater::job::{JobHandle, execute};
/// use highwater::prelude::*;
/// use highwater_operators::BroadcastJoin;
///
/// let collect = Collect::new();
/// let seen = collect.handle();
/// let config = JobConfig::new(Name::new("countries")?);
/// execute(config, &JobHandle::default(), move |job| {
///     let countries = vec![(41u16, Some("Switzerland".to_owned())), (49, None)];
///     let countries = job.source("countries", Collection::new(countries));
///     job.source("calls", Collection::new(vec![41u16, 49, 41]))
///         .broadcast_join(countries, |code| *code)
///         .left("named", |code, country| (code, country.cloned()))
///         .sink("out", collect.clone());
///     Ok(())
/// })?;
/// let calls = seen.committed();
/// assert_eq!(calls.len(), 3);
/// // Whether the table was there before the calls is not said.
/// assert!(calls.iter().all(|(code, name)| *code == 41 || name.is_none()));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait BroadcastJoin<'scope, D: Record>: Sized {
    /// Puts `table` beside this stream, whose records set an entry, or remove it. `key` is what a record is looked up by.
    /// Which join it is, the methods of [`BroadcastJoined`] say.
    fn broadcast_join<M: MapKey, R: Record, F: Fn(&D) -> M + 'static>(
        self,
        table: Stream<'scope, (M, Option<R>)>,
        key: F,
    ) -> BroadcastJoined<'scope, D, M, R, F>;
}

impl<'scope, D: Record> BroadcastJoin<'scope, D> for Stream<'scope, D> {
    fn broadcast_join<M: MapKey, R: Record, F: Fn(&D) -> M + 'static>(
        self,
        table: Stream<'scope, (M, Option<R>)>,
        key: F,
    ) -> BroadcastJoined<'scope, D, M, R, F> {
        BroadcastJoined { main: self, table, key }
    }
}

/// A stream that is about to be joined with a table; made by [`BroadcastJoin::broadcast_join`].
///
/// The name that each of the methods takes is unique in the job, and identifies the table in checkpoints.
#[derive(Debug)]
pub struct BroadcastJoined<'scope, D: Record, M: MapKey, R: Record, F> {
    main: Stream<'scope, D>,
    table: Stream<'scope, (M, Option<R>)>,
    key: F,
}

impl<'scope, D: Record, M: MapKey, R: Record, F: Fn(&D) -> M + 'static>
    BroadcastJoined<'scope, D, M, R, F>
{
    /// Emits every record whose key the table has.
    pub fn inner<O: Record>(
        self,
        name: &str,
        pair: impl Fn(D, &R) -> O + 'static,
    ) -> Stream<'scope, O> {
        self.build(name, move |record, entry| entry.map(|entry| pair(record, entry)))
    }

    /// Emits every record, with the entry of its key if the table has it.
    pub fn left<O: Record>(
        self,
        name: &str,
        pair: impl Fn(D, Option<&R>) -> O + 'static,
    ) -> Stream<'scope, O> {
        self.build(name, move |record, entry| Some(pair(record, entry)))
    }

    fn build<O: Record>(
        self,
        name: &str,
        pair: impl Fn(D, Option<&R>) -> Option<O> + 'static,
    ) -> Stream<'scope, O> {
        let key = self.key;
        self.main.connect_broadcast(self.table).process(
            name,
            Broadcast::<M, R>::new("table"),
            move |record, table, out| {
                let entry = table.get(&key(&record));
                pair(record, entry).into_iter().for_each(|result| out.emit(result));
            },
            |(key, entry), table, _| match entry {
                Some(entry) => drop(table.insert(key, entry)),
                None => drop(table.remove(&key)),
            },
        )
    }
}
