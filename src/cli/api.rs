//! One command to the daemon: JSON over HTTP over its Unix socket.

use crate::admin::{Command, CommandError, Reply};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;

/// Longest wait for an answer: attach and smart stop take their time; a PAUSE is given its own on top.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
/// Largest answer: fifty jobs with their output fit.
const MAX_ANSWER: usize = 16 << 20;

/// Why there is no reply.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Nobody listens, or this user may not connect.
    #[error("the daemon is not running or cannot be reached at {}: {cause}", .socket.display())]
    NotReachable {
        /// Where it was looked for.
        socket: PathBuf,
        /// The system's words.
        cause: std::io::Error,
    },
    /// The daemon's refusal.
    #[error("{0}")]
    Refused(CommandError),
    /// The conversation broke.
    #[error("the daemon's answer was not understood: {0}")]
    Broken(String),
}

/// Sends a command and waits for its reply. Dropping it leaves the command to the daemon, which goes on with it.
pub async fn send(socket: &Path, command: &Command) -> Result<Reply, CallError> {
    let connecting = UnixStream::connect(socket).await;
    let stream = connecting.map_err(|cause| CallError::NotReachable { socket: socket.to_owned(), cause })?;
    let timeout = match command {
        Command::Pause { timeout_s, .. } => ANSWER_TIMEOUT + Duration::from_secs(*timeout_s),
        _ => ANSWER_TIMEOUT,
    };
    match tokio::time::timeout(timeout, exchange(stream, command)).await {
        Ok(reply) => reply,
        Err(_) => Err(CallError::Broken(format!("there was none within {} s", timeout.as_secs()))),
    }
}

async fn exchange(stream: UnixStream, command: &Command) -> Result<Reply, CallError> {
    let broken = |error: &dyn std::fmt::Display| CallError::Broken(error.to_string());
    let body = serde_json::to_vec(command).map_err(|error| broken(&error))?;
    let request = hyper::Request::post("/api/v1/command")
        .header("host", "localhost")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| broken(&error))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(&error))?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(|error| broken(&error))?;
        let status = response.status();
        let limited = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        let body = limited.map_err(|error| broken(&error))?.to_bytes();
        Ok((status, body))
    };
    // Both are polled here, so that no task outlives the call.
    let mut answer = std::pin::pin!(answer);
    let (status, body) = tokio::select! {
        answer = &mut answer => answer?,
        ended = connection => match ended {
            Ok(()) => answer.await?,
            Err(error) => return Err(broken(&error)),
        },
    };
    understand(status.as_u16(), &body)
}

fn understand(status: u16, body: &[u8]) -> Result<Reply, CallError> {
    if status == 200 {
        return serde_json::from_slice(body).map_err(|error| CallError::Broken(error.to_string()));
    }
    match serde_json::from_slice(body) {
        Ok(refusal) => Err(CallError::Refused(refusal)),
        Err(_) => Err(CallError::Broken(format!("HTTP status {status}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_understood() {
        let done = understand(200, br#"{"reply":"done","message":"ok"}"#).unwrap();
        assert_eq!(done, Reply::Done { message: "ok".into() });
        let refused = understand(409, br#"{"message":"no","detail":"why","hint":null}"#).unwrap_err();
        assert_eq!(refused.to_string(), "no: why");
        assert_eq!(
            understand(500, b"oops").unwrap_err().to_string(),
            "the daemon's answer was not understood: HTTP status 500"
        );
    }

    #[tokio::test]
    async fn a_daemon_that_is_not_there_is_told() {
        let error = send(Path::new("/nonexistent/s"), &Command::Status).await.unwrap_err();
        assert!(error.to_string().starts_with("the daemon is not running or cannot be reached at /nonexistent/s: "));
    }

    #[tokio::test]
    async fn commands_go_to_the_daemon_and_its_answers_come_back() {
        use crate::admin::{Settings, fake, http};
        let scratch = tempfile::tempdir().unwrap();
        let socket = scratch.path().join("run/s.sock");
        let settings = Settings { socket: socket.clone(), admin_os_users: vec![], pcp: None };
        let (fake, admin) = fake::admin();
        let stop = tokio_util::sync::CancellationToken::new();
        let serving = tokio::spawn(http::serve(http::bind(&settings).unwrap(), admin, settings, stop.clone()));
        let status = send(&socket, &Command::Status).await.unwrap();
        assert!(matches!(status, Reply::Status { clients: 2, .. }), "{status:?}");
        let attached =
            send(&socket, &Command::Attach { node: crate::base::NodeId(1), accept_data: false }).await.unwrap();
        assert_eq!(attached, Reply::Done { message: "node 1 is attached".into() });
        assert_eq!(*fake.0.lock().unwrap(), ["attach 1"]);
        let refused = send(&socket, &Command::Job { id: 8 }).await.unwrap_err();
        assert!(matches!(refused, CallError::Refused(_)) && refused.to_string() == "there is no job 8");
        stop.cancel();
        serving.await.unwrap();
        assert!(send(&socket, &Command::Status).await.is_err());
    }
}
