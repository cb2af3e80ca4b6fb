//! SQL's lexical rules, as far as it matters where words, strings and comments begin and end:
//! <https://www.postgresql.org/docs/current/sql-syntax-lexical.html>, with `standard_conforming_strings` on.

/// What a text consists of.
pub(super) enum Token<'a> {
    /// A name or key word as it stands there.
    Word(&'a [u8]),
    /// A quoted name, without its quotes.
    Quoted(&'a [u8]),
    /// A string, a number or a parameter.
    Literal,
    /// Anything else, byte by byte.
    Symbol(u8),
}

/// A string, quoted name or comment does not end: the rest cannot be judged.
pub(super) struct Unterminated;

/// Takes a text apart.
#[derive(Clone)]
pub(super) struct Lexer<'a> {
    sql: &'a [u8],
    /// Where the next token begins.
    at: usize,
    /// From where to where the last token goes.
    token: (usize, usize),
    /// A comment that does not end is next.
    broken: bool,
}

impl<'a> Lexer<'a> {
    /// At the beginning of a text.
    pub fn new(sql: &'a [u8]) -> Lexer<'a> {
        let mut lexer = Lexer { sql, at: 0, token: (0, 0), broken: false };
        lexer.broken = lexer.skip_blank().is_err();
        lexer
    }

    /// From where to where the last token goes.
    pub fn span(&self) -> (usize, usize) {
        self.token
    }

    /// The last token's text.
    pub fn token(&self) -> &'a [u8] {
        self.sql.get(self.token.0..self.token.1).unwrap_or_default()
    }

