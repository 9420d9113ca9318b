//! Encodes swaps and reads as Redis commands, and decodes responses into outcomes. No I/O.
//!
//! For a value with a key of its own, a swap that expects nothing is one `SET NX GET`, which costs Redis half as much
//! as the script. All others use scripts, with many keys per call; values in hashes have a separate script, in
//! `hashes.rs`. A batch is one pipeline: one write, one wait.
//!
//! In a cluster a command is for one slot, and keys rarely share one: there each key or hash has a command of its own.

use crate::{
    command::{How, Script, Way, millis, write_joined},
    failure,
    hashes::{Groups, Kind},
};
use bytes::Bytes;
use kafkaq_core::{Key, Operation, Result, Swap, Swapped};
use redis::{Cmd, Pipeline, RedisWrite, ServerError, ToRedisArgs, Value};
use std::{sync::LazyLock, time::Duration};

static SCRIPT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("swap.lua")));

/// A key with the store's prefix.
struct Prefixed<'a>(&'a str, &'a Key);

impl ToRedisArgs for Prefixed<'_> {
    fn write_redis_args<W: ?Sized + RedisWrite>(&self, out: &mut W) {
        write_joined(out, [self.0, self.1.as_str()]);
    }
}

/// A part of a batch on its way to one server.
pub(crate) trait Request: Sized + Send + Sync {
    /// An item of the caller's batch.
    type Item: Sync;
    /// The outcome of an item.
    type Outcome: Clone + Send;
    const OPERATION: Operation;

    fn key(item: &Self::Item) -> &Key;

    /// The items at these places of the batch.
    fn new(prefix: &str, items: &[Self::Item], places: &[usize], way: Way) -> Self;

    fn commands(&self) -> &Pipeline;

    /// Writes the outcomes to their places. A place without one got no response, or is in the leftover.
    fn settle(self, answers: Vec<Value>, outcomes: &mut [Option<Result<Self::Outcome>>]) -> Leftover;
}

/// The places in the caller's batch that a command of the pipeline covers.
enum Part {
    Create(usize),
    Script(Vec<usize>),
}

/// Swaps in flight.
pub(crate) struct Swaps {
    commands: Pipeline,
    parts: Vec<Part>,
}

/// Reads in flight.
pub(crate) struct Reads {
    commands: Pipeline,
    /// Places in the caller's batch, one command each.
    parts: Vec<Vec<usize>>,
}

