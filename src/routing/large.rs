//! Calls that make a large object and leave its number to the server: rewritten so that they read one that all nodes share.

use super::moments::{Edit, string};
use super::tokens::Tokens;
use pg_query::NodeEnum;
use pg_query::protobuf::{self as pb, a_const::Val};

/// Calls of one statement that are rewritten; in those beyond, the server chooses.
pub(super) const MAX_CALLS: usize = 100;

/// The setting from which the nth such call of a statement takes its number; they are counted from 1.
pub fn setting(nth: usize) -> String {
    format!("pgmend.large_{nth}")
}

/// How a call is rewritten that leaves the number to the server; `None`: it does not, or not by a plain constant.
pub(super) fn rewritten(call: &pb::FuncCall, nth: usize, tokens: &Tokens) -> Option<Edit> {
    let number = format!("pg_catalog.current_setting('{}')::pg_catalog.oid", setting(nth));
    let first = call.args.first()?.node.as_ref()?;
    match (name(call)?, call.args.len()) {
        // What it is given are flags that mean nothing since 1998.
        ("lo_creat", 1) if is_constant(first) => {
            let at = tokens.call(usize::try_from(call.location).ok()?)?;
            Some(Edit { at, with: format!("pg_catalog.lo_create({number})") })
        }
        ("lo_create", 1) | ("lo_from_bytea", 2) => {
            let at = tokens.range(tokens.at(zero_at(first)?)?)?;
            Some(Edit { at, with: number })
        }
        _ => None,
    }
}

/// True when the rewritten call is one of another function, after which a column of the result would be named.
pub(super) fn is_renamed(call: &pb::FuncCall) -> bool {
    name(call) == Some("lo_creat") && call.args.len() == 1
}

fn name(call: &pb::FuncCall) -> Option<&str> {
    let parts: Vec<&str> = call.funcname.iter().filter_map(string).collect();
    match parts.as_slice() {
        [name] | ["pg_catalog", name] => Some(name),
        _ => None,
    }
}

fn is_constant(node: &NodeEnum) -> bool {
    match node {
        NodeEnum::AConst(constant) => constant.val.is_some(),
        NodeEnum::TypeCast(cast) => cast.arg.as_ref().and_then(|arg| arg.node.as_ref()).is_some_and(is_constant),
        _ => false,
    }
}

/// Where the number 0 stands.
fn zero_at(node: &NodeEnum) -> Option<usize> {
    let NodeEnum::AConst(constant) = node else { return None };
    match constant.val.as_ref()? {
        Val::Ival(number) if number.ival == 0 => usize::try_from(constant.location).ok(),
        _ => None,
    }
}
