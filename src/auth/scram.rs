//! SCRAM-SHA-256 and SCRAM-SHA-256-PLUS, server and client (RFC 5802, RFC 7677), as pure steps.

use super::{AuthError, StoredSecret};
use crate::base::Secret;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};
use std::fmt;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// The mechanism without channel binding.
pub const SCRAM_SHA_256: &str = "SCRAM-SHA-256";
/// The mechanism with channel binding.
pub const SCRAM_SHA_256_PLUS: &str = "SCRAM-SHA-256-PLUS";
/// PostgreSQL's default count, used for verifiers that we make.
pub const DEFAULT_ITERATIONS: u32 = 4096;
/// The most that a server may make us compute (about 0.1 s): a hostile server must not hold a thread.
pub const MAX_ITERATIONS: u32 = 100_000;
/// Bytes of one SCRAM message; real ones have about 200.
const MAX_MESSAGE: usize = 4096;
const BINDING_HEADER: &str = "p=tls-server-end-point,,";

type Key = [u8; 32];

/// What a server stores instead of a password: `SCRAM-SHA-256$<iterations>:<salt>$<stored key>:<server key>`.
#[derive(Clone, PartialEq, Eq)]
pub struct ScramVerifier {
    /// Iteration count of PBKDF2.
    pub iterations: u32,
    /// Salt, decoded.
    pub salt: Vec<u8>,
    /// Hash of the client key.
    pub stored_key: Key,
    /// Key of the server's signature.
    pub server_key: Key,
}

impl ScramVerifier {
    /// Derives one from a password; takes milliseconds.
    pub fn derive(password: &str, salt: Vec<u8>, iterations: u32) -> ScramVerifier {
        let (client_key, server_key) = derive_keys(password, &salt, iterations);
        ScramVerifier { iterations, salt, stored_key: sha256(&client_key), server_key }
    }

    /// Reads the stored form strictly; `None` when it is not one.
    pub fn parse(text: &str) -> Option<ScramVerifier> {
        let (head, keys) = text.strip_prefix("SCRAM-SHA-256$")?.split_once('$')?;
        let (iterations, salt) = head.split_once(':')?;
        let (stored_key, server_key) = keys.split_once(':')?;
        if iterations.is_empty() || !iterations.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let iterations: u32 = iterations.parse().ok().filter(|n| (1..=i32::MAX.unsigned_abs()).contains(n))?;
        let salt = STANDARD.decode(salt).ok().filter(|salt| !salt.is_empty())?;
        Some(ScramVerifier {
            iterations,
            salt,
            stored_key: decode_key(stored_key)?,
            server_key: decode_key(server_key)?,
        })
    }

    /// True when the verifier was made of this password.
    pub fn fits_password(&self, password: &str) -> bool {
        // A count beyond the limit comes from our own files, but one login must still not hold a thread.
        self.iterations <= MAX_ITERATIONS && {
            let (client_key, _) = derive_keys(password, &self.salt, self.iterations);
            sha256(&client_key).ct_eq(&self.stored_key).into()
        }
    }
}

impl fmt::Display for ScramVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (salt, stored, server) =
            (STANDARD.encode(&self.salt), STANDARD.encode(self.stored_key), STANDARD.encode(self.server_key));
        write!(f, "SCRAM-SHA-256${}:{salt}${stored}:{server}", self.iterations)
    }
}

impl fmt::Debug for ScramVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ScramVerifier(***)")
    }
}

impl From<ScramVerifier> for StoredSecret {
    fn from(verifier: ScramVerifier) -> StoredSecret {
        StoredSecret::Scram(verifier)
    }
}

/// The server's side of one login. `select`, then `first`, then `last`.
pub struct Server {
    verifier: ScramVerifier,
    binding: Option<Vec<u8>>,
    nonce: String,
    plus: Option<bool>,
    begun: Option<Begun>,
}

/// What `first` leaves for `last`.
struct Begun {
    client_first_bare: String,
    server_first: String,
    nonce: String,
    expected_binding: String,
}

