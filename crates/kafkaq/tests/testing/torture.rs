//! Handlers that are crashed at each await point.

use crate::{Charge, HOUR, Receipt, SECOND, World, charge, id};
use kafkaq::{
    TaskId,
    testing::{Difference, Disturbance, TortureError, TortureReport, await_point, torture},
    worker::{Ctx, Failure, StopReason},
};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::time::{Instant, sleep};

async fn found<F, Fut>(handler: F) -> Result<TortureReport, TortureError>
where
    F: Fn(Ctx<World>, Charge) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), Failure>> + Send + 'static,
{
    torture(handler, charge("ada")).run(World::default, World::charges).await
}

fn crashes(differences: &[Difference]) -> Vec<usize> {
    let at = |difference: &Difference| match difference.disturbance {
        Disturbance::Crash { at } => Some(at),
        _ => None,
    };
    differences.iter().filter_map(at).collect()
}

/// Charges first, and notes it afterwards.
async fn two_steps(ctx: Ctx<World>, task: Charge) -> Result<(), Failure> {
    await_point().await;
    if !ctx.state().is_known(ctx.id()) {
        await_point().await;
        ctx.state().charge(task.to);
        await_point().await; // here
        ctx.state().note(ctx.id());
        await_point().await;
    }
    Ok(())
}

