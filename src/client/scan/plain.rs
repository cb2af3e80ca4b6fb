//! The commonest statements told at a glance: one SELECT without calls, strings or quoted names.

use super::lexer::{is_blank, is_word};

/// What a byte may mean in a plain statement.
#[derive(Clone, Copy, PartialEq)]
enum Byte {
    /// Nothing that matters, wherever it stands.
    Plain,
    /// `i` or `p`: INTO and `pg_temp` begin with it.
    Letter,
    /// A comment begins with two of them.
    Dash,
    /// A parameter, or a quotation.
    Dollar,
    /// The end of the statement.
    Semicolon,
    /// It takes a closer look.
    Other,
}

const BYTES: [Byte; 256] = {
    let mut bytes = [Byte::Other; 256];
    let mut at = 0;
    while at < 256 {
        let b = at as u8;
        bytes[at] = match b {
            b'i' | b'I' | b'p' | b'P' => Byte::Letter,
            b'-' => Byte::Dash,
            b'$' => Byte::Dollar,
            b';' => Byte::Semicolon,
            b' ' | b'\t' | b'\n' | b'\r' | b'_' | b'.' | b',' | b'=' | b'<' | b'>' | b'*' | b'+' => Byte::Plain,
            b if b.is_ascii_alphanumeric() => Byte::Plain,
            _ => Byte::Other,
        };
        at += 1;
    }
    bytes
};

/// True for a text that is one SELECT which leaves nothing, as far as that can be told from its bytes. False says nothing.
pub(super) fn is_plain_select(sql: &[u8]) -> bool {
    let begins = sql.get(..6).is_some_and(|word| word.eq_ignore_ascii_case(b"select"));
    if !begins || sql.get(6).is_none_or(|b| is_word(*b)) {
        return false;
    }
    let mut rest = sql;
    // Most bytes are plain: they are passed in a loop of a few instructions.
    while let Some(at) = rest.iter().position(|b| byte(*b) != Byte::Plain) {
        let Some((first, after)) = rest.get(at..).and_then(|special| special.split_first()) else { return false };
        match byte(*first) {
            Byte::Plain => {}
            Byte::Letter if begins_with(after, b"nto") || begins_with(after, b"g_temp") => return false,
            Byte::Letter => {}
            Byte::Dash if after.first() != Some(&b'-') => {}
            Byte::Dollar if after.first().is_some_and(u8::is_ascii_digit) => {}
            Byte::Semicolon => return after.iter().all(|b| is_blank(*b)),
            Byte::Dash | Byte::Dollar | Byte::Other => return false,
        }
        rest = after;
    }
    true
}

#[inline]
fn byte(b: u8) -> Byte {
    BYTES.get(usize::from(b)).copied().unwrap_or(Byte::Other)
}

#[inline]
fn begins_with(text: &[u8], word: &[u8]) -> bool {
    text.get(..word.len()).is_some_and(|t| t.eq_ignore_ascii_case(word))
}

#[cfg(test)]
mod tests {
    use super::super::{Traces, classify_all};
    use super::*;

    #[test]
    fn what_is_plain_leaves_nothing_by_the_long_way_too() {
        for text in [
            "SELECT abalance FROM pgbench_accounts WHERE aid = 1;",
            "select 1",
            "Select * from a.b where c <= $1 and d = -5 ; \n",
            "select x FROM y WHERE pint = 1 - 2",
        ] {
            assert!(is_plain_select(text.as_bytes()), "{text}");
            assert_eq!(classify_all(text.as_bytes()), Traces::NONE, "{text}");
        }
    }

    #[test]
    fn what_is_not_plain_takes_the_long_way() {
        for text in [
            "",
            "select",
            "selects 1",
            "SELECT f(1)",
            "SELECT 1; SET x = 1",
            "SELECT 1 INTO TEMP t",
            "SELECT 1 into temporary t",
            "SELECT a FROM PG_TEMP.t",
            "SELECT 'now'",
            "SELECT $$a$$",
            "SELECT $a$ $a$",
            "SELECT 1 -- f(",
            "SELECT /* */ 1",
            "SELECT \"a\"",
            "SELECT E\\'",
            "UPDATE a SET b = 1",
            " SELECT 1",
            "SELECT caf\u{e9}",
        ] {
            assert!(!is_plain_select(text.as_bytes()), "{text}");
        }
    }

    proptest::proptest! {
        /// Whatever is taken for plain, the long way finds nothing in it.
        #[test]
        fn the_glance_never_contradicts_the_long_way(text in "(?i)select[ -~]{0,12}( into| temp|pg_temp|[$]1|;|--|now|set|f[(]| ){0,4}[ -~]{0,6}") {
            if is_plain_select(text.as_bytes()) {
                proptest::prop_assert_eq!(classify_all(text.as_bytes()), Traces::NONE);
            }
        }
    }
}
