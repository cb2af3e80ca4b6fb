//! Messages that clients send: written for nodes, read from clients.
//!
//! <https://www.postgresql.org/docs/current/protocol-message-formats.html>

use super::WireError;
use super::parts::{Parts, message, put_name, put_text};

/// StartupMessage of protocol 3.`minor`.
pub fn startup(out: &mut Vec<u8>, minor: u16, parameters: &[(&str, &str)]) {
    message(out, None, |b| {
        b.extend_from_slice(&3u16.to_be_bytes());
        b.extend_from_slice(&minor.to_be_bytes());
        // An empty name would end the list early, so a parameter without one is left out.
        for (name, value) in parameters.iter().filter(|(name, _)| !name.is_empty()) {
            put_text(b, name);
            put_text(b, value);
        }
        b.push(0);
    });
}

/// SSLRequest.
pub fn ssl_request(out: &mut Vec<u8>) {
    message(out, None, |b| b.extend_from_slice(&[0x04, 0xd2, 0x16, 0x2f]));
}

/// GSSENCRequest.
pub fn gss_request(out: &mut Vec<u8>) {
    message(out, None, |b| b.extend_from_slice(&[0x04, 0xd2, 0x16, 0x30]));
}

/// CancelRequest.
pub fn cancel_request(out: &mut Vec<u8>, pid: u32, key: &[u8]) {
    message(out, None, |b| {
        b.extend_from_slice(&[0x04, 0xd2, 0x16, 0x2e]);
        b.extend_from_slice(&pid.to_be_bytes());
        b.extend_from_slice(key);
    });
}

/// PasswordMessage: the password, or the md5 answer.
pub fn password(out: &mut Vec<u8>, text: &str) {
    message(out, Some(b'p'), |b| put_text(b, text));
}

/// SASLInitialResponse.
pub fn sasl_initial(out: &mut Vec<u8>, mechanism: &str, data: &[u8]) {
    message(out, Some(b'p'), |b| {
        put_text(b, mechanism);
        b.extend_from_slice(&i32::try_from(data.len()).unwrap_or(i32::MAX).to_be_bytes());
        b.extend_from_slice(data);
    });
}

/// SASLResponse.
pub fn sasl_response(out: &mut Vec<u8>, data: &[u8]) {
    message(out, Some(b'p'), |b| b.extend_from_slice(data));
}

/// Query.
pub fn query(out: &mut Vec<u8>, sql: &str) {
    message(out, Some(b'Q'), |b| put_text(b, sql));
}

/// Parse of `name`; `query_and_types` is what follows the name, as [`parse_names`] gave it.
pub fn parse(out: &mut Vec<u8>, name: &[u8], query_and_types: &[u8]) {
    message(out, Some(b'P'), |b| {
        put_name(b, name);
        b.extend_from_slice(query_and_types);
    });
}

/// Close of a statement (`S`) or portal (`P`).
pub fn close(out: &mut Vec<u8>, kind: u8, name: &[u8]) {
    message(out, Some(b'C'), |b| {
        b.push(kind);
        put_name(b, name);
    });
}

/// Sync.
pub fn sync(out: &mut Vec<u8>) {
    message(out, Some(b'S'), |_| {});
}

/// Describe of a statement (`S`) or a portal (`P`).
pub fn describe(out: &mut Vec<u8>, kind: u8, name: &[u8]) {
    message(out, Some(b'D'), |b| {
        b.push(kind);
        put_name(b, name);
    });
}

/// Terminate.
pub fn terminate(out: &mut Vec<u8>) {
    message(out, Some(b'X'), |_| {});
}

/// A Parse message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parse<'a> {
    /// Name of the statement, empty for the unnamed one.
    pub name: &'a [u8],
    /// Text with its zero byte, number of types, types: all that follows the name.
    pub query_and_types: &'a [u8],
}

impl<'a> Parse<'a> {
    /// The text of the statement without its zero byte.
    pub fn query(&self) -> &'a [u8] {
        Parts::new(self.query_and_types).name().unwrap_or_default()
    }
}

/// Reads the body of a Parse (`P`), so that the statement can be sent again under another name.
pub fn parse_names(body: &[u8]) -> Result<Parse<'_>, WireError> {
    let mut parts = Parts::new(body);
    let name = parts.name()?;
    let query_and_types = parts.rest();
    parts.name()?;
    let [high, low] = [parts.byte()?, parts.byte()?];
    let types = usize::from(u16::from_be_bytes([high, low]));
    if parts.rest().len() != types * 4 {
        return Err(WireError::Format("parameter types in Parse"));
    }
    Ok(Parse { name, query_and_types })
}

/// The names in a Bind message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bind<'a> {
    /// Name of the portal.
    pub portal: &'a [u8],
    /// Name of the statement.
    pub statement: &'a [u8],
    /// Where in the body the parameters begin, after both names.
    pub rest_offset: usize,
}

/// Reads the names from the front of a Bind (`B`); the whole body need not be there yet.
pub fn bind(body: &[u8]) -> Result<Bind<'_>, WireError> {
    let mut parts = Parts::new(body);
    let portal = parts.name()?;
    let statement = parts.name()?;
    Ok(Bind { portal, statement, rest_offset: body.len() - parts.rest().len() })
}

/// Reads the parameters of a Bind from what follows its names: each value as it was sent, NULL as `None`.
pub fn bind_values(rest: &[u8]) -> Result<Vec<Option<&[u8]>>, WireError> {
    let mut parts = Parts::new(rest);
    for _ in 0..parts.u16()? {
        parts.u16()?;
    }
    let count = parts.u16()?;
    let mut values = Vec::with_capacity(usize::from(count).min(rest.len() / 4));
    for _ in 0..count {
        values.push(match parts.u32()? {
            u32::MAX => None,
            length => Some(parts.take(usize::try_from(length).unwrap_or(usize::MAX))?),
        });
    }
    Ok(values)
}

