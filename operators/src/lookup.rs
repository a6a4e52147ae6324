//! Lookup join: each record with what the outside world knows of its key, through async I/O and a cache.
//!
//! # Guarantee
//! Every record is joined once. What it is joined with is what the outside world said at some time, at most the cache's
//! time to live before the record was there; after a restart it may be something else, since the cache begins empty and
//! records that were under way are looked up again.
//!
//! # State
//! The records under way, as for any async I/O. The cache is each worker's own, bounded, and in no checkpoint: it is only
//! there to be fast.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use highwater::job::{Answer, AsyncContext};
use highwater::prelude::*;

/// How much of what was looked up is remembered, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct LookupCache {
    entries_max: usize,
    time_to_live: Option<Duration>,
}

impl LookupCache {
    /// Remembers the answers for the `entries` keys that were used last, on each worker. With 0, nothing. A key that the
    /// outside world does not know is remembered as well.
    #[must_use]
    pub fn entries(entries: usize) -> Self {
        Self { entries_max: entries, time_to_live: None }
    }

    /// Forgets an answer this long after it came. Unless set, it stays until others take its place.
    #[must_use]
    pub fn time_to_live(mut self, time_to_live: Duration) -> Self {
        self.time_to_live = Some(time_to_live);
        self
    }
}

/// Joins each record with what the outside world knows of its key.
///
/// # Examples
/// ```
/// use highwater::config::JobConfig;
/// use highwater::ids::Name;
/// use highwater::job::{Blocking, JobHandle, execute};
/// use highwater::prelude::*;
/// use highwater_operators::{LookupCache, LookupJoin};
///
/// let collect = Collect::new();
/// let seen = collect.handle();
/// let config = JobConfig::new(Name::new("names")?);
/// execute(config, &JobHandle::default(), move |job| {
///     let names = Blocking::new(2, |user: u32| match user {
///         1 => Ok("Ada".to_owned()),
///         2 => Ok("Ken".to_owned()),
///         _ => Err(ConnectError::new(format!("no user {user}"))),
///     });
///     // Who is not known has no name, instead of failing the job.
///     let names = names.or_else(|_, _| Vec::new());
///     job.source("visits", Collection::new(vec![(1u32, "/"), (3, "/"), (2, "/a"), (1, "/b")]
///             .into_iter().map(|(user, page)| (user, page.to_owned())).collect()))
///         .left_lookup_join(
///             "names",
///             |(user, _page)| *user,
///             names,
///             LookupCache::entries(1_000),
///             AsyncSettings::ordered(),
///         )
///         .map(|((_, page), name)| (page, name))
///         .sink("out", collect.clone());
///     Ok(())
/// })?;
/// let name = |name: &str| Some(name.to_owned());
/// let joined = [("/", name("Ada")), ("/", None), ("/a", name("Ken")), ("/b", name("Ada"))];
/// assert_eq!(seen.committed(), joined.map(|(page, name)| (page.to_owned(), name)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait LookupJoin<'scope, D: Record>: Sized {
    /// Emits each record with each result of its key; a record whose key has none is dropped.
    ///
    /// `function` is asked about keys that are not in the cache; while an answer is on its way, further records of the key
    /// ask again. `settings` are as for [`Stream::async_map`].
    fn lookup_join<K: Key + Hash, V: Record>(
        self,
        name: &str,
        key: impl Fn(&D) -> K + 'static,
        function: impl AsyncFunction<K, Output = V>,
        cache: LookupCache,
        settings: AsyncSettings,
    ) -> Stream<'scope, (D, V)>;

    /// As [`lookup_join`](Self::lookup_join), but a record whose key has no result is emitted with `None`.
    fn left_lookup_join<K: Key + Hash, V: Record>(
        self,
        name: &str,
        key: impl Fn(&D) -> K + 'static,
        function: impl AsyncFunction<K, Output = V>,
        cache: LookupCache,
        settings: AsyncSettings,
    ) -> Stream<'scope, (D, Option<V>)>;
}

impl<'scope, D: Record> LookupJoin<'scope, D> for Stream<'scope, D> {
    fn lookup_join<K: Key + Hash, V: Record>(
        self,
        name: &str,
        key: impl Fn(&D) -> K + 'static,
        function: impl AsyncFunction<K, Output = V>,
        cache: LookupCache,
        settings: AsyncSettings,
    ) -> Stream<'scope, (D, V)> {
        let join = |record: &D, values: &[V]| {
            values.iter().map(|value| (record.clone(), value.clone())).collect()
        };
        self.async_map(name, Lookup::new(key, function, cache, join), settings)
    }

    fn left_lookup_join<K: Key + Hash, V: Record>(
        self,
        name: &str,
        key: impl Fn(&D) -> K + 'static,
        function: impl AsyncFunction<K, Output = V>,
        cache: LookupCache,
        settings: AsyncSettings,
    ) -> Stream<'scope, (D, Option<V>)> {
        let join = |record: &D, values: &[V]| {
            if values.is_empty() {
                return vec![(record.clone(), None)];
            }
            values.iter().map(|value| (record.clone(), Some(value.clone()))).collect()
        };
        self.async_map(name, Lookup::new(key, function, cache, join), settings)
    }
}

