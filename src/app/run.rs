//! A daemon's life: read, lock, listen, serve, and end as it was told.

use super::adapters::{
    KeeperAttach, KeeperDivergences, KeeperPort, MaintenanceJobs, PlanePort, RebuildByRecovery, RecoveryJobs,
    StoreMemory,
};
use super::data_plane::DataPlane;
use super::runtime_config::{LoginSurroundings, RuntimeConfig, plane_settings, startup_context};
use super::stop::End;
use super::takeover::{self, Giver, Links, Side};
use crate::admin::{self, Admin, Daemon, PcpOperator, PoolAnswers, StopMode};
use crate::auth::Secrets;
use crate::client::Plane;
use crate::client::startup::StartupContext;
use crate::cluster::{Board, Mode, NodeSpec, NodeView, Published, View};
use crate::config::{Config, Source};
use crate::keeper::{Compare, Keeper, ServerTlsOf, initial_view};
use crate::maintenance::{self, Maintenance};
use crate::net::{Inherited, ServerTls, Shared};
use crate::recovery::Recovery;
use crate::store::Store;
use crate::workflow::Jobs;
use crate::{net, telemetry};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Threads of the control plane: one may sit in an fsync.
const CONTROL_THREADS: usize = 2;
/// How long the start waits for the end of what an interrupted recovery left.
const CLEANUP_PATIENCE: Duration = Duration::from_secs(15);
/// Stop orders that may wait.
const STOPS: usize = 8;

/// How a daemon is started.
#[derive(Clone, Copy, Debug, Default)]
pub struct RunOptions {
    /// `-D`: forget the states of the nodes.
    pub discard_status: bool,
    /// Take the place of the process that runs on the same state directory, if there is one.
    pub takeover: bool,
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
    let control = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .thread_name("control")
        .enable_all()
        .build()
        .map_err(|e| format!("no runtime for the control plane: {e}"))?;
    let server_tls = ServerTls::load(&config.server.tls).map_err(text)?;
    let around = |board: &Arc<Board>| LoginSurroundings {
        board: board.clone(),
        server_tls: server_tls.clone(),
        control: control.handle().clone(),
    };
    let inheritance = if options.takeover { takeover::ask(&config.store.directory)? } else { None };
    match inheritance {
        None => {
            // The lock comes before the sockets: who may not run says so, and takes no address from anybody meanwhile.
            let store = Store::open(&config.store).map_err(text)?;
            let bound = Bound::bind(&config, &mut Inherited::default())?;
            let memory = Arc::new(StoreMemory { store: store.clone(), discard: config.store.discard_status });
            let board = Board::new(initial_view(&config.nodes, config.mode, &*memory, unix_seconds()));
            let (startup, secrets) = startup_context(&config, load_secrets(&config)?, around(&board))?;
            let runtime = RuntimeConfig::new(source, config.clone(), secrets, server_tls.clone());
            let before = None;
            run_control(control, Parts { config, runtime, server_tls, startup, store, memory, board, bound, before })
        }
        Some(_) if config.mode == Mode::SnapshotIsolation => Err(format!(
            "takeover: not in {}: two processes would not keep each other's snapshots and commits apart; stop the daemon that \
             runs, then start",
            config.mode
        )),
        Some(mut inheritance) => {
            let bound = Bound::bind(&config, &mut inheritance.listeners)?;
            // The board gets its true view below; what can fail comes first.
            let board =
                Board::new(View { generation: 0, mode: config.mode, nodes: Vec::new(), primary: None, epoch: None });
            let (startup, secrets) = startup_context(&config, load_secrets(&config)?, around(&board))?;
            // Nothing has changed up to here; from here on the daemon is this process.
            let (view, gate, lock, before) = inheritance.take()?;
            let store = Store::take_over(&config.store, lock).map_err(text)?;
            let memory = Arc::new(StoreMemory { store: store.clone(), discard: config.store.discard_status });
            let view = Arc::new(view_after(view, &config, &memory));
            board.publish(|_| {
                Some(Published { view: view.clone(), gate: Arc::new(gate.gate(std::time::Instant::now())) })
            });
            let runtime = RuntimeConfig::new(source, config.clone(), secrets, server_tls.clone());
            let before = Some(before);
            run_control(control, Parts { config, runtime, server_tls, startup, store, memory, board, bound, before })
        }
    }
}

fn load_secrets(config: &Config) -> Result<Secrets, String> {
    let mock_key = Store::login_key_of(&config.store).map_err(text)?;
    Secrets::load(&config.auth, mock_key).map_err(text)
}

