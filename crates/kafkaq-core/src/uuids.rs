//! Converts UUIDs between their usual form and sixteen bytes.

use uuid::Uuid;

/// The bytes of an id that is a UUID in its usual form, as are all ids that `publish` generates.
pub(crate) fn uuid_bytes(id: &str) -> Option<[u8; 16]> {
    // Other forms of a UUID are other ids. Without an early exit, many bytes are compared at once.
    let is_usual = id.len() == 36 && id.bytes().fold(true, |all, b| all & !b.is_ascii_uppercase());
    Uuid::try_parse(id).ok().filter(|_| is_usual).map(Uuid::into_bytes)
}

#[cfg(feature = "machine")]
impl crate::TaskId {
    /// A UUID in its usual form.
    pub(crate) fn of_uuid(bytes: [u8; 16]) -> Self {
        let mut text = [0; 36];
        Self::from_parts(&*Uuid::from_bytes(bytes).hyphenated().encode_lower(&mut text))
    }
}
