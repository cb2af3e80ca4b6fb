//! Which reply is owed: the queue of requests that a server has not answered yet. Pure; on the path of every message.
//!
//! <https://www.postgresql.org/docs/current/protocol-flow.html>. What a server does between an error and the next Sync,
//! and with messages during COPY, follows `tcop/postgres.c` and `CopyGetData`.

use super::WireError;
use std::cell::RefCell;
use std::collections::VecDeque;

/// Most requests without a reply, of one client. [`Replies::is_full`] tells the reader to stop before it is an error.
pub const MAX_REQUESTS: usize = 1 << 20;
/// A queue that a long pipeline has grown is given back to this many entries when it is empty again.
const KEEP_CAPACITY: usize = 1 << 10;

/// Queues of sessions that rest, kept per thread for those that work.
const MAX_SPARE: usize = 256;

thread_local! {
    static SPARE: RefCell<Vec<VecDeque<Expect>>> = const { RefCell::new(Vec::new()) };
}

/// A request whose reply is expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// Query: anything up to ReadyForQuery.
    Query,
    /// FunctionCall: its result, then ReadyForQuery.
    Function,
    /// Parse.
    Parse {
        /// False: pgmend sent it by itself, so its ParseComplete is not the client's.
        forward: bool,
        /// The caller's number of the statement, given back when it is parsed or when it failed.
        statement: u64,
        /// The caller's number of the client's name for it, given back likewise.
        name: u32,
    },
    /// A Parse that is not sent: the client gets a ParseComplete in its turn.
    FakeParse {
        /// The caller's number of the client's name, given back when it was skipped.
        name: u32,
    },
    /// Bind.
    Bind {
        /// The caller's number of the statement that it names; see [`Replies::failed_request`].
        statement: u64,
        /// The caller's number of the client's name for it.
        name: u32,
    },
    /// Describe.
    Describe {
        /// The caller's number of the client's name of the statement, if it names one.
        name: u32,
    },
    /// Execute.
    Execute,
    /// Close.
    Close,
    /// Close of a statement, sent by pgmend itself: its CloseComplete is not the client's.
    OwnClose {
        /// The caller's number, given back when the Close was skipped.
        statement: u64,
    },
    /// Bind sent by pgmend itself.
    OwnBind,
    /// Execute sent by pgmend itself: neither its rows nor its CommandComplete are the client's.
    OwnExecute,
    /// A Close that is not sent: the client gets a CloseComplete in its turn.
    FakeClose {
        /// The caller's number of the client's name, given back when it was skipped.
        name: u32,
    },
    /// Sync.
    Sync,
    /// CopyDone or CopyFail. It has no reply; it marks which Syncs a COPY takes with it.
    CopyEnd,
}

impl Expect {
    fn brings_ready(self) -> bool {
        matches!(self, Expect::Query | Expect::Function | Expect::Sync)
    }
}

/// What became of a pushed request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    /// Its reply is awaited.
    Kept,
    /// There will be no reply: the server skips it (after an error, or a Sync during COPY), or needs none.
    NoReply,
}

/// What a message from the server means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// Part of a reply: for the client.
    Forward,
    /// ParameterStatus, NotificationResponse or NoticeResponse: for the client, at any time.
    Async,
    /// ReadyForQuery: for the client. The server may be let go when `status` is `I` and [`Replies::is_quiet`].
    ForwardThenReady {
        /// `I`, `T` or `E`.
        status: u8,
    },
    /// A reply to a message of pgmend's own: not for the client.
    Own,
    /// ParseComplete; for the client only when `forward`.
    ParseDone {
        /// The number given to [`Expect::Parse`].
        name: u32,
        /// Whether the client gets it.
        forward: bool,
    },
    /// ErrorResponse: for the client. [`Replies::drain_skipped`] has the statements that do not exist.
    Failed,
    /// ErrorResponse that answers nothing: the server ends the connection (shutdown, timeout).
    Fatal,
}

