//! The accounts: every channel we know, and the one door through which its money changes.
//!
//! **Owns** the channels in memory. **Promises** that every change is decided, applied and queued for the disk under the
//! channel's lock, in one private function and nowhere else, so that order on disk is order in memory; that the lock is
//! never held across an await; that a [`Hold`] or [`RefundTicket`] is resolved exactly once, however the request ends;
//! and that a charge can only be shown to its payer once it is durable (`Posted::written`). **Does not** verify
//! signatures, read chains or wait for disks.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry as Place;
use tokio::sync::Notify;

use super::patience;
use super::people::Dues;
use super::turns::Turns;
use super::unread::Unread;
use crate::clock;
use crate::ledger::{Channel, Command, Event, HoldNumber, Limits, Reject, SentRefund, Snapshot, TermsPool, View};
use crate::protocol::claim::ClaimRow;
use crate::protocol::x402::{ChannelState, Order, RefundRequest, VoucherState};
use crate::protocol::{Address, Amount, BoundConfig, ChannelConfig, ChannelId, Domain, Hash, VerifiedVoucher};
use crate::store::{
    Adjustment, Booking, ChannelEntry, ChannelRow, Entry, Journal, LastDeposit, Latched, LedgerStore, Opening, Permit,
    StoreError, Ticket,
};

/// How many refunds a channel is given in [`REFUND_WINDOW_S`]. A refund costs us gas, and whoever has seen the last
/// voucher of a fixed-price channel can ask for one (the money goes to the payer all the same).
pub const MAX_REFUNDS_PER_WINDOW: u32 = 6;
/// The window of [`MAX_REFUNDS_PER_WINDOW`], seconds.
pub const REFUND_WINDOW_S: u64 = 3_600;

/// How long after a payer was shown an untouched deposit another one is taken for a wish and relayed, seconds. Requests
/// that were signed side by side come well before.
const INSISTS_AFTER_S: u64 = 10;

/// How many channels are remembered whose views are of later blocks than the chain was seen to have. Those beyond are
/// found when they are read again.
const MAX_AHEAD: usize = 4_096;

/// Every channel we know.
#[derive(Debug, Clone)]
pub struct Accounts {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Boxed, because a hash map keeps half of its places free.
    channels: DashMap<ChannelId, Box<Account>>,
    terms: TermsPool,
    journal: Journal,
    abandoning: AtomicBool,
    claim_wanted: Notify,
    ahead: Mutex<BTreeSet<ChannelId>>,
    unread: Unread,
    /// The domain under which [`Account::is_bound`] holds: that of the first payment.
    settlement: OnceLock<Domain>,
    turns: Turns,
}

#[derive(Debug)]
struct Account {
    channel: Channel,
    /// The version of its row in the books.
    version: u64,
    last_deposit: Option<LastDeposit>,
    /// When it was last used, Unix seconds: a request, a refund, or money that came in or went out past us. What was
    /// written down of it says so nearly: a row is written when something changes, with a view that was fresh then.
    used_at: u64,
    /// The peer its last paid request came from ([`super::Peer::key`]); 0 where none is known. Forgotten with the process.
    paid_from: u64,
    /// Whether its id was seen to follow from its terms in this process. What stands in a file may have been changed there,
    /// so its first payment is hashed all the same; afterwards neither can change.
    is_bound: AtomicBool,
    /// What is remembered of its payer's behaviour; forgotten with the process.
    manners: Option<Box<Manners>>,
}

#[derive(Debug, Default)]
struct Manners {
    /// When its payer, who wanted to deposit again, was first shown the last deposit.
    deposit_shown: Option<u64>,
    refunds: u32,
    refunds_since: u64,
    /// How many vouchers were forged from where it pays, in step and not.
    forged: (u32, u32),
    forged_since: u64,
}

impl Manners {
    /// Whether what was forged is of this minute.
    fn is_forged_in(&self, now: u64) -> bool {
        now.abs_diff(self.forged_since) < patience::WINDOW_S
    }
}

impl Account {
    fn new(channel: Channel, version: u64, last_deposit: Option<LastDeposit>, used_at: u64) -> Self {
        let is_bound = AtomicBool::new(false);
        Self { channel, version, last_deposit, used_at, paid_from: 0, is_bound, manners: None }
    }

    fn manners(&mut self) -> &mut Manners {
        self.manners.get_or_insert_default()
    }

    /// What is written of it: its next row, and why its sum changed.
    fn entry(&mut self, booking: Booking) -> Entry {
        self.version = self.version.checked_add(1).expect("2^64 changes do not happen");
        let row =
            ChannelRow { snapshot: self.channel.snapshot(), version: self.version, last_deposit: self.last_deposit };
        Entry::Channel(Box::new(ChannelEntry { row, booking }))
    }
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
    /// Since when, Unix seconds.
    pub unclaimed_since: Option<u64>,
    /// The row that claims it, if there is something to claim.
    pub row: Option<ClaimRow>,
    /// What was charged and is not covered any more.
    pub shortfall: Amount,
}

