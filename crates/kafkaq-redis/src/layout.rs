//! The layout of values: under their own key, or with their neighbours in a hash.
//!
//! A key with a time to live costs Redis 180 bytes besides name and value, and each command on it takes microseconds.
//! So the leases of up to 64 tasks that one publisher numbered consecutively share one hash, which Redis stores as a
//! list while it is small. It lives as long as the longest-lived of them; since its name contains the time, it doesn't
//! get new ones forever.
//!
//! This must never change: processes with different layouts would not see each other's leases.

use crate::slot;
use kafkaq_core::{Key, NumberedKey};

/// The name of a hash, after the store's prefix: a pattern of the keys whose values it has, such as
/// `t/q/g/018bcfe5-*-7e6b-8123-0000000123[8-b]*`. No key has such characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Hash<'a>([&'a str; 4]);

/// What stands for the pattern's `*` and `[..]*`.
pub(crate) type Field<'a> = [&'a str; 2];

impl<'a> Hash<'a> {
    pub(crate) fn parts(&self) -> [&'a str; 4] {
        self.0
    }
}

/// Returns the hash and the field of a key whose value may have neighbours.
pub(crate) fn in_hash(key: &Key) -> Option<(Hash<'_>, Field<'_>)> {
    let NumberedKey { shared: [head, middle], own, .. } = key.numbered()?;
    let group = match own[1].as_bytes().first()? {
        b'0'..=b'3' => "[0-3]*",
        b'4'..=b'7' => "[4-7]*",
        b'8' | b'9' | b'a' | b'b' => "[8-b]*",
        b'c'..=b'f' => "[c-f]*",
        _ => return None,
    };
    Some((Hash([head, "*", middle, group]), own))
}

/// The slot of the Redis key that has this key's value.
pub(crate) fn slot(prefix: &str, key: &Key) -> u16 {
    let parts = match in_hash(key) {
        Some((hash, _)) => hash.parts(),
        None => [key.as_str(), "", "", ""],
    };
    slot::slot([prefix].into_iter().chain(parts))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn key(id: &str) -> Key {
        Key::of(&["t", "emails", "kafkaq", id]).unwrap()
    }

    fn name_and_field(id: &str) -> Option<(String, String)> {
        let key = key(id);
        in_hash(&key).map(|(hash, field)| (hash.parts().concat(), field.concat()))
    }

    #[test]
    fn neighbours_share_a_hash_with_separate_fields() {
        let found = |n: u8, time| name_and_field(&format!("018bcfe5-{time}-7e6b-8123-0000000123{n:02x}"));
        let (mut names, mut all) = (HashSet::new(), HashSet::new());
        for n in 0..=255 {
            for time in ["0000", "ffff"] {
                let (name, field) = found(n, time).unwrap();
                names.insert(name.clone());
                assert!(all.insert((name, field)));
            }
        }
        assert_eq!(names.len(), 256 / 64);
        let first = ("t/emails/kafkaq/018bcfe5-*-7e6b-8123-0000000123[0-3]*".to_owned(), "000010".to_owned());
        assert_eq!(found(0x10, "0000"), Some(first));
    }

    #[test]
    fn other_keys_are_not_in_hashes() {
        for id in ["a", "018bcfe5-0000-7e6c-8123-000000012310", "018bcfe5-0000-7e6b-8123-0000000123A0"] {
            assert_eq!(name_and_field(id), None, "{id}");
        }
    }

    #[test]
    fn a_value_lies_in_the_slot_of_its_hash() {
        let [a, b] =
            ["018bcfe5-0000-7e6b-8123-000000012300", "018bcfe5-1111-7e6b-8123-00000001233f"].map(key);
        assert_eq!(slot("kafkaq/", &a), slot("kafkaq/", &b));
        let named = ["kafkaq/t/emails/kafkaq/018bcfe5-*-7e6b-8123-0000000123[0-3]*"];
        assert_eq!(slot("kafkaq/", &a), slot::slot(named));
        assert_eq!(slot("kafkaq/", &key("a")), slot::slot(["kafkaq/t/emails/kafkaq/a"]));
    }
}
