//! A handler that holds an `Rc` while it waits.

use kafkaq::worker::*;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct SendEmail;

impl TaskType for SendEmail {
    const KIND: &'static str = "send_email";
}

async fn send_email(_: Ctx, _: SendEmail) {
    let shared = std::rc::Rc::new(1);
    std::future::ready(()).await;
    drop(shared);
}

fn worker(queue: kafkaq::Queue) {
    let _ = Worker::builder(queue).on(send_email);
}

fn main() {}
