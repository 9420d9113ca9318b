//! What kafkaq logs.

use std::{
    fmt,
    sync::{Mutex, Once},
};
use tracing::{
    Event, Metadata, Subscriber,
    field::Field,
    span::{Attributes, Id, Record},
};

/// The lines of the whole process: tests recognize theirs by the name of the queue, the kind or the topic.
static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Lines;

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "kafkaq" && metadata.is_event()
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = format!("level={} ", event.metadata().level());
        event.record(&mut |field: &Field, value: &dyn fmt::Debug| line += &format!("{field}={value:?} "));
        LINES.lock().unwrap().push(line);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// Collects the lines from now on.
pub(crate) fn listen() {
    static LISTEN: Once = Once::new();
    LISTEN.call_once(|| tracing::subscriber::set_global_default(Lines).unwrap());
}

/// The lines that contain all of these parts.
pub(crate) fn lines(with: &[&str]) -> Vec<String> {
    let is_one = |line: &&String| with.iter().all(|part| line.contains(part));
    LINES.lock().unwrap().iter().filter(is_one).cloned().collect()
}
