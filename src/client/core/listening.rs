//! What a client has been told of channels that its transaction has begun to listen to.
//!
//! PostgreSQL promises a session all that is notified "after an instant during the transaction's commit step"
//! (<https://www.postgresql.org/docs/current/sql-listen.html>). As long as the client does not know that the step is over, and
//! has looked at nothing since, that instant may be moved to when the shared listener has taken over. So the last
//! ReadyForQuery is kept back until then.

/// The answer to a transaction that listens.
#[derive(Debug, Default)]
pub(super) struct Listening {
    /// A ReadyForQuery is kept back.
    held: bool,
    /// The client knows of an earlier such transaction that is over.
    answered: bool,
    /// A transaction has ended since the last ReadyForQuery.
    committed: bool,
    /// Something has been looked at after that.
    looked: bool,
}

impl Listening {
    /// A command is complete.
    pub fn on_command(&mut self, tag: &[u8]) {
        match tag {
            b"COMMIT" => self.committed = true,
            b"LISTEN" => {}
            _ => self.looked |= self.committed,
        }
    }

    /// A ReadyForQuery has come; `listens`: since the last settlement somebody said LISTEN. True: it is to be kept back.
    pub fn on_ready(&mut self, ended: bool, clean: bool, listens: bool) -> bool {
        self.committed = false;
        self.looked &= listens;
        self.held = listens && clean;
        self.answered |= listens && ended && !clean;
        self.held
    }

    /// True when something is kept back.
    pub fn is_held(&self) -> bool {
        self.held
    }

    /// True when something was kept back: it is to be told now.
    pub fn release(&mut self) -> bool {
        self.answered |= self.held;
        std::mem::take(&mut self.held)
    }

    /// True when the client cannot know when it began to listen.
    pub fn is_secret(&self) -> bool {
        self.held && !self.answered && !self.looked
    }

    /// What it listens to is settled.
    pub fn forget(&mut self) {
        self.answered = false;
        self.looked = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Commands, then a ReadyForQuery.
    fn round(listening: &mut Listening, tags: &[&str], ended: bool, clean: bool, listens: bool) -> bool {
        tags.iter().for_each(|tag| listening.on_command(tag.as_bytes()));
        listening.on_ready(ended, clean, listens)
    }

    #[test]
    fn a_single_listen_is_kept_secret_until_it_is_told() {
        let mut l = Listening::default();
        assert!(!round(&mut l, &["COMMIT", "SELECT 1"], true, true, false));
        assert!(round(&mut l, &["LISTEN"], true, true, true));
        assert!(l.is_secret() && l.release() && !l.release() && !l.is_secret());
        l.forget();
        // In a block it is the end that counts.
        assert!(!round(&mut l, &["BEGIN", "LISTEN", "SELECT 1"], false, false, true));
        assert!(round(&mut l, &["COMMIT"], true, true, true) && l.is_secret());
    }

    #[test]
    fn who_has_looked_since_or_has_an_answer_knows() {
        let mut l = Listening::default();
        assert!(round(&mut l, &["LISTEN", "COMMIT", "SELECT 1"], true, true, true));
        assert!(!l.is_secret(), "a look at the data in a later transaction");
        let mut l = Listening::default();
        assert!(!round(&mut l, &["LISTEN"], true, false, true), "more is on its way");
        assert!(round(&mut l, &["SELECT 1"], true, true, true) && !l.is_secret());
        let mut l = Listening::default();
        assert!(round(&mut l, &["LISTEN"], true, true, true) && l.release());
        assert!(round(&mut l, &["LISTEN"], true, true, true) && !l.is_secret(), "the client went on meanwhile");
    }
}
