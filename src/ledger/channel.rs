//! One channel: commands in, events out, invariants asserted.

use std::sync::Arc;

use super::terms::{SharedTerms, TermsPool};
use crate::protocol::x402::RefundRequest;
use crate::protocol::{Address, Amount, ChannelConfig, ChannelId, Hash, Signature, VerifiedVoucher};

/// What the chain says of a channel at one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct View {
    /// The block it was read at; an older view never replaces a newer one.
    pub block: u64,
    /// Deposits less refunds and withdrawals. Claims do not lower it.
    pub balance: Amount,
    /// What was claimed in all.
    pub total_claimed: Amount,
    /// The withdrawal the payer announced, if one is pending.
    pub withdrawal: Option<Withdrawal>,
    /// The nonce of the next refund.
    pub refund_nonce: u128,
}

impl View {
    /// What can still be claimed, refunded or withdrawn, atomic units.
    pub fn available(&self) -> Amount {
        self.balance.saturating_sub(self.total_claimed)
    }

    /// Whether the contract can be in this state. A node that lies or mixes blocks must not reach the books.
    pub(super) fn is_possible(&self) -> bool {
        self.total_claimed <= self.balance
    }
}

/// A withdrawal the payer announced and has not finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Withdrawal {
    /// How much.
    pub amount: Amount,
    /// When it was announced, Unix seconds.
    pub initiated_at: u64,
}

/// A refund whose signature left this process and whose nonce is not used up yet. Anybody who has seen it can still bring
/// it to the contract, which then pays from what was served meanwhile and is not claimed yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SentRefund {
    /// Its nonce; it is void once the channel's is above.
    pub nonce: u128,
    /// How much it gives back.
    pub amount: Amount,
}

/// The voucher that paid last: it covers everything charged so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LatestVoucher {
    /// Its ceiling.
    pub max_claimable: Amount,
    /// Its signature, for the claim.
    pub signature: Signature,
}

/// What has to be written down of a channel so that its books can be opened again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Its id.
    pub id: ChannelId,
    /// Its terms.
    pub config: ChannelConfig,
    /// What the chain last said.
    pub view: View,
    /// When that was, Unix seconds.
    pub viewed_at: u64,
    /// What was charged in all.
    pub charged: Amount,
    /// The voucher that covers it.
    pub latest: Option<LatestVoucher>,
    /// A refund that was signed and may still be paid.
    pub open_refund: Option<SentRefund>,
    /// Since when something is charged and not claimed, Unix seconds.
    pub unclaimed_since: Option<u64>,
}

/// An invariant of [`Channel`] that does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Violation {
    /// I1.
    #[error("I1: more was claimed than was ever deposited")]
    ClaimedAboveBalance,
    /// I2.
    #[error("I2: more was claimed than was charged")]
    ClaimedAboveCharged,
    /// I3, with a voucher.
    #[error("I3: more was charged than the latest voucher covers")]
    ChargedAboveVoucher,
    /// I3, without one.
    #[error("I3: something was charged and not claimed, and there is no voucher for it")]
    ChargedWithoutVoucher,
    /// I4, first half.
    #[error("I4: an open hold is not covered by its voucher")]
    HoldNotCovered,
    /// I4, second half.
    #[error("I4: a request is held while a refund is in progress")]
    HoldAndRefund,
}

/// Which hold of a channel; later holds have higher numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HoldNumber(u64);

/// A request that is being served on credit of a voucher.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenHold {
    /// Which one.
    pub number: HoldNumber,
    /// The most it will be charged.
    pub price: Amount,
    /// The voucher that pays for it.
    pub voucher: LatestVoucher,
}

