//! The kinds of keyed state: what each is declared by, and the access to it.
//!
//! The heap keeps whatever belongs to one key in one entry. Nothing here tells: RocksDB keeps the entries of a map apart
//! (see [`maps`](crate::runtime::maps)).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::rc::Rc;

use crate::format::shape::Shape;
use crate::format::{FormatError, SectionKind, codec};
use crate::runtime::lifetime::{Cell, Forever, Lifetime};
use crate::runtime::maps::{Maps, OneMap};
use crate::runtime::migration::ConvertUnit;
use crate::runtime::shapes::shape_of;
use crate::runtime::states::{Descriptor, HeldTable};
use crate::state::{BackendTable, Key, MapKey, StateValue};

/// A kind of keyed state. Not to be implemented outside of the crate.
pub trait Kind: sealed::Sealed + 'static {
    /// What a table holds for a key.
    type Held: StateValue;
    /// What a migration converts: the value, each element of a list, each value of a map.
    type Unit: StateValue;
    /// Access to the state of one key.
    type Access<'a, K: Key + 'a, L: Lifetime>;
    /// What keeps the state of all keys of a worker.
    type Table<K: Key, L: Lifetime>: HeldTable<K, L::Stored<Self::Held>>;
    /// What all accesses share: the functions that the state was declared with.
    type Shared: 'static;
    /// The kind of its section.
    const SECTION: SectionKind;

    /// What all accesses share.
    fn shared(&self) -> Self::Shared;
    /// The type of the state, as checkpoints name it.
    fn type_name() -> String;
    /// The shape of what a table holds for a key, from that of a unit.
    fn held_shape(unit: Shape) -> Shape {
        unit
    }
    /// Converts the units of what a table holds for a key, at the start of `bytes`; returns what is behind it.
    ///
    /// # Errors
    /// [`FormatError`] of a unit, or if the bytes are not such ones.
    fn convert_units<'a>(
        bytes: &'a [u8],
        out: &mut Vec<u8>,
        unit: &mut ConvertUnit<'_>,
    ) -> Result<&'a [u8], FormatError> {
        unit(bytes, out)
    }
    /// Gives access to the state of one key.
    fn access<'a, K: Key, L: Lifetime>(
        shared: &'a Self::Shared,
        table: &'a mut Self::Table<K, L>,
        at: At<'a, K, L>,
    ) -> Self::Access<'a, K, L>;
}

/// The key whose state is wanted, and when.
pub struct At<'a, K, L: Lifetime> {
    pub(crate) hash: u64,
    pub(crate) key: &'a K,
    pub(crate) clock: L::Clock,
}

impl<'a, K: Key, L: Lifetime> At<'a, K, L> {
    /// What a table keeps for the key.
    #[inline]
    fn of<V: StateValue>(self, table: &'a mut BackendTable<K, L::Stored<V>>) -> Cell<'a, K, V, L> {
        let Self { hash, key, clock } = self;
        Cell { table, clock, hash, key }
    }
}

impl<K, L: Lifetime> fmt::Debug for At<'_, K, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("At").field("hash", &self.hash).finish_non_exhaustive()
    }
}

mod sealed {
    /// Keeps the set of kinds ours.
    pub trait Sealed {}
}

fn name_of<T>() -> &'static str {
    std::any::type_name::<T>()
}

macro_rules! opaque_debug {
    ($($name:ident<$($parameter:ident: $bound:path),+>;)+) => {$(
        impl<K: Key, $($parameter: $bound,)+ L: Lifetime> fmt::Debug
            for $name<'_, K, $($parameter,)+ L>
        {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($name)).finish_non_exhaustive()
            }
        }
    )+};
}

opaque_debug! {
    ValueState<V: StateValue>;
    ListState<T: StateValue>;
    MapState<M: MapKey, V: StateValue>;
    ReducingState<T: StateValue>;
    AggregatingState<A: AggregateFunction>;
}

/// Declares a value state: at most one `V` for each key.
pub type Value<V, L = Forever> = Descriptor<ValueKind<V>, L>;

/// The kind of [`Value`].
pub struct ValueKind<V>(PhantomData<fn() -> V>);

