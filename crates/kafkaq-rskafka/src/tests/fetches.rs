//! Responses that prove nothing, and batches that can't be read.

use super::*;

const OFFSET_OUT_OF_RANGE: i16 = 1;

#[tokio::test]
async fn an_empty_response_moves_no_position() {
    // As a broker may respond with remote storage or under memory pressure: at once, with nothing, and its end.
    let broker = Broker::new(|asked| {
        let fetch = FetchAsked::read(asked)?;
        let parts: Vec<_> = fetch.parts.iter().map(|_| Part::empty(1000)).collect();
        Some(Reply::Body(fetch.response(asked, &parts)))
    })
    .await;
    let kafka = kafka(&broker);
    for offset in [0, 7] {
        let batch = fetch(&kafka, 0, offset, millis(800)).await.unwrap();
        assert_eq!((batch.records.len(), batch.next, batch.end), (0, offset, Some(1000)));
    }
    let asked = broker.state.asked(fake::FETCH);
    assert!(asked < 50, "{asked} requests while the broker had nothing");
}

#[tokio::test]
async fn records_that_come_after_empty_responses_are_all_read() {
    let empty = Mutex::new(5);
    let broker = Broker::of_fetches(move |fetch| {
        let mut empty = lock(&empty);
        *empty -= 1;
        let answer = |asked: &fake::PartAsked| match *empty {
            0.. => Part::empty(1000),
            _ => Part::of(batch(asked.offset, 3)),
        };
        fetch.parts.iter().map(answer).collect()
    })
    .await;
    let batch = fetch(&kafka(&broker), 0, 7, PATIENCE).await.unwrap();
    assert_eq!(batch.records.iter().map(|record| record.offset).collect::<Vec<_>>(), [7, 8, 9]);
    assert_eq!((batch.next, batch.end), (10, Some(1000)));
}

/// Compaction has left the header of a batch, which had ten records.
fn hollow(base_offset: i64) -> Vec<u8> {
    let mut batch = batch(base_offset, 10);
    batch.truncate(61);
    batch[8..12].copy_from_slice(&(61_i32 - 12).to_be_bytes());
    edited(batch, |covered| covered[36..].copy_from_slice(&0_i32.to_be_bytes()))
}

#[tokio::test]
async fn gap_is_skipped_when_a_batch_proves_it() {
    let broker = Broker::of_fetches(|fetch| {
        let answer = |asked: &fake::PartAsked| match asked.offset {
            0..10 => Part::of(hollow(0)),
            _ => Part::of(batch(50, 2)),
        };
        fetch.parts.iter().map(answer).collect()
    })
    .await;
    let kafka = kafka(&broker);
    let found = fetch(&kafka, 0, 3, PATIENCE).await.unwrap();
    assert_eq!((found.records.len(), found.next), (0, 10));
    let found = fetch(&kafka, 0, 10, PATIENCE).await.unwrap();
    assert_eq!(found.records.iter().map(|record| record.offset).collect::<Vec<_>>(), [50, 51]);
    assert_eq!(found.next, 52);
}

#[tokio::test(flavor = "current_thread")]
async fn unreadable_batch_stops_its_partition_with_an_error_and_hides_nothing_before_it() {
    let log = kafkaq_adapter_tests::Log::capture();
    let broker = Broker::of_fetches(|fetch| {
        let bad = |index| match index {
            // A wrong checksum.
            0 => {
                let mut bad = batch(3, 2);
                let last = bad.len() - 1;
                bad[last] ^= 1;
                bad
            }
            // A codec that doesn't exist yet.
            1 => edited(batch(3, 2), |covered| covered[1] = 5),
            // Kafka 0.10.
            _ => {
                let mut old = batch(3, 2);
                old[16] = 1;
                old
            }
        };
        let answer = |asked: &fake::PartAsked| {
            let before = if asked.offset < 3 { batch(0, 3) } else { vec![] };
            Part::of([before, bad(asked.index), batch(5, 2)].concat())
        };
        fetch.parts.iter().map(answer).collect()
    })
    .await;
    let kafka = kafka(&broker);
    for (index, kind, word) in [
        (0, ErrorKind::Corrupt, "checksum"),
        (1, ErrorKind::Unsupported, "codec 5"),
        (2, ErrorKind::Unsupported, "before 0.11"),
    ] {
        assert_eq!(fetch(&kafka, index, 0, PATIENCE).await.unwrap().next, 3);
        for _ in 0..10 {
            let e = fetch(&kafka, index, 3, PATIENCE).await.unwrap_err();
            assert_eq!((e.kind(), e.effect(), e.retry()), (kind, Effect::NotApplied, Retry::No), "{e}");
            let text = e.to_string();
            assert!(
                text.contains(word) && text.contains("offset 3") && text.contains("reading continues"),
                "{e}"
            );
        }
    }
    let lines = log.lines();
    assert_eq!(lines.len(), 3, "one for each partition: {lines:#?}");
    for line in lines {
        assert!(line.starts_with("ERROR") && line.contains("offset 3 of t/"), "{line}");
    }
}