/// A message that the server skipped, as an error came before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skipped {
    /// The client's name of this number does not exist.
    NewName(u32),
    /// The statement of this number does not exist, nor the name.
    Parse {
        /// As given to [`Expect::Parse`].
        statement: u64,
        /// Likewise.
        name: u32,
    },
    /// The statement of this number still exists.
    Close(u64),
    /// The client's name of this number still exists.
    Name(u32),
}

/// A message that pgmend makes for the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fake {
    /// ParseComplete.
    ParseComplete,
    /// CloseComplete.
    CloseComplete,
}

/// COPY that is going on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Copy {
    None,
    /// The server reads; the client has not sent CopyDone or CopyFail.
    In,
    /// The server reads; the client has sent its CopyDone or CopyFail.
    InEnding,
    /// The server writes.
    Out,
}

/// The requests sent to one server for one client, without a reply yet.
#[derive(Debug)]
pub struct Replies {
    queue: VecDeque<Expect>,
    copy: Copy,
    /// An extended-protocol message failed: the server skips everything up to the next Sync.
    failed: bool,
    /// Something was sent since the last ReadyForQuery that left nothing owed.
    open: bool,
    /// Requests in `queue` that bring a ReadyForQuery.
    ready_owed: usize,
    /// Syncs that went out during a COPY. A server that reads COPY data ignores them, but one that failed before it
    /// read that far (a statement trigger does so) answers them. So that many more ReadyForQuery may come.
    doubtful_syncs: usize,
    // Boxed, as errors are rare: an idle client is small.
    failure: Option<Box<Failure>>,
}

/// What errors have made of requests.
#[derive(Debug, Default)]
struct Failure {
    skipped: Vec<Skipped>,
    request: Option<Expect>,
}

impl Default for Replies {
    fn default() -> Self {
        Self::new()
    }
}

impl Replies {
    /// Nothing sent.
    pub fn new() -> Self {
        Replies {
            queue: VecDeque::new(),
            copy: Copy::None,
            failed: false,
            open: false,
            ready_owed: 0,
            doubtful_syncs: 0,
            failure: None,
        }
    }

    /// A request is being sent (or, for the fakes, not sent). Flush, CopyData and Terminate are not pushed.
    pub fn push(&mut self, request: Expect) -> Result<Pushed, WireError> {
        if self.failed && self.queue.is_empty() && request != Expect::Sync {
            // The server skips it. Its statement, if any, will not exist.
            self.forget(request);
            return Ok(Pushed::NoReply);
        }
        match request {
            Expect::Sync if self.copy == Copy::In => {
                self.doubtful_syncs = self.doubtful_syncs.saturating_add(1);
                return Ok(Pushed::NoReply);
            }
            Expect::CopyEnd if self.copy == Copy::In => {
                self.copy = Copy::InEnding;
                return Ok(Pushed::NoReply);
            }
            // Outside COPY the server accepts and ignores it.
            Expect::CopyEnd if self.queue.is_empty() => return Ok(Pushed::NoReply),
            _ if self.is_full() => return Err(WireError::TooManyRequests(MAX_REQUESTS)),
            _ => {}
        }
        self.open = true;
        self.ready_owed += usize::from(request.brings_ready());
        if self.queue.capacity() == 0 {
            self.queue = SPARE.with_borrow_mut(Vec::pop).unwrap_or_default();
        }
        self.queue.push_back(request);
        Ok(Pushed::Kept)
    }

