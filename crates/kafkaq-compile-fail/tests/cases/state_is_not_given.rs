//! A handler that requires a state that the worker doesn't have.

use kafkaq::worker::*;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct SendEmail;

impl TaskType for SendEmail {
    const KIND: &'static str = "send_email";
}

struct Mailer;

async fn send_email(_: Ctx<Mailer>, _: SendEmail) {}

fn worker(queue: kafkaq::Queue) {
    let _ = Worker::builder(queue).on(send_email);
}

fn main() {}
