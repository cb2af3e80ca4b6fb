//! A piece of the extended protocol: what its messages stand for, and its segments, each of which goes to one node or to all.

use super::plan::with_moment;
use super::session::{Session, Standing, Told};
use super::texts::{Age, How, Needs, Prepared, Step};
use crate::client::fault::Fault;
use crate::net::Stream;
use crate::routing::may_be_moment;
use crate::wire::backend;
use crate::wire::{WireError, frame, frontend};
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

/// What a message does to the client's prepared statements and portals, once the server says that it is done.
#[derive(Clone, Debug)]
pub enum Change {
    /// A Parse makes a statement of this name.
    Parsed(Vec<u8>, Prepared),
    /// A Close takes it away.
    Closed(Vec<u8>),
    /// A Bind makes a portal of this name.
    Bound(Vec<u8>, Rc<Step>),
    /// A Close takes it away.
    ClosedPortal(Vec<u8>),
}

impl Change {
    /// It can be made a second time.
    pub fn is_of_unnamed(&self) -> bool {
        match self {
            Change::Parsed(name, _) | Change::Closed(name) => name.is_empty(),
            Change::Bound(..) | Change::ClosedPortal(_) => true,
        }
    }
}

/// Closes of the portals that a segment makes.
pub fn frees(changes: &[Change]) -> Vec<u8> {
    let mut frames = Vec::new();
    for change in changes {
        if let Change::Bound(portal, _) = change {
            backend::raw(&mut frames, b'C', &[b"P", portal.as_slice(), b"\0"].concat());
        }
    }
    frames
}

/// One message of a pipeline.
#[derive(Debug, Default)]
pub struct Item {
    /// The frame as it is sent.
    pub frame: Vec<u8>,
    /// What an Execute carries out.
    pub runs: Option<Rc<Step>>,
    /// It goes on with a portal of an earlier piece, which only the reader has.
    pub far: bool,
    /// What a Bind makes a portal of: it must be on the nodes where it will be executed.
    pub binds: Option<Rc<Step>>,
    /// It closes a portal that other nodes have, too.
    pub frees: bool,
    /// It uses the unnamed statement.
    pub uses_unnamed: bool,
    /// As in [`Change`].
    pub changes: Option<Change>,
}

impl Item {
    fn is_on_all(&self) -> bool {
        [&self.binds, &self.runs].into_iter().flatten().any(|step| step.how == How::All)
    }

    fn makes_unnamed(&self) -> bool {
        matches!(&self.changes, Some(Change::Parsed(name, _)) if name.is_empty())
    }
}

/// Messages that go the same way.
#[derive(Debug)]
pub struct Segment {
    /// Their way and needs.
    pub step: Step,
    /// The frames, without a Sync.
    pub frames: Vec<u8>,
    /// In their order.
    pub changes: Vec<Change>,
    /// It does more than to prepare and describe: what it does belongs to a transaction.
    pub works: bool,
    /// It uses an unnamed statement that is not its own: statements of pgmend's own may have taken it away from the servers.
    pub lacks_unnamed: bool,
}

/// Cuts before and after each Execute that begins or ends a transaction or goes on with a portal that is not everywhere,
/// after one that may ask for COPY data or gets numbers for its large objects, and around a Close that goes to all nodes,
/// unless its neighbours do. Pure. `bare_ends`: the Execute of a COMMIT or ROLLBACK stands alone, so that what makes its
/// portal has succeeded on all nodes before any of them ends its transaction.
pub fn segments(items: Vec<Item>, bare_ends: bool) -> Vec<Segment> {
    let mut segments = Vec::new();
    let mut current: Vec<Item> = Vec::new();
    // The messages since the last Execute belong to the next one.
    let mut since_execute = 0;
    for item in items {
        // What one node does the others shall not do for the sake of a Close.
        if item.frees != current.last().is_some_and(|last| last.frees) && !current.iter().any(Item::is_on_all) {
            segments.extend(segment(std::mem::take(&mut current)));
            since_execute = 0;
        }
        let apart = item.far || item.runs.as_ref().is_some_and(|step| step.how.is_control());
        // Each execution has large objects of its own, and what SQL prepares is known before it is used.
        let ends = |step: &Rc<Step>| step.needs.copy_in || step.needs.numbers > 0 || !step.names.is_empty();
        let last = item.runs.as_ref().is_some_and(ends);
        let bare = bare_ends && item.runs.as_ref().is_some_and(|step| is_plain_end(step));
        if bare {
            since_execute = 0;
        }
        if apart {
            let own = current.split_off(current.len().saturating_sub(since_execute));
            segments.extend(segment(std::mem::replace(&mut current, own)));
        }
        since_execute = if item.runs.is_some() { 0 } else { since_execute + 1 };
        current.push(item);
        if apart || last {
            segments.extend(segment(std::mem::take(&mut current)));
            since_execute = 0;
        }
    }
    segments.extend(segment(current));
    segments
}