    /// A message came from the server. `first` is the first byte of its body, needed for ReadyForQuery only.
    ///
    /// An error means that the server broke the protocol (or that pgmend lost count): close both sides.
    #[inline]
    pub fn on_backend(&mut self, tag: u8, first: Option<u8>) -> Result<Verdict, WireError> {
        if matches!(tag, b'S' | b'A' | b'N') {
            return Ok(Verdict::Async);
        }
        if tag == b'E' {
            return Ok(self.on_error());
        }
        if tag == b'Z' {
            return self.on_ready(first);
        }
        let Some(head) = self.queue.front().copied() else { return Err(WireError::Unexpected(tag)) };
        if self.failed {
            return Err(WireError::Unexpected(tag));
        }
        // The server has come to a request behind the doubtful Syncs, so it will not answer them any more.
        self.doubtful_syncs = if self.copy == Copy::None { 0 } else { self.doubtful_syncs };
        self.on_reply(head, tag)
    }

    fn on_reply(&mut self, head: Expect, tag: u8) -> Result<Verdict, WireError> {
        match (head, tag) {
            (Expect::Query | Expect::Execute, b'D') => {}
            (Expect::Query, b'T') | (Expect::Function, b'V') | (Expect::Describe { .. }, b't') => {}
            (Expect::Query | Expect::Execute, b'G') => self.begin_copy_in(),
            (Expect::Query | Expect::Execute, b'H') => self.copy = Copy::Out,
            (Expect::Query | Expect::Execute, b'd') if self.copy == Copy::Out => {}
            (Expect::Query | Expect::Execute, b'c') if self.copy == Copy::Out => self.copy = Copy::None,
            (Expect::Query, b'C' | b'I') => self.end_copy(),
            (Expect::Execute, b'C' | b'I' | b's') => {
                self.end_copy();
                self.pop();
            }
            (Expect::Parse { forward, name, .. }, b'1') => {
                self.pop();
                return Ok(Verdict::ParseDone { name, forward });
            }
            (Expect::Bind { .. }, b'2') | (Expect::Close, b'3') | (Expect::Describe { .. }, b'T' | b'n') => self.pop(),
            (Expect::OwnExecute, b'D') => return Ok(Verdict::Own),
            (Expect::OwnBind, b'2') | (Expect::OwnClose { .. }, b'3') | (Expect::OwnExecute, b'C') => {
                self.pop();
                return Ok(Verdict::Own);
            }
            _ => return Err(WireError::Unexpected(tag)),
        }
        Ok(Verdict::Forward)
    }

    /// The server has begun to read COPY data. It ignores the Syncs that come before the client's CopyDone or CopyFail,
    /// whether they are on their way already or come later.
    fn begin_copy_in(&mut self) {
        let end = self.queue.iter().position(|e| *e == Expect::CopyEnd);
        self.copy = if end.is_some() { Copy::InEnding } else { Copy::In };
        let mut index = 0;
        let (mut ignored, end) = (0, end.unwrap_or(self.queue.len()));
        self.queue.retain(|e| {
            let during = index <= end;
            index += 1;
            ignored += usize::from(during && *e == Expect::Sync);
            !(during && matches!(e, Expect::Sync | Expect::CopyEnd))
        });
        self.ready_owed = self.ready_owed.saturating_sub(ignored);
        self.doubtful_syncs = self.doubtful_syncs.saturating_add(ignored);
    }

    /// A command is complete: if it was COPY, all its data was read and the Syncs in it were ignored.
    fn end_copy(&mut self) {
        self.copy = Copy::None;
        self.doubtful_syncs = 0;
    }

    fn on_error(&mut self) -> Verdict {
        self.copy = Copy::None;
        self.failure.get_or_insert_default().request = self.queue.front().copied();
        match self.queue.front() {
            // Nothing is being worked at, so only the end of the connection can be meant.
            None | Some(Expect::FakeParse { .. } | Expect::FakeClose { .. } | Expect::CopyEnd) => Verdict::Fatal,
            // ReadyForQuery follows in any case: a simple query skips nothing, and at Sync the commit itself failed.
            Some(Expect::Query | Expect::Function | Expect::Sync) => Verdict::Failed,
            Some(
                Expect::Parse { .. }
                | Expect::Bind { .. }
                | Expect::Describe { .. }
                | Expect::Execute
                | Expect::Close
                | Expect::OwnClose { .. }
                | Expect::OwnBind
                | Expect::OwnExecute,
            ) => {
                self.skip_to_sync();
                Verdict::Failed
            }
        }
    }

