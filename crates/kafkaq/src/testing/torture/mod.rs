//! The test of idempotency.

mod execution;
mod report;
mod run;

pub(super) use execution::suspended;

pub use report::{Difference, Disturbance, TortureError, TortureReport};

use crate::{
    Result, Task, TaskId,
    worker::{Ctx, IntoOutcome, TaskType, direct::Handler},
};
use report::Problem;
use run::{End, Run};
use std::{fmt, future::Future, time::Duration};

/// Prepares a test of whether a handler is idempotent: whether a task has the same effects when its execution is
/// disturbed and it is executed again.
///
/// ```
/// use kafkaq::{testing::{await_point, torture}, worker::{Ctx, Failure, TaskType}};
/// use serde::{Deserialize, Serialize};
/// use std::sync::Mutex;
///
/// #[derive(Serialize, Deserialize)]
/// struct Charge {
///     cents: u32,
/// }
///
/// impl TaskType for Charge {
///     const KIND: &'static str = "charge";
/// }
///
/// /// A fake of the payment service.
/// #[derive(Default)]
/// struct Payments(Mutex<Vec<u32>>);
///
/// async fn charge(ctx: Ctx<Payments>, task: Charge) -> Result<(), Failure> {
///     await_point().await; // where the real service would be awaited
///     ctx.state().0.lock().unwrap().push(task.cents);
///     await_point().await;
///     Ok(())
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let charges = |payments: &Payments| payments.0.lock().unwrap().clone();
/// let error = torture(charge, Charge { cents: 500 }).run(Payments::default, charges).await.unwrap_err();
/// println!("{error}"); // a crash at await point 2: expected [500], found [500, 500]; and others
/// # let first = &error.differences()[0];
/// # assert_eq!(first.disturbance.to_string(), "a crash at await point 2");
/// # assert_eq!((&*first.expected, &*first.found), ("[500]", "[500, 500]"));
/// # }
/// ```
///
/// # What it does
/// It executes the task undisturbed, and records the effects. Then, each time with a new state, it
/// - drops the handler at each await point, and after it has returned, as a crash would, and executes the task again;
/// - tells the handler at each await point that its lease is lost, lets it end, and executes the task again;
/// - tells it at each await point that the worker is stopping, and executes the task again unless the handler is done;
/// - suspends the handler at each await point, executes the task again up to each of its await points, and then resumes
///   the first execution, as when a lease expires unnoticed; and lets the two take turns.
///
/// A second execution has the same id, the next [`attempt`](Ctx::attempt) and another [`token`](Ctx::token). It is
/// retried until the task has ended. Then the effects have to be the same as undisturbed, and so have the tasks
/// that were [enqueued](Ctx::enqueue), each id once.
///
/// # What it can't see
/// - An await that never suspends the handler doesn't count. Fakes need [`await_point`](super::await_point).
/// - Tasks that the handler has spawned are not dropped with it.
/// - The tests are as deterministic as the handler: random decisions and real servers make them less so.
///
/// # Time
/// Use a paused clock: see [`testing`](super). If the second execution waits for the first, for example for a mutex
/// that the first holds, it gets a [minute](Torture::patience) of tokio's time; then the first is resumed anyway.
pub fn torture<S, T, F, Fut>(handler: F, task: T) -> Torture<S>
where
    S: Send + Sync + 'static,
    T: TaskType,
    F: Fn(Ctx<S>, T) -> Fut + Send + Sync + 'static,
    Fut: Future + Send + 'static,
    Fut::Output: IntoOutcome,
{
    Torture {
        handler: Handler::new(handler),
        task: task.to_task(),
        id: None,
        limit: 500,
        patience: Duration::from_secs(60),
    }
}

/// A test of idempotency that is about to start: see [`torture`].
#[must_use = "nothing is executed until `run` is called"]
pub struct Torture<S> {
    handler: Handler<S>,
    task: Result<Task>,
    id: Option<TaskId>,
    limit: usize,
    patience: Duration,
}

impl<S: Send + Sync + 'static> Torture<S> {
    /// The task's id. Default: `task`.
    pub fn id(mut self, id: TaskId) -> Self {
        self.id = Some(id);
        self
    }

    /// The maximum number of disturbances of each kind. If there are more, they are sampled evenly. Default: 500.
    pub fn limit(mut self, n: usize) -> Self {
        self.limit = n;
        self
    }

    /// How long a handler may be suspended, by tokio's clock. After that it is assumed to wait for the other execution,
    /// or forever. Default: 60 s.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Runs the test. `state` creates the state that the handler gets through [`Ctx::state`], for each disturbance;
    /// `effects` extracts the effects of the task from it: anything that can be compared and printed.
    ///
    /// # Errors
    /// Lists the disturbances that changed the effects, with both versions; or reports that the task does not end
    /// undisturbed.
    pub async fn run<E>(
        self,
        state: impl Fn() -> S,
        effects: impl Fn(&S) -> E,
    ) -> std::result::Result<TortureReport, TortureError>
    where
        E: fmt::Debug + PartialEq,
    {
        let undisturbed = |why| TortureError(Problem::Undisturbed(why));
        let task = self.task.as_ref().map_err(|e| undisturbed(e.to_string()))?;
        let mut run = Run::new(&self, task.clone(), state());
        let (points, end) = run.undisturbed().await;
        if let End::Never(why) = end {
            return Err(undisturbed(why));
        }
        let expected = run.found(end, &effects);
        let disturbances = self.disturbances(points.len());
        let mut differences = Vec::new();
        for disturbance in &disturbances {
            let mut run = Run::new(&self, task.clone(), state());
            let end = run.disturbed(*disturbance).await;
            let found = run.found(end, &effects);
            if found != expected {
                differences.push(Difference {
                    disturbance: *disturbance,
                    place: disturbance.at().and_then(|at| points.get(at.checked_sub(1)?)?.clone()),
                    expected: expected.to_string(),
                    found: found.to_string(),
                });
            }
        }
        let report = TortureReport { await_points: points.len(), disturbances: disturbances.len() };
        if differences.is_empty() {
            return Ok(report);
        }
        Err(TortureError(Problem::Differences(report, differences)))
    }

    fn disturbances(&self, points: usize) -> Vec<Disturbance> {
        let crashes = self.some(points, |n| Disturbance::Crash { at: n + 1 });
        let lost = self.some(points, |n| Disturbance::LeaseLost { at: n + 1 });
        let shutdowns = self.some(points, |n| Disturbance::ShuttingDown { at: n + 1 });
        let side = points + 1;
        let overlaps = self.some(side.saturating_mul(side), |n| {
            let second = if n % side == points { usize::MAX } else { n % side + 1 };
            Disturbance::Overlap { first: n / side, second }
        });
        let all = crashes.chain([Disturbance::CrashAfterReturn]).chain(lost).chain(shutdowns);
        all.chain(overlaps).chain([Disturbance::InTurns]).collect()
    }

    /// Samples the wanted number of disturbances.
    fn some(
        &self,
        of: usize,
        disturbance: impl Fn(usize) -> Disturbance,
    ) -> impl Iterator<Item = Disturbance> {
        let n = of.min(self.limit);
        (0..n).map(move |k| disturbance(if n == of { k } else { k * of / n }))
    }
}

impl<S> fmt::Debug for Torture<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Torture")
            .field("task", &self.task)
            .field("limit", &self.limit)
            .finish_non_exhaustive()
    }
}
