//! Messages that servers send: written for clients, read from nodes.
//!
//! <https://www.postgresql.org/docs/current/protocol-message-formats.html>

use super::WireError;
use super::parts::{Parts, message, put_count, put_name, put_text};

/// OID of `text`, the type of all columns that pgmend makes itself.
const TEXT_OID: u32 = 25;

/// The fields of an ErrorResponse or NoticeResponse that are used here.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ErrorFields {
    /// `ERROR`, `FATAL`, `PANIC`, `WARNING`, …; not translated.
    pub severity: String,
    /// SQLSTATE.
    pub code: String,
    /// Primary text.
    pub message: String,
    /// Detail.
    pub detail: Option<String>,
    /// Hint.
    pub hint: Option<String>,
}

impl ErrorFields {
    /// A FATAL error, after which the connection is closed.
    pub fn fatal(code: &str, message: impl Into<String>) -> Self {
        ErrorFields { severity: "FATAL".into(), code: code.into(), message: message.into(), detail: None, hint: None }
    }

    /// An ERROR.
    pub fn error(code: &str, message: impl Into<String>) -> Self {
        ErrorFields { severity: "ERROR".into(), ..Self::fatal(code, message) }
    }

    /// Adds a detail.
    pub fn with_detail(self, detail: impl Into<String>) -> Self {
        ErrorFields { detail: Some(detail.into()), ..self }
    }

    /// Adds a hint.
    pub fn with_hint(self, hint: impl Into<String>) -> Self {
        ErrorFields { hint: Some(hint.into()), ..self }
    }
}

impl std::fmt::Display for ErrorFields {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} ({})", self.severity, self.message, self.code)?;
        self.detail.iter().try_for_each(|d| write!(f, ", detail: {d}"))?;
        self.hint.iter().try_for_each(|h| write!(f, ", hint: {h}"))
    }
}

/// AuthenticationOk.
pub fn auth_ok(out: &mut Vec<u8>) {
    auth(out, 0, |_| {});
}

/// AuthenticationCleartextPassword.
pub fn auth_cleartext(out: &mut Vec<u8>) {
    auth(out, 3, |_| {});
}

/// AuthenticationMD5Password.
pub fn auth_md5(out: &mut Vec<u8>, salt: [u8; 4]) {
    auth(out, 5, |b| b.extend_from_slice(&salt));
}

/// AuthenticationSASL with the mechanisms in order of preference.
pub fn auth_sasl(out: &mut Vec<u8>, mechanisms: &[&str]) {
    auth(out, 10, |b| {
        mechanisms.iter().for_each(|m| put_text(b, m));
        b.push(0);
    });
}

/// AuthenticationSASLContinue.
pub fn auth_sasl_continue(out: &mut Vec<u8>, data: &[u8]) {
    auth(out, 11, |b| b.extend_from_slice(data));
}

/// AuthenticationSASLFinal.
pub fn auth_sasl_final(out: &mut Vec<u8>, data: &[u8]) {
    auth(out, 12, |b| b.extend_from_slice(data));
}

fn auth(out: &mut Vec<u8>, kind: u32, rest: impl FnOnce(&mut Vec<u8>)) {
    message(out, Some(b'R'), |b| {
        b.extend_from_slice(&kind.to_be_bytes());
        rest(b);
    });
}

/// ParameterStatus.
pub fn parameter_status(out: &mut Vec<u8>, name: &str, value: &str) {
    message(out, Some(b'S'), |b| {
        put_text(b, name);
        put_text(b, value);
    });
}

/// BackendKeyData; the key has 4 bytes in protocol 3.0, up to 256 in 3.2.
pub fn backend_key_data(out: &mut Vec<u8>, pid: u32, key: &[u8]) {
    message(out, Some(b'K'), |b| {
        b.extend_from_slice(&pid.to_be_bytes());
        b.extend_from_slice(key);
    });
}

/// ReadyForQuery with the transaction status `I`, `T` or `E`.
pub fn ready_for_query(out: &mut Vec<u8>, status: u8) {
    message(out, Some(b'Z'), |b| b.push(status));
}

