//! The profile of a run: settings, and which faults happen how often, all drawn from the seed.

use crate::rng::Rng;
use crate::trace::{MS, SEC, Us};
use kafkaq_core::machine::{Fault, Settings};
use std::time::Duration;

/// A kind of trouble that a run can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Store calls fail, with known and unknown effect.
    Store,
    /// The store is wiped, rolled back, loses keys or is down.
    Amnesia,
    /// Appends fail, with known and unknown effect.
    Append,
    /// Commits fail or get lost.
    Commit,
    /// Partitions move.
    Rebalance,
    /// Processes die.
    Crash,
    /// Processes are paused and resumed.
    Pause,
    /// Processes are shut down and started again.
    Shutdown,
    /// Clocks disagree.
    Clock,
    /// Workers are slow, hang, retry, reject, drop.
    Work,
    /// Tasks that kill their process.
    Poison,
    /// Tasks are cancelled.
    Cancel,
    /// Windows are small, and demand comes and goes.
    Tight,
    /// Topics are deleted and recreated.
    Recreate,
    /// Topics are truncated or recreated under an assignment, records arrive twice, fetches are empty, offsets are
    /// lost.
    Log,
    /// Some processes are of a later version.
    Mixed,
    /// Some tasks' copies are permanently refused.
    Refused,
}

impl Trouble {
    /// All of them.
    pub const ALL: [Trouble; 17] = [
        Trouble::Store,
        Trouble::Amnesia,
        Trouble::Append,
        Trouble::Commit,
        Trouble::Rebalance,
        Trouble::Crash,
        Trouble::Pause,
        Trouble::Shutdown,
        Trouble::Clock,
        Trouble::Work,
        Trouble::Poison,
        Trouble::Cancel,
        Trouble::Tight,
        Trouble::Recreate,
        Trouble::Log,
        Trouble::Mixed,
        Trouble::Refused,
    ];
}

/// A rule outside of the machine that is removed, to check that the simulation notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorldFault {
    /// A copy in the wait topic has its task's first timestamp, so that retention deletes it while it waits.
    CopiesKeepTheirTime,
    /// A second publication of an id is meant as a new task, but is dropped as a duplicate.
    IdMeansNewTask,
}

impl WorldFault {
    /// All of them.
    pub const ALL: &[WorldFault] = &[WorldFault::CopiesKeepTheirTime, WorldFault::IdMeansNewTask];
}

/// Which runs to draw.
#[derive(Clone, Debug, Default)]
pub struct Profile {
    /// Troubles that every run has.
    pub always: Vec<Trouble>,
    /// If set, a run has no others.
    pub only: bool,
    /// A rule of the world that is removed.
    pub world: Option<WorldFault>,
}

impl Profile {
    /// Every run has exactly these troubles.
    #[must_use]
    pub fn only(troubles: &[Trouble]) -> Self {
        Profile { always: troubles.to_vec(), only: true, world: None }
    }
}

/// How often things go wrong: chances in a thousand, and mean times between events (0: never).
#[derive(Clone, Debug, Default)]
pub(crate) struct Rates {
    pub(crate) swap_refused: u32,
    pub(crate) swap_applied: u32,
    pub(crate) swap_lost: u32,
    pub(crate) swap_late: u32,
    pub(crate) get_error: u32,
    pub(crate) append_refused: u32,
    pub(crate) append_applied: u32,
    pub(crate) append_lost: u32,
    pub(crate) append_late: u32,
    pub(crate) append_twice: u32,
    pub(crate) commit_refused: u32,
    pub(crate) commit_applied: u32,
    pub(crate) commit_lost: u32,
    pub(crate) slow_call: u32,
    pub(crate) cancel: u32,
    pub(crate) poison: u32,
    pub(crate) give_up: u32,
    pub(crate) late_timer: u32,
    /// done, slow, extended, hang, retry, reject, drop, snooze, release, silent
    pub(crate) work: [u32; 10],
    pub(crate) wipe: Us,
    pub(crate) rollback: Us,
    pub(crate) evict: Us,
    pub(crate) damage: Us,
    pub(crate) outage: Us,
    pub(crate) rebalance: Us,
    pub(crate) crash: Us,
    pub(crate) pause: Us,
    pub(crate) shutdown: Us,
    pub(crate) jump: Us,
    pub(crate) recreate: Us,
    /// The log under an assignment is replaced; it loses the group's commits.
    pub(crate) cut: Us,
    pub(crate) forget: Us,
    pub(crate) repeated: u32,
    pub(crate) empty: u32,
    pub(crate) refused: u32,
}

/// Everything that is fixed at the start of a run.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) settings: Settings,
    pub(crate) rates: Rates,
    pub(crate) world: Option<WorldFault>,
    pub(crate) processes: usize,
    pub(crate) workers: usize,
    pub(crate) task_partitions: i32,
    pub(crate) tasks: usize,
    pub(crate) max_batch: usize,
    pub(crate) hostile: Us,
    pub(crate) session: Us,
    pub(crate) hold_limit: Us,
    pub(crate) holes: u32,
    /// There is no trouble, and more than one worker, so that delayed tasks have to be on time.
    pub(crate) is_punctual: bool,
    /// Processes of two versions.
    pub(crate) mixed: bool,
    /// When all faults stop, one process's callers never ask again.
    pub(crate) deserted: bool,
    /// Milliseconds by which a process's clock may be wrong.
    pub(crate) skew: u64,
}

