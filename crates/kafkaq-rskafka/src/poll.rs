//! Long polls: all fetches that wait at a broker share one request.
//!
//! A waiting request can't be changed, so a later fetch takes another connection. All requests end their wait at the
//! same instants, and a fetch that would not outlast the next wait returns then, too. So continuous readers soon share
//! one request: a broker without new records gets two requests per second.

use crate::{
    failure::Failure,
    home,
    protocol::fetch::{Fetch, Fetched, From},
    wire::Connections,
};
use kafkaq_core::lock;
use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    sync::{Notify, RwLock, oneshot, watch},
    time::{Instant, sleep, timeout},
};

/// The maximum number of requests in flight per broker.
const MAX_REQUESTS: usize = 4;
/// Waits end at multiples of this: the longest that a fetch waits to join a request.
const SLICE: Duration = Duration::from_millis(500);
/// A fetch that waits at least this long may end slightly earlier, with all the others.
const PATIENT: Duration = Duration::from_millis(450);
/// Readers that got records come back for more, and the next request waits for them, but no longer than this.
const GATHER_WINDOW: Duration = Duration::from_millis(1);
/// The pause between requests that a server answers at once with nothing; doubles each time.
const PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);
/// The maximum size of one response, unless a single fetch wants more.
const MAX_BYTES: usize = 16 << 20;
/// How many idle brokers are remembered.
const MAX_BROKERS: usize = 100;

pub(crate) struct LongPolls {
    brokers: Mutex<HashMap<Arc<str>, Arc<Broker>>>,
    shared: Arc<Shared>,
}

struct Shared {
    connections: Arc<Connections>,
    begin: Instant,
    /// Ends the requests when the handle is closed.
    closed: watch::Receiver<bool>,
    /// Read-locked by requests in flight, write-locked by close.
    calls: Arc<RwLock<()>>,
}

#[derive(Default)]
struct Broker {
    queue: Mutex<Queue>,
    gathered: Notify,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<PendingFetch>,
    /// In flight, or about to start.
    requests: usize,
    /// How many of them wait for returning readers.
    gathering: usize,
    expected: Vec<From>,
}

/// A pending fetch.
struct PendingFetch {
    from: From,
    until: Instant,
    /// It may wait for about a whole slice, and may end with one.
    is_patient: bool,
    /// It gets a request of its own.
    alone: bool,
    reply: oneshot::Sender<Result<Fetched, Failure>>,
}

impl LongPolls {
    pub(crate) fn new(
        connections: Arc<Connections>,
        closed: watch::Receiver<bool>,
        calls: Arc<RwLock<()>>,
    ) -> Self {
        let shared = Shared { connections, begin: Instant::now(), closed, calls };
        LongPolls { brokers: Mutex::default(), shared: Arc::new(shared) }
    }

    /// Waits for records of one partition, until there are some or the time is up.
    pub(crate) async fn fetch(
        &self,
        address: &Arc<str>,
        from: From,
        until: Instant,
        alone: bool,
    ) -> Result<Fetched, Failure> {
        let (reply, answer) = oneshot::channel();
        let broker = self.broker(address);
        let is_patient = until.saturating_duration_since(Instant::now()) >= PATIENT;
        if broker.queue(PendingFetch { from, until, is_patient, alone, reply }) {
            RequestLoop { shared: self.shared.clone(), address: address.clone(), broker }.spawn();
        }
        // A request ends with the runtime that it was spawned on.
        answer.await.unwrap_or_else(|_| Err(Failure::abandoned()))
    }

    fn broker(&self, address: &Arc<str>) -> Arc<Broker> {
        let mut brokers = lock(&self.brokers);
        if brokers.len() > MAX_BROKERS {
            brokers.retain(|_, broker| lock(&broker.queue).requests > 0);
        }
        brokers.entry(address.clone()).or_default().clone()
    }
}

impl Broker {
    /// Whether a request has to start for it.
    fn queue(&self, waiting: PendingFetch) -> bool {
        let mut queue = lock(&self.queue);
        if let Some(at) = queue.expected.iter().position(|from| from.is_same_partition(&waiting.from)) {
            queue.expected.swap_remove(at);
            if queue.expected.is_empty() {
                self.gathered.notify_waiters();
            }
        }
        if queue.waiting.len() == queue.waiting.capacity() {
            // Before it grows: a request, which would drop them too, may be far away.
            queue.waiting.retain(|waiting| !waiting.reply.is_closed());
        }
        queue.waiting.push_back(waiting);
        queue.gathering == 0 && queue.begins_request()
    }
}

