//! Drives the parsers that face the network with mutated messages, on stable Rust, for some seconds: no panic, no bad claim.

use pgmend::wire::{backend, frame, frontend, replies, startup};
use std::time::{Duration, Instant};

/// Xorshift: repeatable by its seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap_or(0) % below.max(1)
    }

    fn byte(&mut self) -> u8 {
        const TELLING: &[u8] = &[0, 1, 4, 5, 0x7f, 0x80, 0xff, b'Z', b'E', b'S', b'P'];
        if self.roll(2) == 0 { TELLING[self.roll(TELLING.len())] } else { u8::try_from(self.roll(256)).unwrap() }
    }

    fn mutate(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.roll(4) {
            let at = self.roll(bytes.len() + 1);
            match self.roll(4) {
                0 => bytes.insert(at, self.byte()),
                1 => bytes.truncate(at),
                2 if at < bytes.len() => drop(bytes.remove(at)),
                _ if at < bytes.len() => bytes[at] = self.byte(),
                _ => {}
            }
        }
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let made = |write: &dyn Fn(&mut Vec<u8>)| {
        let mut out = Vec::new();
        write(&mut out);
        out
    };
    vec![
        made(&|o| frontend::parse(o, b"s1", b"select $1\0\0\x01\0\0\0\x17")),
        made(&|o| backend::raw(o, b'B', b"portal\0s1\0\0\0\0\0\0\0")),
        made(&|o| frontend::close(o, b'S', b"s1")),
        made(&|o| frontend::query(o, "select 1")),
        made(&|o| frontend::sasl_initial(o, "SCRAM-SHA-256", b"n,,n=,r=abc")),
        made(&|o| backend::auth_sasl(o, &["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"])),
        made(&|o| backend::error_response(o, &backend::ErrorFields::error("42601", "syntax").with_hint("h"))),
        made(&|o| backend::parameter_status(o, "TimeZone", "UTC")),
        made(&|o| backend::backend_key_data(o, 7, b"keys")),
        made(&|o| backend::ready_for_query(o, b'I')),
        made(&|o| frontend::startup(o, 2, &[("user", "u"), ("database", "d"), ("_pq_.x", "1")])),
        made(&|o| frontend::cancel_request(o, 7, b"keys")),
        made(&|o| backend::raw(o, b'R', b"postgres\0e8a48653851e28c69d0506508fb27fc5\0")),
        made(&|o| backend::raw(o, b'I', b"-1\0")),
    ]
}

fn drive(bytes: &[u8], dice: &mut Dice) {
    // PCP: an outcome of any kind, but no panic.
    let _ = pgmend::admin::pcp::parse(bytes);
    if let Ok(startup::Packet::Startup(s)) = startup::parse(bytes.get(4..).unwrap_or_default()) {
        assert!(!s.user.is_empty() && !s.database.is_empty() && s.negotiated_minor() != 1);
    }
    for body in [bytes, bytes.get(5..).unwrap_or_default()] {
        let _ = (backend::parse_auth(body), backend::parse_error(body), backend::parse_parameter_status(body));
        let _ = (backend::parse_key_data(body), frontend::describe_or_close(body), frontend::query_text(body));
        let _ = (frontend::parse_password(body), frontend::parse_sasl_initial(body));
        assert!(frontend::bind(body).map_or(0, |b| b.rest_offset) <= body.len());
        assert!(frontend::parse_names(body).map_or(0, |p| p.query().len()) <= body.len());
    }
    let mut rest = bytes;
    while let Ok(Some(message)) = frame::split(rest) {
        assert_eq!(message.body.len() + message.rest.len() + frame::HEADER, rest.len());
        rest = message.rest;
    }
    drive_replies(dice);
}

/// Requests and replies in any order: counts stay consistent, nothing panics.
fn drive_replies(dice: &mut Dice) {
    use replies::Expect::*;
    let parse = Parse { forward: true, statement: 1 };
    let requests =
        [Query, Function, parse, FakeParse, Bind { statement: 1 }, Describe, Execute, Close, FakeClose, Sync, CopyEnd];
    let mut queue = replies::Replies::new();
    for _ in 0..dice.roll(24) {
        if dice.roll(2) == 0 {
            let _ = queue.push(requests[dice.roll(requests.len())]);
        } else {
            let tags = b"123CDEGHITVZcdnstSAN";
            let _ = queue.on_backend(tags[dice.roll(tags.len())], Some(b'I'));
        }
        while queue.take_fake().is_some() {}
        assert!(queue.owes_ready() <= queue.len());
        assert!(!queue.is_quiet() || queue.owes_ready() == 0);
    }
}

#[test]
fn mutated_messages_never_panic() {
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let seeds = seeds();
    let end = Instant::now() + Duration::from_secs(3);
    while Instant::now() < end {
        for seed in &seeds {
            let mut bytes = seed.clone();
            if dice.roll(3) == 0 {
                bytes.extend_from_slice(&seeds[dice.roll(seeds.len())]);
            }
            dice.mutate(&mut bytes);
            drive(&bytes, &mut dice);
        }
    }
}
