//! The threads of the data plane: workers, and the acceptor that hands each client to the least loaded of them.

use crate::client::{Nudge, Order, Plane, Worker};
use crate::net::{self, Listener, StdStream};
use crate::pool::Home;
use crate::wire::backend::{self, ErrorFields};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::LocalOptions;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Orders that may wait at one worker; clients beyond it wait in the listen queue.
const ORDERS: usize = 4096;
/// Pause after an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The running data plane.
pub struct DataPlane {
    /// What the workers share.
    pub plane: Arc<Plane>,
    orders: Vec<mpsc::Sender<Order>>,
    threads: Vec<JoinHandle<()>>,
    accepting: CancellationToken,
}

#[derive(Clone)]
struct Acceptor {
    plane: Arc<Plane>,
    workers: Vec<(mpsc::Sender<Order>, Arc<AtomicUsize>)>,
    accepting: CancellationToken,
}

impl DataPlane {
    /// Starts the worker threads; the first also accepts.
    pub fn start(plane: Arc<Plane>, listeners: Vec<Listener>, workers: usize) -> io::Result<DataPlane> {
        let accepting = CancellationToken::new();
        let (senders, receivers): (Vec<_>, Vec<_>) = (0..workers.max(1)).map(|_| mpsc::channel(ORDERS)).unzip();
        let loads = senders.iter().map(|s| (s.clone(), Arc::new(AtomicUsize::new(0)))).collect();
        let acceptor = Acceptor { plane: plane.clone(), workers: loads, accepting: accepting.clone() };
        let mut listeners = Some(listeners);
        let mut threads = Vec::new();
        for (id, receiver) in receivers.into_iter().enumerate() {
            let others = senders.iter().enumerate().filter(|(i, _)| *i != id).map(|(_, s)| s.clone()).collect();
            let (plane, acceptor) = (plane.clone(), acceptor.clone());
            // Only the first takes the listeners: one queue of arrivals, spread by load.
            let listeners = listeners.take().unwrap_or_default();
            let thread = std::thread::Builder::new().name(format!("worker-{id}"));
            let make = move || Worker::new(plane, Home(id), Nudge(others));
            threads.push(thread.spawn(move || work(make, receiver, listeners, acceptor))?);
        }
        Ok(DataPlane { plane, orders: senders, threads, accepting })
    }

    /// Tells every worker.
    pub fn order(&self, make: impl Fn() -> Order) {
        for worker in &self.orders {
            // A worker that is behind by thousands of orders is told when it has caught up.
            let (worker, order) = (worker.clone(), make());
            if let Err(mpsc::error::TrySendError::Full(order)) = worker.try_send(order) {
                std::thread::spawn(move || worker.blocking_send(order));
            }
        }
    }

    /// No new clients from now on.
    pub fn close_doors(&self) {
        self.accepting.cancel();
    }

    /// Clients connected.
    pub fn clients(&self) -> usize {
        self.plane.clients.load(Ordering::Relaxed)
    }

    /// True when every worker has ended.
    pub fn is_finished(&self) -> bool {
        self.threads.iter().all(JoinHandle::is_finished)
    }
}

fn work(
    make: impl FnOnce() -> Rc<Worker>,
    orders: mpsc::Receiver<Order>,
    listeners: Vec<Listener>,
    acceptor: Acceptor,
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(event = "worker.failed", %error);
            return;
        }
    };
    let worker = make();
    runtime.block_on(async move {
        for listener in listeners {
            tokio::task::spawn_local(accept(listener, acceptor.clone(), worker.clone()));
        }
        drop(acceptor);
        // A task of its own, so that a client's turn does not look at all that the worker waits for. When it panics the
        // thread ends as well.
        let _ = tokio::task::spawn_local(worker.run(orders)).await;
    });
}

/// Accepts on one listener until the doors close, in the first worker's thread.
async fn accept(listener: Listener, acceptor: Acceptor, here: Rc<Worker>) {
    if let Err(error) = accept_on(listener, &acceptor, &here).await {
        tracing::error!(event = "listener.failed", %error);
    }
}

// The sound successor of `with_interest` is an unsafe function; a listener keeps its descriptor open, which is all that it
// asks for.
#[allow(deprecated)]
async fn accept_on(listener: Listener, acceptor: &Acceptor, here: &Rc<Worker>) -> io::Result<()> {
    let fd = AsyncFd::with_interest(listener, Interest::READABLE)?;
    loop {
        let next = fd.async_io(Interest::READABLE, net::accept);
        // The doors close between two clients: whoever is accepted is served.
        let Some(accepted) = acceptor.accepting.run_until_cancelled(next).await else { return Ok(()) };
        acceptor.take(accepted, here).await;
    }
}

impl Acceptor {
    /// `here`: the worker of this thread, which is the first.
    async fn take(&self, accepted: io::Result<StdStream>, here: &Rc<Worker>) {
        let socket = match accepted {
            Ok(socket) => socket,
            Err(error) => {
                tracing::warn!(event = "client.accept_failed", %error);
                tokio::time::sleep(ACCEPT_PAUSE).await;
                return;
            }
        };
        let by_load = self.workers.iter().enumerate().min_by_key(|(_, (_, load))| load.load(Ordering::Relaxed));
        let Some((number, (worker, load))) = by_load else { return };
        match self.plane.admit(load) {
            Some(admitted) if number == 0 => here.adopt(socket, admitted),
            Some(admitted) => {
                // Waiting here leaves further clients in the listen queue.
                let _ = worker.send(Order::Client(socket, admitted)).await;
            }
            None => refuse(socket),
        }
    }
}

/// Tells a client that there are by far too many; those just above the limit are told by `client`. One write to an empty socket buffer, so it cannot block.
fn refuse(socket: StdStream) {
    let mut out = Vec::new();
    let fields = ErrorFields::fatal("53300", "no more connections allowed (max_client_conn)");
    backend::error_response(&mut out, &fields);
    let _ = match socket {
        StdStream::Tcp(mut s) => io::Write::write(&mut s, &out),
        StdStream::Unix(mut s) => io::Write::write(&mut s, &out),
    };
}
