//! What is appended is what is read.

use crate::*;
use kafkaq_adapter_tests::noise;
use std::time::UNIX_EPOCH;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_appended_is_read_byte_for_byte() {
    let site = Site::with(1).await;
    let mut headers = Headers::new();
    headers.push("empty", Some(Bytes::new()));
    headers.push(HEADER, Some(Bytes::from_static(&[0, 255, 1])));
    headers.push("ümlaut", Some("x".into()));
    let mut dated = record("dated");
    dated.timestamp = Some(UNIX_EPOCH + Duration::from_millis(1_700_000_000_123));
    let records = [
        NewRecord::new(Some(Bytes::from_static(&[0, 159, 146, 150])), Some((0..=255).collect()), headers),
        NewRecord::new(None, None, Headers::new()),
        NewRecord::new(Some(Bytes::new()), Some(Bytes::new()), Headers::new()),
        dated,
    ];
    assert_eq!(site.append(&records).await.unwrap(), [0, 1, 2, 3]);
    let read = site.read(0, 4).await;
    for ((sent, got), offset) in records.iter().zip(&read).zip(0..) {
        assert_eq!(got.offset, offset);
        assert_eq!((&sent.key, &sent.value, &sent.headers), (&got.key, &got.value, &got.headers));
        assert!(got.timestamp_ms > 1_600_000_000_000);
    }
    assert_eq!(read[3].timestamp_ms, 1_700_000_000_123);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_that_the_library_can_not_represent_are_preserved_in_order() {
    let site = Site::with(1).await;
    let mut records = numbered(0..5);
    for (name, value) in
        [(&b"twice"[..], Some("1")), (b"null", None), (b"\xff\xfe", Some("x")), (b"twice", Some("2"))]
    {
        records[2].headers.push(name, value.map(Bytes::from));
    }
    records[3].headers.push("plain", Some("y".into()));
    assert_eq!(site.append(&records).await.unwrap(), [0, 1, 2, 3, 4]);
    let read = site.read(0, 5).await;
    for (sent, got) in records.iter().zip(&read) {
        assert_eq!((&sent.value, &sent.headers), (&got.value, &got.headers));
        assert!(got.timestamp_ms > 1_600_000_000_000);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_of_none_one_and_a_thousand_keep_their_order() {
    let site = Site::with(1).await;
    assert!(site.append(&[]).await.unwrap().is_empty());
    assert_eq!(site.append(&numbered(0..1)).await.unwrap(), [0]);
    assert_eq!(site.append(&numbered(1..1001)).await.unwrap(), (1..1001).collect::<Vec<i64>>());
    let read = site.read(0, 1001).await;
    let values: Vec<_> = read.iter().map(|r| r.value.clone().unwrap()).collect();
    assert_eq!(values, (0..1001).map(|n| Bytes::from(n.to_string())).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_to_many_partitions_at_once_keep_the_order_of_each() {
    // More partitions than the library connects to at a time.
    let site = Site::with(20).await;
    let appends = (0..20).map(|index| {
        let (site, to) = (&site, site.partition(index));
        async move {
            for n in 0..20 {
                site.kafka.append(&to, &[record(n.to_string())]).await.remove(0).unwrap();
            }
        }
    });
    futures_util::future::join_all(appends).await;
    for index in 0..20 {
        let from = Position { partition: site.partition(index), offset: 0 };
        let batch = site.kafka.fetch(&from, FetchLimit::new(PATIENCE, 1 << 20)).await.unwrap();
        let values: Vec<_> = batch.records.iter().map(|r| r.value.clone().unwrap()).collect();
        assert_eq!(values, (0..20).map(|n| Bytes::from(n.to_string())).collect::<Vec<_>>());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_that_together_exceed_a_batch_go_in_several_and_keep_their_order() {
    let site = Site::with(1).await;
    let records: Vec<_> = (0..50_u8).map(|n| record(vec![n; 100_000])).collect();
    assert_eq!(site.append(&records).await.unwrap(), (0..50).collect::<Vec<i64>>());
    let read = site.read(0, 50).await;
    assert!(read.iter().zip(&records).all(|(got, sent)| got.value == sent.value));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_is_too_large_fails_alone() {
    let site = Site::with(1).await;
    // Just under and well over the server's limit of a mebibyte, and over the client's.
    let large = record(vec![1; 1_000_000]);
    let over = record(noise(1_200_000));
    let beyond = record(vec![3; 65 << 20]);
    let records = [record("a"), over, large, beyond, record("b")];
    let outcomes = site.kafka.append(&site.partition(0), &records).await;
    for too_large in [1, 3] {
        let e = outcomes[too_large].as_ref().unwrap_err();
        println!("{e}");
        assert_eq!((e.kind(), e.effect(), e.retry()), (ErrorKind::TooLarge, Effect::NotApplied, Retry::No));
        assert!(e.advice().is_some());
    }
    let offsets: Vec<_> = [0, 2, 4].iter().map(|i| *outcomes[*i].as_ref().unwrap()).collect();
    assert_eq!(offsets, [0, 1, 2]);
    let read = site.read(0, 3).await;
    assert_eq!(read[1].value, records[2].value);
    assert_eq!(read[2].value, records[4].value);
}

/// As other clients may have written it compressed. A copy of it must fit, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_large_record_is_sent_compressed() {
    let site = Site::with(1).await;
    let records = [record("a"), record(vec![7; 3_000_000]), record("b")];
    let mut offsets = site.append(&records).await.unwrap();
    offsets.sort_unstable();
    assert_eq!(offsets, [0, 1, 2]);
    let mut read: Vec<_> = site.read(0, 3).await.into_iter().map(|r| r.value).collect();
    read.sort_by_key(|value| value.as_ref().map(Bytes::len));
    assert!(read[2] == records[1].value && read[1].is_some() && read[0].is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_batch_fails_only_the_offending_record_and_keeps_the_order() {
    type Setting = fn(&mut TopicSpec);
    let cases: [(Setting, NewRecord, ErrorKind); 2] = [
        (|spec| spec.max_record_bytes = Some(2000), record(noise(3000)), ErrorKind::TooLarge),
        (|spec| spec.compacted = true, record("no key"), ErrorKind::Invalid),
    ];
    for (setting, culprit, kind) in cases {
        let site = Site::made(shared_server(), 1, setting).await;
        let key = |n: u8| Some(Bytes::from(vec![n]));
        let mut records: Vec<_> =
            (0..20).map(|n| NewRecord::new(key(n), Some(vec![n; 200].into()), Headers::new())).collect();
        records.insert(13, culprit);
        let mut outcomes = site.kafka.append(&site.partition(0), &records).await;
        let e = outcomes.remove(13).unwrap_err();
        println!("{e}");
        assert_eq!((e.kind(), e.effect(), e.retry()), (kind, Effect::NotApplied, Retry::No));
        let offsets: Vec<i64> = outcomes.into_iter().collect::<Result<_>>().unwrap();
        assert_eq!(offsets, (0..20).collect::<Vec<i64>>());
        let read = site.read(0, 20).await;
        assert!(read.iter().zip(0..).all(|(r, n)| r.key == key(n)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_topic_or_partition_is_not_found_and_not_created() {
    let site = Site::with(1).await;
    for missing in [Partition::new("nobody-made-this", 0), site.partition(1), site.partition(-1)] {
        let at = Instant::now();
        let e = site.kafka.append(&missing, &[record("x")]).await.remove(0).unwrap_err();
        println!("{e}, after {:?}", at.elapsed());
        assert_eq!((e.kind(), e.effect(), e.retry()), (ErrorKind::NotFound, Effect::NotApplied, Retry::No));
        assert!(e.advice().unwrap().contains("ensure_topics"));
        assert!(at.elapsed() < SOON);
        let e = site.kafka.offsets(&[missing]).await.remove(0).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::NotFound);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offsets_returns_the_ends_of_each_partition_in_order() {
    let site = Site::with(3).await;
    for (index, n) in [(0, 5), (2, 2)] {
        for outcome in site.kafka.append(&site.partition(index), &numbered(0..n)).await {
            outcome.unwrap();
        }
    }
    let of = [site.partition(2), Partition::new("nobody-made-this", 0), site.partition(0), site.partition(1)];
    let mut offsets = site.kafka.offsets(&of).await;
    assert_eq!(offsets.remove(1).unwrap_err().kind(), ErrorKind::NotFound);
    let next: Vec<_> = offsets.into_iter().map(|o| o.unwrap()).map(|o| (o.first, o.next)).collect();
    assert_eq!(next, [(0, 2), (0, 5), (0, 0)]);
}
