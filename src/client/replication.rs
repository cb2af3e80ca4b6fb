//! A replication connection: pg_basebackup, pg_receivewal, a standby, a subscriber. It is not pooled: it has a connection of
//! its own to the primary for as long as it lives, with the client's own startup parameters, and bytes pass as they are.

use super::authenticate::gone;
use super::control::{Control, End};
use super::fault::Fault;
use super::session::farewell;
use super::startup::NewSession;
use super::way::{Route, Way};
use super::worker::Worker;
use crate::net::Stream;
use crate::server::{self, CancelTarget, Connected, Login, RouteId, ServerError};
use crate::wire::{backend, frame};
use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

/// Buffer of each direction, bytes: a base backup comes in pieces of 32 KiB.
const BUFFER: usize = 64 * 1024;

/// Serves one replication client from its login to the end.
pub async fn run(worker: Rc<Worker>, mut new: NewSession, control: Rc<Control>) {
    // A standby may have nothing to say for hours: no activity is noted, so no time limit is for it.
    if let Err(fault) = serve(&worker, &mut new, &control).await {
        farewell(&mut new.stream, new.unsent, &fault).await;
    }
}

async fn serve(worker: &Rc<Worker>, new: &mut NewSession, control: &Control) -> Result<(), Fault> {
    let _place = Place::take(worker)?;
    let login = Login {
        user: new.user.clone(),
        database: new.database.clone(),
        secret: new.secret.clone(),
        parameters: std::mem::take(&mut new.parameters),
        certificate_of: worker.plane.settings.load().pool.certificate_of(&new.database),
    };
    let opening = open(worker, &login);
    let (connected, route) = tokio::select! {
        biased;
        end = told_to_end(control, || true) => return Err(end.into()),
        opened = opening => opened?,
        () = gone(&new.stream) => return Err(Fault::ClientGone),
    };
    let no_random = |e| Fault::Limit(format!("no random numbers: {e}"));
    let listing = worker.plane.cancels.register(new.minor, Some(connected.pid)).map_err(no_random)?;
    let key = connected.cancel_key.as_slice().into();
    let target = CancelTarget { server: route.target.clone(), pid: connected.pid, key };
    listing.slot.borrowed(Arc::new(target));
    let mut out = std::mem::take(&mut new.unsent);
    for (name, value) in &connected.parameters {
        backend::parameter_status(&mut out, name, value);
    }
    backend::backend_key_data(&mut out, listing.slot.pid, &listing.slot.key);
    backend::ready_for_query(&mut out, b'I');
    let sent = async {
        new.stream.write_all(&out).await?;
        new.stream.flush().await
    };
    sent.await.map_err(|_| Fault::ClientGone)?;
    tracing::info!(event = "replication.began", user = %new.user, node = %route.id.node);
    let ended = relay(worker, &mut new.stream, connected.stream, route.id, control).await;
    tracing::info!(event = "replication.ended", user = %new.user, node = %route.id.node);
    listing.slot.returned();
    ended
}

/// A connection to the primary; waits for one within `query_wait_timeout`.
async fn open(worker: &Worker, login: &Login) -> Result<(Connected, Rc<Route>), Fault> {
    let settings = worker.plane.settings.load_full();
    let rules = settings.pool.rules(&login.user, &login.database);
    let limit = rules.wait_timeout;
    let deadline = (!limit.is_zero()).then(|| Instant::now() + limit);
    let mut board = worker.plane.board.watch();
    loop {
        board.borrow_and_update();
        let why = match worker.way() {
            Way::Open(route) => {
                let opened = server::connect(&route.target, login, rules.connect_timeout).await;
                return match opened {
                    Ok(connected) => Ok((connected, route)),
                    Err(ServerError::Refused(fields)) => Err(Fault::Refused(Box::new(fields))),
                    Err(error) if error.is_passing() => Err(Fault::NoPrimary(limit, error.for_client())),
                    Err(error) => {
                        tracing::warn!(event = "server.login_failed", node = %route.id.node, user = %login.user, %error);
                        Err(Fault::Login(error.for_client()))
                    }
                };
            }
            Way::Blocked(why) | Way::Held { why, .. } => why,
        };
        let changed = match deadline {
            Some(deadline) => tokio::time::timeout_at(deadline, board.changed()).await.is_ok_and(|c| c.is_ok()),
            None => board.changed().await.is_ok(),
        };
        if !changed {
            return Err(Fault::NoPrimary(limit, why.to_string()));
        }
    }
}

