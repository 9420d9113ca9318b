//! Appends: one idempotent producer for the process, one outcome per record. A second one compresses records that are
//! otherwise too large, and exists only once there was one.

use crate::{
    aside,
    doubt::Doubts,
    error,
    lost_brokers::{self, LostBrokers},
    offsets,
    polled::{Failed, Polled},
    settings,
    settings::Settings,
};
use kafkaq_core::{Effect, Error, ErrorKind, NewRecord, Partition, Result, Retry, lock};
use rdkafka::{
    ClientContext, Message, Statistics,
    config::{ClientConfig, RDKafkaLogLevel},
    error::KafkaError,
    message::{Header, OwnedHeaders},
    producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, PurgeConfig},
    types::RDKafkaErrorCode as Code,
};
use std::{
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::{Duration, UNIX_EPOCH},
};
use tokio::{sync::oneshot, time::Instant};

const APPEND: &str = "append";
/// The client's queue holds 100,000 records: when it is full, this long makes room for many.
const FULL: Duration = Duration::from_millis(5);

type Client = Polled<Reports>;

pub(crate) struct Appender {
    settings: Arc<Settings>,
    plain: ReplaceableProducer,
    /// A copy must fit where the record did, which another client may have compressed.
    compressing: ReplaceableProducer,
}

/// A producer, and its successors.
struct ReplaceableProducer {
    settings: Arc<Settings>,
    config: ClientConfig,
    client: RwLock<State>,
}

enum State {
    Unused,
    Open(Arc<Client>),
    Closed,
}

impl Appender {
    pub(crate) fn open(settings: Arc<Settings>) -> Result<Self> {
        let producer = |config| ReplaceableProducer {
            settings: settings.clone(),
            config,
            client: RwLock::new(State::Unused),
        };
        let (plain, compressing) = (producer(settings.producer()), producer(settings.compressing_producer()));
        plain.client()?;
        Ok(Appender { settings, plain, compressing })
    }

    pub(crate) fn check_open(&self, op: &'static str) -> Result<()> {
        match *self.plain.client.read().unwrap_or_else(PoisonError::into_inner) {
            State::Closed => Err(error::closed(op)),
            State::Unused | State::Open(_) => Ok(()),
        }
    }

    pub(crate) async fn append(&self, to: &Partition, records: &[NewRecord]) -> Vec<Result<i64>> {
        let deadline = Instant::now() + self.settings.request_timeout();
        let mut outcomes = self.plain.send(to, records.iter().enumerate(), records.len(), deadline).await;
        // A topic's limit applies to a whole batch on the wire, which is refused as a whole. What was refused is sent
        // again in smaller and smaller pieces, until only records are left that are too large by themselves.
        let mut share = records.len();
        while share > 1 && outcomes.iter().any(is_too_large) && Instant::now() < deadline {
            share = share.div_ceil(2);
            for chunk in too_large(&outcomes).chunks(share) {
                self.plain.send_again(to, records, chunk, deadline, &mut outcomes).await;
            }
        }
        let limit = self.settings.max_record_bytes();
        for i in too_large(&outcomes).into_iter().filter(|i| records[*i].size() < limit) {
            if Instant::now() >= deadline {
                break;
            }
            self.compressing.send_again(to, records, &[i], deadline, &mut outcomes).await;
        }
        outcomes
    }

    /// Sends what is queued, within the request timeout, and fails the rest.
    pub(crate) async fn close(&self) -> Result<()> {
        let (plain, compressing) = tokio::join!(self.plain.close(), self.compressing.close());
        plain.and(compressing)
    }
}

impl ReplaceableProducer {
    async fn send_again(
        &self,
        to: &Partition,
        records: &[NewRecord],
        which: &[usize],
        deadline: Instant,
        outcomes: &mut [Result<i64>],
    ) {
        let again = which.iter().map(|i| &records[*i]).enumerate();
        for (i, outcome) in which.iter().zip(self.send(to, again, which.len(), deadline).await) {
            // A refusal now doesn't undo an earlier attempt that may have succeeded.
            let in_doubt = outcomes[*i].as_ref().is_err_and(|before| before.effect() == Effect::Unknown);
            outcomes[*i] = if in_doubt { outcome.map_err(doubted) } else { outcome };
        }
    }

