//! Work that goes on when its request's connection is gone.
//!
//! **Owns** how much of it there is at once, and knowing when there is none. **Promises** that whoever stops can wait for it
//! ([`Gate::unfinished`](super::Gate)): what is ended before costs what it would if we had ended the request. **Does not**
//! bound how long any of it takes; whoever begins it does.

use std::future::Future;
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::TaskTracker;

/// Room for so much work of a kind. Clones have the same room.
#[derive(Debug, Clone)]
pub(super) struct Background {
    places: Arc<Semaphore>,
    work: TaskTracker,
}

/// A place for one piece of work.
pub(super) struct Place {
    place: OwnedSemaphorePermit,
    runtime: Handle,
    work: TaskTracker,
}

impl Background {
    /// Room for so many at once.
    pub(super) fn of(places: usize) -> Self {
        Self { places: Arc::new(Semaphore::new(places)), work: TaskTracker::new() }
    }

    /// The same for another kind of work, which is waited for together with this.
    pub(super) fn beside(&self, places: usize) -> Self {
        Self { places: Arc::new(Semaphore::new(places)), ..self.clone() }
    }

    /// A place, if one is free, and there is a runtime.
    pub(super) fn enter(&self) -> Option<Place> {
        let place = Arc::clone(&self.places).try_acquire_owned().ok()?;
        Some(Place { place, runtime: Handle::try_current().ok()?, work: self.work.clone() })
    }

    /// Ends when nothing goes on any more.
    pub(super) async fn done(&self) {
        // What begins later is counted all the same.
        self.work.close();
        self.work.wait().await;
    }

    #[cfg(test)]
    pub(super) fn free_places(&self) -> usize {
        self.places.available_permits()
    }
}

impl Place {
    /// Does it there.
    pub(super) fn go_on(self, work: impl Future<Output = ()> + Send + 'static) {
        let Self { place, runtime, work: all } = self;
        let work = async move {
            work.await;
            drop(place);
        };
        all.spawn_on(work, &runtime);
    }
}
