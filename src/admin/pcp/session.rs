//! One PCP connection: login, then one request after the other.
//!
//! ```text
//! Stranger { salt: None } --M--> Stranger { salt: Some } --R, right--> Operator --requests--> closed
//!                                         \--R, wrong--> closed
//! ```

use super::commands::{self, Next};
use super::packet::{self, Request, Severity};
use super::{Operator, login};
use crate::admin::Command;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

/// A client that takes no bytes for so long is given up.
const WRITE_LIMIT: Duration = Duration::from_secs(30);

/// Bytes that a client may send ahead while it waits for an answer.
const MAX_BUFFERED: usize = 4 * (packet::MAX_REQUEST + 1);

/// What every session needs.
#[derive(Clone)]
pub(super) struct Context {
    /// The daemon.
    pub operator: Arc<dyn Operator>,
    /// `pcp.conf`.
    pub password_file: Arc<PathBuf>,
    /// The daemon's end.
    pub stop: CancellationToken,
}

/// How far a connection has come.
enum State {
    /// Not logged in; with the salt that was sent to it.
    Stranger { salt: Option<[u8; 4]> },
    /// Logged in under this name.
    Operator { user: String },
}

/// What the session does after a packet of a login.
enum LoginStep {
    Continue(State),
    Close,
}

/// Serves one connection to its end. Not cancel safe: what is being carried out may have been begun.
pub(super) async fn run<S>(stream: S, context: &Context, login_deadline: Instant) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut wire = Wire { stream, buffer: Vec::new() };
    let mut state = State::Stranger { salt: None };
    loop {
        let deadline = matches!(state, State::Stranger { .. }).then_some(login_deadline);
        let request = match wire.next(deadline, &context.stop).await? {
            Incoming::Request(kind, body) => (kind, body),
            Incoming::Gone => return Ok(()),
            Incoming::Refused(message, detail) => return wire.fatal(message, &detail).await,
        };
        state = match (request.0, state) {
            (b'M', _) => wire.send_salt().await?,
            (b'R', state) => match wire.log_in(&request.1, state, context).await? {
                LoginStep::Continue(state) => state,
                LoginStep::Close => return Ok(()),
            },
            // Leaving needs no permission.
            (b'X', _) => return Ok(()),
            (_, State::Stranger { .. }) => {
                return wire.fatal("authentication failed for new PCP connection", "connection not authorized").await;
            }
            (kind, State::Operator { user }) => {
                if !wire.obey(kind, &request.1, &user, context).await? {
                    return Ok(());
                }
                State::Operator { user }
            }
        };
    }
}

/// What came from the client.
enum Incoming {
    /// A request: type and body.
    Request(u8, Vec<u8>),
    /// It closed, or the daemon ends.
    Gone,
    /// It cannot go on: message and detail.
    Refused(&'static str, String),
}

/// The stream and the bytes that were read ahead.
struct Wire<S> {
    stream: S,
    buffer: Vec<u8>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    /// The next request.
    async fn next(&mut self, deadline: Option<Instant>, stop: &CancellationToken) -> io::Result<Incoming> {
        loop {
            match packet::parse(&self.buffer) {
                Ok(Some(Request { kind, body, size })) => {
                    let body = body.to_vec();
                    self.buffer.drain(..size);
                    return Ok(Incoming::Request(kind, body));
                }
                Ok(None) => {}
                Err(error) => return Ok(Incoming::Refused("invalid PCP packet", error.to_string())),
            }
            let far = || Instant::now() + Duration::from_secs(86_400 * 365);
            tokio::select! {
                () = stop.cancelled() => return Ok(Incoming::Gone),
                () = tokio::time::sleep_until(deadline.unwrap_or_else(far)) => {
                    let detail = "no login within the time for it".to_owned();
                    return Ok(Incoming::Refused("authentication failed for new PCP connection", detail));
                }
                read = read_more(&mut self.stream, &mut self.buffer) => if read? == 0 { return Ok(Incoming::Gone) },
            }
        }
    }

