//! Work of milliseconds, such as the hashing of passwords, beside the threads that serve clients.

use std::io;
use tokio::sync::Semaphore;

/// Derivations for logins to servers at once. Those of clients have turns of their own, so that guessers cannot keep pgmend
/// from its servers.
static FOR_SERVERS: Semaphore = Semaphore::const_new(2);

/// Runs the work on a thread of its own when it is its turn. Who is dropped while he waits leaves the queue; work that has
/// begun is finished, and counts until then.
pub async fn beside<T: Send + 'static>(
    turns: &'static Semaphore,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let turn = turns.acquire().await.map_err(|e| io::Error::other(e.to_string()))?;
    let done = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        work()
    });
    done.await.map_err(|e| io::Error::other(e.to_string()))
}

/// The same for a login to a server.
pub async fn beside_for_server<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    beside(&FOR_SERVERS, work).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    static TURNS: Semaphore = Semaphore::const_new(2);
    static AT_WORK: AtomicUsize = AtomicUsize::new(0);
    static MOST: AtomicUsize = AtomicUsize::new(0);

    #[tokio::test]
    async fn the_thread_goes_on_and_no_more_than_the_turns_are_at_work() {
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let wait = std::sync::Arc::new(std::sync::Mutex::new(wait));
        let all: Vec<_> = (0..6)
            .map(|_| {
                let wait = wait.clone();
                tokio::spawn(beside(&TURNS, move || {
                    MOST.fetch_max(AT_WORK.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    wait.lock().unwrap().recv().unwrap();
                    AT_WORK.fetch_sub(1, Ordering::SeqCst);
                }))
            })
            .collect();
        // This thread is the only one of its runtime, and free although the work waits.
        while AT_WORK.load(Ordering::SeqCst) < 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        (0..6).for_each(|_| go.send(()).unwrap());
        for one in all {
            one.await.unwrap().unwrap();
        }
        assert_eq!(MOST.load(Ordering::SeqCst), 2);
    }
}
