//! A task type that can be serialized but not deserialized.

use kafkaq::worker::*;
use serde::Serialize;

#[derive(Serialize)]
struct SendEmail;

impl TaskType for SendEmail {
    const KIND: &'static str = "send_email";
}

fn main() {}
