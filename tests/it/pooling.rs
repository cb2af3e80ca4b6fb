//! pgbench through pgmend: every query mode, one and many clients, both pooling modes, without an error.

use crate::support::load::pgbench;
use crate::support::{Cluster, Config};

fn all_ways(mode: &str) {
    let cluster = Cluster::single();
    cluster.pgbench_tables("postgres", 4);
    let mut config = Config::of(&cluster);
    config.set("pool", &format!("mode = \"{mode}\""));
    if mode == "session" {
        config.set("pool", "default_pool_size = 64");
    }
    let pgmend = config.start();
    let door = pgmend.door();
    for protocol in ["simple", "extended", "prepared"] {
        for (clients, each) in [("1", "100"), ("64", "20")] {
            for script in ["select-only", "tpcb-like"] {
                pgbench(&door, &["-M", protocol, "-b", script, "-c", clients, "-j", "2", "-t", each]);
            }
        }
        pgbench(&door, &["-M", protocol, "-S", "-C", "-c", "8", "-t", "20"]);
    }
}

#[test]
fn pgbench_runs_in_transaction_pooling() {
    all_ways("transaction");
}

#[test]
fn pgbench_runs_in_session_pooling() {
    all_ways("session");
}

#[test]
fn three_workers_serve_as_one_does() {
    let cluster = Cluster::single();
    cluster.pgbench_tables("postgres", 4);
    let mut config = Config::of(&cluster);
    config.set("listen", "workers = 3");
    let pgmend = config.start();
    for protocol in ["simple", "extended", "prepared"] {
        pgbench(&pgmend.door(), &["-M", protocol, "-c", "64", "-j", "2", "-t", "20"]);
    }
}

#[test]
fn a_pool_of_one_serves_many_clients() {
    let cluster = Cluster::single();
    cluster.pgbench_tables("postgres", 1);
    let mut config = Config::of(&cluster);
    config.set("pool", "default_pool_size = 1");
    let pgmend = config.start();
    pgbench(&pgmend.door(), &["-S", "-c", "32", "-j", "2", "-t", "20"]);
    let servers = cluster.sql(0, "postgres", "SELECT count(*) FROM pg_stat_activity WHERE query ~ 'pgbench_accounts'");
    assert!(servers.parse::<u32>().is_ok_and(|n| n <= 2), "{servers} server connections for a pool of one");
}

#[test]
fn pgbench_runs_over_the_unix_socket() {
    let cluster = Cluster::single();
    cluster.pgbench_tables("postgres", 1);
    let pgmend = Config::of(&cluster).start();
    let mut door = pgmend.door();
    door.host = cluster.folder().display().to_string();
    pgbench(&door, &["-S", "-c", "8", "-t", "50"]);
}
