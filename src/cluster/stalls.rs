//! How long clients were kept waiting at the gate: collected while somebody wants to know.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Waits that are remembered; the later ones of more clients than this are not.
const MAX_WAITS: usize = 200_000;

/// Collects waits, in microseconds. Costs a load where nobody collects.
#[derive(Debug, Default)]
pub struct Stalls {
    wanted: AtomicBool,
    waits_us: Mutex<Vec<u64>>,
}

/// What was collected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stalled {
    /// Ascending, microseconds.
    waits_us: Vec<u64>,
}

impl Stalls {
    /// Begins anew.
    pub fn begin(&self) {
        self.waits_us.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.wanted.store(true, Ordering::Release);
    }

    /// A client waited so long at the gate.
    pub fn record(&self, wait: Duration) {
        if !self.wanted.load(Ordering::Acquire) {
            return;
        }
        let mut waits = self.waits_us.lock().unwrap_or_else(PoisonError::into_inner);
        if waits.len() < MAX_WAITS {
            waits.push(u64::try_from(wait.as_micros()).unwrap_or(u64::MAX));
        }
    }

    /// What was collected so far.
    pub fn so_far(&self) -> usize {
        self.waits_us.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Ends the collection.
    pub fn take(&self) -> Stalled {
        self.wanted.store(false, Ordering::Release);
        let mut waits_us = std::mem::take(&mut *self.waits_us.lock().unwrap_or_else(PoisonError::into_inner));
        waits_us.sort_unstable();
        Stalled { waits_us }
    }
}

impl Stalled {
    /// How many clients waited.
    pub fn clients(&self) -> usize {
        self.waits_us.len()
    }

    /// The wait that so many percent of them did not exceed, in milliseconds.
    pub fn percentile_ms(&self, percent: usize) -> Option<f64> {
        let last = self.waits_us.len().checked_sub(1)?;
        let at = (self.waits_us.len() * percent).div_ceil(100).saturating_sub(1).min(last);
        // Microseconds of a wait are far below 2^53.
        self.waits_us.get(at).map(|us| Duration::from_micros(*us).as_secs_f64() * 1000.0)
    }
}

/// For people.
impl std::fmt::Display for Stalled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Some(p50), Some(p99), Some(most)) =
            (self.percentile_ms(50), self.percentile_ms(99), self.percentile_ms(100))
        else {
            return f.write_str("no client had to wait");
        };
        write!(f, "{} clients waited: p50 {p50:.1} ms, p99 {p99:.1} ms, longest {most:.1} ms", self.clients())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_what_was_collected() {
        let stalls = Stalls::default();
        stalls.record(Duration::from_millis(9));
        assert_eq!(stalls.take().to_string(), "no client had to wait", "nobody collected");
        stalls.begin();
        (1..=100).rev().for_each(|ms| stalls.record(Duration::from_millis(ms)));
        let stalled = stalls.take();
        assert_eq!((stalled.percentile_ms(50), stalled.percentile_ms(99)), (Some(50.0), Some(99.0)));
        assert_eq!(stalled.to_string(), "100 clients waited: p50 50.0 ms, p99 99.0 ms, longest 100.0 ms");
    }
}
