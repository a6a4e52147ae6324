//! Running aggregates: what the records of a key come to so far.

use std::fmt;
use std::marker::PhantomData;

use highwater::prelude::*;
use serde::{Deserialize, Serialize};

use crate::change::Change;
use crate::lifetime::Living;

/// Folds the records of a key into a state, and reads a result off it.
///
/// All functions must depend on their arguments only: after a restart they are called again, on the state of the
/// checkpoint. `State` is what checkpoints hold; aggregates that mean different things by it should have different
/// types for it, so that one is not restored as the other.
pub trait Aggregate: 'static {
    /// What is aggregated.
    type Input: Record;
    /// What is kept for a key.
    type State: Record;
    /// What is read off the state.
    type Output: Record;

    /// The state after the first record of a key.
    fn create(&self, first: Self::Input) -> Self::State;

    /// Adds a further record.
    fn add(&self, state: &mut Self::State, input: Self::Input);

    /// Adds all records of another state, which came later where their order matters.
    fn merge(&self, state: &mut Self::State, other: Self::State);

    /// What the records so far come to.
    fn result(&self, state: &Self::State) -> Self::Output;

    /// As [`Aggregate::result`], where the state stays for further results: what none of them needs may be dropped.
    fn result_and_trim(&self, state: &mut Self::State) -> Self::Output {
        self.result(state)
    }
}

/// Emits what the records of each key come to so far.
///
/// Order: results of one key leave in the order of its records. Records of one key from several workers arrive in
/// any order; after the last of them, aggregates whose result does not depend on the order give the same.
///
/// State: one entry for each key, for ever, or with a [time to live](crate::lifetime): every record is an update.
///
/// # Examples
/// ```
/// use highwater::config::JobConfig;
/// use highwater::ids::Name;
/// use highwater::job::{JobHandle, execute};
/// use highwater::prelude::*;
/// use highwater_operators::{Change, Max, RunningAggregate, Sum, net};
///
/// let (totals, records) = (Collect::new(), Collect::new());
/// let (seen_totals, seen_records) = (totals.handle(), records.handle());
/// let config = JobConfig::new(Name::new("running")?);
/// execute(config, &JobHandle::default(), move |job| {
///     let sales = [("tea", 3u64), ("milk", 9), ("tea", 4), ("tea", 1)];
///     let sales: Vec<(String, u64)> = sales.map(|(what, n)| (what.to_owned(), n)).to_vec();
///     let sales = job.source("sales", Collection::new(sales)).into_keyed(|sale| sale);
///     sales.clone().aggregate("totals", Sum::new()).sink("totals-out", totals.clone());
///     sales.aggregate_changes("records", Max::new()).sink("records-out", records.clone());
///     Ok(())
/// })?;
/// let tea = |seen: (String, u128)| (seen.0 == "tea").then_some(seen.1);
/// let totals: Vec<u128> = seen_totals.committed().into_iter().filter_map(tea).collect();
/// assert_eq!(totals, [3, 7, 8]);
/// let records = seen_records.committed();
/// assert!(records.contains(&Change::Insert(("tea".to_owned(), 3))));
/// assert!(records.contains(&Change::Retract(("tea".to_owned(), 3))));
/// assert_eq!(records.len(), 4); // The last sale changes no record.
/// let largest: Vec<_> = net(records).into_keys().collect();
/// assert_eq!(largest, [("milk".to_owned(), 9), ("tea".to_owned(), 4)]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait RunningAggregate<'scope, K: Key, A: Aggregate>: Sized {
    /// Emits the key and the result so far, for every record.
    fn aggregate(self, name: &str, aggregate: A) -> Stream<'scope, (K, A::Output)>;

    /// Emits [`Change`]s that come, at every moment, to the current result of every key once: for every record that
    /// changes the result, the old one is retracted, if there was one, and the new one inserted.
    fn aggregate_changes(self, name: &str, aggregate: A) -> Stream<'scope, Change<(K, A::Output)>>
    where
        A::Output: PartialEq;
}

