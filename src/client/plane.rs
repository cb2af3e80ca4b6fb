//! What all workers of the data plane share: settings, limits, statements, cancels.

use super::cancel::{Cancels, Elsewhere};
use super::commands::PoolCommands;
use super::control::Control;
use super::core::Statements;
use super::divergence::Divergences;
use super::listen::Listeners;
use super::own_limit::{self, Bounds, Told};
use super::pins::Pins;
use super::replicated::Snapshots;
use super::startup::StartupContext;
use super::tally::Tally;
use crate::cluster::{Board, Drain, OpenServers, Scope};
use crate::net::ServerTls;
use crate::pool::{Budget, PoolKey, SharedPool};
use crate::{client, pool, server};
use arc_swap::{ArcSwap, ArcSwapOption};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::time::Instant;

/// The part of the configuration that the data plane reads; replaced whole at reload.
#[derive(Debug)]
pub struct PlaneSettings {
    /// Clients.
    pub client: client::Settings,
    /// Pools.
    pub pool: pool::Settings,
    /// Servers.
    pub server: server::Settings,
    /// The replicating modes.
    pub replication: super::replicated::Settings,
    /// What becomes of clients while a recovery holds the gate.
    pub drain: Drain,
    /// `recovery_timeout`.
    pub recovery_timeout: std::time::Duration,
    /// TLS towards servers.
    pub server_tls: Arc<ServerTls>,
    /// TCP keepalive, both sides.
    pub keepalive: std::time::Duration,
}

/// Shared by all workers.
pub struct Plane {
    /// View and gate.
    pub board: Arc<Board>,
    /// Configuration.
    pub settings: ArcSwap<PlaneSettings>,
    /// How clients log in.
    pub startup: ArcSwap<StartupContext>,
    /// Cancel keys.
    pub cancels: Arc<Cancels>,
    /// Where cancels go whose key is unknown here.
    pub elsewhere: ArcSwapOption<Box<dyn Elsewhere>>,
    /// Prepared statements.
    pub statements: Statements,
    /// Who listens for the clients.
    pub listeners: Listeners,
    /// Clients bound to their servers.
    pub pins: Arc<Pins>,
    /// `SHOW POOL_*`.
    pub commands: ArcSwapOption<Box<dyn PoolCommands>>,
    /// Snapshot isolation's coordinator.
    pub snapshots: Arc<Snapshots>,
    /// Who takes out a node that differs.
    pub divergences: ArcSwapOption<Box<dyn Divergences>>,
    /// Clients connected, those that log in included.
    pub clients: AtomicUsize,
    /// Sessions so far: the last one's number.
    pub sessions: AtomicU64,
    /// Replication connections open.
    pub replications: Arc<AtomicUsize>,
    /// Transactions finished.
    pub transactions: AtomicU64,
    /// Second zero of the workers' coarse clocks.
    pub started: Instant,
    /// Limits on server connections over all pools.
    pub budget: Arc<Budget>,
    /// Clients by database and by user.
    pub tally: Arc<Tally>,
    pools: Arc<Pools>,
}

/// All pools. The board counts their servers.
#[derive(Debug, Default)]
struct Pools(Mutex<HashMap<PoolKey, Arc<SharedPool>>>);

impl Pools {
    fn lock(&self) -> MutexGuard<'_, HashMap<PoolKey, Arc<SharedPool>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OpenServers for Pools {
    fn open(&self, scope: &Scope) -> usize {
        self.lock().iter().filter(|(key, _)| scope.covers(&key.database)).map(|(_, pool)| pool.open()).sum()
    }
}

impl std::fmt::Debug for Plane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plane").field("clients", &self.clients).finish_non_exhaustive()
    }
}

/// Pools remembered; each is one user in one database that logged in.
const MAX_POOLS: usize = 100_000;

/// Connections beyond `max_client_conn` that are heard at all.
pub const BEYOND: usize = 64;

impl Plane {
    /// A plane without clients.
    pub fn new(board: Arc<Board>, settings: PlaneSettings, startup: StartupContext) -> Arc<Plane> {
        let budget = Budget::new();
        budget.set_node_limits(settings.pool.max_node_connections, settings.pool.max_new_connections);
        let plane = Arc::new(Plane {
            board,
            settings: ArcSwap::from_pointee(settings),
            startup: ArcSwap::from_pointee(startup),
            cancels: Arc::default(),
            elsewhere: ArcSwapOption::empty(),
            statements: Statements::default(),
            listeners: Listeners::default(),
            pins: Arc::default(),
            commands: ArcSwapOption::empty(),
            snapshots: Arc::default(),
            divergences: ArcSwapOption::empty(),
            clients: AtomicUsize::new(0),
            sessions: AtomicU64::new(0),
            replications: Arc::default(),
            transactions: AtomicU64::new(0),
            started: Instant::now(),
            budget,
            tally: Arc::default(),
            pools: Arc::default(),
        });
        plane.board.count_servers_by(plane.pools.clone());
        plane
    }

