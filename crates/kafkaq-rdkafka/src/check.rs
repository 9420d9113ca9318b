//! Checks whether the log is still the one that was read before: at every assignment, where it decides where reading
//! starts, and every few seconds while a partition is being read.
//!
//! A check queries the servers, so it runs as a task, a bounded number at a time, and reports the outcome to the poll
//! thread.

use crate::{
    error,
    group::Client,
    member::Shared,
    session::{self, Agreed},
    slot::{Checked, Doubt, Gap, Slot},
};
use kafkaq_core::{
    Cursor, Error, ErrorKind, FetchLimit, Offsets, Partition, PartitionLog, Position, Result, Retry,
    Standing, lock, standing_within,
};
use rdkafka::{Offset, TopicPartitionList, consumer::Consumer as _};
use std::{
    future::Future,
    iter,
    sync::{Arc, Weak, atomic::Ordering::SeqCst},
    time::Duration,
};
use tokio::{
    runtime::Handle,
    sync::{Semaphore, mpsc},
    time::{Instant, sleep, timeout},
};

/// How many partitions of a member are compared at a time.
const AT_ONCE: usize = 8;
/// Outcomes that wait for the poll thread.
const OUTCOMES: usize = 64;
/// The log returns within its own limits. This is for one that doesn't.
const LIMIT: Duration = Duration::from_secs(60);
/// Doubles with each failure in a row, up to `MAX_BACKOFF`.
const BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(5);
/// A failure that is resolved within this time is not reported.
const PATIENCE: Duration = Duration::from_secs(3);
/// The timeout of the first query for committed offsets, which can't be interrupted. The next ones are longer.
const FIRST_LIMIT: Duration = Duration::from_secs(1);

/// The outcome of a check, for the poll thread.
pub(crate) enum Outcome {
    /// Reading starts there.
    Begin(Arc<Slot>, Start),
    /// The log was the same when this was compared, with this end.
    Intact(Arc<Slot>, Checked, i64),
    /// It is another log, with this first offset.
    Replaced(Arc<Slot>, i64),
    /// There is no record from the one offset up to the other.
    Nothing(Arc<Slot>, i64, i64),
    /// There are records that the consumer doesn't return.
    Stalled(Arc<Slot>),
    /// A message for the operator.
    Alarm(Error),
    /// Whether the group has the requested session timeout.
    Agreed(Agreed),
    /// It could not be queried; where that matters, it is retried.
    Failed(Error),
}

/// Where an assignment starts, and a message about that.
#[derive(Debug)]
pub(crate) struct Start {
    pub(crate) at: Cursor,
    /// Where the log begins.
    pub(crate) first: i64,
    /// It is not the log that was committed or read before.
    pub(crate) is_replaced: bool,
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

    /// Sets the group's session timeout, for KIP-848.
    pub(crate) fn agree(&self, group: Arc<str>, topic: Arc<str>, session: Duration) {
        let this = self.clone();
        self.spawn(async move {
            let ask = || session::agree(&this.shared.settings, &group, &topic, session);
            if let Some(agreed) = this.repeated(None, None, ask).await {
                this.tell(Outcome::Agreed(agreed)).await;
            }
        });
    }

    /// Finds out where reading starts.
    pub(crate) fn locate(&self, consumer: Weak<Client>, slots: Vec<Arc<Slot>>) {
        let checker = self.clone();
        self.spawn(async move {
            let slots: Vec<_> = slots.into_iter().filter(|s| !s.gone.load(SeqCst)).collect();
            let mut limit = FIRST_LIMIT;
            let committed = checker
                .repeated(Some(&slots), None, || {
                    let asked = checker.committed(consumer.clone(), &slots, limit);
                    limit = (limit * 2).min(checker.shared.settings.request_timeout());
                    asked
                })
                .await;
            for (slot, committed) in slots.into_iter().zip(committed.unwrap_or_default()) {
                let this = checker.clone();
                checker.spawn(async move {
                    let (log, of) = (&*this.log, &slot.assignment.partition);
                    let past_position = this.shared.past_positions.of(of);
                    let looked = || begin(log, of, committed, past_position, slot.doubt);
                    let found =
                        this.repeated(Some(std::slice::from_ref(&slot)), Some(&this.permits), looked).await;
                    if let Some(start) = found {
                        this.tell(Outcome::Begin(slot.clone(), start)).await;
                    }
                });
            }
        });
    }

