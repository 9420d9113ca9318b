//! Building blocks of commands.

use redis::{Cmd, RedisWrite};
use std::{io::Write, time::Duration};

/// How many values a script or an `MGET` handles at once: half a millisecond during which Redis serves nobody else.
pub(crate) const CHUNK: usize = 128;

/// Milliseconds, at least one, rounded up: a value may live longer, never shorter.
pub(crate) fn millis(ttl: Duration) -> u64 {
    // Redis adds the current time and refuses what overflows.
    const MOST: u128 = 1 << 62;
    let millis = ttl.as_nanos().div_ceil(1_000_000).clamp(1, MOST);
    u64::try_from(millis).unwrap_or(u64::MAX)
}

/// How to send swaps.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    /// `SET NX GET` where it fits, the script by its hash.
    Fast,
    /// The script by its hash, for servers that don't have `SET NX GET`.
    ByScript,
    /// The script with its text, for servers that don't have it in their cache.
    ByText,
}

/// How to send a part of a batch.
#[derive(Clone, Copy)]
pub(crate) struct Way {
    pub(crate) how: How,
    pub(crate) keys_per_command: usize,
}

/// A script and its hash, by which servers know it.
pub(crate) struct Script {
    text: &'static str,
    hash: String,
}

impl Script {
    pub(crate) fn new(text: &'static str) -> Self {
        Script { text, hash: redis::Script::new(text).get_hash().to_owned() }
    }

    /// The start of a call: this many keys follow, and then arguments.
    pub(crate) fn call(&self, how: How, keys: usize, args: usize, bytes: usize) -> Cmd {
        let (command, script) = match how {
            How::ByText => ("EVAL", self.text),
            How::Fast | How::ByScript => ("EVALSHA", &*self.hash),
        };
        let mut cmd = Cmd::with_capacity(3 + keys + args, bytes + script.len() + 16);
        cmd.arg(command).arg(script).arg(keys);
        cmd
    }
}

/// An argument that consists of these parts, written without a copy in between.
pub(crate) fn write_joined<W: ?Sized + RedisWrite, P: AsRef<[u8]>>(
    out: &mut W,
    parts: impl IntoIterator<Item = P>,
) {
    let mut arg = out.writer_for_next_arg();
    for part in parts {
        // The buffer is in memory: writing to it can't fail.
        let _ = arg.write_all(part.as_ref());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_to_live_is_rounded_up_and_never_zero() {
        assert_eq!(millis(Duration::ZERO), 1);
        assert_eq!(millis(Duration::from_nanos(1_000_001)), 2);
        assert_eq!(millis(Duration::from_millis(1500)), 1500);
        assert_eq!(millis(Duration::MAX), 1 << 62);
    }
}
