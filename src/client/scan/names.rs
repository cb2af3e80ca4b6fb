//! Names that a text gives: of a statement that is deallocated, of channels that are left, of the user's own settings.

use super::MAX_NAME;
use super::lexer::{Lexer, Token, is_word, is_word_start};

/// Names taken from one text.
const MAX_NAMES: usize = 64;

/// The name in a text that is nothing but `DEALLOCATE [PREPARE] name`, folded as PostgreSQL folds it.
pub fn deallocated(sql: &[u8]) -> Option<Vec<u8>> {
    let mut words = Lexer::new(sql);
    let mut next = || words.next().ok().flatten();
    let Some(Token::Word(first)) = next() else { return None };
    if !first.eq_ignore_ascii_case(b"deallocate") {
        return None;
    }
    let (mut name, mut after) = (next()?, next());
    if matches!(name, Token::Word(w) if w.eq_ignore_ascii_case(b"prepare"))
        && !matches!(after, None | Some(Token::Symbol(b';')))
    {
        name = after?;
        after = next();
    }
    if !(after.is_none() || matches!(after, Some(Token::Symbol(b';'))) && next().is_none()) {
        return None;
    }
    match name {
        Token::Word(word) if !word.eq_ignore_ascii_case(b"all") => Some(word.to_ascii_lowercase()),
        Token::Quoted(name) if !name.contains(&b'"') => Some(name.to_vec()),
        _ => None,
    }
}

/// The channels of `UNLISTEN` statements in a text, folded as PostgreSQL folds them; `None` is `*`.
pub fn unlistened(sql: &[u8]) -> Vec<Option<String>> {
    let mut channels = Vec::new();
    let mut words = Lexer::new(sql);
    let mut at_start = true;
    while let Ok(Some(token)) = words.next() {
        let begins = at_start && matches!(token, Token::Word(w) if w.eq_ignore_ascii_case(b"unlisten"));
        at_start = matches!(token, Token::Symbol(b';'));
        if begins && channels.len() < MAX_NAMES {
            channels.push(match words.next() {
                Ok(Some(Token::Word(word))) => Some(String::from_utf8_lossy(word).to_lowercase()),
                Ok(Some(Token::Quoted(name))) => Some(String::from_utf8_lossy(name).replace("\"\"", "\"")),
                _ => None,
            });
        }
    }
    channels
}

/// The names of settings of the user's own (`app.tenant`) that a text may set. PostgreSQL does not list those that no
/// extension has defined, so who asks for their values must know the names.
pub fn custom_names(sql: &[u8]) -> Vec<String> {
    let mut names = Vec::new();
    let mut words = Lexer::new(sql);
    let mut before: Option<(usize, usize)> = None;
    loop {
        let Ok(token) = words.next() else { return names };
        let (from, to) = words.span();
        match token {
            None => return names,
            Some(Token::Literal) => {
                let text = sql.get(from..to).unwrap_or_default();
                let inner = text.strip_prefix(b"'").and_then(|t| t.strip_suffix(b"'")).unwrap_or_default();
                names.extend(custom_name(inner));
                before = None;
            }
            Some(Token::Word(_) | Token::Symbol(b'.')) if before.is_some_and(|b| b.1 == from) => {
                before = before.map(|b| (b.0, to));
                let text = before.and_then(|b| sql.get(b.0..b.1)).unwrap_or_default();
                names.extend(custom_name(text));
            }
            Some(Token::Word(_)) => before = Some((from, to)),
            Some(_) => before = None,
        }
        if names.len() >= MAX_NAMES {
            return names;
        }
    }
}

/// A name of two or more words with dots between, in lower case.
pub fn custom_name(text: &[u8]) -> Option<String> {
    let is_part = |part: &[u8]| part.first().is_some_and(|b| is_word_start(*b)) && part.iter().all(|b| is_word(*b));
    let fits = text.len() <= 2 * MAX_NAME && text.contains(&b'.') && text.split(|b| *b == b'.').all(is_part);
    std::str::from_utf8(text).ok().filter(|_| fits).map(str::to_ascii_lowercase)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_users_own_settings_are_found() {
        assert_eq!(custom_names(b"SET App.tenant = 'x.y'; SET b . c = 1"), ["app.tenant", "x.y"]);
        assert_eq!(custom_names(b"select set_config('a.b.c', 'it''s.d', f.x)"), ["a.b.c", "f.x"]);
        assert_eq!(custom_names(b"select '1.5', '', '.', 'a.', 2.5"), Vec::<String>::new());
    }

    #[test]
    fn a_deallocation_that_stands_alone_is_recognised() {
        for (text, name) in [
            ("deallocate Foo", Some("foo")),
            (" DEALLOCATE PREPARE \"Foo bar\" ; ", Some("Foo bar")),
            ("DEALLOCATE prepare", Some("prepare")),
            ("DEALLOCATE ALL", None),
            ("DEALLOCATE a; SELECT 1", None),
            ("SELECT 1", None),
            ("DEALLOCATE", None),
        ] {
            assert_eq!(deallocated(text.as_bytes()), name.map(|n| n.as_bytes().to_vec()), "{text}");
        }
    }

    #[test]
    fn channels_that_are_no_longer_wanted_are_found() {
        let all = unlistened(b"UNLISTEN News; select 'unlisten x'; unlisten \"A\"\"b\"; UNLISTEN *");
        assert_eq!(all, [Some("news".to_owned()), Some("A\"b".to_owned()), None]);
    }
}
