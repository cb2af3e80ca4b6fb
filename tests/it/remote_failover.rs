//! A primary elsewhere is lost: it is fenced over ssh where that is possible, and kept away from clients where it is not.

use crate::failover::{automatic, synchronous, wait_learnt, wait_primary};
use crate::support::process::{is_alive, wait_until};
use crate::support::{Cluster, Ledger, Pgmend, Sshd};
use crate::switchover::quick;
use std::time::Duration;

struct Lost {
    // Ends before the folder of its scripts does.
    sshd: Sshd,
    cluster: Cluster,
    pgmend: Pgmend,
    load: Ledger,
    /// Its postmaster, which hangs.
    postmaster: u32,
}

/// Both nodes behind ssh; the primary hangs, after `before`, and the other one takes its place.
fn lost(before: impl FnOnce(&Sshd)) -> Lost {
    let cluster = Cluster::pair();
    quick(&cluster);
    synchronous(&cluster, "pgmend_1");
    let sshd = Sshd::start(&cluster);
    let mut config = automatic(&cluster);
    sshd.leads_to(&mut config, &[0, 1]);
    let pgmend = config.start();
    let load = Ledger::start(&cluster, 0, &pgmend.door(), 4);
    wait_learnt(&pgmend);
    let postmaster = cluster.pid(0).expect("it runs");
    before(&sshd);
    cluster.signal(0, "-STOP");
    assert_eq!(wait_primary(&pgmend, &[1]), 1);
    load.goes_on();
    Lost { sshd, cluster, pgmend, load, postmaster }
}

fn report(pgmend: &Pgmend) -> String {
    let mut told = String::new();
    wait_until("the failover has ended", Duration::from_secs(40), || {
        told = pgmend.cli(&["job", "show", "1"]).all();
        told.contains("brings the lost node back")
    });
    told
}

#[test]
fn a_primary_that_hangs_there_is_ended_there() {
    let Lost { cluster, load, pgmend, postmaster, sshd } = lost(|_| ());
    let told = report(&pgmend);
    assert!(!told.contains("only the epoch"), "{told}");
    wait_until("its postmaster is gone", Duration::from_secs(10), || !is_alive(postmaster));
    assert!(cluster.nodes[0].data.join("standby.signal").exists(), "and it is armed");
    // Its children have noticed by now, or do so at their next look.
    wait_until("nobody answers there", Duration::from_secs(20), || {
        cluster.try_sql(0, "postgres", "SELECT 1").is_empty()
    });
    pgmend.wait_node(0, "down");
    pgmend.cli(&["recover", "0", "--accept-loss"]).must();
    pgmend.wait_node(0, "up");
    cluster.wait_streaming(0);
    load.goes_on();
    load.close().assert_kept(&cluster, 1);
    drop((pgmend, sshd));
}

#[test]
fn a_primary_that_cannot_be_reached_at_all_is_not_routed_to_when_it_is_back() {
    let Lost { cluster, load, pgmend, postmaster, sshd } = lost(|sshd| {
        assert!(std::process::Command::new(sshd.down()).status().is_ok_and(|s| s.success()));
    });
    let told = report(&pgmend);
    assert!(told.contains("node 0 is out of reach: only the epoch keeps clients from it"), "{told}");
    assert!(is_alive(postmaster), "nobody could end it");
    cluster.signal(0, "-CONT");
    wait_until("it is a primary still", Duration::from_secs(20), || {
        cluster.try_sql(0, "postgres", "SELECT pg_is_in_recovery()") == "f"
    });
    let rows = || cluster.sql(0, "postgres", "SELECT count(*) FROM ledger");
    // What was on its way there when it hung has ended by now.
    wait_until("its clients have left", Duration::from_secs(20), || {
        let ask = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND query ~ 'ledger' \
                   AND state <> 'idle' AND pid <> pg_backend_pid()";
        cluster.sql(0, "postgres", ask) == "0"
    });
    let before = rows();
    wait_until("it was seen", Duration::from_secs(20), || pgmend.log().contains("it is a false primary"));
    load.goes_on();
    assert_eq!(rows(), before, "nobody is sent there");
    sshd.up();
    // Now that the way is open it can be brought back; its server has to be stopped by somebody.
    cluster.stop(0);
    pgmend.cli(&["recover", "0", "--accept-loss"]).must();
    pgmend.wait_node(0, "up");
    load.goes_on();
    load.close().assert_kept(&cluster, 1);
    drop((pgmend, sshd));
}