/// A channel's books.
///
/// Invariants, asserted after every event:
/// * I1: `view.total_claimed <= view.balance`;
/// * I2: `view.total_claimed <= charged`;
/// * I3: `charged <= latest.max_claimable`, or there is no latest voucher and `charged == view.total_claimed`: whatever
///   was charged and not yet claimed can be claimed;
/// * I4: `charged + hold.price <= hold.voucher.max_claimable`, and a hold and a refund exclude each other.
///
/// `charged <= view.balance` is *not* among them: a payer whose withdrawal ran out, or a deposit that a reorganisation
/// dropped, can leave less than was charged ([`Channel::shortfall`]). Such a channel serves nobody until a deposit covers
/// the debt.
///
/// A million of them are kept in memory, so what few channels have at a time is boxed, and terms are shared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Channel {
    id: ChannelId,
    payer: Address,
    payer_authorizer: Address,
    salt: Hash,
    terms: Arc<SharedTerms>,
    block: u64,
    balance: Amount,
    total_claimed: Amount,
    refund_nonce: u128,
    viewed_at: u64,
    charged: Amount,
    /// Since when something of it is not claimed, Unix seconds; 0 where everything is.
    unclaimed_since: u64,
    latest: Option<LatestVoucher>,
    hold: Option<Box<OpenHold>>,
    rare: Option<Box<Rare>>,
    next_hold: u64,
}

/// What few channels have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Rare {
    withdrawal: Option<Withdrawal>,
    /// The refund that may still be paid, if one is known of.
    open_refund: Option<SentRefund>,
    /// The refund in progress.
    refunding: Option<Refunding>,
}

/// A refund in progress, and what was signed for it so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Refunding {
    signed: Option<SentRefund>,
}

/// Of two refunds with one nonce only one can be paid; the larger is reckoned with. Of two nonces the lower was used up
/// when the higher was signed, whatever our view of the chain says.
fn larger(one: Option<SentRefund>, other: Option<SentRefund>) -> Option<SentRefund> {
    one.into_iter().chain(other).max_by_key(|refund| (refund.nonce, refund.amount))
}

/// What can be asked of a channel.
#[derive(Debug, Clone)]
pub enum Command<'a> {
    /// Let a request through that may cost up to `price`.
    Hold {
        /// The voucher that came with it.
        voucher: &'a VerifiedVoucher,
        /// The quoted price, above zero.
        price: Amount,
    },
    /// The held request was served and cost so much.
    Post {
        /// The hold.
        hold: HoldNumber,
        /// At most what was held.
        charge: Amount,
    },
    /// The held request failed; it costs nothing.
    Void {
        /// The hold.
        hold: HoldNumber,
    },
    /// The chain was read.
    Observe {
        /// What it said.
        view: View,
    },
    /// The payer asks for its money back.
    BeginRefund {
        /// A voucher for exactly what was charged: proof that the payer agrees with the books.
        voucher: &'a VerifiedVoucher,
        /// How much it asks for.
        size: RefundRequest,
    },
    /// The refund in progress is about to be signed and sent: from now on it may be paid.
    SignRefund {
        /// What is signed.
        refund: SentRefund,
    },
    /// The refund ended, one way or the other.
    EndRefund {
        /// Whether what was signed left this process, so that it may still be paid.
        sent: bool,
    },
}

/// What happened to a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A request was let through.
    Held(OpenHold),
    /// A held request was charged.
    Posted {
        /// The hold.
        hold: HoldNumber,
        /// What it cost.
        charge: Amount,
        /// What has been charged in all, this charge included.
        charged: Amount,
        /// When, Unix seconds.
        at: u64,
    },
    /// A held request was not charged.
    Voided {
        /// The hold.
        hold: HoldNumber,
    },
    /// The chain was read.
    Observed {
        /// What it said.
        view: View,
        /// When, Unix seconds.
        at: u64,
    },
    /// A refund of this much is being sent; nothing is served meanwhile.
    RefundBegun {
        /// How much.
        amount: Amount,
    },
    /// The signature of a refund is about to leave.
    RefundSigned {
        /// The refund.
        refund: SentRefund,
    },
    /// Requests are served again.
    RefundEnded {
        /// The refund that may still be paid.
        open: Option<SentRefund>,
    },
}

