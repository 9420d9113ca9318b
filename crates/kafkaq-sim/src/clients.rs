//! The clients: they publish tasks, repeat that if the outcome is unknown, and cancel some.

use crate::later::own_envelope;
use crate::log::{Entry, Kind};
use crate::task::{Task, TaskKind};
use crate::trace::{MS, SEC, Us, tr, true_wall};
use crate::world::{Ev, World};
use kafkaq_core::{
    Effect, Envelope, HEADER, Headers, ID_HEADER, NewRecord, Partition, Position, TaskId, Wall,
};
use std::time::{Duration, SystemTime};

impl World {
    /// Draws which tasks will be published when.
    pub(crate) fn draw_tasks(&mut self) {
        for n in 0..self.plan.tasks {
            let kind = match self.rng.weighted(&[55, 20, 15, 3, 2, 5]) {
                0 => TaskKind::Fresh,
                1 => TaskKind::Delayed,
                2 => TaskKind::Foreign,
                3 => TaskKind::Damaged,
                4 => TaskKind::Stranger,
                _ => TaskKind::Named,
            };
            let at = self.rng.below(self.plan.hostile * 2 / 3);
            self.at(at, Ev::Publish(n));
            if matches!(kind, TaskKind::Fresh | TaskKind::Delayed | TaskKind::Named) {
                // One id names one task, however often it is published.
                if self.rng.chance(80) {
                    let again = self.rng.between(at, self.plan.hostile);
                    self.at(again, Ev::Publish(n));
                }
                if self.rng.chance(self.plan.rates.cancel) {
                    let cancel = self.rng.between(at, self.plan.hostile);
                    self.at(cancel, Ev::Cancel(n));
                }
            }
            let poison = self.rng.chance(self.plan.rates.poison);
            let delay = self.rng.between(1, self.plan.settings.max_delay.as_millis() as u64);
            let old = self.rng.chance(300);
            let mut task = Task::new(n, kind, poison, delay, old, &self.log.layout.keyspace);
            task.refused = self.rng.chance(self.plan.rates.refused);
            self.check.add(task);
        }
    }

    pub(crate) fn publish(&mut self, n: usize) {
        let now = true_wall(self.now);
        let task = &self.check.tasks[n];
        let kind = task.kind;
        let mut headers = Headers::new();
        headers.push("user", Some(format!("h{n}").into()));
        let mut envelope = Envelope::new(task.id.clone().unwrap_or_else(|| unreachable_id(n)), now);
        let task_partitions = self.plan.task_partitions as usize;
        let mut part = self.rng.index(task_partitions);
        match kind {
            TaskKind::Foreign => {}
            TaskKind::Named => headers.push(ID_HEADER, Some(envelope.id.as_str().to_string().into())),
            TaskKind::Damaged => headers.push(HEADER, Some(envelope.encode().slice(..6))),
            TaskKind::Fresh => headers.push(HEADER, Some(envelope.encode())),
            TaskKind::Delayed => {
                // Published again, it is due when it was due.
                let due = task.due.unwrap_or_else(|| now.plus(Duration::from_millis(task.delay)));
                (envelope.due, envelope.ahead) = (due, due.since(now));
                headers.push(HEADER, Some(envelope.encode()));
                self.check.tasks[n].due = Some(due);
                let due = self.now + due.since(now).as_micros() as Us;
                self.check.latest_due = self.check.latest_due.max(due);
            }
            TaskKind::Stranger => {
                // Published again, it is due when it was due.
                let due = task.due.unwrap_or_else(|| now.plus(Duration::from_millis(task.delay)));
                let (index, lane_due) = self.log.ladder.place(now, due, &envelope.id);
                (envelope.due, envelope.lane_due) = (due, lane_due);
                envelope.ahead = due.since(now);
                let partition = Partition::new("someone-elses", 0);
                envelope.origin = Some(Position { partition, offset: 5 });
                headers.push(HEADER, Some(envelope.encode()));
                part = self.log.wait_part(index);
                self.check.tasks[n].due = Some(due);
            }
        }
        let task = &mut self.check.tasks[n];
        let mut record = NewRecord::new(task.key.clone(), Some(task.payload.clone()), headers);
        if task.old && part < task_partitions {
            // Some producers set the timestamp themselves.
            let age = Duration::from_secs(30 * 24 * 3600);
            record.timestamp = Some(SystemTime::UNIX_EPOCH + Duration::from_millis(now.0) - age);
        }
        task.publications += 1;
        if task.publications > 1 {
            self.stats.published_again += 1;
        }
        // A record without an id is a new task each time that it is appended.
        let outcome = if kind == TaskKind::Foreign {
            Ok(self.append_effect(part, &record, None))
        } else {
            self.append_once(part, &record, None)
        };
        tr!(self, "client", "publish t{n} {kind:?} to {} -> {outcome:?}", self.log.parts[part].partition);
        let unknown = outcome.as_ref().is_err_and(|e| e.effect() == Effect::Unknown);
        let after = if unknown { self.rng.between(MS, SEC) } else { MS };
        self.after(after, Ev::Published(n, outcome.is_ok()));
    }

