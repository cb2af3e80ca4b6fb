//! What one node answered: frames sifted into what the client may get, what is pgmend's own, and a summary by which nodes
//! are compared. Pure.

use super::texts::Needs;
use crate::client::fault::Fault;
use crate::server::Row;
use crate::wire::backend::{self, ErrorFields};
use crate::wire::frame;
use std::hash::{DefaultHasher, Hasher};

/// A frame that must be held whole (all but rows and COPY data) is at most this long.
const MAX_HELD_FRAME: usize = 16 << 20;
/// Rows that an own statement may bring.
const MAX_OWN_ROWS: usize = 10_000;
/// Commands in one answer that are remembered one by one; a longer answer is compared as far as this.
const MAX_MARKS: usize = 10_000;

/// SQLSTATE of the warning that a transaction is in progress already.
const ACTIVE_TRANSACTION: &str = "25001";

/// One reply in the order of the answer. Rows are counted with their command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mark {
    /// A command's end: its tag as it came, and the rows before it.
    Command {
        /// `INSERT 0 1`.
        tag: String,
        /// How many rows.
        rows: u64,
        /// A sum over the rows that does not depend on their order.
        digest: u64,
    },
    /// An empty query.
    Empty,
    /// COPY data is awaited.
    CopyIn,
    /// A portal with more rows.
    Suspended,
    /// What a function call gave.
    Value(u64),
    /// The error that ended it.
    Error(Box<ErrorFields>),
}

/// The answer of a node to what it was sent.
#[derive(Debug, Default)]
pub struct Account {
    /// What happened, in order, without what is pgmend's own.
    pub marks: Vec<Mark>,
    /// Answers of pgmend's own statements before and after the client's: their rows.
    pub own: Vec<Vec<Row>>,
    /// The first error, also of an own statement.
    pub error: Option<ErrorFields>,
    /// The connection ended.
    pub lost: Option<String>,
    /// Parameters that the server has reported: the bodies of ParameterStatus messages.
    pub reports: Vec<Vec<u8>>,
    /// Messages for the client that say that a Parse, Bind or Close was done.
    pub made: usize,
    /// Rows may differ although nothing is wrong: they are counted and not summed.
    pub blind: bool,
    /// The client is not told that a transaction is open already: to it there was none.
    pub hushed: bool,
    /// ParseComplete messages that are pgmend's own.
    own_parses: usize,
    plan: Plan,
    rows: u64,
    digest: u64,
    /// The row that is half through.
    row: Option<PartRow>,
    own_rows: Vec<Row>,
}

/// How many answers (each up to its ReadyForQuery) are whose.
#[derive(Clone, Copy, Debug, Default)]
struct Plan {
    own_before: usize,
    client: usize,
}

#[derive(Debug)]
struct PartRow {
    left: usize,
    hasher: DefaultHasher,
}

impl Account {
    /// An answer that begins with so many of pgmend's own, has so many of the client's, and ends with pgmend's own.
    pub fn new(own_before: usize, client: usize) -> Account {
        Account { plan: Plan { own_before, client }, ..Account::default() }
    }

    /// Nothing of the answer has come.
    pub fn is_untouched(&self) -> bool {
        self.marks.is_empty() && self.rows == 0 && self.row.is_none() && self.made == 0 && self.own.is_empty()
    }

    /// What is known of the answer beforehand.
    pub fn expect(&mut self, needs: &Needs) {
        self.blind = needs.blind;
        self.own_parses = needs.own_parses;
    }