impl<'scope, K: Key, A: Aggregate, S: Living<'scope, K, A::Input>> RunningAggregate<'scope, K, A>
    for S
{
    fn aggregate(self, name: &str, aggregate: A) -> Stream<'scope, (K, A::Output)> {
        let (stream, lifetime) = self.into_parts();
        let state = Value::<A::State>::new("aggregate").lifetime(lifetime);
        stream.process(name, state, move |key, input, state, out| {
            let result = match state.get_mut() {
                Some(state) => {
                    aggregate.add(state, input);
                    aggregate.result(state)
                }
                None => {
                    let first = aggregate.create(input);
                    let result = aggregate.result(&first);
                    state.set(first);
                    result
                }
            };
            out.emit((key.clone(), result));
        })
    }

    fn aggregate_changes(self, name: &str, aggregate: A) -> Stream<'scope, Change<(K, A::Output)>>
    where
        A::Output: PartialEq,
    {
        let (stream, lifetime) = self.into_parts();
        let state = Value::<A::State>::new("aggregate").lifetime(lifetime);
        stream.process(name, state, move |key, input, state, out| {
            let (old, new) = match state.get_mut() {
                Some(state) => {
                    let old = aggregate.result(state);
                    aggregate.add(state, input);
                    (Some(old), aggregate.result(state))
                }
                None => {
                    let first = aggregate.create(input);
                    let new = aggregate.result(&first);
                    state.set(first);
                    (None, new)
                }
            };
            if old.as_ref() == Some(&new) {
                return;
            }
            if let Some(old) = old {
                out.emit(Change::Retract((key.clone(), old)));
            }
            out.emit(Change::Insert((key.clone(), new)));
        })
    }
}

/// A number that can be summed without overflow.
pub trait Summand: Record {
    /// What a sum is kept in.
    type Total: Record;

    /// The number, as a total.
    fn total(self) -> Self::Total;

    /// Adds a number. Saturates.
    fn add(self, total: &mut Self::Total);

    /// Adds another total. Saturates.
    fn add_total(total: &mut Self::Total, other: &Self::Total);

    /// Takes a number away again that was added. Saturates.
    fn take(self, total: &mut Self::Total);

    /// The total divided by `count`, which is not 0.
    fn mean(total: &Self::Total, count: u64) -> f64;
}

macro_rules! integers {
    ($total:ty: $($number:ty),+) => {$(
        impl Summand for $number {
            type Total = $total;

            fn total(self) -> $total {
                <$total>::from(self)
            }

            fn add(self, total: &mut $total) {
                *total = total.saturating_add(<$total>::from(self));
            }

            fn add_total(total: &mut $total, other: &$total) {
                *total = total.saturating_add(*other);
            }

            fn take(self, total: &mut $total) {
                *total = total.saturating_sub(<$total>::from(self));
            }

            fn mean(total: &$total, count: u64) -> f64 {
                *total as f64 / count as f64
            }
        }
    )+};
}

integers!(u128: u8, u16, u32, u64);
integers!(i128: i8, i16, i32, i64);

macro_rules! floats {
    ($($number:ty),+) => {$(
        impl Summand for $number {
            type Total = f64;

            fn total(self) -> f64 {
                f64::from(self)
            }

            fn add(self, total: &mut f64) {
                *total += f64::from(self);
            }

            fn add_total(total: &mut f64, other: &f64) {
                *total += *other;
            }

            fn take(self, total: &mut f64) {
                *total -= f64::from(self);
            }

            fn mean(total: &f64, count: u64) -> f64 {
                *total / count as f64
            }
        }
    )+};
}

floats!(f32, f64);

macro_rules! aggregates {
    ($($(#[$doc:meta])* $name:ident;)+) => {$(
        $(#[$doc])*
        pub struct $name<T>(PhantomData<fn(T)>);

        impl<T> $name<T> {
            /// The aggregate. It has no settings.
            #[must_use]
            pub const fn new() -> Self {
                Self(PhantomData)
            }
        }

        impl<T> Default for $name<T> {
            fn default() -> Self {
                Self::new()
            }
        }

        impl<T> Clone for $name<T> {
            fn clone(&self) -> Self {
                *self
            }
        }

        impl<T> Copy for $name<T> {}

        impl<T> fmt::Debug for $name<T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(stringify!($name))
            }
        }
    )+};
}

