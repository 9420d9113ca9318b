//! What the holder of a job asks.

use super::{
    Answer, Ask, AskNo, JobKey, LostReason, Machine, Notice, Now,
    item::{Holder, PendingAsk, StoreOp},
    slab::Ref,
};

impl Machine {
    /// The holder of a job asks.
    pub fn handle_ask(&mut self, now: Now, job: JobKey, no: AskNo, ask: Ask) {
        self.hear(now);
        let r = Ref::from_bits(job.0);
        let item = self.items.get_mut(r).filter(|i| i.holder == Holder::Driver && i.own.is_some());
        let Some(item) = item else {
            if !matches!(ask, Ask::Abandoned) {
                self.notices.push_back(Notice::Answered(job, no, Answer::Lost(LostReason::Over)));
            }
            return;
        };
        if matches!(ask, Ask::Abandoned) {
            item.holder = Holder::None;
            return self.go_on(r);
        }
        // An earlier ask that has not begun was dropped by its caller.
        item.next_ask = Some(PendingAsk { no, ask });
        self.go_on(r);
    }

    /// A ready job that was not handed out: it is stale, or [`Machine::poll_recall`] asked for it. Depending on why,
    /// it is renewed and becomes ready again, or is given back.
    pub fn handle_untaken(&mut self, now: Now, job: JobKey) {
        self.hear(now);
        self.come_back(Ref::from_bits(job.0));
    }

    pub(super) fn begin_ask(&mut self, r: Ref, pending: PendingAsk) {
        let Some(item) = self.items.get_mut(r) else { return };
        let used_up = item.own.is_some_and(|o| o.attempt >= self.limits.max_attempts);
        let appends = matches!(pending.ask, Ask::Retry(_) | Ask::Reject(_));
        if appends && item.append.is_some() {
            // One append at a time; its acknowledgement goes on with this.
            item.next_ask = Some(pending);
            return;
        }
        let ask = pending.ask.clone();
        item.ask = Some(pending);
        match ask {
            Ask::Done => self.start(r, StoreOp::Done),
            Ask::Retry(length) if !used_up => self.start(r, StoreOp::Idle { length }),
            Ask::Retry(_) => {
                let reason = format!("all {} attempts are used up", self.limits.max_attempts);
                self.bury(r, reason);
            }
            Ask::Reject(reason) => self.bury(r, reason),
            Ask::Extend(length) => self.start(r, StoreOp::Keep { length }),
            Ask::Abandoned => {}
        }
    }

    /// Answers the ask that is under way or waits, if there is one.
    pub(super) fn answer(&mut self, r: Ref, answer: Answer) {
        let Some(item) = self.items.get_mut(r) else { return };
        let Some(asked) = item.ask.take().or_else(|| item.next_ask.take()) else { return };
        let job = JobKey(r.to_bits());
        if !matches!(answer, Answer::Extended(_)) {
            item.holder = Holder::None;
            if let Some(next) = item.next_ask.take() {
                let over = if matches!(answer, Answer::Ok) {
                    Answer::Lost(LostReason::Over)
                } else {
                    answer.clone()
                };
                self.notices.push_back(Notice::Answered(job, next.no, over));
            }
        }
        self.notices.push_back(Notice::Answered(job, asked.no, answer));
    }
}
