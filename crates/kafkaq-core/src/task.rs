//! What a client publishes.

use crate::{Error, ErrorKind, Headers, NewRecord, Result};
use bytes::Bytes;
use std::{fmt, sync::Arc, time::Duration};

/// Names one task for good: 1 to 128 bytes of UTF-8.
///
/// Publishing an id again while it is remembered adds nothing. To have the work done again, use another id, such as
/// `report-2026-11-24`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId(Arc<str>);

impl TaskId {
    /// The longest id, in bytes.
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

    /// An id that kafkaq has made and knows to be short enough.
    #[doc(hidden)]
    #[must_use]
    pub fn from_parts(id: impl Into<Arc<str>>) -> Self {
        let id = id.into();
        debug_assert!(!id.is_empty() && id.len() <= Self::MAX_LEN);
        TaskId(id)
    }

    /// The id.
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

/// Work to be done: a payload, and what goes with it.
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

/// How a task comes by its id.
#[derive(Clone, Debug, Default, PartialEq)]
enum Name {
    /// `publish` makes one.
    #[default]
    Made,
    Chosen(TaskId),
    /// `publish` makes it of a key and the present window of that length.
    OncePer(Bytes, Duration),
}

impl Task {
    /// A task with a payload and nothing else.
    pub fn new(payload: impl Into<Bytes>) -> Self {
        Task { payload: payload.into(), ..Task::default() }
    }

    /// Tasks of one key go to one partition, the one that Kafka's Java client would choose. It does not order them.
    #[must_use]
    pub fn with_key(mut self, key: impl Into<Bytes>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Publishing the same id again while it is remembered adds nothing. Without one, `publish` makes a UUIDv7. The id that
    /// [`with_once_per`](Task::with_once_per) leads to stands for that window, also if it is chosen.
    #[must_use]
    pub fn with_id(mut self, id: TaskId) -> Self {
        self.name = Name::Chosen(id);
        self
    }

    /// Of all tasks that are published with this key within a window of time, in any process, one is executed, at the
    /// window's end. It takes the place of an id and of a delay. It is the task's [key](Task::with_key), too, unless that
    /// is set.
    ///
    /// No change is missed: if you change something and publish after it, an execution follows that begins after the
    /// change. It is due one window after the call at the latest, and the queue's `clock_skew` twice, which has to cover how
    /// far the clocks of publishers and workers are apart. Windows follow each other without a gap, and those of different
    /// keys end at different times. An execution that takes longer than a window may overlap with the next one.
    ///
    /// If their payloads differ, any of them may be the one. All publishers must give the same window. It is in whole
    /// milliseconds, and with the queue's `clock_skew` it is no longer than its `max_delay`; `publish` refuses others. If
    /// `publish` fails, publish the task again as it is.
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

    /// Adds a header. Names that begin with `kafkaq` are kafkaq's own and are refused by `publish`.
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

    /// Is not executed before this long after `publish`.
    #[must_use]
    pub fn with_delay(mut self, delay: Duration) -> Self {
        self.delay = Some(delay);
        self
    }

    /// The record that carries it, still without kafkaq's own header.
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

    /// The id, where the caller chose one.
    #[must_use]
    pub fn id(&self) -> Option<&TaskId> {
        match &self.name {
            Name::Chosen(id) => Some(id),
            Name::Made | Name::OncePer(..) => None,
        }
    }

    /// The key and the window of which one task is executed, where the caller chose that.
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
