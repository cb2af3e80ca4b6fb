//! A client's proof of who it is: asked for as the rules demand, judged by secrets, certificates, or others.

use super::ldap;
use super::pam;
use super::startup::{StartupContext, StartupError, refused, replication};
use crate::auth::{
    Answer, Ask, AuthError, Candidate, ClientCert, Demand, Method, ServerSecret, Shapes, StoredSecret, Subject,
};
use crate::auth::{md5_password, md5_response, scram};
use crate::base::Secret;
use crate::net::Stream;
use crate::server::beside;
use crate::wire::backend;
use crate::wire::startup::Startup;
use crate::wire::{WireError, frame, frontend};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use subtle::ConstantTimeEq;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;

/// Greatest answer to an authentication request, bytes (PostgreSQL's PG_MAX_AUTH_TOKEN_LENGTH).
const MAX_ANSWER: usize = 65_535;
/// Between two looks whether a client that waits for the server is still there.
const LOOK: Duration = Duration::from_secs(1);
/// Derivations at once: each takes a core for milliseconds, and guessers must not take them all from the clients within.
static DERIVATIONS: Semaphore = Semaphore::const_new(2);
/// Questions to the operating system who a user id is, at once; some systems ask a server.
static NAMES: Semaphore = Semaphore::const_new(4);

/// Who logs in, and to what.
#[derive(Clone, Copy)]
struct Who<'a> {
    user: &'a str,
    database: &'a str,
}

/// Asks for the proof that the rules demand. `out` may hold what must go before it.
pub(super) async fn authenticate(
    stream: &mut Stream,
    packet: &Startup,
    out: &mut Vec<u8>,
    ctx: &StartupContext,
) -> Result<ServerSecret, StartupError> {
    let (user, database) = (packet.user.as_str(), packet.database.as_str());
    // Replication of a database is ruled as a session in it is.
    let replication = packet.parameter("replication").is_some_and(|v| v != "database") && replication(packet)?;
    let asks = Ask { tls: stream.is_tls(), peer: stream.peer().address, user, database, roles: &[], replication };
    // Replication of the whole server is of no database.
    let who = Who { user, database: if replication { "postgres" } else { database } };
    let known = if ctx.hba.need_roles_of(&asks) { Box::pin(ask(stream, who, ctx)).await? } else { None };
    let roles = known.as_ref().map_or(&[][..], |(answer, _)| &answer.roles);
    let asks = Ask { roles, ..asks };
    let demand = ctx.hba.decide(&asks);
    if demand.client_cert != ClientCert::Any && !stream.has_client_certificate() {
        return Err(refused("28000", "connection requires a valid client certificate"));
    }
    // Each conversation is boxed: a login has one at most, and the task of every client is as large as the largest.
    let secret = match demand.method {
        Method::Trust | Method::Cert => ctx.secrets.for_servers(user),
        Method::Peer => {
            Box::pin(by_peer(stream, user, demand, roles)).await?;
            ctx.secrets.for_servers(user)
        }
        Method::Password => Box::pin(by_password(stream, who, out, ctx)).await?,
        method @ (Method::Scram | Method::Md5) => {
            let candidate = Box::pin(candidate(stream, who, ctx)).await?;
            match method == Method::Scram || candidate.scram_by_md5() {
                true => Box::pin(by_scram(stream, who, candidate, out, ctx)).await?,
                false => Box::pin(by_md5(stream, who, candidate, out, ctx)).await?,
            }
        }
        Method::Ldap | Method::Pam => Box::pin(by_judge(stream, user, demand, out, ctx)).await?,
        Method::Reject => return Err(no_entry(&asks)),
    };
    if demand.client_cert == ClientCert::VerifyFull {
        check_certificate(stream, user, demand, roles)?;
    }
    Ok(secret)
}

fn no_entry(ask: &Ask<'_>) -> StartupError {
    let host = ask.peer.map_or_else(|| "[local]".to_owned(), |address| address.to_string());
    let encryption = if ask.tls { "SSL encryption" } else { "no encryption" };
    let (user, database) = (ask.user, ask.database);
    let rest = match ask.replication {
        true => format!("replication connection from host \"{host}\", user \"{user}\", {encryption}"),
        false => format!("host \"{host}\", user \"{user}\", database \"{database}\", {encryption}"),
    };
    refused("28000", format!("no pg_hba.conf entry for {rest}"))
}

