//! Asking the outside world about records: async I/O.

use crate::connect::Record;
use crate::job::stream::{KeyedStream, Stream};
use crate::protocol::key_groups::key_group;
use crate::runtime::async_function::{AsyncFunction, AsyncSettings};
use crate::runtime::async_io::{AsyncParts, async_io};
use crate::runtime::chain::Origin;
use crate::runtime::channel_log::{GroupOf, Placement};
use crate::state::Key;
use crate::state::hash::stable_hash;

impl<'scope, D: Record> Stream<'scope, D> {
    /// Asks the outside world about every record, many at once, and emits the answers. The worker never waits for one.
    ///
    /// `name` is unique in the job: records whose answers have not been emitted are in checkpoints under it, and are asked
    /// again after a restart. So every record is answered exactly once as far as the job goes, and the outside world may be
    /// asked more often. `function` asks: [`Blocking`](crate::job::Blocking) calls something that blocks,
    /// [`Futures`](crate::job::Futures) runs futures, and anything else implements [`AsyncFunction`]. `settings` say how many
    /// at once, whether answers keep the order of the records, and what is done about failures.
    ///
    /// When so many requests are under way as the settings allow, no more is taken from the input. The watermark does not
    /// pass a record that is not answered: no answer is late that was not late as a record. A job whose input has ended goes
    /// on until everything is answered; one that is stopped keeps what is under way in its final checkpoint.
    ///
    /// A request that has failed for good fails the job, which goes on from the last checkpoint by its restart strategy;
    /// or it is answered by [`AsyncFunction::or_else`].
    ///
    /// # Examples
    /// ```
    /// use std::time::Duration;
    /// use highwater::config::JobConfig;
    /// use highwater::ids::Name;
    /// use highwater::job::{Blocking, JobHandle, execute};
    /// use highwater::prelude::*;
    ///
    /// let collect = Collect::new();
    /// let seen = collect.handle();
    /// let config = JobConfig::new(Name::new("lookups")?);
    /// execute(config, &JobHandle::default(), move |job| {
    ///     // A call that blocks, on four threads of each worker.
    ///     let lengths = Blocking::new(4, |word: String| match word.len() {
    ///         0 => Err(ConnectError::new("a word has letters")),
    ///         length => Ok((word, length)),
    ///     });
    ///     let settings = AsyncSettings::ordered()
    ///         .capacity(16)
    ///         .timeout(Duration::from_secs(5))
    ///         .retries(2, Duration::from_millis(1), Duration::from_millis(10));
    ///     let words = ["of", "", "man"].map(str::to_owned).to_vec();
    ///     job.source("words", Collection::new(words))
    ///         .async_map("lengths", lengths.or_else(|word, _| vec![(word.clone(), 0)]), settings)
    ///         .sink("out", collect.clone());
    ///     Ok(())
    /// })?;
    /// let answers = [("of", 2), ("", 0), ("man", 3)];
    /// assert_eq!(seen.committed(), answers.map(|(word, length)| (word.to_owned(), length)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    /// A function of one's own keeps the [`Answer`](crate::job::Answer) for as long as it takes. Here a thread gives it:
    /// ```
    /// use highwater::job::{Answer, AsyncFunction};
    ///
    /// struct Doubled;
    ///
    /// impl AsyncFunction<u64> for Doubled {
    ///     type Output = u64;
    ///
    ///     fn ask(&mut self, record: &u64, answer: Answer<u64>) {
    ///         let record = *record;
    ///         std::thread::spawn(move || answer.complete([2 * record]));
    ///     }
    /// }
    /// ```
    #[doc(alias = "AsyncDataStream")]
    pub fn async_map<F: AsyncFunction<D>>(
        self,
        name: &str,
        function: F,
        settings: AsyncSettings,
    ) -> Stream<'scope, F::Output> {
        let wrap = |_: &D, result| result;
        self.add_async(name, function, settings, wrap, None)
    }

    fn add_async<F: AsyncFunction<D>, R: Record>(
        self,
        name: &str,
        function: F,
        settings: AsyncSettings,
        wrap: impl Fn(&D, F::Output) -> R + 'static,
        group_of: Option<GroupOf<D>>,
    ) -> Stream<'scope, R> {
        let Self { inner, job, origins, channel } = self;
        let name = job.name(name);
        let placement = group_of.map_or(Placement::Anywhere, Placement::Keyed);
        let restored = job.restored_log(&name, &placement);
        let held_at = restored.event;
        let parts = AsyncParts { function, settings, wrap, group_of, restored };
        let inner = async_io(inner, origins.clone(), job.context(), &name, parts);
        let origins: Vec<Origin> = origins.iter().map(|origin| origin.held_at(held_at)).collect();
        Stream { inner, job, origins, channel }
    }
}

impl<'scope, K: Key, V: Record> KeyedStream<'scope, K, V> {
    /// As [`Stream::async_map`], of keyed records: the function gets the key and the value, and what it answers stays with
    /// the key, also when the job goes on at another parallelism.
    pub fn async_map_values<F: AsyncFunction<(K, V)>>(
        self,
        name: &str,
        function: F,
        settings: AsyncSettings,
    ) -> KeyedStream<'scope, K, F::Output> {
        let group_of: GroupOf<(K, V)> = |(key, _), groups| key_group(stable_hash(key), groups);
        let wrap = |(key, _): &(K, V), result| (key.clone(), result);
        let stream = self.stream.add_async(name, function, settings, wrap, Some(group_of));
        KeyedStream { stream }
    }
}
