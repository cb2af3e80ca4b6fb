//! One request of the JSON API: what it asks, whether he may, and the answer's status and body.

use super::READ_TIMEOUT;
use super::rights::Right;
use crate::admin::{Admin, Command, CommandError, Reply};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Bytes};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde::Serialize;
use std::sync::Arc;
use tokio_util::task::TaskTracker;

/// Largest request: every command is far smaller.
const MAX_BODY: usize = 64 << 10;
const WHAT_IS_EXPECTED: &str =
    "a POST to /api/v1/command has a JSON object like {\"command\":\"status\"} or {\"command\":\"attach\",\"node\":1}";

type Answer = Response<Full<Bytes>>;

/// What answers the requests of one connection.
#[derive(Clone)]
pub(super) struct Service {
    pub(super) admin: Arc<Admin>,
    pub(super) right: Right,
    pub(super) tasks: TaskTracker,
}

impl Service {
    pub(super) async fn answer<B>(&self, request: Request<B>) -> Answer
    where
        B: Body,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        match (request.method(), request.uri().path()) {
            (&Method::POST, "/api/v1/command") => match read(request.into_body()).await {
                Ok(command) => self.command(command).await,
                Err((status, detail)) => refusal(status, "the request was not understood", &detail, WHAT_IS_EXPECTED),
            },
            (&Method::GET, "/healthz") => {
                with_type(StatusCode::OK, "text/plain; charset=utf-8", Bytes::from_static(b"ok"))
            }
            (method, path) => {
                let detail = format!("{method} {path}");
                refusal(StatusCode::NOT_FOUND, "there is nothing here", &detail, WHAT_IS_EXPECTED)
            }
        }
    }

    async fn command(&self, command: Command) -> Answer {
        if !self.right.allows(&command) {
            return refusal(
                StatusCode::FORBIDDEN,
                "permission denied",
                "only root, the daemon's own user and the admin users of its configuration may change things",
                "run this as one of them, or add your user to `os_users` in the section [admin]",
            );
        }
        let on_failure = match command {
            // All that can fail about it is that there is no such job.
            Command::Job { .. } => StatusCode::NOT_FOUND,
            _ => StatusCode::CONFLICT,
        };
        let admin = self.admin.clone();
        // Its own task: a caller who hangs up must not leave a command half done.
        let result = self.tasks.spawn(async move { admin.run(command).await }).await;
        match result {
            Ok(Ok(reply)) => json::<Reply>(StatusCode::OK, &reply),
            Ok(Err(error)) => json(on_failure, &error),
            Err(error) => refusal(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the command broke off",
                &error.to_string(),
                "the daemon's log may say more",
            ),
        }
    }
}

async fn read<B>(body: B) -> Result<Command, (StatusCode, String)>
where
    B: Body,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let bytes = match tokio::time::timeout(READ_TIMEOUT, Limited::new(body, MAX_BODY).collect()).await {
        Ok(Ok(collected)) => collected.to_bytes(),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            return Err((StatusCode::PAYLOAD_TOO_LARGE, format!("the body is larger than {MAX_BODY} bytes")));
        }
        Ok(Err(error)) => return Err((StatusCode::BAD_REQUEST, error.to_string())),
        Err(_) => return Err((StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time".to_owned())),
    };
    serde_json::from_slice(&bytes).map_err(|error| (StatusCode::BAD_REQUEST, error.to_string()))
}

fn refusal(status: StatusCode, message: &str, detail: &str, hint: &str) -> Answer {
    let error = CommandError {
        message: message.to_owned(),
        detail: Some(detail.to_owned()),
        hint: Some(hint.to_owned()),
        fatal: false,
    };
    json(status, &error)
}

fn json<T: Serialize>(status: StatusCode, value: &T) -> Answer {
    match serde_json::to_vec(value) {
        Ok(body) => with_type(status, "application/json", Bytes::from(body)),
        Err(error) => {
            tracing::error!(%error, "an answer could not be written as JSON");
            with_type(StatusCode::INTERNAL_SERVER_ERROR, "text/plain; charset=utf-8", Bytes::new())
        }
    }
}

fn with_type(status: StatusCode, kind: &'static str, body: Bytes) -> Answer {
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}
