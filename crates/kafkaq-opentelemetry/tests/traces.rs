//! The traces of tasks, from publishing to the last execution, by the spans that OpenTelemetry would export.

#![allow(clippy::unwrap_used, clippy::panic)]

use kafkaq::{
    Headers, Propagator, Queue, Task,
    dead_letters::Filter,
    memory::{MemoryLog, MemoryStore},
    worker::{Backoff, Ctx, Failure, TaskType, Worker, WorkerHandle},
};
use kafkaq_opentelemetry::OpenTelemetry;
use opentelemetry::{
    Value,
    trace::{SpanId, SpanKind, Status, TraceContextExt, TraceId, Tracer, TracerProvider},
};
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};
use serde::{Deserialize, Serialize};
use std::{sync::OnceLock, time::Duration};
use tokio::time::sleep;
use tracing::{Dispatch, Instrument, subscriber::DefaultGuard};
use tracing_subscriber::layer::SubscriberExt;

const SECOND: Duration = Duration::from_secs(1);
/// Nothing in these tests takes this long, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(90);

#[derive(Serialize, Deserialize)]
struct Mail {
    /// How many executions fail, or whether all are rejected.
    failures: u32,
    rejected: bool,
}

impl TaskType for Mail {
    const KIND: &'static str = "mail";
}

/// What would be exported by this thread: the tests' runtimes have no others.
struct Traces {
    exporter: InMemorySpanExporter,
    provider: SdkTracerProvider,
    _guard: DefaultGuard,
}

impl Traces {
    fn record() -> Self {
        // While there is only one subscriber, `tracing` caches a callsite's interest as seen by the first thread that
        // reaches it, and on a thread of another test nobody is interested. So this adds another subscriber
        // permanently.
        static ANOTHER: OnceLock<Dispatch> = OnceLock::new();
        ANOTHER.get_or_init(|| Dispatch::new(tracing_subscriber::registry()));
        let exporter = InMemorySpanExporter::default();
        let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
        let guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(layer));
        Traces { exporter, provider, _guard: guard }
    }

    fn named(&self, name: &str) -> Vec<SpanData> {
        let all = self.exporter.get_finished_spans().unwrap();
        all.into_iter().filter(|span| span.name == name).collect()
    }

    async fn until(&self, name: &str, n: usize) -> Vec<SpanData> {
        let begun = std::time::Instant::now();
        while self.named(name).len() < n {
            assert!(begun.elapsed() < PATIENCE, "waited for {n} times {name}: {:?}", self.named(name));
            sleep(Duration::from_millis(50)).await;
        }
        self.named(name)
    }
}

fn attribute(span: &SpanData, name: &str) -> Option<String> {
    let found = span.attributes.iter().find(|attribute| attribute.key.as_str() == name);
    found.map(|attribute| match &attribute.value {
        Value::String(text) => text.to_string(),
        other => other.to_string(),
    })
}

fn trace(span: &SpanData) -> TraceId {
    span.span_context.trace_id()
}

async fn queue(propagator: OpenTelemetry, log: &MemoryLog, max_failures: u32) -> Queue {
    let builder = Queue::builder("mails").broker(log.clone()).store(MemoryStore::new());
    builder.max_failures(max_failures).propagator(propagator).build().await.unwrap()
}

fn work(queue: &Queue) -> WorkerHandle {
    Worker::builder(queue.clone())
        .retry(Backoff::fixed(SECOND).jitter(false))
        .on(async |ctx: Ctx, mail: Mail| -> Result<(), Failure> {
            tracing::info_span!("inside").in_scope(|| ());
            match (mail.rejected, ctx.attempt() <= mail.failures) {
                (true, _) => Err(Failure::reject("no such mailbox")),
                (_, true) => Err(Failure::retry("the server is busy")),
                _ => Ok(()),
            }
        })
        .start()
        .unwrap()
}

#[tokio::test(start_paused = true)]
async fn all_executions_of_a_task_are_in_the_trace_of_its_publisher() {
    let traces = Traces::record();
    let queue = queue(OpenTelemetry::new(), &MemoryLog::new(), 25).await;
    let running = work(&queue);
    let request = tracing::info_span!("request");
    let id = queue.enqueue(Mail { failures: 2, rejected: false });
    let id = async move { id.await.unwrap() }.instrument(request.clone()).await;
    drop(request);
    let executions = traces.until("execute mails", 3).await;
    let (request, publish) = (traces.named("request").remove(0), traces.named("publish mails").remove(0));
    assert_eq!((publish.parent_span_id, trace(&publish)), (request.span_context.span_id(), trace(&request)));
    assert_eq!(publish.span_kind, SpanKind::Producer);
    for (n, execution) in (1..).zip(&executions) {
        assert_eq!(
            (trace(execution), execution.parent_span_id),
            (trace(&publish), publish.span_context.span_id())
        );
        assert_eq!(execution.span_kind, SpanKind::Consumer);
        assert_eq!(attribute(execution, "kafkaq.attempt"), Some(n.to_string()));
        assert_eq!(attribute(execution, "kafkaq.failures"), Some((n - 1).to_string()));
        let (outcome, status) = match n {
            3 => ("done", Status::Unset),
            _ => ("retry", Status::error("the server is busy")),
        };
        assert_eq!(attribute(execution, "kafkaq.outcome").unwrap(), outcome);
        assert_eq!(execution.status, status);
    }
    for (span, operation, of_type) in [(&publish, "publish", "send"), (&executions[0], "execute", "process")]
    {
        let conventions = [
            ("messaging.system", "kafkaq"),
            ("messaging.operation.name", operation),
            ("messaging.operation.type", of_type),
            ("messaging.destination.name", "mails"),
            ("messaging.message.id", id.as_str()),
        ];
        for (name, value) in conventions {
            assert_eq!(attribute(span, name).as_deref(), Some(value), "{name}");
        }
    }
    let inside = traces.named("inside");
    assert_eq!(inside.len(), 3);
    for (inside, execution) in inside.iter().zip(&executions) {
        assert_eq!(inside.parent_span_id, execution.span_context.span_id(), "handlers run inside the span");
    }
    drop(running);
}

