//! From a text to its plan: what `routing` says of it with what the main node's catalog says.

use super::bundle::Asked;
use super::everywhere::connection_lost;
use super::level::qualified;
use super::session::{Session, Standing, Told};
use super::texts::{Age, BySql, How, Named, Needs, Placement, Planned, Sequence, Step};
use crate::auth::scram::ScramVerifier;
use crate::client::fault::Fault;
use crate::client::scan::Traces;
use crate::net::Stream;
use crate::routing::{self, Block, Catalog, Class, Isolation, Modes, Parsed, Plan, Policy, Unequal, Unparsed, Verdict};
use crate::server::ParamSet;
use crate::wire::backend::ErrorFields;
use std::collections::HashMap;
use std::rc::Rc;

/// Texts whose plans are remembered for one kind of client.
const MAX_TEXTS: usize = 2000;
/// Longer texts are planned anew each time.
const MAX_KEPT_TEXT: usize = 16 * 1024;
/// Names of relations and functions that are remembered for one kind of client.
const MAX_NAMES: usize = 10_000;
/// Kinds of clients: databases, users, settings.
const MAX_BOOKS: usize = 256;
/// Seconds for which the catalog's answers are good; definitions may be changed past pgmend.
const GOOD_S: u64 = 60;
/// PostgreSQL's default (`scram_iterations`).
const ITERATIONS: u32 = 4096;

/// What is known of texts and the catalog, for clients of one kind.
#[derive(Debug)]
struct Book {
    catalog: Catalog,
    texts: HashMap<Vec<u8>, Rc<Planned>>,
    until_s: u64,
    /// The count of definitions' changes that it was written under.
    creations: u64,
    policy: Policy,
}

/// The books of a worker.
#[derive(Debug, Default)]
pub struct Books(HashMap<(String, String, ParamSet), Book>);

impl Session {
    /// What a text comes to; the inner error is the client's.
    pub(super) async fn plan(&mut self, client: &mut Stream, text: &[u8]) -> Told<Rc<Planned>> {
        let shared = self.may_share();
        if shared && let Some(known) = self.book(|book| book.texts.get(text).cloned()) {
            return Ok(Ok(known));
        }
        let plain = self
            .legs
            .first()
            .is_none_or(|leg| leg.core.wanted().get("standard_conforming_strings").is_none_or(|v| v == "on"));
        let readable = std::str::from_utf8(text).ok().filter(|sql| plain || !sql.contains('\\'));
        let policy = self.settings().policy;
        let parsed = match readable.map(Parsed::of) {
            Some(Ok(parsed)) => parsed,
            Some(Err(unparsed)) => {
                let unequal = unparsed.unequal(readable.unwrap_or_default());
                return Ok(Ok(Rc::new(Planned {
                    steps: vec![unread(text, &unequal, &policy)],
                    written: vec![text.to_vec()],
                })));
            }
            None => {
                let unequal = Unparsed::Syntax.unequal(&String::from_utf8_lossy(text));
                return Ok(Ok(Rc::new(Planned {
                    steps: vec![unread(text, &unequal, &policy)],
                    written: vec![text.to_vec()],
                })));
            }
        };
        let catalog = match self.catalog_for(client, &parsed, shared).await? {
            Ok(catalog) => catalog,
            Err(error) => return Ok(Err(error)),
        };
        let plan = parsed.plan(&catalog, &policy);
        if !plan.passwords.is_empty() {
            return Ok(self.with_hashed_passwords(&plan, &catalog, &policy));
        }
        let planned = Rc::new(self.planned(&parsed, &plan, &policy));
        // In a failed transaction nothing could be asked: what was made of ignorance is nobody else's.
        if shared && text.len() <= MAX_KEPT_TEXT && self.standing != Standing::Failed {
            let kept = planned.clone();
            self.book(|book| {
                if book.texts.len() >= MAX_TEXTS {
                    book.texts.clear();
                }
                book.texts.insert(text.to_vec(), kept);
            });
        }
        Ok(Ok(planned))
    }

    /// True when a text means to this client what it means to others of its kind: nothing of its own stands in front of
    /// what others see, and the transaction has changed neither settings nor definitions.
    fn may_share(&self) -> bool {
        let own = Traces::LEAVES.with(Traces::LOCAL).with(Traces::CREATES).with(Traces::ALTERS);
        !self.bound && !self.legs.iter().any(|leg| leg.core.traces().touches(own))
    }

