//! A fleet during an upgrade: some processes are of a later version, "version 3". They run the same machine; what they
//! write is rewritten here to what a later version might write, and back when they read it.

use crate::world::World;
use bytes::Bytes;
use kafkaq_core::{HEADER, Headers, Swap};

/// Where the versions are in an envelope: after its marker.
const ENVELOPE: std::ops::Range<usize> = 3..5;
/// A field that version 2 doesn't know: its tag, its length, its content.
const ADDED: [u8; 5] = [99, 3, b'n', b'e', b'w'];

/// How a later version rewrites a value of ours: readable for ours, or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum As {
    Readable,
    Unreadable,
}

impl World {
    pub(crate) fn is_later(&self, p: usize) -> bool {
        self.calm && self.plan.mixed || self.procs[p].later
    }

    /// Draws a rewrite. Earlier versions can read most of what a later one writes.
    fn draw_as(&mut self) -> As {
        if self.rng.chance(600) { As::Readable } else { As::Unreadable }
    }

    /// Returns what a process appends, as the log gets it.
    pub(crate) fn as_appended(&mut self, who: Option<usize>, headers: &Headers) -> Headers {
        match who.filter(|p| self.is_later(*p)) {
            Some(_) => {
                let how = self.draw_as();
                map_envelope(headers, |v| later_envelope(v, how))
            }
            None => headers.clone(),
        }
    }

    /// A swap, with its values as the store has them, and the value that is there as the process knows it.
    pub(crate) fn as_swapped(&mut self, who: Option<usize>, swap: &Swap, current: Option<&Bytes>) -> Swap {
        let mut swap = swap.clone();
        if who.is_some_and(|p| self.is_later(p)) {
            if swap.expect == current.map(own_lease) {
                swap.expect = current.cloned();
            }
            let how = self.draw_as();
            swap.new = swap.new.map(|v| later_lease(&v, how));
        }
        swap
    }

    pub(crate) fn as_got(&self, p: usize, value: Option<Bytes>) -> Option<Bytes> {
        if self.is_later(p) { value.as_ref().map(own_lease) } else { value }
    }
}

/// What the log holds, as a process of the later version reads it.
pub(crate) fn read_later(headers: &Headers) -> Headers {
    map_envelope(headers, own_envelope)
}

fn map_envelope(headers: &Headers, change: impl Fn(&Bytes) -> Bytes) -> Headers {
    let one = |(name, value): (&Bytes, Option<&Bytes>)| match value {
        Some(v) if name == HEADER && v.len() > ENVELOPE.end && v[0] == 0xab => {
            (name.clone(), Some(change(v)))
        }
        value => (name.clone(), value.cloned()),
    };
    headers.iter().map(one).collect()
}

fn later_envelope(v: &Bytes, how: As) -> Bytes {
    let mut out = v.to_vec();
    out[3] = 3;
    out[4] = if how == As::Readable { 2 } else { 3 };
    if !out.ends_with(&ADDED) {
        out.extend(ADDED);
    }
    out.into()
}

/// Everybody's envelope as the checks read it.
pub(crate) fn own_envelope(v: &Bytes) -> Bytes {
    let mut out = v.to_vec();
    if out.get(ENVELOPE).is_some_and(|versions| versions == [3, 3]) {
        out[4] = 2;
    }
    out.into()
}

fn later_lease(v: &Bytes, how: As) -> Bytes {
    let mut out = v.to_vec();
    out[0] = if how == As::Readable { 0x32 } else { 0x33 };
    out.into()
}

/// Everybody's lease as the checks read it.
pub(crate) fn own_lease(v: &Bytes) -> Bytes {
    let mut out = v.to_vec();
    if out.first() == Some(&0x33) {
        out[0] = 0x32;
    }
    out.into()
}
