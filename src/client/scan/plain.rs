//! The commonest statements told at a glance: one SELECT without calls, strings or quoted names.

use super::lexer::{is_blank, is_word};
use memchr::{memchr, memchr_iter, memchr2_iter};

/// Nothing that matters, wherever it stands.
const PLAIN: u8 = 0;
/// A comment begins with two of them.
const DASH: u8 = 1;
/// A parameter, or a quotation.
const DOLLAR: u8 = 2;
/// It takes a closer look.
const OTHER: u8 = 4;

const BYTES: [u8; 256] = {
    let mut bytes = [OTHER; 256];
    let mut at = 0;
    while at < 256 {
        bytes[at] = match at as u8 {
            b'-' => DASH,
            b'$' => DOLLAR,
            b' ' | b'\t' | b'\n' | b'\r' | b'_' | b'.' | b',' | b';' | b'=' | b'<' | b'>' | b'*' | b'+' => PLAIN,
            b if b.is_ascii_alphanumeric() => PLAIN,
            _ => OTHER,
        };
        at += 1;
    }
    bytes
};

/// True for a text that is one SELECT which leaves nothing, as far as that can be told from its bytes. False says nothing.
pub(super) fn is_plain_select(sql: &[u8]) -> bool {
    if !begins_with(sql, b"select") || sql.get(6).is_none_or(|b| is_word(*b)) {
        return false;
    }
    // What kinds of bytes there are, without a branch for each.
    let kinds = sql.iter().fold(PLAIN, |kinds, b| kinds | BYTES.get(usize::from(*b)).copied().unwrap_or(OTHER));
    let rest = |at: usize| sql.get(at..).unwrap_or_default();
    kinds & OTHER == 0
        && (kinds & DASH == 0 || sql.windows(2).all(|two| two != b"--"))
        && (kinds & DOLLAR == 0 || memchr_iter(b'$', sql).all(|at| sql.get(at + 1).is_some_and(u8::is_ascii_digit)))
        && memchr(b';', sql).is_none_or(|at| rest(at + 1).iter().all(|b| is_blank(*b)))
        && memchr2_iter(b'i', b'I', sql).all(|at| !begins_with(rest(at), b"into"))
        && memchr2_iter(b'p', b'P', sql).all(|at| !begins_with(rest(at), b"pg_temp"))
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
