//! `now()` and kin: how each is written so that it gives the same value on every node.
//!
//! pgmend sets `pgmend.now` in each transaction on every node; everything here reads it. The type is always the one that
//! the original has.

use super::tokens::Tokens;
use pg_query::protobuf::{self as pb, SqlValueFunctionOp as Op};
use pg_query::{NodeEnum, NodeRef};
use std::ops::Range;

/// The setting with the moment, in UTC with microseconds.
pub const SETTING: &str = "pgmend.now";

/// A change of a text: what stands there, and what is to stand there. An empty range inserts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Edit {
    pub at: Range<usize>,
    pub with: String,
}

/// The moment as `timestamp with time zone`, or as that cast further.
fn moment(cast: &str) -> String {
    format!("(pg_catalog.current_setting('{SETTING}')::pg_catalog.timestamptz{cast})")
}

/// Words that the types of dates and times take for a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MomentWord {
    Now,
    Today,
    Tomorrow,
    Yesterday,
}

impl MomentWord {
    /// What a literal says, when it says nothing else.
    pub(super) fn of(literal: &str) -> Option<MomentWord> {
        let word = literal.trim_ascii();
        [("now", Self::Now), ("today", Self::Today), ("tomorrow", Self::Tomorrow), ("yesterday", Self::Yesterday)]
            .into_iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(word))
            .map(|(_, moment)| moment)
    }

    /// As `timestamp with time zone`; a cast to any type of dates and times may follow.
    pub(super) fn written(self) -> String {
        match self {
            Self::Now => moment(""),
            Self::Today => moment("::pg_catalog.date::pg_catalog.timestamptz"),
            Self::Tomorrow => format!("({} + 1)::pg_catalog.timestamptz", moment("::pg_catalog.date")),
            Self::Yesterday => format!("({} - 1)::pg_catalog.timestamptz", moment("::pg_catalog.date")),
        }
    }
}

/// True when one of the words stands somewhere in a literal, as in `'today 12:00'`.
pub(super) fn names_a_moment(literal: &str) -> bool {
    literal.split(|c: char| !c.is_ascii_alphabetic()).any(|word| MomentWord::of(word).is_some())
}

/// True when a value, sent as a parameter, is a moment if its type is one of dates and times: its words name one, and there
/// are no others. Of a text that is longer nobody made a date.
pub fn may_be_moment(value: &[u8]) -> bool {
    const LONGEST: usize = 64;
    const BESIDE: &[&str] = &["am", "pm", "z", "utc", "gmt"];
    let Some(text) = std::str::from_utf8(value).ok().filter(|text| text.len() <= LONGEST) else { return false };
    let mut words = text.split(|c: char| !c.is_alphabetic()).filter(|word| !word.is_empty());
    let known =
        |word: &str| MomentWord::of(word).is_some() || BESIDE.iter().any(|beside| beside.eq_ignore_ascii_case(word));
    names_a_moment(text) && words.all(known)
}

/// The types of dates and times, as the grammar names them.
pub(super) fn is_temporal(type_name: &str) -> bool {
    matches!(type_name, "date" | "time" | "timetz" | "timestamp" | "timestamptz" | "abstime")
}

/// The last part of a type's name, when it is one of PostgreSQL's own or is not qualified.
pub(super) fn plain_type(name: &pb::TypeName) -> Option<&str> {
    let parts: Vec<&str> = name.names.iter().filter_map(string).collect();
    match parts.as_slice() {
        [name] | ["pg_catalog", name] => Some(name),
        _ => None,
    }
}

/// The text of a node that is a name.
pub(super) fn string(node: &pb::Node) -> Option<&str> {
    match node.node.as_ref()? {
        NodeEnum::String(name) => Some(&name.sval),
        _ => None,
    }
}

/// The literal and where it stands, when a node is a text constant.
pub(super) fn literal(node: &NodeEnum) -> Option<(&str, usize)> {
    let NodeEnum::AConst(constant) = node else { return None };
    let pb::a_const::Val::Sval(text) = constant.val.as_ref()? else { return None };
    Some((&text.sval, usize::try_from(constant.location).ok()?))
}

/// True for a call of `now()` or of its old names.
pub(super) fn is_now(call: &pb::FuncCall) -> bool {
    let parts: Vec<&str> = call.funcname.iter().filter_map(string).collect();
    matches!(parts.as_slice(), ["now" | "transaction_timestamp"] | ["pg_catalog", "now" | "transaction_timestamp"])
        && call.args.is_empty()
}

/// How a node that is a moment is rewritten; `None` when it is none, `Some(None)` when it is one that cannot be.
pub(super) fn rewritten(node: NodeRef<'_>, tokens: &Tokens) -> Option<Option<Edit>> {
    match node {
        NodeRef::FuncCall(call) if is_now(call) => Some(now_call(call, tokens)),
        NodeRef::FuncCall(call) => cast_call(call, tokens),
        NodeRef::SqlvalueFunction(value) => Some(value_edit(value, value_cast(value)?, tokens)),
        NodeRef::TypeCast(cast) => cast_of_word(cast, tokens),
        _ => None,
    }
}

fn now_call(call: &pb::FuncCall, tokens: &Tokens) -> Option<Edit> {
    Some(Edit { at: tokens.call(usize::try_from(call.location).ok()?)?, with: moment("") })
}

