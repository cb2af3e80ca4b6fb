//! The name that PostgreSQL gives to a column of a result that has none in the text, as its `FigureColname` does it.
//!
//! A rewritten expression would be named after `current_setting`; where that shows, the old name is added with `AS`.

use super::large;
use super::moments::{MomentWord, cast_literal, is_now, string, value_name};
use pg_query::{NodeEnum, protobuf as pb};

/// The name that must be written down when `expression` is rewritten; `None` when rewriting does not change its name.
pub(super) fn name_to_keep(expression: &NodeEnum) -> Option<String> {
    let (before, _) = figure(expression, false);
    let (after, _) = figure(expression, true);
    (before != after).then(|| before.unwrap_or_else(|| "?column?".into()))
}

/// The name, and whether it is a good one (a bad one gives way to the name of a type around it).
fn figure(node: &NodeEnum, rewritten: bool) -> (Option<String>, bool) {
    let moment = |name: &str| {
        let name = if rewritten { "current_setting" } else { name };
        (Some(name.to_owned()), true)
    };
    match node {
        NodeEnum::FuncCall(call) => {
            let name = call.funcname.last().and_then(string).unwrap_or_default();
            match name {
                name if is_now(call) => moment(name),
                _ if rewritten && large::is_renamed(call) => (Some("lo_create".into()), true),
                name => (Some(name.to_owned()), true),
            }
        }
        NodeEnum::SqlvalueFunction(value) => value_name(value).map_or((Some(String::new()), true), moment),
        NodeEnum::TypeCast(cast) => cast_name(cast, rewritten),
        NodeEnum::CollateClause(clause) => below(clause.arg.as_deref(), rewritten),
        NodeEnum::CaseExpr(case) => match below(case.defresult.as_deref(), rewritten) {
            (name, true) => (name, true),
            _ => (Some("case".into()), false),
        },
        NodeEnum::ColumnRef(_) => (Some(String::new()), true),
        _ => (None, false),
    }
}

fn below(node: Option<&pb::Node>, rewritten: bool) -> (Option<String>, bool) {
    node.and_then(|node| node.node.as_ref()).map_or((None, false), |node| figure(node, rewritten))
}

fn cast_name(cast: &pb::TypeCast, rewritten: bool) -> (Option<String>, bool) {
    let word = cast_literal(cast).and_then(|(text, _)| MomentWord::of(text));
    let array = cast.type_name.as_ref().is_some_and(|name| !name.array_bounds.is_empty());
    if rewritten && word.is_some() && !array {
        return (Some("current_setting".into()), true);
    }
    match below(cast.arg.as_deref(), rewritten) {
        (name, true) => (name, true),
        (name, false) => {
            let type_name = cast.type_name.as_ref().and_then(|t| t.names.last()).and_then(string);
            (type_name.map(str::to_owned).or(name), false)
        }
    }
}
