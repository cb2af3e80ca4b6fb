//! The budget's core by hand, and whole days of it under a seed.

use super::*;
use proptest::prelude::*;

const NODE: NodeId = NodeId(0);
const SECOND: u64 = 1_000_000;
const ANY: fn(&u32) -> bool = |_| true;

fn core() -> Core<u32> {
    Core::new(Arc::default())
}

fn sizes(size: usize) -> Sizes {
    Sizes { size, ..Sizes::default() }
}

fn pool(core: &mut Core<u32>, database: &str, user: &str, sizes: Sizes) -> Place {
    Place { pool: core.add_pool(database, user, sizes, Arc::default()), node: NODE }
}

/// Opens as many as there is room for.
fn fill(core: &mut Core<u32>, place: Place) -> usize {
    std::iter::from_fn(|| core.try_open(place, 0).then_some(())).count()
}

#[test]
fn the_size_is_kept_and_waiters_are_served_in_order() {
    let mut core = core();
    let a = pool(&mut core, "d", "u", sizes(2));
    assert_eq!(fill(&mut core, a), 2);
    core.join(a, 0, 1).unwrap();
    core.join(a, 0, 2).unwrap();
    assert_eq!(core.returned(a, 1, ANY), Back::Give(1));
    assert_eq!(core.released(a, 2), [(2, a)]);
    assert_eq!(core.returned(a, 3, ANY), Back::Keep);
    assert!(core.released(a, 4).is_empty());
    assert_eq!(core.open(a.pool), 1);
}

#[test]
fn who_is_near_goes_before_those_who_came_a_moment_earlier_only() {
    let mut core = core();
    let a = pool(&mut core, "d", "u", sizes(1));
    assert_eq!(fill(&mut core, a), 1);
    // Odd ones are near.
    let near = |token: &u32| token % 2 == 1;
    for (token, us) in [(0, 10), (2, 20), (1, 1_010), (3, 1_015), (4, 1_020), (6, 1_030)] {
        core.join(a, us, token).unwrap();
    }
    let served = |core: &mut Core<u32>| match core.returned(a, 9_000, near) {
        Back::Give(token) => token,
        other => panic!("{other:?}"),
    };
    assert_eq!(served(&mut core), 1);
    assert_eq!(served(&mut core), 0, "3 came too late to go before it");
    assert_eq!([served(&mut core), served(&mut core)], [3, 2]);
    assert_eq!([served(&mut core), served(&mut core)], [4, 6], "nobody near: the first");
    assert_eq!(core.returned(a, 9_000, near), Back::Keep);
}

#[test]
fn nobody_jumps_the_queue() {
    let mut core = core();
    let a = pool(&mut core, "d", "u", sizes(1));
    assert!(core.try_open(a, 0));
    core.join(a, 0, 1).unwrap();
    core.set_sizes(a.pool, sizes(2));
    assert!(!core.try_open(a, 0), "somebody waits for that room");
    assert_eq!(core.tick(0), [(1, a)]);
}

#[test]
fn a_full_queue_refuses() {
    let mut core = core();
    let a = pool(&mut core, "d", "u", Sizes { max_waiting: 1, ..sizes(1) });
    core.join(a, 0, 1).unwrap();
    assert_eq!(core.join(a, 0, 2), Err(2));
}

#[test]
fn a_smaller_size_takes_effect_as_connections_come_back() {
    let mut core = core();
    let a = pool(&mut core, "d", "u", sizes(3));
    fill(&mut core, a);
    core.join(a, 0, 1).unwrap();
    core.set_sizes(a.pool, sizes(1));
    assert_eq!(core.returned(a, 0, ANY), Back::Close);
    assert!(core.released(a, 0).is_empty(), "two are open, one is allowed");
    assert_eq!(core.returned(a, 0, ANY), Back::Close);
    assert!(core.released(a, 0).is_empty());
    assert_eq!(core.returned(a, 0, ANY), Back::Give(1));
}

#[test]
fn the_reserve_is_for_who_has_waited_and_is_closed_when_nobody_does() {
    let mut core = core();
    let a = pool(&mut core, "d", "u", Sizes { reserve: 1, reserve_after_us: 5 * SECOND, ..sizes(1) });
    assert_eq!(fill(&mut core, a), 1);
    core.join(a, 0, 1).unwrap();
    core.join(a, SECOND, 2).unwrap();
    assert!(core.tick(5 * SECOND - 1).is_empty());
    assert_eq!(core.tick(5 * SECOND), [(1, a)]);
    assert!(core.tick(60 * SECOND).is_empty(), "the reserve has one only");
    assert_eq!(core.returned(a, 60 * SECOND, ANY), Back::Give(2));
    assert!(core.is_oversize(a.pool));
    assert_eq!(core.returned(a, 60 * SECOND, ANY), Back::Close);
}

