//! Calls of a backend that are under way.

use kafkaq_core::{Error, ErrorKind, Result};
use std::{
    any::Any,
    fmt::Display,
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
};
use tokio::task::JoinHandle;

/// Calls of one kind: a bounded number, each on a task of its own, so that encoding runs on another core and an
/// adapter that panics is an unknown effect and no lost answer. `K` names one item of a call.
#[derive(Debug)]
pub(crate) struct Calls<K, T> {
    under_way: Vec<Call<K, T>>,
    limit: usize,
    /// The last call answered without waiting, as one in memory does: the next one is tried in place, which spares
    /// a task and a wake-up.
    at_once: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Call<K, T> {
    names: Vec<K>,
    state: State<T>,
}

#[derive(Debug)]
enum State<T> {
    Ended(Result<Vec<Result<T>>, String>),
    Task(JoinHandle<Vec<Result<T>>>),
}

impl<K, T: Send + 'static> Calls<K, T> {
    pub(crate) fn new(limit: usize) -> Self {
        Calls { under_way: Vec::with_capacity(limit), limit, at_once: Arc::default() }
    }

    pub(crate) fn has_room(&self) -> bool {
        self.under_way.len() < self.limit
    }

    pub(crate) fn start(
        &mut self,
        names: Vec<K>,
        call: impl Future<Output = Vec<Result<T>>> + Send + 'static,
    ) {
        let mut call = Box::pin(call);
        let state = if self.at_once.load(Ordering::Relaxed) {
            let mut nobody = Context::from_waker(Waker::noop());
            match catch_unwind(AssertUnwindSafe(|| call.as_mut().poll(&mut nobody))) {
                Ok(Poll::Ready(out)) => State::Ended(Ok(out)),
                Err(panic) => State::Ended(Err(text(&*panic))),
                Ok(Poll::Pending) => {
                    self.at_once.store(false, Ordering::Relaxed);
                    State::Task(tokio::spawn(call))
                }
            }
        } else {
            let at_once = self.at_once.clone();
            State::Task(tokio::spawn(async move {
                let mut first = true;
                poll_fn(|cx| {
                    let polled = call.as_mut().poll(cx);
                    if std::mem::take(&mut first) && polled.is_ready() {
                        at_once.store(true, Ordering::Relaxed);
                    }
                    polled
                })
                .await
            }))
        };
        self.under_way.push(Call { names, state });
    }

    /// The next call that has ended, an outcome for each of its names. Cancel-safe; pends while nothing is under way.
    pub(crate) async fn ended(&mut self) -> impl Iterator<Item = (K, Result<T>)> + use<K, T> {
        poll_fn(|cx| self.poll_ended(cx)).await
    }

    fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<impl Iterator<Item = (K, Result<T>)> + use<K, T>> {
        for i in 0..self.under_way.len() {
            let out = match &mut self.under_way[i].state {
                State::Ended(out) => std::mem::replace(out, Ok(Vec::new())),
                State::Task(task) => match Pin::new(task).poll(cx) {
                    Poll::Ready(out) => out.map_err(|e| e.to_string()),
                    Poll::Pending => continue,
                },
            };
            let Call { names, .. } = self.under_way.swap_remove(i);
            return Poll::Ready(names.into_iter().zip(every_answer(out)));
        }
        Poll::Pending
    }
}

fn text(panic: &(dyn Any + Send)) -> String {
    let said = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    let said = said.or_else(|| panic.downcast_ref::<String>().cloned());
    format!("it panicked: {}", said.unwrap_or_default())
}

/// The answers of one call, and `Unknown` for each that is missing: for all of them if the adapter panicked.
pub(crate) fn every_answer<T>(call: Result<Vec<Result<T>>, impl Display>) -> impl Iterator<Item = Result<T>> {
    let (answers, why) = match call {
        Ok(answers) => (answers, None),
        Err(why) => (Vec::new(), Some(why.to_string())),
    };
    let missing = move || {
        let e = Error::unknown(ErrorKind::Other, "call the backend");
        Err(e
            .with_source(why.clone().unwrap_or_else(|| "it gave fewer answers than it was asked for".into())))
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
        let mut calls = Calls::new(1);
        calls.start(vec!['a', 'b'], call);
        assert!(!calls.has_room());
        let out = calls.ended().await.collect();
        assert!(calls.has_room());
        out
    }

    #[tokio::test]
    async fn answers_come_with_their_names() {
        let out = outcome(async { vec![Ok(1), Ok(2)] }).await;
        assert!(matches!(out[..], [('a', Ok(1)), ('b', Ok(2))]));
    }

    #[tokio::test]
    async fn too_few_answers_are_unknown_for_the_rest() {
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

    #[tokio::test]
    async fn calls_that_answer_at_once_are_made_in_place_until_one_waits_or_panics() {
        let mut calls = Calls::<char, u8>::new(1);
        let mut ended = async |call: Pin<Box<dyn Future<Output = _> + Send>>| {
            calls.start(vec!['a'], call);
            let in_place = matches!(calls.under_way[0].state, State::Ended(_));
            let (_, outcome) = calls.ended().await.next().unwrap();
            (in_place, outcome)
        };
        assert!(matches!(ended(Box::pin(async { vec![Ok(1)] })).await, (false, Ok(1))));
        assert!(matches!(ended(Box::pin(async { vec![Ok(2)] })).await, (true, Ok(2))));
        let (in_place, outcome) = ended(Box::pin(async { panic!("of the adapter") })).await;
        assert!(in_place && outcome.unwrap_err().to_string().contains("of the adapter"));
        let waits = async {
            tokio::task::yield_now().await;
            vec![Ok(3)]
        };
        assert!(matches!(ended(Box::pin(waits)).await, (false, Ok(3))));
        assert!(matches!(ended(Box::pin(async { vec![Ok(4)] })).await, (false, Ok(4))));
    }
}
