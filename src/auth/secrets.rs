//! The secrets of all users, ready for logins; unknown users look like known ones and cost as much.

use super::scram::{DEFAULT_ITERATIONS, hmac};
use super::{ScramVerifier, StoredSecret};
use std::collections::{BTreeMap, HashMap};

/// Bytes of PostgreSQL's own salts.
const SALT_LENGTH: usize = 16;

/// What the files know of all users.
#[derive(Clone, Debug)]
pub struct Secrets {
    users: HashMap<String, Entry>,
    /// Random, of this installation: makes what users who do not exist look like.
    mock_key: [u8; 32],
    /// Each shape that a user's login can have, with the number of users up to and with it.
    shapes: Vec<(Shape, u64)>,
}

#[derive(Clone, Debug)]
struct Entry {
    stored: StoredSecret,
    verifier: Option<ScramVerifier>,
    shape: Shape,
}

/// What an observer sees of a user's secret without knowing the password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Shape {
    /// The method `md5` leads to a SCRAM exchange.
    scram_by_md5: bool,
    iterations: u32,
    salt_length: usize,
}

impl Secrets {
    /// Takes the users in order of rank: of one name's entries the first counts. Verifiers of plain passwords are
    /// derived here, once (milliseconds each), because a login that derives one would take longer than the login of an
    /// unknown user, and so tell who exists. `mock_key` is secret and should outlive restarts: a salt that changes where
    /// a real one would not tells who does not exist.
    pub fn new(users: impl IntoIterator<Item = (String, StoredSecret)>, mock_key: [u8; 32]) -> Secrets {
        Secrets { users: HashMap::new(), mock_key, shapes: Vec::new() }.renewed(users)
    }

    /// New users under the same key. Verifiers of passwords that have not changed are kept.
    pub fn renewed(&self, users: impl IntoIterator<Item = (String, StoredSecret)>) -> Secrets {
        let mut next: HashMap<String, Entry> = HashMap::new();
        let mut counts: BTreeMap<Shape, u64> = BTreeMap::new();
        for (user, stored) in users {
            if next.contains_key(&user) {
                continue;
            }
            let verifier = match (&stored, self.users.get(&user)) {
                (StoredSecret::Plain(_), Some(known)) if known.stored == stored => known.verifier.clone(),
                (StoredSecret::Plain(password), _) => {
                    let salt = self.salt(&user, SALT_LENGTH);
                    Some(ScramVerifier::derive(password.expose(), salt, DEFAULT_ITERATIONS))
                }
                (StoredSecret::Scram(verifier), _) => Some(verifier.clone()),
                (StoredSecret::Md5(_), _) => None,
            };
            let shape = Shape::of(&stored);
            *counts.entry(shape).or_default() += 1;
            next.insert(user, Entry { stored, verifier, shape });
        }
        let mut upto = 0;
        let add = |(shape, count)| {
            upto += count;
            (shape, upto)
        };
        Secrets { users: next, mock_key: self.mock_key, shapes: counts.into_iter().map(add).collect() }
    }

    /// What is stored of a user.
    pub fn lookup(&self, user: &str) -> Option<&StoredSecret> {
        self.users.get(user).map(|entry| &entry.stored)
    }

    /// With the method `md5`, as in PostgreSQL: SCRAM for a user whose secret is a verifier, else the md5 challenge. A
    /// user who does not exist gets what his double gets.
    pub fn scram_by_md5(&self, user: &str) -> bool {
        self.shape(user).scram_by_md5
    }

    /// The verifier for a SCRAM login: the user's, or a mock that no password fits. The mock is made in either case,
    /// so that both take the same time.
    pub fn scram_verifier(&self, user: &str) -> ScramVerifier {
        let mock = self.mock(user);
        self.users.get(user).and_then(|entry| entry.verifier.clone()).unwrap_or(mock)
    }

