//! The parts of messages: reading fields without panics, writing messages with their length.

use super::WireError;

/// Reads fields from the front of a message body.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parts<'a> {
    rest: &'a [u8],
}

impl<'a> Parts<'a> {
    pub(super) fn new(body: &'a [u8]) -> Self {
        Parts { rest: body }
    }

    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8], WireError> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(WireError::Format("message is too short"))?;
        self.rest = rest;
        Ok(taken)
    }

    pub(super) fn byte(&mut self) -> Result<u8, WireError> {
        let (first, rest) = self.rest.split_first().ok_or(WireError::Format("message is too short"))?;
        self.rest = rest;
        Ok(*first)
    }

    pub(super) fn u16(&mut self) -> Result<u16, WireError> {
        let (taken, rest) = self.rest.split_first_chunk::<2>().ok_or(WireError::Format("message is too short"))?;
        self.rest = rest;
        Ok(u16::from_be_bytes(*taken))
    }

    pub(super) fn u32(&mut self) -> Result<u32, WireError> {
        let (taken, rest) = self.rest.split_first_chunk::<4>().ok_or(WireError::Format("message is too short"))?;
        self.rest = rest;
        Ok(u32::from_be_bytes(*taken))
    }

    /// The bytes up to the next zero byte, which is consumed too.
    pub(super) fn name(&mut self) -> Result<&'a [u8], WireError> {
        let end = memchr::memchr(0, self.rest).ok_or(WireError::Format("unterminated string"))?;
        let name = self.take(end)?;
        self.byte()?;
        Ok(name)
    }

    /// As [`Parts::name`], as text.
    pub(super) fn text(&mut self, what: &'static str) -> Result<&'a str, WireError> {
        std::str::from_utf8(self.name()?).map_err(|_| WireError::Text(what))
    }
}

/// Writes one message: the tag (none for startup packets), the length, what `body` adds.
///
/// Our own messages are far below 4 GiB; a longer one would get a length that the peer refuses, never a wrong frame
/// that looks right.
pub(super) fn message(out: &mut Vec<u8>, tag: Option<u8>, body: impl FnOnce(&mut Vec<u8>)) {
    out.extend(tag);
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    body(out);
    let length = u32::try_from(out.len() - start).unwrap_or(u32::MAX);
    if let Some(field) = out.get_mut(start..start + 4) {
        field.copy_from_slice(&length.to_be_bytes());
    }
}

/// Adds a text and its zero byte. The text ends at a zero byte of its own: the protocol cannot carry one.
pub(super) fn put_text(out: &mut Vec<u8>, text: &str) {
    put_name(out, text.as_bytes());
}

/// As [`put_text`] for bytes.
pub(super) fn put_name(out: &mut Vec<u8>, name: &[u8]) {
    out.extend(name.iter().take_while(|b| **b != 0));
    out.push(0);
}

/// Adds a count as 16 bits; counts here are of our own columns, far below the limit.
pub(super) fn put_count(out: &mut Vec<u8>, count: usize) {
    out.extend_from_slice(&u16::try_from(count).unwrap_or(u16::MAX).to_be_bytes());
}
