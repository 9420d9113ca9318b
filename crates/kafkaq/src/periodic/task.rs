//! Periodic tasks: what is published at the ticks.

use super::Schedule;
use crate::{clock::system_time, timed_id::timed_id};
use kafkaq_core::{Error, ErrorKind, Result, Task, TaskId, Wall};
use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

/// A version has ten digits, a time has fourteen, and an id has 128 bytes.
const MAX_NAME: usize = 100;

type Make = dyn Fn(&Tick) -> Result<Task> + Send + Sync;

/// A task that is published at each tick of a schedule.
#[derive(Clone)]
#[must_use = "a periodic task does nothing until it is added to a scheduler that runs"]
pub struct PeriodicTask {
    pub(super) name: Arc<str>,
    pub(super) schedule: Schedule,
    pub(super) version: u32,
    pub(super) missed: Missed,
    make: Arc<Make>,
}

impl PeriodicTask {
    /// Creates a periodic task with this name: 1 to 100 of `A-Z a-z 0-9 . _ -`, which
    /// [`Scheduler::add`](super::Scheduler::add) checks. The name is part of the tasks' ids, so it must be unique in
    /// the queue.
    ///
    /// `make` returns the task of a tick. It is called in every process, and again if publishing fails, so it should
    /// return the same task for the same tick. The task's id is replaced. A [delay](Task::with_delay) is counted from
    /// the time of publishing.
    pub fn new(
        name: impl Into<Arc<str>>,
        schedule: Schedule,
        make: impl Fn(&Tick) -> Task + Send + Sync + 'static,
    ) -> Self {
        Self::made_by(name.into(), schedule, Arc::new(move |tick| Ok(make(tick))))
    }

    /// Creates a periodic task of a task type; otherwise like [`new`](PeriodicTask::new).
    #[cfg(feature = "worker")]
    pub fn typed<T: crate::worker::TaskType>(
        name: impl Into<Arc<str>>,
        schedule: Schedule,
        make: impl Fn(&Tick) -> T + Send + Sync + 'static,
    ) -> Self {
        Self::made_by(name.into(), schedule, Arc::new(move |tick| make(tick).to_task()))
    }

    fn made_by(name: Arc<str>, schedule: Schedule, make: Arc<Make>) -> Self {
        PeriodicTask { name, schedule, version: 1, missed: Missed::default(), make }
    }

    /// What happens to ticks that could not be published in time. Default: [`Missed::Skip`].
    pub fn missed(mut self, missed: Missed) -> Self {
        self.missed = missed;
        self
    }

    /// The version of the definition, which is part of the tasks' ids. Default: 1.
    ///
    /// It doesn't have to change with the schedule: ticks have different ids unless they are at the same time.
    /// Increment it if the new definition must also publish ticks that the earlier one has published. While processes
    /// of both versions are running, such a tick is executed once for each.
    pub fn version(mut self, version: u32) -> Self {
        self.version = version;
        self
    }

    pub(super) fn check(&self) -> Result<()> {
        let good = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if self.name.is_empty() || self.name.len() > MAX_NAME || !self.name.chars().all(good) {
            return Err(invalid(&self.name).with_advice(format!(
                "A name has 1 to {MAX_NAME} characters of `A-Z a-z \
                    0-9 . _ -`"
            )));
        }
        Ok(())
    }

    /// The task of a tick, with its id.
    pub(super) fn task(&self, time: Wall) -> Result<Task> {
        let id = timed_id(&self.name, self.version.into(), time)?;
        let tick = Tick { name: self.name.clone(), time, id };
        let mut task = (self.make)(&tick)?;
        if task.key().is_none() {
            task = task.with_key(tick.id.as_str().to_owned());
        }
        Ok(task.with_id(tick.id))
    }
}

pub(super) fn invalid(name: &str) -> Error {
    Error::not_applied(ErrorKind::Invalid, "add a periodic task").on(format!("`{name}`"))
}

impl fmt::Debug for PeriodicTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeriodicTask")
            .field("name", &self.name)
            .field("schedule", &self.schedule)
            .field("version", &self.version)
            .field("missed", &self.missed)
            .finish_non_exhaustive()
    }
}

/// One time of a schedule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tick {
    name: Arc<str>,
    time: Wall,
    id: TaskId,
}

impl Tick {
    /// The name of the periodic task.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The time of the tick, in whole milliseconds. It may be well in the past.
    #[must_use]
    pub fn time(&self) -> SystemTime {
        system_time(self.time)
    }

    /// The id of its task, for [`JobController`](crate::JobController): `<name>@<version>.<Unix time in ms>`.
    #[must_use]
    pub fn id(&self) -> &TaskId {
        &self.id
    }
}

/// What happens to ticks that could not be published within a minute of their time. See [Missed
/// ticks](super#missed-ticks).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Missed {
    /// They are skipped. Only the latest tick is published, and only if it is less than a minute old. With several
    /// ticks per minute, earlier ones are skipped once the next is due.
    #[default]
    Skip,
    /// The latest of them is published, if it is within the window.
    RunLast,
    /// All of them are published, oldest first.
    RunAll {
        /// The maximum age of published ticks. At most the window: [`Scheduler::add`](super::Scheduler::add) refuses
        /// more.
        within: Duration,
    },
}