impl Accounts {
    /// Accounts without a channel, whose books are kept in memory only.
    pub fn in_memory() -> Self {
        Self::with(DashMap::new(), TermsPool::default(), Journal::volatile())
    }

    /// Opens the books of a store: every channel as it was when the last commit reached the disk. Blocks; with a million
    /// channels for some seconds.
    ///
    /// # Errors
    /// Books that cannot be read, or a row that breaks an invariant; nothing is started then.
    pub fn open(mut store: impl LedgerStore) -> Result<(Self, Opening), StoreError> {
        let (channels, terms) = (DashMap::new(), TermsPool::default());
        store.channels(&mut |ChannelRow { snapshot, version, last_deposit }| {
            let (id, viewed_at) = (snapshot.id, snapshot.viewed_at);
            let channel = Channel::restore(snapshot)
                .map_err(|violation| StoreError::Impossible { channel: id, violation })?
                .pooled(&terms);
            let used_at = viewed_at;
            channels.insert(id, Box::new(Account::new(channel, version, last_deposit, used_at)));
            Ok(())
        })?;
        let opening = Opening { unfinished: store.unfinished()?, cursor: store.cursor()? };
        let journal = Journal::start(store)?;
        Ok((Self::with(channels, terms, journal), opening))
    }

    fn with(channels: DashMap<ChannelId, Box<Account>>, terms: TermsPool, journal: Journal) -> Self {
        let (abandoning, claim_wanted, ahead) = (AtomicBool::new(false), Notify::new(), Mutex::default());
        let (settlement, turns) = (OnceLock::new(), Turns::default());
        let unread = Unread::default();
        let inner = Inner { channels, terms, journal, abandoning, claim_wanted, ahead, unread, settlement, turns };
        Self { inner: Arc::new(inner) }
    }

    /// Who waits for a channel.
    pub(super) fn turns(&self) -> &Turns {
        &self.inner.turns
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
            && let Place::Vacant(free) = self.inner.channels.entry(id)
        {
            let now = clock::now_s();
            let channel = Channel::open(id, *config, view, now)?.pooled(&self.inner.terms);
            let mut account = free.insert(Box::new(Account::new(channel, 0, None, now)));
            let booking = adjustment(Amount::ZERO, account.channel.charged(), Adjustment::Opened, now);
            self.inner.journal.note(account.entry(booking), None);
            self.inner.unread.note(id, view.block);
            return Ok(());
        }
        let before = self.read(&id, Channel::view);
        let observed = self.change_and_read(&id, &Command::Observe { view }, Slip::default(), |channel| channel.view());
        let Some(Change { seen, .. }) = observed.transpose()? else { return Ok(()) };
        if seen.block > view.block {
            let mut ahead = self.ahead();
            if ahead.len() < MAX_AHEAD {
                ahead.insert(id);
            }
        } else if before.is_some_and(|before| View { block: view.block, ..before } != seen) {
            self.inner.unread.note(id, view.block);
        }
        Ok(())
    }

    /// The channels with views that say something new, of blocks that the follower has perhaps not read.
    pub(crate) fn unread(&self) -> &Unread {
        &self.inner.unread
    }

    /// Books what the chain says of a channel whose view is of a block (`gone`) that the chain does not have. Channels that
    /// are not known, or have another view by now, are only observed.
    pub(crate) fn rewind(&self, id: ChannelId, config: &ChannelConfig, view: View, gone: u64) -> Result<(), Reject> {
        match self.change(&id, &Command::Rewind { view, gone }) {
            Some(event) => event.map(|_| self.inner.unread.note(id, view.block)),
            None => self.observe(id, config, view),
        }
    }

    /// The channels whose views are of later blocks than the chain was since seen to have, each with its block. A node that
    /// lags behind another makes them for a moment; a chain that became shorter, or a node that once named a block far
    /// ahead, for longer. They are told once.
    pub(crate) fn take_ahead(&self) -> Vec<(ChannelId, u64)> {
        let ahead = std::mem::take(&mut *self.ahead());
        let block = |id: &ChannelId| self.read(id, |channel| channel.view().block);
        ahead.into_iter().filter_map(|id| block(&id).map(|block| (id, block))).collect()
    }

    fn ahead(&self) -> std::sync::MutexGuard<'_, BTreeSet<ChannelId>> {
        self.inner.ahead.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends when something should be claimed soon: a channel whose payer's own account approves its vouchers has half of
    /// what is risked on that waiting, or more. Told once, to one listener.
    pub async fn claim_wanted(&self) {
        self.inner.claim_wanted.notified().await;
    }

