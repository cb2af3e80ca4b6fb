//! The new side of a takeover: asks, receives, gets ready, and becomes the daemon.

use super::descriptors::receive_line;
use super::give::socket_path;
use super::words::{GateWords, VERSION, Word};
use crate::cluster::View;
use crate::net::Inherited;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Longest wait for an answer of the old process: its keeper may be in a probe and its disk slow.
const ANSWER: Duration = Duration::from_secs(60);

/// What the old process gave.
pub struct Inheritance {
    /// Its listening sockets.
    pub listeners: Inherited,
    /// The lock of the state directory.
    pub lock: OwnedFd,
    socket: UnixStream,
}

/// Asks the process that works on this state directory. `None`: there is none.
pub fn ask(directory: &Path) -> Result<Option<Inheritance>, String> {
    let path = socket_path(directory);
    let socket = match UnixStream::connect(&path) {
        Ok(socket) => socket,
        // Whoever has left the file behind is gone; the lock tells if not.
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => return Ok(None),
        Err(e) => return Err(format!("takeover: {}: {e}", path.display())),
    };
    let failed = |e: io::Error| format!("takeover: the running process does not answer: {e}");
    socket.set_read_timeout(Some(ANSWER)).and_then(|()| socket.set_write_timeout(Some(ANSWER))).map_err(failed)?;
    let (word, mut descriptors) = say(&socket, &Word::Ask { version: VERSION, pid: std::process::id() })?;
    let Word::Here { listeners } = word else { return Err(not_expected(&word)) };
    let lock = descriptors.pop().ok_or("takeover: the running process sent no lock")?;
    if listeners.len() != descriptors.len() {
        return Err("takeover: the running process sent more names than sockets, or fewer".into());
    }
    let listeners = Inherited::new(listeners.into_iter().zip(descriptors).collect());
    Ok(Some(Inheritance { listeners, lock, socket }))
}

impl Inheritance {
    /// Everything that can fail is done. When this returns, the old process writes nothing any more, and the socket is for
    /// the rest of the conversation, which begins with [`Word::Serving`]. The sockets that were not wanted are closed.
    pub fn take(self) -> Result<(View, GateWords, OwnedFd, UnixStream), String> {
        let (word, _) = say(&self.socket, &Word::Prepared)?;
        match word {
            Word::Yours { view, gate } => {
                self.listeners.left().clear();
                Ok((view, gate, self.lock, self.socket))
            }
            word => Err(not_expected(&word)),
        }
    }
}

fn say(mut socket: &UnixStream, word: &Word) -> Result<(Word, Vec<OwnedFd>), String> {
    socket.write_all(&word.line()).map_err(|e| format!("takeover: the running process cannot be told: {e}"))?;
    let (line, descriptors) =
        receive_line(socket).map_err(|e| format!("takeover: no answer of the running process: {e}; it goes on"))?;
    Ok((Word::read(&line).map_err(|e| format!("takeover: {e}"))?, descriptors))
}

fn not_expected(word: &Word) -> String {
    match word {
        Word::Refused { why } => format!("takeover refused by the running process, which goes on: {why}"),
        _ => "takeover: the running process answered something else; is it of another version?".into(),
    }
}
