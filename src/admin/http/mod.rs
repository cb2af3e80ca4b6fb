//! The JSON API: HTTP over a Unix socket, where the peer's user id decides what he may do.
//!
//! Read `socket` (the file), `rights` (who may what), `service` (one request), then `serve` here.

mod rights;
mod service;
mod socket;
pub use socket::Bound;

use super::{Admin, Settings};
use crate::net::Inherited;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rights::{Right, Rights};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Connections of those who may change things. Both limits together are 64; each has its own, so that other users
/// cannot keep the operators out.
const MAX_OPERATORS: usize = 32;
/// Connections of all others.
const MAX_OTHERS: usize = 32;
/// A request's head, and then its body, must have arrived within this.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// A whole connection, which carries one request: longer than any client waits for its answer, that to a PAUSE included.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(crate::admin::MAX_PAUSE_TIMEOUT_S + 180);
/// What is under way at the daemon's end may take this long to answer.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause after a failed accept, such as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Opens the socket; `serve` does the rest. A socket on which another process listens is an error.
pub fn bind(settings: &Settings) -> io::Result<Bound> {
    bind_after(settings, &mut Inherited::default())
}

/// The same after another process, whose socket goes on.
pub fn bind_after(settings: &Settings, inherited: &mut Inherited) -> io::Result<Bound> {
    socket::bind(&settings.socket, inherited)
}

/// Serves until `stop`; requests under way then still get their answers. The socket's file is removed at the end.
pub async fn serve(bound: Bound, admin: Arc<Admin>, settings: Settings, stop: CancellationToken) {
    let (listener, _file) = bound.into_parts();
    let listener = match UnixListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "the admin socket cannot be served"),
    };
    let tasks = TaskTracker::new();
    let server = Server {
        rights: Arc::new(Rights::new(&settings.admin_os_users)),
        operators: Arc::new(Semaphore::new(MAX_OPERATORS)),
        others: Arc::new(Semaphore::new(MAX_OTHERS)),
        admin,
        tasks: tasks.clone(),
        stop: stop.clone(),
    };
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => server.begin(stream),
            Err(error) => {
                tracing::warn!(%error, "no connection could be accepted on the admin socket");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    tasks.close();
    if tokio::time::timeout(STOP_TIMEOUT, tasks.wait()).await.is_err() {
        tracing::warn!("requests on the admin socket were still under way at the end");
    }
}

struct Server {
    rights: Arc<Rights>,
    operators: Arc<Semaphore>,
    others: Arc<Semaphore>,
    admin: Arc<Admin>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Server {
    fn begin(&self, stream: UnixStream) {
        // Without credentials he is nobody.
        let right = stream.peer_cred().map_or(Right::Look, |peer| self.rights.of(peer.uid()));
        let places = if right == Right::Change { &self.operators } else { &self.others };
        let Ok(place) = places.clone().try_acquire_owned() else {
            return tracing::warn!("too many connections on the admin socket; one was closed");
        };
        let service = service::Service { admin: self.admin.clone(), right, tasks: self.tasks.clone() };
        self.tasks.spawn(converse(stream, service, place, self.stop.clone()));
    }
}

async fn converse(
    stream: UnixStream,
    service: service::Service,
    _place: OwnedSemaphorePermit,
    stop: CancellationToken,
) {
    let answer = service_fn(move |request| {
        let service = service.clone();
        async move { Ok::<_, std::convert::Infallible>(service.answer(request).await) }
    });
    let conversation = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(READ_TIMEOUT)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), answer);
    let mut conversation = std::pin::pin!(conversation);
    let bounded = tokio::time::timeout(CONNECTION_TIMEOUT, async {
        tokio::select! {
            ended = conversation.as_mut() => return ended,
            () = stop.cancelled() => conversation.as_mut().graceful_shutdown(),
        }
        conversation.await
    });
    match bounded.await {
        Ok(Ok(())) => {}
        // The peer's business: he hung up or spoke no HTTP.
        Ok(Err(error)) => tracing::debug!(%error, "a connection on the admin socket broke"),
        Err(_) => tracing::warn!("a connection on the admin socket took too long and was closed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::fake;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn ask(right: Option<Right>, request: &str) -> String {
        let scratch = tempfile::tempdir().unwrap();
        let settings = Settings { socket: scratch.path().join("s.sock"), admin_os_users: vec![], pcp: None };
        let (stop, (_, admin)) = (CancellationToken::new(), fake::admin());
        let (mut client, serving) = if let Some(right) = right {
            // The peer of a pair is the test's own user, so his right is given.
            let (client, served) = UnixStream::pair().unwrap();
            let service = service::Service { admin, right, tasks: TaskTracker::new() };
            let place = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
            (client, tokio::spawn(converse(served, service, place, stop.clone())))
        } else {
            let bound = bind(&settings).unwrap();
            let serving = tokio::spawn(serve(bound, admin, settings.clone(), stop.clone()));
            (UnixStream::connect(&settings.socket).await.unwrap(), serving)
        };
        client.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        stop.cancel();
        serving.await.unwrap();
        assert!(!settings.socket.exists());
        answer
    }

    fn post(body: &str) -> String {
        format!("POST /api/v1/command HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    }

    #[tokio::test]
    async fn requests_get_their_statuses() {
        let health = ask(None, "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert!(health.starts_with("HTTP/1.1 200 ") && health.ends_with("\r\n\r\nok"), "{health}");
        for (request, status, words) in [
            ("GET /x HTTP/1.1\r\nhost: x\r\n\r\n".to_owned(), "404", "GET /x"),
            (post("{}"), "400", "missing field `command`"),
            (post("{}"), "400", "attach"),
            (post(r#"{"command":"attach","node":99999}"#), "400", "99999"),
            (post(r#"{"command":"job","id":8}"#), "404", "there is no job 8"),
            (post(r#"{"command":"attach","node":9}"#), "409", "out of range"),
            (post(r#"{"command":"status"}"#), "200", "listen.backlog"),
            (post(&" ".repeat(70_000)), "413", "larger than 65536 bytes"),
        ] {
            let answer = ask(Some(Right::Change), &request).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.contains(words), "{answer}");
        }
    }

    #[tokio::test]
    async fn others_look_and_change_nothing() {
        let refused = ask(Some(Right::Look), &post(r#"{"command":"reload"}"#)).await;
        assert!(refused.starts_with("HTTP/1.1 403 ") && refused.contains("os_users"), "{refused}");
        let jobs = ask(Some(Right::Look), &post(r#"{"command":"jobs"}"#)).await;
        assert!(jobs.starts_with("HTTP/1.1 200 "), "{jobs}");
    }
}
