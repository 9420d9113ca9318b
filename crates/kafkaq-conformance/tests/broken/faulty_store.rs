//! Stores that break one rule each.

use crate::{
    gate::{Gate, Manners, Passage, Way},
    passes, planted, prove,
};
use async_trait::async_trait;
use bytes::Bytes;
use kafkaq::memory::MemoryStore;
use kafkaq_conformance::{Kit, Suite};
use kafkaq_core::{Error, ErrorKind, Key, LeaseStore, Partition, Result, Swap, Swapped};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{sync::RwLock, task::yield_now, time::Instant};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    GrantsTwice,
    ComparesVersionsThatStartOver,
    IgnoresTheExpectedValue,
    ForgetsReplacements,
    SaysThatNothingIsThere,
    WritesInSpiteOfAConflict,
    ComparesPrefixes,
    TakesEmptyForNothing,
    NeverDeletes,
    DeletesWhatIsNotThere,
    TakesNoChangeForDone,
    BringsBackWhatWasDeleted,
    ExpiresEarly,
    CountsWholeSeconds,
    CutsItsClock,
    KeepsTheFirstTtl,
    RefusedSwapsSetTheTtl,
    HasADefaultTtl,
    OverflowsLongTtls,
    LosesOneOfAThousand,
    SwapsOneByOne,
    AnswersSwapsInWrongOrder,
    AnswersDeletesOfLargeBatchesLast,
    AnswersGetsInWrongOrder,
    AnswersOnceForNothing,
    CutsLongKeys,
    IgnoresTheCaseOfKeys,
    WantsTextInValues,
    AnswersTextInConflicts,
    CutsLargeValues,
    CachesValues,
    MixesUpAnswers,
    StallsAfterADroppedCall,
    ChecksNothingWell,
    ChecksOneAtATime,
    ClosesOnce,
    ClosesWhileCallsAreUnderWay,
    GoesOnAfterClose,
    TakesItsValuesAlong,
    Network(Manners),
}

#[derive(Debug)]
struct Faulty {
    inner: MemoryStore,
    fault: Fault,
    way: Way,
    gate: Gate,
    closed: AtomicBool,
    /// Read by calls that are under way, written by close.
    under_way: RwLock<()>,
    stalled: AtomicBool,
    /// The response that was last in flight.
    answer: Mutex<Option<Bytes>>,
    cache: Mutex<HashMap<Key, Option<Bytes>>>,
    first_ttl: Mutex<HashMap<Key, Instant>>,
    /// Shared by all clients.
    checking: Arc<AtomicBool>,
    /// Shared by all clients: how often each value was replaced since it was created.
    versions: Arc<Mutex<HashMap<Key, usize>>>,
    made: Instant,
    /// How many swaps were requested.
    swaps: AtomicUsize,
    written: Mutex<Vec<Key>>,
}

fn kit(fault: Fault) -> Kit<dyn LeaseStore> {
    let (shared, gate) = (MemoryStore::new(), Gate::default());
    let (network, manners) =
        (gate.clone(), if let Fault::Network(manners) = fault { manners } else { Manners::Good });
    let checking = Arc::<AtomicBool>::default();
    let versions = Arc::<Mutex<_>>::default();
    let make = move || {
        std::future::ready(Ok(Faulty {
            inner: shared.clone(),
            fault,
            way: Way::new(network.clone(), manners),
            gate: network.clone(),
            closed: AtomicBool::new(false),
            under_way: RwLock::default(),
            stalled: AtomicBool::new(false),
            answer: Mutex::default(),
            cache: Mutex::default(),
            first_ttl: Mutex::default(),
            checking: checking.clone(),
            versions: versions.clone(),
            made: Instant::now(),
            swaps: AtomicUsize::new(0),
            written: Mutex::default(),
        }))
    };
    kafkaq_conformance::store("store", make)
        .with_paused_clock()
        .with_outage(gate)
        .answers_within(Duration::from_secs(2))
}

