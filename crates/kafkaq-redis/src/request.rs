//! Swaps and reads as Redis commands, and their answers as outcomes. Nothing here does I/O.
//!
//! A swap that expects nothing is one `SET NX GET`, which costs Redis half as much as the script. All others go
//! through the script, many keys a call. Everything of one batch is one pipeline: one write, one wait.
//!
//! In a cluster a command is for one slot, and keys seldom share one: there each key has a command of its own.

use crate::failure;
use bytes::Bytes;
use kafkaq_core::{Key, Result, Swap, Swapped, connection::Operation};
use redis::{Cmd, Pipeline, RedisWrite, Script, ServerError, ToRedisArgs, Value};
use std::{io::Write, sync::LazyLock, time::Duration};

/// Keys a script or an `MGET` handles at once: half a millisecond during which Redis serves nobody else.
pub(crate) const CHUNK: usize = 128;

const SCRIPT: &str = include_str!("swap.lua");
static SCRIPT_HASH: LazyLock<String> = LazyLock::new(|| Script::new(SCRIPT).get_hash().to_owned());

/// A key behind the store's prefix, written without a copy in between.
struct Prefixed<'a>(&'a str, &'a Key);

impl ToRedisArgs for Prefixed<'_> {
    fn write_redis_args<W: ?Sized + RedisWrite>(&self, out: &mut W) {
        write_parts(out, self.0.as_bytes(), self.1.as_str().as_bytes());
    }
}

fn write_parts<W: ?Sized + RedisWrite>(out: &mut W, head: &[u8], tail: &[u8]) {
    let mut arg = out.writer_for_next_arg();
    // The buffer is in memory: writing to it can't fail.
    let _ = arg.write_all(head).and_then(|()| arg.write_all(tail));
}