    /// Compares what was read with the log. A failed check isn't retried before the next one.
    pub(crate) fn compare<'a>(&self, slots: impl Iterator<Item = &'a Arc<Slot>>) {
        let checked = |slot: &Arc<Slot>| {
            let checked = lock(&slot.trail).to_check()?;
            (!slot.comparing.swap(true, SeqCst)).then(|| (slot.clone(), checked))
        };
        let checked: Vec<_> = slots.filter_map(checked).collect();
        if checked.is_empty() {
            return;
        }
        let this = self.clone();
        self.spawn(async move {
            let of: Vec<_> = checked.iter().map(|(slot, _)| slot.assignment.partition.clone()).collect();
            let ends = match timeout(LIMIT, this.log.offsets(&of)).await {
                Ok(ends) => ends.into_iter().map(Some).collect(),
                Err(_) => Vec::new(),
            };
            let ends = ends.into_iter().chain(iter::repeat_with(|| None));
            for ((slot, checked), ends) in checked.into_iter().zip(ends) {
                let that = this.clone();
                this.spawn(async move { that.compare_one(slot, checked, ends).await });
            }
        });
    }

    async fn compare_one(&self, slot: Arc<Slot>, checked: Checked, ends: Option<Result<Offsets>>) {
        let of = &slot.assignment.partition;
        let found = match ends {
            Some(Ok(ends)) => {
                let _permit = self.permits.acquire().await;
                in_time(standing_within(&*self.log, of, ends, &checked.cursor, checked.floor))
                    .await
                    .map(|found| (found, ends))
            }
            Some(Err(e)) => Err(e),
            None => return slot.comparing.store(false, SeqCst),
        };
        slot.comparing.store(false, SeqCst);
        match found {
            // Problems that the consumer doesn't report by itself.
            Err(e) if e.retry() == Retry::No => self.tell(Outcome::Failed(e)).await,
            Err(_) => {}
            Ok((Standing::Replaced { first }, _)) => self.tell(Outcome::Replaced(slot.clone(), first)).await,
            Ok((found, ends)) => {
                if let Some(alarm) = checked.gap.and_then(|gap| deleted_within(of, gap, found)) {
                    self.tell(Outcome::Alarm(alarm)).await;
                }
                self.tell(Outcome::Intact(slot.clone(), checked, ends.next)).await;
            }
        }
    }

    /// Finds out whether there is a record from `next` on: the log's end may be after transaction markers.
    pub(crate) fn prove(&self, slot: &Arc<Slot>, next: i64) {
        let (this, slot) = (self.clone(), slot.clone());
        self.spawn(async move {
            let from = Position { partition: slot.assignment.partition.clone(), offset: next };
            let limit = FetchLimit::new(Duration::from_millis(500), 1);
            let found = {
                let _permit = this.permits.acquire().await;
                in_time(this.log.fetch(&from, limit)).await
            };
            match found {
                Ok(batch) if batch.records.is_empty() => {
                    this.tell(Outcome::Nothing(slot.clone(), next, batch.next)).await;
                }
                Ok(_) => this.tell(Outcome::Stalled(slot.clone())).await,
                // The next check tries again.
                Err(_) => {}
            }
        });
    }

    /// Retries until it succeeds, with backoff; `None` when nobody needs it anymore.
    async fn repeated<T, F: Future<Output = Result<T>>>(
        &self,
        slots: Option<&[Arc<Slot>]>,
        permits: Option<&Semaphore>,
        mut attempt: impl FnMut() -> F,
    ) -> Option<T> {
        let (mut backoff, began) = (BACKOFF, Instant::now());
        loop {
            if slots.is_some_and(|slots| slots.iter().all(|slot| slot.gone.load(SeqCst))) {
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
                Err(e) if began.elapsed() > PATIENCE => self.tell(Outcome::Failed(e)).await,
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

/// Where reading starts: at the committed offset, if that belongs to the current log. `past_position` is this member's
/// earlier position in the partition.
async fn begin(
    log: &dyn PartitionLog,
    of: &Partition,
    committed: Option<Cursor>,
    past_position: Option<Cursor>,
    doubt: Doubt,
) -> Result<Start> {
    let doubted = doubt != Doubt::Nothing;
    let ends = ends(log, of).await?;
    let replaced = |first| Start { at: Cursor::new(first), first, is_replaced: true, alarm: None };
    let goes_on = |at, first, alarm| Start { at, first, is_replaced: false, alarm };
    // If the records didn't fit, an offset without marks may belong to the earlier log.
    let proven = |at: &Cursor| at.mark.is_some() || at.anchor.is_some();
    let Some(at) = committed.filter(|at| !doubted || proven(at)) else {
        let first = ends.first;
        if doubted {
            return Ok(replaced(first));
        }
        // Committed offsets are deleted with their topic. Then only what was read shows that it was recreated.
        let found = match &past_position {
            Some(past_position) => standing_within(log, of, ends, past_position, None).await?,
            None => Standing::Intact,
        };
        return Ok(match found {
            Standing::Replaced { .. } => replaced(first),
            _ => goes_on(Cursor::new(first), first, None),
        });
    };
    let found = standing_within(log, of, ends, &at, None).await?;
    Ok(match found {
        Standing::Intact => goes_on(at, ends.first, (doubt == Doubt::Records).then(|| cut(of, at.offset))),
        Standing::DeletedUnread { first } => goes_on(Cursor::new(first), first, found.alarm(of, &at)),
        Standing::Replaced { first } => replaced(first),
    })
}

async fn ends(log: &dyn PartitionLog, of: &Partition) -> Result<Offsets> {
    let answer = log.offsets(std::slice::from_ref(of)).await.into_iter().next();
    answer.unwrap_or_else(|| Err(Error::unknown(ErrorKind::Other, "offsets").on(of)))
}

/// The log starts after a gap that was skipped: the records in it were deleted.
fn deleted_within(of: &Partition, gap: Gap, found: Standing) -> Option<Error> {
    match found {
        Standing::DeletedUnread { first } if first >= gap.to => {
            Standing::DeletedUnread { first: gap.to }.alarm(of, &Cursor::new(gap.from))
        }
        _ => None,
    }
}

fn alarm(of: &Partition, what: String) -> Error {
    Error::not_applied(ErrorKind::DataLoss, "read").on(of).with_source(what).with_retry(Retry::Yes)
}

/// The message about a partition whose log was replaced.
pub(crate) fn replaced(of: &Partition, first: i64) -> Error {
    let what = format!(
        "the log is not the one that was read before: its topic was deleted and recreated, or its records were \
         cut off. What was committed for it doesn't count; reading begins at its first record, offset {first}"
    );
    alarm(of, what).with_advice("Tasks of the earlier log that were not done yet have to be published again")
}

fn cut(of: &Partition, at: i64) -> Error {
    let what = format!(
        "the log doesn't have the records that were read last: its end was truncated. Reading continues at \
         the committed offset {at}"
    );
    alarm(of, what).with_advice(
        "Turn `unclean.leader.election.enable` off, and set `min.insync.replicas` to 2 or more of 3 replicas",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_trait::async_trait;
    use kafkaq_core::{Batch, Headers, Log, Mark, NewRecord, Record, TopicInfo, TopicSpec};

    /// A log of one partition: its first offset, and what its records say.
    #[derive(Debug)]
    struct Stub {
        first: i64,
        says: &'static str,
        next: i64,
    }

    impl Stub {
        fn record(&self, offset: i64) -> Record {
            Record::new(offset, 0, None, Some(format!("{} {offset}", self.says).into()), Headers::new())
        }

        fn mark(&self, offset: i64) -> Option<Mark> {
            Some(Mark::of(&self.record(offset)))
        }
    }

    #[async_trait]
    impl Log for Stub {
        async fn ensure_topics(&self, _: &[TopicSpec]) -> Result<Vec<TopicInfo>> {
            Ok(Vec::new())
        }
        async fn describe_topics(&self, _: &[Arc<str>]) -> Result<Vec<Option<TopicInfo>>> {
            Ok(Vec::new())
        }
        async fn append(&self, _: &Partition, _: &[NewRecord]) -> Vec<Result<i64>> {
            Vec::new()
        }
        async fn close(&self) -> Result<()> {
            Ok(())
        }
    }

    #[async_trait]
    impl PartitionLog for Stub {
        async fn fetch(&self, from: &Position, _: FetchLimit) -> Result<Batch> {
            let at = from.offset.max(self.first);
            Ok(Batch::new((at..self.next).map(|o| self.record(o)).collect(), self.next, None))
        }
        async fn offsets(&self, of: &[Partition]) -> Vec<Result<Offsets>> {
            of.iter().map(|_| Ok(Offsets { first: self.first, next: self.next })).collect()
        }
    }

    fn log(first: i64, says: &'static str, next: i64) -> Stub {
        Stub { first, says, next }
    }

    /// Returns where it begins, whether it is another log, and the reported message.
    async fn begun(log: &Stub, committed: Option<Cursor>, doubt: Doubt) -> (Cursor, bool, String) {
        let start = begin(log, &Partition::new("t", 0), committed, None, doubt).await.unwrap();
        assert!(
            start.alarm.iter().all(|e| e.retry() == Retry::Yes && e.advice().is_some()),
            "{:?}",
            start.alarm
        );
        (start.at, start.is_replaced, start.alarm.map_or(String::new(), |e| e.to_string()))
    }

    #[tokio::test]
    async fn commit_counts_only_for_the_log_it_belongs_to() {
        let was = log(0, "earlier", 100);
        let marked = Cursor { offset: 50, mark: was.mark(49), anchor: was.mark(40) };
        // The last commit was made after the topic had been recreated, and before anybody noticed.
        let late = |now: &Stub| Cursor { offset: 50, mark: now.mark(49), anchor: was.mark(40) };
        let (shorter, equal, longer) = (log(0, "now", 10), log(0, "now", 50), log(0, "now", 200));
        assert_eq!(begun(&was, Some(marked), Doubt::Nothing).await, (marked, false, String::new()));
        for (now, committed) in [
            (&shorter, marked),
            (&equal, marked),
            (&longer, marked),
            (&equal, late(&equal)),
            (&longer, late(&longer)),
        ] {
            let (at, is_replaced, _) = begun(now, Some(committed), Doubt::Nothing).await;
            assert_eq!((at, is_replaced), (Cursor::new(0), true), "{now:?}");
        }
    }

    #[test]
    fn alarm_about_another_log_says_where_reading_begins() {
        let e = replaced(&Partition::new("t", 3), 7);
        let said = e.to_string();
        assert!(
            ["deleted and recreated", "t/3", "offset 7"].iter().all(|part| said.contains(part)),
            "{said}"
        );
        assert!(e.retry() == Retry::Yes && e.advice().is_some());
    }

    #[tokio::test]
    async fn without_a_commit_reading_begins_at_the_first_record_without_an_alarm() {
        assert_eq!(
            begun(&log(7, "now", 9), None, Doubt::Nothing).await,
            (Cursor::new(7), false, String::new())
        );
    }

    #[tokio::test]
    async fn replaced_log_is_reported_even_without_a_commit() {
        let of = Partition::new("t", 0);
        let read = Cursor { mark: log(0, "was", 9).mark(6), ..Cursor::new(7) };
        for (now, is_other) in [(log(0, "was", 9), false), (log(0, "now", 9), true), (log(0, "was", 3), true)]
        {
            let start = begin(&now, &of, None, Some(read), Doubt::Nothing).await.unwrap();
            assert_eq!((start.at, start.is_replaced), (Cursor::new(0), is_other), "from the first record");
            assert!(start.alarm.is_none());
        }
    }

    #[tokio::test]
    async fn records_that_were_deleted_unread_are_counted() {
        let (at, is_replaced, said) =
            begun(&log(1000, "now", 2000), Some(Cursor::new(400)), Doubt::Nothing).await;
        assert_eq!((at, is_replaced), (Cursor::new(1000), false));
        assert!(said.contains("600 records") && said.contains("retention.ms"), "{said}");
        let gap = Gap { from: 400, to: 1000 };
        let within = |first| deleted_within(&Partition::new("t", 0), gap, Standing::DeletedUnread { first });
        assert!(within(1200).unwrap().to_string().contains("600 records"));
        assert!(within(999).is_none(), "the skipped records still exist: a transaction was aborted");
    }

    #[tokio::test]
    async fn offset_without_marks_is_accepted_unless_the_records_did_not_fit() {
        let (log, bare) = (log(0, "now", 200), Cursor::new(50));
        assert_eq!(begun(&log, Some(bare), Doubt::Nothing).await, (bare, false, String::new()));
        for doubt in [Doubt::Records, Doubt::Log] {
            let (at, is_replaced, _) = begun(&log, Some(bare), doubt).await;
            assert_eq!((at, is_replaced), (Cursor::new(0), true));
            let marked = Cursor { offset: 50, mark: log.mark(49), anchor: None };
            let (at, is_replaced, said) = begun(&log, Some(marked), doubt).await;
            assert_eq!((at, is_replaced), (marked, false));
            let is_cut = said.contains("truncated") && said.contains("50");
            assert_eq!(is_cut, doubt == Doubt::Records, "{said}");
        }
    }
}
