//! Publishing typed tasks: several at once, by handlers, in an earlier version, and in MessagePack.

use crate::shared::{Number, Other, Runs, build, stop, unhurried, until_all_finished, until_status, worker};
use kafkaq::{
    ErrorKind, JobStatus, Task,
    dead_letters::Filter,
    worker::{BoxError, Ctx, Failure, Format, TaskType},
};
use kafkaq_tests::{Built, Case, Pair};
use serde::{Deserialize, Serialize};
use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
};

pub(crate) const CASES: &[Case] = &[
    ("enqueue_many", |pair| Box::pin(enqueue_many(pair))),
    ("child_ids", |pair| Box::pin(child_ids(pair))),
    ("typed_upgrade", |pair| Box::pin(typed_upgrade(pair))),
    ("message_pack", |pair| Box::pin(message_pack(pair))),
];

#[derive(Serialize, Deserialize)]
struct Text(String);

impl TaskType for Text {
    const KIND: &'static str = "text";
}

async fn enqueue_many(pair: &Pair) {
    const TOO_LARGE: usize = 7;
    let queue = unhurried(pair).max_task_bytes(1000).built().await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let told = seen.clone();
    let running = worker(&queue)
        .on(move |_: Ctx, Text(text): Text| {
            told.lock().unwrap().push(text);
            async {}
        })
        .start()
        .unwrap();
    let texts = (0..300).map(|n| if n == TOO_LARGE { "x".repeat(2000) } else { n.to_string() });
    let outcomes = queue.enqueue_many(texts.map(Text)).await;
    assert_eq!(outcomes.len(), 300);
    let mut ids = HashSet::new();
    for (n, outcome) in outcomes.into_iter().enumerate() {
        match outcome {
            Ok(id) => {
                assert_ne!(n, TOO_LARGE);
                until_status(&queue, &id, JobStatus::Done).await;
                ids.insert(id);
            }
            Err(e) => assert_eq!((n, e.kind()), (TOO_LARGE, ErrorKind::TooLarge), "{e}"),
        }
    }
    assert_eq!(ids.len(), 299);
    let mut wanted: Vec<_> = (0..300).filter(|n| *n != TOO_LARGE).map(|n| n.to_string()).collect();
    let mut seen = std::mem::take(&mut *seen.lock().unwrap());
    wanted.sort();
    seen.sort();
    assert_eq!(seen, wanted);
    assert_eq!(stop(running).await.done, 299);
}

async fn child_ids(pair: &Pair) {
    let queue = build(pair).await;
    let (parents, children) = (Runs::default(), Runs::default());
    let ids = Arc::new(Mutex::new(Vec::new()));
    let (parent, told) = (parents.clone(), ids.clone());
    let running = worker(&queue)
        .on(move |ctx: Ctx, task: Number| {
            let (runs, ids) = (parent.clone(), told.clone());
            async move {
                runs.note(&ctx, task.0);
                // Two of the same content are two tasks.
                for n in [1, 2, 2] {
                    let id = ctx.enqueue(Other(n)).await?;
                    ids.lock().unwrap().push(id);
                }
                if ctx.attempt() == 1 { Err(Failure::retry("once more")) } else { Ok(()) }
            }
        })
        .on(children.handler::<Other>())
        .start()
        .unwrap();
    let id = queue.enqueue(Number(0)).await.unwrap();
    until_status(&queue, &id, JobStatus::Done).await;
    let ids = ids.lock().unwrap().clone();
    assert_eq!((ids.len(), &ids[..3]), (6, &ids[3..]), "the second run makes the same ids");
    for id in &ids {
        until_status(&queue, id, JobStatus::Done).await;
    }
    until_all_finished(pair, &[&queue]).await;
    assert_eq!((parents.len(), children.numbers()), (2, vec![1, 2, 2]));
    let report = stop(running).await;
    assert_eq!((report.done, report.retried), (4, 1), "{report}");
}

/// Its first version had the whole name in one.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Welcome {
    first: String,
    last: String,
}