/// A login that succeeded.
pub struct ServerDone {
    /// Data of `AuthenticationSASLFinal`.
    pub final_message: Vec<u8>,
    /// Opens servers that hold the same verifier.
    pub client_key: Key,
}

impl Server {
    /// `channel_binding` is our certificate's `tls-server-end-point` hash when the client came by TLS. The nonce must
    /// be random.
    pub fn new(verifier: ScramVerifier, channel_binding: Option<Vec<u8>>, nonce: [u8; 18]) -> Server {
        Server { verifier, binding: channel_binding, nonce: STANDARD.encode(nonce), plus: None, begun: None }
    }

    /// What to offer, best first.
    pub fn mechanisms(&self) -> &'static [&'static str] {
        if self.binding.is_some() { &[SCRAM_SHA_256_PLUS, SCRAM_SHA_256] } else { &[SCRAM_SHA_256] }
    }

    /// Notes the mechanism that the client chose.
    pub fn select(&mut self, mechanism: &str) -> Result<(), AuthError> {
        if !self.mechanisms().contains(&mechanism) {
            return Err(AuthError::Protocol("the client selected a mechanism that was not offered"));
        }
        self.plus = Some(mechanism == SCRAM_SHA_256_PLUS);
        Ok(())
    }

    /// Takes the client's first message, gives the server's.
    pub fn first(&mut self, message: &[u8]) -> Result<Vec<u8>, AuthError> {
        let text = text(message)?;
        let (header, expected_binding) = self.gs2_header(text)?;
        let bare = text.get(header.len()..).ok_or(AuthError::Protocol("no message after the header"))?;
        let mut parts = bare.split(',');
        // The name is empty in PostgreSQL: the startup packet has told it already.
        attribute(parts.next(), "n=", "user name expected (mandatory extensions are not supported)")?;
        let client_nonce = attribute(parts.next(), "r=", "nonce expected")?;
        if client_nonce.is_empty() || !client_nonce.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(AuthError::Protocol("the nonce has bytes that are not printable"));
        }
        let nonce = format!("{client_nonce}{}", self.nonce);
        let salt = STANDARD.encode(&self.verifier.salt);
        let server_first = format!("r={nonce},s={salt},i={}", self.verifier.iterations);
        let reply = server_first.clone().into_bytes();
        self.begun = Some(Begun { client_first_bare: bare.to_owned(), server_first, nonce, expected_binding });
        Ok(reply)
    }

    /// Takes the client's final message with its proof.
    pub fn last(&mut self, message: &[u8]) -> Result<ServerDone, AuthError> {
        let begun = self.begun.take().ok_or(AuthError::Protocol("final message before the first"))?;
        let text = text(message)?;
        let (without_proof, proof) = text.rsplit_once(",p=").ok_or(AuthError::Protocol("proof expected"))?;
        let mut parts = without_proof.split(',');
        if attribute(parts.next(), "c=", "channel binding expected")? != begun.expected_binding {
            return Err(AuthError::Protocol("channel binding does not match"));
        }
        if attribute(parts.next(), "r=", "nonce expected")? != begun.nonce {
            return Err(AuthError::Protocol("nonce does not match"));
        }
        let proof = decode_key(proof).ok_or(AuthError::Protocol("the proof is not 32 bytes of base64"))?;
        let signed = format!("{},{},{without_proof}", begun.client_first_bare, begun.server_first);
        let client_key = xor(&proof, &hmac(&self.verifier.stored_key, signed.as_bytes()));
        if !bool::from(sha256(&client_key).ct_eq(&self.verifier.stored_key)) {
            return Err(AuthError::WrongPassword);
        }
        let signature = STANDARD.encode(hmac(&self.verifier.server_key, signed.as_bytes()));
        Ok(ServerDone { final_message: format!("v={signature}").into_bytes(), client_key })
    }

    /// The header up to and with its second comma, and the `c=` that the final message must repeat.
    fn gs2_header<'a>(&self, text: &'a str) -> Result<(&'a str, String), AuthError> {
        let end = text.match_indices(',').nth(1).map(|(at, _)| at + 1);
        let header = end.and_then(|end| text.get(..end)).ok_or(AuthError::Protocol("header expected"))?;
        match (header, &self.binding) {
            ("n,," | "y,,", _) if self.plus == Some(true) => {
                Err(AuthError::Protocol("SCRAM-SHA-256-PLUS was selected without channel binding"))
            }
            ("n,,", _) | ("y,,", None) => Ok((header, STANDARD.encode(header))),
            // Somebody between us has removed SCRAM-SHA-256-PLUS from the list.
            ("y,,", Some(_)) => {
                Err(AuthError::Protocol("the client supports channel binding but thinks that this server does not"))
            }
            (BINDING_HEADER, Some(hash)) if self.plus != Some(false) => {
                Ok((header, STANDARD.encode([header.as_bytes(), hash].concat())))
            }
            (BINDING_HEADER, _) => Err(AuthError::Protocol("channel binding without SCRAM-SHA-256-PLUS")),
            _ => Err(AuthError::Protocol("unsupported channel binding or authorization identity")),
        }
    }
}

