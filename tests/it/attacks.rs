//! What a hostile client sends before it has logged in: each is refused as it should be, and the daemon goes on.

use crate::support::process::wait_until;
use crate::support::raw::Message;
use crate::support::{Cluster, Config, Pgmend, Raw, as_postgres, run};
use pgmend::auth::scram::{Client, ClientSecret};
use pgmend::base::Secret;
use pgmend::wire::frontend;
use std::time::Duration;

/// A daemon that asks `app` (password `secret`) for SCRAM. A login takes 5 seconds at most.
fn guarded(tls: bool) -> (Cluster, Pgmend) {
    let cluster = Cluster::scram();
    let mut config = Config::of(&cluster);
    config.scram().set("auth", "authentication_timeout = \"5s\"");
    if tls {
        config.tls();
    }
    let pgmend = config.start();
    (cluster, pgmend)
}

#[track_caller]
fn still_serves(pgmend: &Pgmend) {
    let mut raw = Raw::connect(pgmend.config.port);
    log_in(&mut raw, [7; 18]).expect("a good login still works");
    assert!(raw.until_ready().iter().any(|m| m.tag == b'K'));
    assert!(!pgmend.log().contains("panic"), "{}", pgmend.log());
}

/// Starts a login and picks SCRAM; gives the server's first message.
#[track_caller]
fn until_challenge(raw: &mut Raw, client: &Client) -> Message {
    raw.start(0, &[("user", "app"), ("database", "app")]);
    assert_eq!(raw.message().auth(), Some(10));
    raw.say(|out| frontend::sasl_initial(out, "SCRAM-SHA-256", &client.first())).message()
}

fn client(nonce: [u8; 18]) -> Client {
    let mut client = Client::new(ClientSecret::Password(Secret::new("secret")), None, nonce);
    client.select(&["SCRAM-SHA-256"]).expect("it is offered");
    client
}

/// A whole login; gives the final message that proved it.
fn log_in(raw: &mut Raw, nonce: [u8; 18]) -> Result<Vec<u8>, Message> {
    let mut client = client(nonce);
    let challenge = until_challenge(raw, &client);
    let proof = client.respond(&challenge.body[4..]).expect("a challenge");
    let answer = raw.say(|out| frontend::sasl_response(out, &proof)).message();
    if answer.auth_or_none() != Some(12) {
        return Err(answer);
    }
    client.finish(&answer.body[4..]).expect("the daemon proves itself");
    assert_eq!(raw.message().auth(), Some(0));
    Ok(proof)
}

impl Message {
    fn auth_or_none(&self) -> Option<u8> {
        (self.tag == b'R').then(|| self.auth()).flatten()
    }
}

/// The answer of a client that does not know the password, right in its form.
fn wrong_proof(challenge: &Message) -> Vec<u8> {
    let text = String::from_utf8_lossy(&challenge.body[4..]).into_owned();
    let nonce = text.split(',').next().expect("a nonce");
    format!("c=biws,{nonce},p=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=").into_bytes()
}

fn packet(body: &[u8]) -> Vec<u8> {
    [&(body.len() as u32 + 4).to_be_bytes()[..], body].concat()
}

