//! Logins over a real socket pair, with our own server login as the client.

use super::*;
use crate::auth::{Method, StoredSecret, md5_password, scram};
use crate::base::Secret;
use crate::server::login::{Login, ServerError, log_in};
use crate::wire::frontend;
use tokio::net::UnixStream;

fn context(method: Method) -> StartupContext {
    let verifier = scram::ScramVerifier::derive("pw", vec![1; 16], 4096);
    let users = [
        ("plain", StoredSecret::Plain(Secret::new("pw"))),
        ("hashed", StoredSecret::Md5(md5_password("hashed", "pw"))),
        ("scram", StoredSecret::Scram(verifier)),
    ];
    StartupContext {
        tls: None,
        hba: Arc::new(HbaRules::uniform(method)),
        secrets: Arc::new(Secrets::new(users.map(|(u, s)| (u.to_owned(), s)), [3; 32])),
        query: None,
        ldap_tls: None,
        pam_service: "pgmend".into(),
        aside: None,
        login_timeout: Duration::from_secs(20),
        turns: Turns::new(0),
    }
}

/// What the session got, or the client's refusal.
async fn attempt(method: Method, user: &str, password: &str) -> Result<ServerSecret, String> {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let login = Login {
        user: user.into(),
        database: "d".into(),
        secret: ServerSecret::Password(Secret::new(password)),
        parameters: vec![],
        certificate_of: None,
    };
    let client = tokio::spawn(async move { log_in(Stream::Unix(ours), &login).await });
    match accept(Stream::Unix(theirs), &context(method), None).await {
        Ok(Arrival::Session(mut session)) => {
            let mut out = session.unsent;
            backend::ready_for_query(&mut out, b'I');
            session.stream.write_all(&out).await.unwrap();
            client.await.unwrap().map_err(|e| e.to_string())?;
            Ok(session.secret)
        }
        Ok(other) => panic!("{other:?}"),
        Err(StartupError::Refused(told)) => match client.await.unwrap() {
            Err(ServerError::Refused(got)) if got == told => Err(format!("{} {}", got.code, got.message)),
            other => panic!("{other:?}"),
        },
        Err(other) => panic!("{other}"),
    }
}

#[tokio::test]
async fn methods_and_what_they_leave() {
    let password = ServerSecret::Password(Secret::new("pw"));
    for method in [Method::Password, Method::Md5, Method::Scram, Method::Trust] {
        assert_eq!(attempt(method, "plain", "pw").await.as_ref(), Ok(&password), "{method:?}");
    }
    let md5 = ServerSecret::Md5(md5_password("hashed", "pw"));
    assert_eq!(attempt(Method::Md5, "hashed", "pw").await, Ok(md5.clone()));
    assert_eq!(attempt(Method::Trust, "hashed", "x").await, Ok(md5));
    assert_eq!(attempt(Method::Password, "hashed", "pw").await.as_ref(), Ok(&password));
    assert_eq!(attempt(Method::Password, "scram", "pw").await.as_ref(), Ok(&password));
    for method in [Method::Md5, Method::Scram] {
        let got = attempt(method, "scram", "pw").await;
        assert!(matches!(got, Ok(ServerSecret::ScramKeys { iterations: 4096, .. })), "{got:?}");
    }
    assert_eq!(attempt(Method::Trust, "nobody", "x").await, Ok(ServerSecret::None));
}

#[tokio::test]
async fn wrong_and_unknown_fail_alike() {
    for method in [Method::Password, Method::Md5, Method::Scram] {
        for user in ["plain", "nobody"] {
            let words = format!("28P01 password authentication failed for user \"{user}\"");
            assert_eq!(attempt(method, user, "bad").await, Err(words), "{method:?}");
        }
    }
    let words = "28000 no pg_hba.conf entry for host \"[local]\", user \"plain\", database \"d\", no encryption";
    assert_eq!(attempt(Method::Reject, "plain", "pw").await, Err(words.into()));
}

/// Sends bytes, gives the outcome and what came back, or is to go back with the greeting.
async fn raw(bytes: &[u8]) -> (Result<Arrival, StartupError>, Vec<u8>) {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.write_all(bytes).await.unwrap();
    let outcome = accept(Stream::Unix(theirs), &context(Method::Trust), None).await;
    let got = match &outcome {
        Ok(Arrival::Session(new) | Arrival::Replication(new)) => new.unsent.clone(),
        _ => {
            let mut got = vec![0; 1000];
            let n = ours.read(&mut got).await.unwrap();
            got.truncate(n);
            got
        }
    };
    (outcome, got)
}

