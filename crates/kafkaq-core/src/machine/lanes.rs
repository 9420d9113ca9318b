//! Records of the wait topic by the time they leave their lane.

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

    /// The next record whose time in its lane has passed.
    pub(super) fn pop(&mut self, now: Wall) -> Option<Place> {
        self.next_at().filter(|leaves| *leaves <= now)?;
        self.by_time.pop().map(|Reverse((_, place))| place)
    }

    pub(super) fn next_at(&self) -> Option<Wall> {
        self.by_time.peek().map(|Reverse((leaves, _))| *leaves)
    }

    /// No record leaves its lane later than `latest` says for its window, which is `None` if that is gone.
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