/// Moves bytes both ways until one side closes, the primary changes, or pgmend is told to end it.
async fn relay(
    worker: &Worker,
    client: &mut Stream,
    mut server: Stream,
    route: RouteId,
    control: &Control,
) -> Result<(), Fault> {
    let watch = RefCell::new(Watch::default());
    let outcome = {
        let (mut from_client, mut to_client) = tokio::io::split(&mut *client);
        let (mut from_server, mut to_server) = tokio::io::split(&mut server);
        let up = async {
            let mut buffer = vec![0; BUFFER];
            loop {
                let count: usize = from_client.read(&mut buffer).await?;
                if count == 0 {
                    return to_server.shutdown().await;
                }
                watch.borrow_mut().asked();
                to_server.write_all(buffer.get(..count).unwrap_or_default()).await?;
                to_server.flush().await?;
            }
        };
        let down = async {
            let mut buffer = vec![0; BUFFER];
            loop {
                let count = from_server.read(&mut buffer).await?;
                if count == 0 {
                    return io::Result::Ok(());
                }
                let bytes = buffer.get(..count).unwrap_or_default();
                watch.borrow_mut().answered(bytes);
                to_client.write_all(bytes).await?;
                to_client.flush().await?;
                watch.borrow_mut().written();
            }
        };
        tokio::pin!(up, down);
        let flow = async {
            tokio::select! {
                sent = &mut up => {
                    sent?;
                    // The server's last words.
                    down.await
                }
                ended = &mut down => ended,
            }
        };
        tokio::select! {
            biased;
            end = told_to_end(control, || watch.borrow().is_free()) => Err(Fault::from(end)),
            () = primary_changed(worker, route) => Err(Fault::ServerLost("the primary has changed".into())),
            // Whichever side it was, what it had to say has been passed on.
            _ended = flow => Err(Fault::ServerEnded),
        }
    };
    match outcome {
        Err(Fault::ServerEnded) => {
            let _ = client.shutdown().await;
            Ok(())
        }
        // Words of pgmend's own cannot stand in the middle of a message of the server's.
        Err(_) if !watch.borrow().is_between() => Ok(()),
        outcome => outcome,
    }
}

async fn told_to_end(control: &Control, free: impl Fn() -> bool) -> End {
    poll_fn(|cx| control.check(cx, free()).map_or(Poll::Pending, Poll::Ready)).await
}

async fn primary_changed(worker: &Worker, route: RouteId) {
    let mut board = worker.plane.board.watch();
    loop {
        board.borrow_and_update();
        if matches!(worker.way(), Way::Open(now) if now.id != route) {
            return;
        }
        if board.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// Counted against `max_replication_conn`.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(worker: &Worker) -> Result<Place, Fault> {
        let limit = worker.plane.settings.load().pool.max_replication;
        let count = &worker.plane.replications;
        let taken = count.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| (n < limit).then_some(n + 1));
        match taken {
            Ok(_) => Ok(Place(count.clone())),
            Err(_) => Err(Fault::Replications(limit)),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// How far the conversation is, as far as its end is concerned: a client that streams comes back by itself and may be
/// ended at any time, a base backup that is broken off is lost.
#[derive(Debug, Default)]
struct Watch {
    header: Vec<u8>,
    /// Bytes of a message still to come.
    rest: usize,
    busy: bool,
    streaming: bool,
    /// Bytes are being written to the client.
    writing: bool,
}

impl Watch {
    fn asked(&mut self) {
        self.busy |= !self.streaming;
    }

    fn answered(&mut self, mut bytes: &[u8]) {
        self.writing = true;
        while !bytes.is_empty() {
            let skipped = self.rest.min(bytes.len());
            self.rest -= skipped;
            bytes = bytes.get(skipped..).unwrap_or_default();
            let wanted = (frame::HEADER - self.header.len()).min(bytes.len());
            if self.rest > 0 || wanted == 0 {
                continue;
            }
            self.header.extend_from_slice(bytes.get(..wanted).unwrap_or_default());
            bytes = bytes.get(wanted..).unwrap_or_default();
            if self.header.len() == frame::HEADER {
                self.message();
            }
        }
    }

    fn message(&mut self) {
        // A length that is no length can only be passed on as it came.
        if let Ok(Some(header)) = frame::peek(&self.header) {
            self.rest = header.total - frame::HEADER;
            match header.tag {
                // CopyBothResponse
                b'W' => (self.streaming, self.busy) = (true, false),
                b'Z' => (self.streaming, self.busy) = (false, false),
                _ => {}
            }
        }
        self.header.clear();
    }

    fn written(&mut self) {
        self.writing = false;
    }

    fn is_free(&self) -> bool {
        !self.busy
    }

    fn is_between(&self) -> bool {
        !self.writing && self.rest == 0 && self.header.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fed(watch: &mut Watch, bytes: &[u8]) {
        // In all pieces that the network may make of it.
        bytes.iter().for_each(|byte| watch.answered(&[*byte]));
        watch.written();
    }

    #[test]
    fn a_streaming_client_may_be_ended_and_a_backup_not() {
        let mut watch = Watch::default();
        assert!(watch.is_free());
        watch.asked();
        fed(&mut watch, b"T\0\0\0\x05xD\0\0\0\x06xyC\0\0\0\x05xH\0\0\0\x05Zd\0\0\0\x09ZZZZZ");
        assert!(!watch.is_free() && watch.is_between());
        fed(&mut watch, b"c\0\0\0\x04Z\0\0\0\x05I");
        assert!(watch.is_free());
        watch.asked();
        fed(&mut watch, b"W\0\0\0\x07\0\0\0d\0\0\0\x06");
        assert!(watch.is_free() && !watch.is_between());
        watch.asked();
        assert!(watch.is_free());
        fed(&mut watch, b"ZZ");
        assert!(watch.is_between());
    }

    #[test]
    fn whole_pieces_are_read_as_single_bytes_are() {
        let mut watch = Watch::default();
        watch.asked();
        watch.answered(b"T\0\0\0\x05xZ\0\0\0\x05IN\0\0\0\x08");
        assert!(watch.is_free() && !watch.is_between());
    }
}
