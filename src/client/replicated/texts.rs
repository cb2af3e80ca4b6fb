//! What a client's statements are to pgmend: where they go and what they need, by name and by portal.

use crate::wire::backend::ErrorFields;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

/// Statements that one client may have prepared by SQL.
pub const MAX_BY_SQL: usize = 1000;

/// Where a statement goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum How {
    /// One node will do.
    One,
    /// The main node only: what it does is no part of the data (LISTEN, NOTIFY).
    Main,
    /// All nodes.
    All,
    /// It begins a transaction.
    Begin {
        /// As it is sent.
        text: String,
    },
    /// It ends one, or prepares it for that.
    End {
        /// What was done is kept: COMMIT, PREPARE TRANSACTION.
        keeps: bool,
        /// AND CHAIN: the next one begins at once.
        chain: bool,
    },
    /// SAVEPOINT and what belongs to it.
    Savepoint,
    /// It is not carried out.
    Refused(Box<ErrorFields>),
}

impl How {
    /// It changes where the transaction stands.
    pub fn is_control(&self) -> bool {
        match self {
            How::Begin { .. } | How::End { .. } | How::Savepoint => true,
            How::One | How::Main | How::All | How::Refused(_) => false,
        }
    }
}

/// A sequence that a statement takes numbers from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sequence {
    /// Its number on the main node, under which it is locked there.
    pub oid: u32,
    /// Its name as SQL, with its schema.
    pub name: String,
}

/// Whether it runs in a transaction of pgmend's own when the client has none. Ordered: of several that go together the
/// greatest counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Placement {
    /// It belongs to the session and needs none; with others it is part of what they do.
    Either,
    /// It may end the transaction that it stands in (CALL, DO): if it does, it must stand alone.
    InParts,
    /// So that all of it can be undone.
    Inside,
    /// PostgreSQL refuses it there.
    Outside,
}

/// What must be there before a statement can run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// The moment that all nodes take for now.
    pub now: bool,
    /// How many large objects it makes whose numbers pgmend draws.
    pub numbers: usize,
    /// Sequences that only one transaction may use at a time.
    pub sequences: Vec<Sequence>,
    /// Its rows may differ from node to node, as the operator lets it through.
    pub blind: bool,
    /// It is COPY FROM STDIN.
    pub copy_in: bool,
    /// It changes definitions: what follows is read when it has been carried out.
    pub defines: bool,
    /// It changes nothing of the data.
    pub harmless: bool,
    /// It commits what was prepared: under snapshot isolation nobody may take a snapshot meanwhile.
    pub finishes: bool,
    /// It is PREPARE TRANSACTION.
    pub prepares: bool,
    /// It makes a portal of what begins or ends a transaction: all nodes must have it.
    pub binds_control: bool,
    /// It is prepared and bound, and carried out later.
    pub only_bound: bool,
    /// It is tried for the second time.
    pub again: bool,
    /// Parses that pgmend has put before the client's messages: their replies are not the client's.
    pub own_parses: usize,
}

impl Needs {
    /// What two that go together need.
    pub fn together(mut self, other: &Needs) -> Needs {
        let known: Vec<u32> = self.sequences.iter().map(|s| s.oid).collect();
        self.sequences.extend(other.sequences.iter().filter(|s| !known.contains(&s.oid)).cloned());
        Needs {
            now: self.now || other.now,
            numbers: self.numbers.max(other.numbers),
            sequences: self.sequences,
            blind: self.blind || other.blind,
            copy_in: self.copy_in || other.copy_in,
            defines: self.defines || other.defines,
            harmless: self.harmless && other.harmless,
            finishes: self.finishes || other.finishes,
            prepares: self.prepares || other.prepares,
            binds_control: self.binds_control || other.binds_control,
            only_bound: false,
            again: false,
            own_parses: self.own_parses + other.own_parses,
        }
    }
}

