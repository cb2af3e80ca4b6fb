//! What the end of an operator's own command means: done, try again, refused, or nobody knows.

use super::NodeError;
use std::time::Duration;

/// The pauses between two tries of what asks to be tried again; the last one stands for all that follow.
const PAUSES: [Duration; 5] = [
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
];
/// Tries in all; the deadline may come first.
pub(super) const TRIES: usize = 30;

/// By exit status, the same for commands here and elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// 0.
    Done,
    /// 10: not now, nothing was changed.
    Again,
    /// 20: no, and nothing was changed.
    Refused,
    /// 30 and all others, signals, no end in time, a connection that broke: it may or may not have been done.
    Unknown,
}

impl Class {
    pub fn of(code: Option<i32>) -> Class {
        match code {
            Some(0) => Class::Done,
            Some(10) => Class::Again,
            Some(20) => Class::Refused,
            Some(_) | None => Class::Unknown,
        }
    }
}

/// The pause after the try with this number, from 0; `None`: there is no further try.
pub(super) fn pause_after(tried: usize) -> Option<Duration> {
    (tried + 1 < TRIES).then(|| PAUSES.get(tried).or(PAUSES.last()).copied().unwrap_or_default())
}

impl NodeError {
    /// It said so itself: nothing was changed.
    pub fn changed_nothing(&self) -> bool {
        matches!(self, NodeError::Refused { .. } | NodeError::Busy { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_kinds_of_ends() {
        let class = |code| Class::of(Some(code));
        assert_eq!([class(0), class(10), class(20)], [Class::Done, Class::Again, Class::Refused]);
        // 255 is ssh's own.
        assert!([1, 3, 30, 124, 255].iter().all(|code| class(*code) == Class::Unknown));
        assert_eq!(Class::of(None), Class::Unknown, "a signal");
    }

    #[test]
    fn tries_come_to_an_end() {
        assert_eq!(pause_after(0), Some(Duration::from_millis(100)));
        assert_eq!(pause_after(20), Some(Duration::from_secs(2)));
        assert_eq!(pause_after(TRIES - 1), None);
    }
}