aggregates! {
    /// The number of records. It would saturate at `u64::MAX`.
    Count;

    /// The sum of all numbers.
    ///
    /// Integers are summed exactly, in 128 bits (`u128` or `i128`, which is also the result): it would take 2^64
    /// records of the largest value to reach the end, and then the sum stays there. Floating-point numbers are
    /// summed in `f64`, rounded at every step: the last digits depend on the order of the records, and `NaN` and
    /// the infinities stay.
    Sum;

    /// The least record. Of equal ones, the first.
    Min;

    /// The greatest record. Of equal ones, the first.
    Max;

    /// The mean of all numbers, as `f64`.
    ///
    /// Of integers, the sum is exact, and rounding happens at the end only: the relative error is below 2^-51,
    /// whatever the number of records and their order. Of floating-point numbers, the sum is rounded as that of
    /// [`Sum`] is.
    Average;
}

/// The state of [`Count`].
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Counted(pub(crate) u64);

impl<T: Record> Aggregate for Count<T> {
    type Input = T;
    type State = Counted;
    type Output = u64;

    fn create(&self, _first: T) -> Counted {
        Counted(1)
    }

    fn add(&self, state: &mut Counted, _input: T) {
        state.0 = state.0.saturating_add(1);
    }

    fn merge(&self, state: &mut Counted, other: Counted) {
        state.0 = state.0.saturating_add(other.0);
    }

    fn result(&self, state: &Counted) -> u64 {
        state.0
    }
}

/// The state of [`Sum`].
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Summed<T>(T);

impl<T: Summand> Aggregate for Sum<T> {
    type Input = T;
    type State = Summed<T::Total>;
    type Output = T::Total;

    fn create(&self, first: T) -> Self::State {
        Summed(first.total())
    }

    fn add(&self, state: &mut Self::State, input: T) {
        input.add(&mut state.0);
    }

    fn merge(&self, state: &mut Self::State, other: Self::State) {
        T::add_total(&mut state.0, &other.0);
    }

    fn result(&self, state: &Self::State) -> T::Total {
        state.0.clone()
    }
}

/// The state of [`Min`].
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Least<T>(T);

impl<T: Record + Ord> Aggregate for Min<T> {
    type Input = T;
    type State = Least<T>;
    type Output = T;

    fn create(&self, first: T) -> Least<T> {
        Least(first)
    }

    fn add(&self, state: &mut Least<T>, input: T) {
        if input < state.0 {
            state.0 = input;
        }
    }

    fn merge(&self, state: &mut Least<T>, other: Least<T>) {
        self.add(state, other.0);
    }

    fn result(&self, state: &Least<T>) -> T {
        state.0.clone()
    }
}

/// The state of [`Max`].
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Greatest<T>(T);

impl<T: Record + Ord> Aggregate for Max<T> {
    type Input = T;
    type State = Greatest<T>;
    type Output = T;

    fn create(&self, first: T) -> Greatest<T> {
        Greatest(first)
    }

    fn add(&self, state: &mut Greatest<T>, input: T) {
        if input > state.0 {
            state.0 = input;
        }
    }

    fn merge(&self, state: &mut Greatest<T>, other: Greatest<T>) {
        self.add(state, other.0);
    }

    fn result(&self, state: &Greatest<T>) -> T {
        state.0.clone()
    }
}

/// The state of [`Average`].
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Averaged<T> {
    pub(crate) total: T,
    pub(crate) count: u64,
}

impl<T: Summand> Aggregate for Average<T> {
    type Input = T;
    type State = Averaged<T::Total>;
    type Output = f64;

    fn create(&self, first: T) -> Self::State {
        Averaged { total: first.total(), count: 1 }
    }

