//! The two halves of a member: its event stream and its handle. Both only lock the group and call it.

use super::group::MemberId;
use super::state::Shared;
use async_trait::async_trait;
use futures_core::Stream;
use kafkaq_core::{Assignment, Commit, Consumer, Event, Member, Result};
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::time::{Instant, Sleep, sleep_until};

pub(super) fn consumer(shared: Arc<Shared>, group: usize, member: MemberId) -> Consumer {
    let handle = Arc::new(Handle { shared: shared.clone(), group, member });
    Consumer { events: Box::pin(Events { shared, group, member, timer: None }), member: handle }
}

struct Events {
    shared: Arc<Shared>,
    group: usize,
    member: MemberId,
    /// Runs while any partition of the group is being revoked: a member that doesn't release in time may not poll
    /// either, so the others enforce the limit.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Events {
    fn until(&mut self, at: Instant) -> Pin<&mut Sleep> {
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(at)));
        if timer.deadline() != at {
            timer.as_mut().reset(at);
        }
        timer.as_mut()
    }
}

impl Stream for Events {
    type Item = Result<Event>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            let polled = this.shared.with(|state| state.poll(this.group, this.member, cx.waker()));
            match polled {
                Ok(event) => return Poll::Ready(event),
                Err((_, None)) => {
                    this.timer = None;
                    return Poll::Pending;
                }
                Err((_, Some(deadline))) => {
                    if this.until(deadline).poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                }
            }
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.shared.with(|state| state.leave(self.group, self.member));
    }
}

struct Handle {
    shared: Arc<Shared>,
    group: usize,
    member: MemberId,
}

#[async_trait]
impl Member for Handle {
    async fn commit(&self, offsets: &[Commit]) -> Vec<Result<()>> {
        self.shared.with(|state| offsets.iter().map(|to| state.commit(self.group, self.member, to)).collect())
    }

    fn pause(&self, assignments: &[Assignment]) {
        self.shared.with(|state| state.pause(self.group, self.member, assignments, true));
    }

    fn resume(&self, assignments: &[Assignment]) {
        self.shared.with(|state| state.pause(self.group, self.member, assignments, false));
    }

    fn release(&self, assignments: &[Assignment]) {
        self.shared.with(|state| state.release(self.group, self.member, assignments));
    }

    fn reassign(&self, assignments: &[Assignment]) {
        self.shared.with(|state| state.reassign(self.group, self.member, assignments));
    }

    async fn leave(&self) -> Result<()> {
        self.shared.with(|state| state.leave(self.group, self.member));
        Ok(())
    }
}
