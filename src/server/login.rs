//! Logging in to a node for the data plane: connect, TLS, authentication, until ReadyForQuery.
//!
//! Reads exactly the messages of the login, so nothing is buffered when the stream is handed over. Not cancel safe: a
//! dropped login closes its connection.

use super::derive::beside_for_server;
use super::open::{self, Target, is_worth_another_way, open};
use crate::auth::{AuthError, ServerSecret, md5_password, md5_response, scram};
use crate::cluster::SslMode;
use crate::net::{self, NetError, Stream};
use crate::wire::backend::{self, AuthRequest, ErrorFields};
use crate::wire::{WireError, frame, frontend};
use std::io;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Greatest message that a server may send during login, bytes. Errors and parameters are far smaller.
const MAX_MESSAGE: usize = 64 * 1024;
/// Most ParameterStatus messages that are kept of one login; PostgreSQL 18 sends 15.
const MAX_PARAMETERS: usize = 256;

/// As whom to log in.
#[derive(Clone, Debug, PartialEq)]
pub struct Login {
    /// Role.
    pub user: String,
    /// Database.
    pub database: String,
    /// What the client's login left.
    pub secret: ServerSecret,
    /// Further startup parameters.
    pub parameters: Vec<(String, String)>,
    /// The database's section whose certificate the server is shown; `None`: pgmend's own.
    pub certificate_of: Option<String>,
}

/// A connection that is logged in and idle.
#[derive(Debug)]
pub struct Connected {
    /// The connection; no byte of it is read ahead.
    pub stream: Stream,
    /// What the server reported by ParameterStatus, in its order.
    pub parameters: Vec<(String, String)>,
    /// Process id for CancelRequest.
    pub pid: u32,
    /// Key for CancelRequest.
    pub cancel_key: Vec<u8>,
}

