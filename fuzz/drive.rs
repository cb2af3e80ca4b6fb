//! What each fuzz target does with its bytes. The targets and the mutator on stable Rust (`tests/mutator.rs`) share it.
//!
//! Each function takes any bytes; a panic or a failed assertion is the finding.

use pgmend::auth::scram::{Client, ClientSecret, Server};
use pgmend::auth::{Ask, HbaRules, ScramVerifier, pool_passwd, userlist};
use pgmend::client::core::{Core, Front, Rules, Statements};
use pgmend::routing::{Catalog, Parsed, Policy};
use pgmend::server::{ParamSet, ServerConn};
use pgmend::wire::{backend, frame, frontend, replies, startup};
use std::cell::RefCell;
use std::path::Path;

#[path = "idle.rs"]
mod idle;

/// A target's name and what it does.
pub type Target = (&'static str, fn(&[u8]));

/// Every target; each has a file of its name in `fuzz_targets/`.
pub const TARGETS: [Target; 10] = [
    ("frames", frames),
    ("startup", first_packet),
    ("pcp", pcp),
    ("replies", reply_queue),
    ("session", session),
    ("scram", scram),
    ("secrets", secrets),
    ("hba", hba),
    ("config", config),
    ("routing", routing),
];

/// Runs one target by its name.
pub fn drive(name: &str, data: &[u8]) {
    let target = TARGETS.iter().find(|(known, _)| *known == name);
    target.unwrap_or_else(|| panic!("no target {name}")).1(data);
}

/// Any bytes as frames, their bodies by every decoder: no decoder claims more than it was given.
fn frames(data: &[u8]) {
    bodies(data);
    let mut rest = data;
    while let Ok(Some(message)) = frame::split(rest) {
        assert_eq!(message.body.len() + message.rest.len() + frame::HEADER, rest.len());
        bodies(message.body);
        rest = message.rest;
    }
}

fn bodies(body: &[u8]) {
    let _ = (backend::parse_auth(body), backend::parse_error(body), backend::parse_parameter_status(body));
    let _ = (backend::parse_key_data(body), frontend::describe_or_close(body), frontend::query_text(body));
    let _ = (frontend::parse_password(body), frontend::parse_sasl_initial(body));
    assert!(frontend::bind(body).map_or(0, |b| b.rest_offset) <= body.len());
    assert!(frontend::parse_names(body).map_or(0, |p| p.query().len()) <= body.len());
}

/// Any bytes as a client's first packet, and what it says of its parameters.
fn first_packet(data: &[u8]) {
    if let Some(field) = data.first_chunk::<4>() {
        let _ = startup::body_length(*field);
    }
    if let Ok(startup::Packet::Startup(s)) = startup::parse(data) {
        assert!(!s.user.is_empty() && !s.database.is_empty() && s.negotiated_minor() != 1);
        let _ = (s.must_negotiate(), s.parameter("options"));
    }
}

/// Any bytes as packets of Pgpool-II's control protocol.
fn pcp(data: &[u8]) {
    let mut rest = data;
    while let Ok(Some(request)) = pgmend::admin::pcp::parse(rest) {
        assert!(request.size > 0 && request.size <= rest.len());
        rest = &rest[request.size..];
    }
}

/// Requests and replies in any order: the counts stay consistent.
fn reply_queue(data: &[u8]) {
    use replies::Expect::*;
    let parse = Parse { forward: true, statement: 1, name: 1 };
    let hidden = Parse { forward: false, statement: 2, name: 0 };
    let requests = [
        Query,
        Function,
        parse,
        hidden,
        FakeParse { name: 2 },
        Bind { statement: 1, name: 1 },
        Describe { name: 1 },
        Execute,
        Close,
        FakeClose { name: 2 },
        Sync,
        CopyEnd,
    ];
    let tags = b"123CDEGHITVZcdnstSAN";
    let mut queue = replies::Replies::new();
    for byte in data {
        let choice = usize::from(byte >> 1);
        if byte & 1 == 0 {
            let _ = queue.push(requests[choice % requests.len()]);
        } else {
            let status = *b"ITE?".get(choice / tags.len()).unwrap_or(&b'I');
            let _ = queue.on_backend(tags[choice % tags.len()], Some(status));
        }
        while queue.take_fake().is_some() {}
        assert!(queue.owes_ready() <= queue.len());
        assert!(!queue.is_quiet() || queue.owes_ready() == 0);
    }
}

/// A session's core between a client and a server that send any bytes in any pieces: it takes no more than it got, and
/// what it forwards as it stands it does not copy. The first byte chooses the pooling; then, piece after piece, one byte
/// says from whom and how long.
fn session(data: &[u8]) {
    // One connection for all inputs: a socket per input would be most of the time.
    thread_local!(static SERVER: RefCell<ServerConn> = RefCell::new(idle::server_conn()));
    SERVER.with_borrow_mut(|server| {
        server.forget_session();
        server.reported.clear();
        server.unnamed_is_ours = false;
        exchange(data, server);
    });
}

/// The pooling by the bits of a byte.
fn rules(mode: u8) -> Rules {
    Rules {
        transactions: mode & 1 == 1,
        single_statements: mode & 3 == 3,
        max_message: 1 << 16,
        max_prepared: 2,
        pool_commands: mode & 4 == 4,
        share_unnamed: mode & 8 == 8,
    }
}

fn exchange(data: &[u8], server: &mut ServerConn) {
    let Some((mode, mut rest)) = data.split_first() else { return };
    let statements = Statements::default();
    let mut core = Core::new(rules(*mode), ParamSet::default(), &statements);
    let (mut up, mut down): (Vec<u8>, Vec<u8>) = (Vec::new(), Vec::new());
    while let Some((say, more)) = rest.split_first() {
        let (piece, more) = more.split_at(usize::from(say >> 1).min(more.len()));
        rest = more;
        let mut out = Vec::new();
        if say & 1 == 0 {
            up.extend_from_slice(piece);
            if core.is_clean() {
                match core.answer_alone(&up, &statements, &mut Vec::new()) {
                    Ok(count) => drop(up.drain(..count)),
                    Err(_) => return,
                }
                match core.front(&up, false) {
                    Ok(Front::Stray(count)) => drop(up.drain(..count)),
                    Ok(_) => {}
                    Err(_) => return,
                }
            }
            let Ok(taken) = core.on_client(&up, server, &statements, &mut out) else { return };
            assert!(taken.consumed <= up.len() && (taken.rewritten || out.is_empty()));
            up.drain(..taken.consumed);
        } else {
            core.due_fakes(&mut out);
            down.extend_from_slice(piece);
            let before = out.len();
            let Ok(taken) = core.on_server(&down, server, &statements, &mut out) else { return };
            assert!(taken.consumed <= down.len());
            assert!(taken.rewritten || out.len() == before);
            assert!(!taken.end || core.is_clean());
            down.drain(..taken.consumed);
        }
    }
}

/// Any bytes as the messages of both sides of a SCRAM login, lines as messages. Nobody gets in without the password.
fn scram(data: &[u8]) {
    let verifier = ScramVerifier { iterations: 1, salt: vec![1; 16], stored_key: [2; 32], server_key: [3; 32] };
    for binding in [None, Some(vec![9; 32])] {
        let mut parts = data.splitn(3, |b| *b == b'\n').map(<[u8]>::to_vec);
        let mechanism = if binding.is_some() { "SCRAM-SHA-256-PLUS" } else { "SCRAM-SHA-256" };
        let mut server = Server::new(verifier.clone(), binding.clone(), [0; 18]);
        assert!(server.select(mechanism).is_ok());
        let _ = server.first(&parts.next().unwrap_or_default());
        assert!(server.last(&parts.next().unwrap_or_default()).is_err());
        let mut client = Client::new(ClientSecret::Keys { client_key: [4; 32], server_key: [5; 32] }, binding, [0; 18]);
        let _ = client.select(&[mechanism]);
        // The client's nonce, which a server extends, is 24 times `A`.
        let _ = client.respond(&[b"r=AAAAAAAAAAAAAAAAAAAAAAAA", data].concat());
        assert!(client.finish(&parts.next().unwrap_or_default()).is_err());
        let _ = client.respond(data);
    }
    let _ = ScramVerifier::parse(&String::from_utf8_lossy(data));
}

/// Any text as a userlist, as a pool_passwd with and without a key, and as an encrypted secret.
fn secrets(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let key = pgmend::base::Secret::new("mykey");
    if let Ok(users) = userlist::parse(&text, "userlist.txt") {
        assert!(users.iter().all(|(user, _)| !user.is_empty()));
    }
    let _ = (pool_passwd::parse(&text, "pool_passwd", None), pool_passwd::parse(&text, "pool_passwd", Some(&key)));
    let _ = pgmend::auth::decrypt_aes(&text, "mykey");
}

/// Any text as SQL: what is sent instead can be read again, and has as many statements and nothing left to rewrite.
fn routing(data: &[u8]) {
    let Ok(parsed) = Parsed::of(&String::from_utf8_lossy(data)) else { return };
    let question = parsed.wants().question();
    assert!(question.is_none_or(|question| Parsed::of(&question).is_ok()), "the catalog's question is SQL");
    let plan = parsed.plan(&Catalog::default(), &Policy::default());
    let verifiers = vec!["SCRAM-SHA-256$x".to_owned(); plan.passwords.len()];
    let sent = plan.with_verifiers(&verifiers);
    let again = Parsed::of(&sent).expect("what is sent can be read").plan(&Catalog::default(), &Policy::default());
    assert_eq!(again.statements.len(), plan.statements.len());
    assert!(again.rewritten.is_none() && again.passwords.is_empty(), "nothing is left to rewrite");
}

/// Any text as rules; whatever it holds, a decision can be made.
fn hba(data: &[u8]) {
    let Ok(rules) = HbaRules::parse(&String::from_utf8_lossy(data), "hba.conf") else { return };
    for peer in [None, Some([127, 0, 0, 1].into()), Some("::1".parse().expect("an address"))] {
        for tls in [false, true] {
            let _ = rules.decide(&Ask { tls, peer, user: "u", database: "d", roles: &[], replication: tls });
        }
    }
}

/// Any text as `pgmend.toml` and `pgpool.conf`, any bytes as an operator's command.
fn config(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Err(errors) = pgmend::config::parse_toml(Path::new("/nowhere/pgmend.toml"), &text) {
        assert!(!errors.0.is_empty() && !errors.to_string().is_empty());
    }
    if let Err(errors) = pgmend::config::parse_pgpool(Path::new("/nowhere/pgpool.conf"), &text) {
        assert!(!errors.0.is_empty() && !errors.to_string().is_empty());
    }
    let _ = serde_json::from_slice::<pgmend::admin::Command>(data);
}
