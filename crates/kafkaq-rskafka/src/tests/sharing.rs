//! Connections and requests that many calls share.

use super::*;
use crate::protocol::offsets::{End, ListOffsets};
use futures_util::future::join_all;
use std::{
    collections::HashSet,
    sync::atomic::{AtomicBool, Ordering::SeqCst},
};
use tokio::{
    runtime::{Builder, Runtime},
    time::timeout,
};

#[tokio::test]
async fn fetches_of_many_partitions_wait_in_one_request_over_one_connection() {
    // The most fetches in one request, and how many there were in all requests.
    let widths = Arc::new(Mutex::new((0, 0)));
    let seen = widths.clone();
    let broker = Broker::of_fetches(move |fetch| {
        let (widest, all) = &mut *lock(&seen);
        (*widest, *all) = (fetch.parts.len().max(*widest), *all + fetch.parts.len());
        fetch.parts.iter().map(|asked| Part::empty(asked.offset)).collect()
    })
    .await;
    broker.state.set_topic(|topic| topic.partitions = 60);
    let kafka = kafka(&broker);
    // Like readers: the next fetch follows at once. They start at different times.
    let readers = (0..60).map(|index| {
        let kafka = &kafka;
        async move {
            tokio::time::sleep(millis(17 * index as u64)).await;
            loop {
                fetch(kafka, index, 0, millis(500)).await.unwrap();
            }
        }
    });
    let settled = async {
        while lock(&widths).0 < 60 {
            tokio::time::sleep(millis(10)).await;
        }
        let counts = || (broker.state.asked(fake::FETCH), lock(&widths).1);
        let (requests, fetches) = counts();
        tokio::time::sleep(millis(3000)).await;
        let (more_requests, more_fetches) = counts();
        (more_requests - requests, more_fetches - fetches)
    };
    tokio::select! {
        _ = join_all(readers) => unreachable!(),
        // On a busy machine some readers come back too late for the common request.
        (requests, fetches) = settled => assert!(fetches > 5 * requests, "{fetches} in {requests} requests"),
    }
    assert!(broker.state.open() <= 4, "{} connections", broker.state.open());
}

#[tokio::test]
async fn partition_with_two_readers_has_one_entry_in_a_request() {
    let twice = Arc::new(AtomicBool::new(false));
    let seen = twice.clone();
    let broker = Broker::of_fetches(move |fetch| {
        let places: HashSet<_> = fetch.parts.iter().map(|asked| asked.index).collect();
        seen.fetch_or(places.len() < fetch.parts.len(), SeqCst);
        fetch.parts.iter().map(|asked| Part::of(batch(asked.offset, 1))).collect()
    })
    .await;
    let kafka = kafka(&broker);
    let fetches = (0..20).map(|n| {
        let kafka = &kafka;
        async move { (n, fetch(kafka, 0, n, PATIENCE).await.unwrap()) }
    });
    for (n, batch) in join_all(fetches).await {
        assert_eq!((batch.records[0].offset, batch.next), (n, n + 1));
    }
    assert!(!twice.load(SeqCst), "of several entries, a server uses the last one");
}

#[tokio::test]
async fn readers_of_one_partition_do_not_wait_for_each_other() {
    // Seven of them have nothing to read for a long time.
    let broker = Broker::of_fetches(|fetch| {
        let answer = |asked: &fake::PartAsked| match asked.offset {
            7 => Part::of(batch(7, 1)),
            offset => Part::empty(offset),
        };
        fetch.parts.iter().map(answer).collect()
    })
    .await;
    let kafka = kafka(&broker);
    let idle = join_all((0..7).map(|n| fetch(&kafka, 0, n, PATIENCE)));
    let at = Instant::now();
    tokio::select! {
        biased;
        _ = idle => unreachable!(),
        found = fetch(&kafka, 0, 7, PATIENCE) => assert_eq!(found.unwrap().next, 8),
    }
    assert!(at.elapsed() < SOON, "{:?}", at.elapsed());
}