    pub(crate) fn published(&mut self, n: usize, ok: bool) {
        if !ok {
            // A client that gives up leaves a task that may or may not be there.
            if !self.trouble(150) {
                self.after(20 * MS, Ev::Publish(n));
            }
            return;
        }
        let (kind, now) = (self.check.tasks[n].kind, self.now);
        self.check.tasks[n].acknowledged_at.push(now);
        self.stats.published += 1;
        self.stats.delayed += u64::from(kind == TaskKind::Delayed);
        self.stats.foreign += u64::from(matches!(kind, TaskKind::Foreign | TaskKind::Named));
        self.stats.undecodable += u64::from(matches!(kind, TaskKind::Damaged | TaskKind::Stranger));
    }
}

/// Foreign records have no header; the id of this envelope is never written.
fn unreachable_id(n: usize) -> TaskId {
    TaskId::new(format!("foreign-{n}")).unwrap_or_else(|e| unreachable!("{e}"))
}

// ---- what the log holds
impl World {
    /// The entry for a record that is being appended; `None` if retention deletes it at once.
    pub(crate) fn checked_entry(
        &mut self,
        part: usize,
        offset: i64,
        record: &NewRecord,
        who: Option<usize>,
    ) -> Option<Entry> {
        let now = true_wall(self.now);
        let (kind, partition) = (self.log.parts[part].kind, self.log.parts[part].partition.clone());
        let mut timestamp = record.timestamp.map_or(now.0 as i64, |t| {
            t.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_millis() as i64)
        });
        let at = Position { partition, offset };
        let (task, cover, attempt) = self.check_append(kind, &at, timestamp, record, who)?;
        if self.plan.world == Some(crate::WorldFault::CopiesKeepTheirTime) && kind == Kind::Wait && cover > 0
        {
            timestamp = self.check.tasks[task].first_timestamp;
        }
        let retention = Duration::from_secs(7 * 24 * 3600).as_millis() as i64;
        let kept = kind != Kind::Wait || timestamp + retention > now.0 as i64;
        kept.then(|| Entry { record: record.clone(), timestamp, task, cover, attempt })
    }

    /// Describes a record for the trace.
    pub(crate) fn describe(&self, record: &NewRecord) -> String {
        match record.headers.get(HEADER).map(|h| Envelope::decode(&own_envelope(h))) {
            None => "without a header".into(),
            Some(Err(e)) => e.to_string(),
            Some(Ok(e)) => {
                let at = |w: Wall| (w.0 as f64 - crate::trace::WALL as f64) / 1e3;
                let (due, lane) = (at(e.due), at(e.lane_due));
                format!("{} a{} c{} due {due:.3}s lane {lane:.3}s", e.id, e.attempt, e.cover)
            }
        }
    }
}
