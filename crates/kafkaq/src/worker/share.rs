//! Decides which of several queues gets the next free slot of a worker.

use super::builder::refused;
use crate::Result;
use std::{cmp::Reverse, ops::RangeInclusive, time::Duration};
use tokio::time::Instant;

const WEIGHTS: RangeInclusive<u32> = 1..=1000;
const MAX_WAITS: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(24 * 3600);
const MAX_WAIT: Duration = Duration::from_secs(10);
/// How far a queue with weight 1 advances with each task. It is still precise when divided by any weight.
const STRIDE: u64 = 1 << 20;

/// A queue's share of its worker's slots, while there are more tasks than slots. A queue without tasks leaves its share
/// to the others, and doesn't accumulate credit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    priority: u8,
    weight: u32,
    max_wait: Duration,
}

impl Share {
    /// Slots in proportion to the weights of all weighted queues, 1 to 1,000: with weights 3 and 1, the first gets
    /// three of four. Their priority is 0.
    #[must_use]
    pub fn weight(weight: u32) -> Self {
        Share { priority: 0, weight, max_wait: MAX_WAIT }
    }

    /// All slots that no queue with a higher priority wants, and at least one per [`max_wait`](Share::max_wait). Queues
    /// with the same priority share them evenly.
    #[must_use]
    pub fn priority(priority: u8) -> Self {
        Share { priority, ..Share::weight(1) }
    }

    /// The longest that queues with a higher priority keep a queue waiting, 0.1 s to a day. After that its next task
    /// gets the next free slot, or the one after: every second slot is always assigned by priority. Default: 10 s.
    #[must_use]
    pub fn max_wait(mut self, max_wait: Duration) -> Self {
        self.max_wait = max_wait;
        self
    }

    /// # Errors
    /// `Invalid` says what is wrong with the share of this queue.
    pub(super) fn check(&self, queue: &str) -> Result<()> {
        if !WEIGHTS.contains(&self.weight) {
            let what = format!("a weight of {} of the queue `{queue}`", self.weight);
            return Err(refused(what, "It must be 1 to 1,000"));
        }
        if !MAX_WAITS.contains(&self.max_wait) {
            let what = format!("a max_wait of {:?} of the queue `{queue}`", self.max_wait);
            return Err(refused(what, "It must be 0.1 s to a day"));
        }
        Ok(())
    }

    pub(super) fn by_priority(&self) -> Reverse<u8> {
        Reverse(self.priority)
    }
}

/// Decides whose turn it is: start-time fair queueing within a priority.
#[derive(Debug)]
pub(super) struct Turns {
    queues: Vec<Standing>,
    was_overdue: bool,
}

#[derive(Debug)]
struct Standing {
    share: Share,
    /// The service it has received, divided by its weight.
    got: u64,
    last_turn: Instant,
}

/// The turn of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Turn {
    pub(super) queue: usize,
    /// It has waited for too long.
    overdue: bool,
}

impl Turn {
    pub(super) fn regular(queue: usize) -> Self {
        Turn { queue, overdue: false }
    }
}

/// A set of queues, as bits.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Set(u64);

impl Set {
    pub(super) const MAX: usize = u64::BITS as usize;

    pub(super) fn insert(&mut self, queue: usize) {
        self.0 |= 1 << queue;
    }

    fn contains(self, queue: usize) -> bool {
        self.0 & (1 << queue) != 0
    }
}

impl Turns {
    pub(super) fn new(shares: impl IntoIterator<Item = Share>, now: Instant) -> Self {
        let standing = |share| Standing { share, got: 0, last_turn: now };
        Turns { queues: shares.into_iter().map(standing).collect(), was_overdue: false }
    }

    /// Returns whose turn it is, among those that are not known to be empty.
    pub(super) fn next(&self, empty: Set, now: Instant) -> Option<Turn> {
        let candidates = || self.queues.iter().enumerate().filter(move |(queue, _)| !empty.contains(*queue));
        let (first, highest) =
            candidates().min_by_key(|(_, standing)| (standing.share.by_priority(), standing.got))?;
        let overdue = candidates()
            .filter(|(_, standing)| {
                !self.was_overdue
                    && standing.share.priority < highest.share.priority
                    && standing.last_turn + standing.share.max_wait <= now
            })
            .min_by_key(|(_, standing)| standing.last_turn);
        let regular = Turn::regular(first);
        Some(overdue.map_or(regular, |(queue, _)| Turn { queue, overdue: true }))
    }

