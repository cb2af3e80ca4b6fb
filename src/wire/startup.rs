//! The packet that opens a connection: startup, SSLRequest, GSSENCRequest or CancelRequest.
//!
//! <https://www.postgresql.org/docs/current/protocol-message-formats.html>

use super::WireError;
use super::parts::Parts;

/// Greatest startup packet, length field included (PostgreSQL's MAX_STARTUP_PACKET_LENGTH).
pub const MAX_STARTUP: usize = 10_000;
/// Greatest cancel key, bytes (PostgreSQL 18 allows 256).
pub const MAX_CANCEL_KEY: usize = 256;
/// Newest minor protocol version that is spoken here.
pub const NEWEST_MINOR: u16 = 2;

const CODES: u16 = 1234;
const CANCEL: u16 = 5678;
const SSL: u16 = 5679;
const GSS: u16 = 5680;

/// A first packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet {
    /// The client asks for TLS.
    Ssl,
    /// The client asks for GSSAPI encryption.
    Gss,
    /// The client asks to cancel what the owner of this key runs.
    Cancel {
        /// Process id of the session.
        pid: u32,
        /// Secret of the session, 4 to 256 bytes.
        key: Vec<u8>,
    },
    /// The client opens a session.
    Startup(Startup),
}

/// The request for a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Startup {
    /// Minor protocol version asked for, of major version 3.
    pub minor: u16,
    /// Role.
    pub user: String,
    /// Database; the role's name when none was given.
    pub database: String,
    /// Everything else in the client's order, `options`, `application_name` and `replication` included.
    pub parameters: Vec<(String, String)>,
    /// Names of protocol options (`_pq_.…`); none is known here, so all are to be negotiated away.
    pub unknown_options: Vec<String>,
}

impl Startup {
    /// The minor version to speak: what was asked for, down to the newest known. PostgreSQL reserves 3.1 and never
    /// speaks it, so asking for it gives 3.0.
    pub fn negotiated_minor(&self) -> u16 {
        if self.minor >= NEWEST_MINOR { NEWEST_MINOR } else { 0 }
    }

    /// True when the client must be told by NegotiateProtocolVersion what it does not get.
    pub fn must_negotiate(&self) -> bool {
        self.minor != self.negotiated_minor() || !self.unknown_options.is_empty()
    }

    /// The value of a parameter; the last one counts, as in PostgreSQL.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().rev().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

/// Length of the packet's body from its length field; an error when it cannot be a startup packet.
pub fn body_length(field: [u8; 4]) -> Result<usize, WireError> {
    let length = u32::from_be_bytes(field);
    match usize::try_from(length) {
        Ok(all @ 8..=MAX_STARTUP) => Ok(all - 4),
        _ => Err(WireError::Length(length)),
    }
}

/// Reads a packet from its body, which is everything after the length field.
pub fn parse(body: &[u8]) -> Result<Packet, WireError> {
    if body.len() > MAX_STARTUP - 4 {
        return Err(WireError::Length(u32::try_from(body.len()).unwrap_or(u32::MAX)));
    }
    let mut parts = Parts::new(body);
    let code = parts.u32()?;
    let (major, minor) = version(code);
    match (major, minor) {
        (CODES, SSL | GSS) if !parts.is_empty() => Err(WireError::Format("encryption request with a body")),
        (CODES, SSL) => Ok(Packet::Ssl),
        (CODES, GSS) => Ok(Packet::Gss),
        (CODES, CANCEL) => {
            let pid = parts.u32()?;
            let key = parts.rest();
            if !(4..=MAX_CANCEL_KEY).contains(&key.len()) {
                return Err(WireError::Format("cancel key"));
            }
            Ok(Packet::Cancel { pid, key: key.to_vec() })
        }
        (3, _) => session(minor, parts).map(Packet::Startup),
        _ => Err(WireError::Protocol { major, minor }),
    }
}

fn version(code: u32) -> (u16, u16) {
    let [a, b, c, d] = code.to_be_bytes();
    (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))
}