#[test]
fn limits_of_databases_users_and_nodes_span_pools() {
    let mut core = core();
    let limited = Sizes { database: 3, user: 4, ..sizes(10) };
    let (a, b) = (pool(&mut core, "d", "u", limited), pool(&mut core, "d", "v", limited));
    let (c, e) = (pool(&mut core, "e", "u", limited), pool(&mut core, "f", "w", limited));
    assert_eq!((fill(&mut core, a), fill(&mut core, b)), (3, 0), "three of the database");
    assert_eq!(fill(&mut core, c), 1, "four of the user");
    core.set_node_limits(5, 0);
    assert_eq!(fill(&mut core, e), 1, "five of the node");
    let elsewhere = Place { node: NodeId(1), ..e };
    assert!(core.try_open(elsewhere, 0), "another node has its own five");
}

#[test]
fn an_idle_connection_of_another_pool_makes_room() {
    let mut core = core();
    let limited = Sizes { database: 1, ..sizes(10) };
    let (a, b) = (pool(&mut core, "d", "u", limited), pool(&mut core, "d", "v", limited));
    let other = pool(&mut core, "other", "u", sizes(1));
    assert!(core.try_open(a, 0) && core.try_open(other, 0));
    core.join(b, 0, 1).unwrap();
    assert_eq!(core.returned(other, 0, ANY), Back::Keep, "closing that one would help nobody");
    assert_eq!(core.returned(a, 0, ANY), Back::Close);
    assert_eq!(core.released(a, 0), [(1, b)]);
}

#[test]
fn between_pools_the_one_who_waits_longer_is_first_after_a_moments_patience() {
    let mut core = core();
    let limited = Sizes { database: 1, ..sizes(10) };
    let (a, b) = (pool(&mut core, "d", "u", limited), pool(&mut core, "d", "v", limited));
    assert!(core.try_open(a, 0));
    core.join(b, 0, 1).unwrap();
    core.join(a, 1, 2).unwrap();
    core.join(a, 1, 3).unwrap();
    assert_eq!(core.returned(a, PATIENCE_US - 1, ANY), Back::Give(2), "opening another would cost more than it wins");
    assert_eq!(core.returned(a, PATIENCE_US, ANY), Back::Close);
    assert_eq!(core.released(a, PATIENCE_US), [(1, b)]);
    assert_eq!(core.returned(b, PATIENCE_US, ANY), Back::Close, "nobody of its own waits");
    assert_eq!(core.released(b, PATIENCE_US), [(3, a)]);
}

#[test]
fn who_needs_room_under_two_limits_does_not_starve() {
    let mut core = core();
    let both = Sizes { database: 1, user: 1, ..sizes(10) };
    let q = pool(&mut core, "d", "u", both);
    let d = pool(&mut core, "d", "x", Sizes { database: 1, ..sizes(10) });
    let u = pool(&mut core, "e", "u", Sizes { user: 1, ..sizes(10) });
    assert!(core.try_open(d, 0) && core.try_open(u, 0));
    core.join(q, 0, 1).unwrap();
    core.join(d, 1, 2).unwrap();
    core.join(u, 1, 3).unwrap();
    // Neither place alone is of use to him.
    assert_eq!(core.returned(d, PATIENCE_US, ANY), Back::Give(2));
    core.join(d, PATIENCE_US, 4).unwrap();
    assert_eq!(core.returned(d, STARVING_US, ANY), Back::Close);
    assert!(core.released(d, STARVING_US).is_empty(), "it is kept for him");
    assert!(!core.try_open(d, STARVING_US));
    assert_eq!(core.returned(u, STARVING_US, ANY), Back::Close);
    assert_eq!(core.released(u, STARVING_US), [(1, q)]);
}

#[test]
fn when_the_starving_one_leaves_what_was_kept_for_him_is_given_away() {
    let mut core = core();
    let q = pool(&mut core, "d", "u", Sizes { database: 1, user: 1, ..sizes(10) });
    let d = pool(&mut core, "d", "x", Sizes { database: 1, ..sizes(10) });
    let u = pool(&mut core, "e", "u", Sizes { user: 1, ..sizes(10) });
    assert!(core.try_open(d, 0) && core.try_open(u, 0));
    let id = core.join(q, 0, 1).unwrap();
    core.join(d, 1, 2).unwrap();
    assert_eq!(core.returned(d, STARVING_US, ANY), Back::Close);
    assert!(core.released(d, STARVING_US).is_empty());
    assert_eq!(core.forget(q.pool, id, STARVING_US), [(2, d)]);
}

