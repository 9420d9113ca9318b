//! Requests that the library doesn't support: headers that are not text or null, transactions, settings, users.

use std::{
    io::*,
    net::TcpStream,
    thread::sleep,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Name and value.
pub(crate) type Header<'a> = (&'a [u8], Option<&'a [u8]>);

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

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as i16).to_be_bytes());
    out.extend(text.as_bytes());
}

/// A transactional producer: its name, and the id and the epoch that the server assigned.
pub(crate) struct Producer<'a> {
    server: &'a str,
    name: &'a str,
    id: i64,
    epoch: i16,
}

fn request(server: &str, api: i16, version: i16, body: &[u8]) -> Vec<u8> {
    let mut request = vec![];
    request.extend(api.to_be_bytes());
    request.extend(version.to_be_bytes());
    request.extend([0, 0, 0, 1, 255, 255]); // correlation id, no client id
    request.extend(body);
    let mut server = TcpStream::connect(server).unwrap();
    server.write_all(&(request.len() as i32).to_be_bytes()).unwrap();
    server.write_all(&request).unwrap();
    let mut size = [0; 4];
    server.read_exact(&mut size).unwrap();
    let mut answer = vec![0; i32::from_be_bytes(size) as usize];
    server.read_exact(&mut answer).unwrap();
    answer.split_off(4)
}

/// Creates a topic of one partition with a setting.
pub(crate) fn create(server: &str, topic: &str, setting: &str, value: &str) {
    let mut create = vec![];
    create.extend(1_i32.to_be_bytes());
    string(&mut create, topic);
    create.extend(1_i32.to_be_bytes()); // partitions
    create.extend([0, 1, 0, 0, 0, 0]); // one replica, no manual assignment
    create.extend(1_i32.to_be_bytes());
    string(&mut create, setting);
    string(&mut create, value);
    create.extend(5000_i32.to_be_bytes());
    create.push(0); // not just validate
    let answer = request(server, 19, 4, &create);
    assert_eq!(answer[4 + 4 + 2 + topic.len()..][..2], [0, 0], "the server created it");
}

/// Deletes a topic.
pub(crate) fn delete(server: &str, topic: &str) {
    let mut delete = vec![];
    delete.extend(1_i32.to_be_bytes());
    string(&mut delete, topic);
    delete.extend(5000_i32.to_be_bytes());
    let answer = request(server, 20, 1, &delete);
    assert_eq!(answer[4 + 4 + 2 + topic.len()..][..2], [0, 0], "the server deleted it");
}

/// Deletes the records of partition 0 up to an offset.
pub(crate) fn delete_records(server: &str, topic: &str, up_to: i64) {
    let mut delete = vec![];
    delete.extend(1_i32.to_be_bytes());
    string(&mut delete, topic);
    delete.extend(1_i32.to_be_bytes());
    delete.extend(0_i32.to_be_bytes());
    delete.extend(up_to.to_be_bytes());
    delete.extend(5000_i32.to_be_bytes());
    let answer = request(server, 21, 0, &delete);
    // The throttle time, the topic, the partition and its first offset.
    assert_eq!(answer[4 + 4 + 2 + topic.len() + 4 + 4 + 8..][..2], [0, 0], "the server deleted them");
}

/// Gives a user a password for SCRAM: the mechanism's number, and what is derived from the password.
pub(crate) fn set_password(server: &str, user: &str, mechanism: u8, salt: &[u8], derived: &[u8]) {
    // In the compact form: no tagged fields, no deletions, one user.
    let mut alter = vec![0, 1, 2];
    let compact = |out: &mut Vec<u8>, bytes: &[u8]| {
        out.push(bytes.len() as u8 + 1);
        out.extend(bytes);
    };
    compact(&mut alter, user.as_bytes());
    alter.push(mechanism);
    alter.extend(4096_i32.to_be_bytes());
    compact(&mut alter, salt);
    compact(&mut alter, derived);
    alter.extend([0, 0]);
    let answer = request(server, 51, 0, &alter);
    // No tagged fields, the throttle time, one result, the user.
    assert_eq!(answer[1 + 4 + 1 + 1 + user.len()..][..2], [0, 0], "the server accepted it: {answer:?}");
}

