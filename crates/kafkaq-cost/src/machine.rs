//! The cost of the machine alone: tasks go through one machine with a store and a log that respond at once and keep
//! nothing.

use crate::{Outcome, counted};
use bytes::Bytes;
use kafkaq_core::{
    Assignment, Batch, Envelope, Event, HEADER, Headers, Keyspace, Partition, Record, Swapped, TaskId, Wall,
    machine::{Command, CommandId, Layout, Machine, Mono, Now, Settings},
};
use std::time::Duration;

/// Tasks that are read, leased and confirmed together.
const BATCH: u64 = 500;
const WAIT_PARTITIONS: i32 = 11;

/// Takes this many tasks, rounded up to whole batches, from their records to the commit.
pub(crate) fn run(tasks: u64) -> Outcome {
    let keyspace = Keyspace::new("q", "g", "q")?;
    let layout = Layout {
        keyspace,
        task: "q".into(),
        wait: "q.g.wait".into(),
        wait_partitions: WAIT_PARTITIONS,
        dead: "q.g.dead".into(),
        dead_partitions: 1,
    };
    let of = |topic: &str, index| Assignment { partition: Partition::new(topic, index), epoch: 1 };
    let begin = Now { mono: Mono(0), wall: Wall(1_700_000_000_000) };
    let mut machine = Machine::new(Settings { process: [7; 16], ..Settings::default() }, layout, begin);
    let all = (0..WAIT_PARTITIONS).map(|i| of("q.g.wait", i)).chain([of("q", 0)]).collect();
    machine.handle_event(begin, Event::Assigned(all));
    let batch = |first: u64| {
        let records = (first..first + BATCH).map(|n| record(n, begin.wall)).collect();
        Event::Records(of("q", 0), Batch::new(records, (first + BATCH) as i64, None))
    };
    let batches: Vec<_> = (0..tasks).step_by(BATCH as usize).map(batch).collect();
    counted(Box::new(|| {
        let mut now = begin;
        for batch in batches {
            work_through(&mut machine, now, batch);
            let pause = Duration::from_millis(10);
            now = Now { mono: now.mono.plus(pause), wall: now.wall.plus(pause) };
        }
        Ok(())
    }))
}

fn work_through(machine: &mut Machine, now: Now, records: Event) {
    machine.handle_event(now, records);
    machine.handle_demand(now, BATCH as usize, 0);
    let (mut ready, mut swaps, mut commits) = (Vec::new(), Vec::new(), Vec::new());
    loop {
        machine.poll_swaps(BATCH as usize, &mut swaps);
        if swaps.is_empty() {
            break;
        }
        swaps.drain(..).for_each(|(op, _)| machine.handle_swapped(now, op, Ok(Swapped::Done)));
        machine.poll_ready(&mut ready);
        for job in ready.drain(..) {
            machine.handle_command(now, job.job, CommandId(1), Command::Done);
        }
        while machine.poll_notice().is_some() {}
    }
    machine.poll_commits(&mut commits);
    commits.drain(..).for_each(|commit| machine.handle_committed(now, &commit, Ok(())));
    let _ = machine.poll_timeout();
}

fn record(n: u64, now: Wall) -> Record {
    // An id as long as those that `publish` generates.
    let id = TaskId::from_parts(format!("01900000-0000-7000-8000-{n:012x}"));
    let headers = Headers::from_iter([(Bytes::from(HEADER), Some(Envelope::new(id, now).encode()))]);
    Record::new(n as i64, now.0 as i64, None, Some(Bytes::from_static(b"payload")), headers)
}
