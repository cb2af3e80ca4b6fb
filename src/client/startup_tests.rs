//! Logins over a real socket pair, with our own server login as the client.

use super::*;
use crate::base::Secret;
use crate::server::login::{Login, ServerError, log_in};
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
        login_timeout: Duration::from_secs(20),
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
    };
    let client = tokio::spawn(async move { log_in(Stream::Unix(ours), &login).await });
    match accept(Stream::Unix(theirs), &context(method)).await {
        Ok(Arrival::Session(mut session)) => {
            let mut out = Vec::new();
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

/// Sends bytes, gives the outcome and what came back.
async fn raw(bytes: &[u8]) -> (Result<Arrival, StartupError>, Vec<u8>) {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.write_all(bytes).await.unwrap();
    let outcome = accept(Stream::Unix(theirs), &context(Method::Trust)).await;
    let mut got = vec![0; 1000];
    let n = ours.read(&mut got).await.unwrap();
    got.truncate(n);
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
    assert!(matches!(&outcome, Err(StartupError::Refused(f)) if f.code == "0A000"), "{outcome:?}");
    let (outcome, _) = raw(b"\x7f\0\0\0").await;
    assert!(matches!(outcome, Err(StartupError::Refused(f)) if f.code == "08P01"));
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.write_all(b"\0\0\0\x10\x04\xd2\x16\x2e\0\0\0\x07abcd").await.unwrap();
    let outcome = accept(Stream::Unix(theirs), &context(Method::Trust)).await;
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
    let outcome = accept(Stream::Unix(theirs), &context(Method::Trust)).await;
    assert!(matches!(outcome, Err(StartupError::Refused(f)) if f.code == "0A000"));
    client.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_login_is_bounded() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let outcome = accept(Stream::Unix(theirs), &context(Method::Trust)).await;
    assert!(matches!(outcome, Err(StartupError::Refused(f)) if f.code == "57014"));
    drop(ours);
}
