//! Numbers from a seed: the same ones on every machine and in every version.

/// A generator of numbers that look random and follow from a seed (splitmix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A generator that begins at `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A generator of its own, which depends on this one's state and on `purpose`, and leaves this one as it is.
    #[must_use]
    pub fn fork(&self, purpose: u64) -> Self {
        let mut forked = Self(self.0 ^ purpose.wrapping_mul(0xd1b5_4a32_d192_ed03));
        forked.next();
        forked
    }

    /// The next number.
    #[expect(clippy::should_implement_trait, reason = "it never ends, so it is no iterator")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`; 0 if `end` is 0.
    pub fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(end)) >> 64) as u64
    }

    /// A number from `first` to `last`, both included.
    pub fn between(&mut self, first: u64, last: u64) -> u64 {
        first + self.below((last - first).saturating_add(1))
    }

    /// A number from `first` (at least 1) to `last`, small ones as often as large ones: each doubling is as likely.
    pub fn scaled(&mut self, first: u64, last: u64) -> u64 {
        let (low, high) = ((first.max(1) as f64).ln(), (last.max(1) as f64 + 1.0).ln());
        let number = (low + self.unit() * (high - low)).exp() as u64;
        number.clamp(first, last)
    }

    /// A number from 0.0 to 1.0, which is not reached.
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// True as often as `probability` says.
    pub fn chance(&mut self, probability: f64) -> bool {
        self.unit() < probability
    }

    /// One of `items`.
    ///
    /// # Panics
    /// If there is none.
    pub fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len() as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::Random;

    #[test]
    fn numbers_follow_from_the_seed_and_stay_in_their_bounds() {
        let mut a = Random::new(7);
        let mut b = Random::new(7);
        for _ in 0..1000 {
            assert_eq!(a.next(), b.next());
            assert!((3..=9).contains(&a.between(3, 9)));
            assert!((1..=4096).contains(&a.scaled(1, 4096)));
            assert!(a.below(5) < 5);
            b = a.clone();
        }
        assert_eq!(Random::new(1).below(0), 0);
        assert_ne!(Random::new(1).fork(1).next(), Random::new(1).fork(2).next());
    }
}
