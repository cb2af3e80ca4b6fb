//! What one transaction costs in the session's core, without IO: the client's batch in, the server's answer out.

// Criterion's macros make functions that cannot carry documentation.
#![allow(missing_docs)]

use criterion::{Criterion, criterion_group, criterion_main};
use pgmend::client::core::{Core, Rules, Statements};
use pgmend::server::{ParamSet, ServerConn};
use pgmend::wire::{backend, frontend};
use std::hint::black_box;

#[path = "../fuzz/idle.rs"]
mod idle;

const SQL: &str = "SELECT abalance FROM pgbench_accounts WHERE aid = $1;";

/// One session between its client and a server.
struct Session {
    core: Core,
    server: ServerConn,
    statements: Statements,
    out: Vec<u8>,
}

impl Session {
    fn new(transaction_pooling: bool) -> Session {
        let statements = Statements::default();
        let rules = Rules {
            transactions: transaction_pooling,
            single_statements: false,
            max_message: 1 << 20,
            max_prepared: 200,
            pool_commands: true,
            share_unnamed: false,
        };
        Session {
            core: Core::new(rules, ParamSet::default(), &statements),
            server: idle::server_conn(),
            statements,
            out: Vec::new(),
        }
    }

    /// What the relay asks of the core for one batch and its answer. Returns the bytes that leave on both sides.
    fn transaction(&mut self, batch: &[u8], answer: &[u8]) -> usize {
        let Session { core, server, statements, out } = self;
        out.clear();
        let front = core.front(batch, false).expect("a batch");
        let alone = core.answer_alone(batch, statements, out).expect("a batch");
        black_box((front, alone));
        let up = core.on_client(batch, server, statements, out).expect("a batch");
        let sent = if up.rewritten { out.len() } else { up.consumed };
        out.clear();
        core.due_fakes(out);
        let down = core.on_server(answer, server, statements, out).expect("an answer");
        assert!(up.consumed == batch.len() && down.consumed == answer.len() && core.is_clean());
        sent + if down.rewritten { out.len() } else { down.consumed }
    }
}

fn frame(out: &mut Vec<u8>, tag: u8, body: &[u8]) {
    backend::raw(out, tag, body);
}

/// Bind of a text parameter, Describe of the portal where asked, Execute, Sync: as libpq sends them.
fn bind_and_execute(statement: &str, describe: bool) -> Vec<u8> {
    let mut out = Vec::new();
    let bind = [b"\0", statement.as_bytes(), b"\0\0\0\0\x01\0\0\0\x05", b"12345", b"\0\x01\0\0"].concat();
    frame(&mut out, b'B', &bind);
    if describe {
        frame(&mut out, b'D', b"P\0");
    }
    frame(&mut out, b'E', b"\0\0\0\0\0");
    frontend::sync(&mut out);
    out
}

fn parse(name: &str) -> Vec<u8> {
    let mut out = Vec::new();
    frontend::parse(&mut out, name.as_bytes(), &[SQL.as_bytes(), b"\0\0\0"].concat());
    out
}

/// A server's answer: these tags, so many rows after the description, then the end.
fn answer(tags: &[u8], rows: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for tag in tags {
        match tag {
            b'T' => {
                backend::row_description_text(&mut out, &["abalance"]);
                (0..rows).for_each(|_| backend::data_row(&mut out, &[Some("12345")]));
            }
            tag => backend::bare(&mut out, *tag),
        }
    }
    backend::command_complete(&mut out, &format!("SELECT {rows}"));
    backend::ready_for_query(&mut out, b'I');
    out
}

fn relay(criterion: &mut Criterion) {
    let mut simple = Vec::new();
    frontend::query(&mut simple, "SELECT abalance FROM pgbench_accounts WHERE aid = 12345;");
    let extended = [parse(""), bind_and_execute("", true)].concat();
    let prepared = bind_and_execute("P_0", true);
    let cases: [(&str, bool, &[u8], Vec<u8>); 6] = [
        ("simple", true, &simple, answer(b"T", 1)),
        ("simple, 1000 rows", true, &simple, answer(b"T", 1000)),
        ("extended, transaction pooling", true, &extended, answer(b"12T", 1)),
        ("extended, session pooling", false, &extended, answer(b"12T", 1)),
        ("prepared, transaction pooling", true, &prepared, answer(b"2T", 1)),
        ("prepared, session pooling", false, &prepared, answer(b"2T", 1)),
    ];
    let mut group = criterion.benchmark_group("relay, one transaction");
    for (name, transaction_pooling, batch, answer) in cases {
        let mut session = Session::new(transaction_pooling);
        if name.starts_with("prepared") {
            let mut first = parse("P_0");
            frontend::sync(&mut first);
            let mut done = Vec::new();
            backend::parse_complete(&mut done);
            backend::ready_for_query(&mut done, b'I');
            session.transaction(&first, &done);
        }
        assert!(session.transaction(batch, &answer) >= batch.len() + answer.len());
        group.bench_function(name, |b| b.iter(|| session.transaction(black_box(batch), black_box(&answer))));
    }
    group.finish();
}

criterion_group!(benches, relay);
criterion_main!(benches);
