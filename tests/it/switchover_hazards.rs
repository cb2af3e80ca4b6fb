//! What can go wrong around a change of the primary by somebody else's hand: a server is started in its middle, an old primary
//! comes back from a copy, links and names of a rebuilt node, a rewind that cannot be done.

use crate::recovery_data::{after_the_fork, promoted, recovered_from_node_1};
use crate::support::process::{kill, run, wait_until};
use crate::support::{Cluster, Config, Ledger, Pgmend, Sshd, as_postgres};
use crate::switchover::{assert_cluster, quick};
use std::process::{Child, Stdio};
use std::time::Duration;

const WAITS_AFTER: &str = "PGMEND_WAIT_AFTER_RECORD";

/// A switchover that stands right after a journal record, and goes on when it is let go.
pub struct Standing {
    pub cluster: Cluster,
    pub pgmend: Pgmend,
    pub load: Ledger,
    tool: Child,
    switch: std::path::PathBuf,
}

impl Standing {
    pub fn after(record: &str) -> Standing {
        let cluster = Cluster::pair();
        quick(&cluster);
        let config = Config::of(&cluster);
        Standing::of(cluster, config, record, &[])
    }

    /// The same with a cluster and a configuration of the story's, and more arguments of the switchover.
    pub fn of(cluster: Cluster, config: Config, record: &str, more: &[&str]) -> Standing {
        let switch = cluster.scratch.write("wait", "", "666");
        let mut waits = config.clone();
        let pgmend = waits.env(WAITS_AFTER, &format!("{record}={}", switch.display())).start();
        let load = Ledger::start(&cluster, 0, &pgmend.door(), 4);
        let mut command = as_postgres(&pgmend.binary);
        command.arg("--socket").arg(config.folder().join("pgmend.sock")).arg("switchover").args(more);
        let tool = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the tool starts");
        wait_until("the daemon stands there", Duration::from_secs(30), || {
            let journal = std::fs::read_to_string(config.folder().join("state/journal-1.jsonl")).unwrap_or_default();
            journal.lines().last().is_some_and(|line| line.contains(&format!("\"name\":\"{record}\"")))
        });
        Standing { cluster, pgmend, load, tool, switch }
    }

    /// The daemon dies there; its tool with it.
    pub fn dies(mut self) -> (Cluster, Ledger) {
        self.pgmend.kill9();
        kill(&mut self.tool);
        (self.cluster, self.load)
    }

    /// Lets it go and waits for its end; true when it succeeded.
    pub fn goes_on(&mut self) -> bool {
        std::fs::remove_file(&self.switch).expect("it was there");
        let mut status = None;
        wait_until("the switchover has ended", Duration::from_secs(120), || {
            status = self.tool.try_wait().expect("the tool can be waited for");
            status.is_some()
        });
        kill(&mut self.tool);
        status.is_some_and(|s| s.success())
    }
}

#[test]
fn an_old_primary_that_is_started_before_the_promotion_is_read_only_and_not_routed_to() {
    let mut at = Standing::after("Promote");
    at.cluster.start(0);
    assert_eq!(at.cluster.sql(0, "postgres", "SELECT pg_is_in_recovery()"), "t");
    assert!(at.goes_on(), "{}", at.pgmend.log());
    at.load.goes_on();
    assert_cluster(&at.cluster, &at.pgmend, 1, 2);
    let told = at.pgmend.cli(&["job", "show", "1"]).must().out;
    assert!(told.contains("node 0 came back as it was"), "without a copy: {told}");
    at.load.close().assert_perfect(&at.cluster, 1);
}

#[test]
fn an_old_primary_that_is_started_before_the_proof_becomes_the_primary_again() {
    let mut at = Standing::after("Verify");
    at.cluster.start(0);
    assert_eq!(at.cluster.sql(0, "postgres", "SELECT pg_is_in_recovery()"), "t");
    assert!(!at.goes_on(), "there is no proof any more");
    at.load.goes_on();
    assert_cluster(&at.cluster, &at.pgmend, 0, 1);
    assert!(!at.cluster.nodes[0].data.join("standby.signal").exists(), "disarmed");
    at.pgmend.cli(&["switchover"]).must();
    at.load.goes_on();
    assert_cluster(&at.cluster, &at.pgmend, 1, 2);
    at.load.close().assert_perfect(&at.cluster, 1);
}

