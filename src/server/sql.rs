//! The control plane's SQL connection to a node: probes, recovery, progress. Bounded in time, errors in the server's words.
//!
//! Built on tokio-postgres, simple protocol, text values. The data plane does not use it.

use super::ServerError;
use super::driver::{Settled, take_as_it_is};
use super::open::{NO_RULE, Target, is_worth_another_way, open};
pub use crate::base::literal;
use crate::base::{NodeId, Secret};
use crate::cluster::{NodeSpec, SslMode};
use crate::net::{self, NetError, ServerTls};
use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use std::sync::Arc;
use std::time::Duration;
use tokio_postgres::types::{Format, FromSql, IsNull, ToSql, Type, to_sql_checked};
use tokio_postgres::{Client, SimpleQueryMessage};

/// TCP keepalive: idle time before the first probe. Statements are bounded by their own limits.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Where and as whom to connect.
#[derive(Clone, Debug)]
pub struct SqlTarget {
    /// Host name, address, or socket directory.
    pub host: String,
    /// Port.
    pub port: u16,
    /// TLS policy.
    pub sslmode: SslMode,
    /// Authorities for the verifying modes, and our certificate.
    pub tls: Arc<ServerTls>,
    /// Database.
    pub database: String,
    /// Role.
    pub user: String,
    /// Password, possibly empty.
    pub password: Secret,
    /// `application_name`.
    pub application_name: String,
    /// libpq's `options`: settings of the session (`-c name=value`).
    pub options: String,
}

impl SqlTarget {
    /// The target for a node.
    pub fn of(node: &NodeSpec, database: &str, user: &str, password: &Secret, tls: Arc<ServerTls>) -> SqlTarget {
        SqlTarget {
            host: node.host.0.clone(),
            port: node.port,
            sslmode: node.sslmode,
            tls,
            database: database.to_owned(),
            user: user.to_owned(),
            password: password.clone(),
            application_name: format!("pgmend node {}", NodeId(node.id.0)),
            options: String::new(),
        }
    }

    fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// Where to connect, with TLS ready.
    fn place(&self) -> Result<Target, SqlError> {
        Target::new(&self.host, self.port, self.sslmode, &self.tls, KEEPALIVE)
            .map_err(|e| SqlError::Tls { address: self.address(), why: e.to_string() })
    }

    /// One login in one way; the flag tells whether it had come to TLS.
    async fn attempt(&self, place: &Target, way: SslMode, timeout: Duration) -> Result<Sql, (SqlError, bool)> {
        let address = self.address();
        let stream = open(place, way, timeout, None).await.map_err(|error| match error {
            ServerError::Net(NetError::Tls(why)) => (SqlError::Tls { address: address.clone(), why }, true),
            ServerError::Net(NetError::Connect { why, .. }) => {
                (SqlError::Connect { address: address.clone(), why: why.to_string() }, false)
            }
            ServerError::Net(NetError::ConnectTimeout { .. }) => (SqlError::Timeout(timeout), false),
            other => (SqlError::Connect { address: address.clone(), why: other.to_string() }, false),
        })?;
        let tls = stream.is_tls();
        let mut config = tokio_postgres::Config::new();
        take_as_it_is(&mut config, &stream);
        config.dbname(&self.database).user(&self.user).application_name(&self.application_name);
        if !self.options.is_empty() {
            config.options(&self.options);
        }
        if !self.password.is_empty() {
            config.password(self.password.expose());
        }
        let (client, connection) = config.connect_raw(stream, Settled).await.map_err(|e| match SqlError::of(&e) {
            SqlError::Lost(why) => match net::tls_words(&e) {
                Some(why) => (SqlError::Tls { address, why }, true),
                None => (SqlError::Connect { address, why }, tls),
            },
            other => (other, tls),
        })?;
        // The driver task ends by itself when the client is dropped.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(event = "sql.connection_ended", error = %words(&error));
            }
        });
        Ok(Sql { client })
    }
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SqlError {
    /// Nobody listens, the name does not resolve, or the network failed.
    #[error("could not connect to {address}: {why}")]
    Connect {
        /// host:port.
        address: String,
        /// The system's words.
        why: String,
    },
    /// The server answers, but not with TLS as `sslmode` demands it.
    #[error("{address}: {why}")]
    Tls {
        /// host:port.
        address: String,
        /// What is wrong and what would be right.
        why: String,
    },
    /// The server answered with an error; `code` is its SQLSTATE.
    #[error("{message}{}", .detail.as_deref().map(|d| format!(" ({d})")).unwrap_or_default())]
    Server {
        /// SQLSTATE.
        code: String,
        /// The server's message.
        message: String,
        /// The server's detail.
        detail: Option<String>,
    },
    /// No answer in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The connection broke.
    #[error("the connection was lost: {0}")]
    Lost(String),
}

impl SqlError {
    /// SQLSTATE, when it is the server's error.
    pub fn code(&self) -> Option<&str> {
        match self {
            SqlError::Server { code, .. } => Some(code),
            SqlError::Connect { .. } | SqlError::Tls { .. } | SqlError::Timeout(_) | SqlError::Lost(_) => None,
        }
    }

    fn of(error: &tokio_postgres::Error) -> SqlError {
        match error.as_db_error() {
            Some(e) => SqlError::Server {
                code: e.code().code().to_owned(),
                message: e.message().to_owned(),
                detail: e.detail().map(str::to_owned),
            },
            None => SqlError::Lost(words(error)),
        }
    }
}

