//! Tasks, as clients publish them.

use crate::{Error, ErrorKind, Headers, NewRecord, Result};
use bytes::Bytes;
use std::{fmt, sync::Arc, time::Duration};

/// The permanent id of one task: 1 to 128 bytes of UTF-8.
///
/// Publishing an id again while it is remembered adds nothing. To run the work again, use another id, such as
/// `report-2026-11-24`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId(Arc<str>);

impl TaskId {
    /// The maximum length of an id, in bytes.
    pub const MAX_LEN: usize = 128;

    /// # Errors
    /// `Invalid` if it is empty or too long.
    pub fn new(id: impl Into<Arc<str>>) -> Result<Self> {
        let id = id.into();
        if id.is_empty() || id.len() > Self::MAX_LEN {
            return Err(Error::not_applied(ErrorKind::Invalid, "make a task id")
                .on(format!("{} bytes", id.len()))
                .with_advice("An id has 1 to 128 bytes"));
        }
        Ok(TaskId(id))
    }

    /// An id that kafkaq generated and knows to be short enough.
    #[doc(hidden)]
    #[must_use]
    pub fn from_parts(id: impl Into<Arc<str>>) -> Self {
        let id = id.into();
        debug_assert!(!id.is_empty() && id.len() <= Self::MAX_LEN);
        TaskId(id)
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl AsRef<str> for TaskId {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl std::str::FromStr for TaskId {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self> {
        TaskId::new(s)
    }
}

impl TryFrom<&str> for TaskId {
    type Error = Error;
    fn try_from(s: &str) -> Result<Self> {
        TaskId::new(s)
    }
}

impl TryFrom<String> for TaskId {
    type Error = Error;
    fn try_from(s: String) -> Result<Self> {
        TaskId::new(s)
    }
}

/// A task to be published: a payload, and its attributes.
///
/// ```
/// # use kafkaq_core::{Task, TaskId};
/// # use std::time::Duration;
/// let task = Task::new("send the November report")
///     .with_id(TaskId::new("report-2026-11")?)
///     .with_key("customer-17")
///     .with_delay(Duration::from_secs(60));
/// # Ok::<(), kafkaq_core::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Task {
    payload: Bytes,
    key: Option<Bytes>,
    name: Name,
    headers: Headers,
    delay: Option<Duration>,
}

/// How a task gets its id.
#[derive(Clone, Debug, Default, PartialEq)]
enum Name {
    /// `publish` generates one.
    #[default]
    Made,
    Chosen(TaskId),
    /// `publish` derives it from a key and the current window of this length.
    OncePer(Bytes, Duration),
}

impl Task {
    /// Creates a task with just a payload.
    pub fn new(payload: impl Into<Bytes>) -> Self {
        Task { payload: payload.into(), ..Task::default() }
    }

    /// Sets the key. Tasks with the same key go to one partition, the one that Kafka's Java client would choose. This
    /// does not order them.
    #[must_use]
    pub fn with_key(mut self, key: impl Into<Bytes>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Sets the id. Publishing the same id again while it is remembered adds nothing. By default, `publish` generates a
    /// UUIDv7. An id from [`with_once_per`](Task::with_once_per) stands for its window, even if it is set here.
    #[must_use]
    pub fn with_id(mut self, id: TaskId) -> Self {
        self.name = Name::Chosen(id);
        self
    }

    /// Executes one of all tasks that are published with this key within a time window, in any process, at the end of
    /// the window. This replaces an id and a delay. It is also the task's [key](Task::with_key), unless that is set.
    ///
    /// No change is missed: if you change something and then publish, an execution follows that starts after the
    /// change. It is due at the latest one window plus twice the queue's `clock_skew` after the call; `clock_skew` has
    /// to cover the difference between the clocks of publishers and workers. Windows follow each other without a gap,
    /// and those of different keys end at different times. An execution that takes longer than a window may overlap
    /// with the next one.
    ///
    /// If the payloads differ, any of them may be executed. All publishers must use the same window. It has to be in
    /// whole milliseconds and, plus the queue's `clock_skew`, no longer than its `max_delay`; `publish` refuses others.
    /// If `publish` fails, publish the task again as it is.
    ///
    /// ```
    /// # use kafkaq_core::Task;
    /// # use std::time::Duration;
    /// let task = Task::new("recalculate").with_once_per("customer-17", Duration::from_secs(60));
    /// ```
    #[must_use]
    pub fn with_once_per(mut self, key: impl Into<Bytes>, window: Duration) -> Self {
        let key = key.into();
        self.key.get_or_insert_with(|| key.clone());
        self.name = Name::OncePer(key, window);
        self
    }

    /// Adds a header. Names that start with `kafkaq` are reserved and refused by `publish`.
    #[must_use]
    pub fn with_header(mut self, name: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        self.headers.push(name, Some(value.into()));
        self
    }

    /// Replaces all headers.
    #[must_use]
    pub fn with_headers(mut self, headers: Headers) -> Self {
        self.headers = headers;
        self
    }

    /// Sets a delay: the task is not executed before this long after `publish`.
    #[must_use]
    pub fn with_delay(mut self, delay: Duration) -> Self {
        self.delay = Some(delay);
        self
    }

    /// The task's record, without kafkaq's own header.
    #[doc(hidden)]
    #[must_use]
    pub fn into_record(self) -> NewRecord {
        NewRecord::new(self.key, Some(self.payload), self.headers)
    }

    /// The payload.
    #[must_use]
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// The key.
    #[must_use]
    pub fn key(&self) -> Option<&Bytes> {
        self.key.as_ref()
    }

    /// The id, if the caller chose one.
    #[must_use]
    pub fn id(&self) -> Option<&TaskId> {
        match &self.name {
            Name::Chosen(id) => Some(id),
            Name::Made | Name::OncePer(..) => None,
        }
    }

    /// The key and the window of [`with_once_per`](Task::with_once_per), if set.
    #[must_use]
    pub fn once_per(&self) -> Option<(&Bytes, Duration)> {
        match &self.name {
            Name::OncePer(key, window) => Some((key, *window)),
            Name::Made | Name::Chosen(_) => None,
        }
    }

    /// The user's headers.
    #[must_use]
    pub fn headers(&self) -> &Headers {
        &self.headers
    }

    /// The delay.
    #[must_use]
    pub fn delay(&self) -> Option<Duration> {
        self.delay
    }
}
