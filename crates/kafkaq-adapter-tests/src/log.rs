//! Captures what an operator would read in the log.

use std::{
    fmt,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};
use tracing::{Dispatch, Event, Level, Metadata, Subscriber, field::Field, span, subscriber::DefaultGuard};

/// Keeps the logged lines, from INFO on, each with its level and target.
#[derive(Debug)]
pub struct Log {
    lines: Arc<Mutex<Vec<String>>>,
    _guard: Option<DefaultGuard>,
}

impl Log {
    /// Captures the lines of this thread.
    #[must_use]
    pub fn capture() -> Self {
        silence_no_place();
        let lines = Arc::<Mutex<Vec<String>>>::default();
        let _guard =
            Some(tracing::subscriber::set_default(Lines { kept: lines.clone(), with_thread: false }));
        Log { lines, _guard }
    }

    /// Captures the lines of all threads, each with the thread's name, except threads with a subscriber of their own.
    /// Only once per process.
    #[must_use]
    pub fn capture_all_threads() -> Self {
        let lines = Arc::<Mutex<Vec<String>>>::default();
        tracing::subscriber::set_global_default(Lines { kept: lines.clone(), with_thread: true }).unwrap();
        Log { lines, _guard: None }
    }

    /// The lines so far.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Of these, warnings and errors, if lines have no thread's name in front.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let is_loud = |line: &String| line.starts_with("WARN ") || line.starts_with("ERROR ");
        self.lines().into_iter().filter(is_loud).collect()
    }
}

/// Must be called before a subscriber is set for one thread. While there is only one subscriber, `tracing` caches a
/// callsite's interest as seen by the first thread that reaches it. If that thread belongs to another test, nobody is
/// interested, and the callsite stays disabled. So this adds another subscriber permanently.
fn silence_no_place() {
    static ANOTHER: OnceLock<Dispatch> = OnceLock::new();
    ANOTHER.get_or_init(|| Dispatch::new(Lines { kept: Arc::default(), with_thread: false }));
}

struct Lines {
    kept: Arc<Mutex<Vec<String>>>,
    with_thread: bool,
}

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO
    }

    fn event(&self, event: &Event<'_>) {
        let thread = std::thread::current();
        let thread = if self.with_thread { thread.name().unwrap_or_default() } else { "" };
        let mut line = format!("{thread}{} {}:", event.metadata().level(), event.metadata().target());
        event.record(&mut |_: &Field, value: &dyn fmt::Debug| line.push_str(&format!(" {value:?}")));
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}