/// Asks about keys, unless the cache knows.
struct Lookup<K, V, G, F, J> {
    key: G,
    function: F,
    /// Makes what is emitted of a record and its results.
    join: J,
    cache: Arc<Mutex<Cache<K, V>>>,
    context: Option<AsyncContext>,
}

impl<K: Key + Hash, V: Record, G, F, J> Lookup<K, V, G, F, J> {
    fn new(key: G, function: F, cache: LookupCache, join: J) -> Self {
        let cache = Arc::new(Mutex::new(Cache::new(cache)));
        Self { key, function, join, cache, context: None }
    }
}

impl<D, K, V, O, G, F, J> AsyncFunction<D> for Lookup<K, V, G, F, J>
where
    D: Record,
    K: Key + Hash,
    V: Record,
    O: Record,
    G: Fn(&D) -> K + 'static,
    F: AsyncFunction<K, Output = V>,
    J: Fn(&D, &[V]) -> Vec<O> + Copy + Send + 'static,
{
    type Output = O;

    fn open(&mut self, context: &AsyncContext) -> Result<(), ConnectError> {
        self.context = Some(context.clone());
        self.function.open(context)
    }

    fn ask(&mut self, record: &D, answer: Answer<O>) {
        let context = self.context.clone().expect("opened before it is asked");
        let key = (self.key)(record);
        let (join, now) = (self.join, context.now());
        let known = {
            let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            cache.get(&key, now).map(|values| join(record, values))
        };
        if let Some(joined) = known {
            answer.complete(joined);
            return;
        }
        let (cache, record, asked) = (Arc::clone(&self.cache), record.clone(), key.clone());
        let answer = answer.map(move |values: Result<Vec<V>, ConnectError>| {
            let values = values?;
            let joined = join(&record, &values);
            let mut cache = cache.lock().unwrap_or_else(PoisonError::into_inner);
            cache.insert(key, values, context.now());
            Ok(joined)
        });
        self.function.ask(&asked, answer);
    }

    fn failed(&mut self, record: &D, error: &ConnectError) -> Option<Vec<O>> {
        let values = self.function.failed(&(self.key)(record), error)?;
        Some((self.join)(record, &values))
    }
}

/// The answers for the keys that were used last.
struct Cache<K, V> {
    settings: LookupCache,
    entries: HashMap<K, Entry<V>>,
    /// By when they were used last.
    by_use: BTreeMap<u64, K>,
    uses: u64,
}

struct Entry<V> {
    values: Vec<V>,
    since: Duration,
    used: u64,
}

impl<K: Clone + Eq + Hash, V> Cache<K, V> {
    fn new(settings: LookupCache) -> Self {
        Self { settings, entries: HashMap::new(), by_use: BTreeMap::new(), uses: 0 }
    }

    fn get(&mut self, key: &K, now: Duration) -> Option<&[V]> {
        let Entry { since, used, .. } = self.entries.get(key)?;
        let key = self.by_use.remove(used).expect("an entry stands where it was used last");
        let age = now.saturating_sub(*since);
        if self.settings.time_to_live.is_some_and(|time| age >= time) {
            self.entries.remove(&key);
            return None;
        }
        self.uses += 1;
        let entry = self.entries.get_mut(&key)?;
        entry.used = self.uses;
        self.by_use.insert(self.uses, key);
        Some(&entry.values)
    }

    fn insert(&mut self, key: K, values: Vec<V>, now: Duration) {
        if self.settings.entries_max == 0 {
            return;
        }
        self.uses += 1;
        let entry = Entry { values, since: now, used: self.uses };
        self.by_use.insert(self.uses, key.clone());
        if let Some(before) = self.entries.insert(key, entry) {
            self.by_use.remove(&before.used);
        }
        while self.entries.len() > self.settings.entries_max
            && let Some((_, key)) = self.by_use.pop_first()
        {
            self.entries.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn the_key_that_was_used_longest_ago_makes_room() {
        let mut cache = Cache::new(LookupCache::entries(2));
        cache.insert("a", vec![1], ms(0));
        cache.insert("b", vec![2], ms(0));
        assert_eq!(cache.get(&"a", ms(1)), Some(&[1][..]));
        cache.insert("c", vec![], ms(2));
        assert_eq!(cache.get(&"b", ms(3)), None);
        assert_eq!(cache.get(&"a", ms(3)), Some(&[1][..]));
        assert_eq!(cache.get(&"c", ms(1 << 30)), Some(&[][..]), "what is not there is known, too");
        cache.insert("c", vec![3], ms(4));
        assert_eq!((cache.entries.len(), cache.by_use.len()), (2, 2));
    }

    #[test]
    fn an_answer_is_forgotten_when_its_time_is_over() {
        let mut cache = Cache::new(LookupCache::entries(2).time_to_live(ms(10)));
        cache.insert("a", vec![1], ms(100));
        assert_eq!(cache.get(&"a", ms(109)), Some(&[1][..]));
        assert_eq!(cache.get(&"a", ms(110)), None);
        assert_eq!((cache.entries.len(), cache.by_use.len()), (0, 0));
        let mut nothing = Cache::new(LookupCache::entries(0));
        nothing.insert("a", vec![1], ms(0));
        assert_eq!(nothing.get(&"a", ms(0)), None);
    }
}
