//! Waiting for records, and gaps between them.

use crate::*;
const WAITS: [Duration; 2] = [Duration::ZERO, Duration::from_millis(400)];
/// A server counts whole milliseconds, and may end a wait in the last one of it.
const TICK: Duration = Duration::from_millis(2);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_poll_wakes_on_an_append() {
    let site = Arc::new(Site::with(1).await);
    let mut took = Vec::new();
    for n in 0..40 {
        let waiting = tokio::spawn({
            let site = site.clone();
            async move { (site.fetch(n, PATIENCE, 1 << 20).await.unwrap(), Instant::now()) }
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
    assert!(took[20] < SOON, "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn empty_partition_returns_an_empty_batch_after_the_wait() {
    let site = Site::with(1).await;
    for wait in WAITS {
        let at = Instant::now();
        let batch = site.fetch(0, wait, 1 << 20).await.unwrap();
        assert!(at.elapsed() >= wait.saturating_sub(TICK) && at.elapsed() < SOON, "{:?}", at.elapsed());
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
            tokio::spawn(async move { site.fetch(10, PATIENCE, 1 << 20).await.unwrap() })
        })
        .collect();
    tokio::time::sleep(millis(200)).await;
    let at = Instant::now();
    for offset in 0..10 {
        assert_eq!(site.fetch(offset, PATIENCE, 1).await.unwrap().records[0].offset, offset);
        site.kafka.offsets(&[site.partition(0)]).await.remove(0).unwrap();
    }
    let fetched = at.elapsed();
    let at = Instant::now();
    site.append(&[record("x")]).await.unwrap();
    println!("beside three waiting fetches: 10 fetches in {fetched:?}, an append in {:?}", at.elapsed());
    assert!(fetched < SOON && at.elapsed() < SOON);
    for fetch in waiting {
        assert_eq!(fetch.await.unwrap().records[0].offset, 10);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_fetch_delays_nothing_that_follows() {
    let site = Site::with(1).await;
    for _ in 0..5 {
        let dropped = tokio::time::timeout(millis(100), site.fetch(0, PATIENCE, 1 << 20)).await;
        assert!(dropped.is_err());
    }
    let at = Instant::now();
    site.append(&[record("x")]).await.unwrap();
    assert_eq!(site.fetch(0, PATIENCE, 1 << 20).await.unwrap().records.len(), 1);
    assert!(at.elapsed() < SOON, "{:?}", at.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn record_larger_than_the_limit_is_returned() {
    let site = Site::with(1).await;
    site.append(&[record(vec![7; 500_000])]).await.unwrap();
    site.append(&[record("next")]).await.unwrap();
    for max_bytes in [0, 1, 1000] {
        let batch = site.fetch(0, millis(1000), max_bytes).await.unwrap();
        assert_eq!(batch.records[0].value.as_ref().unwrap().len(), 500_000);
        assert_eq!(batch.next, 1, "and nothing beyond the limit");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_offset_within_a_batch_starts_there() {
    let site = Site::with(1).await;
    site.append(&numbered(0..10)).await.unwrap();
    let batch = site.fetch(7, millis(1000), 1 << 20).await.unwrap();
    assert_eq!(batch.records.iter().map(|r| r.offset).collect::<Vec<_>>(), [7, 8, 9]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offset_outside_the_log_is_invalid_and_the_error_has_the_ends() {
    let site = Site::with(1).await;
    site.append(&numbered(0..3)).await.unwrap();
    let (url, topic) = (site.server.url(), site.topic.to_string());
    tokio::task::spawn_blocking(move || wire::delete_records(&url, &topic, 1)).await.unwrap();
    for offset in [-5, 0, 4] {
        let at = Instant::now();
        let e = site.fetch(offset, PATIENCE, 1 << 20).await.unwrap_err();
        println!("{e}");
        assert_eq!((e.kind(), e.effect(), e.retry()), (ErrorKind::Invalid, Effect::NotApplied, Retry::No));
        assert!(e.to_string().contains("1 up to 3"), "{e}");
        assert!(at.elapsed() < SOON);
    }
    assert_eq!(site.fetch(1, millis(1000), 1 << 20).await.unwrap().records[0].offset, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transaction_markers_are_skipped_without_skipping_records() {
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
    // Two records, two markers.
    site.until_end(4).await;
    assert_eq!(site.read(0, 4).await.iter().map(|r| r.offset).collect::<Vec<_>>(), [0, 2]);
    // A wait for the record after a marker ends when that record arrives, and not only at its time limit.
    let at = Instant::now();
    let batch = site.fetch(3, millis(300), 1 << 20).await.unwrap();
    assert_eq!((batch.records.len(), batch.next), (0, 4));
    assert!(at.elapsed() < SOON);
    site.append(&[record("after")]).await.unwrap();
    let batch = site.fetch(3, PATIENCE, 1 << 20).await.unwrap();
    assert_eq!((batch.records[0].offset, batch.next), (4, 5));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_of_other_producers_are_read_as_they_were_written() {
    let headers: [wire::Header<'_>; 5] = [
        (b"twice", Some(b"1")),
        (b"null", None),
        (b"\xff\xfe", Some(b"x")),
        (b"", Some(b"")),
        (b"twice", Some(b"2")),
    ];
    let site = Site::with(1).await;
    site.append(&numbered(0..1)).await.unwrap();
    let (topic, url) = (site.topic.to_string(), site.server.url());
    tokio::task::spawn_blocking(move || wire::produce(&url, &topic, &headers)).await.unwrap();
    site.append(&[record("after")]).await.unwrap();
    let read = site.read(0, 3).await;
    let got: Vec<_> =
        read[1].headers.iter().map(|(name, value)| (&name[..], value.map(|v| &v[..]))).collect();
    assert_eq!(got, headers);
    assert_eq!(read[1].value.as_deref(), Some(&b"payload"[..]));
    assert_eq!(read.len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aborted_records_are_skipped_and_block_nothing() {
    let site = Site::with(1).await;
    let (topic, url, name) = (site.topic.to_string(), site.server.url(), unique("back"));
    tokio::task::spawn_blocking(move || {
        let producer = wire::Producer::start(&url, &name);
        producer.append(&topic, 0);
        producer.append(&topic, 1);
        producer.roll_back();
        producer.append(&topic, 2);
        producer.commit();
    })
    .await
    .unwrap();
    // Three records, two markers.
    site.until_end(5).await;
    site.append(&[record("after")]).await.unwrap();
    for from in [0, 1, 2] {
        let read = site.read(from, 6).await;
        assert_eq!(read.iter().map(|r| r.offset).collect::<Vec<_>>(), [3, 5], "from {from}");
    }
}

/// The server compresses here, with the code that Java's producer has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compressed_records_are_read_or_the_error_names_the_missing_feature() {
    for (codec, is_on) in
        [("gzip", true), ("snappy", true), ("lz4", cfg!(feature = "lz4")), ("zstd", cfg!(feature = "zstd"))]
    {
        let server = shared_server();
        let (url, topic) = (server.url(), unique(codec));
        let make = {
            let topic = topic.clone();
            move || wire::create(&url, &topic, "compression.type", codec)
        };
        tokio::task::spawn_blocking(make).await.unwrap();
        let site = Site { kafka: kafka(&server), server, topic: topic.into() };
        let records: Vec<_> = (0..50_u8).map(|n| record(vec![n; 1000])).collect();
        site.append(&records).await.unwrap();
        if is_on {
            let read = site.read(0, 50).await;
            assert!(read.iter().zip(&records).all(|(got, sent)| got.value == sent.value), "{codec}");
            continue;
        }
        let e = site.fetch(0, PATIENCE, 1 << 20).await.unwrap_err();
        println!("{e}");
        assert_eq!((e.kind(), e.retry()), (ErrorKind::Unsupported, Retry::No));
        let advice = e.advice().unwrap();
        assert!(
            advice.contains(&format!("the feature `{codec}`")) && advice.contains("offset 0"),
            "{advice}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn record_of_an_open_transaction_is_awaited_and_not_skipped() {
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
    for wait in WAITS {
        let at = Instant::now();
        let batch = site.fetch(0, wait, 1 << 20).await.unwrap();
        assert_eq!((batch.records.len(), batch.next, batch.end), (0, 0, Some(1)));
        assert!(at.elapsed() >= wait.saturating_sub(TICK) && at.elapsed() < SOON, "{:?}", at.elapsed());
    }
    commit.send(()).unwrap();
    let batch = site.fetch(0, PATIENCE, 1 << 20).await.unwrap();
    assert_eq!(batch.records.len(), 1);
    producer.await.unwrap();
}
