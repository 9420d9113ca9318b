//! The windows of all assignments, and the instructions to the consumer that follow from them.

use super::{
    FlowControl, Mono,
    config::Config,
    item::Place,
    slab::{Ref, Slab},
    window::Window,
};
use crate::{Assignment, Partition, Wall};
use std::collections::{HashMap, VecDeque};

#[derive(Debug, Default)]
pub(super) struct Windows {
    slab: Slab<Window>,
    by_assignment: HashMap<Assignment, Ref>,
    /// All windows, in the order in which they were assigned.
    order: Vec<Ref>,
    /// The index in `order` of the window from which records were last taken, and how many in a row.
    last_read: usize,
    taken: usize,
    flow: VecDeque<(Assignment, FlowControl)>,
    reassigns: Vec<Assignment>,
}

impl Windows {
    pub(super) fn insert(&mut self, assignment: Assignment, is_lane: bool, now: Mono) {
        let w = self.slab.insert(Window::new(assignment.clone(), is_lane, now));
        self.by_assignment.insert(assignment, w);
        self.order.push(w);
    }

    pub(super) fn remove(&mut self, w: Ref) -> Option<Window> {
        let window = self.slab.remove(w)?;
        self.by_assignment.remove(&window.assignment);
        self.order.retain(|o| *o != w);
        Some(window)
    }

    pub(super) fn get(&self, w: Ref) -> Option<&Window> {
        self.slab.get(w)
    }

    pub(super) fn get_mut(&mut self, w: Ref) -> Option<&mut Window> {
        self.slab.get_mut(w)
    }

    pub(super) fn find(&self, assignment: &Assignment) -> Option<Ref> {
        self.by_assignment.get(assignment).copied()
    }

    /// The windows of a partition, whatever their epoch.
    pub(super) fn of_partition<'a>(&'a self, partition: &'a Partition) -> impl Iterator<Item = Ref> + 'a {
        let of = move |w: &Ref| self.get(*w).is_some_and(|window| window.assignment.partition == *partition);
        self.order.iter().copied().filter(of)
    }

    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    /// Number `i` in the order of their assignment.
    pub(super) fn nth(&self, i: usize) -> Option<Ref> {
        self.order.get(i).copied()
    }

    pub(super) fn refs(&self) -> Vec<Ref> {
        self.order.clone()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Window> {
        self.order.iter().filter_map(|w| self.slab.get(*w))
    }

    /// The next queued record of the task topic: round-robin over its partitions, up to `run` of one at a time.
    pub(super) fn next_queued(&mut self, run: usize) -> Option<Place> {
        let first = usize::from(self.taken >= run);
        for step in first..self.order.len() + first {
            let index = (self.last_read + step) % self.order.len();
            let window = self.order[index];
            if let Some(seq) = self.slab.get_mut(window).and_then(Window::next_queued) {
                self.taken = if step == 0 { self.taken + 1 } else { 1 };
                self.last_read = index;
                return Some(Place { window, seq });
            }
        }
        None
    }

    /// Pauses a window that is full, and resumes it when it has room again.
    pub(super) fn control_flow(&mut self, w: Ref, config: &Config, now: Wall) {
        if let Some(window) = self.slab.get_mut(w)
            && let Some(control) = window.control_flow(config, now)
        {
            self.flow.push_back((window.assignment.clone(), control));
        }
    }

    pub(super) fn pop_flow(&mut self) -> Option<(Assignment, FlowControl)> {
        self.flow.pop_front()
    }

    /// Gives the assignment up, to take it again.
    pub(super) fn reassign(&mut self, assignment: Assignment) {
        self.reassigns.push(assignment);
    }

    pub(super) fn take_reassigns(&mut self, out: &mut Vec<Assignment>) {
        out.append(&mut self.reassigns);
    }
}