    /// The server ignores everything up to the next Sync, which may be still to come.
    fn skip_to_sync(&mut self) {
        self.failed = true;
        while let Some(request) = self.queue.front().copied() {
            if request == Expect::Sync {
                break;
            }
            self.queue.pop_front();
            self.ready_owed = self.ready_owed.saturating_sub(usize::from(request.brings_ready()));
            self.forget(request);
        }
    }

    fn forget(&mut self, request: Expect) {
        let skipped = match request {
            Expect::Parse { statement, name, .. } => Skipped::Parse { statement, name },
            Expect::FakeParse { name } => Skipped::NewName(name),
            Expect::OwnClose { statement } => Skipped::Close(statement),
            Expect::FakeClose { name } => Skipped::Name(name),
            _ => return,
        };
        // Bounded: after so many the caller, who drains them at every error, has stopped doing so.
        let all = &mut self.failure.get_or_insert_default().skipped;
        if all.len() < MAX_REQUESTS {
            all.push(skipped);
        }
    }

    fn on_ready(&mut self, first: Option<u8>) -> Result<Verdict, WireError> {
        let status = match first {
            Some(status @ (b'I' | b'T' | b'E')) => status,
            _ => return Err(WireError::Format("transaction status in ReadyForQuery")),
        };
        match self.queue.front() {
            Some(head) if head.brings_ready() && self.copy == Copy::None => {
                self.ready_owed = self.ready_owed.saturating_sub(1);
                self.pop();
            }
            _ if self.doubtful_syncs > 0 && self.copy == Copy::None => self.doubtful_syncs -= 1,
            _ => return Err(WireError::Unexpected(b'Z')),
        }
        self.failed = false;
        if self.queue.is_empty() {
            self.open = false;
            self.queue.shrink_to(KEEP_CAPACITY);
        }
        Ok(Verdict::ForwardThenReady { status })
    }

    /// Gives memory back that nothing is in: of many sessions few work at a time.
    pub fn rest(&mut self) {
        if self.queue.is_empty() && self.queue.capacity() > 0 {
            self.failure = None;
            let queue = std::mem::take(&mut self.queue);
            SPARE.with_borrow_mut(|spare| {
                if spare.len() < MAX_SPARE {
                    spare.push(queue);
                }
            });
        }
    }

    /// Takes the head away, and the ends of COPYs that never were.
    fn pop(&mut self) {
        self.queue.pop_front();
        while self.queue.front() == Some(&Expect::CopyEnd) {
            self.queue.pop_front();
        }
    }

    /// The message that the client must get now, before any further one of the server: call it until `None` after each
    /// push of a fake and after each message from the server.
    #[inline]
    pub fn take_fake(&mut self) -> Option<Fake> {
        let fake = match self.queue.front()? {
            Expect::FakeParse { .. } => Fake::ParseComplete,
            Expect::FakeClose { .. } => Fake::CloseComplete,
            _ => return None,
        };
        self.pop();
        Some(fake)
    }

