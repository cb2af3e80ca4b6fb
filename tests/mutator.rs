//! Drives what the fuzz targets drive, with mutated messages and files, on stable Rust, for some seconds: no panic, no bad claim.

#[path = "../fuzz/drive.rs"]
mod drive;

use pgmend::wire::{backend, frontend};
use std::time::{Duration, Instant};

/// How long each target is driven.
const EACH: Duration = Duration::from_millis(400);

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

/// Pieces of a session in transaction pooling, as the target `session` reads them.
fn made_session() -> Vec<u8> {
    let mut client = Vec::new();
    frontend::parse(&mut client, b"s1", b"select $1\0\0\x01\0\0\0\x17");
    backend::raw(&mut client, b'B', b"\0s1\0\0\0\0\0\0\0");
    backend::raw(&mut client, b'E', b"\0\0\0\0\0");
    frontend::sync(&mut client);
    let mut server = Vec::new();
    backend::parse_complete(&mut server);
    backend::bare(&mut server, b'2');
    backend::command_complete(&mut server, "SELECT 1");
    backend::ready_for_query(&mut server, b'I');
    let mut out = vec![1];
    for _ in 0..2 {
        for (from, bytes) in [(0, &client), (1, &server)] {
            out.push(u8::try_from(bytes.len() * 2 + from).expect("a short piece"));
            out.extend_from_slice(bytes);
        }
    }
    out
}

fn text_seeds() -> Vec<Vec<u8>> {
    let texts: [&str; 14] = [
        include_str!("../conf/pgmend.toml"),
        include_str!("../conf/pgmend-minimal.toml"),
        "backend_hostname0 = 'a'\nbackend_port0 = 5433\nbackend_flag0 = 'ALLOW_TO_FAILOVER|ALWAYS_PRIMARY'\npcp_port = 9\n",
        "recovery_timeout = 90s # c\nload_balance_mode on\ninclude 'x'\nbackend_clustering_mode = 'snapshot_isolation'\n",
        "\"a\" \"md5900150983cd24fb0d6963f7d28e17f72\"\n\"b\"\"c\" \"plain\" ; x\n",
        "a:md5900150983cd24fb0d6963f7d28e17f72\nb:AESrKikG1lnoTVl89QqlcBNaA==\nc:TEXTclear\n",
        "host all \"u\",+g 10.0.0.0/8 scram-sha-256 clientcert=verify-full\nlocal d all trust\nhostssl all all ::1 255.0.0.0 md5\n",
        "n,,n=,r=abcdef\nc=biws,r=abcdefAAAAAAAAAAAAAAAAAAAAAAAA,p=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\nv=AAAA",
        "x,s=AQEBAQEBAQEBAQEBAQEBAQ==,i=4096",
        "INSERT INTO t (a, b) VALUES (now(), DEFAULT), ('now', $1) ON CONFLICT (a) DO UPDATE SET b = CURRENT_DATE RETURNING LOCALTIME(3);",
        "WITH q AS (DELETE FROM t RETURNING *) INSERT INTO s AS x SELECT age(a), nextval('s') /* c */ FROM q ORDER BY 1; SELECT now()::date",
        "CREATE ROLE r PASSWORD 'p'; SELECT CASE WHEN a THEN date 'today' ELSE 'now'::timestamp(2) END FROM f(now()) -- x",
        "PREPARE p AS UPDATE t SET (a, b) = (DEFAULT, timetz(1) 'now') WHERE c < ALL (SELECT $$ x $$ || U&'d\\0061t' FROM u LIMIT 1)",
        "{\"command\":\"recover\",\"node\":1,\"overwrite\":true}",
    ];
    texts.into_iter().map(|text| text.as_bytes().to_vec()).collect()
}

#[test]
fn mutated_messages_never_panic() {
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let mut seeds = seeds();
    seeds.push(made_session());
    seeds.extend(text_seeds());
    for (name, target) in drive::TARGETS {
        // A configuration takes a thousand times as long as a message: each target has its own time.
        let end = Instant::now() + EACH;
        let mut rounds = 0;
        while Instant::now() < end {
            let mut bytes = seeds[dice.roll(seeds.len())].clone();
            if dice.roll(3) == 0 {
                bytes.extend_from_slice(&seeds[dice.roll(seeds.len())]);
            }
            dice.mutate(&mut bytes);
            target(&bytes);
            // The same message without its header.
            target(bytes.get(4..).unwrap_or_default());
            target(bytes.get(5..).unwrap_or_default());
            rounds += 3;
        }
        println!("{name}: {rounds}");
    }
}

#[test]
fn every_target_has_its_fuzzer() {
    let manifest = include_str!("../fuzz/Cargo.toml");
    for (name, _) in drive::TARGETS {
        assert!(manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")), "{name}");
        assert!(std::path::Path::new(&format!("fuzz/fuzz_targets/{name}.rs")).exists(), "{name}");
        drive::drive(name, b"");
    }
    assert_eq!(manifest.matches("[[bin]]").count(), drive::TARGETS.len());
}
