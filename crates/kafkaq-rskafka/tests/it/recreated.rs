//! Topics that are deleted under a running handle, and recreated.

use crate::*;
use std::fs;

/// Recreates the topic, retrying until the server allows it.
async fn create(kafka: &RsKafka, topic: &Arc<str>) {
    let mut spec = TopicSpec::new(topic.clone());
    spec.partitions = Some(1);
    let at = Instant::now();
    while !kafka.ensure_topics(&[spec.clone()]).await.is_ok_and(|infos| infos[0].created) {
        assert!(at.elapsed() < PATIENCE);
        tokio::time::sleep(millis(20)).await;
    }
}

async fn delete(site: &Site) {
    let (url, topic) = (site.server.url(), site.topic.to_string());
    tokio::task::spawn_blocking(move || wire::delete(&url, &topic)).await.unwrap();
}

/// Fetches from an offset of the old topic until that fails, as it must. Nothing may be read meanwhile.
async fn until_told(site: &Site, offset: i64) {
    let at = Instant::now();
    loop {
        match site.fetch(offset, millis(100), 1 << 20).await {
            Err(e) if e.kind() == ErrorKind::Invalid && e.to_string().contains("recreated") => return,
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Ok(batch) => assert_eq!((batch.records.len(), batch.next), (0, offset), "still the old topic"),
            Err(e) => panic!("{e}"),
        }
        assert!(at.elapsed() < PATIENCE);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recreated_topic_is_never_read_from_a_position_of_the_old_one() {
    let site = Site::with(1).await;
    // Another handle recreates it, so that the reading one has to find out.
    let other = kafka(&site.server);
    let mut end = 100;
    site.append(&numbered(0..100)).await.unwrap();
    // Shorter, equal, longer; with a fetch that waits meanwhile, and without.
    for (round, next) in [50, 50, 300, 20, 20, 40].into_iter().enumerate() {
        assert_eq!(site.read(0, end).await.len(), end as usize);
        let waiting = async {
            if round % 2 == 1 {
                let e = site.fetch(end, PATIENCE, 1 << 20).await.unwrap_err();
                assert!(matches!(e.kind(), ErrorKind::Invalid | ErrorKind::NotFound), "{e}");
                assert!(e.kind() == ErrorKind::NotFound || e.to_string().contains("recreated"), "{e}");
                return e.kind() == ErrorKind::Invalid;
            }
            false
        };
        let recreate = async {
            tokio::time::sleep(millis(100)).await;
            delete(&site).await;
            create(&other, &site.topic).await;
            let appended = other.append(&site.partition(0), &numbered(0..next)).await;
            assert!(appended.iter().all(|outcome| outcome.is_ok()));
        };
        let (was_told, ()) = tokio::join!(waiting, recreate);
        if !was_told {
            until_told(&site, end).await;
        }
        end = next as i64;
    }
    assert_eq!(site.read(0, end).await.len(), end as usize);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn running_handle_never_recreates_a_deleted_topic_even_if_the_server_allows_it() {
    let dir = std::env::temp_dir().join(unique("kafkaq-rskafka-auto"));
    let mut server = Service::Kafka.start(&dir, None).unwrap();
    let settings = dir.join("server.properties");
    let Ok(text) = fs::read_to_string(&settings) else {
        println!("not tested: Kafka runs in a container");
        return;
    };
    server.stop().unwrap();
    fs::write(&settings, text + "\nauto.create.topics.enable=true\n").unwrap();
    server.start_again().unwrap();

    let site = Site::on(Arc::new(server), 3).await;
    let to: Vec<_> = (0..3).map(|index| site.partition(index)).collect();
    for partition in &to {
        site.kafka.append(partition, &[record("x")]).await.remove(0).unwrap();
    }
    site.fetch(0, millis(100), 1 << 20).await.unwrap();
    delete(&site).await;
    let at = Instant::now();
    let mut refused = 0;
    while refused < 20 {
        for partition in &to {
            let mut headers = record("x");
            headers.headers.push("null", None);
            for record in [record("x"), headers] {
                match site.kafka.append(partition, &[record]).await.remove(0) {
                    // The server is still deleting it.
                    Ok(_) => refused = 0,
                    Err(e) => {
                        assert_eq!(e.kind(), ErrorKind::NotFound, "{e}");
                        refused += 1;
                    }
                }
            }
            let _ = site.kafka.offsets(std::slice::from_ref(partition)).await;
        }
        let _ = site.fetch(1, millis(10), 1 << 20).await;
        assert_eq!(site.kafka.describe_topics(std::slice::from_ref(&site.topic)).await.unwrap(), [None]);
        assert!(at.elapsed() < PATIENCE * 3, "{refused}");
    }
}
