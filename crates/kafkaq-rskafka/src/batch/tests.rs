use super::*;
use bytes::Bytes;
use kafkaq_core::{Headers, NewRecord, Record};
use proptest::{collection::vec, option, prelude::*};
use std::time::{Duration, UNIX_EPOCH};

const LIMIT: usize = 1 << 30;

fn record(value: impl Into<Bytes>) -> NewRecord {
    NewRecord::new(None, Some(value.into()), Headers::new())
}

/// A batch from an offset on, of a producer, with attributes.
fn batch(base_offset: i64, attributes: i16, producer: i64, records: &[NewRecord]) -> Vec<u8> {
    let mut batch = encode(records).unwrap();
    batch[..8].copy_from_slice(&base_offset.to_be_bytes());
    batch[21..23].copy_from_slice(&attributes.to_be_bytes());
    batch[43..51].copy_from_slice(&producer.to_be_bytes());
    signed(batch)
}

/// With the right checksum.
fn signed(mut batch: Vec<u8>) -> Vec<u8> {
    let checksum = crc32c::crc32c(&batch[21..]);
    batch[17..21].copy_from_slice(&checksum.to_be_bytes());
    batch
}

fn offsets(decoded: &Decoded) -> Vec<i64> {
    decoded.records.iter().map(|record| record.offset).collect()
}

#[test]
fn a_batch_is_what_kafka_documents() {
    // Written down by hand, field by field.
    let mut expected = vec![0; 8];
    expected.extend([0, 0, 0, 65]); // size
    expected.extend([255, 255, 255, 255, 2]); // leader epoch, format
    expected.extend([0; 4]); // checksum
    expected.extend([0, 0, 0, 0, 0, 0]); // attributes, last offset
    expected.extend([0, 0, 0, 0, 0, 0, 0, 7].repeat(2)); // times
    expected.extend([255; 14]); // producer
    expected.extend([0, 0, 0, 1]); // records
    // 15 bytes: attributes, time, offset, the key "k", the payload "ab", two headers, "h" without and "" with a value
    expected.extend([30, 0, 0, 0, 2, b'k', 4, b'a', b'b', 4, 2, b'h', 1, 0, 2, b'v']);
    let mut headers = Headers::new();
    headers.push("h", None);
    headers.push("", Some("v".into()));
    let mut record = NewRecord::new(Some("k".into()), Some("ab".into()), headers);
    record.timestamp = Some(UNIX_EPOCH + Duration::from_millis(7));
    assert_eq!(encode(&[record]).unwrap(), signed(expected));
}

#[cfg(feature = "gzip")]
#[test]
fn a_compressed_batch_is_smaller_and_read_as_before() {
    let sent = [record(vec![7; 100_000]), record("b")];
    let plain = encode(&sent).unwrap();
    let small = compress(&plain).unwrap().unwrap();
    assert!(small.len() < 1000, "{}", small.len());
    let read = |batch| decode(Bytes::from(batch), 0, &[], LIMIT).records;
    let (plain, small) = (read(plain), read(small));
    assert_eq!(plain.len(), 2);
    assert!(small.iter().zip(&plain).all(|(a, b)| a.value == b.value && a.offset == b.offset));
}

fn bytes() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..200).prop_map(Bytes::from)
}

fn records() -> impl Strategy<Value = Vec<NewRecord>> {
    let headers = vec((bytes(), option::of(bytes())), 0..4);
    let parts = (option::of(bytes()), option::of(bytes()), headers, 0_u64..1 << 45);
    let record = parts.prop_map(|(key, value, headers, millis)| {
        let mut record = NewRecord::new(key, value, headers.into_iter().collect());
        record.timestamp = Some(UNIX_EPOCH + Duration::from_millis(millis));
        record
    });
    vec(record, 1..20)
}

fn same(sent: &NewRecord, got: &Record) -> bool {
    let time = sent.timestamp.map(millis);
    (&sent.key, &sent.value, &sent.headers, time)
        == (&got.key, &got.value, &got.headers, Some(got.timestamp_ms))
}

proptest! {
    #[test]
    fn encoding_round_trips(sent in records(), base in 0_i64..1 << 60, skip in 0_usize..20) {
        let bytes = batch(base, 0, -1, &sent);
        let skip = skip.min(sent.len() - 1);
        let decoded = decode(bytes.into(), base + skip as i64, &[], LIMIT);
        prop_assert_eq!((decoded.next, decoded.unreadable), (base + sent.len() as i64, None));
        prop_assert_eq!(decoded.records.len(), sent.len() - skip);
        for (n, (sent, got)) in sent[skip..].iter().zip(&decoded.records).enumerate() {
            prop_assert!(same(sent, got), "{:?} {:?}", sent, got);
            prop_assert_eq!(got.offset, base + (skip + n) as i64);
        }
    }

    /// Arbitrary bytes that a server, or a producer that computes the checksum, may send.
    #[test]
    fn arbitrary_batches_never_panic_or_skip_records(
        sent in records(),
        at in any::<prop::sample::Index>(),
        byte: u8,
        cut in any::<prop::sample::Index>(),
        sign: bool,
    ) {
        let mut bytes = batch(0, 0, -1, &sent);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if sign {
            bytes = signed(bytes);
        }
        bytes.truncate(cut.index(bytes.len() + 1));
        let decoded = decode(bytes.into(), 0, &[], LIMIT);
        // Nothing is skipped: the decoded records end where reading continues, or everything is still to be read.
        prop_assert!(decoded.next == 0 || decoded.unreadable.is_none());
        prop_assert!(decoded.next > 0 || decoded.records.is_empty());
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..300)) {
        decode(bytes.into(), 0, &[], LIMIT);
    }
}

