//! Who may have a server connection: the pure core of the budget. Pools, the limits that several of them share, and one
//! order of waiting over all. No clock, no lock, no IO: times come in as microseconds, waiters are tokens that go out again.
//!
//! Every open connection is a [`Place`]. A place counts for its pool and for three groups: database, user, node. Who waits
//! is served by a connection of its own pool that comes back, or by the right to open one when there is room everywhere.
//! Under a limit that several pools share, who waits longest is first:
//! * an idle connection of another pool under the limit is closed for a waiter at once;
//! * one that comes back goes to its own pool's waiters unless somebody of another pool has waited for longer and for at
//!   least [`PATIENCE_US`], since closing one and opening another costs milliseconds;
//! * who needs room under two limits that are never free at once has it kept for him after [`STARVING_US`].
//!
//! Within a pool a connection that comes back goes to the first waiter, or to one who is near (of the same worker) and came
//! at most [`NEAR_US`] later: the way to another worker costs as much as a short transaction does.

use super::rate::Rate;
use crate::base::NodeId;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// So long a pool's own waiters go before older ones of other pools under the same limit.
pub const PATIENCE_US: u64 = 50_000;
/// After this, room that a waiter needs is kept free for him although he cannot use it yet.
pub const STARVING_US: u64 = 1_000_000;
/// The grain of a pool's order: who came so much later may go first where the connection is nearer to him.
pub const NEAR_US: u64 = 1_000;
/// So far into the queue somebody near is looked for.
const NEAR_WITHIN: usize = 64;
/// Waiters of one pool whatever the settings say.
const MAX_WAITERS: usize = 100_000;

/// Number of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolId(usize);

/// One connection that is open or being opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Of this pool.
    pub pool: PoolId,
    /// To this node.
    pub node: NodeId,
}

/// Limits of one pool; zero means none, except for the size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Connections.
    pub size: usize,
    /// Kept open without need.
    pub min: usize,
    /// Further ones for who has waited for long.
    pub reserve: usize,
    /// How long.
    pub reserve_after_us: u64,
    /// Clients in the queue.
    pub max_waiting: usize,
    /// Connections of all users to the database.
    pub database: usize,
    /// Connections of the user to all databases.
    pub user: usize,
}

/// What becomes of a connection that came back clean, or lies idle.
#[derive(Debug, PartialEq, Eq)]
pub enum Back<W> {
    /// It stays, idle.
    Keep,
    /// Somebody else needs its place, or there are too many.
    Close,
    /// This waiter gets it.
    Give(W),
}

/// A waiter who may open a connection.
pub type Granted<W> = (W, Place);

#[derive(Debug)]
struct Waiter<W> {
    id: u64,
    since_us: u64,
    node: NodeId,
    token: W,
}

#[derive(Debug)]
struct Pool<W> {
    sizes: Sizes,
    open: usize,
    queue: VecDeque<Waiter<W>>,
    database: usize,
    user: usize,
    /// Where its head is listed: the waiter's id and the groups.
    listed: Option<(u64, [usize; 3])>,
    /// Length of the queue, for who looks without the lock.
    gauge: Arc<AtomicUsize>,
}

/// Pools under one limit.
#[derive(Debug, Default)]
struct Group {
    /// Zero = no limit.
    max: usize,
    open: usize,
    /// First waiters of its pools, oldest first. Kept only where there is a limit.
    heads: BTreeSet<(u64, PoolId)>,
}

