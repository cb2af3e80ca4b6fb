//! A new process takes the place of a running one without closing a socket: `pgmend run --takeover`.
//!
//! Both sides meet at a Unix socket in the state directory. The old process passes its listening sockets and the lock of
//! the state directory as descriptors; the new one makes everything ready that can fail, says so, and only then does the old
//! one end its keeper and its operators' surfaces, so that there are never two writers. Both accept clients until the new one
//! serves. The old one keeps its clients until they leave; cancels go between the two, the new one's view and gate to the old.
//! Read `words` (what is said), `descriptors` (how sockets travel), `ask` (the new side), `give` (the old side), `link` (afterwards).

mod ask;
mod descriptors;
mod give;
mod link;
mod words;

pub use ask::ask;
pub use give::{Giver, Place};
pub use link::{Links, Side};

/// Tells the process before that clients are served.
pub async fn serving(stream: &mut tokio::net::UnixStream) -> std::io::Result<()> {
    tokio::io::AsyncWriteExt::write_all(stream, &words::Word::Serving.line()).await
}
