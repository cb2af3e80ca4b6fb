//! `auth_query`: asks the primary for the secrets of users who stand in no file, on connections that no client ever gets.
//!
//! The user's name is a bind parameter, and `search_path` is `pg_catalog` alone, so that nobody who may create objects
//! can put his own in the place of what the query means. Answers are remembered for a while, within limits.

use crate::auth::{Answer, Answers, QuerySettings, Secrets, Shapes};
use crate::base::Secret;
use crate::cluster::{Board, NodeSpec};
use crate::net::ServerTls;
use crate::server::sql::{Row, Sql, SqlError, SqlTarget};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{OnceCell, Semaphore};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

/// Questions at once, each on a connection of its own; further logins wait, within their time.
const AT_ONCE: usize = 4;
/// Bound on one question, connecting included.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two tries to reach a primary.
const RETRY: Duration = Duration::from_millis(200);
/// A connection that nobody has used for so long is closed.
const IDLE: Duration = Duration::from_secs(30);

/// The user and all roles that he is a member of, directly or not.
const ROLES: &str = "WITH RECURSIVE r(oid) AS (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = $1 UNION \
    SELECT m.roleid FROM pg_catalog.pg_auth_members m JOIN r ON m.member = r.oid) \
    SELECT p.rolname FROM r JOIN pg_catalog.pg_roles p ON p.oid = r.oid";

/// How the secrets of all users look, without the secrets: iterations and bytes of salt, empty for md5; number of users.
const ALL_SHAPES: &str = "SELECT split_part(split_part(s, '$', 2), ':', 1), \
    octet_length(decode(split_part(split_part(s, '$', 2), ':', 2), 'base64')), count(*) \
    FROM (SELECT CASE WHEN rolpassword LIKE 'SCRAM-SHA-256$%' THEN rolpassword ELSE '' END AS s FROM pg_authid \
    WHERE rolcanlogin AND rolpassword IS NOT NULL AND coalesce(rolvaliduntil >= now(), true)) a \
    GROUP BY 1, 2 ORDER BY 3 DESC LIMIT 100";

/// The server could not be asked; for the log.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// The server's words, or why it could not be reached.
    #[error("auth_query as {user} in {database}: {why}")]
    Sql {
        /// `auth_user`.
        user: String,
        /// Where it was asked.
        database: String,
        /// What it said.
        why: SqlError,
    },
    /// The query is not one for this purpose, or what it gives is not a secret.
    #[error("auth_query: {0}")]
    Answer(String),
    /// The login was given up.
    #[error("auth_query was not finished")]
    Dropped,
}

/// Asks, and remembers.
pub struct AuthQuery {
    settings: QuerySettings,
    password: Secret,
    with_roles: bool,
    names: DatabaseNames,
    board: Arc<Board>,
    tls: Arc<ServerTls>,
    secrets: Arc<Secrets>,
    control: Handle,
    answers: Mutex<Answers>,
    /// All users' shapes were asked for, once.
    asked_all: OnceCell<()>,
    /// A plain password was among the answers: from then on each costs a derivation.
    costly: AtomicBool,
    turns: Semaphore,
    idle: Mutex<Vec<Idle>>,
    started: Instant,
}

impl fmt::Debug for AuthQuery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthQuery").field("user", &self.settings.user).finish_non_exhaustive()
    }
}

/// What it needs besides its settings.
#[derive(Debug)]
pub struct Around {
    /// Who is the primary.
    pub board: Arc<Board>,
    /// TLS towards it.
    pub tls: Arc<ServerTls>,
    /// `auth_user`'s password, possibly empty.
    pub password: Secret,
    /// Users of the files, and what doubles are made of.
    pub secrets: Arc<Secrets>,
    /// The control plane's runtime, on which the connections live.
    pub control: Handle,
    /// Rules name roles.
    pub with_roles: bool,
    /// What databases are called on the servers.
    pub names: DatabaseNames,
}