    /// Passes the records to the client and waits for its reports.
    async fn send(
        &self,
        to: &Partition,
        records: impl Iterator<Item = (usize, &NewRecord)> + Send,
        n: usize,
        deadline: Instant,
    ) -> Vec<Result<i64>> {
        if n == 0 {
            return Vec::new();
        }
        let client = match self.client() {
            Ok(client) => client,
            Err(e) => return vec![Err(e); n],
        };
        let context = client.client().context().clone();
        let (call, answered) = Call::open(n);
        // Whether the servers have the partition, once that was queried.
        let mut there = None;
        for (index, record) in records {
            let mut receipt =
                Box::new(Receipt { call: call.clone(), index, doubts: context.doubts.so_far() });
            loop {
                match self.enqueue(&client, to, record, receipt) {
                    Ok(()) => {
                        client.wake();
                        break;
                    }
                    Err((Code::QueueFull, back)) if Instant::now() < deadline => {
                        receipt = back;
                        tokio::time::sleep(FULL).await;
                    }
                    // The client refreshes the topic every few minutes; the partition may have been added since.
                    Err((Code::UnknownPartition, back)) => {
                        if there.is_none() {
                            there = Some(exists(&client, to, deadline).await);
                            if there == Some(Some(true)) {
                                receipt = back;
                                continue;
                            }
                        }
                        let is_missing = there == Some(Some(false));
                        let code = if is_missing { Code::UnknownPartition } else { Code::LeaderNotAvailable };
                        back.settle(Err(context.local(code)));
                        break;
                    }
                    Err((code, back)) => {
                        back.settle(Err(context.local(code)));
                        break;
                    }
                }
            }
        }
        // Closing waits for the outcomes, not for this handle.
        drop(client);
        let _ = tokio::time::timeout_at(deadline, answered).await;
        call.outcomes(&context.overdue())
    }

    /// The producer, or a new one if it has failed permanently.
    fn client(&self) -> Result<Arc<Client>> {
        if let State::Open(client) = &*self.client.read().unwrap_or_else(PoisonError::into_inner)
            && is_lost(client).is_none()
        {
            return Ok(client.clone());
        }
        let mut state = self.client.write().unwrap_or_else(PoisonError::into_inner);
        match &*state {
            State::Closed => return Err(error::closed(APPEND)),
            State::Unused => {}
            State::Open(client) => match is_lost(client) {
                None => return Ok(client.clone()),
                Some(reason) => tracing::warn!(
                    reason,
                    "the producer has failed permanently; starting \
                                                        another"
                ),
            },
        }
        let client = Arc::new(connect(&self.settings, &self.config)?);
        if let State::Open(lost) = std::mem::replace(&mut *state, State::Open(client.clone())) {
            retire(lost);
        }
        Ok(client)
    }

    fn enqueue(
        &self,
        client: &Client,
        to: &Partition,
        record: &NewRecord,
        receipt: Box<Receipt>,
    ) -> Result<(), (Code, Box<Receipt>)> {
        let Ok(headers) = headers(record) else { return Err((Code::InvalidArgument, receipt)) };
        let timestamp = record
            .timestamp
            .and_then(|t| t.duration_since(UNIX_EPOCH).ok())
            .and_then(|d| i64::try_from(d.as_millis()).ok());
        let new = BaseRecord::<[u8], [u8], _> {
            topic: &to.topic,
            partition: Some(to.index),
            payload: record.value.as_deref(),
            key: record.key.as_deref(),
            timestamp,
            headers,
            delivery_opaque: receipt,
        };
        client.send(new).map_err(|(e, new)| (error::code_of(&e), new.delivery_opaque))
    }

    async fn close(&self) -> Result<()> {
        let closed = State::Closed;
        let state =
            std::mem::replace(&mut *self.client.write().unwrap_or_else(PoisonError::into_inner), closed);
        let State::Open(client) = state else { return Ok(()) };
        let limit = self.settings.request_timeout();
        let flushed = tokio::task::spawn_blocking(move || {
            client.poll_alone();
            let flushed = client.flush(limit);
            client.purge(PurgeConfig::default().queue().inflight());
            let _ = client.flush(Duration::from_millis(500));
            flushed
        });
        match flushed.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(e)) => {
                Err(error::uncertain(error::code_of(&e), "flush at close", self.settings.bootstrap()))
            }
            Err(e) => Err(Error::unknown(ErrorKind::Other, "flush at close").with_source(e)),
        }
    }
}

