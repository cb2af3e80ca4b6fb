//! What the main node's catalog says of the relations and functions that statements name.
//!
//! [`Wants`] is what a text needs to have known; [`Wants::question`] is one SELECT for it, to be asked on a connection with
//! the client's `search_path`; [`Catalog::learn`] takes its rows. A catalog holds for one database, `search_path` and set of
//! temporary tables, and until somebody changes a definition.

mod question;
mod relation;

pub use relation::{Called, Column, Relation, Rule, Sequence, Trigger};

use super::name::Name;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// What must be known before a text can be planned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wants {
    /// Tables, views, sequences.
    pub relations: BTreeSet<Name>,
    /// Functions, of any number of arguments.
    pub functions: BTreeSet<Name>,
}

impl Wants {
    /// True when nothing is wanted.
    pub fn is_empty(&self) -> bool {
        self.relations.is_empty() && self.functions.is_empty()
    }

    /// The SELECT that answers everything; `None` when nothing is wanted. Its rows have three columns.
    pub fn question(&self) -> Option<String> {
        question::of(self)
    }
}

/// What is known.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    relations: HashMap<Name, Option<Arc<Relation>>>,
    functions: HashMap<Name, Function>,
}

/// What is known of the functions of one name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Function {
    /// There is none.
    Absent,
    /// Nobody has asked.
    Unknown,
    /// The worst of them.
    Known {
        /// May give another value at each call.
        volatile: bool,
        /// All are PostgreSQL's own.
        builtin: bool,
    },
}

/// The rows are not those of the question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the catalog's answer cannot be read")]
pub struct Malformed;

/// One row of an answer: texts as the simple protocol gives them.
pub type Row = Vec<Option<String>>;

impl Catalog {
    /// What of `wants` is not known yet.
    #[must_use]
    pub fn lacks(&self, wants: &Wants) -> Wants {
        Wants {
            relations: wants.relations.iter().filter(|name| !self.relations.contains_key(name)).cloned().collect(),
            functions: wants.functions.iter().filter(|name| !self.functions.contains_key(name)).cloned().collect(),
        }
    }

    /// A catalog that knows exactly what the answer to `wants` says.
    ///
    /// # Errors
    /// [`Malformed`] when the rows are not the answer to this question.
    pub fn from_rows(wants: &Wants, rows: &[Row]) -> Result<Catalog, Malformed> {
        let mut catalog = Catalog::default();
        catalog.learn(wants, rows)?;
        Ok(catalog)
    }

    /// Adds the answer to the question of `wants`.
    ///
    /// # Errors
    /// [`Malformed`] when the rows are not the answer to this question; nothing has been learnt then.
    pub fn learn(&mut self, wants: &Wants, rows: &[Row]) -> Result<(), Malformed> {
        let relations: Vec<&Name> = wants.relations.iter().collect();
        let functions: Vec<&Name> = wants.functions.iter().collect();
        let mut learnt = Catalog::default();
        for row in rows {
            let [Some(kind), Some(number), Some(value)] = row.as_slice() else { return Err(Malformed) };
            let number: usize = number.parse().map_err(|_| Malformed)?;
            if kind == "r" {
                let name = relations.get(number).ok_or(Malformed)?;
                let relation = serde_json::from_str(value).map_err(|_| Malformed)?;
                learnt.relations.insert((*name).clone(), Some(Arc::new(relation)));
            } else {
                let name = functions.get(number).ok_or(Malformed)?;
                learnt.functions.insert((*name).clone(), function(value)?);
            }
        }
        for name in relations {
            learnt.relations.entry(name.clone()).or_insert(None);
        }
        if functions.iter().any(|name| !learnt.functions.contains_key(name)) {
            return Err(Malformed);
        }
        self.relations.extend(learnt.relations);
        self.functions.extend(learnt.functions);
        Ok(())
    }

    /// A relation; `None` when there is none of that name or nobody has asked.
    pub fn relation(&self, name: &Name) -> Option<&Arc<Relation>> {
        self.relations.get(name)?.as_ref()
    }

    /// True when somebody has asked for the relation.
    pub fn knows(&self, name: &Name) -> bool {
        self.relations.contains_key(name)
    }

    /// What the functions of this name are.
    pub fn function(&self, name: &Name) -> Function {
        self.functions.get(name).copied().unwrap_or(Function::Unknown)
    }

    /// How many names are known: for the limit of who keeps the catalog.
    pub fn len(&self) -> usize {
        self.relations.len() + self.functions.len()
    }

    /// True when nothing is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// `-` for none, else the worst volatility, and `b` when all are PostgreSQL's own.
fn function(value: &str) -> Result<Function, Malformed> {
    match value {
        "-" => Ok(Function::Absent),
        "i" | "s" => Ok(Function::Known { volatile: false, builtin: false }),
        "ib" | "sb" => Ok(Function::Known { volatile: false, builtin: true }),
        "v" => Ok(Function::Known { volatile: true, builtin: false }),
        "vb" => Ok(Function::Known { volatile: true, builtin: true }),
        _ => Err(Malformed),
    }
}
