//! One relation, as the question's answer describes it.

use serde::Deserialize;

/// A table, view, sequence or the like, with everything that decides whether a write to it is equal on all nodes.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Relation {
    /// Its oid on the main node.
    pub oid: u32,
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// `pg_class.relkind`: `r` table, `p` partitioned, `v` view, `m` materialized view, `S` sequence, `f` foreign.
    pub kind: char,
    /// `pg_class.relpersistence`: `p` permanent, `u` unlogged, `t` temporary.
    pub persistence: char,
    /// Its columns in their order, without dropped ones.
    #[serde(default)]
    pub columns: Vec<Column>,
    /// Triggers that a write to it may run: its own, those of its partitions and children, and those of tables that foreign keys reach.
    #[serde(default)]
    pub triggers: Vec<Trigger>,
    /// Its rules but for the one that makes it a view.
    #[serde(default)]
    pub rules: Vec<Rule>,
    /// What reading it calls: the functions of a view and of the views below, unless immutable.
    #[serde(default)]
    pub reads: Vec<Called>,
    /// What defaults of the tables below a view call, unless immutable.
    #[serde(default)]
    pub below: Vec<Called>,
    /// What the defaults call to which foreign keys set columns when a row of it goes or changes.
    #[serde(default)]
    pub set_defaults: Vec<Called>,
    /// The sequences that defaults of the tables below a view use.
    #[serde(default)]
    pub sequences_below: Vec<Sequence>,
}

/// A column.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its type is one of dates and times.
    #[serde(default)]
    pub temporal: bool,
    /// Its default, or that of its domain, as `pg_get_expr` writes it.
    #[serde(default)]
    pub default: Option<String>,
    /// GENERATED … AS IDENTITY.
    #[serde(default)]
    pub identity: bool,
    /// GENERATED … AS (expression): never given.
    #[serde(default)]
    pub generated: bool,
    /// What the default calls, unless immutable.
    #[serde(default)]
    pub calls: Vec<Called>,
    /// The sequences that the default or the identity takes numbers from.
    #[serde(default)]
    pub sequences: Vec<Sequence>,
}

/// A function that something in the catalog calls.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Called {
    /// Its schema.
    pub schema: String,
    /// Its name. `current_date` and kin are called `now`.
    pub name: String,
    /// Volatile, else stable.
    pub volatile: bool,
}

/// A sequence.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Sequence {
    /// Its oid on the main node.
    pub oid: u32,
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
}

/// A trigger that is enabled.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Trigger {
    /// Its name.
    pub name: String,
    /// The table that has it.
    pub on: String,
    /// `pg_trigger.tgtype`.
    pub events: u16,
    /// Reached by a foreign key: run whatever the statement does.
    #[serde(default)]
    pub cascaded: bool,
    /// What it calls.
    pub function: Called,
}

/// A rule of INSERT, UPDATE or DELETE.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Rule {
    /// Its name.
    pub name: String,
    /// `pg_rewrite.ev_type`: `2` UPDATE, `3` INSERT, `4` DELETE.
    pub event: char,
    /// What it calls, unless immutable.
    #[serde(default)]
    pub calls: Vec<Called>,
}
