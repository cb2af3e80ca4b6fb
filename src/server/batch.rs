//! A batch of the extended protocol of pgmend's own: what prepares and describes statements for a session that moves.

use super::{ServerConn, SimpleError};
use crate::wire::{backend, frame};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Bytes of answers that are held at once.
const MAX_ANSWER: usize = 4 << 20;

/// A message of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// Its type.
    pub tag: u8,
    /// Its body.
    pub body: Vec<u8>,
}

/// Sends messages that hold `syncs` Syncs and gives what was said up to each of them; errors are among it. Notices,
/// parameters and notifications are not. The messages must be few enough not to fill the network's buffers, as nothing is
/// read while they are written. On `Lost` (also a time-out) the connection is marked broken. A dropped future leaves it so.
pub async fn batch(
    conn: &mut ServerConn,
    messages: &[u8],
    syncs: usize,
    timeout: Duration,
) -> Result<Vec<Vec<Said>>, SimpleError> {
    conn.broken = true;
    let outcome = tokio::time::timeout(timeout, exchange(conn, messages, syncs))
        .await
        .unwrap_or_else(|_| Err(SimpleError::Lost(format!("no answer within {timeout:?}"))));
    conn.broken = outcome.is_err();
    outcome
}

async fn exchange(conn: &mut ServerConn, messages: &[u8], syncs: usize) -> Result<Vec<Vec<Said>>, SimpleError> {
    let lost = |e: &dyn std::fmt::Display| SimpleError::Lost(e.to_string());
    conn.stream.write_all(messages).await.map_err(|e| lost(&e))?;
    conn.stream.flush().await.map_err(|e| lost(&e))?;
    let mut input: Vec<u8> = Vec::with_capacity(4096);
    let (mut answers, mut answer, mut bytes) = (Vec::new(), Vec::new(), 0);
    while answers.len() < syncs {
        let mut at = 0;
        while let Some(split) = frame::split(input.get(at..).unwrap_or_default()).map_err(|e| lost(&e))? {
            at = input.len() - split.rest.len();
            match split.tag {
                b'S' => {
                    if let Ok((name, value)) = backend::parse_parameter_status(split.body) {
                        conn.reported.insert(name.to_owned(), value.to_owned());
                    }
                }
                b'A' if conn.asides.len() < super::simple::MAX_ASIDES => {
                    backend::raw(&mut conn.asides, b'A', split.body);
                }
                b'A' | b'N' => {}
                b'Z' if split.body == b"I" => answers.push(std::mem::take(&mut answer)),
                b'Z' => return Err(SimpleError::Lost("the server stayed in a transaction".into())),
                tag => {
                    bytes += split.body.len();
                    answer.push(Said { tag, body: split.body.to_vec() });
                }
            }
        }
        input.drain(..at);
        if bytes + input.len() > MAX_ANSWER {
            return Err(SimpleError::Lost("the answer is too long".into()));
        }
        if answers.len() < syncs && conn.stream.read_buf(&mut input).await.map_err(|e| lost(&e))? == 0 {
            return Err(SimpleError::Lost("the server closed the connection".into()));
        }
    }
    Ok(answers)
}
