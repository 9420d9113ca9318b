//! Queries tasks and cancels them.

use crate::clock::{system_time, wall_now};
use kafkaq_core::{
    DecodeError, Effect, Error, ErrorKind, FailureRecord, Key, Keyspace, Lease, LeaseState, LeaseStore,
    LeaseToken, Result, Retry, Swap, Swapped, TaskId,
};
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::time::Instant;

/// How many times a cancel retries after a conflict.
const MOST_CONFLICTS: usize = 16;
/// How often, and for how long, calls are retried after transient errors. A server that closes idle connections may
/// have closed several.
const TRIES: u32 = 10;
const TRY_FOR: Duration = Duration::from_secs(2);
const FIRST_PAUSE: Duration = Duration::from_millis(10);

/// Queries tasks and cancels them. Cheap to clone; works in any process that shares the store.
///
/// A queue has one ([`Queue::jobs`](crate::Queue::jobs)); a process that does nothing else creates one with
/// [`QueueBuilder::build_jobs`](crate::QueueBuilder::build_jobs).
#[derive(Clone, Debug)]
pub struct JobController {
    store: Arc<dyn LeaseStore>,
    keyspace: Keyspace,
    retention: Retention,
}

/// How long the end of a task is remembered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Retention {
    /// Counted from when all records of the task have been considered.
    pub(crate) ended: Duration,
    /// The longest that a record of an unknown task can be in flight.
    pub(crate) max_delay: Duration,
    pub(crate) clock_skew: Duration,
}

/// Whether a failed call is retried.
pub(crate) struct Attempts {
    since: Instant,
    failed: u32,
}

impl Attempts {
    pub(crate) fn begin() -> Self {
        Attempts { since: Instant::now(), failed: 0 }
    }

    /// Waits a little if another attempt may help; otherwise returns the error.
    pub(crate) async fn again_after(&mut self, e: Error) -> Result<()> {
        self.failed += 1;
        if e.retry() == Retry::No || self.failed >= TRIES || self.since.elapsed() >= TRY_FOR {
            return Err(e);
        }
        // The first retry is immediate: a connection that was closed while idle is reason enough.
        if self.failed > 1 && tokio::runtime::Handle::try_current().is_ok() {
            tokio::time::sleep(FIRST_PAUSE * 2_u32.pow(self.failed.min(6))).await;
        }
        Ok(())
    }
}

impl JobController {
    pub(crate) fn new(store: Arc<dyn LeaseStore>, keyspace: Keyspace, retention: Retention) -> Self {
        JobController { store, keyspace, retention }
    }

    /// Returns what the store knows about a task. Cancel-safe.
    ///
    /// # Errors
    /// The store's own, or `Unsupported` if a later kafkaq wrote what is there.
    pub async fn get(&self, id: &TaskId) -> Result<JobInfo> {
        let key = Key::task(&self.keyspace, id);
        let mut attempts = Attempts::begin();
        let lease = loop {
            match self.read(&key).await {
                Ok((_, lease)) => break lease,
                Err(e) => attempts.again_after(e).await?,
            }
        };
        Ok(JobInfo::of(lease.as_ref(), self.retention.clock_skew))
    }

    /// Prevents further executions of a task. A running job is not stopped: its holder learns of it when it ends or
    /// extends the job, or from [`JobView::lost`](crate::JobView::lost). If the store doesn't know the task, because
    /// nobody has taken it yet or because it doesn't exist, it is remembered as cancelled, for at least as long as a
    /// delayed task can be in flight. A cancellation is as durable as the store. A task that is executed [once per
    /// window](crate::Task::with_once_per) shares its id with everything published in that window: all of it is
    /// cancelled, including what is published later.
    ///
    /// *Cancel-safety:* a dropped future may or may not have cancelled the task; calling it again is safe.
    ///
    /// # Errors
    /// The store's own. If it may have taken effect, the error says so.
    pub async fn cancel(&self, id: &TaskId) -> Result<CancelOutcome> {
        let mut in_doubt = false;
        self.try_to_cancel(id, &mut in_doubt).await.map_err(|e| match e.effect() {
            // The last call had no effect, but an earlier one may have had.
            Effect::NotApplied if in_doubt => {
                Error::unknown(e.kind(), "cancel").with_retry(e.retry()).with_source(e)
            }
            _ => e,
        })
    }