/// What the server knows of a user; `None` when it is not to be asked.
async fn ask(
    client: &Stream,
    who: Who<'_>,
    ctx: &StartupContext,
) -> Result<Option<(Arc<Answer>, Shapes)>, StartupError> {
    let Some(query) = &ctx.query else { return Ok(None) };
    let answer = tokio::select! {
        biased;
        answer = query.ask(who.user, who.database) => answer,
        () = gone(client) => return Err(io::Error::from(io::ErrorKind::ConnectionAborted).into()),
    };
    match answer {
        Ok(known) => Ok(Some(known)),
        Err(error) => {
            // The same for every name: it tells nothing of who exists.
            tracing::warn!(event = "auth_query.failed", %error);
            Err(refused("08006", "the server could not be asked who may log in (auth_query)"))
        }
    }
}

/// Ends when the client has gone, who gives up his place: the server may be away for long.
pub(super) async fn gone(client: &Stream) {
    while !client.is_read_closed() {
        tokio::time::sleep(LOOK).await;
    }
}

/// A user of a file, or one whom the server knows, or one who looks like somebody.
async fn candidate(client: &Stream, who: Who<'_>, ctx: &StartupContext) -> Result<Candidate, StartupError> {
    let known = if ctx.secrets.lookup(who.user).is_none() { ask(client, who, ctx).await? } else { None };
    let (answer, shapes) = known.unzip();
    Ok(Candidate::new(ctx.secrets.clone(), who.user, answer, shapes.unwrap_or_default()))
}

/// After a failed login of a user of no file: the password may have changed since the server was asked. Unknown users
/// cost the same question.
async fn candidate_anew(who: Who<'_>, ctx: &StartupContext) -> Option<Candidate> {
    let query = ctx.query.as_ref().filter(|_| ctx.secrets.lookup(who.user).is_none())?;
    let (answer, shapes) = query.ask_anew(who.user, who.database).await.ok()?;
    Some(Candidate::new(ctx.secrets.clone(), who.user, Some(answer), shapes))
}

fn check_certificate(stream: &Stream, user: &str, demand: &Demand, roles: &[String]) -> Result<(), StartupError> {
    let names = stream.certificate_names();
    let name = names.as_ref().and_then(|names| match demand.subject {
        Subject::CommonName => names.common_name.as_deref(),
        Subject::DistinguishedName => Some(names.distinguished_name.as_str()),
    });
    match name {
        Some(name) if demand.names(name, user, roles) => Ok(()),
        other => {
            tracing::info!(event = "client.certificate_refused", user, certificate = other.unwrap_or_default());
            Err(refused("28000", format!("certificate authentication failed for user \"{user}\"")))
        }
    }
}

async fn by_peer(stream: &Stream, user: &str, demand: &Demand, roles: &[String]) -> Result<(), StartupError> {
    let failed = || refused("28000", format!("Peer authentication failed for user \"{user}\""));
    let id = stream.peer_user_id().ok_or_else(failed)?;
    let turn = NAMES.acquire().await.map_err(|e| io::Error::other(e.to_string()))?;
    let look = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(id))
    });
    let name = look.await.ok().and_then(Result::ok).flatten().map(|found| found.name);
    match name {
        Some(name) if demand.names(&name, user, roles) => Ok(()),
        other => {
            tracing::info!(event = "client.peer_refused", user, id, peer = other.unwrap_or_default());
            Err(failed())
        }
    }
}

