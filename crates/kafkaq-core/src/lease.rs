//! The state of a task in the store, and its encoding.

use crate::{
    DecodeError, History,
    wire::{NUMBER, Reader, write_number},
};
use bytes::{BufMut, Bytes, BytesMut};
use std::{fmt, time::Duration};

/// Wall-clock time: milliseconds since the epoch. Only leases, due times and records carry it; everything local
/// to a process uses a monotonic clock of another type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Wall(pub u64);

impl Wall {
    /// This long after `self`; saturates.
    #[must_use]
    pub fn plus(self, d: Duration) -> Wall {
        Wall(self.0.saturating_add(millis(d)))
    }

    /// How long from `earlier` to `self`; zero if it is not earlier.
    #[must_use]
    pub fn since(self, earlier: Wall) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// Whole milliseconds, rounded up, so that nothing becomes due too early.
fn millis(d: Duration) -> u64 {
    let rest = u64::from(d.subsec_nanos().div_ceil(1_000_000));
    d.as_secs().saturating_mul(1000).saturating_add(rest)
}

/// Identifies one hold of a task's lease. It is never reused, so a system that the handler writes to can tell holders
/// apart.
///
/// Unlike a fencing token it has no order: a later holder's token is not greater. The executions of one task are
/// ordered by the attempt, so store the pair of attempt and token, and refuse a write whose attempt is lower than the
/// stored one. Executions of different tasks, such as tasks with the same key, have no order: let each first claim what
/// it writes to with its token, and make its later writes conditional on that token.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct LeaseToken {
    /// Random, new at each start of a process.
    pub process: [u8; 16],
    /// Counts within the process.
    pub number: u64,
}

impl fmt::Display for LeaseToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for b in self.process {
            write!(f, "{b:02x}")?;
        }
        write!(f, "-{:x}", self.number)
    }
}

impl fmt::Debug for LeaseToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The state of a lease. The numbers are those of its encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LeaseState {
    /// Somebody holds it until the deadline.
    Live = 1,
    /// Nobody holds it before the deadline.
    Idle = 2,
    /// The task is done.
    Done = 3,
    /// It was cancelled.
    Cancelled = 4,
    /// It was dead-lettered.
    Dead = 5,
}

impl LeaseState {
    /// In the order of their numbers.
    const ALL: [LeaseState; 5] =
        [LeaseState::Live, LeaseState::Idle, LeaseState::Done, LeaseState::Cancelled, LeaseState::Dead];

    /// Done, cancelled or dead: the task is never executed again.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        matches!(self, LeaseState::Done | LeaseState::Cancelled | LeaseState::Dead)
    }
}

/// The state of a task in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Its state.
    pub state: LeaseState,
    /// It was taken before anybody asked for a job. If it expires, that doesn't count as a failure: perhaps nobody has
    /// started.
    pub prefetched: bool,
    /// The token of its current or last holder.
    pub token: LeaseToken,
    /// How many times the task was handed out.
    pub attempt: u32,
    /// How many of these count against the limit.
    pub failures: u32,
    /// The highest number of a copy that is known to be durable.
    pub cover: u32,
    /// Live: until when it is held. Idle: when the task is due. Terminal: when it ended.
    pub deadline: Wall,
    /// How far ahead the deadline was set: if it is further away than this, it was set by a wrong clock.
    pub length: Duration,
    /// The last failures, and fields of later versions.
    pub history: History,
    /// The version that wrote it and the oldest that may read it, a nibble each.
    pub versions: u8,
}

/// The versions of the format, writer's and oldest reader's, a nibble each: see `docs/format.md`.
const VERSIONS: u8 = VERSION << 4 | VERSION;
const VERSION: u8 = 2;
const PREFETCHED: u8 = 0x08;
/// The approximate size without failures.
pub(crate) const SIZE: usize = 40;
/// The versions, the state, and the process.
const HEAD: usize = 18;
/// How many numbers follow.
const NUMBERS: usize = 6;
/// The maximum size of all that.
const FIXED: usize = HEAD + NUMBERS * NUMBER;

impl Lease {
    /// A new lease.
    #[must_use]
    pub fn new(state: LeaseState, token: LeaseToken, deadline: Wall, length: Duration) -> Self {
        Lease {
            state,
            prefetched: false,
            token,
            attempt: 0,
            failures: 0,
            cover: 0,
            deadline,
            length,
            history: History::new(),
            versions: VERSIONS,
        }
    }

