//! Fetches and offsets, for reading without a group.

use crate::{
    error,
    reader::{FETCH, Found, Reader, Request},
};
use kafkaq_core::{Batch, Error, ErrorKind, FetchLimit, Offsets, Partition, Position, Result, lock};
use std::{
    collections::HashMap,
    sync::Mutex,
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

/// Longer than anybody waits; also keeps instants from overflowing.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 3600);
/// After how long without a sign of life a partition is queried, and after how much longer the consumer is replaced.
const DOUBT: Duration = Duration::from_secs(1);
const SILENCE: Duration = Duration::from_secs(2);
const AGAIN: Duration = Duration::from_millis(100);
/// How old the end in a batch may be, and how long a batch waits for one.
const FRESH: Duration = Duration::from_secs(1);
/// For how many partitions ends are remembered.
const ENDS: usize = 4096;

impl Reader {
    /// Returns records from an offset on. The batch is empty only if the client has reached the log's end without a
    /// record; reading then continues at what the log's end was before: below it are only transaction markers and what
    /// compaction has left.
    pub(crate) async fn fetch(&self, from: &Position, limit: FetchLimit) -> Result<Batch> {
        let partition = &from.partition;
        let until = Instant::now() + limit.max_wait.min(LONGEST_WAIT);
        let last = until + self.settings.request_timeout();
        let mut offset = from.offset.max(0);
        let mut gap: Option<Gap> = None;
        let (mut doubt, mut silent) = (Instant::now() + DOUBT, 0);
        loop {
            let found =
                self.ask(partition, offset, limit.max_bytes, gap.is_some(), [doubt, until, last]).await;
            let found = match found {
                // A consumer may remember a topic as missing that has just been created.
                Err(e) if e.kind() == ErrorKind::NotFound && Instant::now() < last => {
                    self.offsets_of(FETCH, partition).await?;
                    tokio::time::sleep(AGAIN).await;
                    continue;
                }
                found => found?,
            };
            match found {
                Found::Records(records) => {
                    let next = records.last().map_or(offset, |record| record.offset + 1);
                    let end = self.known_end(partition, next).await;
                    return Ok(Batch::new(records, next, end));
                }
                Found::Nothing => {
                    let certain = gap.filter(Gap::is_certain);
                    let known = match certain {
                        Some(gap) => gap.end,
                        None => self.offsets_of(FETCH, partition).await?.next,
                    };
                    if known < offset {
                        return Err(beyond(offset, known));
                    }
                    if known > offset && certain.is_none() {
                        gap = Some(Gap::looked(gap, known));
                        continue;
                    }
                    (offset, gap) = (known, None);
                    if Instant::now() >= until {
                        return Ok(Batch::new(Vec::new(), offset, Some(known)));
                    }
                }
                // The client waits for a missing partition as for one without a leader.
                Found::Silence => {
                    self.offsets_of(FETCH, partition).await?;
                    // It exists, so it can be read.
                    if silent == 1 {
                        self.renew();
                    }
                    silent += 1;
                    gap = None;
                    doubt = if silent == 1 { Instant::now() + SILENCE } else { last };
                }
                Found::OutOfRange => {
                    let Offsets { first, next } = self.offsets_of(FETCH, partition).await?;
                    match offset {
                        _ if offset < first => offset = first,
                        _ if offset > next => return Err(beyond(offset, next)),
                        // The log has changed between the two responses.
                        _ if Instant::now() >= last => return Err(self.overdue(FETCH)),
                        _ => tokio::time::sleep(AGAIN).await,
                    }
                    gap = None;
                }
            }
        }
    }

    async fn ask(
        &self,
        partition: &Partition,
        offset: i64,
        max_bytes: usize,
        bypass_read_ahead: bool,
        [doubt, until, last]: [Instant; 3],
    ) -> Result<Found> {
        let (answer, found) = oneshot::channel();
        let partition = partition.clone();
        self.send(Request { partition, offset, max_bytes, bypass_read_ahead, doubt, until, last, answer })?;
        found.await.unwrap_or_else(|_| Err(error::closed(FETCH)))
    }

    /// The log's recent end, if it can be determined soon.
    async fn known_end(&self, partition: &Partition, next: i64) -> Option<i64> {
        let known = match self.ends.of(partition) {
            Some(end) => Some(end),
            None => match tokio::time::timeout(FRESH, self.offsets_of(FETCH, partition)).await {
                Ok(Ok(offsets)) => Some(offsets.next),
                _ => None,
            },
        };
        known.map(|end| end.max(next))
    }
}

/// Offsets that seem to have no records: the client has reached the log's end, but the leader reports a higher one.
///
/// A server that has just become the leader may return an earlier end with a fetch, but answers a query for the end
/// only once it knows how far the log goes (KIP-207). So the client has to reach the end again after each of two such
/// answers.
#[derive(Clone, Copy)]
struct Gap {
    /// The lowest end that was reported.
    end: i64,
    answers: u32,
}

impl Gap {
    fn looked(before: Option<Gap>, end: i64) -> Self {
        match before {
            Some(gap) => Gap { end: gap.end.min(end), answers: gap.answers + 1 },
            None => Gap { end, answers: 1 },
        }
    }

    fn is_certain(&self) -> bool {
        self.answers >= 2
    }
}

fn beyond(offset: i64, next: i64) -> Error {
    Error::not_applied(ErrorKind::Invalid, FETCH).with_advice(format!(
        "Offset {offset} is beyond the log's end, {next}: the topic was truncated or recreated"
    ))
}

/// Recent ends of logs, so that not every batch queries them.
#[derive(Default)]
pub(crate) struct Ends(Mutex<HashMap<Partition, (i64, Instant)>>);

impl Ends {
    pub(crate) fn note(&self, partition: &Partition, end: i64) {
        let mut ends = lock(&self.0);
        if ends.len() >= ENDS {
            ends.retain(|_, (_, at)| at.elapsed() < FRESH);
        }
        if ends.len() < ENDS {
            ends.insert(partition.clone(), (end, Instant::now()));
        }
    }

    fn of(&self, partition: &Partition) -> Option<i64> {
        let ends = lock(&self.0);
        ends.get(partition).filter(|(_, at)| at.elapsed() < FRESH).map(|(end, _)| *end)
    }
}
