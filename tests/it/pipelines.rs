//! Random pipelines: whatever a client sends, pgmend answers what PostgreSQL answers, byte for byte.
//!
//! Each client has a connection straight to one database and one through pgmend to its twin, says the same on both and
//! compares. `PGMEND_BATCHES=100000 cargo nextest run --test it pipelines` runs more than the few seconds of every day, and
//! `PGMEND_SEED` other ones. A failure names seed, client and batch; the batches of a seed are always the same.

use crate::support::pipeline::{Client, forgiven, is_over, marker, message};
use crate::support::process::pause;
use crate::support::raw::Message;
use crate::support::{Cluster, Config, Raw};
use std::fmt::Write as _;

const CLIENTS: u64 = 6;
const BATCHES: u64 = 1200;
const SEED: u64 = 20_261_121;
/// What stands before a divergence is shown as far as this.
const SHOWN: usize = 3;

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().expect("a number"))
}

fn open(port: u16, database: &str) -> Raw {
    let mut raw = Raw::connect(port);
    raw.start(0, &[("user", "postgres"), ("database", database)]);
    assert_eq!(raw.until_ready().last().map(|m| m.tag), Some(b'Z'));
    raw
}

/// Sends a batch in the given pieces and takes all its answers.
fn answers(raw: &mut Raw, pieces: &[&[u8]]) -> Vec<Message> {
    for (number, piece) in pieces.iter().enumerate() {
        if number > 0 {
            // The other side shall see the pieces apart; whether it does changes nothing of the answers.
            pause();
        }
        raw.send(piece);
    }
    let mut all = Vec::new();
    while !is_over(&all) {
        match raw.try_next() {
            Ok(Some(message)) => all.push(message),
            Ok(None) => {
                all.push(Message { tag: b'!', body: b"closed".to_vec() });
                return all;
            }
            Err(_) => {
                all.push(Message { tag: b'!', body: b"nothing more comes".to_vec() });
                return all;
            }
        }
    }
    all
}

/// What a client's table holds, in few bytes.
fn rows(raw: &mut Raw, client: u64) -> Vec<u8> {
    let sql = format!("SELECT md5(coalesce(string_agg(t::text, ',' ORDER BY id), '')) FROM t{client} t\0");
    let answers = raw.send(&message(b'Q', &[sql.as_bytes()])).until_ready();
    answers.into_iter().find(|m| m.tag == b'D').expect("a row").body
}

fn shown(messages: &[Message]) -> String {
    let mut text = String::new();
    for m in messages {
        let body: String = String::from_utf8_lossy(&m.body).chars().take(160).collect();
        let _ = writeln!(text, "    {} {body:?}", char::from(m.tag));
    }
    text
}

fn shown_batch(batch: &[Vec<u8>]) -> String {
    let message = |m: &Vec<u8>| Message { tag: m[0], body: m[5..].to_vec() };
    shown(&batch.iter().map(message).collect::<Vec<_>>())
}

/// Leaves an error's severity and SQLSTATE.
fn only_codes(message: &mut Message) {
    if message.tag == b'E' {
        let fields = message.body.split(|b| *b == 0).filter(|field| matches!(field.first(), Some(b'V' | b'C')));
        message.body = fields.collect::<Vec<_>>().concat();
    }
}