#[tokio::test]
async fn stuffed_bytes_after_an_encryption_request_are_refused() {
    let (outcome, got) = raw(b"\0\0\0\x08\x04\xd2\x16\x2f\0\0\0\x10\0\x03\0\0user\0u\0\0").await;
    assert!(matches!(outcome, Err(StartupError::Refused(f)) if f.code == "08P01"));
    assert_eq!(got.first(), Some(&b'E'));
}

#[tokio::test]
async fn versions_cancels_and_replication() {
    let (_, got) = raw(b"\0\0\0\x10\0\x03\0\x09user\0u\0\0").await;
    assert_eq!(got, b"v\0\0\0\x0c\0\x03\0\x02\0\0\0\0R\0\0\0\x08\0\0\0\0");
    let (outcome, _) = raw(b"\0\0\0\x10\0\x02\0\0user\0u\0\0").await;
    assert!(matches!(outcome, Err(StartupError::Refused(f)) if f.code == "0A000"));
    let (outcome, _) = raw(b"\0\0\0\x1f\0\x03\0\0user\0u\0replication\0on\0\0").await;
    assert!(matches!(&outcome, Ok(Arrival::Replication(new)) if new.parameters.len() == 1), "{outcome:?}");
    let (outcome, _) = raw(b"\0\0\0\x1f\0\x03\0\0user\0u\0replication\0no\0\0").await;
    assert!(matches!(&outcome, Ok(Arrival::Session(new)) if new.parameters.is_empty()), "{outcome:?}");
    let (outcome, _) = raw(b"\0\0\0\x1f\0\x03\0\0user\0u\0replication\0xx\0\0").await;
    assert!(matches!(&outcome, Err(StartupError::Refused(f)) if f.code == "22023"), "{outcome:?}");
    let (outcome, _) = raw(b"\x7f\0\0\0").await;
    assert!(matches!(outcome, Err(StartupError::Refused(f)) if f.code == "08P01"));
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.write_all(b"\0\0\0\x10\x04\xd2\x16\x2e\0\0\0\x07abcd").await.unwrap();
    let outcome = accept(Stream::Unix(theirs), &context(Method::Trust), None).await;
    assert!(matches!(outcome, Ok(Arrival::Cancel { pid: 7, .. })));
}

#[tokio::test]
async fn a_second_encryption_request_is_refused() {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let client = tokio::spawn(async move {
        let mut answer = [0; 1];
        for request in [b"\0\0\0\x08\x04\xd2\x16\x30", b"\0\0\0\x08\x04\xd2\x16\x2f"] {
            ours.write_all(request).await.unwrap();
            ours.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b"N");
        }
        ours.write_all(b"\0\0\0\x08\x04\xd2\x16\x2f").await.unwrap();
        ours.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"E");
    });
    let outcome = accept(Stream::Unix(theirs), &context(Method::Trust), None).await;
    assert!(matches!(outcome, Err(StartupError::Refused(f)) if f.code == "0A000"));
    client.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_login_is_bounded() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let outcome = accept(Stream::Unix(theirs), &context(Method::Trust), None).await;
    assert!(matches!(outcome, Err(StartupError::Refused(f)) if f.code == "57014"));
    drop(ours);
}

