//! Stops a worker on a signal.

use super::{WorkerHandle, WorkerReport};
use crate::Result;

/// Runs until the worker has stopped: gracefully on the first signal, immediately on the second.
pub(super) async fn obey(mut running: WorkerHandle) -> Result<WorkerReport> {
    let mut signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(error) => {
            tracing::warn!(target: "kafkaq", %error, "no signal handler could be installed, so signals don't stop the worker");
            return running.stopped().await;
        }
    };
    let mut heard = 0;
    loop {
        tokio::select! {
            stopped = running.stopped() => return stopped,
            () = signals.next(), if heard < 2 => {
                heard += 1;
                if heard == 1 {
                    tracing::info!(target: "kafkaq", "stopping; a second signal stops at once");
                    running.stop();
                } else {
                    running.stop_now();
                }
            }
        }
    }
}

#[cfg(unix)]
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn listen() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Signals)
    }

    async fn next(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending().await
        }
    }
}