/// Somebody else judges the password: a directory, or the machine's PAM.
async fn by_judge(
    stream: &mut Stream,
    user: &str,
    demand: &Demand,
    out: &mut Vec<u8>,
    ctx: &StartupContext,
) -> Result<ServerSecret, StartupError> {
    let (name, event) = if demand.method == Method::Ldap { ("LDAP", "ldap.failed") } else { ("PAM", "pam.failed") };
    let failed = || refused("28000", format!("{name} authentication failed for user \"{user}\""));
    let password = ask_for_password(stream, out).await?;
    // To a directory it would be an anonymous bind, which succeeds for everybody; with PAM PostgreSQL takes it for none.
    if password.is_empty() {
        return Err(failed());
    }
    let judged = match demand.method {
        Method::Ldap => {
            let settings = demand.ldap.clone().ok_or_else(failed)?;
            ldap::judge(settings, user, &password, ctx).await.map_err(|error| error.to_string())
        }
        _ => {
            let service = demand.pam.service.as_deref().unwrap_or(&ctx.pam_service);
            let (host, use_hostname) = (stream.peer().address, demand.pam.use_hostname);
            let question = pam::Question { service, user, host, use_hostname, password: &password };
            tokio::select! {
                biased;
                judged = pam::judge(question, ctx.aside.as_ref()) => judged.map_err(|error| error.to_string()),
                () = gone(stream) => return Err(io::Error::from(io::ErrorKind::ConnectionAborted).into()),
            }
        }
    };
    match judged {
        Ok(true) => Ok(ServerSecret::Password(password)),
        Ok(false) => Err(failed()),
        Err(error) => {
            tracing::warn!(event, %error);
            Err(failed())
        }
    }
}

async fn ask_for_password(stream: &mut Stream, out: &mut Vec<u8>) -> Result<Secret, StartupError> {
    backend::auth_cleartext(out);
    send(stream, out).await?;
    let body = zeroize::Zeroizing::new(read_answer(stream).await?);
    Ok(Secret::new(frontend::parse_password(&body)?))
}

fn wrong_password(user: &str) -> StartupError {
    refused("28P01", format!("password authentication failed for user \"{user}\""))
}

async fn by_password(
    stream: &mut Stream,
    who: Who<'_>,
    out: &mut Vec<u8>,
    ctx: &StartupContext,
) -> Result<ServerSecret, StartupError> {
    let user = who.user;
    let password = ask_for_password(stream, out).await?;
    if fits(candidate(stream, who, ctx).await?, user, &password).await? {
        return Ok(ServerSecret::Password(password));
    }
    if let Some(anew) = candidate_anew(who, ctx).await
        && fits(anew, user, &password).await?
    {
        return Ok(ServerSecret::Password(password));
    }
    Err(wrong_password(user))
}

/// One derivation for every user, known or not, whatever is stored: the time tells nothing.
async fn fits(candidate: Candidate, user: &str, password: &Secret) -> Result<bool, StartupError> {
    let md5 = md5_password(user, password.expose());
    let md5_fits: Option<bool> = match candidate.stored() {
        Some(StoredSecret::Md5(stored)) => Some(md5.as_bytes().ct_eq(stored.as_bytes()).into()),
        Some(StoredSecret::Plain(_) | StoredSecret::Scram(_)) => None,
        None => Some(false),
    };
    let verifier = verifier_of(candidate).await?;
    let given = password.clone();
    let verifier_fits = derivation(move || verifier.fits_password(given.expose())).await?;
    Ok(md5_fits.unwrap_or(verifier_fits) && !password.is_empty())
}

async fn by_md5(
    stream: &mut Stream,
    who: Who<'_>,
    candidate: Candidate,
    out: &mut Vec<u8>,
    ctx: &StartupContext,
) -> Result<ServerSecret, StartupError> {
    let user = who.user;
    let mut salt = [0u8; 4];
    random(&mut salt)?;
    backend::auth_md5(out, salt);
    send(stream, out).await?;
    let body = read_answer(stream).await?;
    let answer = frontend::parse_password(&body)?;
    if let Some(secret) = md5_fits(&candidate, user, answer, salt) {
        return Ok(secret);
    }
    let anew = candidate_anew(who, ctx).await;
    anew.and_then(|anew| md5_fits(&anew, user, answer, salt)).ok_or_else(|| wrong_password(user))
}

/// The same two hashes for every user, known or not.
fn md5_fits(candidate: &Candidate, user: &str, answer: &str, salt: [u8; 4]) -> Option<ServerSecret> {
    let (known, password) = match candidate.stored() {
        Some(StoredSecret::Plain(password)) => (!password.is_empty(), password.expose()),
        Some(StoredSecret::Md5(_)) => (true, ""),
        Some(StoredSecret::Scram(_)) | None => (false, ""),
    };
    let derived = md5_password(user, password);
    let (stored, secret) = match candidate.stored() {
        Some(StoredSecret::Md5(text)) => (text.clone(), ServerSecret::Md5(text.clone())),
        Some(StoredSecret::Plain(password)) => (derived, ServerSecret::Password(password.clone())),
        Some(StoredSecret::Scram(_)) | None => (derived, ServerSecret::None),
    };
    let fits: bool = md5_response(&stored, salt).as_bytes().ct_eq(answer.as_bytes()).into();
    (fits && known).then_some(secret)
}

