//! The record: what is written down of a transaction, and when.
//!
//! **Promises** that no transaction leaves before its bytes are in the books on disk, and that every one that is in them
//! has its end written once that is known. **Does not** choose nonces or follow transactions; [`super::flights`] does the
//! one, [`super::pilot`] the other.
//!
//! What is claimed is in the books before the claim is: entries reach the disk in the order they were queued, a charge is
//! queued under its channel's lock, and a claim's rows are read under it. So a claim whose entry is durable claims nothing
//! that a payer was told was not charged.

use std::sync::{Mutex, PoisonError};

use super::Office;
use crate::chain::{
    Bid, Call, Chain, ChainError, Happening, Mined, Objection, Replacement, SendError, SignedTransaction, Witness,
};
use crate::clock;
use crate::protocol::claim::ClaimRow;
use crate::protocol::{Domain, Hash};
use crate::store::{ClaimedRow, Entry, Fate, Journal, Moved, Outcome, Purpose, Transaction};

/// Why a call was not carried out.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// The chain would not, or cannot be asked.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// It could not be written down, so it was not sent.
    #[error("nothing is sent: {0}")]
    Withheld(Objection),
    /// It was sent, and will not be in a block: somebody else's transaction has its nonce.
    #[error("another transaction has the nonce of transaction {transaction}")]
    Lost {
        /// The one that was sent.
        transaction: Hash,
    },
    /// It was sent, and this process stops before a block has it. The next one follows it.
    #[error("stopping while transaction {transaction} waits for a block")]
    Left {
        /// The one that was sent.
        transaction: Hash,
    },
}

/// What became of a wish to pay more.
#[derive(Debug)]
pub(super) enum Instead {
    /// This one may land too.
    Sent(Box<Transaction>),
    /// It bids as much as it may.
    AtCeiling,
    /// The nonce is used.
    NonceUsed,
}

impl CallError {
    /// The name of the custom error a contract reverted with.
    pub(super) fn revert_name(&self) -> Option<&str> {
        match self {
            Self::Chain(error) => error.revert_name(),
            Self::Withheld(_) | Self::Lost { .. } | Self::Left { .. } => None,
        }
    }
}

impl<C: Chain> Office<C> {
    /// Writes a call's transaction with this nonce down, then sends it. What comes back may land and must be followed to
    /// its end.
    ///
    /// # Errors
    /// It certainly was not sent; that is in the books too.
    ///
    /// # Cancellation
    /// It may have been sent, and is in the books as unfinished until the next start. Spawn it.
    pub(super) async fn sign_and_send(
        &self,
        call: &Call,
        purpose: Purpose,
        bid: Bid,
        nonce: u64,
    ) -> Result<Transaction, CallError> {
        self.may_sign()?;
        let scribe = Scribe::new(self.accounts().journal(), purpose);
        let sent = self.chain.send_witnessed(call, bid, Some(nonce), &scribe).await;
        match (sent, scribe.shown()) {
            (Ok(hash), Some(transaction)) if transaction.hash == hash => Ok(transaction),
            (Err(error), shown) => self.maybe_sent(error, shown),
            (Ok(_), _) => unreachable!("{SENDS_WHAT_IT_SHOWS}"),
        }
    }

    /// Writes down what a transaction does once more, at the same nonce and paying more, then sends it.
    ///
    /// # Errors
    /// It certainly was not sent; that is in the books too. The one before may still land.
    ///
    /// # Cancellation
    /// As with [`Office::sign_and_send`].
    pub(super) async fn sign_instead(&self, before: &Transaction, bid: Bid) -> Result<Instead, CallError> {
        self.may_sign()?;
        let scribe = Scribe::new(self.accounts().journal(), before.purpose.clone());
        let sent = self.chain.replace_witnessed(&bytes_of(before), bid, &scribe).await;
        match (sent, scribe.shown()) {
            (Ok(Replacement::Sent(hash)), Some(transaction)) if transaction.hash == hash => {
                Ok(Instead::Sent(Box::new(transaction)))
            }
            (Ok(Replacement::AtCeiling), _) => Ok(Instead::AtCeiling),
            (Ok(Replacement::NonceUsed), shown) => {
                self.not_sent(shown);
                Ok(Instead::NonceUsed)
            }
            (Err(error), shown) => self.maybe_sent(error, shown).map(|sent| Instead::Sent(Box::new(sent))),
            (Ok(Replacement::Sent(_)), _) => unreachable!("{SENDS_WHAT_IT_SHOWS}"),
        }
    }

    fn maybe_sent(&self, error: SendError, shown: Option<Transaction>) -> Result<Transaction, CallError> {
        match (error, shown) {
            (SendError::Unknown { hash, source }, Some(transaction)) if transaction.hash == hash => {
                tracing::warn!(transaction = %hash, error = %source, "a transaction may or may not have been sent");
                Ok(transaction)
            }
            (SendError::Unknown { .. }, _) => unreachable!("{SENDS_WHAT_IT_SHOWS}"),
            (SendError::Refused(error), shown) => {
                self.not_sent(shown);
                Err(error.into())
            }
            (SendError::Withheld(objection), _) => Err(CallError::Withheld(objection)),
        }
    }

    fn not_sent(&self, shown: Option<Transaction>) {
        if let Some(transaction) = shown {
            self.ended(transaction.hash, Fate::NeverSent);
        }
    }

    /// Whether the books can still be written. Once they cannot, nothing is signed any more either.
    ///
    /// # Errors
    /// [`CallError::Withheld`].
    pub(super) fn may_sign(&self) -> Result<(), CallError> {
        match self.accounts().journal().latch() {
            Some(latched) => Err(CallError::Withheld(latched.clone().into())),
            None => Ok(()),
        }
    }

    /// Writes a transaction's end down. What it changed is booked first, so that a crash in between repeats both.
    pub(super) fn ended(&self, hash: Hash, fate: Fate) {
        let outcome = Outcome { hash, at: clock::now_s(), fate };
        self.accounts().journal().note(Entry::Ended(Box::new(outcome)), None);
    }
}

const SENDS_WHAT_IT_SHOWS: &str = "a chain sends what it has shown its witness last, and nothing else";

/// Writes down what is about to be sent.
struct Scribe<'a> {
    journal: &'a Journal,
    purpose: Purpose,
    /// What was written last.
    shown: Mutex<Option<Transaction>>,
}

impl<'a> Scribe<'a> {
    fn new(journal: &'a Journal, purpose: Purpose) -> Self {
        Self { journal, purpose, shown: Mutex::default() }
    }

    fn shown(self) -> Option<Transaction> {
        self.shown.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
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