/// One client's batches; the first divergence ends it with all that is needed to look into it.
fn converse(
    seed: u64,
    number: u64,
    batches: u64,
    [straight, pooled]: [u16; 2],
    [exact, own_end]: [bool; 2],
) -> Result<(), String> {
    let mut client = if own_end { Client::of_several(seed, number) } else { Client::new(seed, number) };
    let (mut direct, mut through) = (open(straight, "one"), open(pooled, "two"));
    // What the transactions of both have left is looked at from outside.
    let mut outside = [open(straight, "one"), open(straight, "two")];
    let (mut past, mut status): (Vec<String>, u8) = (Vec::new(), b'I');
    for count in 0..batches {
        let batch = client.batch();
        let bytes: Vec<u8> = batch.concat();
        let end = marker();
        let cut = usize::try_from(client.random.below(bytes.len() as u64 + 1)).expect("an index");
        let whole = [bytes.as_slice(), &end].concat();
        let pieces: Vec<&[u8]> = match client.random.below(40) {
            0 => vec![&bytes[..cut], &bytes[cut..], &end],
            1 => vec![&bytes, &end],
            _ => vec![&whole],
        };
        let expected = answers(&mut direct, &pieces);
        let got = answers(&mut through, &pieces);
        let before = status;
        let (mut one, mut other) = match exact {
            true => (expected.clone(), got.clone()),
            false => (forgiven(&expected, &mut status, own_end), forgiven(&got, &mut before.clone(), own_end)),
        };
        if [&expected, &got].iter().all(|a| a.last().is_some_and(|m| m.tag == b'!')) {
            if own_end {
                // In words of its own.
                [&mut one, &mut other].into_iter().for_each(|all| all.iter_mut().for_each(only_codes));
            }
            // A server that closes over what it has not read resets the connection, and its last words may be lost.
            let least = one.len().min(other.len()) - 1;
            one.truncate(least);
            other.truncate(least);
        }
        if one != other {
            let first = one.iter().zip(&other).take_while(|(a, b)| a == b).count();
            let from = past.len().saturating_sub(SHOWN);
            return Err(format!(
                "seed {seed}, client {number}, batch {count}: the answers part at message {first}\n  before:\n{}  sent:\n{}  \
                 PostgreSQL:\n{}  pgmend:\n{}",
                past[from..].join("  --\n"),
                shown_batch(&batch),
                shown(&expected),
                shown(&got)
            ));
        }
        let between = expected.last().is_some_and(|m| m.tag == b'Z' && m.body == b"I");
        if own_end && between {
            let [one, two] = outside.each_mut().map(|raw| rows(raw, number));
            if one != two {
                let from = past.len().saturating_sub(SHOWN);
                return Err(format!(
                    "seed {seed}, client {number}, batch {count}: the rows differ\n  before:\n{}  sent:\n{}  answers:\n{}",
                    past[from..].join("  --\n"),
                    shown_batch(&batch),
                    shown(&expected)
                ));
            }
        }
        client.learn(&expected);
        if expected.last().is_some_and(|m| m.tag == b'!') {
            // PostgreSQL itself has had enough: a Query in the middle of a COPY does that.
            (direct, through) = (open(straight, "one"), open(pooled, "two"));
            status = b'I';
        }
        past.push(shown_batch(&batch));
        if past.len() > 100 {
            past.drain(..90);
        }
    }
    Ok(())
}

fn compare(mode: &str, size: u32, more: &[&str]) {
    let cluster = Cluster::single();
    twins(&cluster, 0);
    let config = Config::of(&cluster);
    compare_on(&cluster, config, mode, size, more);
}

/// The twin is on two nodes, which are equal in the end.
fn compare_replicated(mode: &str, more: &[&str]) {
    let cluster = Cluster::equals(2);
    (0..2).for_each(|node| twins(&cluster, node));
    let mut config = Config::of(&cluster);
    config.set("cluster", "backend_clustering_mode = \"native_replication\"");
    config.set("recovery", "recovery_user = \"postgres\"");
    compare_on(&cluster, config, mode, 6, more);
    cluster.must_be_equal("two");
}

/// Two databases alike, one for who speaks to the server itself.
fn twins(cluster: &Cluster, node: usize) {
    cluster.sql(node, "postgres", "CREATE DATABASE one");
    cluster.sql(node, "one", &(0..CLIENTS).map(Client::setup).collect::<String>());
    cluster.sql(node, "postgres", "CREATE DATABASE two TEMPLATE one");
}