#[tokio::test(start_paused = true)]
async fn dead_letter_that_is_redriven_is_still_in_its_trace() {
    let traces = Traces::record();
    let log = MemoryLog::new();
    let queue = queue(OpenTelemetry::new(), &log, 25).await;
    let running = work(&queue);
    queue.enqueue(Mail { failures: 0, rejected: true }).await.unwrap();
    let first = traces.until("execute mails", 1).await.remove(0);
    assert_eq!(
        (attribute(&first, "kafkaq.outcome").unwrap(), first.status),
        ("reject".into(), Status::error("no such mailbox"))
    );
    let builder = Queue::builder("mails").propagator(OpenTelemetry::new());
    let dead = builder.build_dead_letters(log).await.unwrap();
    let begun = std::time::Instant::now();
    while dead
        .redrive(Filter::new())
        .run()
        .instrument(tracing::info_span!("operator"))
        .await
        .unwrap()
        .redriven
        == 0
    {
        assert!(begun.elapsed() < PATIENCE, "waited for the dead letter");
        sleep(Duration::from_millis(50)).await;
    }
    let executions = traces.until("execute mails", 2).await;
    let publish = traces.named("publish mails");
    assert_eq!(publish.len(), 1);
    for execution in executions {
        assert_eq!(
            (trace(&execution), execution.parent_span_id),
            (trace(&publish[0]), publish[0].span_context.span_id())
        );
    }
    drop(running);
}

#[tokio::test(start_paused = true)]
async fn linked_executions_have_separate_traces() {
    let traces = Traces::record();
    let queue = queue(OpenTelemetry::new().with_links(), &MemoryLog::new(), 25).await;
    let running = work(&queue);
    queue.enqueue(Mail { failures: 1, rejected: false }).await.unwrap();
    let executions = traces.until("execute mails", 2).await;
    let publish = traces.named("publish mails").remove(0);
    let mut seen = vec![trace(&publish)];
    for execution in &executions {
        assert_eq!(execution.parent_span_id, SpanId::INVALID);
        assert!(!seen.contains(&trace(execution)));
        seen.push(trace(execution));
        let links: Vec<_> = execution.links.iter().map(|link| link.span_context.span_id()).collect();
        assert_eq!(links, [publish.span_context.span_id()]);
    }
    drop(running);
}

#[tokio::test(start_paused = true)]
async fn tasks_of_one_call_share_its_span_and_children_are_in_the_trace_of_their_parent() {
    let traces = Traces::record();
    let queue = queue(OpenTelemetry::new(), &MemoryLog::new(), 25).await;
    let running = Worker::builder(queue.clone())
        .on(async |ctx: Ctx, _: Mail| -> Result<(), Failure> {
            ctx.enqueue(Child).await?;
            Ok(())
        })
        .on(async |_: Ctx, _: Child| {})
        .start()
        .unwrap();
    let mail = || Mail { failures: 0, rejected: false };
    queue.enqueue_many([mail(), mail()]).await;
    let executions = traces.until("execute mails", 4).await;
    let published = traces.named("publish mails");
    assert_eq!(published.len(), 3, "one for both, and one for each child");
    let first = published.iter().find(|s| s.parent_span_id == SpanId::INVALID).unwrap();
    assert_eq!(attribute(first, "messaging.batch.message_count").as_deref(), Some("2"));
    assert!(executions.iter().all(|execution| trace(execution) == trace(first)));
    drop(running);
}

#[derive(Serialize, Deserialize)]
struct Child;

impl TaskType for Child {
    const KIND: &'static str = "child";
}

#[tokio::test]
async fn existing_context_of_a_task_is_kept() {
    let traces = Traces::record();
    let given = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let mut headers = Headers::new();
    headers.push("traceparent", Some(given.into()));
    let span = tracing::info_span!("request");
    span.in_scope(|| OpenTelemetry::new().inject(&mut headers));
    assert_eq!((headers.len(), headers.get("traceparent").unwrap()), (1, &given.into()));
    drop(span);

    // If no span of `tracing` is current, OpenTelemetry's own current span is used.
    let tracer = traces.provider.tracer("other");
    let context = opentelemetry::Context::new().with_span(tracer.start("plain"));
    let trace_id = context.span().span_context().trace_id().to_string();
    let mut headers = Headers::new();
    {
        let _attached = context.attach();
        OpenTelemetry::new().inject(&mut headers);
    }
    let parent = String::from_utf8(headers.get("traceparent").unwrap().to_vec()).unwrap();
    assert!(parent.contains(&trace_id), "{parent}");
}

#[tokio::test(start_paused = true)]
async fn without_a_context_nothing_is_added_and_executions_begin_traces() {
    let queue = queue(OpenTelemetry::new(), &MemoryLog::new(), 25).await;
    queue.publish(Task::new("plain")).await.unwrap();
    let job = queue.get_job().await.unwrap();
    assert!(job.headers().is_empty(), "{:?}", job.headers());
    job.release().await.unwrap();
    let traces = Traces::record();
    let running = Worker::builder(queue).otherwise(async |_: Ctx| {}).start().unwrap();
    let execution = traces.until("execute mails", 1).await.remove(0);
    assert_eq!(
        (execution.parent_span_id, attribute(&execution, "kafkaq.kind")),
        (SpanId::INVALID, Some("otherwise".into()))
    );
    drop(running);
}