#[test]
fn malformed_first_packets_are_refused() {
    let (_cluster, pgmend) = guarded(false);
    let long = "u".repeat(9_960);
    let parameters = |count: u32| -> Vec<u8> { (0..count).flat_map(|n| format!("_{n}\0\0").into_bytes()).collect() };
    let (many, few) = (parameters(1_800), parameters(1_300));
    let bytes: Vec<(&str, Vec<u8>, &str)> = vec![
        ("zero length", b"\0\0\0\0".to_vec(), "08P01"),
        ("shorter than itself", b"\0\0\0\x03".to_vec(), "08P01"),
        ("no room for a version", b"\0\0\0\x07\0\x03\0".to_vec(), "08P01"),
        ("one byte too long", [&10_001u32.to_be_bytes()[..], &[0; 9_997]].concat(), "08P01"),
        ("two gigabytes", b"\x7f\xff\xff\xff\0\x03\0\0".to_vec(), "08P01"),
        ("four gigabytes", b"\xff\xff\xff\xff\0\x03\0\0".to_vec(), "08P01"),
        ("a web browser", b"GET / HTTP/1.1\r\nHost: db\r\n\r\n".to_vec(), "08P01"),
        ("a secure shell", b"SSH-2.0-OpenSSH_9.2\r\n".to_vec(), "08P01"),
        ("a query at once", b"Q\0\0\0\x0dSELECT 1\0".to_vec(), "08P01"),
        ("protocol 2", packet(b"\0\x02\0\0app\0"), "0A000"),
        ("protocol 4", packet(b"\0\x04\0\0user\0app\0\0"), "0A000"),
        ("no parameters", packet(b"\0\x03\0\0"), "08P01"),
        ("no user", packet(b"\0\x03\0\0database\0app\0\0"), "28000"),
        ("an empty user", packet(b"\0\x03\0\0user\0\0\0"), "28000"),
        ("no value", packet(b"\0\x03\0\0user\0"), "08P01"),
        ("no end", packet(b"\0\x03\0\0user\0app\0"), "08P01"),
        ("bytes after the end", packet(b"\0\x03\0\0user\0app\0\0user\0postgres\0\0"), "08P01"),
        ("not UTF-8", packet(b"\0\x03\0\0user\0\xff\xfe\0\0"), "08P01"),
        ("TLS with a body", packet(b"\x04\xd2\x16\x2fx"), "08P01"),
        ("a cancel without a key", packet(b"\x04\xd2\x16\x2e\0\0\0\x07"), "08P01"),
        ("a cancel with a long key", packet(&[b"\x04\xd2\x16\x2e\0\0\0\x07", &[7; 257][..]].concat()), "08P01"),
        ("an unknown request", packet(b"\x04\xd2\x16\x31"), "0A000"),
        ("a physical replica", packet(b"\0\x03\0\0user\0app\0replication\0true\0\0"), ""),
        ("a logical replica", packet(b"\0\x03\0\0user\0app\0replication\0database\0\0"), ""),
        ("neither of them", packet(b"\0\x03\0\0user\0app\0replication\0maybe\0\0"), "22023"),
        ("a long name", packet(format!("\0\x03\0\0user\0{long}\0\0").as_bytes()), ""),
        ("many parameters", packet(&[b"\0\x03\0\0user\0app\0", many.as_slice(), b"\0"].concat()), "08P01"),
        ("many parameters, short", packet(&[b"\0\x03\0\0user\0app\0", few.as_slice(), b"\0"].concat()), ""),
    ];
    for (what, bytes, code) in bytes {
        let mut raw = Raw::connect(pgmend.config.port);
        let answer = raw.send(&bytes).message();
        if code.is_empty() {
            // Allowed so far: it is asked for its password.
            assert_eq!(answer.auth_or_none(), Some(10), "{what}");
        } else {
            assert_eq!(answer.error().0, code, "{what}: {:?}", answer.error());
            raw.must_end();
        }
    }
    // TLS from the first byte where there is none, and a packet that never ends: closed without a word.
    Raw::connect(pgmend.config.port).send(b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03").must_end();
    still_serves(&pgmend);
}

#[test]
fn malformed_answers_to_a_password_request_are_refused() {
    let (_cluster, pgmend) = guarded(false);
    let initial = |mechanism: &str, data: &[u8]| {
        let mut out = Vec::new();
        frontend::sasl_initial(&mut out, mechanism, data);
        out
    };
    let sasl = "SCRAM-SHA-256";
    let nonce = format!("n,,n=,r={}", "x".repeat(5_000));
    for (what, bytes) in [
        ("a query", b"Q\0\0\0\x0dSELECT 1\0".to_vec()),
        ("a length below its own", b"p\0\0\0\x03".to_vec()),
        ("the greatest length", b"p\xff\xff\xff\xff".to_vec()),
        ("a megabyte", b"p\0\x10\0\0".to_vec()),
        ("no mechanism", b"p\0\0\0\x04".to_vec()),
        ("a mechanism without an end", b"p\0\0\0\x08SCRA".to_vec()),
        ("a password instead", b"p\0\0\0\x0bsecret\0".to_vec()),
        ("a length that is not there", b"p\0\0\0\x16SCRAM-SHA-256\0\0\0\x10\0".to_vec()),
        ("a negative length with data", b"p\0\0\0\x17SCRAM-SHA-256\0\xff\xff\xff\xffx".to_vec()),
        ("another mechanism", initial("PLAIN", b"\0app\0secret")),
        ("an older mechanism", initial("SCRAM-SHA-1", b"n,,n=,r=abc")),
        ("channel binding without TLS", initial("SCRAM-SHA-256-PLUS", b"p=tls-server-end-point,,n=,r=abc")),
        ("a binding of another kind", initial(sasl, b"p=tls-unique,,n=,r=abc")),
        ("a binding without PLUS", initial(sasl, b"p=tls-server-end-point,,n=,r=abc")),
        ("another identity", initial(sasl, b"n,a=postgres,n=app,r=abc")),
        ("an extension", initial(sasl, b"n,,m=x,n=,r=abc")),
        ("nothing", initial(sasl, b"")),
        ("an empty nonce", initial(sasl, b"n,,n=,r=")),
        ("a nonce of five thousand bytes", initial(sasl, nonce.as_bytes())),
        ("a nonce with a space", initial(sasl, b"n,,n=,r=a b")),
        ("no text", initial(sasl, b"n,,n=,r=\xff\xfe")),
    ] {
        let mut raw = Raw::connect(pgmend.config.port);
        raw.start(0, &[("user", "app"), ("database", "app")]).message();
        let (code, text) = raw.send(&bytes).message().error();
        assert_eq!(code, "08P01", "{what}: {text}");
        raw.must_end();
    }
    still_serves(&pgmend);
}

#[test]
fn a_proof_serves_once_and_for_its_own_challenge_only() {
    let (_cluster, pgmend) = guarded(false);
    let port = pgmend.config.port;
    let nonce = [9; 18];
    let recorded = log_in(&mut Raw::connect(port), nonce).expect("a good login");
    // The same client messages again: the daemon's part of the nonce is new.
    let mut raw = Raw::connect(port);
    let challenge = until_challenge(&mut raw, &client(nonce));
    let refused = raw.say(|out| frontend::sasl_response(out, &recorded)).message().error();
    assert_eq!(refused, ("08P01".into(), "malformed SCRAM message: nonce does not match".into()));
    raw.must_end();
    // The recorded proof under the new nonce.
    let text = String::from_utf8_lossy(&challenge.body[4..]).into_owned();
    let old = String::from_utf8_lossy(&recorded).into_owned();
    let proof = old.rsplit(",p=").next().expect("a proof");
    for (what, proof, code) in [
        ("recorded", proof, "28P01"),
        ("not base64", "!!!!", "08P01"),
        ("too short", "AAAA", "08P01"),
        ("empty", "", "08P01"),
        ("zeros", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", "28P01"),
    ] {
        let mut raw = Raw::connect(port);
        let challenge = until_challenge(&mut raw, &client(nonce));
        let fresh = String::from_utf8_lossy(&challenge.body[4..]).into_owned();
        assert_ne!(fresh, text, "a nonce is never given twice");
        let nonce = fresh.split(',').next().expect("a nonce");
        let message = format!("c=biws,{nonce},p={proof}");
        let refused = raw.say(|out| frontend::sasl_response(out, message.as_bytes())).message().error();
        assert_eq!(refused.0, code, "{what}: {refused:?}");
        raw.must_end();
    }
    // A good proof with a channel binding that was not agreed on.
    let mut raw = Raw::connect(port);
    let mut good = client(nonce);
    let challenge = until_challenge(&mut raw, &good);
    let proof = String::from_utf8(good.respond(&challenge.body[4..]).expect("a challenge")).expect("text");
    let bent = proof.replacen("c=biws", "c=eSws", 1);
    let refused = raw.say(|out| frontend::sasl_response(out, bent.as_bytes())).message().error();
    assert_eq!(refused, ("08P01".into(), "malformed SCRAM message: channel binding does not match".into()));
    still_serves(&pgmend);
}

#[test]
fn queries_smuggled_in_before_the_login_do_nothing() {
    let (cluster, pgmend) = guarded(false);
    cluster.sql(0, "app", "CREATE TABLE seen (x int); GRANT ALL ON seen TO app");
    // With the startup packet, with the first answer, with a proof that is wrong.
    let mut raw = Raw::connect(pgmend.config.port);
    raw.start(0, &[("user", "app"), ("database", "app")]);
    raw.say(|out| frontend::query(out, "INSERT INTO seen VALUES (1)"));
    assert_eq!(raw.message().auth(), Some(10));
    assert_eq!(raw.message().error().0, "08P01");
    let mut raw = Raw::connect(pgmend.config.port);
    let challenge = until_challenge(&mut raw, &client([5; 18]));
    let text = String::from_utf8_lossy(&challenge.body[4..]).into_owned();
    let wrong =
        format!("c=biws,{},p=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", text.split(',').next().expect("r="));
    raw.say(|out| {
        frontend::sasl_response(out, wrong.as_bytes());
        frontend::query(out, "INSERT INTO seen VALUES (1)");
    });
    assert_eq!(raw.message().error().0, "28P01");
    still_serves(&pgmend);
    assert_eq!(cluster.sql(0, "app", "SELECT count(*) FROM seen"), "0");
}

/// Speaks TLS as a machine in the middle or a careless client would.
const OVER_TLS: &str = r#"
import base64, socket, ssl, struct, sys
port, ca = int(sys.argv[1]), sys.argv[2]
SSL, GSS = struct.pack("!ii", 8, 80877103), struct.pack("!ii", 8, 80877104)
body = struct.pack("!i", 196608) + b"user\0app\0database\0app\0\0"
STARTUP = struct.pack("!i", len(body) + 4) + body
def message(data):
    return b"p" + struct.pack("!i", len(data) + 4) + data
def initial(mechanism, data):
    return message(mechanism + b"\0" + struct.pack("!i", len(data)) + data)
def plain():
    return socket.create_connection(("127.0.0.1", port), 20)
def context(alpn=None):
    c = ssl.create_default_context(cafile=ca)
    if alpn: c.set_alpn_protocols(alpn)
    return c
def everything(s):
    got = b""
    try:
        while part := s.recv(10000):
            got += part
    except (ConnectionResetError, ssl.SSLError):
        pass
    return got
def negotiated():
    s = plain(); s.sendall(SSL); assert s.recv(1) == b"S"
    return context().wrap_socket(s, server_hostname="localhost")

# CVE-2021-23214: bytes that somebody puts behind the request must not be taken for the client's.
for request, answer in [(SSL + STARTUP, b"SSL request"), (SSL + b"\0", b"SSL request"), (GSS + STARTUP, b"GSSAPI encryption request")]:
    s = plain(); s.sendall(request)
    got = everything(s)
    assert got[:1] == b"E" and b"C08P01\0" in got and b"received unencrypted data after " + answer in got, got

# Plain text where the handshake should be: no login, no answer in the protocol.
for instead in [STARTUP, SSL, b"GET / HTTP/1.1\r\n\r\n", b"\0" * 5000]:
    s = plain(); s.sendall(SSL); assert s.recv(1) == b"S"
    s.sendall(instead); s.shutdown(socket.SHUT_WR)
    got = everything(s)
    assert b"R\0\0\0" not in got and (not got or got[:1] == b"\x15"), got

# Direct TLS: only with the name of the protocol.
s = context().wrap_socket(plain(), server_hostname="localhost")
s.sendall(STARTUP)
got = everything(s)
assert got[:1] == b"E" and b"without ALPN" in got, got
try:
    s = context(["http/1.1"]).wrap_socket(plain(), server_hostname="localhost")
    raise SystemExit("another protocol was accepted")
except (ssl.SSLError, ConnectionResetError):
    pass
s = context(["postgresql"]).wrap_socket(plain(), server_hostname="localhost")
s.sendall(STARTUP)
assert b"SCRAM-SHA-256-PLUS" in s.recv(1000)

# A downgrade: PLUS is removed from the list, the client says that it could have.
t = negotiated(); t.sendall(STARTUP); assert b"SCRAM-SHA-256-PLUS" in t.recv(1000)
t.sendall(initial(b"SCRAM-SHA-256", b"y,,n=,r=abc"))
got = everything(t)
assert got[:1] == b"E" and b"thinks that this server does not" in got, got
for mechanism, first in [(b"SCRAM-SHA-256-PLUS", b"n,,n=,r=abc"), (b"SCRAM-SHA-256-PLUS", b"y,,n=,r=abc"),
                         (b"SCRAM-SHA-256-PLUS", b"p=tls-unique,,n=,r=abc"), (b"SCRAM-SHA-256", b"p=tls-server-end-point,,n=,r=abc")]:
    t = negotiated(); t.sendall(STARTUP); t.recv(1000)
    t.sendall(initial(mechanism, first))
    got = everything(t)
    assert got[:1] == b"E" and b"C08P01\0" in got, (mechanism, first, got)

# The binding of another certificate: what a machine in the middle with a certificate of its own would pass on.
t = negotiated(); t.sendall(STARTUP); t.recv(1000)
t.sendall(initial(b"SCRAM-SHA-256-PLUS", b"p=tls-server-end-point,,n=,r=abc"))
nonce = t.recv(1000)[9:].split(b",")[0]
bound = base64.b64encode(b"p=tls-server-end-point,," + b"\7" * 32)
t.sendall(message(b"c=" + bound + b"," + nonce + b",p=" + base64.b64encode(b"\0" * 32)))
got = everything(t)
assert b"channel binding does not match" in got, got

# Old TLS is not spoken.
old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT); old.check_hostname = False; old.verify_mode = ssl.CERT_NONE
import warnings; warnings.simplefilter("ignore")
old.maximum_version = ssl.TLSVersion.TLSv1_1; old.minimum_version = ssl.TLSVersion.TLSv1
s = plain(); s.sendall(SSL); s.recv(1)
try:
    old.wrap_socket(s)
    raise SystemExit("TLS 1.1 was accepted")
except (ssl.SSLError, ConnectionResetError):
    pass
# Half a handshake, then silence: the place is given back by the limit of the login; nobody else waits.
held = [plain() for _ in range(20)]
for s in held:
    s.sendall(SSL); assert s.recv(1) == b"S"; s.sendall(b"\x16\x03\x01\x02\0\x01")
t = negotiated(); t.sendall(STARTUP); assert b"SCRAM" in t.recv(1000)
for s in held:
    everything(s)
"#;

#[test]
fn tls_cannot_be_downgraded_smuggled_into_or_held_open() {
    let (cluster, pgmend) = guarded(true);
    let certificate = cluster.folder().join("server.crt");
    let port = pgmend.config.port.to_string();
    run(as_postgres("/usr/bin/python3").args(["-c", OVER_TLS, &port]).arg(certificate)).must();
    still_serves(&pgmend);
}

#[test]
fn names_cannot_forge_lines_of_the_log() {
    let (_cluster, pgmend) = guarded(false);
    let user = "x\"\n2026-01-01T00:00:00Z ERROR forged: line\r\n\u{1b}[31mred";
    let mut raw = Raw::connect(pgmend.config.port);
    raw.start(0, &[("user", user), ("database", user)]).message();
    let challenge = raw.say(|out| frontend::sasl_initial(out, "SCRAM-SHA-256", b"n,,n=,r=abc")).message();
    let wrong = wrong_proof(&challenge);
    let refused = raw.say(|out| frontend::sasl_response(out, &wrong)).message().error();
    // Whoever gave the name gets it back as it was.
    assert_eq!(refused.1, format!("password authentication failed for user \"{user}\""));
    wait_until("it is logged", Duration::from_secs(5), || pgmend.log().contains("client.login_failed"));
    let log = pgmend.log();
    assert!(!log.lines().any(|line| line.contains("forged") && !line.contains("client.login_failed")), "{log}");
    assert!(!log.contains('\u{1b}'), "{log}");
    still_serves(&pgmend);
}
