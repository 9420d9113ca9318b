//! Sending what waits in a line, one request after the other, until it is empty.

use super::{
    Appender,
    line::{Line, Waiting},
};
use crate::driver::every_answer;
use kafkaq_core::{NewRecord, Result, Retry};
use std::{
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};
use tokio::time::sleep;

const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const LAST_BACKOFF: Duration = Duration::from_secs(1);

pub(super) struct Flush {
    appender: Arc<Appender>,
    line: Arc<Line>,
    backoff: Duration,
}

/// One request under way.
struct Request {
    batch: Vec<Waiting>,
    records: Arc<[NewRecord]>,
    append: Append,
    begun: Instant,
}

impl Flush {
    /// Begins to send what waits, unless there is nothing or somebody does so already. The first request begins on
    /// the caller's thread; what takes longer goes on in the background.
    pub(super) fn begin(appender: &Arc<Appender>, line: &Arc<Line>) {
        if !line.claim() {
            return;
        }
        let mut flush = Flush { appender: appender.clone(), line: line.clone(), backoff: FIRST_BACKOFF };
        let Some(mut request) = flush.next() else { return };
        match appender.runtime.poll_here(Pin::new(&mut request.append)) {
            Poll::Pending => appender.runtime.spawn(flush.run(Some(request), None)),
            Poll::Ready(answers) => {
                // Others may have pushed meanwhile. Whoever publishes isn't kept busy with their records.
                let pause = flush.settle(request, answers);
                if pause.is_some() || !flush.line.release_if_empty() {
                    appender.runtime.spawn(flush.run(None, pause));
                }
            }
        }
    }

    async fn run(mut self, begun: Option<Request>, pause: Option<Duration>) {
        let tick = self.appender.tick;
        let mut timer = pin!(sleep(tick));
        let (mut request, mut pause) = (begun, pause);
        loop {
            if let Some(pause) = pause.take() {
                let mut over = pin!(sleep(pause));
                while tokio::select! { () = &mut over => false, () = &mut timer => true } {
                    self.line.expire(Instant::now());
                    timer.set(sleep(tick));
                }
            }
            let Some(mut sent) = request.take().or_else(|| self.next()) else { return };
            let answers = loop {
                tokio::select! {
                    biased;
                    answers = &mut sent.append => break answers,
                    () = &mut timer => {
                        let now = Instant::now();
                        sent.expire(now);
                        self.line.expire(now);
                        timer.set(sleep(tick));
                    }
                }
            };
            pause = self.settle(sent, answers);
        }
    }

    /// The next request; without one, the line is idle.
    fn next(&self) -> Option<Request> {
        let mut batch = self.line.next_batch(Instant::now())?;
        let records: Arc<[_]> = batch.iter_mut().map(|w| std::mem::take(&mut w.record)).collect();
        let (log, partition, these) =
            (self.appender.log.clone(), self.line.partition.clone(), records.clone());
        let append = Append(Box::pin(async move { log.append(&partition, &these).await }));
        Some(Request { batch, records, append, begun: self.appender.counter.begun() })
    }

    /// Answers what is decided, and puts the rest back. Returns how long to wait then.
    fn settle(&mut self, request: Request, answers: Result<Vec<Result<i64>>, String>) -> Option<Duration> {
        let now = Instant::now();
        let (mut again, mut asked, mut failed) = (Vec::new(), None, 0);
        for ((waiting, answer), record) in
            request.batch.into_iter().zip(every_answer(answers)).zip(&*request.records)
        {
            let after = match &answer {
                Err(e) => {
                    failed += 1;
                    e.retry()
                }
                Ok(_) => Retry::No,
            };
            if let Some(mut waiting) = waiting.tried(answer, now) {
                if let Retry::After(pause) = after {
                    asked = asked.max(Some(pause.min(LAST_BACKOFF)));
                }
                waiting.record = record.clone();
                again.push(waiting);
            }
        }
        self.appender.counter.ended(request.begun, request.records.len(), failed);
        if again.is_empty() {
            self.backoff = FIRST_BACKOFF;
            return None;
        }
        self.line.put_back(again);
        let pause = asked.unwrap_or(self.backoff);
        self.backoff = (self.backoff * 2).min(LAST_BACKOFF);
        Some(pause)
    }
}

impl Request {
    /// Answers those whose time is up. What the log makes of them is not waited for, and not tried again.
    fn expire(&mut self, now: Instant) {
        self.batch.iter_mut().filter(|w| w.until <= now && !w.is_answered()).for_each(|w| w.expire(true));
    }
}

/// An append whose adapter may panic: that is an unknown effect and no stuck line.
struct Append(Pin<Box<dyn Future<Output = Vec<Result<i64>>> + Send>>);

impl Future for Append {
    type Output = Result<Vec<Result<i64>>, String>;

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
