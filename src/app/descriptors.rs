//! Open files: the daemon takes as many as the system lets it have, and no more clients than these are enough for. Without a
//! descriptor no server can be reached, no operator be answered and no state be kept.

use crate::client::BEYOND;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Kept from clients, at least: workers, listeners, operators, probes, the programs of a recovery.
const LEAST_RESERVE: usize = 64;
/// And one in so many of all, for server connections.
const RESERVED_SHARE: usize = 4;

/// As many of these clients as there can be descriptors for: the limit is raised as far as they need and this process may, as
/// systems start a service with 1024, which is the default of `max_client_conn` and nothing beside. Not further, because
/// the programs that it starts inherit it, and some go through all numbers below it. Says so when it is not enough.
pub fn clients_within_limit(wanted: usize) -> usize {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return wanted };
    let needed = u64::try_from(needed(wanted)).unwrap_or(u64::MAX).min(hard);
    let raised = soft < needed && setrlimit(Resource::RLIMIT_NOFILE, needed, hard).is_ok();
    let limit = usize::try_from(if raised { needed } else { soft }).unwrap_or(usize::MAX);
    let clients = clients(wanted, limit);
    if clients < wanted {
        tracing::warn!(
            event = "limits.descriptors",
            open_files = limit,
            max_client_conn = wanted,
            "open files are enough for {clients} clients only: raise the limit (LimitNOFILE of systemd, ulimit -n)"
        );
    }
    clients
}

/// The least limit at which there is room for all.
fn needed(clients: usize) -> usize {
    let taken = clients.saturating_add(BEYOND);
    let by_share = taken.saturating_mul(RESERVED_SHARE).div_ceil(RESERVED_SHARE - 1);
    by_share.max(taken.saturating_add(LEAST_RESERVE))
}

fn clients(wanted: usize, limit: usize) -> usize {
    let reserve = (limit / RESERVED_SHARE).max(LEAST_RESERVE);
    wanted.min(limit.saturating_sub(reserve).saturating_sub(BEYOND)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_leave_room_for_what_serves_them() {
        assert_eq!(clients(1000, 1024), 1024 - 256 - BEYOND);
        assert_eq!(clients(1000, 524_288), 1000);
        assert_eq!(clients(1000, usize::MAX), 1000);
        assert_eq!(clients(1000, 256), 256 - LEAST_RESERVE - BEYOND);
        assert_eq!(clients(1000, 10), 1, "it starts, and says why it is not enough");
    }

    #[test]
    fn no_more_is_asked_for_than_is_needed() {
        for wanted in [1, 10, 100, 1000, 12_345, 1_000_000] {
            let limit = needed(wanted);
            assert_eq!(clients(wanted, limit), wanted, "{wanted}");
            // Quarters are rounded down.
            assert!(wanted == 1 || clients(wanted, limit - 2) < wanted, "{wanted}");
        }
        assert!(needed(usize::MAX) > 1);
    }
}
