//! Operator state: what an instance of an operator keeps for itself and not for a key.
//!
//! # Kinds
//! | kind       | every instance keeps     | after a restore at another parallelism             |
//! |------------|--------------------------|----------------------------------------------------|
//! | list       | elements of its own      | dealt to the instances in turn, one by one         |
//! | union list | elements of its own      | every instance has the elements of all, in order   |
//! | broadcast  | a copy of the same map   | every instance has the copy of one that was there  |
//!
//! At the parallelism of before, the instances of a list and of a broadcast state have what they had. The elements of a
//! union list go to every instance at any parallelism.
//!
//! # Broadcast state and barriers
//! The copy of one instance stands for all only if all have seen the same records when they take their snapshots. They
//! have, because a broadcast channel is aligned: barrier *n* passes it when the last record of *n* was processed, on every
//! worker. A channel that is allowed to overtake by name leaves each copy at a record of its own, with what it had not seen
//! in the log of its own channel. The two belong together, so whoever takes the copy of an instance takes the log of the same
//! one: [`replica`] says which. What they come to is the same map on every instance, but at another one's pace.
//!
//! # Cost
//! Operator state is small: offsets, rules, a few records that wait. A snapshot clones it on the worker's thread, and every
//! worker of a restored job reads all of a list to find its share. An element is an entry of its own, so neither writing nor
//! reading holds more than one block of encoded elements in memory.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use crate::format::shape::EntryShape;
use crate::format::{FormatError, SectionHeader, SectionKind, SectionOutput, codec};
use crate::ids::{InvalidName, KeyGroup, Name};
use crate::runtime::context::{SectionPart, WorkerContext};
use crate::runtime::restore::{RestoreError, Restored};
use crate::runtime::shapes::shape_of;
use crate::state::{Frozen, MapKey, StateValue};

/// What an operator state is, as the program declares it.
#[derive(Clone, Debug)]
pub struct OperatorStateDeclaration {
    pub(crate) name: Result<Name, InvalidName>,
    kind: SectionKind,
    type_name: String,
    type_version: u32,
    shape: EntryShape,
}

impl OperatorStateDeclaration {
    pub(crate) fn header(&self, operator: &Name) -> SectionHeader {
        SectionHeader {
            operator: operator.clone(),
            // A wrong name is an error of the build; such a job never runs.
            state: self.name.clone().unwrap_or_else(|_| Name::new("_").expect("a constant name")),
            kind: self.kind,
            type_name: self.type_name.clone(),
            type_version: self.type_version,
            shape: self.shape.clone(),
        }
    }
}

mod sealed {
    use super::{FormatError, Frozen, OperatorStateDeclaration};

    /// States that are declared, restored and frozen: one descriptor, or a tuple of them.
    pub trait Stored: 'static {
        /// What is kept.
        type Held: Default + 'static;

        /// What is declared, in order.
        fn declarations(&self) -> Vec<OperatorStateDeclaration>;
        /// Adds the entries of a block of the state at `index` of the declarations, those that are `ours`: it is asked once
        /// for each, in order.
        ///
        /// # Errors
        /// [`FormatError`] if the block is damaged.
        fn restore(
            held: &mut Self::Held,
            index: usize,
            entries: u32,
            bytes: &[u8],
            ours: &mut dyn FnMut() -> bool,
        ) -> Result<(), FormatError>;
        /// Freezes all states, in the order of the declarations.
        fn freeze(held: &Self::Held) -> Vec<Box<dyn Frozen>>;
    }

    /// A descriptor of one state: what a tuple may hold.
    pub trait One: Stored {}
}

pub(crate) use sealed::Stored;

/// Declares the states that an instance of an operator keeps for itself: one descriptor, or a tuple of them.
///
/// Implemented by the descriptors [`OperatorList`] and [`UnionList`], and by tuples of up to four of them. Not to be
/// implemented outside of the crate.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no operator state",
    note = "a stream that is not keyed has `OperatorList` and `UnionList`; keyed state needs `key_by` before"
)]
pub trait OperatorStates: sealed::Stored {
    /// Access to the states.
    type Access<'a>;
    /// Gives access.
    fn access(held: &mut Self::Held) -> Self::Access<'_>;
}

/// Declares the broadcast states of an operator: one [`Broadcast`], or a tuple of up to four. Not to be implemented outside of
/// the crate.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no broadcast state",
    note = "an operator behind `connect_broadcast` has `Broadcast` states"
)]
pub trait BroadcastStates: sealed::Stored {
    /// What the function for the main records sees.
    type View<'a>;
    /// What the function for the broadcast records sees.
    type Access<'a>;
    /// Gives access to read.
    fn view(held: &Self::Held) -> Self::View<'_>;
    /// Gives access to read and to change.
    fn access(held: &mut Self::Held) -> Self::Access<'_>;
}

