//! The states of an operator, declared once: descriptors make tables, tables give access to the state of one key.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::format::FormatError;
use crate::format::shape::EntryShape;
use crate::ids::{InvalidName, Name};
use crate::protocol::layers::Layer;
use crate::runtime::keyed::StateDeclaration;
use crate::runtime::kinds::{At, Kind};
use crate::runtime::lifetime::{Expiring, Forever, Lifetime, Ttl};
use crate::runtime::migration::{Migrations, Step};
use crate::runtime::shapes::shape_of;
use crate::state::{
    Backend, BackendTable, FrozenState, Key, Selection, SnapshotForm, StateBackend, StateValue,
    SweepPosition, ValueTable,
};

/// Declares the states that an operator keeps for each key: one descriptor, or a tuple of them.
///
/// Implemented by the descriptors [`Value`](crate::job::Value), [`List`](crate::job::List), [`Map`](crate::job::Map),
/// [`Reducing`](crate::job::Reducing) and [`Aggregating`](crate::job::Aggregating), and by tuples of up to four of them.
/// Not to be implemented outside of the crate.
///
/// # Examples
/// ```
/// use std::time::Duration;
///
/// use highwater::config::JobConfig;
/// use highwater::ids::Name;
/// use highwater::job::{JobHandle, execute};
/// use highwater::prelude::*;
///
/// let collect = Collect::new();
/// let seen = collect.handle();
/// let config = JobConfig::new(Name::new("visits")?);
/// execute(config, &JobHandle::default(), move |job| {
///     let visits = [("ann", "/"), ("ann", "/help"), ("bob", "/"), ("ann", "/")];
///     let visits: Vec<(String, String)> =
///         visits.map(|(who, page)| (who.to_owned(), page.to_owned())).to_vec();
///     let states = (
///         Map::<String, u64>::new("pages"),
///         Reducing::new("longest", |longest: &mut usize, length| *longest = length.max(*longest)),
///         List::<String>::new("way").ttl(Duration::from_secs(1800)),
///     );
///     job.source("visits", Collection::new(visits))
///         .into_keyed(|visit| visit)
///         .process("ways", states, |who, page: String, (pages, longest, way), out| {
///             let times = pages.get(&page).copied().unwrap_or(0) + 1;
///             pages.insert(page.clone(), times);
///             longest.add(page.len());
///             way.append(page);
///             let way: Vec<&str> = way.iter().map(String::as_str).collect();
///             out.emit((who.clone(), way.join(" "), times, longest.get().copied()));
///         })
///         .sink("out", collect.clone());
///     Ok(())
/// })?;
/// assert!(seen.committed().contains(&("ann".to_owned(), "/ /help /".to_owned(), 2, Some(5))));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait States<K: Key>: sealed::Sealed + 'static {
    /// The tables that hold the states of all keys of one worker.
    type Tables: 'static;
    /// Access to the states of one key.
    type Access<'a>
    where
        K: 'a;
    /// Whether one of them has a time to live.
    const EXPIRES: bool;

    /// What is declared, in order.
    fn declarations(&self) -> Vec<StateDeclaration>;
    /// Makes empty tables, of a worker that owns the key groups `groups`.
    fn open(&self, backend: &Backend, max_parallelism: u16, groups: &Range<u16>) -> Self::Tables;
    /// Adds the entries of a block of the state at `index` of the declarations. `expiring`: whether they hold the times of
    /// their last updates.
    ///
    /// # Errors
    /// [`FormatError`] if the block is damaged.
    fn restore(
        tables: &mut Self::Tables,
        index: usize,
        expiring: bool,
        selection: &Selection<'_>,
        entries: u32,
        bytes: &[u8],
    ) -> Result<(), FormatError>;
    /// The state at `index` of the declarations is what these layers hold.
    fn restored(tables: &mut Self::Tables, index: usize, layers: Vec<Layer>);
    /// Brings near what keys with these hashes need.
    fn prefetch(tables: &Self::Tables, hashes: &[u64]);
    /// Gives access to the states of one key.
    fn access<'a>(tables: &'a mut Self::Tables, hash: u64, key: &'a K) -> Self::Access<'a>;
    /// Freezes all states, in the order of the declarations.
    fn freeze(tables: &mut Self::Tables, form: SnapshotForm) -> Vec<FrozenState>;
    /// Sets the clock of states that expire. Units: milliseconds since 1970.
    fn set_now(tables: &mut Self::Tables, now: i64);
    /// Removes what has expired among the next `entries` entries of each state that expires.
    fn sweep(tables: &mut Self::Tables, entries: usize);
}

