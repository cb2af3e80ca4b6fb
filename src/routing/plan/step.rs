//! One statement's plan: its facts and the catalog, put together.

use super::defaults::nature;
use super::{LockOn, Step, edited};
use crate::routing::catalog::{Called, Catalog, Function, Relation, Sequence};
use crate::routing::class::Class;
use crate::routing::facts::{Call, Facts, Hazard, Use};
use crate::routing::functions::{self, Nature};
use crate::routing::moments::Edit;
use crate::routing::name::Name;
use crate::routing::policy::{Hints, Kind, Policy, Unequal};

/// A step that is being put together.
pub(super) struct Building<'a> {
    pub catalog: &'a Catalog,
    facts: &'a Facts,
    insert_lock: bool,
    pub edits: Vec<Edit>,
    locks: Vec<LockOn>,
    unequal: Vec<Unequal>,
    /// Something stays on the server: every node must run it.
    everywhere: bool,
    /// A value by chance may reach something that is kept.
    keeps: bool,
}

/// The plan of one statement, with the changes of its text.
pub(super) fn planned(facts: &Facts, sql: &str, hints: Hints, catalog: &Catalog, policy: &Policy) -> (Step, Vec<Edit>) {
    let insert_lock = hints.insert_lock.unwrap_or(policy.insert_lock);
    let mut building = Building {
        catalog,
        facts,
        insert_lock,
        edits: facts.edits.clone(),
        locks: Vec::new(),
        unequal: Vec::new(),
        everywhere: facts.locks_rows || hints.replicate || policy.replicate_select,
        keeps: facts.writes,
    };
    building.relations();
    building.calls();
    facts.inserts.iter().for_each(|insert| building.insert(insert));
    facts.assigned.iter().for_each(|assigned| building.assigned(assigned));
    building.hazards();
    building.finish(sql)
}

