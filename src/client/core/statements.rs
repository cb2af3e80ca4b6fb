//! Prepared statements shared by all clients: one number for each text with its parameter types and the settings that
//! give it its meaning, compared in full.

use crate::client::scan::{self, Traces};
use crate::server::ParamSet;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Texts remembered before those that no client has any more are dropped.
const KEPT: usize = 4096;
/// Contexts remembered, likewise.
const KEPT_CONTEXTS: usize = 1024;

/// Settings that change what a text means when PostgreSQL analyses it: a literal such as `'now'` or `'1.2.2020'` becomes
/// a value then. Lower case. (`search_path` and roles are looked at again by PostgreSQL's plan cache, `plancache.c`.)
const MEANING: [&str; 16] = [
    "array_nulls",
    "backslash_quote",
    "client_encoding",
    "datestyle",
    "default_text_search_config",
    "intervalstyle",
    "lc_monetary",
    "lc_numeric",
    "lc_time",
    "search_path",
    "session_replication_role",
    "standard_conforming_strings",
    "timezone",
    "timezone_abbreviations",
    "transform_null_equals",
    "xmloption",
];

/// The settings under which a text was prepared.
#[derive(Debug, PartialEq, Eq)]
pub struct Context {
    /// By lower-case name; what is missing has the server's default.
    pub settings: BTreeMap<String, String>,
    /// How often prepared statements had changed what they return.
    alterations: u64,
    /// Not 0: settings that pgmend does not know are in force, so it is like no other.
    private: u64,
}

/// A statement's text and parameter types, as in a Parse message after the name.
#[derive(Debug)]
pub struct Statement {
    /// Never used for another text, so a server that holds the name holds this text.
    pub id: u64,
    /// Its name on servers.
    pub server_name: Box<str>,
    /// The query, a zero byte, the count and the parameter types.
    pub query_and_types: Arc<[u8]>,
    /// Under which settings it is to be prepared.
    pub context: Arc<Context>,
    /// What it may do to its session.
    pub traces: Traces,
    /// Settings of the user's own that it may name.
    pub custom: Vec<String>,
    /// Some server has accepted it.
    proven: AtomicBool,
}

impl Statement {
    /// A server has accepted its Parse.
    pub fn prove(&self) {
        self.proven.store(true, Ordering::Relaxed);
    }
}

/// All statements of all clients.
#[derive(Debug, Default)]
pub struct Statements {
    last_id: AtomicU64,
    alterations: AtomicU64,
    creations: AtomicU64,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    contexts: HashMap<BTreeMap<String, String>, Arc<Context>>,
    /// The last one that was asked for, and for whom: clients of one program share their settings, and come in numbers.
    last: Option<(ParamSet, Arc<Context>)>,
    /// By the context's address (it lives as long as an entry here), then the text.
    by_text: HashMap<usize, HashMap<Arc<[u8]>, Arc<Statement>>>,
    texts: usize,
}

impl Known {
    fn context(&mut self, wanted: &ParamSet, alterations: u64) -> Arc<Context> {
        let settings: BTreeMap<String, String> = MEANING
            .iter()
            .filter_map(|name| wanted.get(*name).map(|value| ((*name).to_owned(), value.clone())))
            .collect();
        if let Some(context) = self.contexts.get(&settings).filter(|c| c.alterations == alterations) {
            return context.clone();
        }
        if self.contexts.len() >= KEPT_CONTEXTS {
            self.contexts.retain(|_, c| Arc::strong_count(c) > 1);
        }
        let context = Arc::new(Context { settings: settings.clone(), alterations, private: 0 });
        self.contexts.insert(settings, context.clone());
        context
    }
}

impl Statements {
    /// The context of a client with these settings.
    pub fn context(&self, wanted: &ParamSet) -> Arc<Context> {
        let alterations = self.alterations.load(Ordering::Relaxed);
        let mut known = self.lock();
        if let Some((of, context)) = &known.last
            && ParamSet::ptr_eq(of, wanted)
            && context.alterations == alterations
        {
            return context.clone();
        }
        let context = known.context(wanted, alterations);
        known.last = Some((wanted.clone(), context.clone()));
        context
    }

    /// A context like `base` but of its own, for texts that are prepared while unknown settings are in force.
    pub fn private_context(&self, base: &Context) -> Arc<Context> {
        let private = self.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        Arc::new(Context { settings: base.settings.clone(), alterations: base.alterations, private })
    }

    /// Tables may have changed: texts prepared from now on are new statements.
    pub fn altered(&self) {
        self.alterations.fetch_add(1, Ordering::Relaxed);
    }