    /// Takes whole frames (rows also in part) from the front of `answer`; those for the client are added to `out`, without
    /// ReadyForQuery. Returns the bytes taken.
    pub fn take(&mut self, answer: &[u8], out: &mut Vec<u8>) -> Result<usize, Fault> {
        let mut at = 0;
        loop {
            let rest = answer.get(at..).unwrap_or_default();
            if let Some(row) = &mut self.row {
                let count = row.left.min(rest.len());
                let part = rest.get(..count).unwrap_or_default();
                row.hasher.write(part);
                out.extend_from_slice(part);
                row.left -= count;
                at += count;
                if row.left > 0 {
                    return Ok(at);
                }
                let sum = if self.blind { 0 } else { row.hasher.finish() };
                self.digest = self.digest.wrapping_add(sum);
                self.row = None;
                continue;
            }
            let Some(header) = frame::peek(rest).map_err(|e| Fault::ServerProtocol(e.to_string()))? else {
                return Ok(at);
            };
            let is_data = matches!(header.tag, b'D' | b'd') && self.plan.own_before == 0 && self.plan.client > 0;
            if is_data {
                self.rows += u64::from(header.tag == b'D');
                let start = rest.get(..frame::HEADER).unwrap_or_default();
                out.extend_from_slice(start);
                at += frame::HEADER;
                self.row = Some(PartRow { left: header.total - frame::HEADER, hasher: DefaultHasher::new() });
                continue;
            }
            if header.total > MAX_HELD_FRAME {
                return Err(Fault::Limit(format!("a server's message of {} bytes is too long", header.total)));
            }
            let Some(whole) = rest.get(..header.total) else { return Ok(at) };
            self.whole(header.tag, whole, out);
            at += header.total;
        }
    }

    fn whole(&mut self, tag: u8, whole: &[u8], out: &mut Vec<u8>) {
        let body = whole.get(frame::HEADER..).unwrap_or_default();
        let own = self.plan.own_before > 0 || self.plan.client == 0;
        match tag {
            b'Z' if self.plan.own_before > 0 => {
                self.plan.own_before -= 1;
                self.own.push(std::mem::take(&mut self.own_rows));
            }
            b'Z' if self.plan.client > 0 => self.plan.client -= 1,
            b'Z' => self.own.push(std::mem::take(&mut self.own_rows)),
            b'E' => {
                let fields = backend::parse_error(body);
                if matches!(fields.severity.as_str(), "FATAL" | "PANIC") {
                    // The end of this server, and not of the client's session.
                    self.error.get_or_insert(fields);
                } else if self.error.is_none() {
                    self.error = Some(fields.clone());
                    // What failed in pgmend's own statement is the client's answer: there will be no other.
                    out.extend_from_slice(whole);
                    self.mark(Mark::Error(Box::new(fields)));
                } else if own {
                    self.mark(Mark::Error(Box::new(fields)));
                }
            }
            b'D' if own => {
                if let Ok(row) = backend::parse_data_row(body)
                    && self.own_rows.len() < MAX_OWN_ROWS
                {
                    self.own_rows.push(row);
                }
            }
            b'N' if self.hushed && backend::parse_error(body).code == ACTIVE_TRANSACTION => {}
            b'S' if self.reports.len() < MAX_MARKS => self.reports.push(body.to_vec()),
            b'S' => {}
            b'A' | b'N' => out.extend_from_slice(whole),
            _ if own => {}
            b'1' if self.own_parses > 0 => self.own_parses -= 1,
            _ => {
                self.note(tag, body);
                out.extend_from_slice(whole);
            }
        }
    }

    fn note(&mut self, tag: u8, body: &[u8]) {
        match tag {
            b'C' => {
                let text = body.split(|b| *b == 0).next().unwrap_or_default();
                let tag = String::from_utf8_lossy(text).into_owned();
                let (rows, digest) = (std::mem::take(&mut self.rows), std::mem::take(&mut self.digest));
                self.mark(Mark::Command { tag, rows, digest });
            }
            b'I' => self.mark(Mark::Empty),
            b'G' => self.mark(Mark::CopyIn),
            b's' => self.mark(Mark::Suspended),
            b'V' => {
                let mut hasher = DefaultHasher::new();
                hasher.write(if self.blind { &[] } else { body });
                self.mark(Mark::Value(hasher.finish()));
            }
            b'1' | b'2' | b'3' => self.made += 1,
            _ => {}
        }
    }

    fn mark(&mut self, mark: Mark) {
        if self.marks.len() < MAX_MARKS {
            self.marks.push(mark);
        }
    }
}

