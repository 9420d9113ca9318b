//! The process's clocks.

use kafkaq_core::{Wall, machine};
use std::{
    sync::OnceLock,
    time::{Duration, Instant as SystemInstant, SystemTime},
};
use tokio::time::Instant;

/// Longer than anything lasts, and short enough for every clock.
pub(crate) const FAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// The process's two clocks. The monotonic one is tokio's, so that tests can run it as fast as they like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn start() -> Self {
        Clock(Instant::now())
    }

    pub(crate) fn now(self) -> machine::Now {
        let (monotonic, system) = clocks();
        machine::Now { mono: self.mono_of(monotonic), wall: wall(system) }
    }

    pub(crate) fn mono(self) -> machine::Mono {
        self.mono_of(Instant::now())
    }

    fn mono_of(self, at: Instant) -> machine::Mono {
        machine::Mono::default().plus(at.saturating_duration_since(self.0))
    }

    pub(crate) fn at(self, mono: machine::Mono) -> Instant {
        // A time too far away to be represented stays far away.
        let at = self.0.checked_add(Duration::from_nanos(mono.0));
        at.unwrap_or_else(|| Instant::now() + FAR)
    }
}

/// The wall clock's time. Where a test has paused tokio's clock, or advanced it, the wall clock moves with that, so that
/// delays and leases take virtual time too.
pub(crate) fn system_now() -> SystemTime {
    clocks().1
}

/// The time by tokio's clock and by the wall clock.
fn clocks() -> (Instant, SystemTime) {
    /// The same moment by both of the system's clocks.
    static MOMENT: OnceLock<(SystemInstant, SystemTime)> = OnceLock::new();
    let moment = *MOMENT.get_or_init(|| (SystemInstant::now(), SystemTime::now()));
    let mut tokio = Instant::from_std(moment.0);
    // On some machines the clock goes back by a tick now and then.
    for _ in 0..3 {
        let before = SystemInstant::now();
        tokio = Instant::now();
        // If tokio's clock isn't paused, it is between two readings of the system's, however far apart these are.
        if (before..=SystemInstant::now()).contains(&tokio.into_std()) {
            return (tokio, SystemTime::now());
        }
    }
    (tokio, virtual_time(tokio.into_std(), moment))
}

/// Depends on tokio's clock alone: a thread that is descheduled between two readings must not move it.
fn virtual_time(tokio: SystemInstant, (instant, time): (SystemInstant, SystemTime)) -> SystemTime {
    let virtual_time = match tokio.checked_duration_since(instant) {
        Some(later) => time.checked_add(later),
        None => time.checked_sub(instant - tokio),
    };
    virtual_time.unwrap_or(time)
}

pub(crate) fn wall_now() -> Wall {
    wall(system_now())
}

pub(crate) fn wall(at: SystemTime) -> Wall {
    Wall::default().plus(at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}

pub(crate) fn system_time(at: Wall) -> SystemTime {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(at.0)).unwrap_or(SystemTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn virtual_time_is_as_far_from_a_known_moment_as_tokios_clock() {
        let known =
            (SystemInstant::now() + 1000 * MS, SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000));
        assert_eq!(virtual_time(known.0, known), known.1);
        assert_eq!(virtual_time(known.0 - 100 * MS, known), known.1 - 100 * MS);
        assert_eq!(virtual_time(known.0 + 100 * MS, known), known.1 + 100 * MS);
    }

    #[tokio::test(start_paused = true)]
    async fn virtual_time_moves_the_wall_clock_and_nothing_else_does() {
        let wall = wall_now();
        std::thread::sleep(50 * MS);
        assert_eq!(wall_now(), wall);
        let day = Duration::from_secs(86_400);
        tokio::time::sleep(day).await;
        let moved = wall_now().since(wall);
        assert!((day..day + 2 * MS).contains(&moved), "timers have a resolution of 1 ms: {moved:?}");
    }

    #[tokio::test]
    async fn running_clock_shows_the_system_time() {
        let (before, wall_time, after) = (SystemTime::now(), system_now(), SystemTime::now());
        assert!(before <= wall_time && wall_time <= after);
    }
}
