//! A task and its whole history, as the log and the store have seen it.

use crate::trace::{Us, WALL};
use bytes::Bytes;
use kafkaq_core::machine::JobKey;
use kafkaq_core::{Key, Keyspace, Lease, LeaseToken, TaskId, Wall};

pub(crate) type TaskNo = usize;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TaskKind {
    /// Published with an envelope.
    Fresh,
    /// Published with a delay.
    Delayed,
    /// Published by another producer, without any of kafkaq's headers.
    Foreign,
    /// Published by another producer that sets the task's id.
    Named,
    /// Published with a header that can't be decoded.
    Damaged,
    /// A copy of another queue's task, in the wait topic.
    Stranger,
}

impl TaskKind {
    /// Returns whether it is dead-lettered and never executed.
    pub(crate) fn is_undecodable(self) -> bool {
        matches!(self, TaskKind::Damaged | TaskKind::Stranger)
    }
}

/// A token that has been in the store.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) token: LeaseToken,
    pub(crate) attempt: u32,
    /// How often the task's value had been damaged when it was won.
    pub(crate) damage: u32,
    /// The latest deadline that was in the store.
    pub(crate) deadline: Wall,
    /// How many calls had met a fault when it was written there.
    pub(crate) faults: u64,
    pub(crate) idle: bool,
    pub(crate) done: bool,
    pub(crate) dead: bool,
    pub(crate) asked_done: bool,
    pub(crate) asked_reject: bool,
    /// How many dead letters of its task there were when it was rejected.
    pub(crate) letters: Option<u32>,
    /// Its worker has said that it failed.
    pub(crate) asked_fail: bool,
    /// A worker has had it.
    pub(crate) handed: bool,
    pub(crate) job: Option<JobKey>,
    /// The process whose worker has it.
    pub(crate) running: Option<usize>,
    /// It was ready without a lease in the store, and still has none.
    pub(crate) began_unleased: bool,
    pub(crate) unleased: bool,
    /// The machine wanted a swap under its token sent since it was ready.
    pub(crate) sent: bool,
    /// It came back from the driver untaken.
    pub(crate) returned: bool,
    /// Its worker has finished it without a lease, under this epoch of the record's partition.
    pub(crate) done_unleased: Option<u64>,
}

/// A copy in the wait topic.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Copied {
    pub(crate) cover: u32,
    pub(crate) due: Wall,
    pub(crate) at: Us,
    /// It waits for the end of a job.
    pub(crate) running: bool,
}

/// A task's whole history.
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) n: TaskNo,
    pub(crate) kind: TaskKind,
    pub(crate) id: Option<TaskId>,
    pub(crate) key: Option<Bytes>,
    pub(crate) payload: Bytes,
    pub(crate) poison: bool,
    /// The log takes no copy of it.
    pub(crate) refused: bool,
    pub(crate) delay: u64,
    /// Its producer sets an old timestamp.
    pub(crate) old: bool,
    pub(crate) due: Option<Wall>,
    pub(crate) publications: u32,
    pub(crate) acknowledged_at: Vec<Us>,
    pub(crate) first_timestamp: i64,
    pub(crate) store_key: Option<Key>,
    /// Its records were deleted before they were finished.
    pub(crate) deleted: bool,
    pub(crate) done: bool,
    pub(crate) cancelled: bool,
    pub(crate) dead: bool,
    pub(crate) rejected: bool,
    pub(crate) dead_records: u32,
    pub(crate) handed_out: u32,
    pub(crate) started_at: Us,
    pub(crate) copies: Vec<Copied>,
    /// The cover numbers of records that were forwarded unread.
    pub(crate) forwarded: Vec<u32>,
    /// The highest attempt that a record carries.
    pub(crate) attempt: u32,
    /// The highest attempt of an idle lease that was made where there was none.
    pub(crate) announced: u32,
    pub(crate) damage: u32,
    pub(crate) held: Vec<Held>,
    pub(crate) retries: u64,
    /// How many failures may count against its limit: retries and rejections that were requested, and expired leases.
    pub(crate) failures: u32,
}

impl Task {
    pub(crate) fn new(
        n: TaskNo,
        kind: TaskKind,
        poison: bool,
        delay: u64,
        old: bool,
        space: &Keyspace,
    ) -> Task {
        let id = match kind {
            TaskKind::Foreign | TaskKind::Damaged => None,
            // Only such ids are known to be generated.
            TaskKind::Fresh => Some(TaskId::numbered(Wall(WALL), n as u128)),
            _ => TaskId::new(format!("task-{n}")).ok(),
        };
        Task {
            n,
            kind,
            key: n.is_multiple_of(3).then(|| format!("key-{n}").into()),
            payload: format!("t{n}").into(),
            poison,
            refused: false,
            delay,
            old,
            store_key: id.as_ref().map(|id| Key::task(space, id)),
            id,
            due: None,
            publications: 0,
            acknowledged_at: Vec::new(),
            first_timestamp: 0,
            deleted: false,
            done: false,
            cancelled: false,
            dead: false,
            rejected: false,
            dead_records: 0,
            handed_out: 0,
            started_at: 0,
            copies: Vec::new(),
            forwarded: Vec::new(),
            attempt: 0,
            announced: 0,
            damage: 0,
            held: Vec::new(),
            retries: 0,
            failures: 0,
        }
    }

    /// Returns whether it was executed to its end, even if the store doesn't know.
    pub(crate) fn is_executed(&self) -> bool {
        self.held.iter().any(|h| h.done_unleased.is_some())
    }

    /// Returns whether it was done, cancelled or dead at some time.
    pub(crate) fn is_terminal(&self) -> bool {
        self.done || self.cancelled || self.dead
    }

    /// I1: returns whether a record of it with this cover number may be finished.
    pub(crate) fn is_covered(&self, cover: u32) -> bool {
        if self.kind.is_undecodable() {
            return self.dead_records > 0;
        }
        self.is_terminal() || self.deleted || self.copies.iter().any(|c| c.cover > cover)
    }

    pub(crate) fn holder(&mut self, token: LeaseToken) -> Option<&mut Held> {
        self.held.iter_mut().find(|h| h.token == token)
    }

    pub(crate) fn win(&mut self, lease: &Lease, faults: u64) {
        self.hold(lease.token, lease.attempt, lease.deadline, false, faults);
    }

    pub(crate) fn hold(
        &mut self,
        token: LeaseToken,
        attempt: u32,
        deadline: Wall,
        unleased: bool,
        faults: u64,
    ) {
        self.held.push(Held {
            token,
            attempt,
            damage: self.damage,
            deadline,
            faults,
            idle: false,
            done: false,
            dead: false,
            asked_done: false,
            asked_reject: false,
            letters: None,
            asked_fail: false,
            handed: false,
            job: None,
            running: None,
            began_unleased: unleased,
            unleased,
            sent: false,
            returned: false,
            done_unleased: None,
        });
    }
}
