//! Confirms the outcomes of executions, in one task on the queue's runtime: handlers may block their own threads, and
//! waking a task or a thread per execution would cost more than a short handler.

use super::{
    active::Active,
    execute::{self, Conclusion},
    run::Shared,
};
use crate::sync::lock;
use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use std::{
    collections::VecDeque,
    convert::Infallible,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex},
};
use tokio::{sync::Notify, task::yield_now};

/// How many are confirmed before other tasks of the runtime get a chance.
const AT_A_TIME: usize = 128;

/// Executions that have ended and wait to be confirmed. Each still has its slot.
#[derive(Default)]
pub(super) struct Confirmer {
    ended: Mutex<VecDeque<(Arc<Active>, Conclusion)>>,
    news: Notify,
}

impl Confirmer {
    /// Queues the outcome of a task for confirmation.
    pub(super) fn push(&self, active: Arc<Active>, conclusion: Conclusion) {
        let is_first = {
            let mut ended = lock(&self.ended);
            ended.push_back((active, conclusion));
            ended.len() == 1
        };
        if is_first {
            self.news.notify_one();
        }
    }

    fn take(&self, room: usize, into: &mut VecDeque<(Arc<Active>, Conclusion)>) {
        let mut ended = lock(&self.ended);
        if ended.len() <= room {
            std::mem::swap(&mut *ended, into);
        } else {
            into.extend(ended.drain(..room));
        }
    }
}

/// Confirms at most `limit` at once. The leases of the others are renewed until it is their turn.
pub(super) async fn confirm(shared: Arc<Shared>, limit: usize) -> Infallible {
    let (mut confirming, mut ended) = (FuturesUnordered::new(), VecDeque::new());
    loop {
        shared.confirmer.take(limit - confirming.len(), &mut ended);
        for (active, conclusion) in ended.drain(..) {
            shared.free(&active);
            // A panic, for example of a user's observer, has been reported by the panic hook.
            let end = execute::confirm(shared.clone(), active, conclusion);
            confirming.push(AssertUnwindSafe(end).catch_unwind());
        }
        tokio::select! {
            Some(_) = confirming.next() => {
                let mut others = 0;
                while confirming.next().now_or_never().flatten().is_some() {
                    others += 1;
                    if others % AT_A_TIME == 0 {
                        yield_now().await;
                    }
                }
            }
            () = shared.confirmer.news.notified(), if confirming.len() < limit => {}
        }
    }
}