mod sealed {
    /// Keeps the set of descriptors ours.
    pub trait Sealed {}
    /// A descriptor of one state: what a tuple may hold.
    pub trait One: Sealed {}
}

/// Declares one state: its kind `D`, its name and version, and how long it lives. Programs use the names of the kinds:
/// [`Value`](crate::job::Value) and its like.
pub struct Descriptor<D, L = Forever> {
    name: Result<Name, InvalidName>,
    version: u32,
    kind: D,
    lifetime: L,
    steps: Arc<Vec<Step>>,
    by_name: bool,
}

impl<D, L> fmt::Debug for Descriptor<D, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Descriptor").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<D: Kind> Descriptor<D> {
    pub(crate) fn declare(name: &str, kind: D) -> Self {
        Self {
            name: Name::new(name),
            version: 1,
            kind,
            lifetime: Forever,
            steps: Arc::default(),
            by_name: false,
        }
    }

    /// Lets the state of a key expire that was not updated for so long: a [`Duration`](std::time::Duration), or a [`Ttl`]
    /// that says more.
    #[must_use]
    pub fn ttl(self, ttl: impl Into<Ttl>) -> Descriptor<D, Ttl> {
        self.lifetime(ttl.into())
    }

    /// Says how long the state lives: [`Forever`], which it does unless told otherwise, or a [`Ttl`]. For code that is
    /// generic over the two.
    #[must_use]
    pub fn lifetime<L: Lifetime>(self, lifetime: L) -> Descriptor<D, L> {
        let Self { name, version, kind, lifetime: Forever, steps, by_name } = self;
        Descriptor { name, version, kind, lifetime, steps, by_name }
    }
}

impl<D: Kind, L: Lifetime> Descriptor<D, L> {
    /// The version of the types in the state that this program keeps; 1 unless set. A checkpoint of another version is
    /// refused, unless there is a [migration](Descriptor::migrate_from) from it or it can be read
    /// [by name](Descriptor::evolve_by_name).
    #[must_use]
    pub fn version(mut self, version: u32) -> Self {
        self.version = version;
        self
    }

    /// Reads checkpoints of an older version too: what they hold is converted while it is restored. `convert` gets what the
    /// state kept then and returns what a later version keeps. Of a list it converts each element, of a map each value (the
    /// keys of a map, and those of the state, stay as they are), of aggregating state the accumulator.
    ///
    /// Migrations make a chain: one leads to the next version from which there is a migration if that takes what this one
    /// makes, and to the current version otherwise. A chain that does not arrive there is an error of the build.
    ///
    /// That the checkpoint holds what `Old` is, is checked before anything is read, by the shape of the type: its name
    /// does not matter.
    ///
    /// # Examples
    /// ```
    /// use highwater::prelude::*;
    /// use serde::{Deserialize, Serialize};
    ///
    /// #[derive(Clone, Serialize, Deserialize)]
    /// struct Sum {
    ///     total: u64,
    ///     seen: u64,
    /// }
    /// // Version 1 kept a sum in 32 bits, version 2 in 64.
    /// let sums = Value::<Sum>::new("sums")
    ///     .version(3)
    ///     .migrate_from(1, |total: u32| u64::from(total))
    ///     .migrate_from(2, |total: u64| Sum { total, seen: 0 });
    /// # drop(sums);
    /// ```
    #[must_use]
    pub fn migrate_from<Old: StateValue, New: StateValue>(
        mut self,
        version: u32,
        convert: impl Fn(Old) -> New + Send + Sync + 'static,
    ) -> Self {
        Arc::make_mut(&mut self.steps).push(Step::new(version, convert));
        self
    }

    /// Reads checkpoints of another shape too, of this version or of an older one without a migration: field by field and
    /// variant by variant, by their names. So fields may be added that have a `#[serde(default)]` or are an `Option`, removed,
    /// put into another order and renamed with `#[serde(alias)]`; variants may be added anywhere; numbers may become wider
    /// and values optional. What the program has no field for is lost. Keys must stay as they are.
    ///
    /// That all this is so is checked before anything is read. Types that cannot be seen through are not read by name, nor are
    /// enums with a `#[serde(alias)]` on a variant.
    ///
    /// # Examples
    /// ```
    /// use highwater::prelude::*;
    /// use serde::{Deserialize, Serialize};
    ///
    /// #[derive(Clone, Serialize, Deserialize)]
    /// struct Visit {
    ///     page: String,
    ///     // New since the last checkpoint.
    ///     #[serde(default)]
    ///     seconds: u64,
    /// }
    /// let visits = List::<Visit>::new("visits").evolve_by_name();
    /// # drop(visits);
    /// ```
    #[must_use]
    pub fn evolve_by_name(mut self) -> Self {
        self.by_name = true;
        self
    }
}

