//! Backend calls in flight.

use crate::stats::CallCounter;
use kafkaq_core::{Error, ErrorKind, Result};
use std::{
    fmt,
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};
use tokio::task::JoinHandle;

/// Calls of one kind: a bounded number, each in its own task, so that encoding runs on another core and a panic of an
/// adapter is an unknown effect instead of a lost outcome. `K` identifies one item of a call.
#[derive(Debug)]
pub(crate) struct Calls<K, T> {
    under_way: Vec<Call<K, T>>,
    limit: usize,
    counter: Arc<CallCounter>,
}

#[derive(Debug)]
struct Call<K, T> {
    names: Vec<K>,
    begun: Instant,
    task: JoinHandle<Vec<Result<T>>>,
}

impl<K, T: Send + 'static> Calls<K, T> {
    pub(crate) fn new(limit: usize, counter: Arc<CallCounter>) -> Self {
        Calls { under_way: Vec::with_capacity(limit), limit, counter }
    }

    pub(crate) fn has_room(&self) -> bool {
        self.under_way.len() < self.limit
    }

    pub(crate) fn start(
        &mut self,
        names: Vec<K>,
        call: impl Future<Output = Vec<Result<T>>> + Send + 'static,
    ) {
        let begun = self.counter.begun();
        self.under_way.push(Call { names, begun, task: tokio::spawn(call) });
    }

    /// Waits for the next call to end, and returns one outcome per item. Cancel-safe; pending while no call is in
    /// flight.
    pub(crate) async fn ended(&mut self) -> impl Iterator<Item = (K, Result<T>)> + use<K, T> {
        poll_fn(|cx| self.poll_ended(cx)).await
    }

    fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<impl Iterator<Item = (K, Result<T>)> + use<K, T>> {
        for i in 0..self.under_way.len() {
            if let Poll::Ready(answer) = Pin::new(&mut self.under_way[i].task).poll(cx) {
                let Call { names, begun, .. } = self.under_way.swap_remove(i);
                let succeeded = |answers: &Vec<Result<T>>| answers.iter().filter(|a| a.is_ok()).count();
                let succeeded = answer.as_ref().map_or(0, succeeded).min(names.len());
                self.counter.ended(begun, names.len(), names.len() - succeeded);
                return Poll::Ready(names.into_iter().zip(every_answer(answer)));
            }
        }
        Poll::Pending
    }
}

/// Returns the outcomes of one call, with `Unknown` for each that is missing: for all of them if the adapter panicked.
pub(crate) fn every_answer<T, E: fmt::Display>(
    call: Result<Vec<Result<T>>, E>,
) -> impl Iterator<Item = Result<T>> {
    let (answers, why) = match call {
        Ok(answers) => (answers, None),
        Err(why) => (Vec::new(), Some(why.to_string())),
    };
    let missing = move || {
        let e = Error::unknown(ErrorKind::Other, "call the backend");
        Err(e.with_source(
            why.clone().unwrap_or_else(|| "it returned fewer outcomes than there were items".into()),
        ))
    };
    answers.into_iter().chain(std::iter::repeat_with(missing))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kafkaq_core::Effect;

    async fn outcome(
        call: impl Future<Output = Vec<Result<u8>>> + Send + 'static,
    ) -> Vec<(char, Result<u8>)> {
        let counter = Arc::new(CallCounter::new("q", "call"));
        let mut calls = Calls::new(1, counter.clone());
        calls.start(vec!['a', 'b'], call);
        assert!(!calls.has_room());
        assert_eq!((counter.stats().under_way, counter.stats().calls), (1, 0));
        let out: Vec<_> = calls.ended().await.collect();
        assert!(calls.has_room());
        let stats = counter.stats();
        assert_eq!((stats.under_way, stats.calls, stats.items), (0, 1, 2));
        assert_eq!(stats.failed > 0, out.iter().any(|(_, outcome)| outcome.is_err()));
        out
    }

    #[tokio::test]
    async fn outcomes_are_returned_with_their_items() {
        let out = outcome(async { vec![Ok(1), Ok(2)] }).await;
        assert!(matches!(out[..], [('a', Ok(1)), ('b', Ok(2))]));
    }

    #[tokio::test]
    async fn missing_outcomes_are_unknown() {
        let out = outcome(async { vec![Ok(1)] }).await;
        let [('a', Ok(1)), ('b', Err(e))] = &out[..] else { panic!("{out:?}") };
        assert_eq!(e.effect(), Effect::Unknown);
    }

    #[tokio::test]
    async fn a_panic_of_an_adapter_is_unknown_for_all() {
        let out = outcome(async { panic!("of the adapter") }).await;
        let [('a', Err(a)), ('b', Err(_))] = &out[..] else { panic!("{out:?}") };
        assert_eq!(a.effect(), Effect::Unknown);
        assert!(a.to_string().contains("panic"), "{a}");
    }
}
