//! A deposit on its way: what its payer is told, once that is known.
//!
//! The authorization decides, not our transaction: anybody may relay the same one before us, and then ours reverts
//! although the money is there. The transaction itself is followed by its pilot, whatever the payer was told.

use std::time::Duration;

use tokio::time::Instant;

use super::Office;
use super::counting::counts;
use super::flights::{Seat, Stage};
use crate::chain::{Chain, Mined, through_permit2};
use crate::gate::desk::{DepositEnd, DepositPlace};
use crate::ledger::View;
use crate::protocol::deposit::Authorization;
use crate::protocol::{ChannelConfig, ChannelId, Hash};
use crate::store::Purpose;

/// How long a deposit's payer is kept waiting for its end. The authorizations stock clients sign are long dead by then;
/// one that a client signed for longer must not keep its channel waiting for years. What lands later is booked all the
/// same.
const MAX_DEPOSIT_FOLLOW: Duration = Duration::from_secs(2 * 3_600);

/// How long one is waited for whose transaction was given up because nobody has the nonces below its own: so many times
/// what a transaction may wait for a block. It may land, but nobody sends it again, and its payer may bring it again; the
/// same authorization moves money once, whoever relays it.
const GIVEN_UP_PATIENCE: u32 = 10;

/// What was relayed.
#[derive(Debug, Clone, Copy)]
struct Relayed {
    id: ChannelId,
    config: ChannelConfig,
    salt: Hash,
    /// Unix seconds.
    valid_before: u64,
    /// Whether it moves through Permit2, whose nonce the salt is then.
    by_permit2: bool,
}

/// What became of our own transaction.
#[derive(Debug, Clone, Copy)]
enum Ours<'a> {
    MayLand,
    Reverted(&'a Mined),
    Lost(Hash),
}

impl<C: Chain> Office<C> {
    /// Waits for the end of a deposit that was sent, and publishes it.
    pub(super) async fn end_deposit(&self, mut seat: Seat, place: Option<DepositPlace>) {
        let Purpose::Deposit { config, amount, salt, valid_before } = seat.transaction.purpose else {
            unreachable!("only deposits are followed as deposits")
        };
        let id = config.id(&self.settlement());
        let by_permit2 = through_permit2(&seat.transaction.raw);
        let deposit = Relayed { id, config, salt, valid_before, by_permit2 };
        let end = tokio::time::timeout(MAX_DEPOSIT_FOLLOW, self.follow_deposit(&mut seat, &deposit)).await;
        let Ok(Some(end)) = end else {
            return tracing::error!(channel = %id, %amount, "a deposit is not waited for any more; it may still land");
        };
        match &end {
            DepositEnd::Landed { transaction, view } => {
                tracing::info!(channel = %id, %amount, balance = %view.balance, %transaction, "deposit landed");
            }
            other => tracing::warn!(channel = %id, %amount, end = ?other, "deposit not made"),
        }
        if let Some(place) = place {
            place.end(end);
        }
    }

    /// Waits until the deposit's fate is known; `None` where this process stops before, or nobody brings it about.
    async fn follow_deposit(&self, seat: &mut Seat, deposit: &Relayed) -> Option<DepositEnd> {
        let hash = seat.transaction.hash;
        let patience = self.settings.sending.bump_after.saturating_mul(GIVEN_UP_PATIENCE);
        let mut given_up: Option<Instant> = None;
        loop {
            let stage = seat.stage();
            if let Stage::Lost { may_land: true } = stage
                && given_up.get_or_insert_with(Instant::now).elapsed() >= patience
            {
                return None;
            }
            let decided = match &stage {
                Stage::Mined(mined) if mined.success => {
                    if let Some(view) = self.book_deposit(deposit, mined.block, Some(mined)).await {
                        return Some(DepositEnd::Landed { transaction: mined.on_chain(), view });
                    }
                    // A reorganisation may have dropped it meanwhile.
                    continue;
                }
                Stage::Mined(mined) => self.landed_without_us(deposit, Ours::Reverted(mined)).await,
                Stage::Aloft | Stage::Lost { may_land: true } => {
                    tokio::select! {
                        () = seat.changed() => continue,
                        () = tokio::time::sleep(self.receipt_wait()) => self.landed_without_us(deposit, Ours::MayLand).await,
                    }
                }
                Stage::Lost { may_land: false } => self.landed_without_us(deposit, Ours::Lost(hash)).await,
                Stage::Left => return None,
            };
            match decided {
                Ok(Some(block)) => {
                    if let Some(view) = self.book_deposit(deposit, block, None).await {
                        // It may be ours all the same, mined between two questions.
                        let mined = self.chain.receipt(hash).await.ok().flatten();
                        let transaction = mined.as_ref().map_or(hash, Mined::on_chain);
                        return Some(DepositEnd::Landed { transaction, view });
                    }
                }
                Err(why) => return Some(DepositEnd::Dead(why)),
                // Not known yet, or the node cannot say at the moment.
                Ok(None) => tokio::time::sleep(self.settings.poll).await,
            }
        }
    }

    /// Whether the authorization was used by another transaction than ours, which reverted or is not mined: the block at
    /// which that was seen; nothing where it may still land; or why it cannot any more.
    async fn landed_without_us(&self, deposit: &Relayed, ours: Ours<'_>) -> Result<Option<u64>, String> {
        // The block before the question: were it after, the deposit could land in between and be called dead.
        let Ok(head) = self.chain.head().await else { return Ok(None) };
        let Relayed { config: ChannelConfig { token, payer, .. }, salt, .. } = *deposit;
        let used = if deposit.by_permit2 {
            self.chain.permit2_nonce_used(payer, salt).await
        } else {
            self.chain.authorization_used(token, payer, Authorization::nonce(deposit.id, salt)).await
        };
        match (used, ours) {
            (Ok(true), _) => Ok(Some(head.number)),
            // This node has not seen yet what reverted it.
            (Ok(false), Ours::Reverted(mined)) if head.number < mined.block => Ok(None),
            (Ok(false), Ours::Reverted(mined)) => Err(format!("transaction {} reverted", mined.hash)),
            (Ok(false), Ours::Lost(hash)) => Err(format!("another transaction has the nonce of transaction {hash}")),
            (Ok(false), Ours::MayLand) if head.timestamp >= deposit.valid_before => {
                Err("the authorization ran out before it was mined".to_owned())
            }
            (Ok(false), Ours::MayLand) | (Err(_), _) => Ok(None),
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
