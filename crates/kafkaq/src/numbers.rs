//! The numbers in the ids of a publisher's tasks: consecutive for the tasks of one partition, in blocks.
//!
//! A worker reads a partition's tasks one after another, and a store may keep what has consecutive numbers
//! [together](kafkaq_core::NumberedKey): then it handles a batch of them at the cost of a few.

use std::sync::atomic::{AtomicU64, Ordering};

/// The number of tasks that a store can recognize as neighbors.
const BLOCK: u64 = 256;
/// Partitions beyond that many share blocks.
const LANES: usize = 64;

/// The tasks that follow one another.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Lane {
    /// Those of this partition.
    Partition(i32),
    /// Those that are published one by one and may go to any partition: they mostly stay together.
    Single,
}

#[derive(Debug)]
pub(crate) struct Numbers {
    /// Random, per publisher.
    seed: u128,
    /// The first number that no lane has had yet; a multiple of `BLOCK`.
    rest: AtomicU64,
    /// The next number of each lane's block. A multiple of `BLOCK`: it has none, or has used it up.
    partitions: [AtomicU64; LANES],
    single: AtomicU64,
}

impl Numbers {
    pub(crate) fn new(seed: u128) -> Self {
        Numbers {
            seed: seed & !u128::from(BLOCK - 1),
            rest: AtomicU64::new(0),
            partitions: [const { AtomicU64::new(0) }; LANES],
            single: AtomicU64::new(0),
        }
    }

    pub(crate) fn next(&self, lane: Lane) -> u128 {
        let lane = match lane {
            Lane::Partition(index) => &self.partitions[index.unsigned_abs() as usize % LANES],
            Lane::Single => &self.single,
        };
        let mut next = lane.load(Ordering::Relaxed);
        loop {
            // Of two callers that take a block at the same time, one wastes it.
            let used_up = next.is_multiple_of(BLOCK);
            let number = if used_up { self.rest.fetch_add(BLOCK, Ordering::Relaxed) } else { next };
            match lane.compare_exchange(next, number + 1, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return self.seed.wrapping_add(number.into()),
                Err(now) => next = now,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{collections::HashSet, thread};

    const SEED: u128 = 0xffff_ffff_ffff_fe00;

    #[test]
    fn tasks_of_a_partition_have_consecutive_numbers() {
        let numbers = Numbers::new(SEED + 17);
        let mut of_two = Vec::new();
        for n in 0..600 {
            numbers.next(Lane::Partition(n % 5 + 3));
            numbers.next(Lane::Single);
            of_two.push(numbers.next(Lane::Partition(2)));
        }
        for block in of_two.chunks(256) {
            assert!(block[0].is_multiple_of(256) && block.is_sorted_by(|a, b| a + 1 == *b), "{block:?}");
        }
    }

    #[test]
    fn no_number_is_assigned_twice() {
        let numbers = Numbers::new(SEED);
        let lane = |n| if n % 7 == 0 { Lane::Single } else { Lane::Partition(n % 70) };
        let some = || (0..20_000).map(|n| numbers.next(lane(n))).collect::<Vec<_>>();
        let all = thread::scope(|s| {
            let threads = [(); 3].map(|()| s.spawn(some));
            threads.map(|thread| thread.join().unwrap()).concat()
        });
        assert_eq!(all.iter().collect::<HashSet<_>>().len(), 60_000);
    }
}
