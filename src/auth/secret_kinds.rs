//! The kinds of secrets: what is stored of a user, and what a login leaves for logging in to servers.

use super::scram::ScramVerifier;
use crate::base::Secret;
use std::fmt;

/// What a file knows of a user.
#[derive(Clone, Debug, PartialEq)]
pub enum StoredSecret {
    /// The password itself; serves every method.
    Plain(Secret),
    /// `md5` and 32 hexadecimal digits; serves `md5` and `password`.
    Md5(String),
    /// A verifier; serves `scram-sha-256` and `password`.
    Scram(ScramVerifier),
}

impl StoredSecret {
    /// True for `md5` and 32 hexadecimal digits; an `md5` of another length is a plain password.
    pub(super) fn is_md5(text: &str) -> bool {
        text.strip_prefix("md5").is_some_and(|rest| rest.len() == 32 && rest.bytes().all(|b| b.is_ascii_hexdigit()))
    }
}

/// What a client's login leaves for logging in to servers.
#[derive(Clone, PartialEq)]
pub enum ServerSecret {
    /// Nothing: only `trust` will let us in.
    None,
    /// The password, for every method.
    Password(Secret),
    /// `md5` and 32 hexadecimal digits, for a server that asks for md5.
    Md5(String),
    /// Keys that the client's SCRAM proof gave away; they open a server that holds the same verifier.
    ScramKeys {
        /// Proves the client to the server.
        client_key: [u8; 32],
        /// Proves the server to us.
        server_key: [u8; 32],
        /// Salt of the verifier that the keys belong to.
        salt: Vec<u8>,
        /// Its iteration count.
        iterations: u32,
    },
}

impl fmt::Debug for ServerSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ServerSecret::None => "None",
            ServerSecret::Password(_) => "Password(***)",
            ServerSecret::Md5(_) => "Md5(***)",
            ServerSecret::ScramKeys { .. } => "ScramKeys(***)",
        })
    }
}