    /// What failed or was skipped since the last call, as far as statements depend on it.
    pub fn drain_skipped(&mut self) -> impl Iterator<Item = Skipped> + '_ {
        self.failure.iter_mut().flat_map(|failure| failure.skipped.drain(..))
    }

    /// After [`Verdict::Failed`]: what failed.
    pub fn failed_request(&self) -> Option<Expect> {
        self.failure.as_ref().and_then(|failure| failure.request)
    }

    /// True when no reply is awaited. That does not make the server free: see [`Replies::is_quiet`].
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// True when the server has said ReadyForQuery for all that was sent and nothing more can come for this client.
    #[inline]
    pub fn is_quiet(&self) -> bool {
        self.queue.is_empty() && !self.open && !self.failed && self.copy == Copy::None && self.doubtful_syncs == 0
    }

    /// True when the server will not come to ReadyForQuery before the client has sent more: COPY data, or a Sync.
    pub fn awaits_client(&self) -> bool {
        self.copy == Copy::In || (self.ready_owed == 0 && !self.is_quiet())
    }

    /// True when nothing should be read from the client until replies have come.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.queue.len() >= MAX_REQUESTS
    }

    /// How many requests wait.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// How many ReadyForQuery are to come.
    #[inline]
    pub fn owes_ready(&self) -> usize {
        self.ready_owed
    }

    /// True while the server skips everything up to the next Sync.
    pub fn skips_to_sync(&self) -> bool {
        self.failed
    }

    /// True while the server reads COPY data.
    pub fn in_copy_in(&self) -> bool {
        matches!(self.copy, Copy::In | Copy::InEnding)
    }

    /// True while the server writes COPY data.
    pub fn in_copy_out(&self) -> bool {
        self.copy == Copy::Out
    }
}

#[cfg(test)]
mod tests {
    use super::Expect::*;
    use super::*;

    const PARSE: Expect = Parse { forward: true, statement: 7, name: 7 };
    const BIND: Expect = Bind { statement: 5, name: 4 };
    const FAKE_PARSE: Expect = FakeParse { name: 3 };
    const FAKE_CLOSE: Expect = FakeClose { name: 2 };
    const DESCRIBE: Expect = Describe { name: 0 };

    fn sent(requests: &[Expect]) -> Replies {
        let mut replies = Replies::new();
        requests.iter().for_each(|r| assert_eq!(replies.push(*r), Ok(Pushed::Kept), "{r:?}"));
        replies
    }

    /// Feeds tags; `Z` is ReadyForQuery with status I.
    #[track_caller]
    fn feed(replies: &mut Replies, tags: &str) {
        for tag in tags.bytes() {
            if let Err(e) = replies.on_backend(tag, Some(b'I')) {
                panic!("{e} in {replies:?}");
            }
        }
    }

    #[track_caller]
    fn refused(replies: &mut Replies, tag: u8) {
        assert_eq!(replies.on_backend(tag, Some(b'I')), Err(WireError::Unexpected(tag)));
    }

    #[test]
    fn a_simple_query_is_anything_until_ready() {
        for tags in ["TDDCZ", "CZ", "IZ", "TDCTDCZ", "EZ", "TDEZ", "NSTADCZ", "HddcCZ", "TCHdcCZ"] {
            let mut r = sent(&[Query]);
            assert_eq!(r.owes_ready(), 1);
            feed(&mut r, tags);
            assert!(r.is_quiet(), "{tags}");
            assert_eq!(r.owes_ready(), 0);
            refused(&mut r, b'C');
        }
    }

    #[test]
    fn who_waits_for_whom() {
        assert!(!Replies::new().awaits_client());
        let mut r = sent(&[Query]);
        assert!(!r.awaits_client());
        feed(&mut r, "G");
        assert!(r.awaits_client(), "COPY data is wanted");
        assert_eq!(r.push(CopyEnd), Ok(Pushed::NoReply));
        assert!(!r.awaits_client());
        let mut r = sent(&[PARSE, BIND, Execute]);
        assert!(r.awaits_client(), "a Sync is wanted");
        feed(&mut r, "E");
        assert!(r.awaits_client(), "a Sync is wanted after the error");
        assert_eq!(r.push(Sync), Ok(Pushed::Kept));
        assert!(!r.awaits_client());
    }

    #[test]
    fn the_status_of_ready_is_told_and_checked() {
        let mut r = sent(&[Query, Query]);
        assert_eq!(r.on_backend(b'Z', Some(b'T')), Ok(Verdict::ForwardThenReady { status: b'T' }));
        assert!(!r.is_quiet());
        assert!(r.on_backend(b'Z', Some(b'X')).is_err());
        assert!(r.on_backend(b'Z', None).is_err());
    }

