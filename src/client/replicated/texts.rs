//! What a client's statements are to pgmend: where they go and what they need, by name and by portal.

use crate::wire::backend::ErrorFields;
use std::collections::HashMap;
use std::rc::Rc;

/// Statements prepared by SQL whose needs are remembered of one client.
const MAX_BY_SQL: usize = 1000;

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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// Its number on the main node, under which it is locked there.
    pub oid: u32,
    /// Its name as SQL, with its schema.
    pub name: String,
}

/// What must be there before a statement can run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// The moment that all nodes take for now.
    pub now: bool,
    /// Sequences that only one transaction may use at a time.
    pub sequences: Vec<Sequence>,
    /// Its rows may differ from node to node, as the operator lets it through.
    pub blind: bool,
    /// It is COPY FROM STDIN.
    pub copy_in: bool,
    /// It changes nothing of the data.
    pub harmless: bool,
    /// It is tried for the second time.
    pub again: bool,
    /// Parses that pgmend has put before the client's messages: their replies are not the client's.
    pub own_parses: usize,
}

/// One statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Where it goes.
    pub how: How,
    /// As it is sent.
    pub text: Vec<u8>,
    /// The statement that SQL prepares by this name, or executes (`true`).
    pub names: Option<(String, bool)>,
    /// What it needs.
    pub needs: Needs,
    /// It may run in a transaction of pgmend's own.
    pub in_transaction: bool,
    /// What the client is warned of.
    pub notices: Vec<ErrorFields>,
}

impl Step {
    /// Nothing is carried out.
    pub fn nothing() -> Step {
        Step {
            how: How::One,
            text: Vec::new(),
            names: None,
            needs: Needs::default(),
            in_transaction: true,
            notices: Vec::new(),
        }
    }

    /// Something on all nodes.
    pub fn all(needs: Needs) -> Step {
        Step { how: How::All, needs, ..Step::nothing() }
    }

    /// Two that go together: what one of them needs, both get.
    pub fn together(self, other: &Step) -> Step {
        let how = match (&self.how, &other.how) {
            (How::Refused(_), _) => self.how.clone(),
            (_, How::Refused(_)) => other.how.clone(),
            (_, control) if control.is_control() => control.clone(),
            (How::All, _) | (_, How::All) => How::All,
            (How::Main, _) | (_, How::Main) => How::Main,
            (_, How::One) => How::One,
            (_, How::Begin { .. } | How::End { .. } | How::Savepoint) => How::All,
        };
        let mut sequences = self.needs.sequences;
        let known: Vec<u32> = sequences.iter().map(|s| s.oid).collect();
        sequences.extend(other.needs.sequences.iter().filter(|s| !known.contains(&s.oid)).cloned());
        let needs = Needs {
            now: self.needs.now || other.needs.now,
            sequences,
            blind: self.needs.blind || other.needs.blind,
            copy_in: self.needs.copy_in || other.needs.copy_in,
            harmless: self.needs.harmless && other.needs.harmless,
            again: false,
            own_parses: self.needs.own_parses + other.needs.own_parses,
        };
        let notices = self.notices.into_iter().chain(other.notices.iter().cloned()).collect();
        Step { how, needs, in_transaction: self.in_transaction && other.in_transaction, notices, ..Step::nothing() }
    }
}

/// A text and what it comes to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Planned {
    /// Its statements.
    pub steps: Vec<Step>,
}

/// A client's statements and portals.
#[derive(Debug, Default)]
pub struct Texts {
    statements: HashMap<Vec<u8>, (Vec<u8>, Rc<Step>)>,
    portals: HashMap<Vec<u8>, Rc<Step>>,
    /// What statements need that SQL has prepared.
    by_sql: HashMap<String, Needs>,
}

impl Texts {
    /// A statement was prepared: its name, and the body of its Parse.
    pub fn insert(&mut self, name: Vec<u8>, body: Vec<u8>, step: Rc<Step>) {
        self.statements.insert(name, (body, step));
    }

    /// What a statement is.
    pub fn find(&self, name: &[u8]) -> Option<Rc<Step>> {
        self.statements.get(name).map(|(_, step)| step.clone())
    }

    /// The body of its Parse.
    pub fn body(&self, name: &[u8]) -> Option<&Vec<u8>> {
        self.statements.get(name).map(|(body, _)| body)
    }

    /// A statement was closed.
    pub fn close(&mut self, name: &[u8]) {
        self.statements.remove(name);
    }

    /// A portal of a statement was made.
    pub fn bind(&mut self, portal: &[u8], step: Rc<Step>) {
        self.portals.insert(portal.to_vec(), step);
    }

    /// What a portal carries out.
    pub fn portal(&self, name: &[u8]) -> Option<Rc<Step>> {
        self.portals.get(name).cloned()
    }

    /// Portals end with their transaction.
    pub fn forget_portals(&mut self) {
        self.portals.clear();
    }

    /// All Parses, for a node that has heard none of them.
    pub fn bodies(&self) -> impl Iterator<Item = &Vec<u8>> {
        self.statements.values().map(|(body, _)| body)
    }

    /// PREPARE has made a statement with these needs.
    pub fn prepared_by_sql(&mut self, name: String, needs: Needs) {
        if self.by_sql.len() < MAX_BY_SQL {
            self.by_sql.insert(name, needs);
        }
    }

    /// What an EXECUTE of this name needs. Of a name that is not known the worst is taken for granted.
    pub fn needs_of(&self, name: &str) -> Needs {
        self.by_sql.get(name).cloned().unwrap_or(Needs { blind: true, ..Needs::default() })
    }
}
