//! The secrets of all users, ready for logins; unknown users cost as much as known ones.

use super::scram::{DEFAULT_ITERATIONS, hmac};
use super::{ScramVerifier, StoredSecret};
use std::collections::HashMap;

/// What the files know of all users.
#[derive(Clone, Debug)]
pub struct Secrets {
    users: HashMap<String, Entry>,
    /// Random, of this process: makes the salts of users who do not exist.
    mock_key: [u8; 32],
}

#[derive(Clone, Debug)]
struct Entry {
    stored: StoredSecret,
    verifier: Option<ScramVerifier>,
}

impl Secrets {
    /// Takes the users in order of rank: of one name's entries the first counts. Verifiers of plain passwords are
    /// derived here, once (milliseconds each), because a login that derives one would take longer than the login of an
    /// unknown user, and so tell who exists.
    pub fn new(users: impl IntoIterator<Item = (String, StoredSecret)>, mock_key: [u8; 32]) -> Secrets {
        let mut secrets = Secrets { users: HashMap::new(), mock_key };
        for (user, stored) in users {
            if secrets.users.contains_key(&user) {
                continue;
            }
            let verifier = match &stored {
                StoredSecret::Plain(password) => {
                    let salt = secrets.salt(&user);
                    Some(ScramVerifier::derive(password.expose(), salt, DEFAULT_ITERATIONS))
                }
                StoredSecret::Scram(verifier) => Some(verifier.clone()),
                StoredSecret::Md5(_) => None,
            };
            secrets.users.insert(user, Entry { stored, verifier });
        }
        secrets
    }

    /// What is stored of a user.
    pub fn lookup(&self, user: &str) -> Option<&StoredSecret> {
        self.users.get(user).map(|entry| &entry.stored)
    }

    /// The verifier for a SCRAM login: the user's, or a mock that no password fits. The mock is made in either case,
    /// so that both take the same time.
    pub fn scram_verifier(&self, user: &str) -> ScramVerifier {
        let mock = self.mock(user);
        self.users.get(user).and_then(|entry| entry.verifier.clone()).unwrap_or(mock)
    }

    /// Checks a password that came in clear text. Every user, known or not, costs one derivation (milliseconds).
    pub fn fits_password(&self, user: &str, password: &str) -> bool {
        let derived = self.scram_verifier(user).fits_password(password);
        match self.lookup(user) {
            Some(StoredSecret::Plain(_) | StoredSecret::Scram(_)) => derived,
            Some(stored @ StoredSecret::Md5(_)) => stored.fits_password(user, password),
            None => false,
        }
    }

    /// A verifier that no password fits, with a salt that stays the same for a name as a real one's would.
    pub fn mock(&self, user: &str) -> ScramVerifier {
        ScramVerifier {
            iterations: DEFAULT_ITERATIONS,
            salt: self.salt(user),
            stored_key: self.keyed("stored", user),
            server_key: self.keyed("server", user),
        }
    }

    /// Number of users.
    pub fn len(&self) -> usize {
        self.users.len()
    }

    /// True when no user has a secret.
    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }

    /// 16 bytes, as PostgreSQL's own salts.
    fn salt(&self, user: &str) -> Vec<u8> {
        self.keyed("salt", user).into_iter().take(16).collect()
    }

    fn keyed(&self, purpose: &str, user: &str) -> [u8; 32] {
        hmac(&self.mock_key, format!("{purpose}\0{user}").as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Secret;

    #[test]
    fn known_users_get_their_verifier_and_others_a_stable_mock() {
        let plain = |text: &str| StoredSecret::Plain(Secret::new(text));
        let md5 = StoredSecret::Md5(crate::auth::md5_password("bob", "right"));
        let users = [("alice", plain("first")), ("alice", plain("second")), ("bob", md5)];
        let secrets = Secrets::new(users.map(|(user, secret)| (user.to_owned(), secret)), [9; 32]);
        assert_eq!(secrets.lookup("alice"), Some(&plain("first")));
        assert!(secrets.scram_verifier("alice").fits_password("first"));
        assert_eq!(secrets.scram_verifier("alice").salt.len(), 16);
        assert_eq!(secrets.scram_verifier("bob"), secrets.mock("bob"));
        assert_eq!(secrets.scram_verifier("nobody"), secrets.mock("nobody"));
        assert_ne!(secrets.mock("nobody").salt, secrets.mock("somebody").salt);
        assert!(secrets.fits_password("alice", "first") && !secrets.fits_password("alice", "second"));
        assert!(secrets.fits_password("bob", "right"));
        assert!(!secrets.fits_password("bob", "first") && !secrets.fits_password("nobody", "first"));
        assert_eq!((secrets.lookup("nobody"), secrets.len()), (None, 2));
    }
}
