//! Commands for values in hashes: swaps with a script, reads with `HMGET`, each for many fields of a hash at once.

use crate::{
    command::{CHUNK, Script, Way, millis, write_joined},
    layout::{Field, Hash, in_hash},
};
use kafkaq_core::{Key, Swap};
use redis::{Cmd, RedisWrite};
use std::{collections::BTreeMap, sync::LazyLock, time::Duration};

static SCRIPT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("swap_fields.lua")));

/// Places of a batch whose values are in hashes, grouped by hash and kind.
pub(crate) struct Groups<'a, K>(BTreeMap<(Hash<'a>, K), Vec<Entry<'a>>>);

struct Entry<'a> {
    place: usize,
    field: Field<'a>,
}

/// Swaps of a hash that share the script's arguments.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Kind {
    expects: bool,
    sets: bool,
}

impl Kind {
    pub(crate) fn of(swap: &Swap) -> Self {
        Kind { expects: swap.expect.is_some(), sets: swap.new.is_some() }
    }
}

/// A hash's part of one call of the script.
type Group<'a> = ((Hash<'a>, Kind), &'a [Entry<'a>]);

impl<'a, K: Ord> Groups<'a, K> {
    pub(crate) fn new() -> Self {
        Groups(BTreeMap::new())
    }

    /// Returns false if the key's value isn't in a hash.
    pub(crate) fn add(&mut self, key: &'a Key, kind: K, place: usize) -> bool {
        let Some((hash, field)) = in_hash(key) else { return false };
        self.0.entry((hash, kind)).or_default().push(Entry { place, field });
        true
    }
}

impl Groups<'_, Kind> {
    /// Calls of the script, and the places of each in the order of its responses.
    pub(crate) fn swap(&self, prefix: &str, swaps: &[Swap], way: Way) -> Vec<(Cmd, Vec<usize>)> {
        let mut calls = Vec::<Vec<Group<'_>>>::new();
        let mut fields = 0;
        // A hash has few fields, unless ids are chosen to collide.
        let groups =
            self.0.iter().flat_map(|(of, entries)| entries.chunks(CHUNK).map(move |chunk| (*of, chunk)));
        for group in groups {
            let more = group.1.len();
            match calls.last_mut() {
                Some(call) if call.len() < way.keys_per_command && fields + more <= CHUNK => {
                    call.push(group);
                    fields += more;
                }
                _ => {
                    calls.push(vec![group]);
                    fields = more;
                }
            }
        }
        let places = |call: &[Group<'_>]| call.iter().flat_map(|(_, entries)| places(entries)).collect();
        calls.iter().map(|call| (run_script(prefix, swaps, call, way), places(call))).collect()
    }
}

impl Groups<'_, ()> {
    /// One command per hash, and the places of each in the order of its responses.
    pub(crate) fn get(&self, prefix: &str) -> Vec<(Cmd, Vec<usize>)> {
        let get = |((hash, ()), entries): (&(Hash<'_>, ()), &Vec<Entry<'_>>)| {
            let mut cmd = Cmd::with_capacity(2 + entries.len(), prefix.len() + 64 + 8 * entries.len());
            cmd.arg("HMGET");
            write_name(&mut cmd, prefix, *hash);
            entries.iter().for_each(|entry| write_joined(&mut cmd, entry.field));
            (cmd, places(entries).collect())
        };
        self.0.iter().map(get).collect()
    }
}

fn places(entries: &[Entry<'_>]) -> impl Iterator<Item = usize> {
    entries.iter().map(|entry| entry.place)
}

fn write_name(cmd: &mut Cmd, prefix: &str, hash: Hash<'_>) {
    write_joined(cmd, [prefix].into_iter().chain(hash.parts()));
}

/// Encoded as `swap_fields.lua` says.
fn run_script(prefix: &str, swaps: &[Swap], call: &[Group<'_>], way: Way) -> Cmd {
    let fields = call.iter().map(|(_, entries)| entries.len()).sum::<usize>();
    let args = 3 * (call.len() + fields);
    let mut cmd = SCRIPT.call(way.how, call.len(), args, call.len() * (prefix.len() + 80) + fields * 100);
    call.iter().for_each(|((hash, _), _)| write_name(&mut cmd, prefix, *hash));
    for ((_, kind), entries) in call {
        if kind.sets {
            cmd.write_arg_fmt(longest(swaps, entries).map_or(0, millis));
        } else {
            cmd.write_arg(b"-");
        }
        cmd.write_arg(if kind.expects { b"=" } else { b"" });
        cmd.write_arg_fmt(entries.len());
        for Entry { place, field } in *entries {
            write_joined(&mut cmd, *field);
            swaps[*place].new.iter().for_each(|value| cmd.write_arg(value));
        }
        for Entry { place, .. } in *entries {
            swaps[*place].expect.iter().for_each(|value| cmd.write_arg(value));
        }
    }
    cmd
}

/// `None`: forever.
fn longest(swaps: &[Swap], entries: &[Entry<'_>]) -> Option<Duration> {
    places(entries).try_fold(Duration::ZERO, |longest, place| Some(longest.max(swaps[place].ttl?)))
}
