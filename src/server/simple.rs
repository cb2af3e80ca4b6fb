//! A statement of pgmend's own on a server connection, by the simple protocol: reset and parameters between two clients.

use super::ServerConn;
use crate::wire::backend::{self, ErrorFields};
use crate::wire::{frame, frontend};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Bytes of answer that are held at once; pgmend's own statements answer with far less.
const MAX_ANSWER: usize = 1 << 20;

/// Bytes of notifications that are kept while pgmend's own statement runs.
pub(super) const MAX_ASIDES: usize = 1 << 20;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum SimpleError {
    /// The server refused the statement; the connection is in order.
    #[error("{}", .0.message)]
    Refused(Box<ErrorFields>),
    /// The connection is of no more use.
    #[error("{0}")]
    Lost(String),
}

/// A row of columns in text format, in the session's `client_encoding`; NULL is `None`.
pub type Row = Vec<Option<Vec<u8>>>;

/// Runs `sql` and throws its rows away; parameters that the server reports are noted. On `Lost` (also a time-out) the
/// connection is marked broken. Cancel safe in so far as a dropped future leaves the connection marked as broken.
pub async fn run(conn: &mut ServerConn, sql: &str, timeout: Duration) -> Result<(), SimpleError> {
    query(conn, sql, timeout).await.map(drop)
}

/// Runs `sql` and gives its rows, at most 1 MiB of them; the rest as in [`run`].
pub async fn query(conn: &mut ServerConn, sql: &str, timeout: Duration) -> Result<Vec<Row>, SimpleError> {
    conn.broken = true;
    let outcome = tokio::time::timeout(timeout, exchange(conn, sql))
        .await
        .unwrap_or_else(|_| Err(SimpleError::Lost(format!("no answer within {timeout:?}"))));
    conn.broken = matches!(outcome, Err(SimpleError::Lost(_)));
    outcome
}

async fn exchange(conn: &mut ServerConn, sql: &str) -> Result<Vec<Row>, SimpleError> {
    let lost = |e: &dyn std::fmt::Display| SimpleError::Lost(e.to_string());
    let mut out = Vec::with_capacity(sql.len() + 8);
    frontend::query(&mut out, sql);
    conn.stream.write_all(&out).await.map_err(|e| lost(&e))?;
    conn.stream.flush().await.map_err(|e| lost(&e))?;
    let mut input = std::mem::take(&mut conn.unread);
    input.reserve(4096);
    let mut refused = None;
    let (mut rows, mut bytes) = (Vec::new(), 0);
    loop {
        let mut at = 0;
        while let Some(split) = frame::split(input.get(at..).unwrap_or_default()).map_err(|e| lost(&e))? {
            at = input.len() - split.rest.len();
            match split.tag {
                b'S' => {
                    if let Ok((name, value)) = backend::parse_parameter_status(split.body) {
                        conn.reported.insert(name.to_owned(), value.to_owned());
                    }
                }
                b'A' if conn.asides.len() < MAX_ASIDES => {
                    backend::raw(&mut conn.asides, b'A', split.body);
                }
                // A client loses its session sooner than one of its messages.
                b'A' => return Err(SimpleError::Lost("too many notifications".into())),
                b'E' if refused.is_none() => refused = Some(Box::new(backend::parse_error(split.body))),
                b'D' => {
                    bytes += split.body.len();
                    if bytes > MAX_ANSWER {
                        return Err(SimpleError::Lost("the answer is too long".into()));
                    }
                    rows.push(backend::parse_data_row(split.body).map_err(|e| lost(&e))?);
                }
                b'Z' if split.body == b"I" => {
                    conn.unread = input.split_off(at);
                    return refused.map_or(Ok(rows), |e| Err(SimpleError::Refused(e)));
                }
                b'Z' => return Err(SimpleError::Lost("the server stayed in a transaction".into())),
                _ => {}
            }
        }
        input.drain(..at);
        if input.len() > MAX_ANSWER {
            return Err(SimpleError::Lost("the answer is too long".into()));
        }
        if conn.stream.read_buf(&mut input).await.map_err(|e| lost(&e))? == 0 {
            return Err(SimpleError::Lost("the server closed the connection".into()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::NodeId;
    use crate::net::Stream;
    use crate::server::{Connected, RouteId};
    use tokio::net::UnixStream;

    #[tokio::test]
    async fn what_comes_behind_the_answer_is_kept_also_when_it_is_half_a_message() {
        let (ours, mut server) = UnixStream::pair().unwrap();
        let connected =
            Connected { stream: Stream::from(ours), parameters: Vec::new(), pid: 1, cancel_key: Vec::new() };
        let mut conn = ServerConn::new(connected, RouteId { node: NodeId(0), timeline: 1 }, 0);
        let (mut answer, mut told) = (Vec::new(), Vec::new());
        backend::command_complete(&mut answer, "SELECT 0");
        backend::ready_for_query(&mut answer, b'I');
        backend::notification(&mut told, 7, b"news", b"one");
        let (begin, end) = told.split_at(9);
        server.write_all(&[&told, answer.as_slice(), &told, begin].concat()).await.unwrap();
        run(&mut conn, "SELECT", Duration::from_secs(5)).await.unwrap();
        assert_eq!((&conn.asides, &conn.unread), (&told, &[&told, begin].concat()));
        server.write_all(&[end, answer.as_slice()].concat()).await.unwrap();
        run(&mut conn, "SELECT", Duration::from_secs(5)).await.unwrap();
        assert_eq!((conn.asides.len(), conn.unread.len()), (3 * told.len(), 0));
    }
}
