//! One channel: commands in, events out, invariants asserted.

use std::sync::Arc;

use super::flight::{Flight, HoldNumber, OpenHold, Segment, Several};
use super::terms::{SharedTerms, TermsPool};
use crate::protocol::x402::{Order, RefundRequest};
use crate::protocol::{Address, Amount, ChannelConfig, ChannelId, Hash, Signature, VerifiedVoucher};

/// What the chain says of a channel at one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct View {
    /// The block it was read at. An older view never replaces a newer one, unless the newer one's block turns out not to
    /// be in the chain ([`Command::Rewind`]).
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

/// The voucher with the highest ceiling of those that paid: it covers everything charged so far.
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
    /// Where ceilings above what was charged were used while several requests were in flight: the highest of them. No
    /// voucher at or below it is taken any more.
    pub spent_up_to: Option<Amount>,
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
    /// I5, what is remembered of spent ceilings.
    #[error("I5: ceilings are spent up to what was charged or less, or above the latest voucher")]
    SpentBeyondVoucher,
    /// I5, while several requests are in flight.
    #[error("I5: two requests are paid with the same piece of the line")]
    SegmentsOverlap,
}

/// A channel's books.
///
/// Invariants, asserted after every event:
/// * I1: `view.total_claimed <= view.balance`;
/// * I2: `view.total_claimed <= charged`;
/// * I3: `charged <= latest.max_claimable`, or there is no latest voucher and `charged == view.total_claimed`: whatever
///   was charged and not yet claimed can be claimed;
/// * I4: for each open hold, `charged` and the prices of the holds up to its ceiling are at most the higher of its
///   ceiling and the latest voucher's, so whichever of them are posted is covered; and a hold and a refund exclude each
///   other;
/// * I5: the segments of open holds and the spent ones (see below) are disjoint; and
///   `charged < spent_up_to <= latest.max_claimable`, or nothing is spent above `charged`.
///
/// # Several requests in flight
///
/// A voucher with ceiling M that pays a price p stands for the segment (M - p, M] of the channel's line, and each piece of
/// the line pays for one request. All segments in use lie above what was charged when the first of them was taken, and
/// below the highest ceiling; a charge is at most as long as its segment; so the highest voucher covers all charges,
/// however many fail and in whatever order they end.
///
/// A voucher *in turn* is the price above [`Channel::base`]: what was charged, or what the vouchers in flight reach. One
/// that was signed *ahead* may have any segment that is free and not too far up; what it skips stays free for those
/// that are still on their way. When nothing is in flight, a voucher in turn ends this: what was skipped is too late
/// then. What must never be taken again are ceilings that were used and lie above what was charged, because requests
/// failed or cost less than their price; their highest is remembered, in the books too.
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
    /// Requests that are being served, or must be remembered.
    flight: Option<Box<Flight>>,
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
    /// The highest ceiling that is spent, where that is above what was charged.
    spent_up_to: Option<Amount>,
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

/// What a provider risks with a channel, beyond what the contract guarantees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How long before an announced withdrawal can be finished nothing is served any more, seconds: what is charged so
    /// late may not be claimed in time.
    pub withdraw_margin_s: u64,
    /// The most that may be charged and not claimed on a channel whose payer's own account approves its vouchers, atomic
    /// units. Such an account can approve a voucher when it is served and refuse it when it is claimed, so this is what
    /// one can take.
    pub max_wallet_exposure: Amount,
    /// How many requests of one channel are served at once; 1 means one after the other.
    pub max_in_flight: u32,
}

impl Limits {
    /// How many requests of a channel may be in flight; one always may.
    pub fn in_flight(self) -> usize {
        usize::try_from(self.max_in_flight.max(1)).unwrap_or(usize::MAX)
    }

    /// How a voucher is judged: those signed ahead are nothing special where requests come one after the other.
    fn order(self, signed: Order) -> Order {
        if self.max_in_flight > 1 { signed } else { Order::InTurn }
    }
}

