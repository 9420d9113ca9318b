//! Waiting for records, and what lies between them.

use crate::*;
use std::time::Instant;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_poll_wakes_on_an_append() {
    let site = Arc::new(Site::with(1).await);
    let mut took = Vec::new();
    for n in 0..40 {
        let waiting = tokio::spawn({
            let site = site.clone();
            async move { (site.fetch(n, 10_000, 1 << 20).await.unwrap(), Instant::now()) }
        });
        tokio::time::sleep(millis(30)).await;
        let at = Instant::now();
        site.append(&[record("x")]).await.unwrap();
        let (batch, woke) = waiting.await.unwrap();
        assert_eq!((batch.records.len(), batch.next, batch.end), (1, n + 1, Some(n + 1)));
        took.push(woke - at);
    }
    took.sort();
    println!("from append to fetched: p50 {:?}, worst {:?}", took[20], took[39]);
    assert!(took[20] < millis(200), "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_partition_answers_an_empty_batch_after_the_wait() {
    let site = Site::with(1).await;
    for wait in [0, 400] {
        let at = Instant::now();
        let batch = site.fetch(0, wait, 1 << 20).await.unwrap();
        assert!(at.elapsed() >= millis(wait) && at.elapsed() < millis(wait + 1500), "{:?}", at.elapsed());
        assert_eq!((batch.records.len(), batch.next, batch.end), (0, 0, Some(0)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiting_fetch_delays_neither_appends_nor_other_fetches() {
    let site = Arc::new(Site::with(1).await);
    site.append(&numbered(0..10)).await.unwrap();
    let waiting: Vec<_> = (0..3)
        .map(|_| {
            let site = site.clone();
            tokio::spawn(async move { site.fetch(10, 8_000, 1 << 20).await.unwrap() })
        })
        .collect();
    tokio::time::sleep(millis(200)).await;
    let at = Instant::now();
    for offset in 0..10 {
        assert_eq!(site.fetch(offset, 8_000, 1).await.unwrap().records[0].offset, offset);
        site.kafka.offsets(&[site.partition(0)]).await.remove(0).unwrap();
    }
    let fetched = at.elapsed();
    let at = Instant::now();
    site.append(&[record("x")]).await.unwrap();
    println!("beside three waiting fetches: 10 fetches in {fetched:?}, an append in {:?}", at.elapsed());
    assert!(fetched < millis(2000) && at.elapsed() < millis(1000));
    for fetch in waiting {
        assert_eq!(fetch.await.unwrap().records[0].offset, 10);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_fetch_delays_nothing_that_follows() {
    let site = Site::with(1).await;
    for _ in 0..5 {
        let dropped = tokio::time::timeout(millis(100), site.fetch(0, 8_000, 1 << 20)).await;
        assert!(dropped.is_err());
    }
    let at = Instant::now();
    site.append(&[record("x")]).await.unwrap();
    assert_eq!(site.fetch(0, 8_000, 1 << 20).await.unwrap().records.len(), 1);
    assert!(at.elapsed() < millis(2000), "{:?}", at.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_larger_than_the_limit_comes_all_the_same() {
    let site = Site::with(1).await;
    site.append(&[record(vec![7; 500_000])]).await.unwrap();
    site.append(&[record("next")]).await.unwrap();
    for max_bytes in [0, 1, 1000] {
        let batch = site.fetch(0, 1000, max_bytes).await.unwrap();
        assert_eq!(batch.records[0].value.as_ref().unwrap().len(), 500_000);
        assert_eq!(batch.next, 1, "and nothing beyond the limit");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_offset_within_a_batch_starts_there() {
    let site = Site::with(1).await;
    site.append(&numbered(0..10)).await.unwrap();
    let batch = site.fetch(7, 1000, 1 << 20).await.unwrap();
    assert_eq!(batch.records.iter().map(|r| r.offset).collect::<Vec<_>>(), [7, 8, 9]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_offset_below_the_first_reads_from_the_first_and_one_beyond_the_end_is_invalid() {
    let site = Site::with(1).await;
    site.append(&numbered(0..3)).await.unwrap();
    assert_eq!(site.fetch(-5, 1000, 1 << 20).await.unwrap().records[0].offset, 0);
    let at = Instant::now();
    let e = site.fetch(4, 8000, 1 << 20).await.unwrap_err();
    println!("{e}");
    assert_eq!((e.kind(), e.effect(), e.retry()), (ErrorKind::Invalid, Effect::NotApplied, Retry::No));
    assert!(at.elapsed() < millis(2000));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn markers_of_transactions_are_passed_and_no_record_with_them() {
    let site = Site::with(1).await;
    let url = site.server.url();
    let name = unique("tx");
    let (topic, name) = (site.topic.to_string(), name.as_str());
    tokio::task::spawn_blocking({
        let (topic, url, name) = (topic.clone(), url.clone(), name.to_owned());
        move || {
            let producer = wire::Producer::start(&url, &name);
            producer.append(&topic, 0);
            producer.commit();
            producer.append(&topic, 1);
            producer.commit();
        }
    })
    .await
    .unwrap();
    let mut end = 0;
    for _ in 0..100 {
        end = site.kafka.offsets(&[site.partition(0)]).await.remove(0).unwrap().next;
        if end == 4 {
            break;
        }
        tokio::time::sleep(millis(50)).await;
    }
    assert_eq!(end, 4, "two records, two markers");
    assert_eq!(site.read(0, 4).await.iter().map(|r| r.offset).collect::<Vec<_>>(), [0, 2]);
    // The wait for what comes after a marker ends with what comes, and not at its end.
    let at = Instant::now();
    let batch = site.fetch(3, 300, 1 << 20).await.unwrap();
    assert_eq!((batch.records.len(), batch.next), (0, 4));
    assert!(at.elapsed() < millis(2000));
    site.append(&[record("after")]).await.unwrap();
    let batch = site.fetch(3, 5000, 1 << 20).await.unwrap();
    assert_eq!((batch.records[0].offset, batch.next), (4, 5));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_cannot_be_read_is_named_and_hides_nothing_before_it() {
    for header in [(&b"null"[..], None), (&b"\xff\xfe"[..], Some(&b"x"[..]))] {
        let site = Site::with(1).await;
        site.append(&numbered(0..2)).await.unwrap();
        let (topic, url) = (site.topic.to_string(), site.server.url());
        tokio::task::spawn_blocking(move || wire::produce(&url, &topic, &[header])).await.unwrap();
        site.append(&[record("after")]).await.unwrap();
        assert_eq!(site.fetch(0, 1000, 1 << 20).await.unwrap().next, 2);
        let e = site.fetch(2, 1000, 1 << 20).await.unwrap_err();
        println!("{e}");
        assert_eq!((e.kind(), e.retry()), (ErrorKind::Corrupt, Retry::No));
        let text = e.to_string();
        assert!(text.contains("offset 2") && text.contains(&site.partition(0).to_string()), "{text}");
        assert_eq!(site.fetch(3, 1000, 1 << 20).await.unwrap().records.len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_of_an_open_transaction_is_waited_for_and_not_passed() {
    let site = Site::with(1).await;
    let (topic, url, name) = (site.topic.to_string(), site.server.url(), unique("open"));
    let (opened, is_open) = tokio::sync::oneshot::channel();
    let (commit, may_commit) = tokio::sync::oneshot::channel();
    let producer = tokio::task::spawn_blocking(move || {
        let producer = wire::Producer::start(&url, &name);
        producer.append(&topic, 0);
        opened.send(()).unwrap();
        may_commit.blocking_recv().unwrap();
        producer.commit();
    });
    is_open.await.unwrap();
    for wait in [0, 500] {
        let at = Instant::now();
        let batch = site.fetch(0, wait, 1 << 20).await.unwrap();
        assert_eq!((batch.records.len(), batch.next, batch.end), (0, 0, Some(1)));
        assert!(at.elapsed() >= millis(wait) && at.elapsed() < millis(wait + 1500), "{:?}", at.elapsed());
    }
    commit.send(()).unwrap();
    let batch = site.fetch(0, 8_000, 1 << 20).await.unwrap();
    assert_eq!((batch.records.len(), batch.next), (1, 1));
    producer.await.unwrap();
}