/// PREPARE, EXECUTE and DEALLOCATE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Named {
    /// A statement gets a name.
    Prepares(String, Rc<BySql>),
    /// It is carried out.
    Executes(String),
    /// It loses its name; `None`: all do.
    Deallocates(Option<String>),
}

/// What a PREPARE stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BySql {
    /// The PREPARE as the client has written it.
    pub written: Vec<u8>,
    /// As the servers have got it.
    pub sent: Vec<u8>,
    /// What each EXECUTE needs.
    pub needs: Needs,
}

/// One statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Where it goes.
    pub how: How,
    /// As it is sent.
    pub text: Vec<u8>,
    /// What it does to the statements that SQL prepares, in order.
    pub names: Vec<Named>,
    /// What it needs.
    pub needs: Needs,
    /// Whether it runs in a transaction of pgmend's own.
    pub placement: Placement,
    /// What the client is warned of.
    pub notices: Vec<ErrorFields>,
    /// It is warned when the statement has succeeded: perhaps PostgreSQL cannot read it either.
    pub warns_late: bool,
}

impl Step {
    /// Nothing is carried out.
    pub fn nothing() -> Step {
        Step {
            how: How::One,
            text: Vec::new(),
            names: Vec::new(),
            needs: Needs { harmless: true, ..Needs::default() },
            placement: Placement::Either,
            notices: Vec::new(),
            warns_late: false,
        }
    }

    /// Something on all nodes.
    pub fn all(needs: Needs) -> Step {
        Step { how: How::All, needs, placement: Placement::Inside, ..Step::nothing() }
    }

    /// Two that go together: what one of them needs, both get.
    pub fn together(self, other: &Step) -> Step {
        let names = [self.names, other.names.clone()].concat();
        let how = match (&self.how, &other.how) {
            (How::Refused(_), _) => self.how.clone(),
            (_, How::Refused(_)) => other.how.clone(),
            (_, control) if control.is_control() => control.clone(),
            (How::All, _) | (_, How::All) => How::All,
            (How::Main, _) | (_, How::Main) => How::Main,
            (_, How::One) => How::One,
            (_, How::Begin { .. } | How::End { .. } | How::Savepoint) => How::All,
        };
        let needs = self.needs.together(&other.needs);
        // What is bound and carried out is warned of once.
        let mut notices = self.notices;
        notices.extend(other.notices.iter().filter(|one| !notices.contains(one)).cloned().collect::<Vec<_>>());
        let placement = self.placement.max(other.placement);
        let warns_late = self.warns_late || other.warns_late;
        Step { how, needs, placement, notices, warns_late, names, ..Step::nothing() }
    }
}

/// A text and what it comes to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Planned {
    /// Its statements.
    pub steps: Vec<Step>,
    /// Each of them as it was written.
    pub written: Vec<Vec<u8>>,
}

/// A prepared statement as the client and as the servers know it.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// The body of its Parse, as the servers get it.
    pub body: Vec<u8>,
    /// What the client has written behind the name, where the servers get something else.
    pub written: Option<Vec<u8>>,
    /// What it stands for.
    pub step: Rc<Step>,
    /// When it was planned.
    pub age: Age,
}

/// When something was planned: the count of definitions' changes, and the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Age {
    /// Of all clients.
    pub creations: u64,
    /// Of the worker's clock.
    pub second: u64,
}

/// A client's statements and portals.
#[derive(Debug, Default)]
pub struct Texts {
    statements: HashMap<Vec<u8>, Prepared>,
    portals: HashMap<Vec<u8>, Rc<Step>>,
    portions: HashSet<Vec<u8>>,
    /// Statements that SQL has prepared, and when they were planned.
    by_sql: HashMap<String, (Rc<BySql>, Age)>,
}

impl Texts {
    /// A statement was prepared.
    pub fn insert(&mut self, name: Vec<u8>, prepared: Prepared) {
        self.statements.insert(name, prepared);
    }

