//! `[maintenance]`: limits of planned work.

use super::section::Section;
use crate::maintenance::Settings;

/// Reads it.
pub fn read(section: Section<'_>) -> Settings {
    let settings = Settings {
        drain_timeout: section.duration("drain_timeout", "2s"),
        drain_attempts: section.integer("drain_attempts", 3, 1, 100),
        drain_pause: section.duration("drain_pause", "2s"),
        stop_timeout: section.duration("stop_timeout", "10s"),
        max_hold: section.duration("max_hold", "15s"),
        max_lag_bytes: u64::from(section.integer("max_lag_mb", 16, 0, 1 << 20)) << 20,
        max_transaction_age: section.duration("max_transaction_age", "10s"),
        wait_timeout: section.duration("wait_timeout", "10min"),
        prewarm: section.boolean("prewarm", true),
    };
    if settings.max_hold < settings.drain_timeout {
        section
            .error("max_hold", "expected at least drain_timeout: clients would be released before they all are held");
    }
    section.finish();
    settings
}