    async fn try_to_cancel(&self, id: &TaskId, in_doubt: &mut bool) -> Result<CancelOutcome> {
        let key = Key::task(&self.keyspace, id);
        // Unique, so that our own swap can be recognized if its response was lost.
        let token = LeaseToken { process: uuid::Uuid::new_v4().into_bytes(), number: 0 };
        let mut before = JobInfo::of(None, Duration::ZERO);
        let mut attempts = Attempts::begin();
        let mut conflicts = 0;
        while conflicts < MOST_CONFLICTS {
            let (value, lease) = match self.read(&key).await {
                Ok(found) => found,
                Err(e) => {
                    attempts.again_after(e).await?;
                    continue;
                }
            };
            let info = JobInfo::of(lease.as_ref(), self.retention.clock_skew);
            match &lease {
                Some(lease) if lease.token == token => return Ok(CancelOutcome::after(before)),
                Some(lease) if lease.state.is_terminal() => return Ok(CancelOutcome::TooLate(info)),
                _ => before = info,
            }
            let (new, ttl) = self.cancelled(token, lease.as_ref());
            match self.swap(Swap::new(key.clone(), value, Some(new.encode()), Some(ttl))).await {
                Ok(Swapped::Done) => return Ok(CancelOutcome::after(before)),
                Ok(Swapped::Conflict(_)) => conflicts += 1,
                Err(e) => {
                    *in_doubt |= e.effect() == Effect::Unknown;
                    attempts.again_after(e).await?;
                }
            }
        }
        Err(Error::not_applied(ErrorKind::Unavailable, "cancel")
            .on(&key)
            .with_advice("The task's state kept changing; try again"))
    }

    /// Returns the lease of a cancelled task, and how long it is kept: a copy of the record may be in flight until the
    /// current lease's deadline, and must still find it.
    fn cancelled(&self, token: LeaseToken, lease: Option<&Lease>) -> (Lease, Duration) {
        let now = wall_now();
        let under_way =
            lease.map_or(self.retention.max_delay, |l| l.deadline.since(now) + self.retention.clock_skew);
        let mut new = Lease::new(LeaseState::Cancelled, token, now, Duration::ZERO);
        if let Some(lease) = lease {
            (new.attempt, new.failures, new.cover) = (lease.attempt, lease.failures, lease.cover);
            new.history = lease.history.clone();
        }
        (new, under_way.saturating_add(self.retention.ended))
    }

    /// The raw value and the decoded lease; a damaged one counts as missing.
    async fn read(&self, key: &Key) -> Result<(Option<bytes::Bytes>, Option<Lease>)> {
        let answer = self.store.get(std::slice::from_ref(key)).await.into_iter().next();
        let value = answer.unwrap_or_else(|| Err(unanswered())).map_err(|e| e.on(key))?;
        let lease = match value.as_deref().map(Lease::decode) {
            Some(Err(e @ DecodeError::Newer(_))) => {
                return Err(Error::not_applied(ErrorKind::Unsupported, "read a lease")
                    .on(key)
                    .with_source(e));
            }
            Some(Err(DecodeError::Damaged(_) | DecodeError::Foreign)) | None => None,
            Some(Ok(lease)) => Some(lease),
        };
        Ok((value, lease))
    }

    async fn swap(&self, swap: Swap) -> Result<Swapped> {
        let answer = self.store.swap(std::slice::from_ref(&swap)).await.into_iter().next();
        answer.unwrap_or_else(|| Err(unanswered())).map_err(|e| e.on(&swap.key))
    }
}

fn unanswered() -> Error {
    Error::unknown(ErrorKind::Other, "call the store").with_advice("The backend returned no outcome")
}

/// What the store knows about a task.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct JobInfo {
    /// Its status.
    pub status: JobStatus,
    /// How many times it was handed out.
    pub attempts: u32,
    /// How many of these count against the queue's `max_failures`.
    pub failures: u32,
    /// The last failures that the store knows of, oldest first. They are not kept for a task that is done.
    pub history: Vec<FailureRecord>,
    /// When it is handed out next, at the earliest. For a task that is being processed: if it is not done by then.
    pub next_execution: Option<SystemTime>,
}

impl JobInfo {
    fn of(lease: Option<&Lease>, clock_skew: Duration) -> Self {
        let Some(lease) = lease else {
            return JobInfo {
                status: JobStatus::Unknown,
                attempts: 0,
                failures: 0,
                history: Vec::new(),
                next_execution: None,
            };
        };
        let turn = match lease.state {
            LeaseState::Live => lease.deadline.plus(clock_skew),
            _ => lease.deadline,
        };
        let status = match lease.state {
            LeaseState::Live if wall_now() <= turn => JobStatus::Processing,
            // Its lease has expired.
            LeaseState::Live | LeaseState::Idle => JobStatus::Waiting,
            LeaseState::Done => JobStatus::Done,
            LeaseState::Cancelled => JobStatus::Cancelled,
            LeaseState::Dead => JobStatus::Dead,
        };
        let next_execution = (!lease.state.is_terminal()).then(|| system_time(turn));
        JobInfo {
            status,
            attempts: lease.attempt,
            failures: lease.failures,
            history: lease.history.entries(),
            next_execution,
        }
    }
}

