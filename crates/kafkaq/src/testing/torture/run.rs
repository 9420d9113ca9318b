//! One run: a new state, and disturbed executions of one task.

use super::{super::FakeJob, Disturbance, Torture, execution::Execution};
use crate::{
    Task,
    worker::{
        Outcome, StopReason,
        direct::{Collected, kind},
    },
};
use std::{fmt, sync::Arc, time::Duration};
use tokio::time::{sleep, timeout};

/// A task that has not ended after this many attempts never does.
const MOST_ATTEMPTS: u32 = 20;
/// A handler that runs for longer than this doesn't end.
const MOST_POINTS: usize = 100_000;
/// After this many await points, an execution is assumed to wait for the other, if there is one, by polling.
const PATIENT_POINTS: usize = 10_000;

pub(super) struct Run<'a, S> {
    torture: &'a Torture<S>,
    task: Task,
    state: Arc<S>,
    enqueued: Collected,
    attempts: u32,
    failures: u32,
}

/// How a task ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    Done,
    Rejected(String),
    /// It has not.
    Never(String),
}

/// The result of a run.
#[derive(Debug, PartialEq)]
pub(super) struct Found<E> {
    pub(super) end: End,
    effects: E,
    /// Tasks without their ids, since random ids differ each time.
    enqueued: Vec<String>,
}

impl<E: fmt::Debug> fmt::Display for Found<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.effects)?;
        if !self.enqueued.is_empty() {
            write!(f, ", enqueued: {}", self.enqueued.join(", "))?;
        }
        match &self.end {
            End::Done => Ok(()),
            End::Rejected(reason) => write!(f, "; the task was rejected: {reason}"),
            End::Never(why) => write!(f, "; the task has not ended: {why}"),
        }
    }
}