fn compare_on(cluster: &Cluster, config: Config, mode: &str, size: u32, more: &[&str]) {
    let mut config = config;
    config.set("pool", &format!("mode = \"{mode}\"")).set("pool", &format!("default_pool_size = {size}"));
    for line in more {
        config.set("pool", line);
    }
    let pgmend = config.start();
    let (seed, batches) = (from_environment("PGMEND_SEED", SEED), from_environment("PGMEND_BATCHES", BATCHES));
    let (straight, pooled) = (cluster.nodes[0].port, pgmend.config.port);
    // Of several nodes none can say for all why the session ends: pgmend says it.
    let own_end = cluster.nodes.len() > 1;
    let exact = mode == "session" && !own_end;
    let talks: Vec<_> = (0..CLIENTS)
        .map(|number| {
            std::thread::spawn(move || converse(seed, number, batches / CLIENTS, [straight, pooled], [exact, own_end]))
        })
        .collect();
    let faults: Vec<String> = talks.into_iter().filter_map(|t| t.join().expect("no panic").err()).collect();
    let log = std::fs::read_to_string(cluster.folder().join("node0.log")).unwrap_or_default();
    for line in log.lines().filter(|l| {
        l.contains("PANIC") || l.contains("terminated by signal") || l.contains("TRAP") || l.contains("Failed process")
    }) {
        eprintln!("the server's log: {line}");
    }
    // A node that is thrown out on the way would not be compared.
    let log = pgmend.log();
    let out: Vec<&str> =
        log.lines().filter(|line| line.contains("node.diverged") || line.contains("is down")).collect();
    let differ = format!("{} clients differ\n{}", faults.len(), faults.join("\n"));
    assert!(out.is_empty(), "nodes were detached:\n{}\n{differ}", out.join("\n"));
    assert!(faults.is_empty(), "{differ}");
}

/// Two clients on one server: who has no unnamed statement does not get the other's.
#[test]
fn an_unnamed_statement_is_nobody_elses() {
    let cluster = Cluster::single();
    let mut config = Config::of(&cluster);
    config.set("pool", "default_pool_size = 1");
    let pgmend = config.start();
    let (mut one, mut other) = (open(pgmend.config.port, "postgres"), open(pgmend.config.port, "postgres"));
    let (end, parse) = (marker(), message(b'P', &[b"\0SELECT 'a secret'\0\0\0"]));
    let use_it = [message(b'B', &[b"\0\0\0\0\0\0\0\0"]), message(b'E', &[b"\0\0\0\0\0"])].concat();
    let nonsense = message(b'B', &[b"\0no such statement\0\0\0\0\0\0\0"]);
    let row = |answers: &[Message]| answers.iter().any(|m| m.tag == b'D');
    assert!(row(&answers(&mut one, &[&[parse, use_it.clone()].concat(), &end])));
    assert!(!row(&answers(&mut other, &[&use_it, &end])));
    // Also when an error makes the server skip what pgmend does about it.
    assert!(row(&answers(&mut one, &[&use_it, &end])));
    let batch = [nonsense, use_it.clone(), message(b'S', &[]), use_it.clone()].concat();
    assert!(!row(&answers(&mut other, &[&batch, &end])));
    assert!(row(&answers(&mut one, &[&use_it, &end])));
}

#[test]
fn random_pipelines_get_postgresqls_answers_in_transaction_pooling() {
    compare("transaction", 2, &[]);
}

#[test]
fn random_pipelines_get_postgresqls_answers_while_statements_are_evicted() {
    compare("transaction", 1, &["max_prepared_statements = 3"]);
}

#[test]
fn random_pipelines_get_postgresqls_answers_in_session_pooling() {
    compare("session", 6, &[]);
}

#[test]
fn random_pipelines_get_postgresqls_answers_from_several_nodes() {
    compare_replicated("transaction", &[]);
}
