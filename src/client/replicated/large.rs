//! Large objects whose number the server would choose, each node another one: the fast-path calls of `libpq`
//! (`lo_creat`, and `lo_create` of 0) get a number from pgmend, the same on all nodes, and so do such calls in SQL, which
//! read it from a setting.
//!
//! Numbers are drawn by chance among those that are free on the main node. Two transactions that draw the same one meet
//! at the unique index of `pg_largeobject_metadata`, on the main node first: nothing has to be locked for it.

use super::session::{Session, Standing, Told};
use crate::client::fault::Fault;
use crate::net::Stream;
use crate::routing::number_setting;
use crate::wire::backend::{self, ErrorFields};
use crate::wire::frame;
use std::borrow::Cow;

/// `pg_proc.oid` of `lo_creat(int4)`, the same since 1996.
const LO_CREAT: u32 = 957;
/// Of `lo_create(oid)`.
const LO_CREATE: u32 = 715;
/// Numbers below are PostgreSQL's own (`FirstNormalObjectId`).
const FIRST: u32 = 16_384;
/// Numbers that are drawn beyond those that are wanted.
const DRAWN: usize = 16;

/// A FunctionCall's parts, as far as they are of interest.
#[derive(Debug, PartialEq, Eq)]
struct Call<'a> {
    function: u32,
    /// The argument's format: binary.
    binary: bool,
    /// The only argument; `None`: NULL.
    argument: Option<&'a [u8]>,
    /// The format of the result.
    result: u16,
}

/// Reads a call of a function with one argument.
fn read(body: &[u8]) -> Option<Call<'_>> {
    let (function, rest) = body.split_first_chunk::<4>()?;
    let (count, mut rest) = rest.split_first_chunk::<2>()?;
    let mut binary = false;
    for _ in 0..u16::from_be_bytes(*count) {
        let (format, behind) = rest.split_first_chunk::<2>()?;
        binary = u16::from_be_bytes(*format) == 1;
        rest = behind;
    }
    let (arguments, rest) = rest.split_first_chunk::<2>()?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let (argument, rest) = match i32::from_be_bytes(*length) {
        -1 => (None, rest),
        length => rest.split_at_checked(usize::try_from(length).ok()?).map(|(value, rest)| (Some(value), rest))?,
    };
    let (result, rest) = rest.split_first_chunk::<2>()?;
    let whole = u16::from_be_bytes(*arguments) == 1 && rest.is_empty();
    whole.then(|| Call {
        function: u32::from_be_bytes(*function),
        binary,
        argument,
        result: u16::from_be_bytes(*result),
    })
}

/// True when the call leaves the number to the server.
fn leaves_number(call: &Call<'_>) -> bool {
    let is_zero = |value: &[u8]| match call.binary {
        true => value == [0; 4],
        false => std::str::from_utf8(value).is_ok_and(|text| text.trim().parse() == Ok(0)),
    };
    match call.function {
        LO_CREAT => call.argument.is_some(),
        LO_CREATE => call.argument.is_some_and(is_zero),
        _ => false,
    }
}

/// The call of `lo_create` that makes an object of this number: its whole frame.
fn numbered(call: &Call<'_>, number: u32) -> Vec<u8> {
    let mut body = LO_CREATE.to_be_bytes().to_vec();
    body.extend_from_slice(&1_u16.to_be_bytes());
    body.extend_from_slice(&1_u16.to_be_bytes());
    body.extend_from_slice(&1_u16.to_be_bytes());
    body.extend_from_slice(&4_u32.to_be_bytes());
    body.extend_from_slice(&number.to_be_bytes());
    body.extend_from_slice(&call.result.to_be_bytes());
    let mut whole = Vec::new();
    backend::raw(&mut whole, b'F', &body);
    whole
}

