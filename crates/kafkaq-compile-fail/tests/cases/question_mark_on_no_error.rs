//! A `?` on something that isn't an error.

use kafkaq::worker::*;

struct Refused;

fn deliver() -> Result<(), Refused> {
    Err(Refused)
}

async fn send_email(_: Ctx) -> Result<(), Failure> {
    deliver()?;
    Ok(())
}

fn main() {}
