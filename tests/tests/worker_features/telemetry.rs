//! What metrics, traces and the log contain about a run.

use crate::{
    recorder::TestRecorder,
    shared::{Number, Other, Runs, SECOND, build, stop, unhurried, until_all_finished, until_status, worker},
};
use kafkaq::{
    JobStatus,
    worker::{Ctx, Failure, Options, WorkerReport},
};
use kafkaq_opentelemetry::OpenTelemetry;
use kafkaq_tests::{Built, Case, Pair, until};
use opentelemetry::{
    Value,
    trace::{SpanKind, TracerProvider},
};
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};
use std::{
    fmt::{Debug, Write},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, Instant, SystemTime},
};
use tokio::runtime::{self, Handle};
use tracing::{Event, Instrument, Level, Subscriber, field::Field};
use tracing_subscriber::{
    Layer,
    filter::filter_fn,
    layer::{self, SubscriberExt},
};

pub(crate) const CASES: &[Case] = &[
    ("metrics", |pair| Box::pin(metrics(pair))),
    ("trace_over_a_retry", |pair| Box::pin(trace_over_a_retry(pair))),
    ("watchdog", |pair| Box::pin(watchdog(pair))),
];

/// Shared by all cases: each has its own queue.
static RECORDER: OnceLock<Arc<TestRecorder>> = OnceLock::new();
static SPANS: OnceLock<(InMemorySpanExporter, SdkTracerProvider)> = OnceLock::new();
/// The log, with the runtime on which each line was written: each case has its own.
static LINES: Mutex<Vec<(runtime::Id, String)>> = Mutex::new(Vec::new());

/// Keeps the log.
struct Lines;

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: layer::Context<'_, S>) {
        let Ok(runtime) = Handle::try_current() else { return };
        let mut line = String::new();
        event.record(&mut |field: &Field, value: &dyn Debug| write!(line, "{field}={value:?} ").unwrap());
        LINES.lock().unwrap().push((runtime.id(), line));
    }
}

/// Whether this case has logged a line with all of these parts.
fn is_logged(parts: &[&str]) -> bool {
    let here = Handle::current().id();
    let is_one = |line: &str| parts.iter().all(|part| line.contains(part));
    LINES.lock().unwrap().iter().any(|(runtime, line)| *runtime == here && is_one(line))
}

/// Records metrics, spans and log lines of this process from now on.
pub(crate) fn record() {
    let recorder = RECORDER.get_or_init(Arc::default);
    ::metrics::set_global_recorder(recorder.clone()).unwrap();
    let exporter = InMemorySpanExporter::default();
    let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
    let ours = filter_fn(|of| of.target() == "kafkaq" && of.is_span());
    let spans = tracing_opentelemetry::layer().with_tracer(provider.tracer("test")).with_filter(ours);
    let told = filter_fn(|of| of.target() == "kafkaq" && of.is_event() && *of.level() <= Level::INFO);
    let registry = tracing_subscriber::registry().with(spans).with(Lines.with_filter(told));
    tracing::subscriber::set_global_default(registry).unwrap();
    SPANS.set((exporter, provider)).unwrap();
}

async fn metrics(pair: &Pair) {
    let queue = build(pair).await;
    let recorder = RECORDER.get().unwrap();
    let of_queue = [("queue", pair.name())];
    let count =
        |name: &str, labels: &[(&str, &str)]| recorder.counter(name, &[&of_queue[..], labels].concat());
    let of_kinds = |name: &str, labels: &[(&str, &str)]| -> u64 {
        ["number", "other"].map(|kind| count(name, &[&[("kind", kind)], labels].concat())).iter().sum()
    };
    let handler = async |ctx: Ctx, task: Number| -> Result<(), Failure> {
        match (task.0, ctx.attempt()) {
            (1 | 2, 1) => Err(Failure::retry("not now")),
            (3, 1) => Err(Failure::snooze(SECOND)),
            (4..=6, _) => Err(Failure::reject("never")),
            (7, 1) => panic!("on purpose"),
            _ => Ok(()),
        }
    };
    let hangs = async |ctx: Ctx, _: Other| {
        if ctx.attempt() == 1 {
            std::future::pending::<()>().await;
        }
    };
    // On a busy machine any handler may take that long, so only one kind has a timeout.
    let brief = Options::new().timeout(2 * SECOND);
    let running = worker(&queue).grace(Duration::ZERO).on(handler).on_with(hangs, brief).start().unwrap();
    let past = SystemTime::now() - SECOND;
    let expired = queue.enqueue(Number(10)).expires(past).await.unwrap();
    until_status(&queue, &expired, JobStatus::Done).await;
    let hanging = queue.enqueue(Other(0)).await.unwrap();
    for (n, id) in queue.enqueue_many((0..9).map(Number)).await.into_iter().enumerate() {
        let wanted = if (4..=6).contains(&n) { JobStatus::Dead } else { JobStatus::Done };
        until_status(&queue, &id.unwrap(), wanted).await;
    }
    until_status(&queue, &hanging, JobStatus::Done).await;
    let report = stop(running).await;
    let WorkerReport { done, retried, snoozed, dead_lettered, expired, .. } = report;
    assert_eq!((done, snoozed, dead_lettered, expired), (7, 1, 3, 1), "{report}");
    assert!(report.panicked == 1 && report.timed_out >= 1, "{report}");
    assert_eq!(retried, 2 + report.panicked + report.timed_out, "{report}");
    let outcomes = [
        ("done", done),
        ("retried", retried),
        ("snoozed", snoozed),
        ("dead_lettered", dead_lettered),
        ("expired", expired),
        ("released", report.released),
        ("lost", report.lost),
        ("unconfirmed", report.unconfirmed),
    ];
    for (outcome, n) in outcomes {
        assert_eq!(of_kinds("kafkaq_executions_total", &[("outcome", outcome)]), n, "{outcome}");
    }
    assert_eq!(count("kafkaq_panics_total", &[("kind", "number")]), report.panicked);
    assert_eq!(count("kafkaq_timeouts_total", &[("kind", "other")]), report.timed_out);
    let executions: u64 = outcomes.iter().map(|(_, n)| n).sum();
    assert_eq!(count("kafkaq_handed_out_total", &[]), executions);
    assert_eq!(count("kafkaq_published_total", &[]), 11);
    assert_eq!(count("kafkaq_dead_letters_total", &[("reason", "rejected")]), dead_lettered);
    assert_eq!(count("kafkaq_redelivered_total", &[("cause", "failed")]), retried);
    assert_eq!(count("kafkaq_redelivered_total", &[("cause", "given_back")]), snoozed);
    let mut started = 0;
    for kind in ["number", "other"] {
        let labels = [&of_queue[..], &[("kind", kind)]].concat();
        started += recorder.histogram("kafkaq_execution_seconds", &labels).len() as u64;
        assert_eq!(recorder.gauge("kafkaq_executions_running", &labels), 0.0);
    }
    assert_eq!(started, executions - expired, "each that was started");
    let ended: u64 = ["done", "retried", "snoozed", "dead_lettered"]
        .map(|ending| count("kafkaq_jobs_ended_total", &[("ending", ending)]))
        .iter()
        .sum();
    assert_eq!(ended, executions);
}

