use super::{queue::MAX_RECORDS, *};
use async_trait::async_trait;
use bytes::Bytes;
use kafkaq_core::{Effect, Error, ErrorKind, Headers, Partition, TopicInfo, TopicSpec};
use std::{
    collections::VecDeque,
    sync::{Mutex, atomic::AtomicUsize},
};
use tokio::sync::Semaphore;

/// A log with scripted errors, one per record, that records each request. It waits for `gate`, and forever in the
/// partitions that hang.
#[derive(Debug)]
struct Fake {
    begun: AtomicUsize,
    hangs_below: AtomicI32,
    requests: Mutex<Vec<(Partition, Vec<NewRecord>)>>,
    errors: Mutex<VecDeque<Error>>,
    gate: Semaphore,
    partitions: AtomicI32,
    looks: AtomicUsize,
}

#[async_trait]
impl Log for Fake {
    async fn ensure_topics(&self, _: &[TopicSpec]) -> Result<Vec<TopicInfo>> {
        Ok(Vec::new())
    }
    async fn describe_topics(&self, names: &[Arc<str>]) -> Result<Vec<Option<TopicInfo>>> {
        self.looks.fetch_add(1, Ordering::Relaxed);
        let partitions = self.partitions.load(Ordering::Relaxed);
        Ok(names.iter().map(|name| Some(TopicInfo::new(name.clone(), partitions))).collect())
    }
    async fn append(&self, to: &Partition, records: &[NewRecord]) -> Vec<Result<i64>> {
        self.begun.fetch_add(1, Ordering::Relaxed);
        if to.index < self.hangs_below.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        self.gate.acquire().await.unwrap().forget();
        self.requests.lock().unwrap().push((to.clone(), records.to_vec()));
        let mut errors = self.errors.lock().unwrap();
        (0..records.len()).map(|i| errors.pop_front().map_or(Ok(i as i64), Err)).collect()
    }
    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

impl Fake {
    fn begun(&self) -> usize {
        self.begun.load(Ordering::Relaxed)
    }