/// Of whole frames those that are no part of an answer: notices, notifications. The client gets them whatever becomes of the
/// answer.
pub fn asides(frames: &[u8]) -> Vec<u8> {
    let (mut kept, mut rest) = (Vec::new(), frames);
    while let Ok(Some(header)) = frame::peek(rest) {
        let Some((whole, behind)) = rest.split_at_checked(header.total) else { break };
        if matches!(header.tag, b'A' | b'N') {
            kept.extend_from_slice(whole);
        }
        rest = behind;
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_part_of_an_answer_outlives_it() {
        let notice = frames(|out| backend::notice_response(out, &ErrorFields::error("01000", "told")));
        let notified = frames(|out| backend::raw(out, b'A', b"\0\0\0\x01channel\0\0"));
        let tag = frames(|out| backend::command_complete(out, "COMMIT"));
        assert_eq!(asides(&[tag.clone(), notice.clone(), notified.clone()].concat()), [notice, notified].concat());
        assert_eq!(asides(&tag[..3]), b"");
    }

    fn frames(build: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut out = Vec::new();
        build(&mut out);
        out
    }

    fn answer(rows: &[&str], tag: &str, status: u8) -> Vec<u8> {
        frames(|out| {
            rows.iter().for_each(|r| backend::data_row(out, &[Some(r)]));
            backend::command_complete(out, tag);
            backend::ready_for_query(out, status);
        })
    }

    #[test]
    fn own_answers_are_kept_from_the_client() {
        let all = [answer(&[], "BEGIN", b'T'), answer(&["a"], "INSERT 0 1", b'T'), answer(&["4"], "SELECT 1", b'T')];
        let mut account = Account::new(1, 1);
        let mut out = Vec::new();
        let all = all.concat();
        assert_eq!(account.take(&all, &mut out).unwrap(), all.len());
        let expected = frames(|out| {
            backend::data_row(out, &[Some("a")]);
            backend::command_complete(out, "INSERT 0 1");
        });
        assert_eq!(out, expected);
        assert_eq!(account.own, [vec![], vec![vec![Some(b"4".to_vec())]]]);
        assert!(matches!(account.marks.as_slice(), [Mark::Command { tag, rows: 1, .. }] if tag == "INSERT 0 1"));
    }

    #[test]
    fn rows_are_summed_whatever_their_order_and_however_they_come() {
        let digest = |rows: &[&str], step: usize| {
            let all = answer(rows, "UPDATE 2", b'T');
            let mut account = Account::new(0, 1);
            let (mut out, mut pending) = (Vec::new(), Vec::new());
            for part in all.chunks(step) {
                pending.extend_from_slice(part);
                let count = account.take(&pending, &mut out).unwrap();
                pending.drain(..count);
            }
            assert!(pending.is_empty());
            account.marks
        };
        assert_eq!(digest(&["a", "b"], 1000), digest(&["b", "a"], 1));
        assert_ne!(digest(&["a", "b"], 1000), digest(&["a", "c"], 1000));
    }

    #[test]
    fn what_a_function_call_gave_is_compared() {
        let called = |value: &[u8], blind: bool| {
            let answer = frames(|out| {
                backend::raw(out, b'V', value);
                backend::ready_for_query(out, b'T');
            });
            let mut account = Account::new(0, 1);
            account.blind = blind;
            account.take(&answer, &mut Vec::new()).unwrap();
            account.marks
        };
        let (one, other) = (&[0, 0, 0, 1, 7], &[0, 0, 0, 1, 8]);
        assert_eq!(called(one, false), called(one, false));
        assert_ne!(called(one, false), called(other, false));
        assert_eq!(called(one, true), called(other, true), "the operator lets it through");
    }

    #[test]
    fn a_transaction_that_is_pgmends_own_is_no_news() {
        let warned = |code: &str| {
            let fields = ErrorFields { severity: "WARNING".into(), ..ErrorFields::error(code, "already") };
            frames(|out| backend::notice_response(out, &fields))
        };
        let mut account = Account { hushed: true, ..Account::new(0, 1) };
        let mut out = Vec::new();
        let all = [warned("25001"), warned("01000")].concat();
        account.take(&all, &mut out).unwrap();
        assert_eq!(out, warned("01000"));
    }

    #[test]
    fn an_error_of_an_own_statement_is_the_answer() {
        let failed = frames(|out| {
            backend::error_response(out, &ErrorFields::error("55P03", "no lock"));
            backend::ready_for_query(out, b'E');
            backend::error_response(out, &ErrorFields::error("25P02", "aborted"));
            backend::ready_for_query(out, b'E');
        });
        let mut account = Account::new(1, 1);
        let mut out = Vec::new();
        account.take(&failed, &mut out).unwrap();
        assert_eq!(account.error.map(|e| e.code), Some("55P03".to_owned()));
        assert_eq!(out, frames(|out| backend::error_response(out, &ErrorFields::error("55P03", "no lock"))));
    }
}
