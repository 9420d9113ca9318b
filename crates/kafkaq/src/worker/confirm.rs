//! Confirms the ends of executions, in one task where the queue lives: handlers may block their own threads, and a task or
//! a thread woken per execution would cost more than a short handler.

use super::{
    active::Active,
    execute::{self, Fate},
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

/// Then the other tasks of the runtime have their turn.
const AT_A_TIME: usize = 128;

/// Executions that have ended and whose turn to be confirmed has not come. Each still has its place.
#[derive(Default)]
pub(super) struct Confirmer {
    ended: Mutex<VecDeque<(Arc<Active>, Fate)>>,
    news: Notify,
}

impl Confirmer {
    /// Has the queue told what becomes of the task.
    pub(super) fn push(&self, active: Arc<Active>, fate: Fate) {
        let is_first = {
            let mut ended = lock(&self.ended);
            ended.push_back((active, fate));
            ended.len() == 1
        };
        if is_first {
            self.news.notify_one();
        }
    }

    fn take(&self, room: usize, into: &mut VecDeque<(Arc<Active>, Fate)>) {
        let mut ended = lock(&self.ended);
        if ended.len() <= room {
            std::mem::swap(&mut *ended, into);
        } else {
            into.extend(ended.drain(..room));
        }
    }
}

/// Confirms at most `limit` at once. The leases of the others are renewed until their turn has come.
pub(super) async fn confirm(shared: Arc<Shared>, limit: usize) -> Infallible {
    let (mut confirming, mut ended) = (FuturesUnordered::new(), VecDeque::new());
    loop {
        shared.confirmer.take(limit - confirming.len(), &mut ended);
        for (active, fate) in ended.drain(..) {
            shared.free(&active);
            // What panics, like an observer of the user's, has been reported by the panic hook.
            let end = execute::confirm(shared.clone(), active, fate);
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
