//! The two processes after a takeover: cancels either way, view and gate to the old one, its acknowledgements back.

use super::words::{GateWords, MAX_LINE, Word, adopt};
use crate::base::NodeId;
use crate::client::{Elsewhere, Plane};
use crate::cluster::{Remains, Report, Scope, Seat, Unquiet};
use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;
use tokio::sync::{mpsc, oneshot};

/// Words that may wait for the other process.
const OUTBOX: usize = 256;
/// Cancels that may wait for its answer.
const MAX_CANCELS: usize = 1000;
/// Reports of nodes that differ that may wait for it.
const MAX_REPORTS: usize = 10_000;
/// How long one is waited for: longer than the other takes to carry it out.
const CANCEL_WAIT: Duration = Duration::from_secs(6);
/// Between two reports while the gate is held.
const REPORT: Duration = Duration::from_millis(10);

/// Where the other process stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// It was taken over by us.
    Before,
    /// It took us over.
    After,
}

/// The conversations with the process before and the one after.
pub struct Links {
    plane: Arc<Plane>,
    before: Mutex<Option<mpsc::Sender<Word>>>,
    after: Mutex<Option<mpsc::Sender<Word>>>,
    next: AtomicU64,
    waiting: Mutex<HashMap<u64, oneshot::Sender<()>>>,
    /// Reports of nodes that differ, until the new process's keeper has answered.
    reports: Mutex<HashMap<u64, oneshot::Sender<Result<u64, String>>>>,
}

impl Links {
    /// No other process yet. Cancels whose key is unknown here are asked of whoever comes.
    pub fn new(plane: Arc<Plane>) -> Arc<Links> {
        let links = Arc::new(Links {
            plane: plane.clone(),
            before: Mutex::default(),
            after: Mutex::default(),
            next: AtomicU64::new(0),
            waiting: Mutex::default(),
            reports: Mutex::default(),
        });
        let elsewhere: Box<dyn Elsewhere> = Box::new(Both(links.clone()));
        plane.elsewhere.store(Some(Arc::new(elsewhere)));
        links
    }

    /// True while the process before still has clients: cancels reach it through us.
    pub fn has_before(&self) -> bool {
        lock(&self.before).is_some()
    }

    /// Speaks with the other process until it ends.
    pub async fn converse(self: Arc<Self>, side: Side, stream: UnixStream) {
        let (reader, mut writer) = stream.into_split();
        let (outbox, mut words) = mpsc::channel::<Word>(OUTBOX);
        *lock(self.end(side)) = Some(outbox.clone());
        let seat = (side == Side::Before).then(|| self.plane.board.take_seat());
        let write = async {
            while let Some(word) = words.recv().await {
                writer.write_all(&word.line()).await?;
            }
            Ok::<(), io::Error>(())
        };
        let outcome = tokio::select! {
            outcome = write => outcome,
            outcome = self.read(side, BufReader::new(reader), seat, outbox.clone()) => outcome,
            () = self.tell(outbox.clone()), if side == Side::Before => Ok(()),
        };
        *lock(self.end(side)) = None;
        tracing::info!(event = "takeover.parted", ?side, error = outcome.err().map(|e| e.to_string()));
    }

    /// The new process tells the old one what is in force, for as long as both live.
    async fn tell(&self, outbox: mpsc::Sender<Word>) {
        let mut board = self.plane.board.watch();
        loop {
            board.borrow_and_update();
            let now = self.plane.board.read();
            let gate = GateWords::of(&now.gate, Instant::now());
            if outbox.send(Word::Published { view: now.view.as_ref().clone(), gate }).await.is_err() {
                return;
            }
            if board.changed().await.is_err() {
                return;
            }
        }
    }

