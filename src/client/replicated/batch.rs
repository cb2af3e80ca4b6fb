//! A piece of the extended protocol: what its messages stand for, and its segments, each of which goes to one node or to all.

use super::session::Session;
use super::texts::{How, Needs, Step};
use crate::client::fault::Fault;
use crate::net::Stream;
use crate::wire::backend::ErrorFields;
use crate::wire::{frame, frontend};
use std::collections::HashMap;
use std::rc::Rc;

/// One message of a pipeline.
#[derive(Debug)]
pub struct Item {
    /// The frame as it is sent.
    pub frame: Vec<u8>,
    /// What an Execute carries out.
    pub runs: Option<Rc<Step>>,
    /// What a Bind makes a portal of: it must be on the nodes where it will be executed.
    pub binds: Option<Rc<Step>>,
    /// A Parse of pgmend's own.
    pub own: bool,
    /// What a Parse makes: its body as it is sent, and what it stands for.
    pub parses: Option<(Vec<u8>, Rc<Step>)>,
    /// The statement that a Close takes away.
    pub closes: Option<Vec<u8>>,
}

/// Messages that go the same way.
#[derive(Debug)]
pub struct Segment {
    /// Their way and needs.
    pub step: Step,
    /// The frames, without a Sync.
    pub frames: Vec<u8>,
    /// As in [`Item`].
    pub parses: Vec<(Vec<u8>, Rc<Step>)>,
    /// As in [`Item`].
    pub closes: Vec<Vec<u8>>,
    /// It does more than to prepare and describe: what it does belongs to a transaction.
    pub works: bool,
}

/// Cuts before and after each Execute that begins or ends a transaction. Pure.
pub fn segments(items: Vec<Item>) -> Vec<Segment> {
    let mut segments = Vec::new();
    let mut current: Vec<Item> = Vec::new();
    // The messages since the last Execute belong to the next one.
    let mut since_execute = 0;
    for item in items {
        let control = item.runs.as_ref().is_some_and(|step| step.how.is_control());
        if control {
            let own = current.split_off(current.len() - since_execute);
            segments.extend(segment(std::mem::replace(&mut current, own)));
            current.push(item);
            segments.extend(segment(std::mem::take(&mut current)));
            since_execute = 0;
            continue;
        }
        since_execute = if item.runs.is_some() { 0 } else { since_execute + 1 };
        current.push(item);
    }
    segments.extend(segment(current));
    segments
}

fn segment(items: Vec<Item>) -> Option<Segment> {
    if items.is_empty() {
        return None;
    }
    let mut step = Step::nothing();
    let (mut frames, mut parses, mut closes) = (Vec::new(), Vec::new(), Vec::new());
    let works = items.iter().any(|item| item.runs.is_some() || item.binds.is_some());
    for item in items {
        if let Some(binds) = item.binds.as_ref().filter(|step| step.how == How::All) {
            step = step.together(binds);
        }
        if let Some(runs) = &item.runs {
            step = step.together(runs);
        }
        step.needs.own_parses += usize::from(item.own);
        frames.extend_from_slice(&item.frame);
        parses.extend(item.parses);
        closes.extend(item.closes);
    }
    Some(Segment { step, frames, parses, closes, works })
}