#[tokio::test]
async fn separate_fetches_run_concurrently() {
    let (together, are_together) = tokio::sync::watch::channel(false);
    let alone = Mutex::new(HashSet::new());
    let broker = Broker::new(move |asked| {
        let fetch = FetchAsked::read(asked)?;
        if fetch.parts.len() > 1 {
            // More than the client accepts, so that it requests each separately.
            let parts = vec![Part::of(vec![0; 3 << 20]); fetch.parts.len()];
            return Some(Reply::Body(fetch.response(asked, &parts)));
        }
        let mut alone = lock(&alone);
        alone.insert(fetch.parts[0].index);
        together.send_replace(alone.len() == 3);
        let part = Part::of(batch(fetch.parts[0].offset, 1));
        Some(Reply::Once(are_together.clone(), fetch.response(asked, &[part])))
    })
    .await;
    let kafka = RsKafka::builder(&broker.address).max_message_bytes(2 << 20).build().unwrap();
    // Metadata first, so that the three fetches share a request.
    kafka.offsets(&[Partition::new("t", 0)]).await.remove(0).unwrap();
    for fetched in join_all((0..3).map(|index| fetch(&kafka, index, 0, PATIENCE))).await {
        assert_eq!(fetched.unwrap().next, 1);
    }
}

#[tokio::test]
async fn dropped_fetch_does_not_affect_others_or_connections() {
    let broker = Broker::of_fetches(|fetch| {
        let answer = |asked: &fake::PartAsked| match asked.index {
            1 => Part::of(batch(asked.offset, 1)),
            _ => Part::empty(asked.offset),
        };
        fetch.parts.iter().map(answer).collect()
    })
    .await;
    let kafka = kafka(&broker);
    for n in 0..50 {
        let dropped = tokio::time::timeout(millis(3), fetch(&kafka, 0, n, PATIENCE)).await;
        assert!(dropped.is_err());
    }
    assert_eq!(fetch(&kafka, 1, 3, PATIENCE).await.unwrap().next, 4);
    assert!(broker.state.open() <= 5, "{} connections", broker.state.open());
}

fn current_thread() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn multi_thread() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// A runtime without time and I/O enabled.
fn bare() -> Runtime {
    Builder::new_current_thread().build().unwrap()
}

/// Partition 1 has records at every offset, the others have none.
fn broker_elsewhere() -> (Runtime, Broker) {
    let servers = multi_thread();
    let broker = servers.block_on(Broker::of_fetches(|fetch| {
        let answer = |asked: &fake::PartAsked| match asked.index {
            1 => Part::of(batch(asked.offset, 1)),
            _ => Part::empty(asked.offset),
        };
        fetch.parts.iter().map(answer).collect()
    }));
    (servers, broker)
}

/// Two runtimes of each kind call alternately. Nobody drives one while the other calls.
fn in_turns(call: impl AsyncFn(&RsKafka, i64)) {
    let (_servers, broker) = broker_elsewhere();
    let kinds: [fn() -> Runtime; 3] = [current_thread, multi_thread, bare];
    for (first, second) in kinds.iter().flat_map(|first| kinds.map(|second| (first, second))) {
        let kafka = kafka(&broker);
        let (one, two) = (first(), second());
        let at = Instant::now();
        for n in 0..3 {
            one.block_on(call(&kafka, 2 * n));
            two.block_on(call(&kafka, 2 * n + 1));
        }
        assert!(at.elapsed() < SOON, "{:?}", at.elapsed());
    }
}

async fn append(kafka: &RsKafka, headers: Headers) -> Result<i64> {
    let record = NewRecord::new(None, Some("x".into()), headers);
    kafka.append(&Partition::new("t", 1), &[record]).await.remove(0)
}

#[test]
fn fetches_continue_while_the_runtime_of_the_first_one_is_not_driven() {
    in_turns(async |kafka, n| assert_eq!(fetch(kafka, 1, n, PATIENCE).await.unwrap().next, n + 1));
}

#[test]
fn appends_by_the_library_continue_while_the_runtime_of_the_first_one_is_not_driven() {
    in_turns(async |kafka, _| assert_eq!(append(kafka, Headers::new()).await.unwrap(), 5));
}

#[test]
fn appends_over_shared_connections_continue_while_the_runtime_of_the_first_one_is_not_driven() {
    // A null header, which the library can't append.
    let headers = || [(Bytes::from("a"), None)].into_iter().collect();
    in_turns(async |kafka, _| assert_eq!(append(kafka, headers()).await.unwrap(), 5));
}