/// What ends a transaction and begins no other one.
fn is_plain_end(step: &Step) -> bool {
    matches!(step.how, How::End { chain: false, .. }) && !step.needs.prepares
}

fn segment(items: Vec<Item>) -> Option<Segment> {
    if items.is_empty() {
        return None;
    }
    let mut step = Step::nothing();
    let (mut frames, mut changes) = (Vec::new(), Vec::new());
    let works = items.iter().any(|item| item.runs.is_some() || item.binds.is_some());
    let runs = items.iter().any(|item| item.runs.is_some());
    let first_made = items.iter().position(Item::makes_unnamed);
    let first_used = items.iter().position(|item| item.uses_unnamed);
    let lacks_unnamed = first_used.is_some_and(|used| first_made.is_none_or(|made| used < made));
    for item in items {
        match &item.binds {
            // Names are made and used by who carries it out.
            Some(binds) if binds.how == How::All => {
                step = step.together(&Step { names: Vec::new(), ..Step::clone(binds) });
            }
            Some(binds) if binds.how.is_control() => {
                step = step.together(&Step::all(Needs { binds_control: true, ..Needs::default() }));
            }
            _ => {}
        }
        if item.frees {
            step = step.together(&Step { how: How::All, ..Step::nothing() });
        }
        if let Some(runs) = &item.runs {
            step = step.together(runs);
        }
        frames.extend_from_slice(&item.frame);
        changes.extend(item.changes);
    }
    step.needs.only_bound = !runs;
    Some(Segment { step, frames, changes, works, lacks_unnamed })
}

/// What a batch has made so far, beyond what is known of the batches before.
#[derive(Default)]
struct Reading {
    made: HashMap<Vec<u8>, Rc<Step>>,
    bound: HashMap<Vec<u8>, Rc<Step>>,
    /// Portals of which only some rows are wanted.
    portions: HashSet<Vec<u8>>,
    /// Portals that were closed.
    freed: HashSet<Vec<u8>>,
}

impl Session {
    /// What the messages stand for, texts rewritten, and how many bytes of them were read: what follows the end of a failed
    /// transaction, or what changes definitions, can only be understood when that has been carried out.
    pub(super) async fn read_batch(&mut self, client: &mut Stream, frames: &[u8]) -> Told<(Vec<Item>, usize)> {
        let mut items = Vec::new();
        let mut reading = Reading::default();
        let mut rest = frames;
        while let Some(split) = frame::split(rest).map_err(broken)? {
            let whole = rest.get(..rest.len() - split.rest.len()).unwrap_or_default();
            rest = split.rest;
            let mut item = Item { frame: whole.to_vec(), ..Item::default() };
            let read = match split.tag {
                b'P' => self.read_parse(client, split.body, &mut item, &mut reading).await?,
                b'B' => self.read_bind(client, split.body, &mut item, &mut reading).await?,
                b'E' => {
                    self.read_execute(split.body, &mut item, &mut reading);
                    Ok(())
                }
                b'D' | b'C' => {
                    read_name(split.tag, split.body, &mut item)?;
                    if let Some(Change::ClosedPortal(name)) = &item.changes {
                        let known = reading.bound.get(name).cloned().or_else(|| self.texts.portal(name));
                        let is_open = self.standing == Standing::Open;
                        // The unnamed one may have had another one before it elsewhere, and DECLARE makes unknown ones.
                        item.frees = match known.as_deref().map(|step| &step.how) {
                            Some(How::One | How::Main) => is_open && name.is_empty(),
                            Some(_) => true,
                            None => is_open,
                        };
                        reading.freed.insert(name.clone());
                    }
                    Ok(())
                }
                _ => Ok(()),
            };
            if let Err(error) = read {
                return Ok(Err(error));
            }
            let ends = item.runs.as_ref().is_some_and(|step| step.needs.defines || self.standing == Standing::Failed);
            items.push(item);
            if ends {
                break;
            }
        }
        Ok(Ok((items, frames.len() - rest.len())))
    }

