//! Payloads in MessagePack and other formats.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::PATIENCE;
use kafkaq::{
    Queue, QueueBuilder, Task,
    testing::Harness,
    worker::{BoxError, Ctx, Format, Options, TaskType, Worker},
};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Resize {
    image: u64,
    name: String,
    #[serde(default)]
    factor: Option<f64>,
}

impl TaskType for Resize {
    const KIND: &'static str = "resize";
    const VERSION: u16 = 2;
    const FORMAT: Format = Format::MessagePack;

    fn upgrade(from: u16, payload: &[u8]) -> Result<Self, BoxError> {
        assert_eq!(from, 1);
        Format::Json.decode(payload)
    }
}

/// The type in a program that has not been changed yet.
#[derive(Serialize, Deserialize)]
struct InJson(u32);

impl TaskType for InJson {
    const KIND: &'static str = "in_json";
}

#[derive(Serialize, Deserialize)]
struct InBytes(Vec<u8>);

impl TaskType for InBytes {
    const KIND: &'static str = "in_bytes";
    const FORMAT: Format = Format::Custom("reversed");

    fn encode(&self) -> Result<bytes::Bytes, BoxError> {
        Ok(self.0.iter().rev().copied().collect())
    }

    fn decode(payload: &[u8]) -> Result<Self, BoxError> {
        Ok(InBytes(payload.iter().rev().copied().collect()))
    }
}

fn resize() -> Resize {
    Resize { image: u64::MAX, name: "Ada".into(), factor: Some(0.1) }
}

type Seen = Arc<Mutex<Vec<Resize>>>;

async fn harness(seen: &Seen, options: Options) -> Harness {
    let (seen, options) = (seen.clone(), options);
    let worker = |queue| {
        Worker::builder(queue)
            .state(seen)
            .on_with(async |ctx: Ctx<Seen>, task: Resize| ctx.state().lock().unwrap().push(task), options)
            .on(async |_: Ctx<Seen>, InJson(n): InJson| assert_eq!(n, 7))
            .on(async |_: Ctx<Seen>, InBytes(bytes): InBytes| assert_eq!(bytes, b"raw"))
    };
    let builder: QueueBuilder = Queue::builder("images");
    Harness::start(builder, worker).await.unwrap().limit(PATIENCE)
}

fn header(task: &Task, name: &str) -> Option<String> {
    task.headers().get(name).map(|value| String::from_utf8(value.to_vec()).unwrap())
}

#[tokio::test(start_paused = true)]
async fn each_format_comes_back_as_it_was() {
    let seen = Seen::default();
    let mut harness = harness(&seen, Options::new()).await;
    harness.queue().enqueue(resize()).await.unwrap();
    harness.queue().enqueue(InJson(7)).await.unwrap();
    harness.queue().enqueue(InBytes(b"raw".to_vec())).await.unwrap();
    harness.run_until_idle().await.unwrap().assert_all_done();
    assert_eq!(*seen.lock().unwrap(), [resize()]);

    let task = resize().to_task().unwrap();
    assert_eq!(header(&task, "task-format").unwrap(), "msgpack");
    assert!(task.payload().len() < serde_json::to_vec(&resize()).unwrap().len());
    assert_eq!(header(&InJson(7).to_task().unwrap(), "task-format"), None);
    assert_eq!(header(&InBytes(vec![1]).to_task().unwrap(), "task-format").unwrap(), "reversed");
}

#[tokio::test(start_paused = true)]
async fn another_format_is_a_dead_letter_that_says_so() {
    let mut harness = harness(&Seen::default(), Options::new()).await;
    let of = |kind, version, format: Option<&'static str>, payload: bytes::Bytes| {
        let task = Task::new(payload).with_header("task-kind", kind).with_header("task-version", version);
        format.into_iter().fold(task, |task, format| task.with_header("task-format", format))
    };
    let (packed, json) = (resize().encode().unwrap(), Format::Json.encode(&resize()).unwrap());
    let mut dead = Vec::new();
    for (task, wanted) in [
        // These bytes are a valid number in both formats, but a different one.
        (of("in_json", "1", Some("msgpack"), Format::MessagePack.encode(&55).unwrap()), "is `msgpack`, and"),
        (of("resize", "2", None, json), "its format is `json`, and this worker expects `msgpack`"),
        (of("resize", "2", Some("cbor"), packed.clone()), "its format is `cbor`"),
        (of("in_bytes", "1", None, "war".into()), "expects `reversed`"),
        (of("resize", "2", Some("msgpack"), packed.slice(..9)), "can't be read"),
        (of("resize", "2", Some("msgpack"), [&packed[..], b"x"].concat().into()), "1 bytes are left"),
        (of("resize", "3", Some("msgpack"), packed), "newer than 2"),
    ] {
        dead.push((harness.queue().publish(task).await.unwrap(), wanted));
    }
    let report = harness.run_until_idle().await.unwrap();
    for (id, wanted) in &dead {
        report.assert_dead(id, wanted);
    }
}

#[tokio::test(start_paused = true)]
async fn an_earlier_version_in_json_is_upgraded_and_a_field_may_be_missing() {
    let seen = Seen::default();
    let mut harness = harness(&seen, Options::new().exclusive_by(|task: &Resize| task.name.clone())).await;
    let old = Task::new(r#"{"image":1,"name":"old"}"#).with_header("task-kind", "resize");
    harness.queue().publish(old).await.unwrap();

    #[derive(Serialize)]
    struct Without {
        name: &'static str,
        image: u64,
    }
    let without = Format::MessagePack.encode(&Without { name: "without", image: 2 }).unwrap();
    let without = Task::new(without).with_headers(resize().to_task().unwrap().headers().clone());
    harness.queue().publish(without).await.unwrap();
    harness.run_until_idle().await.unwrap().assert_all_done();
    let mut seen = seen.lock().unwrap().clone();
    seen.sort_by_key(|task| task.image);
    let wanted = |image, name: &str| Resize { image, name: name.into(), factor: None };
    assert_eq!(seen, [wanted(1, "old"), wanted(2, "without")]);
}

#[test]
fn custom_format_without_functions_is_an_error_instead_of_json() {
    #[derive(Debug, Serialize, Deserialize)]
    struct Incomplete;

    impl TaskType for Incomplete {
        const KIND: &'static str = "incomplete";
        const FORMAT: Format = Format::Custom("own");
    }
    let error = Incomplete.to_task().unwrap_err();
    assert!(error.to_string().contains("`own` has to implement `encode`"), "{error}");
    assert!(Incomplete::decode(b"null").unwrap_err().to_string().contains("`decode`"));
}
