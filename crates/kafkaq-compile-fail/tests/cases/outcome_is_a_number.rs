//! A handler that returns something that isn't an outcome.

use kafkaq::worker::*;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct SendEmail;

impl TaskType for SendEmail {
    const KIND: &'static str = "send_email";
}

async fn send_email(_: Ctx, _: SendEmail) -> u32 {
    250
}

fn worker(queue: kafkaq::Queue) {
    let _ = Worker::builder(queue).on(send_email);
}

fn main() {}
