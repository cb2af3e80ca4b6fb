//! What a recovery does with data: places of links kept, a full disk, histories that parted.

use crate::recovery::assert_whole;
use crate::support::postgres_programs::Switches;
use crate::support::process::{is_root, run_for, wait_until};
use crate::support::{Cluster, Config, Load, Pgmend, Sshd, as_postgres, bin, run};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

fn link(cluster: &Cluster, from: &Path, to: &Path) {
    run(as_postgres("mkdir").args(["-p", "-m", "700"]).arg(from.parent().expect("a folder")).arg(to)).must();
    run(as_postgres("chmod").arg("700").arg(&cluster.nodes[1].data)).must();
    run(as_postgres("ln").arg("-s").arg(to).arg(from)).must();
}

#[test]
fn links_of_the_log_and_of_tablespaces_are_kept() {
    let mut cluster = Cluster::single();
    cluster.pgbench_tables("postgres", 1);
    let at = cluster.folder().to_owned();
    run(as_postgres("mkdir").arg(at.join("space0"))).must();
    cluster.sql(0, "postgres", &format!("CREATE TABLESPACE space LOCATION '{}'", at.join("space0").display()));
    cluster.sql(0, "postgres", "CREATE TABLE spaced TABLESPACE space AS SELECT generate_series(1, 1000) AS n");
    let oid = cluster.sql(0, "postgres", "SELECT oid FROM pg_tablespace WHERE spcname = 'space'");
    cluster.add_empty_node();
    let mut config = Config::of(&cluster);
    let switches = Switches::install(&cluster, &mut config, false);
    let pgmend = config.spawn();
    pgmend.wait_node(0, "up");
    pgmend.wait_node(1, "down");
    pgmend.cli(&["recover", "1"]).must_fail_saying("is in use by the source on this machine");

    let data = cluster.nodes[1].data.clone();
    let (wal_link, space_link) = (data.join("pg_wal"), data.join("pg_tblspc").join(&oid));
    let (wal, space) = (at.join("wal1"), at.join("space1"));
    // By a slip of the hand the log is to go where the source has its own.
    link(&cluster, &space_link, &space);
    link(&cluster, &wal_link, &cluster.nodes[0].data.join("pg_wal"));
    pgmend.cli(&["recover", "1", "--overwrite"]).must_fail_saying("shares a place");
    std::fs::remove_file(&wal_link).expect("a link");
    link(&cluster, &wal_link, &wal);
    pgmend.cli(&["recover", "1", "--overwrite"]).must();
    let links_are_kept = || {
        assert_whole(&cluster, &pgmend);
        assert_eq!(std::fs::read_link(&wal_link).expect("a link"), wal);
        assert_eq!(std::fs::read_link(&space_link).expect("a link"), space);
        cluster.wait_same(1, "postgres", "SELECT count(*), pg_relation_filepath('spaced') FROM spaced");
    };
    links_are_kept();

    // A copy that fails leaves nothing of the directory; what it was like is remembered.
    pgmend.loses(&cluster, 1);
    switches.on("copy-fails");
    pgmend.cli(&["recover", "1"]).must_fail_saying("the copy is broken");
    assert!(std::fs::read_link(&wal_link).is_err());
    switches.off("copy-fails");
    pgmend.cli(&["recover", "1"]).must();
    links_are_kept();
}

/// A small file system of its own, or where that is not allowed, a limit on the size of the daemon's children's files.
struct SmallDisk(Option<PathBuf>);

