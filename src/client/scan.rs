//! Whether a statement may leave something behind in its session: a scan of its words. Text alone does not prove it (a
//! function may do anything), so what is not known to be harmless is suspected, and the server is asked afterwards.
//!
//! The lexical rules are those of <https://www.postgresql.org/docs/current/sql-syntax-lexical.html>, with
//! `standard_conforming_strings` on.

mod harmless;
mod lexer;
mod names;
mod plain;

pub use names::{custom_name, custom_names, deallocated, unlistened};

use harmless::is_harmless;
use lexer::{Lexer, Token, Unterminated};

/// What a text may do to its session: a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Traces(u16);

impl Traces {
    /// Nothing that matters.
    pub const NONE: Traces = Traces(0);
    /// It changes settings until the transaction ends.
    pub const LOCAL: Traces = Traces(1);
    /// It may take something away that an earlier statement left: of interest to a client that has something.
    pub const FREES: Traces = Traces(2);
    /// It changes rows, and so may run triggers.
    pub const WRITES: Traces = Traces(4);
    /// It calls a function that is not known to be harmless.
    pub const CALLS: Traces = Traces(8);
    /// It may change what prepared statements return.
    pub const ALTERS: Traces = Traces(16);
    /// It may make functions.
    pub const CREATES: Traces = Traces(64);
    /// It names a moment (`'now'`, `'today'`), which PostgreSQL makes a value when it analyses the text.
    pub const MOMENT: Traces = Traces(128);
    /// It listens to a channel.
    pub const LISTENS: Traces = Traces(256);
    /// It may leave something: settings, temporary tables, locks, cursors, statements, channels.
    pub const LEAVES: Traces = Traces(32);

    /// True when all of `other` is in it.
    pub fn has(self, other: Traces) -> bool {
        self.0 & other.0 == other.0
    }

    /// True when something of `other` is in it.
    pub fn touches(self, other: Traces) -> bool {
        self.0 & other.0 != 0
    }

    /// Both.
    #[must_use]
    pub const fn with(self, other: Traces) -> Traces {
        Traces(self.0 | other.0)
    }
}

/// Functions of PostgreSQL whose purpose is to leave something; `set_config` is looked at apart.
const GUILTY: &[&[u8]] = &[
    b"set_config",
    b"setseed",
    b"pg_advisory_lock",
    b"pg_advisory_lock_shared",
    b"pg_try_advisory_lock",
    b"pg_try_advisory_lock_shared",
    b"pg_advisory_unlock",
    b"pg_advisory_unlock_shared",
    b"pg_advisory_unlock_all",
    b"query_to_xml",
    b"query_to_xmlschema",
    b"query_to_xml_and_xmlschema",
];

/// The longest word with which a statement begins: `deallocate`, `checkpoint`.
const MAX_FIRST: usize = 10;
/// Names are at most this long in PostgreSQL (`NAMEDATALEN`).
const MAX_NAME: usize = 63;

/// Classifies a text of one or more statements.
pub fn classify(sql: &[u8]) -> Traces {
    if plain::is_plain_select(sql) { Traces::NONE } else { classify_all(sql) }
}

/// The same, word by word.
fn classify_all(sql: &[u8]) -> Traces {
    let mut words = Lexer::new(sql);
    let mut scan = Scan { traces: Traces::NONE, kind: Kind::Start, after_into: false, last: Last::Nothing };
    loop {
        match words.next() {
            Ok(Some(token)) => scan.take(token, &words),
            Ok(None) => return scan.traces,
            Err(Unterminated) => return scan.traces.with(Traces::LEAVES),
        }
    }
}

/// Which statement the scan is in, as far as it matters.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Start,
    Set,
    SetSession,
    Declare,
    Other,
}

/// The token before.
#[derive(Clone, Copy, PartialEq)]
enum Last {
    Nothing,
    /// `INTO` or `COPY`: a table follows, and a parenthesis after it holds columns.
    Into,
    /// The table's name or schema, or the dot between.
    Table,
    /// `schema.`, of a function or a table; true when it is `pg_catalog`.
    Dot(bool),
    Other,
}

struct Scan {
    traces: Traces,
    kind: Kind,
    after_into: bool,
    last: Last,
}

impl Scan {
    fn note(&mut self, traces: Traces) {
        self.traces = self.traces.with(traces);
    }

    fn take(&mut self, token: Token<'_>, rest: &Lexer<'_>) {
        let last = std::mem::replace(&mut self.last, Last::Other);
        match token {
            Token::Symbol(b';') => self.kind = Kind::Start,
            Token::Symbol(b'.') => self.last = if self.after_into { Last::Table } else { last },
            // A statement may begin with parentheses: (SELECT …) UNION …
            Token::Symbol(_) => {}
            Token::Literal => {
                if names_a_moment(rest.token()) {
                    self.note(Traces::MOMENT);
                }
            }
            Token::Quoted(name) => self.name(name, last, rest, true),
            Token::Word(word) => self.word(word, last, rest),
        }
        if !matches!(self.last, Last::Into | Last::Table) {
            self.after_into = false;
        }
    }