/// Appends one record to partition 0 and waits for the response.
pub(crate) fn produce(server: &str, topic: &str, headers: &[Header<'_>]) {
    append(server, topic, headers, None, 0, 0);
}

/// Appends a batch that claims to be compressed with the codec of that number, to a server that doesn't check.
#[allow(dead_code, reason = "only rdkafka's tests have such a server")]
pub(crate) fn produce_compressed(server: &str, topic: &str, codec: i16) {
    append(server, topic, &[], None, 0, codec);
}

fn append(
    server: &str,
    topic: &str,
    headers: &[Header<'_>],
    of: Option<&Producer<'_>>,
    sequence: i32,
    codec: i16,
) {
    let mut record = vec![0, 0, 0, 1]; // attributes, time and offset deltas, no key (-1)
    sized(&mut record, b"payload");
    varint(&mut record, headers.len() as i64);
    for (name, value) in headers {
        sized(&mut record, name);
        match value {
            Some(value) => sized(&mut record, value),
            None => varint(&mut record, -1),
        }
    }
    let mut covered = vec![];
    covered.extend((codec | if of.is_some() { 0x10 } else { 0 }).to_be_bytes());
    covered.extend(0_i32.to_be_bytes()); // last offset delta
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64;
    covered.extend(now.to_be_bytes()); // of the first record, and of the latest
    covered.extend(now.to_be_bytes());
    covered.extend(of.map_or(-1, |p| p.id).to_be_bytes());
    covered.extend(of.map_or(-1, |p| p.epoch).to_be_bytes());
    covered.extend(if of.is_some() { sequence } else { -1 }.to_be_bytes());
    covered.extend(1_i32.to_be_bytes());
    sized(&mut covered, &record);
    let mut batch = vec![0; 8];
    batch.extend((covered.len() as i32 + 9).to_be_bytes());
    batch.extend([255, 255, 255, 255, 2]); // leader epoch, magic
    batch.extend(crc32c(&covered).to_be_bytes());
    batch.extend(covered);
    let mut body = vec![];
    match of {
        Some(producer) => string(&mut body, producer.name),
        None => body.extend([255, 255]),
    }
    body.extend([255, 255]); // acknowledged by all
    body.extend(5000_i32.to_be_bytes());
    body.extend(1_i32.to_be_bytes());
    string(&mut body, topic);
    body.extend(1_i32.to_be_bytes());
    body.extend(0_i32.to_be_bytes());
    body.extend((batch.len() as i32).to_be_bytes());
    body.extend(batch);
    let answer = request(server, 0, 7, &body);
    assert_eq!(answer[4 + 2 + topic.len() + 4 + 4..][..2], [0, 0], "the server accepted it");
}

impl<'a> Producer<'a> {
    pub(crate) fn start(server: &'a str, name: &'a str) -> Self {
        let mut find = vec![];
        string(&mut find, name);
        find.push(1); // the coordinator of a transaction
        for _ in 0..200 {
            if request(server, 10, 1, &find)[4..6] == [0, 0] {
                let mut init = vec![];
                string(&mut init, name);
                init.extend(60_000_i32.to_be_bytes());
                let answer = request(server, 22, 0, &init);
                if answer[4..6] == [0, 0] {
                    let id = i64::from_be_bytes(answer[6..14].try_into().unwrap());
                    let epoch = i16::from_be_bytes(answer[14..16].try_into().unwrap());
                    return Producer { server, name, id, epoch };
                }
            }
            sleep(Duration::from_millis(100));
        }
        panic!("no coordinator for transactions");
    }

    fn begin(&self, body: &mut Vec<u8>) {
        string(body, self.name);
        body.extend(self.id.to_be_bytes());
        body.extend(self.epoch.to_be_bytes());
    }

    /// Appends one record within the transaction; `sequence` counts them.
    pub(crate) fn append(&self, topic: &str, sequence: i32) {
        let mut add = vec![];
        self.begin(&mut add);
        add.extend(1_i32.to_be_bytes());
        string(&mut add, topic);
        add.extend(1_i32.to_be_bytes());
        add.extend(0_i32.to_be_bytes());
        self.until_ok(24, &add, 4 + 4 + 2 + topic.len() + 4 + 4);
        append(self.server, topic, &[], Some(self), sequence, 0);
    }

    pub(crate) fn commit(&self) {
        self.end(1);
    }

    pub(crate) fn roll_back(&self) {
        self.end(0);
    }

    fn end(&self, how: u8) {
        let mut end = vec![];
        self.begin(&mut end);
        end.push(how);
        self.until_ok(26, &end, 4);
    }

    /// Retries while the end of the previous transaction is still in progress.
    fn until_ok(&self, api: i16, body: &[u8], error_at: usize) {
        for _ in 0..200 {
            let answer = request(self.server, api, 0, body);
            match i16::from_be_bytes(answer[error_at..][..2].try_into().unwrap()) {
                0 => return,
                51 | 14 | 15 | 16 => sleep(Duration::from_millis(50)),
                code => panic!("request {api} was refused with {code}"),
            }
        }
        panic!("request {api} was never accepted");
    }
}