/// `dbname` by the name of the database's section; empty where the section has none.
pub type DatabaseNames = BTreeMap<String, Option<String>>;

/// Who is asked for, and where.
#[derive(Clone, Debug)]
struct Question {
    user: String,
    database: String,
}

/// A connection that waits for the next question.
struct Idle {
    sql: Sql,
    place: (String, u16),
    database: String,
    since: Instant,
}

impl Question {
    /// Under which the answer is remembered; no name holds a zero byte.
    fn key(&self) -> String {
        format!("{}\0{}", self.user, self.database)
    }
}

impl AuthQuery {
    /// Nothing is connected yet.
    pub fn new(settings: QuerySettings, around: Around) -> Arc<AuthQuery> {
        let Around { board, tls, password, secrets, control, with_roles, names } = around;
        Arc::new(AuthQuery {
            settings,
            password,
            with_roles,
            names,
            board,
            tls,
            secrets,
            control,
            answers: Mutex::default(),
            asked_all: OnceCell::new(),
            costly: AtomicBool::new(false),
            turns: Semaphore::new(AT_ONCE),
            idle: Mutex::default(),
            started: Instant::now(),
        })
    }

    /// What the server knows of a user, by an answer that is young enough, or asked now. Waits for a primary; the
    /// caller limits the time.
    pub async fn ask(self: &Arc<Self>, user: &str, database: &str) -> Result<(Arc<Answer>, Shapes), LookupError> {
        let max_age_ms = u64::try_from(self.settings.cache_time.as_millis()).unwrap_or(u64::MAX);
        self.ask_within(self.question(user, database), max_age_ms).await
    }

    /// As [`AuthQuery::ask`], whatever is remembered.
    pub async fn ask_anew(self: &Arc<Self>, user: &str, database: &str) -> Result<(Arc<Answer>, Shapes), LookupError> {
        self.ask_within(self.question(user, database), 0).await
    }

    /// Where `auth_dbname` says, or in the client's own database.
    fn question(&self, user: &str, database: &str) -> Question {
        let named = || self.names.get(database).or_else(|| self.names.get("*")).cloned().flatten();
        let database = self.settings.database.clone().or_else(named).unwrap_or_else(|| database.to_owned());
        Question { user: user.to_owned(), database }
    }

    async fn ask_within(
        self: &Arc<Self>,
        question: Question,
        max_age_ms: u64,
    ) -> Result<(Arc<Answer>, Shapes), LookupError> {
        if let Some(known) = self.known(&question, max_age_ms) {
            return Ok(known);
        }
        let query = self.clone();
        let task = self.control.spawn(async move {
            let _turn = query.turns.acquire().await.map_err(|_| LookupError::Dropped)?;
            // Somebody else may have asked for the same name while this waited.
            if let Some(known) = query.known(&question, max_age_ms) {
                return Ok(known);
            }
            query.look_up(&question).await
        });
        AbortOnDropHandle::new(task).await.map_err(|_| LookupError::Dropped)?
    }

