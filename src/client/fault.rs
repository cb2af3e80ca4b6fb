//! Why a session ends, and the one place that decides what its client sees of it.

use super::activity::Limit;
use super::control::End;
use super::drain::Drained;
use super::tally::TooMany;
use crate::wire::backend::ErrorFields;
use std::time::Duration;

/// The end of a session, by whose fault it is.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// Statement pooling allows no transaction blocks.
    #[error("transaction blocks are not allowed in statement pooling (pool_mode = \"statement\")")]
    TransactionBlock,
    /// Too many clients of the pool are bound to their servers.
    #[error("{0} clients of this pool are bound to their server connections already (max_pins)")]
    Pins(usize),
    /// Too many replication connections.
    #[error("{0} replication connections are open already (max_replication_conn)")]
    Replications(usize),
    /// The client closed its connection or it broke; there is nobody to tell.
    #[error("the client has gone")]
    ClientGone,
    /// The client broke the protocol.
    #[error("protocol violation: {0}")]
    Protocol(String),
    /// A limit of pgmend.
    #[error("{0}")]
    Limit(String),
    /// No server connection in time.
    #[error("no server connection became free within {0:?} (query_wait_timeout)")]
    QueueTimeout(Duration),
    /// No primary in time.
    #[error("no primary server could be reached within {0:?} (query_wait_timeout): {1}")]
    NoPrimary(Duration, String),
    /// Held at the gate for too long.
    #[error("the transaction was held for longer than {0:?} (query_wait_timeout): {1}")]
    Held(Duration, String),
    /// DISABLE.
    #[error("database \"{0}\" is disabled")]
    Disabled(String),
    /// KILL.
    #[error("terminating connection due to administrator command (KILL)")]
    Killed,
    /// A drain's limit.
    #[error("{0}")]
    Drained(Drained),
    /// The gate is held, and who comes now is not wanted.
    #[error("new connections are not accepted now: {0}")]
    Recovering(String),
    /// A cancel came while the statement was held: an answer, not an end.
    #[error("canceling statement due to user request")]
    Cancelled,
    /// The server refused the login; its own words are passed on.
    #[error("the server refused the login: {}", .0.message)]
    Refused(Box<ErrorFields>),
    /// pgmend cannot log in to the server, and waiting would not help.
    #[error("pgmend could not log in to the server: {0}")]
    Login(String),
    /// The server closed in the middle of something.
    #[error("the connection to the server was lost: {0}")]
    ServerLost(String),
    /// The server ended the session and has told the client why.
    #[error("the server ended the session")]
    ServerEnded,
    /// The server broke the protocol.
    #[error("the server sent something unexpected: {0}")]
    ServerProtocol(String),
    /// pgmend ends.
    #[error("terminating connection due to administrator command")]
    Shutdown,
    /// A time limit, in seconds.
    #[error("terminating connection due to {}", limit_told(.0, .1))]
    TimeLimit(Limit, u64),
    /// `max_waiting_clients`; 0: pgmend's own bound.
    #[error("too many clients wait for a server connection of this pool already{}", queue_told(.0))]
    QueueFull(usize),
    /// A limit on clients.
    #[error("{}", too_many_told(.0))]
    TooMany(TooMany),
}

impl From<End> for Fault {
    fn from(end: End) -> Fault {
        match end {
            End::Shutdown => Fault::Shutdown,
            End::Limit(limit, seconds) => Fault::TimeLimit(limit, seconds),
            End::Vanished => Fault::ClientGone,
            End::Killed => Fault::Killed,
            End::Drained(why) => Fault::Drained(why),
        }
    }
}

