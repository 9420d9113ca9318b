//! Recalls of ready jobs that nobody has taken.

use super::{Now, Ready};
use std::{collections::VecDeque, mem};

/// Ready jobs that are to come back if nobody has taken them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Recall {
    /// Those that are not [fresh](Ready::is_fresh); and of those whose [`renew_at`](Ready::renew_at) has come, the
    /// half that would be handed out last, so that callers find the others meanwhile. It is asked for again.
    ToRenew,
    /// All.
    All,
}

impl Recall {
    /// Takes them out of `ready`, whose first job is handed out next. Pass each to [`super::Machine::handle_untaken`].
    #[must_use]
    pub fn take_back<T>(self, ready: &mut VecDeque<T>, now: Now, job: impl Fn(&T) -> &Ready) -> VecDeque<T> {
        if self == Recall::All {
            return mem::take(ready);
        }
        let can_stay = |one: &T| job(one).is_fresh(now);
        let is_young = |one: &T| can_stay(one) && now.mono < job(one).renew_at;
        let old = ready.iter().filter(|one| !is_young(one)).count();
        if old == 0 {
            return VecDeque::new();
        }
        let mut stay = ready.iter().filter(|one| !is_young(one) && can_stay(one)).count() / 2;
        let (mut back, mut kept) = (VecDeque::with_capacity(old), VecDeque::with_capacity(ready.len()));
        for one in ready.drain(..) {
            if is_young(&one) {
                kept.push_back(one);
            } else if can_stay(&one) && stay > 0 {
                stay -= 1;
                kept.push_back(one);
            } else {
                back.push_back(one);
            }
        }
        *ready = kept;
        back
    }
}