    /// A verifier that no password fits, with a salt that stays the same for a name as a real one's would.
    fn mock(&self, user: &str) -> ScramVerifier {
        let shape = self.shape(user);
        ScramVerifier {
            iterations: shape.iterations,
            salt: self.salt(user, shape.salt_length),
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

    /// The shape of a user's login; of a user who does not exist, that of his double.
    fn shape(&self, user: &str) -> Shape {
        // The double is looked for in either case: the same work for all.
        let double = self.double(user);
        self.users.get(user).map_or(double, |entry| entry.shape)
    }

    /// Each name that does not exist is the double of some user, drawn by the name under a key: among the unknown each
    /// shape is as frequent as among the known, so that a shape tells nothing, whatever the mixture. When users come and
    /// go, hardly any name changes its shape.
    fn double(&self, user: &str) -> Shape {
        let Some((_, all)) = self.shapes.last() else { return Shape::DEFAULT };
        let [a, b, c, d, e, f, g, h, ..] = self.keyed("shape", user);
        let drawn = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
        // The draw's fraction of the number of users.
        let place = u64::try_from((u128::from(drawn) * u128::from(*all)) >> 64).unwrap_or_default();
        self.shapes.iter().find(|(_, upto)| place < *upto).map_or(Shape::DEFAULT, |(shape, _)| *shape)
    }

    fn salt(&self, user: &str, length: usize) -> Vec<u8> {
        (0..length.div_ceil(32)).flat_map(|n| self.keyed(&format!("salt{n}"), user)).take(length).collect()
    }

    fn keyed(&self, purpose: &str, user: &str) -> [u8; 32] {
        hmac(&self.mock_key, format!("{purpose}\0{user}").as_bytes())
    }
}

impl Shape {
    /// Of verifiers that we make; also when no user has a secret.
    const DEFAULT: Shape = Shape { scram_by_md5: true, iterations: DEFAULT_ITERATIONS, salt_length: SALT_LENGTH };

    fn of(stored: &StoredSecret) -> Shape {
        match stored {
            StoredSecret::Plain(_) | StoredSecret::Md5(_) => Shape { scram_by_md5: false, ..Shape::DEFAULT },
            StoredSecret::Scram(verifier) => {
                Shape { scram_by_md5: true, iterations: verifier.iterations, salt_length: verifier.salt.len() }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::scram;
    use crate::base::Secret;

    fn plain(text: &str) -> StoredSecret {
        StoredSecret::Plain(Secret::new(text))
    }

    fn verifier(iterations: u32, salt: &[u8]) -> StoredSecret {
        StoredSecret::Scram(ScramVerifier::derive("pw", salt.to_vec(), iterations))
    }

    fn secrets(users: &[(&str, StoredSecret)]) -> Secrets {
        Secrets::new(users.iter().map(|(user, secret)| ((*user).to_owned(), secret.clone())), [9; 32])
    }

    #[test]
    fn known_users_get_their_verifier_and_others_a_stable_mock() {
        let md5 = StoredSecret::Md5(crate::auth::md5_password("bob", "right"));
        let secrets = secrets(&[("alice", plain("first")), ("alice", plain("second")), ("bob", md5)]);
        assert_eq!(secrets.lookup("alice"), Some(&plain("first")));
        assert!(secrets.scram_verifier("alice").fits_password("first"));
        assert_eq!(secrets.scram_verifier("alice").salt.len(), 16);
        assert_eq!(secrets.scram_verifier("bob"), secrets.mock("bob"));
        assert_eq!(secrets.scram_verifier("nobody"), secrets.mock("nobody"));
        assert_ne!(secrets.mock("nobody").salt, secrets.mock("somebody").salt);
        assert_eq!((secrets.lookup("nobody"), secrets.len()), (None, 2));
    }

    #[test]
    fn unknown_users_take_the_shape_that_prevails() {
        let names: Vec<String> = (0..1000).map(|n| format!("nobody{n}")).collect();
        let by_scram = |secrets: &Secrets| names.iter().filter(|name| secrets.scram_by_md5(name)).count();
        assert_eq!(by_scram(&secrets(&[])), 1000, "PostgreSQL's default");
        assert_eq!(by_scram(&secrets(&[("a", plain("x")), ("b", plain("y"))])), 0);
        let own = secrets(&[("a", verifier(7, b"forty bytes of salt, which is quite long!"))]);
        assert_eq!(by_scram(&own), 1000);
        let mock = own.scram_verifier("nobody");
        assert_eq!((mock.iterations, mock.salt.len()), (7, 41), "as the only real one");
        // In a mixture nobody is told from the known by what he is asked for: three quarters of either.
        let mixed =
            secrets(&[("a", verifier(1, b"s")), ("b", verifier(1, b"s")), ("c", verifier(1, b"s")), ("d", plain("x"))]);
        assert!((680..820).contains(&by_scram(&mixed)), "{}", by_scram(&mixed));
        assert!(mixed.scram_by_md5("a") && !mixed.scram_by_md5("d"));
    }

    #[test]
    fn a_reload_changes_no_salt_and_derives_only_what_changed() {
        let old = secrets(&[("a", plain("x")), ("b", plain("y"))]);
        let pairs = [("a", plain("x")), ("b", plain("new")), ("c", plain("z"))];
        let before = scram::work();
        let new = old.renewed(pairs.map(|(user, secret)| (user.to_owned(), secret)));
        assert_eq!(scram::work().iterations - before.iterations, 2 * u64::from(DEFAULT_ITERATIONS));
        for user in ["a", "b", "nobody"] {
            assert_eq!(old.scram_verifier(user).salt, new.scram_verifier(user).salt, "{user}");
        }
        assert_eq!(old.scram_verifier("nobody"), new.scram_verifier("nobody"));
        assert!(new.scram_verifier("b").fits_password("new") && !new.scram_verifier("b").fits_password("y"));
    }

    #[test]
    fn a_password_in_clear_costs_the_same_for_the_unknown() {
        let md5 = StoredSecret::Md5(crate::auth::md5_password("bob", "right"));
        let secrets = secrets(&[("alice", plain("x")), ("bob", md5)]);
        let cost = |user: &str| {
            let before = scram::work();
            assert!(!secrets.scram_verifier(user).fits_password("wrong"));
            let after = scram::work();
            (after.iterations - before.iterations, after.hmacs - before.hmacs)
        };
        assert_eq!(cost("alice").0, u64::from(DEFAULT_ITERATIONS));
        assert_eq!((cost("alice"), cost("bob")), (cost("nobody"), cost("nobody")));
    }
}
