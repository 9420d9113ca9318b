//! Tasks whose lease expired. One of them may have killed the process that held them all, and started together again
//! they would all fail with it until each is dead-lettered. So a task on its last chance is started in isolation: not
//! while a recently started suspect still runs here, and no other suspect is started beside it.

use super::{
    Mono,
    item::{Item, Stage},
    slab::Ref,
};
use std::{collections::VecDeque, time::Duration};

/// A task that kills its process has usually done so by then.
const LONGEST_WATCH: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug)]
pub(super) struct Suspect {
    pub(super) item: Ref,
    /// If it fails once more, it is dead-lettered.
    pub(super) last_chance: bool,
}

#[derive(Debug, Default)]
pub(super) struct Suspects {
    /// Suspects that wait for a caller and for the suspects started before them.
    waiting: VecDeque<Suspect>,
    /// Started and watched: any number with more chances left, or a single one on its last chance.
    begun: VecDeque<Suspect>,
}

impl Suspects {
    pub(super) fn push(&mut self, suspect: Suspect) {
        self.waiting.push_back(suspect);
    }

    /// Returns whether the suspect that has waited longest may start now.
    pub(super) fn may_begin(&mut self, is_watched: impl Fn(Ref) -> bool) -> bool {
        let Some(next) = self.waiting.front() else { return false };
        while self.begun.front().is_some_and(|begun| !is_watched(begun.item)) {
            self.begun.pop_front();
        }
        self.begun.front().is_none_or(|begun| !begun.last_chance && !next.last_chance)
    }

    /// Starts the suspect that has waited longest.
    pub(super) fn begin(&mut self) -> Option<Ref> {
        let next = self.waiting.pop_front()?;
        self.begun.push_back(next);
        Some(next.item)
    }

    /// Returns the suspect whose end the next one waits for.
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
    /// Returns whether it was started recently, as a suspect.
    pub(super) fn is_watched(&self, lease: Duration, now: Mono) -> bool {
        match self.stage {
            Stage::Considered => true,
            Stage::Held(held) => held.offered_at.is_none_or(|begun| now < watched_until(begun, lease)),
            _ => false,
        }
    }
}

/// Returns until when a suspect that was started at `begun` is watched.
pub(super) fn watched_until(begun: Mono, lease: Duration) -> Mono {
    begun.plus((lease / 4).min(LONGEST_WATCH))
}