/// Everything that a guesser sees and costs: the daemon's messages with the random parts blanked, and the work it did.
async fn guess(method: Method, secrets: &Arc<Secrets>, user: &str) -> (Vec<(u8, String)>, scram::Work) {
    let ctx = StartupContext { secrets: secrets.clone(), ..context(method) };
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let name = user.to_owned();
    let guesser = tokio::spawn(async move {
        let mut out = Vec::new();
        frontend::startup(&mut out, 0, &[("user", &name), ("database", "d")]);
        let mut seen = Vec::new();
        loop {
            ours.write_all(&out).await.unwrap();
            out.clear();
            let mut head = [0; 5];
            if ours.read_exact(&mut head).await.is_err() {
                return seen;
            }
            let mut body = vec![0; u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize - 4];
            ours.read_exact(&mut body).await.unwrap();
            let text = String::from_utf8_lossy(&body).into_owned();
            match (head[0], body.get(3)) {
                (b'R', Some(3 | 5)) => frontend::password(&mut out, "md500000000000000000000000000000000"),
                (b'R', Some(10)) => frontend::sasl_initial(&mut out, scram::SCRAM_SHA_256, b"n,,n=,r=abc"),
                (b'R', Some(11)) => {
                    let nonce = text[4..].split(',').next().unwrap().to_owned();
                    let proof = format!("c=biws,{nonce},p=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=");
                    frontend::sasl_response(&mut out, proof.as_bytes());
                }
                _ => {}
            }
            // Of random parts only the length may be told.
            let shown = match (head[0], body.get(3)) {
                (b'R', Some(5)) => format!("md5 and {} bytes", body.len() - 4),
                (b'R', Some(11)) => format!("{} bytes, {}", text.len(), text.rsplit(',').next().unwrap()),
                _ => text.replace(&format!("\"{name}\""), "USER"),
            };
            seen.push((head[0], shown));
        }
    });
    let before = scram::work();
    let refused = accept(Stream::Unix(theirs), &ctx, None).await;
    assert!(matches!(&refused, Err(StartupError::Refused(f)) if f.code == "28P01"), "{refused:?}");
    let after = scram::work();
    let work = scram::Work { iterations: after.iterations - before.iterations, hmacs: after.hmacs - before.hmacs };
    (guesser.await.unwrap(), work)
}

#[tokio::test]
async fn a_guesser_cannot_tell_an_unknown_user_from_a_wrong_password() {
    let verifier = scram::ScramVerifier::derive("pw", vec![1; 24], 5000);
    let kinds = [
        StoredSecret::Plain(Secret::new("pw")),
        StoredSecret::Md5(md5_password("known", "pw")),
        StoredSecret::Scram(verifier),
    ];
    for stored in kinds {
        let secrets = Arc::new(Secrets::new([("known".to_owned(), stored.clone())], [3; 32]));
        for method in [Method::Password, Method::Md5, Method::Scram] {
            let known = guess(method, &secrets, "known").await;
            assert_eq!(known, guess(method, &secrets, "nobody").await, "{method:?} {stored:?}");
            let messages = known.0.len();
            let sasl = method == Method::Scram || method == Method::Md5 && matches!(stored, StoredSecret::Scram(_));
            assert_eq!(messages, if sasl { 3 } else { 2 }, "{method:?} {stored:?}");
            // Neither derives anything on this thread: verifiers of plain passwords are made beforehand.
            assert_eq!(known.1.iterations, 0, "{method:?} {stored:?}");
            assert!(known.1.hmacs > 0, "the counter counts");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn logins_wait_for_their_turn_and_are_told_when_it_does_not_come() {
    let ctx = StartupContext { turns: Turns::new(1), ..context(Method::Password) };
    let startup = |out: &mut Vec<u8>| frontend::startup(out, 0, &[("user", "plain"), ("database", "d")]);
    let begin = || {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let ctx = ctx.clone();
        (Stream::Unix(ours), tokio::spawn(async move { accept(Stream::Unix(theirs), &ctx, None).await }))
    };
    // Who says nothing takes nobody's turn.
    let (_silent, _first) = begin();
    let (mut slow, _second) = begin();
    let mut out = Vec::new();
    startup(&mut out);
    slow.write_all(&out).await.unwrap();
    let mut question = [0u8; 9];
    slow.read_exact(&mut question).await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    // The slow one has the turn to the end of its time; then the next is asked.
    let (mut next, _third) = begin();
    next.write_all(&out).await.unwrap();
    let begun = tokio::time::Instant::now();
    next.read_exact(&mut question).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(15), "after {:?}", begun.elapsed());
    // A turn that never comes.
    let _taken = ctx.turns.turns.clone().acquire_owned().await.unwrap();
    let (mut last, outcome) = begin();
    last.write_all(&out).await.unwrap();
    drop(next);
    let Err(StartupError::Refused(fields)) = outcome.await.unwrap() else { panic!("expected a refusal") };
    assert_eq!(fields.code, "53300");
    assert!(fields.message.contains("max_concurrent_logins = 1"), "{fields}");
}