    /// The queue had a task in its turn.
    pub(super) fn taken(&mut self, turn: Turn, now: Instant) {
        let standing = &mut self.queues[turn.queue];
        let (priority, began_at) = (standing.share.priority, standing.got);
        standing.got += STRIDE / u64::from(standing.share.weight);
        standing.last_turn = now;
        self.was_overdue = turn.overdue;
        if turn.overdue {
            return;
        }
        // A queue that received less was empty, and accumulates no credit.
        for other in self.queues.iter_mut().filter(|other| other.share.priority == priority) {
            other.got = other.got.max(began_at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// How many of `n` places each queue gets if one becomes free each `every`, and only those of `with_tasks` have any.
    fn share_out(
        turns: &mut Turns,
        n: u32,
        now: &mut Instant,
        every: Duration,
        with_tasks: &[usize],
    ) -> Vec<u32> {
        let mut got = vec![0; turns.queues.len()];
        for _ in 0..n {
            let mut empty = Set::default();
            while let Some(turn) = turns.next(empty, *now) {
                if with_tasks.contains(&turn.queue) {
                    turns.taken(turn, *now);
                    got[turn.queue] += 1;
                    break;
                }
                empty.insert(turn.queue);
            }
            *now += every;
        }
        got
    }

    #[test]
    fn slots_are_shared_by_weight_and_an_empty_queue_accumulates_no_credit() {
        let mut now = Instant::now();
        let mut turns = Turns::new([6, 3, 1].map(Share::weight), now);
        let mut share = |n, with_tasks: &[usize]| share_out(&mut turns, n, &mut now, SECOND, with_tasks);
        assert_eq!(share(1000, &[0, 1, 2]), [600, 300, 100]);
        assert_eq!(share(1000, &[1, 2]), [0, 750, 250]);
        assert_eq!(share(1000, &[2]), [0, 0, 1000]);
        let again = share(1000, &[0, 1, 2]);
        assert!(again.iter().zip([600, 300, 100]).all(|(got, due)| got.abs_diff(due) <= 1), "{again:?}");
    }

    #[test]
    fn a_higher_priority_gets_all_but_one_place_per_wait() {
        let mut now = Instant::now();
        let shares = [Share::priority(2), Share::priority(1).max_wait(10 * SECOND), Share::weight(1)];
        let mut turns = Turns::new(shares, now);
        let mut share =
            |every, with_tasks: &[usize]| share_out(&mut turns, 1000, &mut now, every, with_tasks);
        // A hundred seconds.
        let got = share(SECOND / 10, &[0, 1, 2]);
        assert!(got[1].abs_diff(10) <= 1 && got[2].abs_diff(10) <= 1, "{got:?}");
        let got = share(SECOND / 10, &[1, 2]);
        assert!(got[2].abs_diff(10) <= 1, "{got:?}");
        assert_eq!(share(SECOND / 10, &[2]), [0, 0, 1000]);
    }

    #[test]
    fn queues_that_have_waited_too_long_leave_every_second_place_to_the_others() {
        let mut now = Instant::now();
        let shares =
            [Share::priority(1), Share::weight(1), Share::weight(1)].map(|share| share.max_wait(SECOND));
        let mut turns = Turns::new(shares, now);
        assert_eq!(share_out(&mut turns, 1000, &mut now, 60 * SECOND, &[0, 1, 2]), [500, 250, 250]);
    }

    #[test]
    fn invalid_shares_are_refused() {
        assert!(Share::weight(1000).max_wait(SECOND).check("q").is_ok());
        for share in [Share::weight(0), Share::weight(1001), Share::priority(1).max_wait(Duration::ZERO)] {
            let error = share.check("low").unwrap_err().to_string();
            assert!(error.contains("`low`"), "{error}");
        }
    }
}
