//! What the operating system's signals ask of the process that serves.
//!
//! **Owns** the orders to stop and to read the config again. **Promises** that one which comes after [`Orders::listen`] is
//! not lost, however busy whoever obeys is, and that a second order to stop is told from the first. **Does not** obey.

use crate::changed::Hangups;

/// The orders. From [`Orders::listen`] on, no such signal ends the process by itself.
pub(super) struct Orders {
    pub(super) stop: StopOrders,
    pub(super) reload: Hangups,
}

impl Orders {
    pub(super) fn listen() -> Self {
        Self { stop: StopOrders::listen(), reload: Hangups::listen() }
    }
}

/// SIGTERM, and what Ctrl-C sends.
pub(super) struct StopOrders {
    #[cfg(unix)]
    terminate: Option<tokio::signal::unix::Signal>,
    #[cfg(unix)]
    interrupt: Option<tokio::signal::unix::Signal>,
}

impl StopOrders {
    #[cfg(unix)]
    pub(super) fn listen() -> Self {
        use tokio::signal::unix::{SignalKind, signal};
        Self { terminate: signal(SignalKind::terminate()).ok(), interrupt: signal(SignalKind::interrupt()).ok() }
    }

    #[cfg(not(unix))]
    pub(super) fn listen() -> Self {
        Self {}
    }

    /// Waits for the next one. A signal that nobody can listen to ends the process, as ever.
    ///
    /// # Cancellation
    /// Nothing is lost.
    #[cfg(unix)]
    pub(super) async fn next(&mut self) {
        use tokio::signal::unix::Signal;
        async fn received(signal: &mut Option<Signal>) {
            let came = match signal {
                Some(signal) => signal.recv().await,
                None => None,
            };
            if came.is_none() {
                std::future::pending().await
            }
        }
        tokio::select! {
            () = received(&mut self.terminate) => {}
            () = received(&mut self.interrupt) => {}
        }
    }

    /// Waits for the next one.
    #[cfg(not(unix))]
    pub(super) async fn next(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending().await
        }
    }
}
