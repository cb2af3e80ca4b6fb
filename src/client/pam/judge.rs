//! The process in which PAM's modules run: reads one question, answers in one line, and lives only while somebody waits.

use super::GRANTED;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use nonstick::items::ItemsMut;
use nonstick::{
    AuthnFlags, ConversationAdapter, ErrorCode, PamShared, Result as PamResult, Transaction, TransactionBuilder,
};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::process::ExitCode;
use zeroize::Zeroizing;

/// Bytes of a question: the longest password and the longest startup packet, and room.
const MAX_QUESTION: usize = 128 << 10;
/// Fields of a question.
const FIELDS: usize = 5;

/// The order `pam-judge`: what the process does from beginning to end. A granted login is the line that says so *and* success.
pub fn answer() -> ExitCode {
    let Ok(input) = io::stdin().as_fd().try_clone_to_owned() else { return ExitCode::FAILURE };
    let mut input = File::from(input);
    let Ok(question) = read_question(&mut input) else { return ExitCode::FAILURE };
    // Ends with the process.
    std::thread::spawn(move || end_with(&mut input));
    let words = match ask(&question) {
        Ok(()) => GRANTED.to_owned(),
        Err((step, why)) => format!("{step}: {}", why.to_string().replace('\n', " ")),
    };
    let mut output = io::stdout();
    let told = writeln!(output, "{words}").and_then(|()| output.flush());
    if told.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// One login's question.
struct Question {
    service: String,
    user: String,
    host: Option<IpAddr>,
    use_hostname: bool,
    password: Zeroizing<String>,
}

fn read_question(input: &mut impl Read) -> io::Result<Question> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_QUESTION));
    let mut part = Zeroizing::new([0u8; 4096]);
    while bytes.iter().filter(|byte| **byte == 0).count() < FIELDS {
        let count = input.read(part.as_mut_slice())?;
        let read = part.get(..count).filter(|read| !read.is_empty() && bytes.len() + read.len() <= MAX_QUESTION);
        bytes.extend_from_slice(read.ok_or(io::ErrorKind::InvalidData)?);
    }
    let text = std::str::from_utf8(&bytes).map_err(io::Error::other)?;
    let mut fields = text.split('\0').map(str::to_owned);
    let mut next = || fields.next().ok_or(io::ErrorKind::InvalidData);
    let (service, user, host, names) = (next()?, next()?, next()?, next()?);
    let host = if host.is_empty() { None } else { Some(host.parse().map_err(io::Error::other)?) };
    Ok(Question { service, user, host, use_hostname: names == "1", password: Zeroizing::new(next()?) })
}

/// When nobody waits any more, also because he was killed, everything here ends: the programs of modules too.
fn end_with(input: &mut impl Read) {
    let mut scrap = [0u8; 64];
    while input.read(&mut scrap).is_ok_and(|count| count > 0) {}
    // A group of its own; the asking process has made it.
    let _ = killpg(Pid::from_raw(0), Signal::SIGKILL);
}

/// As PostgreSQL: who it is, then whether his account is good. No session is opened.
fn ask(question: &Question) -> Result<(), (&'static str, ErrorCode)> {
    let conversation = Password(&question.password).into_conversation();
    let start = TransactionBuilder::new_with_service(&question.service).username(&question.user);
    let mut pam = start.build(conversation).map_err(|why| ("start", why))?;
    if let Some(host) = question.host {
        let host = OsString::from(named(host, question.use_hostname));
        pam.items_mut().set_remote_host(Some(&host)).map_err(|why| ("start", why))?;
    }
    pam.authenticate(AuthnFlags::empty()).map_err(|why| ("authentication", why))?;
    pam.account_management(AuthnFlags::empty()).map_err(|why| ("account", why))
}

/// An address that has no name stays an address.
fn named(host: IpAddr, use_hostname: bool) -> String {
    let name = use_hostname.then(|| dns_lookup::lookup_addr(&host).ok()).flatten();
    name.unwrap_or_else(|| host.to_string())
}

/// Who is asked for something secret gives the password. Other questions have no answer, since the client has been asked for
/// nothing else.
struct Password<'a>(&'a str);

impl ConversationAdapter for Password<'_> {
    fn prompt(&self, _request: impl AsRef<OsStr>) -> PamResult<OsString> {
        Err(ErrorCode::ConversationError)
    }
    fn masked_prompt(&self, _request: impl AsRef<OsStr>) -> PamResult<OsString> {
        Ok(OsString::from(self.0))
    }
    fn error_msg(&self, _message: impl AsRef<OsStr>) {}
    fn info_msg(&self, _message: impl AsRef<OsStr>) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_read_whole_or_not_at_all() {
        let question = read_question(&mut &b"s\0u\x0010.0.0.1\x001\0p w\0"[..]).unwrap();
        assert_eq!((question.service.as_str(), question.user.as_str()), ("s", "u"));
        assert_eq!((question.host, question.use_hostname), (Some([10, 0, 0, 1].into()), true));
        assert_eq!(question.password.as_str(), "p w");
        let local = read_question(&mut &b"s\0u\0\x000\0p\0"[..]).unwrap();
        assert_eq!((local.host, local.use_hostname), (None, false));
        for bad in [&b""[..], b"s\0u\0\x000\0p", b"s\0u\0nowhere\x000\0p\0", b"s\0\xff\0\x000\0p\0"] {
            assert!(read_question(&mut &bad[..]).is_err(), "{bad:?}");
        }
        assert!(read_question(&mut &vec![b'x'; MAX_QUESTION + 1][..]).is_err());
    }
}
