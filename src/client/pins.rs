//! Clients bound to their server connections by something that cannot be carried to another: who, why, since when.

use super::commands::Answer;
use crate::pool::PoolKey;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// One client's pin.
#[derive(Clone, Debug)]
struct Pin {
    pool: PoolKey,
    server_pid: u32,
    reasons: Vec<String>,
    since: Instant,
}

/// All pins.
#[derive(Debug, Default)]
pub struct Pins {
    listed: Mutex<Listed>,
}

#[derive(Debug, Default)]
struct Listed {
    last_id: u64,
    pins: BTreeMap<u64, Pin>,
}

/// A pin that holds; dropping it takes it off the list.
#[derive(Debug)]
pub struct Pinned {
    pins: Arc<Pins>,
    id: u64,
}

impl Pins {
    /// Lists a client; `Err` with the number of its pool's pins when there are `limit` (0: no limit) already.
    pub fn pin(
        self: &Arc<Self>,
        pool: &PoolKey,
        server_pid: u32,
        reasons: Vec<String>,
        limit: usize,
    ) -> Result<Pinned, usize> {
        let mut listed = self.lock();
        let present = listed.pins.values().filter(|p| p.pool == *pool).count();
        if limit > 0 && present >= limit {
            return Err(present);
        }
        listed.last_id += 1;
        let id = listed.last_id;
        listed.pins.insert(id, Pin { pool: pool.clone(), server_pid, reasons, since: Instant::now() });
        Ok(Pinned { pins: self.clone(), id })
    }

    /// The answer to `SHOW PINS`.
    pub fn answer(&self) -> Answer {
        let row = |pin: &Pin| {
            [
                pin.pool.user.clone(),
                pin.pool.database.clone(),
                pin.server_pid.to_string(),
                pin.since.elapsed().as_secs().to_string(),
                pin.reasons.join(", "),
            ]
            .map(Some)
            .to_vec()
        };
        let rows: Vec<_> = self.lock().pins.values().map(row).collect();
        let columns = ["user", "database", "server_pid", "seconds", "reasons"].map(str::to_owned).to_vec();
        Answer { columns, tag: format!("SELECT {}", rows.len()), rows }
    }

    fn lock(&self) -> MutexGuard<'_, Listed> {
        self.listed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pinned {
    /// Why, in words.
    pub fn reasons(&self) -> Vec<String> {
        self.pins.lock().pins.get(&self.id).map(|pin| pin.reasons.clone()).unwrap_or_default()
    }

    /// The reasons have changed.
    pub fn update(&self, reasons: Vec<String>) {
        if let Some(pin) = self.pins.lock().pins.get_mut(&self.id) {
            pin.reasons = reasons;
        }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.pins.lock().pins.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_listed_limited_and_taken_off() {
        let pins = Arc::new(Pins::default());
        let key = |user: &str| PoolKey::of_primary(user.into(), "d".into());
        let first = pins.pin(&key("a"), 7, vec!["cursor c".into()], 1).unwrap();
        assert_eq!(pins.pin(&key("a"), 8, Vec::new(), 1).err(), Some(1));
        let other = pins.pin(&key("b"), 8, Vec::new(), 1).unwrap();
        first.update(vec!["cursor d".into(), "channel x".into()]);
        let texts = ["a", "d", "7", "0", "cursor d, channel x"].map(|t| Some(t.to_owned()));
        assert_eq!(pins.answer().rows.first().map(Vec::as_slice), Some(texts.as_slice()));
        drop(first);
        drop(other);
        assert!(pins.answer().rows.is_empty());
    }
}
