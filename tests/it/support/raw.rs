//! A client that says exactly the bytes it is told to, over TCP, and gives up on a daemon that does not answer.

use pgmend::wire::frontend;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Longer than every limit of the daemon in these stories.
const PATIENCE: Duration = Duration::from_secs(20);

/// One connection.
pub struct Raw {
    pub stream: TcpStream,
}

/// A message of the daemon; one byte without a body is the answer to an encryption request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub tag: u8,
    pub body: Vec<u8>,
}

impl Message {
    /// The code of an authentication request.
    pub fn auth(&self) -> Option<u8> {
        (self.tag == b'R').then(|| *self.body.get(3).expect("a code"))
    }

    /// SQLSTATE and text of an error.
    #[track_caller]
    pub fn error(&self) -> (String, String) {
        assert_eq!(self.tag, b'E', "{self:?}");
        let text = String::from_utf8_lossy(&self.body).into_owned();
        let field = |name: char| text.split('\0').find_map(|f| f.strip_prefix(name)).unwrap_or_default().to_owned();
        (field('C'), field('M'))
    }
}

impl Raw {
    pub fn connect(port: u16) -> Raw {
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("the daemon listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a limit");
        stream.set_write_timeout(Some(PATIENCE)).expect("a limit");
        stream.set_nodelay(true).expect("an option");
        Raw { stream }
    }

    /// Sends bytes; a daemon that has closed already is no fault of the story.
    pub fn send(&mut self, bytes: &[u8]) -> &mut Raw {
        let _ = self.stream.write_all(bytes);
        self
    }

    /// Sends what a writer of messages writes.
    pub fn say(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> &mut Raw {
        let mut out = Vec::new();
        write(&mut out);
        self.send(&out)
    }

    /// A startup packet of protocol 3.`minor`.
    pub fn start(&mut self, minor: u16, parameters: &[(&str, &str)]) -> &mut Raw {
        self.say(|out| frontend::startup(out, minor, parameters))
    }

    /// One byte, the answer to an encryption request.
    #[track_caller]
    pub fn byte(&mut self) -> u8 {
        let mut byte = [0];
        self.stream.read_exact(&mut byte).expect("one byte");
        byte[0]
    }

    /// The next message; `None` when the daemon has closed.
    #[track_caller]
    pub fn next(&mut self) -> Option<Message> {
        self.try_next().unwrap_or_else(|e| panic!("the daemon hangs: {e}"))
    }

    /// The next message; `None` when the daemon has closed, an error when nothing comes.
    pub fn try_next(&mut self) -> std::io::Result<Option<Message>> {
        let mut head = [0; 5];
        match self.stream.read_exact(&mut head) {
            Ok(()) => {}
            Err(e) if matches!(e.kind(), std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::ConnectionReset) => {
                return Ok(None);
            }
            Err(e) => return Err(e),
        }
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
        let mut body = vec![0; length as usize - 4];
        self.stream.read_exact(&mut body)?;
        Ok(Some(Message { tag: head[0], body }))
    }

    /// The next message, which must come.
    #[track_caller]
    pub fn message(&mut self) -> Message {
        self.next().expect("an answer, not a close")
    }

    /// Messages up to and with ReadyForQuery or an error.
    #[track_caller]
    pub fn until_ready(&mut self) -> Vec<Message> {
        let mut all = Vec::new();
        loop {
            all.push(self.message());
            if matches!(all.last().map(|m| m.tag), Some(b'Z' | b'E')) {
                return all;
            }
        }
    }

    /// The connection must end here, with nothing more.
    #[track_caller]
    pub fn must_end(&mut self) {
        assert_eq!(self.next(), None);
    }
}
