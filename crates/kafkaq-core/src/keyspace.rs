//! The keys of leases.

use crate::{
    Error, ErrorKind, Key, Result, TaskId,
    key::{escape_into, escape_text_into},
};
use std::{cell::RefCell, sync::Arc};

/// The keys of the leases of one queue and group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keyspace(Arc<str>);

impl Keyspace {
    /// The maximum length of a queue name, in bytes: leaves room for `.<group>.wait` in a topic's 249.
    pub const MAX_QUEUE: usize = 120;
    /// The maximum length of a group name, in bytes.
    pub const MAX_GROUP: usize = 60;

    /// The task topic is part of it: queues with the same name and different topics have separate tasks.
    ///
    /// # Errors
    /// `Invalid` if a name is empty, too long, or has a character that a topic's name can't have. A group's name has no
    /// dot, so that queue `a` with group `b.c` can't collide with queue `a.b` with group `c`. A queue's name has no two
    /// dots in a row and none at its end, since consumer groups are called `<queue>..<topic>.<group>`.
    pub fn new(queue: &str, group: &str, task_topic: &str) -> Result<Self> {
        let topic_char = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let invalid = |what: String| Err(Error::not_applied(ErrorKind::Invalid, "check the names").on(what));
        if queue.is_empty() || queue.len() > Self::MAX_QUEUE || !queue.chars().all(topic_char) {
            return invalid(format!(
                "queue `{queue}`: a name has 1 to {} characters of A-Z a-z 0-9 . _ -",
                Self::MAX_QUEUE
            ));
        }
        if queue.contains("..") || queue.ends_with('.') {
            return invalid(format!("queue `{queue}`: a name has no two dots in a row, and none at its end"));
        }
        let group_char = |c: char| topic_char(c) && c != '.';
        if group.is_empty() || group.len() > Self::MAX_GROUP || !group.chars().all(group_char) {
            return invalid(format!(
                "group `{group}`: a name has 1 to {} characters of A-Z a-z 0-9 _ - and no dot",
                Self::MAX_GROUP
            ));
        }
        let mut space = String::from("t/");
        escape_text_into(&mut space, queue);
        if task_topic != queue {
            // An escaped `@`: no name can contain one.
            space.push_str("%40");
            escape_text_into(&mut space, task_topic);
        }
        space.push('/');
        escape_text_into(&mut space, group);
        space.push('/');
        Ok(Keyspace(space.into()))
    }
}

impl Key {
    /// `t/<queue>/<group>/<id>`, or `t/<queue>%40<topic>/…` if the task topic's name differs from the queue's: the
    /// lease of a task.
    #[must_use]
    pub fn task(space: &Keyspace, id: &TaskId) -> Key {
        // One allocation instead of two: there is a key for every task.
        thread_local!(static SCRATCH: RefCell<String> = const { RefCell::new(String::new()) });
        SCRATCH.with_borrow_mut(|key| {
            key.clear();
            key.push_str(&space.0);
            escape_text_into(key, id.as_str());
            Key(key.as_str().into())
        })
    }

    /// The maximum length of a name for [`Key::lock`], in bytes.
    pub const MAX_LOCK: usize = 64;

    /// `x/<queue>/<group>/<name>`, with the task topic if its name differs from the queue's: a lock shared by the tasks
    /// of one queue and group.
    ///
    /// # Errors
    /// `Invalid` unless it has 1 to [`Key::MAX_LOCK`] bytes.
    pub fn lock(space: &Keyspace, name: &[u8]) -> Result<Key> {
        if name.is_empty() || name.len() > Self::MAX_LOCK {
            let e = Error::not_applied(ErrorKind::Invalid, "lock a key").on(format!("{} bytes", name.len()));
            return Err(e.with_advice(format!("The name of a lock has 1 to {} bytes", Self::MAX_LOCK)));
        }
        let mut key = String::from("x");
        key.push_str(&space.0[1..]);
        escape_into(&mut key, name);
        Ok(Key(key.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn task_key(id: &str) -> Key {
        Key::task(&Keyspace::new("emails", "kafkaq", "emails").unwrap(), &TaskId::new(id).unwrap())
    }

    #[test]
    fn segments_are_escaped() {
        assert_eq!(task_key("a/b c").as_str(), "t/emails/kafkaq/a%2Fb%20c");
        assert_eq!(task_key("..").as_str(), "t/emails/kafkaq/%2E%2E");
    }

    #[test]
    fn queues_with_one_name_and_different_topics_have_separate_leases() {
        let id = TaskId::new("report").unwrap();
        let key = |topic| Key::task(&Keyspace::new("emails", "g", topic).unwrap(), &id);
        assert_eq!(key("emails").as_str(), "t/emails/g/report");
        assert_eq!(key("staging.emails").as_str(), "t/emails%40staging.emails/g/report");
    }

    #[test]
    fn locks_lie_beside_the_leases_of_their_queue() {
        let key =
            |topic, name: &[u8]| Key::lock(&Keyspace::new("emails", "g", topic).unwrap(), name).unwrap();
        assert_eq!(key("emails", b"a/b").as_str(), "x/emails/g/a%2Fb");
        assert_eq!(key("staging.emails", b"\xff.").as_str(), "x/emails%40staging.emails/g/%FF.");
        let (queue, group, topic) = ("q".repeat(120), "g".repeat(60), "t".repeat(249));
        let longest = Key::lock(&Keyspace::new(&queue, &group, &topic).unwrap(), &[0xff; Key::MAX_LOCK]);
        assert!(longest.unwrap().as_str().len() <= Key::MAX_LEN);
        let space = Keyspace::new("emails", "g", "emails").unwrap();
        for name in [&b""[..], &[1; Key::MAX_LOCK + 1]] {
            assert_eq!(Key::lock(&space, name).unwrap_err().kind(), ErrorKind::Invalid);
        }
    }

    #[test]
    fn names_that_could_collide_are_refused() {
        for (queue, group) in [("", "g"), ("q", ""), ("q", "a.b"), ("a/b", "g"), ("q", &"g".repeat(61))] {
            assert_eq!(
                Keyspace::new(queue, group, queue).unwrap_err().kind(),
                ErrorKind::Invalid,
                "{queue} {group}"
            );
        }
    }

    proptest! {
        #[test]
        fn keys_are_distinct_bounded_and_clean(a in "\\PC{1,32}", b in "\\PC{1,32}") {
            let (ka, kb) = (task_key(&a), task_key(&b));
            prop_assert_eq!(a == b, ka == kb);
            prop_assert!(ka.as_str().len() <= Key::MAX_LEN);
            prop_assert!(ka.as_str().bytes().all(|c| c.is_ascii_alphanumeric() || b"._~-/%".contains(&c)));
            prop_assert_eq!(ka.as_str().split('/').count(), 4);
        }
    }
}
