//! The commands of the growth benchmark, which only kafkaq has.

use super::{
    Side,
    executions::{Executions, work},
    number_of, publish_each, say_begin, say_end, say_executed, task,
};
use crate::Outcome;
use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};
use tokio::time::interval;

/// One of several processes that share a backlog. It prints how much of it it has executed, until its input ends.
pub(super) async fn work_on(side: Side, jobs: usize) -> Outcome<()> {
    let work_as = side.work(jobs);
    let queue = side.builder.build().await?;
    let executions = work(&queue, Executions::new(0, false), work_as);
    tokio::spawn(async move {
        let (mut tick, mut said) = (interval(Duration::from_millis(20)), 0);
        loop {
            tick.tick().await;
            let executed = executions.executions.load(Relaxed);
            if executed > said {
                say_executed(executed);
                said = executed;
            }
        }
    });
    Ok(())
}

/// Publishes tasks that are due much later.
pub(super) async fn delay(side: Side, tasks: usize, seconds: usize) -> Outcome<()> {
    let publisher = side.builder.build_publisher().await?;
    let delay = Duration::from_secs(seconds as u64);
    say_begin();
    let start = Instant::now();
    publish_each(&publisher, 0, tasks, |number| task(number).with_delay(delay)).await?;
    say_end(tasks, start.elapsed(), "");
    Ok(())
}

/// Works until this many tasks that aren't due have been copied to the wait topic.
pub(super) async fn park(side: Side, tasks: usize) -> Outcome<()> {
    let work_as = side.work(1);
    let queue = side.builder.build().await?;
    work(&queue, Executions::new(0, false), work_as);
    let (mut tick, mut start) = (interval(Duration::from_millis(20)), None);
    loop {
        tick.tick().await;
        let copied = queue.stats().await.copies.items;
        if copied > 0 && start.is_none() {
            say_begin();
            start = Some(Instant::now());
        }
        if copied >= tasks as u64 {
            say_end(tasks, start.map(|start| start.elapsed()).unwrap_or_default(), "");
            return Ok(());
        }
    }
}

/// Starts every task once, and snoozes it.
pub(super) async fn snooze(side: Side, tasks: usize, jobs: usize, seconds: usize) -> Outcome<()> {
    let queue = side.builder.build().await?;
    let executions = Arc::new(Executions::new(tasks, false));
    for _ in 0..jobs {
        let (queue, executions) = (queue.clone(), executions.clone());
        tokio::spawn(async move {
            while let Ok(job) = queue.get_job().await {
                let Ok(number) = number_of(job.payload()) else { continue };
                executions.begin(number);
                if job.snooze(Duration::from_secs(seconds as u64)).await.is_ok() {
                    executions.end(number);
                }
            }
        });
    }
    let executed = executions.all().await;
    say_end(tasks, executed.took, &format!(r#","executions":{}"#, executed.executions));
    Ok(())
}
