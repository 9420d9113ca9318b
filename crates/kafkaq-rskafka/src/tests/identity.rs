//! Topics that are deleted and recreated, by servers with topic ids and without.

use super::*;
use crate::wire::format::TopicId;

const UNKNOWN_TOPIC_ID: i16 = 100;
const OLD: TopicId = TopicId([1; 16]);
const NEW: TopicId = TopicId([2; 16]);

/// Returns 100 records from the requested offset on, if the topic id is the current one.
async fn broker() -> Broker {
    let now: Arc<Mutex<Option<Arc<fake::State>>>> = Arc::default();
    let state = now.clone();
    let broker = Broker::of_fetches(move |fetch| {
        let state = lock(&state).clone().unwrap();
        let id = lock(&state.topic).id;
        let answer = |asked: &fake::PartAsked| match asked.id == id {
            true => Part::of(batch(asked.offset, 100)),
            false => Part::failed(UNKNOWN_TOPIC_ID),
        };
        fetch.parts.iter().map(answer).collect()
    })
    .await;
    *lock(&now) = Some(broker.state.clone());
    broker
}

#[tokio::test]
async fn a_topic_that_is_recreated_is_never_read_at_a_position_of_the_old_one() {
    let broker = broker().await;
    let kafka = kafka(&broker);
    for index in [0, 1] {
        assert_eq!(fetch(&kafka, index, 0, PATIENCE).await.unwrap().next, 100);
    }
    broker.state.set_topic(|topic| topic.id = Some(NEW));
    // One learns of it from the server, the other from what the handle has learned meanwhile.
    for index in [0, 1] {
        let e = fetch(&kafka, index, 100, PATIENCE).await.unwrap_err();
        assert_eq!((e.kind(), e.retry()), (ErrorKind::Invalid, Retry::No), "{e}");
        assert!(e.to_string().contains("recreated"), "{e}");
        // After that error, reading starts over.
        assert_eq!(fetch(&kafka, index, 0, PATIENCE).await.unwrap().next, 100);
    }
    // A partition that was not read before causes no error.
    assert_eq!(fetch(&kafka, 2, 0, PATIENCE).await.unwrap().next, 100);
}

#[tokio::test]
async fn a_fetch_that_waits_while_its_topic_is_recreated_fails() {
    let recreated = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let is_new = recreated.clone();
    let broker = Broker::of_fetches(move |fetch| {
        let is_new = is_new.load(std::sync::atomic::Ordering::SeqCst);
        let answer = |asked: &fake::PartAsked| match asked.id == Some(OLD) && is_new {
            true => Part::failed(UNKNOWN_TOPIC_ID),
            false => Part::empty(asked.offset),
        };
        fetch.parts.iter().map(answer).collect()
    })
    .await;
    let kafka = kafka(&broker);
    let waiting = fetch(&kafka, 0, 7, PATIENCE);
    let recreate = async {
        while broker.state.asked(fake::FETCH) == 0 {
            tokio::time::sleep(millis(1)).await;
        }
        broker.state.set_topic(|topic| topic.id = Some(NEW));
        recreated.store(true, std::sync::atomic::Ordering::SeqCst);
    };
    let at = Instant::now();
    let (fetched, ()) = tokio::join!(waiting, recreate);
    assert!(fetched.unwrap_err().to_string().contains("recreated"));
    assert!(at.elapsed() < SOON);
}

/// A batch of 100 records that was appended under a leader's epoch.
fn batch_of(epoch: i32, offset: i64) -> Vec<u8> {
    let mut batch = batch(offset, 100);
    batch[12..16].copy_from_slice(&epoch.to_be_bytes());
    batch
}

