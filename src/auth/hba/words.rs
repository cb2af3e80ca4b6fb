//! Lines, fields and words, as `pg_hba.conf` and `pg_ident.conf` have them.

/// One word; a quoted word is never a keyword.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::auth) struct Word {
    pub text: String,
    pub quoted: bool,
}

/// One field: words separated by commas.
pub(in crate::auth) type Field = Vec<Word>;

/// Lines with their numbers; a backslash at the end joins the next one.
pub(in crate::auth) fn joined_lines(text: &str) -> Vec<(usize, String)> {
    let mut lines: Vec<(usize, String)> = Vec::new();
    let mut open = false;
    for (index, line) in text.lines().enumerate() {
        let (part, goes_on) = match line.strip_suffix('\\') {
            Some(part) => (part, true),
            None => (line, false),
        };
        match lines.last_mut() {
            Some((_, whole)) if open => whole.push_str(part),
            _ => lines.push((index + 1, part.to_owned())),
        }
        open = goes_on;
    }
    lines
}

pub(in crate::auth) fn fields(line: &str) -> Result<Vec<Field>, String> {
    let mut fields: Vec<Field> = Vec::new();
    let mut word: Option<Word> = None;
    let mut joins = false; // a comma awaits its next word
    let mut in_quotes = false;
    let mut close = |word: &mut Option<Word>, joins: bool| {
        if let Some(word) = word.take() {
            match fields.last_mut() {
                Some(field) if joins => field.push(word),
                _ => fields.push(vec![word]),
            }
            true
        } else {
            false
        }
    };
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if in_quotes && chars.peek() == Some(&'"') => {
                chars.next();
                word.get_or_insert_with(Word::empty).text.push('"');
            }
            '"' => {
                in_quotes = !in_quotes;
                word.get_or_insert_with(Word::empty).quoted = true;
            }
            c if in_quotes => word.get_or_insert_with(Word::empty).text.push(c),
            '#' => break,
            ',' => {
                if !close(&mut word, joins) {
                    return Err("a comma without a name before it".into());
                }
                joins = true;
            }
            c if c.is_whitespace() => {
                if close(&mut word, joins) {
                    joins = false;
                }
            }
            c => word.get_or_insert_with(Word::empty).text.push(c),
        }
    }
    if in_quotes {
        return Err("a quote is not closed".into());
    }
    if !close(&mut word, joins) && joins {
        return Err("a comma without a name after it".into());
    }
    Ok(fields)
}

impl Word {
    fn empty() -> Word {
        Word { text: String::new(), quoted: false }
    }
}