impl<V: StateValue> Value<V> {
    /// A value state named `name` inside its operator. If that is not a [`Name`](crate::ids::Name), the job cannot be
    /// built.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self::declare(name, ValueKind(PhantomData))
    }
}

impl<V> sealed::Sealed for ValueKind<V> {}
impl<V: StateValue> Kind for ValueKind<V> {
    type Held = V;
    type Unit = V;
    type Access<'a, K: Key + 'a, L: Lifetime> = ValueState<'a, K, V, L>;
    type Table<K: Key, L: Lifetime> = BackendTable<K, L::Stored<V>>;
    type Shared = ();
    const SECTION: SectionKind = SectionKind::KeyedValue;

    fn shared(&self) {}
    fn type_name() -> String {
        name_of::<V>().to_owned()
    }
    #[inline]
    fn access<'a, K: Key, L: Lifetime>(
        (): &'a (),
        table: &'a mut Self::Table<K, L>,
        at: At<'a, K, L>,
    ) -> ValueState<'a, K, V, L> {
        ValueState { cell: at.of(table) }
    }
}

/// Access to the value of one key.
pub struct ValueState<'a, K: Key, V: StateValue, L: Lifetime = Forever> {
    cell: Cell<'a, K, V, L>,
}

impl<K: Key, V: StateValue, L: Lifetime> ValueState<'_, K, V, L> {
    /// The value, if there is one.
    #[inline]
    pub fn get(&mut self) -> Option<&V> {
        self.cell.get()
    }

    /// The value, if there is one, to be changed.
    #[inline]
    pub fn get_mut(&mut self) -> Option<&mut V> {
        self.cell.get_mut()
    }

    /// The value, after making it with `value` if there is none.
    #[inline]
    pub fn or_insert_with(&mut self, value: impl FnMut() -> V) -> &mut V {
        self.cell.or_insert_with(value)
    }

    /// The value, after making the default one if there is none.
    #[inline]
    pub fn or_default(&mut self) -> &mut V
    where
        V: Default,
    {
        self.or_insert_with(V::default)
    }

    /// Sets the value, and returns the one before.
    #[inline]
    pub fn set(&mut self, value: V) -> Option<V> {
        self.cell.set(value)
    }

    /// Removes the value, and returns it.
    #[inline]
    pub fn take(&mut self) -> Option<V> {
        self.cell.take()
    }
}

/// Declares a list state: any number of `T` for each key, in order.
///
/// On the heap the list of a key is one entry: appending to it costs the same however long it is, but the first access
/// after a snapshot has begun copies the lists of the keys beside it, and so do checkpoints write all of it. In RocksDB, what
/// is appended to a list that was not read of late is put behind it unread; a list that was read is kept as on the heap. One with a time to
/// live is always read.
pub type List<T, L = Forever> = Descriptor<ListKind<T>, L>;

/// The kind of [`List`].
pub struct ListKind<T>(PhantomData<fn() -> T>);

impl<T: StateValue> List<T> {
    /// A list state named `name` inside its operator. If that is not a [`Name`](crate::ids::Name), the job cannot be built.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self::declare(name, ListKind(PhantomData))
    }
}

impl<T> sealed::Sealed for ListKind<T> {}
impl<T: StateValue> Kind for ListKind<T> {
    type Held = Vec<T>;
    type Unit = T;
    type Access<'a, K: Key + 'a, L: Lifetime> = ListState<'a, K, T, L>;
    type Table<K: Key, L: Lifetime> = BackendTable<K, L::Stored<Vec<T>>>;
    type Shared = ();
    const SECTION: SectionKind = SectionKind::KeyedList;

