//! Tasks that are performed without a queue.

use crate::{Charge, HOUR, Receipt, World, charge, id};
use kafkaq::{
    Headers, TaskId,
    testing::perform,
    worker::{Ctx, Failure, Outcome, ResultExt, StopReason},
};

#[tokio::test]
async fn a_performed_task_has_what_was_made_up_for_it() {
    let handler = async |ctx: Ctx<World>, task: Charge| -> Result<(), Failure> {
        let key = ctx.key().map(|key| String::from_utf8_lossy(key).into_owned()).unwrap_or_default();
        let header: &Headers = ctx.headers();
        let header = header.get("tenant").map(|value| String::from_utf8_lossy(value).into_owned());
        ctx.state().charge(format!(
            "{} {} {} {} {key} {:?} {:?}",
            task.to,
            ctx.id(),
            ctx.attempt(),
            ctx.failures(),
            header.as_deref(),
            ctx.stop().reason()
        ));
        assert!(ctx.deadline() > ctx.published());
        Ok(())
    };
    let plain = perform(charge("ada")).state(World::default()).run(handler).await;
    assert_eq!(plain.outcome, Outcome::Done);
    assert_eq!(plain.state.charges(), ["ada task 1 0  None None"]);
    let all = perform(charge("ada"))
        .state(World::default())
        .id(id("order-17"))
        .attempt(4)
        .failures(2)
        .key("k")
        .header("tenant", "t")
        .stop(StopReason::ShuttingDown)
        .run(handler)
        .await;
    assert_eq!(all.state.charges(), [r#"ada order-17 4 2 k Some("t") Some(ShuttingDown)"#]);
    let third = perform(charge("ada")).state(World::default()).attempt(3).run(handler).await;
    assert_eq!(third.state.charges(), ["ada task 3 2  None None"]);
}

#[tokio::test]
async fn a_performed_task_returns_its_outcome_and_what_it_enqueued() {
    let handler = async |ctx: Ctx, task: Charge| -> Result<(), Failure> {
        ctx.enqueue(Receipt(1)).await?;
        ctx.enqueue(charge("grace")).await?;
        let receipt = ctx.enqueue(Receipt(2)).id(TaskId::new("mine")?).delay(HOUR).await?;
        assert_eq!(receipt.as_str(), "mine");
        match task.to.as_str() {
            "reject" => Err("unknown").reject(),
            "retry" => Err("busy")?,
            "snooze" => Err(Failure::snooze(HOUR)),
            "panic" => panic!("no stock"),
            _ => Ok(()),
        }
    };
    let outcome = async |to: &str| perform(charge(to)).run(handler).await;
    let done = outcome("ada").await;
    assert_eq!(done.outcome, Outcome::Done);
    assert_eq!(done.enqueued_of::<Receipt>(), [Receipt(1), Receipt(2)]);
    let ids: Vec<_> = done.enqueued.iter().map(|task| task.id().unwrap().as_str()).collect();
    assert!(ids[0].starts_with("task/") && ids[1].starts_with("task/") && ids[0] != ids[1], "{ids:?}");
    assert_eq!(ids[2], "mine");
    assert_eq!(done.enqueued[2].delay(), Some(HOUR));
    assert_eq!(outcome("reject").await.outcome, Outcome::Reject("unknown".into()));
    assert_eq!(outcome("retry").await.outcome, Outcome::Retry { delay: None, reason: "busy".into() });
    assert_eq!(outcome("snooze").await.outcome, Outcome::Snooze(HOUR));
    let Outcome::Retry { reason, .. } = outcome("panic").await.outcome else { panic!("it is a failure") };
    assert!(reason.contains("perform.rs:") && reason.ends_with("no stock"), "{reason}");
}
