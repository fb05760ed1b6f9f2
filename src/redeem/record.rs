//! The record: what is written down of a transaction, and when.
//!
//! **Promises** that no transaction leaves before its bytes are in the books on disk, and that every one that is in them
//! has its end written once that is known. **Does not** follow transactions; whoever sent one does, and
//! [`super::resume`] after it.
//!
//! What is claimed is in the books before the claim is: entries reach the disk in the order they were queued, a charge is
//! queued under its channel's lock, and a claim's rows are read under it. So a claim whose entry is durable claims nothing
//! that a payer was told was not charged.

use std::sync::{Mutex, PoisonError};

use super::Office;
use crate::chain::{Bid, Call, Chain, ChainError, Happening, Mined, Objection, SendError, SignedTransaction, Witness};
use crate::clock;
use crate::protocol::claim::ClaimRow;
use crate::protocol::{Domain, Hash};
use crate::store::{ClaimedRow, Entry, Fate, Journal, Moved, Outcome, Purpose, Transaction};

/// Why a call was not carried out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// The chain would not, or cannot be asked.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// It could not be written down, so it was not sent.
    #[error("nothing is sent: {0}")]
    Withheld(Objection),
}

impl CallError {
    /// The name of the custom error a contract reverted with.
    pub(super) fn revert_name(&self) -> Option<&str> {
        match self {
            Self::Chain(error) => error.revert_name(),
            Self::Withheld(_) => None,
        }
    }
}

impl<C: Chain> Office<C> {
    /// Writes a call's transaction down, then sends it. What comes back may land and must be followed to its end.
    ///
    /// # Errors
    /// It certainly was not sent; that is in the books too.
    ///
    /// # Cancellation
    /// It may have been sent, and is in the books as unfinished until the next start. Spawn it.
    pub(crate) async fn send(&self, call: &Call, purpose: Purpose) -> Result<Transaction, CallError> {
        self.may_sign()?;
        let journal = self.accounts().journal();
        let scribe = Scribe { journal, purpose, shown: Mutex::default() };
        let sent = self.chain.send_witnessed(call, Bid::default(), None, &scribe).await;
        let shown = scribe.shown.into_inner().unwrap_or_else(PoisonError::into_inner);
        match (sent, shown) {
            (Ok(hash), Some(transaction)) if transaction.hash == hash => Ok(transaction),
            (Err(SendError::Unknown { hash, source }), Some(transaction)) if transaction.hash == hash => {
                tracing::warn!(transaction = %hash, error = %source, "a transaction may or may not have been sent");
                Ok(transaction)
            }
            (Err(SendError::Refused(error)), shown) => {
                if let Some(transaction) = shown {
                    self.ended(transaction.hash, Fate::NeverSent);
                }
                Err(error.into())
            }
            (Err(SendError::Withheld(objection)), _) => Err(CallError::Withheld(objection)),
            (Ok(_) | Err(SendError::Unknown { .. }), _) => {
                unreachable!("a chain sends what it has shown its witness last, and nothing else")
            }
        }
    }

    /// Whether the books can still be written. Once they cannot, nothing is signed any more either.
    ///
    /// # Errors
    /// [`CallError::Withheld`].
    pub(crate) fn may_sign(&self) -> Result<(), CallError> {
        match self.accounts().journal().latch() {
            Some(latched) => Err(CallError::Withheld(latched.clone().into())),
            None => Ok(()),
        }
    }

    /// Writes a transaction's end down. What it changed is booked first, so that a crash in between repeats both.
    pub(crate) fn ended(&self, hash: Hash, fate: Fate) {
        let outcome = Outcome { hash, at: clock::now_s(), fate };
        self.accounts().journal().note(Entry::Ended(Box::new(outcome)), None);
    }
}

/// Writes down what is about to be sent.
struct Scribe<'a> {
    journal: &'a Journal,
    purpose: Purpose,
    /// What was written last.
    shown: Mutex<Option<Transaction>>,
}

impl Witness for Scribe<'_> {
    async fn sees(&self, signed: &SignedTransaction) -> Result<(), Objection> {
        let SignedTransaction { hash, sender, nonce, raw } = signed.clone();
        let transaction =
            Transaction { hash, sender, nonce, raw, signed_at: clock::now_s(), purpose: self.purpose.clone() };
        let before = self.shown.lock().unwrap_or_else(PoisonError::into_inner).replace(transaction.clone());
        if let Some(before) = before {
            // The node named the same nonce again, which gives the same bytes.
            if before.hash == signed.hash {
                return Ok(());
            }
            let outcome = Outcome { hash: before.hash, at: clock::now_s(), fate: Fate::NeverSent };
            self.journal.note(Entry::Ended(Box::new(outcome)), None);
        }
        Ok(self.journal.write(Entry::Signed(Box::new(transaction)), None).await?)
    }
}

/// The bytes of a transaction in the books.
pub(super) fn bytes_of(transaction: &Transaction) -> SignedTransaction {
    let Transaction { hash, sender, nonce, ref raw, .. } = *transaction;
    SignedTransaction { hash, sender, nonce, raw: raw.clone() }
}

/// Rows as the books have them.
pub(super) fn rows_of(rows: &[ClaimRow], settlement: &Domain) -> Vec<ClaimedRow> {
    rows.iter().map(|row| ClaimedRow { channel: row.config.id(settlement), total_claimed: row.total_claimed }).collect()
}

/// What a receipt says of a transaction's end.
pub(super) fn fate_of(mined: &Mined) -> Fate {
    let moved = |what: &Happening| match *what {
        Happening::Deposited { channel, amount, .. } => Some(Moved::Deposited(channel, amount)),
        Happening::Claimed { channel, amount, .. } => Some(Moved::Claimed(channel, amount)),
        Happening::Refunded { channel, amount } => Some(Moved::Refunded(channel, amount)),
        Happening::Settled { amount, .. } => Some(Moved::Settled(amount)),
        Happening::Created { .. }
        | Happening::Closed { .. }
        | Happening::WithdrawInitiated { .. }
        | Happening::WithdrawFinalized { .. } => None,
    };
    Fate::Mined {
        block: mined.block,
        success: mined.success,
        gas_used: mined.gas_used,
        fee_wei: mined.fee_wei,
        moved: mined.events.iter().filter_map(|event| moved(&event.what)).collect(),
    }
}