impl Plan {
    pub(crate) fn draw(rng: &mut Rng, profile: &Profile, fault: Option<Fault>) -> Plan {
        let has: Vec<Trouble> = Trouble::ALL
            .into_iter()
            .filter(|t| {
                let drawn = rng.chance(match t {
                    Trouble::Recreate | Trouble::Log => 60,
                    Trouble::Mixed | Trouble::Refused => 150,
                    _ => 400,
                });
                profile.always.contains(t) || (drawn && !profile.only)
            })
            .collect();
        let without_trouble = has.is_empty();
        let has = |t| has.contains(&t);
        let lease = rng.between(1000, 6000);
        let tight = has(Trouble::Tight);
        let ms = Duration::from_millis;
        let settings = Settings {
            process: [0; 16],
            lease: ms(lease),
            park_after: ms(lease * rng.between(10, 80) / 100),
            track_after: rng.chance(400).then(|| ms(lease * rng.between(1, 9) / 100)),
            unleased_span: rng.between(1, 6) as i64,
            done_retention: ms(if rng.chance(150) { 2_000 } else { 120_000 }),
            max_overdue: ms(if rng.chance(100) { 10_000 } else { 300_000 }),
            clock_skew: ms(rng.between(100, 800)),
            max_failures: rng.between(2, 8) as u32,
            max_handouts: rng.between(20, 60) as u32,
            max_delay: Duration::from_secs(1 << rng.between(2, 6)),
            prefetch: if tight { rng.between(0, 2) } else { rng.between(1, 12) } as usize,
            hand_over_after: ms(rng.between(300, 6_000)),
            window: if tight { rng.between(2, 6) } else { rng.between(8, 64) } as usize,
            lane_window: if tight { rng.between(2, 6) } else { rng.between(8, 64) } as usize,
            window_bytes: if tight && rng.chance(200) { 256 } else { 1 << 20 },
            commit_interval: ms(rng.between(10, 200)),
            release_hold: ms(rng.between(100, 1000)),
            planted: fault.into(),
        };
        let mut plan = Plan {
            rates: rates(rng, &has),
            settings,
            world: profile.world,
            processes: rng.between(1, 3) as usize,
            workers: rng.between(1, 4) as usize,
            task_partitions: rng.between(1, 3) as i32,
            tasks: if rng.chance(300) { rng.between(15, 40) } else { rng.between(3, 14) } as usize,
            max_batch: if tight { rng.between(1, 3) } else { rng.between(2, 16) } as usize,
            hostile: rng.between(4, 20) * SEC,
            session: rng.between(1000, 4000) * MS,
            hold_limit: rng.between(200, 1500) * MS,
            holes: if rng.chance(300) { 200 } else { 0 },
            is_punctual: false,
            mixed: has(Trouble::Mixed),
            deserted: false,
            skew: 0,
        };
        plan.is_punctual = without_trouble && plan.workers > 1;
        if has(Trouble::Clock) {
            let within = plan.settings.clock_skew.as_millis() as u64 / 2;
            plan.skew = if rng.chance(150) { 6 * within } else { within.saturating_sub(2) };
        }
        if has(Trouble::Rebalance) || has(Trouble::Pause) {
            plan.processes = plan.processes.max(2);
        }
        // What can't be copied can't be handed over either.
        let can_go = plan.processes > 1 && !has(Trouble::Refused);
        plan.deserted = has(Trouble::Work) && can_go && rng.chance(200);
        plan
    }
}

fn rates(rng: &mut Rng, has: &dyn Fn(Trouble) -> bool) -> Rates {
    let mut r =
        Rates { work: [100, 0, 0, 0, 0, 0, 0, 0, 0, 0], late_timer: 50, give_up: 50, ..Rates::default() };
    let level = rng.between(1, 6) as u32;
    let mut often = |low: u64, high: u64| -> Us { rng.between(low, high) * 100 * MS };
    if has(Trouble::Store) {
        (r.swap_refused, r.swap_applied, r.swap_lost) = (15 * level, 20 * level, 20 * level);
        (r.swap_late, r.get_error, r.slow_call) = (12 * level, 25 * level, 10 * level);
    }
    if has(Trouble::Amnesia) {
        r.wipe = often(10, 120);
        r.rollback = often(10, 120);
        r.evict = often(2, 40);
        r.damage = often(20, 150);
        r.outage = often(30, 200);
    }
    if has(Trouble::Append) {
        (r.append_refused, r.append_applied, r.append_lost) = (30 * level, 25 * level, 25 * level);
        (r.append_late, r.append_twice) = (15 * level, 20 * level);
    }
    if has(Trouble::Commit) {
        (r.commit_refused, r.commit_applied, r.commit_lost) = (40 * level, 40 * level, 40 * level);
    }
    if has(Trouble::Rebalance) {
        r.rebalance = often(4, 40);
    }
    if has(Trouble::Crash) {
        r.crash = often(15, 80);
    }
    if has(Trouble::Pause) {
        r.pause = often(15, 60);
    }
    if has(Trouble::Shutdown) {
        r.shutdown = often(20, 80);
    }
    if has(Trouble::Clock) {
        r.jump = often(40, 200);
    }
    if has(Trouble::Recreate) {
        r.recreate = often(30, 80);
    }
    if has(Trouble::Log) {
        (r.cut, r.forget) = (often(20, 80), often(20, 80));
        (r.repeated, r.empty) = (50, 100);
    }
    if has(Trouble::Refused) {
        r.refused = 300;
    }
    if has(Trouble::Work) {
        r.work = [40, 15, 10, 8, 15, 4, 8, 6, 6, 4];
    }
    if has(Trouble::Poison) {
        r.poison = 120;
    }
    if has(Trouble::Cancel) {
        r.cancel = 250;
    }
    if has(Trouble::Tight) {
        r.give_up = 400;
        r.late_timer = 200;
    }
    r
}
