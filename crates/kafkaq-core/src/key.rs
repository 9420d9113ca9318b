//! Keys of the store.

use crate::{Error, ErrorKind, Partition, Result};
use std::{fmt, sync::Arc};

/// A key of the store. kafkaq creates them; [`Key::of`] is for tests and tools.
///
/// Every byte is one of `A-Z a-z 0-9 . _ ~ - / %`; `/` separates the segments, none of which is empty, `.` or
/// `..`. It has at most [`Key::MAX_LEN`] bytes. A store may add a prefix of its own.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(pub(crate) Arc<str>);

impl Key {
    /// The maximum length of a key, in bytes.
    pub const MAX_LEN: usize = 840;

    /// Creates a key from segments; characters that are not allowed in a key are escaped.
    ///
    /// # Errors
    /// `Invalid` if a segment is empty or there is none, and if the key is too long.
    pub fn of(segments: &[&str]) -> Result<Key> {
        let mut key = String::new();
        for segment in segments {
            key.push_str(if key.is_empty() { "" } else { "/" });
            escape_text_into(&mut key, segment);
        }
        if segments.is_empty() || segments.contains(&"") || key.len() > Key::MAX_LEN {
            let e = Error::not_applied(ErrorKind::Invalid, "make a key").on(format!("{segments:?}"));
            return Err(e.with_advice(
                "A key has at least one segment, none of them empty, and at most \
                Key::MAX_LEN bytes",
            ));
        }
        Ok(Key(key.into()))
    }

    /// `p/<group>/<topic>/<n>`: who reads a partition, and its cursor.
    #[must_use]
    pub fn partition(group: &str, partition: &Partition) -> Key {
        let mut key = String::from("p/");
        escape_text_into(&mut key, group);
        key.push('/');
        escape_text_into(&mut key, &partition.topic);
        key.push_str(&format!("/{}", partition.index));
        Key(key.into())
    }

    /// Returns the whole key.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Percent-escapes one segment. `.` and `..` are escaped too, since they have a meaning in paths.
pub(crate) fn escape_into(out: &mut String, segment: &[u8]) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let dots = is_dots(segment);
    for &b in segment {
        if is_plain(b) && !dots {
            out.push(b as char);
        } else {
            out.push('%');
            out.push(HEX[usize::from(b >> 4)] as char);
            out.push(HEX[usize::from(b & 15)] as char);
        }
    }
}

/// Like [`escape_into`], for text, which rarely needs escaping.
pub(crate) fn escape_text_into(out: &mut String, segment: &str) {
    let bytes = segment.as_bytes();
    // Without an early exit, many bytes are compared at once.
    let stands = bytes.iter().fold(true, |all, b| all & is_plain(*b));
    if stands && !is_dots(bytes) { out.push_str(segment) } else { escape_into(out, bytes) }
}

fn is_plain(b: u8) -> bool {
    b.is_ascii_alphanumeric() | matches!(b, b'_' | b'~' | b'-' | b'.')
}

fn is_dots(segment: &[u8]) -> bool {
    matches!(segment, b"." | b"..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_escaped() {
        assert_eq!(Key::partition("g", &Partition::new("a/b c", 7)).as_str(), "p/g/a%2Fb%20c/7");
        assert_eq!(Key::partition("g", &Partition::new("..", 7)).as_str(), "p/g/%2E%2E/7");
    }

    #[test]
    fn a_key_of_segments_is_one_that_kafkaq_makes() {
        let made = Key::of(&["p", "g", "a/b c", "7"]).unwrap();
        assert_eq!(made, Key::partition("g", &Partition::new("a/b c", 7)));
        let longest = "a".repeat(Key::MAX_LEN);
        assert_eq!(Key::of(&[&longest]).unwrap().as_str(), longest);
        for segments in [&[][..], &[""], &["a", ""], &[&longest, "b"]] {
            assert_eq!(Key::of(segments).unwrap_err().kind(), ErrorKind::Invalid, "{segments:?}");
        }
    }
}
