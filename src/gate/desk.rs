//! The desk: where the gate asks for what only a chain can do.
//!
//! **Owns** the questions (read a channel, ask a wallet, relay a deposit, send a refund), their answers, and the rule
//! that a channel has one deposit on its way at most, and a payer too, however many channels it has. **Promises** that a
//! question outlives the request that asked it: a payer who hangs up while its deposit is being mined still finds it
//! booked. **Does not** answer; the redeemer does, at the other end of the queue.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use tokio::sync::{mpsc, oneshot, watch};

use super::limits::Spent;
use crate::ledger::View;
use crate::protocol::claim::ClaimRow;
use crate::protocol::voucher::PayerEvidence;
use crate::protocol::x402::Deposit;
use crate::protocol::{Address, Amount, ChannelConfig, ChannelId, Hash, Signature, SignedVoucher};

/// How many questions may wait for the chain at once. More are refused: a queue this long means the node hangs.
pub const MAX_WAITING: usize = 1_024;

/// How many requests may wait for the end of one deposit. Each of them has a place among all that are served, for as long
/// as a block takes, and a payer can send the same one as often as it likes.
pub const MAX_DEPOSIT_WAITERS: usize = 128;

/// What the gate asks.
#[derive(Debug)]
pub enum Question {
    /// What does the chain say of this channel?
    View {
        /// Which.
        channel: ChannelId,
        /// The answer.
        reply: oneshot::Sender<Result<View, DeskError>>,
    },
    /// Would this payer's own account approve this signature?
    Evidence {
        /// The payer.
        payer: Address,
        /// What was signed.
        digest: Hash,
        /// The signature.
        signature: Signature,
        /// The answer.
        reply: oneshot::Sender<Result<PayerEvidence, DeskError>>,
    },
    /// How many of this payer's tokens may somebody else move?
    Allowance {
        /// The token.
        token: Address,
        /// The payer.
        payer: Address,
        /// Who moves them.
        spender: Address,
        /// The answer, atomic units.
        reply: oneshot::Sender<Result<Amount, DeskError>>,
    },
    /// Relay this deposit and book it when it is mined.
    Deposit {
        /// The channel's terms.
        config: ChannelConfig,
        /// The signed deposit.
        deposit: Deposit,
        /// The voucher it came with.
        voucher: SignedVoucher,
        /// What the request that it came with costs at most, atomic units.
        price: Amount,
        /// The deposit's place; ending it publishes the outcome.
        place: DepositPlace,
    },
    /// Claim what was charged, give this much back, and book both.
    Refund {
        /// The channel's terms.
        config: ChannelConfig,
        /// What is still to be claimed, if anything.
        row: Option<ClaimRow>,
        /// How much to give back.
        amount: Amount,
        /// The channel's refund, ended when this is dropped.
        ticket: super::accounts::RefundTicket,
        /// The answer.
        reply: oneshot::Sender<Result<RefundSent, RefundError>>,
    },
}

/// Why the desk has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DeskError {
    /// The chain cannot be reached, or answers nonsense.
    #[error("the chain cannot be read")]
    Unreachable,
    /// Nobody is at the desk, or too many are waiting.
    #[error("the desk is closed")]
    Closed,
}

/// How a deposit ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DepositEnd {
    /// Mined and booked.
    Landed {
        /// The transaction.
        transaction: Hash,
        /// The channel after it.
        view: View,
    },
    /// The payer does not have the tokens. Nothing was sent.
    PayerTooPoor,
    /// The chain would refuse it. Nothing was sent.
    WouldFail(String),
    /// The transaction can no longer succeed: it reverted, or its authorization ran out before it was mined.
    Dead(String),
    /// The chain cannot be reached. Nothing was sent.
    Unreachable,
}

/// A refund that was mined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RefundSent {
    /// The transaction.
    pub transaction: Hash,
    /// What the payer got, as the `Refunded` event says.
    pub amount: Amount,
}

/// Why a refund was not paid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RefundError {
    /// The chain would refuse it. Nothing was sent.
    #[error("the refund would fail: {0}")]
    WouldFail(String),
    /// The transaction reverted or paid nothing.
    #[error("the refund failed: {0}")]
    Failed(String),
    /// Sent, and no receipt yet.
    #[error("the refund was sent and is not mined yet")]
    Pending,
    /// The chain cannot be reached. Nothing was sent.
    #[error("the chain cannot be reached")]
    Unreachable,
}

