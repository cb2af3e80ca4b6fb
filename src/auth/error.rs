//! What can go wrong with secrets, rules and logins.

/// A login failed, or a file of secrets or rules is unusable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// The password does not fit; the client learns no more than that.
    #[error("password authentication failed")]
    WrongPassword,
    /// The peer broke the SCRAM protocol.
    #[error("malformed SCRAM message: {0}")]
    Protocol(&'static str),
    /// The peer refused us, in its words.
    #[error("SCRAM: the server answered {0}")]
    Peer(String),
    /// A line of a file is wrong.
    #[error("{file}:{line}: {message}")]
    Line {
        /// Its file.
        file: String,
        /// Counted from 1.
        line: usize,
        /// What is wrong and what would be right. Never holds a secret.
        message: String,
    },
    /// A file is unusable as a whole.
    #[error("{file}: {message}")]
    File {
        /// Its name.
        file: String,
        /// The system's words, or ours.
        message: String,
    },
    /// A setting is wrong.
    #[error("{0}")]
    Setting(String),
    /// An `AES` secret cannot be read.
    #[error("unable to decrypt the password; verify that the key file is the one it was encrypted with")]
    Decrypt,
}
