//! Typed tasks.

use super::{
    BoxError, Format,
    failure::chain,
    headers::{self, FORMAT_HEADER, KIND_HEADER, VERSION_HEADER},
};
use crate::{Error, ErrorKind, JobView, Result, Task};
use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

/// A type of task: its payload, and the name by which workers know it.
///
/// The payload is JSON unless [`FORMAT`](TaskType::FORMAT) says otherwise. Kind, version and format are text headers,
/// `task-kind`, `task-version` and `task-format`, so that programs in other languages can publish the same tasks.
/// A missing version means 1, a missing format `json`.
///
/// ```
/// use kafkaq::worker::TaskType;
///
/// #[derive(serde::Serialize, serde::Deserialize)]
/// struct SendEmail {
///     to: String,
/// }
///
/// impl TaskType for SendEmail {
///     const KIND: &'static str = "send_email";
/// }
/// ```
///
/// # Changing a type
/// A field that older payloads lack needs `#[serde(default)]` and no new version. For any other change increment
/// [`VERSION`](TaskType::VERSION) and implement [`upgrade`](TaskType::upgrade), then deploy all workers before the
/// first publisher: a worker rejects tasks of a newer version than its own. A change of format is such a change:
///
/// ```
/// use kafkaq::worker::{BoxError, Format, TaskType};
///
/// # #[derive(serde::Serialize, serde::Deserialize)]
/// # struct SendEmail { to: String }
/// # fn to_csv(_: &SendEmail) -> Vec<u8> { Vec::new() }
/// # fn from_csv(_: &[u8]) -> Result<SendEmail, BoxError> { Err("".into()) }
/// impl TaskType for SendEmail {
///     const KIND: &'static str = "send_email";
///     const VERSION: u16 = 2;
///     const FORMAT: Format = Format::Custom("csv");
///
///     fn encode(&self) -> Result<bytes::Bytes, BoxError> {
///         Ok(to_csv(self).into())
///     }
///
///     fn decode(payload: &[u8]) -> Result<Self, BoxError> {
///         from_csv(payload)
///     }
///
///     fn upgrade(_: u16, payload: &[u8]) -> Result<Self, BoxError> {
///         Format::Json.decode(payload) // version 1
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a task type",
    label = "a handler takes a context and a type that implements `TaskType`",
    note = "implement it: `impl TaskType for {Self} {{ const KIND: &'static str = \"...\"; }}`, and derive \
            `Serialize` and `Deserialize`"
)]
pub trait TaskType: Serialize + DeserializeOwned + Send + 'static {
    /// The permanent name of the type, in every program that publishes or executes it.
    const KIND: &'static str;
    /// Counts the incompatible changes of the payload.
    const VERSION: u16 = 1;
    /// The format of the payload.
    const FORMAT: Format = Format::Json;

    /// Encodes the payload.
    ///
    /// # Errors
    /// The encoder's error; nothing is published then.
    fn encode(&self) -> std::result::Result<Bytes, BoxError> {
        Self::FORMAT.encode(self)
    }

    /// Returns the task: payload and headers. For code that publishes a [`Task`]; otherwise
    /// [`enqueue`](crate::Queue::enqueue) the value.
    ///
    /// # Errors
    /// `Invalid` if the value can't be encoded.
    fn to_task(&self) -> Result<Task> {
        let payload = self.encode().map_err(|e| {
            Error::not_applied(ErrorKind::Invalid, "encode a task").on(Self::KIND).with_source(e)
        })?;
        let task = Task::new(payload)
            .with_header(KIND_HEADER, Self::KIND)
            .with_header(VERSION_HEADER, Self::VERSION.to_string());
        Ok(match Self::FORMAT {
            Format::Json => task,
            other => task.with_header(FORMAT_HEADER, other.name()),
        })
    }

    /// Decodes a payload of the current version.
    ///
    /// # Errors
    /// The decoder's error, with which the task is dead-lettered.
    fn decode(payload: &[u8]) -> std::result::Result<Self, BoxError> {
        Self::FORMAT.decode(payload)
    }

    /// Decodes a payload of an earlier version.
    ///
    /// # Errors
    /// By default, that such payloads can't be read. The task is dead-lettered with the error.
    fn upgrade(from: u16, payload: &[u8]) -> std::result::Result<Self, BoxError> {
        let _ = payload;
        Err(format!("version {from} of `{}` can't be read any more", Self::KIND).into())
    }
}

/// Decodes the payload of a task of this type.
///
/// # Errors
/// Why it can't be decoded, for the dead letter.
pub(super) fn decode<T: TaskType>(version: u16, job: &JobView) -> std::result::Result<T, String> {
    let (payload, format) = (job.payload(), headers::format(job.headers()));
    let decoded = match version {
        v if v == T::VERSION && format != T::FORMAT.name() => {
            Err(format!("its format is `{format}`, and this worker expects `{}`", T::FORMAT.name()).into())
        }
        v if v == T::VERSION => T::decode(payload),
        v if v < T::VERSION => T::upgrade(v, payload),
        v => Err(format!("version {v} is newer than {}, which this worker knows", T::VERSION).into()),
    };
    decoded.map_err(|e| format!("the payload of `{}` can't be read: {}", T::KIND, chain(&*e)))
}
