//! From accept to AuthenticationOk: encryption requests, the startup packet, and the client's proof of who it is.
//!
//! Reads exactly the messages of the login, so nothing is buffered when the stream is handed over.

use crate::auth::{Ask, AuthError, HbaRules, Method, Secrets, ServerSecret, StoredSecret};
use crate::auth::{md5_password, md5_response, scram};
use crate::net::{Peer, Stream, TlsAcceptor};
use crate::wire::backend::{self, ErrorFields};
use crate::wire::startup::{self, Packet, Startup};
use crate::wire::{WireError, frame, frontend};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use subtle::ConstantTimeEq;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;

/// Greatest answer to an authentication request, bytes (PostgreSQL's PG_MAX_AUTH_TOKEN_LENGTH).
const MAX_ANSWER: usize = 65_535;
/// A refused client that does not read gets this long to take its error.
const FAREWELL: Duration = Duration::from_secs(1);
/// Derivations at once: each takes a core for milliseconds, and guessers must not take them all from the clients within.
static DERIVATIONS: Semaphore = Semaphore::const_new(2);
/// Bytes that a refused client may still be sending; the most that fits into sockets, several times over.
const MAX_DRAINED: usize = 16 << 20;
/// First byte of a TLS handshake.
const TLS_HANDSHAKE: u8 = 0x16;

/// What a login needs to know.
#[derive(Clone, Debug)]
pub struct StartupContext {
    /// TLS towards clients; `None` = off.
    pub tls: Option<TlsAcceptor>,
    /// Who may connect how.
    pub hba: Arc<HbaRules>,
    /// Secrets of the users.
    pub secrets: Arc<Secrets>,
    /// Bound on the whole login.
    pub login_timeout: Duration,
}

/// What a connection turned out to be.
#[derive(Debug)]
pub enum Arrival {
    /// A session; AuthenticationOk is sent.
    Session(NewSession),
    /// A session for replication, physical or of a database; AuthenticationOk is sent. `replication` is among its
    /// parameters, which are the server's business.
    Replication(NewSession),
    /// A request to cancel; the caller closes the connection when it is handled.
    Cancel {
        /// Process id given in BackendKeyData.
        pid: u32,
        /// Key given in BackendKeyData.
        key: Vec<u8>,
        /// Held open: the client waits for its end.
        stream: Stream,
    },
    /// It closed without a word.
    Gone,
}

/// A client that has logged in.
#[derive(Debug)]
pub struct NewSession {
    /// The connection; no byte of it is read ahead.
    pub stream: Stream,
    /// Role.
    pub user: String,
    /// Database.
    pub database: String,
    /// All other startup parameters, in the client's order.
    pub parameters: Vec<(String, String)>,
    /// Minor protocol version that is spoken: 0 or 2.
    pub minor: u16,
    /// For logging in to servers.
    pub secret: ServerSecret,
    /// The other end.
    pub peer: Peer,
}

