//! The states of an operator, declared once: descriptors make tables, tables give access to the state of one key.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;

use crate::format::FormatError;
use crate::ids::{InvalidName, Name};
use crate::runtime::keyed::StateDeclaration;
use crate::state::{Backend, BackendTable, Frozen, Key, StateBackend, StateValue, ValueTable};

/// Declares the states that an operator keeps for each key: one descriptor, or a tuple of them.
///
/// Implemented by [`Value`] and tuples of up to four descriptors. Further kinds of state are further descriptors;
/// the program's shape does not change with them. Not to be implemented outside of the crate.
pub trait States<K: Key>: sealed::Sealed + 'static {
    /// The tables that hold the states of all keys of one worker.
    type Tables: 'static;
    /// Access to the states of one key.
    type Access<'a>
    where
        K: 'a;

    /// What is declared, in order.
    fn declarations(&self) -> Vec<StateDeclaration>;
    /// Makes empty tables.
    fn open(&self, backend: &Backend, max_parallelism: u16) -> Self::Tables;
    /// Adds the entries of a block of the state at `index` of the declarations.
    ///
    /// # Errors
    /// [`FormatError`] if the block is damaged.
    fn restore(
        tables: &mut Self::Tables,
        index: usize,
        groups: Range<u16>,
        entries: u32,
        bytes: &[u8],
    ) -> Result<(), FormatError>;
    /// Brings near what keys with these hashes need.
    fn prefetch(tables: &Self::Tables, hashes: &[u64]);
    /// Gives access to the states of one key.
    fn access<'a>(tables: &'a mut Self::Tables, hash: u64, key: &'a K) -> Self::Access<'a>;
    /// Freezes all states, in the order of the declarations.
    fn freeze(tables: &mut Self::Tables) -> Vec<Box<dyn Frozen>>;
}

mod sealed {
    /// Keeps the set of descriptors ours.
    pub trait Sealed {}
    /// A descriptor of one state: what a tuple may hold.
    pub trait One: Sealed {}
}

/// Declares a value state: at most one `V` for each key.
pub struct Value<V> {
    name: Result<Name, InvalidName>,
    version: u32,
    _value: PhantomData<fn() -> V>,
}

impl<V> fmt::Debug for Value<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Value").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<V: StateValue> Value<V> {
    /// A value state named `name` inside its operator. If that is not a [`Name`](crate::ids::Name), the job cannot be
    /// built.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self { name: Name::new(name), version: 1, _value: PhantomData }
    }

    /// The version of `V` that this program keeps; 1 unless set. A checkpoint of another version is refused.
    #[must_use]
    pub fn version(mut self, version: u32) -> Self {
        self.version = version;
        self
    }
}

/// Access to the value of one key.
pub struct ValueState<'a, K: Key, V: StateValue> {
    table: &'a mut BackendTable<K, V>,
    hash: u64,
    key: &'a K,
}

impl<K: Key, V: StateValue> fmt::Debug for ValueState<'_, K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ValueState").field("hash", &self.hash).finish_non_exhaustive()
    }
}

impl<K: Key, V: StateValue> ValueState<'_, K, V> {
    /// The value, if there is one.
    #[inline]
    pub fn get(&mut self) -> Option<&V> {
        self.table.get(self.hash, self.key)
    }

    /// The value, if there is one, to be changed.
    #[inline]
    pub fn get_mut(&mut self) -> Option<&mut V> {
        self.table.get_mut(self.hash, self.key)
    }

    /// The value, after making it with `value` if there is none.
    #[inline]
    pub fn or_insert_with(&mut self, mut value: impl FnMut() -> V) -> &mut V {
        self.table.get_or_insert_with(self.hash, self.key, &mut value)
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
        self.table.insert(self.hash, self.key, value)
    }

    /// Removes the value, and returns it.
    #[inline]
    pub fn take(&mut self) -> Option<V> {
        self.table.remove(self.hash, self.key)
    }
}

impl<V> sealed::Sealed for Value<V> {}
impl<V> sealed::One for Value<V> {}

impl<K: Key, V: StateValue> States<K> for Value<V> {
    type Tables = BackendTable<K, V>;
    type Access<'a>
        = ValueState<'a, K, V>
    where
        K: 'a;

    fn declarations(&self) -> Vec<StateDeclaration> {
        let type_name = format!("{} -> {}", std::any::type_name::<K>(), std::any::type_name::<V>());
        vec![StateDeclaration { name: self.name.clone(), type_name, type_version: self.version }]
    }

    fn open(&self, backend: &Backend, max_parallelism: u16) -> Self::Tables {
        backend.value_table(max_parallelism)
    }

    fn restore(
        tables: &mut Self::Tables,
        _index: usize,
        groups: Range<u16>,
        entries: u32,
        bytes: &[u8],
    ) -> Result<(), FormatError> {
        tables.restore_block(groups, entries, bytes)
    }

    #[inline]
    fn prefetch(tables: &Self::Tables, hashes: &[u64]) {
        tables.prefetch(hashes);
    }

    #[inline]
    fn access<'a>(tables: &'a mut Self::Tables, hash: u64, key: &'a K) -> ValueState<'a, K, V> {
        ValueState { table: tables, hash, key }
    }

    fn freeze(tables: &mut Self::Tables) -> Vec<Box<dyn Frozen>> {
        vec![tables.freeze()]
    }
}

macro_rules! states_of_tuple {
    ($($name:ident $at:tt),+) => {
        impl<$($name: sealed::One),+> sealed::Sealed for ($($name,)+) {}

        impl<K: Key, $($name: States<K> + sealed::One),+> States<K> for ($($name,)+) {
            type Tables = ($($name::Tables,)+);
            type Access<'a> = ($($name::Access<'a>,)+) where K: 'a;

            fn declarations(&self) -> Vec<StateDeclaration> {
                let mut all = Vec::new();
                $(all.extend(self.$at.declarations());)+
                all
            }

            fn open(&self, backend: &Backend, max_parallelism: u16) -> Self::Tables {
                ($(self.$at.open(backend, max_parallelism),)+)
            }

            fn restore(
                tables: &mut Self::Tables,
                index: usize,
                groups: Range<u16>,
                entries: u32,
                bytes: &[u8],
            ) -> Result<(), FormatError> {
                match index {
                    $($at => $name::restore(&mut tables.$at, 0, groups, entries, bytes),)+
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

            fn freeze(tables: &mut Self::Tables) -> Vec<Box<dyn Frozen>> {
                let mut all = Vec::new();
                $(all.extend($name::freeze(&mut tables.$at));)+
                all
            }
        }
    };
}

states_of_tuple!(A 0, B 1);
states_of_tuple!(A 0, B 1, C 2);
states_of_tuple!(A 0, B 1, C 2, D 3);
