//! Tasks with a type.

use super::{
    BoxError,
    failure::chain,
    headers::{KIND_HEADER, VERSION_HEADER},
};
use crate::{Error, ErrorKind, Result, Task};
use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

/// A type of task: what the payload means, and by which name workers know it.
///
/// The payload is JSON unless [`encode`](TaskType::encode) and [`decode`](TaskType::decode) say otherwise. Kind and
/// version stand in the headers `task-kind` and `task-version` as text, so that programs in other languages can
/// publish the same tasks.
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
/// A field that older payloads lack needs `#[serde(default)]` and no new version. For any other change raise
/// [`VERSION`](TaskType::VERSION) and write [`upgrade`](TaskType::upgrade), then deploy all workers before the first
/// publisher: a worker rejects tasks of a newer version than its own.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a type of task",
    label = "a handler takes a context and a type that implements `TaskType`",
    note = "implement it: `impl TaskType for {Self} {{ const KIND: &'static str = \"...\"; }}`, and derive \
            `Serialize` and `Deserialize`"
)]
pub trait TaskType: Serialize + DeserializeOwned + Send + 'static {
    /// Names the type for good, in every program that publishes or executes it.
    const KIND: &'static str;
    /// Counts the incompatible changes of the payload.
    const VERSION: u16 = 1;

    /// Returns the payload.
    ///
    /// # Errors
    /// What the encoder says; nothing is published then.
    fn encode(&self) -> std::result::Result<Bytes, BoxError> {
        Ok(serde_json::to_vec(self)?.into())
    }

    /// Returns the task: payload and headers. For whatever publishes a [`Task`]; others
    /// [`enqueue`](crate::Queue::enqueue) the value.
    ///
    /// # Errors
    /// `Invalid` when the value can't be encoded.
    fn to_task(&self) -> Result<Task> {
        let payload = self.encode().map_err(|e| {
            Error::not_applied(ErrorKind::Invalid, "encode a task").on(Self::KIND).with_source(e)
        })?;
        Ok(Task::new(payload)
            .with_header(KIND_HEADER, Self::KIND)
            .with_header(VERSION_HEADER, Self::VERSION.to_string()))
    }

    /// Reads a payload of the present version.
    ///
    /// # Errors
    /// What the decoder says. The task goes to the dead letters with it.
    fn decode(payload: &[u8]) -> std::result::Result<Self, BoxError> {
        Ok(serde_json::from_slice(payload)?)
    }

    /// Reads a payload of an earlier version.
    ///
    /// # Errors
    /// Unless it is implemented, that there is no way to read it. The task goes to the dead letters with it.
    fn upgrade(from: u16, payload: &[u8]) -> std::result::Result<Self, BoxError> {
        let _ = payload;
        Err(format!("version {from} of `{}` can't be read any more", Self::KIND).into())
    }
}

/// Reads the payload of a task of this type.
///
/// # Errors
/// Why it can't be read, for the dead letter.
pub(super) fn decode<T: TaskType>(version: u16, payload: &[u8]) -> std::result::Result<T, String> {
    let decoded = match version {
        v if v == T::VERSION => T::decode(payload),
        v if v < T::VERSION => T::upgrade(v, payload),
        v => Err(format!("version {v} is newer than {}, which this worker knows", T::VERSION).into()),
    };
    decoded.map_err(|e| format!("the payload of `{}` can't be read: {}", T::KIND, chain(&*e)))
}