impl Queue {
    /// Whether there is room for another request, which then starts.
    fn begins_request(&mut self) -> bool {
        let begins = self.requests < MAX_REQUESTS;
        self.requests += usize::from(begins);
        begins
    }

    /// The fetches of the next request.
    fn take(&mut self) -> Vec<PendingFetch> {
        let mut taken: Vec<PendingFetch> = Vec::new();
        let mut left = VecDeque::new();
        for waiting in self.waiting.drain(..) {
            if waiting.reply.is_closed() {
                // The caller is gone.
                continue;
            }
            // A server reads a partition once per request.
            let is_there = || taken.iter().any(|other| other.from.is_same_partition(&waiting.from));
            let fits = taken.first().is_none_or(|first| !first.alone && !waiting.alone) && !is_there();
            match fits {
                true => taken.push(waiting),
                false => left.push_back(waiting),
            }
        }
        self.waiting = left;
        taken
    }
}

/// Permission for one of the requests in flight.
struct RequestPermit {
    broker: Arc<Broker>,
    /// Not yet returned.
    is_held: bool,
}

impl Drop for RequestPermit {
    fn drop(&mut self) {
        if self.is_held {
            // The task was dropped, perhaps with its runtime: nobody must wait for it.
            let mut queue = lock(&self.broker.queue);
            queue.requests -= 1;
            queue.waiting.clear();
        }
    }
}

/// Counts a request loop among those that gather.
struct GatherGuard<'a>(&'a Broker);

impl<'a> GatherGuard<'a> {
    fn begin(broker: &'a Broker, expected: Vec<From>) -> Self {
        let mut queue = lock(&broker.queue);
        queue.gathering += 1;
        queue.expected.extend(expected);
        drop(queue);
        GatherGuard(broker)
    }
}

impl Drop for GatherGuard<'_> {
    fn drop(&mut self) {
        let mut queue = lock(&self.0.queue);
        queue.gathering -= 1;
        if queue.gathering == 0 {
            queue.expected.clear();
        }
    }
}

/// Sends one request after another, as long as somebody is waiting.
#[derive(Clone)]
struct RequestLoop {
    shared: Arc<Shared>,
    address: Arc<str>,
    broker: Arc<Broker>,
}

impl RequestLoop {
    fn spawn(self) {
        // Created here, so that the permit is returned even if the task never runs.
        let permit = RequestPermit { broker: self.broker.clone(), is_held: true };
        let mut closed = self.shared.closed.clone();
        let Ok(under_way) = self.shared.calls.clone().try_read_owned() else { return };
        home::spawn(async move {
            tokio::select! {
                () = self.run(permit) => {}
                _ = closed.wait_for(|closed| *closed) => {}
            }
            drop(under_way);
        });
    }

    async fn run(&self, mut permit: RequestPermit) {
        let mut pause = PAUSE;
        loop {
            let (taken, leaves_some) = {
                let mut queue = lock(&self.broker.queue);
                let taken = queue.take();
                if taken.is_empty() {
                    queue.requests -= 1;
                    permit.is_held = false;
                    return;
                }
                (taken, !queue.waiting.is_empty() && queue.begins_request())
            };
            if leaves_some {
                self.clone().spawn();
            }
            match self.request(taken).await {
                Outcome::Answered(to) => {
                    pause = PAUSE;
                    self.gather(to).await;
                }
                Outcome::TimedOut => pause = PAUSE,
                Outcome::EmptyAtOnce => {
                    sleep(pause).await;
                    pause = LONGEST_PAUSE.min(pause * 2);
                }
            }
        }
    }

    async fn gather(&self, expected: Vec<From>) {
        let gathered = self.broker.gathered.notified();
        let _gathering = GatherGuard::begin(&self.broker, expected);
        // If they don't come back, the request goes without them.
        let _ = timeout(GATHER_WINDOW, gathered).await;
    }

