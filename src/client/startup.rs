//! From accept to AuthenticationOk: encryption requests, the startup packet, and the client's proof of who it is.
//!
//! Reads exactly the messages of the login, so nothing is buffered when the stream is handed over.

use super::auth_query::AuthQuery;
use super::authenticate::authenticate;
use crate::auth::{HbaRules, Secrets, ServerSecret};
use crate::net::{Stream, TlsAcceptor};
use crate::wire::WireError;
use crate::wire::backend::{self, ErrorFields};
use crate::wire::startup::{self, Packet, Startup};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A refused client that does not read gets this long to take its error.
const FAREWELL: Duration = Duration::from_secs(1);
/// A client for whom there is no room gets this long to say what it wants.
const BEYOND_TIMEOUT: Duration = Duration::from_secs(5);
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
    /// Looks up users of no file at the server; `None`: they do not exist.
    pub query: Option<Arc<AuthQuery>>,
    /// TLS towards LDAP servers; `None`: by the system's authorities.
    pub ldap_tls: Option<Arc<rustls::ClientConfig>>,
    /// PAM's service where no rule names one.
    pub pam_service: Arc<str>,
    /// Where conversations with others than the client run, so that they delay no client; `None`: here.
    pub aside: Option<Handle>,
    /// Bound on the whole login.
    pub login_timeout: Duration,
    /// Turns to log in; the others wait in their order. Who has sent nothing yet needs none.
    pub turns: Arc<Turns>,
}

/// Clients that may log in at once.
#[derive(Debug)]
pub struct Turns {
    turns: Arc<Semaphore>,
    most: usize,
}

impl Turns {
    /// `max_concurrent_logins`; zero = no limit.
    pub fn new(most: usize) -> Arc<Turns> {
        let turns = if most == 0 { Semaphore::MAX_PERMITS } else { most.min(Semaphore::MAX_PERMITS) };
        Arc::new(Turns { turns: Arc::new(Semaphore::new(turns)), most })
    }
}

/// One client's turn.
#[derive(Default)]
struct Turn {
    held: Option<OwnedSemaphorePermit>,
    waits: bool,
}

impl Turn {
    /// Waits for the turn, unless it has come already.
    async fn come(&mut self, turns: &Turns) -> Result<(), StartupError> {
        if self.held.is_none() {
            // Fair all the same: while somebody waits, what is given back is his, and none is to be had at once.
            self.held = turns.turns.clone().try_acquire_owned().ok();
        }
        if self.held.is_none() {
            self.waits = true;
            let turn = Box::pin(turns.turns.clone().acquire_owned());
            self.held = Some(turn.await.map_err(|e| io::Error::other(e.to_string()))?);
            self.waits = false;
        }
        Ok(())
    }
}

