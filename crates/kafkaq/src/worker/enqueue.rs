//! Publishes typed tasks.

use super::{
    headers::{DEAD, EXPIRED_HEADER, EXPIRES_HEADER, KIND_HEADER},
    typed::TaskType,
};
use crate::{Error, ErrorKind, Publisher, Queue, Result, Task, TaskId, clock::system_now};
use bytes::Bytes;
use std::{
    future::{Future, IntoFuture},
    pin::Pin,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Where a task is enqueued.
#[derive(Clone, Debug)]
pub(super) enum Target {
    Publisher(Publisher),
    /// A list, in tests.
    #[cfg(feature = "testing")]
    Collected(super::direct::Collected),
}

/// A task that is about to be published. Await it to publish it.
///
/// *Cancel-safety:* as for [`Publisher::publish`].
#[derive(Debug)]
#[must_use = "nothing is published until this is awaited"]
pub struct Enqueue {
    target: Target,
    task: Result<Task>,
}

impl Enqueue {
    pub(super) fn new<T: TaskType>(target: Target, value: &T) -> Self {
        Enqueue { target, task: value.to_task() }
    }

    pub(super) fn payload(&self) -> Option<&Bytes> {
        self.task.as_ref().ok().map(Task::payload)
    }

    fn with(mut self, change: impl FnOnce(Task) -> Task) -> Self {
        self.task = self.task.map(change);
        self
    }

    /// Sets the task's id: publishing the same id again while it is remembered adds nothing.
    pub fn id(self, id: TaskId) -> Self {
        self.with(|task| task.with_id(id))
    }

    /// Of all tasks of this kind that are enqueued with this key within a time window, executes one, at the end of the
    /// window: see [`Task::with_once_per`]. Useful for work that refreshes something after many changes.
    ///
    /// ```
    /// # #[derive(serde::Serialize, serde::Deserialize)]
    /// # struct Recalculate { customer: u32 }
    /// # impl kafkaq::worker::TaskType for Recalculate { const KIND: &'static str = "recalculate"; }
    /// # async fn order_came_in(queue: kafkaq::Queue) -> kafkaq::Result<()> {
    /// let minute = std::time::Duration::from_secs(60);
    /// queue.enqueue(Recalculate { customer: 17 }).once_per("customer-17", minute).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// It saves executions, not publishing: each call costs as much as a delayed task. That is a record and, while it
    /// waits in the log, a copy of it plus a read and a swap in the store, up to three times per power of four seconds;
    /// measured with windows of 10 s to 10 min, one to eight times. The window is the one in which the task is
    /// published. If payloads differ, it is unspecified which one is executed.
    pub fn once_per(self, key: impl Into<Bytes>, window: Duration) -> Self {
        let key = key.into();
        self.with(|task| {
            let kind = task.headers().get(KIND_HEADER).cloned().unwrap_or_default();
            // With its length, so that kind and key can't be confused.
            let mut both = (kind.len() as u64).to_be_bytes().to_vec();
            both.extend_from_slice(&kind);
            both.extend_from_slice(&key);
            let task = if task.key().is_none() { task.with_key(key) } else { task };
            task.with_once_per(both, window)
        })
    }

    /// Sets the key: tasks with the same key go to the same partition.
    pub fn key(self, key: impl Into<Bytes>) -> Self {
        self.with(|task| task.with_key(key))
    }

    /// Adds a header.
    pub fn header(self, name: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        self.with(|task| task.with_header(name, value))
    }

    /// Executes it no earlier than this long after it was published.
    pub fn delay(self, delay: Duration) -> Self {
        self.with(|task| task.with_delay(delay))
    }

    /// Executes it no earlier than at this time, by the clock of this machine. A time in the past means now.
    pub fn at(self, at: SystemTime) -> Self {
        self.delay(at.duration_since(system_now()).unwrap_or_default())
    }

    /// Drops the task, as done, if it is first handed out after this time, by the worker's clock. A task that was
    /// handed out before is still executed again when due. Only a [`Worker`](super::Worker) checks this.
    pub fn expires(self, at: SystemTime) -> Self {
        let ms = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        self.header(EXPIRES_HEADER, ms.to_string())
    }

    /// Like [`expires`](Enqueue::expires), but the task is dead-lettered.
    pub fn expires_to_dead_letter(self, at: SystemTime) -> Self {
        self.expires(at).header(EXPIRED_HEADER, DEAD)
    }

    /// The task as it would be published, for [`Publisher::publish_many`].
    ///
    /// # Errors
    /// `Invalid` if the value can't be encoded.
    pub fn into_task(self) -> Result<Task> {
        self.task
    }
}

impl IntoFuture for Enqueue {
    type Output = Result<TaskId>;
    type IntoFuture = Pin<Box<dyn Future<Output = Result<TaskId>> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            match self.target {
                Target::Publisher(publisher) => publisher.publish(self.task?).await,
                #[cfg(feature = "testing")]
                Target::Collected(collected) => collected.add(self.task?).await,
            }
        })
    }
}

impl Publisher {
    /// Publishes a typed task.
    ///
    /// ```
    /// use kafkaq::{Queue, TaskId, worker::TaskType};
    /// use std::time::Duration;
    ///
    /// #[derive(serde::Serialize, serde::Deserialize)]
    /// struct SendEmail {
    ///     to: String,
    /// }
    ///
    /// impl TaskType for SendEmail {
    ///     const KIND: &'static str = "send_email";
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> kafkaq::Result<()> {
    /// let queue = Queue::builder("emails").build().await?;
    /// queue.enqueue(SendEmail { to: "ada@example.org".into() }).await?;
    ///
    /// let reminder = SendEmail { to: "ada@example.org".into() };
    /// queue.enqueue(reminder).delay(Duration::from_secs(3600)).id(TaskId::new("reminder-17")?).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn enqueue<T: TaskType>(&self, value: T) -> Enqueue {
        Enqueue::new(Target::Publisher(self.clone()), &value)
    }

    /// Publishes tasks of one type in few requests. Returns one outcome per task, in the same order.
    ///
    /// *Cancel-safety:* as for [`publish_many`](Publisher::publish_many).
    pub async fn enqueue_many<T: TaskType>(
        &self,
        values: impl IntoIterator<Item = T>,
    ) -> Vec<Result<TaskId>> {
        let (mut tasks, mut refused) = (Vec::new(), Vec::new());
        for value in values {
            match value.to_task() {
                Ok(task) => {
                    tasks.push(task);
                    refused.push(None);
                }
                Err(e) => refused.push(Some(e)),
            }
        }
        let mut published = self.publish_many(tasks).await.into_iter();
        let gone = || Err(Error::unknown(ErrorKind::Closed, "publish"));
        let outcome = |refused: Option<Error>| match refused {
            Some(e) => Err(e),
            None => published.next().unwrap_or_else(gone),
        };
        refused.into_iter().map(outcome).collect()
    }
}

impl Queue {
    /// Publishes a typed task: see [`Publisher::enqueue`].
    pub fn enqueue<T: TaskType>(&self, value: T) -> Enqueue {
        Enqueue::new(Target::Publisher(self.publisher()), &value)
    }

    /// Publishes tasks of one type: see [`Publisher::enqueue_many`].
    pub async fn enqueue_many<T: TaskType>(
        &self,
        values: impl IntoIterator<Item = T>,
    ) -> Vec<Result<TaskId>> {
        self.publisher().enqueue_many(values).await
    }
}
