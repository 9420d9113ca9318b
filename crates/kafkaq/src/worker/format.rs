//! Formats of payloads.

use super::BoxError;
use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

/// How the payload of a [`TaskType`](super::TaskType) is written. Its [name](Format::name) stands in the task's header
/// `task-format`, unless it is JSON; a worker that expects another one sends the task to the dead letters, and says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// JSON.
    Json,
    /// [MessagePack](https://msgpack.org), structs as maps by the names of their fields: so fields may be added, as with
    /// JSON. It takes less space and time, above all for bytes (`serde_bytes`) and numbers.
    ///
    /// ```
    /// use kafkaq::worker::{Format, TaskType};
    ///
    /// #[derive(serde::Serialize, serde::Deserialize)]
    /// struct Resize {
    ///     image: u64,
    ///     width: u32,
    /// }
    ///
    /// impl TaskType for Resize {
    ///     const KIND: &'static str = "resize";
    ///     const FORMAT: Format = Format::MessagePack;
    /// }
    /// ```
    #[cfg(feature = "msgpack")]
    MessagePack,
    /// A format of your own, by its name, for a type that implements [`encode`](super::TaskType::encode) and
    /// [`decode`](super::TaskType::decode).
    Custom(&'static str),
}

impl Format {
    /// Returns its name: `json`, `msgpack`, or that of your own.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Format::Json => "json",
            #[cfg(feature = "msgpack")]
            Format::MessagePack => "msgpack",
            Format::Custom(name) => name,
        }
    }

    /// Writes a value.
    ///
    /// # Errors
    /// What the encoder says; for a custom format, that there is none.
    pub fn encode<T: Serialize>(self, value: &T) -> Result<Bytes, BoxError> {
        match self {
            Format::Json => Ok(serde_json::to_vec(value)?.into()),
            #[cfg(feature = "msgpack")]
            Format::MessagePack => Ok(rmp_serde::to_vec_named(value)?.into()),
            Format::Custom(name) => {
                Err(format!("a type of the format `{name}` has to implement `encode`").into())
            }
        }
    }

    /// Reads a value, for instance one of an earlier version in [`upgrade`](super::TaskType::upgrade).
    ///
    /// # Errors
    /// What the decoder says, also if bytes are left; for a custom format, that there is none.
    pub fn decode<T: DeserializeOwned>(self, payload: &[u8]) -> Result<T, BoxError> {
        match self {
            Format::Json => Ok(serde_json::from_slice(payload)?),
            #[cfg(feature = "msgpack")]
            Format::MessagePack => message_pack(payload),
            Format::Custom(name) => {
                Err(format!("a type of the format `{name}` has to implement `decode`").into())
            }
        }
    }
}

#[cfg(feature = "msgpack")]
fn message_pack<T: DeserializeOwned>(payload: &[u8]) -> Result<T, BoxError> {
    let mut decoder = rmp_serde::Deserializer::new(std::io::Cursor::new(payload));
    let value = T::deserialize(&mut decoder)?;
    match payload.len().saturating_sub(usize::try_from(decoder.position())?) {
        0 => Ok(value),
        left => Err(format!("{left} bytes are left behind it").into()),
    }
}
