//! Publishes the tasks of dead letters again.

use super::{DeadLetter, DeadLetters, Filter, Handled, Letters};
use kafkaq_core::{Effect, Error, ErrorKind, NewRecord, Result, Retry, TaskId};
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// The maximum number of tasks that are published at once. An interruption leaves that many in doubt.
const BATCH: usize = 100;
const BATCH_BYTES: usize = 4 << 20;
const DEFAULT_RATE: u32 = 100;
const DEFAULT_MAX_REDRIVES: u32 = 3;

/// Publishes the tasks of dead letters again: see [`DeadLetters::redrive`].
///
/// ```
/// # use kafkaq::dead_letters::{DeadLetters, Filter, RedriveState};
/// # async fn of(dead: &DeadLetters) -> kafkaq::Result<()> {
/// let mut redrive = dead.redrive(Filter::new().kind("email")).canary(10).rate(50);
/// let report = redrive.run().await?;
/// if report.state == RedriveState::Canary {
///     // Check the outcome of `redrive.canary_ids()`, then continue.
///     redrive.run().await?;
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "nothing is redriven until `run` is called"]
pub struct Redrive {
    dead: DeadLetters,
    filter: Filter,
    rate: u32,
    dry_run: bool,
    canary: u64,
    limit: u64,
    max_redrives: u32,
    include_unreadable: bool,

    letters: Option<Letters>,
    /// Accepted, and not known to be published and marked.
    batch: Vec<DeadLetter>,
    /// When the next batch may be published.
    next: Option<Instant>,
    canary_ids: Vec<TaskId>,
    report: RedriveReport,
}

/// The progress of a [`Redrive`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RedriveReport {
    /// Its state.
    pub state: RedriveState,
    /// How many letters were redriven, or would be in a dry run.
    pub redriven: u64,
    /// How many were skipped because their tasks were redriven as often as
    /// [`max_redrives`](Redrive::max_redrives) allows.
    pub looping: u64,
    /// How many were skipped because they could not be read as tasks.
    pub unreadable: u64,
    /// How many the log has refused permanently, because they are too large for the task topic.
    pub refused: u64,
}

/// The state of a [`Redrive`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RedriveState {
    /// It has not reached any other state: it was not run yet, was interrupted, or failed.
    #[default]
    Running,
    /// The canary is redriven. The next run redrives the rest.
    Canary,
    /// It has redriven as many letters as the limit allows.
    Limit,
    /// It has processed every letter that was there when it started.
    Complete,
}

impl Redrive {
    pub(super) fn new(dead: DeadLetters, filter: Filter) -> Self {
        Redrive {
            dead,
            filter,
            rate: DEFAULT_RATE,
            dry_run: false,
            canary: 0,
            limit: u64::MAX,
            max_redrives: DEFAULT_MAX_REDRIVES,
            include_unreadable: false,
            letters: None,
            batch: Vec::new(),
            next: None,
            canary_ids: Vec::new(),
            report: RedriveReport::default(),
        }
    }

    /// How many tasks are published per second, at least 1. Default: 100.
    pub fn rate(mut self, per_second: u32) -> Self {
        self.rate = per_second;
        self
    }

    /// Only counts: publishes nothing and marks nothing.
    pub fn dry_run(mut self) -> Self {
        self.dry_run = true;
        self
    }

    /// Redrives this many letters first, and pauses: [`run`](Redrive::run) returns, and the next call continues.
    /// Default: no canary.
    pub fn canary(mut self, letters: u64) -> Self {
        self.canary = letters;
        self
    }

    /// Redrives at most this many letters, including the canary.
    pub fn limit(mut self, letters: u64) -> Self {
        self.limit = letters;
        self
    }

    /// Skips tasks that were already redriven this many times. Default: 3.
    pub fn max_redrives(mut self, redrives: u32) -> Self {
        self.max_redrives = redrives;
        self
    }

    /// Also redrives records that could not be read as tasks: payload, key and other headers become a new task.
    pub fn include_unreadable(mut self) -> Self {
        self.include_unreadable = true;
        self
    }

