//! An axum server that enqueues tasks. It responds with `202 Accepted` once the task is durable, and uses the client's
//! idempotency key as the task id, so a repeated request sends no second e-mail. The example sends itself two requests
//! over the loopback interface. In memory, with nothing installed:
//! ```text
//! cargo run --example email_axum
//! ```
#![allow(clippy::print_stdout)]

use axum::{
    Json, Router,
    extract::State,
    http::{HeaderMap, StatusCode},
    routing::post,
};
use kafkaq::{
    ErrorKind, JobStatus, Publisher, Queue, TaskId,
    worker::{Ctx, TaskType, Worker},
};
use serde::{Deserialize, Serialize};
use std::{
    error::Error,
    future::IntoFuture,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

#[derive(Serialize, Deserialize)]
struct SendEmail {
    to: String,
}

impl TaskType for SendEmail {
    const KIND: &'static str = "send_email";
}

/// A fake mail server.
type Outbox = Arc<Mutex<Vec<String>>>;

async fn send_email(ctx: Ctx<Outbox>, email: SendEmail) {
    ctx.state().lock().unwrap_or_else(PoisonError::into_inner).push(email.to);
}

/// `POST /emails`. A client that got no response repeats the request with the same key.
async fn enqueue(
    State(emails): State<Publisher>,
    headers: HeaderMap,
    Json(email): Json<SendEmail>,
) -> Result<(StatusCode, String), (StatusCode, String)> {
    let failed = |e: kafkaq::Error| match e.kind() {
        ErrorKind::Invalid => (StatusCode::BAD_REQUEST, e.to_string()),
        ErrorKind::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, e.to_string()),
        _ => (StatusCode::SERVICE_UNAVAILABLE, e.to_string()),
    };
    let mut task = emails.enqueue(email);
    if let Some(key) = headers.get("idempotency-key").and_then(|key| key.to_str().ok()) {
        task = task.id(TaskId::new(key).map_err(failed)?);
    }
    let id = task.await.map_err(failed)?;
    Ok((StatusCode::ACCEPTED, id.to_string()))
}

/// Runs the server and a worker, and sends the same request twice.
///
/// # Errors
/// If the loopback interface or the queue fails.
pub(crate) async fn post_twice() -> Result<(), Box<dyn Error>> {
    let queue = Queue::builder("emails").build().await?;
    let outbox = Outbox::default();
    let mut worker = Worker::builder(queue.clone()).state(outbox.clone()).on(send_email).start()?;
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let address = listener.local_addr()?;
    let app = Router::new().route("/emails", post(enqueue)).with_state(queue.publisher());
    let server = tokio::spawn(axum::serve(listener, app).into_future());

    for _ in 0..2 {
        let response = request(address, "welcome-17", r#"{"to":"ada@example.org"}"#).await?;
        println!("{response}\n");
        assert!(response.starts_with("HTTP/1.1 202 Accepted\r\n"), "{response}");
        assert!(response.ends_with("\r\n\r\nwelcome-17"), "{response}");
    }
    let response = request(address, "welcome-18", "{}").await?;
    assert!(response.starts_with("HTTP/1.1 422"), "no task of that type: {response}");

    while queue.jobs().get(&TaskId::new("welcome-17")?).await?.status != JobStatus::Done {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    server.abort();
    worker.stop();
    println!("{}", worker.stopped().await?);
    assert_eq!(*outbox.lock().unwrap_or_else(PoisonError::into_inner), ["ada@example.org"]);
    Ok(())
}

async fn request(to: SocketAddr, key: &str, body: &str) -> io::Result<String> {
    let length = body.len();
    let request = format!(
        "POST /emails HTTP/1.1\r\nhost: {to}\r\nconnection: close\r\nidempotency-key: {key}\r\n\
         content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    let mut stream = TcpStream::connect(to).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut response = String::new();
    stream.read_to_string(&mut response).await?;
    Ok(response)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    post_twice().await
}
