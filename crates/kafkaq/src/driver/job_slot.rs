//! One job, shared by its holder and the driver: the holder's commands and the driver's answers.

use crate::sync::{lock, until};
use kafkaq_core::{
    LostReason,
    machine::{Answer, Command, CommandId, Ready},
};
use std::{
    future::poll_fn,
    sync::Mutex,
    task::{Poll, Waker},
};
use tokio::sync::Notify;

/// One allocation per job.
#[derive(Debug)]
pub(crate) struct JobSlot {
    pub(crate) ready: Ready,
    pub(crate) commands: CommandSlot,
}

impl JobSlot {
    pub(crate) fn new(ready: Ready) -> Self {
        JobSlot { ready, commands: CommandSlot::default() }
    }
}

/// The newest command and its answer. A newer command replaces an older one that the driver hasn't seen yet, so a job
/// never has more than one pending; the answer to an older command is dropped.
#[derive(Debug, Default)]
pub(crate) struct CommandSlot {
    state: Mutex<State>,
    lost: Notify,
}

#[derive(Debug, Default)]
struct State {
    last: u32,
    asked: Option<Command>,
    answer: Option<Answer>,
    waker: Option<Waker>,
    lost: Option<LostReason>,
    over: bool,
}

impl CommandSlot {
    /// Leaves a command for the driver. Returns whether the driver has to be notified: not if an earlier command is
    /// still waiting for it.
    pub(crate) fn ask(&self, ask: Command) -> bool {
        let mut s = lock(&self.state);
        s.last = s.last.wrapping_add(1);
        s.answer = None;
        s.over = !matches!(ask, Command::Extend(_));
        s.asked.replace(ask).is_none()
    }

    /// Takes the command that waits for the driver: its side of [`CommandSlot::ask`].
    pub(crate) fn asked(&self) -> Option<(CommandId, Command)> {
        let mut s = lock(&self.state);
        let no = CommandId(s.last);
        s.asked.take().map(|ask| (no, ask))
    }

    /// Answers the command with this number. Returns whether the job is over, because its holder can send no more
    /// commands.
    pub(crate) fn answer(&self, no: CommandId, answer: Answer) -> bool {
        let mut s = lock(&self.state);
        if s.last != no.0 || s.asked.is_some() {
            return false;
        }
        let over = s.over;
        s.answer = Some(answer);
        let waker = s.waker.take();
        drop(s);
        if let Some(waker) = waker {
            waker.wake();
        }
        over
    }

    /// Answers the last command, since the driver is gone. If the job is known to be lost, that is the answer.
    pub(crate) fn answer_last(&self, answer: Answer) {
        let (no, lost) = {
            let mut s = lock(&self.state);
            s.asked = None;
            (CommandId(s.last), s.lost)
        };
        self.answer(no, lost.map_or(answer, Answer::Lost));
    }

    /// Waits for the answer to the last command. Cancel-safe: the answer stays here until it is returned.
    pub(crate) async fn answered(&self) -> Answer {
        poll_fn(|cx| {
            let mut s = lock(&self.state);
            match s.answer.take() {
                // For a job that was already lost, return the reason of the loss, not that it is over.
                Some(Answer::Lost(why)) => {
                    let why = *s.lost.get_or_insert(why);
                    drop(s);
                    self.lost.notify_waiters();
                    Poll::Ready(Answer::Lost(why))
                }
                Some(answer) => Poll::Ready(answer),
                None => {
                    s.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// Records that the lease is lost. Returns whether that wasn't known before.
    pub(crate) fn lose(&self, why: LostReason) -> bool {
        let is_news = {
            let lost = &mut lock(&self.state).lost;
            let is_news = lost.is_none();
            lost.get_or_insert(why);
            is_news
        };
        self.lost.notify_waiters();
        is_news
    }

    pub(crate) fn lost(&self) -> Option<LostReason> {
        lock(&self.state).lost
    }

    /// Waits for [`CommandSlot::lose`]. Cancel-safe.
    pub(crate) async fn until_lost(&self) -> LostReason {
        until(&self.lost, || self.lost()).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kafkaq_core::Wall;
    use std::{pin::pin, time::Duration};

    #[tokio::test]
    async fn answer_to_a_dropped_extend_is_not_taken_for_that_to_done() {
        let d = CommandSlot::default();
        assert!(d.ask(Command::Extend(Duration::from_secs(1))));
        let (extend, _) = d.asked().unwrap();
        assert!(d.ask(Command::Done));
        assert!(!d.answer(extend, Answer::Extended(Wall(1))), "before the driver has seen done");
        let (done, ask) = d.asked().unwrap();
        assert!(matches!(ask, Command::Done));
        assert!(!d.answer(extend, Answer::Extended(Wall(1))), "and after");
        assert!(futures_util::poll!(pin!(d.answered())).is_pending());
        assert!(d.answer(done, Answer::Ok));
        assert!(matches!(d.answered().await, Answer::Ok));
    }

    #[test]
    fn driver_is_notified_once_of_commands_that_replace_one_another() {
        let d = CommandSlot::default();
        assert!(d.ask(Command::Extend(Duration::from_secs(1))));
        assert!(!d.ask(Command::Done));
        assert!(matches!(d.asked(), Some((CommandId(2), Command::Done))));
        assert!(d.asked().is_none());
    }

    #[tokio::test]
    async fn an_extend_leaves_the_job_open() {
        let d = CommandSlot::default();
        d.ask(Command::Extend(Duration::from_secs(1)));
        let (no, _) = d.asked().unwrap();
        assert!(!d.answer(no, Answer::Extended(Wall(9))));
    }

    #[tokio::test]
    async fn first_reason_of_a_loss_is_reported() {
        let d = CommandSlot::default();
        d.lose(LostReason::Cancelled);
        d.ask(Command::Done);
        let (no, _) = d.asked().unwrap();
        d.answer(no, Answer::Lost(LostReason::Over));
        assert!(matches!(d.answered().await, Answer::Lost(LostReason::Cancelled)));
    }

    #[tokio::test]
    async fn known_loss_is_reported_after_the_driver_is_gone() {
        let d = CommandSlot::default();
        d.lose(LostReason::Cancelled);
        d.ask(Command::Done);
        d.answer_last(Answer::Failed(kafkaq_core::Error::unknown(kafkaq_core::ErrorKind::Closed, "finish")));
        assert!(matches!(d.answered().await, Answer::Lost(LostReason::Cancelled)));
    }

    #[tokio::test]
    async fn all_waiters_learn_of_a_loss() {
        let d = std::sync::Arc::new(CommandSlot::default());
        let waiters: Vec<_> = (0..3)
            .map(|_| {
                let d = d.clone();
                tokio::spawn(async move { d.until_lost().await })
            })
            .collect();
        tokio::task::yield_now().await;
        assert_eq!(d.lost(), None);
        d.lose(LostReason::Cancelled);
        d.lose(LostReason::TakenOver);
        for w in waiters {
            assert_eq!(w.await.unwrap(), LostReason::Cancelled);
        }
        assert_eq!(d.until_lost().await, LostReason::Cancelled);
    }
}
