//! Whether the log still is the one that was read before: asked at every assignment, where it decides where reading
//! begins, and every few seconds while a partition is being read.
//!
//! A check asks the servers, so it runs as a task, a bounded number at a time, and tells the poll thread the outcome.

use crate::{
    error,
    group::Client,
    locked,
    member::Shared,
    slot::{Checked, Gap, Slot},
};
use kafkaq_core::{
    Cursor, Error, ErrorKind, Offsets, Partition, PartitionLog, Result, Retry, Standing, standing,
};
use rdkafka::{Offset, TopicPartitionList, consumer::Consumer as _};
use std::{
    future::Future,
    sync::{Arc, Weak, atomic::Ordering::SeqCst},
    time::Duration,
};
use tokio::{
    runtime::Handle,
    sync::{Semaphore, mpsc},
    time::{Instant, sleep, timeout},
};

/// Partitions of a member that are compared at a time.
const AT_ONCE: usize = 8;
/// Outcomes that wait for the poll thread.
const OUTCOMES: usize = 64;
/// The log answers within its own limits. This is for one that doesn't.
const LIMIT: Duration = Duration::from_secs(60);
/// Doubles with each failure in a row, up to `MAX_BACKOFF`.
const BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(5);
/// A failure that is mended within this time is not reported.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long the first question for committed offsets waits, which nothing can interrupt. The next waits longer.
const FIRST_LIMIT: Duration = Duration::from_secs(1);

/// What a check tells the poll thread.
pub(crate) enum Outcome {
    /// Reading begins there.
    Begin(Arc<Slot>, Start),
    /// The log was the same after that record had been read.
    Intact(Arc<Slot>, Checked),
    /// It is another one.
    Replaced(Arc<Slot>),
    /// Something that a person should know.
    Alarm(Error),
    /// It could not be asked; where that matters, it will be asked again.
    Failed(Error),
}

/// Where an assignment begins, and what is to be said about that.
#[derive(Debug)]
pub(crate) struct Start {
    pub(crate) at: Cursor,
    pub(crate) alarm: Option<Error>,
}

/// Runs the checks of one member.
#[derive(Clone)]
pub(crate) struct Checker {
    log: Arc<dyn PartitionLog>,
    shared: Arc<Shared>,
    runtime: Handle,
    outcomes: mpsc::Sender<Outcome>,
    permits: Arc<Semaphore>,
}

impl Checker {
    /// The receiver ends when the last check has, after the checker was dropped.
    pub(crate) fn new(
        log: Arc<dyn PartitionLog>,
        shared: Arc<Shared>,
        runtime: Handle,
    ) -> (Self, mpsc::Receiver<Outcome>) {
        let (outcomes, told) = mpsc::channel(OUTCOMES);
        (Checker { log, shared, runtime, outcomes, permits: Arc::new(Semaphore::new(AT_ONCE)) }, told)
    }

    /// Finds out where reading begins. `doubted`: what was read of these partitions before didn't fit.
    pub(crate) fn locate(&self, consumer: Weak<Client>, slots: Vec<Arc<Slot>>, doubted: bool) {
        let checker = self.clone();
        self.spawn(async move {
            let slots: Vec<_> = slots.into_iter().filter(|s| !s.gone.load(SeqCst)).collect();
            let mut limit = FIRST_LIMIT;
            let committed = checker
                .repeated(&slots, None, || {
                    let asked = checker.committed(consumer.clone(), &slots, limit);
                    limit = (limit * 2).min(checker.shared.settings.request_timeout());
                    asked
                })
                .await;
            for (slot, committed) in slots.into_iter().zip(committed.unwrap_or_default()) {
                let this = checker.clone();
                checker.spawn(async move {
                    let (log, of) = (&*this.log, &slot.assignment.partition);
                    let looked = || begin(log, of, committed, doubted);
                    let found = this.repeated(std::slice::from_ref(&slot), Some(&this.permits), looked).await;
                    if let Some(start) = found {
                        this.tell(Outcome::Begin(slot.clone(), start)).await;
                    }
                });
            }
        });
    }