/// Why a command was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Reject {
    /// Another request or a refund is in progress.
    #[error("the channel is serving another request")]
    Busy,
    /// The chain was read too long ago to trust the balance.
    #[error("the channel's state on chain must be read again")]
    ViewTooOld,
    /// The voucher is of another channel.
    #[error("the voucher is of another channel")]
    OtherChannel,
    /// The voucher's ceiling is not what was charged plus the price.
    #[error("the voucher's ceiling is not what was charged plus the price")]
    AmountMismatch,
    /// There is no deposit.
    #[error("the channel has no deposit")]
    NoDeposit,
    /// The ceiling is above the balance.
    #[error("the voucher's ceiling is above the channel's balance")]
    ExceedsBalance,
    /// The ceiling is covered only if a pending withdrawal or refund does not happen.
    #[error("the voucher's ceiling is above what a pending withdrawal or refund leaves")]
    ExceedsWithdrawal,
    /// A price of nothing needs no voucher.
    #[error("a hold must be for more than nothing")]
    ZeroPrice,
    /// The hold is not open (any more).
    #[error("the hold is not open")]
    NoSuchHold,
    /// The charge is above what was held.
    #[error("the charge is above what was held")]
    ChargeExceedsHold,
    /// There is nothing to give back.
    #[error("nothing is left to refund")]
    NothingToRefund,
    /// No refund is in progress.
    #[error("no refund is in progress")]
    NoRefund,
    /// The node says something the contract cannot: more claimed than was ever there.
    #[error("the node reports a state the contract cannot have")]
    ImpossibleView,
}

/// The bounds of how long a view is trusted, seconds; between them a third of the withdraw delay. A withdrawal that is
/// announced right after a read is then still seen with two thirds of its delay left.
const MIN_VIEW_AGE_S: u64 = 30;
const MAX_VIEW_AGE_S: u64 = 300;

impl Channel {
    /// Opens the books of a channel from what the chain says. What was claimed is what was charged: with no record of
    /// our own, the chain's is the base, never the payer's word.
    pub fn open(id: ChannelId, config: ChannelConfig, view: View, now: u64) -> Result<Self, Reject> {
        if !view.is_possible() {
            return Err(Reject::ImpossibleView);
        }
        let snapshot = Snapshot {
            id,
            config,
            view,
            viewed_at: now,
            charged: view.total_claimed,
            latest: None,
            open_refund: None,
            unclaimed_since: None,
        };
        let channel = Self::of(snapshot);
        channel.assert_invariants();
        Ok(channel)
    }

    /// Opens the books of a channel from what was written down of it. What was being served when that was written is
    /// void: nothing was promised for it.
    ///
    /// # Errors
    /// The invariant that what was written breaks.
    pub fn restore(snapshot: Snapshot) -> Result<Self, Violation> {
        let channel = Self::of(snapshot);
        channel.violation().map_or(Ok(channel), Err)
    }

    fn of(snapshot: Snapshot) -> Self {
        let Snapshot { id, config, view, viewed_at, charged, latest, open_refund, unclaimed_since } = snapshot;
        let mut channel = Self {
            id,
            payer: config.payer,
            payer_authorizer: config.payer_authorizer,
            salt: config.salt,
            terms: Arc::new(SharedTerms::of(&config)),
            block: 0,
            balance: Amount::ZERO,
            total_claimed: Amount::ZERO,
            refund_nonce: 0,
            viewed_at,
            charged,
            unclaimed_since: unclaimed_since.unwrap_or(0),
            latest,
            hold: None,
            rare: None,
            next_hold: 0,
        };
        channel.set_view(view);
        channel.set_rare(|rare| rare.open_refund = open_refund);
        // Books that were written before this was, or by a clock that was wrong.
        channel.date_unclaimed(viewed_at);
        channel
    }