/// The fixed version of it.
async fn one_step(ctx: Ctx<World>, task: Charge) -> Result<(), Failure> {
    await_point().await;
    if ctx.state().note(ctx.id()) {
        ctx.state().charge(task.to);
    }
    await_point().await;
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn torture_finds_a_double_charge_and_passes_the_fixed_handler() {
    let error = found(two_steps).await.unwrap_err();
    assert_eq!(crashes(error.differences()), [3], "between the charge and the note");
    let overlaps = |difference: &&Difference| matches!(difference.disturbance, Disturbance::Overlap { .. });
    assert!(error.differences().iter().any(|d| overlaps(&d)));
    for difference in error.differences() {
        assert_eq!(difference.expected, r#"["ada"]"#);
        assert_eq!(difference.found, r#"["ada", "ada"]"#);
    }
    let text = error.to_string();
    assert!(text.contains("(4 await points)"), "{text}");
    let line = include_str!("torture.rs").lines().position(|line| line.ends_with("// here")).unwrap() + 1;
    let first = error.differences()[0].to_string();
    let (disturbance, rest) = first.split_once("\n    place:    ").unwrap();
    assert_eq!(disturbance, "a crash at await point 3");
    let place = format!("tests/testing/torture.rs:{line}");
    let (told, rest) = rest.split_once('\n').unwrap();
    assert!(told.replace("\\", "/").ends_with(&place), "{told}");
    assert_eq!(rest, "    expected: [\"ada\"]\n    found:    [\"ada\", \"ada\"]");
    assert!(text.contains(&format!("\n- {first}\n")), "{text}");
    assert_eq!(format!("{error:?}"), text, "for unwrap");
    assert_eq!(found(two_steps).await.unwrap_err(), error, "the same each time");

    let report = found(one_step).await.unwrap();
    // Three at each point, all overlaps, a crash after the end, and in turns.
    assert_eq!((report.await_points, report.disturbances), (2, 3 * 2 + 3 * 3 + 2));
}

#[tokio::test(start_paused = true)]
async fn torture_crashes_a_handler_without_an_await_after_its_end() {
    let error = found(async |ctx: Ctx<World>, task: Charge| {
        ctx.state().charge(task.to);
        Ok(())
    })
    .await
    .unwrap_err();
    assert!(error.differences().iter().any(|d| d.disturbance == Disturbance::CrashAfterReturn));
    let noted = async |ctx: Ctx<World>, task: Charge| {
        if ctx.state().note(ctx.id()) {
            ctx.state().charge(task.to);
        }
        Ok(())
    };
    assert_eq!(found(noted).await.unwrap().await_points, 0);
}

#[tokio::test(start_paused = true)]
async fn torture_finds_what_only_two_at_once_do() {
    // A crash does no harm: the charge and its note are one step. But the note was checked before that.
    let error = found(async |ctx: Ctx<World>, task: Charge| {
        if ctx.state().is_known(ctx.id()) {
            return Ok(());
        }
        await_point().await;
        ctx.state().note(ctx.id());
        ctx.state().charge(task.to);
        Ok(())
    })
    .await
    .unwrap_err();
    let at_once =
        |d: &Difference| matches!(d.disturbance, Disturbance::Overlap { .. } | Disturbance::InTurns);
    assert!(error.differences().iter().all(at_once), "{error}");
    let found: Vec<_> = error.differences().iter().map(|d| d.disturbance).collect();
    assert_eq!(
        found,
        [
            Disturbance::Overlap { first: 0, second: 1 },
            Disturbance::Overlap { first: 1, second: 1 },
            Disturbance::Overlap { first: 1, second: usize::MAX },
            Disturbance::InTurns
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn torture_tells_executions_to_end() {
    // When told to stop, takes back what may belong to another execution by then.
    let on_stop = async |ctx: Ctx<World>, task: Charge, is_it: fn(StopReason) -> bool| {
        if ctx.state().note(ctx.id()) {
            ctx.state().charge(task.to);
        }
        tokio::select! {
            biased;
            reason = ctx.stop().requested() => if is_it(reason) {
                ctx.state().charge("taken back");
            },
            () = await_point() => {}
        }
        Ok::<(), Failure>(())
    };
    let error = found(move |ctx, task| on_stop(ctx, task, |reason| reason == StopReason::LeaseLost)).await;
    let error = error.unwrap_err();
    let all: Vec<_> = error.differences().iter().map(|d| d.disturbance).collect();
    assert_eq!(all, [Disturbance::LeaseLost { at: 1 }]);

    // Ends as done although it is not, when the worker stops.
    let error = found(async |ctx: Ctx<World>, task: Charge| {
        tokio::select! {
            biased;
            _ = ctx.stop().requested() => return Ok(()),
            () = await_point() => {}
        }
        if ctx.state().note(ctx.id()) {
            ctx.state().charge(task.to);
        }
        Ok(())
    })
    .await
    .unwrap_err();
    let all: Vec<_> = error.differences().iter().map(|d| (d.disturbance, &*d.found)).collect();
    assert_eq!(all, [(Disturbance::ShuttingDown { at: 1 }, "[]")]);

    // The same, but it gives the task back.
    let given_back = async |ctx: Ctx<World>, task: Charge| {
        tokio::select! {
            biased;
            _ = ctx.stop().requested() => return Err(Failure::retry("interrupted")),
            () = await_point() => {}
        }
        if ctx.state().note(ctx.id()) {
            ctx.state().charge(task.to);
        }
        Ok(())
    };
    found(given_back).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn tasks_that_are_enqueued_are_effects() {
    let report = found(async |ctx: Ctx<World>, _: Charge| {
        ctx.enqueue(Receipt(1)).await?;
        ctx.enqueue(Receipt(2)).await?;
        Ok(())
    });
    assert_eq!(report.await.unwrap().await_points, 4, "before and after each is durable");

    let error = found(async |ctx: Ctx<World>, _: Charge| {
        ctx.enqueue(Receipt(1)).id(TaskId::new(uuid::Uuid::new_v4().to_string())?).await?;
        Ok(())
    });
    let error = error.await.unwrap_err();
    assert_eq!(crashes(error.differences()), [2]);
    assert_eq!(error.differences()[0].found, "[], enqueued: receipt 1, receipt 1");
    assert_eq!(error.differences()[0].place.as_deref(), Some("after a task was enqueued"));
}

#[tokio::test(start_paused = true)]
async fn executions_have_attempts_and_tokens_of_their_own() {
    let seen: Arc<Mutex<Vec<_>>> = Arc::default();
    let told = seen.clone();
    let handler = move |ctx: Ctx<World>, _: Charge| {
        told.lock().unwrap().push((ctx.id().clone(), ctx.attempt(), ctx.failures(), ctx.token()));
        await_point()
    };
    let torture = torture(handler, charge("ada")).id(id("order-17"));
    let report = torture.run(World::default, World::charges).await.unwrap();
    let seen = seen.lock().unwrap().clone();
    assert_eq!(seen.len(), 2 * report.disturbances, "one undisturbed, one that was done in its shutdown");
    let (first, second) = (&seen[1], &seen[2]);
    assert_eq!((first.0.as_str(), first.1, first.2), ("order-17", 1, 0));
    assert_eq!((second.0.as_str(), second.1, second.2), ("order-17", 2, 1));
    assert_ne!(first.3, second.3);
}

#[tokio::test(start_paused = true)]
async fn a_task_is_retried_until_it_ends() {
    // Each execution but the last fails, after a charge that is noted.
    let handler = async |ctx: Ctx<World>, task: Charge| {
        if ctx.state().note(ctx.id()) {
            ctx.state().charge(task.to);
        }
        await_point().await;
        match ctx.attempt() {
            1 => Err("busy")?,
            2 => Err(Failure::snooze(5 * HOUR)),
            _ => Ok(()),
        }
    };
    let begun = Instant::now();
    found(handler).await.unwrap();
    assert!(begun.elapsed() > 5 * HOUR);

    // One whose end depends on what a crash leaves behind.
    let error = found(async |ctx: Ctx<World>, task: Charge| {
        if ctx.state().flag.swap(true, SeqCst) {
            return Err(Failure::snooze(SECOND));
        }
        await_point().await;
        ctx.state().charge(task.to);
        ctx.state().flag.store(false, SeqCst);
        Ok(())
    });
    let error = error.await.unwrap_err();
    assert_eq!(crashes(error.differences()), [1]);
    assert_eq!(error.differences()[0].found, "[]; the task has not ended: snoozed, 20 times");
}

#[tokio::test(start_paused = true)]
async fn sleeps_are_await_points_and_take_no_time() {
    let handler = async |ctx: Ctx<World>, task: Charge| {
        sleep(30 * SECOND).await;
        if ctx.state().note(ctx.id()) {
            ctx.state().charge(task.to);
        }
        sleep(30 * SECOND).await;
        Ok(())
    };
    assert_eq!(found(handler).await.unwrap().await_points, 2);
}

#[tokio::test(start_paused = true)]
async fn executions_that_wait_for_each_other_continue() {
    let locked = async |ctx: Ctx<World>, task: Charge| {
        let _guard = ctx.state().mutex.lock().await;
        await_point().await;
        if ctx.state().note(ctx.id()) {
            await_point().await;
            ctx.state().charge(task.to);
        }
        Ok(())
    };
    // A crash between the note and the charge loses the charge; two at once do no harm.
    let error = found(locked).await.unwrap_err();
    assert_eq!(crashes(error.differences()), [2]);
    let at_once =
        |d: &&Difference| matches!(d.disturbance, Disturbance::Overlap { .. } | Disturbance::InTurns);
    assert_eq!(error.differences().iter().filter(at_once).count(), 0, "{error}");

    // It polls whether the other is done, which it never is after a crash.
    let spinning = async |ctx: Ctx<World>, task: Charge| {
        while ctx.state().flag.swap(true, SeqCst) {
            await_point().await;
        }
        await_point().await;
        if ctx.state().note(ctx.id()) {
            ctx.state().charge(task.to);
        }
        ctx.state().flag.store(false, SeqCst);
        Ok(())
    };
    let error = found(spinning).await.unwrap_err();
    assert_eq!(crashes(error.differences()), [1]);
    assert!(error.differences()[0].found.starts_with("[]; the task has not ended: it waits at"), "{error}");
    assert_eq!(error.differences().iter().filter(at_once).count(), 0, "{error}");
}

#[tokio::test(start_paused = true)]
async fn handler_that_fails_undisturbed_is_not_tortured() {
    let failing = found(async |_: Ctx<World>, _: Charge| Err("as ever")?).await.unwrap_err();
    assert_eq!(failing.to_string(), "the handler fails without a disturbance: as ever, 20 times");
    assert!(failing.differences().is_empty());
    let hanging = found(async |_: Ctx<World>, _: Charge| std::future::pending().await).await.unwrap_err();
    assert_eq!(hanging.to_string(), "the handler fails without a disturbance: it waits at await point 1");
    // A rejection is an end.
    let rejecting = async |ctx: Ctx<World>, _: Charge| {
        await_point().await;
        if ctx.attempt() > 1 { Err(Failure::reject("again")) } else { Err(Failure::reject("unknown")) }
    };
    let error = found(rejecting).await.unwrap_err();
    assert_eq!(error.differences()[0].expected, "[]; the task was rejected: unknown");
    assert_eq!(error.differences()[0].found, "[]; the task was rejected: again");
}

#[tokio::test(start_paused = true)]
async fn the_number_of_disturbances_is_bounded() {
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = runs.clone();
    let handler = move |_: Ctx<World>, _: Charge| {
        counted.fetch_add(1, SeqCst);
        async {
            for _ in 0..200 {
                await_point().await;
            }
        }
    };
    let torture = torture(handler, charge("ada")).limit(10);
    let report = torture.run(World::default, World::charges).await.unwrap();
    assert_eq!((report.await_points, report.disturbances), (200, 4 * 10 + 2));
    assert!(runs.load(SeqCst) <= 2 * 42 + 1);
    assert_eq!(report.to_string(), "200 await points, 42 disturbances, the same effects each time");
}

#[tokio::test]
async fn torture_needs_no_paused_clock() {
    let handler = async |ctx: Ctx<World>, task: Charge| {
        sleep(Duration::from_millis(1)).await;
        if ctx.state().note(ctx.id()) {
            ctx.state().charge(task.to);
        }
        tokio::task::yield_now().await;
        Ok(())
    };
    assert_eq!(found(handler).await.unwrap().await_points, 2);
}
