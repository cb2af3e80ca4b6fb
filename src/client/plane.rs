//! What all workers of the data plane share: settings, limits, statements, cancels.

use super::cancel::Cancels;
use super::commands::PoolCommands;
use super::core::Statements;
use super::listen::Listeners;
use super::pins::Pins;
use super::startup::StartupContext;
use crate::cluster::Board;
use crate::pool::{PoolKey, PoolMode, SharedPool};
use crate::{client, pool, server};
use arc_swap::{ArcSwap, ArcSwapOption};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
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
    /// Prepared statements.
    pub statements: Statements,
    /// Who listens for the clients.
    pub listeners: Listeners,
    /// Clients bound to their servers.
    pub pins: Arc<Pins>,
    /// `SHOW POOL_*`.
    pub commands: ArcSwapOption<Box<dyn PoolCommands>>,
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
    pools: Mutex<HashMap<PoolKey, Arc<SharedPool>>>,
}

impl std::fmt::Debug for Plane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plane").field("clients", &self.clients).finish_non_exhaustive()
    }
}

/// Pools remembered; each is one user in one database that logged in.
const MAX_POOLS: usize = 100_000;

impl Plane {
    /// A plane without clients.
    pub fn new(board: Arc<Board>, settings: PlaneSettings, startup: StartupContext) -> Arc<Plane> {
        Arc::new(Plane {
            board,
            settings: ArcSwap::from_pointee(settings),
            startup: ArcSwap::from_pointee(startup),
            cancels: Arc::default(),
            statements: Statements::default(),
            listeners: Listeners::default(),
            pins: Arc::default(),
            commands: ArcSwapOption::empty(),
            clients: AtomicUsize::new(0),
            sessions: AtomicU64::new(0),
            replications: Arc::default(),
            transactions: AtomicU64::new(0),
            started: Instant::now(),
            pools: Mutex::default(),
        })
    }

    /// The pool of a user in a database; `None` when there are too many pools.
    pub fn pool(&self, key: &PoolKey) -> Option<Arc<SharedPool>> {
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pool) = pools.get(key) {
            return Some(pool.clone());
        }
        if pools.len() >= MAX_POOLS {
            return None;
        }
        let pool = SharedPool::new(key.clone(), self.settings.load().pool_size(&key.database));
        pools.insert(key.clone(), pool.clone());
        Some(pool)
    }

    /// Server connections that went from one worker to another, over all pools.
    pub fn moved(&self) -> u64 {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner).values().map(|pool| pool.moved()).sum()
    }

    /// Puts new settings in force: sizes at once, the rest with each client's next transaction.
    pub fn reload(&self, settings: PlaneSettings, startup: StartupContext) {
        self.settings.store(Arc::new(settings));
        self.startup.store(Arc::new(startup));
        let settings = self.settings.load();
        let pools: Vec<_> = self.pools.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        for pool in pools {
            pool.resize(settings.pool_size(&pool.key.database));
        }
    }

    /// Counts a client in, also at its worker; `None` when `max_client_conn` is reached.
    pub fn admit(self: &Arc<Self>, load: &Arc<AtomicUsize>) -> Option<Admitted> {
        let limit = self.settings.load().pool.max_clients;
        self.clients.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| (n < limit).then_some(n + 1)).ok().map(
            |_| {
                load.fetch_add(1, Ordering::Relaxed);
                Admitted { plane: self.clone(), load: load.clone() }
            },
        )
    }
}

/// A counted client; dropping it counts it out.
#[derive(Debug)]
pub struct Admitted {
    plane: Arc<Plane>,
    load: Arc<AtomicUsize>,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.plane.clients.fetch_sub(1, Ordering::AcqRel);
        self.load.fetch_sub(1, Ordering::Relaxed);
    }
}

impl PlaneSettings {
    fn pool_size(&self, database: &str) -> usize {
        self.pool.databases.get(database).and_then(|d| d.size).unwrap_or(self.pool.size)
    }

    /// The pool mode for a database.
    pub fn mode(&self, database: &str) -> PoolMode {
        self.pool.databases.get(database).and_then(|d| d.mode).unwrap_or(self.pool.mode)
    }
}
