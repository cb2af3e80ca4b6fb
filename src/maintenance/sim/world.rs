//! The simulated world: two servers, what clients were told, the daemon's memory, and what goes wrong.

use super::super::stages::{FAILOVER_ROWS, ROWS, Stage};
use crate::base::NodeId;
use crate::cluster::{Epoch, NodeStatus, Role};
use crate::keeper::{ProbeReport, Seen, Witness};
use crate::workflow::Row;
use std::collections::{BTreeMap, BTreeSet};

const SYSTEM: u64 = 7;
/// Steps for which clients may be held.
const MAX_HOLD: u32 = 40;

/// Numbers that look random and are the same for the same seed (xorshift64*).
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % below
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Up {
    Down,
    Primary,
    Standby,
}

#[derive(Clone, Debug)]
pub(super) struct Server {
    pub(super) up: Up,
    /// `standby.signal`: its next start is as a standby.
    pub(super) armed: bool,
    /// Its last end was a shutdown as a primary.
    pub(super) clean: bool,
    pub(super) timeline: u32,
    pub(super) log: BTreeSet<u32>,
    /// It was asked to promote itself and has not begun.
    pub(super) wish: bool,
    /// `synchronous_standby_names` names who never comes.
    pub(super) strangers: bool,
    /// From whom it streams.
    pub(super) from: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Promotion {
    NotAsked,
    Asked,
    Impossible,
    Done,
}

/// A job under way.
#[derive(Clone, Debug)]
pub(super) struct Work {
    pub(super) lost: bool,
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) at: usize,
    /// Effects done of the present stage.
    pub(super) effect: u32,
    /// Going back from this row on.
    pub(super) back: Option<usize>,
    pub(super) promotion: Promotion,
    pub(super) resumed: bool,
}

impl Work {
    pub(super) fn rows(&self) -> &'static [Row<Stage>] {
        if self.lost { FAILOVER_ROWS } else { ROWS }
    }
}

/// The journal of the last job; `None` at its end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Journal {
    pub(super) lost: bool,
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) stage: Option<Stage>,
    pub(super) prepared: bool,
    pub(super) timeline: u32,
}

#[derive(Debug)]
pub(super) struct Daemon {
    pub(super) route: Option<usize>,
    pub(super) held: Option<u32>,
    pub(super) work: Option<Work>,
}

#[derive(Debug)]
pub(super) struct World {
    pub(super) servers: [Server; 2],
    pub(super) acknowledged: BTreeSet<u32>,
    pub(super) last: u32,
    pub(super) epoch: Epoch,
    pub(super) journal: Option<Journal>,
    pub(super) daemon: Option<Daemon>,
    pub(super) tally: BTreeMap<&'static str, u32>,
}

impl World {
    pub(super) fn new() -> World {
        let server = |up, armed, from| Server {
            up,
            armed,
            clean: false,
            timeline: 1,
            log: BTreeSet::new(),
            wish: false,
            strangers: armed,
            from,
        };
        World {
            servers: [server(Up::Primary, false, None), server(Up::Standby, true, Some(0))],
            acknowledged: BTreeSet::new(),
            last: 0,
            epoch: Epoch { system_identifier: SYSTEM, timeline: 1, node: NodeId(0) },
            journal: None,
            daemon: Some(Daemon { route: Some(0), held: None, work: None }),
            tally: BTreeMap::new(),
        }
    }

    pub(super) fn count(&mut self, what: &'static str) {
        *self.tally.entry(what).or_default() += 1;
    }

    /// Whoever streams has all of it at once, unless it is cut off.
    pub(super) fn stream(&mut self) {
        for id in 0..2 {
            let Some(from) = self.servers[id].from else { continue };
            let behind = self.servers[id].log.len() != self.servers[from].log.len()
                || self.servers[id].timeline != self.servers[from].timeline;
            if behind && self.servers[id].up == Up::Standby && self.servers[from].up == Up::Primary {
                self.servers[id].log = self.servers[from].log.clone();
                self.servers[id].timeline = self.servers[from].timeline;
            }
        }
    }

    pub(super) fn start(&mut self, id: usize) {
        let server = &mut self.servers[id];
        if server.up == Up::Down {
            // What was asked of it before is forgotten: PostgreSQL takes a left promote.signal away.
            server.wish = false;
            server.up = if server.armed { Up::Standby } else { Up::Primary };
            // A standby writes nothing of its own.
            server.clean = server.clean && server.armed;
        }
    }