    fn word(&mut self, word: &[u8], last: Last, rest: &Lexer<'_>) {
        let is = |known: &[u8]| word.eq_ignore_ascii_case(known);
        match self.kind {
            Kind::Other => {}
            Kind::Start => self.start(word),
            Kind::Set => {
                self.kind = Kind::Other;
                match () {
                    () if is(b"local") => self.note(Traces::LOCAL),
                    () if is(b"transaction") || is(b"constraints") => {}
                    () if is(b"session") => self.kind = Kind::SetSession,
                    () => self.note(Traces::LEAVES),
                }
            }
            Kind::SetSession => self.note(Traces::LEAVES),
            Kind::Declare if is(b"hold") => self.note(Traces::LEAVES),
            Kind::Declare => {}
        }
        if word.len() == 4 && (is(b"into") || is(b"copy")) {
            self.last = Last::Into;
            self.after_into = true;
            return;
        }
        if last == Last::Into && (is(b"temp") || is(b"temporary")) {
            return self.note(Traces::LEAVES);
        }
        self.name(word, last, rest, false);
    }

    /// An identifier: a table after INTO, a schema before a dot, a function before a parenthesis.
    fn name(&mut self, name: &[u8], last: Last, rest: &Lexer<'_>, quoted: bool) {
        if name.eq_ignore_ascii_case(b"pg_temp") {
            return self.note(Traces::LEAVES);
        }
        if self.after_into && matches!(last, Last::Into | Last::Table) {
            self.last = Last::Table;
            return;
        }
        match rest.peek() {
            Some(b'.') => self.last = Last::Dot(name.eq_ignore_ascii_case(b"pg_catalog")),
            Some(b'(') => self.call(name, last, rest, quoted),
            _ => {}
        }
    }

    /// A word before a parenthesis.
    fn call(&mut self, name: &[u8], last: Last, rest: &Lexer<'_>, quoted: bool) {
        let mut lower = [0; MAX_NAME];
        let Some(lower) = lower.get_mut(..name.len()) else { return self.note(Traces::CALLS) };
        lower.copy_from_slice(name);
        if !quoted {
            lower.make_ascii_lowercase();
        }
        if lower == b"set_config" && rest.is_local_set_config() {
            self.note(Traces::LOCAL);
        } else if GUILTY.contains(&&*lower) {
            self.note(Traces::LEAVES);
        } else if quoted || last == Last::Dot(false) || !is_harmless(lower) {
            // A function of a schema of the user's may do anything, whatever its name.
            self.note(Traces::CALLS);
        }
    }

    /// The first word of a statement.
    fn start(&mut self, word: &[u8]) {
        self.kind = Kind::Other;
        let mut lower = [0; MAX_FIRST];
        let Some(lower) = lower.get_mut(..word.len()) else { return self.note(Traces::LEAVES) };
        lower.copy_from_slice(word);
        lower.make_ascii_lowercase();
        match &*lower {
            b"select" | b"values" | b"table" | b"begin" | b"start" | b"commit" | b"end" | b"rollback" | b"abort"
            | b"savepoint" | b"release" | b"fetch" | b"move" | b"show" | b"lock" | b"vacuum" | b"analyze"
            | b"checkpoint" | b"notify" | b"comment" | b"refresh" | b"cluster" | b"reindex" => {}
            // WITH and EXPLAIN may hide one of the others.
            b"insert" | b"update" | b"delete" | b"merge" | b"copy" | b"truncate" | b"with" | b"explain" => {
                self.note(Traces::WRITES);
            }
            b"close" | b"unlisten" | b"deallocate" => self.note(Traces::FREES),
            b"drop" => self.note(Traces::FREES.with(Traces::ALTERS)),
            b"alter" => self.note(Traces::ALTERS),
            b"create" => self.note(Traces::CREATES.with(Traces::LEAVES)),
            b"listen" => self.note(Traces::LEAVES.with(Traces::LISTENS)),
            b"set" => self.kind = Kind::Set,
            b"declare" => self.kind = Kind::Declare,
            _ => self.note(Traces::LEAVES),
        }
    }
}

