//! The accounts: every channel we know, and the one door through which its money changes.
//!
//! **Owns** the channels in memory. **Promises** that every change is decided and applied under the channel's lock, in
//! one private function and nowhere else; that the lock is never held across an await; and that a [`Hold`] or
//! [`RefundTicket`] is resolved exactly once, however the request ends. **Does not** verify signatures or read chains.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;

use super::clock;
use crate::ledger::{Channel, Command, Event, HoldNumber, Reject, SentRefund, TermsPool, View};
use crate::protocol::claim::ClaimRow;
use crate::protocol::x402::{ChannelState, VoucherState};
use crate::protocol::{Address, Amount, ChannelConfig, ChannelId, Hash, VerifiedVoucher};
use crate::store::{Journal, Latched};

/// How many refunds a channel is given in [`REFUND_WINDOW_S`]. A refund costs us gas, and whoever has seen the last
/// voucher of a fixed-price channel can ask for one (the money goes to the payer all the same).
pub const MAX_REFUNDS_PER_WINDOW: u32 = 6;
/// The window of [`MAX_REFUNDS_PER_WINDOW`], seconds.
pub const REFUND_WINDOW_S: u64 = 3_600;

/// How long after a payer was shown an untouched deposit another one is taken for a wish and relayed, seconds. Requests
/// that were signed side by side come well before.
const INSISTS_AFTER_S: u64 = 10;

/// Every channel we know.
#[derive(Debug, Clone)]
pub struct Accounts {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    channels: DashMap<ChannelId, Box<Account>>,
    terms: TermsPool,
    journal: Journal,
    abandoning: AtomicBool,
}

#[derive(Debug)]
struct Account {
    channel: Channel,
    last_deposit: Option<LastDeposit>,
    refunds: u32,
    refunds_since: u64,
}

/// The last deposit we relayed for a channel.
#[derive(Debug, Clone, Copy)]
struct LastDeposit {
    /// Its salt, so that the same payload is not relayed again.
    salt: Hash,
    /// What was charged in all when it landed, so that another one is not relayed before it is touched.
    charged: Amount,
    /// When its payer, who wanted to deposit again, was first shown it.
    shown: Option<u64>,
}

/// A channel's books at one moment, for those who read them.
#[derive(Debug, Clone)]
pub struct Statement {
    /// Which channel.
    pub id: ChannelId,
    /// Its terms.
    pub config: ChannelConfig,
    /// What the chain last said.
    pub view: View,
    /// What was charged in all.
    pub charged: Amount,
    /// What was charged and not claimed.
    pub unclaimed: Amount,
    /// The row that claims it, if there is something to claim.
    pub row: Option<ClaimRow>,
    /// What was charged and is not covered any more.
    pub shortfall: Amount,
}