/// An error with its causes on one line.
fn words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        let next = e.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = e.source();
    }
    text
}

/// One row, as text.
pub type Row = Vec<Option<String>>;

/// A connection to a node. Dropping it closes it; the server rolls back what was open.
#[derive(Debug)]
pub struct Sql {
    client: Client,
}

impl Sql {
    /// Connects and logs in within `timeout`. Not cancel safe for the server's sake only: a half login is closed.
    pub async fn connect(target: &SqlTarget, timeout: Duration) -> Result<Sql, SqlError> {
        tokio::time::timeout(timeout, Self::login(target, timeout)).await.unwrap_or(Err(SqlError::Timeout(timeout)))
    }

    /// The same ways as the data plane's (see [`Target::ways`]); only the login itself is the driver's.
    async fn login(target: &SqlTarget, timeout: Duration) -> Result<Sql, SqlError> {
        let place = target.place()?;
        let (first, other) = place.ways();
        let (error, tls) = match target.attempt(&place, first, timeout).await {
            Ok(sql) => return Ok(sql),
            Err(failed) => failed,
        };
        let Some(other) = other.filter(|other| match &error {
            SqlError::Server { code, .. } => is_worth_another_way(Some(code), tls, *other),
            SqlError::Tls { .. } => is_worth_another_way(None, true, *other),
            SqlError::Connect { .. } | SqlError::Timeout(_) | SqlError::Lost(_) => false,
        }) else {
            return Err(error);
        };
        match target.attempt(&place, other, timeout).await {
            Ok(sql) => Ok(sql),
            Err((second, _)) if second.code().is_some_and(|code| code != NO_RULE) => Err(second),
            Err(_) => Err(error),
        }
    }

    /// Runs one or more statements by the simple protocol and returns all rows. An unbounded wait: see [`Sql::rows_within`].
    pub async fn rows(&self, sql: &str) -> Result<Vec<Row>, SqlError> {
        let messages = self.client.simple_query(sql).await.map_err(|e| SqlError::of(&e))?;
        Ok(messages
            .into_iter()
            .filter_map(|m| match m {
                SimpleQueryMessage::Row(r) => Some((0..r.len()).map(|i| r.get(i).map(str::to_owned)).collect()),
                _ => None,
            })
            .collect())
    }

    /// As [`Sql::rows`], bounded.
    pub async fn rows_within(&self, sql: &str, timeout: Duration) -> Result<Vec<Row>, SqlError> {
        tokio::time::timeout(timeout, self.rows(sql)).await.unwrap_or(Err(SqlError::Timeout(timeout)))
    }

    /// One statement about the text `$1`, which is bound and never part of the statement; values must be texts. An
    /// unbounded wait.
    pub async fn rows_about(&self, sql: &str, text: &str) -> Result<Vec<Row>, SqlError> {
        let rows = self.client.query(sql, &[&AnyText(text)]).await.map_err(|e| SqlError::of(&e))?;
        let column = |row: &tokio_postgres::Row, at| match row.try_get::<_, Option<AnyOwnedText>>(at) {
            Ok(value) => Ok(value.map(|text| text.0)),
            Err(error) => Err(SqlError::Lost(words(&error))),
        };
        rows.iter().map(|row| (0..row.len()).map(|at| column(row, at)).collect()).collect()
    }

    /// Copies from here to there: `out` is a `COPY … TO STDOUT`, `into` a `COPY … FROM STDIN`. An unbounded wait. Returns the
    /// number of rows. When it breaks off, nothing of it is kept.
    pub async fn copy_to(&self, out: &str, there: &Sql, into: &str) -> Result<u64, SqlError> {
        let of = |e: tokio_postgres::Error| SqlError::of(&e);
        let mut rows = std::pin::pin!(self.client.copy_out(out).await.map_err(of)?);
        let mut sink = std::pin::pin!(there.client.copy_in::<_, Bytes>(into).await.map_err(of)?);
        while let Some(piece) = rows.next().await {
            sink.feed(piece.map_err(of)?).await.map_err(of)?;
        }
        sink.as_mut().finish().await.map_err(of)
    }

    /// The first column of the first row, bounded; `None` for no row or NULL.
    pub async fn value(&self, sql: &str, timeout: Duration) -> Result<Option<String>, SqlError> {
        Ok(self.rows_within(sql, timeout).await?.into_iter().next().and_then(|r| r.into_iter().next().flatten()))
    }
}

/// A text for a parameter of whatever type the server takes it for.
#[derive(Debug)]
struct AnyText<'a>(&'a str);

impl ToSql for AnyText<'_> {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        out.extend_from_slice(self.0.as_bytes());
        Ok(IsNull::No)
    }
    fn accepts(_: &Type) -> bool {
        true
    }
    fn encode_format(&self, _: &Type) -> Format {
        Format::Text
    }
    to_sql_checked!();
}

/// A value of a type whose binary form is its text: text, name, varchar and their domains.
struct AnyOwnedText(String);

impl<'a> FromSql<'a> for AnyOwnedText {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(AnyOwnedText(std::str::from_utf8(raw)?.to_owned()))
    }
    fn accepts(_: &Type) -> bool {
        true
    }
}
