//! A client's life: login, greeting, one transaction after the other, farewell.

use super::core::{Core, Front};
use super::fault::Fault;
use super::lease::Borrower;
use super::params;
use super::relay::{Ended, Exchange, Lane, Relay};
use super::startup::{self, Arrival, NewSession};
use super::worker::{Control, End, Worker};
use crate::net::Stream;
use crate::pool::{PoolKey, PoolMode, Pooled};
use crate::server::{Login, ParamSet};
use crate::wire::{backend, frame, frontend};
use std::collections::HashMap;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::io::AsyncWriteExt;

/// Bound on telling a client why its session ends.
const FAREWELL: Duration = Duration::from_secs(2);
/// A statement of Pgpool-II's own is at most this long.
const MAX_COMMAND: usize = 1024;

/// Serves one client from its first byte to the end.
pub async fn serve(worker: Rc<Worker>, stream: Stream, control: Rc<Control>) {
    let context = worker.plane.startup.load_full();
    match startup::accept(stream, &context).await {
        Ok(Arrival::Session(new)) => run(worker, new, control).await,
        Ok(Arrival::Cancel { pid, key, mut stream }) => {
            // The client takes the close as the sign that its cancel has been carried out. Over TLS libpq 17 takes an end
            // without a farewell for an error.
            worker.plane.cancels.cancel(pid, &key).await;
            let _ = tokio::time::timeout(FAREWELL, stream.shutdown()).await;
        }
        Ok(Arrival::Gone) => {}
        Err(error) => tracing::info!(event = "client.login_failed", %error),
    }
}

async fn run(worker: Rc<Worker>, new: NewSession, control: Rc<Control>) {
    let NewSession { mut stream, user, database, parameters, minor, secret, .. } = new;
    let login = Login { user: user.clone(), database: database.clone(), secret, parameters: Vec::new() };
    let key = PoolKey { user, database };
    let outcome = begin(worker.clone(), &mut stream, key, login, &parameters, minor, control).await;
    let fault = match outcome {
        Ok(mut session) => {
            let fault = session.transactions(&mut stream).await.err();
            worker.plane.cancels.unregister(&session.borrower.slot);
            fault
        }
        Err(fault) => Some(fault),
    };
    if let Some(fault) = fault {
        farewell(&mut stream, &fault).await;
    }
}

async fn farewell(stream: &mut Stream, fault: &Fault) {
    let Some(fields) = fault.response() else { return };
    tracing::info!(event = "client.session_ended", reason = %fault);
    let mut out = Vec::new();
    backend::error_response(&mut out, &fields);
    // Best effort: a client that does not read is left.
    let _ = tokio::time::timeout(FAREWELL, async {
        stream.write_all(&out).await?;
        stream.flush().await?;
        stream.shutdown().await
    })
    .await;
}

/// What a session holds between and during transactions.
struct Session {
    borrower: Borrower,
    core: Core,
    mode: PoolMode,
    up: Lane,
    down: Lane,
    database: String,
    pool_commands: bool,
}

/// From authentication to the first ReadyForQuery: a server is asked only for what is not known of it yet, or when the
/// client's own parameters must be proven valid.
async fn begin(
    worker: Rc<Worker>,
    stream: &mut Stream,
    key: PoolKey,
    login: Login,
    parameters: &[(String, String)],
    minor: u16,
    control: Rc<Control>,
) -> Result<Session, Fault> {
    let wanted = worker.intern(params::wanted(parameters).map_err(Fault::Protocol)?);
    let settings = worker.plane.settings.load_full();
    let pool =
        worker.pool(&key).ok_or_else(|| Fault::Limit("too many different users and databases at once".into()))?;
    let slot = worker.plane.cancels.register(minor).map_err(|e| Fault::Limit(format!("no random numbers: {e}")))?;
    let mode = settings.mode(&key.database);
    let borrower = Borrower { worker, pool, login, slot, control };
    let greeting = match greeting(&borrower, &wanted).await {
        Ok(greeting) => greeting,
        Err(fault) => {
            borrower.worker.plane.cancels.unregister(&borrower.slot);
            return Err(fault);
        }
    };
    let core = Core::new(mode == PoolMode::Transaction, wanted, settings.client.max_message);
    let mut session = Session {
        borrower,
        core,
        mode,
        up: Lane::default(),
        down: Lane::default(),
        database: key.database,
        pool_commands: settings.client.pool_commands,
    };
    let out = session.down.own();
    for (name, value) in greeting.iter() {
        backend::parameter_status(out, name, value);
    }
    backend::backend_key_data(out, session.borrower.slot.pid, &session.borrower.slot.key);
    backend::ready_for_query(out, b'I');
    let sent = poll_fn(|cx| session.down.poll_send(stream, cx)).await;
    if sent.is_err() {
        session.borrower.worker.plane.cancels.unregister(&session.borrower.slot);
        return Err(Fault::ClientGone);
    }
    Ok(session)
}

/// The parameters that a server reports to this client at its start. Asked of a server once for each set of wishes and
/// route, then remembered; `application_name` is left out of that, as any value of it is valid.
async fn greeting(borrower: &Borrower, wanted: &ParamSet) -> Result<Arc<HashMap<String, String>>, Fault> {
    let mut wishes = (**wanted).clone();
    let application_name = wishes.remove("application_name");
    if let super::worker::Way::Open(route) = borrower.worker.way()
        && let Some(known) = borrower.pool.greeting(route.id, &wishes)
    {
        let Some(name) = application_name else { return Ok(known) };
        let mut own = (*known).clone();
        own.insert("application_name".into(), name);
        return Ok(Arc::new(own));
    }
    let pooled = borrower.lease(wanted).await?;
    let reported = Arc::new(pooled.conn.reported.clone());
    borrower.pool.remember_greeting(pooled.conn.route, wishes, reported.clone());
    borrower.give_back(pooled, true, false);
    Ok(reported)
}