impl Group {
    fn is_full(&self) -> bool {
        self.max > 0 && self.open >= self.max
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum GroupKey {
    Database(String),
    User(String),
}

/// A node that connections go or went to.
#[derive(Debug)]
struct Node {
    id: NodeId,
    group: usize,
    rate: Rate,
}

/// The budget of all pools. `W` is what a waiter is known by outside.
#[derive(Debug)]
pub struct Core<W> {
    pools: Vec<Pool<W>>,
    groups: Vec<Group>,
    by_key: HashMap<GroupKey, usize>,
    /// A handful, so looked through.
    nodes: Vec<Node>,
    /// Groups that have a limit.
    limited: usize,
    last_id: u64,
    node_max: usize,
    per_second: u64,
    listed: usize,
    contended: Arc<AtomicUsize>,
}

impl<W> Core<W> {
    /// No pools. `contended` shows the number of pools whose waiters stand under a limit shared with others.
    pub fn new(contended: Arc<AtomicUsize>) -> Core<W> {
        Core {
            pools: Vec::new(),
            groups: Vec::new(),
            by_key: HashMap::new(),
            nodes: Vec::new(),
            limited: 0,
            last_id: 0,
            node_max: 0,
            per_second: 0,
            listed: 0,
            contended,
        }
    }

    /// A new pool. `waiting` shows the length of its queue.
    pub fn add_pool(&mut self, database: &str, user: &str, sizes: Sizes, waiting: Arc<AtomicUsize>) -> PoolId {
        let id = PoolId(self.pools.len());
        let database = self.group(GroupKey::Database(database.to_owned()));
        let user = self.group(GroupKey::User(user.to_owned()));
        let queue = VecDeque::new();
        self.pools.push(Pool { sizes, open: 0, queue, database, user, listed: None, gauge: waiting });
        self.limit(database, sizes.database);
        self.limit(user, sizes.user);
        id
    }

    /// Limits that all pools share: connections to one node, and new ones per second; zero = none.
    pub fn set_node_limits(&mut self, max: usize, per_second: u64) {
        (self.node_max, self.per_second) = (max, per_second);
        for at in self.nodes.iter().map(|n| n.group).collect::<Vec<_>>() {
            self.limit(at, max);
        }
    }

    /// New limits of a pool; call `tick` afterwards, as there may be room now.
    pub fn set_sizes(&mut self, pool: PoolId, sizes: Sizes) {
        let Some(one) = self.pools.get_mut(pool.0) else { return };
        one.sizes = sizes;
        let (database, user) = (one.database, one.user);
        self.limit(database, sizes.database);
        self.limit(user, sizes.user);
    }

    /// Connections open or being opened.
    pub fn open(&self, pool: PoolId) -> usize {
        self.pools.get(pool.0).map_or(0, |p| p.open)
    }

    /// True when more are open than the pool's size allows: after a reload, or because the reserve was needed.
    pub fn is_oversize(&self, pool: PoolId) -> bool {
        self.pools.get(pool.0).is_some_and(|p| p.open > p.sizes.size)
    }

    /// True when nobody waits in the pool and its own size has room.
    pub fn is_open_to(&self, pool: PoolId) -> bool {
        self.pools.get(pool.0).is_some_and(|p| p.queue.is_empty() && p.has_own_room(0))
    }

    /// False when it does not matter how long somebody has waited: for `returned` any time will do.
    pub fn needs_time(&self, pool: PoolId) -> bool {
        self.limited > 0 || self.pools.get(pool.0).is_some_and(|p| p.sizes.reserve > 0)
    }

    /// True when nobody waits and there is room everywhere.
    pub fn can_open(&self, place: Place, now_us: u64) -> bool {
        let free = self.pools.get(place.pool.0).is_some_and(|p| p.queue.is_empty());
        free && self.has_room(place, u64::MAX, 0, now_us) && self.due_us(place.node) <= now_us
    }

    /// Takes a place if nobody waits and there is room everywhere.
    pub fn try_open(&mut self, place: Place, now_us: u64) -> bool {
        let may = self.can_open(place, now_us);
        if may {
            self.take(place, now_us);
        }
        may
    }

    /// Takes a place to keep the least number of connections open; never at a waiter's cost.
    pub fn top_up(&mut self, place: Place, now_us: u64) -> bool {
        let few = self.pools.get(place.pool.0).is_some_and(|p| p.open < p.sizes.min);
        let groups = self.groups_of(place);
        let alone = groups.iter().filter_map(|at| self.groups.get(*at)).all(|g| g.heads.is_empty());
        few && alone && self.try_open(place, now_us)
    }

    /// Joins the queue; the number takes the waiter out again. `Err`: the queue is full.
    pub fn join(&mut self, place: Place, now_us: u64, token: W) -> Result<u64, W> {
        let Some(pool) = self.pools.get_mut(place.pool.0) else { return Err(token) };
        let most = if pool.sizes.max_waiting == 0 { MAX_WAITERS } else { pool.sizes.max_waiting.min(MAX_WAITERS) };
        if pool.queue.len() >= most {
            return Err(token);
        }
        self.last_id += 1;
        let id = self.last_id;
        pool.queue.push_back(Waiter { id, since_us: now_us, node: place.node, token });
        self.relist(place.pool);
        Ok(id)
    }

    /// Takes a waiter out (time-out, disconnect), if he has not been served. Others may get room that was kept for him.
    pub fn forget(&mut self, pool: PoolId, id: u64, now_us: u64) -> Vec<Granted<W>> {
        let Some(one) = self.pools.get_mut(pool.0) else { return Vec::new() };
        let Ok(at) = one.queue.binary_search_by_key(&id, |w| w.id) else { return Vec::new() };
        let Some(gone) = one.queue.remove(at) else { return Vec::new() };
        self.relist(pool);
        if at > 0 {
            return Vec::new();
        }
        self.serve(self.concerned(Place { pool, node: gone.node }), now_us)
    }

    /// A connection came back clean, or lies idle while somebody waits. `near`: to whom it would not have far to go.
    pub fn returned(&mut self, place: Place, now_us: u64, near: impl Fn(&W) -> bool) -> Back<W> {
        let Some(pool) = self.pools.get(place.pool.0) else { return Back::Close };
        let over = |at: &usize| self.groups.get(*at).is_some_and(|g| g.max > 0 && g.open > g.max);
        if pool.open > pool.sizes.size + pool.sizes.reserve || self.groups_of(place).iter().any(over) {
            return Back::Close;
        }
        let own = pool.queue.front().map(|w| w.id);
        if self.is_owed(place, own, now_us) {
            return Back::Close;
        }
        match own {
            Some(_) => self.pop_near(place.pool, near).map_or(Back::Keep, |waiter| Back::Give(waiter.token)),
            None if pool.open > pool.sizes.size => Back::Close,
            None => Back::Keep,
        }
    }

    /// A connection is closed.
    pub fn released(&mut self, place: Place, now_us: u64) -> Vec<Granted<W>> {
        if let Some(pool) = self.pools.get_mut(place.pool.0) {
            pool.open = pool.open.saturating_sub(1);
        }
        for at in self.group_ids(place) {
            if let Some(group) = self.groups.get_mut(at) {
                group.open = group.open.saturating_sub(1);
            }
        }
        self.serve(self.concerned(place), now_us)
    }

    /// What has become possible by time alone or by new limits.
    pub fn tick(&mut self, now_us: u64) -> Vec<Granted<W>> {
        let heads = self.pools.iter().enumerate().filter_map(|(at, p)| Some((p.queue.front()?.id, PoolId(at))));
        self.serve(heads.collect(), now_us)
    }

    /// When a waiter is only held up by the rate of new connections: until when.
    pub fn rate_due_us(&self, now_us: u64) -> Option<u64> {
        let late = self.nodes.iter().map(|n| (n.id, n.rate.due_us(self.per_second))).filter(|(_, due)| *due > now_us);
        let held_up = |node: NodeId| {
            self.pools.iter().enumerate().any(|(at, p)| {
                p.queue.front().is_some_and(|w| {
                    let place = Place { pool: PoolId(at), node };
                    w.node == node && self.has_room(place, w.id, now_us.saturating_sub(w.since_us), now_us)
                })
            })
        };
        late.filter(|(node, _)| held_up(*node)).map(|(_, due)| due).min()
    }

    /// True when a waiter of another pool shall have this place. `own`: the first waiter of the place's own pool.
    fn is_owed(&self, place: Place, own: Option<u64>, now_us: u64) -> bool {
        let groups = self.groups_of(place);
        let full = groups.iter().filter_map(|at| self.groups.get(*at)).filter(|g| g.is_full());
        full.flat_map(|g| g.heads.iter().take_while(|(id, _)| own.is_none_or(|own| *id < own))).any(|(_, other)| {
            let Some((pool, head)) = self.pools.get(other.0).and_then(|p| Some((p, p.queue.front()?))) else {
                return false;
            };
            let waited = now_us.saturating_sub(head.since_us);
            let patient = own.is_some() && waited < PATIENCE_US;
            let elsewhere = self.groups_of(Place { pool: *other, node: head.node });
            let only_here = || {
                let mut others =
                    elsewhere.iter().filter(|at| !groups.contains(at)).filter_map(|at| self.groups.get(*at));
                !others.any(Group::is_full)
            };
            *other != place.pool && !patient && pool.has_own_room(waited) && (waited >= STARVING_US || only_here())
        })
    }

    /// True when this pool, and each limit over it beside what is kept for elder starving waiters, has room.
    fn has_room(&self, place: Place, id: u64, waited_us: u64, now_us: u64) -> bool {
        let own = self.pools.get(place.pool.0).is_some_and(|p| p.has_own_room(waited_us));
        own && self.groups_of(place).iter().filter_map(|at| self.groups.get(*at)).all(|group| {
            group.max == 0 || {
                let room = group.max.saturating_sub(group.open);
                let elder = group.heads.iter().take_while(|(other, _)| *other < id);
                let starving = elder.filter(|(_, other)| *other != place.pool && self.is_starving(*other, now_us));
                starving.take(room).count() < room
            }
        })
    }

    fn is_starving(&self, pool: PoolId, now_us: u64) -> bool {
        let Some(pool) = self.pools.get(pool.0) else { return false };
        let waited = pool.queue.front().map_or(0, |w| now_us.saturating_sub(w.since_us));
        waited >= STARVING_US && pool.has_own_room(waited)
    }

    /// First waiters whom a change at this place concerns.
    fn concerned(&self, place: Place) -> BTreeSet<(u64, PoolId)> {
        let own = self.pools.get(place.pool.0).and_then(|p| p.queue.front()).map(|w| (w.id, place.pool));
        let groups = self.groups_of(place);
        let shared = groups.iter().filter_map(|at| self.groups.get(*at)).flat_map(|g| g.heads.iter().copied());
        own.into_iter().chain(shared).collect()
    }

    /// Gives the right to open a connection to each of these who can have it, the eldest first.
    fn serve(&mut self, mut heads: BTreeSet<(u64, PoolId)>, now_us: u64) -> Vec<Granted<W>> {
        let mut granted = Vec::new();
        while let Some((id, pool)) = heads.pop_first() {
            let Some(head) = self.pools.get(pool.0).and_then(|p| p.queue.front()).filter(|w| w.id == id) else {
                continue;
            };
            let place = Place { pool, node: head.node };
            let waited = now_us.saturating_sub(head.since_us);
            if !self.has_room(place, id, waited, now_us) || self.due_us(place.node) > now_us {
                continue;
            }
            let Some(waiter) = self.pop(pool) else { continue };
            self.take(place, now_us);
            granted.push((waiter.token, place));
            heads.extend(self.pools.get(pool.0).and_then(|p| p.queue.front()).map(|w| (w.id, pool)));
        }
        granted
    }

    fn take(&mut self, place: Place, now_us: u64) {
        if let Some(pool) = self.pools.get_mut(place.pool.0) {
            pool.open += 1;
        }
        for at in self.group_ids(place) {
            if let Some(group) = self.groups.get_mut(at) {
                group.open += 1;
            }
        }
        let per_second = self.per_second;
        if let Some(node) = self.nodes.iter_mut().find(|n| n.id == place.node) {
            node.rate.take(now_us, per_second);
        }
    }

    fn due_us(&self, node: NodeId) -> u64 {
        self.nodes.iter().find(|n| n.id == node).map_or(0, |n| n.rate.due_us(self.per_second))
    }

    fn pop(&mut self, pool: PoolId) -> Option<Waiter<W>> {
        self.pop_near(pool, |_| true)
    }

    fn pop_near(&mut self, pool: PoolId, near: impl Fn(&W) -> bool) -> Option<Waiter<W>> {
        let queue = &mut self.pools.get_mut(pool.0)?.queue;
        let last_us = queue.front()?.since_us.saturating_add(NEAR_US);
        let mut in_time = queue.iter().take(NEAR_WITHIN).take_while(|waiter| waiter.since_us <= last_us);
        let at = in_time.position(|waiter| near(&waiter.token)).unwrap_or(0);
        let waiter = queue.remove(at);
        self.relist(pool);
        waiter
    }

    /// The queue has changed: its head is listed where there are limits, and the gauges are set.
    fn relist(&mut self, pool: PoolId) {
        let Some(one) = self.pools.get(pool.0) else { return };
        one.gauge.store(one.queue.len(), Ordering::Release);
        let head = one.queue.front().map(|w| (w.id, w.node));
        if self.limited == 0 || one.listed.map(|(id, _)| id) == head.map(|(id, _)| id) {
            return;
        }
        self.unlist(pool);
        let Some((id, node)) = head else { return };
        let groups = self.group_ids(Place { pool, node });
        let mut limited = false;
        for at in groups {
            if let Some(group) = self.groups.get_mut(at).filter(|g| g.max > 0) {
                limited |= group.heads.insert((id, pool));
            }
        }
        if limited && let Some(one) = self.pools.get_mut(pool.0) {
            one.listed = Some((id, groups));
            self.listed += 1;
            self.contended.store(self.listed, Ordering::Release);
        }
    }

    fn unlist(&mut self, pool: PoolId) {
        let Some((id, groups)) = self.pools.get_mut(pool.0).and_then(|p| p.listed.take()) else { return };
        for at in groups {
            if let Some(group) = self.groups.get_mut(at) {
                group.heads.remove(&(id, pool));
            }
        }
        self.listed -= 1;
        self.contended.store(self.listed, Ordering::Release);
    }

    fn group(&mut self, key: GroupKey) -> usize {
        let groups = &mut self.groups;
        *self.by_key.entry(key).or_insert_with(|| {
            groups.push(Group::default());
            groups.len() - 1
        })
    }

    /// Sets a group's limit. Where there was none its waiters were not listed, and the other way round.
    fn limit(&mut self, at: usize, max: usize) {
        let Some(group) = self.groups.get_mut(at).filter(|g| g.max != max) else { return };
        let (was, is) = (group.max > 0, max > 0);
        group.max = max;
        if was == is {
            return;
        }
        self.limited = if is { self.limited + 1 } else { self.limited - 1 };
        let waiting = self.pools.iter().enumerate().filter(|(_, p)| !p.queue.is_empty());
        let concerned = waiting.filter_map(|(n, p)| {
            let place = Place { pool: PoolId(n), node: p.queue.front()?.node };
            self.groups_of(place).contains(&at).then_some(place.pool)
        });
        for pool in concerned.collect::<Vec<_>>() {
            self.unlist(pool);
            self.relist(pool);
        }
    }

    /// The groups of a place; that of its node is made when it is new.
    fn group_ids(&mut self, place: Place) -> [usize; 3] {
        if !self.nodes.iter().any(|n| n.id == place.node) {
            let group = self.groups.len();
            self.groups.push(Group::default());
            self.nodes.push(Node { id: place.node, group, rate: Rate::default() });
            self.limit(group, self.node_max);
        }
        self.groups_of(place)
    }

    /// The same without making one; a node that nobody has gone to has no limit to keep yet.
    fn groups_of(&self, place: Place) -> [usize; 3] {
        let node = self.nodes.iter().find(|n| n.id == place.node).map_or(usize::MAX, |n| n.group);
        self.pools.get(place.pool.0).map_or([node; 3], |p| [p.database, p.user, node])
    }
}

impl<W> Pool<W> {
    /// Room by its own size; who has waited for long may use the reserve.
    fn has_own_room(&self, waited_us: u64) -> bool {
        let reserve = if waited_us >= self.sizes.reserve_after_us { self.sizes.reserve } else { 0 };
        self.open < self.sizes.size + reserve
    }
}

#[cfg(test)]
#[path = "core_tests.rs"]
mod tests;
