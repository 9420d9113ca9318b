//! The driver's task: it waits until a job is wanted, joins the group, and runs the event loop.

use super::{
    Shared,
    event_loop::{EventLoop, Parts},
};
use crate::clock::FAR;
use kafkaq_core::{
    Broker, Consumer, Error, ErrorKind, JoinRequest, LeaseStore, Result, Retry, machine::Machine,
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep},
};

const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LAST_BACKOFF: Duration = Duration::from_secs(5);
/// How often it is logged that the group can't be joined.
const REPORT_INTERVAL: Duration = Duration::from_secs(60);

/// What a driver needs.
pub(crate) struct Plan {
    pub(crate) machine: Machine,
    pub(crate) join: JoinRequest,
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) store: Arc<dyn LeaseStore>,
    pub(crate) shared: Arc<Shared>,
}

/// The handle of a driver. Dropping it stops the driver in the background.
#[derive(Debug)]
pub(crate) struct Driver {
    wanted: Arc<Notify>,
    is_wanted: AtomicBool,
    stop: watch::Sender<Option<Instant>>,
    outcome: watch::Receiver<Option<Result<()>>>,
    lease: Duration,
}

impl Driver {
    /// Starts the driver on the current runtime. It joins the group when a job is first [wanted](Driver::want): a queue
    /// that is only used to publish and to query jobs must not hold partitions that nobody here works on.
    pub(crate) fn start(plan: Plan) -> Self {
        let (stop, told_to_stop) = watch::channel(None);
        let (ended, outcome) = watch::channel(None);
        let lease = plan.machine.settings().lease;
        let wanted = Arc::new(Notify::new());
        let first = wanted.clone();
        // Ends all waits, even if the task is aborted before it is first polled.
        let ends = Ends(plan.shared.clone());
        tokio::spawn(async move {
            let _ends = ends;
            let outcome = drive(plan, &first, told_to_stop).await;
            ended.send_replace(Some(outcome));
        });
        Driver { wanted, is_wanted: AtomicBool::new(false), stop, outcome, lease }
    }

    pub(crate) fn lease(&self) -> Duration {
        self.lease
    }

    /// Signals that a job is wanted. Never waits.
    pub(crate) fn want(&self) {
        if !self.is_wanted.load(Ordering::Relaxed) && !self.is_wanted.swap(true, Ordering::Relaxed) {
            self.wanted.notify_one();
        }
    }

    /// Stops the driver and waits until it has ended: at most for `limit`, plus the backend's own limits. Any number of
    /// callers may do so; the shortest limit counts.
    pub(crate) async fn stop(&self, limit: Duration) -> Result<()> {
        stop_within(&self.stop, limit);
        match self.outcome.clone().wait_for(Option::is_some).await.as_deref() {
            Ok(Some(outcome)) => outcome.clone(),
            _ => Err(Error::unknown(ErrorKind::Other, "shut down")
                .with_advice("The driver's task was aborted or panicked")),
        }
    }
}

/// Tells all watchers to stop within `limit`. The shortest limit counts.
pub(crate) fn stop_within(stop: &watch::Sender<Option<Instant>>, limit: Duration) {
    let until = Instant::now() + limit.min(FAR);
    stop.send_modify(|stop| *stop = Some(stop.map_or(until, |earlier| earlier.min(until))));
}

impl Drop for Driver {
    fn drop(&mut self) {
        // Jobs that are still held may finish, for as long as a lease.
        stop_within(&self.stop, self.lease);
    }
}

async fn drive(plan: Plan, wanted: &Notify, mut stop: watch::Receiver<Option<Instant>>) -> Result<()> {
    let Plan { machine, join, broker, store, shared } = plan;
    let joined = async {
        wanted.notified().await;
        join_group(&*broker, join).await
    };
    let consumer = tokio::select! {
        consumer = joined => consumer,
        _ = stop.changed() => {
            shared.close(shut_down());
            return Ok(());
        }
    };
    match consumer {
        Ok(consumer) => {
            EventLoop::new(Parts { machine, consumer, log: broker, store, shared }, stop).run().await
        }
        Err(e) => {
            tracing::error!(target: "kafkaq", error = %e, "the queue can't join its group and hands out no jobs");
            shared.close(e.clone());
            Err(e)
        }
    }
}

pub(super) fn shut_down() -> Error {
    Error::not_applied(ErrorKind::Closed, "get a job").with_advice("The queue was shut down")
}

/// Joins the group. Retries as long as that may help.
async fn join_group(broker: &dyn Broker, request: JoinRequest) -> Result<Consumer> {
    let mut backoff = FIRST_BACKOFF;
    let mut said: Option<Instant> = None;
    loop {
        let e = match broker.join(request.clone()).await {
            Ok(consumer) => {
                if said.is_some() {
                    tracing::info!(target: "kafkaq", group = &*request.group, "joined the group");
                }
                return Ok(consumer);
            }
            Err(e) if e.retry() == Retry::No => return Err(e),
            Err(e) => e,
        };
        if said.is_none_or(|at| at.elapsed() >= REPORT_INTERVAL) {
            tracing::warn!(
                target: "kafkaq", group = &*request.group, error = %e,
                "can't join the group yet; trying again"
            );
            said = Some(Instant::now());
        }
        let asked = if let Retry::After(pause) = e.retry() { pause } else { Duration::ZERO };
        sleep(backoff.max(asked.min(LAST_BACKOFF))).await;
        backoff = (backoff * 2).min(LAST_BACKOFF);
    }
}

struct Ends(Arc<Shared>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.end(std::iter::empty());
    }
}
