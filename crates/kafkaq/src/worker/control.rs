//! Pauses kinds of task while a worker runs.

use crate::{Error, ErrorKind, Result, sync::lock};
use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{sync::Notify, time::Instant};

/// A task of a paused kind is snoozed for half as long as the kind has been paused, within these limits.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(300);
/// The limit for a task that has used up half of its hand-outs, so that the rest lasts for months.
pub(super) const SPARING: Duration = Duration::from_secs(6 * 3600);

/// Pauses and resumes kinds of task of one worker. Cheap to clone; from
/// [`WorkerBuilder::control`](super::WorkerBuilder::control) or [`WorkerHandle::control`](super::WorkerHandle::control).
///
/// While a kind is paused, none of its handlers start; running ones continue. The worker still takes the kind's tasks
/// from the queue, since other tasks come after them, and snoozes each, which doesn't count as a failure. A task takes
/// a slot of the worker until its snooze is confirmed, which is a call to the store; then it holds neither slot nor
/// lease.
///
/// - **It affects only this worker.** Other processes of the queue continue to execute the kind, and also get the tasks
///   that this one snoozes. Pause it in each of them. A restart forgets the pause.
/// - **Resuming takes effect at once for new tasks**; snoozed ones come back by themselves. A task is snoozed for up to
///   half of the time that the kind has been paused so far, at least 1 s and at most 5 min. So after a pause of a
///   minute all are back within half a minute, and after a long one within five minutes, unless they have used up half
///   of their hand-outs (see below).
/// - **Cost:** one hand-out per task each time: two swaps in the store and one or more copies in the log. If the
///   queue's [`max_delay`](crate::QueueBuilder::max_delay) is shorter than the snooze, it is read and copied several
///   times per snooze, up to once per second. A million paused tasks cause about five thousand hand-outs per second. To
///   pause a whole queue, stop its workers: that costs nothing.
/// - **Hand-outs**: a task that has used up half of the queue's [`max_handouts`](crate::QueueBuilder::max_handouts) is
///   snoozed for up to 6 h each time. With the default of 1,000, a pause may last three months before tasks are
///   dead-lettered.
/// - **Expiry** is checked when a task is first handed out. A snoozed task no longer
///   [expires](super::Enqueue::expires).
///
/// ```
/// use kafkaq::{Queue, worker::{Ctx, TaskType, Worker}};
/// # #[derive(serde::Serialize, serde::Deserialize)]
/// # struct SendEmail;
/// # impl TaskType for SendEmail { const KIND: &'static str = "send_email"; }
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> kafkaq::Result<()> {
/// let worker = Worker::builder(Queue::builder("emails").build().await?).on(async |_: Ctx, _: SendEmail| {});
/// let control = worker.control(); // for an admin endpoint, for example
/// let running = worker.start()?;
/// control.pause(SendEmail::KIND)?;
/// assert_eq!(control.paused(), ["send_email"]);
/// control.resume(SendEmail::KIND)?;
/// # running.stop_now();
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
pub struct WorkerControl {
    switches: Arc<Mutex<Switches>>,
    /// Wakes the worker: queued tasks are snoozed, too.
    pub(super) room: Arc<Notify>,
}

#[derive(Default)]
struct Switches {
    of: HashMap<String, Arc<Switch>>,
    /// Whether the worker has started: then the kinds are fixed.
    all_known: bool,
}

/// Whether a kind is paused.
#[derive(Debug, Default)]
pub(super) struct Switch(Mutex<Option<Instant>>);

impl WorkerControl {
    /// Pauses a kind by its name ([`TaskType::KIND`](super::TaskType::KIND)); `otherwise` stands for the tasks of
    /// [`WorkerBuilder::otherwise`](super::WorkerBuilder::otherwise). If the worker hasn't started yet, it starts with
    /// the kind paused. Calling it again is harmless.
    ///
    /// # Errors
    /// `Invalid` if the running worker has no handler for the kind.
    pub fn pause(&self, kind: &str) -> Result<()> {
        let switch = self.switch_of(kind, "pause a kind")?;
        let is_news = {
            let since = &mut *lock(&switch.0);
            since.is_none() && since.replace(Instant::now()).is_none()
        };
        if is_news {
            tracing::info!(target: "kafkaq", kind, "a kind of task is paused in this worker");
            self.room.notify_one();
        }
        Ok(())
    }

    /// Resumes a kind. Does nothing if it isn't paused.
    ///
    /// # Errors
    /// The same as for [`pause`](WorkerControl::pause).
    pub fn resume(&self, kind: &str) -> Result<()> {
        let switch = self.switch_of(kind, "resume a kind")?;
        if lock(&switch.0).take().is_some() {
            tracing::info!(target: "kafkaq", kind, "a kind of task is resumed in this worker");
        }
        Ok(())
    }

    /// Returns the kinds that are paused, in alphabetical order.
    #[must_use]
    pub fn paused(&self) -> Vec<String> {
        let switches = lock(&self.switches);
        let paused = switches.of.iter().filter(|(_, switch)| switch.is_paused());
        let mut paused: Vec<_> = paused.map(|(kind, _)| kind.clone()).collect();
        paused.sort_unstable();
        paused
    }

    fn switch_of(&self, kind: &str, what: &'static str) -> Result<Arc<Switch>> {
        let switches = &mut *lock(&self.switches);
        match switches.of.get(kind) {
            Some(switch) => Ok(switch.clone()),
            None if switches.all_known => Err(unknown(kind, what)),
            None => Ok(switches.of.entry(kind.to_owned()).or_default().clone()),
        }
    }

    /// Sets the worker's kinds, which are fixed from now on.
    ///
    /// # Errors
    /// `Invalid` if an unknown kind is paused.
    pub(super) fn know(&self, kinds: &[&str]) -> Result<()> {
        let switches = &mut *lock(&self.switches);
        if let Some(unknown_kind) = switches.of.keys().find(|kind| !kinds.contains(&kind.as_str())) {
            return Err(unknown(unknown_kind, "start a worker"));
        }
        switches.all_known = true;
        for kind in kinds {
            switches.of.entry((*kind).to_owned()).or_default();
        }
        Ok(())
    }

    /// The switch of a kind. An unknown kind is never paused.
    pub(super) fn switch(&self, kind: &str) -> Arc<Switch> {
        lock(&self.switches).of.get(kind).cloned().unwrap_or_default()
    }
}

fn unknown(kind: &str, what: &'static str) -> Error {
    Error::not_applied(ErrorKind::Invalid, what)
        .on(format!("`{kind}`"))
        .with_advice("The worker has no handler for it, so there is nothing to pause")
}

impl Switch {
    pub(super) fn is_paused(&self) -> bool {
        lock(&self.0).is_some()
    }

    /// Returns how long to snooze a task at this hand-out; `None` unless the kind is paused.
    pub(super) fn put_off(&self, attempt: u32, max_handouts: u32, now: Instant) -> Option<Duration> {
        let since = (*lock(&self.0))?;
        let longest = if attempt > max_handouts / 2 {
            SPARING
        } else {
            (now.saturating_duration_since(since) / 2).clamp(SHORTEST, LONGEST)
        };
        Some(jittered(longest))
    }
}

/// Returns a random delay between half and all of this.
pub(super) fn jittered(longest: Duration) -> Duration {
    longest.mul_f64(0.5 + 0.5 * fastrand::f64())
}

impl fmt::Debug for WorkerControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerControl").field("paused", &self.paused()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snooze_grows_with_the_length_of_the_pause_and_as_hand_outs_run_out() {
        let (now, switch) = (Instant::now(), Switch::default());
        let put_off = |attempt, later| switch.put_off(attempt, 100, now + later);
        assert_eq!(put_off(1, LONGEST), None);
        *lock(&switch.0) = Some(now);
        for (attempt, later, most) in
            [(1, 0, SHORTEST), (1, 60, LONGEST / 10), (50, 100_000, LONGEST), (51, 0, SPARING)]
        {
            let delay = put_off(attempt, Duration::from_secs(later)).unwrap();
            assert!((most / 2..=most).contains(&delay), "hand-out {attempt} after {later} s: {delay:?}");
        }
    }
}
