//! Reads without a group: one thread and a few consumers, which are assigned the partitions that are being read.
//!
//! ```text
//!   fetch ── Request ──> inbox ──> Lane (a consumer) ──> Cursor (a partition at an offset) ── Found ──> fetch
//! ```
//! A consumer can have a partition only once, so readers at different offsets of one partition take one lane each. An
//! unused cursor is dropped after [`lane::LINGER`]; the thread and its consumers end after [`IDLE`].

use crate::{
    aside, error, fetch::Ends, lane, lane::Lane, lost_brokers::LostBrokers, settings, settings::Settings,
};
use kafkaq_core::{Error, ErrorKind, Partition, Record, Result, lock};
use rdkafka::{
    ClientContext, Statistics,
    config::{FromClientConfigAndContext, RDKafkaLogLevel},
    consumer::{BaseConsumer, Consumer as _, ConsumerContext},
    error::KafkaError,
};
use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    thread::{self, Thread},
    time::{Duration, Instant},
};
use tokio::sync::{oneshot, watch};

pub(crate) const FETCH: &str = "fetch";
/// After this long without a fetch, the consumers are closed and the thread ends.
const IDLE: Duration = Duration::from_secs(30);
/// How often a queue is checked that somebody waits for: its notification can get lost.
pub(crate) const SWEEP: Duration = Duration::from_millis(250);
/// How many offsets of one partition can be fetched concurrently, per kind of lane.
const LANES: usize = 4;
/// A fetch of up to this many bytes reads nothing ahead.
const SMALL: usize = 16 * 1024;
/// How much is read ahead for a larger one, in KiB.
const READAHEAD: usize = 1024;

pub(crate) type Client = BaseConsumer<Callbacks>;

/// The consumers' context.
pub(crate) struct Callbacks {
    settings: Arc<Settings>,
    /// Counts callbacks: a poll that returned nothing may still have consumed something from the queue.
    pub(crate) served: AtomicU64,
    /// The text of the last error event. The poller takes it from here.
    pub(crate) reason: Mutex<String>,
    pub(crate) lost_brokers: LostBrokers,
}

impl ClientContext for Callbacks {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        self.served.fetch_add(1, SeqCst);
        self.settings.connection_errors().log(level, facility, line);
    }

    fn stats(&self, statistics: Statistics) {
        self.served.fetch_add(1, SeqCst);
        self.settings.connection_errors().look_at(&statistics);
        self.lost_brokers.look_at(&statistics);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.served.fetch_add(1, SeqCst);
        *lock(&self.reason) = reason.to_owned();
        self.settings.connection_errors().note(&error, reason);
    }
}

impl ConsumerContext for Callbacks {}

/// One fetch.
pub(crate) struct Request {
    pub(crate) partition: Partition,
    pub(crate) offset: i64,
    pub(crate) max_bytes: usize,
    /// Read from the log and not from what was read ahead, so that the result is newer than the request.
    pub(crate) bypass_read_ahead: bool,
    /// When it returns if the partition has shown no sign of life.
    pub(crate) doubt: Instant,
    /// When it returns if there is nothing to read.
    pub(crate) until: Instant,
    /// When it returns in any case.
    pub(crate) last: Instant,
    pub(crate) answer: oneshot::Sender<Result<Found>>,
}

impl Request {
    /// When it returns if no record arrives.
    pub(crate) fn due(&self, is_alive: bool, at_end: bool) -> Instant {
        match (is_alive, at_end) {
            (_, true) => self.until,
            (true, false) => self.last,
            (false, false) => self.doubt.min(self.last),
        }
    }

    /// The receiver may be gone.
    pub(crate) fn answer(self, found: Result<Found>) {
        let _ = self.answer.send(found);
    }
}

/// What was found at an offset.
#[derive(Clone)]
pub(crate) enum Found {
    Records(Vec<Record>),
    /// The end of the log was reached without a record.
    Nothing,
    /// There was no response yet: the partition may not exist.
    Silence,
    /// The offset is not within the log.
    OutOfRange,
}

/// The handle. It starts the thread when it is needed.
pub(crate) struct Reader {
    pub(crate) settings: Arc<Settings>,
    pub(crate) ends: Ends,
    inbox: Arc<Inbox>,
}

struct Inbox {
    state: Mutex<State>,
    /// How many threads and calls still use a consumer.
    active: watch::Sender<usize>,
}

