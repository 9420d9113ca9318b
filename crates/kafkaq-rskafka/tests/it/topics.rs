//! Topics that are made, by one or by two at once.

use crate::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_that_make_the_same_topics_both_succeed_and_one_has_made_each() {
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
        // The tests' server makes six by default.
        assert_eq!(a.iter().map(|t| t.partitions).collect::<Vec<_>>(), [12, 6, 1]);
        for (a, b) in a.iter().zip(&b) {
            assert_eq!((&a.name, a.partitions), (&b.name, b.partitions));
            assert!(a.created != b.created, "exactly one has made {}", a.name);
        }
        for p in 0..12 {
            one.append(&Partition::new(specs[0].name.clone(), p), &[record("x")]).await.remove(0).unwrap();
        }
        assert!(one.ensure_topics(&specs).await.unwrap().iter().all(|t| !t.created));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_cannot_be_made_says_why() {
    let kafka = kafka(&shared_server());
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
async fn what_cannot_be_told_of_a_topic_is_none() {
    let kafka = kafka(&shared_server());
    let mut spec = TopicSpec::new(unique("told"));
    spec.retention = Some(Duration::MAX);
    spec.append_time = true;
    let info = kafka.ensure_topics(&[spec]).await.unwrap().remove(0);
    assert_eq!((info.retention, info.append_time, info.max_record_bytes), (None, None, None));
}
