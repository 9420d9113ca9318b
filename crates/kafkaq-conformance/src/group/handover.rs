//! How partitions move between members, and how a member ends.

use super::{Cx, Reader, settle, stage};
use crate::check::{Checked, Failed, ensure, ensure_eq};
use kafkaq_core::{ErrorKind, Event, JoinRequest};
use std::time::Duration;
use tokio::time::Instant;

fn patient(cx: &Cx) -> impl Fn(&mut JoinRequest) {
    let limit = cx.answers_within();
    move |request| {
        request.release_limit = limit;
        request.max_batch = 1;
    }
}

pub(super) async fn no_records_follow_revoking(cx: &Cx) -> Checked {
    let stage = stage(cx, 2, 300).await?;
    let mut one = stage.join_with("g", patient(cx)).await?;
    one.assigned(cx).await?;
    let _two = stage.join("g").await?;
    let asked = one.revoking(cx).await?;
    // More to read than was read ahead.
    for index in 0..2 {
        stage.append(index, 300..400).await?;
    }
    for event in one.during(Duration::from_secs(2)).await? {
        if let Event::Records(from, batch) = event {
            ensure!(
                !asked.contains(&from),
                "{} records of {from}, which is being revoked",
                batch.records.len()
            );
        }
    }
    Ok(())
}

pub(super) async fn what_comes_back_has_a_higher_epoch(cx: &Cx) -> Checked {
    let stage = stage(cx, 2, 0).await?;
    let mut one = stage.join("g").await?;
    one.assigned(cx).await?;
    for _ in 0..2 {
        let two = stage.join("g").await?;
        let asked = one.revoking(cx).await?;
        one.release(&asked);
        let mut readers = [one, two];
        settle(cx, "the other member gets a partition", &mut readers, |r| !r[1].mine.is_empty()).await?;
        let [again, two] = readers;
        two.consumer.member.leave().await?;
        drop(two);
        let mut readers = [again];
        settle(cx, "the partitions come back", &mut readers, |r| r[0].mine.len() == 2).await?;
        [one] = readers;
        for old in &asked {
            let new = &one.mine[&old.partition];
            ensure!(new.epoch > old.epoch, "{old} returned as {new}");
        }
    }
    Ok(())
}

pub(super) async fn a_revoked_partition_is_held_until_its_release(cx: &Cx) -> Checked {
    let stage = stage(cx, 2, 0).await?;
    let mut one = stage.join_with("g", patient(cx)).await?;
    one.assigned(cx).await?;
    let two = stage.join("g").await?;
    let asked = one.revoking(cx).await?;
    let mut waiting = two;
    let early = waiting.during(Duration::from_secs(2)).await?;
    let given = early.into_iter().find_map(|event| match event {
        Event::Assigned(given) => {
            given.into_iter().find(|g| asked.iter().any(|a| a.partition == g.partition))
        }
        _ => None,
    });
    if let Some(given) = given {
        return Err(Failed(format!("{given} was assigned to another member before it was released")));
    }
    one.release(&asked);
    let mut readers = [one, waiting];
    settle(cx, "the other member gets a partition", &mut readers, |r| !r[1].mine.is_empty()).await
}

pub(super) async fn what_is_not_released_in_time_is_lost(cx: &Cx) -> Checked {
    const LIMIT: Duration = Duration::from_secs(2);
    let stage = stage(cx, 2, 10).await?;
    let mut one = stage.join_with("g", |request| request.release_limit = LIMIT).await?;
    one.assigned(cx).await?;
    let two = stage.join("g").await?;
    let asked = one.revoking(cx).await?;
    let told = Instant::now();
    let lost = one
        .until(cx, "the loss of what was not released", |event| match event {
            Event::Lost(lost) => Some(lost.clone()),
            _ => None,
        })
        .await?;
    let took = told.elapsed();
    ensure!(lost.iter().all(|a| asked.contains(a)), "{lost:?} was lost, but {asked:?} was revoked");
    ensure!(took > LIMIT / 2, "a partition that may be held for {LIMIT:?} was lost after {took:?}");
    ensure!(
        took < LIMIT + cx.answers_within(),
        "a partition that may be held for {LIMIT:?} was lost only \
        after {took:?}"
    );
    let kind = one.commit(&lost[0], 5).await.map_err(|error| error.kind());
    ensure_eq!(kind, Err(ErrorKind::NotOwner), "a commit for a lost partition");
    let mut readers = [one, two];
    settle(cx, "the other member gets what is lost", &mut readers, |r| !r[1].mine.is_empty()).await
}

