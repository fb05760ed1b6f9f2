//! Latencies in buckets whose width grows with the value: within a hundredth of it, whatever it is.

use std::time::Duration;

/// Buckets in each power of two, as a power of two.
const FINE_BITS: u32 = 7;
const FINE: u64 = 1 << FINE_BITS;

/// How many answers took how long.
#[derive(Debug, Clone)]
pub(crate) struct Histogram {
    counts: Vec<u64>,
    total: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; bucket(u64::MAX) + 1], total: 0 }
    }
}

impl Histogram {
    pub(crate) fn add(&mut self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.counts[bucket(nanos)] += 1;
        self.total += 1;
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        self.total += other.total;
    }

    /// Microseconds within which this part of all was answered; the upper end of the bucket.
    pub(crate) fn quantile_us(&self, part: f64) -> f64 {
        let wanted = ((self.total as f64 * part).ceil() as u64).max(1);
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return upper_end(index) as f64 / 1e3;
            }
        }
        f64::NAN
    }
}

/// Values below [`FINE`] have buckets of their own; above, the leading bits choose.
fn bucket(nanos: u64) -> usize {
    if nanos < FINE {
        return nanos as usize;
    }
    let shift = nanos.ilog2() - FINE_BITS;
    let fine = (nanos >> shift) - FINE;
    (u64::from(shift + 1) * FINE + fine) as usize
}

fn upper_end(index: usize) -> u64 {
    let index = index as u64;
    if index < FINE {
        return index;
    }
    let shift = (index / FINE - 1) as u32;
    (((index % FINE + FINE) as u128 + 1) << shift).saturating_sub(1).min(u128::from(u64::MAX)) as u64
}