/// NegotiateProtocolVersion: the newest minor version that is spoken, the options that are not known.
///
/// The field holds the whole version, major number in the upper half, as libpq reads it.
pub fn negotiate_protocol(out: &mut Vec<u8>, minor: u16, unknown_options: &[String]) {
    message(out, Some(b'v'), |b| {
        b.extend_from_slice(&3u16.to_be_bytes());
        b.extend_from_slice(&minor.to_be_bytes());
        b.extend_from_slice(&u32::try_from(unknown_options.len()).unwrap_or(0).to_be_bytes());
        unknown_options.iter().for_each(|o| put_text(b, o));
    });
}

/// CommandComplete.
pub fn command_complete(out: &mut Vec<u8>, tag: &str) {
    message(out, Some(b'C'), |b| put_text(b, tag));
}

/// EmptyQueryResponse.
pub fn empty_query(out: &mut Vec<u8>) {
    message(out, Some(b'I'), |_| {});
}

/// RowDescription of text columns.
pub fn row_description_text(out: &mut Vec<u8>, columns: &[&str]) {
    message(out, Some(b'T'), |b| {
        put_count(b, columns.len());
        for column in columns {
            put_text(b, column);
            // No table, no column number, type text of variable length, no modifier, text format.
            b.extend_from_slice(&[0; 6]);
            b.extend_from_slice(&TEXT_OID.to_be_bytes());
            b.extend_from_slice(&(-1i16).to_be_bytes());
            b.extend_from_slice(&(-1i32).to_be_bytes());
            b.extend_from_slice(&[0; 2]);
        }
    });
}

/// DataRow of text values; `None` is NULL.
pub fn data_row(out: &mut Vec<u8>, values: &[Option<&str>]) {
    message(out, Some(b'D'), |b| {
        put_count(b, values.len());
        for value in values {
            match value {
                None => b.extend_from_slice(&(-1i32).to_be_bytes()),
                Some(text) => {
                    b.extend_from_slice(&i32::try_from(text.len()).unwrap_or(i32::MAX).to_be_bytes());
                    b.extend_from_slice(text.as_bytes());
                }
            }
        }
    });
}

/// ErrorResponse.
pub fn error_response(out: &mut Vec<u8>, fields: &ErrorFields) {
    report(out, b'E', fields);
}

/// NoticeResponse.
pub fn notice_response(out: &mut Vec<u8>, fields: &ErrorFields) {
    report(out, b'N', fields);
}

fn report(out: &mut Vec<u8>, tag: u8, fields: &ErrorFields) {
    message(out, Some(tag), |b| {
        let required =
            [(b'S', &fields.severity), (b'V', &fields.severity), (b'C', &fields.code), (b'M', &fields.message)];
        let optional = [(b'D', &fields.detail), (b'H', &fields.hint)];
        let all = required.into_iter().chain(optional.into_iter().filter_map(|(k, v)| v.as_ref().map(|v| (k, v))));
        for (kind, text) in all {
            b.push(kind);
            put_text(b, text);
        }
        b.push(0);
    });
}

/// ParseComplete.
pub fn parse_complete(out: &mut Vec<u8>) {
    message(out, Some(b'1'), |_| {});
}

/// CloseComplete.
pub fn close_complete(out: &mut Vec<u8>) {
    message(out, Some(b'3'), |_| {});
}

/// What a server asks for, or says, in an Authentication message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuthRequest {
    /// Logged in.
    Ok,
    /// The password in clear text.
    Cleartext,
    /// The md5 of the stored md5 and this salt.
    Md5([u8; 4]),
    /// One of these mechanisms.
    Sasl(Vec<String>),
    /// The server's next SASL message.
    SaslContinue(Vec<u8>),
    /// The server's last SASL message.
    SaslFinal(Vec<u8>),
    /// A method that is not spoken here (Kerberos, GSSAPI, SSPI, …).
    Other(u32),
}

/// Reads the body of an Authentication message (`R`).
pub fn parse_auth(body: &[u8]) -> Result<AuthRequest, WireError> {
    let mut parts = Parts::new(body);
    let request = match parts.u32()? {
        0 => AuthRequest::Ok,
        3 => AuthRequest::Cleartext,
        5 => AuthRequest::Md5(parts.u32()?.to_be_bytes()),
        10 => return mechanisms(parts),
        11 => return Ok(AuthRequest::SaslContinue(parts.rest().to_vec())),
        12 => return Ok(AuthRequest::SaslFinal(parts.rest().to_vec())),
        other => return Ok(AuthRequest::Other(other)),
    };
    if parts.is_empty() { Ok(request) } else { Err(WireError::Format("bytes after an authentication request")) }
}

