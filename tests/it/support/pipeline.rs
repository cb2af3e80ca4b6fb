//! Random batches of protocol messages from a seed: what a client may say that knows every message and no manners.
//!
//! The answers of a batch are over when the last of [`marker`]'s replies has come: an extended message and a Sync that
//! PostgreSQL answers alike in every state.

use super::raw::Message;
use std::collections::BTreeSet;

/// More Closes in a row than any batch has.
const MARKS: usize = 5;
/// The name under which statements with RETURNING stand, and no others.
const RETURNING: &str = "s4";
/// Greatest number of messages in a batch.
const MESSAGES: u64 = 14;

/// Numbers from a seed (SplitMix64, <https://prng.di.unimi.it/splitmix64.c>).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn pick<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[usize::try_from(self.below(of.len() as u64)).expect("an index")]
    }
}

/// One message of a client.
pub fn message(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length = 4 + parts.iter().map(|p| p.len()).sum::<usize>();
    let mut out = vec![tag];
    out.extend_from_slice(&u32::try_from(length).expect("short").to_be_bytes());
    parts.iter().for_each(|p| out.extend_from_slice(p));
    out
}

/// What ends every batch.
pub fn marker() -> Vec<u8> {
    let mut out = message(b'S', &[]);
    (0..MARKS).for_each(|_| out.extend(message(b'C', &[b"Pno such portal\0"])));
    out.extend(message(b'S', &[]));
    out
}

/// True when the marker's replies have come.
pub fn is_over(answers: &[Message]) -> bool {
    let marks = answers.len().checked_sub(MARKS + 1).map(|at| &answers[at..]);
    marks.is_some_and(|m| m[MARKS].tag == b'Z' && m[..MARKS].iter().all(|m| m.tag == b'3'))
}

/// The answers without what may differ in transaction pooling: in a failed transaction a server that does not hold a
/// statement cannot be made to prepare it, so that "current transaction is aborted" takes the place of other errors and of
/// a description. `status` is that of the last ReadyForQuery before, and after. `several`: of nodes, of which one may hold the
/// statement and another one not, so that nothing is bound where PostgreSQL would bind.
pub fn forgiven(answers: &[Message], status: &mut u8, several: bool) -> Vec<Message> {
    let refusal = || Message { tag: b'E', body: b"in a failed transaction".to_vec() };
    let mut kept: Vec<Message> = Vec::new();
    let mut before = 0;
    for answer in answers {
        match (answer.tag, *status) {
            // Of a portal, which another node may have.
            (b'n' | b'T', b'E') if several && before != b't' => kept.push(refusal()),
            (b't' | b'E', b'E') if !answer.body.windows(7).any(|w| w == b"\0VFATAL") => kept.push(refusal()),
            (b'n' | b'T', b'E') => {}
            (b'2', b'E') if several => {}
            _ => kept.push(answer.clone()),
        }
        before = answer.tag;
        if answer.tag == b'Z' {
            *status = answer.body[0];
        }
    }
    kept
}

/// A client's habits: which table is its own, and what it remembers between batches.
pub struct Client {
    pub random: Random,
    table: String,
    /// The unnamed statement is there for certain. What an error leaves of it is no question for this test.
    unnamed: bool,
    /// A transaction is open and has not failed.
    in_block: bool,
    closes: usize,
    /// The unnamed statement has RETURNING.
    unnamed_returns: bool,
    /// Portals that may be of a statement with RETURNING.
    returning: BTreeSet<&'static str>,
    /// Behind pgmend are several nodes.
    several: bool,
}

impl Client {
    pub fn new(seed: u64, number: u64) -> Client {
        let random = Random(seed.wrapping_mul(1000).wrapping_add(number));
        Client {
            random,
            table: format!("t{number}"),
            unnamed: false,
            in_block: false,
            closes: 0,
            unnamed_returns: false,
            returning: BTreeSet::new(),
            several: false,
        }
    }

    /// Leaves out what PostgreSQL does otherwise where there is no transaction block, and pgmend has opened one for all nodes:
    /// it warns of SET LOCAL in a pipeline (until version 16), and a simple Query does not see what an Execute before it has
    /// changed unless a Parse or Sync comes between (`CommandCounterIncrement`, as in `push_execute`).
    pub fn of_several(seed: u64, number: u64) -> Client {
        Client { several: true, ..Client::new(seed, number) }
    }

