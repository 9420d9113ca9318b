//! A case: the check of one rule, and its context.

use crate::{
    Outage,
    check::{Checked, Failed},
    kit::Setup,
};
use futures_util::FutureExt;
use kafkaq_core::{Log, Retry, TopicInfo, TopicSpec};
use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::{Instant, sleep};

/// What a backend, or its test environment, may lack. See [`Kit::without`](crate::Kit::without).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Capability {
    /// A server that can be cut off. Missing until it is provided with [`Kit::with_outage`](crate::Kit::with_outage).
    Outage,
    /// Topics that can be deleted. Missing until it is provided with
    /// [`Kit::with_topic_deletion`](crate::Kit::with_topic_deletion).
    TopicDeletion,
    /// Two clients at once. Without it the cases run one after another.
    SecondClient,
    /// A log that keeps several headers with the same name, in order.
    RepeatedHeaders,
    /// A log that distinguishes a null header value from an empty one.
    NullHeaders,
    /// A log that limits the size of records per topic.
    RecordLimit,
}

type Run<T> = Box<dyn Fn(Arc<Context<T>>) -> Pin<Box<dyn Future<Output = Checked>>> + Send + Sync>;

/// One rule of the contract.
pub(crate) struct Case<T: ?Sized> {
    pub(crate) name: &'static str,
    pub(crate) needs: &'static [Capability],
    pub(crate) run: Run<T>,
}

/// `case!(path::of::function)`, or `case!(path::of::function, Needs)`: the function's name is the case's.
macro_rules! case {
    ($($module:ident)::* $(, $need:ident)*) => {
        $crate::case::Case {
            name: $crate::case::last_segment(stringify!($($module)::*)),
            needs: &[$($crate::Capability::$need),*],
            run: Box::new(|context| Box::pin(async move { $($module)::*(&context).await })),
        }
    };
}
pub(crate) use case;

pub(crate) fn last_segment(path: &'static str) -> &'static str {
    path.rsplit("::").next().unwrap_or(path).trim()
}

/// A name that no other case or run uses, so that they can share a server.
pub(crate) fn unique() -> String {
    // The system provides new keys for each call.
    format!("kit-{:016x}", RandomState::new().hash_one(0))
}

/// Names a member after something unique.
pub(crate) fn member(name: &str) -> [u8; 16] {
    u128::from(RandomState::new().hash_one(name)).to_be_bytes()
}

/// Drops a call at its first await, or a millisecond or two later, in turn.
pub(crate) async fn give_up(call: impl Future, turn: u64) {
    match turn % 3 {
        0 => drop(call.now_or_never()),
        millis => drop(tokio::time::timeout(Duration::from_millis(millis), call).await),
    }
}

/// The context of a case: clients that end with it, and names that nobody else uses.
pub(crate) struct Context<T: ?Sized> {
    setup: Arc<Setup<T>>,
    space: String,
    clients: Mutex<Vec<Arc<T>>>,
}

impl<T: ?Sized + Send + Sync + 'static> Context<T> {
    pub(crate) fn new(setup: Arc<Setup<T>>) -> Self {
        Context { setup, space: unique(), clients: Mutex::default() }
    }

    /// A new client of the backend.
    pub(crate) async fn client(&self) -> Checked<Arc<T>> {
        let made = tokio::time::timeout(self.setup.answers_within, (self.setup.make)()).await;
        let client = match made {
            Ok(Ok(client)) => client,
            Ok(Err(error)) => return Err(Failed(format!("no client could be created: {error}"))),
            Err(_) => return Err(Failed("no client could be created in time".into())),
        };
        self.clients.lock().unwrap_or_else(PoisonError::into_inner).push(client.clone());
        Ok(client)
    }

    /// Another client if two are possible, otherwise the same again.
    pub(crate) async fn other_client(&self, first: &Arc<T>) -> Checked<Arc<T>> {
        if self.setup.lacks(Capability::SecondClient) {
            return Ok(first.clone());
        }
        self.client().await
    }

    /// A name for what a case creates, unique to this run.
    pub(crate) fn space(&self) -> &str {
        &self.space
    }

    /// How long any one call may take.
    pub(crate) fn answers_within(&self) -> Duration {
        self.setup.answers_within
    }

    /// Creates a topic that a case needs. Timeouts of a busy server are retried, since the case isn't about them.
    pub(crate) async fn create_topic<L: Log + ?Sized>(
        &self,
        log: &L,
        spec: TopicSpec,
    ) -> Checked<Vec<TopicInfo>> {
        let until = Instant::now() + 2 * self.answers_within();
        loop {
            match log.ensure_topics(std::slice::from_ref(&spec)).await {
                Err(e) if e.retry() != Retry::No && Instant::now() < until => {
                    sleep(Duration::from_millis(100)).await;
                }
                outcome => return Ok(outcome?),
            }
        }
    }

    /// Waits for a future that must complete in time.
    pub(crate) async fn in_time<F: Future>(&self, what: impl fmt::Display, future: F) -> Checked<F::Output> {
        let limit = self.answers_within();
        let late = |_| Failed(format!("{what}: nothing within {limit:?}"));
        tokio::time::timeout(limit, future).await.map_err(late)
    }

    /// Deletes a topic, as an operator does.
    pub(crate) async fn delete_topic(&self, name: &str) -> Checked {
        let Some(delete) = &self.setup.delete_topic else {
            return Err(Failed("there is no way to delete a topic".into()));
        };
        let deleted = self.in_time("the deletion of a topic", delete(name.into())).await?;
        deleted.map_err(|error| Failed(format!("the topic could not be deleted: {error}")))
    }

    /// Returns the result of a call once the client has recovered from an outage.
    pub(crate) async fn recovered<R>(&self, mut call: impl AsyncFnMut() -> Checked<R>) -> Checked<R> {
        let limit = Instant::now() + 4 * self.answers_within();
        loop {
            match call().await {
                Err(Failed(why)) if Instant::now() > limit => {
                    return Err(Failed(format!("the server has recovered but the client hasn't: {why}")));
                }
                Err(_) => sleep(Duration::from_millis(100)).await,
                answered => return answered,
            }
        }
    }

    pub(crate) fn outage(&self) -> Checked<&dyn Outage> {
        self.setup.outage.as_deref().ok_or_else(|| Failed("there is no way to cut off the server".into()))
    }

    /// Closes every client of the case. The outcome of close is checked by its own cases.
    pub(crate) async fn end(&self) {
        if let Some(outage) = &self.setup.outage {
            let _ = outage.restore().await;
        }
        let clients = std::mem::take(&mut *self.clients.lock().unwrap_or_else(PoisonError::into_inner));
        for client in clients {
            let _ = tokio::time::timeout(self.setup.answers_within, (self.setup.close)(client)).await;
        }
    }
}
