//! Dead letters that have the same cause.

use super::{DeadLetter, Fingerprint, Place};
use std::{collections::HashMap, time::SystemTime};

/// The maximum number of groups.
pub(super) const MAX_GROUPS: usize = 1000;

/// Dead letters of one kind whose reasons have one fingerprint.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Group {
    /// The tasks' kind, if they have one.
    pub kind: Option<String>,
    /// The fingerprint of the reasons.
    pub fingerprint: Fingerprint,
    /// The reason of one of the letters.
    pub example: Option<String>,
    /// The place of that letter.
    pub place: Place,
    /// How many letters there are.
    pub count: u64,
    /// When the first one was written.
    pub first: Option<SystemTime>,
    /// When the last one was written.
    pub last: Option<SystemTime>,
}

/// The groups of dead letters: see [`DeadLetters::groups`](super::DeadLetters::groups).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Groups {
    /// The groups, the largest first. At most 1,000.
    pub groups: Vec<Group>,
    /// The number of letters that are in none of them, because there were too many groups.
    pub ungrouped: u64,
}

#[derive(Debug, Default)]
pub(super) struct Grouping {
    groups: HashMap<(Option<String>, Fingerprint), Group>,
    ungrouped: u64,
}

impl Grouping {
    pub(super) fn add(&mut self, letter: DeadLetter) {
        let key = (letter.kind.clone(), letter.fingerprint());
        if self.groups.len() >= MAX_GROUPS && !self.groups.contains_key(&key) {
            self.ungrouped += 1;
            return;
        }
        let (kind, fingerprint) = key.clone();
        let group = self.groups.entry(key).or_insert(Group {
            kind,
            fingerprint,
            example: letter.reason,
            place: letter.place,
            count: 0,
            first: letter.died,
            last: letter.died,
        });
        group.count += 1;
        // `None` is before every time.
        group.first =
            if group.first.is_none() { letter.died } else { group.first.min(letter.died.or(group.first)) };
        group.last = group.last.max(letter.died);
    }

    pub(super) fn finish(self) -> Groups {
        let mut groups: Vec<_> = self.groups.into_values().collect();
        groups.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.place.cmp(&b.place)));
        Groups { groups, ungrouped: self.ungrouped }
    }
}
