//! Everything about one statement that a plan needs: calls, moments, relations, inserts. `walk` gathers it.
//!
//! No tree is kept: facts are small, flat and refer to the text by offsets.

use super::class::{self, Block, Class};
use super::insert::Insert;
use super::moments::{self, Edit, MomentWord, literal};
use super::name::Name;
use super::tokens::Tokens;
use pg_query::NodeEnum;
use std::ops::Range;

/// What is known of one statement.
pub(super) struct Facts {
    /// Its text, without the semicolon.
    pub range: Range<usize>,
    pub class: Class,
    pub inner: Option<Class>,
    pub block: Block,
    /// It stores what its expressions give.
    pub writes: bool,
    /// It takes row locks (FOR UPDATE and the like).
    pub locks_rows: bool,
    pub calls: Vec<Call>,
    pub relations: Vec<(Name, Use)>,
    pub inserts: Vec<Insert>,
    /// `SET column = DEFAULT` and `SET column = 'now'`.
    pub assigned: Vec<Assigned>,
    /// Moments that are rewritten, and the names that this makes necessary.
    pub edits: Vec<Edit>,
    /// Calls that get the number of a large object.
    pub numbers: usize,
    /// What no catalog has to tell.
    pub hazards: Vec<Hazard>,
    /// Plain passwords.
    pub passwords: Vec<super::password::Found>,
}

/// A call of a function.
pub(super) struct Call {
    pub name: Name,
    pub arguments: usize,
    /// The first argument, when it is a literal.
    pub first: Option<String>,
    /// The first argument, when it is a whole number.
    pub number: Option<i64>,
    /// In the output of a statement that nothing reads but the client.
    pub only_shown: bool,
    /// It makes a large object whose number is drawn for all nodes.
    pub drawn: bool,
}

/// How a relation is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Use {
    Read,
    Insert,
    Update,
    Delete,
    Truncate,
    /// COPY … FROM: an insert that cannot be rewritten.
    Copy,
}

/// A column that is set to its default, or to a bare literal that names a moment.
pub(super) struct Assigned {
    pub relation: Name,
    pub column: String,
    pub at: Range<usize>,
    pub what: Given,
}

/// What a column is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Given {
    Default,
    Word(MomentWord),
    /// A literal in which a word for a moment stands among others.
    Phrase,
}

/// What makes nodes unequal whatever the catalog says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hazard {
    /// A moment in a place where it cannot be rewritten.
    Moment,
    /// A moment that is written into the definition of what is made, and into rows that are there already.
    MomentInDefinition,
    /// LIMIT without ORDER BY.
    LimitWithoutOrder,
    SkipLocked,
    /// `ctid`, `xmin` and the like.
    SystemColumn,
    TableSample,
    /// DO.
    Code,
    /// A file or program of the server.
    ServerFile,
    /// A literal that is a moment if what stands around makes it a date or time.
    BareWord,
    /// A table that is filled and rewritten row by row in the order in which rows happen to lie.
    Shape,
}

impl Facts {
    pub(super) fn new(range: Range<usize>, node: &NodeEnum) -> Facts {
        let inner = match node {
            NodeEnum::PrepareStmt(_) | NodeEnum::DeclareCursorStmt(_) | NodeEnum::CopyStmt(_) => {
                class::inner_statement(node).map(class::class)
            }
            _ => None,
        };
        Facts {
            range,
            class: class::class(node),
            inner,
            block: class::block(node),
            writes: false,
            locks_rows: false,
            calls: Vec::new(),
            relations: Vec::new(),
            inserts: Vec::new(),
            assigned: Vec::new(),
            edits: Vec::new(),
            numbers: 0,
            hazards: Vec::new(),
            passwords: super::password::none(),
        }
    }
}

/// Whether a column is given its default or a bare moment, and where that stands.
pub(super) fn given(value: &NodeEnum, tokens: &Tokens) -> Option<(Given, Range<usize>)> {
    match value {
        NodeEnum::SetToDefault(default) => {
            let at = tokens.at(usize::try_from(default.location).ok()?)?;
            Some((Given::Default, tokens.range(at)?))
        }
        value => {
            let (text, at) = literal(value)?;
            let range = tokens.literal(at)?;
            match MomentWord::of(text) {
                Some(word) => Some((Given::Word(word), range)),
                None => moments::names_a_moment(text).then_some((Given::Phrase, range)),
            }
        }
    }
}
