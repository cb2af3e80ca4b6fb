//! What becomes of clients while a recovery holds the gate, from either kind of file.

use super::pgpool::Values;
use super::section::Section;
use super::values;
use crate::cluster::{Clients, Drain, IDLE_IN_TRANSACTION, IdleLimit, Newcomers};
use std::time::Duration;

const CLIENTS: &[(&str, Clients)] = &[("hold", Clients::Hold), ("disconnect", Clients::Disconnect)];
const NEWCOMERS: &[(&str, Newcomers)] = &[("hold", Newcomers::Hold), ("reject", Newcomers::Reject)];
/// Largest limit, seconds.
const MOST: i64 = 1_000_000;

/// The keys of `[recovery]`, whose `recovery_timeout` is `timeout`.
pub fn drain(section: &Section<'_>, timeout: Duration) -> Drain {
    let number = section.signed("client_idle_limit_in_recovery", 0, -1, MOST);
    let idle = section.maybe_duration("recovery_idle_in_transaction_limit");
    Drain {
        clients: section.choice("recovery_clients", "hold", CLIENTS).unwrap_or_default(),
        idle_limit: IdleLimit::of(number).unwrap_or_default(),
        idle_in_transaction: limit(idle, timeout),
        newcomers: section.choice("recovery_new_connections", "hold", NEWCOMERS).unwrap_or_default(),
        patient: true,
    }
}

/// The parameters of a `pgpool.conf`: Pgpool-II's own, and pgmend's by its own names. Who has set the limit to -1 wants his
/// clients cut at once, unless he says otherwise.
pub fn drain_of_pgpool(values: &Values, timeout: Duration) -> Drain {
    let idle_limit = values.parsed("client_idle_limit_in_recovery", |text| {
        let number = text.trim().parse().ok().filter(|number| *number <= MOST).and_then(IdleLimit::of);
        number.ok_or_else(|| format!("expected a whole number from -1 to {MOST}, found \"{text}\""))
    });
    let cut = idle_limit == IdleLimit::AtOnce && values.entry("recovery_clients").is_none();
    let clients = values.parsed("recovery_clients", |text| word(text, CLIENTS));
    Drain {
        clients: if cut { Clients::Disconnect } else { clients },
        idle_limit,
        idle_in_transaction: limit(
            values
                .entry("recovery_idle_in_transaction_limit")
                .map(|_| values.seconds("recovery_idle_in_transaction_limit")),
            timeout,
        ),
        newcomers: values.parsed("recovery_new_connections", |text| word(text, NEWCOMERS)),
        patient: true,
    }
}

/// Zero is none; where nothing is said, the usual one, as far as `recovery_timeout` leaves room for it.
fn limit(given: Option<Duration>, timeout: Duration) -> Option<Duration> {
    let limit = given.unwrap_or_else(|| IDLE_IN_TRANSACTION.min(timeout / 2));
    (!limit.is_zero()).then_some(limit)
}

fn word<T: Copy>(text: &str, choices: &[(&str, T)]) -> Result<T, String> {
    let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
    let found = choices.iter().find(|(word, _)| word.eq_ignore_ascii_case(text));
    found.map(|(_, value)| *value).ok_or_else(|| values::not_one_of(text, &words))
}
