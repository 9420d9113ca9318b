//! Record headers as the wire has them.

use bytes::Bytes;

/// The name of kafkaq's own header.
pub const HEADER: &str = "kafkaq";
/// The header with which other producers can set the task's id.
pub const ID_HEADER: &str = "kafkaq-id";

/// A record's headers: in order, names may repeat, values may be null.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(Vec<(Bytes, Option<Bytes>)>);

impl Headers {
    /// No headers.
    #[must_use]
    pub const fn new() -> Self {
        Headers(Vec::new())
    }

    /// Appends a header.
    pub fn push(&mut self, name: impl Into<Bytes>, value: Option<Bytes>) {
        // Most records have one, and a vector would allocate space for four.
        if self.0.capacity() == 0 {
            self.0.reserve_exact(1);
        }
        self.0.push((name.into(), value));
    }

    /// The value of the last header with this name, as Kafka's clients look it up. `None` for a null value, too.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Bytes> {
        self.find(name).flatten()
    }

    /// The last header with this name: `Some(None)` if its value is null.
    pub(crate) fn find(&self, name: &str) -> Option<Option<&Bytes>> {
        self.0.iter().rev().find(|(n, _)| n == name.as_bytes()).map(|(_, v)| v.as_ref())
    }

    /// Keeps the headers for which `keep` returns `true`.
    #[cfg(feature = "machine")]
    pub(crate) fn retain(&mut self, keep: impl Fn(&[u8], Option<&Bytes>) -> bool) {
        self.0.retain(|(n, v)| keep(n, v.as_ref()));
    }

    /// Iterates over all headers, in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&Bytes, Option<&Bytes>)> + ExactSizeIterator {
        self.0.iter().map(|(n, v)| (n, v.as_ref()))
    }

    /// The number of headers.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no headers.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The size of names and values in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.0.iter().map(|(n, v)| n.len() + v.as_ref().map_or(0, Bytes::len)).sum()
    }
}

impl FromIterator<(Bytes, Option<Bytes>)> for Headers {
    fn from_iter<I: IntoIterator<Item = (Bytes, Option<Bytes>)>>(headers: I) -> Self {
        Headers(headers.into_iter().collect())
    }
}

#[cfg(all(test, feature = "machine"))]
mod tests {
    use super::*;

    #[test]
    fn last_header_of_a_name_wins_and_retain_keeps_the_order() {
        let mut h = Headers::new();
        h.push("a", Some("1".into()));
        h.push("k", Some("old".into()));
        h.push("a", None);
        h.push("k", Some("new".into()));
        assert_eq!(h.get("k").unwrap(), "new");
        assert_eq!((h.find("a"), h.find("b")), (Some(None), None));
        h.retain(|name, _| name != b"k");
        assert_eq!(h.iter().map(|(_, v)| v.cloned()).collect::<Vec<_>>(), [Some("1".into()), None]);
    }
}
