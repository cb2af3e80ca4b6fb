//! A daemon's life: read, lock, listen, serve, and end as it was told.

use super::adapters::{KeeperAttach, KeeperPort, PlanePort, RecoveryJobs, StoreMemory};
use super::data_plane::DataPlane;
use super::runtime_config::{RuntimeConfig, plane_settings, startup_context};
use crate::admin::{self, Admin, Daemon, PcpOperator, PoolAnswers, StopMode};
use crate::auth::Secrets;
use crate::client::{Order, Plane};
use crate::cluster::Board;
use crate::config::{Config, Source};
use crate::keeper::{CaFile, Keeper, initial_view};
use crate::recovery::Recovery;
use crate::store::Store;
use crate::workflow::Jobs;
use crate::{net, telemetry};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Threads of the control plane: one may sit in an fsync.
const CONTROL_THREADS: usize = 2;
/// How long a fast stop waits for the farewells to clients.
const FAST_STOP: Duration = Duration::from_secs(5);
/// How long a stop waits for running jobs to undo what they can.
const JOBS_STOP: Duration = Duration::from_secs(10);
/// How long the start waits for the end of what an interrupted recovery left.
const CLEANUP_PATIENCE: Duration = Duration::from_secs(15);
/// Between two looks whether the last client has gone.
const LOOK: Duration = Duration::from_millis(50);
/// Stop orders that may wait.
const STOPS: usize = 8;

/// How a daemon is started.
#[derive(Clone, Copy, Debug, Default)]
pub struct RunOptions {
    /// `-D`: forget the states of the nodes.
    pub discard_status: bool,
}

/// Runs the daemon to its end.
pub fn run(source: Source, options: RunOptions) -> ExitCode {
    match try_run(source, options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pgmend: {error}");
            ExitCode::FAILURE
        }
    }
}

fn try_run(source: Source, options: RunOptions) -> Result<(), String> {
    let mut config = source.load().map_err(|e| e.to_string())?;
    config.store.discard_status |= options.discard_status;
    telemetry::init(&config.log_level).map_err(|e| e.to_string())?;
    for (name, why) in &config.not_honoured {
        tracing::warn!(event = "config.not_honoured", parameter = %name, "{why}");
    }
    for (key, why) in crate::config::remarks(&config) {
        tracing::warn!(event = "config.remark", parameter = %key, "{why}");
    }
    // The lock comes before the sockets: SO_REUSEPORT would let a second daemon bind without a word.
    let store = Store::open(&config.store).map_err(|e| e.to_string())?;
    let mock_key = store.login_key().map_err(|e| e.to_string())?;
    let secrets = Secrets::load(&config.auth, mock_key).map_err(|e| e.to_string())?;
    let (startup, secrets) = startup_context(&config, secrets)?;
    let memory = Arc::new(StoreMemory { store: store.clone(), discard: config.store.discard_status });
    let board = Board::new(initial_view(&config.nodes, &*memory, unix_seconds()));
    let listeners = net::bind(&config.listen).map_err(|e| e.to_string())?;
    let control = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .thread_name("control")
        .enable_all()
        .build()
        .map_err(|e| format!("no runtime for the control plane: {e}"))?;
    let plane = Plane::new(board.clone(), plane_settings(&config), startup);
    let pid_file = config.pid_file.clone().map(PidFile::write).transpose()?;
    let runtime = RuntimeConfig::new(source, config.clone(), secrets);
    let outcome = control.block_on(serve(Parts { config, runtime, store, memory, board, listeners, plane }));
    drop(pid_file);
    // Connections of the control plane need no farewell.
    control.shutdown_timeout(Duration::from_secs(1));
    outcome
}

/// What is ready before the control plane's runtime is entered.
struct Parts {
    config: Config,
    runtime: Arc<RuntimeConfig>,
    store: Store,
    memory: Arc<StoreMemory>,
    board: Arc<Board>,
    listeners: Vec<net::Listener>,
    plane: Arc<Plane>,
}

async fn serve(parts: Parts) -> Result<(), String> {
    let Parts { config, runtime, store, memory, board, listeners, plane } = parts;
    let text = |e: std::io::Error| e.to_string();
    let control = CancellationToken::new();
    let api = admin::http::bind(&config.admin).map_err(text)?;
    let pcp = match &config.admin.pcp {
        Some(settings) => Some(admin::pcp::bind(settings).map_err(|e| format!("PCP: {e}"))?),
        None => None,
    };
    let (passwords, authorities) = (runtime.clone(), runtime.clone());
    let ca_file: CaFile = Arc::new(move || authorities.now().server.ca_file.clone());
    let keeper = Keeper::start(
        board.clone(),
        memory,
        config.health.clone(),
        ca_file.clone(),
        Arc::new(move |user: &str| passwords.password_of(user)),
        control.clone(),
    );
    let jobs = Jobs::new(store.clone()).map_err(|e| e.to_string())?;
    let recovery_settings = runtime.clone();
    let recovery = Recovery::new(
        board.clone(),
        Arc::new(KeeperAttach(keeper.clone())),
        store,
        jobs.clone(),
        Arc::new(move || with_passwords(&recovery_settings)),
        ca_file,
    );
    recovery.cleanup_within(CLEANUP_PATIENCE).await;
    let data = Arc::new(DataPlane::start(plane.clone(), listeners, config.listen.workers).map_err(text)?);
    let (stops, mut stop_orders) = mpsc::channel(STOPS);
    let daemon = Arc::new(ThisDaemon {
        runtime,
        data: data.clone(),
        keeper: keeper.clone(),
        control: tokio::runtime::Handle::current(),
        stops,
    });
    let nodes = Arc::new(KeeperPort(keeper));
    let recoveries = Arc::new(RecoveryJobs { recovery, jobs: jobs.clone() });
    let admin = Admin::new(board, nodes, recoveries, Arc::new(PlanePort(plane.clone())), daemon.clone());
    let answers: Box<dyn crate::client::PoolCommands> = Box::new(PoolAnswers::new(admin.clone()));
    plane.commands.store(Some(Arc::new(answers)));
    tokio::spawn(admin::http::serve(api, admin.clone(), config.admin.clone(), control.clone()));
    if let Some(bound) = pcp {
        tokio::spawn(bound.serve(Arc::new(PcpOperator(admin)), control.clone()));
    }
    tracing::info!(event = "daemon.ready", pid = std::process::id(), port = config.listen.port);
    // Not under systemd: there is nobody to tell.
    let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Ready]);
    let mode = until_stopped(&daemon, &mut stop_orders).await?;
    let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Stopping]);
    stop(mode, &daemon, &mut stop_orders, &jobs).await?;
    control.cancel();
    tracing::info!(event = "daemon.stopped");
    Ok(())
}