#[test]
fn large_and_small_records_stay_in_order_and_none_keeps_the_others_in_memory() {
    let sizes = [10, 70_000, 10, 30_000, 30_000, 30_000, 0, 200_000, 1];
    let sent: Vec<_> = sizes.iter().enumerate().map(|(n, size)| record(vec![n as u8; *size])).collect();
    let response = Bytes::from(batch(0, 0, -1, &sent));
    let decoded = decode(response.clone(), 0, &[], LIMIT);
    assert_eq!(offsets(&decoded), (0..9).collect::<Vec<i64>>());
    for (sent, got) in sent.iter().zip(&decoded.records) {
        assert_eq!(sent.value, got.value);
    }
    // Nothing of the response is held: it is ours alone again.
    assert!(response.is_unique());
}

#[test]
fn records_that_were_rolled_back_are_left_out_and_markers_passed() {
    let one = |base, attributes, producer| batch(base, attributes, producer, &[record("x")]);
    let bytes = [
        one(0, TRANSACTIONAL, 1),
        one(1, 0, -1),
        one(2, TRANSACTIONAL, 2),
        one(3, TRANSACTIONAL, 1),
        // The one that 1 rolled back ends here, and another begins, which it commits.
        one(4, TRANSACTIONAL | CONTROL, 1),
        one(5, TRANSACTIONAL, 1),
        one(6, TRANSACTIONAL | CONTROL, 2),
        one(7, TRANSACTIONAL | CONTROL, 1),
        // And one more that it rolls back.
        one(8, TRANSACTIONAL, 1),
        one(9, TRANSACTIONAL | CONTROL, 1),
    ]
    .concat();
    let decoded = decode(bytes.clone().into(), 0, &[(1, 8), (1, 0)], LIMIT);
    assert_eq!((offsets(&decoded), decoded.next), (vec![1, 2, 5], 10));
    // A fetch from the middle is told where the transaction began.
    let rest = bytes[one(0, 0, 1).len() * 3..].to_vec();
    let decoded = decode(rest.into(), 3, &[(1, 0), (1, 8)], LIMIT);
    assert_eq!((offsets(&decoded), decoded.next), (vec![5], 10));
}

#[test]
fn log_append_time_is_used_where_it_is_set() {
    let mut sent = record("x");
    sent.timestamp = Some(UNIX_EPOCH + Duration::from_millis(5));
    let mut bytes = batch(0, APPEND_TIME, -1, &[sent.clone(), sent]);
    bytes[35..43].copy_from_slice(&77_i64.to_be_bytes());
    let decoded = decode(signed(bytes).into(), 0, &[], LIMIT);
    assert!(decoded.records.iter().all(|record| record.timestamp_ms == 77));
}

#[test]
fn a_batch_is_read_whole_or_not_at_all() {
    let mut bytes = batch(0, 0, -1, &[record("one"), record("two")]);
    // One record more is announced than there is.
    bytes[57..61].copy_from_slice(&3_i32.to_be_bytes());
    let decoded =
        decode([batch(0, 0, -1, &[record("before")]), signed(bytes)].concat().into(), 0, &[], LIMIT);
    assert_eq!((decoded.records.len(), decoded.next), (1, 1));
    assert!(matches!(decoded.unreadable, Some(Unreadable::Damaged(_))));
}

#[cfg(feature = "gzip")]
#[test]
fn a_compressed_batch_is_read_up_to_the_limit() {
    use std::io::Write;
    let sent: Vec<_> = (0..100).map(|n| record(vec![n; 1000])).collect();
    let plain = batch(7, 0, -1, &sent);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain[HEADER..]).unwrap();
    let mut bytes = [&plain[..HEADER], &gzip.finish().unwrap()].concat();
    let size = (bytes.len() - BEFORE_SIZE) as i32;
    bytes[8..12].copy_from_slice(&size.to_be_bytes());
    bytes[22] = 1;
    let bytes = signed(bytes);
    let decoded = decode(bytes.clone().into(), 7, &[], LIMIT);
    assert!(sent.iter().zip(&decoded.records).all(|(sent, got)| sent.value == got.value));
    assert_eq!((decoded.records.len(), decoded.next), (100, 107));
    let decoded = decode(bytes.into(), 7, &[], 50_000);
    assert_eq!((decoded.records.len(), decoded.next, decoded.unreadable), (0, 7, Some(Unreadable::TooLarge)));
}