/// Two members share the partitions; after `end` is applied to one, the other gets all of them: sooner than a silent
/// member would be considered dead.
async fn takes_over(cx: &Cx, end: impl AsyncFnOnce(Reader) -> Checked<Option<Reader>>) -> Checked {
    let stage = stage(cx, 4, 0).await?;
    let mut one = stage.join("g").await?;
    one.assigned(cx).await?;
    let mut readers = [one, stage.join("g").await?];
    settle(cx, "each member has a partition", &mut readers, |r| r.iter().all(|r| !r.mine.is_empty())).await?;
    let [one, two] = readers;
    let _kept = end(one).await?;
    let mut readers = [two];
    settle(cx, "the other member gets everything", &mut readers, |r| r[0].mine.len() == 4).await
}

pub(super) async fn leaving_hands_over_at_once(cx: &Cx) -> Checked {
    let leave = async |one: Reader| {
        one.consumer.member.leave().await?;
        one.consumer.member.leave().await?;
        // The stream lives on, so it is the leaving that hands over.
        Ok(Some(one))
    };
    takes_over(cx, leave).await
}

pub(super) async fn a_dropped_stream_leaves_too(cx: &Cx) -> Checked {
    let drop_it = async |one: Reader| {
        drop(one);
        Ok(None)
    };
    takes_over(cx, drop_it).await
}

pub(super) async fn the_stream_ends_after_leave(cx: &Cx) -> Checked {
    let stage = stage(cx, 1, 0).await?;
    let mut one = stage.join("g").await?;
    one.assigned(cx).await?;
    one.consumer.member.leave().await?;
    let ends = async {
        while one.next().await?.is_some() {}
        Ok::<_, Failed>(())
    };
    cx.in_time("the end of the stream after leave", ends).await?
}

pub(super) async fn no_call_needs_the_stream_to_be_polled(cx: &Cx) -> Checked {
    let stage = stage(cx, 1, 50).await?;
    let of = stage.partition(0);
    let mut one = stage.join_with("g", patient(cx)).await?;
    one.read(cx, &of, 2).await?;
    let mine = one.mine[&of].clone();
    for (offset, _) in one.read[&of].clone() {
        cx.in_time("a commit while nobody polls", one.commit(&mine, offset)).await??;
    }
    one.consumer.member.pause(std::slice::from_ref(&mine));
    one.consumer.member.resume(&[mine]);
    cx.in_time("a leave while nobody polls", one.consumer.member.leave()).await??;
    Ok(())
}

pub(super) async fn close_ends_the_members(cx: &Cx) -> Checked {
    let stage = stage(cx, 1, 0).await?;
    let mut one = stage.join("g").await?;
    one.assigned(cx).await?;
    cx.in_time("a close with a member", stage.broker.close()).await??;
    // An error that says so is an end, too.
    let ends = async { while let Ok(Some(_)) = one.next().await {} };
    cx.in_time("the end of the stream after close", ends).await?;
    let request = JoinRequest::new("g", vec![stage.topic.clone()], [7; 16]);
    let kind = stage.broker.join(request).await.map(drop).map_err(|error| error.kind());
    ensure_eq!(kind, Err(ErrorKind::Closed), "a join after close");
    Ok(())
}
