//! Creation of topics, by one or by two clients at once.

use crate::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_creations_both_succeed_and_create_each_topic_once() {
    let server = shared_server();
    for _ in 0..5 {
        let specs: Vec<_> = [Some(12), None, Some(1)]
            .into_iter()
            .map(|partitions| {
                let mut spec = TopicSpec::new(unique("race"));
                spec.partitions = partitions;
                spec.replication = Some(1);
                spec
            })
            .collect();
        let (one, two) = (kafka(&server), kafka(&server));
        let (a, b) = tokio::join!(one.ensure_topics(&specs), two.ensure_topics(&specs));
        let (a, b) = (a.unwrap(), b.unwrap());
        // The test server creates six by default.
        assert_eq!(a.iter().map(|t| t.partitions).collect::<Vec<_>>(), [12, 6, 1]);
        for (a, b) in a.iter().zip(&b) {
            assert_eq!((&a.name, a.partitions), (&b.name, b.partitions));
            assert!(a.created != b.created, "exactly one created {}", a.name);
        }
        for p in 0..12 {
            one.append(&Partition::new(specs[0].name.clone(), p), &[record("x")]).await.remove(0).unwrap();
        }
        assert!(one.ensure_topics(&specs).await.unwrap().iter().all(|t| !t.created));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failed_creation_gives_the_reason() {
    let server = shared_server();
    let kafka = kafka(&server);
    let mut many = TopicSpec::new(unique("many"));
    many.replication = Some(3);
    let bad_name = TopicSpec::new("no spaces");
    for (spec, word) in [(many, "fewer"), (bad_name, "")] {
        let e = kafka.ensure_topics(&[spec]).await.unwrap_err();
        println!("{e}");
        assert_eq!((e.kind(), e.effect(), e.retry()), (ErrorKind::Invalid, Effect::NotApplied, Retry::No));
        assert!(e.to_string().contains(word), "{e}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topic_is_created_and_described_with_every_setting_of_its_spec() {
    let server = shared_server();
    let kafka = kafka(&server);
    let mut spec = TopicSpec::new(unique("made"));
    spec.retention = Some(Duration::from_secs(40 * 24 * 3600));
    spec.unlimited_bytes = true;
    spec.max_record_bytes = Some(3_000_000);
    spec.append_time = true;
    let mut compacted = TopicSpec::new(unique("compacted"));
    compacted.compacted = true;
    compacted.retention = Some(Duration::MAX);
    let specs = [spec.clone(), compacted.clone()];
    let made = kafka.ensure_topics(&specs).await.unwrap();
    let [info, compact] = &made[..] else { panic!("{made:?}") };
    assert_eq!(
        (info.retention, info.retention_bytes, info.compacted),
        (spec.retention, Some(-1), Some(false))
    );
    assert_eq!((info.max_record_bytes, info.append_time), (Some(3_000_000), Some(true)));
    assert_eq!((compact.compacted, compact.retention), (Some(true), Some(Duration::MAX)));
    assert_eq!(compact.append_time, Some(false), "left to the server");
    let mut there = kafka.ensure_topics(&specs).await.unwrap();
    for info in &mut there {
        assert!(!std::mem::replace(&mut info.created, true), "{} already existed", info.name);
    }
    assert_eq!(there, made, "and is described the same way");
}