    fn shared(&self) {}
    fn type_name() -> String {
        format!("List<{}>", name_of::<T>())
    }
    fn held_shape(unit: Shape) -> Shape {
        Shape::Seq(Box::new(unit))
    }
    fn convert_units<'a>(
        bytes: &'a [u8],
        out: &mut Vec<u8>,
        unit: &mut ConvertUnit<'_>,
    ) -> Result<&'a [u8], FormatError> {
        let (len, mut rest) = codec::decode_prefix::<u64>(bytes)?;
        codec::encode(&len, out)?;
        for _ in 0..len {
            rest = unit(rest, out)?;
        }
        Ok(rest)
    }
    #[inline]
    fn access<'a, K: Key, L: Lifetime>(
        (): &'a (),
        table: &'a mut Self::Table<K, L>,
        at: At<'a, K, L>,
    ) -> ListState<'a, K, T, L> {
        ListState { cell: at.of(table) }
    }
}

/// Access to the list of one key. A key without a list has an empty one.
pub struct ListState<'a, K: Key, T: StateValue, L: Lifetime = Forever> {
    cell: Cell<'a, K, Vec<T>, L>,
}

impl<K: Key, T: StateValue, L: Lifetime> ListState<'_, K, T, L> {
    /// Adds an element at the end.
    #[inline]
    pub fn append(&mut self, element: T) {
        self.cell.append(element);
    }

    /// The elements, in order.
    pub fn iter(&mut self) -> impl Iterator<Item = &T> {
        self.cell.get().into_iter().flatten()
    }

    /// Whether there is no element.
    pub fn is_empty(&mut self) -> bool {
        self.iter().next().is_none()
    }

    /// Puts other elements in the place of all that there are.
    pub fn replace(&mut self, elements: impl IntoIterator<Item = T>) {
        let elements: Vec<T> = elements.into_iter().collect();
        if elements.is_empty() {
            self.clear();
        } else {
            self.cell.set(elements);
        }
    }

    /// Removes all elements, and returns them in order.
    pub fn take(&mut self) -> Vec<T> {
        self.cell.take().unwrap_or_default()
    }

    /// Removes all elements.
    pub fn clear(&mut self) {
        self.cell.take();
    }
}

/// Declares a map state: for each key any number of entries, a `V` for an `M`.
///
/// On the heap the map of a key is one entry; see [`List`] for what that costs. In RocksDB each entry is a row of its own: it
/// is read and written by itself, and the map of one key may be much larger than memory. A map with a time to live, which
/// lives as a whole, is one row.
///
/// Equal entry keys must serialize alike, as keys must.
pub type Map<M, V, L = Forever> = Descriptor<MapKind<M, V>, L>;

/// The kind of [`Map`].
pub struct MapKind<M, V>(PhantomData<fn() -> (M, V)>);

impl<M: MapKey, V: StateValue> Map<M, V> {
    /// A map state named `name` inside its operator. If that is not a [`Name`](crate::ids::Name), the job cannot be built.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self::declare(name, MapKind(PhantomData))
    }
}

impl<M, V> sealed::Sealed for MapKind<M, V> {}
impl<M: MapKey, V: StateValue> Kind for MapKind<M, V> {
    type Held = BTreeMap<M, V>;
    type Unit = V;
    type Access<'a, K: Key + 'a, L: Lifetime> = MapState<'a, K, M, V, L>;
    type Table<K: Key, L: Lifetime> = Maps<K, M, V, L>;
    type Shared = ();
    const SECTION: SectionKind = SectionKind::KeyedMap;

    fn shared(&self) {}
    fn type_name() -> String {
        format!("Map<{}, {}>", name_of::<M>(), name_of::<V>())
    }
    fn held_shape(unit: Shape) -> Shape {
        Shape::Map(Box::new(shape_of::<M>().as_ref().clone()), Box::new(unit))
    }
    fn convert_units<'a>(
        bytes: &'a [u8],
        out: &mut Vec<u8>,
        unit: &mut ConvertUnit<'_>,
    ) -> Result<&'a [u8], FormatError> {
        let (len, mut rest) = codec::decode_prefix::<u64>(bytes)?;
        codec::encode(&len, out)?;
        for _ in 0..len {
            let (_, value) = codec::decode_prefix::<M>(rest)?;
            out.extend_from_slice(&rest[..rest.len() - value.len()]);
            rest = unit(value, out)?;
        }
        Ok(rest)
    }
    #[inline]
    fn access<'a, K: Key, L: Lifetime>(
        (): &'a (),
        table: &'a mut Self::Table<K, L>,
        at: At<'a, K, L>,
    ) -> MapState<'a, K, M, V, L> {
        MapState { map: table.map(at.clock, at.hash, at.key) }
    }
}

