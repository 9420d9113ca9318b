//! Sends the records of a queue, one request after another, until it is empty.

use super::{Appender, queue::PartitionQueue};
use crate::sync::{panic_message, yield_once};
use kafkaq_core::Result;
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};
use tokio::time::{sleep, timeout};

const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const LAST_BACKOFF: Duration = Duration::from_secs(1);

/// The sender that has claimed a queue. If it is dropped, because its runtime is, it passes the queue on.
pub(super) struct Flush {
    appender: Arc<Appender>,
    queue: Arc<PartitionQueue>,
    backoff: Duration,
    claims: bool,
    /// Single tasks without a key gather behind the request in flight.
    counts: bool,
}

/// A request in flight.
struct Request {
    append: Append,
    records: usize,
    begun: Instant,
}

impl Flush {
    /// Starts sending the records of a queue, unless it is empty or claimed. If the caller has more to do and there is
    /// another thread, that builds the request; otherwise it starts on the caller's. What doesn't finish at once
    /// continues in the background.
    pub(super) fn begin(appender: &Arc<Appender>, queue: &Arc<PartitionQueue>, more_to_do: bool) {
        if !queue.claim() {
            return;
        }
        if more_to_do && appender.home.has_threads() {
            return Flush::of(appender, queue).spawn(None, None);
        }
        let mut flush = Flush::of(appender, queue);
        let Some(mut request) = flush.next() else { return };
        match appender.home.poll_here(Pin::new(&mut request.append)) {
            Poll::Pending => flush.spawn(Some(request), None),
            Poll::Ready(answers) => {
                // Others may have pushed meanwhile. The caller is not kept busy with their records.
                let pause = flush.settle(&request, answers);
                flush.send_gathered();
                if pause.is_none() && queue.release_if_empty() {
                    flush.claims = false;
                } else {
                    flush.spawn(None, pause);
                }
            }
        }
    }

    fn of(appender: &Arc<Appender>, queue: &Arc<PartitionQueue>) -> Self {
        Flush {
            appender: appender.clone(),
            queue: queue.clone(),
            backoff: FIRST_BACKOFF,
            claims: true,
            counts: false,
        }
    }

    /// Continues in the background.
    fn spawn(self, begun: Option<Request>, pause: Option<Duration>) {
        let appender = self.appender.clone();
        appender.queues.keep_time(&appender.home);
        appender.home.spawn(self.run(begun, pause));
    }

    async fn run(mut self, begun: Option<Request>, pause: Option<Duration>) {
        let (mut request, mut pause) = (begun, pause);
        loop {
            if let Some(pause) = pause.take() {
                sleep(pause).await;
            }
            let Some(mut sent) = request.take().or_else(|| self.next()) else { return };
            let answers = match timeout(self.appender.gathering.patience, &mut sent.append).await {
                Ok(answers) => answers,
                Err(_late) => {
                    self.appender.gather_on_another(&self.queue);
                    self.send_gathered();
                    (&mut sent.append).await
                }
            };
            pause = self.settle(&sent, answers);
            if self.counts {
                // Callers that just got their outcomes may publish again at once, into one request.
                yield_once().await;
                if self.continue_with_gathered() {
                    pause = None;
                }
            }
        }
    }

    /// Returns the next request; without one, the queue is idle.
    fn next(&mut self) -> Option<Request> {
        let Some((records, gathered)) = self.queue.next_batch(Instant::now()) else {
            self.claims = false;
            return None;
        };
        if gathered {
            self.counts = true;
            self.appender.gathering.enter();
        }
        self.appender.gather_on_another(&self.queue);
        let (log, partition, count) =
            (self.appender.log.clone(), self.queue.partition.clone(), records.len());
        let append = Append(Box::pin(async move { log.append(&partition, &records).await }));
        Some(Request { append, records: count, begun: self.appender.counter.begun() })
    }

    /// Stops tasks from gathering behind the request. If the gathered ones may be sent now, returns their queue,
    /// claimed.
    fn stop_gathering(&mut self) -> Option<Arc<PartitionQueue>> {
        let may_go = std::mem::take(&mut self.counts) && self.appender.gathering.leave();
        may_go.then(|| self.appender.gathering_queue()).filter(|queue| queue.claim())
    }

    /// Lets another flush send what gathers behind the request.
    fn send_gathered(&mut self) {
        if let Some(gathered) = self.stop_gathering() {
            Flush::of(&self.appender, &gathered).spawn(None, None);
        }
    }

    /// Sends what gathers behind the request: here, if nothing else is left to do, otherwise by another flush. Returns
    /// whether it switched to it.
    fn continue_with_gathered(&mut self) -> bool {
        let Some(gathered) = self.stop_gathering() else { return false };
        let goes_over = self.queue.release_if_empty();
        if goes_over {
            (self.queue, self.backoff) = (gathered, FIRST_BACKOFF);
        } else {
            Flush::of(&self.appender, &gathered).spawn(None, None);
        }
        goes_over
    }

    /// Reports decided outcomes, and puts the rest back. Returns how long to wait before the next attempt.
    fn settle(&mut self, request: &Request, answers: Answers) -> Option<Duration> {
        let settled = self.queue.settle(answers, Instant::now());
        self.appender.counter.ended(request.begun, request.records, settled.failed);
        if !settled.again {
            self.backoff = FIRST_BACKOFF;
            return None;
        }
        let pause = settled.asked.map_or(self.backoff, |asked| asked.min(LAST_BACKOFF));
        self.backoff = (self.backoff * 2).min(LAST_BACKOFF);
        Some(pause)
    }
}

impl Drop for Flush {
    fn drop(&mut self) {
        self.send_gathered();
        if self.claims {
            self.queue.put_back_sent();
            self.appender.home.leave();
            Flush::of(&self.appender, &self.queue).spawn(None, Some(FIRST_BACKOFF));
        }
    }
}

/// The outcomes of an append, or how it panicked.
pub(super) type Answers = Result<Vec<Result<i64>>, String>;

/// An append whose adapter may panic: that counts as an unknown effect, and doesn't block the queue. A future of its own,
/// since `sync::caught` around the call costs an allocation more.
struct Append(Pin<Box<dyn Future<Output = Vec<Result<i64>>> + Send>>);

impl Future for Append {
    type Output = Answers;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match catch_unwind(AssertUnwindSafe(|| self.0.as_mut().poll(cx))) {
            Ok(polled) => polled.map(Ok),
            Err(panicked) => {
                let message = panic_message(&*panicked).unwrap_or_default();
                Poll::Ready(Err(format!("it panicked: {message}")))
            }
        }
    }
}
