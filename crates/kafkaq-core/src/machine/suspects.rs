//! Tasks whose lease ran out. One of them may have ended the process that had them all, and would end the next one in
//! the same company, until each of them has failed too often. So a task on its last chance is begun apart: not while
//! another suspect that was begun lately still runs here, and no other is begun beside it.

use super::{
    Mono,
    item::{Item, Stage},
    slab::Ref,
};
use std::{collections::VecDeque, time::Duration};

/// What ends its process has done so by then, mostly.
const LONGEST_WATCH: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug)]
pub(super) struct Suspect {
    pub(super) item: Ref,
    /// If it fails once more, it is dead.
    pub(super) last_chance: bool,
}

#[derive(Debug, Default)]
pub(super) struct Suspects {
    /// They wait for a caller, and for those that were begun before.
    waiting: VecDeque<Suspect>,
    /// Begun and watched: any number that have more chances, or a single one that has not.
    begun: VecDeque<Suspect>,
}

impl Suspects {
    pub(super) fn push(&mut self, suspect: Suspect) {
        self.waiting.push_back(suspect);
    }

    /// Whether the one that has waited longest may begin now.
    pub(super) fn may_begin(&mut self, is_watched: impl Fn(Ref) -> bool) -> bool {
        let Some(next) = self.waiting.front() else { return false };
        while self.begun.front().is_some_and(|begun| !is_watched(begun.item)) {
            self.begun.pop_front();
        }
        self.begun.front().is_none_or(|begun| !begun.last_chance && !next.last_chance)
    }

    /// The one that has waited longest begins.
    pub(super) fn begin(&mut self) -> Option<Ref> {
        let next = self.waiting.pop_front()?;
        self.begun.push_back(next);
        Some(next.item)
    }

    /// For whose end the next one waits.
    pub(super) fn held_back_by(&self) -> Option<Ref> {
        self.waiting.front().and(self.begun.front()).map(|begun| begun.item)
    }

    pub(super) fn pop_if(&mut self, is: impl FnOnce(Ref) -> bool) -> Option<Ref> {
        let next = self.waiting.front()?.item;
        is(next).then(|| self.waiting.pop_front())?;
        Some(next)
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn retain(&mut self, is_there: impl Fn(Ref) -> bool) {
        self.waiting.retain(|suspect| is_there(suspect.item));
    }
}

impl Item {
    /// Whether it was begun lately, if it was begun as a suspect.
    pub(super) fn is_watched(&self, lease: Duration, now: Mono) -> bool {
        match self.stage {
            Stage::Considered => true,
            Stage::Held(held) => held.offered_at.is_none_or(|begun| now < watched_until(begun, lease)),
            _ => false,
        }
    }
}

/// Until when a suspect is watched that was begun then.
pub(super) fn watched_until(begun: Mono, lease: Duration) -> Mono {
    begun.plus((lease / 4).min(LONGEST_WATCH))
}
