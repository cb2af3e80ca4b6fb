//! Who may command: the lines of `pcp.conf` and the digest that proves a password.

use md5::{Digest, Md5};
use std::fmt::Write;
use std::path::Path;
use std::time::Duration;
use subtle::ConstantTimeEq;

/// A connection must have logged in by then.
pub(super) const DEADLINE: Duration = Duration::from_secs(60);

/// Pgpool-II's limits of `pcp.conf`: a longer line, user or hash is not taken.
const MAX_LINE: usize = 512;
const MAX_WORD: usize = 128;

/// A larger file is no `pcp.conf`.
const MAX_FILE: u64 = 1 << 20;

/// Whether `digest` proves that its sender knows the password of `user`. The file is read at each login, so that a
/// changed password needs no reload.
pub(super) fn check_file(file: &Path, user: &str, salt: [u8; 4], digest: &str) -> std::io::Result<bool> {
    use std::io::Read;
    let mut text = String::new();
    std::fs::File::open(file)?.take(MAX_FILE).read_to_string(&mut text)?;
    Ok(check(&text, user, salt, digest))
}

/// The same on the text of the file. A user may have several lines; every line is compared, so that the time it takes
/// tells nothing of which one fits.
fn check(text: &str, user: &str, salt: [u8; 4], digest: &str) -> bool {
    let mut fits = subtle::Choice::from(0);
    for (_, hash) in text.lines().filter_map(entry).filter(|(name, _)| *name == user) {
        fits |= expected(hash, user, salt).as_bytes().ct_eq(digest.as_bytes());
    }
    fits.into()
}

fn entry(line: &str) -> Option<(&str, &str)> {
    let line = line.trim();
    if line.len() > MAX_LINE || line.starts_with('#') {
        return None;
    }
    let (user, hash) = line.split_once(':')?;
    let (user, hash) = (user.trim(), hash.trim());
    let sound = |word: &str| !word.is_empty() && word.len() <= MAX_WORD;
    (sound(user) && sound(hash)).then_some((user, hash))
}

/// What a client that knows the password answers; `hash` is the password's MD5 in hexadecimal, as the file has it.
pub(super) fn expected(hash: &str, user: &str, salt: [u8; 4]) -> String {
    let inner = hex_md5(&[hash.as_bytes(), user.as_bytes()]);
    hex_md5(&[inner.as_bytes(), &salt])
}

fn hex_md5(parts: &[&[u8]]) -> String {
    let mut hash = Md5::new();
    parts.iter().for_each(|part| hash.update(part));
    let mut text = String::with_capacity(32);
    for byte in hash.finalize() {
        // Writing to a `String` cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    // The hash of "secret", then of "other".
    const FILE: &str = "# a comment\n\nother:x\nadmin:5ebe2294ecd0e0f08eab7690d2a6ee69\n\
                        admin:795f3202b17cb6bc3d4b771d8c6c9eaf\n#eve:5ebe2294ecd0e0f08eab7690d2a6ee69\n";

    #[test]
    fn any_of_a_users_lines_may_fit() {
        let salt = [1, 2, 3, 4];
        for hash in ["5ebe2294ecd0e0f08eab7690d2a6ee69", "795f3202b17cb6bc3d4b771d8c6c9eaf"] {
            let digest = expected(hash, "admin", salt);
            assert!(check(FILE, "admin", salt, &digest));
            assert!(!check(FILE, "admin", [1, 2, 3, 5], &digest));
            assert!(!check(FILE, "eve", salt, &digest));
        }
        assert!(!check(FILE, "admin", salt, ""));
        assert!(!check(FILE, "", salt, &expected("", "", salt)));
        assert!(!check(FILE, "#eve", salt, &expected("5ebe2294ecd0e0f08eab7690d2a6ee69", "#eve", salt)));
    }
}
