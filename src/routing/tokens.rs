//! The words of a text with their places, by PostgreSQL's own scanner: where a call, a row or an item of a list ends.
//!
//! A parse tree knows where things begin; only the words know where they end.

use pg_query::protobuf::{ScanToken, Token};
use std::ops::Range;

/// The words of one text, comments aside.
pub(super) struct Tokens {
    words: Vec<Word>,
    comments: Vec<Range<usize>>,
}

#[derive(Clone, Copy)]
struct Word {
    start: usize,
    end: usize,
    kind: i32,
}

/// What has been read within one bracket.
#[derive(Clone, Copy, Default)]
struct Level {
    below: usize,
    words: usize,
    sets: usize,
}

impl Level {
    fn depth(self) -> usize {
        self.below + self.words + self.sets
    }
}

const OPEN: i32 = Token::Ascii40 as i32;
const CLOSE: i32 = Token::Ascii41 as i32;
const OPEN_SQUARE: i32 = Token::Ascii91 as i32;
const CLOSE_SQUARE: i32 = Token::Ascii93 as i32;
const COMMA: i32 = Token::Ascii44 as i32;
const DOT: i32 = Token::Ascii46 as i32;
const SEMICOLON: i32 = Token::Ascii59 as i32;

/// Reserved words with which the list of a SELECT or RETURNING ends; none of them can stand in an expression, but for the
/// exceptions of [`Tokens::item_end`].
const ENDS_LIST: &[Token] = &[
    Token::From,
    Token::Into,
    Token::Where,
    Token::GroupP,
    Token::Having,
    Token::Window,
    Token::Union,
    Token::Intersect,
    Token::Except,
    Token::Order,
    Token::Limit,
    Token::Offset,
    Token::Fetch,
    Token::For,
    Token::On,
    Token::Returning,
];