    /// What a statement is.
    pub fn find(&self, name: &[u8]) -> Option<&Prepared> {
        self.statements.get(name)
    }

    /// A statement was closed.
    pub fn close(&mut self, name: &[u8]) {
        self.statements.remove(name);
    }

    /// A portal of a statement was made.
    pub fn bind(&mut self, portal: &[u8], step: Rc<Step>) {
        self.portals.insert(portal.to_vec(), step);
    }

    /// A portal was closed.
    pub fn close_portal(&mut self, portal: &[u8]) {
        self.portals.remove(portal);
        self.portions.remove(portal);
    }

    /// Rows of a portal come in portions, each node's in the order in which they lie there: they cannot be compared.
    pub fn portion(&mut self, portal: &[u8]) {
        self.portions.insert(portal.to_vec());
    }

    /// See `portion`.
    pub fn is_in_portions(&self, portal: &[u8]) -> bool {
        self.portions.contains(portal)
    }

    /// What a portal carries out.
    pub fn portal(&self, name: &[u8]) -> Option<Rc<Step>> {
        self.portals.get(name).cloned()
    }

    /// Portals end with their transaction.
    pub fn forget_portals(&mut self) {
        self.portals.clear();
        self.portions.clear();
    }

    /// All Parses, for a node that has heard none of them.
    pub fn bodies(&self) -> impl Iterator<Item = &Vec<u8>> {
        self.statements.values().map(|prepared| &prepared.body)
    }

    /// True when no more names can be remembered.
    pub fn has_room_for(&self, name: &str) -> bool {
        self.by_sql.len() < MAX_BY_SQL || self.by_sql.contains_key(name)
    }

    /// PREPARE and DEALLOCATE have been carried out.
    pub fn note_named(&mut self, names: &[Named], age: Age) {
        for named in names {
            match named {
                Named::Prepares(name, prepared) => drop(self.by_sql.insert(name.clone(), (prepared.clone(), age))),
                Named::Deallocates(Some(name)) => drop(self.by_sql.remove(name)),
                Named::Deallocates(None) => self.by_sql.clear(),
                Named::Executes(_) => {}
            }
        }
    }

    /// The statement that SQL has prepared under this name.
    pub fn by_sql(&self, name: &str) -> Option<(Rc<BySql>, Age)> {
        self.by_sql.get(name).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(placement: Placement, harmless: bool) -> Step {
        Step { placement, needs: Needs { harmless, ..Needs::default() }, ..Step::all(Needs::default()) }
    }

    #[test]
    fn what_stands_alone_in_a_pipeline_keeps_its_nature() {
        let alone = Step::nothing().together(&step(Placement::Outside, true));
        assert!(alone.needs.harmless, "a VACUUM is a VACUUM in the extended protocol too");
        assert_eq!(alone.placement, Placement::Outside);
        let alone = Step::nothing().together(&step(Placement::InParts, false));
        assert_eq!((alone.placement, alone.needs.harmless), (Placement::InParts, false));
    }

    #[test]
    fn what_belongs_to_the_session_joins_the_transaction_of_the_rest() {
        let both = Step::nothing().together(&step(Placement::Either, true)).together(&step(Placement::Inside, false));
        assert_eq!((both.placement, both.needs.harmless), (Placement::Inside, false));
        let call = step(Placement::InParts, false).together(&step(Placement::Inside, false));
        assert_eq!(call.placement, Placement::Inside, "nothing of the pipeline is committed before the rest");
    }

    #[test]
    fn a_portal_in_portions_is_so_until_it_ends() {
        let mut texts = Texts::default();
        texts.bind(b"p", Rc::new(Step::all(Needs::default())));
        texts.portion(b"p");
        assert!(texts.is_in_portions(b"p") && !texts.is_in_portions(b"q"));
        texts.close_portal(b"p");
        assert!(texts.portal(b"p").is_none() && !texts.is_in_portions(b"p"));
    }
}