    async fn read_parse(
        &mut self,
        client: &mut Stream,
        body: &[u8],
        item: &mut Item,
        reading: &mut Reading,
    ) -> Told<()> {
        let parse = frontend::parse_names(body).map_err(broken)?;
        let prepared = match self.prepared(client, parse.name, parse.query_and_types).await? {
            Ok(prepared) => prepared,
            Err(error) => return Ok(Err(error)),
        };
        item.frame.clear();
        backend::raw(&mut item.frame, b'P', &prepared.body);
        reading.made.insert(parse.name.to_vec(), prepared.step.clone());
        item.changes = Some(Change::Parsed(parse.name.to_vec(), prepared));
        Ok(Ok(()))
    }

    /// A statement of this name, as it is planned now.
    async fn prepared(&mut self, client: &mut Stream, name: &[u8], query_and_types: &[u8]) -> Told<Prepared> {
        let query = query_and_types.split(|byte| *byte == 0).next().unwrap_or_default();
        let age = age_of(self);
        let planned = match self.plan(client, query).await? {
            Ok(planned) => planned,
            Err(error) => return Ok(Err(error)),
        };
        let mut body = name.to_vec();
        body.push(0);
        let behind_name = body.len();
        let step = match planned.steps.as_slice() {
            [one] => {
                if let How::Refused(error) = &one.how
                    && self.standing != Standing::Failed
                {
                    return Ok(Err((**error).clone()));
                }
                body.extend_from_slice(&one.text);
                body.extend_from_slice(query_and_types.get(query.len()..).unwrap_or_default());
                Rc::new(one.clone())
            }
            // Of several statements PostgreSQL makes an error; so the text stays as it is.
            _ => {
                body.extend_from_slice(query_and_types);
                Rc::new(Step::nothing())
            }
        };
        let same = body.get(behind_name..) == Some(query_and_types);
        Ok(Ok(Prepared { body, written: (!same).then(|| query_and_types.to_vec()), step, age }))
    }

    async fn read_bind(
        &mut self,
        client: &mut Stream,
        body: &[u8],
        item: &mut Item,
        reading: &mut Reading,
    ) -> Told<()> {
        let bind = frontend::bind(body).map_err(broken)?;
        let step = match reading.made.get(bind.statement) {
            Some(step) => Some(step.clone()),
            None => match self.known(client, bind.statement).await? {
                Ok(step) => step,
                Err(error) => return Ok(Err(error)),
            },
        };
        // The servers say that there is no such statement; all of them, in case that they know more.
        let unknown = || Rc::new(Step::all(Needs { blind: true, ..Needs::default() }));
        let mut step = step.unwrap_or_else(unknown);
        if step.how == How::All {
            let values = frontend::bind_values(body.get(bind.rest_offset..).unwrap_or_default()).map_err(broken)?;
            if values.iter().flatten().any(|value| may_be_moment(value)) {
                match with_moment(&step, &self.settings().policy) {
                    Ok(warned) => step = Rc::new(warned),
                    Err(error) => return Ok(Err(error)),
                }
            }
        }
        item.uses_unnamed = bind.statement.is_empty();
        let taken = self.texts.portal(bind.portal).filter(|old| !bind.portal.is_empty() && old.how == How::One);
        if taken.is_some() && !reading.freed.contains(bind.portal) {
            // The name is taken, on the reader alone; it says so.
            item.far = true;
            item.binds = Some(Rc::new(Step::nothing()));
            item.changes = Some(Change::Bound(bind.portal.to_vec(), step));
            return Ok(Ok(()));
        }
        reading.bound.insert(bind.portal.to_vec(), step.clone());
        reading.portions.remove(bind.portal);
        item.changes = Some(Change::Bound(bind.portal.to_vec(), step.clone()));
        item.binds = Some(step);
        Ok(Ok(()))
    }