impl Fault {
    /// The ErrorResponse for the client; `None` when there is nobody to tell.
    /// SQLSTATEs: <https://www.postgresql.org/docs/current/errcodes-appendix.html>.
    pub fn response(&self) -> Option<ErrorFields> {
        let (code, hint) = match self {
            Fault::ClientGone | Fault::ServerEnded => return None,
            Fault::Refused(fields) => return Some(with_hint(fields)),
            Fault::Login(_) => ("08001", Some("pgmend's log tells what is wrong (event server.login_failed).")),
            Fault::Protocol(_) => ("08P01", None),
            Fault::Limit(_) => ("54000", None),
            Fault::QueueTimeout(_) => (
                "53300",
                Some(
                    "All server connections that this client may use are in use; raise pool_size (or max_db_connections, \
                     max_user_connections, max_node_connections where set) or shorten transactions.",
                ),
            ),
            Fault::NoPrimary(..) => ("08006", Some("See \"pgmend status\" for the state of the nodes.")),
            Fault::TransactionBlock => ("0A000", Some("Use transaction or session pooling for this database.")),
            Fault::Pins(_) => (
                "53400",
                Some("A temporary table, session lock, held cursor, LISTEN or PREPARE binds a client; see SHOW PINS."),
            ),
            Fault::Replications(_) => {
                ("53300", Some("Raise max_replication_conn, and max_wal_senders of the servers."))
            }
            Fault::ServerLost(_) => ("08006", Some("What the last statement did is not known.")),
            Fault::ServerProtocol(_) => ("08P01", None),
            Fault::Shutdown | Fault::Killed => ("57P01", None),
            Fault::TimeLimit(limit, _) => time_limit(*limit),
            Fault::QueueFull(_) => (
                "53300",
                Some("The queue is full: raise max_waiting_clients or the pool's size, or shorten transactions."),
            ),
            Fault::TooMany(TooMany::OfDatabase(..)) => {
                ("53300", Some("Close other connections, or raise max_db_client_connections."))
            }
            Fault::TooMany(TooMany::OfUser(..)) => {
                ("53300", Some("Close other connections, or raise max_user_client_connections."))
            }
            Fault::Held(..) => ("57P03", Some("An operator or a job holds the gate; see \"pgmend status\".")),
            Fault::Disabled(_) => ("57P03", None),
            Fault::Drained(why) => return Some(why.response()),
            Fault::Recovering(_) => ("57P03", Some("Try again in a moment (recovery_new_connections = \"reject\").")),
            Fault::Cancelled => ("57014", None),
        };
        Some(ErrorFields {
            severity: "FATAL".into(),
            code: code.into(),
            message: self.to_string(),
            detail: None,
            hint: hint.map(str::to_owned),
        })
    }
}

/// SQLSTATE as PostgreSQL's own limit of the kind has it, and what to do.
fn time_limit(limit: Limit) -> (&'static str, Option<&'static str>) {
    match limit {
        Limit::Query => ("57014", Some("The statement was cancelled. Make it shorter, or raise query_timeout.")),
        Limit::Transaction => {
            ("25P04", Some("The transaction was rolled back. Make it shorter, or raise transaction_timeout."))
        }
        Limit::IdleTransaction => (
            "25P03",
            Some(
                "The transaction was rolled back. End transactions when there is nothing to do, or raise \
                  idle_transaction_timeout.",
            ),
        ),
        Limit::ClientIdle => ("57P05", None),
    }
}

fn limit_told(limit: &Limit, seconds: &u64) -> String {
    let (what, name) = match limit {
        Limit::Query => ("statement", "query_timeout"),
        Limit::Transaction => ("transaction", "transaction_timeout"),
        Limit::IdleTransaction => ("idle-in-transaction", "idle_transaction_timeout"),
        Limit::ClientIdle => ("idle-session", "client_idle_timeout"),
    };
    format!("{what} timeout ({name} = {seconds}s)")
}

fn queue_told(limit: &usize) -> String {
    if *limit == 0 { String::new() } else { format!(" (max_waiting_clients = {limit})") }
}

fn too_many_told(limit: &TooMany) -> String {
    match limit {
        TooMany::OfDatabase(name, limit) => {
            format!("too many connections for database \"{name}\" (max_db_client_connections = {limit})")
        }
        TooMany::OfUser(name, limit) => {
            format!("too many connections for role \"{name}\" (max_user_client_connections = {limit})")
        }
    }
}

/// The server's own words; where they are about the password, whose it was.
fn with_hint(fields: &ErrorFields) -> ErrorFields {
    let mut fields = fields.clone();
    if fields.code == "28P01" && fields.hint.is_none() {
        let hint = "pgmend let the client in and was then refused by the server: the secret that pgmend holds for this \
                    user must be the server's own.";
        fields.hint = Some(hint.to_owned());
    }
    fields
}