    /// Compares what was read with the log. A check that fails is left to the next one.
    pub(crate) fn compare(&self, slot: &Arc<Slot>) {
        let Some(checked) = locked(&slot.trail).to_check() else { return };
        if slot.comparing.swap(true, SeqCst) {
            return;
        }
        let (this, slot) = (self.clone(), slot.clone());
        self.spawn(async move {
            let of = &slot.assignment.partition;
            let found = {
                let _permit = this.permits.acquire().await;
                in_time(standing(&*this.log, of, &checked.cursor)).await
            };
            slot.comparing.store(false, SeqCst);
            match found {
                // What the consumer doesn't report by itself.
                Err(e) if e.retry() == Retry::No => this.tell(Outcome::Failed(e.on(of))).await,
                Err(_) => {}
                Ok(Standing::Replaced { .. }) => this.tell(Outcome::Replaced(slot.clone())).await,
                Ok(found) => {
                    if let Some(alarm) = checked.gap.and_then(|gap| deleted_within(of, gap, found)) {
                        this.tell(Outcome::Alarm(alarm)).await;
                    }
                    this.tell(Outcome::Intact(slot.clone(), checked)).await;
                }
            }
        });
    }

    /// Until it succeeds, with backoff; `None` when nobody needs it any more.
    async fn repeated<T, F: Future<Output = Result<T>>>(
        &self,
        slots: &[Arc<Slot>],
        permits: Option<&Semaphore>,
        mut attempt: impl FnMut() -> F,
    ) -> Option<T> {
        let (mut backoff, began) = (BACKOFF, Instant::now());
        loop {
            if slots.iter().all(|slot| slot.gone.load(SeqCst)) {
                return None;
            }
            let outcome = {
                let _permit = match permits {
                    Some(permits) => Some(permits.acquire().await),
                    None => None,
                };
                in_time(attempt()).await
            };
            match outcome {
                Ok(found) => return Some(found),
                Err(e) if began.elapsed() > PATIENCE => {
                    let e = match slots {
                        [slot] => e.on(&slot.assignment.partition),
                        _ => e,
                    };
                    self.tell(Outcome::Failed(e.with_retry(Retry::Yes))).await;
                }
                Err(_) => {}
            }
            sleep(backoff).await;
            backoff = (backoff * 2).min(MAX_BACKOFF);
        }
    }

    /// The committed offset of each, with the marks that were committed with it.
    async fn committed(
        &self,
        consumer: Weak<Client>,
        slots: &[Arc<Slot>],
        limit: Duration,
    ) -> Result<Vec<Option<Cursor>>> {
        const OP: &str = "read committed offsets";
        let partitions: Vec<_> = slots.iter().map(|slot| slot.assignment.partition.clone()).collect();
        let (bootstrap, counted) = (self.shared.settings.bootstrap().to_owned(), self.outcomes.clone());
        let ask = move || {
            // The poll thread ends after everything that has a sender.
            let _counted = counted;
            let mut list = TopicPartitionList::with_capacity(partitions.len());
            for partition in &partitions {
                list.add_partition(&partition.topic, partition.index);
            }
            let consumer = consumer.upgrade().ok_or_else(|| error::closed(OP))?;
            let failed = |e| error::rejected(error::code_of(&e), OP, &bootstrap).with_retry(Retry::Yes);
            let list = consumer.committed_offsets(list, limit).map_err(failed)?;
            let of = |partition: &Partition| match list.find_partition(&partition.topic, partition.index) {
                Some(found) => found.error().map_err(failed).map(|()| match found.offset() {
                    Offset::Offset(offset) => Some(Cursor::committed(offset, found.metadata())),
                    _ => None,
                }),
                None => Err(Error::not_applied(ErrorKind::Other, OP).on(partition)),
            };
            partitions.iter().map(of).collect()
        };
        let answered = self.runtime.spawn_blocking(ask).await;
        answered.unwrap_or_else(|e| Err(Error::not_applied(ErrorKind::Other, OP).with_source(e)))
    }

    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut leaving = self.shared.leaving.subscribe();
        self.runtime.spawn(async move {
            tokio::select! {
                () = work => {}
                _ = leaving.wait_for(|leaving| *leaving) => {}
            }
        });
    }

    async fn tell(&self, outcome: Outcome) {
        // It fails when the member has ended.
        let _ = self.outcomes.send(outcome).await;
        self.shared.ring();
    }
}

