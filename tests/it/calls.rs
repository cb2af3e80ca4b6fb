//! What a transaction asks of the kernel, counted by strace: what a relay cannot do without, and nothing else.

use crate::support::load::pgbench;
use crate::support::process::wait_until;
use crate::support::{Cluster, Config};
use std::collections::BTreeMap;
use std::time::Duration;

const CLIENTS: u64 = 64;
/// Transactions of each client in the short run and in the long one. What they differ by is of transactions alone: logins,
/// new servers and prepared statements are in both.
const SHORT: u64 = 20;
const LONG: u64 = 220;

/// Calls of a daemon's whole life in which each client has worked so much, by their names.
fn calls(cluster: &Cluster, protocol: &str, each: u64) -> BTreeMap<String, f64> {
    let summary = cluster.folder().join(format!("strace-{protocol}-{each}"));
    let mut config = Config::of(cluster);
    config.set("listen", "workers = 1").set("health", "health_check_period = \"1h\"");
    // With -D the daemon is the process that was started, and strace its child: no right to trace is needed.
    config.under(&["strace", "-D", "-f", "-c", "-o", &summary.display().to_string()]);
    let pgmend = config.start();
    let (clients, each) = (CLIENTS.to_string(), each.to_string());
    pgbench(&pgmend.door(), &["-S", "-M", protocol, "-c", &clients, "-j", "2", "-t", &each]);
    assert!(pgmend.stop("-INT"), "it ends well");
    let text = || std::fs::read_to_string(&summary).unwrap_or_default();
    wait_until("strace writes its summary", Duration::from_secs(20), || text().trim_end().ends_with("total"));
    let calls = |line: &str| {
        // % time, seconds, usecs/call, calls, perhaps errors, name.
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        Some(((*words.last()?).to_owned(), words.get(3)?.parse().ok()?))
    };
    text().lines().filter_map(calls).filter(|(name, _)| name != "total").collect()
}

#[test]
fn a_transaction_takes_two_receives_two_sends_and_little_else() {
    let cluster = Cluster::single();
    cluster.pgbench_tables("postgres", 1);
    for protocol in ["simple", "extended", "prepared"] {
        let (short, mut long) = (calls(&cluster, protocol, SHORT), calls(&cluster, protocol, LONG));
        let transactions = (CLIENTS * (LONG - SHORT)) as f64;
        for (name, count) in &mut long {
            *count = (*count - short.get(name).unwrap_or(&0.0)) / transactions;
        }
        long.retain(|_, count: &mut f64| count.abs() > 0.0002);
        println!("{protocol}: {long:.3?}");
        let of = |name: &str| long.get(name).copied().unwrap_or_default();
        for name in ["sendto", "recvfrom"] {
            assert!((1.99..2.05).contains(&of(name)), "{name} for each transaction, {protocol}: {long:.3?}");
        }
        assert!(of("epoll_wait") < 0.5, "a wait is for many transactions, {protocol}: {long:.3?}");
        let rest = long.iter().filter(|(name, _)| !["sendto", "recvfrom", "epoll_wait"].contains(&name.as_str()));
        // futex, epoll_ctl and whatever else: now and then, by the clock.
        let rest: f64 = rest.map(|(_, count)| count.abs()).sum();
        assert!(rest < 0.02, "{rest:.3} other calls for each transaction, {protocol}: {long:.3?}");
    }
}
