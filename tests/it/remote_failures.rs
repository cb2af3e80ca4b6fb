//! What goes wrong on the way to a node: a way that breaks, commands that want to be tried again, refuse, fail or hang.

use crate::support::postgres_programs::number_in;
use crate::support::process::{is_alive, wait_until};
use crate::support::{Cluster, Config, Ledger, Pgmend, Sshd, bin};
use crate::switchover::{assert_cluster, quick};
use std::time::Duration;

struct Behind {
    // Ends before the folder of its scripts does.
    sshd: Sshd,
    cluster: Cluster,
    config: Config,
}

/// A pair behind ssh, with a stop command of its own for one node: a script that the story writes.
fn behind(node: usize, script: impl FnOnce(&Cluster, &Sshd, &str) -> String) -> Behind {
    let cluster = Cluster::pair();
    quick(&cluster);
    let sshd = Sshd::start(&cluster);
    let mut config = Config::of(&cluster);
    sshd.leads_to(&mut config, &[0, 1]);
    let really = format!("{} stop -m fast -w -D {}", bin("pg_ctl").display(), cluster.nodes[node].data.display());
    let text = script(&cluster, &sshd, &really);
    if !text.is_empty() {
        let path = cluster.scratch.write(
            "stop",
            &format!("#!/bin/sh\necho stop >> {}/stops\n{text}", cluster.folder().display()),
            "755",
        );
        config.node(node, &format!("stop_command = \"{}\"", path.display()));
    }
    Behind { cluster, sshd, config }
}

impl Behind {
    fn stops(&self) -> usize {
        std::fs::read_to_string(self.cluster.folder().join("stops")).unwrap_or_default().lines().count()
    }

    /// In the middle of a switchover of node 0 to node 1, while somebody does something.
    fn switchover(&self, pgmend: &Pgmend, meanwhile: impl FnOnce()) -> crate::support::Ran {
        std::thread::scope(|scope| {
            let running = scope.spawn(|| pgmend.cli(&["switchover", "1"]));
            meanwhile();
            running.join().expect("no panic")
        })
    }
}

#[test]
fn a_way_that_breaks_before_the_stop_leaves_everybody_where_he_was() {
    let mut b = behind(0, |_, _, _| String::new());
    // When this runs, the nodes have been looked at and the way stands open.
    b.config.set("maintenance", &format!("before_switch_command = \"{}\"", b.sshd.down()));
    let pgmend = b.config.start();
    let started = b.cluster.sql(0, "postgres", "SELECT pg_postmaster_start_time()");
    let load = Ledger::start(&b.cluster, 0, &pgmend.door(), 8);
    let told = pgmend.cli(&["switchover", "1"]).must_fail_saying("could not be stopped").all();
    println!("{told}");
    assert!(told.contains("node 0 goes on as the primary"), "{told}");
    load.goes_on();
    println!("the longest transaction took {:?}", load.longest_since());
    assert_eq!(b.cluster.sql(0, "postgres", "SELECT pg_postmaster_start_time()"), started);
    b.sshd.up();
    b.config.set("maintenance", "before_switch_command = \"\"").write();
    pgmend.cli(&["reload"]).must();
    pgmend.cli(&["switchover", "1"]).must();
    load.goes_on();
    assert_cluster(&b.cluster, &pgmend, 1, 2);
    load.close().assert_perfect(&b.cluster, 1);
}

#[test]
fn a_way_that_breaks_in_the_middle_of_the_stop_is_taken_again_and_the_switch_goes_on() {
    let b = behind(0, |_, sshd, really| format!("{really}\nexec {}\n", sshd.cut()));
    let pgmend = b.config.start();
    let load = Ledger::start(&b.cluster, 0, &pgmend.door(), 8);
    let told = pgmend.cli(&["switchover", "1"]).must().all();
    println!("{told}");
    assert!(told.contains("proof: node 0 shut down at"), "{told}");
    assert_eq!(b.stops(), 1, "it was looked at, and not stopped a second time");
    load.goes_on();
    assert_cluster(&b.cluster, &pgmend, 1, 2);
    load.close().assert_perfect(&b.cluster, 1);
}

