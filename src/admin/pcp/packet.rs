//! Packets of PCP: requests in, replies out. Pure.

/// Longest request that is taken, counted as its length field counts: with its own four bytes, without the type.
pub const MAX_REQUEST: usize = 259;

/// Pgpool-II cuts each field of an error here; its clients have buffers to match.
pub(super) const MAX_ERROR_FIELD: usize = 255;

/// One complete request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// Its type.
    pub kind: u8,
    /// What follows the length.
    pub body: &'a [u8],
    /// Bytes of the buffer that it takes.
    pub size: usize,
}

/// The bytes are no PCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// The length field says nonsense.
    #[error("incorrect packet length ({0})")]
    Length(i32),
}

/// The first request in `bytes`; `None` when more bytes are needed.
pub fn parse(bytes: &[u8]) -> Result<Option<Request<'_>>, PacketError> {
    let Some((&[kind, a, b, c, d], _)) = bytes.split_first_chunk::<5>() else { return Ok(None) };
    let announced = i32::from_be_bytes([a, b, c, d]);
    // A length below 4 could not even hold itself; Pgpool-II takes it for an empty body, so pgmend does too.
    let length = usize::try_from(announced).ok().filter(|n| (1..=MAX_REQUEST).contains(n));
    let length = length.ok_or(PacketError::Length(announced))?.max(4);
    Ok(bytes.get(5..length + 1).map(|body| Request { kind, body, size: length + 1 }))
}

/// The C strings of a body; what follows the last zero byte counts as one, too.
pub(super) fn strings(body: &[u8]) -> impl Iterator<Item = &[u8]> {
    body.split(|b| *b == 0)
}

/// How bad it is; a connection ends with `Fatal`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Severity {
    /// The command failed, the connection stays.
    Error,
    /// The connection ends.
    Fatal,
}

/// Writes a packet of type `kind` whose body `write` appends.
fn framed(out: &mut Vec<u8>, kind: u8, write: impl FnOnce(&mut Vec<u8>)) {
    out.push(kind);
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    write(out);
    // The bodies are built here from a bounded view and configuration: far below 2 GiB.
    let length = u32::try_from(out.len() - start).unwrap_or(u32::MAX);
    if let Some(place) = out.get_mut(start..start + 4) {
        place.copy_from_slice(&length.to_be_bytes());
    }
}

fn c_string(out: &mut Vec<u8>, text: &str) {
    // A zero byte inside would end the string and shift all that follows.
    out.extend(text.bytes().map(|b| if b == 0 { b' ' } else { b }));
    out.push(0);
}

/// A packet of C strings.
pub(super) fn reply(out: &mut Vec<u8>, kind: u8, fields: &[&str]) {
    framed(out, kind, |out| fields.iter().for_each(|text| c_string(out, text)));
}

/// `CommandComplete` alone.
pub(super) fn complete(out: &mut Vec<u8>, kind: u8) {
    reply(out, kind, &["CommandComplete"]);
}

/// `ArraySize` as `pcp_pool_status` wants it: the number in binary.
pub(super) fn binary_array_size(out: &mut Vec<u8>, kind: u8, count: usize) {
    framed(out, kind, |out| {
        c_string(out, "ArraySize");
        out.extend_from_slice(&u32::try_from(count).unwrap_or(u32::MAX).to_be_bytes());
    });
}

/// The salt of a login.
pub(super) fn salt(out: &mut Vec<u8>, salt: [u8; 4]) {
    framed(out, b'm', |out| out.extend_from_slice(&salt));
}

/// An error. Pgpool-II's clients read the first letter of a value as a field's code, so the texts are made harmless.
pub(super) fn error(out: &mut Vec<u8>, severity: Severity, message: &str, detail: Option<&str>) {
    framed(out, b'E', |out| {
        let severity = match severity {
            Severity::Error => "ERROR",
            Severity::Fatal => "FATAL",
        };
        for (code, text) in [(b'S', Some(severity)), (b'C', Some("XX000")), (b'M', Some(message)), (b'D', detail)] {
            match text {
                // These two are fixed words that the clients know.
                Some(text) if code == b'S' || code == b'C' => {
                    out.push(code);
                    c_string(out, text);
                }
                Some(text) if code == b'M' || !text.trim().is_empty() => {
                    out.push(code);
                    c_string(out, &harmless(text));
                }
                _ => {}
            }
        }
        out.push(0);
    });
}

/// Not empty, not longer than a field may be, and not beginning with a letter that a client takes for a field's code.
fn harmless(text: &str) -> String {
    let text = text.trim();
    let text = if text.is_empty() { "no reason was given" } else { text };
    let mut characters = text.chars();
    let first = characters.next().map(|c| if matches!(c, 'S' | 'M' | 'D') { c.to_ascii_lowercase() } else { c });
    let whole: String = first.into_iter().chain(characters).collect();
    cut(&whole, MAX_ERROR_FIELD).to_owned()
}

/// The first `limit` bytes, or fewer so that no character is split.
pub(super) fn cut(text: &str, limit: usize) -> &str {
    let end = (0..=limit.min(text.len())).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0);
    text.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_complete_or_wanting_or_wrong() {
        assert_eq!(parse(b"I\0\0\0\x060"), Ok(None));
        assert_eq!(parse(b"I\0\0\0\x060\0L"), Ok(Some(Request { kind: b'I', body: b"0\0", size: 7 })));
        assert_eq!(parse(b""), Ok(None));
        assert_eq!(parse(b"I\0\0\0\x00"), Err(PacketError::Length(0)));
        assert_eq!(parse(b"I\0\0\x01\x04"), Err(PacketError::Length(260)));
        assert_eq!(parse(b"I\xff\xff\xff\xff"), Err(PacketError::Length(-1)));
        assert_eq!(parse(b"I\0\0\0\x01"), Ok(Some(Request { kind: b'I', body: b"", size: 5 })));
    }

    #[test]
    fn errors_do_not_trip_the_clients_parser() {
        let mut out = Vec::new();
        error(&mut out, Severity::Error, "Some\0thing", Some(""));
        assert_eq!(out, b"E\0\0\0\x1fSERROR\0CXX000\0Msome thing\0\0");
        out.clear();
        error(&mut out, Severity::Fatal, &"é".repeat(200), Some("Mine"));
        // 255 would split a character.
        assert_eq!(out.len(), 5 + 7 + 7 + (1 + 254 + 1) + 6 + 1);
        assert!(out.ends_with(b"Dmine\0\0"));
    }

    #[test]
    fn the_number_of_parameters_is_binary() {
        let mut out = Vec::new();
        binary_array_size(&mut out, b'b', 258);
        assert_eq!(out, b"b\0\0\0\x12ArraySize\0\0\0\x01\x02");
    }
}
