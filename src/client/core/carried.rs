//! Session pooling, where statements keep their names and no text is looked at for what it leaves: the little that no server
//! can be asked for when the session is to go on with another one, and the refusal of a statement that no server has seen.
//!
//! Named statements are not remembered here, as a server lists them (`pg_prepared_statements`); the unnamed one it does not
//! list, nor settings that no extension has defined.

use super::{Core, Front, MAX_CUSTOM, client_fault};
use crate::client::fault::Fault;
use crate::client::scan::{self, Traces};
use crate::wire::{frame, frontend};

/// Statements whose parameters may name a setting, remembered of one client.
const MAX_NAMING: usize = 16;
/// An unnamed statement above this is not remembered, bytes.
const MAX_UNNAMED: usize = 64 * 1024;
/// What a text begins with that sets nothing, unless it calls `set_config`.
const PLAIN: [&[u8]; 8] = [b"insert", b"select", b"update", b"delete", b"copy", b"with", b"values", b"merge"];

/// What cannot be asked of the server.
#[derive(Debug, Default)]
pub struct Carried {
    /// An unnamed statement that is not in `Core::unnamed` may be on the server.
    pub unnamed_unknown: bool,
    /// There may be settings whose names are not known.
    pub settings_unknown: bool,
    /// Texts are read in another way than before: statements from before might now mean something else.
    pub lexing_changed: bool,
}

/// A statement is refused that no server has seen: the error has been sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusing {
    No,
    /// Its first message is next.
    First,
    /// All up to the next Sync goes with it.
    ToSync,
}

impl Core {
    /// A Parse goes to the server as it is. Returns the number of the name: 0 unless it is the unnamed statement.
    pub(super) fn carry_parse(&mut self, body: &[u8], whole: bool) -> u32 {
        let Some(parse) = frontend::parse_names(body).ok().filter(|_| whole) else {
            // The server will judge it if it is broken; if it is long, it is not remembered.
            let end = body.iter().position(|b| *b == 0).unwrap_or(body.len());
            self.carried.unnamed_unknown |= end == 0;
            self.carry_text(body.get(end + 1..).unwrap_or_default(), false);
            return 0;
        };
        if self.carry_text(parse.query(), true) {
            self.remember_naming(parse.name);
        }
        if !parse.name.is_empty() {
            return 0;
        }
        self.unnamed.clear();
        self.carried.unnamed_unknown = body.len() > MAX_UNNAMED;
        if body.len() <= MAX_UNNAMED {
            self.unnamed.extend_from_slice(body);
        }
        self.unnamed_key = self.named.new_key();
        self.unnamed_key
    }

    /// A Query, which takes the unnamed statement away.
    pub(super) fn carry_query(&mut self, body: &[u8], whole: bool) {
        self.unnamed.clear();
        self.carried.unnamed_unknown = false;
        if self.carry_text(body.strip_suffix(b"\0").unwrap_or(body), whole) {
            // There are no parameters to look at: the name was not found in the text.
            self.carried.settings_unknown = true;
        }
    }

    /// A Bind or a Close.
    pub(super) fn carry_other(&mut self, tag: u8, body: &[u8], whole: bool) {
        if tag == b'C' && body == b"S\0" {
            self.unnamed.clear();
            self.carried.unnamed_unknown = false;
        }
        let naming = self.seldom.as_ref().map(|seldom| seldom.naming.as_slice()).unwrap_or_default();
        if tag != b'B' || naming.is_empty() {
            return;
        }
        let Ok(bind) = frontend::bind(body) else { return };
        if !naming.iter().any(|name| *name == bind.statement) {
            return;
        }
        let values = body.get(bind.rest_offset..).filter(|_| whole).and_then(|rest| frontend::bind_values(rest).ok());
        let Some(values) = values else {
            self.carried.settings_unknown = true;
            return;
        };
        self.carry_names(values.into_iter().flatten().filter_map(scan::custom_name).collect());
    }

    /// Notes the settings that a text may set. True: it may set some that it does not name itself.
    fn carry_text(&mut self, text: &[u8], whole: bool) -> bool {
        if !may_set(text) && (whole || PLAIN.iter().any(|word| begins(text.trim_ascii_start(), word))) {
            return false;
        }
        if !whole {
            self.carried.settings_unknown = true;
            return false;
        }
        if !scan::classify(text).has(Traces::LEAVES) {
            return false;
        }
        let names = scan::custom_names(text);
        let unnamed = names.is_empty() && calls_set_config(text);
        self.carry_names(names);
        unnamed
    }

    fn carry_names(&mut self, names: Vec<String>) {
        if names.is_empty() {
            return;
        }
        self.carried.settings_unknown |= self.seldom().custom.len() + names.len() > MAX_CUSTOM;
        self.remember_custom(names);
    }

    fn remember_naming(&mut self, name: &[u8]) {
        let naming = &mut self.seldom().naming;
        if naming.iter().any(|known| known == name) {
            return;
        }
        if naming.len() < MAX_NAMING {
            naming.push(name.to_vec());
        } else {
            self.carried.settings_unknown = true;
        }
    }

