//! A load that keeps books: each client writes down what it sent, what was acknowledged and what failed, and the table is
//! held against that afterwards.

use super::cluster::Cluster;
use super::load::Door;
use super::process::wait_until;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio_postgres::NoTls;

/// A transaction by client and number.
type Entry = (u32, u64);

/// What one client wrote down.
#[derive(Clone, Debug, Default)]
struct Book {
    sent: BTreeSet<u64>,
    acknowledged: BTreeSet<u64>,
    errors: Vec<(u64, String)>,
    longest: Duration,
}

/// Clients that work until they are told to stop.
pub struct Ledger {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    longest_us: Arc<AtomicU64>,
    books: Arc<Mutex<BTreeMap<u32, Book>>>,
    thread: Option<JoinHandle<()>>,
}

/// How it went.
#[derive(Debug)]
pub struct Closed {
    pub acknowledged: usize,
    pub errors: Vec<String>,
    /// The longest transaction of any client, all its waits included.
    pub longest: Duration,
    acknowledged_entries: BTreeSet<Entry>,
    sent_entries: BTreeSet<Entry>,
}

/// A little rest between transactions, as applications have; else two cores measure their own crowd.
const REST: Duration = Duration::from_millis(5);

pub const TABLE: &str = "CREATE TABLE ledger (client int, seq bigint, salt int)";

impl Ledger {
    /// The table is made on the primary; clients come through the door, each with transactions of four statements.
    pub fn start(cluster: &Cluster, primary: usize, door: &Door, clients: u32) -> Ledger {
        cluster.sql(primary, "postgres", TABLE);
        Ledger::go_on(door, clients, 0)
    }

    /// The same with clients that rest longer, for stories that wait for many other things and not for them.
    pub fn start_calm(cluster: &Cluster, primary: usize, door: &Door, clients: u32) -> Ledger {
        cluster.sql(primary, "postgres", TABLE);
        Ledger::begin(door, clients, 0, REST * 6)
    }

    /// The same on a table that is there; numbers begin at `from`.
    pub fn go_on(door: &Door, clients: u32, from: u64) -> Ledger {
        Ledger::begin(door, clients, from, REST)
    }

