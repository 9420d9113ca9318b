//! One lock against all possible outcomes of a store.

use super::*;
use crate::{ErrorKind, Wall};

const LEASE: Duration = Duration::from_secs(60);
const SKEW: Duration = Duration::from_secs(1);

fn at(seconds: u64) -> Now {
    let since = Duration::from_secs(seconds);
    Now { mono: Mono::default().plus(since), wall: Wall(1_000_000).plus(since) }
}

fn lock(process: u8) -> KeyLock {
    let settings = KeyLockSettings::new(LEASE, SKEW);
    let key = Key::of(&["x", "q", "g", "k"]).unwrap();
    KeyLock::new(key, LeaseToken { process: [process; 16], number: 1 }, settings)
}

fn unknown() -> Result<Swapped> {
    Err(Error::unknown(ErrorKind::Timeout, "swap"))
}

/// A lock that was taken by a call at that time.
fn held(seconds: u64) -> (KeyLock, Bytes) {
    let mut lock = lock(1);
    let swap = lock.poll_swap(at(seconds)).unwrap();
    assert_eq!((swap.expect, swap.ttl), (None, Some(LEASE + SKEW)));
    lock.handle_swapped(Ok(Swapped::Done), at(seconds + 1));
    assert_eq!(lock.standing(at(seconds + 1)), Standing::Held(at(seconds + 60)));
    (lock, swap.new.unwrap())
}

/// What another process has written at that time.
fn others(seconds: u64) -> Bytes {
    lock(2).poll_swap(at(seconds)).unwrap().new.unwrap()
}

#[test]
fn lease_counts_from_the_call_and_is_renewed_in_its_first_third() {
    let (mut lock, value) = held(0);
    assert!(lock.poll_swap(at(19)).is_none());
    assert_eq!(lock.poll_timeout(), Some(at(20).mono));
    let renewal = lock.poll_swap(at(20)).unwrap();
    assert_eq!(renewal.expect, Some(value));
    assert!(lock.poll_swap(at(21)).is_none(), "one at a time");
    lock.handle_swapped(Ok(Swapped::Done), at(25));
    assert_eq!(lock.standing(at(79)), Standing::Held(at(80)));
    assert_eq!(lock.standing(at(80)), Standing::Lost);
    assert_eq!(lock.standing(at(79)), Standing::Lost, "for good");
}

#[test]
fn lock_is_lost_when_either_clock_reaches_its_end() {
    // The machine was suspended, or the wall clock was set back.
    for clocks in [(30, 60), (60, 30)] {
        let (mut lock, _) = held(0);
        let now = Now { mono: at(clocks.0).mono, wall: at(clocks.1).wall };
        assert!(lock.poll_swap(now).is_none(), "too late to renew it");
        assert_eq!(lock.standing(now), Standing::Lost, "{clocks:?}");
    }
    let mut lock = lock(1);
    lock.poll_swap(at(0)).unwrap();
    let now = Now { mono: at(1).mono, wall: at(60).wall };
    lock.handle_swapped(Ok(Swapped::Done), now);
    assert_eq!(lock.standing(now), Standing::Taking, "its answer took too long");
}

#[test]
fn response_that_takes_a_whole_lease_grants_nothing_and_is_overwritten() {
    let mut lock = lock(1);
    let late = lock.poll_swap(at(0)).unwrap();
    lock.handle_swapped(Ok(Swapped::Done), at(60));
    assert_eq!(lock.standing(at(60)), Standing::Taking);
    assert_eq!(lock.poll_swap(at(60)).unwrap().expect, late.new);
    lock.handle_swapped(Ok(Swapped::Done), at(61));
    assert_eq!(lock.standing(at(61)), Standing::Held(at(120)));
}

#[test]
fn take_of_unknown_effect_is_recognized_as_own() {
    let mut lock = lock(1);
    let first = lock.poll_swap(at(0)).unwrap().new;
    lock.handle_swapped(unknown(), at(5));
    assert_eq!(lock.standing(at(5)), Standing::Taking);
    assert_eq!(lock.poll_swap(at(6)).unwrap().expect, None);
    lock.handle_swapped(Ok(Swapped::Conflict(first.clone())), at(6));
    assert_eq!(lock.standing(at(6)), Standing::Taking);
    assert_eq!(lock.poll_swap(at(6)).unwrap().expect, first);
}

#[test]
fn lock_of_another_holder_is_awaited_with_the_clock_skew() {
    let mut lock = lock(1);
    for (now, waits) in [(0, true), (60, true), (61, false)] {
        let later = at(now).mono.plus(LONGEST_PAUSE);
        let now = Now { mono: later, ..at(now) };
        assert_eq!(lock.poll_swap(now).unwrap().expect, None, "a live lock is never overwritten");
        lock.handle_swapped(Ok(Swapped::Conflict(Some(others(0)))), now);
        assert_eq!(lock.poll_timeout().unwrap() > now.mono, waits, "{now:?}");
    }
    let taken = lock.poll_swap(at(62)).unwrap();
    assert_eq!(taken.expect, Some(others(0)), "over what was found, so nobody else can");
}

