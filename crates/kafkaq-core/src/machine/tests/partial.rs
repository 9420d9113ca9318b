//! A store with an unresponsive part: leases there can't be taken, others can.

use super::*;
use crate::{Error, ErrorKind};

/// How many callers take jobs and finish them at once.
const CALLERS: usize = 5;

/// Lets time pass and answers everything, as the store does while `is_away` holds for some of its keys. Returns how
/// many jobs were finished.
fn work(rig: &mut Rig, rounds: usize, error: &Error, is_away: impl Fn(&Key) -> bool) -> usize {
    let mut finished = 0;
    for _ in 0..rounds {
        rig.m.handle_demand(rig.now, CALLERS, 0);
        let (mut swaps, mut gets) = (vec![], vec![]);
        rig.m.poll_swaps(100, &mut swaps);
        rig.m.poll_gets(100, &mut gets);
        for (op, swap) in swaps {
            let outcome = if is_away(&swap.key) { Err(error.clone()) } else { Ok(Swapped::Done) };
            rig.m.handle_swapped(rig.now, op, outcome);
        }
        for (op, key) in gets {
            rig.m.handle_got(rig.now, op, if is_away(&key) { Err(error.clone()) } else { Ok(None) });
        }
        let mut ready = vec![];
        rig.m.poll_ready(&mut ready);
        while let Some(notice) = rig.m.poll_notice() {
            finished += usize::from(matches!(notice, Notice::Answered(_, _, Answer::Ok)));
        }
        for job in ready {
            rig.m.handle_command(rig.now, job.job, CommandId(1), Command::Done);
        }
        let pause = Duration::from_millis(100);
        rig.now = Now { mono: rig.now.mono.plus(pause), wall: rig.now.wall.plus(pause) };
    }
    finished
}

fn errors() -> [Error; 2] {
    [Error::not_applied(ErrorKind::Unavailable, "call"), Error::unknown(ErrorKind::Timeout, "call")]
}

#[test]
fn tasks_of_a_part_that_is_away_do_not_keep_callers_from_the_others() {
    for (prefetch, error) in [0, 5].into_iter().flat_map(|n| errors().map(|e| (n, e))) {
        let mut rig = Rig::new(|s| s.prefetch = prefetch);
        let ids: Vec<_> = (0..300).map(|n| format!("{}{n}", ["away", "here", "here"][n % 3])).collect();
        rig.record(&ids.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(
            work(&mut rig, 300, &error, |key| key.as_str().contains("away")),
            200,
            "prefetch {prefetch}"
        );
        assert_eq!(work(&mut rig, 300, &error, |_| false), 100, "and once it is back");
    }
}

#[test]
fn while_the_whole_store_is_away_no_more_are_taken_than_are_wanted() {
    let mut rig = Rig::new(|s| s.prefetch = 5);
    let ids: Vec<_> = (0..300).map(|n| format!("t{n}")).collect();
    rig.record(&ids.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(work(&mut rig, 100, &errors()[0], |_| true), 0);
    let mut swaps = vec![];
    rig.now = Now { mono: rig.now.mono.plus(SEC), wall: rig.now.wall.plus(SEC) };
    rig.m.poll_swaps(1000, &mut swaps);
    assert!(swaps.len() <= CALLERS + 5, "{}", swaps.len());
}
