//! The old side of a takeover: passes its sockets on, ends its control plane, and keeps only its clients.

use super::descriptors::send;
use super::link::{Links, Side, read_line};
use super::words::{GateWords, VERSION, Word};
use crate::cluster::Board;
use crate::keeper::Keeper;
use crate::net::Shared;
use crate::store::Store;
use crate::workflow::{Jobs, Outcome};
use std::fs::Permissions;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncWriteExt, BufReader, Interest};
use tokio::net::unix::OwnedReadHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

/// How long the new process may take to get ready, and then to serve.
const PATIENCE: Duration = Duration::from_secs(120);
/// Pause after an accept that failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where a new process asks.
pub fn socket_path(directory: &Path) -> PathBuf {
    directory.join("takeover.sock")
}

/// The place where a new process asks; its file goes with it unless another process has it.
pub struct Place {
    listener: UnixListener,
    path: PathBuf,
    given: bool,
}

impl Place {
    /// Opens it. Whoever holds the lock of the directory may: a file that is there is of the process before us.
    pub fn open(directory: &Path) -> io::Result<Place> {
        let path = socket_path(directory);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            Ok(()) | Err(_) => {}
        }
        let listener = UnixListener::bind(&path)?;
        std::fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        Ok(Place { listener, path, given: false })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.given {
            // A file that stays is taken for nobody's at the next start.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// What is given away.
pub struct Giver {
    /// With its lock.
    pub store: Store,
    /// None may run.
    pub jobs: Jobs,
    /// It ends before another begins.
    pub keeper: Keeper,
    /// Ends the keeper.
    pub keeper_token: CancellationToken,
    /// Ends the operators' surfaces.
    pub surfaces: CancellationToken,
    /// View and gate.
    pub board: Arc<Board>,
    /// The conversations with other processes.
    pub links: Arc<Links>,
    /// The listening sockets. Empty once the daemon stops: then nothing may keep them open.
    pub shared: Mutex<Vec<Shared>>,
}

type Reader = BufReader<OwnedReadHalf>;

impl Giver {
    /// Waits until somebody has taken over; then only clients are left here. Attempts that fail change nothing.
    pub async fn until_given(self: Arc<Self>, mut place: Place) {
        loop {
            let stream = match place.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(event = "takeover.accept_failed", %error);
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            match self.give(stream, &mut place).await {
                Ok(stream) => {
                    tokio::spawn(self.links.clone().converse(Side::After, stream));
                    self.forget_sockets();
                    return;
                }
                Err(error) => tracing::warn!(event = "takeover.failed", %error, "this process goes on"),
            }
        }
    }

    /// Closes the further descriptors of the listening sockets.
    pub fn forget_sockets(&self) {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    async fn give(&self, stream: UnixStream, place: &mut Place) -> Result<UnixStream, String> {
        let text = |e: io::Error| e.to_string();
        let peer = stream.peer_cred().map_err(text)?;
        if peer.uid() != nix::unistd::geteuid().as_raw() && peer.uid() != 0 {
            return Err(format!("user {} asked, who is neither root nor this daemon's user", peer.uid()));
        }
        let (reader, mut writer) = stream.into_split();
        let mut reader = BufReader::new(reader);
        let Word::Ask { version, pid } = next(&mut reader).await? else { return Err("expected a request".into()) };
        tracing::info!(event = "takeover.asked", pid);
        if version != VERSION {
            return refuse(&mut writer, format!("it speaks version {version}, this process {VERSION}")).await;
        }
        self.refuse_while_busy(&mut writer).await?;
        let rest = self.pass(writer.as_ref())?;
        writer.write_all(&rest).await.map_err(text)?;
        let Word::Prepared = next(&mut reader).await? else { return Err("expected that it is prepared".into()) };
        self.refuse_while_busy(&mut writer).await?;
        // From here on there is one writer less, and soon another: the new process.
        self.keeper_token.cancel();
        self.keeper.ended().await;
        for shared in self.shared.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            shared.left.set();
        }
        self.surfaces.cancel();
        place.given = true;
        let now = self.board.read();
        let gate = GateWords::of(&now.gate, Instant::now());
        let yours = Word::Yours { view: now.view.as_ref().clone(), gate };
        writer.write_all(&yours.line()).await.map_err(text)?;
        let served = next(&mut reader).await;
        let Ok(Word::Serving) = served else {
            return Err(
                "the new process ended before it served; this one serves without a control plane, start another \
                        one with --takeover"
                    .into(),
            );
        };
        self.store.leave_lock();
        tracing::info!(event = "takeover.done", pid);
        reader.into_inner().reunite(writer).map_err(|e| e.to_string())
    }

    async fn refuse_while_busy(&self, writer: &mut tokio::net::unix::OwnedWriteHalf) -> Result<(), String> {
        match self.jobs.list().into_iter().find(|job| job.outcome == Outcome::Running) {
            Some(job) => refuse(writer, format!("job {} ({}) is running", job.id, job.kind)).await,
            None => Ok(()),
        }
    }

    /// Sends the sockets and the lock; returns what is left of the line.
    fn pass(&self, stream: &UnixStream) -> Result<Vec<u8>, String> {
        let lock = self.store.share_lock().map_err(|e| format!("the lock: {e}"))?;
        let shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if shared.is_empty() {
            return Err("this process is stopping".into());
        }
        let listeners = shared.iter().map(|one| one.address.clone()).collect();
        let mut descriptors: Vec<_> = shared.iter().map(|one| one.descriptor.as_fd()).collect();
        descriptors.push(lock.as_fd());
        let mut line = Word::Here { listeners }.line();
        // The socket's buffer is empty, so it takes the message at once.
        let sent = stream.try_io(Interest::WRITABLE, || send(stream, &line, &descriptors));
        let sent = sent.map_err(|e| format!("the sockets could not be passed: {e}"))?;
        Ok(line.split_off(sent.min(line.len())))
    }
}

async fn next(reader: &mut Reader) -> Result<Word, String> {
    let mut line = Vec::new();
    match tokio::time::timeout(PATIENCE, read_line(reader, &mut line)).await {
        Err(_) => Err(format!("the new process said nothing for {PATIENCE:?}")),
        Ok(Err(error)) => Err(error.to_string()),
        Ok(Ok(())) if line.is_empty() => Err("the new process has ended".into()),
        Ok(Ok(())) => Word::read(&line),
    }
}

async fn refuse<T>(writer: &mut tokio::net::unix::OwnedWriteHalf, why: String) -> Result<T, String> {
    // Best effort: who asked may be gone.
    let _ = writer.write_all(&Word::Refused { why: why.clone() }.line()).await;
    Err(format!("refused: {why}"))
}