    /// The value for the store.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        self.encode_in(&mut BytesMut::with_capacity(SIZE + self.history.len()))
    }

    /// The value for the store, allocated from an arena: a batch of leases needs one allocation.
    pub(crate) fn encode_in(&self, arena: &mut BytesMut) -> Bytes {
        let state = self.state as u8;
        // Assembled here, since an arena checks its capacity at every write.
        let mut fixed = [0; FIXED];
        fixed[0] = self.versions;
        fixed[1] = if self.prefetched { state | PREFETCHED } else { state };
        fixed[2..HEAD].copy_from_slice(&self.token.process);
        let mut len = HEAD;
        let [attempt, failures, cover] = [self.attempt, self.failures, self.cover].map(u64::from);
        let numbers: [u64; NUMBERS] =
            [self.token.number, attempt, failures, cover, self.deadline.0, millis(self.length)];
        for n in numbers {
            if let Some(room) = fixed[len..].first_chunk_mut() {
                len += write_number(room, n);
            }
        }
        arena.put_slice(&fixed[..len]);
        self.history.encode_into(arena);
        arena.split().freeze()
    }

    /// # Errors
    /// `Newer` for a lease that only a later kafkaq can read, `Damaged` for anything else that `encode` didn't
    /// write.
    pub fn decode(value: &[u8]) -> Result<Lease, DecodeError> {
        let mut rest = Reader(value);
        let versions = rest.byte()?;
        let (writer, oldest_reader) = (versions >> 4, versions & 0x0f);
        if writer < VERSION || oldest_reader > writer || oldest_reader == 0 {
            return Err(DecodeError::Damaged("a lease without a version"));
        }
        if oldest_reader > VERSION {
            return Err(DecodeError::Newer(writer));
        }
        let state = rest.byte()?;
        let prefetched = state & PREFETCHED != 0;
        let found = LeaseState::ALL.get(usize::from(state & !PREFETCHED).wrapping_sub(1)).copied();
        Ok(Lease {
            state: found.ok_or(DecodeError::Damaged("a lease with an unknown state"))?,
            prefetched,
            token: LeaseToken { process: rest.array()?, number: rest.number()? },
            attempt: rest.small()?,
            failures: rest.small()?,
            cover: rest.small()?,
            deadline: Wall(rest.number()?),
            length: Duration::from_millis(rest.number()?),
            history: History::decode(rest.0)?,
            versions,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lease() -> impl Strategy<Value = Lease> {
        let state = proptest::sample::select(&LeaseState::ALL[..]);
        let counts = any::<(u32, u32, u32, bool)>();
        (state, any::<([u8; 16], u64, u64, u64)>(), counts, proptest::option::of("\\PC{0,20}")).prop_map(
            |(state, (process, number, d, l), (attempt, failures, cover, prefetched), reason)| {
                let token = LeaseToken { process, number };
                let mut lease = Lease::new(state, token, Wall(d), Duration::from_millis(l));
                (lease.attempt, lease.failures, lease.cover) = (attempt, failures, cover);
                lease.prefetched = prefetched;
                if let Some(reason) = reason {
                    lease.history = lease.history.with(Wall(7), attempt, &reason);
                }
                lease
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(lease in lease()) {
            prop_assert_eq!(Lease::decode(&lease.encode()), Ok(lease));
        }

        /// A swap expects the bytes that were read.
        #[test]
        fn any_bytes_are_read_without_a_panic_and_written_the_same(mut v in proptest::collection::vec(any::<u8>(), 0..80), own: bool) {
            if let (true, Some(first)) = (own, v.first_mut()) {
                *first = VERSIONS;
            }
            if let Ok(lease) = Lease::decode(&v) {
                prop_assert_eq!(&lease.encode()[..], &v[..]);
            }
        }

        #[test]
        fn a_later_version_is_read_if_it_allows_that(lease in lease(), writer in 3_u8..=15, added in "[a-z]{0,20}") {
            let mut v = lease.encode().to_vec();
            v[0] = writer << 4 | VERSION;
            crate::wire::put(&mut v, 77);
            crate::wire::put_bytes(&mut v, added.as_bytes());
            let read = Lease::decode(&v).unwrap();
            prop_assert_eq!(&read.encode()[..], &v[..], "and is expected as it is");
            prop_assert_eq!((read.state, read.token, read.attempt), (lease.state, lease.token, lease.attempt));
            v[0] = writer << 4 | 3;
            prop_assert_eq!(Lease::decode(&v), Err(DecodeError::Newer(writer)));
        }
    }

    #[test]
    fn format_1_is_unreadable_and_an_encoded_lease_is_small() {
        assert!(matches!(Lease::decode(&[1; 50]), Err(DecodeError::Damaged(_))));
        let token = LeaseToken { process: [7; 16], number: 100_000 };
        let lease = Lease::new(LeaseState::Live, token, Wall(1_790_000_000_000), Duration::from_secs(60));
        assert!(lease.encode().len() <= SIZE, "{}", lease.encode().len());
    }
}
