//! Servers that are down, freeze and recover; handles that are closed.

use crate::*;
use kafkaq_adapter_tests::Log;
use kafkaq_core::Log as _;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_no_server_every_call_ends_in_time_and_names_the_address() {
    // Nobody listens on a port that was just released.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let kafka = RsKafka::builder(&free).request_timeout(millis(1000)).build().unwrap();
    let to = Partition::new("t", 0);
    let at = Instant::now();
    let append = kafka.append(&to, &[record("x")]).await.remove(0).unwrap_err();
    let from = Position { partition: to.clone(), offset: 0 };
    let fetch = kafka.fetch(&from, FetchLimit::new(millis(500), 1000)).await.unwrap_err();
    let offsets = kafka.offsets(&[to]).await.remove(0).unwrap_err();
    let ensure = kafka.ensure_topics(&[TopicSpec::new("t")]).await.unwrap_err();
    println!("{append}\nall in {:?}", at.elapsed());
    assert!(at.elapsed() < SOON, "{:?}", at.elapsed());
    for e in [append, fetch, offsets, ensure] {
        assert_eq!((e.kind(), e.effect()), (ErrorKind::Unavailable, Effect::NotApplied), "{e}");
        assert_eq!(e.retry(), Retry::Yes);
        assert!(e.to_string().contains(&free) && e.advice().is_some(), "{e}");
    }
    kafka.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_to_an_unresponsive_server_time_out() {
    let deaf = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = deaf.local_addr().unwrap().to_string();
    let kafka = RsKafka::builder(address).request_timeout(millis(1000)).build().unwrap();
    let at = Instant::now();
    // They wait for the server together, not one after another.
    let calls = (0..40).map(|_| async {
        kafka.append(&Partition::new("t", 0), &[record("x")]).await.remove(0).unwrap_err()
    });
    for e in futures_util::future::join_all(calls).await {
        assert_eq!((e.kind(), e.effect()), (ErrorKind::Unavailable, Effect::NotApplied), "{e}");
    }
    assert!(at.elapsed() < SOON, "{:?}", at.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_server_is_bounded_unknown_and_recovered_from() {
    let mut site = Site::on(Arc::new(own_server()), 1).await;
    site.kafka = impatient(&site.server);
    // So that there is a connection to send on.
    until_appended(&site.kafka, &site.partition(0), "0").await;
    site.server.pause().unwrap();
    let at = Instant::now();
    let more = numbered(1..2);
    let (append, fetch) = tokio::join!(site.append(&more), site.fetch(1, millis(500), 1000));
    let (append, fetch) = (append.unwrap_err(), fetch.unwrap_err());
    println!("{append}\n{fetch}\nin {:?}", at.elapsed());
    assert!(at.elapsed() < SOON, "{:?}", at.elapsed());
    assert_eq!((append.effect(), append.retry()), (Effect::Unknown, Retry::Yes));
    assert_eq!((fetch.effect(), fetch.retry()), (Effect::NotApplied, Retry::Yes));
    site.server.resume().unwrap();
    let at = Instant::now();
    until_appended(&site.kafka, &site.partition(0), "1").await;
    println!("recovered in {:?}", at.elapsed());
    site.kafka.close().await.unwrap();
    // A handle that has more time.
    site.kafka = kafka(&site.server);
    let values: Vec<_> = site.read(0, 2).await.into_iter().filter_map(|r| r.value).collect();
    assert!(
        values[0] == "0" && values.iter().any(|value| value == "1"),
        "each once, or more often: {values:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handle_reconnects_to_a_restarted_server() {
    let site = Site::on(Arc::new(own_server()), 2).await;
    site.append(&numbered(0..1)).await.unwrap();
    let Site { server, topic, .. } = site;
    let mut server = Arc::into_inner(server).unwrap();
    let kafka = impatient(&server);
    let to = Partition::new(topic, 0);
    let from = Position { partition: to.clone(), offset: 1 };
    // A fetch that waits while the server ends.
    let waiting = FetchLimit::new(millis(3000), 1000);
    let (fetched, (server, down)) = tokio::join!(kafka.fetch(&from, waiting), async {
        tokio::time::sleep(millis(300)).await;
        tokio::task::spawn_blocking(move || server.stop().map(|()| server))
            .await
            .unwrap()
            .map_or_else(|e| panic!("{e}"), |server| (server, Instant::now()))
    });
    // The server may have answered it in its last moment.
    println!("the waiting fetch: {:?}", fetched.map(|b| b.next));
    server_is_away(&kafka, &to).await;
    let mut server = server;
    let server =
        tokio::task::spawn_blocking(move || server.start_again().map(|()| server)).await.unwrap().unwrap();
    let back = Instant::now();
    until_appended(&kafka, &to, "1").await;
    println!("away for {:?}; the first append took {:?}", back - down, back.elapsed());
    let records = kafka.fetch(&from, FetchLimit::new(PATIENCE, 1000)).await.unwrap().records;
    assert_eq!(records[0].value.as_deref(), Some(&b"1"[..]));
    kafka.close().await.unwrap();
    drop(server);
}

/// A handle that gives up soon.
fn impatient(server: &Server) -> RsKafka {
    RsKafka::builder(server.url()).request_timeout(millis(3000)).build().unwrap()
}

/// Appends a record, repeatedly until one append is acknowledged.
async fn until_appended(kafka: &RsKafka, to: &Partition, value: &'static str) {
    let at = Instant::now();
    while let Err(e) = kafka.append(to, &[record(value)]).await.remove(0) {
        assert!(e.retry() == Retry::Yes && at.elapsed() < PATIENCE, "{e}");
    }
}

async fn server_is_away(kafka: &RsKafka, to: &Partition) {
    let at = Instant::now();
    let calls = (0..4).map(|_| async { kafka.append(to, &[record("x")]).await.remove(0).unwrap_err() });
    for e in futures_util::future::join_all(calls).await {
        println!("{e}");
        assert_eq!((e.kind(), e.retry()), (ErrorKind::Unavailable, Retry::Yes), "{e}");
    }
    assert!(at.elapsed() < SOON, "{:?}", at.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_closed_by_the_server_fail_no_call() {
    let site = Site::on(Arc::new(own_server()), 1).await;
    site.append(&numbered(0..1)).await.unwrap();
    site.fetch(0, millis(0), 1000).await.unwrap();
    let Site { server, kafka, topic } = site;
    let mut server = Arc::into_inner(server).unwrap();
    let server = tokio::task::spawn_blocking(move || {
        server.kill().unwrap();
        server.start_again().unwrap();
        server
    })
    .await
    .unwrap();
    let to = Partition::new(topic, 0);
    let calls = (0..4).map(|_| async { kafka.append(&to, &[record("x")]).await.remove(0) });
    for outcome in futures_util::future::join_all(calls).await {
        outcome.unwrap();
    }
    drop(server);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn close_ends_waiting_calls_completes_sent_ones_and_refuses_new_ones() {
    let site = Arc::new(Site::with(1).await);
    let waiting = tokio::spawn({
        let site = site.clone();
        async move { site.fetch(0, PATIENCE, 1000).await }
    });
    tokio::time::sleep(millis(200)).await;
    let at = Instant::now();
    let records = numbered(0..100);
    let (append, closed, again) = tokio::join!(site.append(&records), site.kafka.close(), site.kafka.close());
    assert_eq!(append.unwrap().len(), 100, "it was there before the close");
    closed.unwrap();
    again.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap_err().kind(), ErrorKind::Closed);
    assert!(at.elapsed() < SOON, "{:?}", at.elapsed());
    let to = site.partition(0);
    let of = [
        site.append(&numbered(0..1)).await.unwrap_err(),
        site.fetch(0, millis(0), 1000).await.unwrap_err(),
        site.kafka.offsets(&[to]).await.remove(0).unwrap_err(),
        site.kafka.ensure_topics(&[TopicSpec::new("t")]).await.unwrap_err(),
    ];
    for e in of {
        assert_eq!((e.kind(), e.effect(), e.retry()), (ErrorKind::Closed, Effect::NotApplied, Retry::No));
    }
    site.kafka.close().await.unwrap();
}

#[tokio::test(flavor = "current_thread")]
async fn outage_logs_one_line_of_ours_and_none_of_the_library() {
    let site = Site::on(Arc::new(own_server()), 3).await;
    let log = Log::capture();
    let kafka = RsKafka::builder(site.server.url()).request_timeout(millis(1000)).build().unwrap();
    let to: Vec<_> = (0..3).map(|index| site.partition(index)).collect();
    for partition in &to {
        until_appended(&kafka, partition, "x").await;
    }
    let mut server = Arc::into_inner(site.server).unwrap();
    // There may be other outages on a busy machine, while a server starts or when it recovers.
    let before = log.warnings().len();
    let mut server = tokio::task::spawn_blocking(move || {
        server.kill().unwrap();
        server
    })
    .await
    .unwrap();
    let (mut failed, began) = (0, Instant::now());
    while failed < 60 {
        let calls = to.iter().map(|partition| async {
            let from = Position { partition: partition.clone(), offset: 1 };
            let appended = kafka.append(partition, &[record("x")]).await.remove(0).is_err();
            let fetched = kafka.fetch(&from, FetchLimit::new(millis(100), 1000)).await.is_err();
            usize::from(appended) + usize::from(fetched)
        });
        failed += futures_util::future::join_all(calls).await.into_iter().sum::<usize>();
    }
    let lines = log.warnings().split_off(before);
    println!("{failed} calls failed: {lines:#?}");
    let minutes = began.elapsed().as_secs() / 60;
    assert!((1..=1 + minutes).contains(&(lines.len() as u64)), "{failed} calls failed: {lines:#?}");
    let _server = tokio::task::spawn_blocking(move || {
        server.start_again().unwrap();
        server
    })
    .await
    .unwrap();
    for partition in &to {
        until_appended(&kafka, partition, "y").await;
    }
    let lines = log.warnings();
    assert!(lines.iter().all(|line| line.contains("can't be reached")), "{lines:#?}");
}
