//! The guide's log keeps acknowledged records when its writers are killed at any point.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

#[path = "../examples/file_log.rs"]
#[allow(unreachable_pub, dead_code)]
mod file_log;

use file_log::FileLog;
use kafkaq_core::{
    ErrorKind, FetchLimit, Headers, Log, NewRecord, Partition, PartitionLog, Position, Record, TopicSpec,
};
use std::{
    env, fs,
    io::{BufRead, BufReader, Write},
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

const DIRECTORY: &str = "KAFKAQ_KILLED_WRITER";

fn partition() -> Partition {
    Partition::new("t", 0)
}

fn record(value: String) -> NewRecord {
    NewRecord::new(None, Some(value.into()), Headers::new())
}

async fn create(name: &str) -> (PathBuf, FileLog) {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
    let log = FileLog::new(&dir);
    let mut spec = TopicSpec::new("t");
    spec.partitions = Some(1);
    log.ensure_topics(&[spec]).await.unwrap();
    (dir, log)
}

/// Reads everything, and checks that nothing follows.
async fn read(log: &FileLog) -> Vec<Record> {
    let mut from = Position { partition: partition(), offset: 0 };
    let mut records = Vec::new();
    loop {
        let batch = log.fetch(&from, FetchLimit::new(Duration::ZERO, 1 << 16)).await.unwrap();
        if batch.next == from.offset {
            return records;
        }
        from.offset = batch.next;
        records.extend(batch.records);
    }
}

fn text(record: &Record) -> String {
    String::from_utf8(record.value.clone().unwrap().to_vec()).unwrap()
}

#[tokio::test]
async fn torn_end_is_not_a_record_and_is_overwritten() {
    let (dir, log) = create("torn").await;
    let path = dir.join("topics/t/0");
    let one = fs::metadata(&path).unwrap().len();
    // All of one length, so that the end of one is the beginning of another.
    let value = |n: usize| format!("record {n:03}");
    log.append(&partition(), &[record(value(0))]).await.remove(0).unwrap();
    let whole = fs::read(&path).unwrap();
    let frame = &whole[one as usize..];
    let mut expected = vec![value(0)];
    // Cut off anywhere, or complete but for its last byte, or nothing but zeros, as a file system may leave it.
    let torn = (1..frame.len()).map(|n| frame[..n].to_vec());
    let wrong = [&frame[..frame.len() - 1], b"?"].concat();
    // What follows a torn frame must not reappear when that is overwritten.
    let followed = [&wrong, frame].concat();
    for end in torn.chain([wrong, followed, vec![0; 100]]) {
        fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(&end).unwrap();
        // A client that knows the file, and one that doesn't.
        for reader in [&log, &FileLog::new(&dir)] {
            assert_eq!(read(reader).await.iter().map(text).collect::<Vec<_>>(), expected, "{end:?}");
        }
        let offset = log.append(&partition(), &[record(value(expected.len()))]).await.remove(0).unwrap();
        assert_eq!(offset, expected.len() as i64);
        expected.push(value(expected.len()));
    }
    assert_eq!(read(&FileLog::new(&dir)).await.iter().map(text).collect::<Vec<_>>(), expected);
    fs::remove_dir_all(dir).unwrap();
}

#[tokio::test]
async fn damage_stops_readers_and_writers() {
    let (dir, log) = create("damaged").await;
    for n in 0..3 {
        log.append(&partition(), &[record(format!("record {n}"))]).await.remove(0).unwrap();
    }
    let path = dir.join("topics/t/0");
    let mut bytes = fs::read(&path).unwrap();
    // In the second record.
    let at = bytes.windows(8).position(|window| window == b"record 1").unwrap();
    bytes[at] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let log = FileLog::new(&dir);
    let appended = log.append(&partition(), &[record("later".into())]).await.remove(0);
    let position = Position { partition: partition(), offset: 0 };
    let fetched = log.fetch(&position, FetchLimit::new(Duration::ZERO, 1 << 16)).await;
    let kinds = (appended.map_err(|e| e.kind()), fetched.map_err(|e| e.kind()));
    assert_eq!(kinds, (Err(ErrorKind::Corrupt), Err(ErrorKind::Corrupt)));
    assert_eq!(fs::read(&path).unwrap(), bytes, "what follows the damage is still there");
    fs::remove_dir_all(dir).unwrap();
}

/// The process that the other test kills: it appends forever, and prints the offset and the name of each acknowledged
/// record.
#[tokio::test]
async fn writer() {
    let Ok(dir) = env::var(DIRECTORY) else { return };
    let log = FileLog::new(dir);
    for batch in 0.. {
        let names: Vec<_> = (0..5).map(|n| format!("{}-{batch}-{n}", std::process::id())).collect();
        // Large ones, so that some writers are killed in the middle.
        let records: Vec<_> = names.iter().map(|name| record(format!("{name} {:50000}", ""))).collect();
        for (outcome, name) in log.append(&partition(), &records).await.into_iter().zip(names) {
            println!("answered {} {name}", outcome.unwrap());
        }
    }
}

#[tokio::test]
async fn acknowledged_records_survive_killed_writers() {
    let (dir, log) = create("killed").await;
    let mut answered = Vec::new();
    for round in 0..12 {
        let mut writer = Command::new(env::current_exe().unwrap())
            .args(["writer", "--exact", "--nocapture"])
            .env(DIRECTORY, &dir)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(writer.stdout.take().unwrap()).lines().map(Result::unwrap);
        let mut answers = lines.filter_map(|line| {
            let (offset, name) = line.split_once("answered ")?.1.split_once(' ')?;
            Some((offset.parse::<usize>().unwrap(), name.to_owned()))
        });
        answered.extend(answers.by_ref().take(10 + round));
        // At some point of an append.
        std::thread::sleep(Duration::from_millis(round as u64));
        writer.kill().unwrap();
        writer.wait().unwrap();
        // What it had printed before that.
        answered.extend(answers);
        let there = read(&log).await;
        assert!(there.iter().enumerate().all(|(n, record)| record.offset == n as i64));
        for (offset, name) in &answered {
            assert_eq!(text(&there[*offset]).split(' ').next(), Some(name.as_str()), "at offset {offset}");
        }
    }
    fs::remove_dir_all(dir).unwrap();
}