#[tokio::test]
async fn a_batch_that_is_cut_off_is_asked_for_again_in_whole() {
    let broker = Broker::of_fetches(|fetch| {
        let answer = |asked: &fake::PartAsked| {
            let mut whole = batch(asked.offset, 1000);
            // As the protocol allows: a server that uses up all the space.
            whole.truncate(asked.max_bytes as usize);
            Part::of(whole)
        };
        fetch.parts.iter().map(answer).collect()
    })
    .await;
    let kafka = kafka(&broker);
    let from = Position { partition: Partition::new("t", 0), offset: 0 };
    for max_bytes in [1, 100, 2000] {
        let batch = kafka.fetch(&from, FetchLimit::new(PATIENCE, max_bytes)).await.unwrap();
        assert_eq!((batch.records.len(), batch.next), (1000, 1000));
    }
}

#[tokio::test]
async fn failure_of_one_partition_affects_only_that_partition() {
    let broker = Broker::of_fetches(|fetch| {
        let answer = |asked: &fake::PartAsked| match asked.index {
            0 => Part::failed(OFFSET_OUT_OF_RANGE),
            1 => Part::of(batch(asked.offset, 1)),
            _ => Part::empty(7),
        };
        fetch.parts.iter().map(answer).collect()
    })
    .await;
    let kafka = kafka(&broker);
    let wait = millis(600);
    let (bad, good, empty) =
        tokio::join!(fetch(&kafka, 0, 7, wait), fetch(&kafka, 1, 7, wait), fetch(&kafka, 2, 7, wait));
    let e = bad.unwrap_err();
    assert_eq!((e.kind(), e.retry()), (ErrorKind::Invalid, Retry::No));
    assert!(e.to_string().contains("5 up to 9"), "{e}");
    assert_eq!(good.unwrap().next, 8);
    assert_eq!(empty.unwrap().next, 7);
}

#[tokio::test]
async fn too_large_response_fails_only_the_partition_that_causes_it() {
    let broker = Broker::of_fetches(|fetch| {
        let answer = |asked: &fake::PartAsked| match asked.index {
            0 => Part::of(vec![0; 3 << 20]),
            _ => Part::of(batch(asked.offset, 1)),
        };
        fetch.parts.iter().map(answer).collect()
    })
    .await;
    let kafka = RsKafka::builder(&broker.address).max_message_bytes(2 << 20).build().unwrap();
    // So that the three are in one request.
    fetch(&kafka, 1, 0, PATIENCE).await.unwrap();
    let (bad, good, other) = tokio::join!(
        fetch(&kafka, 0, 0, PATIENCE),
        fetch(&kafka, 1, 0, PATIENCE),
        fetch(&kafka, 2, 0, PATIENCE)
    );
    let e = bad.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::TooLarge);
    assert!(e.to_string().contains("max_message_bytes"), "{e}");
    assert_eq!((good.unwrap().next, other.unwrap().next), (1, 1));
}

#[tokio::test]
async fn malformed_response_is_an_error_and_moves_no_position() {
    for nonsense in [vec![], vec![0; 7], vec![255; 100]] {
        let broker = Broker::new(move |asked| {
            let mut body = asked.writer();
            body.bytes.extend(&nonsense);
            (asked.key == fake::FETCH).then_some(Reply::Body(body))
        })
        .await;
        let e = fetch(&kafka(&broker), 0, 0, millis(500)).await.unwrap_err();
        assert_eq!(e.effect(), Effect::NotApplied, "{e}");
    }
}
