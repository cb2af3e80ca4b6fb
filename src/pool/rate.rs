//! So many per second, evenly: the bound on new connections to one node.

/// A rate with a short burst (the generic cell rate algorithm). Times are microseconds of any one clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rate {
    /// When the next one would be on time, if they came evenly.
    next_us: u64,
}

/// The part of a second's connections that may come at once.
const BURST: u64 = 10;
const SECOND_US: u64 = 1_000_000;

impl Rate {
    /// When the next may come: not after `now_us` means now. `per_second` zero = no bound.
    pub fn due_us(&self, per_second: u64) -> u64 {
        match per_second {
            0 => 0,
            // A burst of n leaves the first n without a wait, so n - 1 intervals are forgiven.
            n => self.next_us.saturating_sub((n / BURST).saturating_sub(1) * (SECOND_US / n)),
        }
    }

    /// One has come.
    pub fn take(&mut self, now_us: u64, per_second: u64) {
        if let Some(interval_us) = SECOND_US.checked_div(per_second) {
            self.next_us = self.next_us.max(now_us) + interval_us;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(rate: &mut Rate, from_us: u64, to_us: u64, per_second: u64) -> usize {
        let due = |now: &u64, rate: &Rate| rate.due_us(per_second) <= *now;
        (from_us..to_us)
            .step_by(100)
            .filter(|now| due(now, rate).then(|| rate.take(*now, per_second)).is_some())
            .count()
    }

    #[test]
    fn no_second_has_more_than_its_number_and_a_burst() {
        let mut rate = Rate::default();
        assert_eq!(taken(&mut rate, 0, SECOND_US, 100), 109, "ten at once, then one every 10 ms");
        assert_eq!(taken(&mut rate, SECOND_US, 2 * SECOND_US, 100), 100);
        assert_eq!(taken(&mut rate, 9 * SECOND_US, 10 * SECOND_US, 100), 109, "rest is not saved up beyond the burst");
    }

    #[test]
    fn a_slow_rate_has_no_burst_and_zero_no_bound() {
        assert_eq!(taken(&mut Rate::default(), 0, 3 * SECOND_US, 2), 6);
        assert_eq!(taken(&mut Rate::default(), 0, SECOND_US, 0), 10_000);
    }
}