    fn known(&self, question: &Question, max_age_ms: u64) -> Option<(Arc<Answer>, Shapes)> {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.of(&question.key(), self.now_ms(), max_age_ms).map(|answer| (answer, answers.shapes()))
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    async fn look_up(self: &Arc<Self>, question: &Question) -> Result<(Arc<Answer>, Shapes), LookupError> {
        // As of now: the server's answer is at least as young.
        let asked_ms = self.now_ms();
        let (secret, roles) = self.ask_the_primary(question).await?;
        let (secrets, name, costly) =
            (self.secrets.clone(), question.user.clone(), self.costly.load(Ordering::Relaxed));
        let read = move || Answer::read(&name, secret.as_deref(), roles, &secrets, costly);
        // A plain password takes milliseconds; the turns bound how many at once.
        let answer = tokio::task::spawn_blocking(read).await.map_err(|_| LookupError::Dropped)?;
        let answer = Arc::new(answer.map_err(LookupError::Answer)?);
        if answer.is_plain() {
            self.costly.store(true, Ordering::Relaxed);
        }
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.put(&question.key(), answer.clone(), asked_ms);
        Ok((answer, answers.shapes()))
    }

    /// Secret and roles. Until a primary can be reached it is tried again; what the primary refuses is an error.
    async fn ask_the_primary(
        self: &Arc<Self>,
        question: &Question,
    ) -> Result<(Option<String>, Vec<String>), LookupError> {
        let mut board = self.board.watch();
        loop {
            board.borrow_and_update();
            let view = self.board.view();
            if let Some(node) = view.primary_spec() {
                match tokio::time::timeout(PATIENCE, self.ask_node(node, question)).await {
                    Ok(Err(LookupError::Sql { why, .. })) if is_passing(&why) => {
                        tracing::debug!(event = "auth_query.again", %why);
                    }
                    Ok(outcome) => return outcome,
                    Err(_) => return Err(self.failed(question, SqlError::Timeout(PATIENCE))),
                }
            }
            // A change of the view ends the pause early.
            let _ = tokio::time::timeout(RETRY, board.changed()).await;
        }
    }

    async fn ask_node(
        self: &Arc<Self>,
        node: &NodeSpec,
        question: &Question,
    ) -> Result<(Option<String>, Vec<String>), LookupError> {
        let place = (node.host.0.clone(), node.port);
        let rows = match self.take(&place, &question.database) {
            Some(sql) => match self.questions(&sql, &question.user).await {
                // It was closed while nobody looked.
                Err(SqlError::Lost(_)) => None,
                outcome => Some((sql, outcome)),
            },
            None => None,
        };
        let (sql, outcome) = match rows {
            Some(asked) => asked,
            None => {
                let target = self.target(node, &question.database);
                let sql = Sql::connect(&target, PATIENCE).await.map_err(|why| self.failed(question, why))?;
                let outcome = self.questions(&sql, &question.user).await;
                (sql, outcome)
            }
        };
        let (rows, roles) = outcome.map_err(|why| self.failed(question, why))?;
        self.ask_all(&sql).await;
        self.put_back(Idle { sql, place, database: question.database.clone(), since: Instant::now() });
        let roles = roles.into_iter().filter_map(|row| row.into_iter().next().flatten()).collect();
        Ok((secret_in(rows, &question.user).map_err(LookupError::Answer)?, roles))
    }

    async fn questions(&self, sql: &Sql, user: &str) -> Result<(Vec<Row>, Vec<Row>), SqlError> {
        let rows = sql.rows_about(&self.settings.query, user).await?;
        let roles = if self.with_roles { sql.rows_about(ROLES, user).await? } else { Vec::new() };
        Ok((rows, roles))
    }

    /// Before the first answer is used: unknown users are to look like those whom the server has. Only whoever may read
    /// `pg_authid`, as the default query does, can ask this; else doubles follow the users who came.
    async fn ask_all(&self, sql: &Sql) {
        if self.settings.query != QuerySettings::DEFAULT_QUERY {
            return;
        }
        let ask = || async {
            match sql.rows(ALL_SHAPES).await {
                Ok(rows) => {
                    let mut shapes = Shapes::default();
                    rows.iter().filter_map(shape).for_each(|(scram, count)| shapes.add(scram, count));
                    self.answers.lock().unwrap_or_else(PoisonError::into_inner).know_all(shapes);
                }
                Err(error) => tracing::debug!(event = "auth_query.shapes_unknown", %error),
            }
        };
        self.asked_all.get_or_init(ask).await;
    }

    fn target(&self, node: &NodeSpec, database: &str) -> SqlTarget {
        let mut target = SqlTarget::of(node, database, &self.settings.user, &self.password, self.tls.clone());
        target.application_name = "pgmend auth_query".to_owned();
        target.options = format!("-c search_path=pg_catalog -c statement_timeout={}", PATIENCE.as_millis());
        target
    }

    fn failed(&self, question: &Question, why: SqlError) -> LookupError {
        LookupError::Sql { user: self.settings.user.clone(), database: question.database.clone(), why }
    }

    fn take(&self, place: &(String, u16), database: &str) -> Option<Sql> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        // Those to a former primary are of no use any more.
        idle.retain(|one| one.place == *place);
        let at = idle.iter().rposition(|one| one.database == database)?;
        Some(idle.remove(at).sql)
    }

