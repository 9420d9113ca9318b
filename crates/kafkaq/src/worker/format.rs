//! Formats of payloads.

use super::BoxError;
use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

/// How the payload of a [`TaskType`](super::TaskType) is encoded. Its [name](Format::name) is in the task's header
/// `task-format`, unless it is JSON; a worker that expects another format dead-letters the task with that reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// JSON.
    Json,
    /// [MessagePack](https://msgpack.org), with structs as maps by field name, so fields can be added, as with JSON. It
    /// takes less space and time, above all for bytes (`serde_bytes`) and numbers.
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
    /// A custom format, by its name, for a type that implements [`encode`](super::TaskType::encode) and
    /// [`decode`](super::TaskType::decode).
    Custom(&'static str),
}

impl Format {
    /// Returns its name: `json`, `msgpack`, or that of the custom format.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Format::Json => "json",
            #[cfg(feature = "msgpack")]
            Format::MessagePack => "msgpack",
            Format::Custom(name) => name,
        }
    }

    /// Encodes a value.
    ///
    /// # Errors
    /// The encoder's error; for a custom format, that there is no encoder.
    pub fn encode<T: Serialize>(self, value: &T) -> Result<Bytes, BoxError> {
        match self {
            Format::Json => Ok(serde_json::to_vec(value)?.into()),
            #[cfg(feature = "msgpack")]
            Format::MessagePack => Ok(rmp_serde::to_vec_named(value)?.into()),
            Format::Custom(name) => {
                Err(format!("a type with the format `{name}` has to implement `encode`").into())
            }
        }
    }

    /// Decodes a value, for instance of an earlier version in [`upgrade`](super::TaskType::upgrade).
    ///
    /// # Errors
    /// The decoder's error, including one for leftover bytes; for a custom format, that there is no decoder.
    pub fn decode<T: DeserializeOwned>(self, payload: &[u8]) -> Result<T, BoxError> {
        match self {
            Format::Json => Ok(serde_json::from_slice(payload)?),
            #[cfg(feature = "msgpack")]
            Format::MessagePack => message_pack(payload),
            Format::Custom(name) => {
                Err(format!("a type with the format `{name}` has to implement `decode`").into())
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
        left => Err(format!("{left} bytes are left after the value").into()),
    }
}
