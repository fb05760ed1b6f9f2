//! A pilot: brings one flight to its end.
//!
//! **Promises** that a flight is followed until a block has one of its versions with the confirmations that are asked for,
//! or certainly never will; that what a transaction changed is booked before its end is written, so that a crash in
//! between repeats both; and that each version that was written down has its end written. **Does not** make anything
//! anew under another nonce.
//!
//! What may become of a transaction, and what is done:
//!
//! | it is | seen by | then |
//! |---|---|---|
//! | mined | a receipt of any version | booked; at its end once it is deep enough, the other versions are replaced |
//! | reverted | the same, without success | the same; whoever wanted it decides |
//! | stuck | the node knows it, no receipt for [`bump_after`] | replaced at the same nonce by one that pays more |
//! | too dear | gas costs more than may be paid | sent again and again, until gas is cheaper |
//! | dropped | the node does not know it, its nonce is free | the same bytes are sent again |
//! | pushed out | its nonce is used, and no version has a receipt, twice | lost: another transaction has the nonce |
//! | ahead | nobody has a nonce below it | the gap is filled; too large a gap: given up |
//! | dropped by a reorganisation | its receipt is gone before it was deep enough | in flight again |
//!
//! Only the lowest flight of a sender bids more; those behind it wait for it, not for gas. A deposit whose authorization
//! ran out can only revert: it is neither sent again nor bid for, unless another flight waits for its nonce. Letting it
//! revert costs about what any other use of the nonce does. One whose sender's key is not here any more is sent again
//! and never replaced.
//!
//! [`bump_after`]: super::Sending::bump_after

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

use super::Office;
use super::flights::{Flight, MAX_GAP, Slot, Stage};
use super::record::{Instead, bytes_of, fate_of};
use super::vitals::LastClaim;
use crate::chain::{Chain, ChainError, Happening, Mined, Resent};
use crate::clock;
use crate::protocol::{Amount, ChannelConfig, ChannelId};
use crate::store::{Fate, Purpose, Transaction};

/// How many versions a flight has at most. From a fee of one to a ceiling of fifty are about 35 steps of an eighth, where
/// nodes ask for no more; after the last, what was sent is sent again.
const MAX_VERSIONS: usize = 40;

/// How many of the newest versions are asked for each time. All are where it matters.
const VERSIONS_ASKED_EACH_TIME: usize = 2;

/// How long to look for receipts before a transaction is sent again: so many questions, and never longer than this.
const QUESTIONS_BEFORE_RESENDING: u32 = 10;
const MAX_RECEIPT_WAIT: Duration = Duration::from_secs(15);

/// How often a node must say the same before it is believed what cannot be taken back: that a nonce is used, that a
/// receipt is gone, that there is a gap.
const TIMES_TO_BELIEVE: u32 = 2;

/// How long a flight that somebody waits for is followed after the stop. What lands later is not lost: it is on chain,
/// and in durable books as something the next process follows.
pub(super) const MAX_STOP_WAIT: Duration = Duration::from_secs(30);

/// Follows a flight to its end. What is not at its end when this is stopped stays in the books.
pub(super) async fn fly<C: Chain>(office: Office<C>, slot: Slot) {
    let pilot = Pilot {
        office: &office,
        slot,
        ours: office.sender() == slot.sender,
        bid_at: Instant::now(),
        used: 0,
        gaps: 0,
        refused: false,
    };
    tokio::select! {
        biased;
        () = grounded(&office, slot) => office.flights.publish(slot, Stage::Left),
        () = pilot.run() => {}
    }
}

/// Returns once a flight need not be followed any more because this process stops.
async fn grounded<C: Chain>(office: &Office<C>, slot: Slot) {
    office.stop.cancelled().await;
    let _ = tokio::time::timeout(MAX_STOP_WAIT, office.flights.unattended(slot)).await;
}

impl<C: Chain> Office<C> {
    /// How long to wait for a receipt before other signs are looked at.
    pub(super) fn receipt_wait(&self) -> Duration {
        self.settings.poll.saturating_mul(QUESTIONS_BEFORE_RESENDING).min(MAX_RECEIPT_WAIT)
    }
}

struct Pilot<'a, C> {
    office: &'a Office<C>,
    slot: Slot,
    /// Whether its sender's key is here.
    ours: bool,
    /// When the newest version was signed, or when the flight became the first; what is behind others does not wait for gas.
    bid_at: Instant,
    /// How often the node said in a row that the nonce is used.
    used: u32,
    /// How often in a row that one below it is not.
    gaps: u32,
    /// Whether the node did not take it when it was sent last.
    refused: bool,
}

