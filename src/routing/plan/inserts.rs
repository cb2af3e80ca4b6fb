//! INSERT: columns that take their default are locked for, written down, or found unequal.

use super::defaults::{Default, judged, nature};
use super::step::Building;
use crate::routing::catalog::{Column, Relation};
use crate::routing::facts::{Assigned, Given};
use crate::routing::functions::Nature;
use crate::routing::insert::Insert;
use crate::routing::moments::Edit;
use crate::routing::policy::Kind;
use std::ops::Range;

/// How one column of an INSERT gets its values.
#[derive(PartialEq, Eq)]
enum Filled {
    Given,
    /// In some rows by the word DEFAULT.
    ByWord,
    LeftOut,
    /// Depends on how many columns a query has.
    PerhapsLeftOut,
}

impl Building<'_> {
    /// One INSERT, COPY or INSERT of MERGE.
    pub(super) fn insert(&mut self, insert: &Insert) {
        let Some(relation) = self.catalog.relation(&insert.relation).cloned() else { return };
        if relation.kind == 'v' {
            self.below_view(&relation);
        }
        let given = self.given_columns(insert, &relation);
        let mut added = Vec::new();
        let mut numbered = false;
        for column in relation.columns.iter().filter(|column| !column.generated) {
            let filled = filled(column, insert, given.as_deref());
            let overridden = insert.overriding_user && column.identity;
            if filled == Filled::Given && !overridden {
                continue;
            }
            numbered |= !column.sequences.is_empty();
            self.generated(&relation, column);
            match (judged(column), filled) {
                (Default::Equal, _) | (_, Filled::Given) => {}
                (Default::Moment(written), Filled::LeftOut) => added.push((column.name.as_str(), written)),
                (Default::Moment(written), Filled::ByWord) => {
                    let places = words(insert, given.as_deref(), &column.name);
                    self.edits.extend(places.map(|at| Edit { at, with: written.clone() }));
                }
                (Default::Moment(_) | Default::Unequal, _) => self.default_of(&relation, column),
            }
        }
        self.add_columns(insert, &relation, given.as_deref(), &added);
        self.moment_words(insert, &relation, given.as_deref());
        if insert.unordered && numbered {
            self.unequal(Kind::Order, format!("the numbering of the rows inserted into {}", relation.name));
        }
    }

    /// The columns that are given, in the order of their values; `None` when a query's width is not known.
    fn given_columns(&self, insert: &Insert, relation: &Relation) -> Option<Vec<String>> {
        if let Some(columns) = &insert.columns {
            return Some(columns.clone());
        }
        let width = match (&insert.star_of, insert.width) {
            (Some(source), _) => self.catalog.relation(source)?.columns.len(),
            (None, width) => width?,
        };
        Some(relation.columns.iter().take(width).map(|column| column.name.clone()).collect())
    }

    /// The sequences from which a column takes its numbers. Those of temporary tables are the session's own.
    fn generated(&mut self, relation: &Relation, column: &Column) {
        if relation.persistence != 't' {
            self.lock_generated(&column.sequences);
        }
    }

    fn default_of(&mut self, relation: &Relation, column: &Column) {
        self.unequal(Kind::Default, format!("column {}.{}", relation.name, column.name));
    }

    fn add_columns(
        &mut self,
        insert: &Insert,
        relation: &Relation,
        given: Option<&[String]>,
        added: &[(&str, String)],
    ) {
        if added.is_empty() {
            return;
        }
        match &insert.places {
            Some(places) => {
                let named: Option<Vec<&str>> = match insert.columns {
                    Some(_) => None,
                    None => given.map(|given| given.iter().map(String::as_str).collect()),
                };
                self.edits.extend(places.add(named.as_deref(), added));
            }
            None => {
                for (name, _) in added {
                    self.unequal(Kind::Default, format!("column {}.{name}", relation.name));
                }
            }
        }
    }

    /// Bare literals such as `'now'` that a column of dates and times is given.
    fn moment_words(&mut self, insert: &Insert, relation: &Relation, given: Option<&[String]>) {
        for (number, what, at) in &insert.given {
            let name = given.and_then(|given| given.get(*number));
            let column = name.and_then(|name| relation.columns.iter().find(|column| column.name == *name));
            self.moment_word(relation, column, what, at);
        }
    }

    fn moment_word(&mut self, relation: &Relation, column: Option<&Column>, what: &Given, at: &Range<usize>) {
        let Some(column) = column.filter(|column| column.temporal) else { return };
        match what {
            Given::Default => {}
            Given::Word(word) => self.edits.push(Edit { at: at.clone(), with: word.written() }),
            Given::Phrase => {
                self.unequal(Kind::Clock, format!("the literal for column {}.{}", relation.name, column.name));
            }
        }
    }

    /// `SET column = DEFAULT` and `SET column = 'now'`.
    pub(super) fn assigned(&mut self, assigned: &Assigned) {
        let Some(relation) = self.catalog.relation(&assigned.relation).cloned() else { return };
        let Some(column) = relation.columns.iter().find(|column| column.name == assigned.column) else { return };
        if assigned.what != Given::Default {
            return self.moment_word(&relation, Some(column), &assigned.what, &assigned.at);
        }
        self.generated(&relation, column);
        if !column.sequences.is_empty() {
            self.unequal(Kind::Order, format!("the numbering of the rows updated in {}", relation.name));
        }
        match judged(column) {
            Default::Equal => {}
            Default::Moment(with) => self.edits.push(Edit { at: assigned.at.clone(), with }),
            Default::Unequal => self.default_of(&relation, column),
        }
    }

    /// A view passes an INSERT on to tables whose defaults are then theirs.
    fn below_view(&mut self, view: &Relation) {
        self.lock_generated(&view.sequences_below);
        for called in &view.below {
            match nature(called) {
                Some(Nature::Plain | Nature::Effect) => {}
                Some(Nature::TakesNumber) if !view.sequences_below.is_empty() => {}
                _ => self.unequal(Kind::Default, format!("a column below view {}", view.name)),
            }
        }
    }
}

fn filled(column: &Column, insert: &Insert, given: Option<&[String]>) -> Filled {
    match given {
        None => Filled::PerhapsLeftOut,
        Some(given) => match given.iter().position(|name| *name == column.name) {
            None => Filled::LeftOut,
            Some(number) => {
                let by_word = insert.given.iter().any(|(n, what, _)| *n == number && *what == Given::Default);
                if by_word { Filled::ByWord } else { Filled::Given }
            }
        },
    }
}

/// Where the word DEFAULT stands for a column.
fn words<'a>(
    insert: &'a Insert,
    given: Option<&[String]>,
    column: &str,
) -> impl Iterator<Item = Range<usize>> + use<'a> {
    let number = given.and_then(|given| given.iter().position(|name| name == column));
    insert
        .given
        .iter()
        .filter(move |(n, what, _)| Some(*n) == number && *what == Given::Default)
        .map(|(_, _, at)| at.clone())
}
