//! What one transaction costs in the session's core, without IO: the client's batch in, the server's answer out.

// Criterion's macros make functions that cannot carry documentation.
#![allow(missing_docs)]

use criterion::{Criterion, criterion_group, criterion_main};
use one_session::{Session, answer, batches, prepare};
use std::hint::black_box;

#[path = "../fuzz/idle.rs"]
mod idle;
#[path = "../fuzz/one_session.rs"]
mod one_session;

fn relay(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("relay, one transaction");
    let mut bench = |name: &str, transaction_pooling: bool, batch: &[u8], answer: &[u8]| {
        let mut session = Session::new(transaction_pooling);
        prepare(&mut session);
        assert!(session.transaction(batch, answer) >= batch.len() + answer.len());
        group.bench_function(name, |b| b.iter(|| session.transaction(black_box(batch), black_box(answer))));
    };
    for (name, batch, answer) in batches() {
        bench(&format!("{name}, transaction pooling"), true, &batch, &answer);
        bench(&format!("{name}, session pooling"), false, &batch, &answer);
    }
    let [(_, simple, _), ..] = batches();
    bench("simple, 1000 rows", true, &simple, &answer(b"T", 1000));
    group.finish();
}

criterion_group!(benches, relay);
criterion_main!(benches);
