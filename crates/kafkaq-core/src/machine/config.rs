//! A machine's settings and the values derived from them. Immutable.

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
            // Otherwise the record of each long-running job would be considered again and again.
            remembered: settings.done_retention.max(longest_park),
            max_failures: settings.max_failures.max(1),
            max_handouts: settings.max_handouts.max(1),
        };
        let ladder = Ladder::new(longest_park, settings.max_delay, layout.wait_partitions);
        Config { settings, limits, layout, ladder }
    }

    /// Returns how long the store remembers a lease: longer than any copy may still be waiting.
    pub(super) fn ttl(&self, lease: &Lease, now: Wall) -> Duration {
        lease.deadline.since(now) + self.settings.max_overdue + self.limits.remembered
    }

    /// Returns whether this rule is removed from the machine.
    pub(super) fn has_fault(&self, fault: Fault) -> bool {
        self.settings.planted.is(fault)
    }
}
