//! All items, grouped by task: a task's items take turns to operate on its lease.

use super::{
    Content, Mono,
    item::{Commands, Copies, Item, Operation, Place, RecordState, Stage, StoreState},
    rule::{Meta, ObservedLease},
    slab::{Ref, Slab},
};
use crate::{History, Key, Keyspace, Position, TaskId};
use foldhash::fast::RandomState;
use std::{
    collections::{HashMap, VecDeque, hash_map},
    sync::Arc,
};

#[derive(Debug, Default)]
pub(super) struct Items {
    items: Slab<Item>,
    tasks: Slab<TaskEntry>,
    by_id: HashMap<TaskId, Ref, RandomState>,
}

/// All items of one task in this process.
#[derive(Debug)]
struct TaskEntry {
    id: TaskId,
    items: u32,
    key: TaskKey,
}

/// Which item may operate on the task's lease, and which ones wait for it.
#[derive(Debug)]
enum TaskKey {
    Free,
    Held { by: Ref, waiting: VecDeque<Ref> },
}

/// The initial state of an item.
#[derive(Debug)]
pub(super) struct NewItem {
    pub(super) content: Arc<Content>,
    pub(super) meta: Meta,
    pub(super) history: History,
    pub(super) place: Place,
    pub(super) at: Position,
    pub(super) copies: Copies,
}

impl Items {
    pub(super) fn insert(&mut self, new: NewItem, keyspace: &Keyspace, now: Mono) -> Ref {
        let NewItem { content, meta, history, place, at, copies } = new;
        let task = match self.by_id.entry(content.id.clone()) {
            hash_map::Entry::Occupied(known) => *known.get(),
            hash_map::Entry::Vacant(vacant) => {
                let entry = TaskEntry { id: vacant.key().clone(), items: 0, key: TaskKey::Free };
                *vacant.insert(self.tasks.insert(entry))
            }
        };
        if let Some(entry) = self.tasks.get_mut(task) {
            entry.items += 1;
        }
        self.items.insert(Item {
            key: Key::task(keyspace, &content.id),
            content,
            task,
            meta,
            at,
            since: now,
            record: RecordState::Here(place),
            stage: Stage::Considered,
            observed: ObservedLease::Missing,
            history,
            handed_out: false,
            store: StoreState::default(),
            append: None,
            last_error: None,
            copies,
            raise: None,
            commands: Commands::default(),
        })
    }

    /// Removes an item. Its key must have been released.
    pub(super) fn remove(&mut self, r: Ref) {
        let Some(task) = self.items.get(r).map(|item| item.task) else { return };
        self.items.discard(r);
        if let Some(entry) = self.tasks.get_mut(task) {
            entry.items -= 1;
            if entry.items == 0 {
                self.by_id.remove(&entry.id);
                self.tasks.discard(task);
            }
        }
    }

    pub(super) fn get(&self, r: Ref) -> Option<&Item> {
        self.items.get(r)
    }

    pub(super) fn get_mut(&mut self, r: Ref) -> Option<&mut Item> {
        self.items.get_mut(r)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Returns a snapshot of all items, for a loop that changes them.
    pub(super) fn refs(&self) -> Vec<Ref> {
        self.items.refs().collect()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Item> {
        self.items.refs().filter_map(|r| self.items.get(r))
    }

    /// Begins an operation. Returns whether it may be sent: otherwise it waits for the task's other items.
    #[inline]
    pub(super) fn begin(&mut self, r: Ref, mut operation: Operation) -> bool {
        let Some(item) = self.items.get_mut(r) else { return false };
        let Some(task) = self.tasks.get_mut(item.task) else { return false };
        debug_assert!(item.store.is_idle(), "one operation at a time");
        let may_send = match &mut task.key {
            TaskKey::Held { by, waiting } if *by != r => {
                waiting.push_back(r);
                operation.set_waiting();
                false
            }
            TaskKey::Held { .. } => true,
            TaskKey::Free => {
                task.key = TaskKey::Held { by: r, waiting: VecDeque::new() };
                true
            }
        };
        item.store.operation = Some(operation);
        may_send
    }

    /// Lets the task's other items begin an operation. Returns the one whose operation is to be sent now.
    pub(super) fn release_key(&mut self, r: Ref) -> Option<Ref> {
        let task = self.tasks.get_mut(self.items.get(r)?.task)?;
        let TaskKey::Held { by, waiting } = &mut task.key else { return None };
        if *by != r {
            return None;
        }
        while let Some(next) = waiting.pop_front() {
            // It may have been removed meanwhile.
            if let Some(operation) = self.items.get_mut(next).and_then(|item| item.store.operation.as_mut()) {
                operation.set_queued();
                *by = next;
                return Some(next);
            }
        }
        task.key = TaskKey::Free;
        None
    }

    /// Returns whether there is no task without an item.
    #[cfg(test)]
    pub(super) fn are_all_forgotten(&self) -> bool {
        self.items.is_empty() && self.tasks.is_empty() && self.by_id.is_empty()
    }
}
