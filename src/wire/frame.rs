//! The frame of every message after startup: one tag byte, four bytes of length, the body.

use super::WireError;

/// PostgreSQL refuses longer messages itself (`PQ_LARGE_MESSAGE_LIMIT`, MaxAllocSize − 1).
pub const MAX_LENGTH: u32 = 0x3fff_ffff;
/// Bytes before the body.
pub const HEADER: usize = 5;

/// What the first five bytes of a message say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Type of the message.
    pub tag: u8,
    /// Bytes of the whole message: tag, length field and body.
    pub total: usize,
}

/// Reads the header at the front of `bytes`; `None` when there are fewer than five.
#[inline]
pub fn peek(bytes: &[u8]) -> Result<Option<Header>, WireError> {
    let [tag, a, b, c, d, ..] = bytes else { return Ok(None) };
    let length = u32::from_be_bytes([*a, *b, *c, *d]);
    if !(4..=MAX_LENGTH).contains(&length) {
        return Err(WireError::Length(length));
    }
    let length = usize::try_from(length).map_err(|_| WireError::Length(length))?;
    Ok(Some(Header { tag: *tag, total: length + 1 }))
}

/// A whole message and what follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Split<'a> {
    /// Type of the message.
    pub tag: u8,
    /// What follows the length field.
    pub body: &'a [u8],
    /// What follows the message.
    pub rest: &'a [u8],
}

/// Splits the first whole message off `bytes`; `None` when it is not all there.
pub fn split(bytes: &[u8]) -> Result<Option<Split<'_>>, WireError> {
    let Some(header) = peek(bytes)? else { return Ok(None) };
    let Some((message, rest)) = bytes.split_at_checked(header.total) else { return Ok(None) };
    Ok(message.get(HEADER..).map(|body| Split { tag: header.tag, body, rest }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needs_five_bytes() {
        assert_eq!(peek(b""), Ok(None));
        assert_eq!(peek(b"Z\0\0\0"), Ok(None));
        assert_eq!(peek(b"Z\0\0\0\x05"), Ok(Some(Header { tag: b'Z', total: 6 })));
        assert_eq!(peek(b"S\0\0\0\x04next"), Ok(Some(Header { tag: b'S', total: 5 })));
    }

    #[test]
    fn refuses_impossible_lengths() {
        assert_eq!(peek(b"Q\0\0\0\x03"), Err(WireError::Length(3)));
        assert_eq!(peek(b"Q\0\0\0\0"), Err(WireError::Length(0)));
        assert_eq!(peek(b"Q\x40\0\0\0"), Err(WireError::Length(0x4000_0000)));
        assert_eq!(peek(b"Q\xff\xff\xff\xff"), Err(WireError::Length(u32::MAX)));
        assert_eq!(peek(b"Q\x3f\xff\xff\xff"), Ok(Some(Header { tag: b'Q', total: 0x4000_0000 })));
    }

    #[test]
    fn splits_whole_messages() {
        assert_eq!(split(b"Z\0\0\0\x05IX"), Ok(Some(Split { tag: b'Z', body: b"I", rest: b"X" })));
        assert_eq!(split(b"Z\0\0\0\x05"), Ok(None));
    }
}
