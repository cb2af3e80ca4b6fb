//! What a client sends, cut into the pieces that go to all nodes at once. Pure.

use crate::client::fault::Fault;
use crate::wire::{frame, frontend};

/// A message that must be held whole, as it goes to several nodes, is at most this long.
pub const MAX_MESSAGE: usize = 64 << 20;
/// A pipeline without a Sync is cut into pieces of about this many bytes.
const PIECE: usize = 64 * 1024;

/// How a piece of the extended protocol ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    /// With the client's Sync.
    Sync,
    /// With a Flush, or because the pipeline is long: the client's Sync is still to come.
    Open,
}

/// One piece.
#[derive(Debug, PartialEq, Eq)]
pub enum Unit {
    /// Goodbye.
    Terminate,
    /// A simple query's text.
    Query(Vec<u8>),
    /// Messages of the extended protocol, without the Sync or Flush at their end.
    Batch {
        /// The frames.
        frames: Vec<u8>,
        /// What follows.
        ends: Ends,
    },
    /// A function call: its whole frame.
    Function(Vec<u8>),
    /// The tail of a COPY that has failed: it means nothing any more.
    Stray,
}

/// What could be cut off the front of the input.
#[derive(Debug, PartialEq, Eq)]
pub enum Cut {
    /// A piece, and the bytes that it took.
    Unit(Unit, usize),
    /// So many bytes must be there; 0: more of them.
    More(usize),
}

/// Cuts the first piece off. `full`: no more can be read before something is taken.
pub fn cut(input: &[u8], full: bool) -> Result<Cut, Fault> {
    let mut at = 0;
    loop {
        let rest = input.get(at..).unwrap_or_default();
        let Some(header) = frame::peek(rest).map_err(broken)? else { break };
        if header.total > MAX_MESSAGE {
            return Err(Fault::Limit(format!(
                "a message of {} bytes is longer than {MAX_MESSAGE}, the most that pgmend sends to several nodes",
                header.total
            )));
        }
        let Some(whole) = rest.get(..header.total) else {
            return Ok(if at > 0 && (full || at >= PIECE) { open(input, at) } else { Cut::More(at + header.total) });
        };
        let alone = |unit: Unit| Ok(Cut::Unit(unit, header.total));
        match header.tag {
            b'X' if at == 0 => return alone(Unit::Terminate),
            b'd' | b'c' | b'f' if at == 0 => return alone(Unit::Stray),
            b'Q' if at == 0 => {
                let text = frontend::query_text(whole.get(frame::HEADER..).unwrap_or_default()).map_err(broken)?;
                return alone(Unit::Query(text.to_vec()));
            }
            b'F' if at == 0 => return alone(Unit::Function(whole.to_vec())),
            b'S' => {
                let frames = input.get(..at).unwrap_or_default().to_vec();
                return Ok(Cut::Unit(Unit::Batch { frames, ends: Ends::Sync }, at + header.total));
            }
            b'H' => {
                let frames = input.get(..at).unwrap_or_default().to_vec();
                return Ok(Cut::Unit(Unit::Batch { frames, ends: Ends::Open }, at + header.total));
            }
            b'P' | b'B' | b'D' | b'E' | b'C' if at < PIECE => at += header.total,
            // Whatever comes next is a piece of its own.
            b'P' | b'B' | b'D' | b'E' | b'C' | b'Q' | b'F' | b'X' | b'd' | b'c' | b'f' => return Ok(open(input, at)),
            tag => return Err(Fault::Protocol(format!("invalid frontend message type {tag}"))),
        }
    }
    Ok(if at > 0 && full { open(input, at) } else { Cut::More(0) })
}

fn open(input: &[u8], at: usize) -> Cut {
    Cut::Unit(Unit::Batch { frames: input.get(..at).unwrap_or_default().to_vec(), ends: Ends::Open }, at)
}

fn broken(error: crate::wire::WireError) -> Fault {
    Fault::Protocol(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
        let mut out = vec![tag];
        out.extend_from_slice(&(4 + body.len() as u32).to_be_bytes());
        out.extend_from_slice(body);
        out
    }

    #[test]
    fn a_batch_ends_with_its_sync() {
        let batch = [frame(b'P', b"\0q\0\0\0"), frame(b'E', b"\0\0\0\0\0")].concat();
        let input = [batch.clone(), frame(b'S', b""), frame(b'Q', b"x\0")].concat();
        let unit = Unit::Batch { frames: batch.clone(), ends: Ends::Sync };
        assert_eq!(cut(&input, false).unwrap(), Cut::Unit(unit, batch.len() + 5));
        assert_eq!(cut(&batch, false).unwrap(), Cut::More(0));
        let unit = Unit::Batch { frames: batch.clone(), ends: Ends::Open };
        assert_eq!(cut(&batch, true).unwrap(), Cut::Unit(unit, batch.len()));
    }

    #[test]
    fn what_is_no_part_of_a_batch_ends_it() {
        let input = [frame(b'P', b"\0q\0\0\0"), frame(b'Q', b"x\0")].concat();
        assert!(matches!(cut(&input, false).unwrap(), Cut::Unit(Unit::Batch { ends: Ends::Open, .. }, _)));
        assert_eq!(cut(&frame(b'Q', b"x\0"), false).unwrap(), Cut::Unit(Unit::Query(b"x".to_vec()), 7));
        assert_eq!(cut(&frame(b'd', b"1"), false).unwrap(), Cut::Unit(Unit::Stray, 6));
        assert!(cut(&frame(b'z', b""), false).is_err());
    }

    #[test]
    fn a_message_is_awaited_whole() {
        let whole = frame(b'B', &[0; 100]);
        assert_eq!(cut(whole.get(..20).unwrap(), false).unwrap(), Cut::More(whole.len()));
        assert_eq!(cut(b"B\0", false).unwrap(), Cut::More(0));
        assert!(cut(&[b'B', 0x3f, 0, 0, 0, 0], false).is_err());
    }
}
