//! A handler of batches that returns one outcome for all.

use kafkaq::worker::*;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct SendEmail;

impl TaskType for SendEmail {
    const KIND: &'static str = "send_email";
}

async fn send_emails(_: Vec<(Ctx, SendEmail)>) -> Result<(), Failure> {
    Ok(())
}

fn worker(queue: kafkaq::Queue) {
    let second = std::time::Duration::from_secs(1);
    let _ = Worker::builder(queue).on_batch(10, second, send_emails, Options::new());
}

fn main() {}
