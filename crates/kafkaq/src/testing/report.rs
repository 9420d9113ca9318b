//! The outcomes of the tasks of a test.

use super::fail;
use crate::{TaskId, worker::TaskType};
use std::fmt;

/// What happened to a task.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// An execution completed the task.
    Done,
    /// An execution failed, and the task was retried.
    Retried {
        /// Why it failed.
        reason: String,
    },
    /// An execution snoozed the task.
    Snoozed,
    /// The task was dead-lettered.
    Dead {
        /// Why.
        reason: String,
    },
    /// The task was dropped, as done, since it was not started in time.
    Expired,
    /// The task was cancelled.
    Cancelled,
    /// An execution lost its lease.
    Lost,
    /// A stopping worker gave the task back.
    Released,
    /// The outcome of an execution was not confirmed.
    Unconfirmed,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::Done => f.write_str("done"),
            Event::Retried { reason } => write!(f, "retried ({reason})"),
            Event::Snoozed => f.write_str("snoozed"),
            Event::Dead { reason } => write!(f, "dead ({reason})"),
            Event::Expired => f.write_str("expired"),
            Event::Cancelled => f.write_str("cancelled"),
            Event::Lost => f.write_str("lease lost"),
            Event::Released => f.write_str("given back"),
            Event::Unconfirmed => f.write_str("unconfirmed"),
        }
    }
}

/// What happened to one task.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TaskReport {
    /// The task's id.
    pub id: TaskId,
    /// Its [`KIND`](TaskType::KIND).
    pub kind: Option<String>,
    /// What happened after it was published, in order.
    pub events: Vec<Event>,
}

impl TaskReport {
    fn has(&self, is_it: impl Fn(&Event) -> bool) -> bool {
        self.events.iter().any(is_it)
    }

    /// Why the task was dead-lettered, if it was.
    fn death(&self) -> Option<&str> {
        self.events.iter().find_map(|event| match event {
            Event::Dead { reason } => Some(&**reason),
            _ => None,
        })
    }
}

impl fmt::Display for TaskReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: published", self.kind.as_deref().unwrap_or("(no kind)"), self.id)?;
        self.events.iter().try_for_each(|event| write!(f, ", {event}"))
    }
}

/// The outcomes of the tasks of a [`Harness`](super::Harness) since its start. As text it has one line per task.
///
/// The assertions panic with the whole report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    tasks: Vec<TaskReport>,
}

impl Report {
    pub(super) fn new(tasks: Vec<TaskReport>) -> Self {
        Report { tasks }
    }

    /// Returns all tasks, in the order in which they were published.
    #[must_use]
    pub fn tasks(&self) -> &[TaskReport] {
        &self.tasks
    }

    /// Returns one task.
    #[must_use]
    pub fn task(&self, id: &TaskId) -> Option<&TaskReport> {
        self.tasks.iter().find(|task| task.id == *id)
    }

    /// Returns the tasks that were published.
    #[must_use]
    pub fn published(&self) -> Vec<&TaskId> {
        self.with(|_| true)
    }

    /// Returns the published tasks of one type.
    #[must_use]
    pub fn published_of<T: TaskType>(&self) -> Vec<&TaskId> {
        self.with(|task| task.kind.as_deref() == Some(T::KIND))
    }

    /// Returns the tasks that an execution completed.
    #[must_use]
    pub fn done(&self) -> Vec<&TaskId> {
        self.with(|task| task.has(|event| *event == Event::Done))
    }

    /// Returns the tasks that were retried at least once.
    #[must_use]
    pub fn retried(&self) -> Vec<&TaskId> {
        self.with(|task| task.has(|event| matches!(event, Event::Retried { .. })))
    }

    /// Returns the tasks that were snoozed at least once.
    #[must_use]
    pub fn snoozed(&self) -> Vec<&TaskId> {
        self.with(|task| task.has(|event| *event == Event::Snoozed))
    }

    /// Returns the dead-lettered tasks, with the reasons.
    #[must_use]
    pub fn dead(&self) -> Vec<(&TaskId, &str)> {
        self.tasks.iter().filter_map(|task| Some((&task.id, task.death()?))).collect()
    }

    fn with(&self, is_it: impl Fn(&TaskReport) -> bool) -> Vec<&TaskId> {
        self.tasks.iter().filter(|task| is_it(task)).map(|task| &task.id).collect()
    }

    /// Asserts that every published task is done.
    ///
    /// # Panics
    /// If one is not.
    #[track_caller]
    pub fn assert_all_done(&self) {
        let open = self.with(|task| !task.has(|event| *event == Event::Done));
        self.check(open.is_empty(), || format!("not all tasks are done: {open:?}"));
    }

    /// Asserts that a task is done.
    ///
    /// # Panics
    /// If it is not.
    #[track_caller]
    pub fn assert_done(&self, id: &TaskId) {
        self.check(self.done().contains(&id), || format!("the task {id} is not done"));
    }

    /// Asserts how many times a task was retried.
    ///
    /// # Panics
    /// If it was another number.
    #[track_caller]
    pub fn assert_retried(&self, id: &TaskId, times: usize) {
        let retried = self.count(id, |event| matches!(event, Event::Retried { .. }));
        self.check(retried == times, || format!("the task {id} was retried {retried} times, not {times}"));
    }

    /// Asserts how many times a task was snoozed.
    ///
    /// # Panics
    /// If it was another number.
    #[track_caller]
    pub fn assert_snoozed(&self, id: &TaskId, times: usize) {
        let snoozed = self.count(id, |event| *event == Event::Snoozed);
        self.check(snoozed == times, || format!("the task {id} was snoozed {snoozed} times, not {times}"));
    }

    /// Asserts that a task was dead-lettered for a reason that contains this text.
    ///
    /// # Panics
    /// If it was not, or for another reason.
    #[track_caller]
    pub fn assert_dead(&self, id: &TaskId, reason: &str) {
        let death = self.task(id).and_then(TaskReport::death);
        self.check(death.is_some_and(|why| why.contains(reason)), || match death {
            Some(why) => format!("the task {id} was dead-lettered because of `{why}`, not `{reason}`"),
            None => format!("the task {id} was not dead-lettered"),
        });
    }

    /// Asserts how many tasks of one type were published.
    ///
    /// # Panics
    /// If it was another number.
    #[track_caller]
    pub fn assert_published<T: TaskType>(&self, n: usize) {
        let published = self.published_of::<T>().len();
        self.check(published == n, || format!("{published} tasks of `{}` were published, not {n}", T::KIND));
    }

    fn count(&self, id: &TaskId, is_it: impl Fn(&Event) -> bool) -> usize {
        self.task(id).map_or(0, |task| task.events.iter().filter(|event| is_it(event)).count())
    }

    #[track_caller]
    fn check(&self, holds: bool, otherwise: impl FnOnce() -> String) {
        if !holds {
            fail(format_args!("{}\n{self}", otherwise()));
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.tasks.is_empty() {
            return f.write_str("  nothing was published");
        }
        let mut lines = self.tasks.iter();
        lines.next().map_or(Ok(()), |task| write!(f, "  {task}"))?;
        lines.try_for_each(|task| write!(f, "\n  {task}"))
    }
}
