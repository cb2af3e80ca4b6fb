//! Regular expressions in rules and maps: PostgreSQL's language as far as it means the same here, the rest refused.

/// Compiled size of one expression, bytes.
const MAX_SIZE: usize = 1 << 20;
/// Length of one expression, bytes.
const MAX_LENGTH: usize = 4096;

/// An expression, which fits a text when it matches anywhere in it.
#[derive(Clone, Debug)]
pub struct Pattern {
    text: String,
    regex: regex::Regex,
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Pattern {
    /// Reads an expression. Matching takes linear time, so back references and look-around do not exist.
    pub fn parse(text: &str) -> Result<Pattern, String> {
        let bad = |why: &str| format!("regular expression \"{text}\": {why}");
        if text.len() > MAX_LENGTH {
            return Err(format!("a regular expression is longer than {MAX_LENGTH} bytes"));
        }
        let translated = translate(text).map_err(|why| bad(&why))?;
        let built = regex::RegexBuilder::new(&translated).size_limit(MAX_SIZE).dot_matches_new_line(true).build();
        let regex = built.map_err(|e| bad(&e.to_string().lines().last().unwrap_or_default().replace("error: ", "")))?;
        Ok(Pattern { text: text.to_owned(), regex })
    }

    /// Whether it matches somewhere in the text.
    pub fn fits(&self, text: &str) -> bool {
        self.regex.is_match(text)
    }

    /// What its first group matched: outer `None` when it does not match, inner when there is no such group in it.
    pub fn first_group<'a>(&self, text: &'a str) -> Option<Option<&'a str>> {
        self.regex.captures(text).map(|found| found.get(1).map(|group| group.as_str()))
    }

    /// True when it has a group.
    pub fn has_group(&self) -> bool {
        self.regex.captures_len() > 1
    }
}

/// PostgreSQL's word limits in the other dialect; refuses what the two dialects read differently without a word.
fn translate(text: &str) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    let (mut in_class, mut class_start) = (false, false);
    while let Some(c) = chars.next() {
        let at_start = std::mem::take(&mut class_start);
        match c {
            '\\' => match chars.next() {
                Some('y') => out.push_str("\\b"),
                Some('Y') => out.push_str("\\B"),
                Some('m') => out.push_str("\\b{start}"),
                Some('M') => out.push_str("\\b{end}"),
                Some('Z') => out.push_str("\\z"),
                Some(e) if "AdDsSwW".contains(e) || !e.is_alphanumeric() => out.extend(['\\', e]),
                Some(e) => return Err(format!("\\{e} is not supported")),
                None => return Err("it ends with a backslash".into()),
            },
            '[' if !in_class => {
                (in_class, class_start) = (true, true);
                out.push('[');
                if chars.next_if_eq(&'^').is_some() {
                    out.push('^');
                }
            }
            ']' if in_class && at_start => out.push_str("\\]"),
            ']' if in_class => {
                in_class = false;
                out.push(']');
            }
            '[' if chars.peek() == Some(&':') => {
                out.push('[');
                for c in chars.by_ref() {
                    out.push(c);
                    if c == ']' {
                        break;
                    }
                }
            }
            '[' if matches!(chars.peek(), Some('.' | '=')) => return Err("collating elements are not supported".into()),
            // The other dialect computes with classes by these.
            '[' | '&' | '~' if in_class => out.extend(['\\', c]),
            '-' if in_class && chars.peek() == Some(&'-') => return Err("\"--\" in brackets is not supported".into()),
            c => out.push(c),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_mean_what_they_mean_to_postgresql() {
        for (pattern, fits, fits_not) in [
            ("^db\\d{2,4}$", &["db12", "db1234"][..], &["db1", "db12345", "xdb12"][..]),
            ("b", &["abc"], &["ac"]),
            ("[]a]+$", &["]a"], &["b"]),
            ("^[[:alpha:]&[]+$", &["a&["], &["1"]),
            ("\\mdb\\M", &["a db c"], &["adb"]),
            ("^(a|b).c$", &["a\nc"], &["c.c"]),
            ("(?i)^x$", &["X"], &["y"]),
        ] {
            let pattern = Pattern::parse(pattern).unwrap();
            assert!(fits.iter().all(|text| pattern.fits(text)), "{pattern:?}");
            assert!(!fits_not.iter().any(|text| pattern.fits(text)), "{pattern:?}");
        }
        for refused in ["(a)\\1", "(?=a)", "\\b", "(", "[[.a.]]", "a\\"] {
            assert!(Pattern::parse(refused).unwrap_err().starts_with("regular expression"), "{refused}");
        }
        assert_eq!(Pattern::parse("^(.*)@x$").unwrap().first_group("anna@x"), Some(Some("anna")));
    }
}
