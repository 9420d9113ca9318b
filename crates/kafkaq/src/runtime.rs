//! The runtime that publishing runs on.
//!
//! The callers of a publisher share its lines and the client's connections, while their own runtimes come and go,
//! stand still between two calls, or don't exist. So whatever they share runs on a runtime that belongs to none of
//! them: one for the whole process, started with the first publisher.

use crate::sync::lock;
use kafkaq_core::{Error, ErrorKind, Result};
use std::{
    future::Future,
    pin::Pin,
    sync::Mutex,
    task::{Context, Poll, Waker},
    time::Instant,
};
use tokio::{
    runtime::{Builder, Handle, Runtime},
    task::JoinError,
    time::{Sleep, sleep_until},
};

/// A single thread: requests are built where the callers are, and what is left to do here is to wait and to answer.
const THREADS: usize = 1;

static RUNTIME: Mutex<Option<Runtime>> = Mutex::new(None);

/// A handle of the runtime that publishing runs on.
#[derive(Clone, Debug)]
pub(crate) struct PublishRuntime(Handle);

impl PublishRuntime {
    /// Starts it if this is the first call in the process.
    ///
    /// # Errors
    /// `Unavailable` when the system gives no thread.
    pub(crate) fn get() -> Result<Self> {
        let mut runtime = lock(&RUNTIME);
        if let Some(runtime) = &*runtime {
            return Ok(PublishRuntime(runtime.handle().clone()));
        }
        let mut builder = Builder::new_multi_thread();
        let built = builder.worker_threads(THREADS).thread_name("kafkaq-publish").enable_all().build();
        let built = built.map_err(|e| {
            Error::not_applied(ErrorKind::Unavailable, "start a thread for publishing").with_source(e)
        })?;
        let handle = built.handle().clone();
        *runtime = Some(built);
        Ok(PublishRuntime(handle))
    }

    /// Polls a future once on the caller's thread, but in the context of this runtime, so that its timers and
    /// connections belong here. What needs no waiting, such as a log in memory, is done by that, without a change of
    /// threads; and under the paused clock of a test without the time going on.
    pub(crate) fn poll_here<F: Future + ?Sized>(&self, future: Pin<&mut F>) -> Poll<F::Output> {
        let _context = self.0.enter();
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    /// Runs a future to its end, whatever becomes of the caller.
    pub(crate) fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        drop(self.0.spawn(future));
    }

    /// Runs a future on this runtime and returns its output. Cancel-safe if the future may run on.
    ///
    /// # Errors
    /// When it panics.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, JoinError> {
        let mut future = Box::pin(future);
        match self.poll_here(future.as_mut()) {
            Poll::Ready(output) => Ok(output),
            Poll::Pending => self.0.spawn(future).await,
        }
    }

    /// A timer that can be polled anywhere.
    pub(crate) fn sleep_until(&self, at: Instant) -> Sleep {
        let _context = self.0.enter();
        sleep_until(at.into())
    }
}
