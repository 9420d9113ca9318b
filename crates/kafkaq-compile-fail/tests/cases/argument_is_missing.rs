//! A handler that takes the task, and no context.

use kafkaq::worker::*;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct SendEmail;

impl TaskType for SendEmail {
    const KIND: &'static str = "send_email";
}

async fn send_email(_: SendEmail) {}

fn worker(queue: kafkaq::Queue) {
    let _ = Worker::builder(queue).on(send_email);
}

fn main() {}