/// Five minutes, which is a third of the shortest withdraw delay there is, a dollar of a token with six decimals, and one
/// request after the other.
impl Default for Limits {
    fn default() -> Self {
        Self { withdraw_margin_s: 300, max_wallet_exposure: Amount::new(1_000_000), max_in_flight: 1 }
    }
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
        /// How its payer signs.
        order: Order,
        /// What the provider risks.
        limits: Limits,
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
    /// The chain was read, and it turned out not to have the block of the view in the books: that one was reorganised
    /// away, or a node made it up. So this view replaces it although it may be of an older block.
    Rewind {
        /// What the chain said.
        view: View,
        /// The block the chain does not have. Where the view in the books is of another one by now, this is an
        /// observation like any other.
        gone: u64,
    },
    /// The provider gives back what is left, unasked: the payer has not come for a long time.
    BeginReturn,
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
    /// What the voucher, signed ahead, would pay with is in use, or was.
    #[error("the voucher's piece of the channel's line is used, or comes too late")]
    Spent,
    /// The voucher was signed further ahead than requests may be in flight.
    #[error("the voucher is signed too far ahead")]
    TooFarAhead,
    /// There is no deposit.
    #[error("the channel has no deposit")]
    NoDeposit,
    /// The ceiling is above the balance.
    #[error("the voucher's ceiling is above the channel's balance")]
    ExceedsBalance,
    /// The ceiling is covered only if a pending withdrawal or refund does not happen.
    #[error("the voucher's ceiling is above what a pending withdrawal or refund leaves")]
    ExceedsWithdrawal,
    /// A withdrawal can be finished before what is charged now would be claimed.
    #[error("a withdrawal of the channel can be finished too soon")]
    Withdrawing,
    /// More would wait to be claimed than is risked on the word of a payer's own account.
    #[error("too much of the channel is not claimed yet to trust its payer's own account with more")]
    WalletExposed,
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
            spent_up_to: None,
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
        let Snapshot { id, config, view, viewed_at, charged, latest, spent_up_to, open_refund, unclaimed_since } =
            snapshot;
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
            flight: None,
            rare: None,
            next_hold: 0,
        };
        channel.set_view(view);
        channel.set_rare(|rare| (rare.open_refund, rare.spent_up_to) = (open_refund, spent_up_to));
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
            spent_up_to: self.spent_up_to(),
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

    /// The voucher with the highest ceiling that is known, those of requests in flight included: no base is above it, as
    /// long as there is one.
    pub fn highest(&self) -> Option<&LatestVoucher> {
        let held = self.holds().last().map(|hold| &hold.voucher);
        held.into_iter().chain(&self.latest).max_by_key(|voucher| voucher.max_claimable)
    }

    /// How many requests are being served.
    pub fn in_flight(&self) -> usize {
        self.holds().len()
    }

    /// Whether nobody is let through now, whatever the voucher: as many requests are being served as may be, or a refund is
    /// in progress.
    pub fn is_full(&self, limits: Limits) -> bool {
        self.in_flight() >= limits.in_flight() || self.is_refunding()
    }

    /// What the requests being served may cost together; nothing if that is beyond all bounds.
    fn held(&self) -> Option<Amount> {
        self.holds().iter().try_fold(Amount::ZERO, |sum, hold| sum.checked_add(hold.price))
    }

    fn holds(&self) -> &[OpenHold] {
        self.flight.as_ref().map_or(&[], |flight| flight.holds())
    }

    /// The highest ceiling that is spent, where that is above what was charged.
    pub fn spent_up_to(&self) -> Option<Amount> {
        self.rare.as_ref().and_then(|rare| rare.spent_up_to)
    }

    /// What the next voucher in turn must be the price above: what its client is told by a corrective. That is what was
    /// charged, or so little more that no ceiling is used again; and while requests are in flight, what they reach.
    pub fn base(&self, price: Amount) -> Amount {
        if self.in_flight() > 0 {
            return self.top();
        }
        let unused = self.spent_up_to().and_then(|spent| spent.checked_add(Amount::new(1)));
        self.charged.max(unused.map_or(Amount::ZERO, |unused| unused.saturating_sub(price)))
    }

    /// The highest ceiling in use, or used so that it counts.
    fn top(&self) -> Amount {
        let flown = match self.flight.as_deref() {
            Some(Flight::Several(several)) => several.top(),
            Some(Flight::Alone(hold)) => self.floor().max(hold.voucher.max_claimable),
            None => self.floor(),
        };
        flown.max(self.charged).max(self.spent_up_to().unwrap_or_default())
    }

    /// Where vouchers signed ahead may begin. A ceiling that was charged in turn can be above what was charged, and is the
    /// latest voucher's at most.
    fn floor(&self) -> Amount {
        if let Some(Flight::Several(several)) = self.flight.as_deref() {
            return several.floor();
        }
        let latest = self.latest.as_ref().map_or(Amount::ZERO, |latest| latest.max_claimable);
        self.charged.max(latest).max(self.spent_up_to().unwrap_or_default())
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
        let Some(rare) = self.rare.as_deref_mut() else {
            let mut rare = Rare::default();
            set(&mut rare);
            self.rare = (rare != Rare::default()).then(|| Box::new(rare));
            return;
        };
        set(rare);
        if *rare == Rare::default() {
            self.rare = None;
        }
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

    /// Whether the payer's own account approves its vouchers: a wallet, or a key whose account can become one at any time.
    pub fn is_of_wallet(&self) -> bool {
        self.payer_authorizer.is_zero()
    }

    /// Whether so much of a wallet's channel waits to be claimed that a claim should not wait: half of what is risked.
    pub fn wants_claim(&self, limits: Limits) -> bool {
        let unclaimed = self.unclaimed();
        let half = unclaimed.checked_add(unclaimed).is_none_or(|twice| twice >= limits.max_wallet_exposure);
        self.is_of_wallet() && !unclaimed.is_zero() && half
    }

    /// Whether an announced withdrawal can be finished at `now` (Unix seconds) or within the margin after it. That stays
    /// so until the chain says that the withdrawal is finished or gone.
    pub fn is_withdrawing(&self, limits: Limits, now: u64) -> bool {
        self.rare().withdrawal.is_some_and(|withdrawal| {
            let finished_from = withdrawal.initiated_at.saturating_add(self.terms.withdraw_delay());
            now >= finished_from.saturating_sub(limits.withdraw_margin_s)
        })
    }

    /// Whether anything can still happen on the channel: there is something left in it, something to claim, or a
    /// withdrawal to finish. A drained one is silent until somebody deposits.
    pub fn is_open(&self) -> bool {
        self.balance > self.total_claimed || !self.unclaimed().is_zero() || self.rare().withdrawal.is_some()
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
            Command::Hold { voucher, price, order, limits } => self.decide_hold(voucher, *price, *order, *limits, now),
            Command::Post { hold, charge } => self.decide_post(*hold, *charge, now),
            Command::Void { hold } => self.holding(*hold).map(|hold| Event::Voided { hold: hold.number }),
            Command::Observe { view } | Command::Rewind { view, .. } if !view.is_possible() => {
                Err(Reject::ImpossibleView)
            }
            Command::Observe { view } => Ok(self.observed(*view, now)),
            Command::Rewind { view, gone } if *gone == self.block => Ok(Event::Observed { view: *view, at: now }),
            Command::Rewind { view, .. } => Ok(self.observed(*view, now)),
            Command::BeginReturn => self.decide_return(now),
            Command::BeginRefund { voucher, size } => self.decide_refund(voucher, *size, now),
            Command::SignRefund { refund } if self.is_refunding() => Ok(Event::RefundSigned { refund: *refund }),
            Command::SignRefund { .. } => Err(Reject::NoRefund),
            Command::EndRefund { sent } => self.decide_end_of_refund(*sent),
        }
    }

    /// Whether a voucher with this ceiling could pay this price now, as far as arithmetic goes: everything
    /// [`Command::Hold`] checks except the signature. Lets a caller refuse before it does curve work.
    pub fn preview_hold(
        &self,
        max_claimable: Amount,
        price: Amount,
        order: Order,
        limits: Limits,
        now: u64,
    ) -> Result<(), Reject> {
        if price.is_zero() {
            return Err(Reject::ZeroPrice);
        }
        // Where as much is in progress as may be the base is about to change, so nothing else is judged.
        if self.is_full(limits) {
            return Err(Reject::Busy);
        }
        match limits.order(order) {
            Order::InTurn if self.base(price).checked_add(price) != Some(max_claimable) => {
                return Err(Reject::AmountMismatch);
            }
            Order::InTurn => {}
            Order::Ahead => self.judge_ahead(max_claimable, price, limits)?,
        }
        if self.view_too_old(now) {
            return Err(Reject::ViewTooOld);
        }
        // Before the balance is looked at: a payer that is told of a balance too low deposits, and it would be in vain.
        if self.is_withdrawing(limits, now) {
            return Err(Reject::Withdrawing);
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
        let exposed = self.held().and_then(|held| self.unclaimed().checked_add(held)?.checked_add(price));
        if self.is_of_wallet() && exposed.is_none_or(|exposed| exposed > limits.max_wallet_exposure) {
            return Err(Reject::WalletExposed);
        }
        Ok(())
    }

    /// Whether the piece of the line that a voucher signed ahead stands for is free.
    fn judge_ahead(&self, max_claimable: Amount, price: Amount, limits: Limits) -> Result<(), Reject> {
        let start = max_claimable.checked_sub(price).ok_or(Reject::Spent)?;
        let segment = Segment { start, end: max_claimable };
        if start < self.floor() || self.flight.as_ref().is_some_and(|flight| flight.uses(segment)) {
            return Err(Reject::Spent);
        }
        let others = u128::from(limits.max_in_flight.saturating_sub(1));
        let furthest = price.checked_mul(others).and_then(|ahead| self.top().checked_add(ahead));
        if furthest.is_some_and(|furthest| start > furthest) { Err(Reject::TooFarAhead) } else { Ok(()) }
    }

    fn decide_hold(
        &self,
        voucher: &VerifiedVoucher,
        price: Amount,
        order: Order,
        limits: Limits,
        now: u64,
    ) -> Result<Event, Reject> {
        if voucher.channel() != self.id {
            return Err(Reject::OtherChannel);
        }
        self.preview_hold(voucher.max_claimable(), price, order, limits, now)?;
        Ok(Event::Held(OpenHold {
            number: HoldNumber(self.next_hold),
            price,
            voucher: LatestVoucher { max_claimable: voucher.max_claimable(), signature: voucher.signature().clone() },
            order: limits.order(order),
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
        if self.in_flight() > 0 || self.is_refunding() {
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

    /// A withdrawal is the payer's own way to the same end, and a refund that may still be paid comes first.
    fn decide_return(&self, now: u64) -> Result<Event, Reject> {
        let Rare { withdrawal, open_refund, refunding, .. } = self.rare();
        if self.in_flight() > 0 || refunding.is_some() || open_refund.is_some() {
            return Err(Reject::Busy);
        }
        if withdrawal.is_some() {
            return Err(Reject::Withdrawing);
        }
        if self.view_too_old(now) {
            return Err(Reject::ViewTooOld);
        }
        let amount = self.refundable();
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
        self.holds().iter().find(|hold| hold.number == number).ok_or(Reject::NoSuchHold)
    }

    /// Applies an event that [`Channel::decide`] returned for this very state. Anything else is a bug, and the
    /// invariants stop it before it costs money.
    pub fn evolve(&mut self, event: &Event) {
        match event {
            Event::Held(hold) => {
                self.next_hold = hold.number.0.checked_add(1).expect("2^64 requests do not happen");
                self.take_up(hold.clone());
            }
            Event::Posted { hold, charge, charged, at } => {
                let open = self.close(*hold, true).expect("a post has an open hold");
                assert!(*charge <= open.price, "a post resolves its own hold within its price");
                assert_eq!(self.charged.checked_add(*charge), Some(*charged), "a charge adds up");
                self.charged = *charged;
                if self.latest.as_ref().is_none_or(|latest| latest.max_claimable <= open.voucher.max_claimable) {
                    self.latest = Some(open.voucher);
                }
                self.forget_spent();
                self.date_unclaimed(*at);
            }
            Event::Voided { hold } => {
                self.close(*hold, false).expect("a void has an open hold");
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

    /// Opens a hold. One in turn that finds nothing in flight is alone, and what was skipped before is too late.
    fn take_up(&mut self, hold: OpenHold) {
        if hold.order == Order::InTurn && self.in_flight() == 0 {
            self.flight = Some(Box::new(Flight::Alone(hold)));
            return;
        }
        // A request that was alone has used nothing yet, so the floor is where it was before.
        let floor = self.floor();
        let flight = self.flight.get_or_insert_with(|| Box::new(Flight::Several(Several::above(floor))));
        flight.join(hold, floor);
    }

    /// Ends a hold, whose segment was used or is free again.
    fn close(&mut self, number: HoldNumber, used: bool) -> Option<OpenHold> {
        let open = match self.flight.as_deref_mut()? {
            Flight::Alone(hold) if hold.number != number => return None,
            Flight::Alone(_) => {
                let Some(Flight::Alone(hold)) = self.flight.take().map(|flight| *flight) else { return None };
                // Where its base was above what was charged, its ceiling could be the right one again.
                if used && self.spent_up_to().is_some() && hold.segment().start > self.charged {
                    self.spend_up_to(hold.voucher.max_claimable);
                }
                return Some(hold);
            }
            Flight::Several(several) => {
                let open = several.take(number)?;
                if used {
                    several.spend(open.segment());
                }
                if several.is_over() {
                    self.flight = None;
                }
                open
            }
        };
        if used {
            self.spend_up_to(open.voucher.max_claimable);
        }
        Some(open)
    }

    fn spend_up_to(&mut self, ceiling: Amount) {
        self.set_rare(|rare| rare.spent_up_to = rare.spent_up_to.max(Some(ceiling)));
    }

    /// Ceilings up to what was charged need no memory.
    fn forget_spent(&mut self) {
        if self.spent_up_to().is_some_and(|spent| spent <= self.charged) {
            self.set_rare(|rare| rare.spent_up_to = None);
        }
    }

    /// The chain's word on claims is final: if more was claimed than we charged (by another instance with our
    /// authorizer's key, say), that much was charged. A voucher at or below what was claimed covers nothing any more,
    /// but one at exactly what was charged is kept: it is how a client that lost its state finds the way back.
    fn apply_view(&mut self, view: View, at: u64) {
        if view.total_claimed > self.total_claimed {
            // What is left is younger than the claim.
            self.unclaimed_since = 0;
        }
        // A nonce only goes back where a reorganisation dropped a refund, and whoever saw that one can bring it again. What
        // it gave back is what is there now and was not before.
        let dropped = self.refund_nonce.checked_sub(1).filter(|nonce| *nonce >= view.refund_nonce);
        let returned = view.balance.saturating_sub(self.balance);
        let dropped = dropped.filter(|_| !returned.is_zero()).map(|nonce| SentRefund { nonce, amount: returned });
        self.set_view(view);
        self.viewed_at = at;
        if dropped.is_some() {
            self.set_rare(|rare| rare.open_refund = larger(rare.open_refund, dropped));
        }
        if self.rare().open_refund.is_some_and(|refund| refund.nonce < view.refund_nonce) {
            self.set_rare(|rare| rare.open_refund = None);
        }
        if view.total_claimed > self.charged {
            self.charged = view.total_claimed;
            // A hold made on the old base could charge above its voucher; the caller's request is already being
            // served, so the hold stays only if its voucher still covers it.
            let over = match self.flight.as_deref_mut() {
                Some(Flight::Alone(hold)) => hold.segment().start < self.charged,
                Some(Flight::Several(several)) => {
                    several.drop_below(self.charged);
                    several.is_over()
                }
                None => false,
            };
            if over {
                self.flight = None;
            }
            self.forget_spent();
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
        let highest = self.latest.as_ref().map_or(Amount::ZERO, |latest| latest.max_claimable);
        if self.spent_up_to().is_some_and(|spent| spent <= self.charged || spent > highest) {
            return Some(Violation::SpentBeyondVoucher);
        }
        if !self.holds().is_empty() && self.is_refunding() {
            return Some(Violation::HoldAndRefund);
        }
        let mut sum = self.charged;
        for hold in self.holds() {
            let covered = highest.max(hold.voucher.max_claimable);
            sum = match sum.checked_add(hold.price).filter(|sum| *sum <= covered) {
                Some(sum) => sum,
                None => return Some(Violation::HoldNotCovered),
            };
        }
        self.flight.as_ref().and_then(|flight| flight.violation())
    }

    fn assert_invariants(&self) {
        if let Some(violation) = self.violation() {
            panic!("channel {}: {violation}", self.id);
        }
    }
}