impl Faulty {
    fn key(&self, key: &Key) -> Key {
        let renamed = match self.fault {
            Fault::CutsLongKeys if key.as_str().len() > 255 => key.as_str()[..255].to_string(),
            Fault::IgnoresTheCaseOfKeys => key.as_str().to_lowercase(),
            _ => return key.clone(),
        };
        Key::partition(&renamed, &Partition::new("", 0))
    }

    async fn raw(
        &self,
        key: &Key,
        expect: Option<Bytes>,
        new: Option<Bytes>,
        ttl: Option<Duration>,
    ) -> Result<Swapped> {
        self.inner.swap(&[Swap::new(key.clone(), expect, new, ttl)]).await.remove(0)
    }

    async fn current(&self, key: &Key) -> Result<Option<Bytes>> {
        self.inner.get(std::slice::from_ref(key)).await.remove(0)
    }

    /// Writes whatever is there.
    async fn force(&self, key: &Key, new: Option<Bytes>, ttl: Option<Duration>) -> Result<Swapped> {
        let mut seen = self.current(key).await?;
        while let Swapped::Conflict(now) = self.raw(key, seen, new.clone(), ttl).await? {
            seen = now;
        }
        Ok(Swapped::Done)
    }

    fn ttl(&self, swap: &Swap) -> Option<Duration> {
        let ttl = swap.ttl;
        match self.fault {
            Fault::ExpiresEarly => ttl.map(|ttl| ttl.saturating_sub(Duration::from_millis(150))),
            Fault::CountsWholeSeconds => ttl.map(|ttl| Duration::from_secs(ttl.as_secs())),
            // It expires at a whole second: `ttl` after the start of the current second, rounded up.
            Fault::CutsItsClock => ttl.map(|ttl| {
                let seconds = Duration::from_secs(ttl.as_millis().div_ceil(1000) as u64);
                seconds - Duration::from_nanos(self.made.elapsed().subsec_nanos().into())
            }),
            Fault::HasADefaultTtl => ttl.or(Some(Duration::from_secs(2))),
            // As if a signed number of 32 bits had become negative.
            Fault::OverflowsLongTtls => {
                ttl.map(|ttl| if ttl.as_millis() > 1 << 31 { Duration::ZERO } else { ttl })
            }
            Fault::KeepsTheFirstTtl => {
                let mut first = self.first_ttl.lock().unwrap();
                if swap.expect.is_none() {
                    let until = ttl.and_then(|ttl| Instant::now().checked_add(ttl));
                    until.map(|until| first.insert(swap.key.clone(), until));
                    return ttl;
                }
                first
                    .get(&swap.key)
                    .map_or(ttl, |until| Some(until.saturating_duration_since(Instant::now())))
            }
            _ => ttl,
        }
    }