    /// The pool of a user in a database; `None` when there are too many pools.
    pub fn pool(&self, key: &PoolKey) -> Option<Arc<SharedPool>> {
        let mut pools = self.pools.lock();
        if let Some(pool) = pools.get(key) {
            return Some(pool.clone());
        }
        if pools.len() >= MAX_POOLS {
            return None;
        }
        let pool =
            SharedPool::new(key.clone(), self.settings.load().pool.rules(&key.user, &key.database), &self.budget);
        pools.insert(key.clone(), pool.clone());
        Some(pool)
    }

    /// Server connections that went from one worker to another, over all pools.
    pub fn moved(&self) -> u64 {
        self.pools.lock().values().map(|pool| pool.moved()).sum()
    }

    /// The pools of these databases.
    pub(super) fn pools_of(&self, scope: &Scope) -> Vec<Arc<SharedPool>> {
        self.pools.lock().iter().filter(|(key, _)| scope.covers(&key.database)).map(|(_, pool)| pool.clone()).collect()
    }

    /// Puts new settings in force: limits at once, the rest with each client's next transaction.
    pub fn reload(&self, settings: PlaneSettings, startup: StartupContext) {
        self.settings.store(Arc::new(settings));
        self.startup.store(Arc::new(startup));
        let settings = self.settings.load();
        let pools: Vec<_> = self.pools.lock().values().cloned().collect();
        for pool in pools {
            pool.set_rules(settings.pool.rules(&pool.key.user, &pool.key.database));
        }
        self.budget.set_node_limits(settings.pool.max_node_connections, settings.pool.max_new_connections);
        self.budget.tick();
    }

    /// The answer to a statement of pgmend's own, if it is one.
    pub(super) fn answer(&self, sql: &str, database: &str, control: &Control) -> Option<Told> {
        if sql.eq_ignore_ascii_case("show pins") {
            return Some(Told::Rows(self.pins.answer()));
        }
        let settings = self.settings.load();
        let is_admin = control.who.get().is_some_and(|who| settings.client.admin_users.contains(&who.user));
        let bounds =
            Bounds { configured: settings.drain.idle_limit, recovery_timeout: settings.recovery_timeout, is_admin };
        own_limit::answer(sql, &control.drain, &bounds)
            .or_else(|| self.commands.load_full().and_then(|c| c.answer(sql, database)).map(Told::Rows))
    }

    /// Carries a cancel request out, wherever its client is.
    pub async fn cancel(&self, pid: u32, key: &[u8]) {
        if !self.cancels.cancel(pid, key).await
            && let Some(elsewhere) = self.elsewhere.load_full()
        {
            elsewhere.cancel(pid, key.to_vec()).await;
        }
    }

    /// Counts a client in, also at its worker. Above `max_client_conn` a few more come in, to bring cancels or to be told
    /// so in a way that they understand; `None`: those are too many too.
    pub fn admit(self: &Arc<Self>, load: &Arc<AtomicUsize>) -> Option<Admitted> {
        let limit = self.settings.load().pool.max_clients;
        let most = limit.saturating_add(BEYOND);
        let counted = self.clients.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| (n < most).then_some(n + 1));
        counted.ok().map(|before| {
            load.fetch_add(1, Ordering::Relaxed);
            let beyond = (before >= limit).then_some(limit);
            Admitted { counted: Presence { plane: self.clone(), load: load.clone() }, beyond }
        })
    }
}

/// A client that has come.
#[derive(Debug)]
pub struct Admitted {
    /// It counts for as long as it is there.
    pub counted: Presence,
    /// `max_client_conn`, when there were so many already: no session for this one.
    pub beyond: Option<usize>,
}

/// A counted client; dropping it counts it out.
#[derive(Debug)]
pub struct Presence {
    plane: Arc<Plane>,
    load: Arc<AtomicUsize>,
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.plane.clients.fetch_sub(1, Ordering::AcqRel);
        self.load.fetch_sub(1, Ordering::Relaxed);
    }
}
