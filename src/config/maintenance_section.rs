//! `[maintenance]`: limits of planned work.

use super::section::Section;
use crate::maintenance::{Exits, Settings};

/// The exits whose failure may stop the work.
const VETOES: [&str; 2] = ["before_switch", "before_detach"];

/// Reads it.
pub fn read(section: Section<'_>) -> Settings {
    let settings = Settings {
        drain_timeout: section.duration("drain_timeout", "2s"),
        drain_attempts: section.integer("drain_attempts", 3, 1, 100),
        drain_pause: section.duration("drain_pause", "2s"),
        stop_timeout: section.duration("stop_timeout", "10s"),
        max_hold: section.duration("max_hold", "15s"),
        strict_timeout: section.duration("strict_timeout", "60s"),
        max_lag_bytes: u64::from(section.integer("max_lag_mb", 16, 0, 1 << 20)) << 20,
        max_transaction_age: section.duration("max_transaction_age", "10s"),
        wait_timeout: section.duration("wait_timeout", "10min"),
        run_timeout: section.duration("run_timeout", "1h"),
        automatic_failover: section.boolean("automatic_failover", false),
        failover_confirm: section.duration("failover_confirm", "2s"),
        exits: exits(&section),
        prewarm: section.boolean("prewarm", true),
    };
    if settings.max_hold < settings.drain_timeout {
        section
            .error("max_hold", "expected at least drain_timeout: clients would be released before they all are held");
    }
    section.finish();
    settings
}

fn exits(section: &Section<'_>) -> Exits {
    let may_veto = section.texts("may_veto", &[]);
    for name in may_veto.iter().filter(|name| !VETOES.contains(&name.as_str())) {
        section.error("may_veto", super::values::not_one_of(name, &VETOES));
    }
    Exits {
        before_switch: section.text("before_switch_command"),
        after_switch: section.text("after_switch_command"),
        before_detach: section.text("before_detach_command"),
        after_attach: section.text("after_attach_command"),
        status_change: section.text("status_change_command"),
        may_veto,
        timeout: section.duration("exit_timeout", "20s"),
        backup: section.text("backup_command"),
        backup_timeout: section.duration("backup_timeout", "1d"),
    }
}
