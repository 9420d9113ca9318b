//! Keys and values at their limits.

use super::{Cx, get, key, put, swap, value};
use crate::check::{Checked, ensure_eq};
use bytes::Bytes;
use kafkaq_core::{Key, LeaseStore, Partition, Swap, Swapped};

pub(super) async fn keys_may_have_every_length_and_character(cx: &Cx) -> Checked {
    let store = cx.client().await?;
    let every = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._~-/% ..";
    let mut keys = vec![key(cx, every)?, key(cx, ".")?, key(cx, "..")?, key(cx, "~")?];
    for length in [100, 255, 256, Key::MAX_LEN - 1, Key::MAX_LEN] {
        let frame = Key::partition(cx.space(), &Partition::new("", 0)).as_str().len();
        keys.push(Key::partition(cx.space(), &Partition::new("x".repeat(length - frame), 0)));
    }
    for (n, key) in keys.iter().enumerate() {
        put(&*store, key, None, value(n), None).await?;
    }
    for (n, key) in keys.iter().enumerate() {
        ensure_eq!(get(&*store, key).await?, value(n), "the value of a key of {} bytes", key.as_str().len());
    }
    Ok(())
}

pub(super) async fn keys_that_look_alike_are_different(cx: &Cx) -> Checked {
    let store = cx.client().await?;
    let mut keys = ["a", "A", "a.", "a-", "a_", "a/", "a%2F", "aa", "a/a", "%"]
        .into_iter()
        .map(|id| key(cx, id))
        .collect::<Checked<Vec<_>>>()?;
    // They differ only in their last byte.
    let long = |last| Key::partition(cx.space(), &Partition::new("y".repeat(500), last));
    keys.extend([long(1), long(2)]);
    create(&*store, &keys).await?;
    for (n, key) in keys.iter().enumerate() {
        ensure_eq!(get(&*store, key).await?, value(n), "the value of {key}");
    }
    Ok(())
}

async fn create(store: &dyn LeaseStore, keys: &[Key]) -> Checked {
    let swaps: Vec<_> =
        keys.iter().enumerate().map(|(n, key)| Swap::new(key.clone(), None, value(n), None)).collect();
    for (key, outcome) in keys.iter().zip(store.swap(&swaps).await) {
        ensure_eq!(outcome?, Swapped::Done, "{key} was new");
    }
    Ok(())
}

pub(super) async fn values_may_have_any_bytes(cx: &Cx) -> Checked {
    let (store, key) = (cx.client().await?, key(cx, "a")?);
    let all: Vec<u8> = (0..=255).collect();
    // Some of them have a special meaning in some protocol.
    let values: [&[u8]; 8] =
        [b"", b"\0", b"\r\n", b"\xff\xfe\0\0", b"nil", b"$1\r\n:1\r\n-ERR\r\n", b"=", &all];
    let mut there = None;
    for bytes in values {
        let next = Some(Bytes::copy_from_slice(bytes));
        put(&*store, &key, there, next.clone(), None).await?;
        ensure_eq!(get(&*store, &key).await?, next, "a value came back changed");
        let stale = swap(&*store, &key, value("stale"), value("x")).await?;
        ensure_eq!(stale, Swapped::Conflict(next.clone()), "a conflict returned a changed value");
        there = next;
    }
    put(&*store, &key, there, None, None).await
}

pub(super) async fn values_may_have_some_kilobytes(cx: &Cx) -> Checked {
    let (store, key) = (cx.client().await?, key(cx, "a")?);
    let mut there = None;
    for size in [1000, 4096, 16 << 10] {
        let next = Some(Bytes::from((0..size).map(|n| (n * 7) as u8).collect::<Vec<_>>()));
        put(&*store, &key, there, next.clone(), None).await?;
        let got = get(&*store, &key).await?;
        let length = got.as_ref().map(Bytes::len);
        ensure_eq!(
            got == next,
            true,
            "a value of {size} bytes came back as one of {length:?}; the same bytes"
        );
        there = next;
    }
    Ok(())
}
