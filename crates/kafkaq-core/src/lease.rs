//! The state of a task in the store, and how it is written there.

use crate::DecodeError;
use bytes::{BufMut, Bytes, BytesMut};
use std::{fmt, time::Duration};

/// Wall-clock time: milliseconds since the epoch. Only leases, due times and records carry it; everything local
/// to a process uses a monotonic clock of another type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Wall(pub u64);

impl Wall {
    /// This long after `self`; stops at the end of time.
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
    u64::try_from(d.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

/// A token that is never used twice: whoever holds it may finish the job.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fence {
    /// Random, made anew at each start of a process.
    pub process: [u8; 16],
    /// Counts within the process.
    pub number: u64,
}

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for b in self.process {
            write!(f, "{b:02x}")?;
        }
        write!(f, "-{:x}", self.number)
    }
}

impl fmt::Debug for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a lease says of its task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LeaseState {
    /// Somebody holds it until the deadline.
    Live,
    /// Nobody holds it before the deadline.
    Idle,
    /// It ran to its end.
    Done,
    /// It was cancelled.
    Cancelled,
    /// It went to the dead letters.
    Dead,
}

impl LeaseState {
    /// Done, cancelled or dead: no record of the task is executed any more.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        matches!(self, LeaseState::Done | LeaseState::Cancelled | LeaseState::Dead)
    }
}

/// The state of a task in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// What it says.
    pub state: LeaseState,
    /// Whose it is, or was.
    pub fence: Fence,
    /// How many times the task was handed out.
    pub attempt: u32,
    /// The highest number of a copy that is known to be durable.
    pub cover: u32,
    /// Live: until when it is held. Idle: when the task is due. Terminal: when it ended.
    pub deadline: Wall,
    /// How far ahead the deadline was set: a deadline further away than this was written by a clock that is wrong.
    pub length: Duration,
}

const VERSION: u8 = 1;
pub(crate) const SIZE: usize = 50;

impl Lease {
    /// The value for the store.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        self.encode_in(&mut BytesMut::with_capacity(SIZE))
    }

    /// The value for the store, cut from an arena: a batch of leases needs one allocation.
    pub(crate) fn encode_in(&self, arena: &mut BytesMut) -> Bytes {
        arena.put_u8(VERSION);
        arena.put_u8(match self.state {
            LeaseState::Live => 1,
            LeaseState::Idle => 2,
            LeaseState::Done => 3,
            LeaseState::Cancelled => 4,
            LeaseState::Dead => 5,
        });
        arena.put_slice(&self.fence.process);
        arena.put_u64(self.fence.number);
        arena.put_u32(self.attempt);
        arena.put_u32(self.cover);
        arena.put_u64(self.deadline.0);
        arena.put_u64(millis(self.length));
        arena.split().freeze()
    }

    /// # Errors
    /// `Newer` for a version of a later kafkaq, `Damaged` for anything else that `encode` didn't write.
    pub fn decode(value: &[u8]) -> Result<Lease, DecodeError> {
        match value.first() {
            Some(&VERSION) => {}
            Some(&newer) if newer > VERSION => return Err(DecodeError::Newer(newer)),
            _ => return Err(DecodeError::Damaged("a lease without a version")),
        }
        let damaged = DecodeError::Damaged("a lease of the wrong size or state");
        let v: &[u8; SIZE] = value.try_into().map_err(|_| damaged)?;
        let state = match v[1] {
            1 => LeaseState::Live,
            2 => LeaseState::Idle,
            3 => LeaseState::Done,
            4 => LeaseState::Cancelled,
            5 => LeaseState::Dead,
            _ => return Err(damaged),
        };
        Ok(Lease {
            state,
            fence: Fence { process: field(v, 2), number: u64::from_be_bytes(field(v, 18)) },
            attempt: u32::from_be_bytes(field(v, 26)),
            cover: u32::from_be_bytes(field(v, 30)),
            deadline: Wall(u64::from_be_bytes(field(v, 34))),
            length: Duration::from_millis(u64::from_be_bytes(field(v, 42))),
        })
    }
}

fn field<const N: usize>(v: &[u8; SIZE], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&v[at..at + N]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lease() -> impl Strategy<Value = Lease> {
        let state = prop_oneof![
            Just(LeaseState::Live),
            Just(LeaseState::Idle),
            Just(LeaseState::Done),
            Just(LeaseState::Cancelled),
            Just(LeaseState::Dead)
        ];
        (state, any::<([u8; 16], u64, u32, u32, u64, u64)>()).prop_map(
            |(state, (process, number, a, c, d, l))| Lease {
                state,
                fence: Fence { process, number },
                attempt: a,
                cover: c,
                deadline: Wall(d),
                length: Duration::from_millis(l),
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(lease in lease()) {
            prop_assert_eq!(Lease::decode(&lease.encode()), Ok(lease));
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(v in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Ok(lease) = Lease::decode(&v) {
                prop_assert_eq!(&lease.encode()[..], &v[..]);
            }
        }

        #[test]
        fn a_newer_version_is_told_apart(lease in lease(), version in 2_u8..) {
            let mut v = lease.encode().to_vec();
            v[0] = version;
            prop_assert_eq!(Lease::decode(&v), Err(DecodeError::Newer(version)));
        }
    }
}
