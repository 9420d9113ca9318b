//! Ids that a publisher numbers, and how a store recognizes their keys, so that it can keep neighbours together.
//!
//! Such an id is a UUIDv7, `tttttttt-tttt-7x6b-nnnn-nnnnnnnnnnnn`: milliseconds since 1970, a random digit, the mark
//! `6b`, and after the two bits of the variant a number of 62 bits, which is incremented for each task of a publisher.
//!
//! The parts never change, since stores' layouts depend on them.

use crate::{Key, uuids::uuid_bytes};

const LEN: usize = 36;
/// The byte after the one with the version and a random digit.
const MARK: u8 = 0x6b;

/// The key of a numbered task, in parts. Few keys differ only in [`own`](NumberedKey::own): those of tasks to which one
/// publisher gave numbers of the same block of 256 within 65 seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NumberedKey<'a> {
    /// Everything but `own`: the part before its first piece, and the part between the two.
    pub shared: [&'a str; 2],
    /// Four digits of the time, and two of the number.
    pub own: [&'a str; 2],
}

impl Key {
    /// Returns the parts, if this is the lease of a task whose id a publisher numbered.
    #[must_use]
    pub fn numbered(&self) -> Option<NumberedKey<'_>> {
        let key = self.as_str();
        let (space, id) = key.split_at_checked(key.len().checked_sub(LEN)?)?;
        let is_task = space.starts_with("t/") && space.ends_with('/');
        if !is_task || !is_numbered(id) {
            return None;
        }
        let at = |place| space.len() + place;
        let parts =
            (key.get(..at(9))?, key.get(at(9)..at(13))?, key.get(at(13)..at(34))?, key.get(at(34)..)?);
        let (head, time, middle, number) = parts;
        Some(NumberedKey { shared: [head, middle], own: [time, number] })
    }
}

fn is_numbered(id: &str) -> bool {
    uuid_bytes(id).is_some_and(|uuid| uuid[6] >> 4 == 7 && uuid[7] == MARK)
}

#[cfg(feature = "machine")]
impl crate::TaskId {
    /// Returns whether it looks like an id that a publisher numbered. One in 256 UUIDv7s does, whoever generated it.
    #[doc(hidden)]
    #[must_use]
    pub fn is_numbered(&self) -> bool {
        is_numbered(self.as_str())
    }

    /// The id of a publisher's task. The lowest 62 bits of the number count, and four more distinguish publishers.
    #[doc(hidden)]
    #[must_use]
    pub fn numbered(at: crate::Wall, number: u128) -> Self {
        let mut id = ((u128::from(at.0) << 80) | (number & ((1 << 80) - 1))).to_be_bytes();
        id[6] = 0x70 | (id[6] & 0x0f);
        id[7] = MARK;
        id[8] = 0x80 | (id[8] & 0x3f);
        Self::of_uuid(id)
    }
}

#[cfg(feature = "machine")]
#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Keyspace, TaskId, Wall};
    use proptest::prelude::*;
    use std::collections::HashSet;

    fn key(id: &str) -> Key {
        Key::task(&Keyspace::new("emails", "kafkaq", "emails").unwrap(), &TaskId::new(id).unwrap())
    }

    #[test]
    fn ids_are_uuids_of_version_7_distinct_and_in_order() {
        let id = |now, n: u128| TaskId::numbered(Wall(now), u128::MAX.wrapping_add(n)).as_str().to_owned();
        let ids: Vec<_> = (1..1000).map(|n| id(1_700_000_000_000, n)).collect();
        assert_eq!(ids[1], "018bcfe5-6800-706b-8000-000000000001");
        assert_eq!(ids.iter().collect::<HashSet<_>>().len(), ids.len());
        assert!(ids.is_sorted() && id(1_700_000_000_001, 0) > ids[998]);
    }

    #[test]
    fn the_key_of_a_numbered_id_has_parts() {
        let key = key("018bcfe5-6800-7e6b-8123-0000000123ab");
        let parts = key.numbered().unwrap();
        assert_eq!(parts.shared, ["t/emails/kafkaq/018bcfe5-", "-7e6b-8123-0000000123"]);
        assert_eq!(parts.own, ["6800", "ab"]);
    }

    #[test]
    fn no_other_key_has_parts() {
        let id = "018bcfe5-6800-7e6b-8123-0000000123ab";
        for other in [
            &id[1..],
            &format!("x{id}"),
            &id.replace("-7e", "-4e"),
            &id.replace("6b", "6c"),
            "a",
            &id.to_uppercase(),
            &id.replace("ab", "zz"),
        ] {
            assert_eq!(key(other).numbered(), None, "{other}");
        }
        assert_eq!(key(&id.replace('-', "0")).numbered(), None);
        assert_eq!(Key::of(&["x", "emails", "kafkaq", id]).unwrap().numbered(), None);
        assert_eq!(Key::of(&[id]).unwrap().numbered(), None);
    }

    proptest! {
        #[test]
        fn every_numbered_id_is_recognized_and_its_parts_are_complete(at in 0..1_u64 << 48, number: u128) {
            let key = key(TaskId::numbered(Wall(at), number).as_str());
            let NumberedKey { shared: [head, middle], own: [time, digits] } = key.numbered().unwrap();
            prop_assert_eq!([head, time, middle, digits].concat(), key.as_str());
        }

        #[test]
        fn neighbours_share_all_but_their_own_part(at in 0..1_u64 << 48, number: u128, later in 0..256_u64) {
            let [a, b] = [(at & !0xffff, number & !0xff), ((at & !0xffff) | later, (number & !0xff) | u128::from(later))]
                .map(|(at, number)| key(TaskId::numbered(Wall(at), number).as_str()));
            prop_assert_eq!(a.numbered().unwrap().shared, b.numbered().unwrap().shared);
        }
    }
}
