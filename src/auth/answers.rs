//! What the server answered about users of no file, remembered within limits; and a login's view of files and server.

use super::pool_passwd::unprefixed_secret;
use super::secrets::Shape;
use super::{ScramVerifier, Secrets, StoredSecret};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Answers remembered; those about names that do not exist count too.
const MAX_ANSWERS: usize = 10_000;
/// Bytes of salt that a double may have; PostgreSQL makes 16.
const MAX_SALT: usize = 1024;

/// As long as a real one.
const NOBODYS: &str = "SCRAM-SHA-256$4096:AAAAAAAAAAAAAAAAAAAAAA==$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:\
     AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

/// What the server said of one user.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// His secret; `None`: he does not exist, may not log in, or has none.
    pub stored: Option<StoredSecret>,
    /// The roles that he is a member of, himself among them; empty when nobody asked.
    pub roles: Vec<String>,
    pub(super) verifier: Option<ScramVerifier>,
}

impl Answer {
    /// Reads a secret as `pg_authid` holds it. A plain password costs a derivation, milliseconds; with `costly` every
    /// answer costs one, so that the time does not tell who exists.
    pub fn read(
        user: &str,
        secret: Option<&str>,
        roles: Vec<String>,
        secrets: &Secrets,
        costly: bool,
    ) -> Result<Answer, String> {
        let stored = match secret.filter(|text| !text.is_empty()) {
            Some(text) => Some(unprefixed_secret(text)?),
            None => {
                // Reading a secret takes microseconds, which are spent in either case.
                drop(std::hint::black_box(unprefixed_secret(NOBODYS)));
                None
            }
        };
        let verifier = match &stored {
            Some(StoredSecret::Plain(password)) => Some(secrets.verifier_of(user, password.expose())),
            other => {
                if costly {
                    std::hint::black_box(secrets.verifier_of(user, "nothing"));
                }
                match other {
                    Some(StoredSecret::Scram(verifier)) => Some(verifier.clone()),
                    _ => None,
                }
            }
        };
        Ok(Answer { stored, roles, verifier })
    }

    /// True when it took a derivation.
    pub fn is_plain(&self) -> bool {
        matches!(self.stored, Some(StoredSecret::Plain(_)))
    }
}

/// How many of the users that the server was asked for have which shape; their doubles follow it.
#[derive(Clone, Debug, Default)]
pub struct Shapes(Arc<[(Shape, u64)]>);

impl Shapes {
    /// Shapes read: how many more users have a secret of this one. `scram`: iterations and bytes of salt of a verifier,
    /// `None` for an md5 hash.
    pub fn add(&mut self, scram: Option<(u32, usize)>, count: u64) {
        let shape = match scram {
            None => Shape::of(&StoredSecret::Md5(String::new())),
            Some((iterations, salt_length)) => {
                Shape { scram_by_md5: true, iterations, salt_length: salt_length.min(MAX_SALT) }
            }
        };
        let mut counts: BTreeMap<Shape, u64> = self.0.iter().copied().collect();
        let number = counts.entry(shape).or_default();
        *number = number.saturating_add(count);
        self.0 = counts.into_iter().collect();
    }
}

/// The answers of late. Takes the time as it is told, in milliseconds.
#[derive(Debug, Default)]
pub struct Answers {
    known: HashMap<String, (Arc<Answer>, u64)>,
    shapes: BTreeMap<Shape, u64>,
    /// Of all users of the server, when it could be asked for that.
    all: Option<Shapes>,
}

impl Answers {
    /// The last answer about a user that is not older than `max_age_ms`.
    pub fn of(&self, user: &str, now_ms: u64, max_age_ms: u64) -> Option<Arc<Answer>> {
        let (answer, at_ms) = self.known.get(user)?;
        (now_ms.saturating_sub(*at_ms) < max_age_ms).then(|| answer.clone())
    }

    /// Remembers an answer in the place of an earlier one. When there are too many the older half is forgotten.
    pub fn put(&mut self, user: &str, answer: Arc<Answer>, now_ms: u64) {
        if self.known.len() >= MAX_ANSWERS && !self.known.contains_key(user) {
            let mut ages: Vec<u64> = self.known.values().map(|(_, at_ms)| *at_ms).collect();
            let middle = ages.len() / 2;
            let (_, middle, _) = ages.select_nth_unstable(middle);
            let middle = *middle;
            self.known.retain(|_, (_, at_ms)| *at_ms > middle);
            self.shapes.clear();
            for (answer, _) in self.known.values() {
                count(&mut self.shapes, answer);
            }
        }
        count(&mut self.shapes, &answer);
        if let Some((old, _)) = self.known.insert(user.to_owned(), (answer, now_ms))
            && let Some(stored) = &old.stored
            && let Some(number) = self.shapes.get_mut(&Shape::of(stored))
        {
            *number = number.saturating_sub(1);
        }
    }

    /// From now on doubles follow these, which are of all users, and not only of those who came.
    pub fn know_all(&mut self, shapes: Shapes) {
        self.all = Some(shapes);
    }

    /// How many have which shape.
    pub fn shapes(&self) -> Shapes {
        if let Some(all) = &self.all {
            return all.clone();
        }
        Shapes(self.shapes.iter().map(|(shape, number)| (*shape, *number)).collect())
    }
}