/// Dropping a producer joins its thread, which takes up to 0.1 s: never on a thread that runs tasks.
impl Drop for ReplaceableProducer {
    fn drop(&mut self) {
        let state = self.client.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let State::Open(client) = std::mem::replace(state, State::Closed) {
            retire(client);
        }
    }
}

fn retire(client: Arc<Client>) {
    aside(client);
}

fn connect(settings: &Arc<Settings>, config: &ClientConfig) -> Result<Client> {
    let context = Reports {
        settings: settings.clone(),
        shows_debug: settings.shows_debug(),
        lost_brokers: LostBrokers::default(),
        doubts: Doubts::default(),
    };
    Client::open(config, context).map_err(|failed| match failed {
        Failed::Client(e) => settings::broken(&e),
        Failed::Thread(e) => Error::not_applied(ErrorKind::Other, "start the producer").with_source(e),
    })
}

/// Returns the same error for an append that an earlier attempt may have made.
fn doubted(error: Error) -> Error {
    match error.effect() {
        Effect::Unknown => error,
        _ => Error::unknown(error.kind(), APPEND).with_retry(error.retry()).with_source(error),
    }
}

fn is_too_large(outcome: &Result<i64>) -> bool {
    matches!(outcome, Err(e) if e.kind() == ErrorKind::TooLarge)
}

fn too_large(outcomes: &[Result<i64>]) -> Vec<usize> {
    (0..outcomes.len()).filter(|i| is_too_large(&outcomes[*i])).collect()
}

/// The headers in the client's form; `Err` for a name that it doesn't support.
fn headers(record: &NewRecord) -> Result<Option<OwnedHeaders>, ()> {
    if record.headers.is_empty() {
        return Ok(None);
    }
    let mut out = OwnedHeaders::new_with_capacity(record.headers.len());
    for (name, value) in record.headers.iter() {
        let key = std::str::from_utf8(name).map_err(|_| ())?;
        if key.contains('\0') {
            return Err(());
        }
        out = out.insert(Header { key, value: value.map(|v| &v[..]) });
    }
    Ok(Some(out))
}

/// Checks whether the servers have the partition, which also refreshes the client; `None` if none responds.
async fn exists(client: &Arc<Client>, of: &Partition, deadline: Instant) -> Option<bool> {
    let (client, of) = (client.clone(), of.clone());
    let limit = deadline.saturating_duration_since(Instant::now()).min(Duration::from_secs(5));
    let look = move || {
        let found = client.client().fetch_metadata(Some(&of.topic), limit).ok();
        offsets::exists(found.as_ref(), &of.topic, of.index)
    };
    tokio::task::spawn_blocking(look).await.ok().flatten()
}

/// Why it can no longer append.
fn is_lost(client: &Client) -> Option<String> {
    let fatal = client.client().fatal_error().map(|(code, reason)| format!("{code}: {reason}"));
    let lost_brokers =
        || client.client().context().lost_brokers.is_certain().then(|| lost_brokers::WHY.into());
    fatal.or_else(lost_brokers)
}

/// The producer's context: receives the delivery reports.
struct Reports {
    settings: Arc<Settings>,
    shows_debug: bool,
    lost_brokers: LostBrokers,
    doubts: Doubts,
}

impl Reports {
    /// Refused by the client: never queued.
    fn local(&self, code: Code) -> Error {
        let e = error::rejected(code, APPEND, self.settings.bootstrap());
        match code {
            Code::InvalidArgument => e.with_advice("The names of headers must be UTF-8 without NUL"),
            Code::QueueFull => e.with_advice(
                "The client's queue stayed full: the server accepts less than is appended; publish more \
                 slowly, or raise `queue.buffering.max.messages` and `queue.buffering.max.kbytes`",
            ),
            // It has failed permanently; the next call gets a new one.
            Code::Fatal => e.with_retry(Retry::Yes),
            _ => e,
        }
    }

