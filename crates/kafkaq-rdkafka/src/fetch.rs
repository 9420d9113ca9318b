//! Fetches and offsets, for whoever reads without a group.

use crate::{
    error, locked,
    reader::{FETCH, Found, Reader, Request},
};
use futures_util::{StreamExt, stream};
use kafkaq_core::{Batch, Error, ErrorKind, FetchLimit, Offsets, Partition, Position, Result};
use rdkafka::consumer::Consumer as _;
use std::{
    collections::HashMap,
    sync::Mutex,
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

const OFFSETS: &str = "offsets";
/// More than anybody waits; also keeps instants from overflowing.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 3600);
/// Partitions that one call asks for their offsets at once.
const AT_ONCE: usize = 8;
/// After how long without a sign of life a partition is asked for.
const DOUBT: Duration = Duration::from_secs(1);
const AGAIN: Duration = Duration::from_millis(100);
/// How old an end may be that a batch tells, and how long a batch waits for one.
const FRESH: Duration = Duration::from_secs(1);
/// Of so many partitions.
const ENDS: usize = 4096;

impl Reader {
    /// Records from an offset on. An empty batch is answered only when the client has reached the log's end without
    /// a record; what the log's end was before that is then where reading goes on: what lies below it is transactions'
    /// markers and what compaction has left.
    pub(crate) async fn fetch(&self, from: &Position, limit: FetchLimit) -> Result<Batch> {
        let partition = &from.partition;
        let until = Instant::now() + limit.max_wait.min(LONGEST_WAIT);
        let last = until + self.settings.request_timeout();
        let mut offset = from.offset.max(0);
        // Known before the fetch that it is compared with.
        let mut end = None;
        let mut doubt = Instant::now() + DOUBT;
        loop {
            match self.ask(partition, offset, limit.max_bytes, end.is_some(), [doubt, until, last]).await? {
                Found::Records(records) => {
                    let next = records.last().map_or(offset, |record| record.offset + 1);
                    let end = self.known_end(partition, next).await;
                    return Ok(Batch::new(records, next, end));
                }
                Found::Nothing => {
                    let (known, looked) = match end.take() {
                        Some(end) => (end, true),
                        None => (self.offsets_of(FETCH, partition).await?.next, false),
                    };
                    if known < offset {
                        return Err(beyond(offset, known));
                    }
                    if known > offset && !looked {
                        end = Some(known);
                        continue;
                    }
                    offset = known;
                    if Instant::now() >= until {
                        return Ok(Batch::new(Vec::new(), offset, Some(known)));
                    }
                }
                // The client waits for a partition that is not there as for one whose leader is away.
                Found::Silence => {
                    self.offsets_of(FETCH, partition).await?;
                    doubt = last;
                }
                Found::OutOfRange => {
                    let Offsets { first, next } = self.offsets_of(FETCH, partition).await?;
                    match offset {
                        _ if offset < first => offset = first,
                        _ if offset > next => return Err(beyond(offset, next)),
                        // The log has changed between the two answers.
                        _ if Instant::now() >= last => return Err(self.overdue(FETCH)),
                        _ => tokio::time::sleep(AGAIN).await,
                    }
                    end = None;
                }
            }
        }
    }

    async fn ask(
        &self,
        partition: &Partition,
        offset: i64,
        max_bytes: usize,
        anew: bool,
        [doubt, until, last]: [Instant; 3],
    ) -> Result<Found> {
        let (answer, found) = oneshot::channel();
        let partition = partition.clone();
        self.send(Request { partition, offset, max_bytes, anew, doubt, until, last, answer })?;
        found.await.unwrap_or_else(|_| Err(error::closed(FETCH)))
    }

    /// The first and the next offset of each partition.
    pub(crate) async fn offsets(&self, of: &[Partition]) -> Vec<Result<Offsets>> {
        let one = |partition: Partition| async move {
            self.offsets_of(OFFSETS, &partition).await.map_err(|e| e.on(&partition))
        };
        stream::iter(of.to_vec()).map(one).buffered(AT_ONCE).collect().await
    }

    /// While somebody's transaction is open, `next` is where that begins.
    async fn offsets_of(&self, op: &'static str, partition: &Partition) -> Result<Offsets> {
        let (client, active) = self.client(op)?;
        let (Partition { topic, index }, limit) = (partition.clone(), self.settings.request_timeout());
        let ask = move || {
            let answer = client.fetch_watermarks(&topic, index, limit);
            drop((client, active));
            answer
        };
        let answer = tokio::task::spawn_blocking(ask).await;
        let answer = answer.map_err(|e| Error::not_applied(ErrorKind::Other, op).with_source(e))?;
        let (first, next) = answer.map_err(|e| self.refused(op, &e))?;
        self.settings.trouble().is_over();
        self.ends.note(partition, next);
        Ok(Offsets { first, next })
    }

    /// The log's end as it was a moment ago, if that can be had soon.
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

fn beyond(offset: i64, next: i64) -> Error {
    Error::not_applied(ErrorKind::Invalid, FETCH).with_advice(format!(
        "Offset {offset} is beyond the log's end, {next}: the topic was cut or recreated"
    ))
}

/// The logs' ends of a moment ago, so that not each batch asks for them.
#[derive(Default)]
pub(crate) struct Ends(Mutex<HashMap<Partition, (i64, Instant)>>);

impl Ends {
    fn note(&self, partition: &Partition, end: i64) {
        let mut ends = locked(&self.0);
        if ends.len() >= ENDS {
            ends.retain(|_, (_, at)| at.elapsed() < FRESH);
        }
        if ends.len() < ENDS {
            ends.insert(partition.clone(), (end, Instant::now()));
        }
    }

    fn of(&self, partition: &Partition) -> Option<i64> {
        let ends = locked(&self.0);
        ends.get(partition).filter(|(_, at)| at.elapsed() < FRESH).map(|(end, _)| *end)
    }
}