#[test]
fn lock_of_a_dead_holder_whose_clock_was_ahead_is_waited_for_no_longer_than_its_length() {
    let (mut lock, day) = (lock(1), 24 * 3600);
    for (now, written, waits) in
        [(0, day, true), (50, day, true), (60, day + 20, true), (120, day + 20, true), (121, day + 20, false)]
    {
        assert_eq!(lock.poll_swap(at(now)).unwrap().expect, None);
        lock.handle_swapped(Ok(Swapped::Conflict(Some(others(written)))), at(now));
        assert_eq!(lock.poll_timeout().unwrap() > at(now).mono, waits, "{now}");
    }
    assert_eq!(lock.poll_swap(at(121)).unwrap().expect, Some(others(day + 20)));
}

#[test]
fn pauses_grow_to_a_second() {
    let mut lock = lock(1);
    let (mut now, mut pauses) = (at(0), Vec::new());
    for _ in 0..8 {
        assert!(lock.poll_swap(now).is_some());
        lock.handle_swapped(Ok(Swapped::Conflict(Some(others(0)))), now);
        let next = lock.poll_timeout().unwrap();
        pauses.push((next.0 - now.mono.0) / 1_000_000);
        now.mono = next;
    }
    assert_eq!(pauses, [20, 40, 80, 160, 320, 640, 1000, 1000]);
}

#[test]
fn holders_conflict_is_its_own_write_a_missing_value_or_the_loss() {
    for (found, standing) in [
        (None, Standing::Held(at(60))),
        (Some(Bytes::from_static(b"nonsense")), Standing::Held(at(60))),
        (Some(others(10)), Standing::Lost),
        (Some(Bytes::from_static(&[0x33, 2, 3])), Standing::Lost),
    ] {
        let (mut lock, _) = held(0);
        lock.poll_swap(at(20)).unwrap();
        lock.handle_swapped(Ok(Swapped::Conflict(found.clone())), at(21));
        assert_eq!(lock.standing(at(21)), standing, "{found:?}");
        assert_eq!(
            lock.poll_swap(at(21)).map(|swap| swap.expect),
            (standing != Standing::Lost).then_some(found)
        );
    }
    let (mut lock, _) = held(0);
    let renewal = lock.poll_swap(at(20)).unwrap().new;
    lock.handle_swapped(unknown(), at(21));
    lock.poll_swap(at(22)).unwrap();
    lock.handle_swapped(Ok(Swapped::Conflict(renewal.clone())), at(22));
    assert_eq!(lock.standing(at(22)), Standing::Held(at(60)), "the first attempt took effect");
    assert_eq!(lock.poll_swap(at(22)).unwrap().expect, renewal);
}

#[test]
fn release_removes_only_ones_own_value() {
    let (mut lock, value) = held(0);
    lock.release(at(5).mono);
    let release = lock.poll_swap(at(5)).unwrap();
    assert_eq!((release.expect, release.new), (Some(value), None));
    lock.handle_swapped(unknown(), at(6));
    assert_eq!(lock.standing(at(6)), Standing::Releasing);
    lock.poll_swap(at(7)).unwrap();
    lock.handle_swapped(Ok(Swapped::Conflict(Some(others(6)))), at(7));
    assert_eq!(lock.standing(at(7)), Standing::Over);
    assert!(lock.poll_swap(at(9)).is_none() && lock.poll_timeout().is_none());
}

#[test]
fn release_waits_for_the_call_that_is_under_way_and_ends_with_the_lease() {
    let (mut lock, _) = held(0);
    let renewal = lock.poll_swap(at(20)).unwrap().new;
    lock.release(at(21).mono);
    assert!(lock.poll_swap(at(21)).is_none());
    lock.handle_swapped(Ok(Swapped::Done), at(22));
    assert_eq!(lock.poll_swap(at(22)).unwrap().expect, renewal);
    lock.handle_swapped(unknown(), at(80));
    assert_eq!(lock.standing(at(80)), Standing::Releasing);
    assert!(lock.poll_swap(at(81)).is_none(), "what was written is over");
    assert_eq!(lock.standing(at(81)), Standing::Over);
}

#[test]
fn take_that_is_given_up_is_undone_if_it_may_have_happened() {
    let mut never = lock(1);
    never.release(at(0).mono);
    assert_eq!(never.standing(at(0)), Standing::Over);
    let mut doubtful = lock(1);
    let take = doubtful.poll_swap(at(0)).unwrap();
    doubtful.release(at(1).mono);
    doubtful.handle_swapped(unknown(), at(2));
    assert_eq!(doubtful.standing(at(2)), Standing::Releasing);
    let undo = doubtful.poll_swap(at(3)).unwrap();
    assert_eq!((undo.expect, undo.new), (take.new, None));
}

#[test]
fn own_write_that_comes_after_anothers_is_undone() {
    let mut lock = lock(1);
    let late = lock.poll_swap(at(0)).unwrap().new;
    lock.handle_swapped(unknown(), at(1));
    lock.poll_swap(at(2)).unwrap();
    lock.handle_swapped(Ok(Swapped::Conflict(Some(others(2)))), at(2));
    lock.poll_swap(at(4)).unwrap();
    lock.handle_swapped(Ok(Swapped::Conflict(late.clone())), at(4));
    lock.poll_swap(at(4)).unwrap();
    lock.handle_swapped(Err(Error::not_applied(ErrorKind::Unavailable, "swap")), at(5));
    lock.release(at(5).mono);
    assert_eq!(lock.standing(at(5)), Standing::Releasing);
    let undo = lock.poll_swap(at(5)).unwrap();
    assert_eq!((undo.expect, undo.new), (late, None));
}
