//! The human-readable output of a run: one line per event, and counts of everything that happened.

use bytes::Bytes;
use kafkaq_core::{DecodeError, Key, Lease, LeaseState, LeaseToken, Wall};

/// Virtual time, in microseconds since the start of the run.
pub(crate) type Us = u64;
pub(crate) const MS: Us = 1_000;
pub(crate) const SEC: Us = 1_000_000;
/// What the true wall clock shows at the start, in milliseconds.
pub(crate) const WALL: u64 = 1_700_000_000_000;

/// The true wall clock.
pub(crate) fn true_wall(now: Us) -> Wall {
    Wall(WALL + now / MS)
}

/// Lines are formatted only if they are read.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    pub(crate) on: bool,
    pub(crate) lines: Vec<String>,
}

impl Trace {
    pub(crate) fn line(&mut self, now: Us, who: &str, what: &str) {
        self.lines.push(format!("{:>11.6}s {who:<6} {what}", now as f64 / 1e6));
    }
}

/// Adds a line, if there is a reader.
macro_rules! tr {
    ($world:expr, $who:expr, $($what:tt)*) => {
        if $world.trace.on {
            let (who, what) = ($who.to_string(), format!($($what)*));
            let now = $world.now;
            $world.trace.line(now, &who, &what);
        }
    };
}
pub(crate) use tr;

/// A process in the trace.
pub(crate) struct P(pub(crate) usize);

impl std::fmt::Display for P {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "p{}", self.0)
    }
}

/// The id's part of a key.
pub(crate) fn short(key: &Key) -> &str {
    key.as_str().rsplit('/').next().unwrap_or_default()
}

/// The simulation makes the first two bytes of a token the process and its incarnation.
pub(crate) fn token(f: &LeaseToken) -> String {
    format!("p{}.{}#{}", f.process[0], f.process[1], f.number)
}

/// Describes a lease for the trace.
pub(crate) fn lease(value: Option<&Bytes>) -> String {
    let Some(value) = value else { return "nothing".into() };
    match Lease::decode(&crate::later::own_lease(value)) {
        Ok(l) => {
            let state = match l.state {
                LeaseState::Live => "live",
                LeaseState::Idle => "idle",
                LeaseState::Done => "done",
                LeaseState::Cancelled => "cancelled",
                LeaseState::Dead => "dead",
            };
            let until = (l.deadline.0 as f64 - WALL as f64) / 1e3;
            format!("{state}({} a{} f{} c{} @{until:.3}s)", token(&l.token), l.attempt, l.failures, l.cover)
        }
        Err(DecodeError::Newer(v)) => format!("newer({v})"),
        Err(_) => "garbage".into(),
    }
}

/// How often each thing happened.
pub trait Counts: Default + Send {
    /// Adds another run's counts.
    fn add(&mut self, other: &Self);

