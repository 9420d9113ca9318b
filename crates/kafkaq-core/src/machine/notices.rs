//! Notices for the driver, and how often the same alarm is repeated.

use super::{Alarm, Mono, Notice};
use crate::Partition;
use std::{
    collections::{HashMap, VecDeque},
    mem::Discriminant,
    time::Duration,
};

/// The shortest time between two alarms of one kind for one partition.
const QUIET_FOR: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(super) struct Notices {
    queue: VecDeque<Notice>,
    /// When an alarm of a kind was last raised for a partition.
    alarmed: HashMap<(Discriminant<Alarm>, Partition), Mono>,
}

impl Notices {
    pub(super) fn push(&mut self, notice: Notice) {
        self.queue.push_back(notice);
    }

    pub(super) fn pop(&mut self) -> Option<Notice> {
        self.queue.pop_front()
    }

    pub(super) fn alarm(&mut self, alarm: Alarm, now: Mono) {
        let of = (std::mem::discriminant(&alarm), alarm.partition().clone());
        if self.alarmed.get(&of).is_some_and(|last| now < last.plus(QUIET_FOR)) {
            return;
        }
        self.alarmed.insert(of, now);
        self.push(Notice::Alarm(alarm));
    }
}
