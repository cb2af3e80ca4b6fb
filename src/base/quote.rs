//! Texts and names as SQL, for statements that pgmend writes.

/// A literal that reads the same whatever `standard_conforming_strings` is.
pub fn literal(text: &str) -> String {
    let doubled = text.replace('\'', "''");
    if text.contains('\\') { format!(" E'{}'", doubled.replace('\\', "\\\\")) } else { format!("'{doubled}'") }
}

/// One name: a channel, a part of a parameter's name.
pub fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_literals() {
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal(r"a\b'"), r" E'a\\b'''");
    }

    #[test]
    fn quotes_names() {
        assert_eq!(identifier("News"), "\"News\"");
        assert_eq!(identifier("a\"b"), "\"a\"\"b\"");
    }
}
