//! What it costs to find the frames of an answer: the part of the relay that touches every message.

// Criterion's macros make functions that cannot carry documentation.
#![allow(missing_docs)]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pgmend::wire::frame;
use std::hint::black_box;

/// The answer to one `pgbench -S` transaction in the extended protocol, so many times over.
fn answers(times: usize) -> Vec<u8> {
    let mut one = Vec::new();
    let mut push = |tag: u8, body: &[u8]| {
        one.push(tag);
        one.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
        one.extend_from_slice(body);
    };
    push(b'1', b"");
    push(b'2', b"");
    push(b'T', &[7; 29]);
    push(b'D', &[0, 1, 0, 0, 0, 5, b'1', b'2', b'3', b'4', b'5']);
    push(b'C', b"SELECT 1\0");
    push(b'Z', b"I");
    one.repeat(times)
}

fn walk(mut bytes: &[u8]) -> usize {
    let mut frames = 0;
    while let Ok(Some(header)) = frame::peek(bytes) {
        let Some(rest) = bytes.get(header.total..) else { break };
        bytes = rest;
        frames += usize::from(header.tag != 0);
    }
    frames
}

fn frames(criterion: &mut Criterion) {
    for times in [1, 100] {
        let bytes = answers(times);
        assert_eq!(walk(&bytes), 6 * times);
        let mut group = criterion.benchmark_group("frame::peek");
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_function(format!("{times} answers"), |b| b.iter(|| walk(black_box(&bytes))));
        group.finish();
    }
}

criterion_group!(benches, frames);
criterion_main!(benches);