#[test]
fn new_connections_to_a_node_have_a_rate_and_the_queue_waits_for_it() {
    let mut core = core();
    core.set_node_limits(0, 2);
    let a = pool(&mut core, "d", "u", sizes(10));
    let now = 10 * SECOND;
    assert!(core.try_open(a, now));
    assert!(!core.try_open(a, now), "one every half second");
    core.join(a, now, 1).unwrap();
    assert_eq!(core.rate_due_us(now), Some(now + SECOND / 2));
    assert!(core.tick(now + SECOND / 2 - 1).is_empty());
    assert_eq!(core.returned(a, now, ANY), Back::Give(1), "one that comes back needs no waiting");
    core.join(a, now, 2).unwrap();
    assert_eq!(core.tick(now + SECOND / 2), [(2, a)]);
    assert_eq!(core.rate_due_us(now + SECOND / 2), None, "nobody waits for it");
}

#[test]
fn the_least_number_is_opened_only_where_nobody_waits() {
    let mut core = core();
    let a = pool(&mut core, "d", "u", Sizes { min: 2, database: 2, ..sizes(5) });
    let b = pool(&mut core, "d", "v", Sizes { database: 2, ..sizes(5) });
    assert!(core.top_up(a, 0));
    core.join(b, 0, 1).unwrap();
    assert!(!core.top_up(a, 0));
    assert_eq!(core.tick(0), [(1, b)]);
    assert!(!core.top_up(a, 0), "the database has two");
}

/// A pool: its place, limits, database, user.
type Known = (Place, Sizes, usize, usize);
type Which<'a> = &'a dyn Fn(&Known) -> bool;

/// A world around the core: what is open, who waits, and what it knows independently of it.
struct World {
    core: Core<u32>,
    places: Vec<Known>,
    /// Working, by place: until when.
    busy: Vec<(Place, u64)>,
    idle: Vec<Place>,
    /// Token, place, number, since.
    waiting: Vec<(u32, Place, u64, u64)>,
    now: u64,
    tokens: u32,
    longest_us: u64,
}

const NODE_MAX: usize = 9;

impl World {
    fn new() -> World {
        let mut core = core();
        core.set_node_limits(NODE_MAX, 0);
        let mut places = Vec::new();
        for database in 0..3usize {
            for user in 0..3usize {
                let sizes = Sizes {
                    size: 2 + user,
                    reserve: database,
                    reserve_after_us: 2 * SECOND,
                    database: [0, 3, 5][database],
                    user: [0, 4, 1][user],
                    ..Sizes::default()
                };
                let place = pool(&mut core, &database.to_string(), &user.to_string(), sizes);
                places.push((place, sizes, database, user));
            }
        }
        World { core, places, busy: vec![], idle: vec![], waiting: vec![], now: 0, tokens: 0, longest_us: 0 }
    }

    fn arrive(&mut self, at: usize, works_us: u64) {
        let (place, ..) = self.places[at];
        if !self.waiting.iter().any(|w| w.1 == place)
            && let Some(found) = self.idle.iter().position(|p| *p == place)
        {
            self.idle.swap_remove(found);
            self.busy.push((place, self.now + works_us));
        } else if self.core.try_open(place, self.now) {
            self.busy.push((place, self.now + works_us));
        } else {
            self.tokens += 1;
            let id = self.core.join(place, self.now, self.tokens).unwrap();
            self.waiting.push((self.tokens, place, id, self.now));
            // The workers are told to look at their idle connections.
            for place in std::mem::take(&mut self.idle) {
                self.back(place, works_us);
            }
        }
    }

    fn back(&mut self, place: Place, works_us: u64) {
        match self.core.returned(place, self.now, |token| token % 3 == 0) {
            Back::Keep => self.idle.push(place),
            Back::Close => {
                let granted = self.core.released(place, self.now);
                self.grant(granted, works_us);
            }
            Back::Give(token) => self.begin(token, place, works_us),
        }
    }

    fn grant(&mut self, granted: Vec<Granted<u32>>, works_us: u64) {
        for (token, place) in granted {
            self.begin(token, place, works_us);
        }
    }

