//! What clients cost that are there and have nothing to do.

use crate::support::{Cluster, Config, Pgmend, Raw};
use pgmend::wire::{backend, frontend};
use std::process::Command;

/// Clients of the first measurement, and of the second.
const FEW: usize = 1000;
const MANY: usize = 4000;
/// What each may take in memory, bytes.
const BOUND: u64 = 2048;

/// Lets this process, and those that it starts, have sockets for all of them.
fn allow_sockets() {
    let limits = std::fs::read_to_string("/proc/self/limits").expect("a file of the kernel");
    let line = limits.lines().find(|l| l.starts_with("Max open files")).expect("a line");
    let soft = line.split_ascii_whitespace().nth(3).and_then(|n| n.parse().ok()).unwrap_or(usize::MAX);
    if soft < 2 * MANY {
        let (pid, limit) = (std::process::id().to_string(), format!("--nofile={}:", 2 * MANY));
        let done = Command::new("prlimit").args(["--pid", &pid, &limit]).status();
        assert!(done.is_ok_and(|s| s.success()), "the limit of open files is {soft} and cannot be raised");
    }
}

/// Memory of a process that is its own and in use, bytes.
fn memory(pid: u32) -> u64 {
    let all = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the daemon lives");
    let line = all.lines().find_map(|l| l.strip_prefix("RssAnon:")).expect("a line");
    1024 * line.trim().trim_end_matches("kB").trim().parse::<u64>().expect("a number")
}

/// A client that has worked, each by the protocol that is wanted, and idles.
fn worked(pgmend: &Pgmend, prepared: bool) -> Raw {
    let mut raw = Raw::connect(pgmend.config.port);
    raw.start(0, &[("user", "postgres"), ("database", "postgres")]);
    assert_eq!(raw.until_ready().last().map(|m| m.tag), Some(b'Z'));
    if prepared {
        raw.say(|out| {
            frontend::parse(out, b"P_0", b"SELECT $1::int\0\0\0");
            backend::raw(out, b'B', b"\0P_0\0\0\0\0\x01\0\0\0\x011\0\0");
            backend::raw(out, b'D', b"P\0");
            backend::raw(out, b'E', b"\0\0\0\0\0");
            frontend::sync(out);
        });
    } else {
        raw.say(|out| frontend::query(out, "SELECT 1"));
    }
    let answer = raw.until_ready();
    assert!(answer.iter().any(|m| m.tag == b'D') && answer.iter().all(|m| m.tag != b'E'), "{answer:?}");
    raw
}

#[test]
fn an_idle_client_takes_little() {
    let cluster = Cluster::single();
    allow_sockets();
    for prepared in [false, true] {
        let mut config = Config::of(&cluster);
        config.set("pool", &format!("max_client_conn = {}", 2 * MANY));
        let pgmend = config.start();
        let mut clients: Vec<Raw> = (0..FEW).map(|_| worked(&pgmend, prepared)).collect();
        let before = memory(pgmend.pid());
        clients.extend((FEW..MANY).map(|_| worked(&pgmend, prepared)));
        let each = memory(pgmend.pid()).saturating_sub(before) / (MANY - FEW) as u64;
        println!("an idle client, prepared statements {prepared}: {each} bytes");
        assert!(each > 100 && each <= BOUND, "{each} bytes for each idle client, prepared statements {prepared}");
    }
}