/// What is left to do after the responses.
#[derive(Default)]
pub(crate) struct Leftover {
    /// Swaps that certainly did not happen and need the script's text.
    pub(crate) again: Vec<usize>,
    /// What certainly did not happen because, as the refusal says, another server has the key or accepts writes.
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
        let (mut in_hashes, mut by_script) = (Groups::new(), Vec::new());
        for &place in places {
            let swap = &swaps[place];
            if in_hashes.add(&swap.key, Kind::of(swap), place) {
                continue;
            }
            match swap {
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
        for (call, places) in in_hashes.swap(prefix, swaps, way) {
            commands.add_command(call);
            parts.push(Part::Script(places));
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
                (Part::Script(places), answer) => match answers_of(answer, places.len()) {
                    Ok(answers) => {
                        for (place, answer) in places.into_iter().zip(answers) {
                            match answer {
                                Value::ServerError(e) if failure::is_readonly(&e) => {
                                    left.elsewhere.push((place, e));
                                }
                                answer => outcomes[place] = Some(swapped(answer)),
                            }
                        }
                    }
                    Err(e) => places.into_iter().for_each(|place| outcomes[place] = Some(Err(e.clone()))),
                },
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

/// Encodes a call as `swap.lua` documents it.
fn run_script(prefix: &str, swaps: &[Swap], places: &[usize], how: How) -> Cmd {
    let bytes = |b: &Option<Bytes>| b.as_ref().map_or(0, Bytes::len);
    let size = |&place: &usize| {
        let swap = &swaps[place];
        prefix.len() + swap.key.as_str().len() + bytes(&swap.expect) + bytes(&swap.new) + 16
    };
    let size = places.iter().map(size).sum();
    let mut cmd = SCRIPT.call(how, places.len(), 3 * places.len(), size);
    for &place in places {
        cmd.arg(Prefixed(prefix, &swaps[place].key));
    }
    for &place in places {
        let Swap { expect, new, ttl, .. } = &swaps[place];
        match expect {
            Some(expect) => write_joined(&mut cmd, [b"=", &expect[..]]),
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

/// One response per swap: a script returns how many it has processed, and details of those that were not done.
fn answers_of(answer: Value, swaps: usize) -> Result<Vec<Value>> {
    let told = match answer {
        Value::Array(told) => told,
        Value::ServerError(e) => return Err(failure::script_refused(failure::SWAP, &e)),
        _ => return Err(failure::unexpected_response(failure::SWAP)),
    };
    let mut answers = vec![Value::Nil; swaps];
    let mut told = told.into_iter();
    // A missing response must not count as success.
    if told.next() != i64::try_from(swaps).ok().map(Value::Int) {
        return Err(failure::unexpected_response(failure::SWAP));
    }
    while let Some(number) = told.next() {
        let place = match number {
            Value::Int(number) => usize::try_from(number).ok().and_then(|number| number.checked_sub(1)),
            _ => None,
        };
        match (place.and_then(|place| answers.get_mut(place)), told.next()) {
            (Some(place), Some(answer)) => *place = answer,
            _ => return Err(failure::unexpected_response(failure::SWAP)),
        }
    }
    Ok(answers)
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

/// Calls the script without keys, which does nothing but requires the permission to run it.
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
        let mut in_hashes = Groups::new();
        let by_key: Vec<_> =
            places.iter().copied().filter(|&place| !in_hashes.add(&keys[place], (), place)).collect();
        let mut requests = in_hashes.get(prefix);
        for chunk in by_key.chunks(way.keys_per_command) {
            let size = chunk.iter().map(|&place| prefix.len() + keys[place].as_str().len()).sum::<usize>();
            let mut cmd = Cmd::with_capacity(1 + chunk.len(), size + 8);
            cmd.arg("MGET");
            chunk.iter().for_each(|&place| {
                cmd.arg(Prefixed(prefix, &keys[place]));
            });
            requests.push((cmd, chunk.to_vec()));
        }
        let (mut commands, mut parts) = (Pipeline::with_capacity(requests.len()), Vec::new());
        for (cmd, places) in requests {
            commands.add_command(cmd);
            parts.push(places);
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
    use crate::command::CHUNK;
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
    fn script_gets_three_arguments_per_key() {
        let batch = [swap(1, Some("a"), None), swap(2, None, Some("b"))];
        let cmd = run_script("k/", &batch, &[0, 1], How::ByScript);
        let expected = ["2", "k/p/g/t/1", "k/p/g/t/2", "=a", "", "-", "", "b", "0"];
        assert_eq!(words(&cmd)[0], "EVALSHA");
        assert_eq!(words(&cmd)[2..], expected);
    }

    #[test]
    fn neighbours_share_the_arguments_of_their_hash() {
        let id = |n: u8| format!("018bcfe5-0000-7e6b-8123-0000000123{n:02x}");
        let key = |n| Key::of(&["t", "q", "g", &id(n)]).unwrap();
        let swap = |n, expect: Option<&'static str>, new: Option<&'static str>, ttl| {
            let ttl = Some(Duration::from_secs(ttl));
            Swap::new(key(n), expect.map(Bytes::from), new.map(Bytes::from), ttl)
        };
        let batch = [
            swap(0, None, Some("a"), 1),
            swap(0x40, Some("b"), None, 1),
            swap(1, None, Some("c"), 2),
            swap(2, Some("d"), Some("e"), 3),
        ];
        let way = |keys_per_command| Way { how: How::Fast, keys_per_command };
        let calls = Swaps::new("k/", &batch, &[0, 1, 2, 3], way(CHUNK)).commands;
        let hash = |digits| format!("k/t/q/g/018bcfe5-*-7e6b-8123-0000000123[{digits}]*");
        let arguments = format!(
            "3 {low} {high} {low} 2000  2 000000 a 000001 c - = 1 000040 b 3000 = 1 000002 e d",
            low = hash("0-3"),
            high = hash("4-7")
        );
        let call = calls.cmd_iter().next().unwrap();
        assert_eq!(words(call)[2..].join(" "), arguments);
        assert_eq!(calls.len(), 1);
        assert_eq!(Swaps::new("k/", &batch, &[0, 1, 2, 3], way(1)).commands.len(), 3);

        let keys = [key(0), Key::of(&["t", "q", "g", "a"]).unwrap(), key(1)];
        let reads = Reads::new("k/", &keys, &[0, 1, 2], way(CHUNK));
        let commands: Vec<_> = reads.commands.cmd_iter().map(|cmd| words(cmd).join(" ")).collect();
        assert_eq!(commands, [format!("HMGET {} 000000 000001", hash("0-3")), "MGET k/t/q/g/a".to_owned()]);
        assert_eq!(reads.parts, [vec![0, 2], vec![1]]);
    }

    #[test]
    fn call_for_neighbours_has_whole_hashes_up_to_the_limit() {
        let id = |n: u32| format!("018bcfe5-0000-7e6b-8123-{n:012x}");
        let swap = |n| Swap::new(Key::of(&["t", "q", "g", &id(n)]).unwrap(), None, Some(Bytes::new()), None);
        let batch: Vec<_> = (0..300).map(swap).collect();
        let all: Vec<_> = (0..300).collect();
        let way = Way { how: How::Fast, keys_per_command: CHUNK };
        let calls = Swaps::new("k/", &batch, &all, way).commands;
        let hashes: Vec<_> = calls.cmd_iter().map(|call| words(call)[2].clone()).collect();
        assert_eq!(hashes, ["2", "2", "1"]);
    }

    #[test]
    fn script_returns_how_many_swaps_it_processed_and_which_failed() {
        let answers = |told: &[Value]| answers_of(Value::Array(told.to_vec()), 2).ok();
        let (int, text) = (Value::Int, Value::BulkString(b"a".to_vec()));
        assert_eq!(answers(&[int(2)]), Some(vec![Value::Nil, Value::Nil]));
        assert_eq!(answers(&[int(2), int(2), text.clone()]), Some(vec![Value::Nil, text.clone()]));
        let nonsense = [
            vec![],
            vec![int(1)],
            vec![int(2), int(1)],
            vec![int(2), int(0), int(0)],
            vec![int(2), int(3), int(0)],
            vec![int(2), text.clone(), text],
        ];
        assert!(nonsense.iter().all(|told| answers(told).is_none()));
        assert!(answers_of(Value::Nil, 2).is_err());
    }

    #[test]
    fn missing_responses_leave_the_rest_without_an_outcome() {
        let batch = [swap(1, None, Some("a")), swap(2, None, Some("b"))];
        let mut outcomes = vec![None, None];
        let way = Way { how: How::Fast, keys_per_command: CHUNK };
        let left = Swaps::new("", &batch, &[0, 1], way).settle(vec![Value::Nil], &mut outcomes);
        assert!(left.again.is_empty());
        assert!(matches!(outcomes[..], [Some(Ok(Swapped::Done)), None]));
    }
}