#[tokio::test]
async fn truncated_log_that_has_grown_again_is_not_read_further() {
    // All that the log has is of this epoch.
    let epoch = Arc::new(std::sync::atomic::AtomicI32::new(7));
    let now = epoch.clone();
    let broker = Broker::of_fetches(move |fetch| {
        let now = now.load(std::sync::atomic::Ordering::SeqCst);
        let answer = |asked: &fake::PartAsked| match asked.epoch_below {
            -1 => Part::of(batch_of(now, asked.offset)),
            epoch if epoch == now => Part::of(batch_of(now, asked.offset)),
            _ => Part::cut(),
        };
        fetch.parts.iter().map(answer).collect()
    })
    .await;
    let kafka = kafka(&broker);
    assert_eq!(fetch(&kafka, 0, 0, PATIENCE).await.unwrap().next, 100);
    assert_eq!(fetch(&kafka, 0, 100, PATIENCE).await.unwrap().next, 200);
    // Reading something else meanwhile changes nothing.
    for offset in [7, 8, 9] {
        assert_eq!(fetch(&kafka, 0, offset, PATIENCE).await.unwrap().next, offset + 100);
    }
    epoch.store(8, std::sync::atomic::Ordering::SeqCst);
    let at = Instant::now();
    let e = fetch(&kafka, 0, 200, PATIENCE).await.unwrap_err();
    assert_eq!((e.kind(), e.retry()), (ErrorKind::Invalid, Retry::No), "{e}");
    assert!(e.to_string().contains("truncated below offset 200"), "{e}");
    assert!(at.elapsed() < SOON);
    // After that error, reading continues from another position.
    assert_eq!(fetch(&kafka, 0, 200, PATIENCE).await.unwrap().next, 300);
    assert_eq!(fetch(&kafka, 0, 300, PATIENCE).await.unwrap().next, 400);
}

#[tokio::test]
async fn deleted_topic_is_not_found_long_before_the_request_timeout() {
    let broker = broker().await;
    let kafka = kafka(&broker);
    fetch(&kafka, 0, 0, PATIENCE).await.unwrap();
    broker.state.set_topic(|topic| (topic.partitions, topic.id) = (0, None));
    let at = Instant::now();
    let e = fetch(&kafka, 0, 100, millis(100)).await.unwrap_err();
    assert_eq!((e.kind(), e.retry()), (ErrorKind::NotFound, Retry::No), "{e}");
    assert!(at.elapsed() < SOON, "{:?}", at.elapsed());
    // It is recreated.
    broker.state.set_topic(|topic| (topic.partitions, topic.id) = (3, Some(NEW)));
    let e = fetch(&kafka, 0, 100, PATIENCE).await.unwrap_err();
    assert!(e.to_string().contains("recreated"), "{e}");
}

#[tokio::test]
async fn broker_that_does_not_know_a_new_topic_yet_is_asked_again() {
    let unknown = Mutex::new(3);
    let broker = Broker::of_fetches(move |fetch| {
        let mut unknown = lock(&unknown);
        *unknown -= 1;
        let part = if *unknown >= 0 { Part::failed(UNKNOWN_TOPIC_ID) } else { Part::of(batch(0, 1)) };
        vec![part; fetch.parts.len()]
    })
    .await;
    assert_eq!(fetch(&kafka(&broker), 0, 0, PATIENCE).await.unwrap().next, 1);
}

#[tokio::test]
async fn a_server_without_topic_ids_is_asked_by_name() {
    let broker = Broker::of_fetches(|fetch| {
        let answer = |asked: &fake::PartAsked| {
            assert_eq!((asked.name.as_deref(), asked.id), (Some("t"), None));
            Part::of(batch(asked.offset, 2))
        };
        fetch.parts.iter().map(answer).collect()
    })
    .await;
    // Redpanda before 25.3.
    lock(&broker.state.knows).extend([(fake::FETCH, (4, 11)), (fake::METADATA, (0, 7))]);
    let kafka = kafka(&broker);
    assert_eq!(fetch(&kafka, 0, 5, PATIENCE).await.unwrap().next, 7);
    // In the middle of an upgrade, one knows ids and the other does not.
    lock(&broker.state.knows).insert(fake::METADATA, (0, 12));
    let kafka = super::kafka(&broker);
    assert_eq!(fetch(&kafka, 0, 5, PATIENCE).await.unwrap().next, 7);
}