    /// Definitions may be others than when this was planned.
    pub(super) fn is_outdated(&self, age: Age) -> bool {
        let defines = Traces::CREATES.with(Traces::ALTERS);
        age.creations != self.plane.statements.creations()
            || self.worker.now_s().saturating_sub(age.second) >= GOOD_S
            || self.legs.iter().any(|leg| leg.core.traces().touches(defines))
    }

    /// Works on the book of this client's kind, if it is up to date, else on a new one.
    fn book<T>(&self, work: impl FnOnce(&mut Book) -> T) -> T {
        let wanted = self.legs.first().map(|leg| leg.core.wanted().clone()).unwrap_or_default();
        let (user, database) = self.who();
        let now_s = self.worker.now_s();
        let creations = self.plane.statements.creations();
        let policy = self.settings().policy;
        let mut books = self.worker.books.borrow_mut();
        if books.0.len() >= MAX_BOOKS {
            books.0.retain(|_, book| book.until_s > now_s);
        }
        if books.0.len() >= MAX_BOOKS {
            books.0.clear();
        }
        let new =
            || Book { catalog: Catalog::default(), texts: HashMap::new(), until_s: now_s + GOOD_S, creations, policy };
        let book = books.0.entry((user, database, wanted)).or_insert_with(new);
        if book.until_s <= now_s || book.creations != creations || book.policy != policy {
            *book = new();
        }
        work(book)
    }

    /// The catalog with what the text wants to know. In a failed transaction nothing can be asked, nor is it of use.
    async fn catalog_for(&mut self, client: &mut Stream, parsed: &Parsed, shared: bool) -> Told<Catalog> {
        let mut catalog = if shared { self.book(|book| book.catalog.clone()) } else { Catalog::default() };
        let lacks = catalog.lacks(parsed.wants());
        let Some(question) = lacks.question().filter(|_| self.standing != Standing::Failed) else {
            return Ok(Ok(catalog));
        };
        if self.standing == Standing::Open
            && let Err(error) = self.take_snapshot(client).await?
        {
            return Ok(Err(error));
        }
        let rows = match self.ask_main(client, question).await? {
            Ok(rows) => rows,
            Err(error) => return Ok(Err(error)),
        };
        if catalog.learn(&lacks, &rows).is_err() {
            return Err(Fault::ServerProtocol("the catalog's answer cannot be read".into()));
        }
        if shared {
            self.book(|book| {
                if book.catalog.len() > MAX_NAMES {
                    book.catalog = Catalog::default();
                }
                // They could be read a moment ago.
                let _ = book.catalog.learn(&lacks, &rows);
            });
        }
        Ok(Ok(catalog))
    }

    /// Asks the main node, or the one that takes its place when it is lost meanwhile; in a transaction that is its end.
    pub(super) async fn ask_main(&mut self, client: &mut Stream, question: String) -> Told<Vec<Vec<Option<String>>>> {
        // A connection may have ended unnoticed on each of them; and then the others are asked.
        for _ in 0..=self.legs.len() {
            while self.legs.first().is_none_or(|leg| leg.pooled.is_none()) {
                if self.legs.is_empty() {
                    self.lease_all(client).await?;
                } else if !self.lease(client, &[0]).await? {
                    self.refresh()?;
                }
            }
            match self.ask(client, 0, question.clone()).await? {
                Asked::Rows(rows) => return Ok(Ok(rows)),
                Asked::Refused(error) => return Ok(Err(*error)),
                Asked::Lost => drop(self.drop_lost().await?),
            }
            if self.standing != Standing::None {
                break;
            }
            self.refresh()?;
        }
        Ok(Err(connection_lost()))
    }

    /// A password is hashed once for all nodes: a salt of its own on each would break the keys that a client's login leaves.
    fn with_hashed_passwords(
        &self,
        plan: &Plan,
        catalog: &Catalog,
        policy: &Policy,
    ) -> Result<Rc<Planned>, ErrorFields> {
        let mut verifiers = Vec::new();
        for password in &plan.passwords {
            let mut salt = vec![0; 16];
            getrandom::fill(&mut salt).map_err(|e| ErrorFields::error("58000", format!("no random numbers: {e}")))?;
            verifiers.push(ScramVerifier::derive(password.plain.expose(), salt, ITERATIONS).to_string());
        }
        let hashed = plan.with_verifiers(&verifiers);
        let parsed = Parsed::of(&hashed).map_err(|e| ErrorFields::error("XX000", e.to_string()))?;
        let plan = parsed.plan(catalog, policy);
        Ok(Rc::new(self.planned(&parsed, &plan, policy)))
    }