fn mechanisms(mut parts: Parts<'_>) -> Result<AuthRequest, WireError> {
    let mut names = Vec::new();
    loop {
        match parts.text("SASL mechanism")? {
            "" => return Ok(AuthRequest::Sasl(names)),
            name => names.push(name.to_owned()),
        }
    }
}

/// Reads the body of an ErrorResponse or NoticeResponse. Tolerant: what is missing stays empty, what is not UTF-8 is
/// replaced, because an error that cannot be shown helps nobody.
pub fn parse_error(body: &[u8]) -> ErrorFields {
    let mut fields = ErrorFields::default();
    let mut parts = Parts::new(body);
    while let Ok(kind @ 1..) = parts.byte() {
        let Ok(value) = parts.name() else { break };
        let value = String::from_utf8_lossy(value).into_owned();
        match kind {
            // `V` is never translated; `S` is all that servers before 9.6 send.
            b'V' => fields.severity = value,
            b'S' if fields.severity.is_empty() => fields.severity = value,
            b'C' => fields.code = value,
            b'M' => fields.message = value,
            b'D' => fields.detail = Some(value),
            b'H' => fields.hint = Some(value),
            _ => {}
        }
    }
    fields
}

/// Reads the body of a ParameterStatus (`S`): name and value.
pub fn parse_parameter_status(body: &[u8]) -> Result<(&str, &str), WireError> {
    let mut parts = Parts::new(body);
    let pair = (parts.text("parameter name")?, parts.text("parameter value")?);
    if parts.is_empty() { Ok(pair) } else { Err(WireError::Format("bytes after a parameter status")) }
}

/// Reads the body of a DataRow (`D`): its values, NULL as `None`.
pub fn parse_data_row(body: &[u8]) -> Result<Vec<Option<Vec<u8>>>, WireError> {
    let mut parts = Parts::new(body);
    let count = parts.u16()?;
    let mut values = Vec::with_capacity(usize::from(count).min(body.len() / 4));
    for _ in 0..count {
        values.push(match parts.u32()? {
            u32::MAX => None,
            length => Some(parts.take(usize::try_from(length).unwrap_or(usize::MAX))?.to_vec()),
        });
    }
    if parts.is_empty() { Ok(values) } else { Err(WireError::Format("bytes after a data row")) }
}

/// Reads the body of a BackendKeyData (`K`): process id and key of 4 to 256 bytes.
pub fn parse_key_data(body: &[u8]) -> Result<(u32, &[u8]), WireError> {
    let mut parts = Parts::new(body);
    let pid = parts.u32()?;
    match parts.rest() {
        key if (4..=super::startup::MAX_CANCEL_KEY).contains(&key.len()) => Ok((pid, key)),
        _ => Err(WireError::Format("cancel key")),
    }
}

/// Writes a message with a body that is already encoded, for tests and relays.
pub fn raw(out: &mut Vec<u8>, tag: u8, body: &[u8]) {
    message(out, Some(tag), |b| b.extend_from_slice(body));
}

/// PortalSuspended, BindComplete and NoData have no body: one writer for all such tags.
pub fn bare(out: &mut Vec<u8>, tag: u8) {
    message(out, Some(tag), |_| {});
}

/// A NotificationResponse as read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Notification<'a> {
    /// Process id of the backend that notified.
    pub pid: u32,
    /// Channel, in the session's encoding.
    pub channel: &'a [u8],
    /// Payload.
    pub payload: &'a [u8],
}

/// Reads the body of a NotificationResponse (`A`).
pub fn parse_notification(body: &[u8]) -> Result<Notification<'_>, WireError> {
    let mut parts = Parts::new(body);
    let notification = Notification { pid: parts.u32()?, channel: parts.name()?, payload: parts.name()? };
    if parts.is_empty() { Ok(notification) } else { Err(WireError::Format("bytes after a notification")) }
}