/// Access to the map of one key. A key without a map has an empty one.
pub struct MapState<'a, K: Key, M: MapKey, V: StateValue, L: Lifetime = Forever> {
    map: OneMap<'a, K, M, V, L>,
}

impl<K: Key, M: MapKey, V: StateValue, L: Lifetime> MapState<'_, K, M, V, L> {
    /// The value of an entry, if there is one.
    pub fn get(&mut self, entry: &M) -> Option<&V> {
        self.map.get(entry)
    }

    /// Whether there is such an entry.
    pub fn contains(&mut self, entry: &M) -> bool {
        self.get(entry).is_some()
    }

    /// Sets the value of an entry, and returns the one before.
    pub fn insert(&mut self, entry: M, value: V) -> Option<V> {
        self.map.insert(entry, value)
    }

    /// Removes an entry, and returns its value.
    pub fn remove(&mut self, entry: &M) -> Option<V> {
        self.map.remove(entry)
    }

    /// The entries, in the order of their keys, one after the other: with a row for each entry, only those are read that are
    /// asked for, and each is made for the caller; otherwise they are references.
    ///
    /// The order is that of `Ord` as it is derived and as std's types have it. For an `Ord` of your own and for
    /// [`std::cmp::Reverse`] it is another one in RocksDB, which depends on nothing but which entries there are: see
    /// [`Descending`](crate::job::Descending).
    pub fn iter(&mut self) -> impl Iterator<Item = (Cow<'_, M>, Cow<'_, V>)> {
        self.map.iter()
    }

    /// Whether there is no entry.
    pub fn is_empty(&mut self) -> bool {
        self.iter().next().is_none()
    }

    /// Removes all entries.
    pub fn clear(&mut self) {
        self.map.clear();
    }
}

type Reduce<T> = Rc<dyn Fn(&mut T, T)>;

/// Declares a reducing state: for each key one `T`, which everything that is added is merged into.
pub type Reducing<T, L = Forever> = Descriptor<ReducingKind<T>, L>;

/// The kind of [`Reducing`].
pub struct ReducingKind<T>(Reduce<T>);

impl<T: StateValue> Reducing<T> {
    /// A reducing state named `name` inside its operator. `reduce` merges its second argument into the first; it must
    /// depend on the two only. If `name` is not a [`Name`](crate::ids::Name), the job cannot be built.
    #[must_use]
    pub fn new(name: &str, reduce: impl Fn(&mut T, T) + 'static) -> Self {
        Self::declare(name, ReducingKind(Rc::new(reduce)))
    }
}

impl<T> sealed::Sealed for ReducingKind<T> {}
impl<T: StateValue> Kind for ReducingKind<T> {
    type Held = T;
    type Unit = T;
    type Access<'a, K: Key + 'a, L: Lifetime> = ReducingState<'a, K, T, L>;
    type Table<K: Key, L: Lifetime> = BackendTable<K, L::Stored<T>>;
    type Shared = Reduce<T>;
    const SECTION: SectionKind = SectionKind::KeyedReducing;

    fn shared(&self) -> Reduce<T> {
        Rc::clone(&self.0)
    }
    fn type_name() -> String {
        format!("Reducing<{}>", name_of::<T>())
    }
    #[inline]
    fn access<'a, K: Key, L: Lifetime>(
        reduce: &'a Reduce<T>,
        table: &'a mut Self::Table<K, L>,
        at: At<'a, K, L>,
    ) -> ReducingState<'a, K, T, L> {
        ReducingState { reduce: &**reduce, cell: at.of(table) }
    }
}

/// Access to what the values of one key were reduced to.
pub struct ReducingState<'a, K: Key, T: StateValue, L: Lifetime = Forever> {
    reduce: &'a dyn Fn(&mut T, T),
    cell: Cell<'a, K, T, L>,
}

