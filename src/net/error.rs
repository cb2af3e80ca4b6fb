//! What can go wrong with sockets and certificates.

use std::io;

/// A listening socket, a connection or a certificate failed.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The address could not be listened on.
    #[error("could not listen on {address}: {why}")]
    Listen {
        /// host:port or the socket's path.
        address: String,
        /// The system's words, or ours when another daemon listens.
        why: String,
    },
    /// Nothing answered at the address.
    #[error("could not connect to {address}: {why}")]
    Connect {
        /// host:port or the socket's path.
        address: String,
        /// The words of the last attempt.
        why: io::Error,
    },
    /// The whole attempt took too long.
    #[error("could not connect to {address}: no answer within {timeout_ms} ms")]
    ConnectTimeout {
        /// host:port or the socket's path.
        address: String,
        /// The limit.
        timeout_ms: u128,
    },
    /// The connection broke before it could be used.
    #[error("the connection failed: {0}")]
    Broken(#[from] io::Error),
    /// No TLS as demanded, or the peer is not whom we trust.
    #[error("no TLS with the server: {0}")]
    Tls(String),
    /// A certificate or key file is unusable.
    #[error("{file}: {why}")]
    Certificate {
        /// The file at fault.
        file: String,
        /// What is wrong with it.
        why: String,
    },
}
