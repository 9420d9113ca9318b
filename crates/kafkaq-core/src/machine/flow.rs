//! How far a partition is read ahead of what is finished.

use super::{Machine, slab::Ref};
use std::time::Duration;

/// A lane that was read far enough is read on when it isn't by so much.
const FURTHER: Duration = Duration::from_secs(2);

impl Machine {
    /// Stops reading, and goes on.
    pub(super) fn steer(&mut self, w: Ref) {
        let (now, most_bytes) = (self.clock.wall(), self.config.settings.window_bytes);
        let Some(window) = self.windows.get_mut(w).filter(|w| w.release_by.is_none()) else { return };
        // A lane is read on as soon as an eighth is free: half of it may have left before its head, and is not to keep
        // out what is due next.
        let (most, part) = match window.is_wait {
            true => (self.config.settings.lane_window, 8),
            false => (self.config.settings.window, 2),
        };
        let below = |most: usize| most - most.div_ceil(part);
        let full = window.len() >= most || window.bytes() >= most_bytes;
        let room = window.len() <= below(most) && window.bytes() <= below(most_bytes);
        // More of a lane than of the task topic is read only if it may be due soon. The sweep looks every second.
        let ahead =
            if window.is_wait { self.config.ladder.ahead(window.assignment.partition.index) } else { None };
        let skew = self.config.settings.clock_skew;
        let is_far = |by: Duration| {
            window.len() >= self.config.settings.window
                && ahead.is_some_and(|ahead| window.last_due > now.plus(ahead.saturating_sub(by)).plus(skew))
        };
        let (stop, go) = (full || is_far(Duration::ZERO), room && !is_far(FURTHER));
        if (stop && !window.paused) || (go && window.paused) {
            window.paused = stop;
            self.flow.push_back((window.assignment.clone(), !stop));
        }
    }
}