    /// A statement of an earlier batch. Where definitions may have changed since, it is planned anew, as PostgreSQL does.
    async fn known(&mut self, client: &mut Stream, name: &[u8]) -> Told<Option<Rc<Step>>> {
        let Some(old) = self.texts.find(name) else { return Ok(Ok(None)) };
        if self.standing == Standing::Failed || !self.is_outdated(old.age) {
            return Ok(Ok(Some(old.step.clone())));
        }
        let old = old.clone();
        let behind_name = old.body.get(name.len() + 1..).unwrap_or_default();
        let written = old.written.as_deref().unwrap_or(behind_name);
        let new = match self.prepared(client, name, written).await? {
            Ok(new) => new,
            Err(error) => return Ok(Err(error)),
        };
        if new.body != old.body {
            for leg in &mut self.legs {
                leg.unlearn(name);
                leg.learn(&new.body, &self.plane.statements)?;
            }
        }
        let step = new.step.clone();
        self.texts.insert(name.to_vec(), new);
        Ok(Ok(Some(step)))
    }

    fn read_execute(&mut self, body: &[u8], item: &mut Item, reading: &mut Reading) {
        let name = body.split(|b| *b == 0).next().unwrap_or_default();
        let limit = body.get(name.len() + 1..).unwrap_or_default();
        let here = reading.bound.get(name).cloned();
        // A portal of DECLARE is on all nodes, and brings rows in the order in which they lie.
        let cursor = || Rc::new(Step::all(Needs { blind: true, ..Needs::default() }));
        let mut step = here.clone().or_else(|| self.texts.portal(name)).unwrap_or_else(cursor);
        if limit.iter().any(|byte| *byte != 0) {
            reading.portions.insert(name.to_vec());
            self.texts.portion(name);
        }
        if here.is_some() && reading.portions.contains(name) || self.texts.is_in_portions(name) {
            Rc::make_mut(&mut step).needs.blind = true;
        }
        item.far = step.how == How::One && here.is_none();
        item.runs = Some(step);
    }

    /// What the server has made is known from now on, to the other nodes too, and what was closed is not.
    pub(super) fn note_changes(&mut self, changes: Vec<Change>) -> Result<(), Fault> {
        for change in changes.into_iter().take(self.made) {
            let others = self.legs.iter_mut().enumerate().filter(|(place, _)| *place != self.last_place);
            match change {
                Change::Parsed(name, prepared) => {
                    for (_, leg) in others {
                        leg.learn(&prepared.body, &self.plane.statements)?;
                    }
                    self.texts.insert(name, prepared);
                }
                Change::Closed(name) => {
                    others.for_each(|(_, leg)| leg.unlearn(&name));
                    self.texts.close(&name);
                }
                Change::Bound(portal, step) => self.texts.bind(&portal, step),
                Change::ClosedPortal(portal) => self.texts.close_portal(&portal),
            }
        }
        Ok(())
    }
}

/// Of what is planned now.
pub(super) fn age_of(session: &Session) -> Age {
    Age { creations: session.plane.statements.creations(), second: session.worker.now_s() }
}

fn read_name(tag: u8, body: &[u8], item: &mut Item) -> Result<(), Fault> {
    let (kind, name) = frontend::describe_or_close(body).map_err(broken)?;
    item.changes = match (tag, kind) {
        (b'C', b'S') => Some(Change::Closed(name.to_vec())),
        (b'C', _) => Some(Change::ClosedPortal(name.to_vec())),
        _ => None,
    };
    item.uses_unnamed = kind == b'S' && tag == b'D' && name.is_empty();
    Ok(())
}