impl Session {
    /// One transaction (or, in session pooling, one session) after the other.
    async fn transactions(&mut self, client: &mut Stream) -> Result<(), Fault> {
        loop {
            match self.next(client).await? {
                Front::Work => {}
                Front::Terminate | Front::More | Front::Stray(_) => return Ok(()),
            }
            if self.command(client).await? || self.answered_alone()? {
                continue;
            }
            let mut pooled = self.borrower.lease(&self.core.wanted).await?;
            let ended = self.exchange(client, &mut pooled).await;
            let clean = ended.is_ok() && self.core.is_clean();
            let session_over = self.mode == PoolMode::Session || ended.is_err();
            self.borrower.give_back(pooled, clean, session_over);
            match ended? {
                Ended::Transaction => {}
                Ended::Client => return Ok(()),
            }
        }
    }

    /// Waits for work, sending what is left of the last answer. An idle client holds no buffer here.
    async fn next(&mut self, client: &mut Stream) -> Result<Front, Fault> {
        let Session { up, down, core, borrower, .. } = self;
        poll_fn(|cx| {
            loop {
                if let Poll::Ready(Err(_)) = down.poll_send(client, cx) {
                    return Poll::Ready(Err(Fault::ClientGone));
                }
                if down.is_sent() {
                    down.input.release();
                }
                if let Some(end) = borrower.control.check(cx, true) {
                    return Poll::Ready(Err(match end {
                        End::Shutdown => Fault::Shutdown,
                        End::Idle => Fault::Idle,
                    }));
                }
                match core.front(up.input.bytes(), up.input.is_full())? {
                    Front::Stray(count) => {
                        up.input.consume(count);
                        continue;
                    }
                    Front::More => {}
                    front => return Poll::Ready(Ok(front)),
                }
                match std::task::ready!(up.poll_receive(client, cx)) {
                    Ok(0) | Err(_) => return Poll::Ready(Err(Fault::ClientGone)),
                    Ok(_) => borrower.control.active_s.set(borrower.worker.now_s()),
                }
            }
        })
        .await
    }

    async fn exchange(&mut self, client: &mut Stream, pooled: &mut Pooled) -> Result<Ended, Fault> {
        let Session { up, down, core, borrower, mode, .. } = self;
        let plane = borrower.worker.plane.clone();
        let mut state = Exchange::default();
        poll_fn(|cx| {
            if let Some(end) = borrower.control.check(cx, core.is_clean()) {
                return Poll::Ready(Err(match end {
                    End::Shutdown => Fault::Shutdown,
                    End::Idle => Fault::Idle,
                }));
            }
            borrower.control.active_s.set(borrower.worker.now_s());
            Relay {
                client,
                up,
                down,
                server: &mut pooled.conn,
                core,
                statements: &plane.statements,
                until_transaction: *mode == PoolMode::Transaction,
            }
            .poll(&mut state, cx)
        })
        .await
    }

    /// Answers what needs no server; the answer leaves while the next batch is awaited.
    fn answered_alone(&mut self) -> Result<bool, Fault> {
        let Session { core, up, down, borrower, .. } = self;
        if !down.is_sent() {
            return Ok(false);
        }
        let count = core.answer_alone(up.input.bytes(), &borrower.worker.plane.statements, down.own())?;
        up.input.consume(count);
        Ok(count > 0)
    }

    /// Answers `SHOW POOL_…` and `PGPOOL …` when they come alone in a simple query. True: answered.
    async fn command(&mut self, client: &mut Stream) -> Result<bool, Fault> {
        let Some((total, sql)) = self.pool_command() else { return Ok(false) };
        let commands = self.borrower.worker.plane.commands.load_full();
        let Some(answer) = commands.and_then(|c| c.answer(&sql, &self.database)) else { return Ok(false) };
        self.up.input.consume(total);
        let out = self.down.own();
        let columns: Vec<&str> = answer.columns.iter().map(String::as_str).collect();
        backend::row_description_text(out, &columns);
        for row in &answer.rows {
            let row: Vec<Option<&str>> = row.iter().map(Option::as_deref).collect();
            backend::data_row(out, &row);
        }
        backend::command_complete(out, &answer.tag);
        backend::ready_for_query(out, b'I');
        poll_fn(|cx| self.down.poll_send(client, cx)).await.map_err(|_| Fault::ClientGone)?;
        Ok(true)
    }

    fn pool_command(&self) -> Option<(usize, String)> {
        let input = self.up.input.bytes();
        if !self.pool_commands || input.first() != Some(&b'Q') {
            return None;
        }
        let split = frame::split(input).ok()??;
        let total = input.len() - split.rest.len();
        if total > MAX_COMMAND {
            return None;
        }
        let text = std::str::from_utf8(frontend::query_text(split.body).ok()?).ok()?;
        let text = text.trim().trim_end_matches(';').trim_end();
        let first = text.split_ascii_whitespace().next()?;
        let ours = first.eq_ignore_ascii_case("show") || first.eq_ignore_ascii_case("pgpool");
        ours.then(|| (total, text.to_owned()))
    }
}