    async fn one(&self, swap: &Swap) -> Result<Swapped> {
        let (key, mut expect, mut new) = (self.key(&swap.key), swap.expect.clone(), swap.new.clone());
        let ttl = self.ttl(swap);
        match self.fault {
            Fault::GrantsTwice => {
                let there = self.current(&key).await?;
                yield_now().await;
                return if there == expect {
                    self.force(&key, new, ttl).await
                } else {
                    Ok(Swapped::Conflict(there))
                };
            }
            Fault::ComparesVersionsThatStartOver => {
                let version = || self.versions.lock().unwrap().get(&key).copied();
                let (seen, there) = (version(), self.current(&key).await?);
                // Requests take different times.
                for _ in 0..self.swaps.fetch_add(1, SeqCst) % 7 {
                    yield_now().await;
                }
                let now = self.current(&key).await?;
                if there != expect || version() != seen {
                    return Ok(Swapped::Conflict(now));
                }
                let outcome = self.raw(&key, now, new.clone(), ttl).await?;
                if outcome == Swapped::Done {
                    let mut versions = self.versions.lock().unwrap();
                    match new {
                        Some(_) => drop(versions.insert(key, seen.map_or(0, |seen| seen + 1))),
                        None => drop(versions.remove(&key)),
                    }
                }
                return Ok(outcome);
            }
            Fault::IgnoresTheExpectedValue => return self.force(&key, new, ttl).await,
            Fault::ForgetsReplacements if expect.is_some() && new.is_some() => {
                return Ok(match self.current(&key).await? {
                    there if there == expect => Swapped::Done,
                    there => Swapped::Conflict(there),
                });
            }
            Fault::ComparesPrefixes => {
                let there = self.current(&key).await?;
                if let (Some(is), Some(want)) = (&there, &expect)
                    && !want.is_empty()
                    && is.starts_with(want)
                {
                    expect = there;
                }
            }
            Fault::TakesEmptyForNothing => {
                expect = expect.filter(|e| !e.is_empty());
                new = new.filter(|n| !n.is_empty());
            }
            Fault::DeletesWhatIsNotThere if new.is_none() && self.current(&key).await?.is_none() => {
                return Ok(Swapped::Done);
            }
            Fault::TakesNoChangeForDone if expect.is_none() && new.is_none() => return Ok(Swapped::Done),
            Fault::BringsBackWhatWasDeleted => {
                let deleted = self.cache.lock().unwrap().get(&key).cloned();
                if expect.is_some() && deleted == Some(expect.clone()) {
                    expect = self.current(&key).await?;
                }
            }
            Fault::NeverDeletes if new.is_none() => new = expect.clone(),
            Fault::WantsTextInValues => {
                let text = |b: Bytes| Bytes::from(String::from_utf8_lossy(&b).into_owned());
                (expect, new) = (expect.map(text), new.map(text));
            }
            Fault::CutsLargeValues => {
                let cut = |b: Bytes| b.slice(..b.len().min(8192));
                (expect, new) = (expect.map(cut), new.map(cut));
            }
            _ => {}
        }
        let outcome = self.raw(&key, expect.clone(), new.clone(), ttl).await?;
        match (self.fault, &outcome) {
            (Fault::SaysThatNothingIsThere, Swapped::Conflict(_)) => return Ok(Swapped::Conflict(None)),
            (Fault::WritesInSpiteOfAConflict, Swapped::Conflict(Some(there))) if new.is_none() => {
                self.raw(&key, Some(there.clone()), None, None).await?;
            }
            (Fault::RefusedSwapsSetTheTtl, Swapped::Conflict(Some(there))) => {
                self.raw(&key, Some(there.clone()), Some(there.clone()), ttl).await?;
            }
            (Fault::CachesValues, _) => {
                self.cache.lock().unwrap().remove(&key);
            }
            (Fault::BringsBackWhatWasDeleted, Swapped::Done) if new.is_none() => {
                self.cache.lock().unwrap().insert(key, expect);
            }
            (Fault::AnswersTextInConflicts, Swapped::Conflict(Some(there))) => {
                let text = String::from_utf8_lossy(there).into_owned();
                return Ok(Swapped::Conflict(Some(text.into())));
            }
            (Fault::TakesItsValuesAlong, Swapped::Done) => self.written.lock().unwrap().push(key),
            _ => {}
        }
        Ok(outcome)
    }

    fn closed(&self, op: &'static str) -> Option<Error> {
        let closed = self.closed.load(SeqCst) && self.fault != Fault::GoesOnAfterClose;
        closed.then(|| Error::not_applied(ErrorKind::Closed, op))
    }
}