    fn begin(&mut self, token: u32, place: Place, works_us: u64) {
        let at = self.waiting.iter().position(|w| w.0 == token).expect("nobody is served twice or after he left");
        let (_, own, _, since) = self.waiting.remove(at);
        assert_eq!(own, place);
        self.longest_us = self.longest_us.max(self.now - since);
        self.busy.push((place, self.now + works_us));
    }

    fn leave(&mut self, which: usize, works_us: u64) {
        if self.waiting.is_empty() {
            return;
        }
        let (_, place, id, _) = self.waiting.remove(which % self.waiting.len());
        let granted = self.core.forget(place.pool, id, self.now);
        self.grant(granted, works_us);
    }

    fn pass(&mut self, us: u64, works_us: u64) {
        let swept = self.now / SECOND;
        self.now += us;
        while let Some(at) = self.busy.iter().position(|(_, until)| *until <= self.now) {
            let (place, _) = self.busy.remove(at);
            self.back(place, works_us);
        }
        if swept < self.now / SECOND {
            for place in std::mem::take(&mut self.idle) {
                self.back(place, works_us);
            }
        }
        let granted = self.core.tick(self.now);
        self.grant(granted, works_us);
    }

    fn check(&self) {
        let open = |of: Which<'_>| {
            let of = |place: &Place| self.places.iter().any(|p| p.0 == *place && of(p));
            self.busy.iter().filter(|(p, _)| of(p)).count() + self.idle.iter().filter(|p| of(p)).count()
        };
        assert!(open(&|_| true) <= NODE_MAX);
        for (place, sizes, database, user) in &self.places {
            let own = open(&|p| p.0 == *place);
            assert!(own <= sizes.size + sizes.reserve);
            assert_eq!(own, self.core.open(place.pool), "nothing is lost");
            assert!(sizes.database == 0 || open(&|p| p.2 == *database) <= sizes.database);
            assert!(sizes.user == 0 || open(&|p| p.3 == *user) <= sizes.user);
            // With nothing of its own at work, and no limit reached by work, nobody waits for an idle connection.
            let waits = self.waiting.iter().any(|w| w.1 == *place);
            let free = |limit: usize, of: Which<'_>| limit == 0 || open(of) < limit;
            let room = own < sizes.size
                && free(NODE_MAX, &|_| true)
                && free(sizes.database, &|p| p.2 == *database)
                && free(sizes.user, &|p| p.3 == *user);
            let starving = self.waiting.iter().any(|w| self.now - w.3 >= STARVING_US);
            assert!(!waits || !room || starving, "there is room, and somebody waits");
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Arrive(usize, u64),
    Leave(usize),
    Pass(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..9usize, 100..60_000u64).prop_map(|(at, us)| Step::Arrive(at, us)),
        1 => (0..64usize).prop_map(Step::Leave),
        4 => (0..40_000u64).prop_map(Step::Pass),
        1 => (0..1_500_000u64).prop_map(Step::Pass),
    ];
    prop::collection::vec(step, 1..400)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn no_limit_is_ever_exceeded_and_everybody_is_served_in_the_end(steps in steps()) {
        let mut world = World::new();
        let mut works_us = 1000;
        for step in steps {
            match step {
                Step::Arrive(at, us) => { works_us = us; world.arrive(at, us) }
                Step::Leave(which) => world.leave(which, works_us),
                Step::Pass(us) => world.pass(us, works_us),
            }
            world.check();
        }
        for _ in 0..4000 {
            if world.waiting.is_empty() { break; }
            world.pass(20_000, 1000);
            world.check();
        }
        prop_assert!(world.waiting.is_empty(), "{} wait for ever", world.waiting.len());
    }
}

/// More clients than places for a minute, nearly all of them of one pool: those of the others under its limits get their turn.
#[test]
fn under_lasting_overload_no_pool_waits_much_longer_than_the_queue_is_long() {
    let mut world = World::new();
    let mut seed = 7u64;
    let mut random = move |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % below
    };
    for _ in 0..60_000 {
        // Forty clients, each back with its next transaction as soon as the last is done.
        while world.waiting.len() + world.busy.len() < 40 {
            let at = if random(20) > 0 { 4 } else { random(9) };
            world.arrive(at, 2000);
        }
        world.pass(1000, 2000);
    }
    world.check();
    let still = world.waiting.iter().map(|w| world.now - w.3).max().unwrap_or_default();
    world.longest_us = world.longest_us.max(still);
    println!("the longest wait was {} us", world.longest_us);
    assert!(world.longest_us <= STARVING_US * 3 / 2, "somebody waited {} us", world.longest_us);
}
