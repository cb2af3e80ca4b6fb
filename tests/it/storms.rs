//! Logins in masses: whoever is in already goes on as before, and the servers are not overrun.

use crate::support::pgmend::binary_for_postgres;
use crate::support::process::wait_until;
use crate::support::scratch::write_as_postgres;
use crate::support::{Cluster, Config, Pgmend, Raw};
use pgmend::wire::frontend;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// For how long latencies are taken.
const WHILE: Duration = Duration::from_secs(3);

/// Latencies of a client that asks for a row again and again, sorted.
fn latencies(pgmend: &Pgmend, password: Option<&str>) -> Vec<Duration> {
    let mut raw = Raw::connect(pgmend.config.port);
    raw.start(0, &[("user", "app"), ("database", "app")]);
    if let Some(password) = password {
        raw.message();
        raw.say(|out| frontend::password(out, password));
    }
    assert_eq!(raw.until_ready().last().map(|m| m.tag), Some(b'Z'));
    let (start, mut all) = (Instant::now(), Vec::new());
    while start.elapsed() < WHILE {
        let begun = Instant::now();
        raw.send(b"Q\0\0\0\x0dSELECT 1\0");
        assert_eq!(raw.until_ready().last().map(|m| m.tag), Some(b'Z'));
        all.push(begun.elapsed());
    }
    all.sort();
    all
}

/// `storm(thread, turn)` again and again on eight threads while `work` goes on; returns its result and the turns.
fn during<T>(storm: impl Fn(u32, u32) + Sync, work: impl FnOnce() -> T) -> (T, u32) {
    let (over, turns) = (AtomicBool::new(false), AtomicU32::new(0));
    let done = std::thread::scope(|scope| {
        let (over, turns, storm) = (&over, &turns, &storm);
        for thread in 0..8 {
            scope.spawn(move || {
                for turn in 0.. {
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    storm(thread, turn);
                    turns.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let done = work();
        over.store(true, Ordering::Relaxed);
        done
    });
    (done, turns.into_inner())
}

/// `hash`: what one password takes where nobody else asks for one.
fn calm(what: &str, quiet: &[Duration], stormy: &[Duration], turns: u32, hash: Duration) {
    let at = |all: &[Duration], percent: usize| all[(all.len() - 1) * percent / 100];
    println!(
        "{what}: {turns} logins; p50 {:?} -> {:?}, p90 {:?} -> {:?}, p99 {:?} -> {:?}",
        at(quiet, 50),
        at(stormy, 50),
        at(quiet, 90),
        at(stormy, 90),
        at(quiet, 99),
        at(stormy, 99),
    );
    assert!(turns >= 8, "no storm: {turns} logins");
    // Hashed on the worker's own thread, every statement waits for a hash at least, and most for those of all eight.
    assert!(at(stormy, 90) < hash, "p90 {:?}, a hash alone {hash:?}", at(stormy, 90));
}

/// The time that the quickest of some takes.
fn quickest(work: impl Fn(u32)) -> Duration {
    let one = |turn| {
        let begun = Instant::now();
        work(turn);
        begun.elapsed()
    };
    (0..5).map(one).min().unwrap_or_default()
}

#[test]
fn passwords_that_are_hashed_do_not_hold_the_other_clients_of_a_worker() {
    let cluster = Cluster::scram();
    let mut config = Config::of(&cluster);
    config.scram().set("auth", "method = \"password\"").set("listen", "workers = 1");
    let pgmend = config.start();
    let quiet = latencies(&pgmend, Some("secret"));
    let guess = |_, _| {
        let mut raw = Raw::connect(pgmend.config.port);
        raw.start(0, &[("user", "app"), ("database", "app")]).message();
        assert_eq!(raw.say(|out| frontend::password(out, "wrong")).message().error().0, "28P01");
    };
    let hash = quickest(|turn| guess(0, turn));
    let (stormy, turns) = during(guess, || latencies(&pgmend, Some("secret")));
    calm("passwords of clients", &quiet, &stormy, turns, hash);
}

#[test]
fn logins_to_servers_do_not_hold_the_other_clients_of_a_worker() {
    let cluster = Cluster::scram();
    let mut config = Config::of(&cluster);
    config.scram().set("auth", "method = \"trust\"").set("listen", "workers = 1");
    // Each name is a pool of its own, whose server has to be logged in to.
    config.set("pool.databases.\"*\"", "dbname = \"app\"").set("pool", "max_node_connections = 50");
    let pgmend = config.start();
    let quiet = latencies(&pgmend, None);
    let storm = |thread: u32, turn: u32| {
        let mut raw = Raw::connect(pgmend.config.port);
        raw.start(0, &[("user", "app"), ("database", &format!("d{thread}_{turn}"))]);
        assert_eq!(raw.until_ready().last().map(|m| m.tag), Some(b'Z'));
    };
    let hash = quickest(|turn| storm(8, turn));
    let (stormy, turns) = during(storm, || latencies(&pgmend, None));
    calm("passwords for servers", &quiet, &stormy, turns, hash);
    let open = cluster.sql(0, "postgres", "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app'");
    assert!(open.parse::<u32>().is_ok_and(|n| n <= 51), "{open} server connections, 50 are allowed");
}

#[test]
fn clients_without_number_leave_descriptors_for_those_who_serve() {
    let cluster = Cluster::single();
    // As where the system allows no more.
    let real = binary_for_postgres(cluster.folder());
    let kept = real.with_extension("real");
    std::fs::rename(&real, &kept).expect("it is there");
    let script = format!("#!/bin/sh\nulimit -n 256\nexec {} \"$@\"\n", kept.display());
    write_as_postgres(&real, &script, "755");
    let pgmend = Config::of(&cluster).start();
    assert!(pgmend.log().contains("open files are enough for 128 clients only"), "{}", pgmend.log());
    let mut early = Raw::connect(pgmend.config.port);
    early.start(0, &[("user", "postgres"), ("database", "postgres")]);
    assert_eq!(early.until_ready().last().map(|m| m.tag), Some(b'Z'));
    let crowd: Vec<Raw> = (0..300).map(|_| Raw::connect(pgmend.config.port)).collect();
    let open = || std::fs::read_dir(format!("/proc/{}/fd", pgmend.pid())).map_or(0, Iterator::count);
    wait_until("the crowd is in", Duration::from_secs(20), || open() > 128);
    // A server connection is opened for it, and operators are answered.
    early.send(b"Q\0\0\0\x0dSELECT 1\0");
    assert_eq!(early.until_ready().last().map(|m| m.tag), Some(b'Z'));
    pgmend.cli(&["reconnect"]).must();
    early.send(b"Q\0\0\0\x0dSELECT 1\0");
    assert_eq!(early.until_ready().last().map(|m| m.tag), Some(b'Z'));
    pgmend.cli(&["status"]).must();
    assert!(!pgmend.log().contains("Too many open files"), "{}", pgmend.log());
    drop(crowd);
    wait_until("there is room again", Duration::from_secs(20), || pgmend.sql("SELECT 1").ok);
}