impl SmallDisk {
    fn new(place: &Path) -> SmallDisk {
        run(as_postgres("mkdir").args(["-m", "700"]).arg(place)).must();
        let options = ["-t", "tmpfs", "-o", "size=20m,mode=700,uid=postgres,gid=postgres", "pgmend-it"];
        let mounted = is_root() && run(Command::new("mount").args(options).arg(place)).ok;
        SmallDisk(mounted.then(|| place.to_owned()))
    }
    fn fill(&self, pgmend: &Pgmend) -> &str {
        if self.0.is_some() {
            return "No space left on device";
        }
        run(Command::new("prlimit").arg(format!("--pid={}", pgmend.pid())).arg("--fsize=1000000:")).must();
        "pg_basebackup"
    }
    fn grow(&self, pgmend: &Pgmend) {
        match &self.0 {
            Some(place) => run(Command::new("mount").args(["-o", "remount,size=400m"]).arg(place)).must(),
            None => {
                run(Command::new("prlimit").arg(format!("--pid={}", pgmend.pid())).arg("--fsize=unlimited:")).must()
            }
        };
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a server may still live on it.
        if let Some(place) = &self.0 {
            run(Command::new("umount").arg("-l").arg(place));
        }
    }
}

#[test]
fn a_full_disk_of_the_target_is_told_and_hurts_nobody() {
    let mut cluster = Cluster::single();
    cluster.pgbench_tables("postgres", 2);
    cluster.add_empty_node();
    let disk = SmallDisk::new(&cluster.nodes[1].data);
    let pgmend = Config::of(&cluster).spawn();
    pgmend.wait_node(1, "down");
    let load = Load::start(&pgmend.door(), cluster.folder(), 4);
    let words = disk.fill(&pgmend);
    if disk.0.is_some() {
        pgmend
            .cli(&["recover", "1"])
            .must_fail_saying("node 1 has no room for a copy")
            .must_fail_saying("nothing was removed");
    }
    // A file system may have more room than it says; this one has not.
    pgmend.cli(&["recover", "1", "--overwrite"]).must_fail_saying(words);
    assert_eq!(pgmend.node_status(1), "down");
    assert_eq!(cluster.sql(0, "postgres", "SELECT count(*) FROM pg_replication_slots"), "0");
    load.goes_on();
    disk.grow(&pgmend);
    pgmend.cli(&["recover", "1"]).must();
    load.goes_on();
    load.finish();
    assert_whole(&cluster, &pgmend);
    drop((pgmend, disk));
}

/// Its data elsewhere, on a disk that is too small: the copy is refused before anything of them is removed.
#[test]
fn a_disk_elsewhere_that_is_too_small_is_told_before_anything_is_removed() {
    let mut cluster = Cluster::single();
    cluster.pgbench_tables("postgres", 2);
    cluster.add_empty_node();
    let disk = SmallDisk::new(&cluster.nodes[1].data);
    let sshd = Sshd::start(&cluster);
    let mut config = Config::of(&cluster);
    sshd.leads_to(&mut config, &[1]);
    let pgmend = config.spawn();
    pgmend.wait_node(1, "down");
    let room = || {
        let status: serde_json::Value =
            serde_json::from_str(&pgmend.cli(&["status", "--json"]).out).unwrap_or_default();
        status["verdict"]["nodes"][1]["disk"].as_str().unwrap_or_default().to_owned()
    };
    wait_until("how much room there is is known", Duration::from_secs(20), || room().ends_with(" free"));
    if disk.0.is_some() {
        assert_eq!(room(), "0.0 GiB free");
        // As after a copy that broke off.
        let marker = cluster.write(1, "left", "something", "600");
        pgmend.cli(&["recover", "1"]).must_fail_saying("recover with --overwrite");
        std::fs::remove_file(marker).expect("a file");
        pgmend.cli(&["recover", "1"]).must_fail_saying("node 1 has no room for a copy");
        assert_eq!(cluster.sql(0, "postgres", "SELECT count(*) FROM pg_replication_slots"), "0");
        disk.grow(&pgmend);
    }
    pgmend.cli(&["recover", "1"]).must();
    assert_whole(&cluster, &pgmend);
    drop((pgmend, disk));
}

/// A daemon that finds node 1 to be the primary and the old one lost.
pub fn after_the_fork(cluster: &Cluster) -> Pgmend {
    let pgmend = Config::of(cluster).spawn();
    pgmend.wait_node(0, "down");
    pgmend.wait_node(1, "up");
    pgmend
}

