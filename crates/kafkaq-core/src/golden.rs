//! Tests the vectors of `docs/format.md` against what this version writes and reads.

use crate::group::Value;
use crate::{Cursor, Envelope, Lease, LeaseState, LeaseToken, Mark, Partition, Position, TaskId, Wall};
use bytes::Bytes;
use std::time::Duration;

const UUID: &str = "0192f0c1-7b3a-7c4d-8e5f-0123456789ab";
const NOW: Wall = Wall(1_790_000_000_000);

enum Written {
    Envelope(Envelope),
    Lease(Lease),
    Commit(Cursor),
    Partition(Value),
    Checkpoint(Cursor),
}

impl Written {
    fn encode(&self) -> Bytes {
        match self {
            Written::Envelope(e) => e.encode(),
            Written::Lease(l) => l.encode(),
            Written::Commit(c) => c.metadata().into(),
            Written::Partition(v) => v.encode(),
            Written::Checkpoint(c) => c.encode(),
        }
    }

    fn is_read_from(&self, bytes: &[u8]) -> bool {
        match self {
            Written::Envelope(e) => Envelope::decode(bytes).as_ref() == Ok(e),
            Written::Lease(l) => Lease::decode(bytes).as_ref() == Ok(l),
            Written::Commit(c) => {
                std::str::from_utf8(bytes).is_ok_and(|text| Cursor::committed(c.offset, text) == *c)
            }
            Written::Partition(v) => Value::decode(bytes).as_ref() == Ok(v),
            Written::Checkpoint(c) => Cursor::decode(bytes).as_ref() == Ok(c),
        }
    }
}

fn written() -> Vec<(&'static str, Written)> {
    let of = |id: &str| Envelope::new(TaskId::new(id).unwrap(), NOW);
    let mut delayed = of("report-2026-11");
    (delayed.due, delayed.ahead) = (NOW.plus(Duration::from_secs(3600)), Duration::from_secs(3600));
    let mut copy = of(UUID);
    (copy.attempt, copy.failures, copy.cover, copy.running) = (3, 1, 2, true);
    (copy.due, copy.ahead) = (NOW.plus(Duration::from_secs(61)), Duration::from_secs(61));
    copy.lane_due = copy.due;
    copy.origin = Some(Position { partition: Partition::new("emails", 4), offset: 17 });
    copy.history = copy.history.with(NOW, 2, "no route to host");
    let token = LeaseToken { process: *b"0123456789abcdef", number: 300 };
    let minute = Duration::from_secs(60);
    let mut live = Lease::new(LeaseState::Live, token, NOW.plus(minute), minute);
    (live.attempt, live.prefetched) = (1, true);
    let mut idle = Lease::new(LeaseState::Idle, token, NOW.plus(minute), minute);
    (idle.attempt, idle.failures, idle.cover) = (2, 2, 3);
    idle.history = idle.history.with(NOW, 1, "its lease ran out").with(NOW, 2, "no route to host");
    let mut done = Lease::new(LeaseState::Done, token, NOW, Duration::ZERO);
    done.attempt = 3;
    let mark = Mark { offset: 16, timestamp_ms: 1_790_000_000_000, hash: 0x0123_4567_89ab_cdef };
    let cursor = Cursor { offset: 17, mark: Some(mark), anchor: None };
    let held =
        Value { owner: Some(token.process), counter: 5, epoch: 3, wanted_by: None, cursor: Some(cursor) };
    vec![
        ("envelope of a task that is published", Written::Envelope(of(UUID))),
        ("envelope of a delayed task", Written::Envelope(delayed)),
        ("envelope of a copy of a running job", Written::Envelope(copy)),
        ("lease, live and prefetched", Written::Lease(live)),
        ("lease, idle after two failures", Written::Lease(idle)),
        ("lease, done", Written::Lease(done)),
        ("metadata of a commit", Written::Commit(cursor)),
        ("partition of a group", Written::Partition(held)),
        ("checkpoint", Written::Checkpoint(cursor)),
    ]
}

#[test]
fn format_matches_its_documentation() {
    let page = include_str!("../docs/format.md");
    for (name, written) in written() {
        let hex: String = written.encode().iter().map(|b| format!("{b:02x}")).collect();
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        assert_eq!(line, Some(&*hex), "{name}");
        let digits = line.unwrap().as_bytes();
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
        let bytes: Vec<u8> = digits.chunks(2).map(byte).collect();
        assert!(written.is_read_from(&bytes), "{name}");
    }
}