    /// Says that something should be claimed soon.
    pub(super) fn want_claim(&self) {
        self.inner.claim_wanted.notify_one();
    }

    /// Notes that a deposit we relayed has landed.
    pub fn note_deposit(&self, id: &ChannelId, salt: Hash) {
        let noted = self.enter(id, Slip::default(), |account| {
            account.last_deposit = Some(LastDeposit { salt, charged: account.channel.charged() });
            account.manners().deposit_shown = None;
            Ok(((), Some(Booking::Nothing)))
        });
        drop(noted);
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
        account.last_deposit.is_some_and(|last| last.charged == charged)
            && now.saturating_sub(*account.manners().deposit_shown.get_or_insert(now)) < INSISTS_AFTER_S
    }

    /// Reads a channel.
    pub(super) fn read<R>(&self, id: &ChannelId, read: impl FnOnce(&Channel) -> R) -> Option<R> {
        self.inner.channels.get(id).map(|account| read(&account.channel))
    }

    /// The id that follows from these terms. It is hashed, unless it is the id of an account with the very same terms, of
    /// which it was seen to follow before.
    pub(super) fn bind(&self, id: &ChannelId, config: &ChannelConfig, settlement: &Domain) -> BoundConfig {
        // A price list for another chain does not meet the books of this one; should it, nothing is known under its domain.
        let ours = self.inner.settlement.get_or_init(|| *settlement) == settlement;
        let known = |account: &Account| ours && account.channel.config() == *config;
        let seen = |account: &Account| known(account) && account.is_bound.load(Ordering::Relaxed);
        if self.inner.channels.get(id).is_some_and(|account| seen(&account)) {
            return BoundConfig::again(*id, *config, *settlement);
        }
        let bound = config.bound(settlement);
        if bound.id() == *id
            && let Some(account) = self.inner.channels.get(id).filter(|account| known(account))
        {
            account.is_bound.store(true, Ordering::Relaxed);
        }
        bound
    }

