//! An async handler where a blocking one is expected.

use kafkaq::worker::*;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct SendEmail;

impl TaskType for SendEmail {
    const KIND: &'static str = "send_email";
}

async fn send_email(_: Ctx, _: SendEmail) -> Result<(), Failure> {
    Ok(())
}

fn worker(queue: kafkaq::Queue) {
    let _ = Worker::builder(queue).on_blocking(send_email, Options::new());
}

fn main() {}