/// The clock and the log position of a server say nothing about whose history it is.
#[test]
fn a_stale_primary_with_a_fresher_log_is_never_routed_to() {
    let cluster = Cluster::pair();
    quick(&cluster);
    let (data, old, aside) = (&cluster.nodes[0].data, cluster.folder().join("old"), cluster.folder().join("aside"));
    cluster.stop(0);
    run(as_postgres("cp").arg("-a").arg(data).arg(&old)).must();
    cluster.start(0);
    cluster.wait_streaming(1);
    let mut config = Config::of(&cluster);
    config.set("pool", "query_wait_timeout = \"2s\"");
    let pgmend = config.start();
    let load = Ledger::start(&cluster, 0, &pgmend.door(), 4);
    pgmend.cli(&["switchover", "1"]).must();
    load.goes_on();
    cluster.stop(0);
    pgmend.wait_node(0, "down");
    run(as_postgres("mv").arg(data).arg(&aside)).must();
    run(as_postgres("mv").arg(&old).arg(data)).must();
    cluster.start(0);
    // It has the name, the system and the port of the old primary, and is far ahead.
    cluster.sql(0, "postgres", "CREATE TABLE ledger (client int, seq bigint, salt int)");
    for _ in 0..3 {
        cluster.sql(0, "postgres", "CREATE TABLE IF NOT EXISTS ahead (t text)");
        cluster.sql(0, "postgres", "INSERT INTO ahead SELECT repeat('x', 1000) FROM generate_series(1, 20000)");
        cluster.sql(0, "postgres", "SELECT pg_switch_wal()");
    }
    let position = |id| cluster.sql(id, "postgres", "SELECT pg_current_wal_lsn() - '0/0'::pg_lsn");
    let ahead = |id| position(id).parse::<f64>().expect("a number");
    assert!(ahead(0) > ahead(1), "the stale one has the fresher log");
    let not_routed = |pgmend: &Pgmend| {
        load.goes_on();
        assert_eq!(pgmend.status().and_then(|s| s["primary"].as_u64()), Some(1));
        assert_eq!(cluster.sql(0, "postgres", "SELECT count(*) FROM ledger"), "0", "nobody was sent there");
    };
    wait_until("it was seen", Duration::from_secs(20), || pgmend.log().contains("it is a false primary"));
    not_routed(&pgmend);
    // Not even where an operator puts it in.
    let _ = pgmend.cli(&["attach", "0"]);
    not_routed(&pgmend);
    // Nor after a restart, nor where it is the only one that answers.
    assert!(pgmend.stop("-INT"));
    let pgmend = config.start();
    not_routed(&pgmend);
    cluster.stop(1);
    pgmend.wait_node(1, "down");
    assert!(!pgmend.sql("SELECT 1").ok, "nobody is there to answer");
    cluster.start(1);
    not_routed(&pgmend);
    load.close().assert_kept(&cluster, 1);
}

#[test]
fn links_and_names_of_a_node_that_finish_rebuilds_are_right() {
    links_and_names(|_, _| ());
}

#[test]
fn links_and_names_of_a_node_elsewhere_too() {
    links_and_names(|cluster, config| {
        let sshd = Sshd::start(cluster);
        sshd.leads_to(config, &[1]);
        sshd
    });
}