impl TaskType for Welcome {
    const KIND: &'static str = "welcome";
    const VERSION: u16 = 2;

    fn upgrade(from: u16, payload: &[u8]) -> Result<Self, BoxError> {
        #[derive(Deserialize)]
        struct Earlier {
            name: String,
        }
        if from != 1 {
            return Err(format!("there is no version {from}").into());
        }
        let Earlier { name } = serde_json::from_slice(payload)?;
        let (first, last) = name.split_once(' ').ok_or("a name has two parts")?;
        Ok(Welcome { first: first.to_owned(), last: last.to_owned() })
    }
}

async fn typed_upgrade(pair: &Pair) {
    let queue = build(pair).await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let told = seen.clone();
    let running = worker(&queue)
        .on(move |_: Ctx, task: Welcome| {
            told.lock().unwrap().push(task.last);
            async {}
        })
        .start()
        .unwrap();
    // As a program in another language publishes it.
    let raw = |version: &'static str, payload: &'static str| {
        queue.publish(
            Task::new(payload).with_header("task-kind", "welcome").with_header("task-version", version),
        )
    };
    let old = raw("1", r#"{"name": "Ada Lovelace"}"#).await.unwrap();
    let new = queue.enqueue(Welcome { first: "Grace".into(), last: "Hopper".into() }).await.unwrap();
    let unreadable = raw("1", r#"{"name": "Plato"}"#).await.unwrap();
    let of_tomorrow = raw("3", "{}").await.unwrap();
    for (id, status) in [
        (&old, JobStatus::Done),
        (&new, JobStatus::Done),
        (&unreadable, JobStatus::Dead),
        (&of_tomorrow, JobStatus::Dead),
    ] {
        until_status(&queue, id, status).await;
    }
    let report = stop(running).await;
    let mut seen = std::mem::take(&mut *seen.lock().unwrap());
    seen.sort();
    assert_eq!(seen, ["Hopper", "Lovelace"]);
    assert_eq!((report.done, report.dead_lettered), (2, 2), "{report}");
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Image {
    name: String,
    pixels: Vec<u64>,
}

impl TaskType for Image {
    const KIND: &'static str = "image";
    const FORMAT: Format = Format::MessagePack;
}

async fn message_pack(pair: &Pair) {
    let queue = build(pair).await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let told = seen.clone();
    let running = worker(&queue)
        .on(move |ctx: Ctx, task: Image| {
            told.lock().unwrap().push((task, ctx.payload().clone()));
            async {}
        })
        .start()
        .unwrap();
    let image = Image { name: "Ada".into(), pixels: vec![0, 1, u64::MAX] };
    let packed = Format::MessagePack.encode(&image).unwrap();
    let good = queue.enqueue(image.clone()).await.unwrap();
    let raw = |format: &'static str, payload| {
        let task = Task::new(payload).with_header("task-kind", "image");
        queue.publish(task.with_header("task-format", format))
    };
    let cut = raw("msgpack", packed.slice(..9)).await.unwrap();
    let json = raw("json", Format::Json.encode(&image).unwrap()).await.unwrap();
    for (id, status) in [(&good, JobStatus::Done), (&cut, JobStatus::Dead), (&json, JobStatus::Dead)] {
        until_status(&queue, id, status).await;
    }
    let report = stop(running).await;
    assert_eq!(*seen.lock().unwrap(), [(image, packed)]);
    assert_eq!((report.done, report.retried, report.dead_lettered), (1, 0, 2), "{report}");
    let letters = pair.dead_letters().await.letters(Filter::new()).await.unwrap().next_page(9).await.unwrap();
    assert_eq!(letters.len(), 2, "{letters:?}");
    for (id, wanted) in [
        (cut, "the payload of `image` can't be read"),
        (json, "its format is `json`, and this worker expects `msgpack`"),
    ] {
        let letter = letters.iter().find(|letter| letter.id.as_ref() == Some(&id)).unwrap();
        let reason = letter.reason.as_ref().unwrap();
        assert!(reason.contains(wanted), "{reason}");
    }
}