impl Building<'_> {
    pub(super) fn unequal(&mut self, kind: Kind, what: impl Into<String>) {
        let one = Unequal::new(kind, what);
        if !self.unequal.contains(&one) {
            self.unequal.push(one);
        }
    }

    /// Locks for generated columns, unless a setting or comment says that none are wanted.
    pub(super) fn lock_generated(&mut self, sequences: &[Sequence]) {
        if self.insert_lock {
            self.locks.extend(sequences.iter().map(LockOn::of));
        }
    }

    fn calls(&mut self) {
        let natures: Vec<_> = self.facts.calls.iter().map(|call| (call, self.nature(call))).collect();
        // What is kept must be known before values by chance are judged.
        for (call, nature) in &natures {
            match nature {
                None => {
                    self.kept();
                    self.unequal(Kind::Function, call.name.to_string());
                }
                Some(Nature::Effect) => self.everywhere = true,
                Some(Nature::TakesNumber) => {
                    self.everywhere = true;
                    self.keeps |= call.name.name == "setval";
                    self.number(call);
                }
                Some(Nature::LargeObject) => {
                    self.kept();
                    self.large_object(call);
                }
                _ => {}
            }
        }
        for (call, nature) in natures {
            let shown = call.only_shown || !self.keeps;
            let what = || format!("{}()", call.name.name);
            match nature {
                Some(Nature::Random) if !shown => self.unequal(Kind::Random, what()),
                Some(Nature::Clock) if !shown => self.unequal(Kind::Clock, what()),
                Some(Nature::Server) if !shown => self.unequal(Kind::Server, what()),
                _ => {}
            }
        }
    }

    fn kept(&mut self) {
        self.everywhere = true;
        self.keeps = true;
    }

    /// `None` for a volatile function of a user, or one that nobody knows.
    fn nature(&self, call: &Call) -> Option<Nature> {
        if call.name.may_be_builtin() && call.name.name == "age" && call.arguments == 1 {
            // On the current day; whether of a time or of a transaction's number, only types tell.
            return Some(Nature::Clock);
        }
        functions::known(&call.name).or_else(|| match self.catalog.function(&call.name) {
            // Where there is none the statement fails, unless the catalog is out of date.
            Function::Absent | Function::Unknown => None,
            Function::Known { volatile, builtin: true } => Some(functions::builtin(&call.name.name, volatile)),
            Function::Known { volatile, builtin: false } => (!volatile).then_some(Nature::Plain),
        })
    }

    fn number(&mut self, call: &Call) {
        let name = call.first.as_deref().and_then(Name::parse);
        match name.as_ref().and_then(|name| self.catalog.relation(name)) {
            Some(sequence) if sequence.persistence != 't' => {
                let lock = LockOn { oid: sequence.oid, schema: sequence.schema.clone(), name: sequence.name.clone() };
                self.locks.push(lock);
                let inserts = &self.facts.inserts;
                // The parameters of an EXECUTE are computed once.
                let rows = self.facts.writes && !matches!(self.facts.class, Class::Execute(_));
                if rows && (inserts.is_empty() || inserts.iter().any(|insert| insert.unordered)) {
                    self.unequal(Kind::Order, "the order in which rows take numbers");
                }
            }
            // A sequence of the session is its own on every node.
            Some(_) => {}
            None => self.unequal(Kind::Sequence, format!("{}()", call.name.name)),
        }
    }

    fn large_object(&mut self, call: &Call) {
        let numbered = match call.name.name.as_str() {
            "lo_creat" => false,
            "lo_import" => call.arguments > 1,
            _ => call.number.is_some_and(|number| number != 0),
        };
        if !numbered && !call.drawn {
            self.unequal(Kind::LargeObject, format!("{}()", call.name.name));
        }
    }

    fn relations(&mut self) {
        for (name, used) in &self.facts.relations {
            let Some(relation) = self.catalog.relation(name).cloned() else {
                // Where there is none the statement fails, unless the catalog is out of date.
                if *used != Use::Read {
                    self.unequal(Kind::Opaque, format!("table {name}, which is not known,"));
                }
                continue;
            };
            match used {
                Use::Read => self.reads(&relation),
                Use::Insert | Use::Copy => self.written(&relation, 4, '3'),
                Use::Delete => self.written(&relation, 8, '4'),
                Use::Update => self.written(&relation, 16, '2'),
                Use::Truncate => self.written(&relation, 32, ' '),
            }
        }
    }

    /// A view is its functions.
    fn reads(&mut self, relation: &Relation) {
        for called in &relation.reads {
            match nature(called) {
                None => {
                    self.kept();
                    self.unequal(Kind::Function, called_name(called));
                }
                Some(Nature::TakesNumber | Nature::LargeObject) => {
                    self.everywhere = true;
                    self.unequal(Kind::Sequence, format!("view {}", relation.name));
                }
                Some(Nature::Effect) => self.everywhere = true,
                Some(nature) if self.facts.writes => self.view_value(relation, nature),
                Some(_) => {}
            }
        }
    }

    fn view_value(&mut self, relation: &Relation, nature: Nature) {
        let what = format!("view {}", relation.name);
        match nature {
            Nature::Random => self.unequal(Kind::Random, what),
            Nature::Clock | Nature::Moment => self.unequal(Kind::Clock, what),
            Nature::Server => self.unequal(Kind::Server, what),
            _ => {}
        }
    }

    /// `event` is the bit of `pg_trigger.tgtype`, `rule` that of `pg_rewrite.ev_type`.
    fn written(&mut self, relation: &Relation, event: u16, rule: char) {
        if relation.kind == 'f' {
            self.unequal(Kind::Opaque, format!("foreign table {}", relation.name));
        }
        for trigger in &relation.triggers {
            if (trigger.cascaded || trigger.events & event != 0) && nature(&trigger.function) != Some(Nature::Plain) {
                self.unequal(Kind::Trigger, format!("{} on {}", trigger.name, trigger.on));
            }
        }
        let sets = |called: &Called| !matches!(nature(called), Some(Nature::Plain | Nature::Effect));
        if matches!(rule, '2' | '4') && relation.set_defaults.iter().any(sets) {
            self.unequal(Kind::Default, format!("a column that a foreign key to {} sets", relation.name));
        }
        for one in relation.rules.iter().filter(|one| one.event == rule) {
            if one.calls.iter().any(|called| !matches!(nature(called), Some(Nature::Plain | Nature::Effect))) {
                self.unequal(Kind::Rule, format!("{} on {}", one.name, relation.name));
            }
        }
    }

    fn hazards(&mut self) {
        if !self.facts.writes {
            return;
        }
        for hazard in &self.facts.hazards {
            let (kind, what) = match hazard {
                Hazard::Moment => (Kind::Clock, "a moment in a place where it cannot be rewritten"),
                Hazard::MomentInDefinition => (Kind::Clock, "a moment in a definition that is kept"),
                Hazard::LimitWithoutOrder => (Kind::Order, "LIMIT without ORDER BY"),
                Hazard::SkipLocked => (Kind::Order, "SKIP LOCKED"),
                Hazard::SystemColumn => (Kind::Server, "a system column"),
                Hazard::TableSample => (Kind::Random, "TABLESAMPLE"),
                Hazard::Code => (Kind::Opaque, "DO"),
                Hazard::ServerFile => (Kind::Opaque, "a file or program of the server"),
                Hazard::BareWord => (Kind::Literal, "a literal that may name a moment"),
                Hazard::Shape => (Kind::Order, "the numbering of rows that are there already"),
            };
            self.unequal(kind, what);
        }
    }

    fn finish(mut self, sql: &str) -> (Step, Vec<Edit>) {
        let facts = self.facts;
        self.edits.sort_by_key(|edit| (edit.at.start, edit.at.end));
        self.locks.sort();
        self.locks.dedup();
        let all = |class: &Class| if self.everywhere && *class == Class::Read { Class::ReadAll } else { class.clone() };
        let class = all(&facts.class);
        let inner = facts.inner.as_ref().map(all);
        let inner_reads = matches!(inner, None | Some(Class::Read));
        let read_only = match class {
            Class::Empty | Class::Read | Class::Show => true,
            Class::CopyOut | Class::Declare { .. } => inner_reads,
            _ => false,
        };
        let uses_now = self.edits.iter().any(|edit| edit.with.contains(crate::routing::moments::SETTING));
        let rewritten = (!self.edits.is_empty()).then(|| edited(sql, facts.range.clone(), &self.edits));
        let step = Step {
            class,
            inner,
            block: facts.block,
            read_only,
            range: facts.range.clone(),
            rewritten,
            uses_now,
            numbers: facts.numbers,
            locks: self.locks,
            unequal: self.unequal,
        };
        (step, self.edits)
    }
}

fn called_name(called: &Called) -> String {
    Name::of_schema(&called.schema, &called.name).to_string()
}