    /// The table that the client works on, with twenty rows.
    pub fn setup(number: u64) -> String {
        format!(
            "CREATE TABLE t{number} (id int PRIMARY KEY, name text); \
             INSERT INTO t{number} SELECT i, 'n' || i FROM generate_series(1, 20) i;"
        )
    }

    /// The answers to the last batch have come.
    pub fn learn(&mut self, answers: &[Message]) {
        if answers.iter().any(|m| m.tag == b'E') {
            self.unnamed = false;
        }
        self.in_block = answers.last().is_some_and(|m| m.tag == b'Z' && m.body == b"T");
    }

    /// The messages of one batch, without the marker.
    pub fn batch(&mut self) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        self.closes = 0;
        if !self.in_block {
            self.returning.clear();
        }
        for _ in 0..=self.random.below(MESSAGES) {
            let before = all.len();
            self.add(&mut all);
            // An error may have skipped its Parse.
            self.unnamed &= all[before..].iter().all(|m: &Vec<u8>| m[0] != b'S');
            let closes = all[before..].iter().all(|m: &Vec<u8>| m[0] == b'C' || m[0] == b'H');
            self.closes = if closes { self.closes + 1 } else { 0 };
        }
        all
    }

    fn add(&mut self, all: &mut Vec<Vec<u8>>) {
        match self.random.below(22) {
            0..=2 => self.simple(all),
            3..=6 => self.whole_query(all),
            7..=8 => {
                let name = self.name(4);
                self.parse(&name, all);
            }
            9..=10 => {
                let name = self.name(4);
                self.bind(&name, all);
            }
            11 => self.execute(all),
            12..=13 => self.describe(all),
            14 if self.closes < MARKS - 2 => self.close(all),
            15 => all.push(message(b'H', &[])),
            16 if self.random.one_in(3) => self.function(all),
            17 if self.random.one_in(2) => self.copy_in(all),
            18 if self.random.one_in(4) => all.push(message(b'c', &[])),
            _ => all.push(message(b'S', &[])),
        }
    }

    fn name(&mut self, names: u64) -> String {
        let n = self.random.below(names + 1);
        if n == 0 { String::new() } else { format!("s{n}") }
    }

    fn portal(&mut self) -> &'static str {
        self.random.pick(&["", "", "p1", "p2"])
    }

    fn sql(&mut self) -> String {
        let text = self.random.pick(&[
            "SELECT 1",
            "SELECT $1::int4 + 1",
            "SELECT $1::int4 + 1",
            "SELECT id, name FROM # WHERE id < $1 ORDER BY id",
            "SELECT id, name FROM # WHERE id < $1 ORDER BY id",
            "SELECT count(*) FROM # WHERE name = $1",
            "INSERT INTO # VALUES ($1, $2)",
            "UPDATE # SET name = $2 WHERE id = $1",
            "SELECT 10 / (count(*) - $1::int4) FROM generate_series(1, 3)",
            "SELECT * FROM missing",
            "SELEKT 1",
            "SELECT generate_series(1, 7)",
            "SELECT $1 || repeat('x', 3000)",
            "BEGIN",
            "COMMIT",
            "COMMIT",
            "ROLLBACK",
            "SAVEPOINT a",
            "ROLLBACK TO a",
            "SHOW work_mem",
            "SET work_mem = '5MB'",
            "COPY (TABLE # ORDER BY id) TO STDOUT",
            "TABLE # ORDER BY id",
        ]);
        text.replace('#', &self.table)
    }

    fn sql_returning(&mut self) -> String {
        let text = self.random.pick(&[
            "INSERT INTO # VALUES ($1, 'x') ON CONFLICT (id) DO UPDATE SET name = 'y' RETURNING *",
            "DELETE FROM # WHERE id = $1 RETURNING name",
            "DELETE FROM # RETURNING missing",
        ]);
        text.replace('#', &self.table)
    }

    fn simple(&mut self, all: &mut Vec<Vec<u8>>) {
        let sql = match self.random.below(12) {
            0 => "SELECT 1; SELECT 2".into(),
            1 => format!("BEGIN; SELECT count(*) FROM {}", self.table),
            2 => format!("INSERT INTO {0} VALUES (50, 'a'); INSERT INTO {0} VALUES (50, 'b')", self.table),
            3 => "SELECT 1; SELECT 1/0; SELECT 3".into(),
            4 => format!("COPY (TABLE {} ORDER BY id) TO STDOUT; SELECT 5", self.table),
            5 => self
                .random
                .pick(&[
                    "DISCARD ALL",
                    "DEALLOCATE ALL",
                    "DEALLOCATE s1",
                    "DEALLOCATE s2",
                    "SET TimeZone = 'Asia/Tokyo'",
                    "RESET ALL",
                ])
                .into(),
            6 => self.random.pick(&["SET LOCAL TimeZone = 'UTC'", "SHOW TimeZone", "SHOW work_mem", ""]).into(),
            7 => self.sql_returning(),
            _ => self.sql(),
        };
        let sql = if self.several { sql.replace("SET LOCAL TimeZone = 'UTC'", "SHOW TimeZone") } else { sql };
        self.unnamed = false;
        if self.several {
            all.push(message(b'S', &[]));
        }
        if sql.starts_with("DE") {
            // Skipped after an error it would be the one DEALLOCATE that pgmend takes for done.
            all.push(message(b'S', &[]));
        }
        all.push(message(b'Q', &[sql.as_bytes(), b"\0"]));
    }

    /// As drivers do it.
    fn whole_query(&mut self, all: &mut Vec<Vec<u8>>) {
        let name = self.name(4);
        if name.is_empty() || self.random.one_in(2) {
            self.parse(&name, all);
            if self.random.one_in(2) {
                all.push(message(b'D', &[b"S", name.as_bytes(), b"\0"]));
            }
        }
        if self.random.one_in(6) {
            all.push(message(b'H', &[]));
        }
        let portal = self.bind(&name, all);
        if self.random.one_in(2) {
            all.push(message(b'D', &[b"P", portal.as_bytes(), b"\0"]));
        }
        for _ in 0..=self.random.below(3) / 2 {
            let rows = [0, 0, 1, 3][usize::try_from(self.random.below(4)).expect("an index")];
            self.push_execute(portal, rows, all);
        }
        if !self.random.one_in(4) {
            all.push(message(b'S', &[]));
        }
    }

    fn parse(&mut self, name: &str, all: &mut Vec<Vec<u8>>) {
        let returns = name == RETURNING || name.is_empty() && self.random.one_in(8);
        let sql = if returns { self.sql_returning() } else { self.sql() };
        if name.is_empty() {
            self.unnamed = true;
            self.unnamed_returns = returns;
        }
        let types: &[u8] = if self.random.one_in(8) { &[0, 1, 0, 0, 0, 23] } else { &[0, 0] };
        all.push(message(b'P', &[name.as_bytes(), b"\0", sql.as_bytes(), b"\0", types]));
    }

    fn bind(&mut self, name: &str, all: &mut Vec<Vec<u8>>) -> &'static str {
        let portal = self.portal();
        if name.is_empty() && !self.unnamed {
            self.parse("", all);
        }
        let count = [0_u16, 1, 1, 1, 2][usize::try_from(self.random.below(5)).expect("an index")];
        let mut values = Vec::new();
        for _ in 0..count {
            let value = match self.random.below(12) {
                0 => "3".to_owned(),
                1 => "x".to_owned(),
                2 => "z".repeat(9000),
                _ => self.random.below(30).to_string(),
            };
            values.extend(u32::try_from(value.len()).expect("short").to_be_bytes());
            values.extend(value.bytes());
        }
        if name == RETURNING || name.is_empty() && self.unnamed_returns {
            self.returning.insert(portal);
        }
        let binary: &[u8] = if self.random.one_in(5) { &[0, 1, 0, 1] } else { &[0, 0] };
        let parts: &[&[u8]] =
            &[portal.as_bytes(), b"\0", name.as_bytes(), b"\0\0\0", &count.to_be_bytes(), &values, binary];
        all.push(message(b'B', parts));
        portal
    }

    /// Goes on with a portal of an earlier message. With the unnamed one only where no simple Query can have failed before in
    /// the transaction: one that fails while it runs leaves its portal behind, whose plans stood in memory that PostgreSQL 15
    /// has freed by then (`exec_simple_query` puts nothing of them into the portal), and Execute reads them before it finds
    /// that the transaction has failed. The server crashes by that, whoever sends it.
    fn execute(&mut self, all: &mut Vec<Vec<u8>>) {
        let rows = u32::try_from(self.random.below(3)).expect("small");
        let portal = self.portal();
        if portal.is_empty() && !(self.in_block && all.is_empty()) {
            return;
        }
        self.push_execute(portal, rows, all);
    }

    /// A statement with RETURNING is run to its end whatever the limit, but where the limit suspends its portal PostgreSQL
    /// lets the next statement see what it did only if a Parse comes between (`CommandCounterIncrement` in
    /// `exec_parse_message`): pgmend's own would be one.
    fn push_execute(&mut self, portal: &str, rows: u32, all: &mut Vec<Vec<u8>>) {
        let rows = if self.returning.contains(portal) { 0 } else { rows };
        all.push(message(b'E', &[portal.as_bytes(), b"\0", &rows.to_be_bytes()]));
    }

    fn describe(&mut self, all: &mut Vec<Vec<u8>>) {
        let name = self.name(4);
        if self.random.one_in(3) {
            let portal = self.portal();
            // An unnamed portal that a statement on another node has taken the place of is described all the same.
            match self.several {
                true if portal.is_empty() => {}
                true => all.extend([b'S', b'D', b'S'].map(|tag| match tag {
                    // By itself: see `forgiven`.
                    b'D' => message(tag, &[b"P", portal.as_bytes(), b"\0"]),
                    _ => message(tag, &[]),
                })),
                false => all.push(message(b'D', &[b"P", portal.as_bytes(), b"\0"])),
            }
        } else if !name.is_empty() {
            // By itself: see `forgiven`.
            all.push(message(b'S', &[]));
            all.push(message(b'D', &[b"S", name.as_bytes(), b"\0"]));
            all.push(message(b'S', &[]));
        }
    }

    fn close(&mut self, all: &mut Vec<Vec<u8>>) {
        let name = self.name(5);
        if self.random.one_in(4) {
            let portal = self.portal();
            all.push(message(b'C', &[b"P", portal.as_bytes(), b"\0"]));
        } else {
            self.unnamed &= !name.is_empty();
            all.push(message(b'C', &[b"S", name.as_bytes(), b"\0"]));
        }
    }

    /// abs(int4), in text or with an argument that is no number.
    fn function(&mut self, all: &mut Vec<Vec<u8>>) {
        let argument = self.random.pick(&["-5", "7", "x"]);
        let length = u32::try_from(argument.len()).expect("short").to_be_bytes();
        let oid = 1397_u32.to_be_bytes();
        all.push(message(b'F', &[&oid, &[0, 0, 0, 1], &length, argument.as_bytes(), &[0, 0]]));
    }

    /// COPY FROM with all that may come in the middle of it.
    fn copy_in(&mut self, all: &mut Vec<Vec<u8>>) {
        let sql = format!("COPY {} FROM STDIN", self.table);
        if self.random.one_in(2) {
            self.unnamed = false;
            all.push(message(b'Q', &[sql.as_bytes(), b"\0"]));
        } else {
            (self.unnamed, self.unnamed_returns) = (true, false);
            all.push(message(b'P', &[b"\0", sql.as_bytes(), b"\0\0\0"]));
            all.push(message(b'B', &[b"\0\0\0\0\0\0\0\0"]));
            all.push(message(b'E', &[b"\0\0\0\0\0"]));
            if self.random.one_in(2) {
                all.push(message(b'S', &[]));
            }
        }
        let mut bad = false;
        for _ in 0..self.random.below(4) {
            let id = 100 + self.random.below(200);
            bad |= self.random.one_in(9);
            let line = if bad { "no number\n".to_owned() } else { format!("{id}\tcopied\n") };
            let at = usize::try_from(self.random.below(line.len() as u64)).expect("an index");
            all.push(message(b'd', &[&line.as_bytes()[..at]]));
            all.push(message(b'd', &[&line.as_bytes()[at..]]));
            match self.random.below(12) {
                0 => all.push(message(b'H', &[])),
                // Whether the server reads this Sync as part of the COPY or after its failure is not to be known from
                // outside; drivers send none behind data.
                1 if !bad => all.push(message(b'S', &[])),
                2 => all.push(message(b'Q', &[b"SELECT 'in the middle'\0"])),
                _ => {}
            }
        }
        match self.random.below(8) {
            0 => all.push(message(b'f', &[b"changed my mind\0"])),
            _ => all.push(message(b'c', &[])),
        }
        if self.random.one_in(2) {
            all.push(message(b'S', &[]));
        }
    }
}