/// The gate's end of the queue.
#[derive(Debug, Clone)]
pub struct Desk {
    questions: mpsc::Sender<Question>,
    places: Arc<Places>,
}

/// The deposits on their way. Where both are locked, the channel's is first.
#[derive(Debug, Default)]
struct Places {
    channels: DashMap<ChannelId, OnItsWay>,
    payers: DashMap<Address, Awaited>,
    /// How many channels have one, or are about to: each request asks whether its own has, and nearly always none has.
    count: AtomicUsize,
}

/// The end at which questions are answered.
pub type Questions = mpsc::Receiver<Question>;

#[derive(Debug)]
struct OnItsWay {
    salt: Hash,
    end: Awaited,
}

/// A deposit's end, for those who wait for it.
#[derive(Debug, Clone)]
struct Awaited {
    end: watch::Receiver<Option<DepositEnd>>,
    /// Each who waits holds it weakly.
    waiters: Arc<()>,
}

impl Awaited {
    fn new(end: watch::Receiver<Option<DepositEnd>>) -> Self {
        Self { end, waiters: Arc::new(()) }
    }

    fn wait(&self) -> Option<DepositWait> {
        let waiter = Arc::downgrade(&self.waiters);
        (Arc::weak_count(&self.waiters) <= MAX_DEPOSIT_WAITERS)
            .then(|| DepositWait { end: self.end.clone(), _waiter: Some(waiter) })
    }
}

/// The one place a channel, and its payer, has for a deposit on its way. Dropping it without an end frees the place too.
#[derive(Debug)]
pub struct DepositPlace {
    channel: ChannelId,
    /// The payer, where this has its place too.
    payer: Option<Address>,
    end: watch::Sender<Option<DepositEnd>>,
    /// Its part of the budget of deposits, given back where nothing is sent.
    spent: Option<Spent>,
    is_freed: bool,
    places: Arc<Places>,
}

impl DepositPlace {
    /// Whose it is.
    pub fn channel(&self) -> ChannelId {
        self.channel
    }

    /// Counts the deposit that is about to be sent.
    pub(super) fn counted(&mut self, spent: Spent) {
        self.spent = Some(spent);
    }

    /// Frees the place, and publishes how the deposit ended. In this order: a payer that hears of its deposit sends the
    /// next voucher at once, and must not be told that the deposit is still on its way.
    pub fn end(mut self, end: DepositEnd) {
        let is_sent = matches!(end, DepositEnd::Landed { .. } | DepositEnd::Dead(_));
        let spent = self.spent.take().filter(|_| !is_sent);
        if let Some(spent) = spent {
            spent.give_back();
        }
        self.free();
        self.end.send_replace(Some(end));
    }

    /// Once: afterwards it may be somebody else's.
    fn free(&mut self) {
        if std::mem::replace(&mut self.is_freed, true) {
            return;
        }
        if self.places.channels.remove(&self.channel).is_some() {
            self.places.count.fetch_sub(1, Ordering::AcqRel);
        }
        if let Some(payer) = self.payer {
            self.places.payers.remove(&payer);
        }
    }
}

impl Drop for DepositPlace {
    fn drop(&mut self) {
        self.free();
    }
}

/// What a channel's place for a deposit is like.
#[derive(Debug)]
pub(super) enum Place {
    /// It was free and is the caller's now.
    Free(DepositPlace),
    /// The very same deposit has it.
    Same(DepositWait),
    /// Another deposit of the channel has it.
    Other(DepositWait),
    /// It is free, but a deposit of another channel has the payer's.
    OtherChannel(DepositWait),
    /// It is taken, and too many wait for it.
    Crowded,
}

/// A deposit somebody waits for. Dropping it does not stop the deposit.
#[derive(Debug)]
pub(super) struct DepositWait {
    end: watch::Receiver<Option<DepositEnd>>,
    _waiter: Option<Weak<()>>,
}

impl DepositWait {
    /// The end, once there is one; `None` when the desk gave up without one.
    pub(super) async fn end(mut self) -> Option<DepositEnd> {
        match self.end.wait_for(Option::is_some).await {
            Ok(end) => end.clone(),
            Err(_) => None,
        }
    }
}

impl Desk {
    /// A desk and the end at which its questions are answered.
    pub fn new() -> (Self, Questions) {
        let (questions, answers) = mpsc::channel(MAX_WAITING);
        (Self { questions, places: Arc::default() }, answers)
    }

