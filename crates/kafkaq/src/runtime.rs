//! The runtime for publishing.
//!
//! The callers of a publisher share its queues and the client's connections, while their own runtimes come and go, are
//! idle between two calls, or don't exist. So nothing that they share may depend on the caller's runtime. It runs on
//! the runtime that the publisher was built on if that has threads of its own; if it has none, or is gone, on a thread
//! that belongs to the process.

use crate::sync::lock;
use kafkaq_core::{Error, ErrorKind, Result};
use std::{
    future::{Future, pending},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Instant,
};
use tokio::{
    runtime::{Builder, Handle, Runtime, RuntimeFlavor},
    task::{AbortHandle, JoinError},
    time::{Sleep, sleep_until},
};

/// The process's own runtime for publishing, once there is one. It is never dropped.
static OWN: Mutex<Option<Runtime>> = Mutex::new(None);

fn own() -> Result<Handle> {
    let mut own = lock(&OWN);
    if let Some(runtime) = &*own {
        return Ok(runtime.handle().clone());
    }
    let mut builder = Builder::new_multi_thread();
    let runtime =
        builder.worker_threads(1).thread_name("kafkaq-publish").enable_all().build().map_err(|e| {
            Error::not_applied(ErrorKind::Unavailable, "start a thread for publishing").with_source(e)
        })?;
    let handle = runtime.handle().clone();
    *own = Some(runtime);
    Ok(handle)
}

/// The runtime for a publisher's requests.
#[derive(Debug)]
pub(crate) struct Home {
    /// The runtime that the publisher was built on, if it runs by itself: that avoids a switch to another thread.
    built_on: Option<(Handle, AbortHandle)>,
    gone: Arc<AtomicBool>,
    own: Handle,
}

/// A task that does nothing, and is dropped when its runtime ends.
struct Sentinel(Arc<AtomicBool>);

impl Drop for Sentinel {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if let Some((_, sentinel)) = &self.built_on {
            sentinel.abort();
        }
    }
}

impl Home {
    /// Finds a home for a publisher that is built here.
    ///
    /// # Errors
    /// `Unavailable` if the system can't start a thread.
    pub(crate) fn find() -> Result<Self> {
        // A current-thread runtime makes no progress unless somebody blocks on it.
        let runs_by_itself = |handle: &Handle| handle.runtime_flavor() == RuntimeFlavor::MultiThread;
        let (own, gone) = (own()?, Arc::new(AtomicBool::new(false)));
        let built_on = Handle::try_current().ok().filter(runs_by_itself).map(|handle| {
            let sentinel = Sentinel(gone.clone());
            let waiting = handle.spawn(async move {
                let _sentinel = sentinel;
                pending::<()>().await;
            });
            (handle, waiting.abort_handle())
        });
        Ok(Home { built_on, gone, own })
    }

    fn handle(&self) -> &Handle {
        match &self.built_on {
            Some((handle, _)) if self.has_threads() => handle,
            _ => &self.own,
        }
    }

    /// Whether requests can run on threads other than the caller's.
    pub(crate) fn has_threads(&self) -> bool {
        self.built_on.is_some() && !self.gone.load(Ordering::Relaxed)
    }

    /// Records that the runtime that the publisher was built on is gone.
    pub(crate) fn leave(&self) {
        self.gone.store(true, Ordering::Relaxed);
    }

    /// Polls a future once on the caller's thread, but in the context of the home, so that its timers and connections
    /// belong there. What doesn't have to wait, such as a log in memory, completes right there, without a switch to
    /// another thread and without advancing a test's paused clock.
    pub(crate) fn poll_here<F: Future + ?Sized>(&self, future: Pin<&mut F>) -> Poll<F::Output> {
        let _context = self.handle().enter();
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    /// Runs a future in the background, independently of the caller. It is dropped if the home goes away.
    pub(crate) fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        drop(self.handle().spawn(future));
    }

    /// Runs a future in the background, independently of any other runtime.
    pub(crate) fn spawn_apart(&self, future: impl Future<Output = ()> + Send + 'static) {
        drop(self.own.spawn(future));
    }

    /// Runs a future at home and returns its output. If this is dropped, the future continues.
    ///
    /// # Errors
    /// If the future panics, or the home goes away.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, JoinError> {
        let mut future = Box::pin(future);
        match self.poll_here(future.as_mut()) {
            Poll::Ready(output) => Ok(output),
            Poll::Pending => self.handle().spawn(future).await,
        }
    }

    /// A timer that depends on no other runtime, and can be polled anywhere.
    pub(crate) fn sleep_until(&self, at: Instant) -> Sleep {
        let _context = self.own.enter();
        sleep_until(at.into())
    }
}