    async fn request(&self, fetches: Vec<PendingFetch>) -> Outcome {
        let began = Instant::now();
        let slice = Slice::of(self.shared.begin, began);
        let until = fetches.iter().map(|waiting| waiting.until).min().unwrap_or(began);
        let max_wait = until.min(slice.end).saturating_duration_since(began);
        let sizes = || fetches.iter().map(|waiting| waiting.from.max_bytes);
        let limit = MAX_BYTES.min(self.shared.connections.settings.max_fetch_bytes());
        let limit = i32::try_from(limit).unwrap_or(i32::MAX).max(sizes().max().unwrap_or_default());
        let request = Fetch {
            from: fetches.iter().map(|waiting| &waiting.from).collect(),
            max_wait,
            max_bytes: sizes().fold(0, i32::saturating_add).min(limit),
        };
        let deadline = began + max_wait + self.shared.connections.settings.request_timeout;
        match self.shared.connections.exchange(&self.address, &request, deadline).await {
            Ok(fetched) => {
                let in_time = began.elapsed() >= max_wait / 2;
                let answered = self.answer(fetches, fetched, &slice);
                match answered.is_empty() {
                    false => Outcome::Answered(answered),
                    true if in_time => Outcome::TimedOut,
                    true => Outcome::EmptyAtOnce,
                }
            }
            Err(failure) if failure.is_oversized() && fetches.len() > 1 => {
                // Separates them, to find out which one is at fault.
                let alone = fetches.into_iter().map(|waiting| PendingFetch { alone: true, ..waiting });
                lock(&self.broker.queue).waiting.extend(alone);
                Outcome::TimedOut
            }
            Err(failure) => {
                for waiting in fetches {
                    // The caller may be gone by now.
                    let _ = waiting.reply.send(Err(failure.clone()));
                }
                Outcome::Answered(Vec::new())
            }
        }
    }

    /// Distributes a response, and keeps fetches waiting that have time. Returns which were completed.
    fn answer(&self, fetches: Vec<PendingFetch>, fetched: Vec<Option<Fetched>>, slice: &Slice) -> Vec<From> {
        let now = Instant::now();
        let (mut behind, mut at_the_end, mut answered) = (Vec::new(), Vec::new(), Vec::new());
        for (waiting, fetched) in fetches.into_iter().zip(fetched) {
            let is_over = waiting.until <= now || waiting.is_patient && slice.is_last_of(waiting.until, now);
            match fetched {
                Some(empty) if empty.code == 0 && empty.records.is_empty() && !empty.is_cut && !is_over => {
                    let is_behind = empty.end > waiting.from.offset;
                    if is_behind { &mut behind } else { &mut at_the_end }.push(waiting);
                }
                fetched => {
                    let none = || Failure::unreadable("the response lacks the partition").unsent();
                    // The caller may be gone by now.
                    let _ = waiting.reply.send(fetched.ok_or_else(none));
                    answered.push(waiting.from);
                }
            }
        }
        let mut queue = lock(&self.broker.queue);
        // Those for which there was no room come first next time, and so get a whole batch.
        behind.into_iter().rev().for_each(|waiting| queue.waiting.push_front(waiting));
        queue.waiting.extend(at_the_end);
        answered
    }
}

/// The time between two instants at which all requests end.
struct Slice {
    end: Instant,
}

impl Slice {
    fn of(begin: Instant, now: Instant) -> Self {
        let slices = (now - begin).as_millis() / SLICE.as_millis() + 1;
        Slice { end: begin + SLICE * u32::try_from(slices).unwrap_or(u32::MAX) }
    }

    /// Whether this slice is over and the next one is too long.
    fn is_last_of(&self, until: Instant, now: Instant) -> bool {
        now >= self.end && until < self.end + SLICE
    }
}

/// The outcome of a request.
enum Outcome {
    /// It completed these fetches.
    Answered(Vec<From>),
    /// Nothing, and the wait is over.
    TimedOut,
    /// Nothing, although there was time.
    EmptyAtOnce,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fetches_that_nobody_waits_for_do_not_accumulate() {
        let broker = Broker::default();
        let fetch = |offset| {
            let from =
                From { topic: "t".into(), id: None, index: 0, offset, epoch_below: None, max_bytes: 1 };
            let (reply, answer) = oneshot::channel();
            let until = Instant::now();
            broker.queue(PendingFetch { from, until, is_patient: false, alone: false, reply });
            answer
        };
        let waiting: Vec<_> = (0..100).map(fetch).collect();
        // No request ends meanwhile.
        (100..100_000).for_each(|offset| drop(fetch(offset)));
        let mut queue = lock(&broker.queue);
        assert!(queue.waiting.len() < 1000, "{}", queue.waiting.len());
        queue.waiting.retain(|waiting| !waiting.reply.is_closed());
        assert_eq!(queue.waiting.len(), waiting.len());
    }
}