#[test]
fn a_machine_that_is_out_of_reach_after_the_stop_serves_again_when_it_is_back() {
    let b = behind(0, |_, sshd, really| format!("{really}\nexec {}\n", sshd.down()));
    let pgmend = b.config.start();
    let load = Ledger::start(&b.cluster, 0, &pgmend.door(), 8);
    let ran = b.switchover(&pgmend, || {
        wait_until("its server is stopped", Duration::from_secs(30), || b.stops() == 1 && b.cluster.pid(0).is_none());
        let ways = b.sshd.ways();
        // It has been tried until the stop counted as failed, and again to go back.
        wait_until("the way is tried in vain", Duration::from_secs(30), || b.sshd.ways() > ways + 8);
        b.sshd.up();
    });
    println!("{}", ran.all());
    ran.must_fail_saying("could not be stopped").must_fail_saying("node 0 runs again as the primary");
    load.goes_on();
    assert!(!b.cluster.nodes[0].data.join("standby.signal").exists(), "disarmed");
    assert_cluster(&b.cluster, &pgmend, 0, 1);
    load.close().assert_perfect(&b.cluster, 0);
}

#[test]
fn who_asks_to_be_tried_again_is_tried_again() {
    let b = behind(1, |cluster, _, really| {
        format!(
            "[ $(wc -l < {}/stops) -ge 3 ] || {{ echo not now; exit 10; }}\nexec {really}\n",
            cluster.folder().display()
        )
    });
    let pgmend = b.config.start();
    pgmend.cli(&["maintenance", "begin", "1"]).must();
    assert_eq!(b.stops(), 3);
    assert!(b.cluster.pid(1).is_none());
    pgmend.cli(&["maintenance", "finish", "1"]).must();
    assert_cluster(&b.cluster, &pgmend, 0, 1);
}

#[test]
fn who_refuses_is_believed_and_everything_is_taken_back() {
    let b = behind(0, |_, _, _| "echo the moon is full\nexit 20\n".to_owned());
    let pgmend = b.config.start();
    let load = Ledger::start(&b.cluster, 0, &pgmend.door(), 4);
    let told = pgmend.cli(&["switchover", "1"]).must_fail_saying("refused: the moon is full").all();
    assert!(!told.contains("runs again"), "nothing was stopped: {told}");
    assert_eq!(b.stops(), 1);
    assert!(!b.cluster.nodes[0].data.join("standby.signal").exists(), "disarmed");
    load.goes_on();
    assert!(load.longest_since() < Duration::from_secs(2));
    load.close().assert_perfect(&b.cluster, 0);
}

#[test]
fn who_fails_is_looked_at_again() {
    let b = behind(1, |cluster, _, really| {
        let at = cluster.folder().display();
        format!("[ ! -e {at}/does-it ] || {really}\necho lost >&2\nexit 30\n")
    });
    let pgmend = b.config.start();
    pgmend
        .cli(&["maintenance", "begin", "1"])
        .must_fail_saying("the stop command exited with status 30, and the server runs");
    pgmend.wait_node(1, "up");
    assert!(b.cluster.pid(1).is_some());
    // Now it does what it was asked for before it fails.
    b.cluster.scratch.write("does-it", "", "644");
    pgmend.cli(&["maintenance", "begin", "1"]).must();
    assert!(b.cluster.pid(1).is_none());
    pgmend.cli(&["maintenance", "finish", "1"]).must();
    assert_cluster(&b.cluster, &pgmend, 0, 1);
}

#[test]
fn who_hangs_is_ended_at_its_deadline_there() {
    let mut b = behind(0, |cluster, _, _| {
        let at = cluster.folder().display();
        format!("echo $PGMEND_DEADLINE > {at}/deadline\nsleep 300 & echo $! > {at}/hangs\nwait\n")
    });
    b.config.set("maintenance", "stop_timeout = \"3s\"");
    let pgmend = b.config.start();
    let load = Ledger::start(&b.cluster, 0, &pgmend.door(), 4);
    let told = pgmend.cli(&["switchover", "1"]).must_fail_saying("could not be stopped").all();
    println!("{told}");
    let deadline = number_in(&b.cluster.folder().join("deadline")).expect("it was told");
    assert!((1..=3).contains(&deadline), "{deadline}");
    let hanging = number_in(&b.cluster.folder().join("hangs")).expect("it has started");
    wait_until("what hung has been ended", Duration::from_secs(15), || !is_alive(hanging));
    load.goes_on();
    println!("the longest transaction took {:?}", load.longest_since());
    assert!(!b.cluster.nodes[0].data.join("standby.signal").exists(), "disarmed");
    load.close().assert_perfect(&b.cluster, 0);
}

#[test]
fn who_cannot_be_reached_is_told_before_anything_is_begun() {
    let b = behind(0, |_, _, _| String::new());
    let pgmend = b.config.start();
    assert!(std::process::Command::new(b.sshd.down()).status().is_ok_and(|s| s.success()));
    for order in [&["switchover", "1"][..], &["maintenance", "begin", "1"]] {
        let told = pgmend.cli(order).must_fail_saying("Connection refused").all();
        assert!(told.contains("could not be stopped and started again"), "{told}");
    }
    assert_eq!(pgmend.node_status(1), "up");
}
