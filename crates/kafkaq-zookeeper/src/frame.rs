//! The content of a node: a format byte, a byte that distinguishes values from removed ones, the expiry time, the
//! value.

use bytes::Bytes;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const FORMAT: u8 = 1;
const GONE: u8 = 0;
const VALUE: u8 = 1;
const HEAD: usize = 10;

/// Forever.
const NEVER: u64 = 0;

/// A value and the wall clock's milliseconds after which it counts as missing.
pub(crate) fn value(value: &[u8], expires_at: Option<u64>) -> Vec<u8> {
    let mut frame = Vec::with_capacity(HEAD + value.len());
    frame.extend([FORMAT, VALUE]);
    frame.extend(expires_at.unwrap_or(NEVER).to_be_bytes());
    frame.extend(value);
    frame
}

/// The content of a removed value. The node stays for a while: otherwise its version could start over just after
/// somebody has read it.
pub(crate) fn gone() -> Vec<u8> {
    let mut frame = vec![FORMAT, GONE];
    frame.extend(NEVER.to_be_bytes());
    frame
}

/// Returns the value at this time. `Err`: these bytes weren't written by this version.
pub(crate) fn read(frame: Vec<u8>, now: u64) -> Result<Option<Bytes>, ()> {
    let (head, _) = frame.split_first_chunk::<HEAD>().ok_or(())?;
    let [FORMAT, kind, expires @ ..] = *head else { return Err(()) };
    let expires_at = u64::from_be_bytes(expires);
    match kind {
        GONE => Ok(None),
        VALUE if expires_at != NEVER && expires_at <= now => Ok(None),
        VALUE => Ok(Some(Bytes::from(frame).slice(HEAD..))),
        _ => Err(()),
    }
}

/// Milliseconds of the wall clock, which all writers and readers of a store share up to its clock skew.
pub(crate) fn now() -> u64 {
    // A clock before 1970 expires nothing.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, millis)
}

/// When a time to live that starts now ends. Rounded up: never early.
pub(crate) fn after(now: u64, ttl: Duration, clock_skew: Duration) -> u64 {
    now.saturating_add(millis(ttl.saturating_add(clock_skew))).saturating_add(1)
}

pub(crate) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_there_until_it_expires() {
        assert_eq!(read(value(b"a", Some(1000)), 999), Ok(Some(Bytes::from("a"))));
        assert_eq!(read(value(b"a", Some(1000)), 1000), Ok(None));
        assert_eq!(read(value(b"", None), u64::MAX), Ok(Some(Bytes::new())));
        assert_eq!(read(gone(), 0), Ok(None));
    }

    #[test]
    fn expiry_is_never_early() {
        assert_eq!(after(10, Duration::from_nanos(1), Duration::ZERO), 11);
        assert_eq!(after(10, Duration::from_millis(5), Duration::from_millis(3)), 19);
        assert_eq!(after(10, Duration::MAX, Duration::MAX), u64::MAX);
    }

    #[test]
    fn foreign_content_is_not_a_value() {
        for bytes in
            [vec![], vec![1, 1], vec![2, 1, 0, 0, 0, 0, 0, 0, 0, 0], vec![1, 9, 0, 0, 0, 0, 0, 0, 0, 0]]
        {
            assert_eq!(read(bytes, 0), Err(()));
        }
    }
}