impl Session {
    /// A function call as all nodes get it. The inner error is the client's.
    pub(super) async fn with_number<'a>(&mut self, client: &mut Stream, whole: &'a [u8]) -> Told<Cow<'a, [u8]>> {
        let call = whole.get(frame::HEADER..).and_then(read).filter(leaves_number);
        let Some(call) = call.filter(|_| self.standing != Standing::Failed) else {
            return Ok(Ok(Cow::Borrowed(whole)));
        };
        if self.standing != Standing::None
            && let Err(error) = self.take_snapshot(client).await?
        {
            return Ok(Err(error));
        }
        let number = match self.draw(client, 1).await? {
            Ok(numbers) => numbers.first().copied().unwrap_or_default(),
            Err(error) => return Ok(Err(error)),
        };
        Ok(Ok(Cow::Owned(numbered(&call, number))))
    }

    /// So many numbers that are free on the main node. The inner error is the client's.
    pub(super) async fn draw(&mut self, client: &mut Stream, count: usize) -> Told<Vec<u32>> {
        if count == 0 {
            return Ok(Ok(Vec::new()));
        }
        let mut random = vec![0; (DRAWN + count) * 4];
        getrandom::fill(&mut random).map_err(|e| Fault::Limit(format!("no random numbers: {e}")))?;
        let rows = match self.ask_main(client, free_of(&random, count)).await? {
            Ok(rows) => rows,
            Err(error) => return Ok(Err(error)),
        };
        let numbers: Vec<u32> = rows.iter().filter_map(|row| row.first()?.as_deref()?.parse().ok()).collect();
        Ok(if numbers.len() == count {
            Ok(numbers)
        } else {
            Err(ErrorFields::error("55000", "no free number was found for a large object").with_hint("Try it again."))
        })
    }
}

/// Tells the nth rewritten call of a statement its number.
pub(super) fn set(nth: usize, number: u32, local: bool) -> String {
    format!("SELECT pg_catalog.set_config('{}', '{number}', {local})", number_setting(nth))
}

/// Takes that back.
pub(super) fn reset(nth: usize) -> String {
    format!("RESET {}", number_setting(nth))
}

/// The first of the numbers that are free. They fit into a signed integer: applications keep them in such columns.
fn free_of(random: &[u8], count: usize) -> String {
    let drawn = random.as_chunks::<4>().0.iter().map(|bytes| {
        let number = u32::from_be_bytes(*bytes) >> 1;
        format!("({})", number.max(FIRST))
    });
    let drawn = drawn.collect::<Vec<_>>().join(", ");
    format!(
        "SELECT DISTINCT d.n FROM (VALUES {drawn}) d(n) WHERE NOT EXISTS (SELECT FROM \
         pg_catalog.pg_largeobject_metadata m WHERE m.oid = d.n::pg_catalog.oid) LIMIT {count}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As libpq sends it: one format for all, binary arguments, a binary result.
    fn call(function: u32, argument: &[u8], binary: u16) -> Vec<u8> {
        let parts: &[&[u8]] = &[
            &function.to_be_bytes(),
            &[0, 1],
            &binary.to_be_bytes(),
            &[0, 1],
            &u32::try_from(argument.len()).unwrap().to_be_bytes(),
            argument,
            &[0, 1],
        ];
        parts.concat()
    }

    #[test]
    fn a_number_that_the_server_would_choose_is_chosen_before() {
        for (function, argument, binary, left) in [
            (957, &[0, 6, 0, 0][..], 1, true),
            (957, b"-1", 0, true),
            (715, &[0, 0, 0, 0], 1, true),
            (715, b" 0 ", 0, true),
            (715, &[0, 0, 0x12, 0x67], 1, false),
            (715, b"4711", 0, false),
            (952, &[0, 0, 0, 0], 1, false),
        ] {
            let body = call(function, argument, binary);
            assert_eq!(read(&body).filter(leaves_number).is_some(), left, "{function} {argument:?}");
        }
        let body = call(957, b"-1", 0);
        let frame = numbered(&read(&body).unwrap(), 70_000);
        assert_eq!(frame.get(frame::HEADER..), Some(call(715, &[0, 1, 0x11, 0x70], 1).as_slice()));
    }

    #[test]
    fn what_is_no_call_of_one_argument_is_left_alone() {
        let whole = call(957, b"-1", 0);
        for length in 0..whole.len() {
            assert_eq!(read(&whole[..length]), None);
        }
        assert_eq!(read(&[whole.as_slice(), b"x"].concat()), None);
        assert_eq!(read(&[0, 0, 3, 0xbd, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xf0, 0, 0]), None);
    }

    #[test]
    fn numbers_are_no_own_ones_of_postgresql_and_not_negative() {
        let sql = free_of(&[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff], 1);
        assert!(sql.contains("(16384), (2147483647)"), "{sql}");
    }
}
