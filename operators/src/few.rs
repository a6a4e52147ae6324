//! A short sorted list: mostly of one element, which then takes no allocation.

use serde::de::{Deserialize, Deserializer};
use serde::ser::{Serialize, Serializer};

/// A list that keeps a single element in place.
#[derive(Clone, Debug)]
pub(crate) enum Few<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

impl<T> Few<T> {
    #[inline]
    pub(crate) fn as_slice(&self) -> &[T] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }

    #[inline]
    pub(crate) fn as_mut_slice(&mut self) -> &mut [T] {
        match self {
            Self::One(one) => std::slice::from_mut(one),
            Self::Many(many) => many,
        }
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        matches!(self, Self::Many(many) if many.is_empty())
    }

    /// Inserts an element at `place`.
    #[inline]
    pub(crate) fn insert(&mut self, place: usize, element: T) {
        match self {
            Self::Many(many) if many.is_empty() => *self = Self::One(element),
            Self::Many(many) => many.insert(place, element),
            Self::One(_) => {
                let Self::One(one) = std::mem::take(self) else { unreachable!("it is one") };
                let pair = if place == 0 { vec![element, one] } else { vec![one, element] };
                *self = Self::Many(pair);
            }
        }
    }

    /// Removes the element at `place`.
    ///
    /// # Panics
    /// If there is none.
    pub(crate) fn remove(&mut self, place: usize) -> T {
        match std::mem::take(self) {
            Self::One(one) => {
                assert_eq!(place, 0, "there is one element");
                one
            }
            Self::Many(mut many) => {
                let element = many.remove(place);
                *self = Self::of(many);
                element
            }
        }
    }

    /// Removes the first `count` elements.
    pub(crate) fn remove_first(&mut self, count: usize) {
        if count == 0 {
            return;
        }
        match self {
            Self::One(_) => *self = Self::default(),
            Self::Many(many) => {
                many.drain(..count);
                if many.len() == 1 {
                    *self = Self::of(std::mem::take(many));
                }
            }
        }
    }

    fn of(mut many: Vec<T>) -> Self {
        match many.pop() {
            Some(one) if many.is_empty() => Self::One(one),
            last => {
                many.extend(last);
                Self::Many(many)
            }
        }
    }
}

impl<T: Serialize> Serialize for Few<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.as_slice().serialize(serializer)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Few<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::deserialize(deserializer).map(Self::of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_list() {
        let (mut few, mut model) = (Few::default(), Vec::new());
        for step in 0..2000_u64 {
            let mixed = step.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
            match mixed % 5 {
                0 | 1 => {
                    let place = mixed as usize / 5 % (model.len() + 1);
                    few.insert(place, step);
                    model.insert(place, step);
                }
                2 if !model.is_empty() => {
                    let place = mixed as usize / 5 % model.len();
                    assert_eq!(few.remove(place), model.remove(place));
                }
                3 => {
                    let count = mixed as usize / 5 % 3.min(model.len() + 1);
                    few.remove_first(count);
                    model.drain(..count);
                }
                _ => few.as_mut_slice().iter_mut().zip(&mut model).for_each(|(one, other)| {
                    *one += 1;
                    *other += 1;
                }),
            }
            assert_eq!(few.as_slice(), model, "step {step}");
            assert_eq!(few.is_empty(), model.is_empty());
            assert_eq!(matches!(few, Few::One(_)), model.len() == 1);
        }
    }
}