    async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let whole = async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        };
        timeout(WRITE_LIMIT, whole).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }

    async fn fatal(&mut self, message: &str, detail: &str) -> io::Result<()> {
        let mut out = Vec::new();
        packet::error(&mut out, Severity::Fatal, message, Some(detail));
        self.send(&out).await
    }

    /// Sends a fresh salt; whoever asks for one must log in (again).
    async fn send_salt(&mut self) -> io::Result<State> {
        let mut salt = [0; 4];
        getrandom::fill(&mut salt).map_err(|e| io::Error::other(e.to_string()))?;
        let mut out = Vec::new();
        packet::salt(&mut out, salt);
        self.send(&out).await?;
        Ok(State::Stranger { salt: Some(salt) })
    }

    async fn log_in(&mut self, body: &[u8], state: State, context: &Context) -> io::Result<LoginStep> {
        let mut words = packet::strings(body).map(|word| String::from_utf8_lossy(word).into_owned());
        let (user, digest) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let fits = match state {
            State::Stranger { salt: Some(salt) } => right_password(context, user.clone(), salt, digest).await,
            // A digest for a salt that was never sent, or was used before, proves nothing.
            State::Stranger { salt: None } | State::Operator { .. } => false,
        };
        if !fits {
            tracing::warn!(user, "PCP: login refused");
            let message = format!("authentication failed for user \"{user}\"");
            self.fatal(&message, "username and/or password does not match").await?;
            return Ok(LoginStep::Close);
        }
        let mut out = Vec::new();
        packet::reply(&mut out, b'r', &["AuthenticationOK"]);
        self.send(&out).await?;
        Ok(LoginStep::Continue(State::Operator { user }))
    }

    /// Carries a request out and answers it. False: the connection is to be closed.
    async fn obey(&mut self, kind: u8, body: &[u8], user: &str, context: &Context) -> io::Result<bool> {
        let mut out = Vec::new();
        let request = Request { kind, body, size: 0 };
        let next = commands::answer(&*context.operator, request, &mut out).await;
        tracing::info!(user, command = %char::from(kind).escape_default(), ?next, "PCP: command");
        if let Next::AwaitJob(id) = next
            && !self.await_job(id, context, &mut out).await?
        {
            return Ok(false);
        }
        let sent = self.send(&out).await;
        if let Next::Stop(mode) = next {
            // The order holds even if its giver did not wait for the answer.
            if let Err(error) = context.operator.run(Command::Stop { mode }).await {
                tracing::error!(%error, "PCP: stop was acknowledged but could not be carried out");
            }
        }
        sent.map(|()| !matches!(next, Next::Close))
    }

    /// Waits for the end of a job. False: the client has gone; the job goes on without it.
    async fn await_job(&mut self, id: u64, context: &Context, out: &mut Vec<u8>) -> io::Result<bool> {
        let mut ended = context.operator.wait_job(id);
        loop {
            // A client that sent its next requests already is read no further, so that the buffer stays small.
            let may_read = self.buffer.len() < MAX_BUFFERED;
            tokio::select! {
                job = &mut ended => {
                    commands::job_ended(job.as_ref(), out);
                    return Ok(true);
                }
                () = context.stop.cancelled() => {
                    let detail = "pgmend ends; its log and the state of the node tell what became of the recovery";
                    packet::error(out, Severity::Fatal, "recovery failed", Some(detail));
                    self.send(out).await?;
                    return Ok(false);
                }
                read = read_more(&mut self.stream, &mut self.buffer), if may_read => if !matches!(read, Ok(1..)) {
                    tracing::info!(job = id, "PCP: the client has gone, its job goes on");
                    return Ok(false);
                }
            }
        }
    }
}

/// Reads what has come, in bounded bites; 0 = the client closed. Cancel safe.
async fn read_more<S: AsyncRead + Unpin>(stream: &mut S, buffer: &mut Vec<u8>) -> io::Result<usize> {
    let mut bite = [0; packet::MAX_REQUEST + 1];
    let count = stream.read(&mut bite).await?;
    buffer.extend_from_slice(bite.get(..count).unwrap_or_default());
    Ok(count)
}

/// Reads the file on a thread that may block.
async fn right_password(context: &Context, user: String, salt: [u8; 4], digest: String) -> bool {
    let file = context.password_file.clone();
    let name = file.display().to_string();
    let checked = tokio::task::spawn_blocking(move || login::check_file(&file, &user, salt, &digest)).await;
    match checked.map_err(io::Error::other).and_then(|result| result) {
        Ok(fits) => fits,
        Err(error) => {
            tracing::warn!(file = name, %error, "PCP: nobody can log in, the password file cannot be read");
            false
        }
    }
}