/// Reads the body of a Describe (`D`) or Close (`C`): `S` or `P`, and the name.
pub fn describe_or_close(body: &[u8]) -> Result<(u8, &[u8]), WireError> {
    let mut parts = Parts::new(body);
    let kind = parts.byte()?;
    let name = parts.name()?;
    match kind {
        b'S' | b'P' if parts.is_empty() => Ok((kind, name)),
        _ => Err(WireError::Format("Describe or Close")),
    }
}

/// Reads the body of a Query (`Q`): the text without its zero byte.
pub fn query_text(body: &[u8]) -> Result<&[u8], WireError> {
    let mut parts = Parts::new(body);
    let text = parts.name()?;
    if parts.is_empty() { Ok(text) } else { Err(WireError::Format("bytes after a query")) }
}

/// Reads the body of a PasswordMessage (`p`).
pub fn parse_password(body: &[u8]) -> Result<&str, WireError> {
    let mut parts = Parts::new(body);
    let text = parts.text("password")?;
    if parts.is_empty() { Ok(text) } else { Err(WireError::Format("invalid password packet size")) }
}

/// Reads the body of a SASLInitialResponse (`p`): mechanism and, if any, the client's first message.
pub fn parse_sasl_initial(body: &[u8]) -> Result<(&str, Option<&[u8]>), WireError> {
    let mut parts = Parts::new(body);
    let mechanism = parts.text("SASL mechanism")?;
    let length = parts.u32()?;
    match (length, parts.rest()) {
        (u32::MAX, []) => Ok((mechanism, None)),
        (length, data) if usize::try_from(length) == Ok(data.len()) => Ok((mechanism, Some(data))),
        _ => Err(WireError::Format("SASL response length")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{frame, startup::Packet};

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut out = Vec::new();
        write(&mut out);
        out
    }

    #[test]
    fn writes_the_documented_bytes() {
        assert_eq!(written(ssl_request), b"\0\0\0\x08\x04\xd2\x16\x2f");
        assert_eq!(written(gss_request), b"\0\0\0\x08\x04\xd2\x16\x30");
        assert_eq!(written(|o| cancel_request(o, 5, b"abcd")), b"\0\0\0\x10\x04\xd2\x16\x2e\0\0\0\x05abcd");
        assert_eq!(written(|o| startup(o, 0, &[("user", "u"), ("", "x")])), b"\0\0\0\x10\0\x03\0\0user\0u\0\0");
        assert_eq!(written(|o| password(o, "pw")), b"p\0\0\0\x07pw\0");
        assert_eq!(written(|o| sasl_initial(o, "M", b"n,,")), b"p\0\0\0\x0dM\0\0\0\0\x03n,,");
        assert_eq!(written(|o| sasl_response(o, b"c=")), b"p\0\0\0\x06c=");
        assert_eq!(written(|o| query(o, "x")), b"Q\0\0\0\x06x\0");
        assert_eq!(written(sync), b"S\0\0\0\x04");
        assert_eq!(written(terminate), b"X\0\0\0\x04");
        assert_eq!(written(|o| close(o, b'S', b"n")), b"C\0\0\0\x07Sn\0");
    }

    #[test]
    fn what_is_written_is_read_back() {
        let packet = written(|o| startup(o, 2, &[("user", "u"), ("database", "d"), ("a", "b")]));
        let Ok(Packet::Startup(s)) = crate::wire::startup::parse(&packet[4..]) else { panic!() };
        assert_eq!((s.minor, s.user.as_str(), s.database.as_str()), (2, "u", "d"));
        let again = written(|o| parse(o, b"new", b"select\0\0\0"));
        let message = frame::split(&again).unwrap().unwrap();
        assert_eq!(parse_names(message.body).unwrap().name, b"new");
    }

    #[test]
    fn reads_parse() {
        let read = parse_names(b"st\0select $1\0\0\x01\0\0\0\x17").unwrap();
        assert_eq!((read.name, read.query()), (&b"st"[..], &b"select $1"[..]));
        assert_eq!(read.query_and_types, b"select $1\0\0\x01\0\0\0\x17");
        for bad in [&b""[..], b"st", b"st\0q", b"st\0q\0", b"st\0q\0\0\x01", b"st\0q\0\0\0x"] {
            assert!(parse_names(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn reads_the_other_names() {
        assert_eq!(bind(b"p\0s\0rest"), Ok(Bind { portal: b"p", statement: b"s", rest_offset: 4 }));
        assert!(bind(b"p\0s").is_err());
        assert_eq!(describe_or_close(b"Sn\0"), Ok((b'S', &b"n"[..])));
        assert_eq!(describe_or_close(b"P\0"), Ok((b'P', &b""[..])));
        assert!(describe_or_close(b"Xn\0").is_err());
        assert!(describe_or_close(b"Sn\0x").is_err());
        assert!(describe_or_close(b"").is_err());
        assert_eq!(query_text(b"q\0"), Ok(&b"q"[..]));
        assert!(query_text(b"q\0q\0").is_err());
    }

    #[test]
    fn reads_password_messages() {
        assert_eq!(parse_password(b"pw\0"), Ok("pw"));
        assert!(parse_password(b"pw").is_err());
        assert!(parse_password(b"pw\0x").is_err());
        assert_eq!(parse_sasl_initial(b"M\0\0\0\0\x03n,,"), Ok(("M", Some(&b"n,,"[..]))));
        assert_eq!(parse_sasl_initial(b"M\0\xff\xff\xff\xff"), Ok(("M", None)));
        assert!(parse_sasl_initial(b"M\0\0\0\0\x04n,,").is_err());
    }
}