fn session(minor: u16, mut parts: Parts<'_>) -> Result<Startup, WireError> {
    let mut user = None;
    let mut database = None;
    let mut parameters = Vec::new();
    let mut unknown_options = Vec::new();
    loop {
        let name = parts.text("startup parameter name")?;
        if name.is_empty() {
            break;
        }
        let value = parts.text("startup parameter value")?;
        match name {
            "user" => user = Some(value.to_owned()),
            "database" => database = Some(value.to_owned()),
            _ if name.starts_with("_pq_.") => unknown_options.push(name.to_owned()),
            _ => parameters.push((name.to_owned(), value.to_owned())),
        }
    }
    if !parts.is_empty() {
        return Err(WireError::Format("invalid startup packet layout: expected terminator as last byte"));
    }
    let user = user.filter(|u| !u.is_empty()).ok_or(WireError::NoUser)?;
    let database = database.filter(|d| !d.is_empty()).unwrap_or_else(|| user.clone());
    Ok(Startup { minor, user, database, parameters, unknown_options })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started(body: &[u8]) -> Startup {
        match parse(body) {
            Ok(Packet::Startup(s)) => s,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn reads_the_requests() {
        assert_eq!(parse(b"\x04\xd2\x16\x2f"), Ok(Packet::Ssl));
        assert_eq!(parse(b"\x04\xd2\x16\x30"), Ok(Packet::Gss));
        assert_eq!(parse(b"\x04\xd2\x16\x2e\0\0\0\x07abcd"), Ok(Packet::Cancel { pid: 7, key: b"abcd".to_vec() }));
        assert!(parse(b"\x04\xd2\x16\x2e\0\0\0\x07abc").is_err());
        assert!(parse(b"\x04\xd2\x16\x2fX").is_err());
        assert!(parse(b"\x04\xd2").is_err());
    }

    #[test]
    fn reads_a_startup() {
        let s = started(b"\0\x03\0\0user\0al\0database\0shop\0options\0-c x=1\0_pq_.new\0on\0\0");
        assert_eq!((s.minor, s.user.as_str(), s.database.as_str()), (0, "al", "shop"));
        assert_eq!(s.parameters, [("options".to_owned(), "-c x=1".to_owned())]);
        assert_eq!(s.unknown_options, ["_pq_.new"]);
        assert!(s.must_negotiate());
        assert_eq!(started(b"\0\x03\0\0user\0al\0\0").database, "al");
        assert_eq!(started(b"\0\x03\0\0user\0al\0a\0x\0a\0y\0\0").parameter("a"), Some("y"));
    }

    #[test]
    fn negotiates_minor_versions() {
        for (asked, spoken, told) in [(0u8, 0, false), (1, 0, true), (2, 2, false), (3, 2, true), (255, 2, true)] {
            let mut body = b"\0\x03\0\0user\0u\0\0".to_vec();
            body[3] = asked;
            let s = started(&body);
            assert_eq!((s.negotiated_minor(), s.must_negotiate()), (spoken, told), "3.{asked}");
        }
    }

    #[test]
    fn refuses_bad_packets() {
        assert_eq!(parse(b"\0\x02\0\0user\0u\0\0"), Err(WireError::Protocol { major: 2, minor: 0 }));
        assert_eq!(parse(b"\0\x03\0\0\0"), Err(WireError::NoUser));
        assert_eq!(parse(b"\0\x03\0\0user\0\0\0"), Err(WireError::NoUser));
        assert!(parse(b"\0\x03\0\0user\0u\0").is_err());
        assert!(parse(b"\0\x03\0\0user\0u\0\0extra").is_err());
        assert!(parse(b"\0\x03\0\0user\0\xff\0\0").is_err());
        assert!(parse(&vec![0; 9_997]).is_err());
    }

    #[test]
    fn bounds_the_length() {
        assert_eq!(body_length(8u32.to_be_bytes()), Ok(4));
        assert_eq!(body_length(10_000u32.to_be_bytes()), Ok(9_996));
        assert_eq!(body_length(10_001u32.to_be_bytes()), Err(WireError::Length(10_001)));
        assert_eq!(body_length(7u32.to_be_bytes()), Err(WireError::Length(7)));
    }
}