    async fn read(
        self: &Arc<Self>,
        side: Side,
        mut reader: BufReader<OwnedReadHalf>,
        seat: Option<Seat>,
        outbox: mpsc::Sender<Word>,
    ) -> io::Result<()> {
        let mut line = Vec::new();
        loop {
            let held = side == Side::After && !self.plane.board.read().gate.is_open();
            tokio::select! {
                // What has been read of a line stays in it when the other arm is faster.
                read = read_line(&mut reader, &mut line) => read?,
                () = tokio::time::sleep(REPORT), if held => {
                    self.report(&outbox);
                    continue;
                }
            }
            if line.is_empty() {
                return Ok(());
            }
            let word = Word::read(&line).map_err(io::Error::other)?;
            line.clear();
            match word {
                Word::Published { view, gate } if side == Side::After => {
                    let gate = gate.gate(Instant::now());
                    // What was told to one database's servers is told to all: that harms nobody.
                    if gate.reconnects != self.plane.board.read().gate.reconnects {
                        self.plane.outdate(&Scope::All);
                    }
                    adopt(&self.plane.board, view, gate);
                    self.report(&outbox);
                }
                Word::Report { seen, left } => {
                    let elsewhere = |(number, elsewhere)| (number, Remains { elsewhere, ..Remains::default() });
                    if let Some(seat) = &seat {
                        seat.report(Report {
                            seen,
                            remains: left.into_iter().map(elsewhere).collect(),
                            holdups: Vec::new(),
                        });
                    }
                }
                Word::Cancel { id, pid, key } => {
                    let links = self.clone();
                    let outbox = outbox.clone();
                    tokio::spawn(async move {
                        if !links.plane.cancels.cancel(pid, &key).await {
                            // On in the same direction, never back.
                            let on = if side == Side::Before { Side::After } else { Side::Before };
                            links.ask(on, pid, key).await;
                        }
                        let _ = outbox.send(Word::Cancelled { id }).await;
                    });
                }
                Word::Diverged { id, node, generation, reason } if side == Side::Before => {
                    let divergences = self.plane.divergences.load_full();
                    let outbox = outbox.clone();
                    tokio::spawn(async move {
                        let outcome = match divergences {
                            Some(keeper) => keeper.report(node, generation, reason).await,
                            None => Err("the new process is not ready yet".to_owned()),
                        };
                        let _ = outbox.send(Word::Parted { id, outcome }).await;
                    });
                }
                Word::Parted { id, outcome } => {
                    if let Some(waits) = lock(&self.reports).remove(&id) {
                        let _ = waits.send(outcome);
                    }
                }
                Word::Cancelled { id } => {
                    if let Some(waits) = lock(&self.waiting).remove(&id) {
                        let _ = waits.send(());
                    }
                }
                other => return Err(io::Error::other(format!("not expected here: {other:?}"))),
            }
        }
    }

    /// Acknowledges what the new process has ordered, as far as our own workers have.
    fn report(&self, outbox: &mpsc::Sender<Word>) {
        let board = &self.plane.board;
        let gate = board.read().gate.clone();
        let left = gate.orders.iter().map(|order| {
            let left = match board.quiet(order.number) {
                Ok(_) | Err(Unquiet::Ended) => 0,
                Err(Unquiet::Busy { remains, servers, silent }) => servers + silent + remains.elsewhere,
            };
            (order.number, left)
        });
        // A full outbox: the next report says it.
        let _ = outbox.try_send(Word::Report { seen: gate.last, left: left.collect() });
    }

    /// Our own keeper has ended: the new process's takes the node out. Returns once that is in force here too.
    pub async fn report_on(&self, node: NodeId, generation: u64, reason: String) -> Result<u64, String> {
        let gone = || "the process that took over does not answer".to_owned();
        let outbox = lock(&self.after).clone().ok_or_else(gone)?;
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (done, wait) = oneshot::channel();
        {
            let mut reports = lock(&self.reports);
            if reports.len() >= MAX_REPORTS {
                return Err(format!("{MAX_REPORTS} reports wait already"));
            }
            reports.insert(id, done);
        }
        let asked = async {
            outbox.send(Word::Diverged { id, node, generation, reason }).await.map_err(|_| gone())?;
            let out_in = wait.await.map_err(|_| gone())??;
            let mut board = self.plane.board.watch();
            while self.plane.board.view().generation < out_in {
                board.changed().await.map_err(|_| gone())?;
            }
            Ok(out_in)
        };
        let outcome = tokio::time::timeout(CANCEL_WAIT, asked).await.unwrap_or_else(|_| Err(gone()));
        lock(&self.reports).remove(&id);
        outcome
    }

    async fn ask(&self, side: Side, pid: u32, key: Vec<u8>) {
        let Some(outbox) = lock(self.end(side)).clone() else { return };
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (done, wait) = oneshot::channel();
        {
            let mut waiting = lock(&self.waiting);
            if waiting.len() >= MAX_CANCELS {
                return;
            }
            waiting.insert(id, done);
        }
        let _waits = Waits { links: self, id };
        if outbox.try_send(Word::Cancel { id, pid, key }).is_ok() {
            let _ = tokio::time::timeout(CANCEL_WAIT, wait).await;
        }
    }

    fn end(&self, side: Side) -> &Mutex<Option<mpsc::Sender<Word>>> {
        match side {
            Side::Before => &self.before,
            Side::After => &self.after,
        }
    }
}

/// Takes a cancel off the list, however the wait for it ended.
struct Waits<'a> {
    links: &'a Links,
    id: u64,
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        lock(&self.links.waiting).remove(&self.id);
    }
}

/// A client of ours asked: whoever knows the key carries it out.
struct Both(Arc<Links>);

impl Elsewhere for Both {
    fn cancel(&self, pid: u32, key: Vec<u8>) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let links = self.0.clone();
        Box::pin(async move {
            tokio::join!(links.ask(Side::Before, pid, key.clone()), links.ask(Side::After, pid, key));
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads on to the end of a line; empty = the other has closed. Cancel safe: what was read stays in `line`.
pub async fn read_line(reader: &mut BufReader<OwnedReadHalf>, line: &mut Vec<u8>) -> io::Result<()> {
    let room = MAX_LINE.saturating_sub(line.len());
    let mut limited = reader.take(room as u64);
    limited.read_until(b'\n', line).await?;
    match line.last() {
        Some(b'\n') | None => Ok(()),
        Some(_) => Err(io::Error::other("a line broke off or is too long")),
    }
}
