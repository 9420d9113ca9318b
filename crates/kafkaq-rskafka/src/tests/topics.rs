//! Nodes that aren't the controller, are too old, or deny access.

use super::*;
use crate::wire::format::Writer;
use fake::{Asked, CREATE_TOPICS, DESCRIBE_CONFIGS};
use tokio::net::TcpListener;

/// A broker without topics until it has created one with the outcome `code`; its settings can't be read.
async fn creates(code: i16) -> Broker {
    creates_with(code, |_| None).await
}

async fn creates_with(
    code: i16,
    before: impl Fn(&mut Asked) -> Option<Reply> + Send + Sync + 'static,
) -> Broker {
    let state = Arc::new(Mutex::new(None::<Arc<fake::State>>));
    let of_it = state.clone();
    let broker = Broker::new(move |asked: &mut Asked| {
        if let Some(reply) = before(asked) {
            return Some(reply);
        }
        let mut body = asked.writer();
        match asked.key {
            CREATE_TOPICS => {
                if let (Some(state), 0 | 36) = (&*lock(&of_it), code) {
                    state.set_topic(|topic| topic.partitions = 1);
                }
                outcome(&mut body, code);
            }
            DESCRIBE_CONFIGS => denied(&mut body),
            _ => return None,
        }
        Some(Reply::Body(body))
    })
    .await;
    broker.state.set_topic(|topic| topic.partitions = 0);
    *lock(&state) = Some(broker.state.clone());
    broker
}

/// How the creation of the topic `t` went.
fn outcome(body: &mut Writer, code: i16) {
    body.int32(0);
    body.array(1).unwrap();
    body.string("t").unwrap();
    body.int16(code);
    body.string("because").unwrap();
}

/// Denies access to the settings of `t`.
fn denied(body: &mut Writer) {
    body.int32(0);
    body.array(1).unwrap();
    body.int16(29);
    body.no_string();
    body.int8(2);
    body.string("t").unwrap();
    body.array(0).unwrap();
}

async fn ensure(kafka: &RsKafka) -> Result<TopicInfo> {
    Ok(kafka.ensure_topics(&[TopicSpec::new("t")]).await?.remove(0))
}

#[tokio::test]
async fn the_controller_is_asked_to_create_a_topic() {
    let controller = creates(0).await;
    let other = creates(41).await;
    other.state.set_topic(|topic| topic.controller.clone_from(&controller.address));
    assert!(ensure(&kafka(&other)).await.unwrap().created);
    assert_eq!((controller.state.asked(CREATE_TOPICS), other.state.asked(CREATE_TOPICS)), (1, 0));
}

#[tokio::test]
async fn concurrently_created_topic_is_accepted() {
    let broker = creates(36).await;
    assert!(!ensure(&kafka(&broker)).await.unwrap().created);
}

#[tokio::test]
async fn an_address_where_nobody_listens_leaves_the_others() {
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let broker = creates(0).await;
    let addresses = format!("{nobody},{}", broker.address);
    let kafka = RsKafka::builder(addresses).request_timeout(PATIENCE).build().unwrap();
    assert!(ensure(&kafka).await.unwrap().created);
}

#[tokio::test]
async fn denied_topic_creation_names_the_permission_and_the_servers_message() {
    let broker = creates(29).await;
    let e = ensure(&kafka(&broker)).await.unwrap_err();
    assert_eq!((e.kind(), e.effect()), (ErrorKind::Denied, Effect::NotApplied));
    assert!(
        e.to_string().contains("because") && e.advice().unwrap().contains("Create on the topic t"),
        "{e}"
    );
}

#[tokio::test]
async fn too_old_server_is_an_error_that_says_so() {
    let broker = creates(0).await;
    lock(&broker.state.knows).remove(&CREATE_TOPICS);
    let e = ensure(&kafka(&broker)).await.unwrap_err();
    assert_eq!((e.kind(), e.effect()), (ErrorKind::Unsupported, Effect::NotApplied));
    assert!(e.to_string().contains("CreateTopics in version 4"), "{e}");
}

#[tokio::test]
async fn unreadable_settings_stay_unknown_and_fail_nothing() {
    for is_old in [false, true] {
        let broker = creates(0).await;
        broker.state.set_topic(|topic| topic.partitions = 2);
        if is_old {
            lock(&broker.state.knows).remove(&DESCRIBE_CONFIGS);
        }
        assert_eq!(ensure(&kafka(&broker)).await.unwrap(), TopicInfo::new("t", 2));
    }
}

#[tokio::test]
async fn describing_never_creates() {
    let broker = creates(0).await;
    let kafka = kafka(&broker);
    let names: Vec<Arc<str>> = vec!["t".into(), "other".into(), "t".into()];
    assert_eq!(kafka.describe_topics(&names).await.unwrap(), [None, None, None]);
    broker.state.set_topic(|topic| topic.partitions = 2);
    // It doesn't rely on cached metadata.
    let there = Some(TopicInfo::new("t", 2));
    assert_eq!(kafka.describe_topics(&names).await.unwrap(), [there.clone(), None, there]);
    broker.state.set_topic(|topic| topic.partitions = 5);
    assert_eq!(kafka.describe_topics(&names[..1]).await.unwrap(), [Some(TopicInfo::new("t", 5))]);
    assert_eq!(broker.state.asked(CREATE_TOPICS), 0);
    assert!(kafka.describe_topics(&[]).await.unwrap().is_empty());
}

#[tokio::test]
async fn possible_creation_is_of_unknown_effect_and_a_failed_query_is_not() {
    let looks = [(fake::METADATA, 0), (fake::LIST_OFFSETS, 2), (DESCRIBE_CONFIGS, 2)]
        .map(|look| (look, Effect::NotApplied));
    // The second one was created, and then the server went silent.
    let creates = [(CREATE_TOPICS, 0), (fake::LIST_OFFSETS, 0)].map(|change| (change, Effect::Unknown));
    for ((silent, partitions), effect) in looks.into_iter().chain(creates) {
        for reply in [|| Reply::Silence, || Reply::HangUp] {
            let broker = creates_with(0, move |asked| (asked.key == silent).then(reply)).await;
            broker.state.set_topic(|topic| topic.partitions = partitions);
            let kafka = RsKafka::builder(&broker.address).request_timeout(millis(500)).build().unwrap();
            let e = ensure(&kafka).await.unwrap_err();
            assert_eq!((e.effect(), e.retry()), (effect, Retry::Yes), "{silent} of {partitions}: {e}");
            assert_eq!(e.to_string().contains("may have taken effect"), effect == Effect::Unknown, "{e}");
        }
    }
}