/// `way`: how node 1 is reached; what it returns ends before the cluster does.
fn links_and_names<W>(way: impl FnOnce(&Cluster, &mut Config) -> W) {
    let mut cluster = Cluster::single();
    let at = cluster.folder().to_owned();
    run(as_postgres("mkdir").arg(at.join("space0"))).must();
    cluster.sql(0, "postgres", &format!("CREATE TABLESPACE space LOCATION '{}'", at.join("space0").display()));
    cluster.sql(0, "postgres", "CREATE TABLE spaced TABLESPACE space AS SELECT generate_series(1, 1000) AS n");
    let oid = cluster.sql(0, "postgres", "SELECT oid FROM pg_tablespace WHERE spcname = 'space'");
    cluster.add_empty_node();
    quick_alone(&cluster);
    let mut config = Config::of(&cluster);
    let _way = way(&cluster, &mut config);
    let pgmend = config.spawn();
    pgmend.wait_node(1, "down");
    let data = cluster.nodes[1].data.clone();
    let (wal, space) = (at.join("wal1"), at.join("space1"));
    let (wal_link, space_link) = (data.join("pg_wal"), data.join("pg_tblspc").join(&oid));
    run(as_postgres("mkdir").args(["-p", "-m", "700"]).arg(data.join("pg_tblspc")).arg(&wal).arg(&space)).must();
    run(as_postgres("chmod").arg("700").arg(&data)).must();
    run(as_postgres("ln").arg("-s").arg(&wal).arg(&wal_link)).must();
    run(as_postgres("ln").arg("-s").arg(&space).arg(&space_link)).must();
    pgmend.cli(&["recover", "1", "--overwrite"]).must();
    pgmend.wait_node(1, "up");
    // What a copy brings along: the primary's own names, which would keep every write of the copy waiting for itself.
    cluster.sql(0, "postgres", "ALTER SYSTEM SET synchronous_standby_names = 'pgmend_1'");
    cluster.sql(0, "postgres", "SELECT pg_reload_conf()");
    let load = Ledger::start(&cluster, 0, &pgmend.door(), 4);
    pgmend.cli(&["maintenance", "begin", "1"]).must();
    let told = pgmend.cli(&["maintenance", "finish", "1", "--rebuild"]).must().all();
    println!("{told}");
    assert_eq!(std::fs::read_link(&wal_link).expect("a link"), wal);
    assert_eq!(std::fs::read_link(&space_link).expect("a link"), space);
    let segments = std::fs::read_dir(&wal).expect("a folder").flatten().count();
    assert!(segments > 0, "the log is where the link leads to");
    cluster.wait_same(1, "postgres", "SELECT count(*), pg_relation_filepath('spaced') FROM spaced");
    assert!(cluster.sql(0, "postgres", "SHOW synchronous_standby_names").contains("pgmend_1"));
    assert_cluster(&cluster, &pgmend, 0, 1);
    // Its own names do not wait for itself.
    let told = pgmend.cli(&["switchover", "1"]).must().all();
    load.goes_on();
    assert!(load.longest_since() < Duration::from_secs(5), "{told}");
    assert_cluster(&cluster, &pgmend, 1, 2);
    assert!(!cluster.sql(1, "postgres", "SHOW synchronous_standby_names").contains("pgmend_1"));
    load.close().assert_perfect(&cluster, 1);
}

fn quick_alone(cluster: &Cluster) {
    cluster.sql(0, "postgres", "ALTER SYSTEM SET wal_retrieve_retry_interval = '100ms'");
    cluster.sql(0, "postgres", "SELECT pg_reload_conf()");
}

/// pg_rewind needs the log since the fork; where a part of it is gone, the node is copied, and never started in between.
#[test]
fn a_rewind_that_lacks_log_becomes_a_copy() {
    let cluster = Cluster::pair();
    cluster.pgbench_tables("postgres", 1);
    cluster.stop(1);
    // Its only use is to hold the log back.
    cluster.sql(0, "postgres", "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots");
    let fork = cluster.sql(0, "postgres", "SELECT pg_walfile_name(pg_current_wal_lsn())");
    for _ in 0..3 {
        cluster.sql(0, "postgres", "CREATE TABLE IF NOT EXISTS astray (n int)");
        cluster.sql(0, "postgres", "SELECT pg_switch_wal()");
    }
    cluster.sql(0, "postgres", "CHECKPOINT");
    let segments = std::fs::read_dir(cluster.nodes[0].data.join("pg_wal")).expect("a folder").flatten();
    for segment in segments.filter(|s| s.file_name().to_string_lossy() == fork) {
        run(as_postgres("rm").arg(segment.path())).must();
    }
    cluster.kill9(0);
    cluster.start(1);
    promoted(&cluster);
    cluster.sql(1, "postgres", "CREATE TABLE later AS SELECT generate_series(1, 50000) AS n; CHECKPOINT");
    let pgmend = after_the_fork(&cluster);
    pgmend.cli(&["recover", "0"]).must_fail_saying("--accept-loss");
    let told = recovered_from_node_1(&pgmend, &cluster, &["recover", "0", "--accept-loss"]);
    assert!(told.contains("pg_basebackup"), "{told}");
    println!("{told}");
    assert_eq!(cluster.sql(0, "postgres", "SELECT to_regclass('astray'), count(*) FROM later"), "|50000");
}
