//! The secrets of all users, ready for logins; unknown users look like known ones and cost as much.

use super::scram::{DEFAULT_ITERATIONS, hmac};
use super::{Answer, ScramVerifier, ServerSecret, StoredSecret};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

/// Bytes of PostgreSQL's own salts.
const SALT_LENGTH: usize = 16;

/// So many verifiers are derived while the files are read (a fraction of a second); more are left to `derive_next`.
const DERIVED_AT_ONCE: usize = 16;

/// What the files know of all users.
#[derive(Debug)]
pub struct Secrets {
    users: HashMap<String, Entry>,
    /// Random, of this installation: makes what users who do not exist look like.
    mock_key: [u8; 32],
    /// Each shape that a user's login can have, with the number of its users.
    shapes: Vec<(Shape, u64)>,
    /// Users with a plain password whose verifier was not there when this was made, and how many of them are done.
    to_derive: Vec<String>,
    derived: AtomicUsize,
    ready: AtomicBool,
}

#[derive(Debug)]
struct Entry {
    stored: StoredSecret,
    /// Shared with the secrets before a reload.
    verifier: Arc<OnceLock<ScramVerifier>>,
    shape: Shape,
}

/// What an observer sees of a user's secret without knowing the password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Shape {
    /// The method `md5` leads to a SCRAM exchange.
    pub(super) scram_by_md5: bool,
    pub(super) iterations: u32,
    pub(super) salt_length: usize,
}

impl Secrets {
    /// Takes the users in order of rank: of one name's entries the first counts. `mock_key` is secret and should outlive
    /// restarts: a salt that changes where a real one would not tells who does not exist.
    ///
    /// Verifiers of plain passwords are derived once (milliseconds each), because a login that derives one would take
    /// longer than the login of an unknown user, and so tell who exists. Few are derived here; of many, whoever made this
    /// calls `derive_next` until it is done, and until then each login, of whomever, derives one.
    pub fn new(users: impl IntoIterator<Item = (String, StoredSecret)>, mock_key: [u8; 32]) -> Secrets {
        Secrets {
            users: HashMap::new(),
            mock_key,
            shapes: Vec::new(),
            to_derive: Vec::new(),
            derived: AtomicUsize::new(0),
            ready: AtomicBool::new(true),
        }
        .renewed(users)
    }

    /// New users under the same key. Verifiers of passwords that have not changed are kept.
    pub fn renewed(&self, users: impl IntoIterator<Item = (String, StoredSecret)>) -> Secrets {
        let mut next: HashMap<String, Entry> = HashMap::new();
        let mut counts: BTreeMap<Shape, u64> = BTreeMap::new();
        let mut to_derive = Vec::new();
        for (user, stored) in users {
            if next.contains_key(&user) {
                continue;
            }
            let verifier = match (&stored, self.users.get(&user)) {
                (StoredSecret::Plain(_), Some(known)) if known.stored == stored => known.verifier.clone(),
                (StoredSecret::Plain(_) | StoredSecret::Md5(_), _) => Arc::default(),
                (StoredSecret::Scram(verifier), _) => Arc::new(OnceLock::from(verifier.clone())),
            };
            if matches!(stored, StoredSecret::Plain(_)) && verifier.get().is_none() {
                to_derive.push(user.clone());
            }
            let shape = Shape::of(&stored);
            *counts.entry(shape).or_default() += 1;
            next.insert(user, Entry { stored, verifier, shape });
        }
        let few = to_derive.len() <= DERIVED_AT_ONCE;
        let secrets = Secrets {
            users: next,
            mock_key: self.mock_key,
            shapes: counts.into_iter().collect(),
            to_derive,
            derived: AtomicUsize::new(0),
            ready: AtomicBool::new(false),
        };
        while few && secrets.derive_next() {}
        secrets
    }