impl<'a, S: Send + Sync + 'static> Run<'a, S> {
    pub(super) fn new(torture: &'a Torture<S>, task: Task, state: S) -> Self {
        let enqueued = Collected::default();
        Run { torture, task, state: Arc::new(state), enqueued, attempts: 0, failures: 0 }
    }

    /// Runs undisturbed. Returns the await points of the first execution.
    pub(super) async fn undisturbed(&mut self) -> (Vec<Option<String>>, End) {
        let mut execution = self.begin();
        let end = self.finish(&mut execution, None).await;
        (execution.points, end)
    }

    pub(super) async fn disturbed(&mut self, disturbance: Disturbance) -> End {
        match disturbance {
            Disturbance::Crash { at } => {
                let mut crashed = self.begin();
                self.advance(&mut crashed, at, None).await;
                drop(crashed);
            }
            Disturbance::CrashAfterReturn => {
                let mut crashed = self.begin();
                self.advance(&mut crashed, usize::MAX, None).await;
            }
            Disturbance::LeaseLost { at } => {
                self.told(StopReason::LeaseLost, at).await;
            }
            Disturbance::ShuttingDown { at } => {
                let told = self.told(StopReason::ShuttingDown, at).await;
                match told {
                    Some(Outcome::Done) => return End::Done,
                    Some(Outcome::Reject(reason)) => return End::Rejected(reason),
                    _ => {}
                }
                let mut again = self.begin();
                return self.finish(&mut again, None).await;
            }
            Disturbance::Overlap { first, second } => {
                let mut one = self.begin();
                self.advance(&mut one, first, None).await;
                self.failures += 1;
                let mut other = self.begin();
                if second == usize::MAX {
                    return self.finish(&mut other, Some(&mut one)).await;
                }
                self.advance(&mut other, second, Some(&mut one)).await;
                self.advance(&mut one, usize::MAX, Some(&mut other)).await;
                return self.finish(&mut other, None).await;
            }
            Disturbance::InTurns => {
                let mut one = self.begin();
                self.failures += 1;
                let mut other = self.begin();
                let mut point = 1;
                while one.outcome.is_none() && other.outcome.is_none() && point < MOST_POINTS {
                    self.advance(&mut one, point, Some(&mut other)).await;
                    self.advance(&mut other, point, Some(&mut one)).await;
                    point += 1;
                }
                self.advance(&mut one, usize::MAX, Some(&mut other)).await;
                return self.finish(&mut other, None).await;
            }
        }
        self.failures += 1;
        let mut again = self.begin();
        self.finish(&mut again, None).await
    }

    /// Asks an execution at an await point to stop. It may do so; then it is dropped. Returns its outcome.
    async fn told(&mut self, reason: StopReason, at: usize) -> Option<Outcome> {
        let mut execution = self.begin();
        self.advance(&mut execution, at, None).await;
        execution.stop.tell(reason);
        self.advance(&mut execution, usize::MAX, None).await;
        execution.outcome
    }

    /// The next attempt.
    fn begin(&mut self) -> Execution {
        self.attempts += 1;
        let mut fake_job = FakeJob::new(self.task.clone());
        (fake_job.attempt, fake_job.failures) = (self.attempts, self.failures);
        fake_job.token.number = self.attempts.into();
        if let Some(id) = &self.torture.id {
            fake_job.id = id.clone();
        }
        Execution::new(self.torture.handler.execute(fake_job, self.state.clone(), self.enqueued.clone()))
    }

    /// Runs an execution to an await point or to its end. If it is blocked, `other` may advance. Returns whether it got
    /// there.
    async fn advance(
        &self,
        execution: &mut Execution,
        until: usize,
        mut other: Option<&mut Execution>,
    ) -> bool {
        let begun = execution.points.len();
        while execution.outcome.is_none() && execution.points.len() < until {
            let stepped = self.step(execution).await;
            let points = execution.points.len() - begun;
            if stepped && points < PATIENT_POINTS {
                continue;
            }
            let other_stepped = match &mut other {
                Some(other) if other.outcome.is_none() => self.step(other).await,
                _ => false,
            };
            if !(stepped || other_stepped) || points >= MOST_POINTS {
                return false;
            }
        }
        true
    }

    async fn step(&self, execution: &mut Execution) -> bool {
        timeout(self.torture.patience, execution.step()).await.is_ok()
    }

    /// Runs an execution and its retries until the task has ended. `other` resumes when the first of them has returned.
    async fn finish(&mut self, first: &mut Execution, mut other: Option<&mut Execution>) -> End {
        let mut next = None;
        loop {
            let execution = next.as_mut().unwrap_or(&mut *first);
            let arrived = self.advance(execution, usize::MAX, other.as_deref_mut()).await;
            if let Some(other) = &mut other {
                self.advance(other, usize::MAX, Some(execution)).await;
            }
            let (delay, why) = match execution.outcome.clone() {
                None if arrived => return End::Never("it was lost".to_owned()),
                None => {
                    let at = execution.points.len();
                    let place = execution.points.pop().flatten().map(|place| format!(" ({place})"));
                    return End::Never(format!("it waits at await point {at}{}", place.unwrap_or_default()));
                }
                Some(Outcome::Done) => return End::Done,
                Some(Outcome::Reject(reason)) => return End::Rejected(reason),
                Some(Outcome::Snooze(delay)) => (delay, "snoozed".to_owned()),
                Some(Outcome::Retry { delay, reason }) => {
                    self.failures += 1;
                    (delay.unwrap_or(Duration::ZERO), reason)
                }
            };
            if self.attempts >= MOST_ATTEMPTS {
                return End::Never(format!("{why}, {MOST_ATTEMPTS} times"));
            }
            sleep(delay).await;
            next = Some(self.begin());
        }
    }

    /// Reads the effects.
    pub(super) fn found<E>(&self, end: End, effects: &impl Fn(&S) -> E) -> Found<E> {
        let describe = |task: Task| {
            let key = task.key().map(|key| format!(" of {}", String::from_utf8_lossy(key)));
            let payload = String::from_utf8_lossy(task.payload()).into_owned();
            format!("{}{} {payload}", kind(task.headers()).unwrap_or_default(), key.unwrap_or_default())
        };
        let mut enqueued: Vec<_> = self.enqueued.tasks().into_iter().map(describe).collect();
        enqueued.sort();
        Found { end, effects: effects(&self.state), enqueued }
    }
}