async fn by_scram(
    stream: &mut Stream,
    who: Who<'_>,
    candidate: Candidate,
    out: &mut Vec<u8>,
    ctx: &StartupContext,
) -> Result<ServerSecret, StartupError> {
    let user = who.user;
    let failed = |error: AuthError| match error {
        AuthError::WrongPassword => wrong_password(user),
        other => refused("08P01", other.to_string()),
    };
    let mut nonce = [0u8; 18];
    random(&mut nonce)?;
    let verifier = verifier_of(candidate.clone()).await?;
    let (salt, iterations, server_key) = (verifier.salt.clone(), verifier.iterations, verifier.server_key);
    let mut server = scram::Server::new(verifier, stream.tls_server_end_point().map(<[u8]>::to_vec), nonce);
    backend::auth_sasl(out, server.mechanisms());
    send(stream, out).await?;
    let body = read_answer(stream).await?;
    let (mechanism, first) = frontend::parse_sasl_initial(&body)?;
    server.select(mechanism).map_err(failed)?;
    let first = match first {
        Some(first) => first.to_vec(),
        None => {
            // A client may choose first and speak later; the protocol then has an empty challenge.
            backend::auth_sasl_continue(out, b"");
            send(stream, out).await?;
            read_answer(stream).await?
        }
    };
    backend::auth_sasl_continue(out, &server.first(&first).map_err(failed)?);
    send(stream, out).await?;
    let done = match server.last(&read_answer(stream).await?) {
        Err(AuthError::WrongPassword) => {
            // This exchange is bound to the salt that it began with; the next one gets the new secret.
            candidate_anew(who, ctx).await;
            return Err(wrong_password(user));
        }
        done => done.map_err(failed)?,
    };
    // Goes out together with AuthenticationOk.
    backend::auth_sasl_final(out, &done.final_message);
    Ok(match candidate.stored() {
        Some(StoredSecret::Plain(password)) => ServerSecret::Password(password.clone()),
        _ => ServerSecret::ScramKeys { client_key: done.client_key, server_key, salt, iterations },
    })
}

/// The user's verifier or a mock; for everybody at once, or, while verifiers are still being derived, for everybody after
/// a derivation.
async fn verifier_of(candidate: Candidate) -> Result<scram::ScramVerifier, StartupError> {
    if candidate.is_ready() {
        return Ok(candidate.verifier());
    }
    derivation(move || candidate.verifier()).await
}

/// Work of milliseconds, beside the other clients of this thread.
pub(super) async fn derivation<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, StartupError> {
    Ok(beside(&DERIVATIONS, work).await?)
}

fn random(bytes: &mut [u8]) -> Result<(), StartupError> {
    getrandom::fill(bytes).map_err(|e| StartupError::Io(io::Error::other(e.to_string())))
}

/// Sends and empties `out`.
pub(super) async fn send(stream: &mut Stream, out: &mut Vec<u8>) -> Result<(), StartupError> {
    stream.write_all(out).await?;
    stream.flush().await?;
    out.clear();
    Ok(())
}

/// Reads exactly one message, which must be an answer to an authentication request.
async fn read_answer(stream: &mut Stream) -> Result<Vec<u8>, StartupError> {
    let mut header = [0u8; frame::HEADER];
    stream.read_exact(&mut header).await?;
    let frame = frame::peek(&header)?.ok_or(WireError::Format("message is too short"))?;
    let length = frame.total.saturating_sub(frame::HEADER);
    if frame.tag != b'p' {
        let tag = char::from(frame.tag).escape_default();
        return Err(refused("08P01", format!("expected password response, got message type '{tag}'")));
    }
    if length > MAX_ANSWER {
        // As the length field has it, which counts itself and not the tag.
        let told = u32::try_from(frame.total.saturating_sub(1)).unwrap_or(u32::MAX);
        return Err(WireError::Length(told).into());
    }
    let mut body = vec![0u8; length];
    stream.read_exact(&mut body).await?;
    Ok(body)
}
