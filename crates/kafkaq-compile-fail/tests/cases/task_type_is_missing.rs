//! A handler of a type that isn't a task type.

use kafkaq::worker::*;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct SendEmail;

async fn send_email(_: Ctx, _: SendEmail) {}

fn worker(queue: kafkaq::Queue) {
    let _ = Worker::builder(queue).on(send_email);
}

fn main() {}