fn attribute(span: &SpanData, name: &str) -> Option<String> {
    let found = span.attributes.iter().find(|attribute| attribute.key.as_str() == name);
    found.map(|attribute| match &attribute.value {
        Value::String(text) => text.to_string(),
        other => other.to_string(),
    })
}

/// The spans of that name that have ended, oldest first.
async fn spans(name: &str, n: usize) -> Vec<SpanData> {
    let (exporter, _) = SPANS.get().unwrap();
    let named = || {
        let all = exporter.get_finished_spans().unwrap();
        all.into_iter().filter(|span| span.name == *name).collect::<Vec<_>>()
    };
    until(name, || named().len() >= n).await;
    named()
}

async fn trace_over_a_retry(pair: &Pair) {
    let publisher = pair.queue().propagator(OpenTelemetry::new()).built_publisher().await;
    let queue = unhurried(pair).propagator(OpenTelemetry::new()).built().await;
    let running = worker(&queue)
        .on(async |ctx: Ctx, _: Number| match ctx.attempt() {
            1 | 2 => Err(Failure::retry("the server is busy")),
            _ => Ok(()),
        })
        .start()
        .unwrap();
    let request = tracing::info_span!(target: "kafkaq", "request", otel.name = pair.name());
    let enqueue = publisher.enqueue(Number(0));
    let id = async move { enqueue.await.unwrap() }.instrument(request).await;
    until_status(&queue, &id, JobStatus::Done).await;

    let request = spans(pair.name(), 1).await.remove(0);
    let publish = spans(&format!("publish {}", pair.name()), 1).await;
    let executions = spans(&format!("execute {}", pair.name()), 3).await;
    let trace = request.span_context.trace_id();
    assert_eq!(publish.len(), 1);
    assert_eq!(
        (publish[0].span_context.trace_id(), publish[0].parent_span_id),
        (trace, request.span_context.span_id())
    );
    assert_eq!(executions.len(), 3);
    for (n, execution) in (1..).zip(&executions) {
        assert_eq!(
            (execution.span_context.trace_id(), execution.parent_span_id),
            (trace, publish[0].span_context.span_id())
        );
        assert_eq!(execution.span_kind, SpanKind::Consumer);
        assert_eq!(attribute(execution, "kafkaq.attempt"), Some(n.to_string()));
        assert_eq!(attribute(execution, "messaging.message.id").as_deref(), Some(id.as_str()));
        let outcome = if n == 3 { "done" } else { "retry" };
        assert_eq!(attribute(execution, "kafkaq.outcome").as_deref(), Some(outcome));
    }
    stop(running).await;
}

/// Handlers block all threads for longer than a lease.
async fn watchdog(pair: &Pair) {
    const LEASE: Duration = Duration::from_secs(10);
    const THREADS: usize = 2;
    let queue = pair.queue().lease_duration(LEASE).built().await;
    let (runs, is_over) = (Runs::default(), Arc::new(AtomicBool::new(false)));
    let (noted, over) = (runs.clone(), is_over.clone());
    let running = worker(&queue)
        .threads(THREADS)
        .on(move |ctx: Ctx, task: Number| {
            let (runs, over) = (noted.clone(), over.clone());
            async move {
                runs.note(&ctx, task.0);
                while !over.load(SeqCst) {
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
        })
        .start()
        .unwrap();
    let ids = queue.enqueue_many([Number(0), Number(1)]).await;
    until("all threads to be blocked", || runs.len() == THREADS).await;
    let begun = Instant::now();
    until("its line", || is_logged(&["handlers block all threads", "2 of `number`"])).await;
    until("the ends of their first leases", || begun.elapsed() >= LEASE + 2 * SECOND).await;
    is_over.store(true, SeqCst);
    until("the line that follows", || is_logged(&["threads are free again"])).await;
    for id in ids {
        until_status(&queue, &id.unwrap(), JobStatus::Done).await;
    }
    until_all_finished(pair, &[&queue]).await;
    let report = stop(running).await;
    assert_eq!(runs.numbers(), [0, 1], "one execution each");
    assert_eq!((report.done, report.retried, report.lost), (2, 0, 0), "{report}");
}
