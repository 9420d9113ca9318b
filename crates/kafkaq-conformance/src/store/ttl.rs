//! How long values live: at least as long as they were told.

use super::{Cx, get, key, put, swap_for, value};
use crate::check::{Checked, ensure, ensure_eq};
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// No whole number of seconds: a store that counts in those must round up.
const SHORT: Duration = Duration::from_millis(1500);
const LONG: Duration = Duration::from_secs(60);
/// When a value with `SHORT` would be gone in any store that honours it at all.
const AFTER_SHORT: Duration = Duration::from_millis(2600);

pub(super) async fn no_value_expires_early(cx: &Cx) -> Checked {
    let store = cx.client().await?;
    for ttl in [Duration::from_millis(400), SHORT] {
        let key = key(cx, ttl.as_millis())?;
        let asked = Instant::now();
        put(&*store, &key, None, value("x"), Some(ttl)).await?;
        loop {
            let got = get(&*store, &key).await?;
            // The time to live began after the question, and this is after the answer: no slack is needed.
            let age = asked.elapsed();
            if age >= ttl {
                break;
            }
            ensure_eq!(got, value("x"), "a value that was to live {ttl:?}, after {age:?}");
            sleep(Duration::from_millis(10)).await;
        }
    }
    Ok(())
}

pub(super) async fn a_swap_replaces_the_ttl(cx: &Cx) -> Checked {
    let (store, longer, forever) = (cx.client().await?, key(cx, "longer")?, key(cx, "for ever")?);
    for (key, ttl) in [(&longer, Some(LONG)), (&forever, None)] {
        put(&*store, key, None, value(1), Some(SHORT)).await?;
        put(&*store, key, value(1), value(2), ttl).await?;
    }
    sleep(AFTER_SHORT).await;
    ensure_eq!(get(&*store, &longer).await?, value(2), "a short time to live was replaced by a long one");
    ensure_eq!(get(&*store, &forever).await?, value(2), "a short time to live was replaced by none");
    Ok(())
}

pub(super) async fn a_refused_swap_leaves_the_ttl_alone(cx: &Cx) -> Checked {
    let (store, key) = (cx.client().await?, key(cx, "a")?);
    put(&*store, &key, None, value(1), Some(LONG)).await?;
    swap_for(&*store, &key, value(7), value(8), Some(SHORT)).await?;
    sleep(AFTER_SHORT).await;
    ensure_eq!(get(&*store, &key).await?, value(1), "after a refused swap with a short time to live");
    Ok(())
}

pub(super) async fn without_a_ttl_a_value_stays(cx: &Cx) -> Checked {
    let (store, key) = (cx.client().await?, key(cx, "a")?);
    put(&*store, &key, None, value(1), None).await?;
    sleep(AFTER_SHORT).await;
    ensure_eq!(get(&*store, &key).await?, value(1), "a value without a time to live, after {AFTER_SHORT:?}");
    Ok(())
}

pub(super) async fn a_ttl_may_be_very_long(cx: &Cx) -> Checked {
    let store = cx.client().await?;
    const DAY: u64 = 24 * 60 * 60;
    for days in [30, 400, 3650] {
        let key = key(cx, days)?;
        put(&*store, &key, None, value(days), Some(Duration::from_secs(days * DAY))).await?;
        let got = get(&*store, &key).await?;
        ensure!(got == value(days), "a value that was to live {days} days is {got:?}");
    }
    Ok(())
}