/// Input of date and time types may hold these words among others (`'today 10:00'`);
/// <https://www.postgresql.org/docs/current/datatype-datetime.html#DATATYPE-DATETIME-SPECIAL-VALUES>.
fn names_a_moment(literal: &[u8]) -> bool {
    const WORDS: [&[u8]; 4] = [b"now", b"today", b"tomorrow", b"yesterday"];
    let begins = |at: &[u8]| WORDS.iter().any(|w| at.get(..w.len()).is_some_and(|a| a.eq_ignore_ascii_case(w)));
    (0..literal.len()).any(|at| {
        let rest = literal.get(at..).unwrap_or_default();
        matches!(rest.first(), Some(b'n' | b'N' | b't' | b'T' | b'y' | b'Y')) && begins(rest)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn all(traces: Traces, texts: &[&str]) {
        for text in texts {
            assert_eq!(classify(text.as_bytes()), traces, "{text}");
        }
    }

    #[test]
    fn ordinary_statements_leave_nothing() {
        all(
            Traces::NONE,
            &[
                "",
                "  ; ;",
                "SELECT abalance FROM pgbench_accounts WHERE aid = 1;",
                "DECLARE c CURSOR FOR SELECT 1",
                "/* set /* x */ */ SELECT $$ set y; listen z $$, $a$ $$ f() $a$, E'it\\'s; set z', 1e5",
                "(SELECT 1) UNION ALL (SELECT cast(2 as numeric(10,2)))",
                "SELECT row_number() OVER (PARTITION BY a) FROM x WHERE (b IN (1, 2) AND c = 'set x') -- set y",
                "SELECT temp, hold FROM weather",
            ],
        );
    }

    #[test]
    fn what_may_leave_something_is_suspected() {
        all(
            Traces::LEAVES,
            &[
                "SET x = 1",
                "set session characteristics as transaction read only",
                "SET SESSION x = 1",
                "begin; /* */ set role bob; commit",
                "RESET ALL",
                "SELECT pg_advisory_lock(1)",
                "SELECT set_config('a.b', 'c', false)",
                "SELECT set_config('a.b', 'true', $1)",
                "SELECT 1 INTO TEMP t",
                "SELECT * INTO pg_temp.t FROM u",
                "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
                "PREPARE p AS SELECT 1",
                "EXECUTE p",
                "DO $$ begin end $$",
                "SELECT 'unterminated",
                "SELECT 1; DISCARD ALL",
                "SELECT pg_catalog.pg_try_advisory_lock (1)",
            ],
        );
    }

    #[test]
    fn the_worst_of_a_text_counts() {
        for text in
            ["CALL p()", "SELECT set_config('a.b', f(1, true), false)", "SELECT set_config('a.b', 'c', true, true)"]
        {
            assert!(classify(text.as_bytes()).has(Traces::LEAVES), "{text}");
        }
    }

    #[test]
    fn writes_and_unknown_functions_are_told_apart() {
        all(
            Traces::WRITES,
            &[
                "UPDATE t SET a = a + $1 WHERE (b IN (1, 2) AND c = 'set x') -- set y",
                "INSERT INTO s.t (a, b) VALUES ($1, now()) ON CONFLICT (a) DO UPDATE SET b = excluded.b RETURNING (a)",
                "insert into \"T\" (a) select count(*) from u where x = any($1)",
                "COPY t (a, b) FROM STDIN WITH (FORMAT csv)",
                "WITH x AS MATERIALIZED (SELECT 1) SELECT 2 FROM x",
            ],
        );
        all(
            Traces::CALLS,
            &["SELECT my_function(1)", "SELECT \"count\"(1)", "SELECT app.count(1)", "SELECT app . count (1)"],
        );
    }

    #[test]
    fn moments_are_found_in_literals() {
        all(
            Traces::MOMENT,
            &["SELECT 'now'::timestamptz", "SELECT date ' Today 10:00'", "SELECT E'yesterday'", "SELECT $$NOW$$"],
        );
        all(Traces::NONE, &["SELECT now(), 'no'", "SELECT today FROM t"]);
    }

    #[test]
    fn what_may_free_something_is_told_apart() {
        all(Traces::FREES, &["CLOSE ALL", "SELECT 1; UNLISTEN *", "DEALLOCATE p"]);
        all(Traces::FREES.with(Traces::ALTERS), &["drop table t"]);
        all(Traces::ALTERS, &["alter table t add b int"]);
        all(Traces::CREATES.with(Traces::LEAVES), &["CREATE TABLE t AS TABLE u"]);
        all(Traces::LISTENS.with(Traces::LEAVES), &["LISTEN c", "begin; listen \"C\"; end"]);
        all(
            Traces::LOCAL,
            &[
                "BEGIN; SET LOCAL work_mem = '1MB'; SET TRANSACTION READ ONLY; END",
                "select set_config('app.user', f.x || ',', true) from f",
                "SELECT pg_catalog.set_config($1, coalesce($2, ''), TRUE)",
            ],
        );
        all(
            Traces::WRITES.with(Traces::CALLS),
            &[
                "INSERT INTO t (a) SELECT leave(1)",
                "EXPLAIN ANALYZE SELECT leave(1)",
                "COPY (SELECT leave(1)) TO STDOUT",
            ],
        );
    }

    #[test]
    fn any_bytes_are_judged() {
        for text in [&b"\xff(\xff"[..], b"$", b"$a", b"\"", b"/*", b"'\\", b"e'\\", b".", b"0x", b"set", b"a.b.c("] {
            let _ = classify(text);
        }
    }
}