/// What keeps a state of all keys of one worker: what is the same for each kind. `V`: what it keeps for a key. Not to be
/// implemented outside of the crate.
pub trait HeldTable<K: Key, V: StateValue>: 'static {
    /// Makes an empty one of the state `name`; without a name, one that is never used.
    fn open(
        backend: &Backend,
        name: Option<&str>,
        max_parallelism: u16,
        groups: &Range<u16>,
    ) -> Self;
    /// As [`ValueTable::restore_block_as`].
    ///
    /// # Errors
    /// As there.
    fn restore<W: serde::de::DeserializeOwned>(
        &mut self,
        selection: &Selection<'_>,
        entries: u32,
        bytes: &[u8],
        convert: impl FnMut(W) -> Option<V>,
    ) -> Result<(), FormatError>;
    /// As [`ValueTable::restored`].
    fn restored(&mut self, layers: Vec<Layer>);
    /// As [`ValueTable::prefetch`].
    fn prefetch(&self, hashes: &[u64]);
    /// As [`ValueTable::freeze`].
    fn freeze(&mut self, form: SnapshotForm) -> FrozenState;
    /// As [`ValueTable::expired_until`].
    fn expired_until(&mut self, written: i64);
    /// As [`ValueTable::sweep`].
    fn sweep(
        &mut self,
        position: &mut SweepPosition,
        entries: usize,
        expired: impl FnMut(&V) -> bool,
    );
}

impl<K: Key, V: StateValue> HeldTable<K, V> for BackendTable<K, V> {
    fn open(
        backend: &Backend,
        name: Option<&str>,
        max_parallelism: u16,
        groups: &Range<u16>,
    ) -> Self {
        match name {
            Some(name) => backend.named_table(name, max_parallelism, groups),
            None => backend.value_table(max_parallelism, groups),
        }
    }
    fn restore<W: serde::de::DeserializeOwned>(
        &mut self,
        selection: &Selection<'_>,
        entries: u32,
        bytes: &[u8],
        convert: impl FnMut(W) -> Option<V>,
    ) -> Result<(), FormatError> {
        self.restore_block_as(selection, entries, bytes, convert)
    }
    fn restored(&mut self, layers: Vec<Layer>) {
        ValueTable::restored(self, layers);
    }
    #[inline]
    fn prefetch(&self, hashes: &[u64]) {
        ValueTable::prefetch(self, hashes);
    }
    fn freeze(&mut self, form: SnapshotForm) -> FrozenState {
        ValueTable::freeze(self, form)
    }
    fn expired_until(&mut self, written: i64) {
        ValueTable::expired_until(self, written);
    }
    fn sweep(
        &mut self,
        position: &mut SweepPosition,
        entries: usize,
        expired: impl FnMut(&V) -> bool,
    ) {
        ValueTable::sweep(self, position, entries, expired);
    }
}

/// One state of all keys of one worker.
pub struct Table<K: Key, D: Kind, L: Lifetime> {
    pub(crate) entries: D::Table<K, L>,
    shared: D::Shared,
    lifetime: L,
}

impl<K: Key, D: Kind, L: Lifetime> fmt::Debug for Table<K, D, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table").finish_non_exhaustive()
    }
}

impl<D, L> sealed::Sealed for Descriptor<D, L> {}
impl<D, L> sealed::One for Descriptor<D, L> {}

impl<K: Key, D: Kind, L: Lifetime + Clone> States<K> for Descriptor<D, L> {
    type Tables = Table<K, D, L>;
    type Access<'a>
        = D::Access<'a, K, L>
    where
        K: 'a;
    const EXPIRES: bool = L::EXPIRES;

    fn declarations(&self) -> Vec<StateDeclaration> {
        vec![StateDeclaration {
            name: self.name.clone(),
            kind: D::SECTION,
            key_type: std::any::type_name::<K>(),
            state_type: D::type_name(),
            expires: L::EXPIRES,
            type_version: self.version,
            shape: EntryShape {
                key: shape_of::<K>(),
                value: shape_of::<D::Held>(),
                expires: L::EXPIRES,
            },
            migrations: Migrations::of::<D>(&self.steps, self.by_name),
        }]
    }

    fn open(&self, backend: &Backend, max_parallelism: u16, groups: &Range<u16>) -> Self::Tables {
        Table {
            // A wrong name is an error of the build; such a job never runs.
            entries: {
                let name = self.name.as_ref().ok().map(Name::as_str);
                D::Table::open(backend, name, max_parallelism, groups)
            },
            shared: self.kind.shared(),
            lifetime: self.lifetime.clone(),
        }
    }

