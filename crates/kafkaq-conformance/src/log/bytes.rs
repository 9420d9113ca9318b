//! Records are read as they were appended.

use super::{AnyLog, append, topic};
use crate::{
    case::Context,
    check::{Checked, ensure_eq},
};
use bytes::Bytes;
use kafkaq_core::{Headers, NewRecord, Partition};

type Parts = (Option<Bytes>, Option<Bytes>, Headers);

/// Appends the records and reads them back.
async fn round_trip<L: AnyLog + ?Sized>(cx: &Context<L>, parts: Vec<Parts>) -> Checked {
    let log = cx.client().await?;
    let to = Partition::new(topic(cx, &*log, 1).await?, 0);
    let new = |(key, value, headers): &Parts| NewRecord::new(key.clone(), value.clone(), headers.clone());
    append(&*log, &to, &parts.iter().map(new).collect::<Vec<_>>()).await?;
    let read = log.read(&to, parts.len(), cx.answers_within()).await?;
    let read: Vec<Parts> = read.into_iter().map(|r| (r.key, r.value, r.headers)).collect();
    ensure_eq!(read, parts, "key, value and headers as they were read");
    Ok(())
}

fn some(bytes: &[u8]) -> Option<Bytes> {
    Some(Bytes::copy_from_slice(bytes))
}

fn headers(of: &[(&str, Option<&[u8]>)]) -> Headers {
    of.iter().map(|(name, value)| (Bytes::copy_from_slice(name.as_bytes()), value.and_then(some))).collect()
}

pub(super) async fn keys_and_values_come_back_byte_for_byte<L: AnyLog + ?Sized>(cx: &Context<L>) -> Checked {
    let all: Vec<u8> = (0..=255).collect();
    let bytes: [&[u8]; 4] = [b"key", b"\0", b"\xff\xfe\r\n", &all];
    round_trip(cx, bytes.iter().map(|b| (some(b), some(b), Headers::new())).collect()).await
}

pub(super) async fn no_key_is_not_an_empty_key<L: AnyLog + ?Sized>(cx: &Context<L>) -> Checked {
    let keys = [None, some(b""), some(b"k"), None];
    round_trip(cx, keys.into_iter().map(|key| (key, some(b"v"), Headers::new())).collect()).await
}

pub(super) async fn a_tombstone_is_not_an_empty_value<L: AnyLog + ?Sized>(cx: &Context<L>) -> Checked {
    let values = [None, some(b""), some(b"v"), None];
    round_trip(cx, values.into_iter().map(|value| (some(b"k"), value, Headers::new())).collect()).await
}

pub(super) async fn headers_come_back_byte_for_byte<L: AnyLog + ?Sized>(cx: &Context<L>) -> Checked {
    let none = headers(&[]);
    let binary = headers(&[("a", Some(b"\0\xff")), ("b", Some(b"")), ("kafkaq", Some(b"\x01\x02"))]);
    let unicode = headers(&[("\u{e4}\u{20ac}", Some(b"x"))]);
    let plain = |of| (None, some(b"v"), of);
    round_trip(cx, [none, binary, unicode].into_iter().map(plain).collect()).await
}

pub(super) async fn repeated_headers_come_back_in_order<L: AnyLog + ?Sized>(cx: &Context<L>) -> Checked {
    let repeated = headers(&[("b", Some(b"1")), ("a", Some(b"2")), ("b", Some(b"3")), ("b", Some(b"1"))]);
    round_trip(cx, vec![(None, some(b"v"), repeated)]).await
}

pub(super) async fn a_null_header_is_not_an_empty_one<L: AnyLog + ?Sized>(cx: &Context<L>) -> Checked {
    let mixed = headers(&[("a", None), ("b", Some(b"")), ("c", None)]);
    round_trip(cx, vec![(None, some(b"v"), mixed)]).await
}