    fn rest(&self) -> &'a [u8] {
        self.sql.get(self.at..).unwrap_or_default()
    }

    /// The first byte of the next token, comments skipped.
    pub fn peek(&self) -> Option<u8> {
        self.rest().first().copied().filter(|_| !self.broken)
    }

    /// Behind the name `set_config`: true when its third argument is the literal `true`, so that it ends with the
    /// transaction.
    pub fn is_local_set_config(&self) -> bool {
        let mut ahead = self.clone();
        let (mut depth, mut commas, mut is_true) = (0_usize, 0, false);
        while let Ok(Some(token)) = ahead.next() {
            match token {
                Token::Symbol(b'(') => depth += 1,
                Token::Symbol(b')') if depth == 1 => return commas == 2 && is_true,
                Token::Symbol(b')') => depth = depth.saturating_sub(1),
                Token::Symbol(b',') if depth == 1 => {
                    commas += 1;
                    continue;
                }
                _ => {}
            }
            is_true = commas == 2 && matches!(token, Token::Word(w) if w.eq_ignore_ascii_case(b"true"));
        }
        false
    }

    /// The next token; `None` at the end.
    pub fn next(&mut self) -> Result<Option<Token<'a>>, Unterminated> {
        if self.broken {
            return Err(Unterminated);
        }
        let from = self.at;
        let Some(&first) = self.rest().first() else { return Ok(None) };
        let token = self.take(first)?;
        self.token = (from, self.at);
        self.broken = self.skip_blank().is_err();
        Ok(Some(token))
    }

    fn take(&mut self, first: u8) -> Result<Token<'a>, Unterminated> {
        let rest = self.rest();
        Ok(match first {
            b'\'' => {
                self.string(1, false)?;
                Token::Literal
            }
            b'"' => Token::Quoted(self.quoted()?),
            b'$' => {
                self.dollar()?;
                Token::Literal
            }
            b'0'..=b'9' => {
                self.at += rest.iter().take_while(|b| is_word(**b) || **b == b'.').count();
                Token::Literal
            }
            first if is_word_start(first) => {
                let length = rest.iter().position(|b| !is_word(*b)).unwrap_or(rest.len());
                let word = rest.get(..length).unwrap_or_default();
                if length == 1 && rest.get(length) == Some(&b'\'') {
                    self.string(2, first.eq_ignore_ascii_case(&b'e'))?;
                    return Ok(Token::Literal);
                }
                self.at += length;
                Token::Word(word)
            }
            symbol => {
                self.at += 1;
                Token::Symbol(symbol)
            }
        })
    }

    fn skip_blank(&mut self) -> Result<(), Unterminated> {
        while let Some(first) = self.sql.get(self.at) {
            if is_blank(*first) {
                self.at += 1;
                continue;
            }
            if !matches!(first, b'-' | b'/') {
                return Ok(());
            }
            let rest = self.rest();
            match rest {
                [b'-', b'-', ..] => self.at += rest.iter().take_while(|b| !matches!(b, b'\n' | b'\r')).count(),
                [b'/', b'*', ..] => self.comment()?,
                _ => return Ok(()),
            }
        }
        Ok(())
    }

    /// Comments nest.
    fn comment(&mut self) -> Result<(), Unterminated> {
        let mut depth = 0_usize;
        loop {
            match self.rest() {
                [b'/', b'*', ..] => {
                    depth += 1;
                    self.at += 2;
                }
                [b'*', b'/', ..] => {
                    depth -= 1;
                    self.at += 2;
                    if depth == 0 {
                        return Ok(());
                    }
                }
                [] => return Err(Unterminated),
                _ => self.at += 1,
            }
        }
    }

    /// A string whose text begins `skip` bytes on.
    fn string(&mut self, skip: usize, backslashes: bool) -> Result<(), Unterminated> {
        self.at += skip;
        loop {
            match self.rest() {
                [b'\'', b'\'', ..] => self.at += 2,
                [b'\'', ..] => {
                    self.at += 1;
                    return Ok(());
                }
                [b'\\', _, ..] if backslashes => self.at += 2,
                [] => return Err(Unterminated),
                _ => self.at += 1,
            }
        }
    }

    fn quoted(&mut self) -> Result<&'a [u8], Unterminated> {
        let from = self.at + 1;
        self.at = from;
        loop {
            match self.rest() {
                [b'"', b'"', ..] => self.at += 2,
                [b'"', ..] => {
                    let name = self.sql.get(from..self.at).unwrap_or_default();
                    self.at += 1;
                    return Ok(name);
                }
                [] => return Err(Unterminated),
                _ => self.at += 1,
            }
        }
    }

    /// `$1`, or `$tag$ … $tag$`.
    fn dollar(&mut self) -> Result<(), Unterminated> {
        let rest = self.rest();
        let inner = rest.get(1..).unwrap_or_default();
        let tag = inner.iter().take_while(|b| is_word(**b) && **b != b'$').count();
        let is_parameter = inner.first().is_some_and(u8::is_ascii_digit);
        if is_parameter || inner.get(tag) != Some(&b'$') {
            self.at += 1 + if is_parameter { tag } else { 0 };
            return Ok(());
        }
        let fence = rest.get(..tag + 2).unwrap_or_default();
        let body = rest.get(fence.len()..).unwrap_or_default();
        let end = body.windows(fence.len()).position(|w| w == fence).ok_or(Unterminated)?;
        self.at += fence.len() + end + fence.len();
        Ok(())
    }
}

/// What a byte may be: looked up, as every byte of every text is.
const CLASSES: [u8; 256] = {
    let mut classes = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        // The range is that of a byte.
        let b = byte as u8;
        if b.is_ascii_alphabetic() || b == b'_' || b >= 0x80 {
            classes[byte] = START | PART;
        } else if b.is_ascii_digit() || b == b'$' {
            classes[byte] = PART;
        } else if b.is_ascii_whitespace() || b == 0x0B {
            classes[byte] = BLANK;
        }
        byte += 1;
    }
    classes
};
const START: u8 = 1;
const PART: u8 = 2;
const BLANK: u8 = 4;

fn class(b: u8) -> u8 {
    CLASSES.get(usize::from(b)).copied().unwrap_or_default()
}

/// A byte with which a name begins.
pub(super) fn is_word_start(b: u8) -> bool {
    class(b) & START != 0
}

/// White space.
pub(super) fn is_blank(b: u8) -> bool {
    class(b) & BLANK != 0
}

/// A byte of a name.
pub(super) fn is_word(b: u8) -> bool {
    class(b) & PART != 0
}