/// Waits for signals and orders; the first that ends the daemon is returned.
async fn until_stopped(daemon: &Arc<ThisDaemon>, orders: &mut mpsc::Receiver<StopMode>) -> Result<StopMode, String> {
    let listen = |kind| signal(kind).map_err(|e| format!("signals: {e}"));
    let (mut hangup, mut term) = (listen(SignalKind::hangup())?, listen(SignalKind::terminate())?);
    let (mut int, mut quit) = (listen(SignalKind::interrupt())?, listen(SignalKind::quit())?);
    loop {
        tokio::select! {
            _ = hangup.recv() => {
                let daemon = daemon.clone();
                // Files are read, on a thread that may block. The outcome stands in the log.
                tokio::task::spawn_blocking(move || { let _ = daemon.reload(); });
            }
            _ = term.recv() => return Ok(StopMode::Smart),
            _ = int.recv() => return Ok(StopMode::Fast),
            _ = quit.recv() => return Ok(StopMode::Immediate),
            order = orders.recv() => return Ok(order.unwrap_or(StopMode::Fast)),
        }
    }
}

/// Smart: until the last client has ended its transaction, or a harder order comes. Fast: until clients were told.
async fn stop(
    mode: StopMode,
    daemon: &Arc<ThisDaemon>,
    orders: &mut mpsc::Receiver<StopMode>,
    jobs: &Jobs,
) -> Result<(), String> {
    tracing::info!(event = "daemon.stopping", ?mode, clients = daemon.data.clients());
    daemon.data.close_doors();
    let mut mode = mode;
    if mode == StopMode::Smart {
        daemon.data.order(|| Order::StopSmart);
        let ended = async {
            while !daemon.data.is_finished() {
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::select! {
            () = ended => {}
            harder = until_stopped(daemon, orders) => mode = harder?,
        }
    }
    if mode == StopMode::Immediate {
        return Ok(());
    }
    if !daemon.data.is_finished() {
        daemon.data.order(|| Order::StopFast);
        let _ = tokio::time::timeout(FAST_STOP, async {
            while !daemon.data.is_finished() {
                tokio::time::sleep(LOOK).await;
            }
        })
        .await;
    }
    jobs.stop(JOBS_STOP).await;
    Ok(())
}

/// The recovery settings with passwords from the secret files where the configuration gives none.
fn with_passwords(runtime: &RuntimeConfig) -> crate::recovery::Settings {
    let mut settings = runtime.now().recovery.clone();
    if settings.password.is_empty() {
        settings.password = runtime.password_of(&settings.user).unwrap_or_default();
        settings.password_is_hash = settings.password.is_empty() && runtime.has_hash_of(&settings.user);
    }
    if settings.replication_password.is_empty() {
        settings.replication_password = runtime.password_of(&settings.replication_user).unwrap_or_default();
    }
    settings
}

/// The daemon as operators reach it.
pub struct ThisDaemon {
    runtime: Arc<RuntimeConfig>,
    data: Arc<DataPlane>,
    keeper: Keeper,
    control: tokio::runtime::Handle,
    stops: mpsc::Sender<StopMode>,
}

impl Daemon for ThisDaemon {
    fn reload(&self) -> Result<String, String> {
        self.runtime.reload(&self.data, &self.keeper, &self.control)
    }

    fn stop(&self, mode: StopMode) {
        // When so many wait already, the daemon is stopping.
        let _ = self.stops.try_send(mode);
    }

    fn clients(&self) -> u64 {
        self.data.clients() as u64
    }

    fn moved(&self) -> u64 {
        self.data.plane.moved()
    }

    fn pending_restart(&self) -> Vec<String> {
        self.runtime.pending_restart()
    }

    fn listed_parameters(&self) -> Vec<(String, String, String)> {
        self.runtime.now().listed.clone()
    }
}

/// The pid file; removed when the daemon ends.
struct PidFile(PathBuf);

impl PidFile {
    fn write(path: PathBuf) -> Result<PidFile, String> {
        let text = format!("{}\n", std::process::id());
        std::fs::write(&path, text).map_err(|e| format!("pid file {}: {e}", path.display()))?;
        Ok(PidFile(path))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        tracing::warn!(event = "pid_file.not_removed", path = %path.display(), %error);
    }
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