#[async_trait]
impl LeaseStore for Faulty {
    async fn get(&self, keys: &[Key]) -> Vec<Result<Option<Bytes>>> {
        if let Some(error) = self.closed("get") {
            return vec![Err(error); keys.len()];
        }
        if let Passage::Arrives(error) | Passage::Lost(error) = self.way.pass("get").await {
            return vec![Err(error); keys.len()];
        }
        let mut renamed: Vec<_> = keys.iter().map(|key| self.key(key)).collect();
        if self.fault == Fault::AnswersGetsInWrongOrder {
            renamed.sort();
        }
        let mut values = self.inner.get(&renamed).await;
        match (self.fault, &mut values[..]) {
            (Fault::CachesValues, [Ok(value)]) => {
                let mut cache = self.cache.lock().unwrap();
                *value = cache.entry(renamed.remove(0)).or_insert_with(|| value.clone()).clone();
            }
            (Fault::MixesUpAnswers, [Ok(value)]) => {
                *self.answer.lock().unwrap() = value.clone();
                yield_now().await;
                *value = self.answer.lock().unwrap().clone();
            }
            (Fault::AnswersOnceForNothing, []) => values.push(Ok(None)),
            _ => {}
        }
        values
    }

    async fn swap(&self, swaps: &[Swap]) -> Vec<Result<Swapped>> {
        if let Some(error) = self.closed("swap") {
            return vec![Err(error); swaps.len()];
        }
        let _under_way = self.under_way.read().await;
        if self.fault == Fault::ClosesWhileCallsAreUnderWay && self.gate.is_cut() {
            tokio::time::sleep(Duration::from_millis(1500)).await;
        }
        let passage = self.way.pass("swap").await;
        if let Passage::Lost(error) = passage {
            return vec![Err(error); swaps.len()];
        }
        if self.fault == Fault::StallsAfterADroppedCall {
            if self.stalled.swap(true, SeqCst) {
                return vec![Err(Error::unknown(ErrorKind::Other, "swap")); swaps.len()];
            }
            tokio::time::sleep(Duration::from_micros(50)).await;
            self.stalled.store(false, SeqCst);
        }
        let mut outcomes = Vec::new();
        for (n, swap) in swaps.iter().enumerate() {
            if self.fault == Fault::SwapsOneByOne {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let lost = self.fault == Fault::LosesOneOfAThousand && n == 998;
            outcomes.push(if lost { Ok(Swapped::Done) } else { self.one(swap).await });
        }
        if self.fault == Fault::AnswersSwapsInWrongOrder {
            outcomes.reverse();
        }
        if self.fault == Fault::AnswersDeletesOfLargeBatchesLast && swaps.len() > 100 {
            let of_swaps = outcomes.into_iter().zip(swaps);
            let (deletes, others): (Vec<_>, Vec<_>) = of_swaps.partition(|(_, swap)| swap.new.is_none());
            outcomes = others.into_iter().chain(deletes).map(|(outcome, _)| outcome).collect();
        }
        match passage {
            Passage::Arrives(error) => vec![Err(error); swaps.len()],
            _ => outcomes,
        }
    }

    async fn check(&self) -> Result<Vec<String>> {
        if let Passage::Arrives(error) | Passage::Lost(error) = self.way.pass("check").await {
            return Err(error);
        }
        if self.fault == Fault::ChecksOneAtATime {
            if self.checking.swap(true, SeqCst) {
                return Err(Error::not_applied(ErrorKind::Other, "check"));
            }
            yield_now().await;
            self.checking.store(false, SeqCst);
        }
        let warnings = if self.fault == Fault::ChecksNothingWell { vec![String::new()] } else { vec![] };
        self.closed("check").map_or(Ok(warnings), Err)
    }

    async fn close(&self) -> Result<()> {
        let again = self.closed.swap(true, SeqCst);
        if self.fault != Fault::ClosesWhileCallsAreUnderWay {
            let _all = self.under_way.write().await;
        }
        if again && self.fault == Fault::ClosesOnce {
            return Err(Error::not_applied(ErrorKind::Closed, "close"));
        }
        let written = std::mem::take(&mut *self.written.lock().unwrap());
        written.iter().for_each(|key| drop(self.inner.remove(key)));
        Ok(())
    }
}

#[test]
fn a_store_without_a_fault_passes() {
    passes(kit(Fault::None).results());
}

const SHARED: &[&str] = &["of_concurrent_creates_one_wins", "swap_is_atomic_under_concurrency"];

#[test]
fn each_fault_of_a_store_is_caught_by_the_case_that_names_the_rule() {
    use Fault::*;
    let table = [
        planted(GrantsTwice, "swap_is_atomic_under_concurrency", SHARED),
        planted(ComparesVersionsThatStartOver, "a_value_is_deleted_only_once_under_concurrency", &[]),
        planted(
            IgnoresTheExpectedValue,
            "a_conflict_changes_nothing",
            &[
                "a_conflict_answers_what_is_there",
                "expected_values_are_compared_byte_for_byte",
                "an_empty_value_is_not_no_value",
                "a_swap_to_nothing_deletes",
                "of_concurrent_creates_one_wins",
                "swap_is_atomic_under_concurrency",
                "outcomes_come_in_order_of_the_swaps",
                "a_batch_may_have_a_thousand_items",
                "a_refused_swap_leaves_the_ttl_alone",
                "another_client_sees_an_answered_swap_at_once",
                "values_may_have_any_bytes",
            ],
        ),
        planted(
            ForgetsReplacements,
            "a_swap_that_was_answered_is_seen",
            &[
                "a_batch_is_cheaper_than_its_swaps_one_by_one",
                "swap_is_atomic_under_concurrency",
                "a_swap_replaces_the_ttl",
                "an_empty_value_is_not_no_value",
                "values_may_have_any_bytes",
                "values_may_have_some_kilobytes",
                "a_batch_may_have_a_thousand_items",
                "another_client_sees_an_answered_swap_at_once",
                "concurrent_calls_get_their_own_answers",
                "a_dropped_call_leaves_the_others_right",
                "it_reconnects_by_itself",
                "no_ttl_is_cut_short",
                "close_ends_this_client_alone",
            ],
        ),
        planted(
            SaysThatNothingIsThere,
            "a_conflict_answers_what_is_there",
            &[
                "an_empty_value_is_not_no_value",
                "a_swap_to_nothing_deletes",
                "of_concurrent_creates_one_wins",
                "swap_is_atomic_under_concurrency",
                "outcomes_come_in_order_of_the_swaps",
                "a_batch_may_have_a_thousand_items",
                "another_client_sees_an_answered_swap_at_once",
                "values_may_have_any_bytes",
            ],
        ),
        planted(
            WritesInSpiteOfAConflict,
            "a_conflict_changes_nothing",
            &["a_conflict_answers_what_is_there"],
        ),
        planted(ComparesPrefixes, "expected_values_are_compared_byte_for_byte", SHARED),
        planted(TakesEmptyForNothing, "an_empty_value_is_not_no_value", &["values_may_have_any_bytes"]),
        planted(
            NeverDeletes,
            "a_swap_to_nothing_deletes",
            &["a_batch_may_have_a_thousand_items", "a_value_is_deleted_only_once_under_concurrency"],
        ),
        planted(DeletesWhatIsNotThere, "a_conflict_answers_what_is_there", &[]),
        planted(TakesNoChangeForDone, "a_conflict_answers_what_is_there", &[]),
        planted(BringsBackWhatWasDeleted, "a_swap_to_nothing_deletes", &[]),
        planted(ExpiresEarly, "no_ttl_is_cut_short", &[]),
        planted(CountsWholeSeconds, "no_ttl_is_cut_short", &["a_swap_replaces_the_ttl"]),
        planted(CutsItsClock, "no_ttl_is_cut_short", &[]),
        planted(KeepsTheFirstTtl, "a_swap_replaces_the_ttl", &[]),
        planted(RefusedSwapsSetTheTtl, "a_refused_swap_leaves_the_ttl_alone", &[]),
        planted(
            HasADefaultTtl,
            "without_a_ttl_a_value_stays",
            &["a_swap_replaces_the_ttl", "an_effect_that_is_not_known_is_reported_as_unknown"],
        ),
        planted(OverflowsLongTtls, "a_ttl_may_be_very_long", &[]),
        planted(LosesOneOfAThousand, "a_batch_may_have_a_thousand_items", &[]),
        planted(SwapsOneByOne, "a_batch_is_cheaper_than_its_swaps_one_by_one", &[]),
        planted(
            AnswersSwapsInWrongOrder,
            "outcomes_come_in_order_of_the_swaps",
            &["a_batch_may_have_a_thousand_items"],
        ),
        planted(AnswersDeletesOfLargeBatchesLast, "a_batch_may_have_a_thousand_items", &[]),
        planted(
            AnswersGetsInWrongOrder,
            "values_come_in_order_of_the_keys",
            &["a_batch_may_have_a_thousand_items", "an_effect_that_is_not_known_is_reported_as_unknown"],
        ),
        planted(AnswersOnceForNothing, "a_batch_may_be_empty_or_have_one_item", &[]),
        planted(
            CutsLongKeys,
            "keys_may_have_every_length_and_character",
            &["keys_that_look_alike_are_different"],
        ),
        planted(IgnoresTheCaseOfKeys, "keys_that_look_alike_are_different", &[]),
        planted(
            WantsTextInValues,
            "values_may_have_any_bytes",
            &["expected_values_are_compared_byte_for_byte", "values_may_have_some_kilobytes"],
        ),
        planted(AnswersTextInConflicts, "values_may_have_any_bytes", &[]),
        planted(CutsLargeValues, "values_may_have_some_kilobytes", &[]),
        planted(
            CachesValues,
            "another_client_sees_an_answered_swap_at_once",
            &[
                "of_concurrent_creates_one_wins",
                "swap_is_atomic_under_concurrency",
                // It caches that a value is there as well.
                "no_ttl_is_cut_short",
            ],
        ),
        planted(
            MixesUpAnswers,
            "concurrent_calls_get_their_own_answers",
            &["of_concurrent_creates_one_wins", "swap_is_atomic_under_concurrency", "no_ttl_is_cut_short"],
        ),
        planted(
            StallsAfterADroppedCall,
            "a_dropped_call_leaves_the_others_right",
            &[
                "no_ttl_is_cut_short",
                "of_concurrent_creates_one_wins",
                "swap_is_atomic_under_concurrency",
                "a_value_is_deleted_only_once_under_concurrency",
                "concurrent_calls_get_their_own_answers",
                "an_effect_that_is_not_known_is_reported_as_unknown",
            ],
        ),
        planted(ChecksNothingWell, "check_answers", &[]),
        planted(ChecksOneAtATime, "clients_may_check_at_once", &[]),
        planted(ClosesOnce, "close_is_idempotent_and_final", &[]),
        planted(ClosesWhileCallsAreUnderWay, "close_waits_for_calls_under_way", &[]),
        planted(GoesOnAfterClose, "close_is_idempotent_and_final", &[]),
        planted(TakesItsValuesAlong, "close_ends_this_client_alone", &[]),
        planted(Network(Manners::Denies), "an_effect_that_is_not_known_is_reported_as_unknown", &[]),
        planted(
            Network(Manners::Hangs),
            "without_a_server_every_call_ends_in_time",
            &[
                "an_effect_that_is_not_known_is_reported_as_unknown",
                "it_reconnects_by_itself",
                "close_waits_for_calls_under_way",
            ],
        ),
        planted(
            Network(Manners::NeverComesBack),
            "it_reconnects_by_itself",
            &["an_effect_that_is_not_known_is_reported_as_unknown"],
        ),
    ];
    prove(|fault| Suite::from(kit(fault)), &table);
}
