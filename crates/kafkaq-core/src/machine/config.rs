//! What a machine is set to, and what follows from it. Never changes.

use super::{Fault, Ladder, Layout, Settings, rule::Limits};
use crate::{Lease, Wall};
use std::time::Duration;

#[derive(Debug)]
pub(super) struct Config {
    pub(super) settings: Settings,
    pub(super) limits: Limits,
    pub(super) layout: Layout,
    pub(super) ladder: Ladder,
}

impl Config {
    pub(super) fn new(settings: Settings, layout: Layout) -> Self {
        let longest_park = settings.lease + settings.clock_skew;
        let limits = Limits {
            lease: settings.lease,
            clock_skew: settings.clock_skew,
            // Or each job that takes long would be looked at again and again.
            remembered: settings.done_retention.max(longest_park),
            max_failures: settings.max_failures.max(1),
            max_handouts: settings.max_handouts.max(1),
        };
        let ladder = Ladder::new(longest_park, settings.max_delay, layout.wait_partitions);
        Config { settings, limits, layout, ladder }
    }

    /// How long the store remembers a lease: longer than any copy that may still be under way.
    pub(super) fn ttl(&self, lease: &Lease, now: Wall) -> Duration {
        lease.deadline.since(now) + self.settings.max_overdue + self.limits.remembered
    }

    /// Whether this rule is taken out of the machine.
    pub(super) fn has_fault(&self, fault: Fault) -> bool {
        self.settings.planted.is(fault)
    }
}
