//! Whether the time of a failed login tells that a user exists: unknown users against wrong passwords, by the real daemon.
//!
//! `cargo bench --bench logins [-- ROUNDS]`; with `cargo test --bench logins` the same on the dev profile. Each round is
//! one login of either kind, in changing order, on one core for both ends. Means are printed of all logins, and of all but
//! the slowest tenth, which is what the machine's other work disturbs; the latter must lie within 5 % of each other.

use pgmend::auth::{ScramVerifier, md5_password};
use pgmend::wire::frontend;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

const ROUNDS: usize = 2000;
const LIMIT: f64 = 0.05;
const KNOWN: &str = "carol";
const UNKNOWN: &str = "nobod";

fn main() -> ExitCode {
    let rounds = std::env::args().find_map(|a| a.parse().ok()).unwrap_or(ROUNDS);
    let own = std::process::id().to_string();
    let pinned = Command::new("taskset").args(["-p", "-c", "0", &own]).stdout(Stdio::null()).status();
    assert!(pinned.is_ok_and(|s| s.success()), "taskset (util-linux) is needed");
    let verifier = ScramVerifier::derive("right", b"sixteen of salt!".to_vec(), 4096).to_string();
    let cases = [
        ("scram-sha-256", "plain secret", "right".to_owned()),
        ("scram-sha-256", "stored verifier", verifier.clone()),
        ("md5", "plain secret", "right".to_owned()),
        ("md5", "stored md5", md5_password(KNOWN, "right")),
        ("md5", "stored verifier", verifier.clone()),
        ("password", "stored verifier", verifier),
    ];
    println!("{rounds} failed logins of each kind, microseconds; trimmed: without the slowest tenth");
    println!(
        "{:<14} {:<16} {:>9} {:>9} {:>8} {:>12} {:>12} {:>8}",
        "method", "secret", "unknown", "wrong", "ratio", "unknown trim", "wrong trim", "ratio"
    );
    let mut worst: f64 = 0.0;
    for (method, kind, secret) in cases {
        // A derivation takes milliseconds, and longer still without optimisation.
        let rounds = if method == "password" { rounds.div_ceil(10) } else { rounds };
        let daemon = Daemon::start(method, &secret);
        let mut times = [Vec::new(), Vec::new()];
        for round in 0..rounds + rounds / 20 {
            for turn in 0..2 {
                let who = (round + turn) % 2;
                let took = failed_login(daemon.port, [UNKNOWN, KNOWN][who]);
                if round >= rounds / 20 {
                    times[who].push(took.as_secs_f64() * 1e6);
                }
            }
        }
        let [unknown, wrong] = times.map(|mut times| {
            times.sort_by(f64::total_cmp);
            let mean = |t: &[f64]| t.iter().sum::<f64>() / t.len() as f64;
            (mean(&times), mean(&times[..times.len() - times.len() / 10]))
        });
        let (ratio, trimmed) = (unknown.0 / wrong.0, unknown.1 / wrong.1);
        println!(
            "{method:<14} {kind:<16} {:>9.1} {:>9.1} {ratio:>8.3} {:>12.1} {:>12.1} {trimmed:>8.3}",
            unknown.0, wrong.0, unknown.1, wrong.1
        );
        worst = worst.max((trimmed - 1.0).abs());
    }
    println!("largest difference of trimmed means: {:.1} % (limit {:.0} %)", worst * 100.0, LIMIT * 100.0);
    if worst <= LIMIT { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A daemon with one user. Logins fail before a server would be needed, so there is none.
struct Daemon {
    child: Child,
    port: u16,
    _folder: tempfile::TempDir,
}

impl Daemon {
    fn start(method: &str, secret: &str) -> Daemon {
        let folder = tempfile::tempdir().expect("a folder");
        let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).expect("a file");
        write("userlist.txt", &format!("\"{KNOWN}\" \"{secret}\"\n"));
        write("pgmend.toml", &configuration(folder.path(), port, method));
        let child = Command::new("taskset")
            .args(["-c", "0", env!("CARGO_BIN_EXE_pgmend"), "run"])
            .arg(folder.path().join("pgmend.toml"))
            .stderr(Stdio::null())
            .spawn()
            .expect("the daemon starts");
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(20), "the daemon does not listen");
            std::thread::yield_now();
        }
        Daemon { child, port, _folder: folder }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn configuration(folder: &Path, port: u16, method: &str) -> String {
    let at = folder.display();
    format!(
        "[listen]\naddresses = [\"127.0.0.1\"]\nport = {port}\nunix_socket_directories = []\n\
         [[node]]\nhost = \"127.0.0.1\"\nport = 1\n[auth]\nmethod = \"{method}\"\nuserlist_file = \"userlist.txt\"\n\
         [health]\nhealth_check_period = \"3600s\"\n[admin]\nsocket = \"{at}/pgmend.sock\"\n\
         [state]\ndirectory = \"{at}/state\"\n[log]\nlevel = \"error\"\n"
    )
}

/// One login as a guesser does it, with a proof that costs nothing: from the connection to the close.
fn failed_login(port: u16, user: &str) -> Duration {
    let begun = Instant::now();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("a connection");
    let mut out = Vec::new();
    frontend::startup(&mut out, 0, &[("user", user), ("database", "d")]);
    loop {
        stream.write_all(&out).expect("the daemon reads");
        out.clear();
        let mut head = [0; 5];
        stream.read_exact(&mut head).expect("an answer");
        let mut body = vec![0; u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize - 4];
        stream.read_exact(&mut body).expect("the whole answer");
        match (head[0], body.get(3)) {
            (b'R', Some(3)) => frontend::password(&mut out, "wrong"),
            (b'R', Some(5)) => frontend::password(&mut out, "md500000000000000000000000000000000"),
            (b'R', Some(10)) => frontend::sasl_initial(&mut out, "SCRAM-SHA-256", b"n,,n=,r=abcdefghijklmnopqrstuvwx"),
            (b'R', Some(11)) => {
                let text = String::from_utf8_lossy(&body[4..]);
                let nonce = text.split(',').next().unwrap_or_default();
                let proof = format!("c=biws,{nonce},p=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=");
                frontend::sasl_response(&mut out, proof.as_bytes());
            }
            (b'E', _) => break,
            other => panic!("unexpected answer {other:?}"),
        }
    }
    assert_eq!(stream.read(&mut [0; 1]).expect("an end"), 0, "nothing after the error");
    begun.elapsed()
}