#[test]
fn offset_queries_continue_while_the_runtime_of_the_first_one_is_not_driven() {
    in_turns(async |kafka, _| {
        let offsets = kafka.offsets(&[Partition::new("t", 0)]).await.remove(0).unwrap();
        assert_eq!(offsets, Offsets { first: 5, next: 9 });
    });
}

#[test]
fn call_that_is_not_driven_does_not_block_calls_and_closing() {
    let (_servers, broker) = broker_elsewhere();
    let kafka = Arc::new(kafka(&broker));
    let (one, two) = (current_thread(), current_thread());
    one.spawn({
        let kafka = kafka.clone();
        async move { fetch(&kafka, 0, 0, PATIENCE).await }
    });
    // Its lookup is under way.
    one.block_on(async {
        while broker.state.asked(fake::METADATA) == 0 {
            tokio::time::sleep(millis(1)).await;
        }
    });
    let at = Instant::now();
    two.block_on(async {
        assert_eq!(fetch(&kafka, 1, 1, PATIENCE).await.unwrap().next, 2);
        timeout(PATIENCE, kafka.close()).await.unwrap().unwrap();
        while broker.state.open() > 0 {
            assert!(at.elapsed() < SOON, "{} connections", broker.state.open());
            tokio::time::sleep(millis(1)).await;
        }
    });
    assert!(at.elapsed() < SOON, "{:?}", at.elapsed());
}

#[test]
fn close_that_is_not_driven_does_not_block_other_closes() {
    let (goes, go) = tokio::sync::watch::channel(false);
    let servers = multi_thread();
    let broker = servers.block_on(Broker::new(move |asked| {
        let mut body = asked.writer();
        body.int32(0);
        body.int32(0);
        (asked.key == fake::LIST_OFFSETS).then_some(Reply::Once(go.clone(), body))
    }));
    let kafka = Arc::new(kafka(&broker));
    let (one, two) = (current_thread(), multi_thread());
    // Closing waits for this.
    let under_way = two.spawn({
        let kafka = kafka.clone();
        async move { kafka.offsets(&[Partition::new("t", 0)]).await }
    });
    while broker.state.asked(fake::LIST_OFFSETS) < 2 {
        std::thread::sleep(millis(1));
    }
    one.spawn({
        let kafka = kafka.clone();
        async move { kafka.close().await }
    });
    one.block_on(kafka.link.closing());
    goes.send_replace(true);
    let _ = two.block_on(under_way).unwrap();
    two.block_on(async { timeout(PATIENCE, kafka.close()).await }).unwrap().unwrap();
}

#[test]
fn a_call_that_is_dropped_ends_wherever_it_runs() {
    let servers = multi_thread();
    let broker =
        servers.block_on(Broker::new(|asked| (asked.key == fake::LIST_OFFSETS).then_some(Reply::Silence)));
    for runtime in [current_thread(), multi_thread()] {
        let kafka = kafka(&broker);
        let at = Instant::now();
        runtime.block_on(async {
            let of = [Partition::new("t", 0)];
            let before = broker.state.asked(fake::LIST_OFFSETS);
            let asked = async {
                while broker.state.asked(fake::LIST_OFFSETS) == before {
                    tokio::time::sleep(millis(1)).await;
                }
            };
            tokio::select! {
                _ = kafka.offsets(&of) => unreachable!(),
                () = asked => {}
            }
            // It waits for the calls in flight.
            kafka.close().await.unwrap();
        });
        assert!(at.elapsed() < SOON, "{:?}", at.elapsed());
    }
}

#[test]
fn runtime_that_ends_does_not_fail_fetches_of_others() {
    for one in [current_thread(), multi_thread()] {
        ends_amid_fetches(one);
    }
}

fn ends_amid_fetches(one: Runtime) {
    let (_servers, broker) = broker_elsewhere();
    let kafka = Arc::new(kafka(&broker));
    one.block_on(async {
        let waiting = (0..10).map(|_| fetch(&kafka, 0, 0, PATIENCE));
        let _ = tokio::time::timeout(millis(50), join_all(waiting)).await;
    });
    let two = {
        let kafka = kafka.clone();
        std::thread::spawn(move || current_thread().block_on(fetch(&kafka, 0, 0, millis(1500))))
    };
    std::thread::sleep(millis(100));
    drop(one);
    assert_eq!(two.join().unwrap().unwrap().next, 0);
    assert_eq!(current_thread().block_on(fetch(&kafka, 1, 3, PATIENCE)).unwrap().next, 4);
    // With a new runtime for each call.
    for n in 0..10 {
        assert_eq!(current_thread().block_on(fetch(&kafka, 1, n, PATIENCE)).unwrap().next, n + 1);
    }
}