    /// Lets a request through: the price is held on the channel until the hold is posted or voided. Nothing of it is
    /// written down; the permit is for the entry that will close it.
    pub(super) fn hold(
        &self,
        voucher: &VerifiedVoucher,
        price: Amount,
        order: Order,
        limits: Limits,
        route: &Arc<str>,
        permit: Permit,
    ) -> Option<Result<Hold, Reject>> {
        let event = self.change(&voucher.channel(), &Command::Hold { voucher, price, order, limits })?;
        Some(event.map(|event| match event {
            Event::Held(open) => Hold {
                accounts: self.clone(),
                channel: voucher.channel(),
                number: open.number,
                price,
                limits,
                route: Arc::clone(route),
                permit: Some(permit),
                peer: None,
                dues: None,
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
        size: RefundRequest,
    ) -> Option<Result<(RefundTicket, Amount), Reject>> {
        let event = self.change(&voucher.channel(), &Command::BeginRefund { voucher, size })?;
        Some(event.map(|event| match event {
            Event::RefundBegun { amount } => {
                (RefundTicket { accounts: self.clone(), channel: voucher.channel(), sent: false }, amount)
            }
            other => unreachable!("a refund is answered with {other:?}"),
        }))
    }

    /// Begins to give back what is left on a channel whose payer has not come for a long time; `None` if it is unknown.
    pub(super) fn begin_return(&self, id: &ChannelId) -> Option<Result<(RefundTicket, Amount), Reject>> {
        let event = self.change(id, &Command::BeginReturn)?;
        Some(event.map(|event| match event {
            Event::RefundBegun { amount } => {
                (RefundTicket { accounts: self.clone(), channel: *id, sent: false }, amount)
            }
            other => unreachable!("a return is answered with {other:?}"),
        }))
    }

    /// Notes that something was done on a channel, so that it does not count as idle for as long again.
    pub(super) fn touch(&self, id: &ChannelId) {
        if let Some(mut account) = self.inner.channels.get_mut(id) {
            account.used_at = clock::now_s();
        }
    }

    /// Whether the channel was paid from lately, by this very peer, and not forged too often from there.
    pub(super) fn is_vouched_for(&self, id: &ChannelId, peer: u64, in_step: bool, now: u64) -> bool {
        self.inner.channels.get(id).is_some_and(|account| {
            let forged = account.manners.as_ref().filter(|manners| manners.is_forged_in(now)).map_or(0, |manners| {
                let (stepping, other) = manners.forged;
                if in_step { stepping } else { other }
            });
            account.paid_from == peer
                && now.saturating_sub(account.used_at) < patience::VOUCHED_FOR_S
                && forged < patience::MAX_FORGERIES
        })
    }

    /// Notes that a voucher of the channel was somebody else's. What comes from elsewhere than its payer is no concern of
    /// the channel's.
    pub(super) fn forged(&self, id: &ChannelId, peer: u64, in_step: bool, now: u64) {
        let Some(mut account) = self.inner.channels.get_mut(id) else { return };
        if account.paid_from != peer {
            return;
        }
        let manners = account.manners();
        if !manners.is_forged_in(now) {
            (manners.forged, manners.forged_since) = ((0, 0), now);
        }
        let (stepping, other) = &mut manners.forged;
        let count = if in_step { stepping } else { other };
        *count = count.saturating_add(1);
    }

    /// Up to `most` channels that were not used since `since` (Unix seconds), on terms and with so much left to give back as
    /// `worth` asks for, the longest unused first. Channels on which something is going on are not among them.
    pub(crate) fn idle(
        &self,
        since: u64,
        most: usize,
        worth: impl Fn(&ChannelConfig, Amount) -> bool,
    ) -> Vec<(ChannelId, ChannelConfig)> {
        let mut idle = std::collections::BinaryHeap::new();
        for entry in &self.inner.channels {
            let Account { channel, used_at, .. } = &**entry.value();
            let at_rest = channel.in_flight() == 0 && !channel.is_refunding();
            let left = channel.refundable();
            let has_some = !left.is_zero() && channel.view().withdrawal.is_none();
            if *used_at < since && at_rest && has_some && worth(&channel.config(), left) {
                idle.push((*used_at, channel.id()));
                if idle.len() > most {
                    idle.pop();
                }
            }
        }
        let config = |id: ChannelId| self.read(&id, |channel| (id, channel.config()));
        idle.into_sorted_vec().into_iter().filter_map(|(_, id)| config(id)).collect()
    }

    /// The channels on which anything can still happen: see [`Channel::is_open`].
    pub(crate) fn open_channels(&self) -> Vec<ChannelId> {
        let open = self.inner.channels.iter().filter(|entry| entry.value().channel.is_open());
        open.map(|entry| *entry.key()).collect()
    }

    /// Counts a refund against the channel's allowance; false when it is used up.
    pub(super) fn allow_refund(&self, id: &ChannelId) -> bool {
        let now = clock::now_s();
        let Some(mut account) = self.inner.channels.get_mut(id) else { return true };
        let manners = account.manners();
        if now.saturating_sub(manners.refunds_since) >= REFUND_WINDOW_S {
            (manners.refunds, manners.refunds_since) = (0, now);
        }
        manners.refunds = manners.refunds.saturating_add(1);
        manners.refunds <= MAX_REFUNDS_PER_WINDOW
    }

    /// The books of all channels, for redemption and operators. Each statement is consistent in itself; the list is
    /// not a snapshot of one moment.
    pub fn statements(&self) -> Vec<Statement> {
        self.inner.channels.iter().map(|entry| statement(&entry.value().channel)).collect()
    }

    /// The books of the channels on which something is charged and not claimed, as [`Accounts::statements`] has them. Of
    /// a million channels few have; only those cost memory.
    pub fn claimable(&self) -> Vec<Statement> {
        let due = |channel: &Channel| !channel.unclaimed().is_zero();
        let channels = self.inner.channels.iter();
        channels.filter(|entry| due(&entry.value().channel)).map(|entry| statement(&entry.value().channel)).collect()
    }

    /// Every receiver and token among the terms of the channels.
    pub fn payees(&self) -> BTreeSet<(Address, Address)> {
        let payee = |config: ChannelConfig| (config.receiver, config.token);
        self.inner.channels.iter().map(|entry| payee(entry.value().channel.config())).collect()
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
        self.change_and_read(id, command, Slip::default(), |_| ())
            .map(|changed| changed.map(|Change { event, .. }| event))
    }

    /// Decides and applies a command, and reads the channel before anybody else can change it again. `None` if the
    /// channel is unknown.
    fn change_and_read<R>(
        &self,
        id: &ChannelId,
        command: &Command<'_>,
        slip: Slip<'_>,
        read: impl FnOnce(&Channel) -> R,
    ) -> Option<Result<Change<R>, Reject>> {
        let now = clock::now_s();
        let Slip { route, limits, peer, .. } = slip;
        let entered = self.enter(id, slip, |account| {
            let channel = &mut account.channel;
            let event = channel.decide(command, now)?;
            let wants_claim = |channel: &Channel| limits.is_some_and(|limits| channel.wants_claim(limits));
            // Nothing is promised before a request is charged, so holds are not written.
            let booking = match &event {
                Event::Held(_) | Event::Voided { .. } | Event::RefundBegun { .. } => {
                    channel.evolve(&event);
                    None
                }
                Event::Posted { charge, .. } => {
                    let wanted = wants_claim(channel);
                    channel.evolve(&event);
                    if wants_claim(channel) && !wanted {
                        self.want_claim();
                    }
                    account.paid_from = peer.unwrap_or(account.paid_from);
                    let route = Arc::clone(route.expect("a hold is posted with the route it was made on"));
                    Some(Booking::Charge { route, amount: *charge, at: now })
                }
                Event::Observed { .. } | Event::RefundSigned { .. } | Event::RefundEnded { .. } => {
                    let before = channel.snapshot();
                    channel.evolve(&event);
                    booking_of(&before, &channel.snapshot(), now)
                }
            };
            let used = match &event {
                Event::Held(_) | Event::Posted { .. } => true,
                Event::RefundBegun { .. } => !matches!(command, Command::BeginReturn),
                Event::Observed { .. } => booking.is_some(),
                Event::Voided { .. } | Event::RefundSigned { .. } | Event::RefundEnded { .. } => false,
            };
            if used {
                account.used_at = now;
            }
            Ok(((event, read(&account.channel)), booking))
        })?;
        if let Ok(((event, _), _)) = &entered {
            self.inner.turns.changed(self, id, matches!(event, Event::Held(_)));
        }
        Some(entered.map(|((event, seen), ticket)| Change { event, seen, ticket }))
    }

    /// The one door: changes an account under its lock, and queues its new row (if it has one to write) before anybody
    /// else can change it again.
    fn enter<R>(
        &self,
        id: &ChannelId,
        slip: Slip<'_>,
        change: impl FnOnce(&mut Account) -> Result<(R, Option<Booking>), Reject>,
    ) -> Option<Result<(R, Option<Ticket>), Reject>> {
        let mut account = self.inner.channels.get_mut(id)?;
        let (seen, booking) = match change(&mut account) {
            Ok(changed) => changed,
            Err(reject) => return Some(Err(reject)),
        };
        let journal = &self.inner.journal;
        let ticket = match booking {
            Some(booking) if !journal.is_volatile() => {
                let entry = account.entry(booking);
                if slip.awaited {
                    Some(journal.write(entry, slip.permit))
                } else {
                    journal.note(entry, slip.permit);
                    None
                }
            }
            _ => None,
        };
        Some(Ok((seen, ticket)))
    }
}

/// What goes with a change into the books.
#[derive(Debug, Default)]
struct Slip<'a> {
    /// The route that is charged.
    route: Option<&'a Arc<str>>,
    /// What is risked with the channel that is charged.
    limits: Option<Limits>,
    /// Who sent the request that is charged.
    peer: Option<u64>,
    /// The right to close a request.
    permit: Option<Permit>,
    /// Whether somebody waits until it is durable.
    awaited: bool,
}

/// A change that was made.
struct Change<R> {
    event: Event,
    seen: R,
    /// Says when it is durable, if anything had to be written and somebody waits.
    ticket: Option<Ticket>,
}

/// What has to be written about a change that is no charge: nothing, where only the view's age changed. That is not
/// worth a write, because an old view is read again before it is used. A view that went back is: the block that is not in
/// the chain must not come out of the books again.
fn booking_of(before: &Snapshot, after: &Snapshot, now: u64) -> Option<Booking> {
    let refreshed = Snapshot {
        view: View { block: after.view.block, ..before.view },
        viewed_at: after.viewed_at,
        ..before.clone()
    };
    if refreshed == *after && after.view.block >= before.view.block {
        return None;
    }
    let why = if after.charged > before.charged { Adjustment::ClaimedElsewhere } else { Adjustment::ClaimDropped };
    Some(adjustment(before.charged, after.charged, why, now))
}

fn adjustment(from: Amount, to: Amount, why: Adjustment, at: u64) -> Booking {
    if from == to { Booking::Nothing } else { Booking::Adjustment { from, to, at, why } }
}

fn statement(channel: &Channel) -> Statement {
    Statement {
        id: channel.id(),
        config: channel.config(),
        view: channel.view(),
        charged: channel.charged(),
        unclaimed: channel.unclaimed(),
        unclaimed_since: channel.unclaimed_since(),
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

/// The channel as a client is shown it whose voucher for `price` was out of step: as if so much were charged that the
/// voucher which the client signs next is the right one.
pub(super) fn corrective_state(channel: &Channel, price: Amount) -> ChannelState {
    state_of(channel.id(), &channel.view(), channel.base(price))
}

/// What such a client is told: that state, and its own voucher which says that it signed for as much.
pub(super) fn correction(channel: &Channel, price: Amount) -> (ChannelState, Option<VoucherState>) {
    (corrective_state(channel, price), voucher_state(channel))
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

/// The payer's own highest voucher, as correctives show it: clients believe no sum beyond it.
pub(super) fn voucher_state(channel: &Channel) -> Option<VoucherState> {
    channel
        .highest()
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
    limits: Limits,
    route: Arc<str>,
    permit: Option<Permit>,
    peer: Option<u64>,
    /// What lowers its charge, if anything does.
    dues: Option<Box<Dues>>,
    sent: bool,
    resolved: bool,
}

/// A charge that is on its way to the disk.
#[derive(Debug)]
pub(super) struct Posted {
    charged: Charged,
    ticket: Option<Ticket>,
}

/// A charge that is in the books for good: the proof that a paid answer may leave.
#[derive(Debug)]
pub(super) struct Charged {
    /// What it cost.
    pub(super) charge: Amount,
    /// The channel after it.
    pub(super) state: ChannelState,
}

/// A charge that never reached the books.
#[derive(Debug)]
pub(super) struct NotWritten {
    /// Why.
    pub(super) latched: Latched,
    /// The channel as if the charge had not been. Charges of other requests that were in flight may be in it, written or
    /// not: only a restart knows.
    pub(super) state: ChannelState,
}

impl Posted {
    /// What it cost.
    pub(super) fn charge(&self) -> Amount {
        self.charged.charge
    }

    /// Waits until the charge is durable.
    ///
    /// # Cancellation
    /// A caller that stops waiting loses the proof; the charge is written all the same.
    pub(super) async fn written(self) -> Result<Charged, NotWritten> {
        let Self { charged, ticket } = self;
        let Some(ticket) = ticket else { return Ok(charged) };
        match ticket.await {
            Ok(()) => Ok(charged),
            Err(latched) => {
                let Charged { charge, mut state } = charged;
                state.charged_cumulative_amount = state.charged_cumulative_amount.saturating_sub(charge);
                Err(NotWritten { latched, state })
            }
        }
    }
}

impl Hold {
    /// The channel.
    pub fn channel(&self) -> ChannelId {
        self.channel
    }

    /// What the request was quoted at, which is held.
    pub fn price(&self) -> Amount {
        self.price
    }

    /// The most the request will cost this payer: the price, or less.
    pub fn most(&self) -> Amount {
        self.dues.as_ref().map_or(self.price, |dues| dues.most().min(self.price))
    }

    /// From now on whatever it is charged is lowered by these.
    pub(super) fn lowered_by(&mut self, dues: Option<Box<Dues>>) {
        self.dues = dues;
    }

    /// The peer who sent the request ([`super::Peer::key`]), if one is known; once it is charged, the channel paid from
    /// there.
    pub(super) fn comes_from(&mut self, peer: Option<u64>) {
        self.peer = peer;
    }

    /// From now on the upstream may be working for the payer.
    pub(super) fn sent(&mut self) {
        self.sent = true;
    }

    /// From now on it may take long, as streams do. Its closing entry needs no permit: those are for requests whose charge
    /// is about to be written, and a commit waits a moment for as many as there are.
    pub(super) fn goes_on(&mut self) {
        self.permit = None;
    }

    /// Whether it is we who end what is still being served.
    pub(super) fn is_abandoned(&self) -> bool {
        self.accounts.inner.abandoning.load(Ordering::Acquire)
    }

    /// Whether a withdrawal of the channel can be finished so soon that nothing new would be served on it.
    pub(super) fn is_being_withdrawn(&self) -> bool {
        let soon = |channel: &Channel| channel.is_withdrawing(self.limits, clock::now_s());
        self.accounts.read(&self.channel, soon).unwrap_or(false)
    }

    /// The channel's state as it is now.
    pub(super) fn state(&self) -> Option<ChannelState> {
        self.accounts.read(&self.channel, channel_state)
    }

    /// The request was served and cost `charge`, or what is due of that.
    pub(super) fn post(mut self, charge: Amount) -> Result<Posted, Reject> {
        let (charge, changed) = self.charge(charge, true);
        let Change { seen: state, ticket, .. } = changed?;
        Ok(Posted { charged: Charged { charge, state }, ticket })
    }

    /// Charges what is due of this, and says how much that is. What did not come to be charged is not counted either.
    fn charge(&mut self, charge: Amount, awaited: bool) -> (Amount, Result<Change<ChannelState>, Reject>) {
        let Some(dues) = self.dues.take() else {
            return (charge, self.resolve(&Command::Post { hold: self.number, charge }, awaited));
        };
        let due = dues.due(charge);
        let changed = self.resolve(&Command::Post { hold: self.number, charge: due.amount }, awaited);
        if changed.is_err() {
            dues.give_back(&due);
        }
        (due.amount, changed)
    }

    /// The request failed and costs nothing. Returns the channel's state.
    pub(super) fn void(mut self) -> Option<ChannelState> {
        // A hold that an observation of the chain removed is void already.
        self.resolve(&Command::Void { hold: self.number }, false)
            .ok()
            .map(|change| change.seen)
            .or_else(|| self.state())
    }

    /// The channel as this very step left it: the next request may already wait for its lock, and what it is charged must
    /// not stand in this one's receipt.
    fn resolve(&mut self, command: &Command<'_>, awaited: bool) -> Result<Change<ChannelState>, Reject> {
        self.resolved = true;
        let permit = self.permit.take();
        let slip = Slip { route: Some(&self.route), limits: Some(self.limits), peer: self.peer, permit, awaited };
        let resolved = self.accounts.change_and_read(&self.channel, command, slip, channel_state);
        resolved.unwrap_or(Err(Reject::NoSuchHold))
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.resolved {
            return;
        }
        let ours = self.is_abandoned() || std::thread::panicking();
        let resolved = if self.sent && !ours {
            self.charge(self.price, false).1
        } else {
            self.resolve(&Command::Void { hold: self.number }, false)
        };
        if let Err(reject) = resolved {
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
        let slip = Slip { awaited: true, ..Slip::default() };
        let signed = self.accounts.change_and_read(&self.channel, &Command::SignRefund { refund }, slip, |_| ());
        let change = signed.and_then(Result::ok).expect("a refund in progress can be signed, and its account stays");
        self.sent = true;
        match change.ticket {
            Some(ticket) => ticket.await,
            // It was written before: an earlier refund with this nonce is at least as large.
            None => self.accounts.journal().latch().map_or(Ok(()), |latched| Err(latched.clone())),
        }
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

/// Who a payment is from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Payer {
    /// Whom the channel's terms name, for receipts.
    pub(super) address: Address,
    /// Who signed, for all that depends on who pays.
    pub(super) account: Address,
    pub(super) channel: ChannelId,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Domain, LocalKey, Voucher};

    fn config(number: u8) -> ChannelConfig {
        ChannelConfig {
            payer: Address([number; 20]),
            payer_authorizer: Address([number; 20]),
            receiver: Address([1; 20]),
            receiver_authorizer: Address([2; 20]),
            token: Address([3; 20]),
            withdraw_delay: 900,
            salt: Hash::ZERO,
        }
    }

    fn id(number: u8) -> ChannelId {
        ChannelId([number; 32])
    }

    /// Channel `number` with so much, last used then.
    fn open(accounts: &Accounts, number: u8, balance: u128, used_at: u64) {
        let view = View { block: 1, balance: Amount::new(balance), ..View::default() };
        accounts.observe(id(number), &config(number), view).unwrap();
        accounts.inner.channels.get_mut(&id(number)).unwrap().used_at = used_at;
    }

    #[test]
    fn idle_are_channels_with_something_left_that_were_not_used_for_long() {
        let accounts = Accounts::in_memory();
        for (number, balance, used_at) in [(1, 100, 500), (2, 100, 300), (3, 100, 400), (4, 100, 1_000), (5, 99, 10)] {
            open(&accounts, number, balance, used_at);
        }
        let idle = |since, most| {
            let found = accounts.idle(since, most, |_, left| left >= Amount::new(100));
            found.into_iter().map(|(id, _)| id).collect::<Vec<_>>()
        };
        assert_eq!(idle(1_000, 9), [id(2), id(3), id(1)], "the longest unused first; too little is left on 5");
        assert_eq!(idle(1_001, 9), [id(2), id(3), id(1), id(4)]);
        assert_eq!(idle(1_001, 2), [id(2), id(3)]);
        assert_eq!(idle(1_001, 0), []);
        let foreign =
            accounts.idle(1_001, 9, |config, left| config.payer != Address([2; 20]) && left > Amount::new(99));
        assert_eq!(foreign.first().map(|(id, _)| *id), Some(id(3)));
        // A refund in progress, a withdrawal, money that came in, a touch.
        let ticket = accounts.begin_return(&id(2)).unwrap().unwrap();
        assert_eq!(ticket.1, Amount::new(100));
        let withdrawal = Some(crate::ledger::Withdrawal { amount: Amount::new(1), initiated_at: 1 });
        let view = View { block: 2, balance: Amount::new(100), withdrawal, ..View::default() };
        accounts.observe(id(3), &config(3), view).unwrap();
        accounts.touch(&id(1));
        assert_eq!(idle(1_001, 9), [id(4)]);
        accounts.observe(id(4), &config(4), View { withdrawal: None, balance: Amount::new(101), ..view }).unwrap();
        assert_eq!(idle(1_001, 9), []);
        // Nothing came of the refund: it is idle still, and a look at the chain alone is no use.
        drop(ticket);
        accounts.observe(id(2), &config(2), View { block: 9, balance: Amount::new(100), ..View::default() }).unwrap();
        assert_eq!(idle(1_001, 9), [id(2)]);
    }

    #[test]
    fn vouchers_that_many_present_at_once_are_each_served_once() {
        const VOUCHERS: u128 = 48;
        const PRICE: u128 = 10;
        let domain = Domain::settlement(84532);
        let key = LocalKey::from_bytes(&[7; 32]).unwrap();
        let terms = ChannelConfig { payer: key.address(), payer_authorizer: key.address(), ..config(1) };
        let id = terms.id(&domain);
        let accounts = Accounts::in_memory();
        let view = View { block: 1, balance: Amount::new(VOUCHERS * PRICE), ..View::default() };
        accounts.observe(id, &terms, view).unwrap();
        let vouchers: Vec<_> = (1..=VOUCHERS)
            .map(|number| Voucher { channel: id, max_claimable: Amount::new(number * PRICE) })
            .map(|voucher| voucher.sign(&domain, &key).verify(&domain, &terms).unwrap())
            .collect();
        let limits = Limits { max_in_flight: 16, ..Limits::default() };
        let route: Arc<str> = "r".into();
        let (price, half) = (Amount::new(PRICE), Amount::new(PRICE / 2));
        let hold = |voucher: &VerifiedVoucher| {
            let permit = accounts.journal().permit().unwrap();
            accounts.hold(voucher, price, Order::Ahead, limits, &route, permit).unwrap()
        };
        // Each voucher with what it was charged, in the order they were served.
        let served = Mutex::new(Vec::new());
        let serve = |hold: Hold, max: Amount, charge: Amount| {
            hold.post(charge).unwrap();
            served.lock().unwrap().push((max, charge));
        };
        std::thread::scope(|scope| {
            for thread in 0..8_usize {
                let (vouchers, hold, serve) = (&vouchers, &hold, &serve);
                scope.spawn(move || {
                    for turn in 0..6 {
                        for (place, voucher) in vouchers.iter().enumerate() {
                            let Ok(hold) = hold(voucher) else { continue };
                            std::thread::yield_now();
                            match (thread + place + turn) % 4 {
                                0 => drop(hold.void()),
                                1 => drop(hold),
                                2 => serve(hold, voucher.max_claimable(), half),
                                _ => serve(hold, voucher.max_claimable(), price),
                            }
                        }
                    }
                });
            }
        });
        for voucher in &vouchers {
            if let Ok(hold) = hold(voucher) {
                serve(hold, voucher.max_claimable(), price);
            }
        }
        let mut served = served.into_inner().unwrap();
        served.sort_unstable();
        let ceilings: Vec<_> = served.iter().map(|(max, _)| *max).collect();
        assert_eq!(ceilings, vouchers.iter().map(VerifiedVoucher::max_claimable).collect::<Vec<_>>());
        let sum: u128 = served.iter().map(|(_, charge)| charge.units()).sum();
        assert_eq!(accounts.read(&id, Channel::charged), Some(Amount::new(sum)));
        assert_eq!(accounts.read(&id, Channel::in_flight), Some(0));
    }

    #[test]
    fn terms_are_bound_to_the_id_that_follows_from_them_whatever_the_books_say() {
        let accounts = Accounts::in_memory();
        let (ours, other) = (Domain::settlement(1), Domain::settlement(2));
        let config = config(1);
        let true_id = config.id(&ours);
        let stranger = ChannelConfig { salt: Hash([7; 32]), ..config };
        let view = View { block: 1, balance: Amount::new(100), ..View::default() };
        // Books that were tampered with: the terms are another channel's.
        accounts.observe(id(1), &config, view).unwrap();
        accounts.observe(true_id, &config, view).unwrap();
        let is_bound = |id: &ChannelId| accounts.inner.channels.get(id).unwrap().is_bound.load(Ordering::Relaxed);
        // The second time is by memory where there is one.
        for _ in 0..2 {
            assert_eq!(accounts.bind(&true_id, &config, &ours), config.bound(&ours));
            assert_eq!(accounts.bind(&id(1), &config, &ours).id(), true_id);
            assert_eq!(accounts.bind(&true_id, &stranger, &ours).id(), stranger.id(&ours));
            assert_eq!(accounts.bind(&true_id, &config, &other).id(), config.id(&other));
            assert_eq!(accounts.bind(&id(9), &stranger, &ours).id(), stranger.id(&ours), "no account");
            assert_eq!((is_bound(&true_id), is_bound(&id(1))), (true, false));
        }
    }

    #[test]
    fn channels_ahead_of_what_the_chain_was_seen_to_have_are_told_once() {
        let accounts = Accounts::in_memory();
        open(&accounts, 1, 100, 0);
        let at = |block| View { block, balance: Amount::new(100), ..View::default() };
        accounts.observe(id(1), &config(1), at(7)).unwrap();
        accounts.observe(id(1), &config(1), at(7)).unwrap();
        assert_eq!(accounts.take_ahead(), []);
        accounts.observe(id(1), &config(1), at(6)).unwrap();
        assert_eq!(accounts.take_ahead(), [(id(1), 7)]);
        assert_eq!(accounts.take_ahead(), []);
    }
}
