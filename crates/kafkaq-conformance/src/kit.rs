//! The kit: a backend, the capabilities of its test environment, and its cases.

use crate::{
    BoxError, Outage,
    case::{Capability, Case, Context},
    check::Failed,
};
use libtest_mimic::{Arguments, Completion, Trial};
use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    process::ExitCode,
    sync::{Arc, PoisonError, RwLock},
    thread,
    time::Duration,
};
use tokio::runtime::{Builder, Runtime};

pub(crate) type Making<T> = Pin<Box<dyn Future<Output = Result<Arc<T>, BoxError>>>>;
type Make<T> = Box<dyn Fn() -> Making<T> + Send + Sync>;
pub(crate) type Deleting = Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send>>;
type Delete = Box<dyn Fn(String) -> Deleting + Send + Sync>;
type Close<T> = fn(Arc<T>) -> Pin<Box<dyn Future<Output = kafkaq_core::Result<()>> + Send>>;

/// A case fails if it takes longer than this and longer than ten calls may take.
const CASE_LIMIT: Duration = Duration::from_secs(30);

/// How many cases run at a time, whatever the number of cores: they mostly wait.
const AT_A_TIME: usize = 8;

/// How a backend is reached, and its capabilities.
pub(crate) struct Setup<T: ?Sized> {
    pub(crate) make: Make<T>,
    pub(crate) close: Close<T>,
    pub(crate) outage: Option<Arc<dyn Outage>>,
    pub(crate) delete_topic: Option<Delete>,
    pub(crate) answers_within: Duration,
    paused_clock: bool,
    lacking: Vec<(Capability, String)>,
    /// Write-locked by a case that cuts off the server or needs to be the only client, read-locked by the others.
    turn: RwLock<()>,
}

impl<T: ?Sized> Setup<T> {
    pub(crate) fn lacks(&self, capability: Capability) -> bool {
        self.reason(capability).is_some()
    }

    /// Why there is no such capability.
    fn reason(&self, capability: Capability) -> Option<String> {
        let given = self.lacking.iter().find(|(lacking, _)| *lacking == capability);
        let absent = match capability {
            Capability::Outage if self.outage.is_none() => {
                Some("there is no way to cut off the server: see `with_outage`")
            }
            Capability::TopicDeletion if self.delete_topic.is_none() => {
                Some("there is no way to delete a topic: see `with_topic_deletion`")
            }
            _ => None,
        };
        given.map(|(_, reason)| reason.clone()).or_else(|| absent.map(Into::into))
    }
}

/// A backend under test. Created by [`store`](crate::store), [`log`](crate::log) and [`broker`](crate::broker).
#[must_use = "a kit does nothing until it is run"]
pub struct Kit<T: ?Sized> {
    name: String,
    setup: Setup<T>,
    cases: Vec<Case<T>>,
}

impl<T: ?Sized> fmt::Debug for Kit<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kit")
            .field("name", &self.name)
            .field("cases", &self.cases.len())
            .finish_non_exhaustive()
    }
}

impl<T: ?Sized + Send + Sync + 'static> Kit<T> {
    pub(crate) fn new(name: String, make: Make<T>, close: Close<T>, cases: Vec<Case<T>>) -> Self {
        let setup = Setup {
            make,
            close,
            outage: None,
            delete_topic: None,
            answers_within: Duration::from_secs(30),
            paused_clock: false,
            lacking: Vec::new(),
            turn: RwLock::new(()),
        };
        Kit { name, setup, cases }
    }

    /// Lets the kit cut off the server. Without it, those cases are ignored.
    pub fn with_outage(mut self, outage: impl Outage) -> Self {
        self.setup.outage = Some(Arc::new(outage));
        self
    }

    /// Lets the kit delete a topic of the log by name, as an operator does. When it returns, the topic is gone. Without
    /// it, the cases about recreated topics are ignored.
    pub fn with_topic_deletion<F>(mut self, delete: impl Fn(String) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        self.setup.delete_topic = Some(Box::new(move |name| Box::pin(delete(name))));
        self
    }

    /// Declares a missing capability, with the reason. Cases that need it are ignored with that reason.
    pub fn without(mut self, capability: Capability, reason: impl Into<String>) -> Self {
        self.setup.lacking.push((capability, reason.into()));
        self
    }

    /// The longest that a call may take, with or without a server: the backend's own request timeout plus a margin.
    /// Default: 30 s.
    pub fn answers_within(mut self, limit: Duration) -> Self {
        self.setup.answers_within = limit;
        self
    }

    /// Runs the cases under tokio's paused clock, one after another and each on one thread: for an in-memory backend
    /// that only waits by tokio's clock. Waits then take no time, and no limit depends on the load of the machine.
    pub fn with_paused_clock(mut self) -> Self {
        self.setup.paused_clock = true;
        self
    }

    /// [`Suite::run`] for one backend.
    pub fn run(self) -> ExitCode {
        Suite::from(self).run()
    }

    /// [`Suite::results`] for one backend.
    #[must_use]
    pub fn results(self) -> Vec<Report> {
        Suite::from(self).results()
    }
}

