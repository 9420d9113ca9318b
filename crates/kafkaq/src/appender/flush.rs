//! Sending what waits in a line, one request after the other, until it is empty.

use super::{Appender, line::Line};
use kafkaq_core::Result;
use std::{
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};
use tokio::time::sleep;

const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const LAST_BACKOFF: Duration = Duration::from_secs(1);

/// Whoever has claimed a line. If it is dropped, because its runtime is, it hands the line on.
pub(super) struct Flush {
    appender: Arc<Appender>,
    line: Arc<Line>,
    backoff: Duration,
    claims: bool,
}

/// One request under way.
struct Request {
    append: Append,
    records: usize,
    begun: Instant,
}

impl Flush {
    /// Begins to send what waits in a line, unless there is nothing or somebody does so already. If the caller has more to
    /// do, another thread builds the request where there is one; otherwise it begins on the caller's. What takes
    /// longer goes on in the background.
    pub(super) fn begin(appender: &Arc<Appender>, line: &Arc<Line>, more_to_do: bool) {
        if !line.claim() {
            return;
        }
        if more_to_do && appender.home.has_threads() {
            appender.lines.keep_time(&appender.home);
            return appender.home.spawn(Flush::of(appender, line).run(None, None));
        }
        let mut flush = Flush::of(appender, line);
        let Some(mut request) = flush.next() else { return };
        match appender.home.poll_here(Pin::new(&mut request.append)) {
            Poll::Pending => {
                appender.lines.keep_time(&appender.home);
                appender.home.spawn(flush.run(Some(request), None));
            }
            Poll::Ready(answers) => {
                // Others may have pushed meanwhile. Whoever publishes isn't kept busy with their records.
                let pause = flush.settle(&request, answers);
                if pause.is_none() && line.release_if_empty() {
                    flush.claims = false;
                } else {
                    appender.lines.keep_time(&appender.home);
                    appender.home.spawn(flush.run(None, pause));
                }
            }
        }
    }

    fn of(appender: &Arc<Appender>, line: &Arc<Line>) -> Self {
        Flush { appender: appender.clone(), line: line.clone(), backoff: FIRST_BACKOFF, claims: true }
    }

    async fn run(mut self, begun: Option<Request>, pause: Option<Duration>) {
        let (mut request, mut pause) = (begun, pause);
        loop {
            if let Some(pause) = pause.take() {
                sleep(pause).await;
            }
            let Some(mut sent) = request.take().or_else(|| self.next()) else { return };
            let answers = (&mut sent.append).await;
            pause = self.settle(&sent, answers);
        }
    }

    /// The next request; without one, the line is idle.
    fn next(&mut self) -> Option<Request> {
        let Some(records) = self.line.next_batch(Instant::now()) else {
            self.claims = false;
            return None;
        };
        let (log, partition, count) = (self.appender.log.clone(), self.line.partition.clone(), records.len());
        let append = Append(Box::pin(async move { log.append(&partition, &records).await }));
        Some(Request { append, records: count, begun: self.appender.counter.begun() })
    }

    /// Answers what is decided, and puts the rest back. Returns how long to wait then.
    fn settle(&mut self, request: &Request, answers: Answers) -> Option<Duration> {
        let settled = self.line.settle(answers, Instant::now());
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
        if self.claims {
            self.line.put_back_sent();
            self.appender.home.leave();
            let flush = Flush::of(&self.appender, &self.line);
            self.appender.home.spawn(flush.run(None, Some(FIRST_BACKOFF)));
        }
    }
}

/// The outcomes of an append, or how it panicked.
pub(super) type Answers = Result<Vec<Result<i64>>, String>;

/// An append whose adapter may panic: that is an unknown effect and no stuck line.
struct Append(Pin<Box<dyn Future<Output = Vec<Result<i64>>> + Send>>);

impl Future for Append {
    type Output = Answers;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match catch_unwind(AssertUnwindSafe(|| self.0.as_mut().poll(cx))) {
            Ok(polled) => polled.map(Ok),
            Err(panic) => {
                let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
                let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
                Poll::Ready(Err(format!("it panicked: {}", text.unwrap_or_default())))
            }
        }
    }
}
