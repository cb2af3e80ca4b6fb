//! Grants, waiters and moves between runtimes, with sockets and without.

use super::*;
use crate::pool::Local;
use crate::server::{Connected, RouteId};
use tokio::io::AsyncReadExt;

const NODE: NodeId = NodeId(0);
const HOME: Home = Home(0);

fn rules(size: usize) -> Rules {
    Rules { size, ..Rules::default() }
}

fn pool(size: usize) -> Arc<SharedPool> {
    SharedPool::new(PoolKey::of_primary("u".into(), "d".into()), rules(size), &Budget::new())
}

#[test]
fn the_budget_is_kept_and_waiters_are_served_in_order() {
    let pool = pool(1);
    let Asked::Permit(first) = pool.ask(NODE, HOME) else { panic!("expected a permit") };
    let Asked::Wait { grant: mut second, .. } = pool.ask(NODE, HOME) else { panic!("expected to wait") };
    let Asked::Wait { grant: mut third, .. } = pool.ask(NODE, HOME) else { panic!("expected to wait") };
    assert_eq!((pool.open(), pool.waiting()), (1, 2));
    drop(first);
    let granted = second.try_recv().unwrap();
    assert!(third.try_recv().is_err());
    drop(granted);
    assert!(matches!(third.try_recv(), Ok(Grant::Permit(_))));
    drop(third);
    assert_eq!((pool.open(), pool.waiting()), (0, 0));
}

#[test]
fn a_waiter_that_left_is_passed_over() {
    let pool = pool(1);
    let Asked::Permit(first) = pool.ask(NODE, HOME) else { panic!("expected a permit") };
    let Asked::Wait { grant: gone, .. } = pool.ask(NODE, HOME) else { panic!("expected to wait") };
    let Asked::Wait { grant: mut next, .. } = pool.ask(NODE, HOME) else { panic!("expected to wait") };
    drop(gone);
    drop(first);
    assert!(matches!(next.try_recv(), Ok(Grant::Permit(_))));
}

#[test]
fn forgetting_a_waiter_takes_it_out() {
    let pool = pool(1);
    let Asked::Permit(_first) = pool.ask(NODE, HOME) else { panic!("expected a permit") };
    let Asked::Wait { id, grant: _grant, .. } = pool.ask(NODE, HOME) else { panic!("expected to wait") };
    pool.forget(id);
    assert_eq!(pool.waiting(), 0);
}

#[test]
fn a_larger_size_lets_waiters_in() {
    let pool = pool(1);
    let Asked::Permit(_first) = pool.ask(NODE, HOME) else { panic!("expected a permit") };
    let Asked::Wait { grant: mut second, .. } = pool.ask(NODE, HOME) else { panic!("expected to wait") };
    pool.set_rules(rules(2));
    pool.budget.tick();
    assert!(matches!(second.try_recv(), Ok(Grant::Permit(_))));
}

/// A connection of the current runtime in this place, and the server's end of it.
fn connection(permit: Permit) -> (Box<Pooled>, std::os::unix::net::UnixStream) {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let stream = tokio::net::UnixStream::from_std(ours).unwrap().into();
    let connected = Connected { stream, parameters: Vec::new(), pid: 1, cancel_key: Vec::new() };
    let conn = ServerConn::new(connected, RouteId { node: NodeId(0), timeline: 1 }, 0);
    (Box::new(Pooled { conn, permit }), theirs)
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

#[test]
fn a_connection_given_to_another_worker_lives_on_in_its_runtime() {
    let pool = pool(1);
    let Asked::Permit(permit) = pool.ask(NODE, HOME) else { panic!("expected a permit") };
    let Asked::Wait { mut grant, .. } = pool.ask(NODE, HOME) else { panic!("expected to wait") };
    let mut theirs = block_on(async {
        let (pooled, theirs) = connection(permit);
        assert!(pool.give(pooled, HOME).is_none());
        theirs
    });
    // The runtime that it came from is gone.
    block_on(async {
        let Grant::Conn(pooled) = grant.try_recv().unwrap().arrive() else { panic!("expected the connection") };
        assert!(pooled.conn.is_at_home());
        let mut pooled = pooled;
        std::io::Write::write_all(&mut theirs, b"hi").unwrap();
        let mut got = [0u8; 2];
        pooled.conn.stream.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"hi");
        let Grant::Conn(_stays) = Grant::Conn(pooled).arrive() else { panic!("expected the connection") };
    });
    assert_eq!(pool.moved(), 1, "counted once, not when it was at home");
}

