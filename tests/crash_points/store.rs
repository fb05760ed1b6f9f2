//! What the simulator asks of a store, and a workload for it.
//!
//! The simulator knows nothing else of the books: an adapter brings a store under test here.

use std::fmt::Debug;

/// Why a commit was not acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The batch is not in the books and will not be after any stop.
    NotInTheBooks,
    /// Nobody can say before the books are opened again; if the disk obeyed again after it had failed, it is not in them.
    Undecided,
    /// An earlier commit failed; this one was not tried.
    Latched,
}

/// Durable books.
pub(crate) trait Store: Sized {
    /// What one commit writes.
    type Batch: Sync;
    /// Everything that is in the books.
    type State: PartialEq + Debug + Sync;

    /// All of the batch or nothing; durable on return.
    fn commit(&mut self, batch: &Self::Batch) -> Result<(), Refusal>;

    /// Reads the books from the disk.
    fn state(&mut self) -> Result<Self::State, String>;

    /// Whether the database is sound, and its books, which are in this state, are consistent in themselves.
    fn check(&mut self, state: &Self::State) -> Result<(), String>;
}

/// How books are opened in the root of a file system of SQLite, by its name.
pub(crate) type Open<S> = dyn Fn(&str) -> Result<S, String> + Sync;

/// What to commit, and what must be in the books after it.
pub(crate) struct Workload<S: Store> {
    /// Opens the books; creates them if they are not there.
    pub(crate) open: Box<Open<S>>,
    /// The batches, in order.
    pub(crate) batches: Vec<S::Batch>,
    /// What is in the books after the first `n` batches, at `n`; one more than there are batches.
    pub(crate) states: Vec<S::State>,
}