    /// What keeps the session on its server whatever the server says.
    pub fn uncarried(&self) -> Option<&'static str> {
        match &self.carried {
            Carried { unnamed_unknown: true, .. } => Some("an unnamed statement that is too long to be remembered"),
            Carried { settings_unknown: true, .. } => Some("settings whose names are not known"),
            _ => None,
        }
    }

    /// True when statements of now could mean something else if they were prepared again.
    pub fn reads_texts_otherwise(&self) -> bool {
        self.carried.lexing_changed || self.wanted.get("standard_conforming_strings").is_some_and(|v| v != "on")
    }

    /// The body of the Parse that made the unnamed statement of a session; empty: there is none.
    pub fn unnamed(&self) -> &[u8] {
        &self.unnamed
    }

    /// The statement at the front is not for any server: an error has been written in its place.
    pub fn refuse(&mut self) {
        self.refusing = Refusing::First;
    }

    /// Takes the refused statement's messages away: one Query, or all up to Sync, as after any error
    /// (<https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-EXT-QUERY>).
    pub(super) fn refused(&mut self, input: &[u8]) -> Result<Front, Fault> {
        let Some(header) = frame::peek(input).map_err(client_fault)? else { return Ok(Front::More) };
        let first = self.refusing == Refusing::First;
        if header.tag == b'X' {
            return Ok(Front::Terminate);
        }
        let count = header.total.min(input.len());
        self.to_drop = header.total - count;
        if header.tag == b'S' || first && matches!(header.tag, b'Q' | b'F') {
            self.refusing = Refusing::No;
            return Ok(Front::Refused(count));
        }
        self.refusing = Refusing::ToSync;
        Ok(Front::Stray(count))
    }
}

/// Whether a text may set anything by a name with a dot: most texts have no dot at all, or no such word.
fn may_set(text: &[u8]) -> bool {
    calls_set_config(text) || text.contains(&b'.') && contains(text, b"set")
}

fn calls_set_config(text: &[u8]) -> bool {
    let is = |from: usize, to: usize, word: &[u8]| text.get(from..to).is_some_and(|t| t.eq_ignore_ascii_case(word));
    let mut lines = text.iter().enumerate().filter(|(_, b)| **b == b'_').map(|(at, _)| at);
    lines.any(|at| at >= 3 && is(at - 3, at, b"set") && is(at + 1, at + 7, b"config"))
}

fn contains(text: &[u8], word: &[u8]) -> bool {
    text.windows(word.len()).any(|w| w.eq_ignore_ascii_case(word))
}

fn begins(text: &[u8], word: &[u8]) -> bool {
    text.get(..word.len()).is_some_and(|t| t.eq_ignore_ascii_case(word))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::core::{Rules, Statements};
    use crate::server::ParamSet;

    fn core() -> Core {
        let rules = Rules {
            transactions: false,
            single_statements: false,
            max_message: 1 << 20,
            max_prepared: 100,
            pool_commands: true,
            share_unnamed: false,
        };
        Core::new(rules, ParamSet::default(), &Statements::default())
    }

    fn custom(core: &Core) -> Vec<&str> {
        core.custom().map(String::as_str).collect()
    }

    #[test]
    fn names_of_settings_are_found_in_texts_and_parameters() {
        let mut core = core();
        core.carry_query(b"SET app.tenant = '7'\0", true);
        core.carry_query(b"update t set a = b.c from b where t.id = b.id\0", true);
        assert_eq!(custom(&core), ["app.tenant"]);
        core.carry_parse(b"s\0select set_config($1, $2, false)\0\0\0", true);
        core.carry_other(b'B', b"\0t\0\0\0\0\x01\0\0\0\x05app.x\0\0", true);
        assert_eq!(custom(&core), ["app.tenant"], "another statement's");
        core.carry_other(b'B', b"\0s\0\0\0\0\x01\0\0\0\x05app.x\0\0", true);
        assert_eq!(custom(&core), ["app.tenant", "app.x"]);
        assert_eq!(core.uncarried(), None);
        core.carry_query(b"select set_config('app.' || 'y', '1', false)\0", true);
        assert!(core.uncarried().is_some(), "a name that is made by the server");
    }

    #[test]
    fn a_long_text_that_may_set_anything_is_not_trusted() {
        let mut core = core();
        core.carry_query(b"insert into t values (1), (2), (", false);
        assert_eq!(core.uncarried(), None);
        core.carry_query(b"begin; insert into t values (1), (2), (", false);
        assert!(core.uncarried().is_some());
    }

    #[test]
    fn the_unnamed_statement_lasts_until_a_query_or_a_close() {
        let mut core = core();
        let body = b"\0select $1\0\0\0";
        assert_eq!(core.carry_parse(b"s\0select 1\0\0\0", true), 0);
        assert_ne!(core.carry_parse(body, true), 0);
        assert_eq!(core.unnamed(), body);
        core.carry_other(b'C', b"Ss\0", true);
        assert_eq!(core.unnamed(), body);
        core.carry_other(b'C', b"S\0", true);
        assert_eq!(core.unnamed(), b"");
        core.carry_parse(b"\0select 1234", false);
        assert!(core.uncarried().is_some());
        core.carry_query(b"select 1\0", true);
        assert_eq!((core.uncarried(), core.unnamed()), (None, &b""[..]));
    }

    #[test]
    fn a_refused_statement_goes_with_all_its_messages() {
        let mut core = core();
        core.refuse();
        let query = b"Q\0\0\0\x08abc\0";
        assert_eq!(core.front(&query[..7], true).unwrap(), Front::Refused(7));
        assert_eq!(core.front(&query[7..], true).unwrap(), Front::Stray(2), "the rest of it");
        core.refuse();
        let batch = [&b"B\0\0\0\x04"[..], query, b"S\0\0\0\x04", query].concat();
        assert_eq!(core.front(&batch, false).unwrap(), Front::Stray(5));
        assert_eq!(core.front(&batch[5..], false).unwrap(), Front::Stray(9), "nothing is looked at before the Sync");
        assert_eq!(core.front(&batch[14..], false).unwrap(), Front::Refused(5));
        assert_eq!(core.front(&batch[19..], false).unwrap(), Front::Work);
        core.refuse();
        assert_eq!(core.front(b"X\0\0\0\x04", false).unwrap(), Front::Terminate);
    }
}