macro_rules! descriptor {
    ($(#[$doc:meta])* $name:ident<$($parameter:ident: $bound:path),+>) => {
        $(#[$doc])*
        pub struct $name<$($parameter),+> {
            name: Result<Name, InvalidName>,
            version: u32,
            entry: PhantomData<fn() -> ($($parameter,)+)>,
        }

        impl<$($parameter: $bound),+> $name<$($parameter),+> {
            /// A state named `name` inside its operator. If that is not a [`Name`], the job cannot be built.
            #[must_use]
            pub fn new(name: &str) -> Self {
                Self { name: Name::new(name), version: 1, entry: PhantomData }
            }

            /// The version of the types in the state that this program keeps; 1 unless set. A checkpoint of another
            /// version, or of another shape, is refused: there are no migrations for operator state.
            #[must_use]
            pub fn version(mut self, version: u32) -> Self {
                self.version = version;
                self
            }

            fn declaration(
                &self,
                kind: SectionKind,
                shape: EntryShape,
            ) -> Vec<OperatorStateDeclaration> {
                let types: Vec<&str> = vec![$(std::any::type_name::<$parameter>()),+];
                vec![OperatorStateDeclaration {
                    name: self.name.clone(),
                    kind,
                    type_name: format!("{}<{}>", stringify!($name), types.join(", ")),
                    type_version: self.version,
                    shape,
                }]
            }
        }

        impl<$($parameter),+> fmt::Debug for $name<$($parameter),+> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($name)).field("name", &self.name).finish_non_exhaustive()
            }
        }

        impl<$($parameter: $bound),+> sealed::One for $name<$($parameter),+> {}
    };
}

descriptor! {
    /// Declares an operator list state: any number of `T` for each instance, in order.
    ///
    /// Restored at the same parallelism, every instance has its elements again. At another one, all elements are dealt to the
    /// instances in turn: each is at one of them, and none has more than one more than another.
    OperatorList<T: StateValue>
}

descriptor! {
    /// Declares a union list state: any number of `T` for each instance, in order.
    ///
    /// Restored, every instance has the elements of all, in the order of the instances that had them. What it does not
    /// [replace](OperatorListState::replace) is in the next checkpoint once for every instance.
    UnionList<T: StateValue>
}

descriptor! {
    /// Declares a broadcast state: a map of `M` to `V`, of which every instance has a copy.
    ///
    /// Only the function for broadcast records changes it, and every instance gets all of those; so the copies agree,
    /// provided that the function depends on its record and the map only. Records of one sender come in the same
    /// order everywhere, those of several senders in any.
    Broadcast<M: MapKey, V: StateValue>
}

macro_rules! list_of_elements {
    ($name:ident, $kind:expr) => {
        impl<T: StateValue> sealed::Stored for $name<T> {
            type Held = Vec<T>;

            fn declarations(&self) -> Vec<OperatorStateDeclaration> {
                self.declaration($kind, EntryShape::of_values(shape_of::<T>()))
            }

            fn restore(
                held: &mut Vec<T>,
                _index: usize,
                entries: u32,
                bytes: &[u8],
                ours: &mut dyn FnMut() -> bool,
            ) -> Result<(), FormatError> {
                codec::decode_entries(bytes, entries, |element| {
                    if ours() {
                        held.push(element);
                    }
                })
            }

            fn freeze(held: &Vec<T>) -> Vec<Box<dyn Frozen>> {
                vec![Box::new(FrozenEntries(held.clone()))]
            }
        }

        impl<T: StateValue> OperatorStates for $name<T> {
            type Access<'a> = OperatorListState<'a, T>;

            #[inline]
            fn access(held: &mut Vec<T>) -> OperatorListState<'_, T> {
                OperatorListState { elements: held }
            }
        }
    };
}

list_of_elements!(OperatorList, SectionKind::OperatorList);
list_of_elements!(UnionList, SectionKind::UnionList);

impl<M: MapKey, V: StateValue> sealed::Stored for Broadcast<M, V> {
    type Held = BTreeMap<M, V>;

    fn declarations(&self) -> Vec<OperatorStateDeclaration> {
        let (key, value) = (shape_of::<M>(), shape_of::<V>());
        self.declaration(SectionKind::Broadcast, EntryShape { key, value, expires: false })
    }

    fn restore(
        held: &mut BTreeMap<M, V>,
        _index: usize,
        entries: u32,
        bytes: &[u8],
        ours: &mut dyn FnMut() -> bool,
    ) -> Result<(), FormatError> {
        let mut doubled = false;
        codec::decode_entries(bytes, entries, |(key, value)| {
            if ours() {
                doubled |= held.insert(key, value).is_some();
            }
        })?;
        if doubled { Err(FormatError::corrupt(0, "a key is there twice")) } else { Ok(()) }
    }

