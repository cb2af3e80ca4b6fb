//! Statements that SQL prepares: an EXECUTE needs what its PREPARE needs, as definitions are now.

use super::batch::age_of;
use super::session::{Session, Told};
use super::texts::{BySql, MAX_BY_SQL, Named, Needs, Step};
use crate::net::Stream;
use crate::wire::backend::ErrorFields;
use std::rc::Rc;

impl Session {
    /// What a step needs, with what the statements need that it carries out by name. The inner error is the client's.
    pub(super) async fn needs_of(&mut self, client: &mut Stream, step: &Step) -> Told<Needs> {
        let mut needs = step.needs.clone();
        for (at, named) in step.names.iter().enumerate() {
            match named {
                Named::Executes(name) => {
                    let before = step.names.get(..at).unwrap_or_default();
                    match self.needs_of_named(client, name, before).await? {
                        Ok(other) => needs = needs.together(&other),
                        Err(error) => return Ok(Err(error)),
                    }
                }
                Named::Prepares(name, _) if !self.texts.has_room_for(name) => return Ok(Err(too_many())),
                Named::Prepares(..) | Named::Deallocates(_) => {}
            }
        }
        Ok(Ok(needs))
    }

    /// `before`: what the same piece of work has prepared.
    async fn needs_of_named(&mut self, client: &mut Stream, name: &str, before: &[Named]) -> Told<Needs> {
        let fresh = before.iter().rev().find_map(|named| match named {
            Named::Prepares(of, prepared) if of == name => Some(prepared.needs.clone()),
            Named::Prepares(..) | Named::Executes(_) | Named::Deallocates(_) => None,
        });
        if let Some(needs) = fresh {
            return Ok(Ok(needs));
        }
        // Of one that nobody knows the server says that there is none.
        let unknown = || Needs { blind: true, ..Needs::default() };
        let Some((prepared, age)) = self.texts.by_sql(name) else { return Ok(Ok(unknown())) };
        if !self.is_outdated(age) {
            return Ok(Ok(prepared.needs.clone()));
        }
        let age = age_of(self);
        let planned = match self.plan(client, &prepared.written).await? {
            Ok(planned) => planned,
            Err(error) => return Ok(Err(error)),
        };
        let new = planned.steps.first().and_then(|step| step.names.first()).and_then(|named| match named {
            Named::Prepares(_, new) => Some(new.clone()),
            Named::Executes(_) | Named::Deallocates(_) => None,
        });
        // The servers have its old text: a default that has come since would be each node's own.
        let Some(new) = new.filter(|new| new.sent == prepared.sent) else { return Ok(Err(redefined(name))) };
        self.texts.note_named(&[Named::Prepares(name.to_owned(), new.clone())], age);
        Ok(Ok(new.needs.clone()))
    }

    /// What became of the names. Where the work has failed, a PREPARE of it may have been done before.
    pub(super) fn note_named(&mut self, names: &[Named], done: bool) {
        let age = age_of(self);
        if done {
            return self.texts.note_named(names, age);
        }
        for named in names {
            if let Named::Prepares(name, prepared) = named
                && self.texts.by_sql(name).is_none()
                && self.texts.has_room_for(name)
            {
                let prepared: Rc<BySql> = prepared.clone();
                self.texts.note_named(&[Named::Prepares(name.clone(), prepared)], age);
            }
        }
    }
}

fn too_many() -> ErrorFields {
    ErrorFields::error("54000", format!("more than {MAX_BY_SQL} statements are prepared by PREPARE"))
        .with_hint("DEALLOCATE those that are not needed any more.")
}

fn redefined(name: &str) -> ErrorFields {
    let told = format!("what prepared statement \"{name}\" uses has been redefined");
    ErrorFields::error("0A000", told).with_hint("DEALLOCATE it and PREPARE it again.")
}