    /// The first one starts the sweep, which ends with the last.
    fn put_back(self: &Arc<Self>, one: Idle) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let first = idle.is_empty();
        if idle.len() >= AT_ONCE {
            // Of different databases there would be more and more.
            idle.remove(0);
        }
        idle.push(one);
        if first {
            let query = Arc::downgrade(self);
            self.control.spawn(async move {
                loop {
                    tokio::time::sleep(IDLE).await;
                    let Some(query) = query.upgrade() else { return };
                    let mut idle = query.idle.lock().unwrap_or_else(PoisonError::into_inner);
                    idle.retain(|one| one.since.elapsed() < IDLE);
                    if idle.is_empty() {
                        return;
                    }
                }
            });
        }
    }
}

/// True when the same question may be answered a little later: the node is away, starting, stopping or full.
fn is_passing(error: &SqlError) -> bool {
    match error {
        SqlError::Connect { .. } | SqlError::Lost(_) => true,
        SqlError::Server { code, .. } => matches!(code.as_str(), "57P01" | "57P02" | "57P03" | "53300"),
        SqlError::Tls { .. } | SqlError::Timeout(_) => false,
    }
}

/// One row of `ALL_SHAPES`.
fn shape(row: &Row) -> Option<(Option<(u32, usize)>, u64)> {
    let [Some(iterations), Some(salt), Some(count)] = row.as_slice() else { return None };
    let scram = match iterations.as_str() {
        "" => None,
        text => Some((text.parse().ok()?, salt.parse().ok()?)),
    };
    Some((scram, count.parse().ok()?))
}

/// The secret in the answer: one row of name and secret, or none.
fn secret_in(rows: Vec<Row>, user: &str) -> Result<Option<String>, String> {
    let mut rows = rows.into_iter();
    let Some(row) = rows.next() else { return Ok(None) };
    if rows.next().is_some() {
        return Err("expected at most one row, found several".to_owned());
    }
    let mut columns = row.into_iter();
    match (columns.next(), columns.next()) {
        (Some(Some(name)), Some(secret)) if name == user => Ok(secret),
        // The user has been asked for by name; a row about somebody else is about nobody.
        (Some(_), Some(_)) => Ok(None),
        _ => Err("expected the columns user name and secret, found fewer".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::{secret_in, shape};

    #[test]
    fn shapes_are_read_and_nonsense_is_left_out() {
        let row = |columns: [&str; 3]| columns.map(|c| Some(c.to_owned())).to_vec();
        assert_eq!(shape(&row(["4096", "16", "7"])), Some((Some((4096, 16)), 7)));
        assert_eq!(shape(&row(["", "0", "7"])), Some((None, 7)));
        assert_eq!(shape(&row(["x", "16", "7"])), None);
    }

    #[test]
    fn one_row_about_the_user_holds_his_secret() {
        let row = |columns: &[Option<&str>]| columns.iter().map(|c| c.map(str::to_owned)).collect::<Vec<_>>();
        assert_eq!(secret_in(vec![row(&[Some("u"), Some("s")])], "u"), Ok(Some("s".into())));
        assert_eq!(secret_in(vec![row(&[Some("u"), None])], "u"), Ok(None));
        assert_eq!(secret_in(vec![row(&[Some("v"), Some("s")])], "u"), Ok(None));
        assert_eq!(secret_in(vec![], "u"), Ok(None));
        assert!(secret_in(vec![row(&[Some("u")])], "u").is_err());
        assert!(secret_in(vec![row(&[Some("u"), None]), row(&[])], "u").is_err());
    }
}
