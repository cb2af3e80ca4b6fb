//! Plain passwords in CREATE ROLE and ALTER ROLE: a hash has a salt, so it is made once and not on every node.

use super::moments::Edit;
use super::tokens::Tokens;
use super::tree::inner;
use crate::base::Secret;
use crate::base::literal;
use pg_query::NodeEnum;
use pg_query::protobuf::Token;
use std::ops::Range;

/// A plain password in a statement.
#[derive(Clone, Debug)]
pub struct Password {
    /// The role, which is the salt of `md5`; `None` for CURRENT_USER and SESSION_USER.
    pub role: Option<String>,
    /// The password.
    pub plain: Secret,
    /// The literal's place in the text.
    pub(super) at: Range<usize>,
}

impl Password {
    /// The change that puts a verifier (`SCRAM-SHA-256$…` or `md5…`) in its place.
    pub(super) fn replaced(&self, verifier: &str) -> Edit {
        Edit { at: self.at.clone(), with: literal(verifier) }
    }
}

pub(super) type Found = Password;

pub(super) fn none() -> Vec<Found> {
    Vec::new()
}

/// The plain password that a statement sets.
pub(super) fn found(node: &NodeEnum, tokens: &Tokens, sql: &str) -> Vec<Found> {
    let (role, options) = match node {
        NodeEnum::CreateRoleStmt(create) => (Some(create.role.clone()), &create.options),
        NodeEnum::AlterRoleStmt(alter) => {
            let role = alter.role.as_ref().map(|role| role.rolename.clone()).filter(|name| !name.is_empty());
            (role, &alter.options)
        }
        _ => return none(),
    };
    options.iter().filter_map(inner).filter_map(|option| password(role.clone(), option, tokens, sql)).collect()
}

fn password(role: Option<String>, option: &NodeEnum, tokens: &Tokens, sql: &str) -> Option<Password> {
    let NodeEnum::DefElem(element) = option else { return None };
    if element.defname != "password" {
        return None;
    }
    let NodeEnum::String(plain) = element.arg.as_ref().and_then(|arg| inner(arg))? else { return None };
    if is_verifier(&plain.sval) {
        return None;
    }
    let mut index = tokens.after(usize::try_from(element.location).ok()?);
    while !tokens.is(index, Token::Sconst) && !tokens.is(index, Token::Usconst) {
        tokens.range(index)?;
        index += 1;
    }
    let at = tokens.range(index)?;
    sql.get(at.clone())?;
    Some(Password { role, plain: Secret::new(plain.sval.clone()), at })
}

/// What PostgreSQL stores as it is: a verifier of SCRAM, or the digits of md5.
fn is_verifier(text: &str) -> bool {
    text.is_empty() || text.starts_with("SCRAM-SHA-256$") || is_md5(text)
}

fn is_md5(text: &str) -> bool {
    text.len() == 35 && text.strip_prefix("md5").is_some_and(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()))
}
