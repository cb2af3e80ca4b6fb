//! What is in force for one user in one database: the global rules with what sections of databases and users change.

use super::PoolMode;
use super::core::Sizes;
use std::time::Duration;

macro_rules! rules {
    ($($(#[$doc:meta])* $name:ident: $type:ty,)*) => {
        /// Limits and times of one user in one database. Zero means none, except where said otherwise.
        #[derive(Clone, Debug, PartialEq)]
        pub struct Rules { $($(#[$doc])* pub $name: $type,)* }

        /// What one section changes; `None` leaves it as it is.
        #[derive(Clone, Debug, PartialEq, Default)]
        pub struct Overrides { $($(#[$doc])* pub $name: Option<$type>,)* }

        impl Rules {
            /// Takes what the section sets.
            pub fn apply(&mut self, section: &Overrides) {
                $(if let Some(value) = &section.$name { self.$name = value.clone(); })*
            }
        }
    };
}

rules! {
    /// `pool_mode`.
    mode: PoolMode,
    /// `default_pool_size`, `pool_size`: server connections per user and database, over all workers; at least one.
    size: usize,
    /// `min_pool_size`: kept open while the pool has clients.
    min_size: usize,
    /// `reserve_pool_size`: further ones for who has waited for `reserve_pool_timeout`.
    reserve_size: usize,
    /// `reserve_pool_timeout`; zero: no reserve.
    reserve_timeout: Duration,
    /// `max_waiting_clients`: clients in the pool's queue.
    max_waiting: usize,
    /// `max_db_connections`: server connections of all users to a database.
    max_db_connections: usize,
    /// `max_user_connections`: server connections of a user to all databases.
    max_user_connections: usize,
    /// `max_db_client_connections`: clients of a database.
    max_db_clients: usize,
    /// `max_user_client_connections`: clients of a user.
    max_user_clients: usize,
    /// `query_wait_timeout`: longest wait for a server connection or for a primary.
    wait_timeout: Duration,
    /// `query_timeout`: longest time that a statement takes.
    query_timeout: Duration,
    /// `transaction_timeout`: longest time from a transaction's begin to its end.
    transaction_timeout: Duration,
    /// `idle_transaction_timeout`: longest pause of a client inside a transaction.
    idle_transaction_timeout: Duration,
    /// `client_idle_timeout`: longest pause between transactions.
    client_idle_timeout: Duration,
    /// `server_connect_timeout`: bound on TCP connect, TLS and login together; never zero.
    connect_timeout: Duration,
    /// `server_login_retry`: no further login for so long after the server refused one.
    login_retry: Duration,
    /// `server_idle_timeout`: an idle server connection is closed after this.
    server_idle_timeout: Duration,
    /// `server_lifetime`: a server connection is not reused after this.
    server_lifetime: Duration,
}

impl Default for Rules {
    /// As `pgmend.toml` has them when it says nothing.
    fn default() -> Rules {
        Rules {
            mode: PoolMode::Transaction,
            size: 20,
            min_size: 0,
            reserve_size: 0,
            reserve_timeout: Duration::from_secs(5),
            max_waiting: 0,
            max_db_connections: 0,
            max_user_connections: 0,
            max_db_clients: 0,
            max_user_clients: 0,
            wait_timeout: Duration::from_secs(120),
            query_timeout: Duration::ZERO,
            transaction_timeout: Duration::ZERO,
            idle_transaction_timeout: Duration::ZERO,
            client_idle_timeout: Duration::ZERO,
            connect_timeout: Duration::from_secs(15),
            login_retry: Duration::from_secs(1),
            server_idle_timeout: Duration::from_secs(600),
            server_lifetime: Duration::from_secs(3600),
        }
    }
}

impl Rules {
    /// The part that the budget keeps.
    pub fn sizes(&self) -> Sizes {
        Sizes {
            size: self.size.max(1),
            min: self.min_size.min(self.size),
            reserve: if self.reserve_timeout.is_zero() { 0 } else { self.reserve_size },
            reserve_after_us: u64::try_from(self.reserve_timeout.as_micros()).unwrap_or(u64::MAX),
            max_waiting: self.max_waiting,
            database: self.max_db_connections,
            user: self.max_user_connections,
        }
    }
}
