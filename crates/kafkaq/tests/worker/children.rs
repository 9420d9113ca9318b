//! Tasks that handlers enqueue.

use crate::{Count, Greet, SECOND, Seen, greet, queue, stop, until_status, worker};
use kafkaq::{
    JobStatus,
    worker::{Backoff, Ctx, Failure},
};
use tokio::time::sleep;

#[tokio::test(start_paused = true)]
async fn enqueued_task_exists_once_if_its_handler_runs_twice() {
    let queue = queue().await;
    let seen = Seen::default();
    let running = worker(&queue)
        .state(seen.clone())
        .retry(Backoff::fixed(SECOND))
        .on(async |ctx: Ctx<Seen>, task: Greet| -> Result<(), Failure> {
            for n in 0..3 {
                ctx.enqueue(Count(n)).await?;
            }
            ctx.state().note(task.name);
            if ctx.attempt() == 1 { Err(Failure::retry("once more")) } else { Ok(()) }
        })
        .on(async |ctx: Ctx<Seen>, task: Count| ctx.state().note(format!("count {}", task.0)))
        .start()
        .unwrap();
    let id = queue.enqueue(greet("Ada")).await.unwrap();
    until_status(&queue, &id, JobStatus::Done).await;
    sleep(10 * SECOND).await;
    let mut seen = seen.all();
    seen.sort();
    assert_eq!(seen, ["Ada", "Ada", "count 0", "count 1", "count 2"]);
    stop(running).await;
}

#[tokio::test(start_paused = true)]
async fn handler_that_continues_by_snoozing_enqueues_only_new_tasks() {
    let queue = queue().await;
    let seen = Seen::default();
    let running = worker(&queue)
        .state(seen.clone())
        .on(async |ctx: Ctx<Seen>, _: Greet| -> Result<(), Failure> {
            // In another order, twice the same, and one that is new each time.
            let last = ctx.attempt();
            let all = if last == 1 { vec![1, 7, 7] } else { vec![7, 7, last] };
            for n in all {
                ctx.enqueue(Count(n)).await?;
            }
            if last < 3 { Err(Failure::snooze(60 * SECOND)) } else { Ok(()) }
        })
        .on(async |ctx: Ctx<Seen>, task: Count| ctx.state().note(task.0.to_string()))
        .start()
        .unwrap();
    let id = queue.enqueue(greet("Ada")).await.unwrap();
    until_status(&queue, &id, JobStatus::Done).await;
    sleep(10 * SECOND).await;
    let mut seen = seen.all();
    seen.sort();
    assert_eq!(seen, ["1", "2", "3", "7", "7"]);
    stop(running).await;
}