    fn freeze(held: &BTreeMap<M, V>) -> Vec<Box<dyn Frozen>> {
        let entries = held.iter().map(|(key, value)| (key.clone(), value.clone()));
        vec![Box::new(FrozenEntries(entries.collect::<Vec<(M, V)>>()))]
    }
}

impl<M: MapKey, V: StateValue> BroadcastStates for Broadcast<M, V> {
    type View<'a> = BroadcastView<'a, M, V>;
    type Access<'a> = BroadcastState<'a, M, V>;

    #[inline]
    fn view(held: &BTreeMap<M, V>) -> BroadcastView<'_, M, V> {
        BroadcastView { entries: held }
    }

    #[inline]
    fn access(held: &mut BTreeMap<M, V>) -> BroadcastState<'_, M, V> {
        BroadcastState { entries: held }
    }
}

/// Access to the elements of this instance.
pub struct OperatorListState<'a, T: StateValue> {
    elements: &'a mut Vec<T>,
}

impl<T: StateValue> OperatorListState<'_, T> {
    /// Adds an element at the end.
    #[inline]
    pub fn append(&mut self, element: T) {
        self.elements.push(element);
    }

    /// The elements, in order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.elements.iter()
    }

    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.elements.len()
    }

    /// Whether there is no element.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.elements.is_empty()
    }

    /// Puts other elements in the place of all that there are.
    pub fn replace(&mut self, elements: impl IntoIterator<Item = T>) {
        *self.elements = elements.into_iter().collect();
    }

    /// Removes all elements, and returns them in order.
    pub fn take(&mut self) -> Vec<T> {
        std::mem::take(self.elements)
    }

    /// Removes all elements.
    pub fn clear(&mut self) {
        self.elements.clear();
    }
}

/// Access to a broadcast state that does not change it: what the function for the main records sees.
#[derive(Clone, Copy)]
pub struct BroadcastView<'a, M: MapKey, V: StateValue> {
    entries: &'a BTreeMap<M, V>,
}

impl<'a, M: MapKey, V: StateValue> BroadcastView<'a, M, V> {
    /// The value of a key, if there is one.
    #[inline]
    #[must_use]
    pub fn get(&self, key: &M) -> Option<&'a V> {
        self.entries.get(key)
    }

    /// Whether there is such a key.
    #[must_use]
    pub fn contains(&self, key: &M) -> bool {
        self.entries.contains_key(key)
    }

    /// The entries, in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&'a M, &'a V)> {
        self.entries.iter()
    }

    /// Number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// Access to a broadcast state that may change it: what the function for the broadcast records sees.
pub struct BroadcastState<'a, M: MapKey, V: StateValue> {
    entries: &'a mut BTreeMap<M, V>,
}

impl<M: MapKey, V: StateValue> BroadcastState<'_, M, V> {
    /// The state as the other function sees it.
    #[must_use]
    pub fn view(&self) -> BroadcastView<'_, M, V> {
        BroadcastView { entries: self.entries }
    }

    /// The value of a key, if there is one.
    #[must_use]
    pub fn get(&self, key: &M) -> Option<&V> {
        self.entries.get(key)
    }

    /// Sets the value of a key, and returns the one before.
    pub fn insert(&mut self, key: M, value: V) -> Option<V> {
        self.entries.insert(key, value)
    }

    /// Removes a key, and returns its value.
    pub fn remove(&mut self, key: &M) -> Option<V> {
        self.entries.remove(key)
    }

    /// Removes all entries.
    pub fn clear(&mut self) {
        self.entries.clear();
    }
}

macro_rules! opaque_debug {
    ($($name:ident<$($parameter:ident: $bound:path),+>;)+) => {$(
        impl<$($parameter: $bound),+> fmt::Debug for $name<'_, $($parameter),+> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($name)).finish_non_exhaustive()
            }
        }
    )+};
}

opaque_debug! {
    OperatorListState<T: StateValue>;
    BroadcastView<M: MapKey, V: StateValue>;
    BroadcastState<M: MapKey, V: StateValue>;
}