    fn sizes(&self) -> Vec<usize> {
        self.requests.lock().unwrap().iter().map(|(_, records)| records.len()).collect()
    }
}

fn fake(open: usize, errors: impl IntoIterator<Item = Error>) -> Arc<Fake> {
    Arc::new(Fake {
        begun: AtomicUsize::new(0),
        hangs_below: AtomicI32::new(0),
        requests: Mutex::default(),
        errors: Mutex::new(errors.into_iter().collect()),
        gate: Semaphore::new(open),
        partitions: AtomicI32::new(2),
        looks: AtomicUsize::new(0),
    })
}

fn appender(log: &Arc<Fake>, space: usize, timeout: Duration) -> Arc<Appender> {
    appender_of(2, log, space, timeout)
}

fn appender_of(partitions: i32, log: &Arc<Fake>, space: usize, timeout: Duration) -> Arc<Appender> {
    Appender::new(
        log.clone(),
        "t".into(),
        partitions,
        space,
        timeout,
        Home::find().unwrap(),
        CallCounter::new("q", "publish"),
    )
}

fn record(size: usize) -> NewRecord {
    NewRecord::new(None, Some(Bytes::from(vec![7; size])), Headers::new())
}

/// Longer than any of these tests takes.
const LONG: Duration = Duration::from_secs(60);

async fn push(a: &Arc<Appender>, index: i32, record: NewRecord) -> Result<Pushed> {
    a.push(Destination::Partition(index), record, a.deadline(Instant::now()), &mut Unsent::new(a)).await
}

/// Returns an appender with six partitions, where a request holds back gathered records for at most `patience`.
fn gathering(log: &Arc<Fake>, patience: Duration) -> Arc<Appender> {
    let mut appender = appender_of(6, log, 1 << 20, LONG);
    Arc::get_mut(&mut appender).unwrap().gathering.patience = patience;
    appender
}

async fn gather(a: &Arc<Appender>, index: i32) -> Pushed {
    a.push(Destination::Any(index), record(1), a.deadline(Instant::now()), &mut Unsent::new(a)).await.unwrap()
}

impl Pushed {
    async fn outcome(self) -> Result<i64> {
        tokio::time::timeout(LONG, self.outcome).await.expect("it hangs").unwrap()
    }
}

#[tokio::test]
async fn records_pushed_during_a_request_go_into_the_next_one() {
    let log = fake(0, []);
    let a = appender(&log, 1 << 20, LONG);
    let mut pushed = vec![push(&a, 0, record(1)).await.unwrap()];
    for _ in 0..100 {
        pushed.push(push(&a, 0, record(1)).await.unwrap());
    }
    log.gate.add_permits(9);
    for one in pushed {
        one.outcome().await.unwrap();
    }
    assert_eq!(log.sizes(), [1, 100]);
}

#[tokio::test]
async fn single_records_spread_while_few_requests_are_in_flight_and_gather_beyond() {
    let log = fake(0, []);
    let a = gathering(&log, LONG / 4);
    let mut gathered = vec![gather(&a, 0).await, gather(&a, 1).await];
    for n in 0..40 {
        let one = gather(&a, n % 6).await;
        // Its caller may have gone away.
        if n % 2 == 0 {
            gathered.push(one);
        }
    }
    assert_eq!(log.begun(), 2);
    log.gate.add_permits(99);
    for one in gathered {
        one.outcome().await.unwrap();
    }
    let requests = log.requests.lock().unwrap();
    let mut partitions: Vec<_> = requests.iter().map(|(to, _)| to.index).collect();
    partitions.sort_unstable();
    partitions.dedup();
    assert_eq!(
        (requests.len(), partitions.len()),
        (3, 3),
        "all that gathers goes at once, to another partition"
    );
}

#[tokio::test]
async fn gathered_records_are_sent_once_there_are_enough() {
    let log = fake(0, []);
    let a = gathering(&log, LONG / 4);
    let mut gathered = vec![gather(&a, 0).await, gather(&a, 1).await];
    for n in 1..=3 * MAX_GATHERED {
        gathered.push(gather(&a, 0).await);
        assert_eq!(log.begun(), 2 + n / MAX_GATHERED);
    }
    log.gate.add_permits(99);
    for one in gathered {
        one.outcome().await.unwrap();
    }
}

#[tokio::test]
async fn record_for_a_given_partition_does_not_gather() {
    let log = fake(0, []);
    let a = gathering(&log, LONG / 4);
    let mut pushed = vec![gather(&a, 0).await, gather(&a, 1).await];
    for index in 2..6 {
        pushed.push(push(&a, index, record(1)).await.unwrap());
        assert_eq!(log.begun(), index as usize + 1);
    }
    log.gate.add_permits(99);
    for one in pushed {
        one.outcome().await.unwrap();
    }
}

#[tokio::test]
async fn nothing_gathers_behind_records_for_given_partitions() {
    let log = fake(0, []);
    let a = gathering(&log, LONG / 4);
    let mut pushed = Vec::new();
    for index in 0..3 {
        pushed.push(push(&a, index, record(1)).await.unwrap());
    }
    pushed.push(gather(&a, 3).await);
    assert_eq!(log.begun(), 4);
    log.gate.add_permits(99);
    for one in pushed {
        one.outcome().await.unwrap();
    }
}

#[tokio::test]
async fn hanging_requests_do_not_delay_other_partitions() {
    let log = fake(999, []);
    log.hangs_below.store(2, Ordering::Relaxed);
    let a = gathering(&log, Duration::from_millis(1));
    let _hang = [gather(&a, 0).await, gather(&a, 1).await];
    for n in 0..100 {
        gather(&a, 2 + n % 4).await.outcome().await.unwrap();
    }
}

#[tokio::test]
async fn nothing_gathers_behind_a_request_that_hangs() {
    let log = fake(0, []);
    log.hangs_below.store(1, Ordering::Relaxed);
    let mut a = appender_of(3, &log, 1 << 20, LONG);
    Arc::get_mut(&mut a).unwrap().gathering.patience = Duration::from_millis(1);
    let _hangs = gather(&a, 0).await;
    for _ in 0..30 {
        let mut others = Vec::new();
        for index in [1, 2, 1, 2, 1, 2] {
            others.push(gather(&a, index).await);
        }
        log.gate.add_permits(6);
        for one in others {
            one.outcome().await.unwrap();
        }
    }
}

#[tokio::test]
async fn records_pushed_together_are_sent_together() {
    let log = fake(9, []);
    let a = appender(&log, 1 << 20, LONG);
    let mut pushed = Vec::new();
    {
        let mut unsent = Unsent::new(&a);
        for n in 0..100 {
            pushed.push(
                a.push(Destination::Partition(n % 2), record(1), Instant::now() + LONG, &mut unsent)
                    .await
                    .unwrap(),
            );
        }
        assert!(log.sizes().is_empty());
    }
    for one in pushed {
        one.outcome().await.unwrap();
    }
    assert_eq!(log.sizes(), [50, 50]);
}

#[tokio::test]
async fn a_request_is_bounded_in_records_and_in_bytes() {
    for (size, n, most) in [(1, 2500, MAX_RECORDS), (100_000, 30, 8), (2_000_000, 3, 1)] {
        let log = fake(0, []);
        let a = appender(&log, 64 << 20, LONG);
        let mut pushed = Vec::new();
        for _ in 0..n {
            pushed.push(push(&a, 1, record(size)).await.unwrap());
        }
        log.gate.add_permits(n);
        for one in pushed {
            one.outcome().await.unwrap();
        }
        assert_eq!(log.sizes().into_iter().max(), Some(most));
        assert_eq!(log.sizes().into_iter().sum::<usize>(), n);
    }
}

/// A caller that pushes many records may take long.
#[tokio::test]
async fn a_whole_request_is_sent_before_its_caller_has_pushed_all() {
    let log = fake(9, []);
    let a = appender(&log, 64 << 20, LONG);
    let mut unsent = Unsent::new(&a);
    for n in 1..=MAX_RECORDS {
        a.push(Destination::Partition(0), record(1), Instant::now() + LONG, &mut unsent).await.unwrap();
        assert_eq!(log.sizes().len(), usize::from(n == MAX_RECORDS));
    }
}

#[tokio::test]
async fn a_record_in_doubt_is_appended_again_and_stays_in_doubt() {
    let unknown = Error::unknown(ErrorKind::Timeout, "append");
    let log = fake(9, [unknown.clone()]);
    push(&appender(&log, 1 << 20, LONG), 0, record(5)).await.unwrap().outcome().await.unwrap();
    let requests = log.requests.lock().unwrap().clone();
    assert_eq!(requests.len(), 2);
    assert_eq!(requests[0], requests[1]);

    let log = fake(9, [unknown, Error::not_applied(ErrorKind::Denied, "append")]);
    let pushed = push(&appender(&log, 1 << 20, LONG), 0, record(5)).await.unwrap();
    let e = pushed.outcome().await.unwrap_err();
    assert_eq!((e.kind(), e.effect()), (ErrorKind::Denied, Effect::Unknown));
}

#[tokio::test]
async fn permanent_failures_are_reported_at_once_and_other_records_succeed() {
    let log = fake(9, [Error::not_applied(ErrorKind::TooLarge, "append")]);
    let a = appender(&log, 1 << 20, LONG);
    let (one, two) = (push(&a, 0, record(5)).await.unwrap(), push(&a, 0, record(6)).await.unwrap());
    let e = one.outcome().await.unwrap_err();
    assert_eq!((e.kind(), e.effect()), (ErrorKind::TooLarge, Effect::NotApplied));
    two.outcome().await.unwrap();
}

#[tokio::test]
async fn retries_end_with_the_timeout() {
    let refused = || Error::not_applied(ErrorKind::Unavailable, "append");
    let log = fake(999, std::iter::repeat_with(refused).take(999));
    let (started, timeout) = (Instant::now(), Duration::from_secs(2));
    let pushed = push(&appender(&log, 1 << 20, timeout), 0, record(5)).await.unwrap();
    let e = pushed.outcome().await.unwrap_err();
    assert_eq!((e.kind(), e.effect()), (ErrorKind::Unavailable, Effect::NotApplied));
    assert!(started.elapsed() >= timeout);
    assert!(log.sizes().len() > 1);
}

/// Behind a request that never ends, and after an attempt of unknown effect.
#[tokio::test]
async fn each_record_gets_an_outcome_at_its_own_deadline() {
    let log = fake(1, [Error::unknown(ErrorKind::Unavailable, "append")]);
    let a = appender(&log, 1 << 20, LONG);
    // Late enough that even a busy machine has pushed everything by then.
    let soon = Instant::now() + Duration::from_secs(2);
    let (mut sent, mut behind) = (Vec::new(), Vec::new());
    {
        let mut unsent = Unsent::new(&a);
        // Fails at the first attempt and hangs at the second.
        sent.push(a.push(Destination::Partition(0), record(1), soon, &mut unsent).await.unwrap());
        // Hangs at the first attempt.
        sent.push(a.push(Destination::Partition(1), record(1), soon, &mut unsent).await.unwrap());
    }
    let later = push(&a, 1, record(1)).await.unwrap();
    for _ in 0..3 {
        behind.push(a.push(Destination::Partition(1), record(1), soon, &mut Unsent::new(&a)).await.unwrap());
    }
    for one in sent {
        assert_eq!(one.outcome().await.unwrap_err().effect(), Effect::Unknown);
    }
    for one in behind {
        let e = one.outcome().await.unwrap_err();
        assert_eq!((e.kind(), e.effect()), (ErrorKind::Timeout, Effect::NotApplied), "{e}");
    }
    // A record that was pushed before them, with a later deadline, still waits and is still sent.
    log.gate.add_permits(9);
    later.outcome().await.unwrap();
}

#[tokio::test]
async fn dropped_publisher_leaves_no_stuck_queue() {
    let log = fake(0, []);
    let a = appender(&log, 1 << 20, LONG);
    drop(push(&a, 0, record(1)).await.unwrap());
    let two = push(&a, 0, record(2)).await.unwrap();
    log.gate.add_permits(9);
    two.outcome().await.unwrap();
    assert_eq!(log.sizes().into_iter().sum::<usize>(), 2);
}

#[tokio::test]
async fn the_buffer_is_bounded() {
    let log = fake(0, []);
    let a = appender(&log, 10 * (OVERHEAD + 100), LONG);
    let mut pushed = Vec::new();
    for _ in 0..10 {
        pushed.push(push(&a, 0, record(100)).await.unwrap());
    }
    let mut eleventh = Box::pin(push(&a, 0, record(100)));
    assert!(futures_util::poll!(&mut eleventh).is_pending());
    log.gate.add_permits(99);
    for one in pushed {
        one.outcome().await.unwrap();
    }
    eleventh.await.unwrap().outcome().await.unwrap();
}

#[tokio::test]
async fn caller_that_waits_for_space_has_sent_its_records() {
    let log = fake(99, []);
    let a = appender(&log, 2 * (OVERHEAD + 100), LONG);
    let mut unsent = Unsent::new(&a);
    for _ in 0..10 {
        tokio::time::timeout(
            LONG,
            a.push(Destination::Partition(0), record(100), Instant::now() + LONG, &mut unsent),
        )
        .await
        .expect("its own records take the space")
        .unwrap();
    }
}

#[tokio::test]
async fn added_partitions_are_used_after_ten_seconds_and_not_checked_for_earlier() {
    let log = fake(99, []);
    let a = appender(&log, 1 << 20, LONG);
    log.partitions.store(5, Ordering::Relaxed);
    a.look(a.started + LOOK_EVERY - Duration::from_millis(1));
    assert_eq!((log.looks.load(Ordering::Relaxed), a.partitions()), (0, 2));
    for _ in 0..3 {
        a.look(a.started + LOOK_EVERY);
    }
    tokio::time::timeout(LONG, async {
        while a.partitions() != 5 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .expect("it checks for partitions");
    assert_eq!(log.looks.load(Ordering::Relaxed), 1);
    push(&a, 4, record(1)).await.unwrap().outcome().await.unwrap();
    assert_eq!(log.requests.lock().unwrap()[0].0, Partition::new("t", 4));
}