/// What the client's side proves itself with.
pub enum ClientSecret {
    /// The password.
    Password(Secret),
    /// Keys from a client's own login.
    Keys {
        /// Proves us to the server.
        client_key: Key,
        /// Proves the server to us.
        server_key: Key,
    },
}

/// The client's side of one login: `select`, `first`, `respond`, `finish`.
pub struct Client {
    secret: ClientSecret,
    binding: Option<Vec<u8>>,
    plus: bool,
    nonce: String,
    expected_signature: Option<Key>,
}

impl Client {
    /// `binding` is the hash of the server's certificate when the connection is TLS. The nonce must be random.
    pub fn new(secret: ClientSecret, binding: Option<Vec<u8>>, nonce: [u8; 18]) -> Client {
        let plus = binding.is_some();
        Client { secret, binding, plus, nonce: STANDARD.encode(nonce), expected_signature: None }
    }

    /// Chooses of the server's mechanisms.
    pub fn select(&mut self, offered: &[&str]) -> Result<&'static str, AuthError> {
        self.plus = self.binding.is_some() && offered.contains(&SCRAM_SHA_256_PLUS);
        match self.plus {
            true => Ok(SCRAM_SHA_256_PLUS),
            false if offered.contains(&SCRAM_SHA_256) => Ok(SCRAM_SHA_256),
            false => Err(AuthError::Protocol("the server offers no mechanism that we know")),
        }
    }

    /// The first message.
    pub fn first(&self) -> Vec<u8> {
        format!("{}{}", self.header(), self.first_bare()).into_bytes()
    }

    /// Takes the server's first message, gives our final one with the proof.
    pub fn respond(&mut self, server_first: &[u8]) -> Result<Vec<u8>, AuthError> {
        let server_first = text(server_first)?;
        let mut parts = server_first.split(',');
        let nonce = attribute(parts.next(), "r=", "nonce expected")?;
        let salt = attribute(parts.next(), "s=", "salt expected")?;
        let iterations = attribute(parts.next(), "i=", "iteration count expected")?;
        if nonce.len() <= self.nonce.len() || !nonce.starts_with(&self.nonce) {
            return Err(AuthError::Protocol("the server did not extend our nonce"));
        }
        let salt = STANDARD.decode(salt).map_err(|_| AuthError::Protocol("the salt is not base64"))?;
        let iterations: u32 = iterations.parse().map_err(|_| AuthError::Protocol("bad iteration count"))?;
        if iterations == 0 || iterations > MAX_ITERATIONS {
            return Err(AuthError::Protocol("the iteration count is not within 1 and 100000"));
        }
        let (client_key, server_key) = match &self.secret {
            ClientSecret::Password(password) => derive_keys(password.expose(), &salt, iterations),
            ClientSecret::Keys { client_key, server_key } => (*client_key, *server_key),
        };
        let mut bound = self.header().as_bytes().to_vec();
        if let (true, Some(hash)) = (self.plus, &self.binding) {
            bound.extend_from_slice(hash);
        }
        let without_proof = format!("c={},r={nonce}", STANDARD.encode(bound));
        let signed = format!("{},{server_first},{without_proof}", self.first_bare());
        let proof = xor(&client_key, &hmac(&sha256(&client_key), signed.as_bytes()));
        self.expected_signature = Some(hmac(&server_key, signed.as_bytes()));
        Ok(format!("{without_proof},p={}", STANDARD.encode(proof)).into_bytes())
    }

    /// True when `respond` hashes a password, which takes milliseconds.
    pub fn derives(&self) -> bool {
        matches!(self.secret, ClientSecret::Password(_))
    }

    /// Checks the server's signature; without it the server has not proved that it knows the secret.
    pub fn finish(&mut self, server_final: &[u8]) -> Result<(), AuthError> {
        let expected = self.expected_signature.take().ok_or(AuthError::Protocol("final message before the first"))?;
        let text = text(server_final)?;
        if let Some(error) = text.strip_prefix("e=") {
            return Err(AuthError::Peer(error.chars().filter(|c| !c.is_control()).take(100).collect()));
        }
        let signature = attribute(text.split(',').next(), "v=", "signature expected")?;
        let signature = decode_key(signature).ok_or(AuthError::Protocol("the signature is not 32 bytes of base64"))?;
        if bool::from(signature.ct_eq(&expected)) { Ok(()) } else { Err(AuthError::Protocol("wrong server signature")) }
    }

    fn header(&self) -> &'static str {
        match (self.plus, &self.binding) {
            (true, _) => BINDING_HEADER,
            // We could have bound the channel, and say so: a server that offered it knows then of the downgrade.
            (false, Some(_)) => "y,,",
            (false, None) => "n,,",
        }
    }

    fn first_bare(&self) -> String {
        format!("n=,r={}", self.nonce)
    }
}

