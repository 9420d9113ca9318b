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
pub(crate) struct Groups<'a, K> {
    groups: Vec<Group<'a, K>>,
    /// The index of each group.
    index: BTreeMap<(Hash<'a>, K), usize>,
    /// The group of the last place: the next one mostly joins it.
    last: usize,
}

struct Group<'a, K> {
    of: (Hash<'a>, K),
    entries: Vec<Entry<'a>>,
}

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
type Part<'a> = ((Hash<'a>, Kind), &'a [Entry<'a>]);

impl<'a, K: Copy + Ord> Groups<'a, K> {
    pub(crate) fn new() -> Self {
        Groups { groups: Vec::new(), index: BTreeMap::new(), last: 0 }
    }

    /// Returns false if the key's value isn't in a hash.
    pub(crate) fn add(&mut self, key: &'a Key, kind: K, place: usize) -> bool {
        let Some((hash, field)) = in_hash(key) else { return false };
        let of = (hash, kind);
        if self.groups.get(self.last).is_none_or(|group| group.of != of) {
            self.last = *self.index.entry(of).or_insert_with(|| {
                self.groups.push(Group { of, entries: Vec::new() });
                self.groups.len() - 1
            });
        }
        self.groups[self.last].entries.push(Entry { place, field });
        true
    }
}

impl Groups<'_, Kind> {
    /// Calls of the script, and the places of each in the order of its responses.
    pub(crate) fn swap(&self, prefix: &str, swaps: &[Swap], way: Way) -> Vec<(Cmd, Vec<usize>)> {
        let mut calls = Vec::<Vec<Part<'_>>>::new();
        let mut fields = 0;
        // A hash has few fields, unless ids are chosen to collide.
        let parts = self
            .groups
            .iter()
            .flat_map(|Group { of, entries }| entries.chunks(CHUNK).map(move |chunk| (*of, chunk)));
        for part in parts {
            let more = part.1.len();
            match calls.last_mut() {
                Some(call) if call.len() < way.keys_per_command && fields + more <= CHUNK => {
                    call.push(part);
                    fields += more;
                }
                _ => {
                    calls.push(vec![part]);
                    fields = more;
                }
            }
        }
        let places = |call: &[Part<'_>]| call.iter().flat_map(|(_, entries)| places(entries)).collect();
        calls.iter().map(|call| (run_script(prefix, swaps, call, way), places(call))).collect()
    }
}

impl Groups<'_, ()> {
    /// One command per hash, and the places of each in the order of its responses.
    pub(crate) fn get(&self, prefix: &str) -> Vec<(Cmd, Vec<usize>)> {
        let get = |Group { of: (hash, ()), entries }: &Group<'_, ()>| {
            let mut cmd = Cmd::with_capacity(2 + entries.len(), prefix.len() + 64 + 8 * entries.len());
            cmd.arg("HMGET");
            write_name(&mut cmd, prefix, *hash);
            entries.iter().for_each(|entry| write_joined(&mut cmd, entry.field));
            (cmd, places(entries).collect())
        };
        self.groups.iter().map(get).collect()
    }
}

fn places(entries: &[Entry<'_>]) -> impl Iterator<Item = usize> {
    entries.iter().map(|entry| entry.place)
}

fn write_name(cmd: &mut Cmd, prefix: &str, hash: Hash<'_>) {
    write_joined(cmd, [prefix].into_iter().chain(hash.parts()));
}

/// Encodes a call as `swap_fields.lua` documents it.
fn run_script(prefix: &str, swaps: &[Swap], call: &[Part<'_>], way: Way) -> Cmd {
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