    fn restore(
        tables: &mut Self::Tables,
        _index: usize,
        expiring: bool,
        selection: &Selection<'_>,
        entries: u32,
        bytes: &[u8],
    ) -> Result<(), FormatError> {
        let clock = tables.lifetime.clock();
        let table = &mut tables.entries;
        if expiring {
            table.restore(selection, entries, bytes, |stored: Expiring<D::Held>| {
                L::restore(clock, stored.value, Some(stored.written))
            })
        } else {
            let restore = |value: D::Held| L::restore(clock, value, None);
            table.restore(selection, entries, bytes, restore)
        }
    }

    fn restored(tables: &mut Self::Tables, _index: usize, layers: Vec<Layer>) {
        tables.entries.restored(layers);
    }

    #[inline]
    fn prefetch(tables: &Self::Tables, hashes: &[u64]) {
        tables.entries.prefetch(hashes);
    }

    #[inline]
    fn access<'a>(tables: &'a mut Self::Tables, hash: u64, key: &'a K) -> Self::Access<'a> {
        let Table { entries, shared, lifetime } = tables;
        D::access(shared, entries, At { hash, key, clock: lifetime.clock() })
    }

    fn freeze(tables: &mut Self::Tables, form: SnapshotForm) -> Vec<FrozenState> {
        vec![tables.entries.freeze(form)]
    }

    fn set_now(tables: &mut Self::Tables, now: i64) {
        tables.lifetime.set_now(now);
        if let Some(written) = L::expired_until(tables.lifetime.clock()) {
            tables.entries.expired_until(written);
        }
    }

    fn sweep(tables: &mut Self::Tables, entries: usize) {
        let clock = tables.lifetime.clock();
        if let Some(position) = tables.lifetime.sweep_position() {
            tables.entries.sweep(position, entries, |stored| L::expired(clock, stored));
        }
    }
}

macro_rules! states_of_tuple {
    ($($name:ident $at:tt),+) => {
        impl<$($name: sealed::One),+> sealed::Sealed for ($($name,)+) {}

        impl<K: Key, $($name: States<K> + sealed::One),+> States<K> for ($($name,)+) {
            type Tables = ($($name::Tables,)+);
            type Access<'a> = ($($name::Access<'a>,)+) where K: 'a;
            const EXPIRES: bool = false $(|| $name::EXPIRES)+;

            fn declarations(&self) -> Vec<StateDeclaration> {
                let mut all = Vec::new();
                $(all.extend(self.$at.declarations());)+
                all
            }

            fn open(
                &self,
                backend: &Backend,
                max_parallelism: u16,
                groups: &Range<u16>,
            ) -> Self::Tables {
                ($(self.$at.open(backend, max_parallelism, groups),)+)
            }

            fn restore(
                tables: &mut Self::Tables,
                index: usize,
                expiring: bool,
                selection: &Selection<'_>,
                entries: u32,
                bytes: &[u8],
            ) -> Result<(), FormatError> {
                match index {
                    $($at => {
                        $name::restore(&mut tables.$at, 0, expiring, selection, entries, bytes)
                    })+
                    _ => unreachable!("only declared states are restored"),
                }
            }

            fn restored(tables: &mut Self::Tables, index: usize, layers: Vec<Layer>) {
                match index {
                    $($at => $name::restored(&mut tables.$at, 0, layers),)+
                    _ => unreachable!("only declared states are restored"),
                }
            }

            #[inline]
            fn prefetch(tables: &Self::Tables, hashes: &[u64]) {
                $($name::prefetch(&tables.$at, hashes);)+
            }

            #[inline]
            fn access<'a>(tables: &'a mut Self::Tables, hash: u64, key: &'a K) -> Self::Access<'a> {
                ($($name::access(&mut tables.$at, hash, key),)+)
            }

            fn freeze(tables: &mut Self::Tables, form: SnapshotForm) -> Vec<FrozenState> {
                let mut all = Vec::new();
                $(all.extend($name::freeze(&mut tables.$at, form));)+
                all
            }

            fn set_now(tables: &mut Self::Tables, now: i64) {
                $($name::set_now(&mut tables.$at, now);)+
            }

            fn sweep(tables: &mut Self::Tables, entries: usize) {
                $($name::sweep(&mut tables.$at, entries);)+
            }
        }
    };
}

states_of_tuple!(A 0, B 1);
states_of_tuple!(A 0, B 1, C 2);
states_of_tuple!(A 0, B 1, C 2, D 3);
