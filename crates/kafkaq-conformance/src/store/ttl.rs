//! How long values live: at least for their time to live.

use super::{Cx, get, key, put, swap_for, value};
use crate::check::{Checked, Failed, ensure, ensure_eq};
use kafkaq_core::{Key, LeaseStore};
use std::time::Duration;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

/// Not a whole number of seconds: a store that counts in seconds must round up.
const SHORT: Duration = Duration::from_millis(1500);
const LONG: Duration = Duration::from_secs(60);
/// When a value with `SHORT` is gone in any store that honors it at all.
const AFTER_SHORT: Duration = Duration::from_millis(2600);

pub(super) async fn no_ttl_is_cut_short(cx: &Cx) -> Checked {
    /// A store that truncates its clock to whole seconds ends a value early, by the fraction of the second that had
    /// passed. So values start at different fractions of a second.
    const PHASES: u32 = 4;
    let store = cx.client().await?;
    let mut values = JoinSet::new();
    for ttl in [Duration::from_millis(400), Duration::from_secs(1), SHORT, Duration::from_secs(2)] {
        for phase in 0..PHASES {
            let keys = (0..MARGINS.len()).map(|n| key(cx, format!("{}-{phase}-{n}", ttl.as_millis())));
            let (store, keys) = (store.clone(), keys.collect::<Checked<Vec<_>>>()?);
            values.spawn(async move {
                sleep(phase * Duration::from_secs(1) / PHASES).await;
                for (key, margin) in keys.iter().zip(MARGINS) {
                    if is_read_before_its_end(&*store, key, ttl, Duration::from_millis(margin)).await? {
                        break;
                    }
                }
                // If all calls take longer than that, nothing can be concluded.
                Ok::<_, Failed>(())
            });
        }
    }
    values.join_all().await.into_iter().collect()
}

/// How long before its end a value is read for the first time, in milliseconds. Where calls take longer, it begins
/// earlier.
const MARGINS: [u64; 5] = [100, 100, 100, 200, 700];

/// Reads a value until its time to live is over. False if no call returned before that.
async fn is_read_before_its_end(
    store: &dyn LeaseStore,
    key: &Key,
    ttl: Duration,
    margin: Duration,
) -> Checked<bool> {
    let asked = Instant::now();
    put(store, key, None, value("x"), Some(ttl)).await?;
    sleep(ttl.saturating_sub(margin).saturating_sub(asked.elapsed())).await;
    let mut is_read = false;
    loop {
        let got = get(store, key).await?;
        // The time to live started after the request, and this is after the response, so no slack is needed.
        let age = asked.elapsed();
        if age >= ttl {
            return Ok(is_read);
        }
        ensure_eq!(got, value("x"), "a value that was to live {ttl:?}, after {age:?}");
        is_read = true;
        sleep(Duration::from_millis(5)).await;
    }
}

pub(super) async fn a_swap_replaces_the_ttl(cx: &Cx) -> Checked {
    let store = cx.client().await?;
    let longer = replaced_in_time(cx, &*store, Some(LONG)).await?;
    let forever = replaced_in_time(cx, &*store, None).await?;
    sleep(AFTER_SHORT).await;
    ensure_eq!(get(&*store, &longer).await?, value(2), "a short time to live was replaced by a long one");
    ensure_eq!(get(&*store, &forever).await?, value(2), "a short time to live was replaced by none");
    Ok(())
}

/// A value that had a short time to live and then another one.
async fn replaced_in_time(cx: &Cx, store: &dyn LeaseStore, ttl: Option<Duration>) -> Checked<Key> {
    const TRIES: usize = 5;
    for n in 0..TRIES {
        let (key, begin) = (key(cx, format!("{ttl:?}-{n}"))?, Instant::now());
        put(store, &key, None, value(1), Some(SHORT)).await?;
        match put(store, &key, value(1), value(2), ttl).await {
            // On a machine that stalled, the value may have expired by now.
            Err(_) if begin.elapsed() >= SHORT => {}
            replaced => return replaced.map(|()| key),
        }
    }
    Err(Failed(format!("two swaps took longer than {SHORT:?}, {TRIES} times in a row")))
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
