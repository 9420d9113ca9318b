//! Handling of dead letters.

use crate::shared::{Number, Runs, SECOND, build, stop, until_status};
use kafkaq::{
    JobStatus,
    dead_letters::{Filter, Fingerprint, RedriveState},
    worker::{Backoff, Ctx, Failure, Worker},
};
use kafkaq_tests::{Case, Pair, until};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::SeqCst},
};

pub(crate) const CASES: &[Case] = &[("dead_letters", |pair| Box::pin(dead_letters(pair)))];

async fn dead_letters(pair: &Pair) {
    let queue = build(pair).await;
    let (runs, is_broken) = (Runs::default(), Arc::new(AtomicBool::new(true)));
    let (noted, broken) = (runs.clone(), is_broken.clone());
    let running = Worker::builder(queue.clone())
        .retry(Backoff::fixed(SECOND).max_failures(2))
        .on(move |ctx: Ctx, task: Number| {
            let outcome = match (broken.load(SeqCst), task.0) {
                (true, n @ 0..6) => Err(Failure::reject(format!("user {n} not found"))),
                (true, _) => Err(Failure::retry("no route to host")),
                (false, n) => {
                    noted.note(&ctx, n);
                    Ok(())
                }
            };
            async { outcome }
        })
        .start()
        .unwrap();
    for id in queue.enqueue_many((0..9).map(Number)).await {
        until_status(&queue, &id.unwrap(), JobStatus::Dead).await;
    }
    let dead = pair.dead_letters().await;

    let mut letters = dead.letters(Filter::new()).await.unwrap();
    let mut found = Vec::new();
    for expected in [4, 4, 1, 0] {
        let page = letters.next_page(4).await.unwrap();
        assert_eq!(page.len(), expected);
        found.extend(page);
    }
    let mut payloads = Vec::new();
    for letter in &found {
        let n: u32 = serde_json::from_slice(letter.payload.as_ref().unwrap()).unwrap();
        let (reason, attempts) =
            if n < 6 { (format!("user {n} not found"), 1) } else { ("no route to host".to_owned(), 2) };
        assert_eq!((letter.kind.as_deref(), letter.reason.as_ref()), (Some("number"), Some(&reason)));
        assert_eq!((letter.attempts, letter.handled), (Some(attempts), None), "{letter:?}");
        payloads.push(n);
    }
    payloads.sort_unstable();
    assert_eq!(payloads, (0..9).collect::<Vec<_>>());

    let groups = dead.groups(Filter::new()).await.unwrap().groups;
    let groups: Vec<_> = groups.iter().map(|group| (group.fingerprint.as_str(), group.count)).collect();
    assert_eq!(groups, [("user # not found", 6), ("no route to host", 3)]);

    let of_users = || Filter::new().fingerprint(Fingerprint::new("user 7 not found"));
    let report = dead.redrive(of_users()).dry_run().run().await.unwrap();
    assert_eq!((report.redriven, report.state), (6, RedriveState::Complete));
    assert_eq!(dead.count(Filter::new()).await.unwrap(), 9);

    is_broken.store(false, SeqCst);
    let mut redrive = dead.redrive(of_users()).canary(2);
    let report = redrive.run().await.unwrap();
    assert_eq!((report.redriven, report.state), (2, RedriveState::Canary));
    for id in redrive.canary_ids() {
        until_status(&queue, id, JobStatus::Done).await;
    }
    assert_eq!(runs.len(), 2, "the canary alone: {:?}", runs.all());
    let report = redrive.run().await.unwrap();
    assert_eq!((report.redriven, report.state), (6, RedriveState::Complete));
    until("the rest to be executed", || runs.len() >= 6).await;

    // With a handle that another process has opened.
    let other = pair.dead_letters().await;
    assert_eq!(other.redrive(of_users()).run().await.unwrap().redriven, 0);
    assert_eq!(other.discard(Filter::new()).await.unwrap(), 3);
    assert_eq!(dead.count(Filter::new()).await.unwrap(), 0);
    assert_eq!(dead.count(Filter::new().include_handled()).await.unwrap(), 9);
    assert_eq!(dead.redrive(Filter::new()).run().await.unwrap().redriven, 0);

    let report = stop(running).await;
    assert_eq!(runs.numbers(), (0..6).collect::<Vec<_>>(), "each once, and nothing that was discarded");
    assert_eq!((report.done, report.retried, report.dead_lettered), (6, 3, 9), "{report}");
}
