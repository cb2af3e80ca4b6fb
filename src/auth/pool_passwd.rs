//! Pgpool-II's `pool_passwd`: `user:secret`, the kind of the secret by its prefix.

use super::{AuthError, ScramVerifier, StoredSecret, decrypt_aes};
use crate::base::Secret;

/// Reads a file's text, in its order. `key` decrypts `AES` secrets.
pub fn parse(text: &str, file_name: &str, key: Option<&Secret>) -> Result<Vec<(String, StoredSecret)>, AuthError> {
    let mut users = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        let bad = |message: &str| AuthError::Line {
            file: file_name.to_owned(),
            line: index + 1,
            message: message.to_owned(),
        };
        let (user, secret) = line.split_once(':').ok_or_else(|| bad("expected user:secret"))?;
        if user.is_empty() {
            return Err(bad("the user name is empty"));
        }
        if secret.contains(':') && !secret.starts_with("SCRAM-SHA-256$") {
            return Err(bad("the form user:secret:backenduser:backendsecret is not supported; \
                            a password with a colon can be stored as AES or in userlist.txt"));
        }
        if !secret.is_empty() {
            users.push((user.to_owned(), pool_secret(secret, key).map_err(|e| bad(&e))?));
        }
    }
    Ok(users)
}

/// One secret by Pgpool-II's prefixes: `md5`, `AES`, `TEXT`, `SCRAM-SHA-256$`, else the password itself. The passwords
/// of its configuration follow the same rule. Messages hold nothing of the secret.
pub fn pool_secret(text: &str, key: Option<&Secret>) -> Result<StoredSecret, String> {
    if let Some(cipher) = text.strip_prefix("AES") {
        let key = key.ok_or("an AES secret needs the key file it was encrypted with (.pgpoolkey)")?;
        return decrypt_aes(cipher, key.expose()).map(StoredSecret::Plain).map_err(|e| e.to_string());
    }
    match text.strip_prefix("TEXT") {
        Some(password) => Ok(StoredSecret::Plain(Secret::new(password))),
        None => unprefixed_secret(text),
    }
}

/// A secret without Pgpool-II's own prefixes: md5, a SCRAM verifier, or the password itself.
pub(super) fn unprefixed_secret(text: &str) -> Result<StoredSecret, String> {
    if StoredSecret::is_md5(text) {
        return Ok(StoredSecret::Md5(text.to_ascii_lowercase()));
    }
    if text.starts_with("SCRAM-SHA-256$") {
        let verifier = ScramVerifier::parse(text).ok_or("the SCRAM-SHA-256 verifier is malformed")?;
        return Ok(StoredSecret::Scram(verifier));
    }
    Ok(StoredSecret::Plain(Secret::new(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(text: &str) -> StoredSecret {
        StoredSecret::Plain(Secret::new(text))
    }

    #[test]
    fn every_prefix() {
        let verifier = ScramVerifier::derive("x", vec![1; 16], 1);
        let text = format!(
            "a:md5900150983cd24fb0d6963f7d28e17f72\nb:AESrKikG1lnoTVl89QqlcBNaA==\n\nc:TEXTclear\nd:plain\ne:md5x\nf:{verifier}\n"
        );
        let users = parse(&text, "pool_passwd", Some(&Secret::new("mykey"))).unwrap();
        let secrets: Vec<_> = users.into_iter().map(|(_, secret)| secret).collect();
        assert_eq!(
            secrets,
            [
                StoredSecret::Md5("md5900150983cd24fb0d6963f7d28e17f72".into()),
                plain("TESTPW"),
                plain("clear"),
                plain("plain"),
                plain("md5x"),
                StoredSecret::Scram(verifier),
            ]
        );
    }

    #[test]
    fn refusals_name_the_line_and_hide_the_secret() {
        for (line, why) in [
            ("a:hidden:b:hidden", "not supported"),
            ("a", "expected user:secret"),
            (":hidden", "empty"),
            ("a:AESrKikG1lnoTVl89QqlcBNaA==", "key file"),
            ("a:SCRAM-SHA-256$hidden", "malformed"),
        ] {
            let error = parse(&format!("x:y\n{line}"), "pool_passwd", None).unwrap_err().to_string();
            assert!(error.starts_with("pool_passwd:2: ") && error.contains(why), "{error}");
            assert!(!error.contains("hidden"), "{error}");
        }
        let wrong = parse("a:AESrKikG1lnoTVl89QqlcBNaA==", "pool_passwd", Some(&Secret::new("other")));
        assert!(wrong.unwrap_err().to_string().contains("unable to decrypt"));
    }
}