    fn planned(&self, parsed: &Parsed, plan: &Plan, policy: &Policy) -> Planned {
        let main_only = plan.hints.no_load_balance;
        let steps = plan.statements.iter().map(|step| self.step_of(parsed.sql(), step, policy, main_only)).collect();
        let written =
            |step: &routing::Step| parsed.sql().get(step.range.clone()).unwrap_or_default().as_bytes().to_vec();
        Planned { steps, written: plan.statements.iter().map(written).collect() }
    }

    fn step_of(&self, sql: &str, step: &routing::Step, policy: &Policy, main_only: bool) -> Step {
        let original = sql.get(step.range.clone()).unwrap_or_default();
        let how = match how(&step.class, step.read_only, original, self.isolates()) {
            Ok(How::One) if main_only => How::Main,
            Ok(how) => how,
            Err(error) => How::Refused(Box::new(error)),
        };
        let verdict = step.unequal.iter().map(|one| one.verdict(policy)).max().unwrap_or(Verdict::Allow);
        let to_all = matches!(how, How::All);
        let how = match verdict {
            Verdict::Refuse if to_all => How::Refused(Box::new(refused(&step.unequal))),
            Verdict::Refuse | Verdict::Warn | Verdict::Allow => how,
        };
        let notices = match verdict {
            Verdict::Warn if to_all => step.unequal.iter().map(warning).collect(),
            Verdict::Warn | Verdict::Refuse | Verdict::Allow => Vec::new(),
        };
        let text = match to_all {
            true => step.rewritten.as_deref().unwrap_or(original),
            false => original,
        };
        let text = if let How::Begin { text } = &how { text.as_str() } else { text };
        let sequences =
            step.locks.iter().map(|lock| Sequence { oid: lock.oid, name: qualified(&lock.schema, &lock.name) });
        let needs = Needs {
            now: step.uses_now,
            numbers: step.numbers,
            sequences: sequences.collect(),
            // A cursor brings rows in the order in which they lie.
            blind: !step.unequal.is_empty() || matches!(step.class, Class::Fetch(_)),
            copy_in: step.class == Class::CopyIn,
            defines: step.class == Class::Ddl,
            harmless: is_harmless(&step.class),
            finishes: step.class == Class::FinishPrepared,
            prepares: step.class == Class::PrepareTransaction,
            ..Needs::default()
        };
        let names = named(&step.class, original, text, &needs);
        Step {
            text: text.as_bytes().to_vec(),
            needs: match step.class {
                Class::Prepare(_) => Needs { harmless: true, ..Needs::default() },
                _ => needs,
            },
            placement: placement(&step.class, step.block),
            notices,
            warns_late: false,
            names,
            how,
        }
    }
}

/// What a statement does to those that SQL prepares.
fn named(class: &Class, written: &str, sent: &str, needs: &Needs) -> Vec<Named> {
    let (written, sent) = (written.as_bytes().to_vec(), sent.as_bytes().to_vec());
    match class {
        Class::Prepare(name) => {
            let prepared = BySql { written, sent, needs: Needs { harmless: false, ..needs.clone() } };
            vec![Named::Prepares(name.clone(), Rc::new(prepared))]
        }
        Class::Execute(name) => vec![Named::Executes(name.clone())],
        Class::Deallocate(name) => vec![Named::Deallocates(name.clone())],
        Class::Discard { all: true } => vec![Named::Deallocates(None)],
        _ => Vec::new(),
    }
}

/// A statement whose parameters may name a moment, which each node would take for its own.
pub(super) fn with_moment(step: &Step, policy: &Policy) -> Result<Step, ErrorFields> {
    let what = "a parameter that names a moment, if its type is one of dates and times,".into();
    let one = Unequal { kind: routing::Kind::Literal, what };
    let mut step = Step { needs: Needs { blind: true, ..step.needs.clone() }, ..step.clone() };
    match one.verdict(policy) {
        Verdict::Refuse => return Err(refused(&[one])),
        Verdict::Warn => step.notices.push(warning(&one)),
        Verdict::Allow => {}
    }
    Ok(step)
}

