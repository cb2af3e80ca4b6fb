//! Prepared statements shared by all clients: one number for each text with its parameter types, compared in full.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Texts remembered before those that no client has any more are dropped.
const KEPT: usize = 4096;

/// A statement's text and parameter types, as in a Parse message after the name.
#[derive(Debug)]
pub struct Statement {
    /// Never used for another text, so a server that holds the name holds this text.
    pub id: u64,
    /// The query, a zero byte, the count and the parameter types.
    pub query_and_types: Arc<[u8]>,
    /// Some server has accepted it.
    proven: AtomicBool,
}

impl Statement {
    /// Its name on servers.
    pub fn server_name(&self) -> String {
        format!("pgmend_{}", self.id)
    }

    /// A server has accepted its Parse.
    pub fn prove(&self) {
        self.proven.store(true, Ordering::Relaxed);
    }
}

/// All statements of all clients.
#[derive(Debug, Default)]
pub struct Statements {
    last_id: AtomicU64,
    by_text: Mutex<HashMap<Arc<[u8]>, Arc<Statement>>>,
}

impl Statements {
    /// The statement for a text that some server has accepted already.
    pub fn proven(&self, query_and_types: &[u8]) -> Option<Arc<Statement>> {
        let by_text = self.by_text.lock().unwrap_or_else(PoisonError::into_inner);
        by_text.get(query_and_types).filter(|s| s.proven.load(Ordering::Relaxed)).cloned()
    }

    /// The statement for a text; a new one if no client has it.
    pub fn intern(&self, query_and_types: &[u8]) -> Arc<Statement> {
        let mut by_text = self.by_text.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = by_text.get(query_and_types) {
            return known.clone();
        }
        if by_text.len() >= KEPT {
            by_text.retain(|_, s| Arc::strong_count(s) > 1);
        }
        let text: Arc<[u8]> = query_and_types.into();
        let id = self.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        let statement = Arc::new(Statement { id, query_and_types: text.clone(), proven: AtomicBool::new(false) });
        by_text.insert(text, statement.clone());
        statement
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_text_is_the_same_statement() {
        let statements = Statements::default();
        let a = statements.intern(b"select 1\0\0\0");
        assert_eq!(a.id, statements.intern(b"select 1\0\0\0").id);
        assert_ne!(a.id, statements.intern(b"select 2\0\0\0").id);
        assert_eq!(a.server_name(), "pgmend_1");
    }
}
