//! Selects dead letters.

use super::{DeadLetter, Fingerprint, Place};
use kafkaq_core::TaskId;
use std::{collections::HashSet, time::SystemTime};

/// Selects dead letters. By default it selects all unhandled letters; a letter has to meet every condition that is set.
///
/// ```
/// use kafkaq::dead_letters::{Filter, Fingerprint};
///
/// let filter = Filter::new().kind("email").fingerprint(Fingerprint::new("user 17 not found"));
/// # let _ = filter;
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Filter {
    kind: Option<String>,
    fingerprint: Option<Fingerprint>,
    reason_contains: Option<String>,
    since: Option<SystemTime>,
    before: Option<SystemTime>,
    ids: Option<HashSet<TaskId>>,
    places: Option<HashSet<Place>>,
    after: Option<Place>,
    handled: bool,
}

impl Filter {
    /// Selects all unhandled letters.
    pub fn new() -> Self {
        Self::default()
    }

    /// Selects tasks of this kind: those whose header `task-kind` says so.
    pub fn kind(mut self, kind: impl Into<String>) -> Self {
        self.kind = Some(kind.into());
        self
    }

    /// Selects letters whose reason has this fingerprint.
    pub fn fingerprint(mut self, fingerprint: Fingerprint) -> Self {
        self.fingerprint = Some(fingerprint);
        self
    }

    /// Selects letters whose reason contains this text.
    pub fn reason_contains(mut self, text: impl Into<String>) -> Self {
        self.reason_contains = Some(text.into());
        self
    }

    /// Selects letters that were written at or after this time.
    pub fn since(mut self, time: SystemTime) -> Self {
        self.since = Some(time);
        self
    }

    /// Selects letters that were written before this time.
    pub fn before(mut self, time: SystemTime) -> Self {
        self.before = Some(time);
        self
    }

    /// Selects the letters of these tasks.
    pub fn ids(mut self, ids: impl IntoIterator<Item = TaskId>) -> Self {
        self.ids = Some(ids.into_iter().collect());
        self
    }

    /// Selects the letters at these places.
    pub fn places(mut self, places: impl IntoIterator<Item = Place>) -> Self {
        self.places = Some(places.into_iter().collect());
        self
    }

    /// Starts after this place, in order of partition and offset: continues after an earlier page.
    pub fn after(mut self, place: Place) -> Self {
        self.after = Some(place);
        self
    }

    /// Also selects letters that were redriven or discarded.
    pub fn include_handled(mut self) -> Self {
        self.handled = true;
        self
    }

    /// The first place that can be selected.
    pub(super) fn start(&self) -> Option<Place> {
        let behind = self.after.map(|p| Place { offset: p.offset.saturating_add(1), ..p });
        behind.max(self.places.as_ref().and_then(|places| places.iter().min().copied()))
    }

    /// The last place that can be selected.
    pub(super) fn end(&self) -> Option<Place> {
        self.places.as_ref()?.iter().max().copied()
    }

    pub(super) fn selects(&self, letter: &DeadLetter) -> bool {
        let reason = letter.reason.as_deref().unwrap_or_default();
        (self.handled || letter.handled.is_none())
            && self.after.is_none_or(|place| letter.place > place)
            && self.places.as_ref().is_none_or(|places| places.contains(&letter.place))
            && self.ids.as_ref().is_none_or(|ids| letter.id.as_ref().is_some_and(|id| ids.contains(id)))
            && self.kind.as_ref().is_none_or(|kind| letter.kind.as_ref() == Some(kind))
            && self.since.is_none_or(|time| letter.died.is_some_and(|died| died >= time))
            && self.before.is_none_or(|time| letter.died.is_some_and(|died| died < time))
            && self.reason_contains.as_ref().is_none_or(|text| reason.contains(text))
            && self.fingerprint.as_ref().is_none_or(|f| *f == letter.fingerprint())
    }
}
