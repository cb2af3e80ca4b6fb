//! What is done about statements that cannot be made equal, and what a leading comment says.

use std::fmt;

/// What happens to a statement whose effect may differ between nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// It runs.
    Allow,
    /// It runs, and the client is told.
    Warn,
    /// It is refused.
    Refuse,
}

/// The settings of the modes that write to all nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Values by chance, by the clock, of the server: stored ones differ for certain. Also large objects numbered by the server.
    pub values: Verdict,
    /// Functions of users that are declared volatile, and code that cannot be looked into (DO, CALL, files of the server).
    pub functions: Verdict,
    /// Triggers and rules whose functions are volatile, as nearly all are declared.
    pub triggers: Verdict,
    /// Rows whose choice or numbering depends on the order in which they lie.
    pub order: Verdict,
    /// Take sequences' locks for generated columns (Pgpool-II's `insert_lock`).
    pub insert_lock: bool,
    /// SELECT on every node (Pgpool-II's `replicate_select`).
    pub replicate_select: bool,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            values: Verdict::Refuse,
            functions: Verdict::Warn,
            triggers: Verdict::Warn,
            order: Verdict::Warn,
            insert_lock: true,
            replicate_select: false,
        }
    }
}

/// Something that may differ between nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unequal {
    /// Which kind.
    pub kind: Kind,
    /// What it is called: a function, trigger, column or clause.
    pub what: String,
}

/// Kinds of what may differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A value by chance.
    Random,
    /// The moment of a call or statement, or one that cannot be rewritten.
    Clock,
    /// A value of the server: process, transaction, file, size.
    Server,
    /// A large object whose number the server chooses.
    LargeObject,
    /// A sequence that is not known from the text.
    Sequence,
    /// A default that cannot be written into the statement.
    Default,
    /// A volatile function of a user.
    Function,
    /// Code or a file that cannot be looked into.
    Opaque,
    /// A trigger with a volatile function.
    Trigger,
    /// A rule that calls a volatile function.
    Rule,
    /// The order in which rows lie.
    Order,
    /// A literal that is a moment if what stands around makes it a date or time.
    Literal,
}

impl Unequal {
    pub(super) fn new(kind: Kind, what: impl Into<String>) -> Unequal {
        Unequal { kind, what: what.into() }
    }

    /// What the policy says of it.
    pub fn verdict(&self, policy: &Policy) -> Verdict {
        match self.kind {
            Kind::Random | Kind::Clock | Kind::Server | Kind::LargeObject | Kind::Sequence | Kind::Default => {
                policy.values
            }
            Kind::Function | Kind::Opaque | Kind::Literal => policy.functions,
            Kind::Trigger | Kind::Rule => policy.triggers,
            Kind::Order => policy.order,
        }
    }
}

/// The reason, for the operator and the client. Names no value of the statement.
impl fmt::Display for Unequal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = &self.what;
        match self.kind {
            Kind::Random => write!(f, "{what} gives another value on every node"),
            Kind::Clock => write!(f, "{what} depends on the moment at which each node runs it"),
            Kind::Server => write!(f, "{what} gives a value of the server that runs it"),
            Kind::LargeObject => write!(f, "{what} lets each node choose the number of the large object"),
            Kind::Sequence => write!(f, "{what} takes numbers from a sequence that the statement does not name"),
            Kind::Default => write!(f, "the default of {what} cannot be made equal on all nodes"),
            Kind::Function => write!(f, "function {what} is volatile and may do something else on every node"),
            Kind::Opaque => write!(f, "{what} cannot be looked into and may do something else on every node"),
            Kind::Trigger => {
                write!(f, "trigger {what} runs a volatile function, which may do something else on every node")
            }
            Kind::Rule => write!(f, "rule {what} calls a volatile function, which may do something else on every node"),
            Kind::Order => write!(f, "{what} depends on the order in which rows lie on each node"),
            Kind::Literal => write!(f, "{what} is one for each node at its own moment"),
        }
    }
}

/// What a comment in front of a statement asks for, as Pgpool-II's do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Hints {
    /// `/*INSERT LOCK*/` and `/*NO INSERT LOCK*/`.
    pub insert_lock: Option<bool>,
    /// `/*REPLICATION*/`: a SELECT on every node.
    pub replicate: bool,
    /// `/*NO LOAD BALANCE*/`: the main node.
    pub no_load_balance: bool,
}

impl Hints {
    /// Reads one comment, with its marks.
    pub(super) fn read(&mut self, comment: &str) {
        let Some(words) = comment.strip_prefix("/*").and_then(|rest| rest.strip_suffix("*/")) else { return };
        match words.trim().to_ascii_uppercase().as_str() {
            "INSERT LOCK" => self.insert_lock = Some(true),
            "NO INSERT LOCK" => self.insert_lock = Some(false),
            "REPLICATION" => self.replicate = true,
            "NO LOAD BALANCE" => self.no_load_balance = true,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_are_read_as_pgpool_does() {
        let read = |comment| {
            let mut hints = Hints::default();
            hints.read(comment);
            hints
        };
        assert_eq!(read("/*NO INSERT LOCK*/").insert_lock, Some(false));
        assert_eq!(read("/* insert lock */").insert_lock, Some(true));
        assert!(read("/*REPLICATION*/").replicate);
        assert!(read("/*NO LOAD BALANCE*/").no_load_balance);
        assert_eq!(read("--REPLICATION"), Hints::default());
        assert_eq!(read("/*+ IndexScan(t) */"), Hints::default());
    }

    #[test]
    fn verdicts_are_ordered() {
        assert!(Verdict::Allow < Verdict::Warn && Verdict::Warn < Verdict::Refuse);
        assert_eq!(Unequal::new(Kind::Random, "random()").verdict(&Policy::default()), Verdict::Refuse);
        assert_eq!(Unequal::new(Kind::Trigger, "t").verdict(&Policy::default()), Verdict::Warn);
    }
}