/// The outcome of a case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The rule holds, as far as a test can show.
    Passed,
    /// A capability wasn't provided; says which and why.
    Ignored(String),
    /// The rule is broken, or the backend could not be reached; says how.
    Failed(String),
}

/// A case that was run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// `backend::case`.
    pub name: String,
    /// Its outcome.
    pub outcome: Outcome,
}

/// The cases of one or more backends.
#[must_use = "a suite does nothing until it is run"]
pub struct Suite(Vec<Bound>);

/// A case that knows its backend.
struct Bound {
    name: String,
    run: Box<dyn FnOnce() -> Outcome + Send>,
}

impl fmt::Debug for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|case| &case.name)).finish()
    }
}

impl<T: ?Sized + Send + Sync + 'static> From<Kit<T>> for Suite {
    fn from(kit: Kit<T>) -> Self {
        let setup = Arc::new(kit.setup);
        let bind = |case: Case<T>| {
            let setup = setup.clone();
            let name = format!("{}::{}", kit.name, case.name);
            Bound { name, run: Box::new(move || run_case(&setup, &case)) }
        };
        Suite(kit.cases.into_iter().map(bind).collect())
    }
}

impl Suite {
    /// Adds another backend's cases.
    pub fn and(mut self, other: impl Into<Suite>) -> Self {
        self.0.extend(other.into().0);
        self
    }

    /// Runs the cases as `cargo test` runs tests, with its arguments and its output. For a test with
    /// `harness = false`, whose `main` this is.
    pub fn run(self) -> ExitCode {
        let trial = |case: Bound| {
            Trial::ignorable_test(case.name, || match (case.run)() {
                Outcome::Passed => Ok(Completion::Completed),
                Outcome::Ignored(reason) => Ok(Completion::ignored_with(reason)),
                Outcome::Failed(why) => Err(why.into()),
            })
        };
        let trials = self.0.into_iter().map(trial).collect();
        let mut arguments = Arguments::from_args();
        arguments.test_threads.get_or_insert(AT_A_TIME);
        libtest_mimic::run(&arguments, trials).exit_code()
    }

    /// Runs all cases concurrently, each on its own thread, and returns their outcomes in the order of the cases.
    #[must_use]
    pub fn results(self) -> Vec<Report> {
        let start = |case: Bound| (case.name, thread::spawn(case.run));
        let running: Vec<_> = self.0.into_iter().map(start).collect();
        let finish = |(name, thread): (_, thread::JoinHandle<Outcome>)| Report {
            name,
            outcome: thread.join().unwrap_or_else(|_| Outcome::Failed("the case panicked".into())),
        };
        running.into_iter().map(finish).collect()
    }
}

/// Runs a case in a runtime of its own, so that nothing of it reaches the next.
fn run_case<T: ?Sized + Send + Sync + 'static>(setup: &Arc<Setup<T>>, case: &Case<T>) -> Outcome {
    if let Some(reason) = case.needs.iter().find_map(|need| setup.reason(*need)) {
        return Outcome::Ignored(reason);
    }
    // Each paused clock has its own time, so two cases of one backend can't run at once.
    let alone = case.needs.contains(&Capability::Outage)
        || setup.lacks(Capability::SecondClient)
        || setup.paused_clock;
    let (mut _shared, mut _alone) = (None, None);
    if alone {
        _alone = Some(setup.turn.write().unwrap_or_else(PoisonError::into_inner));
    } else {
        _shared = Some(setup.turn.read().unwrap_or_else(PoisonError::into_inner));
    }
    let runtime = match runtime(setup.paused_clock) {
        Ok(runtime) => runtime,
        Err(error) => return Outcome::Failed(format!("no runtime: {error}")),
    };
    let run = async {
        let context = Arc::new(Context::new(setup.clone()));
        let limit = CASE_LIMIT.max(10 * setup.answers_within);
        let checked = tokio::time::timeout(limit, (case.run)(context.clone())).await;
        context.end().await;
        checked
            .unwrap_or_else(|_| Err(Failed(format!("not finished after {limit:?}: a call doesn't return"))))
    };
    let outcome = match catch_unwind(AssertUnwindSafe(|| runtime.block_on(run))) {
        Ok(Ok(())) => Outcome::Passed,
        Ok(Err(Failed(why))) => Outcome::Failed(why),
        Err(panic) => Outcome::Failed(format!("panicked: {}", words(&*panic))),
    };
    // A backend that blocks a thread must not hold up the report.
    runtime.shutdown_background();
    outcome
}

fn runtime(paused_clock: bool) -> std::io::Result<Runtime> {
    if paused_clock {
        return Builder::new_current_thread().enable_all().start_paused(true).build();
    }
    Builder::new_multi_thread().worker_threads(2).enable_all().build()
}

fn words(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a message")
}