    /// The client's report on a record that was queued. `may_be_there`: an earlier attempt may have appended it.
    fn reported(&self, code: Code, may_be_there: bool) -> Error {
        let bootstrap = self.settings.bootstrap();
        match code {
            Code::MessageTimedOut => self.overdue(),
            // Its producer was replaced. It may have been sent, and an earlier attempt may have succeeded.
            Code::PurgeQueue | Code::PurgeInflight => Error::unknown(ErrorKind::Unavailable, APPEND)
                .with_source("the producer failed before it was acknowledged"),
            _ if may_be_there => error::uncertain(code, APPEND, bootstrap),
            // A permanent error of the server, or of the client before anything was sent.
            Code::MessageSizeTooLarge
            | Code::MessageBatchTooLarge
            | Code::InvalidMessageSize
            | Code::UnknownTopic
            | Code::UnknownPartition
            | Code::UnknownTopicOrPartition
            | Code::InvalidTopic
            | Code::TopicAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::InvalidRecord
            | Code::InvalidTimestamp
            | Code::InvalidMessage
            | Code::UnsupportedCompressionType
            | Code::UnsupportedForMessageFormat
            | Code::PolicyViolation => error::rejected(code, APPEND, bootstrap),
            _ => error::uncertain(code, APPEND, bootstrap),
        }
    }

    /// No report in time. The client doesn't say whether the record was sent, so it may have been.
    fn overdue(&self) -> Error {
        let e = error::overdue(&self.settings, "No acknowledgement", |kind| Error::unknown(kind, APPEND));
        match (e.kind(), e.advice()) {
            (ErrorKind::Timeout, Some(advice)) => {
                let advice = format!("{advice}, and that the topic has enough in-sync replicas");
                e.with_advice(advice)
            }
            _ => e,
        }
    }
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        self.doubts.log(facility, line);
        if self.shows_debug || !matches!(level, RDKafkaLogLevel::Debug) {
            self.settings.connection_errors().log(level, facility, line);
        }
    }

    fn stats(&self, statistics: Statistics) {
        self.settings.connection_errors().look_at(&statistics);
        self.lost_brokers.look_at(&statistics);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.settings.connection_errors().note(&error, reason);
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = Box<Receipt>;

    fn delivery(&self, result: &DeliveryResult<'_>, receipt: Box<Receipt>) {
        if result.is_ok() {
            self.settings.connection_errors().is_over();
        }
        receipt.settle(match result {
            Ok(message) if message.offset() >= 0 => Ok(message.offset()),
            // A repeated request whose offset the server no longer knows: the record was appended, but at an unknown
            // offset.
            Ok(_) => Err(Error::unknown(ErrorKind::Unavailable, APPEND)
                .with_source("appended, but the server did not say where")),
            Err((e, _)) => {
                let may_be_there = self.doubts.so_far() != receipt.doubts;
                Err(self.reported(error::code_of(e), may_be_there))
            }
        });
    }
}

/// Where a record's report goes.
struct Receipt {
    call: Arc<Call>,
    index: usize,
    /// The client's count of doubts before it got the record.
    doubts: u64,
}

impl Receipt {
    fn settle(&self, outcome: Result<i64>) {
        self.call.settle(self.index, outcome);
    }
}

/// The outcomes of one call, as they arrive.
struct Call(Mutex<Outcomes>);

struct Outcomes {
    of: Vec<Option<Result<i64>>>,
    missing: usize,
    all_in: Option<oneshot::Sender<()>>,
}

impl Call {
    fn open(records: usize) -> (Arc<Self>, oneshot::Receiver<()>) {
        let (tx, rx) = oneshot::channel();
        let of = (0..records).map(|_| None).collect();
        (Arc::new(Call(Mutex::new(Outcomes { of, missing: records, all_in: Some(tx) }))), rx)
    }

    fn settle(&self, index: usize, outcome: Result<i64>) {
        let mut outcomes = lock(&self.0);
        if let Some(slot @ None) = outcomes.of.get_mut(index) {
            *slot = Some(outcome);
            outcomes.missing -= 1;
        }
        if outcomes.missing == 0
            && let Some(all_in) = outcomes.all_in.take()
        {
            let _ = all_in.send(());
        }
    }

    fn outcomes(&self, missing: &Error) -> Vec<Result<i64>> {
        let of = std::mem::take(&mut lock(&self.0).of);
        of.into_iter().map(|o| o.unwrap_or_else(|| Err(missing.clone()))).collect()
    }
}