    pub(super) fn fire(&mut self, id: usize) {
        let server = &mut self.servers[id];
        if server.wish && server.up == Up::Standby {
            *server = Server {
                up: Up::Primary,
                armed: false,
                wish: false,
                timeline: server.timeline + 1,
                from: None,
                ..server.clone()
            };
        }
    }

    pub(super) fn fault(&mut self, dice: &mut Dice) {
        let id = dice.roll(2) as usize;
        match dice.roll(8) {
            0 | 1 => {
                self.daemon = None;
                self.count("daemon killed");
            }
            2 => {
                let begun = self.servers[id].wish && dice.roll(2) == 0;
                if begun {
                    // Its new history is in the log, and it goes on there when it starts again.
                    self.fire(id);
                }
                let server = &mut self.servers[id];
                server.clean = server.clean && server.up != Up::Primary;
                (server.up, server.wish) = (Up::Down, false);
                self.count("server killed");
            }
            3 | 4 => {
                self.start(id);
                self.count("server started by somebody");
            }
            5 => self.servers[id].from = None,
            _ => self.reconnect(id),
        }
    }

    pub(super) fn reconnect(&mut self, id: usize) {
        let other = 1 - id;
        if self.servers[id].up == Up::Standby && self.servers[other].up == Up::Primary {
            self.servers[id].from = Some(other);
        }
    }

    pub(super) fn commit(&mut self) {
        let Some(route) = self.daemon.as_ref().filter(|d| d.held.is_none()).and_then(|d| d.route) else { return };
        let server = &self.servers[route];
        if server.up != Up::Primary {
            return;
        }
        assert!(server.timeline >= self.epoch.timeline, "I1: a stale primary is routed to: {self:#?}");
        assert!(!server.strangers, "I5: a write waits for a standby that never comes: {self:#?}");
        self.last += 1;
        self.servers[route].log.insert(self.last);
        self.stream();
        // Synchronous: what the standby has not got is not acknowledged.
        if self.servers[1 - route].log.contains(&self.last) {
            self.acknowledged.insert(self.last);
            self.count("acknowledged");
        }
    }

    pub(super) fn witnesses(&self) -> Vec<Witness> {
        let seen = |server: &Server| match server.up {
            Up::Down => Seen::Failed,
            up => Seen::Answered(ProbeReport {
                role: if up == Up::Primary { Role::Primary } else { Role::Standby },
                system_identifier: Some(SYSTEM),
                timeline: Some(server.timeline),
                position: None,
                received: None,
                standbys: Vec::new(),
                major: None,
            }),
        };
        let witness = |(id, server): (usize, &Server)| Witness {
            id: NodeId(u16::try_from(id).unwrap_or(0)),
            status: if server.up == Up::Down { NodeStatus::Down } else { NodeStatus::Up },
            down_by_failure: server.up == Up::Down,
            always_primary: false,
            seen: seen(server),
        };
        self.servers.iter().enumerate().map(witness).collect()
    }

    pub(super) fn check(&mut self) {
        let writers: Vec<usize> = (0..2).filter(|id| self.servers[*id].up == Up::Primary).collect();
        assert!(writers.len() < 2, "I1: two primaries: {self:#?}");
        for id in writers {
            let lost: Vec<&u32> = self.acknowledged.difference(&self.servers[id].log).collect();
            assert!(lost.is_empty(), "I2: {lost:?} were acknowledged and are lost: {self:#?}");
        }
        if let Some(held) = self.daemon.as_mut().and_then(|d| d.held.as_mut()) {
            *held += 1;
            let over = *held > MAX_HOLD;
            if over && let Some(daemon) = &mut self.daemon {
                daemon.held = None;
            }
        }
    }

    /// Until somebody is well again, or not.
    pub(super) fn is_whole(&self) -> bool {
        let holder = self.epoch.node.index();
        let idle =
            self.daemon.as_ref().is_some_and(|d| d.work.is_none() && d.route == Some(holder) && d.held.is_none());
        idle && self.servers[holder].up == Up::Primary && !self.servers[holder].strangers && self.journal.is_none()
    }
}