/// `ClientKey` and `ServerKey`.
fn derive_keys(password: &str, salt: &[u8], iterations: u32) -> (Key, Key) {
    // As PostgreSQL: what SASLprep refuses is taken as it is.
    let prepared = stringprep::saslprep(password).unwrap_or(password.into());
    #[cfg(test)]
    WORK.set(Work { iterations: WORK.get().iterations + u64::from(iterations), ..WORK.get() });
    let mut salted = Zeroizing::new([0u8; 32]);
    pbkdf2::pbkdf2_hmac::<Sha256>(prepared.as_bytes(), salt, iterations, salted.as_mut());
    (hmac(salted.as_ref(), b"Client Key"), hmac(salted.as_ref(), b"Server Key"))
}

/// HMAC-SHA-256.
pub(super) fn hmac(key: &[u8], message: &[u8]) -> Key {
    #[cfg(test)]
    WORK.set(Work { hmacs: WORK.get().hmacs + 1, ..WORK.get() });
    let mut mac = <Hmac<Sha256> as Mac>::new_from_slice(key).expect("HMAC takes keys of every length");
    mac.update(message);
    mac.finalize().into_bytes().into()
}

/// What this thread has computed, for the proof that unknown users cost as much as known ones.
#[cfg(test)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Iterations of PBKDF2.
    pub iterations: u64,
    /// HMACs outside it.
    pub hmacs: u64,
}

#[cfg(test)]
thread_local! {
    static WORK: std::cell::Cell<Work> = const { std::cell::Cell::new(Work { iterations: 0, hmacs: 0 }) };
}

/// The work of this thread so far.
#[cfg(test)]
pub fn work() -> Work {
    WORK.get()
}

fn sha256(bytes: &[u8]) -> Key {
    Sha256::digest(bytes).into()
}