/// What a connection turned out to be.
#[derive(Debug)]
pub enum Arrival {
    /// A session.
    Session(NewSession),
    /// A session for replication, physical or of a database. `replication` is among its parameters, which are the server's
    /// business.
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
    /// AuthenticationOk and what goes before it: it leaves together with the greeting, as PostgreSQL has it.
    pub unsent: Vec<u8>,
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

/// Takes a new connection to AuthenticationOk (with NegotiateProtocolVersion before it when needed), which is left to be sent.
/// On failure the client has got its ErrorResponse. Not cancel safe: a dropped login closes the connection.
///
/// `beyond` is `max_client_conn` when it is reached: whoever wants a session is refused as soon as he can understand it.
pub async fn accept(stream: Stream, ctx: &StartupContext, beyond: Option<usize>) -> Result<Arrival, StartupError> {
    let mut slot = Some(stream);
    let limit = if beyond.is_some() { ctx.login_timeout.min(BEYOND_TIMEOUT) } else { ctx.login_timeout };
    let mut turn = Turn::default();
    let outcome = match tokio::time::timeout(limit, arrive(&mut slot, ctx, beyond, &mut turn)).await {
        Ok(outcome) => outcome,
        Err(_) if turn.waits => Err(too_many_logins(ctx.turns.most)),
        Err(_) => Err(refused("57014", "canceling authentication due to timeout")),
    };
    // The farewell is no work that anybody should wait for.
    drop(turn);
    if let (Err(StartupError::Refused(fields)), Some(stream)) = (&outcome, &mut slot) {
        let mut out = Vec::new();
        backend::error_response(&mut out, fields);
        let farewell = async {
            stream.write_all(&out).await?;
            stream.shutdown().await?;
            drain(stream).await
        };
        // The client may be gone already; the login has failed in any case.
        let _ = Box::pin(tokio::time::timeout(FAREWELL, farewell)).await;
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

pub(super) fn refused(code: &str, message: impl Into<String>) -> StartupError {
    StartupError::Refused(ErrorFields::fatal(code, message))
}

/// The stream is in `slot` whenever the client can be told something.
async fn arrive(
    slot: &mut Option<Stream>,
    ctx: &StartupContext,
    beyond: Option<usize>,
    turn: &mut Turn,
) -> Result<Arrival, StartupError> {
    // The first packet's length; with it the packet comes by one read.
    let mut field = [0u8; 4];
    let count = held(slot)?.peek(&mut field).await?;
    let mut length = (count == field.len()).then_some(field);
    match field.first().filter(|_| count > 0) {
        None => return Ok(Arrival::Gone),
        Some(&TLS_HANDSHAKE) => {
            length = None;
            turn.come(&ctx.turns).await?;
            Box::pin(begin_tls(slot, ctx)).await?;
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
        let Some(packet) = read_packet(held(slot)?, length.take()).await? else { return Ok(Arrival::Gone) };
        match packet {
            Packet::Ssl if tls_settled => return Err(WireError::Protocol { major: 1234, minor: 5679 }.into()),
            Packet::Gss if gss_settled => return Err(WireError::Protocol { major: 1234, minor: 5680 }.into()),
            Packet::Ssl => {
                tls_settled = true;
                let stream = held(slot)?;
                nothing_follows(stream, "SSL")?;
                // As PostgreSQL, TLS is not spoken on Unix sockets.
                if ctx.tls.is_some() && matches!(stream, Stream::Tcp(_)) {
                    turn.come(&ctx.turns).await?;
                    held(slot)?.write_all(b"S").await?;
                    Box::pin(begin_tls(slot, ctx)).await?;
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
            Packet::Startup(packet) => {
                return match beyond {
                    Some(limit) => Err(too_many(limit)),
                    None => {
                        turn.come(&ctx.turns).await?;
                        Box::pin(begin_session(slot, packet, ctx)).await
                    }
                };
            }
        }
    }
}

fn too_many(limit: usize) -> StartupError {
    let mut fields = ErrorFields::fatal("53300", format!("no more connections allowed (max_client_conn = {limit})"));
    fields.hint = Some("Close other connections, or raise max_client_conn.".to_owned());
    StartupError::Refused(fields)
}

fn too_many_logins(most: usize) -> StartupError {
    let message = format!("too many clients are logging in at once (max_concurrent_logins = {most})");
    let mut fields = ErrorFields::fatal("53300", message);
    fields.hint = Some("Connect less often, keep connections open, or raise max_concurrent_logins.".to_owned());
    StartupError::Refused(fields)
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

/// Reads exactly one startup packet; `None` when the client closed instead. `seen`: its length field, if that is known, though
/// not read.
async fn read_packet(stream: &mut Stream, seen: Option<[u8; 4]>) -> Result<Option<Packet>, StartupError> {
    let mut field = seen.unwrap_or_default();
    if seen.is_none()
        && let Err(error) = stream.read_exact(&mut field).await
    {
        return if error.kind() == io::ErrorKind::UnexpectedEof { Ok(None) } else { Err(error.into()) };
    }
    let length = startup::body_length(field).map_err(|_| refused("08P01", "invalid length of startup packet"))?;
    let before = if seen.is_some() { field.len() } else { 0 };
    let mut packet = vec![0u8; before + length];
    let count = match stream.recv_at_once(&mut packet) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
        Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
        received => received?,
    };
    stream.read_exact(packet.get_mut(count..).unwrap_or_default()).await?;
    Ok(Some(startup::parse(packet.get(before..).unwrap_or_default())?))
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
    let secret = authenticate(stream, &packet, &mut out, ctx).await?;
    backend::auth_ok(&mut out);
    let minor = packet.negotiated_minor();
    let Startup { user, database, mut parameters, .. } = packet;
    if !replicates {
        parameters.retain(|(name, _)| name != "replication");
    }
    let kind = if replicates { Arrival::Replication } else { Arrival::Session };
    let session = |stream| kind(NewSession { stream, user, database, parameters, minor, secret, unsent: out });
    Ok(slot.take().map_or(Arrival::Gone, session))
}

/// True when the client wants a replication connection: `database`, or one of PostgreSQL's words for true.
pub(super) fn replication(packet: &Startup) -> Result<bool, StartupError> {
    let Some(value) = packet.parameter("replication") else { return Ok(false) };
    match value.to_ascii_lowercase().as_str() {
        "database" | "on" | "true" | "tru" | "tr" | "t" | "yes" | "ye" | "y" | "1" => Ok(true),
        "off" | "of" | "false" | "fals" | "fal" | "fa" | "f" | "no" | "n" | "0" => Ok(false),
        _ => Err(refused("22023", format!("invalid value for parameter \"replication\": \"{value}\""))),
    }
}

#[cfg(test)]
#[path = "startup_tests.rs"]
mod tests;