macro_rules! tuple_of_states {
    ($($name:ident $at:tt),+) => {
        impl<$($name: sealed::One),+> sealed::Stored for ($($name,)+) {
            type Held = ($($name::Held,)+);

            fn declarations(&self) -> Vec<OperatorStateDeclaration> {
                let mut all = Vec::new();
                $(all.extend(self.$at.declarations());)+
                all
            }

            fn restore(
                held: &mut Self::Held,
                index: usize,
                entries: u32,
                bytes: &[u8],
                ours: &mut dyn FnMut() -> bool,
            ) -> Result<(), FormatError> {
                match index {
                    $($at => $name::restore(&mut held.$at, 0, entries, bytes, ours),)+
                    _ => unreachable!("only declared states are restored"),
                }
            }

            fn freeze(held: &Self::Held) -> Vec<Box<dyn Frozen>> {
                let mut all = Vec::new();
                $(all.extend($name::freeze(&held.$at));)+
                all
            }
        }

        impl<$($name: OperatorStates + sealed::One),+> OperatorStates for ($($name,)+) {
            type Access<'a> = ($($name::Access<'a>,)+);

            #[inline]
            fn access(held: &mut Self::Held) -> Self::Access<'_> {
                ($($name::access(&mut held.$at),)+)
            }
        }

        impl<$($name: BroadcastStates + sealed::One),+> BroadcastStates for ($($name,)+) {
            type View<'a> = ($($name::View<'a>,)+);
            type Access<'a> = ($($name::Access<'a>,)+);

            #[inline]
            fn view(held: &Self::Held) -> Self::View<'_> {
                ($($name::view(&held.$at),)+)
            }

            #[inline]
            fn access(held: &mut Self::Held) -> Self::Access<'_> {
                ($($name::access(&mut held.$at),)+)
            }
        }
    };
}

tuple_of_states!(A 0, B 1);
tuple_of_states!(A 0, B 1, C 2);
tuple_of_states!(A 0, B 1, C 2, D 3);

/// The states of an operator that has no broadcast input.
pub(crate) struct NoBroadcast;

impl sealed::Stored for NoBroadcast {
    type Held = ();

    fn declarations(&self) -> Vec<OperatorStateDeclaration> {
        Vec::new()
    }

    fn restore(
        (): &mut (),
        _index: usize,
        _entries: u32,
        _bytes: &[u8],
        _ours: &mut dyn FnMut() -> bool,
    ) -> Result<(), FormatError> {
        unreachable!("only declared states are restored")
    }

    fn freeze((): &()) -> Vec<Box<dyn Frozen>> {
        Vec::new()
    }
}

impl BroadcastStates for NoBroadcast {
    type View<'a> = ();
    type Access<'a> = ();

    fn view((): &()) {}

    fn access((): &mut ()) {}
}

/// Entries as they were at a barrier.
struct FrozenEntries<T>(Vec<T>);

impl<T: StateValue> Frozen for FrozenEntries<T> {
    fn write(self: Box<Self>, out: &mut dyn SectionOutput) -> Result<(), FormatError> {
        for entry in &self.0 {
            out.entry(KeyGroup(0), &mut |bytes| codec::encode(entry, bytes))?;
        }
        Ok(())
    }
}

/// Freezes all states of an operator.
pub(crate) fn frozen_sections<S: Stored>(
    declarations: &[OperatorStateDeclaration],
    held: &S::Held,
    operator: &Name,
) -> Vec<SectionPart> {
    let frozen = S::freeze(held);
    let headers = declarations.iter().map(|declaration| declaration.header(operator));
    let section = |(header, frozen): (SectionHeader, Box<dyn Frozen>)| {
        SectionPart::plain(header, Box::new(move |out| Ok(frozen.write(out)?)))
    };
    headers.zip(frozen).map(section).collect()
}

/// Which replica of before a replica continues, with its copies and its logs.
pub(crate) fn replica(worker: usize, parallelism_before: usize) -> usize {
    worker % parallelism_before
}

/// Reads what the worker gets of the state at `index` of the declarations.
///
/// # Errors
/// [`RestoreError::Unreadable`], naming the file.
pub(crate) fn read<S: Stored>(
    held: &mut S::Held,
    index: usize,
    header: &SectionHeader,
    restored: &Restored,
    context: &WorkerContext,
) -> Result<(), RestoreError> {
    let (worker, peers) = (context.index, context.peers);
    let before = restored.manifest().parallelism as usize;
    let dealt = header.kind == SectionKind::OperatorList && before != peers;
    let from_part = |part: u32| match header.kind {
        SectionKind::OperatorList => dealt || part as usize == worker,
        SectionKind::Broadcast => part as usize == replica(worker, before),
        _ => true,
    };
    let mut next = 0;
    restored.for_each_block_of(
        &header.operator,
        &header.state,
        0..u16::MAX,
        from_part,
        |_, block| {
            S::restore(held, index, block.entries, block.bytes, &mut || {
                let ours = !dealt || next == worker;
                next = (next + 1) % peers;
                ours
            })
        },
    )
}
