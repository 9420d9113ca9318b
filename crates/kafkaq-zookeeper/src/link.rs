//! A slot for one session.

use crate::{
    builder::Settings,
    failure,
    session::{Cut, Item, Requests, Session},
};
use kafkaq_core::{
    Error, ErrorKind, Operation, Result,
    connection::{Call, Connect, SharedConnection, Up},
};
use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

pub(crate) struct Link {
    shared: SharedConnection<Sessions>,
}

/// How to open a session.
struct Sessions {
    settings: Arc<Settings>,
    /// The number of the link within the store. The first one sweeps old nodes.
    number: usize,
    /// The number of attempts so far.
    attempts: AtomicUsize,
}

impl Connect for Sessions {
    const OPERATION: Operation = Operation::read("connect to ZooKeeper");
    type Connection = Arc<Session>;

    async fn connect(&self, call: Call) -> Result<Arc<Session>> {
        let first = self.number.wrapping_add(self.attempts.fetch_add(1, Relaxed));
        let opened = Session::open(self.settings.clone(), first, self.number == 0, call.deadline()).await;
        opened
            .map(Arc::new)
            .map_err(|why| failure::not_connected(Self::OPERATION, &self.settings.address(), why))
    }

    /// The client library pings by itself, and a session whose connection breaks has ended.
    async fn ping(&self, _: &Arc<Session>, _: Call) -> Result<()> {
        Ok(())
    }

    fn is_lost(&self, session: &Arc<Session>) -> bool {
        session.is_lost()
    }

    fn server(&self, _: Option<&Arc<Session>>) -> String {
        failure::server(&self.settings.address())
    }
}

impl Link {
    pub(crate) fn new(settings: Arc<Settings>, number: usize) -> Self {
        let sessions = Sessions { settings, number, attempts: AtomicUsize::new(0) };
        Link { shared: SharedConnection::new(sessions) }
    }

    /// How many calls it has in flight.
    pub(crate) fn calls(&self) -> usize {
        self.shared.calls()
    }

    /// Returns one outcome per item, in the same order, within the request timeout. What certainly had no effect when
    /// its session was lost is retried once, in a new session.
    pub(crate) async fn each<Q, A, W, F>(&self, operation: Operation, asks: Vec<Q>, work: W) -> Vec<Result<A>>
    where
        Q: Send + Sync + 'static,
        A: Send + 'static,
        W: Fn(Arc<Requests>, Arc<Item<Q>>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Result<A>> + Send,
    {
        let call = Call::new(operation, self.shared.connect().settings.request_timeout);
        let items: Vec<_> = asks.into_iter().map(Item::new).collect();
        let open = async {
            let under_way = self.shared.begin(call)?;
            Ok::<_, Error>((self.shared.up(call).await?, under_way))
        };
        let (up, _under_way) = match open.await {
            Ok(opened) => opened,
            Err(e) => return items.iter().map(|_| Err(e.clone())).collect(),
        };
        let mut outcomes = self.try_each(call, &up, &items, work.clone()).await;
        let is_open = |outcome: &Result<A>| {
            outcome.as_ref().is_err_and(|e| is_broken(e.kind()) && self.shared.is_worth_another(call, &up, e))
        };
        let open: Vec<_> = (0..items.len()).filter(|&place| is_open(&outcomes[place])).collect();
        if open.is_empty() {
            return outcomes;
        }
        let left: Vec<_> = open.iter().map(|&place| items[place].clone()).collect();
        let again = match self.shared.up(call).await {
            Ok(up) => self.try_each(call, &up, &left, work).await,
            Err(e) => left.iter().map(|_| Err(e.clone())).collect(),
        };
        open.into_iter().zip(again).for_each(|(place, outcome)| outcomes[place] = outcome);
        outcomes
    }

    async fn try_each<Q, A, W, F>(
        &self,
        call: Call,
        up: &Up<Arc<Session>>,
        items: &[Arc<Item<Q>>],
        work: W,
    ) -> Vec<Result<A>>
    where
        Q: Send + Sync + 'static,
        A: Send + 'static,
        W: Fn(Arc<Requests>, Arc<Item<Q>>) -> F + Send + Sync + 'static,
        F: Future<Output = Result<A>> + Send,
    {
        let address = self.shared.connect().settings.address();
        let (outcomes, cut) = up.connection().each(call.deadline(), items, work).await;
        let unanswered = |item: &Item<Q>| match cut {
            Some(Cut::Late) => failure::timed_out(call, &address, item.is_sent()),
            Some(Cut::Lost) | None => failure::lost(call.operation, &address, item.is_sent()),
        };
        let told = outcomes.into_iter().zip(items);
        let outcomes: Vec<_> =
            told.map(|(outcome, item)| outcome.unwrap_or_else(|| Err(unanswered(item)))).collect();
        let broken =
            outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).find(|e| is_broken(e.kind()));
        match broken {
            // A slow server can't be told from one that has vanished behind an open connection.
            Some(error) => self.shared.leave(up, error),
            None => up.answered(),
        }
        outcomes
    }

    /// When it returns, calls in flight have ended, by their responses or their timeouts.
    pub(crate) async fn close(&self) {
        if let Some(session) = self.shared.close().await {
            session.close().await;
        }
    }
}

fn is_broken(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Unavailable | ErrorKind::Timeout)
}
