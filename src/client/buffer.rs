//! Read buffers, lent while bytes are in flight: an idle client holds none.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, ReadBuf};

/// Bytes of an ordinary buffer: PostgreSQL sends at most 8 KiB at a time.
pub const BUFFER: usize = 16 * 1024;
/// Buffers kept per thread for the next user.
const KEPT: usize = 256;

/// A changed batch's memory above this is not kept.
const MAX_KEPT_OUT: usize = 64 * 1024;

thread_local! {
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
    static SPARE_OUT: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Memory for a batch that must be changed, lent as the read buffers are.
pub fn lend_out(out: &mut Vec<u8>) {
    if out.capacity() == 0 {
        *out = SPARE_OUT.with_borrow_mut(Vec::pop).unwrap_or_default();
    }
}

/// Gives it back when it holds nothing.
pub fn return_out(out: &mut Vec<u8>) {
    if out.is_empty() && out.capacity() > 0 {
        let out = std::mem::take(out);
        if out.capacity() <= MAX_KEPT_OUT {
            SPARE_OUT.with_borrow_mut(|spare| {
                if spare.len() < KEPT {
                    spare.push(out);
                }
            });
        }
    }
}

/// A window of unread bytes in a lent buffer.
#[derive(Debug, Default)]
pub struct Buffer {
    data: Vec<u8>,
    start: usize,
    end: usize,
}

impl Buffer {
    /// Without memory.
    pub const fn new() -> Buffer {
        Buffer { data: Vec::new(), start: 0, end: 0 }
    }

    /// What has been read and not consumed.
    pub fn bytes(&self) -> &[u8] {
        self.data.get(self.start..self.end).unwrap_or_default()
    }

    /// It has memory.
    pub fn is_held(&self) -> bool {
        !self.data.is_empty()
    }

    /// Nothing unread.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// `count` bytes have been dealt with.
    pub fn consume(&mut self, count: usize) {
        self.start = (self.start + count).min(self.end);
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        }
    }

    /// Gives the memory back when nothing is unread.
    pub fn release(&mut self) {
        if self.is_empty() && !self.data.is_empty() {
            let data = std::mem::take(&mut self.data);
            if data.len() == BUFFER {
                SPARE.with_borrow_mut(|spare| {
                    if spare.len() < KEPT {
                        spare.push(data);
                    }
                });
            }
        }
    }

    /// Bytes that were read before, by somebody else.
    pub fn put(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        // With room for more, as the last message may not be whole.
        self.reserve(BUFFER.max(self.bytes().len() + bytes.len() + 1));
        if let Some(room) = self.data.get_mut(self.end..self.end + bytes.len()) {
            room.copy_from_slice(bytes);
            self.end += bytes.len();
        }
    }

    /// Takes everything behind the first `count` bytes away.
    pub fn split_off(&mut self, count: usize) -> Vec<u8> {
        let tail = self.bytes().get(count..).unwrap_or_default().to_vec();
        self.end -= tail.len();
        tail
    }

    /// Makes room for a message of `total` bytes that must be held whole.
    pub fn reserve(&mut self, total: usize) {
        self.compact();
        if self.data.len() < total {
            self.data.resize(total, 0);
        }
    }

    /// True when nothing can be read before something is consumed.
    pub fn is_full(&self) -> bool {
        !self.data.is_empty() && self.start == 0 && self.end == self.data.len()
    }

    /// Reads once. 0 bytes: the peer has closed.
    pub fn poll_fill<S: AsyncRead + Unpin>(&mut self, stream: &mut S, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.poll_fill_by(|room| {
            let mut buf = ReadBuf::new(room);
            ready!(Pin::new(&mut *stream).poll_read(cx, &mut buf))?;
            Poll::Ready(Ok(buf.filled().len()))
        })
    }

    /// The same by a function that reads into what room there is.
    #[inline]
    pub fn poll_fill_by(&mut self, read: impl FnOnce(&mut [u8]) -> Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if self.data.is_empty() {
            self.data = SPARE.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; BUFFER]);
        }
        if self.end == self.data.len() {
            self.compact();
        }
        let Some(room) = self.data.get_mut(self.end..) else { return Poll::Ready(Ok(0)) };
        let count = ready!(read(room))?;
        self.end += count;
        Poll::Ready(Ok(count))
    }

    fn compact(&mut self) {
        if self.start > 0 {
            self.data.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.start = 0;
        self.end = 0;
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn fills_consumes_and_gives_back() {
        let mut buffer = Buffer::default();
        let mut source: &[u8] = b"hello";
        let count = std::future::poll_fn(|cx| buffer.poll_fill(&mut source, cx)).await.unwrap();
        assert_eq!((count, buffer.bytes()), (5, b"hello".as_slice()));
        buffer.consume(2);
        assert_eq!(buffer.bytes(), b"llo");
        buffer.consume(3);
        buffer.release();
        assert!(buffer.is_empty() && buffer.data.is_empty());
        buffer.put(b"he");
        buffer.consume(1);
        buffer.put(b"llo");
        assert_eq!((buffer.bytes(), buffer.is_full()), (b"ello".as_slice(), false));
        assert_eq!((buffer.split_off(1), buffer.bytes()), (b"llo".to_vec(), b"e".as_slice()));
        assert_eq!(buffer.split_off(1), b"");
    }
}