/// The status of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum JobStatus {
    /// The store has no lease: the task was not handed out yet, it ended long ago, or no task has that id.
    Unknown,
    /// A process holds it and is running it, or is about to.
    Processing,
    /// It is waiting: it was published with a delay, or it was handed out before and will be again.
    Waiting,
    /// It is done.
    Done,
    /// It was cancelled.
    Cancelled,
    /// It went to the dead-letter topic.
    Dead,
}

/// The outcome of [`JobController::cancel`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CancelOutcome {
    /// It is cancelled; contains its previous state. A job that was being processed may still run to completion.
    Known(JobInfo),
    /// The store didn't know the task. It is remembered as cancelled, in case the task appears.
    Unknown,
    /// It had already ended, and nothing was changed.
    TooLate(JobInfo),
}

impl CancelOutcome {
    fn after(before: JobInfo) -> Self {
        if before.status == JobStatus::Unknown {
            CancelOutcome::Unknown
        } else {
            CancelOutcome::Known(before)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::wall;
    use async_trait::async_trait;
    use bytes::Bytes;
    use std::sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    };

    /// A store of one key, which can fail before or after taking effect.
    #[derive(Debug, Default)]
    struct OneKey {
        value: Mutex<Option<Bytes>>,
        ttl: Mutex<Option<Duration>>,
        lose_answers: Mutex<usize>,
        /// Which calls fail before they take effect.
        refuse: Mutex<Refuse>,
        calls: AtomicUsize,
    }

    #[derive(Debug, Default)]
    struct Refuse {
        after: usize,
        calls: usize,
    }

    impl OneKey {
        fn refusing(after: usize, calls: usize) -> Arc<Self> {
            Arc::new(OneKey { refuse: Mutex::new(Refuse { after, calls }), ..OneKey::default() })
        }

        fn refused(&self) -> Option<Error> {
            let call = self.calls.fetch_add(1, Ordering::Relaxed);
            let refuse = self.refuse.lock().unwrap();
            let refused = (refuse.after..refuse.after.saturating_add(refuse.calls)).contains(&call);
            refused.then(|| Error::not_applied(ErrorKind::Unavailable, "call"))
        }
    }

    #[async_trait]
    impl LeaseStore for OneKey {
        async fn get(&self, keys: &[Key]) -> Vec<Result<Option<Bytes>>> {
            if let Some(e) = self.refused() {
                return vec![Err(e)];
            }
            keys.iter().map(|_| Ok(self.value.lock().unwrap().clone())).collect()
        }
        async fn swap(&self, swaps: &[Swap]) -> Vec<Result<Swapped>> {
            if let Some(e) = self.refused() {
                return vec![Err(e)];
            }
            let mut value = self.value.lock().unwrap();
            if *value != swaps[0].expect {
                return vec![Ok(Swapped::Conflict(value.clone()))];
            }
            *value = swaps[0].new.clone();
            *self.ttl.lock().unwrap() = swaps[0].ttl;
            let mut lose = self.lose_answers.lock().unwrap();
            *lose = lose.saturating_sub(1);
            vec![if *lose > 0 { Err(Error::unknown(ErrorKind::Timeout, "swap")) } else { Ok(Swapped::Done) }]
        }
        async fn check(&self) -> Result<Vec<String>> {
            Ok(vec![])
        }
        async fn close(&self) -> Result<()> {
            Ok(())
        }
    }

    fn controller(store: &Arc<OneKey>) -> JobController {
        let retention = Retention {
            ended: Duration::from_secs(60),
            max_delay: Duration::from_secs(600),
            clock_skew: Duration::from_secs(1),
        };
        JobController::new(store.clone(), Keyspace::new("q", "g", "q").unwrap(), retention)
    }

    fn lease(state: LeaseState, ahead: Duration) -> Lease {
        let token = LeaseToken { process: [7; 16], number: 1 };
        let deadline = wall(SystemTime::now() + ahead);
        Lease { attempt: 2, cover: 3, ..Lease::new(state, token, deadline, ahead) }
    }

    async fn cancel(store: &Arc<OneKey>) -> CancelOutcome {
        controller(store).cancel(&TaskId::new("t").unwrap()).await.unwrap()
    }

    #[tokio::test]
    async fn a_cancelled_lease_outlives_the_copy_that_waits_for_a_long_retry() {
        let store = Arc::new(OneKey::default());
        let delay = Duration::from_secs(3 * 3600);
        *store.value.lock().unwrap() = Some(lease(LeaseState::Idle, delay).encode());
        let CancelOutcome::Known(info) = cancel(&store).await else { panic!() };
        assert_eq!((info.status, info.attempts), (JobStatus::Waiting, 2));
        let left = Lease::decode(store.value.lock().unwrap().as_ref().unwrap()).unwrap();
        assert_eq!((left.state, left.attempt, left.cover), (LeaseState::Cancelled, 2, 3));
        assert!(store.ttl.lock().unwrap().unwrap() > delay);
    }

    #[tokio::test]
    async fn an_unknown_task_is_remembered_for_the_longest_delay() {
        let store = Arc::new(OneKey::default());
        assert_eq!(cancel(&store).await, CancelOutcome::Unknown);
        assert!(store.ttl.lock().unwrap().unwrap() >= Duration::from_secs(660));
    }

    #[tokio::test]
    async fn cancel_whose_response_was_lost_is_recognized() {
        let store = Arc::new(OneKey::default());
        *store.lose_answers.lock().unwrap() = 2;
        assert_eq!(cancel(&store).await, CancelOutcome::Unknown);
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancel_that_may_have_taken_effect_says_so_whatever_fails_last() {
        // The first read passes, the swap's answer is lost, and from then on nothing can be read.
        let store = OneKey::refusing(2, usize::MAX);
        *store.lose_answers.lock().unwrap() = 2;
        let e = controller(&store).cancel(&TaskId::new("t").unwrap()).await.unwrap_err();
        assert!(store.value.lock().unwrap().is_some(), "it did take effect");
        assert_eq!((e.kind(), e.effect()), (ErrorKind::Unavailable, Effect::Unknown), "{e}");

        let e = controller(&OneKey::refusing(0, usize::MAX)).cancel(&TaskId::new("t").unwrap()).await;
        assert_eq!(e.unwrap_err().effect(), Effect::NotApplied);
    }

    #[tokio::test(start_paused = true)]
    async fn calls_on_connections_that_were_closed_while_idle_are_retried() {
        let id = TaskId::new("t").unwrap();
        for after in 0..2 {
            for closed in 1..=4 {
                let store = OneKey::refusing(after, closed);
                assert_eq!(controller(&store).get(&id).await.unwrap().status, JobStatus::Unknown);
                let store = OneKey::refusing(after, closed);
                assert_eq!(controller(&store).cancel(&id).await.unwrap(), CancelOutcome::Unknown);
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn retries_are_limited() {
        let store = OneKey::refusing(0, usize::MAX);
        let began = Instant::now();
        controller(&store).get(&TaskId::new("t").unwrap()).await.unwrap_err();
        assert!(began.elapsed() <= 2 * TRY_FOR, "{:?}", began.elapsed());
        assert!((2..=TRIES as usize).contains(&store.calls.load(Ordering::Relaxed)));
    }

    #[tokio::test]
    async fn ended_task_is_not_changed() {
        for (state, status) in [
            (LeaseState::Done, JobStatus::Done),
            (LeaseState::Dead, JobStatus::Dead),
            (LeaseState::Cancelled, JobStatus::Cancelled),
        ] {
            let store = Arc::new(OneKey::default());
            let value = lease(state, Duration::ZERO).encode();
            *store.value.lock().unwrap() = Some(value.clone());
            let CancelOutcome::TooLate(info) = cancel(&store).await else { panic!("{state:?}") };
            assert_eq!((info.status, info.next_execution), (status, None));
            assert_eq!(store.value.lock().unwrap().as_ref(), Some(&value));
        }
    }

    #[tokio::test]
    async fn a_lease_of_a_later_version_is_an_error_and_a_damaged_one_unknown() {
        let store = Arc::new(OneKey::default());
        let id = TaskId::new("t").unwrap();
        *store.value.lock().unwrap() = Some(Bytes::from_static(&[0x99, 1, 2]));
        assert_eq!(controller(&store).get(&id).await.unwrap_err().kind(), ErrorKind::Unsupported);
        *store.value.lock().unwrap() = Some(Bytes::from_static(&[0]));
        assert_eq!(controller(&store).get(&id).await.unwrap().status, JobStatus::Unknown);
    }

    #[tokio::test]
    async fn task_with_an_expired_lease_is_reported_as_waiting() {
        let store = Arc::new(OneKey::default());
        let id = TaskId::new("t").unwrap();
        *store.value.lock().unwrap() = Some(lease(LeaseState::Live, Duration::from_secs(9)).encode());
        assert_eq!(controller(&store).get(&id).await.unwrap().status, JobStatus::Processing);
        let mut past = lease(LeaseState::Live, Duration::ZERO);
        past.deadline = wall(SystemTime::now() - Duration::from_secs(2));
        *store.value.lock().unwrap() = Some(past.encode());
        let info = controller(&store).get(&id).await.unwrap();
        assert_eq!(info.status, JobStatus::Waiting);
        assert!(info.next_execution.unwrap() < SystemTime::now());
    }
}