#[test]
fn a_connection_goes_to_a_client_of_its_own_worker_who_came_a_moment_later() {
    // The machine may stop for longer than a moment between the two.
    let moment = std::time::Duration::from_micros(crate::pool::core::NEAR_US);
    let shown = (0..100).any(|_| {
        block_on(async {
            let shared = pool(1);
            let (here, there) = (Local::new(shared.clone(), HOME), Local::new(shared.clone(), Home(1)));
            let Asked::Permit(permit) = here.ask(NODE) else { panic!("expected a permit") };
            let (pooled, _theirs) = connection(permit);
            let began = std::time::Instant::now();
            let Asked::Wait { grant: mut far, first: true, .. } = there.ask(NODE) else { panic!("expected to wait") };
            let Asked::Wait { grant: mut near, first: false, .. } = here.ask(NODE) else { panic!("expected to wait") };
            if began.elapsed() >= moment {
                return false;
            }
            here.put(pooled, 0);
            assert!(far.try_recv().is_err());
            assert!(matches!(near.try_recv(), Ok(Grant::Conn(_))));
            assert!(matches!(far.try_recv(), Ok(Grant::Permit(_))), "the connection is gone, and its place free");
            true
        })
    });
    assert!(shown, "the two never came in one moment");
}

#[test]
fn idle_connections_that_died_are_not_given_to_who_waits() {
    block_on(async {
        let shared = pool(1);
        let local = Local::new(shared.clone(), HOME);
        let Asked::Permit(permit) = shared.ask(NODE, HOME) else { panic!("expected a permit") };
        let (pooled, theirs) = connection(permit);
        local.put(pooled, 0);
        let Asked::Wait { mut grant, .. } = shared.ask(NODE, HOME) else { panic!("expected to wait") };
        drop(theirs);
        // A turn of the driver, in which it learns of the end.
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        local.serve_waiters();
        assert!(matches!(grant.try_recv(), Ok(Grant::Permit(_))), "the right to open one instead");
    });
}

#[test]
fn a_connection_past_its_life_is_closed_when_it_comes_back() {
    block_on(async {
        let shared = pool(2);
        let local = Local::new(shared.clone(), HOME);
        shared.set_rules(Rules { server_lifetime: std::time::Duration::from_secs(5), ..rules(2) });
        local.sweep(None, 0, false);
        for (now, idle) in [(4, 1), (5, 0)] {
            let Asked::Permit(permit) = shared.ask(NODE, HOME) else { panic!("expected a permit") };
            let (pooled, _theirs) = connection(permit);
            local.put(pooled, now);
            assert_eq!((local.idle(), shared.open()), (idle, idle), "at second {now}");
            local.clear();
        }
    });
}

/// Clients of three pools under two shared limits, each dropped at any moment: while it waits, holds, or has just been
/// granted something.
#[test]
fn nothing_is_left_of_futures_that_were_dropped() {
    struct Forget<'a>(&'a SharedPool, u64);
    impl Drop for Forget<'_> {
        fn drop(&mut self) {
            self.0.forget(self.1);
        }
    }
    type Ends = std::rc::Rc<std::cell::RefCell<Vec<std::os::unix::net::UnixStream>>>;
    async fn client(local: std::rc::Rc<Local>, turns: u64, ends: Ends) {
        let open = |permit| {
            let (pooled, end) = connection(permit);
            ends.borrow_mut().push(end);
            pooled
        };
        for turn in 0..turns {
            let found = local.take(RouteId { node: NODE, timeline: 1 });
            let pooled = match found {
                Some(pooled) => pooled,
                None => match local.shared.ask(NODE, HOME) {
                    Asked::Permit(permit) => open(permit),
                    Asked::Full => panic!("the queue has no limit"),
                    Asked::Wait { id, grant, .. } => {
                        let _forget = Forget(&local.shared, id);
                        match grant.await.unwrap().arrive() {
                            Grant::Conn(pooled) => pooled,
                            Grant::Permit(permit) => open(permit),
                        }
                    }
                },
            };
            tokio::time::sleep(std::time::Duration::from_micros(50 * (turn % 7))).await;
            local.put(pooled, 0);
        }
    }
    let budget = Budget::new();
    budget.set_node_limits(3, 0);
    let rules = Rules { max_db_connections: 2, ..rules(2) };
    let pools = ["a", "b", "c"]
        .map(|user| SharedPool::new(PoolKey::of_primary(user.into(), "d".into()), rules.clone(), &budget));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let tasks = tokio::task::LocalSet::new();
    tasks.block_on(&runtime, async {
        let locals = pools.each_ref().map(|pool| std::rc::Rc::new(Local::new(pool.clone(), HOME)));
        let ends = Ends::default();
        let mut running = std::collections::VecDeque::new();
        for n in 0..600u64 {
            let [a, b, c] = &locals;
            let local = [a, b, c][(n % 3) as usize].clone();
            running.push_back(tokio::task::spawn_local(client(local, n % 5 + 1, ends.clone())));
            locals.iter().for_each(|l| l.serve_waiters());
            if n % 4 == 0 {
                tokio::time::sleep(std::time::Duration::from_micros(n * 7 % 300)).await;
            }
            if running.len() > 30 {
                running.remove((n * 11 % 30) as usize).unwrap().abort();
            }
        }
        for one in running {
            one.abort();
            let _ = one.await;
        }
        locals.iter().for_each(|l| l.clear());
    });
    for pool in &pools {
        assert_eq!((pool.open(), pool.waiting()), (0, 0), "of {}", pool.key.user);
    }
    assert_eq!(budget.contended(), 0);
    // And everything is there for the next ones.
    assert!(matches!(pools[0].ask(NODE, HOME), Asked::Permit(_)));
}