impl Tokens {
    /// The words of a text; `None` when the scanner rejects it.
    pub(super) fn of(sql: &str) -> Option<Tokens> {
        let mut tokens = Tokens { words: Vec::new(), comments: Vec::new() };
        // Without any word the crate makes a slice of no address.
        if sql.bytes().all(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c)) {
            return Some(tokens);
        }
        for ScanToken { start, end, token, .. } in pg_query::scan_tokens(sql).ok()? {
            let (start, end) = (usize::try_from(start).ok()?, usize::try_from(end).ok()?);
            if token == Token::SqlComment as i32 || token == Token::CComment as i32 {
                tokens.comments.push(start..end);
            } else {
                tokens.words.push(Word { start, end, kind: token });
            }
        }
        Some(tokens)
    }

    /// How deep the tree of the text can be at most, in words: within a bracket each word since the last comma can go one
    /// level deeper, and each UNION, INTERSECT or EXCEPT, whose branches have commas of their own.
    pub(super) fn depth(&self) -> usize {
        const SETS: [Token; 3] = [Token::Union, Token::Intersect, Token::Except];
        let mut deepest = 0;
        let mut around = Vec::new();
        let mut here = Level::default();
        for word in &self.words {
            here.words += 1;
            match word.kind {
                OPEN | OPEN_SQUARE => {
                    around.push(here);
                    here = Level { below: here.depth(), ..Level::default() };
                }
                CLOSE | CLOSE_SQUARE => here = around.pop().unwrap_or_default(),
                COMMA => here.words = 0,
                SEMICOLON => here = Level { below: here.below, ..Level::default() },
                kind => here.sets += usize::from(SETS.iter().any(|set| *set as i32 == kind)),
            }
            deepest = deepest.max(here.depth());
        }
        deepest
    }

    /// The words that may be names, in the text's own spelling; literals and signs are left out.
    pub(super) fn names<'a>(&'a self, sql: &'a str) -> impl Iterator<Item = &'a str> + 'a {
        let is_name = |word: &&Word| word.kind == Token::Ident as i32 || word.kind >= Token::AbortP as i32;
        let named = self.words.iter().filter(is_name);
        named.filter_map(|word| sql.get(word.start..word.end))
    }

    /// The comments that stand between `from` and the next word.
    pub(super) fn comments_from(&self, from: usize) -> impl Iterator<Item = Range<usize>> + '_ {
        let until = self.word(self.after(from)).map_or(usize::MAX, |word| word.start);
        self.comments.iter().filter(move |c| c.start >= from && c.end <= until).cloned()
    }

    /// The number of the word that begins exactly at `at`.
    pub(super) fn at(&self, at: usize) -> Option<usize> {
        self.words.binary_search_by_key(&at, |word| word.start).ok()
    }

    /// Where the last word before `end` ends: comments behind a statement are not its own.
    pub(super) fn last_end(&self, end: usize) -> Option<usize> {
        self.after(end).checked_sub(1).and_then(|last| self.word(last)).map(|last| last.end)
    }

    /// Where the text of a statement begins whose first word is at `at`: behind the semicolon before it, with its comments.
    pub(super) fn behind_semicolon(&self, at: usize) -> usize {
        match self.after(at).checked_sub(1).and_then(|before| self.word(before)) {
            Some(before) if before.kind == SEMICOLON => before.end,
            Some(_) => at,
            None => 0,
        }
    }

    /// The number of the first word that begins at or after `at`.
    pub(super) fn after(&self, at: usize) -> usize {
        self.words.partition_point(|word| word.start < at)
    }

    /// Where a word begins and ends.
    pub(super) fn range(&self, index: usize) -> Option<Range<usize>> {
        self.word(index).map(|word| word.start..word.end)
    }

    /// The text of a literal that begins at `at`, with the UESCAPE behind it if there is one.
    pub(super) fn literal(&self, at: usize) -> Option<Range<usize>> {
        let index = self.at(at)?;
        let last = if self.is(index + 1, Token::Uescape) { index + 2 } else { index };
        Some(at..self.range(last)?.end)
    }

    /// True when the word is this one.
    pub(super) fn is(&self, index: usize, token: Token) -> bool {
        self.word(index).is_some_and(|word| word.kind == token as i32)
    }

    /// True when the word is an opening round bracket.
    pub(super) fn opens(&self, index: usize) -> bool {
        self.kind(index) == OPEN
    }

    /// True when the word is a comma.
    pub(super) fn comma(&self, index: usize) -> bool {
        self.kind(index) == COMMA
    }

    /// The bracket that closes the one at `open`.
    pub(super) fn closing(&self, open: usize) -> Option<usize> {
        let mut depth = 0_usize;
        for (offset, word) in self.words.get(open..)?.iter().enumerate() {
            match word.kind {
                OPEN | OPEN_SQUARE => depth += 1,
                CLOSE | CLOSE_SQUARE => depth = depth.checked_sub(1)?,
                _ => {}
            }
            if depth == 0 {
                return Some(open + offset);
            }
        }
        None
    }

    /// The number of the word behind a name with its dots that begins at `index`.
    pub(super) fn behind_name(&self, index: usize) -> usize {
        let mut behind = index + 1;
        while self.kind(behind) == DOT {
            behind += 2;
        }
        behind
    }

    /// The text of a call: from its name to its closing bracket. `at` is where the name begins.
    pub(super) fn call(&self, at: usize) -> Option<Range<usize>> {
        let open = self.behind_name(self.at(at)?);
        if !self.opens(open) {
            return None;
        }
        Some(at..self.range(self.closing(open)?)?.end)
    }

    /// One word, with the round brackets behind it if there are any.
    pub(super) fn word_and_brackets(&self, at: usize) -> Option<Range<usize>> {
        let index = self.at(at)?;
        let last = if self.opens(index + 1) { self.closing(index + 1)? } else { index };
        Some(at..self.range(last)?.end)
    }

    /// Where the item of a SELECT's or RETURNING's list ends that begins at `at`.
    pub(super) fn item_end(&self, at: usize) -> Option<usize> {
        let first = self.at(at)?;
        let mut index = first;
        loop {
            match self.kind(index) {
                OPEN | OPEN_SQUARE => index = self.closing(index)?,
                CLOSE | CLOSE_SQUARE | COMMA | SEMICOLON | 0 => break,
                // Behind these any word is a name.
                DOT => index += 1,
                kind if kind == Token::As as i32 => index += 1,
                kind if ENDS_LIST.iter().any(|end| *end as i32 == kind) && !self.within_expression(index) => break,
                _ => {}
            }
            index += 1;
        }
        if index == first { None } else { self.range(index - 1).map(|last| last.end) }
    }

    /// `IS DISTINCT FROM` and `WITHIN GROUP`.
    fn within_expression(&self, index: usize) -> bool {
        let Some(before) = index.checked_sub(1) else { return false };
        (self.is(index, Token::From)
            && self.is(before, Token::Distinct)
            && index >= 2
            && !self.is(index - 2, Token::Select))
            || (self.is(index, Token::GroupP) && self.is(before, Token::Within))
    }

    fn word(&self, index: usize) -> Option<Word> {
        self.words.get(index).copied()
    }

    /// 0 behind the last word.
    fn kind(&self, index: usize) -> i32 {
        self.word(index).map_or(0, |word| word.kind)
    }
}