struct State {
    requests: VecDeque<Request>,
    /// The thread that takes them, and serves all consumers.
    thread: Option<Thread>,
    /// Serves offset queries, and is the first lane of small fetches.
    client: Option<Arc<Client>>,
    /// When it was last used.
    used: Instant,
    /// The consumers are to be replaced.
    renew: bool,
    closed: bool,
}

/// Counts as active while it lives.
pub(crate) struct Active(Arc<Inbox>);

impl Active {
    fn new(inbox: &Arc<Inbox>) -> Self {
        inbox.active.send_modify(|n| *n += 1);
        Active(inbox.clone())
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.active.send_modify(|n| *n -= 1);
    }
}

impl Reader {
    pub(crate) fn new(settings: Arc<Settings>) -> Self {
        let state = State {
            requests: VecDeque::new(),
            thread: None,
            client: None,
            used: Instant::now(),
            renew: false,
            closed: false,
        };
        let inbox = Arc::new(Inbox { state: Mutex::new(state), active: watch::Sender::new(0) });
        Reader { settings, ends: Ends::default(), inbox }
    }

    /// Passes a request to the thread, which always completes it.
    pub(crate) fn send(&self, request: Request) -> Result<()> {
        let mut state = lock(&self.inbox.state);
        let thread = self.started(&mut state, FETCH)?;
        state.requests.push_back(request);
        thread.unpark();
        Ok(())
    }

    /// Replaces the consumers: their metadata of a topic can be permanently stale. librdkafka considers the leader of a
    /// recreated topic outdated, because its epochs start over, and never reads it.
    pub(crate) fn renew(&self) {
        let mut state = lock(&self.inbox.state);
        state.renew = true;
        if let Some(thread) = &state.thread {
            thread.unpark();
        }
    }

    /// A consumer for offset queries. Its holder may block, and drops it before `Active`.
    pub(crate) fn client(&self, op: &'static str) -> Result<(Arc<Client>, Active)> {
        let mut state = lock(&self.inbox.state);
        let thread = self.started(&mut state, op)?;
        let client = match &state.client {
            Some(client) => client.clone(),
            None => state.client.insert(connect(&self.settings, 0, thread)?).clone(),
        };
        Ok((client, Active::new(&self.inbox)))
    }

    pub(crate) fn overdue(&self, op: &'static str) -> Error {
        error::no_answer(op, &self.settings)
    }

    /// The error of a failed query. It had no effect.
    pub(crate) fn refused(&self, op: &'static str, e: &KafkaError) -> Error {
        let code = error::code_of(e);
        match error::kind(code) {
            ErrorKind::Unavailable | ErrorKind::Timeout => self.overdue(op),
            _ => error::rejected(code, op, self.settings.bootstrap()),
        }
    }

    fn started(&self, state: &mut State, op: &'static str) -> Result<Thread> {
        if state.closed {
            return Err(error::closed(op));
        }
        state.used = Instant::now();
        if let Some(thread) = &state.thread {
            return Ok(thread.clone());
        }
        let lanes = Lanes {
            settings: self.settings.clone(),
            inbox: self.inbox.clone(),
            lanes: Vec::new(),
            unplaced: VecDeque::new(),
            swept: Instant::now(),
        };
        let active = Active::new(&self.inbox);
        let work = move || {
            lanes.run();
            drop(active);
        };
        let failed = |e| Error::not_applied(ErrorKind::Other, op).with_source(e);
        let thread = thread::Builder::new().name("kafkaq-read".into()).spawn(work).map_err(failed)?;
        Ok(state.thread.insert(thread.thread().clone()).clone())
    }

    pub(crate) async fn close(&self) -> Result<()> {
        self.end();
        let mut active = self.inbox.active.subscribe();
        match tokio::time::timeout(self.settings.request_timeout(), active.wait_for(|n| *n == 0)).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::unknown(ErrorKind::Timeout, "close")
                .with_advice("The consumers that read without a group continue to close in the background")),
        }
    }

    fn end(&self) {
        let mut state = lock(&self.inbox.state);
        state.closed = true;
        if let Some(thread) = &state.thread {
            thread.unpark();
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.end();
    }
}

fn connect(settings: &Arc<Settings>, readahead: usize, thread: Thread) -> Result<Arc<Client>> {
    let context = Callbacks {
        settings: settings.clone(),
        served: AtomicU64::new(0),
        reason: Mutex::default(),
        lost_brokers: LostBrokers::default(),
    };
    let mut client = Client::from_config_and_context(&settings.reader(readahead), context)
        .map_err(|e| settings::broken(&e))?;
    client.set_nonempty_callback(move || thread.unpark());
    Ok(Arc::new(client))
}