impl<K: Key, T: StateValue, L: Lifetime> ReducingState<'_, K, T, L> {
    /// Adds a value. The first one is kept as it is.
    pub fn add(&mut self, value: T) {
        match self.cell.get_mut() {
            Some(reduced) => (self.reduce)(reduced, value),
            None => drop(self.cell.set(value)),
        }
    }

    /// What all values come to. `None` if there were none.
    pub fn get(&mut self) -> Option<&T> {
        self.cell.get()
    }

    /// Forgets all values.
    pub fn clear(&mut self) {
        self.cell.take();
    }
}

/// Folds values into an accumulator, and reads a result off it. All functions must depend on their arguments only.
pub trait AggregateFunction: 'static {
    /// What is added.
    type Input;
    /// What is kept for a key.
    type Accumulator: StateValue;
    /// What is read off it.
    type Output;

    /// An accumulator of no values.
    fn create(&self) -> Self::Accumulator;
    /// Adds a value.
    fn add(&self, accumulator: &mut Self::Accumulator, input: Self::Input);
    /// Adds all values of another accumulator.
    fn merge(&self, accumulator: &mut Self::Accumulator, other: Self::Accumulator);
    /// What the values come to.
    fn result(&self, accumulator: &Self::Accumulator) -> Self::Output;
}

/// Declares an aggregating state: for each key one accumulator of `A`.
pub type Aggregating<A, L = Forever> = Descriptor<AggregatingKind<A>, L>;

/// The kind of [`Aggregating`].
pub struct AggregatingKind<A>(Rc<A>);

impl<A: AggregateFunction> Aggregating<A> {
    /// An aggregating state named `name` inside its operator. If that is not a [`Name`](crate::ids::Name), the job cannot
    /// be built.
    #[must_use]
    pub fn new(name: &str, function: A) -> Self {
        Self::declare(name, AggregatingKind(Rc::new(function)))
    }
}

impl<A> sealed::Sealed for AggregatingKind<A> {}
impl<A: AggregateFunction> Kind for AggregatingKind<A> {
    type Held = A::Accumulator;
    type Unit = A::Accumulator;
    type Access<'a, K: Key + 'a, L: Lifetime> = AggregatingState<'a, K, A, L>;
    type Table<K: Key, L: Lifetime> = BackendTable<K, L::Stored<A::Accumulator>>;
    type Shared = Rc<A>;
    const SECTION: SectionKind = SectionKind::KeyedAggregating;

    fn shared(&self) -> Rc<A> {
        Rc::clone(&self.0)
    }
    fn type_name() -> String {
        format!("Aggregating<{}>", name_of::<A::Accumulator>())
    }
    #[inline]
    fn access<'a, K: Key, L: Lifetime>(
        function: &'a Rc<A>,
        table: &'a mut Self::Table<K, L>,
        at: At<'a, K, L>,
    ) -> AggregatingState<'a, K, A, L> {
        AggregatingState { function: &**function, cell: at.of(table) }
    }
}

/// Access to the accumulator of one key.
pub struct AggregatingState<'a, K: Key, A: AggregateFunction, L: Lifetime = Forever> {
    function: &'a A,
    cell: Cell<'a, K, A::Accumulator, L>,
}

impl<K: Key, A: AggregateFunction, L: Lifetime> AggregatingState<'_, K, A, L> {
    /// Adds a value.
    pub fn add(&mut self, input: A::Input) {
        let accumulator = self.cell.or_insert_with(|| self.function.create());
        self.function.add(accumulator, input);
    }

    /// Adds all values of another accumulator.
    pub fn merge(&mut self, other: A::Accumulator) {
        let accumulator = self.cell.or_insert_with(|| self.function.create());
        self.function.merge(accumulator, other);
    }

    /// What all values come to. `None` if there were none.
    pub fn get(&mut self) -> Option<A::Output> {
        self.cell.get().map(|accumulator| self.function.result(accumulator))
    }

    /// Removes the accumulator, and returns it.
    pub fn take(&mut self) -> Option<A::Accumulator> {
        self.cell.take()
    }

    /// Forgets all values.
    pub fn clear(&mut self) {
        self.cell.take();
    }
}

#[cfg(test)]
#[path = "kinds_tests.rs"]
mod tests;