/// Milliseconds, at least one, rounded up: a value may live longer, never shorter.
fn millis(ttl: Duration) -> u64 {
    // Redis adds the time of now and refuses what overflows.
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

/// A part of a batch on its way to one server.
pub(crate) trait Request: Sized + Send + Sync {
    /// What the caller's batch consists of.
    type Item: Sync;
    /// What becomes of one.
    type Outcome: Clone + Send;
    const OPERATION: Operation;

    fn key(item: &Self::Item) -> &Key;

    /// The items at these places of the batch.
    fn new(prefix: &str, items: &[Self::Item], places: &[usize], way: Way) -> Self;

    fn commands(&self) -> &Pipeline;

    /// Writes the outcomes to their places. A place without one was not answered, or is among what is left.
    fn settle(self, answers: Vec<Value>, outcomes: &mut [Option<Result<Self::Outcome>>]) -> Leftover;
}

/// What a command of the pipeline carries: places in the caller's batch.
enum Part {
    Create(usize),
    Script(Vec<usize>),
}

/// Swaps on their way.
pub(crate) struct Swaps {
    commands: Pipeline,
    parts: Vec<Part>,
}

/// Reads on their way.
pub(crate) struct Reads {
    commands: Pipeline,
    /// Places in the caller's batch, a command each.
    parts: Vec<Vec<usize>>,
}

/// What the answers leave to do.
#[derive(Default)]
pub(crate) struct Leftover {
    /// Swaps that certainly did not happen and need the script's text.
    pub(crate) again: Vec<usize>,
    /// What certainly did not happen because another server has the key or takes writes, as the refusal tells.
    pub(crate) elsewhere: Vec<(usize, ServerError)>,
    /// The server does not know `SET NX GET`.
    pub(crate) old_server: bool,
}

impl Request for Swaps {
    type Item = Swap;
    type Outcome = Swapped;
    const OPERATION: Operation = failure::SWAP;

    fn key(swap: &Swap) -> &Key {
        &swap.key
    }

    fn new(prefix: &str, swaps: &[Swap], places: &[usize], way: Way) -> Self {
        let Way { how, keys_per_command } = way;
        let mut commands = Pipeline::with_capacity(places.len());
        let mut parts = Vec::with_capacity(places.len());
        let mut by_script = Vec::new();
        for &place in places {
            match &swaps[place] {
                Swap { key, expect: None, new: Some(new), ttl, .. } if how == How::Fast => {
                    commands.add_command(create(prefix, key, new, *ttl));
                    parts.push(Part::Create(place));
                }
                _ => by_script.push(place),
            }
        }
        for chunk in by_script.chunks(keys_per_command) {
            commands.add_command(run_script(prefix, swaps, chunk, how));
            parts.push(Part::Script(chunk.to_vec()));
        }
        Swaps { commands, parts }
    }

    fn commands(&self) -> &Pipeline {
        &self.commands
    }

    fn settle(self, answers: Vec<Value>, outcomes: &mut [Option<Result<Swapped>>]) -> Leftover {
        let mut left = Leftover::default();
        for (part, answer) in self.parts.into_iter().zip(answers) {
            match (part, answer) {
                (part, Value::ServerError(e)) if failure::is_for_another(&e) => {
                    let places = match part {
                        Part::Create(place) => vec![place],
                        Part::Script(places) => places,
                    };
                    left.elsewhere.extend(places.into_iter().map(|place| (place, e.clone())));
                }
                (Part::Create(place), Value::ServerError(e)) if failure::is_syntax_error(&e) => {
                    left.again.push(place);
                    left.old_server = true;
                }
                (Part::Create(place), answer) => outcomes[place] = Some(created(answer)),
                (Part::Script(places), Value::ServerError(e)) if failure::is_unknown_script(&e) => {
                    left.again.extend(places);
                }
                (Part::Script(places), Value::Array(answers)) if answers.len() == places.len() => {
                    for (place, answer) in places.into_iter().zip(answers) {
                        match answer {
                            Value::ServerError(e) if failure::is_readonly(&e) => {
                                left.elsewhere.push((place, e));
                            }
                            answer => outcomes[place] = Some(swapped(answer)),
                        }
                    }
                }
                (Part::Script(places), answer) => {
                    let error = match answer {
                        Value::ServerError(e) => failure::script_refused(failure::SWAP, &e),
                        _ => failure::unexpected_response(failure::SWAP),
                    };
                    places.into_iter().for_each(|place| outcomes[place] = Some(Err(error.clone())));
                }
            }
        }
        left
    }
}

fn create(prefix: &str, key: &Key, new: &Bytes, ttl: Option<Duration>) -> Cmd {
    let mut cmd = Cmd::with_capacity(7, prefix.len() + key.as_str().len() + new.len() + 32);
    cmd.arg("SET").arg(Prefixed(prefix, key)).arg(&new[..]).arg("NX").arg("GET");
    if let Some(ttl) = ttl {
        cmd.arg("PX").arg(millis(ttl));
    }
    cmd
}

fn created(answer: Value) -> Result<Swapped> {
    match answer {
        Value::Nil => Ok(Swapped::Done),
        Value::BulkString(current) => Ok(Swapped::Conflict(Some(current.into()))),
        Value::ServerError(e) => Err(failure::refused(failure::SWAP, &e)),
        _ => Err(failure::unexpected_response(failure::SWAP)),
    }
}

/// Encoded as `swap.lua` says.
fn run_script(prefix: &str, swaps: &[Swap], places: &[usize], how: How) -> Cmd {
    let bytes = |b: &Option<Bytes>| b.as_ref().map_or(0, Bytes::len);
    let size = |&place: &usize| {
        let swap = &swaps[place];
        prefix.len() + swap.key.as_str().len() + bytes(&swap.expect) + bytes(&swap.new) + 16
    };
    let size = places.iter().map(size).sum::<usize>() + SCRIPT.len();
    let mut cmd = Cmd::with_capacity(3 + 4 * places.len(), size);
    match how {
        How::ByText => cmd.arg("EVAL").arg(SCRIPT),
        How::Fast | How::ByScript => cmd.arg("EVALSHA").arg(SCRIPT_HASH.as_str()),
    };
    cmd.arg(places.len());
    for &place in places {
        cmd.arg(Prefixed(prefix, &swaps[place].key));
    }
    for &place in places {
        let Swap { expect, new, ttl, .. } = &swaps[place];
        match expect {
            Some(expect) => write_parts(&mut cmd, b"=", expect),
            None => cmd.write_arg(b""),
        }
        cmd.write_arg(new.as_deref().unwrap_or_default());
        match (new, ttl) {
            (None, _) => cmd.write_arg(b"-"),
            (Some(_), None) => cmd.write_arg(b"0"),
            (Some(_), Some(ttl)) => cmd.write_arg_fmt(millis(*ttl)),
        }
    }
    cmd
}

fn swapped(answer: Value) -> Result<Swapped> {
    match answer {
        Value::Nil => Ok(Swapped::Done),
        Value::Int(0) => Ok(Swapped::Conflict(None)),
        Value::BulkString(current) => Ok(Swapped::Conflict(Some(current.into()))),
        Value::ServerError(e) => Err(failure::refused(failure::SWAP, &e)),
        _ => Err(failure::unexpected_response(failure::SWAP)),
    }
}

/// The script over no keys: does nothing, but needs the permission to run it.
pub(crate) fn try_script() -> Cmd {
    run_script("", &[], &[], How::ByText)
}

impl Request for Reads {
    type Item = Key;
    type Outcome = Option<Bytes>;
    const OPERATION: Operation = failure::READ;

    fn key(key: &Key) -> &Key {
        key
    }

    fn new(prefix: &str, keys: &[Key], places: &[usize], way: Way) -> Self {
        let parts: Vec<_> = places.chunks(way.keys_per_command).map(<[usize]>::to_vec).collect();
        let mut commands = Pipeline::with_capacity(parts.len());
        for part in &parts {
            let size = part.iter().map(|&place| prefix.len() + keys[place].as_str().len()).sum::<usize>();
            let mut cmd = Cmd::with_capacity(1 + part.len(), size + 8);
            cmd.arg("MGET");
            part.iter().for_each(|&place| {
                cmd.arg(Prefixed(prefix, &keys[place]));
            });
            commands.add_command(cmd);
        }
        Reads { commands, parts }
    }

    fn commands(&self) -> &Pipeline {
        &self.commands
    }

    fn settle(self, answers: Vec<Value>, outcomes: &mut [Option<Result<Option<Bytes>>>]) -> Leftover {
        let mut left = Leftover::default();
        for (places, answer) in self.parts.into_iter().zip(answers) {
            let error = match answer {
                Value::Array(values) if values.len() == places.len() => {
                    for (place, value) in places.into_iter().zip(values) {
                        outcomes[place] = Some(match value {
                            Value::Nil => Ok(None),
                            Value::BulkString(value) => Ok(Some(value.into())),
                            _ => Err(failure::unexpected_response(failure::READ)),
                        });
                    }
                    continue;
                }
                Value::ServerError(e) if failure::is_for_another(&e) => {
                    left.elsewhere.extend(places.into_iter().map(|place| (place, e.clone())));
                    continue;
                }
                Value::ServerError(e) => failure::refused(failure::READ, &e),
                _ => failure::unexpected_response(failure::READ),
            };
            places.into_iter().for_each(|place| outcomes[place] = Some(Err(error.clone())));
        }
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kafkaq_core::Partition;

    fn swap(n: i32, expect: Option<&'static str>, new: Option<&'static str>) -> Swap {
        let key = Key::partition("g", &Partition::new("t", n));
        Swap::new(key, expect.map(Bytes::from), new.map(Bytes::from), None)
    }

    fn words(cmd: &Cmd) -> Vec<String> {
        cmd.args_iter()
            .map(|arg| match arg {
                redis::Arg::Simple(bytes) => String::from_utf8_lossy(bytes).into_owned(),
                redis::Arg::Cursor => "cursor".into(),
                _ => "?".into(),
            })
            .collect()
    }

    #[test]
    fn a_time_to_live_is_rounded_up_and_never_zero() {
        assert_eq!(millis(Duration::ZERO), 1);
        assert_eq!(millis(Duration::from_nanos(1_000_001)), 2);
        assert_eq!(millis(Duration::from_millis(1500)), 1500);
        assert_eq!(millis(Duration::MAX), 1 << 62);
    }

    #[test]
    fn creates_are_single_commands_and_the_rest_shares_scripts() {
        let mut batch = vec![swap(0, None, Some("a")), swap(1, Some("a"), None), swap(2, None, None)];
        batch.extend((3..200).map(|n| swap(n, Some("a"), Some("b"))));
        let all: Vec<usize> = (0..batch.len()).collect();
        let commands = |how, keys_per_command| {
            Swaps::new("k/", &batch, &all, Way { how, keys_per_command }).commands.len()
        };
        assert_eq!(commands(How::Fast, CHUNK), 1 + 2);
        assert_eq!(commands(How::ByScript, CHUNK), 2);
        assert_eq!(commands(How::Fast, 1), 200);
    }

    #[test]
    fn a_create_is_one_set() {
        let Swap { key, .. } = swap(7, None, None);
        let ttl = Some(Duration::from_secs(1));
        let cmd = create("k/", &key, &Bytes::from("v"), ttl);
        assert_eq!(words(&cmd), ["SET", "k/p/g/t/7", "v", "NX", "GET", "PX", "1000"]);
        assert_eq!(words(&create("k/", &key, &Bytes::from("v"), None)).len(), 5);
    }

    #[test]
    fn the_script_gets_three_arguments_a_key() {
        let batch = [swap(1, Some("a"), None), swap(2, None, Some("b"))];
        let cmd = run_script("k/", &batch, &[0, 1], How::ByScript);
        let expected =
            ["EVALSHA", SCRIPT_HASH.as_str(), "2", "k/p/g/t/1", "k/p/g/t/2", "=a", "", "-", "", "b", "0"];
        assert_eq!(words(&cmd), expected);
    }

    #[test]
    fn too_few_answers_leave_the_rest_without_an_outcome() {
        let batch = [swap(1, None, Some("a")), swap(2, None, Some("b"))];
        let mut outcomes = vec![None, None];
        let way = Way { how: How::Fast, keys_per_command: CHUNK };
        let left = Swaps::new("", &batch, &[0, 1], way).settle(vec![Value::Nil], &mut outcomes);
        assert!(left.again.is_empty());
        assert!(matches!(outcomes[..], [Some(Ok(Swapped::Done)), None]));
    }
}