/// Node 1 becomes the primary; the daemon that knows it as that comes afterwards.
pub fn promoted(cluster: &Cluster) {
    let mut promote = as_postgres(bin("pg_ctl"));
    run_for(promote.args(["promote", "-w", "-D"]).arg(&cluster.nodes[1].data), Duration::from_secs(60)).must();
    let recovering = || cluster.try_sql(1, "postgres", "SELECT pg_is_in_recovery()");
    wait_until("node 1 is promoted", Duration::from_secs(20), || recovering() == "f");
}

pub fn recovered_from_node_1(pgmend: &Pgmend, cluster: &Cluster, args: &[&str]) -> String {
    let told = pgmend.cli(args).must().all();
    cluster.wait_streaming(0);
    assert_eq!(
        cluster.sql(0, "postgres", "SELECT sender_port FROM pg_stat_wal_receiver"),
        cluster.nodes[1].port.to_string()
    );
    told
}

#[test]
fn an_old_primary_comes_back_and_only_commits_behind_the_fork_count_as_loss() {
    let cluster = Cluster::pair();
    cluster.pgbench_tables("postgres", 1);
    // Nothing was committed after the last that the standby has got, but the log went on.
    let ahead = "SELECT count(*) FROM pg_stat_replication WHERE replay_lsn = pg_current_wal_lsn()";
    wait_until("the standby has all", Duration::from_secs(20), || cluster.sql(0, "postgres", ahead) == "1");
    cluster.stop(1);
    cluster.sql(0, "postgres", "SELECT pg_switch_wal()");
    cluster.kill9(0);
    cluster.start(1);
    promoted(&cluster);
    cluster.sql(1, "postgres", "CREATE TABLE later AS SELECT generate_series(1, 50000) AS n; CHECKPOINT");
    let pgmend = after_the_fork(&cluster);
    recovered_from_node_1(&pgmend, &cluster, &["recover", "0"]);

    // Now there was a commit that only the old primary has, and the new one is far beyond that position.
    cluster.stop(0);
    drop(pgmend);
    let mut standby = as_postgres("rm");
    run(standby.arg(cluster.nodes[0].data.join("standby.signal"))).must();
    cluster.start(0);
    cluster.sql(0, "postgres", "CREATE TABLE astray AS SELECT 1 AS n");
    cluster.stop(0);
    cluster.sql(1, "postgres", "CREATE TABLE much_later AS SELECT generate_series(1, 200000) AS n; CHECKPOINT");
    let pgmend = after_the_fork(&cluster);
    let told = pgmend.cli(&["recover", "0"]).must_fail_saying("--accept-loss");
    assert!(told.all().contains("differs from the source's"), "{}", told.all());
    let told = recovered_from_node_1(&pgmend, &cluster, &["recover", "0", "--accept-loss"]);
    assert!(told.contains("pg_basebackup"), "pg_rewind would see no difference on one timeline: {told}");
    assert_eq!(cluster.sql(0, "postgres", "SELECT to_regclass('astray')"), "");
}

#[test]
fn an_old_primary_with_commits_of_its_own_is_rewound_only_when_their_loss_is_accepted() {
    let cluster = Cluster::pair();
    cluster.pgbench_tables("postgres", 1);
    cluster.stop(1);
    cluster.sql(0, "postgres", "CREATE TABLE astray AS SELECT 1 AS n");
    cluster.kill9(0);
    cluster.start(1);
    promoted(&cluster);
    // The new primary is far beyond the old one's end.
    cluster.sql(1, "postgres", "CREATE TABLE later AS SELECT generate_series(1, 50000) AS n; CHECKPOINT");
    let pgmend = after_the_fork(&cluster);
    let told = pgmend.cli(&["recover", "0"]).must_fail_saying("--accept-loss");
    assert!(told.all().contains("1 transactions of it were committed after"), "{}", told.all());
    let told = recovered_from_node_1(&pgmend, &cluster, &["recover", "0", "--accept-loss"]);
    assert!(told.contains("pg_rewind"), "{told}");
    assert_eq!(cluster.sql(0, "postgres", "SELECT to_regclass('astray'), count(*) FROM later"), "|50000");
}