/// A login to a node failed.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// No connection.
    #[error("{0}")]
    Net(#[from] NetError),
    /// The connection broke, or TLS failed.
    #[error("the connection to the server failed: {0}")]
    Io(#[from] io::Error),
    /// The server refused the login, in its words.
    #[error("{0}")]
    Refused(ErrorFields),
    /// Not done in time.
    #[error("the server did not complete the login within {0:?}")]
    Timeout(Duration),
    /// The server broke the protocol.
    #[error("the server broke the protocol: {0}")]
    Wire(#[from] WireError),
    /// The authentication exchange failed on our side.
    #[error("authentication with the server failed: {0}")]
    Auth(#[from] AuthError),
    /// The server asks for a method that needs more than the client's login left.
    #[error("the server asks for {0}, for which the client's login left no usable secret")]
    NoSecret(&'static str),
    /// TLS is required and not configured.
    #[error("sslmode requires TLS, but there is no TLS configuration")]
    NoTls,
}

impl ServerError {
    /// SQLSTATE, when it is the server's refusal.
    pub fn code(&self) -> Option<&str> {
        match self {
            ServerError::Refused(fields) => Some(&fields.code),
            _ => None,
        }
    }

    /// True when the same login may succeed by itself a little later: the node is away, starting, stopping or full.
    pub fn is_passing(&self) -> bool {
        match self {
            ServerError::Refused(fields) => matches!(fields.code.as_str(), "57P03" | "57P01" | "57P02" | "53300"),
            ServerError::Net(error) => !matches!(error, NetError::Tls(_) | NetError::Certificate { .. }),
            ServerError::Io(_) | ServerError::Timeout(_) => true,
            ServerError::Wire(_) | ServerError::Auth(_) | ServerError::NoSecret(_) | ServerError::NoTls => false,
        }
    }

    /// What a client may know of it: no address, no name of a host, no certificate.
    pub fn for_client(&self) -> String {
        match self {
            ServerError::Net(NetError::Tls(_)) | ServerError::NoTls => "no TLS as sslmode demands it".to_owned(),
            ServerError::Net(NetError::ConnectTimeout { timeout_ms, .. }) => {
                format!("it did not answer within {timeout_ms} ms")
            }
            ServerError::Net(NetError::Connect { why, .. }) => format!("it could not be reached: {}", why.kind()),
            ServerError::Net(_) | ServerError::Io(_) => "the connection failed".to_owned(),
            ServerError::Refused(fields) => fields.message.clone(),
            ServerError::Timeout(_) | ServerError::Wire(_) | ServerError::Auth(_) | ServerError::NoSecret(_) => {
                self.to_string()
            }
        }
    }
}

/// Connects and logs in within `timeout`. Protocol 3.0 is asked for: its short cancel key is all that is needed here.
pub async fn connect(target: &Target, login: &Login, timeout: Duration) -> Result<Connected, ServerError> {
    let work = async {
        let (first, other) = target.ways();
        let failed = match attempt(target, first, login, timeout).await {
            Ok(connected) => return Ok(connected),
            Err(failed) => failed,
        };
        match other {
            Some(other) if failed.is_worth(other) => match attempt(target, other, login, timeout).await {
                Ok(connected) => Ok(connected),
                // A rule was found and then refused us: nearer to the goal than the first answer.
                Err(second) if second.error.code().is_some_and(|code| code != open::NO_RULE) => Err(second.error),
                Err(_) => Err(failed.error),
            },
            _ => Err(failed.error),
        }
    };
    tokio::time::timeout(timeout, work).await.unwrap_or(Err(ServerError::Timeout(timeout)))
}

struct Failed {
    error: ServerError,
    tls: bool,
}

impl Failed {
    fn is_worth(&self, other: SslMode) -> bool {
        match &self.error {
            ServerError::Refused(fields) => is_worth_another_way(Some(&fields.code), self.tls, other),
            ServerError::Net(NetError::Tls(_)) => is_worth_another_way(None, true, other),
            _ => false,
        }
    }
}

async fn attempt(target: &Target, way: SslMode, login: &Login, timeout: Duration) -> Result<Connected, Failed> {
    let opening = open(target, way, timeout, login.certificate_of.as_deref());
    let stream = opening.await.map_err(|error| Failed { error, tls: false })?;
    let tls = stream.is_tls();
    log_in(stream, login).await.map_err(|error| match error {
        ServerError::Io(error) if tls => Failed { error: ServerError::Net(net::tls_fault(error)), tls },
        error => Failed { error, tls },
    })
}

/// Sends a CancelRequest and waits until the server has closed the connection, that is, has handled it.
pub async fn send_cancel(target: &Target, pid: u32, key: &[u8], timeout: Duration) -> Result<(), ServerError> {
    let work = async {
        // A cancel request needs no rule of pg_hba.conf, so the first way will do.
        let mut stream = open(target, target.ways().0, timeout, None).await?;
        let mut out = Vec::new();
        frontend::cancel_request(&mut out, pid, key);
        stream.write_all(&out).await?;
        stream.flush().await?;
        let mut rest = [0u8; 256];
        // A reset is as good as an end here: the server has let go of the connection.
        while matches!(stream.read(&mut rest).await, Ok(1..)) {}
        Ok(())
    };
    tokio::time::timeout(timeout, work).await.unwrap_or(Err(ServerError::Timeout(timeout)))
}

/// Logs in on a connection whose TLS question is settled.
pub async fn log_in(mut stream: Stream, login: &Login) -> Result<Connected, ServerError> {
    let mut out = Vec::new();
    let mut parameters = vec![("user", login.user.as_str()), ("database", login.database.as_str())];
    let others = login.parameters.iter().filter(|(name, _)| !matches!(name.as_str(), "user" | "database"));
    parameters.extend(others.map(|(name, value)| (name.as_str(), value.as_str())));
    frontend::startup(&mut out, 0, &parameters);
    stream.write_all(&out).await?;
    stream.flush().await?;
    authenticate(&mut stream, login).await?;
    settle(stream).await
}

async fn authenticate(stream: &mut Stream, login: &Login) -> Result<(), ServerError> {
    let mut exchange: Option<scram::Client> = None;
    // With SCRAM the server must prove itself too, so its Ok counts only after its signature.
    let mut proven = true;
    loop {
        let (tag, body) = read_message(stream).await?;
        let mut out = Vec::new();
        match tag {
            b'R' => match (backend::parse_auth(&body)?, &mut exchange) {
                (AuthRequest::Ok, _) if proven => return Ok(()),
                (AuthRequest::Cleartext, None) => match &login.secret {
                    ServerSecret::Password(password) => frontend::password(&mut out, password.expose()),
                    _ => return Err(ServerError::NoSecret("a clear-text password")),
                },
                (AuthRequest::Md5(salt), None) => {
                    let stored = match &login.secret {
                        ServerSecret::Password(password) => md5_password(&login.user, password.expose()),
                        ServerSecret::Md5(stored) => stored.clone(),
                        _ => return Err(ServerError::NoSecret("md5")),
                    };
                    frontend::password(&mut out, &md5_response(&stored, salt));
                }
                (AuthRequest::Sasl(offered), None) => {
                    let offered: Vec<&str> = offered.iter().map(String::as_str).collect();
                    let mut client = scram_client(stream, &login.secret)?;
                    let mechanism = client.select(&offered)?;
                    frontend::sasl_initial(&mut out, mechanism, &client.first());
                    (exchange, proven) = (Some(client), false);
                }
                (AuthRequest::SaslContinue(data), slot) if slot.is_some() => {
                    let (client, answer) = respond(slot.take(), data).await?;
                    frontend::sasl_response(&mut out, &answer);
                    *slot = Some(client);
                }
                (AuthRequest::SaslFinal(data), Some(client)) => {
                    client.finish(&data)?;
                    proven = true;
                }
                (AuthRequest::Other(_), _) => return Err(ServerError::NoSecret("a method that is not supported")),
                _ => return Err(WireError::Format("authentication request out of order").into()),
            },
            b'E' => return Err(ServerError::Refused(backend::parse_error(&body))),
            b'N' => {}
            other => return Err(WireError::Unexpected(other).into()),
        }
        if !out.is_empty() {
            stream.write_all(&out).await?;
            stream.flush().await?;
        }
    }
}

/// The proof, hashed beside this thread where that takes milliseconds: the server chooses how many.
async fn respond(client: Option<scram::Client>, data: Vec<u8>) -> Result<(scram::Client, Vec<u8>), ServerError> {
    let mut client = client.ok_or(WireError::Format("authentication request out of order"))?;
    if !client.derives() {
        let answer = client.respond(&data)?;
        return Ok((client, answer));
    }
    let work = move || client.respond(&data).map(|answer| (client, answer));
    Ok(beside_for_server(work).await??)
}

fn scram_client(stream: &Stream, secret: &ServerSecret) -> Result<scram::Client, ServerError> {
    let secret = match secret {
        ServerSecret::Password(password) => scram::ClientSecret::Password(password.clone()),
        ServerSecret::ScramKeys { client_key, server_key, .. } => {
            scram::ClientSecret::Keys { client_key: *client_key, server_key: *server_key }
        }
        ServerSecret::None | ServerSecret::Md5(_) => return Err(ServerError::NoSecret("SCRAM-SHA-256")),
    };
    let mut nonce = [0u8; 18];
    getrandom::fill(&mut nonce).map_err(|e| io::Error::other(e.to_string()))?;
    Ok(scram::Client::new(secret, stream.tls_server_end_point().map(<[u8]>::to_vec), nonce))
}

/// Takes what the server reports between AuthenticationOk and ReadyForQuery.
async fn settle(mut stream: Stream) -> Result<Connected, ServerError> {
    let mut parameters: Vec<(String, String)> = Vec::new();
    let (mut pid, mut cancel_key) = (0, Vec::new());
    loop {
        let (tag, body) = read_message(&mut stream).await?;
        match tag {
            b'S' if parameters.len() < MAX_PARAMETERS => {
                let (name, value) = backend::parse_parameter_status(&body)?;
                parameters.push((name.to_owned(), value.to_owned()));
            }
            b'K' => {
                let (number, key) = backend::parse_key_data(&body)?;
                (pid, cancel_key) = (number, key.to_vec());
            }
            b'Z' => return Ok(Connected { stream, parameters, pid, cancel_key }),
            b'E' => return Err(ServerError::Refused(backend::parse_error(&body))),
            b'N' => {}
            other => return Err(WireError::Unexpected(other).into()),
        }
    }
}

/// Reads exactly one message.
async fn read_message(stream: &mut Stream) -> Result<(u8, Vec<u8>), ServerError> {
    let mut header = [0u8; frame::HEADER];
    stream.read_exact(&mut header).await?;
    let length = frame::peek(&header)?.map_or(0, |h| h.total.saturating_sub(frame::HEADER));
    if length > MAX_MESSAGE {
        return Err(WireError::Length(u32::try_from(length).unwrap_or(u32::MAX)).into());
    }
    let mut body = vec![0u8; length];
    stream.read_exact(&mut body).await?;
    let [tag, ..] = header;
    Ok((tag, body))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Secret;
    use tokio::net::UnixStream;

    fn login(secret: ServerSecret) -> Login {
        Login {
            user: "u".into(),
            database: "d".into(),
            secret,
            parameters: vec![("a".into(), "b".into())],
            certificate_of: None,
        }
    }

    /// A server that says `first`, reads one message, and says `then`.
    async fn against(secret: ServerSecret, first: Vec<u8>, then: Vec<u8>) -> (Result<Connected, ServerError>, Vec<u8>) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let server = tokio::spawn(async move {
            let mut startup = vec![0; 4];
            theirs.read_exact(&mut startup).await.unwrap();
            let length = u32::from_be_bytes(startup[..4].try_into().unwrap()) as usize;
            startup.resize(length, 0);
            theirs.read_exact(&mut startup[4..]).await.unwrap();
            theirs.write_all(&first).await.unwrap();
            let mut answer = vec![0; 512];
            let n = theirs.read(&mut answer).await.unwrap_or(0);
            answer.truncate(n);
            let _ = theirs.write_all(&then).await;
            (startup, answer)
        });
        let got = log_in(Stream::Unix(ours), &login(secret)).await;
        let (startup, answer) = server.await.unwrap();
        assert_eq!(&startup[4..], b"\0\x03\0\0user\0u\0database\0d\0a\0b\0\0");
        (got, answer)
    }

    fn accepted() -> Vec<u8> {
        let mut out = Vec::new();
        backend::auth_ok(&mut out);
        backend::parameter_status(&mut out, "server_version", "15.1");
        backend::backend_key_data(&mut out, 42, b"keys");
        backend::ready_for_query(&mut out, b'I');
        out
    }

    #[tokio::test]
    async fn sends_a_clear_password() {
        let mut ask = Vec::new();
        backend::auth_cleartext(&mut ask);
        let (got, answer) = against(ServerSecret::Password(Secret::new("pw")), ask.clone(), accepted()).await;
        let got = got.unwrap();
        assert_eq!(answer, b"p\0\0\0\x07pw\0");
        assert_eq!(got.parameters, [("server_version".to_owned(), "15.1".to_owned())]);
        assert_eq!((got.pid, got.cancel_key.as_slice()), (42, &b"keys"[..]));
        let (got, _) = against(ServerSecret::None, ask, accepted()).await;
        assert!(matches!(got, Err(ServerError::NoSecret(_))));
    }

    #[tokio::test]
    async fn answers_md5_with_password_and_stored_form() {
        let mut ask = Vec::new();
        backend::auth_md5(&mut ask, [1, 2, 3, 4]);
        let (got, one) = against(ServerSecret::Password(Secret::new("pw")), ask.clone(), accepted()).await;
        got.unwrap();
        let (got, two) = against(ServerSecret::Md5(md5_password("u", "pw")), ask, accepted()).await;
        got.unwrap();
        assert_eq!((one.len(), &one), (41, &two));
    }

    #[tokio::test]
    async fn keeps_the_servers_words() {
        let mut no = Vec::new();
        backend::error_response(&mut no, &ErrorFields::fatal("53300", "sorry, too many clients already"));
        let (got, _) = against(ServerSecret::None, no, Vec::new()).await;
        assert!(matches!(got, Err(ServerError::Refused(f)) if f.code == "53300"));
    }

    #[tokio::test]
    async fn a_server_that_skips_its_proof_is_refused() {
        let mut ask = Vec::new();
        backend::auth_sasl(&mut ask, &["SCRAM-SHA-256"]);
        let (got, _) = against(ServerSecret::Password(Secret::new("pw")), ask, accepted()).await;
        assert!(matches!(got, Err(ServerError::Wire(WireError::Format(_)))), "{got:?}");
    }
}