    /// Derives the next verifier that is missing; takes milliseconds. False: all are there. For one caller at a time.
    pub fn derive_next(&self) -> bool {
        let Some(user) = self.to_derive.get(self.derived.load(Ordering::Relaxed)) else {
            self.ready.store(true, Ordering::Release);
            return false;
        };
        if let Some(entry) = self.users.get(user) {
            self.derive(user, entry);
        }
        self.derived.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// False while verifiers are missing: then `scram_verifier` takes milliseconds.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// A plain password's verifier, if it is not there yet. True: it was derived here.
    fn derive(&self, user: &str, entry: &Entry) -> bool {
        let StoredSecret::Plain(password) = &entry.stored else { return false };
        let mut derived = false;
        entry.verifier.get_or_init(|| {
            derived = true;
            ScramVerifier::derive(password.expose(), self.salt(user, SALT_LENGTH), DEFAULT_ITERATIONS)
        });
        derived
    }

    /// What is stored of a user.
    pub fn lookup(&self, user: &str) -> Option<&StoredSecret> {
        self.users.get(user).map(|entry| &entry.stored)
    }

    /// What a user's stored secret is worth for logging in to a server without the user's own login: a SCRAM verifier
    /// is worth nothing, as it lacks the client's key.
    pub fn for_servers(&self, user: &str) -> ServerSecret {
        match self.lookup(user) {
            Some(StoredSecret::Plain(password)) => ServerSecret::Password(password.clone()),
            Some(StoredSecret::Md5(text)) => ServerSecret::Md5(text.clone()),
            Some(StoredSecret::Scram(_)) | None => ServerSecret::None,
        }
    }

    /// With the method `md5`, as in PostgreSQL: SCRAM for a user whose secret is a verifier, else the md5 challenge. A
    /// user who does not exist gets what his double gets.
    #[cfg(test)]
    fn scram_by_md5(&self, user: &str) -> bool {
        self.shape(user, None, &[]).scram_by_md5
    }

    #[cfg(test)]
    fn scram_verifier(&self, user: &str) -> ScramVerifier {
        self.verifier(user, None, &[])
    }

    /// The verifier for a SCRAM login: the user's, or a mock that no password fits. The mock is made in either case,
    /// so that both take the same time; so is a derivation as long as one of either kind may be needed. `answer` and
    /// `asked`: what the server said of him, and how many have which shape among those that it was asked for.
    pub(super) fn verifier(&self, user: &str, answer: Option<&Answer>, asked: &[(Shape, u64)]) -> ScramVerifier {
        let mock = self.mock(user, self.shape(user, answer, asked));
        let entry = self.users.get(user);
        if !self.is_ready() && !entry.is_some_and(|entry| self.derive(user, entry)) {
            std::hint::black_box(ScramVerifier::derive(user, self.salt(user, SALT_LENGTH), DEFAULT_ITERATIONS));
        }
        match entry {
            Some(entry) => entry.verifier.get().cloned(),
            None => answer.and_then(|answer| answer.verifier.clone()),
        }
        .unwrap_or(mock)
    }

    /// The verifier of a password that the server gave in clear; takes milliseconds.
    pub(super) fn verifier_of(&self, user: &str, password: &str) -> ScramVerifier {
        ScramVerifier::derive(password, self.salt(user, SALT_LENGTH), DEFAULT_ITERATIONS)
    }

    /// A verifier that no password fits, with a salt that stays the same for a name as a real one's would.
    fn mock(&self, user: &str, shape: Shape) -> ScramVerifier {
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
    pub(super) fn shape(&self, user: &str, answer: Option<&Answer>, asked: &[(Shape, u64)]) -> Shape {
        // The double is looked for in either case: the same work for all.
        let double = self.double(user, asked);
        let own = match self.users.get(user) {
            Some(entry) => Some(entry.shape),
            None => answer.and_then(|answer| answer.stored.as_ref()).map(Shape::of),
        };
        own.unwrap_or(double)
    }

    /// Each name that does not exist is the double of some user, drawn by the name under a key: among the unknown each
    /// shape is as frequent as among the known, so that a shape tells nothing, whatever the mixture. When users come and
    /// go, hardly any name changes its shape.
    fn double(&self, user: &str, asked: &[(Shape, u64)]) -> Shape {
        let mut counts: BTreeMap<Shape, u64> = self.shapes.iter().copied().collect();
        for (shape, count) in asked {
            *counts.entry(*shape).or_default() += count;
        }
        let [a, b, c, d, e, f, g, h, ..] = self.keyed("shape", user);
        let drawn = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
        let all: u64 = counts.values().sum();
        // The draw's fraction of the number of users.
        let mut place = u64::try_from((u128::from(drawn) * u128::from(all)) >> 64).unwrap_or_default();
        for (shape, count) in counts {
            match place.checked_sub(count) {
                Some(rest) => place = rest,
                None => return shape,
            }
        }
        Shape::DEFAULT
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

    pub(super) fn of(stored: &StoredSecret) -> Shape {
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
        assert_eq!(secrets.scram_verifier("bob"), secrets.scram_verifier("bob"));
        assert_eq!(secrets.scram_verifier("nobody"), secrets.scram_verifier("nobody"));
        assert_ne!(secrets.scram_verifier("nobody").salt, secrets.scram_verifier("somebody").salt);
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
    fn many_verifiers_are_derived_later_and_until_then_each_login_derives_one() {
        let users: Vec<(String, StoredSecret)> = (0..40).map(|n| (format!("u{n}"), plain("x"))).collect();
        let before = scram::work();
        let secrets = Secrets::new(users.clone(), [9; 32]);
        assert_eq!(scram::work(), before, "the start waits for none");
        let cost = |user: &str| {
            let before = scram::work().iterations;
            secrets.scram_verifier(user);
            scram::work().iterations - before
        };
        let one = u64::from(DEFAULT_ITERATIONS);
        // Not derived yet, derived just now, unknown: nobody sees which.
        assert_eq!([cost("u39"), cost("u39"), cost("nobody")], [one; 3]);
        for _ in 0..3 {
            assert!(secrets.derive_next() && !secrets.is_ready());
        }
        assert_eq!([cost("u0"), cost("u20"), cost("nobody")], [one; 3]);
        // A reload in the middle keeps what is done: u0, u1, u2, u20, u39.
        let renewed = secrets.renewed(users);
        assert_eq!(renewed.to_derive.len(), 35);
        let before = scram::work().iterations;
        while secrets.derive_next() {}
        assert_eq!(scram::work().iterations - before, 35 * one);
        assert_eq!([cost("u0"), cost("u39"), cost("nobody")], [0; 3]);
        assert!(secrets.scram_verifier("u7").fits_password("x"));
        while renewed.derive_next() {}
        assert_eq!(renewed.scram_verifier("u7"), secrets.scram_verifier("u7"));
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
