//! I6 under a seed: the operator's command runs only for a node that is noted as in maintenance, out of routing, armed and, when
//! it begins, stopped. The daemon dies between any two steps, somebody starts the server, an operator attaches and resumes.
//!
//! What is real here: the step tables of `begin` and `finish`, and the table of `resolve`. The effects are those of the three
//! works, on a model of one standby.

use super::super::resolve::{Coming, Left, Old, Reality, Verdict, verdict};
use super::super::{begin, finish};
use super::world::Dice;
use std::collections::BTreeMap;

const SEEDS: u64 = 500;
const STEPS: u32 = 600;
/// Steps that the operator's command takes.
const RUNS: u32 = 5;

/// What a rolling update does with one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// At a row, and the effects done of it.
    Begin(usize, u32),
    /// Backwards, from this row on.
    TakenBack(usize),
    /// The node was begun before.
    MadeSure(u32),
    Command(u32),
    Finish(usize),
}

/// A job under way: a rolling update, or one that only brings the node back.
#[derive(Clone, Copy, Debug)]
struct Work {
    is_rolling: bool,
    part: Part,
    /// What `begin` has done, for its way back.
    was_up: bool,
    has_stopped: bool,
}

/// The jobs whose journals are open.
#[derive(Clone, Copy, Debug, Default)]
struct Journals {
    rolling: bool,
    inner: Option<Left>,
}

#[derive(Debug)]
struct World {
    runs: bool,
    armed: bool,
    routed: bool,
    /// `upkeep.nodes`.
    noted: bool,
    /// `upkeep.rolling`.
    begun: bool,
    journals: Journals,
    /// The command's process: it outlives its daemon.
    command: bool,
    daemon: bool,
    work: Option<Work>,
    tally: BTreeMap<&'static str, u32>,
}

