//! Open descriptors through a Unix socket (SCM_RIGHTS), together with a line of text.

use super::words::MAX_LINE;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Descriptors in one message; Linux takes 253.
pub const MAX_DESCRIPTORS: usize = 250;
/// Read at once.
const CHUNK: usize = 64 << 10;

/// Sends the line's beginning with the descriptors; returns how many bytes of it went.
pub fn send(socket: impl AsFd, line: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
    if descriptors.len() > MAX_DESCRIPTORS {
        return Err(io::Error::other(format!("more than {MAX_DESCRIPTORS} sockets cannot be passed")));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("the descriptors do not fit in one message"));
    }
    Ok(sendmsg(socket, &[IoSlice::new(line)], &mut control, SendFlags::NOSIGNAL)?)
}

/// Reads one line with what descriptors come with it. Blocks; the socket's own time limit bounds it. The peer sends nothing
/// behind the line before it is answered.
pub fn receive_line(socket: impl AsFd) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let (mut line, mut descriptors) = (Vec::new(), Vec::new());
    let mut chunk = vec![0; CHUNK];
    while line.last() != Some(&b'\n') {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut chunk)];
        let got = recvmsg(&socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?.bytes;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(more) = message {
                descriptors.extend(more);
            }
        }
        if got == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        line.extend_from_slice(chunk.get(..got).unwrap_or_default());
        if line.len() > MAX_LINE {
            return Err(io::Error::other("a line is too long"));
        }
    }
    Ok((line, descriptors))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_line_and_its_descriptors_arrive_together() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut end, passed) = UnixStream::pair().unwrap();
        assert_eq!(send(&ours, b"two\n", &[passed.as_fd(), end.as_fd()]).unwrap(), 4);
        drop(passed);
        let (line, mut got) = receive_line(&theirs).unwrap();
        assert_eq!((line.as_slice(), got.len()), (&b"two\n"[..], 2));
        let mut passed = UnixStream::from(got.remove(0));
        passed.write_all(b"x").unwrap();
        let mut byte = [0];
        end.read_exact(&mut byte).unwrap();
        assert_eq!(byte, *b"x");
        drop(ours);
        assert_eq!(receive_line(&theirs).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