fn count(shapes: &mut BTreeMap<Shape, u64>, answer: &Answer) {
    if let Some(stored) = &answer.stored {
        *shapes.entry(Shape::of(stored)).or_default() += 1;
    }
}

/// A user who wants to log in: what is known of him, or what makes him look like somebody.
#[derive(Clone, Debug)]
pub struct Candidate {
    secrets: Arc<Secrets>,
    user: String,
    answer: Option<Arc<Answer>>,
    shapes: Shapes,
}

impl Candidate {
    /// By the files, and for users of no file by what the server answered.
    pub fn new(secrets: Arc<Secrets>, user: &str, answer: Option<Arc<Answer>>, shapes: Shapes) -> Candidate {
        Candidate { secrets, user: user.to_owned(), answer, shapes }
    }

    /// What is stored of him.
    pub fn stored(&self) -> Option<&StoredSecret> {
        match self.secrets.lookup(&self.user) {
            None => self.answer.as_ref()?.stored.as_ref(),
            known => known,
        }
    }

    /// With the method `md5`, as in PostgreSQL: SCRAM for a user whose secret is a verifier, else the md5 challenge. A
    /// user who does not exist gets what his double gets.
    pub fn scram_by_md5(&self) -> bool {
        self.secrets.shape(&self.user, self.answer.as_deref(), &self.shapes.0).scram_by_md5
    }

    /// False while verifiers are missing: then `verifier` takes milliseconds.
    pub fn is_ready(&self) -> bool {
        self.secrets.is_ready()
    }

    /// The verifier for a SCRAM login: his, or a mock that no password fits.
    pub fn verifier(&self) -> ScramVerifier {
        self.secrets.verifier(&self.user, self.answer.as_deref(), &self.shapes.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets() -> Arc<Secrets> {
        Arc::new(Secrets::new([], [7; 32]))
    }

    fn answer(secret: Option<&str>) -> Arc<Answer> {
        Arc::new(Answer::read("u", secret, Vec::new(), &secrets(), false).unwrap())
    }

    const MD5: &str = "md5900150983cd24fb0d6963f7d28e17f72";

    #[test]
    fn the_secret_that_is_read_for_nobody_is_a_good_one() {
        assert!(matches!(unprefixed_secret(NOBODYS), Ok(StoredSecret::Scram(_))));
    }

    #[test]
    fn answers_age_and_are_replaced() {
        let mut answers = Answers::default();
        answers.put("anna", answer(Some(MD5)), 1000);
        assert!(answers.of("anna", 1999, 1000).unwrap().stored.is_some());
        assert_eq!((answers.of("anna", 2000, 1000), answers.of("anna", 1000, 0)), (None, None));
        answers.put("anna", answer(None), 2000);
        assert_eq!(answers.of("anna", 2000, 1000).unwrap().stored, None);
        assert!(answers.shapes().0.iter().all(|(_, number)| *number == 0));
    }

    #[test]
    fn there_are_never_more_than_the_limit() {
        let mut answers = Answers::default();
        for n in 0..25_000u64 {
            answers.put(&format!("u{n}"), answer(Some(MD5)), n);
        }
        assert!(answers.known.len() <= MAX_ANSWERS);
        assert!(answers.of("u24999", 25_000, 1000).is_some());
        let counted: u64 = answers.shapes().0.iter().map(|(_, number)| number).sum();
        assert_eq!(counted, answers.known.len() as u64);
    }

    #[test]
    fn a_user_of_the_server_is_like_one_of_a_file_and_the_unknown_like_either() {
        let scram = ScramVerifier::derive("pw", vec![5; 24], 5000).to_string();
        let mut answers = Answers::default();
        answers.put("anna", answer(Some(&scram)), 0);
        answers.put("nobody", answer(None), 0);
        let candidate = |user: &str| Candidate::new(secrets(), user, answers.of(user, 0, 1), answers.shapes());
        let anna = candidate("anna");
        assert!(anna.verifier().fits_password("pw") && anna.scram_by_md5());
        let nobody = candidate("nobody");
        assert!(nobody.stored().is_none() && nobody.scram_by_md5());
        let (theirs, mock) = (anna.verifier(), nobody.verifier());
        assert_eq!((mock.iterations, mock.salt.len()), (theirs.iterations, theirs.salt.len()));
        assert_eq!(candidate("nobody").verifier(), mock, "the salt stays");
        // With users of md5 alone the unknown are asked for md5 too.
        let mut answers = Answers::default();
        answers.put("bob", answer(Some(MD5)), 0);
        let nobody = Candidate::new(secrets(), "nobody", None, answers.shapes());
        assert!(!nobody.scram_by_md5());
        // What is known of all counts for more than who came.
        let mut all = Shapes::default();
        all.add(Some((5000, 24)), 9);
        answers.know_all(all);
        let nobody = Candidate::new(secrets(), "nobody", None, answers.shapes());
        assert_eq!((nobody.scram_by_md5(), nobody.verifier().iterations), (true, 5000));
    }

    #[test]
    fn a_plain_password_serves_and_a_broken_verifier_is_an_error() {
        let plain = answer(Some("pw"));
        let candidate = Candidate::new(secrets(), "u", Some(plain.clone()), Shapes::default());
        assert!(plain.is_plain() && candidate.verifier().fits_password("pw"));
        assert!(Answer::read("u", Some("SCRAM-SHA-256$odd"), Vec::new(), &secrets(), true).is_err());
        assert_eq!(answer(Some("")).stored, None);
    }
}
