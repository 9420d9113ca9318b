//! An execution whose job was not handed out by a queue.

use crate::{
    JobView, LeaseToken, Task, TaskId,
    clock::{system_time, wall_now},
};
use kafkaq_core::{
    History, Partition, Position, Wall,
    machine::{Content, JobKey, Mono, Ready},
};
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

/// The duration of made-up leases.
const LEASE: Duration = Duration::from_secs(60);

/// The job data of an execution.
#[derive(Clone, Debug)]
pub(crate) struct FakeJob {
    pub(crate) task: Task,
    pub(crate) id: TaskId,
    pub(crate) attempt: u32,
    pub(crate) failures: u32,
    pub(crate) token: LeaseToken,
    /// The queue's name.
    pub(crate) queue: Arc<str>,
    published: Wall,
}

impl FakeJob {
    /// The first execution of a task.
    pub(crate) fn new(task: Task) -> Self {
        FakeJob {
            task,
            id: TaskId::from_parts("task".to_owned()),
            attempt: 1,
            failures: 0,
            token: LeaseToken { process: [1; 16], number: 1 },
            queue: "queue".into(),
            published: wall_now(),
        }
    }

    fn until(&self) -> Wall {
        self.published.plus(LEASE)
    }

    pub(crate) fn deadline(&self) -> SystemTime {
        system_time(self.until())
    }

    pub(crate) fn job(&self) -> JobView {
        let content = Content {
            id: self.id.clone(),
            key: self.task.key().cloned(),
            payload: Some(self.task.payload().clone()),
            headers: self.task.headers().clone(),
            published: self.published,
            origin: Position { partition: Partition::new("made-up", 0), offset: 0 },
        };
        JobView::fake(Ready {
            job: JobKey(0),
            content: Arc::new(content),
            attempt: self.attempt,
            failures: self.failures,
            history: History::new(),
            token: self.token,
            deadline: self.until(),
            renew_at: Mono(0),
            stale_at: Mono(0),
        })
    }
}