/// The view of the process before goes on where the nodes are the same; so nobody waits for the first probes.
fn view_after(view: View, config: &Config, memory: &StoreMemory) -> View {
    let is_same = |(seen, spec): (&NodeView, &NodeSpec)| seen.spec.host == spec.host && seen.spec.port == spec.port;
    if memory.discard
        || view.mode != config.mode
        || view.nodes.len() != config.nodes.len()
        || !view.nodes.iter().zip(&config.nodes).all(is_same)
    {
        return initial_view(&config.nodes, config.mode, memory, unix_seconds());
    }
    let nodes = view.nodes.into_iter().zip(&config.nodes);
    View { nodes: nodes.map(|(seen, spec)| NodeView { spec: Arc::new(spec.clone()), ..seen }).collect(), ..view }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Enters the control plane's runtime, for the daemon's whole life.
fn run_control(control: tokio::runtime::Runtime, parts: Parts) -> Result<(), String> {
    let pid_file = parts.config.pid_file.clone().map(PidFile::write).transpose()?;
    let outcome = control.block_on(serve(parts));
    drop(pid_file);
    // Connections of the control plane need no farewell.
    control.shutdown_timeout(Duration::from_secs(1));
    outcome
}

/// All listening sockets.
struct Bound {
    clients: Vec<net::Listener>,
    api: admin::http::Bound,
    pcp: Option<admin::pcp::Bound>,
}

impl Bound {
    fn bind(config: &Config, inherited: &mut Inherited) -> Result<Bound, String> {
        let clients = net::bind_after(&config.listen, inherited).map_err(text)?;
        let api = admin::http::bind_after(&config.admin, inherited).map_err(text)?;
        let pcp = match &config.admin.pcp {
            Some(settings) => Some(admin::pcp::bind_after(settings, inherited).map_err(|e| format!("PCP: {e}"))?),
            None => None,
        };
        Ok(Bound { clients, api, pcp })
    }

    /// Further descriptors of all, for a process that takes over.
    fn share(&self) -> std::io::Result<Vec<Shared>> {
        let mut shared = self.clients.iter().map(net::Listener::share).collect::<Result<Vec<_>, _>>()?;
        shared.push(self.api.share()?);
        if let Some(pcp) = &self.pcp {
            shared.extend(pcp.share()?);
        }
        Ok(shared)
    }
}

/// What is ready before the control plane's runtime is entered.
struct Parts {
    config: Config,
    runtime: Arc<RuntimeConfig>,
    server_tls: Arc<ServerTls>,
    startup: StartupContext,
    store: Store,
    memory: Arc<StoreMemory>,
    board: Arc<Board>,
    bound: Bound,
    /// The process that was taken over waits here until clients are served.
    before: Option<UnixStream>,
}

async fn serve(parts: Parts) -> Result<(), String> {
    let Parts { config, runtime, server_tls, startup, store, memory, board, bound, before } = parts;
    let plane = Plane::new(board.clone(), plane_settings(&config, server_tls), startup);
    let links = Links::new(plane.clone());
    let shared = bound.share().map_err(text)?;
    let Bound { clients: listeners, api, pcp } = bound;
    let control = CancellationToken::new();
    let (keeper_token, surfaces) = (control.child_token(), control.child_token());
    let (passwords, authorities) = (runtime.clone(), runtime.clone());
    let tls: ServerTlsOf = Arc::new(move || authorities.server_tls());
    let keeper = Keeper::start(
        board.clone(),
        memory,
        config.health.clone(),
        tls.clone(),
        Arc::new(move |user: &str| passwords.password_of(user)),
        comparer(runtime.clone()),
        keeper_token.clone(),
    );
    let predecessor = links.clone();
    let divergences: Box<dyn crate::client::Divergences> =
        Box::new(KeeperDivergences { keeper: keeper.clone(), links: predecessor.clone() });
    plane.divergences.store(Some(Arc::new(divergences)));
    let jobs = Jobs::new(store.clone()).map_err(|e| e.to_string())?;
    let recovery_settings = runtime.clone();
    let recovery = Recovery::new(
        board.clone(),
        Arc::new(KeeperAttach(keeper.clone())),
        store.clone(),
        jobs.clone(),
        Arc::new(move || with_passwords(&recovery_settings)),
        tls.clone(),
    );
    let maintenance = maintenance(&board, &keeper, &store, &jobs, &runtime, &recovery, tls);
    recovery.cleanup_within(CLEANUP_PATIENCE).await;
    for finding in maintenance.clean_up_after_crash().await {
        tracing::warn!(event = "maintenance.found_after_crash", "{finding}");
    }
    if config.mode.replicates() {
        // Where this cannot be written, an end by a crash would be taken for an orderly one.
        store.take_clean_back().map_err(text)?;
    }
    let data = Arc::new(DataPlane::start(plane.clone(), listeners, config.listen.workers).map_err(text)?);
    let (stops, stop_orders) = mpsc::channel(STOPS);
    let daemon = Arc::new(ThisDaemon {
        runtime,
        data: data.clone(),
        keeper: keeper.clone(),
        control: tokio::runtime::Handle::current(),
        stops,
    });
    if let Some(before) = before {
        begin_with(before, &links).await?;
    }
    let giver = Arc::new(Giver {
        store: store.clone(),
        jobs: jobs.clone(),
        keeper: keeper.clone(),
        keeper_token,
        surfaces: surfaces.clone(),
        board: board.clone(),
        links,
        shared: shared.into(),
    });
    let nodes = Arc::new(KeeperPort { keeper: keeper.clone(), maintenance: maintenance.clone() });
    tokio::spawn(maintenance.clone().watch(control.child_token()));
    tokio::spawn(maintenance.clone().guard(control.child_token()));
    let recoveries = Arc::new(RecoveryJobs { recovery, jobs: jobs.clone(), maintenance: maintenance.clone() });
    let (traffic, planned) = (Arc::new(PlanePort(plane.clone())), Arc::new(MaintenanceJobs(maintenance)));
    let admin = Admin::new(board, nodes, recoveries, traffic, planned, daemon.clone());
    let answers: Box<dyn crate::client::PoolCommands> = Box::new(PoolAnswers::new(admin.clone()));
    plane.commands.store(Some(Arc::new(answers)));
    tokio::spawn(admin::http::serve(api, admin.clone(), config.admin.clone(), surfaces.clone()));
    if let Some(bound) = pcp {
        tokio::spawn(bound.serve(Arc::new(PcpOperator(admin)), surfaces));
    }
    tokio::spawn(watch_certificates(daemon.runtime.clone(), control.clone()));
    tracing::info!(event = "daemon.ready", pid = std::process::id(), port = config.listen.port);
    // Not under systemd: there is nobody to tell.
    let pid = sd_notify::NotifyState::MainPid(std::process::id());
    let _ = sd_notify::notify(false, &[pid, sd_notify::NotifyState::Ready]);
    let end = End { daemon, orders: stop_orders, jobs, giver };
    let orderly = end.when_it_comes(&config.store.directory).await?;
    control.cancel();
    // A process before us that still has clients may be in the middle of a write.
    if orderly && config.mode.replicates() && !predecessor.has_before() {
        // The keeper's own saves would take it back.
        keeper.ended().await;
        store.save_clean().map_err(text)?;
    }
    tracing::info!(event = "daemon.stopped");
    Ok(())
}

/// Planned work, with all that it stands on.
fn maintenance(
    board: &Arc<Board>,
    keeper: &Keeper,
    store: &Store,
    jobs: &Jobs,
    runtime: &Arc<RuntimeConfig>,
    recovery: &Recovery,
    tls: ServerTlsOf,
) -> Maintenance {
    let (limits, access, streaming) = (runtime.clone(), runtime.clone(), runtime.clone());
    let rebuild = RebuildByRecovery {
        recovery: recovery.clone(),
        jobs: jobs.clone(),
        settings: Arc::new(move || with_passwords(&streaming)),
        tls: tls.clone(),
    };
    Maintenance::new(maintenance::Surroundings {
        board: board.clone(),
        keeper: keeper.clone(),
        store: store.clone(),
        jobs: jobs.clone(),
        settings: Arc::new(move || limits.now().maintenance.clone()),
        access: Arc::new(move || {
            let recovery = with_passwords(&access);
            maintenance::Access {
                user: recovery.user,
                password: recovery.password,
                database: recovery.database,
                bin_directory: recovery.bin_directory,
                start_timeout: recovery.timeout,
            }
        }),
        tls,
        rebuild: Arc::new(rebuild),
    })
}

/// Tells once a day of certificates that have ended or soon will. The start and each reload have told it themselves.
async fn watch_certificates(runtime: Arc<RuntimeConfig>, token: CancellationToken) {
    loop {
        let day = tokio::time::sleep(Duration::from_secs(24 * 3600));
        if token.run_until_cancelled(day).await.is_none() {
            return;
        }
        let config = runtime.now();
        let now_s = i64::try_from(unix_seconds()).unwrap_or(i64::MAX);
        for (key, why) in crate::config::endings(&config, now_s) {
            tracing::warn!(event = "config.remark", parameter = %key, "{why}");
        }
    }
}

/// Clients are served: the process before may close its doors. Then both speak on.
async fn begin_with(before: UnixStream, links: &Arc<Links>) -> Result<(), String> {
    let stream = before.set_nonblocking(true).and_then(|()| tokio::net::UnixStream::from_std(before));
    let mut stream = stream.map_err(|e| format!("takeover: {e}"))?;
    takeover::serving(&mut stream).await.map_err(|e| format!("takeover: the process before has gone: {e}"))?;
    tokio::spawn(links.clone().converse(Side::Before, stream));
    Ok(())
}

/// Compares nodes as `recovery_user`.
fn comparer(runtime: Arc<RuntimeConfig>) -> Compare {
    Arc::new(move |main, other| {
        let settings = with_passwords(&runtime);
        let login = crate::recovery::compare::Login {
            user: settings.user,
            password: settings.password,
            database: settings.database,
            tls: runtime.server_tls(),
        };
        Box::pin(async move { crate::recovery::compare::compare(&login, &main, &other).await })
    })
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
    pub(super) runtime: Arc<RuntimeConfig>,
    pub(super) data: Arc<DataPlane>,
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

/// The pid file; removed when the daemon ends, unless another process has taken over.
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
        let own = std::process::id().to_string();
        if std::fs::read_to_string(&self.0).is_ok_and(|text| text.trim() == own) {
            remove(&self.0);
        }
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
