//! One channel: commands in, events out, invariants asserted.

use crate::protocol::x402::RefundRequest;
use crate::protocol::{Amount, ChannelConfig, ChannelId, Signature, VerifiedVoucher};

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
    fn is_possible(&self) -> bool {
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Channel {
    id: ChannelId,
    config: ChannelConfig,
    view: View,
    viewed_at: u64,
    charged: Amount,
    latest: Option<LatestVoucher>,
    hold: Option<OpenHold>,
    refunding: bool,
    open_refund: Option<SentRefund>,
    next_hold: u64,
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
    /// The refund ended, one way or the other.
    EndRefund {
        /// What was sent, if it was; it may still be paid.
        sent: Option<SentRefund>,
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
        let channel = Self {
            id,
            config,
            view,
            viewed_at: now,
            charged: view.total_claimed,
            latest: None,
            hold: None,
            refunding: false,
            open_refund: None,
            next_hold: 0,
        };
        channel.assert_invariants();
        Ok(channel)
    }

    /// Its id.
    pub fn id(&self) -> ChannelId {
        self.id
    }

    /// Its terms.
    pub fn config(&self) -> &ChannelConfig {
        &self.config
    }

    /// The latest view of the chain.
    pub fn view(&self) -> &View {
        &self.view
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
        self.hold.as_ref()
    }

    /// Whether a refund is in progress.
    pub fn is_refunding(&self) -> bool {
        self.refunding
    }

    /// What was charged and not yet claimed.
    pub fn unclaimed(&self) -> Amount {
        self.charged.saturating_sub(self.view.total_claimed)
    }

    /// What was charged and is no longer covered by the deposit: money that is lost unless the payer deposits again.
    pub fn shortfall(&self) -> Amount {
        self.charged.saturating_sub(self.view.balance)
    }

    /// What a voucher may reach at most: the balance less what a pending withdrawal and an open refund will take.
    pub fn ceiling(&self) -> Amount {
        let leaving = self.view.withdrawal.map_or(Amount::ZERO, |withdrawal| withdrawal.amount);
        let returning = self.open_refund.map_or(Amount::ZERO, |refund| refund.amount);
        self.view.balance.saturating_sub(leaving).saturating_sub(returning)
    }

    /// What a refund could give back now.
    pub fn refundable(&self) -> Amount {
        self.view.balance.saturating_sub(self.charged)
    }

    /// Whether the latest view is too old to let a request through.
    pub fn view_too_old(&self, now: u64) -> bool {
        let trusted_for = (self.config.withdraw_delay / 3).clamp(MIN_VIEW_AGE_S, MAX_VIEW_AGE_S);
        now.saturating_sub(self.viewed_at) > trusted_for
    }

    /// Judges a command at `now` (Unix seconds). Pure: the channel is not changed.
    pub fn decide(&self, command: &Command<'_>, now: u64) -> Result<Event, Reject> {
        match command {
            Command::Hold { voucher, price } => self.decide_hold(voucher, *price, now),
            Command::Post { hold, charge } => self.decide_post(*hold, *charge),
            Command::Void { hold } => self.holding(*hold).map(|hold| Event::Voided { hold: hold.number }),
            Command::Observe { view } if !view.is_possible() => Err(Reject::ImpossibleView),
            Command::Observe { view } => Ok(self.observed(*view, now)),
            Command::BeginRefund { voucher, size } => self.decide_refund(voucher, *size, now),
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
        if self.hold.is_some() || self.refunding {
            return Err(Reject::Busy);
        }
        if self.charged.checked_add(price) != Some(max_claimable) {
            return Err(Reject::AmountMismatch);
        }
        if self.view_too_old(now) {
            return Err(Reject::ViewTooOld);
        }
        if self.view.balance.is_zero() {
            return Err(Reject::NoDeposit);
        }
        if max_claimable > self.view.balance {
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

    fn decide_post(&self, hold: HoldNumber, charge: Amount) -> Result<Event, Reject> {
        let hold = self.holding(hold)?;
        if charge > hold.price {
            return Err(Reject::ChargeExceedsHold);
        }
        let charged = self.charged.checked_add(charge).ok_or(Reject::ChargeExceedsHold)?;
        Ok(Event::Posted { hold: hold.number, charge, charged })
    }

    fn decide_refund(&self, voucher: &VerifiedVoucher, size: RefundRequest, now: u64) -> Result<Event, Reject> {
        if voucher.channel() != self.id {
            return Err(Reject::OtherChannel);
        }
        if self.hold.is_some() || self.refunding {
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

    fn decide_end_of_refund(&self, sent: Option<SentRefund>) -> Result<Event, Reject> {
        if !self.refunding {
            return Err(Reject::NoRefund);
        }
        // Of two with one nonce only one can be paid; the larger is reckoned with.
        let open = self.open_refund.into_iter().chain(sent).filter(|refund| refund.nonce >= self.view.refund_nonce);
        Ok(Event::RefundEnded { open: open.max_by_key(|refund| refund.amount) })
    }

    /// A view from an older block tells nothing new; the newer one is kept, and so is its age.
    fn observed(&self, view: View, now: u64) -> Event {
        if view.block < self.view.block {
            Event::Observed { view: self.view, at: self.viewed_at }
        } else {
            Event::Observed { view, at: now.max(self.viewed_at) }
        }
    }

    fn holding(&self, number: HoldNumber) -> Result<&OpenHold, Reject> {
        self.hold.as_ref().filter(|hold| hold.number == number).ok_or(Reject::NoSuchHold)
    }

    /// Applies an event that [`Channel::decide`] returned for this very state. Anything else is a bug, and the
    /// invariants stop it before it costs money.
    pub fn evolve(&mut self, event: &Event) {
        match event {
            Event::Held(hold) => {
                assert!(self.hold.is_none(), "a channel has one open hold at most");
                self.next_hold = hold.number.0.checked_add(1).expect("2^64 requests do not happen");
                self.hold = Some(hold.clone());
            }
            Event::Posted { hold, charge, charged } => {
                let open = self.hold.take().expect("a post has an open hold");
                assert!(open.number == *hold && *charge <= open.price, "a post resolves its own hold within its price");
                assert_eq!(self.charged.checked_add(*charge), Some(*charged), "a charge adds up");
                self.charged = *charged;
                self.latest = Some(open.voucher);
            }
            Event::Voided { hold } => {
                let open = self.hold.take().expect("a void has an open hold");
                assert_eq!(open.number, *hold, "a void resolves its own hold");
            }
            Event::Observed { view, at } => self.apply_view(*view, *at),
            Event::RefundBegun { amount } => {
                assert!(!self.refunding && *amount <= self.refundable(), "a refund is of what is left");
                self.refunding = true;
            }
            Event::RefundEnded { open } => {
                self.refunding = false;
                self.open_refund = *open;
            }
        }
        self.assert_invariants();
    }

    /// The chain's word on claims is final: if more was claimed than we charged (by another instance with our
    /// authorizer's key, say), that much was charged. A voucher at or below what was claimed covers nothing any more,
    /// but one at exactly what was charged is kept: it is how a client that lost its state finds the way back.
    fn apply_view(&mut self, view: View, at: u64) {
        self.view = view;
        self.viewed_at = at;
        self.open_refund = self.open_refund.filter(|refund| refund.nonce >= view.refund_nonce);
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
    }

    fn assert_invariants(&self) {
        assert!(self.view.total_claimed <= self.view.balance, "I1: claimed {:?} within balance", self.view);
        assert!(self.view.total_claimed <= self.charged, "I2: claimed within charged");
        match &self.latest {
            Some(latest) => assert!(self.charged <= latest.max_claimable, "I3: charged within the latest voucher"),
            None => assert_eq!(self.charged, self.view.total_claimed, "I3: without a voucher all is claimed"),
        }
        if let Some(hold) = &self.hold {
            assert!(covers(hold, self.charged), "I4: a hold is covered by its voucher");
            assert!(!self.refunding, "I4: a hold and a refund exclude each other");
        }
    }
}

fn covers(hold: &OpenHold, charged: Amount) -> bool {
    charged.checked_add(hold.price).is_some_and(|sum| sum <= hold.voucher.max_claimable)
}