    /// Functions may have changed: what was learnt of them is outdated.
    pub fn created(&self) {
        self.creations.fetch_add(1, Ordering::Relaxed);
    }

    /// How often they may have changed.
    pub fn creations(&self) -> u64 {
        self.creations.load(Ordering::Relaxed)
    }

    /// True when contexts made before must be asked for anew.
    pub fn is_outdated(&self, context: &Context) -> bool {
        self.alterations.load(Ordering::Relaxed) != context.alterations
    }

    /// The statement for a text that some server has accepted already.
    pub fn proven(&self, context: &Arc<Context>, query_and_types: &[u8]) -> Option<Arc<Statement>> {
        let known = self.lock();
        let here = known.by_text.get(&Arc::as_ptr(context).addr())?;
        here.get(query_and_types).filter(|s| s.proven.load(Ordering::Relaxed)).cloned()
    }

    /// The statement for a text; a new one if no client has it.
    pub fn intern(&self, context: &Arc<Context>, query_and_types: &[u8]) -> Arc<Statement> {
        let context_key = Arc::as_ptr(context).addr();
        let mut known = self.lock();
        if let Some(found) = known.by_text.get(&context_key).and_then(|here| here.get(query_and_types)) {
            return found.clone();
        }
        if known.texts >= KEPT {
            known.forget_unused();
        }
        let text: Arc<[u8]> = query_and_types.into();
        let id = self.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        let query = text.split(|b| *b == 0).next().unwrap_or_default();
        let traces = scan::classify(query);
        let custom = if traces.has(Traces::LEAVES) { scan::custom_names(query) } else { Vec::new() };
        let statement = Arc::new(Statement {
            id,
            server_name: format!("pgmend_{id}").into(),
            query_and_types: text.clone(),
            context: context.clone(),
            traces,
            custom,
            proven: AtomicBool::new(false),
        });
        // A private context is no other client's, so its statements need not be found; and a text that names a moment means
        // something else each time.
        if context.private == 0 && !traces.has(Traces::MOMENT) {
            known.by_text.entry(context_key).or_default().insert(text, statement.clone());
            known.texts += 1;
        }
        statement
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    /// Forgets the texts that no client has any more.
    fn forget_unused(&mut self) {
        for here in self.by_text.values_mut() {
            here.retain(|_, statement| Arc::strong_count(statement) > 1);
        }
        self.by_text.retain(|_, here| !here.is_empty());
        self.texts = self.by_text.values().map(HashMap::len).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(pairs: &[(&str, &str)]) -> ParamSet {
        ParamSet::new(pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn the_same_text_is_the_same_statement() {
        let statements = Statements::default();
        let context = statements.context(&set(&[]));
        let a = statements.intern(&context, b"select 1\0\0\0");
        assert_eq!(a.id, statements.intern(&context, b"select 1\0\0\0").id);
        assert_ne!(a.id, statements.intern(&context, b"select 2\0\0\0").id);
        assert_eq!(&*a.server_name, "pgmend_1");
    }

    #[test]
    fn settings_that_change_the_meaning_make_another_statement() {
        let statements = Statements::default();
        let intern = |pairs: &[(&str, &str)]| statements.intern(&statements.context(&set(pairs)), b"q\0\0\0").id;
        let plain = intern(&[]);
        assert_eq!(intern(&[("application_name", "x")]), plain);
        let berlin = intern(&[("timezone", "Europe/Berlin")]);
        assert_ne!(berlin, plain);
        assert_eq!(intern(&[("timezone", "Europe/Berlin"), ("work_mem", "1")]), berlin);
    }

    #[test]
    fn after_an_alteration_a_text_is_a_new_statement() {
        let statements = Statements::default();
        let context = statements.context(&set(&[]));
        let before = statements.intern(&context, b"q\0\0\0");
        statements.altered();
        assert!(statements.is_outdated(&context));
        let after = statements.intern(&statements.context(&set(&[])), b"q\0\0\0");
        assert_ne!(before.id, after.id);
    }

    #[test]
    fn a_text_that_names_a_moment_is_shared_with_nobody() {
        let statements = Statements::default();
        let context = statements.context(&set(&[]));
        let text = b"select 'now'::timestamptz\0\0\0";
        assert_ne!(statements.intern(&context, text).id, statements.intern(&context, text).id);
    }

    #[test]
    fn statements_of_a_private_context_are_found_by_nobody() {
        let statements = Statements::default();
        let private = statements.private_context(&statements.context(&set(&[])));
        statements.intern(&private, b"q\0\0\0").prove();
        assert!(statements.proven(&private, b"q\0\0\0").is_none());
    }
}