    #[test]
    fn an_extended_query_in_order() {
        let mut r = sent(&[PARSE, BIND, DESCRIBE, Execute, Close, Sync]);
        assert_eq!(r.on_backend(b'1', None), Ok(Verdict::ParseDone { name: 7, forward: true }));
        feed(&mut r, "2TDDC3Z");
        assert!(r.is_quiet());
        for (tags, wrong) in [("", b'2'), ("1", b'1'), ("12", b'D'), ("12n", b'T'), ("12n", b'Z'), ("12T", b'd')] {
            let mut r = sent(&[PARSE, BIND, DESCRIBE, Execute, Sync]);
            feed(&mut r, tags);
            refused(&mut r, wrong);
        }
    }

    #[test]
    fn execute_ends_four_ways() {
        for end in ["C", "I", "s", "DDs"] {
            let mut r = sent(&[BIND, Execute, Sync]);
            feed(&mut r, &format!("2{end}Z"));
            assert!(r.is_quiet());
        }
        let mut r = sent(&[BIND, Execute, Sync]);
        feed(&mut r, "2DEZ");
        assert!(r.is_quiet());
    }

    #[test]
    fn describe_of_a_statement_has_two_messages() {
        for tags in ["tTZ", "tnZ"] {
            let mut r = sent(&[DESCRIBE, Sync]);
            feed(&mut r, tags);
            assert!(r.is_quiet());
        }
    }

    #[test]
    fn each_sync_gives_one_ready() {
        let mut r = sent(&[BIND, Execute, Sync, BIND, Execute, Sync, Sync]);
        assert_eq!(r.owes_ready(), 3);
        feed(&mut r, "2CZ2CZ");
        assert!(!r.is_quiet());
        feed(&mut r, "Z");
        assert!(r.is_quiet());
        refused(&mut r, b'Z');
    }

    #[test]
    fn a_reply_without_sync_is_not_quiet() {
        let mut r = sent(&[PARSE]);
        feed(&mut r, "1");
        assert!(r.is_empty() && !r.is_quiet());
        assert_eq!(r.push(Sync), Ok(Pushed::Kept));
        feed(&mut r, "Z");
        assert!(r.is_quiet());
    }

    #[test]
    fn an_error_skips_to_the_next_sync_and_names_the_statements() {
        let other = Parse { forward: false, statement: 8, name: 8 };
        let mut r = sent(&[
            PARSE,
            BIND,
            other,
            Query,
            FAKE_PARSE,
            CopyEnd,
            Sync,
            Parse { forward: true, statement: 9, name: 9 },
            Sync,
        ]);
        assert_eq!(r.owes_ready(), 3);
        assert_eq!(r.on_backend(b'E', None), Ok(Verdict::Failed));
        assert_eq!(
            r.drain_skipped().collect::<Vec<_>>(),
            [Skipped::Parse { statement: 7, name: 7 }, Skipped::Parse { statement: 8, name: 8 }, Skipped::NewName(3)]
        );
        assert_eq!(r.owes_ready(), 2);
        refused(&mut r, b'2');
        feed(&mut r, "Z1Z");
        assert!(r.is_quiet());
        assert_eq!(r.drain_skipped().count(), 0);
    }

    #[test]
    fn requests_sent_after_the_error_and_before_sync_get_no_reply() {
        let mut r = sent(&[BIND]);
        feed(&mut r, "E");
        assert!(r.is_empty() && r.skips_to_sync() && !r.is_quiet());
        for request in [PARSE, FAKE_PARSE, Query, Execute, CopyEnd] {
            assert_eq!(r.push(request), Ok(Pushed::NoReply));
        }
        assert_eq!(
            r.drain_skipped().collect::<Vec<_>>(),
            [Skipped::Parse { statement: 7, name: 7 }, Skipped::NewName(3)]
        );
        assert_eq!(r.take_fake(), None);
        assert_eq!(r.push(Sync), Ok(Pushed::Kept));
        assert_eq!(r.push(BIND), Ok(Pushed::Kept));
        feed(&mut r, "Z2");
    }