fn broken(error: WireError) -> Fault {
    Fault::Protocol(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::replicated::texts::Placement;

    fn item(byte: u8, how: Option<How>) -> Item {
        let runs = how.map(|how| Rc::new(Step { how, ..Step::nothing() }));
        Item { frame: vec![byte], runs, ..Item::default() }
    }

    fn frames_of(items: Vec<Item>) -> Vec<Vec<u8>> {
        segments(items, true).into_iter().map(|s| s.frames).collect()
    }

    fn unnamed(byte: u8) -> Item {
        let age = Age { creations: 0, second: 0 };
        let prepared = Prepared { body: vec![0], written: None, step: Rc::new(Step::nothing()), age };
        Item { changes: Some(Change::Parsed(Vec::new(), prepared)), ..item(byte, None) }
    }

    #[test]
    fn a_transaction_begins_and_ends_in_segments_of_its_own() {
        let begin = How::Begin { text: "BEGIN".into() };
        let items = || {
            vec![
                item(1, None),
                item(2, Some(begin.clone())),
                item(3, None),
                item(4, Some(How::All)),
                item(5, Some(How::One)),
                item(6, None),
                item(7, Some(How::End { keeps: true, chain: false })),
                item(8, None),
            ]
        };
        let cut = |bare_ends| -> Vec<(Vec<u8>, bool)> {
            segments(items(), bare_ends).into_iter().map(|s| (s.frames, s.step.how == How::All)).collect()
        };
        assert_eq!(cut(false), [(vec![1, 2], false), (vec![3, 4, 5], true), (vec![6, 7], false), (vec![8], false)]);
        assert_eq!(cut(true), [(vec![1, 2], false), (vec![3, 4, 5, 6], true), (vec![7], false), (vec![8], false)]);
    }

    #[test]
    fn a_portal_of_an_earlier_piece_goes_where_it_is() {
        let far = Item { far: true, ..item(3, Some(How::One)) };
        let items = vec![item(1, Some(How::All)), item(2, None), far, item(4, Some(How::All))];
        assert_eq!(frames_of(items), [vec![1], vec![2, 3], vec![4]]);
        // A Bind of a name that is taken, without an Execute of its own, and twice.
        let bind = |byte| Item { far: true, ..item(byte, None) };
        let items = vec![item(1, None), bind(2), bind(3), item(4, Some(How::All))];
        assert_eq!(frames_of(items), [vec![1, 2], vec![3], vec![4]]);
    }

    #[test]
    fn what_follows_a_copy_is_not_sent_with_it() {
        let needs = Needs { copy_in: true, ..Needs::default() };
        let copy =
            Item { runs: Some(Rc::new(Step { placement: Placement::Inside, ..Step::all(needs) })), ..item(2, None) };
        assert_eq!(frames_of(vec![item(1, None), copy, item(3, None)]), [vec![1, 2], vec![3]]);
    }

    #[test]
    fn a_close_for_all_nodes_takes_no_read_with_it() {
        let close = || Item { frees: true, ..item(9, None) };
        let one = || item(1, Some(How::One));
        let all = || item(2, Some(How::All));
        let cut = |items| -> Vec<(Vec<u8>, bool)> {
            segments(items, true).into_iter().map(|s| (s.frames, s.step.how == How::All)).collect()
        };
        assert_eq!(cut(vec![one(), close(), close(), one()]), [(vec![1], false), (vec![9, 9], true), (vec![1], false)]);
        assert_eq!(cut(vec![all(), close(), one()]), [(vec![2, 9, 1], true)]);
    }

    #[test]
    fn an_unnamed_statement_of_another_segment_is_missed() {
        let lacks = |items| segments(items, true).into_iter().map(|s| s.lacks_unnamed).collect::<Vec<_>>();
        let used = |byte| Item { uses_unnamed: true, ..item(byte, Some(How::All)) };
        assert_eq!(lacks(vec![unnamed(1), used(2)]), [false]);
        assert_eq!(lacks(vec![used(1), unnamed(2)]), [true]);
        let commit = item(2, Some(How::End { keeps: true, chain: false }));
        assert_eq!(lacks(vec![unnamed(1), item(3, Some(How::All)), commit, used(4)]), [false, false, true]);
    }
}
