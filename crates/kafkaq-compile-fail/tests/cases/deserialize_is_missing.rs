//! A type of task that can be written but not read.

use kafkaq::worker::*;
use serde::Serialize;

#[derive(Serialize)]
struct SendEmail;

impl TaskType for SendEmail {
    const KIND: &'static str = "send_email";
}

fn main() {}