    #[test]
    fn an_error_at_sync_is_followed_by_ready() {
        let mut r = sent(&[Execute, Sync, BIND, Sync]);
        feed(&mut r, "CEZ2Z");
        assert!(r.is_quiet());
    }

    #[test]
    fn asynchronous_messages_come_at_any_time() {
        let mut r = sent(&[]);
        for tag in *b"SAN" {
            assert_eq!(r.on_backend(tag, Some(1)), Ok(Verdict::Async));
        }
        let mut r = sent(&[PARSE, Sync]);
        feed(&mut r, "S1NZA");
        assert!(r.is_quiet());
    }

    #[test]
    fn an_error_without_a_request_is_the_end() {
        assert_eq!(sent(&[]).on_backend(b'E', None), Ok(Verdict::Fatal));
        let mut r = sent(&[BIND]);
        feed(&mut r, "E");
        assert_eq!(r.on_backend(b'E', None), Ok(Verdict::Fatal));
    }

    #[test]
    fn a_function_call() {
        for tags in ["VZ", "EZ"] {
            let mut r = sent(&[Function]);
            feed(&mut r, tags);
            assert!(r.is_quiet());
        }
        refused(&mut sent(&[Function]), b'D');
    }

    #[test]
    fn fakes_come_in_their_turn() {
        let mut r = sent(&[PARSE, FAKE_PARSE, BIND, FAKE_CLOSE, FAKE_PARSE, Sync]);
        assert_eq!(r.take_fake(), None);
        feed(&mut r, "1");
        assert_eq!(r.take_fake(), Some(Fake::ParseComplete));
        assert_eq!(r.take_fake(), None);
        feed(&mut r, "2");
        assert_eq!(r.take_fake(), Some(Fake::CloseComplete));
        assert_eq!(r.take_fake(), Some(Fake::ParseComplete));
        assert_eq!(r.take_fake(), None);
        feed(&mut r, "Z");
        let mut r = sent(&[FAKE_PARSE]);
        assert_eq!(r.take_fake(), Some(Fake::ParseComplete));
        assert!(r.is_empty());
    }

    #[test]
    fn an_injected_parse_is_swallowed() {
        let mut r = sent(&[Parse { forward: false, statement: 3, name: 3 }, BIND]);
        assert_eq!(r.on_backend(b'1', None), Ok(Verdict::ParseDone { name: 3, forward: false }));
        feed(&mut r, "2");
    }

    #[test]
    fn copy_in_by_a_simple_query() {
        let mut r = sent(&[Query]);
        feed(&mut r, "G");
        assert!(r.in_copy_in());
        assert_eq!(r.push(CopyEnd), Ok(Pushed::NoReply));
        feed(&mut r, "CGN");
        assert_eq!(r.push(CopyEnd), Ok(Pushed::NoReply));
        feed(&mut r, "CZ");
        assert!(r.is_quiet());
        // Sent before the answer was seen.
        let mut r = sent(&[Query, CopyEnd, Query]);
        feed(&mut r, "GCZ");
        assert!(!r.in_copy_in());
        feed(&mut r, "CZ");
        assert!(r.is_quiet());
    }

