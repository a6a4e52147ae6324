//! A histogram of microseconds, exact to one part in 128.

/// Values below this have a bucket each; above, each doubling has half as many buckets.
const EXACT: u64 = 256;
const BUCKETS: usize = 256 + 128 * 56;

/// Counts values in buckets that grow with them.
#[derive(Clone, Debug)]
pub struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: vec![0; BUCKETS], count: 0, max: 0 }
    }
}

impl Histogram {
    pub fn add(&mut self, value: u64) {
        self.buckets[bucket(value)] += 1;
        self.count += 1;
        self.max = self.max.max(value);
    }

    pub fn merge(&mut self, other: &Self) {
        for (own, more) in self.buckets.iter_mut().zip(&other.buckets) {
            *own += more;
        }
        self.count += other.count;
        self.max = self.max.max(other.max);
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    pub fn max(&self) -> u64 {
        self.max
    }

    /// The upper end of the bucket that so large a part of the values does not exceed.
    pub fn quantile(&self, part: f64) -> u64 {
        let rank = ((self.count as f64 * part).ceil() as u64).max(1);
        let mut seen = 0;
        for (at, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return end(at).min(self.max);
            }
        }
        self.max
    }
}

fn bucket(value: u64) -> usize {
    if value < EXACT {
        return value as usize;
    }
    let shift = 56 - value.leading_zeros(); // 1 for values below 512
    256 + 128 * (shift as usize - 1) + ((value >> shift) as usize - 128)
}

fn end(bucket: usize) -> u64 {
    if bucket < 256 {
        return bucket as u64;
    }
    let (shift, at) = ((bucket - 256) / 128 + 1, (bucket - 256) % 128);
    ((at as u64 + 129) << shift) - 1
}