/// Of which nothing is known but its words: all nodes carry it out.
fn unread(text: &[u8], unequal: &[Unequal], policy: &Policy) -> Step {
    let needs = Needs { blind: true, ..Needs::default() };
    let step = Step { text: text.to_vec(), warns_late: true, ..Step::all(needs) };
    match unequal.iter().map(|one| one.verdict(policy)).max() {
        Some(Verdict::Refuse) => Step { how: How::Refused(Box::new(refused(unequal))), ..step },
        Some(Verdict::Warn) => Step { notices: unequal.iter().map(warning).collect(), ..step },
        Some(Verdict::Allow) | None => step,
    }
}

/// Where a statement of this class goes.
fn how(class: &Class, read_only: bool, text: &str, isolates: bool) -> Result<How, ErrorFields> {
    Ok(match class {
        Class::Begin(modes) if isolates => How::Begin { text: isolated(modes, text)? },
        Class::Begin(_) => How::Begin { text: text.to_owned() },
        Class::Commit { chain } => How::End { keeps: true, chain: *chain },
        Class::Rollback { chain } => How::End { keeps: false, chain: *chain },
        Class::PrepareTransaction => How::End { keeps: true, chain: false },
        Class::Savepoint => How::Savepoint,
        Class::Listen | Class::Notify | Class::Unlisten | Class::CopyToServer => How::Main,
        // A cursor and a statement prepared by SQL are on every node, and so is what is done with them.
        Class::Declare { .. } | Class::Fetch(_) | Class::Close(_) => How::All,
        Class::Prepare(_) | Class::Execute(_) | Class::Deallocate(_) => How::All,
        Class::Set { .. } | Class::SetTransaction { .. } | Class::Discard { .. } => How::All,
        Class::Empty | Class::Show => How::One,
        Class::Read | Class::CopyOut if read_only => How::One,
        Class::Read
        | Class::CopyOut
        | Class::ReadAll
        | Class::Write
        | Class::FinishPrepared
        | Class::CopyIn
        | Class::CopyFromServer
        | Class::Lock
        | Class::Ddl
        | Class::Utility => How::All,
    })
}

/// Snapshots agree only under repeatable read, and above.
fn isolated(modes: &Modes, text: &str) -> Result<String, ErrorFields> {
    match modes.isolation {
        Some(Isolation::RepeatableRead | Isolation::Serializable) => Ok(text.to_owned()),
        None => {
            let comma = if modes.read_only.is_some() || modes.deferrable.is_some() { "," } else { "" };
            Ok(format!("{} {comma}ISOLATION LEVEL REPEATABLE READ", text.trim_end()))
        }
        Some(Isolation::ReadCommitted | Isolation::ReadUncommitted) => Err(ErrorFields::error(
            "0A000",
            "read committed is not offered in snapshot_isolation mode: nodes would not see the same",
        )
        .with_hint("Leave the isolation level out, or ask for REPEATABLE READ.")),
    }
}

/// Whether it runs in a transaction of pgmend's own when the client has none.
fn placement(class: &Class, block: Block) -> Placement {
    match (class, block) {
        (_, Block::Refused) => Placement::Outside,
        (_, Block::MayCommit) => Placement::InParts,
        (Class::Set { .. } | Class::SetTransaction { session: true, .. } | Class::Discard { .. }, _) => {
            Placement::Either
        }
        (Class::Prepare(_) | Class::Deallocate(_), _) => Placement::Either,
        (_, Block::Allowed) => Placement::Inside,
    }
}

/// What it does is no part of the data.
fn is_harmless(class: &Class) -> bool {
    matches!(class, Class::Set { .. } | Class::SetTransaction { .. } | Class::Discard { .. } | Class::Utility)
        || matches!(class, Class::Prepare(_) | Class::Deallocate(_) | Class::Show | Class::Empty)
}

fn refused(unequal: &[Unequal]) -> ErrorFields {
    let reasons: Vec<String> = unequal.iter().map(ToString::to_string).collect();
    ErrorFields::error("0A000", "the statement could leave the nodes different")
        .with_detail(reasons.join("; "))
        .with_hint(
            "Compute the value in the application, or let it through: see unequal_values and its kin in the manual.",
        )
}

fn warning(one: &Unequal) -> ErrorFields {
    let fields = ErrorFields::error("01000", format!("the nodes may become different: {one}"));
    ErrorFields { severity: "WARNING".into(), ..fields }
}