/// `date('now')`: a call that is a cast.
fn cast_call(call: &pb::FuncCall, tokens: &Tokens) -> Option<Option<Edit>> {
    let [argument] = call.args.as_slice() else { return None };
    let (text, at) = literal(argument.node.as_ref()?)?;
    let parts: Vec<&str> = call.funcname.iter().filter_map(string).collect();
    let ([name] | ["pg_catalog", name]) = parts.as_slice() else { return None };
    if !is_temporal(name) || !names_a_moment(text) {
        return None;
    }
    let edit = || Some(Edit { at: tokens.literal(at)?, with: MomentWord::of(text)?.written() });
    Some(edit())
}

/// `'now'::timestamp`, `CAST('now' AS timestamp)`, `timestamp 'now'`.
fn cast_of_word(cast: &pb::TypeCast, tokens: &Tokens) -> Option<Option<Edit>> {
    let (text, at) = cast_literal(cast)?;
    let type_name = cast.type_name.as_ref()?;
    let name = plain_type(type_name)?;
    let edit = || {
        let word = MomentWord::of(text).filter(|_| type_name.array_bounds.is_empty())?.written();
        let constant = tokens.literal(at)?;
        let type_at = usize::try_from(type_name.location).ok()?;
        if type_at > at {
            return Some(Edit { at: constant, with: word });
        }
        // The name of the type comes first and must follow.
        let written = match (name, precision(type_name)) {
            (name, None) => format!("({word}::pg_catalog.{name})"),
            (name, Some(digits)) => format!("({word}::pg_catalog.{name}({digits}))"),
        };
        Some(Edit { at: type_at..constant.end, with: written })
    };
    Some(edit())
}

/// The literal of a cast to a type of dates and times, if it names a moment. Between them may be a cast to text, as
/// PostgreSQL writes down old defaults: `('now'::text)::date`.
pub(super) fn cast_literal(cast: &pb::TypeCast) -> Option<(&str, usize)> {
    let name = plain_type(cast.type_name.as_ref()?)?;
    let (text, at) = match cast.arg.as_ref()?.node.as_ref()? {
        NodeEnum::TypeCast(inner) if plain_type(inner.type_name.as_ref()?)? == "text" => {
            literal(inner.arg.as_ref()?.node.as_ref()?)?
        }
        argument => literal(argument)?,
    };
    (is_temporal(name) && names_a_moment(text)).then_some((text, at))
}

fn precision(type_name: &pb::TypeName) -> Option<i32> {
    let NodeEnum::AConst(constant) = type_name.typmods.first()?.node.as_ref()? else { return None };
    match constant.val.as_ref()? {
        pb::a_const::Val::Ival(number) => Some(number.ival),
        _ => None,
    }
}

/// The cast from the moment to what a word of the standard gives; `None` for those of users and schemas.
fn value_cast(value: &pb::SqlValueFunction) -> Option<String> {
    let digits = if value.typmod < 0 { String::new() } else { format!("({})", value.typmod) };
    Some(match Op::try_from(value.op).ok()? {
        Op::SvfopCurrentDate => "::pg_catalog.date".into(),
        Op::SvfopCurrentTime | Op::SvfopCurrentTimeN => format!("::pg_catalog.timetz{digits}"),
        Op::SvfopCurrentTimestamp => String::new(),
        Op::SvfopCurrentTimestampN => digits,
        Op::SvfopLocaltime | Op::SvfopLocaltimeN => format!("::pg_catalog.time{digits}"),
        Op::SvfopLocaltimestamp | Op::SvfopLocaltimestampN => format!("::pg_catalog.timestamp{digits}"),
        _ => return None,
    })
}

fn value_edit(value: &pb::SqlValueFunction, cast: String, tokens: &Tokens) -> Option<Edit> {
    let at = usize::try_from(value.location).ok()?;
    let digits = Op::try_from(value.op).ok().is_some_and(|op| {
        matches!(
            op,
            Op::SvfopCurrentTimeN | Op::SvfopCurrentTimestampN | Op::SvfopLocaltimeN | Op::SvfopLocaltimestampN
        )
    });
    let range = if digits { tokens.word_and_brackets(at)? } else { tokens.range(tokens.at(at)?)? };
    Some(Edit { at: range, with: moment(&cast) })
}

/// The column name that PostgreSQL gives to a word of the standard that is a moment.
pub(super) fn value_name(value: &pb::SqlValueFunction) -> Option<&'static str> {
    Some(match Op::try_from(value.op).ok()? {
        Op::SvfopCurrentDate => "current_date",
        Op::SvfopCurrentTime | Op::SvfopCurrentTimeN => "current_time",
        Op::SvfopCurrentTimestamp | Op::SvfopCurrentTimestampN => "current_timestamp",
        Op::SvfopLocaltime | Op::SvfopLocaltimeN => "localtime",
        Op::SvfopLocaltimestamp | Op::SvfopLocaltimestampN => "localtimestamp",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_is_a_moment_or_a_sentence() {
        for value in ["now", " Today ", "tomorrow 04:05 PM", "yesterday 00:00:00 UTC"] {
            assert!(may_be_moment(value.as_bytes()), "{value}");
        }
        for value in ["", "2026-11-21", "see you tomorrow", "nowhere", "12 am", "\u{1}\u{2}"] {
            assert!(!may_be_moment(value.as_bytes()), "{value}");
        }
        assert!(!may_be_moment(b"now\xff"));
    }
}
