//! A closure that borrows from the function that sets the worker up.

use kafkaq::worker::*;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct SendEmail;

impl TaskType for SendEmail {
    const KIND: &'static str = "send_email";
}

async fn deliver(_: String) {}

fn worker(queue: kafkaq::Queue) {
    let server = String::from("smtp.example.org");
    let _ = Worker::builder(queue).on(|_: Ctx, _: SendEmail| deliver(server.clone()));
}

fn main() {}