    fn begin(door: &Door, clients: u32, from: u64, rest: Duration) -> Ledger {
        let (stop, done, longest_us) =
            (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let books = Arc::<Mutex<BTreeMap<u32, Book>>>::default();
        let (to, halt, count, most, door) =
            (books.clone(), stop.clone(), done.clone(), longest_us.clone(), door.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let clients = (0..clients).map(|id| {
                    let (halt, count, most, door, to) =
                        (halt.clone(), count.clone(), most.clone(), door.clone(), to.clone());
                    tokio::spawn(async move {
                        let book = client((id, from), rest, &door, &halt, &count, &most).await;
                        to.lock().expect("no panic").insert(id, book);
                    })
                });
                for one in clients.collect::<Vec<_>>() {
                    one.await.expect("a client does not panic");
                }
            });
        });
        let ledger = Ledger { stop, done, longest_us, books, thread: Some(thread) };
        ledger.does(20);
        ledger
    }

    /// Waits until a hundred more transactions were acknowledged.
    #[track_caller]
    pub fn goes_on(&self) {
        self.does(100);
    }

    /// Waits until so many more transactions were acknowledged.
    #[track_caller]
    pub fn does(&self, more: u64) {
        let before = self.done.load(Ordering::Relaxed);
        wait_until("the ledger's clients go on", Duration::from_secs(40), || {
            self.done.load(Ordering::Relaxed) >= before + more
        });
    }

    /// The longest transaction since the last call.
    pub fn longest_since(&self) -> Duration {
        Duration::from_micros(self.longest_us.swap(0, Ordering::Relaxed))
    }

    /// Ends the clients.
    pub fn close(mut self) -> Closed {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().expect("closed once").join().expect("the clients end");
        let books = self.books.lock().expect("no panic").clone();
        let entries = |of: fn(&Book) -> &BTreeSet<u64>| {
            books.iter().flat_map(|(id, book)| of(book).iter().map(|seq| (*id, *seq))).collect::<BTreeSet<Entry>>()
        };
        let acknowledged_entries = entries(|b| &b.acknowledged);
        Closed {
            acknowledged: acknowledged_entries.len(),
            errors: books
                .iter()
                .flat_map(|(id, b)| b.errors.iter().map(move |(n, e)| format!("client {id}, {n}: {e}")))
                .collect(),
            longest: books.values().map(|b| b.longest).max().unwrap_or_default(),
            sent_entries: entries(|b| &b.sent),
            acknowledged_entries,
        }
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Closed {
    /// Every acknowledged transaction is in the table, none is there twice, and what is there was sent.
    #[track_caller]
    pub fn assert_kept(&self, cluster: &Cluster, node: usize) {
        let rows = cluster.sql(node, "postgres", "SELECT client || ' ' || seq FROM ledger");
        let mut table = BTreeMap::<Entry, usize>::new();
        for row in rows.lines() {
            let (client, seq) = row.split_once(' ').expect("two numbers");
            *table.entry((client.parse().expect("a number"), seq.parse().expect("a number"))).or_default() += 1;
        }
        let lost: Vec<_> = self.acknowledged_entries.iter().filter(|e| !table.contains_key(e)).collect();
        let twice: Vec<_> = table.iter().filter(|(_, n)| **n > 1).collect();
        let alien: Vec<_> = table.keys().filter(|e| !self.sent_entries.contains(e)).collect();
        assert!(lost.is_empty(), "acknowledged and not in the table: {lost:?}");
        assert!(twice.is_empty(), "in the table twice: {twice:?}");
        assert!(alien.is_empty(), "in the table and never sent: {alien:?}");
    }

    /// The same, and nobody saw an error, and nothing is in doubt.
    #[track_caller]
    pub fn assert_perfect(&self, cluster: &Cluster, node: usize) {
        assert!(self.errors.is_empty(), "clients had errors: {:?}", self.errors);
        self.assert_kept(cluster, node);
        assert_eq!(self.sent_entries, self.acknowledged_entries, "nothing is in doubt");
    }
}

async fn client(
    (id, from): (u32, u64),
    rest: Duration,
    door: &Door,
    halt: &AtomicBool,
    done: &AtomicU64,
    most: &AtomicU64,
) -> Book {
    let mut book = Book::default();
    let (text, mut seq) =
        (format!("host={} port={} user={} dbname={}", door.host, door.port, door.user, door.database), from);
    while !halt.load(Ordering::Relaxed) {
        let (session, connection) = match tokio_postgres::connect(&text, NoTls).await {
            Ok(connected) => connected,
            Err(error) => {
                book.errors.push((seq, format!("connect: {error}")));
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        tokio::spawn(connection);
        while !halt.load(Ordering::Relaxed) {
            seq += 1;
            book.sent.insert(seq);
            let begun = Instant::now();
            let result = transaction(&session, id, seq).await;
            book.longest = book.longest.max(begun.elapsed());
            most.fetch_max(u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
            match result {
                Ok(()) => {
                    book.acknowledged.insert(seq);
                    done.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => {
                    let words = error.as_db_error().map_or_else(|| error.to_string(), ToString::to_string);
                    book.errors.push((seq, words));
                    break;
                }
            }
            tokio::time::sleep(rest).await;
        }
    }
    book
}

/// Half of the transactions by the extended protocol, half by the simple one.
async fn transaction(session: &tokio_postgres::Client, id: u32, seq: u64) -> Result<(), tokio_postgres::Error> {
    if seq.is_multiple_of(2) {
        let text = format!("BEGIN; INSERT INTO ledger VALUES ({id}, {seq}, 1)");
        session.batch_execute(&text).await?;
        session.simple_query("SELECT 1").await?;
        return session.batch_execute("COMMIT").await;
    }
    session.batch_execute("BEGIN").await?;
    let (client, number) = (i32::try_from(id).unwrap_or(0), i64::try_from(seq).unwrap_or(0));
    session.execute("INSERT INTO ledger VALUES ($1, $2, 2)", &[&client, &number]).await?;
    session.batch_execute("COMMIT").await
}