    /// A desk with nobody behind it: quotes work, channels that would need a chain are refused with 503.
    pub fn closed() -> Self {
        Self::new().0
    }

    /// Reads a channel.
    pub(super) async fn view(&self, channel: ChannelId) -> Result<View, DeskError> {
        self.ask(|reply| Question::View { channel, reply }).await?
    }

    /// Asks a payer's account.
    pub(super) async fn evidence(
        &self,
        payer: Address,
        digest: Hash,
        signature: Signature,
    ) -> Result<PayerEvidence, DeskError> {
        self.ask(|reply| Question::Evidence { payer, digest, signature, reply }).await?
    }

    /// Asks a token.
    pub(super) async fn allowance(
        &self,
        token: Address,
        payer: Address,
        spender: Address,
    ) -> Result<Amount, DeskError> {
        self.ask(|reply| Question::Allowance { token, payer, spender, reply }).await?
    }

    /// Asks for a refund. The refund goes on when the caller stops waiting.
    pub(super) async fn refund(
        &self,
        config: ChannelConfig,
        row: Option<ClaimRow>,
        amount: Amount,
        ticket: super::accounts::RefundTicket,
    ) -> Result<Result<RefundSent, RefundError>, DeskError> {
        self.ask(|reply| Question::Refund { config, row, amount, ticket, reply }).await
    }

    /// Takes the channel's place for a deposit with this salt, if it is free. Whoever has it may judge the channel and
    /// then deposit: no other deposit lands in between.
    pub(super) fn place(&self, channel: ChannelId, payer: Address, salt: Hash) -> Place {
        match self.places.channels.entry(channel) {
            Entry::Occupied(taken) => {
                let Some(wait) = taken.get().end.wait() else { return Place::Crowded };
                if taken.get().salt == salt { Place::Same(wait) } else { Place::Other(wait) }
            }
            Entry::Vacant(free) => {
                let (end, seen) = watch::channel(None);
                let seen = Awaited::new(seen);
                match self.places.payers.entry(payer) {
                    Entry::Occupied(taken) => {
                        return taken.get().wait().map_or(Place::Crowded, Place::OtherChannel);
                    }
                    Entry::Vacant(payers) => payers.insert(seen.clone()),
                };
                self.places.count.fetch_add(1, Ordering::AcqRel);
                free.insert(OnItsWay { salt, end: seen });
                Place::Free(self.new_place(channel, Some(payer), end))
            }
        }
    }

    /// Takes a channel's place for a deposit that is on its way already, and its payer's if that is free: a former process
    /// may have relayed several of one payer. `None` where the channel's is taken.
    pub(super) fn take_over(&self, channel: ChannelId, payer: Address, salt: Hash) -> Option<DepositPlace> {
        let Entry::Vacant(free) = self.places.channels.entry(channel) else { return None };
        let (end, seen) = watch::channel(None);
        let seen = Awaited::new(seen);
        let payer = match self.places.payers.entry(payer) {
            Entry::Occupied(_) => None,
            Entry::Vacant(payers) => {
                payers.insert(seen.clone());
                Some(payer)
            }
        };
        self.places.count.fetch_add(1, Ordering::AcqRel);
        free.insert(OnItsWay { salt, end: seen });
        Some(self.new_place(channel, payer, end))
    }

    fn new_place(
        &self,
        channel: ChannelId,
        payer: Option<Address>,
        end: watch::Sender<Option<DepositEnd>>,
    ) -> DepositPlace {
        DepositPlace { channel, payer, end, spent: None, is_freed: false, places: Arc::clone(&self.places) }
    }

    /// Starts the deposit a place was taken for; `None` if the desk takes none. It goes on when the caller stops waiting.
    pub(super) fn deposit(
        &self,
        config: ChannelConfig,
        deposit: Deposit,
        voucher: SignedVoucher,
        price: Amount,
        place: DepositPlace,
    ) -> Option<DepositWait> {
        let wait = DepositWait { end: place.end.subscribe(), _waiter: None };
        let question = Question::Deposit { config, deposit, voucher, price, place };
        match self.questions.try_send(question) {
            Ok(()) => Some(wait),
            Err(refused) => {
                if let Question::Deposit { place, .. } = refused.into_inner() {
                    place.end(DepositEnd::Unreachable);
                }
                None
            }
        }
    }