fn xor(a: &Key, b: &Key) -> Key {
    let mut out = *a;
    out.iter_mut().zip(b).for_each(|(x, y)| *x ^= y);
    out
}

fn decode_key(base64: &str) -> Option<Key> {
    STANDARD.decode(base64).ok()?.try_into().ok()
}

fn text(message: &[u8]) -> Result<&str, AuthError> {
    if message.len() > MAX_MESSAGE {
        return Err(AuthError::Protocol("too long"));
    }
    let text = std::str::from_utf8(message).map_err(|_| AuthError::Protocol("not UTF-8"))?;
    if text.contains('\0') { Err(AuthError::Protocol("zero byte")) } else { Ok(text) }
}

fn attribute<'a>(part: Option<&'a str>, prefix: &str, missing: &'static str) -> Result<&'a str, AuthError> {
    part.and_then(|part| part.strip_prefix(prefix)).ok_or(AuthError::Protocol(missing))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verifier() -> ScramVerifier {
        ScramVerifier::derive("pencil", STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap(), 4096)
    }

    fn client(binding: Option<Vec<u8>>) -> Client {
        Client::new(ClientSecret::Password(Secret::new("pencil")), binding, [1; 18])
    }

    /// RFC 7677, section 3; the nonces and the name are set by hand because ours are always base64 and empty.
    #[test]
    fn the_vector_of_rfc_7677() {
        let mut server = Server::new(verifier(), None, [0; 18]);
        server.nonce = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0".into();
        let first = server.first(b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO").unwrap();
        assert_eq!(first, b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096");
        let last = b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                     p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
        let done = server.last(last).unwrap();
        assert_eq!(done.final_message, b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
        assert!(server.last(last).is_err(), "a second final message");
    }

    fn login(server: &mut Server, client: &mut Client) -> Result<ServerDone, AuthError> {
        server.select(client.select(server.mechanisms())?)?;
        let first = server.first(&client.first())?;
        let done = server.last(&client.respond(&first)?)?;
        client.finish(&done.final_message)?;
        Ok(done)
    }

    #[test]
    fn both_sides_agree_with_and_without_binding_and_keys_pass_through() {
        let done = login(&mut Server::new(verifier(), None, [2; 18]), &mut client(None)).unwrap();
        login(&mut Server::new(verifier(), Some(vec![7; 32]), [2; 18]), &mut client(Some(vec![7; 32]))).unwrap();
        login(&mut Server::new(verifier(), Some(vec![7; 32]), [2; 18]), &mut client(None)).unwrap();
        login(&mut Server::new(verifier(), None, [2; 18]), &mut client(Some(vec![7; 32]))).unwrap();
        let keys = ClientSecret::Keys { client_key: done.client_key, server_key: verifier().server_key };
        login(&mut Server::new(verifier(), None, [2; 18]), &mut Client::new(keys, None, [3; 18])).unwrap();
    }

    #[test]
    fn wrong_secrets_and_bindings_are_refused() {
        let mut wrong = Client::new(ClientSecret::Password(Secret::new("pencils")), None, [1; 18]);
        let refused = login(&mut Server::new(verifier(), None, [2; 18]), &mut wrong);
        assert_eq!(refused.err(), Some(AuthError::WrongPassword));
        let other = login(&mut Server::new(verifier(), Some(vec![8; 32]), [2; 18]), &mut client(Some(vec![7; 32])));
        assert_eq!(other.err(), Some(AuthError::Protocol("channel binding does not match")));
        let mut server = Server::new(verifier(), Some(vec![7; 32]), [2; 18]);
        server.select(SCRAM_SHA_256).unwrap();
        assert!(server.first(b"y,,n=,r=abc").is_err(), "a downgrade");
        assert!(server.first(b"p=tls-server-end-point,,n=,r=abc").is_err(), "binding without PLUS");
        server.select(SCRAM_SHA_256_PLUS).unwrap();
        assert!(server.first(b"n,,n=,r=abc").is_err(), "PLUS without binding");
        assert!(Server::new(verifier(), None, [2; 18]).select(SCRAM_SHA_256_PLUS).is_err());
    }

    #[test]
    fn malformed_client_messages_are_refused() {
        for message in
            ["", "n", "n,,", "n,,n=", "n,,r=abc", "n,,n=,r=", "n,a=x,n=,r=a", "n,,m=x,n=,r=a", "p=other,,n=,r=a"]
        {
            assert!(Server::new(verifier(), None, [2; 18]).first(message.as_bytes()).is_err(), "{message}");
        }
        for message in ["", "c=biws", "c=biws,r=abc", "c=biws,r=abc,p=x", "c=biws,r=abcX,p=AAAA", "r=abc,c=biws,p=AAAA"]
        {
            let mut server = Server::new(verifier(), None, [2; 18]);
            server.first(b"n,,n=,r=abc").unwrap();
            assert!(server.last(message.as_bytes()).is_err(), "{message}");
        }
        assert!(Server::new(verifier(), None, [2; 18]).last(b"c=biws,r=a,p=b").is_err());
    }

    #[test]
    fn hostile_servers_are_refused() {
        let ours = STANDARD.encode([1; 18]);
        for (message, why) in [
            (format!("r=tampered{ours},s=AAAA,i=4096"), "nonce"),
            (format!("r={ours},s=AAAA,i=4096"), "nonce"),
            (format!("r={ours}x,s=AAAA,i=100001"), "iteration"),
            (format!("r={ours}x,s=AAAA,i=99999999999"), "iteration"),
            (format!("r={ours}x,s=AAAA,i=0"), "iteration"),
            (format!("r={ours}x,i=4096"), "salt"),
            (format!("r={ours}x,s=AAAA"), "iteration"),
            (format!("r={ours}x,s=!,i=1"), "salt"),
        ] {
            let error = client(None).respond(message.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(why), "{message}: {error}");
        }
        let mut unsigned = client(None);
        unsigned.respond(format!("r={ours}x,s=AAAA,i=1").as_bytes()).unwrap();
        assert!(unsigned.finish(format!("v={}", STANDARD.encode([0; 32])).as_bytes()).is_err());
        assert!(client(None).finish(b"v=AAAA").is_err());
    }

    #[test]
    fn verifiers_are_read_strictly_and_printed_back() {
        let text = verifier().to_string();
        assert_eq!(ScramVerifier::parse(&text), Some(verifier()));
        assert!(verifier().fits_password("pencil") && !verifier().fits_password("pen"));
        for bad in [
            text.replace("4096", "0"),
            text.replace("4096", "+4096"),
            text.replace("4096", ""),
            text.replace("SHA-256", "SHA-1"),
            format!("{text}x"),
            text[..text.len() - 4].to_owned(),
            text.replace('$', ":"),
        ] {
            assert_eq!(ScramVerifier::parse(&bad), None, "{bad}");
        }
    }

    #[test]
    fn passwords_are_prepared_and_bad_ones_taken_raw() {
        // U+00AD is mapped to nothing; U+FF41 is normalised to "a"; a control character is prohibited.
        assert_eq!(derive_keys("a\u{ad}b", b"salt", 1), derive_keys("ab", b"salt", 1));
        assert_eq!(derive_keys("\u{ff41}", b"salt", 1), derive_keys("a", b"salt", 1));
        assert_ne!(derive_keys("a\u{7}", b"salt", 1), derive_keys("a", b"salt", 1));
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
        #[test]
        fn no_message_panics(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..60), text in "[nyp=,rcsi0-9a-z]{0,40}") {
            for message in [bytes.as_slice(), text.as_bytes()] {
                let mut server = Server::new(ScramVerifier::derive("x", vec![1], 1), None, [2; 18]);
                let _ = server.first(message);
                let _ = server.last(message);
                let mut client = client(None);
                let _ = client.respond(message);
                let _ = client.finish(message);
            }
            let _ = ScramVerifier::parse(&text);
        }
    }
}