#[test]
fn runtime_that_ends_does_not_delay_appends_of_others() {
    let servers = multi_thread();
    // The second request is answered too late; the third is the same one again.
    let produced = Mutex::new(0);
    let broker = servers.block_on(Broker::new(move |asked| {
        *lock(&produced) += usize::from(asked.key == fake::PRODUCE);
        (asked.key == fake::PRODUCE && *lock(&produced) == 2).then_some(Reply::Silence)
    }));
    let kafka = Arc::new(kafka(&broker));
    let (one, two) = (multi_thread(), multi_thread());
    // This one's connection serves the other, too.
    one.block_on(append(&kafka, Headers::new())).unwrap();
    let at = Instant::now();
    let appended = two.spawn({
        let kafka = kafka.clone();
        async move { append(&kafka, Headers::new()).await }
    });
    while broker.state.asked(fake::PRODUCE) < 2 {
        std::thread::sleep(millis(1));
    }
    drop(one);
    assert_eq!(two.block_on(appended).unwrap().unwrap(), 5);
    assert!(at.elapsed() < SOON, "{:?}", at.elapsed());
}

#[tokio::test]
async fn close_ends_long_polls_and_leaves_no_connection() {
    let broker =
        Broker::of_fetches(|fetch| fetch.parts.iter().map(|asked| Part::empty(asked.offset)).collect()).await;
    let kafka = Arc::new(kafka(&broker));
    let waiting = tokio::spawn({
        let kafka = kafka.clone();
        async move { fetch(&kafka, 0, 0, PATIENCE).await }
    });
    while broker.state.asked(fake::FETCH) == 0 {
        tokio::time::sleep(millis(1)).await;
    }
    let at = Instant::now();
    kafka.close().await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap_err().kind(), ErrorKind::Closed);
    assert!(at.elapsed() < SOON);
    while broker.state.open() > 0 {
        assert!(at.elapsed() < SOON, "{} connections", broker.state.open());
        tokio::time::sleep(millis(1)).await;
    }
}

#[tokio::test]
async fn offsets_of_many_partitions_take_two_requests() {
    let broker = Broker::new(|_| None).await;
    broker.state.set_topic(|topic| topic.partitions = 100);
    let kafka = kafka(&broker);
    let mut of: Vec<_> = (0..100).map(|index| Partition::new("t", index)).collect();
    // And one twice.
    of.push(of[3].clone());
    let offsets = kafka.offsets(&of).await;
    assert_eq!(offsets.len(), 101);
    for ends in offsets {
        assert_eq!(ends.unwrap(), Offsets { first: 5, next: 9 });
    }
    assert_eq!((broker.state.asked(fake::LIST_OFFSETS), broker.state.asked(fake::METADATA)), (2, 1));
}

#[tokio::test]
async fn hanging_broker_does_not_block_calls_to_others() {
    let hangs = Broker::new(|asked| (asked.key == fake::LIST_OFFSETS).then_some(Reply::Silence)).await;
    let good = Broker::new(|_| None).await;
    let kafka = kafka(&good);
    let connections = &kafka.link.connections;
    let of = Partition::new("t", 0);
    let request = ListOffsets { of: vec![&of], end: End::Next };
    let ask = |address: &str| {
        let (address, request) = (Arc::from(address), &request);
        async move { connections.send(&address, request, tokio::time::Instant::now() + PATIENCE).await }
    };
    let at = Instant::now();
    tokio::select! {
        biased;
        _ = join_all((0..20).map(|_| ask(&hangs.address))) => unreachable!(),
        answer = ask(&good.address) => assert_eq!(answer.unwrap(), [Some((0, 9))]),
    }
    assert!(at.elapsed() < SOON, "{:?}", at.elapsed());
    assert!(hangs.state.open() <= 4, "{} connections", hangs.state.open());
}