    fn add(&self, state: &mut Self::State, input: T) {
        input.add(&mut state.total);
        state.count = state.count.saturating_add(1);
    }

    fn merge(&self, state: &mut Self::State, other: Self::State) {
        T::add_total(&mut state.total, &other.total);
        state.count = state.count.saturating_add(other.count);
    }

    fn result(&self, state: &Self::State) -> f64 {
        T::mean(&state.total, state.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fold<A: Aggregate>(aggregate: A, inputs: impl IntoIterator<Item = A::Input>) -> A::Output {
        let mut inputs = inputs.into_iter();
        let mut state = aggregate.create(inputs.next().unwrap());
        for input in inputs {
            aggregate.add(&mut state, input);
        }
        aggregate.result(&state)
    }

    #[test]
    fn merging_states_comes_to_the_same_as_adding_their_records() {
        fn merged<A: Aggregate>(aggregate: &A, parts: [Vec<A::Input>; 2]) -> A::Output {
            let [mut first, second] = parts.map(|part| {
                let mut inputs = part.into_iter();
                let mut state = aggregate.create(inputs.next().unwrap());
                inputs.for_each(|input| aggregate.add(&mut state, input));
                state
            });
            aggregate.merge(&mut first, second);
            aggregate.result(&first)
        }
        let parts = || [vec![5_i64, -3, 9], vec![8, -7]];
        let all = [5_i64, -3, 9, 8, -7];
        assert_eq!(merged(&Count::new(), parts()), fold(Count::new(), all));
        assert_eq!(merged(&Sum::new(), parts()), fold(Sum::new(), all));
        assert_eq!(merged(&Min::new(), parts()), fold(Min::new(), all));
        assert_eq!(merged(&Max::new(), parts()), fold(Max::new(), all));
        assert_eq!(merged(&Average::new(), parts()), fold(Average::new(), all));
    }

    #[test]
    fn integer_sums_and_averages_are_exact_beyond_the_range_of_the_input() {
        assert_eq!(fold(Sum::new(), [u64::MAX, u64::MAX, 1]), 2 * u128::from(u64::MAX) + 1);
        assert_eq!(fold(Sum::new(), [i64::MIN, i64::MIN]), 2 * i128::from(i64::MIN));
        assert_eq!(fold(Average::new(), [i64::MAX, i64::MIN, 1]), 0.0);
        assert_eq!(fold(Average::new(), [u64::MAX; 3]), u64::MAX as f64);
    }

    #[test]
    fn a_sum_at_the_end_of_its_range_stays_there() {
        let mut total = u128::MAX - 1;
        7_u64.add(&mut total);
        assert_eq!(total, u128::MAX);
        let mut state = Counted(u64::MAX);
        Count::<u8>::new().add(&mut state, 1);
        assert_eq!(state.0, u64::MAX);
    }

    #[test]
    fn of_equal_records_the_first_is_least_and_greatest() {
        #[derive(Clone, Debug, Serialize, Deserialize)]
        struct Pair(u8, char);
        impl PartialEq for Pair {
            fn eq(&self, other: &Self) -> bool {
                self.0 == other.0
            }
        }
        impl Eq for Pair {}
        impl PartialOrd for Pair {
            fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
                Some(self.cmp(other))
            }
        }
        impl Ord for Pair {
            fn cmp(&self, other: &Self) -> std::cmp::Ordering {
                self.0.cmp(&other.0)
            }
        }
        let pairs = [Pair(1, 'a'), Pair(1, 'b')];
        assert_eq!(fold(Min::new(), pairs.clone()).1, 'a');
        assert_eq!(fold(Max::new(), pairs).1, 'a');
        assert_eq!(fold(Count::new(), ['x'; 3]), 3);
    }

    #[test]
    fn a_float_that_is_no_number_stays_in_the_sum() {
        assert!(fold(Sum::new(), [1.0, f64::NAN, 2.0]).is_nan());
        assert_eq!(fold(Sum::new(), [1.5_f32, 2.5]), 4.0);
    }
}
