//! Helpers for testing handlers. Nothing here needs a server.
//!
//! - [`perform`] executes one task and returns its outcome.
//! - [`Harness`] runs a worker on an in-memory queue until it is idle, and reports the outcome of each task.
//! - [`torture`] crashes a handler at each await point, runs it twice concurrently and takes its lease away, and finds
//!   effects that are duplicated.
//!
//! ```
//! use kafkaq::{testing::torture, worker::{Ctx, Failure, TaskType}};
//! use serde::{Deserialize, Serialize};
//! use std::{collections::BTreeMap, sync::Mutex};
//!
//! #[derive(Serialize, Deserialize)]
//! struct Charge {
//!     cents: u32,
//! }
//!
//! impl TaskType for Charge {
//!     const KIND: &'static str = "charge";
//! }
//!
//! /// A fake of the payment service: one charge per idempotency key.
//! #[derive(Default)]
//! struct Payments(Mutex<BTreeMap<String, u32>>);
//!
//! async fn charge(ctx: Ctx<Payments>, task: Charge) -> Result<(), Failure> {
//!     kafkaq::testing::await_point().await; // where the real service would be awaited
//!     ctx.state().0.lock().unwrap().insert(ctx.id().to_string(), task.cents);
//!     kafkaq::testing::await_point().await;
//!     Ok(())
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let charges = |payments: &Payments| payments.0.lock().unwrap().clone();
//! let report = torture(charge, Charge { cents: 500 }).run(Payments::default, charges).await.unwrap();
//! assert_eq!(report.await_points, 2);
//! # }
//! ```
//!
//! # Time
//! Use `#[tokio::test(start_paused = true)]`, with tokio's feature `test-util`. With a paused clock, delays, retries
//! and timeouts of hours pass instantly. Without it everything here works as well, but takes real time. A handler that
//! talks to a real server needs a running clock: a paused one skips to the next timeout while the response is still on
//! its way.

mod fake_job;
mod harness;
mod perform;
mod published;
mod report;
mod torture;

pub(crate) use fake_job::FakeJob;
pub use harness::Harness;
pub use perform::{Perform, Performed, perform};
pub use report::{Event, Report, TaskReport};
pub use torture::{Difference, Disturbance, Torture, TortureError, TortureReport, torture};

use std::{
    future::{Future, poll_fn},
    panic::Location,
    task::Poll,
};

/// Returns control to the runtime once, as a call to a server would. For fakes: one that returns immediately gives
/// [`torture`] no point to crash its caller. A fake should have one before and one after its effect, since both
/// requests and responses can be lost. Reports name the file and the line of the call.
#[track_caller]
pub fn await_point() -> impl Future<Output = ()> + Send + 'static {
    let place = Location::caller();
    suspend(move || format!("{}:{}", place.file(), place.line()))
}

/// Returns control to the runtime once, at this location.
pub(crate) async fn suspend(place: impl FnOnce() -> String) {
    let mut place = Some(place);
    poll_fn(|cx| {
        let Some(place) = place.take() else { return Poll::Ready(()) };
        torture::suspended(place());
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Fails the calling test.
#[track_caller]
#[expect(clippy::panic, reason = "that is how tests fail")]
fn fail(why: impl std::fmt::Display) -> ! {
    panic!("{why}")
}