impl World {
    fn new() -> World {
        World {
            runs: true,
            armed: true,
            routed: true,
            noted: false,
            begun: false,
            journals: Journals::default(),
            command: false,
            daemon: true,
            work: None,
            tally: BTreeMap::new(),
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.tally.entry(what).or_default() += 1;
    }

    fn check(&self) {
        if self.command {
            assert!(self.noted, "I6: the node is not noted: {self:#?}");
            assert!(!self.routed, "I6: clients are sent to it: {self:#?}");
            assert!(self.armed, "I6: whoever starts it gets a second primary: {self:#?}");
        }
    }

    fn fault(&mut self, dice: &mut Dice) {
        match dice.roll(4) {
            0 => {
                (self.daemon, self.work) = (false, None);
                self.count("daemon killed");
            }
            1 => {
                self.runs = true;
                self.count("server started by somebody");
            }
            2 => self.runs = false,
            // `kept_out`: an operator's attach of a node that is noted is refused.
            _ => self.routed |= self.daemon && self.runs && !self.noted,
        }
    }

    fn start_daemon(&mut self) {
        self.daemon = true;
        let Journals { rolling, inner } = self.journals;
        // Whatever still runs of them is ended, by its mark, before anything else happens.
        self.command = false;
        let reality = |noted| Reality { coming: Coming::Silent, old: Old::Silent, noted };
        if rolling {
            let found = verdict(Left::Rolling, reality(self.begun));
            assert!(matches!(found, Verdict::Wait | Verdict::Nothing), "{found:?}");
            self.journals.rolling = false;
        }
        match inner.map(|left| verdict(left, reality(self.noted))) {
            Some(Verdict::PutBack | Verdict::Again) => self.finish(),
            Some(Verdict::Nothing) | None => self.journals.inner = None,
            Some(other) => panic!("nothing of the kind can be left here: {other:?}"),
        }
    }

    fn finish(&mut self) {
        self.journals.inner = Some(Left::Finish);
        self.work = Some(Work { is_rolling: false, part: Part::Finish(0), was_up: false, has_stopped: false });
    }

    /// An operator has nothing to wait for: he begins, resumes, or ends it.
    fn order(&mut self, dice: &mut Dice) {
        if self.noted && dice.roll(3) == 0 {
            return self.finish();
        }
        if self.noted && !self.begun {
            return;
        }
        let part = if self.noted { Part::MadeSure(0) } else { Part::Begin(0, 0) };
        self.count(if self.noted { "resumed" } else { "begun" });
        (self.begun, self.journals.rolling) = (true, true);
        self.work = Some(Work { is_rolling: true, part, was_up: false, has_stopped: false });
    }

    fn daemon_step(&mut self, dice: &mut Dice) {
        if !self.daemon {
            return self.start_daemon();
        }
        let Some(mut work) = self.work.take() else { return self.order(dice) };
        // Some effects fail; a failed command leaves the node in maintenance.
        let fails = dice.roll(25) == 0;
        let next = match work.part {
            Part::Begin(row, effect) => self.begin(&mut work, row, effect, fails),
            Part::TakenBack(row) => self.take_back(&work, row),
            Part::MadeSure(effect) => self.make_sure(effect, fails),
            Part::Command(left) => self.command(left, fails),
            Part::Finish(row) => self.come_back(&work, row, fails),
        };
        self.work = next.map(|part| Work { part, ..work });
        if self.work.is_none() {
            self.journals = Journals::default();
        }
    }

    fn begin(&mut self, work: &mut Work, row: usize, effect: u32, fails: bool) -> Option<Part> {
        let Some(stage) = begin::ROWS.get(row).map(|row| row.stage) else {
            self.journals.inner = None;
            return Some(Part::Command(RUNS));
        };
        self.journals.inner = Some(Left::Begin);
        if fails {
            self.count("taken back");
            return Some(Part::TakenBack(row));
        }
        match (stage, effect) {
            (begin::Stage::Unroute, 0) => {
                (work.was_up, self.noted) = (self.routed, true);
                return Some(Part::Begin(row, 1));
            }
            (begin::Stage::Unroute, _) => self.routed = false,
            (begin::Stage::Stop, 0) => {
                (work.has_stopped, self.armed) = (true, true);
                return Some(Part::Begin(row, 1));
            }
            // Waited for: the row does not end before it has stopped.
            (begin::Stage::Stop, _) => self.runs = false,
            (begin::Stage::Precheck | begin::Stage::Unsync | begin::Stage::HoldLog | begin::Stage::AutoStartOff, _) => {
            }
        }
        Some(Part::Begin(row + 1, 0))
    }

    fn take_back(&mut self, work: &Work, row: usize) -> Option<Part> {
        match begin::ROWS.get(row).map(|row| row.stage) {
            Some(begin::Stage::Stop) if work.has_stopped => self.runs = true,
            Some(begin::Stage::Unroute) => {
                self.noted = false;
                self.routed |= work.was_up;
            }
            Some(_) | None => {}
        }
        row.checked_sub(1).map(Part::TakenBack)
    }

    fn make_sure(&mut self, effect: u32, fails: bool) -> Option<Part> {
        match effect {
            _ if fails => return None,
            0 => self.routed = false,
            1 => self.armed = true,
            _ => {
                self.runs = false;
                return Some(Part::Command(RUNS));
            }
        }
        Some(Part::MadeSure(effect + 1))
    }

    fn command(&mut self, left: u32, fails: bool) -> Option<Part> {
        if left == RUNS {
            assert!(!self.runs || self.armed, "I6: it runs, and not read-only: {self:#?}");
            self.count("command begun");
        }
        self.command = left > 0 && !fails;
        match left.checked_sub(1) {
            _ if fails => None,
            Some(left) => Some(Part::Command(left)),
            None => {
                self.count("command ended");
                Some(Part::Finish(0))
            }
        }
    }

    fn come_back(&mut self, work: &Work, row: usize, fails: bool) -> Option<Part> {
        let Some(stage) = finish::ROWS.get(row).map(|row| row.stage) else {
            if work.is_rolling {
                self.begun = false;
            }
            self.count("back");
            return None;
        };
        self.journals.inner = Some(Left::Finish);
        match stage {
            _ if fails => return None,
            finish::Stage::Start => (self.runs, self.armed) = (true, true),
            finish::Stage::Route => (self.routed, self.noted) = (self.runs, false),
            finish::Stage::Precheck
            | finish::Stage::AutoStartOn
            | finish::Stage::CaughtUp
            | finish::Stage::Synchronous => {}
        }
        Some(Part::Finish(row + 1))
    }
}

#[test]
fn the_command_runs_only_for_a_node_that_is_noted_out_of_routing_and_armed() {
    let mut all = BTreeMap::new();
    for seed in 1..=SEEDS {
        let (mut world, mut dice) = (World::new(), Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1));
        for _ in 0..STEPS {
            match dice.roll(12) {
                0 => world.fault(&mut dice),
                _ => world.daemon_step(&mut dice),
            }
            world.check();
        }
        for (what, count) in world.tally {
            *all.entry(what).or_insert(0_u64) += u64::from(count);
        }
    }
    println!("{all:#?}");
    let often = ["daemon killed", "taken back", "resumed", "command begun", "command ended", "back"];
    for what in often {
        assert!(all.get(what).is_some_and(|count| *count > SEEDS / 2), "too rare to prove anything: {what} in {all:?}");
    }
}
