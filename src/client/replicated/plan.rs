//! From a text to its plan.

use super::session::Session;
use super::texts::{How, Needs, Planned, Step};
use crate::client::fault::Fault;
use crate::net::Stream;
use crate::wire::backend::ErrorFields;
use std::rc::Rc;

impl Session {
    /// What a text comes to; the inner error is the client's.
    pub(super) async fn plan(
        &mut self,
        _client: &mut Stream,
        text: &[u8],
    ) -> Result<Result<Rc<Planned>, ErrorFields>, Fault> {
        let text = String::from_utf8_lossy(text).into_owned();
        let word = text.split_ascii_whitespace().next().unwrap_or_default().trim_end_matches(';').to_ascii_lowercase();
        let how = match word.as_str() {
            "begin" | "start" => How::Begin { text: text.clone() },
            "commit" | "end" | "rollback" | "abort" if text.to_ascii_lowercase().contains(" to ") => How::Savepoint,
            "commit" | "end" | "rollback" | "abort" => How::End { chain: false },
            "savepoint" | "release" => How::Savepoint,
            "select" | "show" | "" => How::One,
            _ => How::All,
        };
        let copy_in = word == "copy" && text.to_ascii_lowercase().contains("stdin");
        let step = Step { how, text, needs: Needs { copy_in, ..Needs::default() }, in_transaction: word != "vacuum" && word != "set", notices: vec![] };
        Ok(Ok(Rc::new(Planned { steps: vec![step] })))
    }
}
