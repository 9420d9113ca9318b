//! Members while the server is down.

use super::{Cx, stage};
use crate::check::Checked;
use std::time::Duration;

pub(super) async fn a_member_goes_on_after_an_outage(cx: &Cx) -> Checked {
    let (stage, outage) = (stage(cx, 1, 10).await?, cx.outage()?);
    let of = stage.partition(0);
    let mut reader = stage.join("g").await?;
    reader.read(cx, &of, 10).await?;
    outage.cut().await?;
    // Errors that are worth a retry don't end the stream: the reader skips them.
    reader.during(Duration::from_secs(2)).await?;
    outage.restore().await?;
    cx.recovered(async || stage.append(0, [10]).await).await?;
    let new = reader.until(cx, "the record appended after the outage", |event| match event {
        kafkaq_core::Event::Records(_, batch) => {
            batch.records.iter().find(|r| r.value.as_deref() == Some(b"10")).map(drop)
        }
        _ => None,
    });
    new.await
}

pub(super) async fn leave_ends_in_time_without_a_server(cx: &Cx) -> Checked {
    let (stage, outage) = (stage(cx, 1, 10).await?, cx.outage()?);
    let mut reader = stage.join("g").await?;
    reader.read(cx, &stage.partition(0), 10).await?;
    outage.cut().await?;
    // Whether it succeeds is up to the backend.
    let _ = cx.in_time("a leave without a server", reader.consumer.member.leave()).await?;
    Ok(())
}
