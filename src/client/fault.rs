//! Why a session ends, and the one place that decides what its client sees of it.

use super::worker::End;
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
    /// `client_idle_limit`.
    #[error("terminating connection due to client_idle_limit")]
    Idle,
}

impl From<End> for Fault {
    fn from(end: End) -> Fault {
        match end {
            End::Shutdown => Fault::Shutdown,
            End::Idle => Fault::Idle,
            End::Vanished => Fault::ClientGone,
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
                    "All server connections of this pool are in use; raise default_pool_size or shorten transactions.",
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
            Fault::Shutdown => ("57P01", None),
            Fault::Idle => ("57P05", None),
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
