//! The books on disk: what the gate and the redeemer must not forget.
//!
//! **Owns** what is written down ([`Entry`]), the one writer ([`Journal`]), and the store behind it ([`LedgerStore`],
//! in SQLite: [`sqlite`]). **Promises** that entries reach the disk in the order they were queued, all of a commit or
//! none; that a [`Ticket`] says yes only once its entry is durable; and that after one failed commit nothing is written
//! or promised any more ([`Latched`]). **Does not** decide: what an entry says was decided under the channel's lock.
//!
//! # What is written, and what is not
//!
//! A channel is written as a whole ([`ChannelRow`]) whenever its money changes, with a version that is one higher than
//! that of the row it replaces. The store compares and sets: a row that is not the one the writer built on refuses the
//! commit. One process owns a directory of books today; several that share a database later need exactly this.
//!
//! Holds are not written. Nothing is promised for a request before its answer leaves, so after a crash an open hold is
//! void, and the voucher it came with is good again.
//!
//! # Charges
//!
//! A charge is added to the row of its channel, route and minute ([`Booking`]), in the transaction that writes the
//! channel's new sum. One row a charge would be a billion rows a day at line rate, and the sums are what books are for; a
//! minute is fine enough for any bill. What the chain changes past us is booked as an adjustment. So for every channel,
//! at every commit, charges and adjustments add up to what it was charged in all, to the unit. [`audit`] reads all of it
//! and says where that, or anything else that must hold, does not.

pub mod audit;
mod entry;
mod error;
mod journal;
mod lines;
pub mod sqlite;

pub use entry::{
    Adjustment, Booking, ChannelEntry, ChannelRow, ClaimedRow, Cursor, Entry, Fate, LastDeposit, Moved, Outcome,
    Purpose, Transaction,
};
pub use error::StoreError;
pub use journal::{Journal, Latched, MAX_ENTRIES_PER_COMMIT, MAX_GATHER, MAX_UNWRITTEN_CHARGES, Permit, Ticket};
pub use lines::{AdjustmentLine, ChargeLine, Filter, Identity, MovementLine, TransactionLine};

/// What the last process left to be done.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Opening {
    /// Transactions whose fate is not known, oldest first.
    pub unfinished: Vec<Transaction>,
    /// How far the chain was followed.
    pub cursor: Option<Cursor>,
}

/// Where books are kept. All calls are made by one thread and may block.
pub trait LedgerStore: Send + 'static {
    /// Reads every channel, in no particular order, and hands each to `each`, whose refusal ends the reading.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] where a row is not as it was written, or is refused.
    fn channels(&mut self, each: &mut dyn FnMut(ChannelRow) -> Result<(), StoreError>) -> Result<(), StoreError>;

    /// The transactions whose fate is not known, oldest first.
    fn unfinished(&mut self) -> Result<Vec<Transaction>, StoreError>;

    /// How far the chain was followed.
    fn cursor(&mut self) -> Result<Option<Cursor>, StoreError>;

    /// Writes entries in their order, all or none; they are durable when this returns.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] where a channel's row is not the one its entry builds on. After any error none of the
    /// entries is in the books, as far as the disk still obeys; the caller stops using the store.
    fn commit(&mut self, entries: &[Entry]) -> Result<(), StoreError>;
}