impl Session {
    /// What the messages stand for, texts rewritten. The inner error is the client's.
    pub(super) async fn read_batch(
        &mut self,
        client: &mut Stream,
        frames: &[u8],
    ) -> Result<Result<Vec<Item>, ErrorFields>, Fault> {
        let mut items = Vec::new();
        let mut made: HashMap<Vec<u8>, Rc<Step>> = HashMap::new();
        let mut rest = frames;
        // The unnamed statement of an earlier batch is used.
        let mut lone = false;
        let broken = |e: crate::wire::WireError| Fault::Protocol(e.to_string());
        while let Some(split) = frame::split(rest).map_err(broken)? {
            let whole = rest.get(..rest.len() - split.rest.len()).unwrap_or_default();
            rest = split.rest;
            let mut item =
                Item { frame: whole.to_vec(), runs: None, binds: None, own: false, parses: None, closes: None };
            match split.tag {
                b'P' => {
                    let parse = frontend::parse_names(split.body).map_err(broken)?;
                    let planned = match self.plan(client, parse.query()).await? {
                        Ok(planned) => planned,
                        Err(error) => return Ok(Err(error)),
                    };
                    // Of several statements PostgreSQL makes an error; so the text stays as it is.
                    let step = match planned.steps.as_slice() {
                        [one] => Rc::new(one.clone()),
                        _ => Rc::new(Step::nothing()),
                    };
                    let mut body = parse.name.to_vec();
                    body.push(0);
                    match planned.steps.as_slice() {
                        [one] => {
                            if let super::texts::How::Refused(error) = &one.how
                                && self.standing != super::session::Standing::Failed
                            {
                                return Ok(Err((**error).clone()));
                            }
                            body.extend_from_slice(&one.text);
                            let types = parse.query_and_types.get(parse.query().len()..).unwrap_or_default();
                            body.extend_from_slice(types);
                        }
                        _ => body.extend_from_slice(parse.query_and_types),
                    }
                    item.frame.clear();
                    crate::wire::backend::raw(&mut item.frame, b'P', &body);
                    made.insert(parse.name.to_vec(), step.clone());
                    item.parses = Some((body, step));
                }
                b'B' => {
                    let bind = frontend::bind(split.body).map_err(broken)?;
                    let step = made.get(bind.statement).cloned().or_else(|| self.texts.find(bind.statement));
                    // The server says that there is no such statement.
                    let step = step.unwrap_or_else(|| Rc::new(Step::nothing()));
                    self.texts.bind(bind.portal, step.clone());
                    item.binds = Some(step);
                    lone |= bind.statement.is_empty() && !made.contains_key(bind.statement);
                }
                b'D' => {
                    let (kind, name) = frontend::describe_or_close(split.body).map_err(broken)?;
                    lone |= kind == b'S' && name.is_empty() && !made.contains_key(name);
                }
                b'E' => {
                    let name = split.body.split(|b| *b == 0).next().unwrap_or_default();
                    // A portal of DECLARE is on all nodes.
                    let step = self.texts.portal(name).unwrap_or_else(|| Rc::new(Step::all(Needs::default())));
                    item.runs = Some(step);
                }
                b'C' => {
                    let (kind, name) = frontend::describe_or_close(split.body).map_err(broken)?;
                    if kind == b'S' {
                        item.closes = Some(name.to_vec());
                    }
                }
                _ => {}
            }
            items.push(item);
        }
        if lone && let Some(body) = self.texts.body(b"") {
            // Statements of pgmend's own have taken it away from the servers, or they never had it.
            let mut frame = Vec::new();
            crate::wire::backend::raw(&mut frame, b'P', body);
            items.insert(0, Item { frame, runs: None, binds: None, own: true, parses: None, closes: None });
        }
        Ok(Ok(items))
    }

    /// Texts that the server has accepted are known from now on, to the other nodes too.
    pub(super) fn note_parsed(&mut self, parses: Vec<(Vec<u8>, Rc<Step>)>) -> Result<(), Fault> {
        for (body, step) in parses.into_iter().take(self.parsed) {
            let Ok(parse) = frontend::parse_names(&body) else { continue };
            for (place, leg) in self.legs.iter_mut().enumerate() {
                if place != self.last_place {
                    leg.learn(&body, &self.plane.statements)?;
                }
            }
            self.texts.insert(parse.name.to_vec(), body.clone(), step);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(byte: u8, how: Option<How>) -> Item {
        let runs = how.map(|how| Rc::new(Step { how, ..Step::nothing() }));
        Item { frame: vec![byte], runs, binds: None, own: false, parses: None, closes: None }
    }

    #[test]
    fn a_transaction_begins_and_ends_in_segments_of_its_own() {
        let begin = How::Begin { text: "BEGIN".into() };
        let items = vec![
            item(1, None),
            item(2, Some(begin)),
            item(3, None),
            item(4, Some(How::All)),
            item(5, Some(How::One)),
            item(6, None),
            item(7, Some(How::End { chain: false })),
            item(8, None),
        ];
        let cut: Vec<(Vec<u8>, bool)> =
            segments(items).into_iter().map(|s| (s.frames, s.step.how == How::All)).collect();
        assert_eq!(cut, [(vec![1, 2], false), (vec![3, 4, 5], true), (vec![6, 7], false), (vec![8], false)]);
    }
}