/// What a flight comes to.
enum Arrival {
    Mined(Mined),
    /// Another transaction has its nonce.
    PushedOut,
    /// Its nonce is too far ahead.
    GivenUp,
}

impl<C: Chain> Pilot<'_, C> {
    async fn run(mut self) {
        loop {
            let mined = match self.arrival().await {
                Arrival::Mined(mined) => mined,
                Arrival::PushedOut => return self.lost(&Fate::Replaced, false),
                Arrival::GivenUp => return self.lost(&Fate::GivenUp, true),
            };
            if let Some(mined) = self.kept(mined).await {
                return self.landed(mined);
            }
            tracing::warn!(nonce = self.slot.nonce, "a reorganisation dropped a transaction; it is sent again");
            self.office.flights.publish(self.slot, Stage::Aloft);
            self.bid_at = Instant::now();
            self.send_again().await;
        }
    }

    /// Books what a block has, and waits until it is deep enough; nothing, once its receipt is gone.
    async fn kept(&self, mined: Mined) -> Option<Mined> {
        let mined = self.book(mined).await?;
        if self.office.settings.sending.confirmations <= 1 {
            return Some(mined);
        }
        self.office.flights.publish(self.slot, Stage::Mined(Box::new(mined.clone())));
        self.confirmed(mined).await
    }

    /// The flight's versions, oldest first.
    fn versions(&self) -> Vec<Transaction> {
        self.with(|flight| flight.versions.clone()).unwrap_or_default()
    }

    fn with<R>(&self, look: impl FnOnce(&mut Flight) -> R) -> Option<R> {
        self.office.flights.with(self.slot, look)
    }

    fn newest(&self) -> Transaction {
        self.with(|flight| flight.versions.last().cloned()).flatten().expect("a flight that is followed has a version")
    }

    // ---- until a block has it

    async fn arrival(&mut self) -> Arrival {
        let mut calls = self.office.flights.listen();
        // One that came before this began to listen counts.
        calls.mark_changed();
        let mut looked = Instant::now();
        loop {
            if let Ok(Some(mined)) = self.receipt(VERSIONS_ASKED_EACH_TIME).await {
                return Arrival::Mined(mined);
            }
            let waited = tokio::time::timeout(self.office.settings.poll, calls.changed()).await;
            let hurry = waited.is_ok() && self.must_hurry();
            let rest = self.office.receipt_wait().min(self.office.settings.sending.bump_after);
            if !hurry && looked.elapsed() < rest {
                continue;
            }
            looked = Instant::now();
            if self.is_dead().await {
                continue;
            }
            self.send_again().await;
            if self.used > 0 {
                // Perhaps by one of ours.
                match self.receipt(usize::MAX).await {
                    Ok(Some(mined)) => return Arrival::Mined(mined),
                    Ok(None) if self.used >= TIMES_TO_BELIEVE => return Arrival::PushedOut,
                    Ok(None) => {}
                    // Whose it is was not answered.
                    Err(_) => self.used = 0,
                }
                continue;
            }
            if !self.ours || self.office.may_sign().is_err() {
                continue;
            }
            if !self.office.flights.is_first(self.slot) {
                self.bid_at = Instant::now();
            }
            let due = self.bid_at.elapsed() >= self.office.settings.sending.bump_after;
            if due && self.is_behind_a_gap().await {
                return Arrival::GivenUp;
            }
            if (due && self.gaps == 0) || self.must_hurry() {
                self.bid_more().await;
            }
        }
    }

    /// Whether it is in the way of something urgent and does not bid for that.
    fn must_hurry(&self) -> bool {
        self.with(|flight| flight.urgent && !flight.bid_urgently).unwrap_or_default()
    }

    /// The receipt of one of the newest versions; an error where one of them could not be asked for and no other has one.
    async fn receipt(&self, most: usize) -> Result<Option<Mined>, ChainError> {
        let mut unknown = None;
        for version in self.versions().iter().rev().take(most) {
            match self.office.chain.receipt(version.hash).await {
                Ok(Some(mined)) => return Ok(Some(mined)),
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(transaction = %version.hash, %error, "a transaction cannot be followed at the moment");
                    unknown = Some(error);
                }
            }
        }
        unknown.map_or(Ok(None), Err)
    }

    /// Whether it can only revert, and nobody waits for that.
    async fn is_dead(&self) -> bool {
        let Purpose::Deposit { valid_before, .. } = self.newest().purpose else { return false };
        if self.office.flights.is_awaited(self.slot) {
            return false;
        }
        self.office.chain.head().await.is_ok_and(|head| head.timestamp >= valid_before)
    }

    /// Sends the newest version again, and notes what the node makes of it.
    async fn send_again(&mut self) {
        let newest = self.newest();
        match self.office.chain.resend(&bytes_of(&newest)).await {
            Ok(Resent::Known) => {
                self.used = 0;
                if std::mem::take(&mut self.refused) {
                    self.trouble(None);
                }
            }
            Ok(Resent::Replaced) => self.used = self.used.saturating_add(1),
            Err(error) => {
                (self.used, self.refused) = (0, true);
                tracing::debug!(transaction = %newest.hash, %error, "not taken again");
                self.trouble(Some(format!("the node does not take it: {error}")));
            }
        }
    }

    /// What another key sent is not ours to mend: what it was for is done anew, and it troubles nobody.
    fn trouble(&self, trouble: Option<String>) {
        let trouble = trouble.filter(|_| self.ours);
        self.with(|flight| flight.trouble = trouble);
    }

    /// Whether nobody has a nonce below this one, and there are too many such to fill.
    async fn is_behind_a_gap(&mut self) -> bool {
        let nonce = self.slot.nonce;
        let Ok(nonces) = self.office.chain.nonces().await else { return false };
        let is_first = self.office.flights.is_first(self.slot);
        if !is_first || nonces.mined >= nonce {
            self.gaps = 0;
            return false;
        }
        self.gaps = self.gaps.saturating_add(1);
        if self.gaps < TIMES_TO_BELIEVE {
            return false;
        }
        self.gaps = 0;
        if nonce.abs_diff(nonces.mined) > MAX_GAP {
            self.office.flights.unlearn();
            return true;
        }
        self.office.fill_gap(nonces.mined, self.slot).await;
        self.bid_at = Instant::now();
        false
    }

    /// Replaces the newest version by one that pays more.
    async fn bid_more(&mut self) {
        let office = self.office;
        let urgent = self.with(|flight| flight.urgent).unwrap_or_default();
        let bid = office.bid(urgent);
        if self.versions().len() >= MAX_VERSIONS {
            return self.trouble(Some("it was replaced as often as it may be".to_owned()));
        }
        // Paying more than before and too little all the same gains nothing.
        match office.chain.gas_price().await {
            Ok(price) if price.base_wei.saturating_add(price.tip_wei) > bid.ceiling_wei => {
                let asked_wei = price.base_wei.saturating_add(price.tip_wei);
                let error = ChainError::TooDear { asked_wei, ceiling_wei: bid.ceiling_wei };
                self.bid_at = Instant::now();
                return self.trouble(Some(error.to_string()));
            }
            Ok(_) => {}
            Err(error) => return self.trouble(Some(error.to_string())),
        }
        let newest = self.newest();
        self.bid_at = Instant::now();
        match office.sign_instead(&newest, bid).await {
            Ok(Instead::Sent(next)) => {
                let (transaction, purpose) = (next.hash, next.purpose.as_str());
                tracing::info!(%transaction, before = %newest.hash, purpose, "replaced by one that pays more");
                self.with(|flight| {
                    flight.versions.push(*next);
                    flight.bid_urgently = urgent;
                });
                self.trouble(Some("no block had it for long; it pays more now".to_owned()));
            }
            Ok(Instead::AtCeiling) => {
                self.with(|flight| flight.bid_urgently = urgent);
                let ceiling_wei = bid.ceiling_wei;
                self.trouble(Some(format!("no block has it, and it bids as much as it may, {ceiling_wei} wei")));
            }
            Ok(Instead::NonceUsed) => self.used = self.used.saturating_add(1),
            Err(error) => self.trouble(Some(error.to_string())),
        }
    }

    // ---- once a block has it

    /// Reads the channels it touched, as they are after it; again and again, where the node cannot say. The receipt is asked
    /// for again then too: the block it names may have been replaced, or never have been there. Nothing, once it is gone.
    async fn book(&self, mut mined: Mined) -> Option<Mined> {
        let office = self.office;
        let versions = self.versions();
        let Some(version) = versions.iter().find(|version| version.hash == mined.hash) else { return Some(mined) };
        let mut gone = 0;
        while let Err(error) = office.refresh_since(&touched(office, &version.purpose, &mined), mined.block).await {
            tracing::warn!(transaction = %mined.hash, %error, "its channels cannot be read yet");
            self.trouble(Some(format!("its channels cannot be read yet: {error}")));
            tokio::time::sleep(office.settings.poll).await;
            match office.chain.receipt(mined.hash).await {
                Ok(Some(again)) => (mined, gone) = (again, 0),
                Ok(None) => gone += 1,
                Err(_) => {}
            }
            if gone >= TIMES_TO_BELIEVE {
                return None;
            }
        }
        self.trouble(None);
        if let (Purpose::Deposit { config, salt, .. }, true) = (&version.purpose, mined.success) {
            office.accounts().note_deposit(&config.id(&office.settlement()), *salt);
        }
        Some(mined)
    }

    /// Waits until it is deep enough; nothing, once its receipt is gone.
    async fn confirmed(&self, mut mined: Mined) -> Option<Mined> {
        let office = self.office;
        let mut gone = 0;
        loop {
            tokio::time::sleep(office.settings.poll).await;
            let Ok(head) = office.chain.head().await else { continue };
            match office.chain.receipt(mined.hash).await {
                Ok(Some(again)) if again.block_hash == mined.block_hash => {
                    gone = 0;
                    let depth = head.number.saturating_sub(mined.block).saturating_add(1);
                    if head.number >= mined.block && depth >= office.settings.sending.confirmations {
                        return Some(again);
                    }
                }
                Ok(Some(moved)) => {
                    gone = 0;
                    mined = self.book(moved).await?;
                    office.flights.publish(self.slot, Stage::Mined(Box::new(mined.clone())));
                }
                Ok(None) => {
                    gone += 1;
                    if gone >= TIMES_TO_BELIEVE {
                        return None;
                    }
                }
                Err(error) => {
                    tracing::debug!(transaction = %mined.hash, %error, "it cannot be confirmed at the moment");
                }
            }
        }
    }

    // ---- its end

    fn landed(&self, mined: Mined) {
        let Self { office, slot, .. } = self;
        office.flights.learn(slot.nonce.saturating_add(1));
        for version in self.versions() {
            let fate = if version.hash == mined.hash { fate_of(&mined) } else { Fate::Replaced };
            office.ended(version.hash, fate);
        }
        let (nonce, block, success) = (slot.nonce, mined.block, mined.success);
        tracing::debug!(transaction = %mined.hash, nonce, block, success, "a transaction is at its end");
        office.notes.spent(mined.fee_wei.unwrap_or_default());
        let claimed = claimed_in(office, &mined);
        if !claimed.is_zero() {
            let last_claim = LastClaim { at: clock::now_s(), transaction: mined.on_chain(), claimed };
            office.notes.note(|vitals| vitals.last_claim = Some(last_claim));
        }
        office.flights.end(*slot, Stage::Mined(Box::new(mined)));
    }

    fn lost(&self, fate: &Fate, may_land: bool) {
        for version in self.versions() {
            let purpose = version.purpose.as_str();
            tracing::warn!(transaction = %version.hash, purpose, may_land, "a transaction lost its nonce");
            self.office.ended(version.hash, fate.clone());
        }
        self.office.flights.end(self.slot, Stage::Lost { may_land });
    }
}

/// What a transaction claimed, as the events say, in dollars.
fn claimed_in<C: Chain>(office: &Office<C>, mined: &Mined) -> Amount {
    mined.events.iter().fold(Amount::ZERO, |sum, event| match event.what {
        Happening::Claimed { channel, amount, .. } => {
            let token = office.token_of(&channel);
            sum.saturating_add(token.map_or(Amount::ZERO, |token| office.dollars().of(token, amount)))
        }
        _ => sum,
    })
}

/// The channels a transaction touched. One that reverted touched none, but what it was for may have changed under it.
fn touched<C: Chain>(office: &Office<C>, purpose: &Purpose, mined: &Mined) -> Vec<(ChannelId, ChannelConfig)> {
    if let Purpose::Deposit { config, .. } = purpose {
        return if mined.success { vec![(config.id(&office.settlement()), *config)] } else { Vec::new() };
    }
    let mut touched: BTreeSet<ChannelId> = purpose.rows().iter().map(|row| row.channel).collect();
    if let Purpose::Refund { channel, .. } = purpose {
        touched.insert(*channel);
    }
    let config_of = |id: &ChannelId| office.accounts().statement(id).map(|books| (*id, books.config));
    touched.iter().filter_map(config_of).collect()
}