    /// Names and counts.
    #[must_use]
    fn list(&self) -> Vec<(&'static str, u64)>;
}

macro_rules! stats {
    ($stats:ident: $($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// How often each thing happened: a simulation that never reaches a rule proves nothing.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct $stats { $($(#[$doc])* pub $name: u64),* }

        impl $crate::trace::Counts for $stats {
            fn add(&mut self, other: &$stats) { $(self.$name += other.$name;)* }

            fn list(&self) -> Vec<(&'static str, u64)> { vec![$((stringify!($name), self.$name)),*] }
        }
    };
}

pub(crate) use stats;

stats! { Stats:
    /// Events of the world.
    events,
    /// Tasks whose publication was acknowledged.
    published,
    /// Publications of an id that had been published before.
    published_again,
    /// Tasks published with a delay.
    delayed,
    /// Records without kafkaq's header.
    foreign,
    /// Records with a damaged header, or of another queue.
    undecodable,
    /// Jobs that a worker took.
    handed_out,
    /// Leases taken by compare-and-swap.
    takes,
    /// Leases taken over from another token that had expired.
    takeovers,
    /// Idle leases taken.
    idle_taken,
    /// Jobs that were ready without a lease in the store.
    unleased,
    /// Those that got a lease later.
    leased_late,
    /// Those that were done before that.
    done_unleased,
    /// Jobs that a worker took again, because an id was published again and its first execution had no lease.
    unleased_again,
    /// Leases renewed by their holder.
    renewals,
    /// Leases given back unused.
    hand_backs,
    /// Leases made idle by a retry.
    retries_swapped,
    /// Deadlines set by a wrong clock that were corrected.
    brought_back,
    /// Cover numbers raised.
    covers_raised,
    /// Idle leases made for delayed tasks.
    idle_made,
    /// `done` answered with Ok.
    done_ok,
    /// `done` written where the store had nothing.
    done_over_nothing,
    /// `done` written over a lower attempt.
    done_over_older,
    /// Leases swapped to dead.
    died,
    /// `retry` answered with Ok.
    retry_ok,
    /// `reject` answered with Ok.
    reject_ok,
    /// `extend` answered with Ok.
    extend_ok,
    /// Jobs dropped by their worker.
    abandoned,
    /// Answers and notices that a lease was taken over.
    lost_taken_over,
    /// Answers and notices that a task was cancelled.
    lost_cancelled,
    /// Answers that a job was over before.
    lost_over,
    /// Commands that failed.
    ask_failed,
    /// `snooze` and `release` answered with Ok.
    freed_ok,
    /// Retries after which the task was dead-lettered.
    retried_to_death,
    /// Leases that expired, with a failure counted.
    ran_out,
    /// Copies in the wait topic.
    copies,
    /// Copies that leave their lane before they are due.
    hops,
    /// Records in the dead-letter topic.
    dead_letters,
    /// Compare-and-swaps that found something else.
    conflicts,
    /// Swaps whose effect was unknown and happened.
    swap_unknown_applied,
    /// Swaps whose effect was unknown and did not happen.
    swap_unknown_lost,
    /// Swaps that took effect after their answer.
    swap_late,
    /// Appends whose effect was unknown and happened.
    append_unknown_applied,
    /// Appends whose effect was unknown and did not happen.
    append_unknown_lost,
    /// Appends that took effect after their answer.
    append_late,
    /// Appends that the log holds twice.
    append_twice,
    /// Commits.
    commits,
    /// Commits that were answered with an error.
    commits_failed,
    /// Commits of a member that is no longer the owner.
    commits_refused,
    /// The store lost everything.
    wipes,
    /// The store came back with older data.
    rollbacks,
    /// The store lost a key.
    evictions,
    /// A value was damaged, or written by a later version.
    damaged,
    /// Values that reached the end of their time to live.
    expired,
    /// Times the store was down.
    outages,
    /// Times one node of the store was down.
    partial_outages,
    /// Partitions revoked from a member.
    revocations,
    /// Revoked partitions that the member released.
    released,
    /// Revoked partitions that were taken because the member held them too long.
    hold_limits,
    /// Partitions that were lost without warning.
    partitions_lost,
    /// Processes that died.
    crashes,
    /// Processes that were paused.
    pauses,
    /// Processes that were paused until their membership was over.
    zombies,
    /// Processes that left the group while they were being shut down, before they were drained.
    left_early,
    /// Processes that were shut down and drained.
    drained,
    /// Processes whose callers never asked again.
    deserted,
    /// Clocks that went far ahead.
    clock_jumps,
    /// Logs truncated under an assignment.
    logs_cut,
    /// Committed offsets that are gone.
    offsets_forgotten,
    /// Batches that arrive again.
    repeated,
    /// Fetches without a record although there is one.
    empty_fetches,
    /// Copies refused permanently.
    refused,
    /// Records forwarded because only a later version reads them.
    forwarded,
    /// Assignments given up because their log was replaced.
    reassigned,
    /// Topics that were deleted and recreated.
    topics_recreated,
    /// Ready jobs that nobody took.
    untaken,
    /// Recalls of ready jobs.
    recalls,
    /// Alarms.
    alarms,
    /// Partitions paused by a machine.
    flow_paused,
}
