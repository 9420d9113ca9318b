//! A producer that can do what the library can't: names of headers that are not text.

use std::{io::*, net::TcpStream};

fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc)))
}

fn varint(out: &mut Vec<u8>, n: i64) {
    let mut n = (n << 1 ^ n >> 63).cast_unsigned();
    while n >= 128 {
        out.push((n % 128) as u8 | 128);
        n /= 128;
    }
    out.push(n as u8);
}

fn sized(out: &mut Vec<u8>, bytes: &[u8]) {
    varint(out, bytes.len() as i64);
    out.extend(bytes);
}

/// Appends one record to partition 0 (Produce, version 7) and waits for the answer.
pub(crate) fn produce(server: &str, topic: &str, headers: &[(&[u8], &[u8])]) {
    let mut record = vec![0, 0, 0, 1]; // attributes, time and offset deltas, no key (-1)
    sized(&mut record, b"payload");
    varint(&mut record, headers.len() as i64);
    for (name, value) in headers {
        sized(&mut record, name);
        sized(&mut record, value);
    }
    let mut covered = vec![];
    covered.extend([0; 6]); // attributes, last offset delta
    covered.extend(1_700_000_000_000_i64.to_be_bytes());
    covered.extend(1_700_000_000_000_i64.to_be_bytes());
    covered.extend([255; 14]); // no producer id, epoch, sequence
    covered.extend(1_i32.to_be_bytes());
    sized(&mut covered, &record);
    let mut batch = vec![0; 8];
    batch.extend((covered.len() as i32 + 9).to_be_bytes());
    batch.extend([255, 255, 255, 255, 2]); // leader epoch, magic
    batch.extend(crc32c(&covered).to_be_bytes());
    batch.extend(covered);
    let mut request = vec![0, 0, 0, 7, 0, 0, 0, 1, 255, 255, 255, 255, 255, 255]; // no client, no transaction
    request.extend(5000_i32.to_be_bytes());
    request.extend(1_i32.to_be_bytes());
    request.extend((topic.len() as i16).to_be_bytes());
    request.extend(topic.as_bytes());
    request.extend(1_i32.to_be_bytes());
    request.extend(0_i32.to_be_bytes());
    request.extend((batch.len() as i32).to_be_bytes());
    request.extend(batch);
    let mut server = TcpStream::connect(server).unwrap();
    server.write_all(&(request.len() as i32).to_be_bytes()).unwrap();
    server.write_all(&request).unwrap();
    let mut size = [0; 4];
    server.read_exact(&mut size).unwrap();
    let mut answer = vec![0; i32::from_be_bytes(size) as usize];
    server.read_exact(&mut answer).unwrap();
    let error = &answer[4 + 4 + 2 + topic.len() + 4 + 4..][..2];
    assert_eq!(error, [0, 0], "the server took it");
}