async fn in_time<T>(call: impl Future<Output = Result<T>>) -> Result<T> {
    let late = |_| Err(Error::not_applied(ErrorKind::Timeout, "compare with the log"));
    timeout(LIMIT, call).await.unwrap_or_else(late)
}

/// Where reading begins: at the committed offset, if that belongs to the log that is there.
async fn begin(
    log: &dyn PartitionLog,
    of: &Partition,
    committed: Option<Cursor>,
    doubted: bool,
) -> Result<Start> {
    // Once the records didn't fit, an offset that nothing speaks for may be of the earlier log.
    let proven = |at: &Cursor| at.mark.is_some() || at.anchor.is_some();
    let Some(at) = committed.filter(|at| !doubted || proven(at)) else {
        let first = first(log, of).await?;
        return Ok(Start { at: Cursor::new(first), alarm: doubted.then(|| replaced(of, first)) });
    };
    Ok(match standing(log, of, &at).await? {
        Standing::Intact => Start { at, alarm: doubted.then(|| cut(of, at.offset)) },
        Standing::DeletedUnread { first } => {
            Start { at: Cursor::new(first), alarm: Some(deleted_unread(of, at.offset, first)) }
        }
        Standing::Replaced { first } => Start { at: Cursor::new(first), alarm: Some(replaced(of, first)) },
    })
}

async fn first(log: &dyn PartitionLog, of: &Partition) -> Result<i64> {
    let answer: Option<Result<Offsets>> = log.offsets(std::slice::from_ref(of)).await.into_iter().next();
    Ok(answer.unwrap_or_else(|| Err(Error::unknown(ErrorKind::Other, "offsets").on(of)))?.first)
}

/// The log begins behind a gap that was stepped over: what was in it was deleted.
fn deleted_within(of: &Partition, gap: Gap, found: Standing) -> Option<Error> {
    match found {
        Standing::DeletedUnread { first } if first >= gap.to => Some(deleted_unread(of, gap.from, gap.to)),
        _ => None,
    }
}

fn alarm(of: &Partition, kind: ErrorKind, what: String) -> Error {
    Error::not_applied(kind, "read").on(of).with_source(what).with_retry(Retry::Yes)
}

fn deleted_unread(of: &Partition, from: i64, to: i64) -> Error {
    let what = format!(
        "up to {} records were deleted before they were read, offsets {from} to {}: their tasks can't be executed",
        to - from,
        to - 1
    );
    alarm(of, ErrorKind::NotFound, what).with_advice(
        "Raise the topic's `retention.ms` and `retention.bytes`, or start enough workers to keep up with them",
    )
}

fn replaced(of: &Partition, first: i64) -> Error {
    let what = format!(
        "the log is not the one that was read before: its topic was deleted and recreated, or its records were \
         cut off. What was committed for it doesn't count; reading begins at its first record, offset {first}"
    );
    alarm(of, ErrorKind::Other, what)
        .with_advice("Tasks of the earlier log that were not done yet have to be published again")
}

fn cut(of: &Partition, at: i64) -> Error {
    let what = format!(
        "the log doesn't have the records that were read last: its end was cut off. Reading goes on at the \
         committed offset {at}"
    );
    alarm(of, ErrorKind::Other, what).with_advice(
        "Turn `unclean.leader.election.enable` off, and set `min.insync.replicas` to 2 or more of 3 replicas",
    )
}