/// The state of the thread.
struct Lanes {
    settings: Arc<Settings>,
    inbox: Arc<Inbox>,
    lanes: Vec<Lane>,
    /// Requests whose partition is busy in every lane.
    unplaced: VecDeque<Request>,
    swept: Instant,
}

impl Lanes {
    fn run(mut self) {
        loop {
            let wait = self.turn();
            {
                let mut state = lock(&self.inbox.state);
                if state.closed || self.is_idle(&state) {
                    state.thread = None;
                    let client = state.client.take();
                    self.unplaced.append(&mut state.requests);
                    drop(state);
                    self.unplaced.drain(..).for_each(|r| r.answer(Err(error::closed(FETCH))));
                    self.lanes.iter_mut().for_each(Lane::end);
                    drop(client);
                    return;
                }
                if !state.requests.is_empty() {
                    continue;
                }
            }
            thread::park_timeout(wait);
        }
    }

    fn is_idle(&self, state: &State) -> bool {
        let waiting = !state.requests.is_empty() || !self.unplaced.is_empty();
        !waiting && self.lanes.is_empty() && state.used.elapsed() >= IDLE
    }

    /// Does the work that is due. Returns how long there will be none.
    fn turn(&mut self) -> Duration {
        let (requests, client, over) = {
            let mut state = lock(&self.inbox.state);
            let all = std::mem::take(&mut state.renew);
            let is_over = |client: &Client| all || client.context().lost_brokers.is_certain();
            let over = state.client.take_if(|client| is_over(client));
            self.lanes.iter_mut().for_each(|lane| lane.is_retired |= is_over(lane.client()));
            (std::mem::take(&mut state.requests), state.client.clone(), over)
        };
        // Closing a consumer can take long, or never end.
        over.map(aside);
        if let Some(client) = client {
            lane::serve_main_queue(&client);
        }
        for request in std::mem::take(&mut self.unplaced).into_iter().chain(requests) {
            self.place(request);
        }
        let now = Instant::now();
        let sweep = now.duration_since(self.swept) >= SWEEP;
        if sweep {
            self.swept = now;
        }
        let overdue = || error::no_answer(FETCH, &self.settings);
        let mut wait = IDLE;
        for lane in &mut self.lanes {
            wait = wait.min(lane.serve(now, sweep, &overdue));
        }
        for lane in self.lanes.extract_if(.., |lane| lane.is_unused_since(IDLE) || lane.is_over()) {
            aside((lane, Active::new(&self.inbox)));
        }
        if !self.unplaced.is_empty() {
            wait = wait.min(SWEEP);
        }
        wait
    }

    fn place(&mut self, request: Request) {
        if request.answer.is_closed() {
            return;
        }
        if Instant::now() >= request.last {
            return request.answer(Err(Error::not_applied(ErrorKind::Throttled, FETCH).with_advice(
                format!(
                    "More than {LANES} readers are at different offsets of this partition: read with fewer"
                ),
            )));
        }
        let readahead = if request.max_bytes <= SMALL { 0 } else { READAHEAD };
        let of_kind = |lane: &Lane| lane.readahead == readahead && !lane.is_retired;
        let is_contiguous = self.lanes.iter().position(|lane| of_kind(lane) && lane.is_contiguous(&request));
        let is_free = |lane: &Lane| of_kind(lane) && !lane.is_busy(&request.partition);
        match is_contiguous.or_else(|| self.lanes.iter().position(is_free)) {
            Some(at) => self.lanes[at].take(request),
            None if self.lanes.iter().filter(|lane| of_kind(lane)).count() >= LANES => {
                self.unplaced.push_back(request);
            }
            None => match self.open(readahead) {
                Ok(client) => {
                    let mut lane = Lane::new(client, readahead, self.settings.clone());
                    lane.take(request);
                    self.lanes.push(lane);
                }
                Err(e) => request.answer(Err(e)),
            },
        }
    }

    fn open(&self, readahead: usize) -> Result<Arc<Client>> {
        let connect = || connect(&self.settings, readahead, thread::current());
        if readahead > 0 || self.lanes.iter().any(|lane| lane.readahead == 0 && !lane.is_retired) {
            return connect();
        }
        let mut state = lock(&self.inbox.state);
        match &state.client {
            Some(client) => Ok(client.clone()),
            None => Ok(state.client.insert(connect()?).clone()),
        }
    }
}
