//! The records of the wait topic that were read, by when they leave their lanes.

use super::{item::Place, slab::Ref};
use crate::Wall;
use std::{cmp::Reverse, collections::BinaryHeap};

#[derive(Debug, Default)]
pub(super) struct Lanes {
    by_time: BinaryHeap<Reverse<(Wall, Place)>>,
}

impl Lanes {
    pub(super) fn push(&mut self, leaves: Wall, place: Place) {
        self.by_time.push(Reverse((leaves, place)));
    }

    /// Removes and returns the next record that leaves its lane by now.
    pub(super) fn pop(&mut self, now: Wall) -> Option<Place> {
        self.next_at().filter(|leaves| *leaves <= now)?;
        self.by_time.pop().map(|Reverse((_, place))| place)
    }

    pub(super) fn next_at(&self) -> Option<Wall> {
        self.by_time.peek().map(|Reverse((leaves, _))| *leaves)
    }

    /// Lets no record leave its lane later than `latest` of its window, and drops those for which it is `None`.
    pub(super) fn limit(&mut self, latest: impl Fn(Ref) -> Option<Wall>) {
        let limited = |Reverse((leaves, place)): Reverse<(Wall, Place)>| {
            Some(Reverse((leaves.min(latest(place.window)?), place)))
        };
        self.by_time = std::mem::take(&mut self.by_time).into_iter().filter_map(limited).collect();
    }

    pub(super) fn remove_window(&mut self, w: Ref) {
        self.by_time.retain(|Reverse((_, place))| place.window != w);
    }

    pub(super) fn clear(&mut self) {
        self.by_time.clear();
    }
}