    /// Whether a deposit of this channel is on its way.
    pub(super) fn depositing(&self, channel: &ChannelId) -> bool {
        self.places.count.load(Ordering::Acquire) > 0 && self.places.channels.contains_key(channel)
    }

    /// The deposit of this channel that is on its way, if one is. Who waits so stands in line for the channel, which bounds
    /// them; they are not among the [`MAX_DEPOSIT_WAITERS`].
    pub(super) fn under_way(&self, channel: &ChannelId) -> Option<DepositWait> {
        let end = self.places.channels.get(channel)?.end.end.clone();
        Some(DepositWait { end, _waiter: None })
    }

    async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Question) -> Result<T, DeskError> {
        let (reply, answer) = oneshot::channel();
        self.questions.try_send(question(reply)).map_err(|_| DeskError::Closed)?;
        answer.await.map_err(|_| DeskError::Closed)
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::atomic::AtomicBool;
    use std::task::{Context, Wake, Waker};

    use super::*;

    const CHANNEL: ChannelId = ChannelId([1; 32]);
    const PAYER: Address = Address([2; 20]);

    fn taken(desk: &Desk) -> DepositPlace {
        match desk.place(CHANNEL, PAYER, Hash::ZERO) {
            Place::Free(place) => place,
            other => panic!("{other:?}"),
        }
    }

    /// Looks at the desk in the moment in which somebody hears of an end.
    struct Look {
        desk: Desk,
        saw_it_taken: AtomicBool,
    }

    impl Wake for Look {
        fn wake(self: Arc<Self>) {
            self.saw_it_taken.store(self.desk.depositing(&CHANNEL), Ordering::SeqCst);
        }
    }

    #[test]
    fn a_place_is_free_when_its_end_is_told() {
        let desk = Desk::closed();
        let place = taken(&desk);
        let Place::Same(wait) = desk.place(CHANNEL, PAYER, Hash::ZERO) else { panic!("it is taken") };
        let look = Arc::new(Look { desk: desk.clone(), saw_it_taken: AtomicBool::new(true) });
        let waker = Waker::from(Arc::clone(&look));
        let mut end = pin!(wait.end());
        assert!(end.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        place.end(DepositEnd::Unreachable);
        assert!(!look.saw_it_taken.load(Ordering::SeqCst), "whoever hears of it pays the next moment");
        assert!(end.as_mut().poll(&mut Context::from_waker(&waker)).is_ready());
    }

    #[test]
    fn so_many_wait_for_a_deposit_and_one_that_leaves_makes_room() {
        let desk = Desk::closed();
        let place = taken(&desk);
        let other = ChannelId([9; 32]);
        let wait = |channel, salt| match desk.place(channel, PAYER, salt) {
            Place::Same(wait) | Place::Other(wait) | Place::OtherChannel(wait) => Some(wait),
            Place::Crowded => None,
            Place::Free(_) => panic!("it is taken"),
        };
        let mut waiting: Vec<_> = (1..MAX_DEPOSIT_WAITERS).map(|_| wait(CHANNEL, Hash::ZERO).unwrap()).collect();
        waiting.push(wait(other, Hash::ZERO).unwrap());
        for (channel, salt) in [(CHANNEL, Hash::ZERO), (CHANNEL, Hash([1; 32])), (other, Hash::ZERO)] {
            assert!(wait(channel, salt).is_none(), "all of a payer's wait for the same");
        }
        waiting.pop();
        assert!(wait(CHANNEL, Hash::ZERO).is_some());
        let stranger = Address([7; 20]);
        assert!(matches!(desk.place(other, stranger, Hash::ZERO), Place::Free(_)), "others have their own");
        drop(place);
        assert!(matches!(desk.place(CHANNEL, PAYER, Hash::ZERO), Place::Free(_)));
    }

    #[test]
    fn a_place_is_freed_once() {
        let desk = Desk::closed();
        let first = taken(&desk);
        first.end(DepositEnd::Unreachable);
        let second = taken(&desk);
        assert!(desk.depositing(&CHANNEL), "the next one has it");
        drop(second);
        assert!(!desk.depositing(&CHANNEL));
        drop(taken(&desk));
        let over = desk.take_over(CHANNEL, PAYER, Hash::ZERO);
        assert!(desk.depositing(&CHANNEL) && desk.take_over(CHANNEL, PAYER, Hash::ZERO).is_none());
        drop(over);
        assert_eq!(desk.places.count.load(Ordering::SeqCst), 0);
    }
}
