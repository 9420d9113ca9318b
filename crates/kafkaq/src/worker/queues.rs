//! The queues of a worker: takes jobs from them by their shares.

use super::share::{Set, Share, Turn, Turns};
use crate::{Job, Publisher, Queue, Result};
use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};
use tokio::time::Instant;

/// What executions need of the queue that their task came from.
pub(super) struct Source {
    pub(super) name: Arc<str>,
    pub(super) publisher: Publisher,
    pub(super) lease: Duration,
    pub(super) max_delay: Duration,
    pub(super) max_handouts: u32,
}

impl Source {
    pub(super) fn of(queue: &Queue) -> Self {
        Source {
            name: queue.shared_name(),
            publisher: queue.publisher(),
            lease: queue.lease_duration(),
            max_delay: queue.max_delay(),
            max_handouts: queue.max_handouts(),
        }
    }
}

/// A job, and the number of its queue.
pub(super) struct Taken {
    pub(super) source: usize,
    pub(super) job: Job,
}

pub(super) struct Queues {
    all: Vec<Queue>,
    turns: Turns,
}

impl Queues {
    pub(super) fn new(queues: Vec<(Queue, Share)>) -> Self {
        let turns = Turns::new(queues.iter().map(|(_, share)| *share), Instant::now());
        Queues { all: queues.into_iter().map(|(queue, _)| queue).collect(), turns }
    }

    pub(super) fn into_all(self) -> Vec<Queue> {
        self.all
    }

    /// Waits for a job, then takes others that are ready, up to `max` in total. Cancel-safe.
    ///
    /// # Errors
    /// The error that has stopped one of the queues. Jobs may have been taken before.
    pub(super) async fn take(&mut self, max: usize, taken: &mut Vec<Taken>) -> Result<()> {
        // The queue whose turn it is takes precedence over the one that was ready first.
        if self.all.len() > 1 {
            self.take_ready(max, taken)?;
            if !taken.is_empty() {
                return Ok(());
            }
        }
        let first = self.first(max).await?;
        // Nothing is awaited from here on, so a dropped future has taken nothing.
        self.turns.taken(Turn::regular(first.source), Instant::now());
        taken.push(first);
        self.take_ready(max, taken)
    }

    async fn first(&self, wanted: usize) -> Result<Taken> {
        if let [only] = &*self.all {
            return Ok(Taken { source: 0, job: only.wait_for_job(wanted).await? });
        }
        let mut waiting: Vec<Pin<Box<dyn Future<Output = Result<Job>> + Send + '_>>> = Vec::new();
        for queue in &self.all {
            waiting.push(Box::pin(queue.wait_for_job(wanted)));
        }
        poll_fn(|cx| {
            for (source, job) in waiting.iter_mut().enumerate() {
                if let Poll::Ready(job) = job.as_mut().poll(cx) {
                    return Poll::Ready(job.map(|job| Taken { source, job }));
                }
            }
            Poll::Pending
        })
        .await
    }

    fn take_ready(&mut self, max: usize, taken: &mut Vec<Taken>) -> Result<()> {
        if let [only] = &*self.all {
            while taken.len() < max
                && let Some(job) = only.ready_job()?
            {
                taken.push(Taken { source: 0, job });
            }
            return Ok(());
        }
        let (mut empty, now) = (Set::default(), Instant::now());
        while taken.len() < max
            && let Some(turn) = self.turns.next(empty, now)
        {
            let source = turn.queue;
            // A queue without a ready job is asked to lease one.
            match self.all[source].try_get_job()? {
                Some(job) => {
                    self.turns.taken(turn, now);
                    taken.push(Taken { source, job });
                }
                None => empty.insert(source),
            }
        }
        Ok(())
    }
}