/// A login failed; the client has been told.
#[derive(Debug, thiserror::Error)]
pub enum StartupError {
    /// The connection broke.
    #[error("the connection was lost during login: {0}")]
    Io(#[from] io::Error),
    /// The client was refused.
    #[error("{0}")]
    Refused(ErrorFields),
    /// TLS from the first byte, where it is not offered. Such a client could not read an answer.
    #[error("direct TLS connection, but TLS is not available here")]
    NoTls,
    /// The handshake failed, so there is no way to tell the client more.
    #[error("TLS handshake failed: {0}")]
    Tls(io::Error),
}

impl From<WireError> for StartupError {
    fn from(error: WireError) -> Self {
        let code = match &error {
            WireError::Protocol { .. } => "0A000",
            WireError::NoUser => "28000",
            _ => "08P01",
        };
        refused(code, error.to_string())
    }
}

/// Takes a new connection to AuthenticationOk (with NegotiateProtocolVersion before it when needed). On failure the
/// client has got its ErrorResponse. Not cancel safe: a dropped login closes the connection.
pub async fn accept(stream: Stream, ctx: &StartupContext) -> Result<Arrival, StartupError> {
    let mut slot = Some(stream);
    let outcome = match tokio::time::timeout(ctx.login_timeout, arrive(&mut slot, ctx)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(refused("57014", "canceling authentication due to timeout")),
    };
    if let (Err(StartupError::Refused(fields)), Some(stream)) = (&outcome, &mut slot) {
        let mut out = Vec::new();
        backend::error_response(&mut out, fields);
        let farewell = async {
            stream.write_all(&out).await?;
            stream.shutdown().await?;
            drain(stream).await
        };
        // The client may be gone already; the login has failed in any case.
        let _ = tokio::time::timeout(FAREWELL, farewell).await;
    }
    outcome
}

/// What the client has sent beyond what was read: closing over it would reset the connection, and the client would lose
/// the error that explains it. Ends when the client closes.
async fn drain(stream: &mut Stream) -> io::Result<()> {
    let (mut left, mut scrap) = (MAX_DRAINED, [0u8; 4096]);
    while left > 0 {
        match stream.read(&mut scrap).await? {
            0 => break,
            count => left = left.saturating_sub(count),
        }
    }
    Ok(())
}

fn refused(code: &str, message: impl Into<String>) -> StartupError {
    StartupError::Refused(ErrorFields::fatal(code, message))
}

/// The stream is in `slot` whenever the client can be told something.
async fn arrive(slot: &mut Option<Stream>, ctx: &StartupContext) -> Result<Arrival, StartupError> {
    match held(slot)?.peek_first_byte().await? {
        None => return Ok(Arrival::Gone),
        Some(TLS_HANDSHAKE) => {
            begin_tls(slot, ctx).await?;
            if !held(slot)?.has_postgresql_alpn() {
                return Err(refused(
                    "08P01",
                    "received direct SSL connection request without ALPN protocol negotiation extension",
                ));
            }
        }
        Some(_) => {}
    }
    // Each kind of encryption can be asked for once; within TLS neither can.
    let (mut tls_settled, mut gss_settled) = (held(slot)?.is_tls(), held(slot)?.is_tls());
    loop {
        let Some(packet) = read_packet(held(slot)?).await? else { return Ok(Arrival::Gone) };
        match packet {
            Packet::Ssl if tls_settled => return Err(WireError::Protocol { major: 1234, minor: 5679 }.into()),
            Packet::Gss if gss_settled => return Err(WireError::Protocol { major: 1234, minor: 5680 }.into()),
            Packet::Ssl => {
                tls_settled = true;
                let stream = held(slot)?;
                nothing_follows(stream, "SSL")?;
                // As PostgreSQL, TLS is not spoken on Unix sockets.
                if ctx.tls.is_some() && matches!(stream, Stream::Tcp(_)) {
                    stream.write_all(b"S").await?;
                    begin_tls(slot, ctx).await?;
                    gss_settled = true;
                } else {
                    stream.write_all(b"N").await?;
                }
            }
            Packet::Gss => {
                gss_settled = true;
                nothing_follows(held(slot)?, "GSSAPI encryption")?;
                held(slot)?.write_all(b"N").await?;
            }
            Packet::Cancel { pid, key } => {
                return Ok(slot.take().map_or(Arrival::Gone, |stream| Arrival::Cancel { pid, key, stream }));
            }
            Packet::Startup(packet) => return begin_session(slot, packet, ctx).await,
        }
    }
}

fn held(slot: &mut Option<Stream>) -> Result<&mut Stream, StartupError> {
    slot.as_mut().ok_or_else(|| StartupError::Io(io::ErrorKind::NotConnected.into()))
}

async fn begin_tls(slot: &mut Option<Stream>, ctx: &StartupContext) -> Result<(), StartupError> {
    let Some(acceptor) = ctx.tls.as_ref().filter(|_| matches!(slot, Some(Stream::Tcp(_)))) else {
        *slot = None;
        return Err(StartupError::NoTls);
    };
    if let Some(stream) = slot.take() {
        *slot = Some(acceptor.accept(stream).await.map_err(StartupError::Tls)?);
    }
    Ok(())
}

/// The client must wait for the answer. What is there already was put in by somebody between us (CVE-2021-23214).
fn nothing_follows(stream: &Stream, what: &str) -> Result<(), StartupError> {
    if stream.has_pending_bytes()? {
        let fields = ErrorFields::fatal("08P01", format!("received unencrypted data after {what} request"));
        let detail = "This could be either a client-software bug or evidence of an attempted man-in-the-middle attack.";
        return Err(StartupError::Refused(fields.with_detail(detail)));
    }
    Ok(())
}

/// Reads exactly one startup packet; `None` when the client closed instead.
async fn read_packet(stream: &mut Stream) -> Result<Option<Packet>, StartupError> {
    let mut field = [0u8; 4];
    if let Err(error) = stream.read_exact(&mut field).await {
        return if error.kind() == io::ErrorKind::UnexpectedEof { Ok(None) } else { Err(error.into()) };
    }
    let length = startup::body_length(field).map_err(|_| refused("08P01", "invalid length of startup packet"))?;
    let mut body = vec![0u8; length];
    stream.read_exact(&mut body).await?;
    Ok(Some(startup::parse(&body)?))
}

async fn begin_session(
    slot: &mut Option<Stream>,
    packet: Startup,
    ctx: &StartupContext,
) -> Result<Arrival, StartupError> {
    let stream = held(slot)?;
    let mut out = Vec::new();
    if packet.must_negotiate() {
        backend::negotiate_protocol(&mut out, packet.negotiated_minor(), &packet.unknown_options);
    }
    let replicates = replication(&packet)?;
    let peer = stream.peer();
    let secret = authenticate(stream, &packet, &mut out, ctx).await?;
    backend::auth_ok(&mut out);
    send(stream, &mut out).await?;
    let minor = packet.negotiated_minor();
    let Startup { user, database, mut parameters, .. } = packet;
    if !replicates {
        parameters.retain(|(name, _)| name != "replication");
    }
    let kind = if replicates { Arrival::Replication } else { Arrival::Session };
    let session = |stream| kind(NewSession { stream, user, database, parameters, minor, secret, peer });
    Ok(slot.take().map_or(Arrival::Gone, session))
}

/// True when the client wants a replication connection: `database`, or one of PostgreSQL's words for true.
fn replication(packet: &Startup) -> Result<bool, StartupError> {
    let Some(value) = packet.parameter("replication") else { return Ok(false) };
    match value.to_ascii_lowercase().as_str() {
        "database" | "on" | "true" | "tru" | "tr" | "t" | "yes" | "ye" | "y" | "1" => Ok(true),
        "off" | "of" | "false" | "fals" | "fal" | "fa" | "f" | "no" | "n" | "0" => Ok(false),
        _ => Err(refused("22023", format!("invalid value for parameter \"replication\": \"{value}\""))),
    }
}

/// Asks for the proof that the rules demand. `out` may hold what must go before it.
async fn authenticate(
    stream: &mut Stream,
    packet: &Startup,
    out: &mut Vec<u8>,
    ctx: &StartupContext,
) -> Result<ServerSecret, StartupError> {
    let (user, database) = (packet.user.as_str(), packet.database.as_str());
    let stored = ctx.secrets.lookup(user);
    // Replication of a database is ruled as a session in it is.
    let physical = packet.parameter("replication").is_some_and(|v| v != "database") && replication(packet)?;
    let ask = Ask { tls: stream.is_tls(), peer: stream.peer().address, user, database, replication: physical };
    match (ctx.hba.decide(&ask), stored) {
        (Method::Trust, stored) => Ok(match stored {
            Some(StoredSecret::Plain(password)) => ServerSecret::Password(password.clone()),
            Some(StoredSecret::Md5(text)) => ServerSecret::Md5(text.clone()),
            Some(StoredSecret::Scram(_)) | None => ServerSecret::None,
        }),
        (Method::Password, _) => by_password(stream, user, out, ctx).await,
        (Method::Scram, _) => by_scram(stream, user, out, ctx).await,
        (Method::Md5, _) if ctx.secrets.scram_by_md5(user) => by_scram(stream, user, out, ctx).await,
        (Method::Md5, _) => by_md5(stream, user, out, ctx).await,
        (Method::Reject | Method::Cert, _) => {
            let host = ask.peer.map_or_else(|| "[local]".to_owned(), |address| address.to_string());
            let encryption = if ask.tls { "SSL encryption" } else { "no encryption" };
            let rest = match physical {
                true => format!("replication connection from host \"{host}\", user \"{user}\", {encryption}"),
                false => format!("host \"{host}\", user \"{user}\", database \"{database}\", {encryption}"),
            };
            Err(refused("28000", format!("no pg_hba.conf entry for {rest}")))
        }
    }
}

fn wrong_password(user: &str) -> StartupError {
    refused("28P01", format!("password authentication failed for user \"{user}\""))
}

async fn by_password(
    stream: &mut Stream,
    user: &str,
    out: &mut Vec<u8>,
    ctx: &StartupContext,
) -> Result<ServerSecret, StartupError> {
    backend::auth_cleartext(out);
    send(stream, out).await?;
    let body = read_answer(stream).await?;
    let password = crate::base::Secret::new(frontend::parse_password(&body)?);
    // One derivation for every user, known or not, whatever is stored: the time tells nothing.
    let (verifier, given) = (verifier_of(user, ctx).await?, password.clone());
    let fits_verifier = derivation(move || verifier.fits_password(given.expose())).await?;
    let md5 = md5_password(user, password.expose());
    let fits = match ctx.secrets.lookup(user) {
        Some(StoredSecret::Md5(stored)) => md5.as_bytes().ct_eq(stored.as_bytes()).into(),
        Some(StoredSecret::Plain(_) | StoredSecret::Scram(_)) => fits_verifier,
        None => false,
    };
    if fits && !password.is_empty() { Ok(ServerSecret::Password(password)) } else { Err(wrong_password(user)) }
}

async fn by_md5(
    stream: &mut Stream,
    user: &str,
    out: &mut Vec<u8>,
    ctx: &StartupContext,
) -> Result<ServerSecret, StartupError> {
    let mut salt = [0u8; 4];
    random(&mut salt)?;
    backend::auth_md5(out, salt);
    send(stream, out).await?;
    let body = read_answer(stream).await?;
    let answer = frontend::parse_password(&body)?;
    // The same two hashes for every user, known or not.
    let (known, password) = match ctx.secrets.lookup(user) {
        Some(StoredSecret::Plain(password)) => (!password.is_empty(), password.expose()),
        Some(StoredSecret::Md5(_)) => (true, ""),
        Some(StoredSecret::Scram(_)) | None => (false, ""),
    };
    let derived = md5_password(user, password);
    let (stored, secret) = match ctx.secrets.lookup(user) {
        Some(StoredSecret::Md5(text)) => (text.clone(), ServerSecret::Md5(text.clone())),
        Some(StoredSecret::Plain(password)) => (derived, ServerSecret::Password(password.clone())),
        Some(StoredSecret::Scram(_)) | None => (derived, ServerSecret::None),
    };
    let fits: bool = md5_response(&stored, salt).as_bytes().ct_eq(answer.as_bytes()).into();
    if fits && known { Ok(secret) } else { Err(wrong_password(user)) }
}

async fn by_scram(
    stream: &mut Stream,
    user: &str,
    out: &mut Vec<u8>,
    ctx: &StartupContext,
) -> Result<ServerSecret, StartupError> {
    let failed = |error: AuthError| match error {
        AuthError::WrongPassword => wrong_password(user),
        other => refused("08P01", other.to_string()),
    };
    let mut nonce = [0u8; 18];
    random(&mut nonce)?;
    let verifier = verifier_of(user, ctx).await?;
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
    let done = server.last(&read_answer(stream).await?).map_err(failed)?;
    // Goes out together with AuthenticationOk.
    backend::auth_sasl_final(out, &done.final_message);
    Ok(match ctx.secrets.lookup(user) {
        Some(StoredSecret::Plain(password)) => ServerSecret::Password(password.clone()),
        _ => ServerSecret::ScramKeys { client_key: done.client_key, server_key, salt, iterations },
    })
}

/// The user's verifier or a mock; for everybody at once, or, while verifiers are still being derived, for everybody after
/// a derivation.
async fn verifier_of(user: &str, ctx: &StartupContext) -> Result<scram::ScramVerifier, StartupError> {
    if ctx.secrets.is_ready() {
        return Ok(ctx.secrets.scram_verifier(user));
    }
    let (secrets, user) = (ctx.secrets.clone(), user.to_owned());
    derivation(move || secrets.scram_verifier(&user)).await
}

/// Work of milliseconds, beside the other clients of this thread.
async fn derivation<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, StartupError> {
    let turn = DERIVATIONS.acquire().await.map_err(|e| io::Error::other(e.to_string()))?;
    let done = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        work()
    });
    Ok(done.await.map_err(|e| io::Error::other(e.to_string()))?)
}

fn random(bytes: &mut [u8]) -> Result<(), StartupError> {
    getrandom::fill(bytes).map_err(|e| StartupError::Io(io::Error::other(e.to_string())))
}

/// Sends and empties `out`.
async fn send(stream: &mut Stream, out: &mut Vec<u8>) -> Result<(), StartupError> {
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

#[cfg(test)]
#[path = "startup_tests.rs"]
mod tests;