    /// Redrives up to the canary, the limit, or the last letter. Returns the progress of all runs so far.
    ///
    /// It covers the letters that existed at the first run, except those that were handled before this run.
    ///
    /// *Cancel-safety:* safe. The next call, or another redrive, publishes again what is in doubt: at most 100 tasks,
    /// under the same ids, so each runs once while its id is remembered.
    ///
    /// # Errors
    /// The log's own, and `Invalid` for a rate of 0. The progress until then is in [`report`](Redrive::report), and
    /// another call continues.
    pub async fn run(&mut self) -> Result<RedriveReport> {
        if self.rate == 0 {
            let e = Error::not_applied(ErrorKind::Invalid, "redrive dead letters").on("a rate of 0");
            return Err(e.with_advice("It must be at least 1 per second"));
        }
        match &mut self.letters {
            None => self.letters = Some(self.dead.letters(self.filter.clone()).await?),
            Some(letters) => {
                letters.update_marks(&self.dead).await?;
                self.drop_handled();
            }
        }
        let canary = self.canary_left() > 0;
        self.report.state = RedriveState::Running;
        loop {
            let paused = if canary && self.canary_left() == 0 {
                Some(RedriveState::Canary)
            } else if self.report.redriven >= self.limit {
                Some(RedriveState::Limit)
            } else if !self.fill().await? {
                Some(RedriveState::Complete)
            } else {
                None
            };
            if let Some(state) = paused {
                self.report.state = state;
                return Ok(self.report);
            }
            if self.dry_run {
                self.report.redriven += self.batch.len() as u64;
                self.batch.clear();
            } else {
                self.redrive_batch().await?;
            }
        }
    }

    /// Returns the progress so far, even after an error.
    #[must_use]
    pub fn report(&self) -> RedriveReport {
        self.report
    }

    /// Returns the new ids of the canary's tasks, for [`JobController::get`](crate::JobController::get).
    #[must_use]
    pub fn canary_ids(&self) -> &[TaskId] {
        &self.canary_ids
    }

    fn canary_left(&self) -> u64 {
        if self.dry_run { 0 } else { self.canary.saturating_sub(self.report.redriven) }
    }

    /// Reads the next batch. `false` if there is none.
    async fn fill(&mut self) -> Result<bool> {
        let mut room = (u64::from(self.rate) / 10).clamp(1, BATCH as u64);
        room = room.min(self.limit - self.report.redriven);
        if self.canary_left() > 0 {
            room = room.min(self.canary_left());
        }
        let mut bytes: usize = self.batch.iter().map(DeadLetter::size).sum();
        while (self.batch.len() as u64) < room && bytes < BATCH_BYTES {
            let Some(letters) = &mut self.letters else { break };
            let Some(letter) = letters.next().await? else { break };
            if letter.is_unreadable() && !self.include_unreadable {
                self.report.unreadable += 1;
            } else if letter.redrives >= self.max_redrives {
                self.report.looping += 1;
            } else {
                bytes += letter.size();
                self.batch.push(letter);
            }
        }
        Ok(!self.batch.is_empty())
    }

    /// Drops letters that were handled since the last run, and counts those that were redriven: presumably by that run.
    fn drop_handled(&mut self) {
        let Some(letters) = &self.letters else { return };
        let (stay, handled): (Vec<_>, Vec<_>) = std::mem::take(&mut self.batch)
            .into_iter()
            .map(|letter| letters.judged(letter))
            .partition(|letter| letters.selects(letter));
        self.batch = stay;
        for letter in handled.iter().filter(|letter| letter.handled == Some(Handled::Redriven)) {
            self.count(letter.redrive_id());
        }
    }

    fn count(&mut self, id: TaskId) {
        self.report.redriven += 1;
        if self.report.redriven <= self.canary {
            self.canary_ids.push(id);
        }
    }

    async fn redrive_batch(&mut self) -> Result<()> {
        if let Some(next) = self.next {
            sleep_until(next).await;
        }
        self.dead.ensure_marks().await?;
        let began = Instant::now();
        let tasks = self.batch.iter().map(|letter| {
            let (key, payload) = (letter.key.clone(), letter.payload.clone());
            (letter.redrive_id(), NewRecord::new(key, payload, letter.redriven_headers()))
        });
        let outcomes = self.dead.publisher().publish_again(tasks.collect()).await;
        let published: Vec<_> = outcomes.iter().map(Result::is_ok).collect();
        let done = self.batch.iter().zip(&published).filter(|(_, published)| **published);
        let marked = done.map(|(letter, _)| letter);
        self.dead.mark(marked, Handled::Redriven).await?;

        // Nothing is awaited from here on, so what is counted is no longer in the batch.
        let mut failed = None;
        let in_doubt = self.batch.len();
        let mut outcomes = outcomes.into_iter();
        for letter in std::mem::take(&mut self.batch) {
            match outcomes.next() {
                Some(Ok(id)) => self.count(id),
                Some(Err(e)) if is_refusal(&e) => {
                    tracing::warn!(target: "kafkaq", place = %letter.place, "a dead letter can't be redriven: {e}");
                    self.report.refused += 1;
                }
                unpublished => {
                    failed = unpublished.and_then(Result::err).or(failed);
                    self.batch.push(letter);
                }
            }
        }
        let took = Duration::from_secs(1) * (in_doubt - self.batch.len()) as u32 / self.rate;
        self.next = Some(began + took);
        failed.map_or(Ok(()), Err)
    }
}

/// Whether the task can never be published.
fn is_refusal(e: &Error) -> bool {
    e.kind() == ErrorKind::TooLarge && e.effect() == Effect::NotApplied && e.retry() == Retry::No
}
