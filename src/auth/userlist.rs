//! PgBouncer's `userlist.txt`: `"user" "secret"`, quotes doubled, `;` comments.

use super::pool_passwd::unprefixed_secret;
use super::{AuthError, StoredSecret};

/// Reads a file's text, in its order. What follows the secret on a line is ignored, as PgBouncer does.
pub fn parse(text: &str, file_name: &str) -> Result<Vec<(String, StoredSecret)>, AuthError> {
    let mut users = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with([';', '#']) {
            continue;
        }
        let bad = |message: String| AuthError::Line { file: file_name.to_owned(), line: index + 1, message };
        let shape = || bad("expected \"user\" \"secret\", each in double quotes".into());
        let (user, rest) = quoted(line).ok_or_else(shape)?;
        let (secret, _) = quoted(rest.trim_start()).ok_or_else(shape)?;
        if user.is_empty() {
            return Err(bad("the user name is empty".into()));
        }
        // PgBouncer: a user with an empty secret cannot log in by password; to us it is a user without a secret.
        if !secret.is_empty() {
            users.push((user, unprefixed_secret(&secret).map_err(bad)?));
        }
    }
    Ok(users)
}

/// A text in quotes, and what follows it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut rest = text.strip_prefix('"')?;
    let mut value = String::new();
    loop {
        let (part, after) = rest.split_once('"')?;
        value.push_str(part);
        match after.strip_prefix('"') {
            Some(more) => {
                value.push('"');
                rest = more;
            }
            None => return Some((value, after)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Secret;

    #[test]
    fn every_kind_of_secret() {
        let text = "; comment\n\"al\"\"ice\" \"pa ss\"\"\"\n\n\"bob\"  \"md5900150983cd24fb0d6963f7d28e17f72\" extra\n\
                    \"none\" \"\"\n\"carol\" \"md5short\"";
        let users = parse(text, "userlist.txt").unwrap();
        assert_eq!(users[0], ("al\"ice".into(), StoredSecret::Plain(Secret::new("pa ss\""))));
        assert_eq!(users[1], ("bob".into(), StoredSecret::Md5("md5900150983cd24fb0d6963f7d28e17f72".into())));
        assert_eq!(users[2], ("carol".into(), StoredSecret::Plain(Secret::new("md5short"))));
        assert_eq!(users.len(), 3);
    }

    #[test]
    fn broken_lines_are_named_without_their_secret() {
        for text in
            ["alice secret", "\"alice\"", "\"alice\" \"hidden", "\"\" \"hidden\"", "\"a\" \"SCRAM-SHA-256$hidden\""]
        {
            let error = parse(&format!("\n{text}"), "userlist.txt").unwrap_err().to_string();
            assert!(error.starts_with("userlist.txt:2: ") && !error.contains("hidden"), "{error}");
        }
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
        #[test]
        fn no_text_panics(text in "[\"a ;\n$:=S]{0,40}") {
            let _ = parse(&text, "f");
        }
    }
}
