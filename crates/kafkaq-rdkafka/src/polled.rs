//! A producer with a thread that polls it while something is in flight. rdkafka's own polling thread polls ten times
//! per second forever, busy-waiting for the last millisecond of each.

use rdkafka::{
    config::{ClientConfig, FromClientConfigAndContext},
    error::KafkaError,
    producer::{BaseProducer, Producer, ProducerContext},
};
use std::{
    io,
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// How long it polls at a time while something is in flight; events don't end the wait, but are passed on at once.
const BUSY: Duration = Duration::from_millis(100);
/// How often it polls for logs and errors while nothing is in flight.
const IDLE: Duration = Duration::from_secs(5);

pub(crate) struct Polled<C: ProducerContext + 'static> {
    producer: Arc<BaseProducer<C>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Why it could not be created.
pub(crate) enum Failed {
    Client(KafkaError),
    Thread(io::Error),
}

impl<C: ProducerContext + 'static> Polled<C> {
    pub(crate) fn open(config: &ClientConfig, context: C) -> Result<Self, Failed> {
        let producer = BaseProducer::from_config_and_context(config, context).map_err(Failed::Client)?;
        let (producer, stop) = (Arc::new(producer), Arc::new(AtomicBool::new(false)));
        let (polled, stopping) = (producer.clone(), stop.clone());
        let poll = move || {
            // With a timeout, the last millisecond of a poll is busy-waiting.
            let mut wait = Duration::ZERO;
            while !stopping.load(SeqCst) {
                // Unprocessed events, and records without a report.
                while polled.in_flight_count() > 0 && !stopping.load(SeqCst) {
                    polled.poll(wait);
                    wait = BUSY;
                }
                wait = Duration::ZERO;
                thread::park_timeout(IDLE);
            }
        };
        let thread =
            thread::Builder::new().name("kafkaq-append".into()).spawn(poll).map_err(Failed::Thread)?;
        Ok(Polled { producer, stop, thread: Some(thread) })
    }

    /// Ends the thread, so that the caller alone polls. Blocks for up to a tenth of a second.
    pub(crate) fn poll_alone(&self) {
        self.stop.store(true, SeqCst);
        self.wake();
        while self.thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Wakes the thread after something was sent.
    pub(crate) fn wake(&self) {
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }
}

impl<C: ProducerContext + 'static> Deref for Polled<C> {
    type Target = BaseProducer<C>;

    fn deref(&self) -> &BaseProducer<C> {
        &self.producer
    }
}

/// Waits for the thread to end.
impl<C: ProducerContext + 'static> Drop for Polled<C> {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
        self.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
