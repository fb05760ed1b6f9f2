//! A deposit on its way: followed until its fate is known.

use super::Office;
use super::counting::counts;
use super::record::fate_of;
use super::resume::Resending;
use crate::chain::{Chain, Mined};
use crate::gate::desk::{DepositEnd, DepositPlace};
use crate::ledger::View;
use crate::protocol::deposit::Authorization;
use crate::protocol::{ChannelConfig, ChannelId, Hash};
use crate::store::{Fate, Purpose, Transaction};

/// How long a deposit is followed. The authorizations stock clients sign are long dead by then; one that a client signed
/// for longer, and whose transaction got lost, must not keep its channel waiting for years.
const MAX_DEPOSIT_FOLLOW: std::time::Duration = std::time::Duration::from_secs(2 * 3_600);

/// What was relayed.
#[derive(Debug, Clone, Copy)]
struct Relayed {
    id: ChannelId,
    config: ChannelConfig,
    salt: Hash,
    /// Unix seconds.
    valid_before: u64,
}

impl<C: Chain> Office<C> {
    /// Follows a deposit that was sent, books it, writes its end down and publishes it.
    pub(super) async fn end_deposit(&self, transaction: &Transaction, place: Option<DepositPlace>) {
        let Purpose::Deposit { config, amount, salt, valid_before } = transaction.purpose else {
            unreachable!("only deposits are followed as deposits")
        };
        let id = config.id(&self.settlement());
        let deposit = Relayed { id, config, salt, valid_before };
        let Some((end, fate)) = self.follow_deposit(transaction, &deposit).await else {
            tracing::error!(channel = %id, %amount, "a deposit is not followed any more; it may still land");
            return self.give_up(transaction);
        };
        match &end {
            DepositEnd::Landed { transaction, view } => {
                tracing::info!(channel = %id, %amount, balance = %view.balance, %transaction, "deposit landed");
            }
            other => tracing::warn!(channel = %id, %amount, end = ?other, "deposit not made"),
        }
        self.ended(transaction.hash, fate);
        if let Some(place) = place {
            place.end(end);
        }
    }

    /// Waits until the deposit's fate is known, up to [`MAX_DEPOSIT_FOLLOW`], and sends it again while it is not; the end
    /// for its payer, and that of the transaction. `None` where nobody can say.
    ///
    /// The authorization decides it, not our transaction: anybody may relay the same one before us, and then ours
    /// reverts although the money is there.
    async fn follow_deposit(&self, transaction: &Transaction, deposit: &Relayed) -> Option<(DepositEnd, Fate)> {
        let hash = transaction.hash;
        let deadline = tokio::time::Instant::now() + MAX_DEPOSIT_FOLLOW;
        let mut resending = Resending::default();
        while tokio::time::Instant::now() < deadline {
            let mined = match self.chain.await_receipt(hash, self.receipt_wait(), self.settings.poll).await {
                Ok(mined) => mined,
                Err(error) => {
                    tracing::warn!(channel = %deposit.id, transaction = %hash, %error, "a deposit cannot be followed at the moment");
                    tokio::time::sleep(self.settings.poll).await;
                    continue;
                }
            };
            let end = match &mined {
                Some(mined) if mined.success => Ok(Some(mined.block)),
                unsuccessful => self.landed_without_us(deposit, unsuccessful.as_ref()).await,
            };
            // Where the authorization decided before our transaction was mined, nothing is expected of that any more.
            let fate = mined.as_ref().map_or(Fate::GivenUp, fate_of);
            match end {
                Ok(Some(block)) => {
                    if let Some(view) = self.book_deposit(deposit, block, mined.as_ref()).await {
                        return Some((DepositEnd::Landed { transaction: hash, view }, fate));
                    }
                }
                Err(why) => return Some((DepositEnd::Dead(why), fate)),
                // Not known yet, or the node cannot say at the moment.
                Ok(None) => {
                    if mined.is_none() && resending.again(self, transaction).await {
                        let why = format!("another transaction has the nonce of transaction {hash}");
                        return Some((DepositEnd::Dead(why), Fate::NeverSent));
                    }
                    tokio::time::sleep(self.settings.poll).await;
                }
            }
        }
        None
    }

    /// Whether the authorization was used by another transaction than ours, which reverted or is not mined: the block at
    /// which that was seen; nothing where it may still land; or why it cannot any more.
    async fn landed_without_us(&self, deposit: &Relayed, reverted: Option<&Mined>) -> Result<Option<u64>, String> {
        // The block before the question: were it after, the deposit could land in between and be called dead.
        let Ok(head) = self.chain.head().await else { return Ok(None) };
        let nonce = Authorization::nonce(deposit.id, deposit.salt);
        match (self.chain.authorization_used(deposit.config.token, deposit.config.payer, nonce).await, reverted) {
            (Ok(true), _) => Ok(Some(head.number)),
            // This node has not seen yet what reverted it.
            (Ok(false), Some(mined)) if head.number < mined.block => Ok(None),
            (Ok(false), Some(mined)) => Err(format!("transaction {} reverted", mined.hash)),
            (Ok(false), None) if head.timestamp >= deposit.valid_before => {
                Err("the authorization ran out before it was mined".to_owned())
            }
            (Ok(false), None) | (Err(_), _) => Ok(None),
        }
    }

    /// Nothing, where it is not in the books yet: the channel cannot be read, or the deposit does not count yet. Then its
    /// place stays taken, so that nobody deposits again what is there already.
    async fn book_deposit(&self, deposit: &Relayed, block: u64, mined: Option<&Mined>) -> Option<View> {
        match self.refresh_since(&[(deposit.id, deposit.config)], block).await {
            Ok(views) => {
                let known = self.accounts().knows(&deposit.id);
                if !views.iter().all(|view| counts(deposit.id, block, mined, view, known)) {
                    tokio::time::sleep(self.settings.poll).await;
                    return None;
                }
                self.accounts().note_deposit(&deposit.id, deposit.salt);
                views.first().copied()
            }
            Err(error) => {
                tracing::warn!(channel = %deposit.id, %error, "a deposit landed and its channel cannot be read yet");
                tokio::time::sleep(self.settings.poll).await;
                None
            }
        }
    }
}
