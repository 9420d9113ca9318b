//! The runtime of a call.
//!
//! Calls share connections, requests and locks, while the runtimes of their callers come and go, or are idle between
//! two calls. A multi-thread runtime makes progress by itself; when it ends, its connections and requests fail, which
//! the others notice. A current-thread runtime makes progress only while somebody blocks on it, and otherwise would
//! hold up everybody who shares something with it. So its calls run on a thread of the process.

use crate::failure::Failure;
use kafkaq_core::lock;
use std::{
    future::pending,
    io,
    panic::resume_unwind,
    sync::{Arc, Mutex},
    thread::Builder as Thread,
};
use tokio::{
    runtime::{Builder, Handle, RuntimeFlavor},
    task::{JoinError, JoinHandle},
};
use tracing::instrument::{Instrument, WithSubscriber};

/// The process's own runtime, once there is one. It never ends.
static OWN: Mutex<Option<Handle>> = Mutex::new(None);

fn own() -> io::Result<Handle> {
    let mut own = lock(&OWN);
    if let Some(handle) = &*own {
        return Ok(handle.clone());
    }
    let runtime = Arc::new(Builder::new_current_thread().enable_all().build()?);
    let (handle, driven) = (runtime.handle().clone(), runtime.clone());
    let started = Thread::new().name("kafkaq-rskafka".into()).spawn(move || driven.block_on(pending::<()>()));
    if let Err(e) = started {
        // Dropping a runtime blocks, which panics on a thread of another runtime.
        if let Some(runtime) = Arc::into_inner(runtime) {
            runtime.shutdown_background();
        }
        return Err(e);
    }
    *own = Some(handle.clone());
    Ok(handle)
}

/// Whether the caller's runtime makes progress by itself, so that a call may run on it.
pub(crate) fn runs_by_itself() -> bool {
    Handle::try_current().is_ok_and(|here| here.runtime_flavor() == RuntimeFlavor::MultiThread)
}

/// Ends a task that nobody waits for any more.
struct AbortOnDrop<T>(JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Runs a call on a runtime that makes progress by itself.
///
/// # Errors
/// Those of the call, and if it needs a thread and the system can't start one.
pub(crate) async fn run<T: Send + 'static>(
    call: impl Future<Output = Result<T, Failure>> + Send + 'static,
) -> Result<T, Failure> {
    if runs_by_itself() {
        return call.await;
    }
    let own = own().map_err(Failure::no_thread)?;
    // What it logs goes where its caller's logs go.
    let mut task = AbortOnDrop(own.spawn(call.in_current_span().with_current_subscriber()));
    match (&mut task.0).await.map_err(JoinError::try_into_panic) {
        Ok(outcome) => outcome,
        Err(Ok(panic)) => resume_unwind(panic),
        // Nobody else aborts it.
        Err(Err(_aborted)) => pending().await,
    }
}

/// The lifetime of the runtime that it is created on.
pub(crate) struct Lifetime(AbortOnDrop<()>);

impl Lifetime {
    pub(crate) fn begin() -> Self {
        Lifetime(AbortOnDrop(tokio::spawn(pending())))
    }

    /// Returns when the runtime has ended.
    pub(crate) async fn ended(&mut self) {
        // An error, since the task was dropped.
        let _ = (&mut self.0.0).await;
    }
}

/// Spawns a task that outlives the call that it is spawned by.
pub(crate) fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    match runs_by_itself() {
        true => drop(tokio::spawn(task)),
        // On a thread of its own, a call logs where its caller does.
        false => drop(tokio::spawn(task.with_current_subscriber())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        pin::pin,
        task::{Context, Poll, Waker},
        thread,
    };

    async fn place() -> Option<String> {
        run(async { Ok(thread::current().name().map(String::from)) }).await.unwrap()
    }

    #[test]
    fn a_call_stays_on_a_runtime_that_runs_by_itself_and_leaves_any_other() {
        let many = Builder::new_multi_thread().worker_threads(1).thread_name("many").build().unwrap();
        let here = thread::current().name().map(String::from);
        assert_eq!(many.block_on(place()), here);
        assert_eq!(many.block_on(async { tokio::spawn(place()).await.unwrap() }), Some("many".into()));
        let one = Builder::new_current_thread().build().unwrap();
        assert_eq!(one.block_on(place()), Some("kafkaq-rskafka".into()));
        let mut nowhere = pin!(place());
        let found = loop {
            match nowhere.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(found) => break found,
                Poll::Pending => thread::yield_now(),
            }
        };
        assert_eq!(found, Some("kafkaq-rskafka".into()));
    }

    #[test]
    #[should_panic(expected = "as it would anywhere")]
    fn a_panic_reaches_the_caller() {
        let one = Builder::new_current_thread().build().unwrap();
        let _ = one.block_on(run::<()>(async { panic!("as it would anywhere") }));
    }
}