    /// What has to be written down, so that these books can be opened again. A refund that was signed is taken for sent.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            id: self.id,
            config: self.config(),
            view: self.view(),
            viewed_at: self.viewed_at,
            charged: self.charged,
            latest: self.latest.clone(),
            open_refund: larger(self.rare().open_refund, self.signed_refund()),
            unclaimed_since: self.unclaimed_since(),
        }
    }

    /// Shares its terms with the other channels that have the same; what it says does not change.
    #[must_use]
    pub fn pooled(mut self, pool: &TermsPool) -> Self {
        self.terms = pool.share(self.terms);
        self
    }

    /// Its id.
    pub fn id(&self) -> ChannelId {
        self.id
    }

    /// Its terms.
    pub fn config(&self) -> ChannelConfig {
        self.terms.config_of(self.payer, self.payer_authorizer, self.salt)
    }

    /// The latest view of the chain.
    pub fn view(&self) -> View {
        View {
            block: self.block,
            balance: self.balance,
            total_claimed: self.total_claimed,
            withdrawal: self.rare().withdrawal,
            refund_nonce: self.refund_nonce,
        }
    }

    /// What was charged in all, atomic units.
    pub fn charged(&self) -> Amount {
        self.charged
    }

    /// The voucher that covers the charges, unless everything charged was already claimed when the books were opened.
    pub fn latest(&self) -> Option<&LatestVoucher> {
        self.latest.as_ref()
    }

    /// The request being served, if one is.
    pub fn open_hold(&self) -> Option<&OpenHold> {
        self.hold.as_deref()
    }

    /// Whether a refund is in progress.
    pub fn is_refunding(&self) -> bool {
        self.rare().refunding.is_some()
    }

    fn signed_refund(&self) -> Option<SentRefund> {
        self.rare().refunding.and_then(|refunding| refunding.signed)
    }

    fn rare(&self) -> Rare {
        self.rare.as_deref().copied().unwrap_or_default()
    }

    fn set_rare(&mut self, set: impl FnOnce(&mut Rare)) {
        let mut rare = self.rare();
        set(&mut rare);
        self.rare = (rare != Rare::default()).then(|| Box::new(rare));
    }

    fn set_view(&mut self, view: View) {
        let View { block, balance, total_claimed, withdrawal, refund_nonce } = view;
        (self.block, self.balance, self.total_claimed, self.refund_nonce) =
            (block, balance, total_claimed, refund_nonce);
        if self.rare().withdrawal != withdrawal {
            self.set_rare(|rare| rare.withdrawal = withdrawal);
        }
    }

    /// What was charged and not yet claimed.
    pub fn unclaimed(&self) -> Amount {
        self.charged.saturating_sub(self.total_claimed)
    }

    /// Since when something is charged and not claimed, Unix seconds. A charge that was made while a claim was on its way
    /// may be a little older than this says.
    pub fn unclaimed_since(&self) -> Option<u64> {
        (self.unclaimed_since != 0).then_some(self.unclaimed_since)
    }

    /// Keeps [`Channel::unclaimed_since`] in step with what is unclaimed; `at` is since when, where that is new.
    fn date_unclaimed(&mut self, at: u64) {
        if self.unclaimed().is_zero() {
            self.unclaimed_since = 0;
        } else if self.unclaimed_since == 0 {
            self.unclaimed_since = at.max(1);
        }
    }

    /// What was charged and is no longer covered by the deposit: money that is lost unless the payer deposits again.
    pub fn shortfall(&self) -> Amount {
        self.charged.saturating_sub(self.balance)
    }

    /// What a voucher may reach at most: the balance less what a pending withdrawal and an open refund will take.
    pub fn ceiling(&self) -> Amount {
        let rare = self.rare();
        let leaving = rare.withdrawal.map_or(Amount::ZERO, |withdrawal| withdrawal.amount);
        let returning = rare.open_refund.map_or(Amount::ZERO, |refund| refund.amount);
        self.balance.saturating_sub(leaving).saturating_sub(returning)
    }

    /// What a refund could give back now.
    pub fn refundable(&self) -> Amount {
        self.balance.saturating_sub(self.charged)
    }

    /// Whether the latest view is too old to let a request through. So is one from the future: a clock was wrong when it
    /// was written down, or is wrong now, and nobody can say how old it is.
    pub fn view_too_old(&self, now: u64) -> bool {
        let trusted_for = (self.terms.withdraw_delay() / 3).clamp(MIN_VIEW_AGE_S, MAX_VIEW_AGE_S);
        now.abs_diff(self.viewed_at) > trusted_for
    }

    /// Judges a command at `now` (Unix seconds). Pure: the channel is not changed.
    pub fn decide(&self, command: &Command<'_>, now: u64) -> Result<Event, Reject> {
        match command {
            Command::Hold { voucher, price } => self.decide_hold(voucher, *price, now),
            Command::Post { hold, charge } => self.decide_post(*hold, *charge, now),
            Command::Void { hold } => self.holding(*hold).map(|hold| Event::Voided { hold: hold.number }),
            Command::Observe { view } if !view.is_possible() => Err(Reject::ImpossibleView),
            Command::Observe { view } => Ok(self.observed(*view, now)),
            Command::BeginRefund { voucher, size } => self.decide_refund(voucher, *size, now),
            Command::SignRefund { refund } if self.is_refunding() => Ok(Event::RefundSigned { refund: *refund }),
            Command::SignRefund { .. } => Err(Reject::NoRefund),
            Command::EndRefund { sent } => self.decide_end_of_refund(*sent),
        }
    }

    /// Whether a voucher with this ceiling could pay this price now, as far as arithmetic goes: everything
    /// [`Command::Hold`] checks except the signature. Lets a caller refuse before it does curve work.
    pub fn preview_hold(&self, max_claimable: Amount, price: Amount, now: u64) -> Result<(), Reject> {
        if price.is_zero() {
            return Err(Reject::ZeroPrice);
        }
        // While a request or a refund is in progress the base is about to change, so nothing else is judged.
        if self.hold.is_some() || self.is_refunding() {
            return Err(Reject::Busy);
        }
        if self.charged.checked_add(price) != Some(max_claimable) {
            return Err(Reject::AmountMismatch);
        }
        if self.view_too_old(now) {
            return Err(Reject::ViewTooOld);
        }
        if self.balance.is_zero() {
            return Err(Reject::NoDeposit);
        }
        if max_claimable > self.balance {
            return Err(Reject::ExceedsBalance);
        }
        if max_claimable > self.ceiling() {
            return Err(Reject::ExceedsWithdrawal);
        }
        Ok(())
    }

    fn decide_hold(&self, voucher: &VerifiedVoucher, price: Amount, now: u64) -> Result<Event, Reject> {
        if voucher.channel() != self.id {
            return Err(Reject::OtherChannel);
        }
        self.preview_hold(voucher.max_claimable(), price, now)?;
        Ok(Event::Held(OpenHold {
            number: HoldNumber(self.next_hold),
            price,
            voucher: LatestVoucher { max_claimable: voucher.max_claimable(), signature: voucher.signature().clone() },
        }))
    }

    fn decide_post(&self, hold: HoldNumber, charge: Amount, now: u64) -> Result<Event, Reject> {
        let hold = self.holding(hold)?;
        if charge > hold.price {
            return Err(Reject::ChargeExceedsHold);
        }
        let charged = self.charged.checked_add(charge).ok_or(Reject::ChargeExceedsHold)?;
        Ok(Event::Posted { hold: hold.number, charge, charged, at: now })
    }

    fn decide_refund(&self, voucher: &VerifiedVoucher, size: RefundRequest, now: u64) -> Result<Event, Reject> {
        if voucher.channel() != self.id {
            return Err(Reject::OtherChannel);
        }
        if self.hold.is_some() || self.is_refunding() {
            return Err(Reject::Busy);
        }
        if voucher.max_claimable() != self.charged {
            return Err(Reject::AmountMismatch);
        }
        if self.view_too_old(now) {
            return Err(Reject::ViewTooOld);
        }
        let left = self.refundable();
        let amount = match size {
            RefundRequest::Remainder => left,
            RefundRequest::Amount(amount) => amount.min(left),
        };
        if amount.is_zero() { Err(Reject::NothingToRefund) } else { Ok(Event::RefundBegun { amount }) }
    }

    fn decide_end_of_refund(&self, sent: bool) -> Result<Event, Reject> {
        let Rare { open_refund, refunding, .. } = self.rare();
        let signed = refunding.ok_or(Reject::NoRefund)?.signed.filter(|_| sent);
        let live = |refund: &SentRefund| refund.nonce >= self.refund_nonce;
        Ok(Event::RefundEnded { open: larger(open_refund.filter(live), signed.filter(live)) })
    }

    /// A view from an older block tells nothing new; the newer one is kept, and so is its age.
    fn observed(&self, view: View, now: u64) -> Event {
        if view.block < self.block {
            Event::Observed { view: self.view(), at: self.viewed_at }
        } else {
            Event::Observed { view, at: now }
        }
    }

    fn holding(&self, number: HoldNumber) -> Result<&OpenHold, Reject> {
        self.hold.as_deref().filter(|hold| hold.number == number).ok_or(Reject::NoSuchHold)
    }

    /// Applies an event that [`Channel::decide`] returned for this very state. Anything else is a bug, and the
    /// invariants stop it before it costs money.
    pub fn evolve(&mut self, event: &Event) {
        match event {
            Event::Held(hold) => {
                assert!(self.hold.is_none(), "a channel has one open hold at most");
                self.next_hold = hold.number.0.checked_add(1).expect("2^64 requests do not happen");
                self.hold = Some(Box::new(hold.clone()));
            }
            Event::Posted { hold, charge, charged, at } => {
                let open = self.hold.take().expect("a post has an open hold");
                assert!(open.number == *hold && *charge <= open.price, "a post resolves its own hold within its price");
                assert_eq!(self.charged.checked_add(*charge), Some(*charged), "a charge adds up");
                self.charged = *charged;
                self.latest = Some(open.voucher);
                self.date_unclaimed(*at);
            }
            Event::Voided { hold } => {
                let open = self.hold.take().expect("a void has an open hold");
                assert_eq!(open.number, *hold, "a void resolves its own hold");
            }
            Event::Observed { view, at } => self.apply_view(*view, *at),
            Event::RefundBegun { amount } => {
                assert!(!self.is_refunding() && *amount <= self.refundable(), "a refund is of what is left");
                self.set_rare(|rare| rare.refunding = Some(Refunding::default()));
            }
            Event::RefundSigned { refund } => {
                assert!(self.is_refunding(), "only a refund in progress is signed");
                let signed = larger(self.signed_refund(), Some(*refund));
                self.set_rare(|rare| rare.refunding = Some(Refunding { signed }));
            }
            Event::RefundEnded { open } => self.set_rare(|rare| {
                rare.refunding = None;
                rare.open_refund = *open;
            }),
        }
        self.assert_invariants();
    }

    /// The chain's word on claims is final: if more was claimed than we charged (by another instance with our
    /// authorizer's key, say), that much was charged. A voucher at or below what was claimed covers nothing any more,
    /// but one at exactly what was charged is kept: it is how a client that lost its state finds the way back.
    fn apply_view(&mut self, view: View, at: u64) {
        if view.total_claimed > self.total_claimed {
            // What is left is younger than the claim.
            self.unclaimed_since = 0;
        }
        self.set_view(view);
        self.viewed_at = at;
        if self.rare().open_refund.is_some_and(|refund| refund.nonce < view.refund_nonce) {
            self.set_rare(|rare| rare.open_refund = None);
        }
        if view.total_claimed > self.charged {
            self.charged = view.total_claimed;
            // A hold made on the old base could charge above its voucher; the caller's request is already being
            // served, so the hold stays only if its voucher still covers it.
            if self.hold.as_ref().is_some_and(|hold| !covers(hold, self.charged)) {
                self.hold = None;
            }
        }
        if self.latest.as_ref().is_some_and(|latest| latest.max_claimable < self.charged) {
            self.latest = None;
        }
        // Without a voucher nothing can be claimed again: when a reorganisation drops a claim of another instance, its
        // charge goes with it.
        if self.latest.is_none() {
            self.charged = view.total_claimed;
        }
        self.date_unclaimed(at);
    }

    /// The invariant these books break, if they do.
    fn violation(&self) -> Option<Violation> {
        if self.total_claimed > self.balance {
            return Some(Violation::ClaimedAboveBalance);
        }
        if self.total_claimed > self.charged {
            return Some(Violation::ClaimedAboveCharged);
        }
        match &self.latest {
            Some(latest) if self.charged > latest.max_claimable => return Some(Violation::ChargedAboveVoucher),
            None if self.charged != self.total_claimed => return Some(Violation::ChargedWithoutVoucher),
            _ => {}
        }
        match &self.hold {
            Some(hold) if !covers(hold, self.charged) => Some(Violation::HoldNotCovered),
            Some(_) if self.is_refunding() => Some(Violation::HoldAndRefund),
            _ => None,
        }
    }

    fn assert_invariants(&self) {
        if let Some(violation) = self.violation() {
            panic!("channel {}: {violation}", self.id);
        }
    }
}

fn covers(hold: &OpenHold, charged: Amount) -> bool {
    charged.checked_add(hold.price).is_some_and(|sum| sum <= hold.voucher.max_claimable)
}