    #[test]
    fn copy_in_ignores_syncs_up_to_its_end() {
        // libpq: Sync goes out with Execute, and another one after CopyDone.
        let mut r = sent(&[BIND, Execute, Sync]);
        feed(&mut r, "2G");
        assert_eq!((r.in_copy_in(), r.owes_ready()), (true, 0));
        assert_eq!(r.push(Sync), Ok(Pushed::NoReply));
        assert_eq!(r.push(CopyEnd), Ok(Pushed::NoReply));
        assert_eq!(r.push(Sync), Ok(Pushed::Kept));
        feed(&mut r, "CZ");
        assert!(r.is_quiet());
        // The same when all of it was sent before the answer was seen.
        let mut r = sent(&[BIND, Execute, Sync, CopyEnd, Sync]);
        feed(&mut r, "2GCZ");
        assert!(r.is_quiet());
        refused(&mut r, b'Z');
    }

    #[test]
    fn copy_in_that_is_refused_answers_both_syncs() {
        let mut r = sent(&[BIND, Execute, Sync, CopyEnd, Sync]);
        feed(&mut r, "2EZZ");
        assert!(r.is_quiet());
    }

    #[test]
    fn copy_in_that_fails_on_its_data() {
        let mut r = sent(&[Execute]);
        feed(&mut r, "GE");
        assert!(!r.in_copy_in());
        assert_eq!(r.push(CopyEnd), Ok(Pushed::NoReply));
        assert_eq!(r.push(Sync), Ok(Pushed::Kept));
        feed(&mut r, "Z");
        assert!(r.is_quiet());
        // By a simple query: ReadyForQuery comes at once, the late CopyDone is ignored.
        let mut r = sent(&[Query]);
        feed(&mut r, "GEZ");
        assert_eq!(r.push(CopyEnd), Ok(Pushed::NoReply));
        assert!(r.is_quiet());
    }

    #[test]
    fn copy_in_that_fails_with_a_doubtful_sync_is_not_quiet() {
        // The server may have failed before or after it read the first Sync.
        let mut r = sent(&[Execute, Sync, CopyEnd, Sync]);
        feed(&mut r, "GEZ");
        assert!(r.is_empty() && !r.is_quiet());
        feed(&mut r, "Z");
        assert!(r.is_quiet());
        // A later reply settles it.
        let mut r = sent(&[Execute, Sync, CopyEnd, Sync]);
        feed(&mut r, "GEZ");
        assert_eq!(r.push(Query), Ok(Pushed::Kept));
        feed(&mut r, "CZ");
        assert!(r.is_quiet());
        refused(&mut r, b'Z');
        // A trigger failed before the Sync was read, and the client never ended the COPY.
        let mut r = sent(&[Execute, Sync]);
        feed(&mut r, "GEZ");
        assert!(r.is_quiet());
    }

    #[test]
    fn copy_out_by_execute() {
        let mut r = sent(&[BIND, Execute, Sync]);
        feed(&mut r, "2Hd");
        assert!(r.in_copy_out());
        feed(&mut r, "dcCZ");
        assert!(r.is_quiet());
        let mut r = sent(&[Execute, Sync]);
        feed(&mut r, "HdEZ");
        assert!(r.is_quiet());
        refused(&mut sent(&[Query]), b'd');
        refused(&mut sent(&[Query]), b'W');
    }

    #[test]
    fn a_stray_copy_end_is_ignored() {
        let mut r = sent(&[Query, CopyEnd, CopyEnd, Query]);
        feed(&mut r, "CZCZ");
        assert!(r.is_quiet());
        assert_eq!(r.push(CopyEnd), Ok(Pushed::NoReply));
        assert!(r.is_quiet());
    }

    #[test]
    fn a_pipeline_is_bounded_and_gives_its_memory_back() {
        let mut r = Replies::new();
        for _ in 0..MAX_REQUESTS {
            assert_eq!(r.push(Sync), Ok(Pushed::Kept));
        }
        assert!(r.is_full());
        assert_eq!(r.push(Sync), Err(WireError::TooManyRequests(MAX_REQUESTS)));
        for _ in 0..MAX_REQUESTS {
            feed(&mut r, "Z");
        }
        assert!(r.is_quiet() && r.queue.capacity() <= KEEP_CAPACITY);
    }
}