impl Accounts {
    /// Accounts without a channel, whose books are kept in memory only.
    pub fn in_memory() -> Self {
        let inner = Inner {
            channels: DashMap::new(),
            terms: TermsPool::default(),
            journal: Journal::volatile(),
            abandoning: AtomicBool::new(false),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Where what happens is written down.
    pub fn journal(&self) -> &Journal {
        &self.inner.journal
    }

    /// Whether the channel is known.
    pub fn knows(&self, id: &ChannelId) -> bool {
        self.inner.channels.contains_key(id)
    }

    /// How many channels are known.
    pub fn len(&self) -> usize {
        self.inner.channels.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.inner.channels.is_empty()
    }

    /// Books what the chain says of a channel; opens its account if it has a deposit. A channel without one gets no
    /// account, so that strangers cannot fill the memory.
    pub fn observe(&self, id: ChannelId, config: &ChannelConfig, view: View) -> Result<(), Reject> {
        if !view.balance.is_zero()
            && let Entry::Vacant(free) = self.inner.channels.entry(id)
        {
            let now = clock::now_s();
            let channel = Channel::open(id, *config, view, now)?.pooled(&self.inner.terms);
            free.insert(Box::new(Account { channel, last_deposit: None, refunds: 0, refunds_since: now }));
            return Ok(());
        }
        self.change(&id, &Command::Observe { view }).map_or(Ok(()), |event| event.map(|_| ()))
    }

    /// Notes that a deposit we relayed has landed.
    pub fn note_deposit(&self, id: &ChannelId, salt: Hash) {
        if let Some(mut account) = self.inner.channels.get_mut(id) {
            let charged = account.channel.charged();
            account.last_deposit = Some(LastDeposit { salt, charged, shown: None });
        }
    }

    /// Whether this very deposit was the last we relayed for the channel.
    pub(super) fn deposited_with(&self, id: &ChannelId, salt: Hash) -> bool {
        let last = self.inner.channels.get(id).and_then(|account| account.last_deposit);
        last.is_some_and(|last| last.salt == salt)
    }

    /// Whether nothing was charged since the last deposit we relayed for the channel. A payer that was answered so before,
    /// [`INSISTS_AFTER_S`] ago or longer, and deposits all the same gets its way.
    pub(super) fn deposit_untouched(&self, id: &ChannelId) -> bool {
        let now = clock::now_s();
        let Some(mut account) = self.inner.channels.get_mut(id) else { return false };
        let charged = account.channel.charged();
        let Some(last) = account.last_deposit.as_mut().filter(|last| last.charged == charged) else { return false };
        now.saturating_sub(*last.shown.get_or_insert(now)) < INSISTS_AFTER_S
    }

    /// Reads a channel.
    pub(super) fn read<R>(&self, id: &ChannelId, read: impl FnOnce(&Channel) -> R) -> Option<R> {
        self.inner.channels.get(id).map(|account| read(&account.channel))
    }

    /// Lets a request through: the price is held on the channel until the hold is posted or voided.
    pub(super) fn hold(&self, voucher: &VerifiedVoucher, price: Amount) -> Option<Result<Hold, Reject>> {
        let event = self.change(&voucher.channel(), &Command::Hold { voucher, price })?;
        Some(event.map(|event| match event {
            Event::Held(open) => Hold {
                accounts: self.clone(),
                channel: voucher.channel(),
                number: open.number,
                price,
                sent: false,
                resolved: false,
            },
            other => unreachable!("a hold is answered with {other:?}"),
        }))
    }

    /// Begins a refund: nothing else happens on the channel until the ticket is dropped.
    pub(super) fn begin_refund(
        &self,
        voucher: &VerifiedVoucher,
        size: crate::protocol::x402::RefundRequest,
    ) -> Option<Result<(RefundTicket, Amount), Reject>> {
        let event = self.change(&voucher.channel(), &Command::BeginRefund { voucher, size })?;
        Some(event.map(|event| match event {
            Event::RefundBegun { amount } => {
                (RefundTicket { accounts: self.clone(), channel: voucher.channel(), sent: false }, amount)
            }
            other => unreachable!("a refund is answered with {other:?}"),
        }))
    }

    /// Counts a refund against the channel's allowance; false when it is used up.
    pub(super) fn allow_refund(&self, id: &ChannelId) -> bool {
        let now = clock::now_s();
        let Some(mut account) = self.inner.channels.get_mut(id) else { return true };
        if now.saturating_sub(account.refunds_since) >= REFUND_WINDOW_S {
            (account.refunds, account.refunds_since) = (0, now);
        }
        account.refunds = account.refunds.saturating_add(1);
        account.refunds <= MAX_REFUNDS_PER_WINDOW
    }

    /// The books of all channels, for redemption and operators. Each statement is consistent in itself; the list is
    /// not a snapshot of one moment.
    pub fn statements(&self) -> Vec<Statement> {
        self.inner.channels.iter().map(|entry| statement(&entry.value().channel)).collect()
    }

    /// The books of one channel.
    pub fn statement(&self, id: &ChannelId) -> Option<Statement> {
        self.read(id, statement)
    }

    /// From now on a dropped request is not charged: it is we who end it, not the client.
    pub fn abandon(&self) {
        self.inner.abandoning.store(true, Ordering::Release);
    }

    fn change(&self, id: &ChannelId, command: &Command<'_>) -> Option<Result<Event, Reject>> {
        self.change_and_read(id, command, |_| ()).map(|changed| changed.map(|(event, ())| event))
    }

    /// The one door: decides and applies a command under the channel's lock, and reads the channel before anybody else
    /// can change it again. `None` if the channel is unknown.
    fn change_and_read<R>(
        &self,
        id: &ChannelId,
        command: &Command<'_>,
        read: impl FnOnce(&Channel) -> R,
    ) -> Option<Result<(Event, R), Reject>> {
        let mut account = self.inner.channels.get_mut(id)?;
        let channel = &mut account.channel;
        let event = match channel.decide(command, clock::now_s()) {
            Ok(event) => event,
            Err(reject) => return Some(Err(reject)),
        };
        channel.evolve(&event);
        let seen = read(channel);
        Some(Ok((event, seen)))
    }
}

fn statement(channel: &Channel) -> Statement {
    Statement {
        id: channel.id(),
        config: channel.config(),
        view: channel.view(),
        charged: channel.charged(),
        unclaimed: channel.unclaimed(),
        row: claim_row(channel),
        shortfall: channel.shortfall(),
    }
}

/// The row that claims everything charged; none if all is claimed.
pub(super) fn claim_row(channel: &Channel) -> Option<ClaimRow> {
    let latest = channel.latest().filter(|_| !channel.unclaimed().is_zero())?;
    Some(ClaimRow {
        config: channel.config(),
        max_claimable: latest.max_claimable,
        signature: latest.signature.clone(),
        total_claimed: channel.charged(),
    })
}

/// The channel as headers show it.
pub(super) fn channel_state(channel: &Channel) -> ChannelState {
    state_of(channel.id(), &channel.view(), channel.charged())
}

/// The same from its parts, for a channel that has no account.
pub(super) fn state_of(channel_id: ChannelId, view: &View, charged: Amount) -> ChannelState {
    ChannelState {
        channel_id,
        balance: view.balance,
        total_claimed: view.total_claimed,
        withdraw_requested_at: view.withdrawal.map_or(0, |withdrawal| withdrawal.initiated_at),
        refund_nonce: view.refund_nonce,
        charged_cumulative_amount: charged,
    }
}

/// The payer's own last voucher, as correctives show it.
pub(super) fn voucher_state(channel: &Channel) -> Option<VoucherState> {
    channel
        .latest()
        .map(|latest| VoucherState { signed_max_claimable: latest.max_claimable, signature: latest.signature.clone() })
}

/// A request that was let through. It is posted or voided exactly once; a dropped one is posted in full if it had been
/// sent upstream (else hanging up early would be a free pass), and voided if it had not or if it is we who stop.
#[derive(Debug)]
pub struct Hold {
    accounts: Accounts,
    channel: ChannelId,
    number: HoldNumber,
    price: Amount,
    sent: bool,
    resolved: bool,
}

/// A charge that is in the books: the proof that a paid answer may leave.
#[derive(Debug)]
pub(super) struct Charged {
    /// What it cost.
    pub(super) charge: Amount,
    /// The channel after it.
    pub(super) state: ChannelState,
}

impl Hold {
    /// The channel.
    pub fn channel(&self) -> ChannelId {
        self.channel
    }

    /// The most the request will cost.
    pub fn price(&self) -> Amount {
        self.price
    }

    /// From now on the upstream may be working for the payer.
    pub(super) fn sent(&mut self) {
        self.sent = true;
    }

    /// The request was served and cost `charge`.
    pub(super) fn post(mut self, charge: Amount) -> Result<Charged, Reject> {
        self.resolved = true;
        let state = self.resolve(&Command::Post { hold: self.number, charge })?;
        Ok(Charged { charge, state })
    }

    /// The request failed and costs nothing. Returns the channel's state.
    pub(super) fn void(mut self) -> Option<ChannelState> {
        self.resolved = true;
        // A hold that an observation of the chain removed is void already.
        self.resolve(&Command::Void { hold: self.number })
            .ok()
            .or_else(|| self.accounts.read(&self.channel, channel_state))
    }

    /// The channel as this very step left it: the next request may already wait for its lock, and what it is charged must
    /// not stand in this one's receipt.
    fn resolve(&self, command: &Command<'_>) -> Result<ChannelState, Reject> {
        let resolved = self.accounts.change_and_read(&self.channel, command, channel_state);
        resolved.unwrap_or(Err(Reject::NoSuchHold)).map(|(_, state)| state)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.resolved {
            return;
        }
        let ours = self.accounts.inner.abandoning.load(Ordering::Acquire) || std::thread::panicking();
        let command = if self.sent && !ours {
            Command::Post { hold: self.number, charge: self.price }
        } else {
            Command::Void { hold: self.number }
        };
        if let Err(reject) = self.resolve(&command) {
            tracing::warn!(channel = %self.channel, %reject, "a dropped request could not be settled");
        }
    }
}

/// A refund in progress. Dropping it ends the refund.
#[derive(Debug)]
pub struct RefundTicket {
    accounts: Accounts,
    channel: ChannelId,
    sent: bool,
}

impl RefundTicket {
    /// The channel.
    pub fn channel(&self) -> ChannelId {
        self.channel
    }

    /// The refund is about to be signed. Only after this has returned may the signature leave this process: from then on
    /// it may be paid, whatever becomes of us, and until its nonce is seen used up nothing is served on what it gives
    /// back.
    ///
    /// # Errors
    /// The books cannot be written; nothing may be signed.
    pub async fn sign(&mut self, refund: SentRefund) -> Result<(), Latched> {
        let _ = self.accounts.change(&self.channel, &Command::SignRefund { refund });
        self.sent = true;
        Ok(())
    }

    /// What was signed was refused before anybody else saw it.
    pub fn not_sent(&mut self) {
        self.sent = false;
    }
}

impl Drop for RefundTicket {
    fn drop(&mut self) {
        let _ = self.accounts.change(&self.channel, &Command::EndRefund { sent: self.sent });
    }
}

/// Who a payment is from, for the upstream and the logs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Payer {
    pub(super) address: Address,
    pub(super) channel: ChannelId,
}