/// NotificationResponse.
pub fn notification(out: &mut Vec<u8>, pid: u32, channel: &[u8], payload: &[u8]) {
    message(out, Some(b'A'), |b| {
        b.extend_from_slice(&pid.to_be_bytes());
        put_name(b, channel);
        put_name(b, payload);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame;

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut out = Vec::new();
        write(&mut out);
        out
    }

    fn body(message: &[u8]) -> &[u8] {
        frame::split(message).unwrap().unwrap().body
    }

    #[test]
    fn writes_the_documented_bytes() {
        assert_eq!(written(auth_ok), b"R\0\0\0\x08\0\0\0\0");
        assert_eq!(written(|o| auth_md5(o, [1, 2, 3, 4])), b"R\0\0\0\x0c\0\0\0\x05\x01\x02\x03\x04");
        assert_eq!(written(|o| auth_sasl(o, &["SCRAM-SHA-256"])), b"R\0\0\0\x17\0\0\0\x0aSCRAM-SHA-256\0\0");
        assert_eq!(written(|o| parameter_status(o, "a", "b")), b"S\0\0\0\x08a\0b\0");
        assert_eq!(written(|o| backend_key_data(o, 1, b"wxyz")), b"K\0\0\0\x0c\0\0\0\x01wxyz");
        assert_eq!(written(|o| ready_for_query(o, b'T')), b"Z\0\0\0\x05T");
        assert_eq!(written(|o| command_complete(o, "SELECT 1")), b"C\0\0\0\x0dSELECT 1\0");
        assert_eq!(written(parse_complete), b"1\0\0\0\x04");
        assert_eq!(written(close_complete), b"3\0\0\0\x04");
        assert_eq!(
            written(|o| negotiate_protocol(o, 2, &["_pq_.x".into()])),
            b"v\0\0\0\x13\0\x03\0\x02\0\0\0\x01_pq_.x\0"
        );
        assert_eq!(
            written(|o| row_description_text(o, &["a"])),
            b"T\0\0\0\x1a\0\x01a\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0"
        );
        assert_eq!(written(|o| data_row(o, &[Some("x"), None])), b"D\0\0\0\x0f\0\x02\0\0\0\x01x\xff\xff\xff\xff");
    }

    #[test]
    fn reads_errors_tolerantly() {
        let fields = ErrorFields::fatal("28P01", "no").with_detail("d").with_hint("h");
        assert_eq!(parse_error(body(&written(|o| error_response(o, &fields)))), fields);
        assert_eq!(parse_error(b"").message, "");
        assert_eq!(parse_error(b"Mcut").message, "");
        assert_eq!(parse_error(b"SERREUR\0VERROR\0M\xff\0\0").severity, "ERROR");
        assert_eq!(parse_error(b"M\xff\0\0").message, "\u{fffd}");
    }

    #[test]
    fn reads_authentication() {
        let round = |write: &dyn Fn(&mut Vec<u8>)| parse_auth(body(&written(write)));
        assert_eq!(round(&|o| auth_ok(o)), Ok(AuthRequest::Ok));
        assert_eq!(round(&|o| auth_cleartext(o)), Ok(AuthRequest::Cleartext));
        assert_eq!(round(&|o| auth_md5(o, *b"salt")), Ok(AuthRequest::Md5(*b"salt")));
        assert_eq!(round(&|o| auth_sasl(o, &["A", "B"])), Ok(AuthRequest::Sasl(vec!["A".into(), "B".into()])));
        assert_eq!(round(&|o| auth_sasl_continue(o, b"c")), Ok(AuthRequest::SaslContinue(b"c".to_vec())));
        assert_eq!(round(&|o| auth_sasl_final(o, b"f")), Ok(AuthRequest::SaslFinal(b"f".to_vec())));
        assert_eq!(parse_auth(b"\0\0\0\x07"), Ok(AuthRequest::Other(7)));
        assert!(parse_auth(b"\0\0\0\x05abc").is_err());
        assert!(parse_auth(b"\0\0\0\x0aSCRAM").is_err());
        assert!(parse_auth(b"\0\0\0\0x").is_err());
    }

    #[test]
    fn reads_parameters_and_keys() {
        assert_eq!(parse_parameter_status(b"TimeZone\0UTC\0"), Ok(("TimeZone", "UTC")));
        assert!(parse_parameter_status(b"TimeZone\0UTC").is_err());
        assert!(parse_parameter_status(b"a\0b\0c").is_err());
        assert_eq!(parse_key_data(b"\0\0\0\x09abcd"), Ok((9, &b"abcd"[..])));
        assert!(parse_key_data(b"\0\0\0\x09abc").is_err());
        assert!(parse_key_data(&[0; 261]).is_err());
    }
}
