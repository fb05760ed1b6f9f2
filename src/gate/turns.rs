//! Turns: who waits for a channel, and who is corrected next.
//!
//! A stock client that makes calls side by side signs all their vouchers above the same base, and each of these calls
//! can be corrected once. Corrected all at once they would all sign the same voucher again, and all but one would fail.
//! So one of them is told the base, and the others wait until its next voucher is held, which changes the base.
//!
//! **Owns** the payments that wait, first come, first called, and the grants: the promise to somebody who was corrected
//! that nobody else is told the same. **Promises** that a payment which fits never waits for one that does not; that a
//! waiting one is called when the channel has room for it, by whichever request made the room; that a caller who leaves
//! is forgotten, and costs those behind it [`GRANT`] at most; and that all of it is bounded ([`Asked::most`], [`MAX_WAITING`],
//! [`MAX_LINGERING`], a deadline for each). **Does not** verify: who stands here has signed for the channel. A
//! channel where nobody waits costs its requests one look at a counter.
//!
//! Locks: a turnstile may look at its channel's account; nobody who has an account locked may touch a turnstile.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use tokio::sync::Notify;

use super::accounts::{self, Accounts};
use crate::clock;
use crate::ledger::{self, Channel, Reject};
use crate::protocol::x402::{ChannelState, Order, VoucherState};
use crate::protocol::{Amount, ChannelId};

/// How long nobody else is corrected while somebody who was has not come back. A stock client reads the chain before it
/// does, from a node that may be far away.
pub(super) const GRANT: Duration = Duration::from_secs(2);
/// How long after a grant of which nothing came one that finds nobody waiting is not kept waiting for another. A client that
/// does not do what it is told comes again with the voucher it came with; but so does another call of one that does, and a
/// busy client can take half a second to sign its calls, so the first time it has to wait.
pub(super) const DOUBT: Duration = Duration::from_secs(10);
/// How many payments wait in all; more are told to come back.
pub(super) const MAX_WAITING: usize = 8_192;
/// How many channels' grants are remembered where nobody waits for them. The oldest is forgotten for one more.
pub(super) const MAX_LINGERING: usize = 4_096;

/// What a client out of step is told.
pub(super) type Correction = (ChannelState, Option<VoucherState>);

/// What somebody waits for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    /// What for.
    pub(super) wants: Wants,
    /// The voucher's ceiling.
    pub(super) max: Amount,
    /// The price, atomic units.
    pub(super) price: Amount,
    /// How the voucher was signed.
    pub(super) order: Order,
    /// What is risked with the channel.
    pub(super) limits: ledger::Limits,
    /// How many may wait for the channel.
    pub(super) most: usize,
}

/// What for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wants {
    /// To be served for a voucher.
    Service {
        /// The chain was asked for this already, or is not asked any more, so what the books say of the balance counts.
        looked: bool,
    },
    /// To have a deposit relayed.
    Deposit,
    /// To be corrected, whether its voucher fits or not.
    Correction,
    /// Something else than a turn: it is only counted.
    Nothing,
}

/// How one that waits stands with its channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// It may go.
    Fits,
    /// The channel has no room for anybody.
    Full,
    /// It does not fit and has to be corrected.
    OutOfStep,
}

impl Asked {
    fn standing(&self, channel: Option<&Channel>, told: Option<Amount>) -> Standing {
        let Some(channel) = channel else {
            return if self.wants == Wants::Correction { Standing::OutOfStep } else { Standing::Fits };
        };
        match self.wants {
            Wants::Service { looked } => match self.preview(channel, self.order) {
                Err(Reject::Busy) => Standing::Full,
                Err(reject) if is_out_of_step(reject) => {
                    let kept = told == Some(self.max) && self.preview(channel, Order::Ahead).is_ok();
                    if kept { Standing::Fits } else { Standing::OutOfStep }
                }
                Err(Reject::ExceedsBalance | Reject::NoDeposit) if looked => Standing::OutOfStep,
                // Whatever else it is, it is not for us to say.
                Ok(()) | Err(_) => Standing::Fits,
            },
            _ if channel.is_full(self.limits) => Standing::Full,
            Wants::Deposit if channel.base(self.price).checked_add(self.price) == Some(self.max) => Standing::Fits,
            Wants::Deposit | Wants::Correction | Wants::Nothing => Standing::OutOfStep,
        }
    }

    fn preview(&self, channel: &Channel, order: Order) -> Result<(), Reject> {
        channel.preview_hold(self.max, self.price, order, self.limits, clock::now_s())
    }
}

/// Whether this says that a voucher is of another state of the channel than it is in.
pub(super) fn is_out_of_step(reject: Reject) -> bool {
    matches!(reject, Reject::AmountMismatch | Reject::Spent | Reject::TooFarAhead)
}

/// What one that waits is called for.
#[derive(Debug)]
enum Call {
    /// Try again.
    Go,
    /// Be corrected; nothing to say where the books do not have the channel.
    Correct(Option<Box<Correction>>),
}

/// How waiting ended.
#[derive(Debug)]
pub(super) enum Called {
    /// Try again; whoever does not get in may wait on where it stood.
    ToGo,
    /// Be corrected; nothing to say where the books do not have the channel.
    ToBeCorrected(Option<Box<Correction>>),
    /// Time is up, or there are too many.
    InVain,
}

#[derive(Debug)]
struct Waiter {
    number: u64,
    asked: Asked,
    call: Option<Call>,
    /// Rings when there is a call, or the time of the next one has changed.
    bell: Arc<Notify>,
}

impl Waiter {
    fn waits(&self) -> bool {
        self.call.is_none() && self.asked.wants != Wants::Nothing
    }
}

/// Somebody was corrected.
#[derive(Debug, Clone, Copy)]
struct Grant {
    /// Who, of those that waited.
    number: u64,
    since: Instant,
}

impl Grant {
    fn ends(&self) -> Instant {
        later(self.since, GRANT)
    }
}

fn later(instant: Instant, by: Duration) -> Instant {
    instant.checked_add(by).unwrap_or(instant)
}

/// The turns of one channel.
#[derive(Debug, Default)]
struct Turnstile {
    /// In the order of their numbers.
    queue: VecDeque<Waiter>,
    grant: Option<Grant>,
    /// The ceiling that whoever was told the base last will sign for. It is as good as in turn, whatever became of the
    /// requests the base was reckoned with.
    told: Option<Amount>,
    /// How many are on their way to a hold in another way than by a voucher alone: their deposits are being mined.
    reserved: usize,
    /// Until when a grant is not expected to be used, because the last one was not.
    doubted_until: Option<Instant>,
}

/// Reads the channel for a turnstile.
trait Look {
    fn look<R>(&self, read: impl FnOnce(Option<&Channel>) -> R) -> R;
}

struct Account<'a>(&'a Accounts, &'a ChannelId);

impl Look for Account<'_> {
    fn look<R>(&self, read: impl FnOnce(Option<&Channel>) -> R) -> R {
        let mut read = Some(read);
        let mut take = move |channel: Option<&Channel>| read.take().map(|read| read(channel));
        let known = self.0.read(self.1, |channel| take(Some(channel))).flatten();
        known.or_else(|| take(None)).expect("a channel is read once, known or not")
    }
}

impl Turnstile {
    /// A newcomer, which stands last.
    fn enter(&mut self, number: u64, asked: Asked, look: &impl Look, now: Instant) -> Arc<Notify> {
        let doubted = self.doubted_until.is_some_and(|until| now < until);
        let alone = self.queue.is_empty() && self.reserved == 0;
        if alone && doubted && look.look(|channel| channel.is_none_or(is_idle)) {
            self.grant = None;
        }
        let bell = Arc::new(Notify::new());
        self.queue.push_back(Waiter { number, asked, call: None, bell: Arc::clone(&bell) });
        self.advance(look, now);
        bell
    }

    /// Calls whom it can: all that fit, or, where nobody is about to go in, the first that is out of step.
    fn advance(&mut self, look: &impl Look, now: Instant) {
        if self.grant.is_some_and(|grant| grant.ends() <= now) {
            self.grant = None;
            self.doubted_until = Some(later(now, DOUBT));
        }
        let told = self.told;
        let mut going = self.reserved > 0;
        let mut first = None;
        look.look(|channel| {
            for waiter in &mut self.queue {
                match (&waiter.call, waiter.asked.wants) {
                    (Some(Call::Go), _) => going = true,
                    (Some(Call::Correct(_)), _) | (None, Wants::Nothing) => {}
                    (None, _) => match waiter.asked.standing(channel, told) {
                        Standing::Fits => {
                            waiter.call = Some(Call::Go);
                            waiter.bell.notify_one();
                            going = true;
                        }
                        Standing::OutOfStep if first.is_none() => first = Some(waiter.number),
                        Standing::OutOfStep | Standing::Full => {}
                    },
                }
            }
            if going || self.grant.is_some() {
                return;
            }
            let Some(waiter) = first.and_then(|first| self.queue.iter_mut().find(|waiter| waiter.number == first))
            else {
                return;
            };
            let price = waiter.asked.price;
            let correction = channel.map(|channel| accounts::correction(channel, price));
            if let Some((state, _)) = &correction {
                self.told = state.charged_cumulative_amount.checked_add(price);
            }
            waiter.call = Some(Call::Correct(correction.map(Box::new)));
            waiter.bell.notify_one();
            self.grant = Some(Grant { number: waiter.number, since: now });
        });
        // Whoever is first now has to know when the grant ends.
        if self.grant.is_some()
            && let Some(waiter) = self.queue.iter().find(|waiter| waiter.waits())
        {
            waiter.bell.notify_one();
        }
    }

    /// A voucher was held: whoever was told the base before has come, or is too late.
    fn held(&mut self) {
        self.grant = None;
        self.doubted_until = None;
    }

    fn waiter(&mut self, number: u64) -> Option<&mut Waiter> {
        self.queue.iter_mut().find(|waiter| waiter.number == number)
    }

    /// The call of one that waits, or until when there may be none.
    fn call(&mut self, number: u64, deadline: Instant) -> Result<Called, Instant> {
        let grant = self.grant.map_or(deadline, |grant| grant.ends().min(deadline));
        let Some(waiter) = self.waiter(number) else { return Ok(Called::InVain) };
        match &mut waiter.call {
            None => Err(grant),
            Some(Call::Go) => Ok(Called::ToGo),
            Some(Call::Correct(correction)) => {
                let correction = correction.take();
                self.queue.retain(|waiter| waiter.number != number);
                Ok(Called::ToBeCorrected(correction))
            }
        }
    }

    /// One that waited leaves. A correction it never heard of was none.
    fn leave(&mut self, number: u64) {
        let unheard = |waiter: &Waiter| waiter.number == number && matches!(waiter.call, Some(Call::Correct(_)));
        if self.queue.iter().any(unheard) && self.grant.is_some_and(|grant| grant.number == number) {
            self.grant = None;
        }
        self.queue.retain(|waiter| waiter.number != number);
    }

    /// How long it has to be kept: as long as it must, until a moment, or not at all.
    fn keep(&self, now: Instant) -> Keep {
        if !self.queue.is_empty() || self.reserved > 0 {
            return Keep::On;
        }
        let until = self.grant.map(|grant| later(grant.ends(), DOUBT)).max(self.doubted_until);
        until.filter(|until| now < *until).map_or(Keep::Not, Keep::Until)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keep {
    On,
    Until(Instant),
    Not,
}

fn is_idle(channel: &Channel) -> bool {
    channel.in_flight() == 0
}

/// The turns of all channels.
#[derive(Debug, Default)]
pub(super) struct Turns {
    channels: DashMap<ChannelId, Turnstile>,
    /// How many turnstiles there are. It is raised before the account is looked at and read after the account was
    /// changed, so of two that meet one sees the other.
    count: AtomicUsize,
    waiting: AtomicUsize,
    numbers: AtomicU64,
    /// Turnstiles that are only remembered, and until when.
    lingering: Mutex<VecDeque<(Instant, ChannelId)>>,
}

impl Turns {
    /// Something happened to a channel; `held` says that it was a hold.
    pub(super) fn changed(&self, accounts: &Accounts, id: &ChannelId, held: bool) {
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        let now = Instant::now();
        if let Some(mut turnstile) = self.channels.get_mut(id) {
            if held {
                turnstile.held();
            }
            turnstile.advance(&Account(accounts, id), now);
        } else {
            return;
        }
        self.tidy(id, now);
    }

    /// Whether this ceiling was told to the channel's payer as the next one.
    pub(super) fn was_told(&self, id: &ChannelId, max: Amount) -> bool {
        self.count.load(Ordering::Acquire) > 0
            && self.channels.get(id).is_some_and(|turnstile| turnstile.told == Some(max))
    }

    /// A place among those that wait, until `deadline`. `None` where there are too many.
    pub(super) fn enter(&self, accounts: &Accounts, id: ChannelId, asked: Asked, deadline: Instant) -> Option<Waiting> {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let now = Instant::now();
        let mut entered = None;
        self.with_turnstile(id, |turnstile| {
            let bell = turnstile.enter(number, asked, &Account(accounts, &id), now);
            let called = turnstile.waiter(number).is_some_and(|waiter| waiter.call.is_some());
            let others = turnstile.queue.iter().filter(|waiter| waiter.call.is_none()).count();
            if called || (others <= asked.most && self.waiting.load(Ordering::Relaxed) < MAX_WAITING) {
                self.waiting.fetch_add(1, Ordering::Relaxed);
                entered = Some(bell);
            } else {
                turnstile.leave(number);
            }
        });
        self.tidy(&id, now);
        let bell = entered?;
        Some(Waiting { accounts: accounts.clone(), id, number, wants: asked.wants, deadline, bell })
    }

    /// Keeps everybody from being corrected while somebody is on the way to a hold of this ceiling.
    pub(super) fn reserve(&self, accounts: &Accounts, id: ChannelId, max: Amount) -> Reserved {
        self.with_turnstile(id, |turnstile| {
            turnstile.reserved = turnstile.reserved.saturating_add(1);
            turnstile.told = Some(max);
        });
        Reserved { accounts: accounts.clone(), id }
    }

    fn with_turnstile(&self, id: ChannelId, change: impl FnOnce(&mut Turnstile)) {
        let mut turnstile = match self.channels.entry(id) {
            Entry::Occupied(known) => known.into_ref(),
            Entry::Vacant(free) => {
                self.count.fetch_add(1, Ordering::AcqRel);
                free.insert(Turnstile::default())
            }
        };
        change(&mut turnstile);
    }

    /// Forgets a turnstile nobody needs, and those that were remembered for too long.
    fn tidy(&self, id: &ChannelId, now: Instant) {
        let keep = self.channels.get(id).map_or(Keep::On, |turnstile| turnstile.keep(now));
        match keep {
            Keep::On => return,
            Keep::Not => self.forget(id, |turnstile| turnstile.keep(now) == Keep::Not),
            Keep::Until(until) => self.lingering().push_back((until, *id)),
        }
        loop {
            let Some((id, is_over)) = self.oldest(now) else { return };
            // One that was used meanwhile has come to the end of the line again.
            self.forget(&id, |turnstile| match turnstile.keep(now) {
                Keep::On => false,
                Keep::Until(_) => !is_over,
                Keep::Not => true,
            });
        }
    }

    /// The one that was remembered first, if its time is over or there are too many.
    fn oldest(&self, now: Instant) -> Option<(ChannelId, bool)> {
        let mut lingering = self.lingering();
        let is_over = lingering.front().is_some_and(|(until, _)| *until <= now);
        if !is_over && lingering.len() <= MAX_LINGERING {
            return None;
        }
        lingering.pop_front().map(|(_, id)| (id, is_over))
    }

    fn forget(&self, id: &ChannelId, idle: impl FnOnce(&Turnstile) -> bool) {
        if self.channels.remove_if(id, |_, turnstile| idle(turnstile)).is_some() {
            self.count.fetch_sub(1, Ordering::AcqRel);
        }
    }

    fn lingering(&self) -> std::sync::MutexGuard<'_, VecDeque<(Instant, ChannelId)>> {
        self.lingering.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A payment that waits for its turn. Dropping it leaves the queue.
#[derive(Debug)]
pub(super) struct Waiting {
    accounts: Accounts,
    id: ChannelId,
    number: u64,
    wants: Wants,
    deadline: Instant,
    bell: Arc<Notify>,
}

impl Waiting {
    /// Until when it waits.
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Goes on waiting where it stands, for this; until `deadline`, if it was only counted so far.
    pub(super) fn ask(&mut self, asked: Asked, deadline: Instant) {
        if self.wants == Wants::Nothing {
            self.deadline = deadline;
        }
        self.wants = asked.wants;
        let look = Account(&self.accounts, &self.id);
        if let Some(mut turnstile) = self.accounts.turns().channels.get_mut(&self.id) {
            if let Some(waiter) = turnstile.waiter(self.number) {
                (waiter.asked, waiter.call) = (asked, None);
            }
            turnstile.advance(&look, Instant::now());
        }
    }

    /// Waits for the call.
    ///
    /// # Cancellation
    /// May be dropped and called again; a call is not lost.
    pub(super) async fn called(&mut self) -> Called {
        // One that is called again and again and never gets in does not keep its thread from everybody else, and its time
        // ends all the same.
        tokio::task::consume_budget().await;
        loop {
            let now = Instant::now();
            let until = {
                let Some(mut turnstile) = self.accounts.turns().channels.get_mut(&self.id) else {
                    return Called::InVain;
                };
                match turnstile.call(self.number, self.deadline) {
                    Ok(Called::ToGo) if self.deadline <= now => return Called::InVain,
                    Ok(called) => return called,
                    Err(_) if self.deadline <= now => return Called::InVain,
                    Err(until) if until <= now => {
                        turnstile.advance(&Account(&self.accounts, &self.id), now);
                        continue;
                    }
                    Err(until) => until,
                }
            };
            // Late is as good as in time: what there is to know is looked up above.
            let _ = tokio::time::timeout_at(until.into(), self.bell.notified()).await;
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let turns = self.accounts.turns();
        let now = Instant::now();
        turns.waiting.fetch_sub(1, Ordering::Relaxed);
        if let Some(mut turnstile) = turns.channels.get_mut(&self.id) {
            turnstile.leave(self.number);
            turnstile.advance(&Account(&self.accounts, &self.id), now);
        }
        turns.tidy(&self.id, now);
    }
}

/// Somebody is on the way to a hold. Dropping it lets others be corrected.
#[derive(Debug)]
pub(super) struct Reserved {
    accounts: Accounts,
    id: ChannelId,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let turns = self.accounts.turns();
        let now = Instant::now();
        if let Some(mut turnstile) = turns.channels.get_mut(&self.id) {
            turnstile.reserved = turnstile.reserved.saturating_sub(1);
            turnstile.advance(&Account(&self.accounts, &self.id), now);
        }
        turns.tidy(&self.id, now);
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future as _;
    use std::pin::pin;
    use std::task::{Context, Poll, Wake, Waker};

    use super::*;
    use crate::ledger::{Command, Event, HoldNumber, View};
    use crate::protocol::{Address, ChannelConfig, Domain, Hash, LocalKey, Voucher};

    const PRICE: Amount = Amount::new(10);
    const SECOND: Duration = Duration::from_secs(1);

    /// A channel, and who waits for it.
    struct Site {
        channel: Channel,
        turnstile: Turnstile,
        numbers: u64,
        begun: Instant,
    }

    struct This<'a>(&'a Channel);

    impl Look for This<'_> {
        fn look<R>(&self, read: impl FnOnce(Option<&Channel>) -> R) -> R {
            read(Some(self.0))
        }
    }

    fn key() -> LocalKey {
        LocalKey::from_bytes(&[7; 32]).unwrap()
    }

    fn config() -> ChannelConfig {
        ChannelConfig {
            payer: key().address(),
            payer_authorizer: key().address(),
            receiver: Address([1; 20]),
            receiver_authorizer: Address([2; 20]),
            token: Address([3; 20]),
            withdraw_delay: 900,
            salt: Hash::ZERO,
        }
    }

    fn id() -> ChannelId {
        config().id(&Domain::settlement(84_532))
    }

    fn limits(max_in_flight: u32) -> ledger::Limits {
        ledger::Limits { max_in_flight, ..ledger::Limits::default() }
    }

    fn view() -> View {
        View { block: 1, balance: Amount::new(1_000), ..View::default() }
    }

    fn asked(max: u128) -> Asked {
        let wants = Wants::Service { looked: true };
        Asked { wants, max: Amount::new(max), price: PRICE, order: Order::InTurn, limits: limits(1), most: 3 }
    }

    fn verified(max: u128) -> crate::protocol::VerifiedVoucher {
        let domain = Domain::settlement(84_532);
        let voucher = Voucher { channel: id(), max_claimable: Amount::new(max) }.sign(&domain, &key());
        voucher.verify(&domain, &config()).unwrap()
    }

    impl Site {
        fn new() -> Self {
            let channel = Channel::open(id(), config(), view(), clock::now_s()).unwrap();
            Self { channel, turnstile: Turnstile::default(), numbers: 0, begun: Instant::now() }
        }

        fn at(&self, after: Duration) -> Instant {
            later(self.begun, after)
        }

        /// One that comes then; its number.
        fn enter(&mut self, asked: Asked, after: Duration) -> u64 {
            self.numbers += 1;
            let now = self.at(after);
            self.turnstile.enter(self.numbers, asked, &This(&self.channel), now);
            self.numbers
        }

        fn advance(&mut self, after: Duration) {
            let now = self.at(after);
            self.turnstile.advance(&This(&self.channel), now);
        }

        fn leave(&mut self, number: u64, after: Duration) {
            self.turnstile.leave(number);
            self.advance(after);
        }

        fn hold(&mut self, max: u128, after: Duration) -> HoldNumber {
            let (voucher, order) = (verified(max), Order::InTurn);
            let command = Command::Hold { voucher: &voucher, price: PRICE, order, limits: limits(1) };
            let event = self.channel.decide(&command, clock::now_s()).unwrap();
            self.channel.evolve(&event);
            self.turnstile.held();
            self.advance(after);
            match event {
                Event::Held(hold) => hold.number,
                other => panic!("{other:?}"),
            }
        }

        fn post(&mut self, hold: HoldNumber, after: Duration) {
            let event = self.channel.decide(&Command::Post { hold, charge: PRICE }, clock::now_s()).unwrap();
            self.channel.evolve(&event);
            self.advance(after);
        }

        /// What one is called for: `go`, the base it is told, or nothing.
        fn call(&self, number: u64) -> Option<String> {
            let waiter = self.turnstile.queue.iter().find(|waiter| waiter.number == number).unwrap();
            waiter.call.as_ref().map(|call| match call {
                Call::Go => "go".to_owned(),
                Call::Correct(correction) => correction.as_ref().unwrap().0.charged_cumulative_amount.to_string(),
            })
        }

        #[track_caller]
        fn calls(&self, expected: &[Option<&str>]) {
            let numbers = self.turnstile.queue.iter().map(|waiter| waiter.number);
            let calls: Vec<_> = numbers.map(|number| self.call(number)).collect();
            assert_eq!(calls.iter().map(Option::as_deref).collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn one_out_of_step_is_corrected_at_once_where_nothing_is_going_on() {
        let mut site = Site::new();
        site.enter(asked(70), Duration::ZERO);
        site.calls(&[Some("0")]);
    }

    #[test]
    fn while_one_is_corrected_the_others_wait_until_its_voucher_is_held_and_served() {
        let mut site = Site::new();
        let [first, second, third] = [70, 70, 70].map(|max| site.enter(asked(max), Duration::ZERO));
        site.calls(&[Some("0"), None, None]);
        assert!(matches!(site.turnstile.call(first, site.at(SECOND)), Ok(Called::ToBeCorrected(Some(_)))));
        site.calls(&[None, None]);
        let hold = site.hold(10, SECOND);
        site.calls(&[None, None]);
        assert!(site.turnstile.call(second, site.at(SECOND)).is_err());
        site.post(hold, 2 * SECOND);
        site.calls(&[Some("10"), None]);
        // It left before it heard: the next one is told the same.
        site.leave(second, 2 * SECOND);
        site.calls(&[Some("10")]);
        assert!(matches!(site.turnstile.call(third, site.at(SECOND)), Ok(Called::ToBeCorrected(Some(_)))));
        assert_eq!(site.turnstile.keep(site.at(2 * SECOND)), Keep::Until(site.at(4 * SECOND + DOUBT)));
    }

    #[test]
    fn one_that_fits_goes_before_those_that_do_not() {
        let mut site = Site::new();
        let hold = site.hold(10, Duration::ZERO);
        for max in [10, 30, 20] {
            site.enter(asked(max), Duration::ZERO);
        }
        site.calls(&[None, None, None]);
        site.post(hold, SECOND);
        site.calls(&[None, None, Some("go")]);
        // Nobody is told a base that is about to change; if it does not after all, the first is.
        site.advance(5 * SECOND);
        site.calls(&[None, None, Some("go")]);
        site.leave(3, 5 * SECOND);
        site.calls(&[Some("10"), None]);
    }

    #[test]
    fn a_grant_ends_and_its_end_is_told_to_the_next() {
        let mut site = Site::new();
        let first = site.enter(asked(70), Duration::ZERO);
        assert!(matches!(site.turnstile.call(first, site.at(GRANT * 9)), Ok(Called::ToBeCorrected(_))));
        let [second, third] = [(); 2].map(|()| site.enter(asked(70), Duration::ZERO));
        assert_eq!(site.turnstile.call(second, site.at(GRANT * 9)).err(), Some(site.at(GRANT)));
        assert_eq!(
            site.turnstile.call(third, site.at(SECOND)).err(),
            Some(site.at(SECOND)),
            "its own time is over before"
        );
        site.advance(GRANT - Duration::from_nanos(1));
        site.calls(&[None, None]);
        site.advance(GRANT);
        site.calls(&[Some("0"), None]);
    }

    #[test]
    fn a_client_that_does_not_do_what_it_is_told_is_not_kept_waiting_for_itself() {
        let corrected_at = |site: &mut Site, after: Duration| {
            let number = site.enter(asked(70), after);
            site.call(number).is_some()
        };
        let take = |site: &mut Site| {
            let number = site.numbers;
            assert!(matches!(site.turnstile.call(number, site.at(GRANT * 9)), Ok(Called::ToBeCorrected(_))));
        };
        let mut site = Site::new();
        assert!(corrected_at(&mut site, Duration::ZERO));
        take(&mut site);
        assert!(!corrected_at(&mut site, Duration::ZERO), "it may be one of several");
        site.advance(GRANT);
        site.calls(&[Some("0")]);
        take(&mut site);
        // The grant was in vain, and so is the next: it does not count any more.
        for _ in 0..3 {
            assert!(corrected_at(&mut site, GRANT));
            take(&mut site);
        }
        // Several wait for each other all the same.
        site.turnstile.reserved = 1;
        assert!(!corrected_at(&mut site, GRANT));
        assert!(!corrected_at(&mut site, GRANT));
        site.turnstile.reserved = 0;
        site.advance(2 * GRANT);
        site.calls(&[Some("0"), None]);
        let last = site.numbers;
        site.leave(last - 1, 2 * GRANT);
        site.leave(last, 2 * GRANT);
        // Somebody paid: a grant counts again.
        let hold = site.hold(10, 2 * GRANT);
        site.post(hold, 2 * GRANT);
        assert!(corrected_at(&mut site, 2 * GRANT));
        take(&mut site);
        assert!(!corrected_at(&mut site, 2 * GRANT));
    }

    #[test]
    fn nobody_is_corrected_while_a_deposit_is_on_its_way_to_its_hold() {
        let mut site = Site::new();
        site.turnstile.reserved = 1;
        let first = site.enter(asked(70), Duration::ZERO);
        site.enter(Asked { wants: Wants::Correction, ..asked(10) }, Duration::ZERO);
        site.calls(&[None, None]);
        site.turnstile.reserved = 0;
        site.advance(SECOND);
        site.calls(&[Some("0"), None]);
        site.leave(first, SECOND);
        site.calls(&[Some("0")]);
    }

    #[test]
    fn who_is_only_counted_is_not_called() {
        let mut site = Site::new();
        let number = site.enter(Asked { wants: Wants::Nothing, ..asked(10) }, Duration::ZERO);
        site.calls(&[None]);
        site.turnstile.waiter(number).unwrap().asked = asked(10);
        site.advance(SECOND);
        site.calls(&[Some("go")]);
    }

    #[test]
    fn a_deposit_waits_for_what_is_in_flight_and_is_corrected_if_it_is_for_another_base() {
        let mut site = Site::new();
        let hold = site.hold(10, Duration::ZERO);
        let deposit = |max| Asked { wants: Wants::Deposit, ..asked(max) };
        site.enter(deposit(10), Duration::ZERO);
        site.enter(deposit(20), Duration::ZERO);
        site.calls(&[None, None]);
        site.post(hold, SECOND);
        site.calls(&[None, Some("go")]);
    }

    #[test]
    fn one_place_there_always_is() {
        let mut site = Site::new();
        site.enter(Asked { wants: Wants::Deposit, limits: limits(0), ..asked(10) }, Duration::ZERO);
        site.calls(&[Some("go")]);
    }

    #[test]
    fn who_may_not_ask_about_its_balance_is_corrected_and_not_called_to_go() {
        let beyond = |looked| {
            let mut site = Site::new();
            site.channel =
                Channel::open(id(), config(), View { balance: Amount::new(5), ..view() }, clock::now_s()).unwrap();
            site.enter(Asked { wants: Wants::Service { looked }, ..asked(10) }, Duration::ZERO);
            site.call(1)
        };
        assert_eq!(beyond(true).as_deref(), Some("0"));
        assert_eq!(beyond(false).as_deref(), Some("go"), "to ask");
    }

    // ---- with accounts

    struct Rings(AtomicUsize);

    impl Wake for Rings {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn accounts() -> Accounts {
        let accounts = Accounts::in_memory();
        accounts.observe(id(), &config(), view()).unwrap();
        accounts
    }

    fn hold(accounts: &Accounts, max: u128) -> accounts::Hold {
        let permit = accounts.journal().permit().unwrap();
        let held = accounts.hold(&verified(max), PRICE, Order::InTurn, limits(1), &Arc::from("route"), permit);
        held.unwrap().unwrap()
    }

    fn enter(accounts: &Accounts, asked: Asked) -> Option<Waiting> {
        accounts.turns().enter(accounts, id(), asked, later(Instant::now(), 60 * SECOND))
    }

    fn in_runtime<T>(test: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(test)
    }

    fn is_empty(accounts: &Accounts) -> bool {
        let turns = accounts.turns();
        assert_eq!(turns.count.load(Ordering::SeqCst), turns.channels.len());
        turns.channels.is_empty() && turns.waiting.load(Ordering::SeqCst) == 0
    }

    #[test]
    fn a_request_that_ends_calls_the_next_and_leaves_nothing_behind() {
        in_runtime(async {
            let accounts = accounts();
            let first = hold(&accounts, 10);
            assert!(is_empty(&accounts), "who does not wait is not known here");
            let mut waiting = enter(&accounts, asked(20)).unwrap();
            let rings = Arc::new(Rings(AtomicUsize::new(0)));
            let waker = Waker::from(Arc::clone(&rings));
            {
                let mut called = pin!(waiting.called());
                assert!(called.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
                // Resolved by dropping, as when a client leaves: it was not sent, so it is void and 20 does not fit.
                drop(first);
                assert_eq!(rings.0.load(Ordering::SeqCst), 1);
                let polled = called.as_mut().poll(&mut Context::from_waker(&waker));
                assert!(matches!(polled, Poll::Ready(Called::ToBeCorrected(Some(_)))), "{polled:?}");
            }
            drop(waiting);
            assert!(!is_empty(&accounts), "the grant is remembered");
            drop(hold(&accounts, 10));
            assert!(is_empty(&accounts));
        });
    }

    #[test]
    fn a_call_that_comes_before_it_is_waited_for_is_not_lost() {
        in_runtime(async {
            let accounts = accounts();
            let first = hold(&accounts, 10);
            let mut waiting = enter(&accounts, asked(10)).unwrap();
            drop(first);
            assert!(matches!(waiting.called().await, Called::ToGo));
            assert!(matches!(waiting.called().await, Called::ToGo), "until it has gone");
            let hold = hold(&accounts, 10);
            waiting.ask(asked(10), Instant::now());
            let mut called = pin!(waiting.called());
            assert!(called.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
            hold.post(PRICE).unwrap();
            let polled = called.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            assert!(matches!(polled, Poll::Ready(Called::ToBeCorrected(Some(_)))), "{polled:?}");
        });
    }

    #[test]
    fn whoever_is_called_and_never_gets_in_leaves_in_the_end_and_lets_others_run_meanwhile() {
        in_runtime(async {
            let accounts = accounts();
            let other = tokio::spawn(async {});
            let mut waiting = enter(&accounts, asked(10)).unwrap();
            // Several times as often as a task may go on before it has to let others run.
            for _ in 0..1_000 {
                assert!(matches!(waiting.called().await, Called::ToGo));
                waiting.ask(asked(10), waiting.deadline());
            }
            assert!(other.is_finished());
            drop(waiting);
            let deadline = later(Instant::now(), Duration::from_millis(20));
            let mut waiting = accounts.turns().enter(&accounts, id(), asked(10), deadline).unwrap();
            loop {
                match waiting.called().await {
                    Called::ToGo => waiting.ask(asked(10), deadline),
                    called => break assert!(matches!(called, Called::InVain), "{called:?}"),
                }
            }
        });
    }

    #[test]
    fn only_so_many_wait_and_whoever_leaves_makes_room() {
        let accounts = accounts();
        let _hold = hold(&accounts, 10);
        let mut waiting: Vec<_> = (0..3).map(|_| enter(&accounts, asked(20)).unwrap()).collect();
        assert!(enter(&accounts, asked(20)).is_none());
        assert!(enter(&accounts, Asked { most: 4, ..asked(20) }).is_some(), "that one left at once");
        drop(waiting.swap_remove(1));
        assert!(enter(&accounts, asked(20)).is_some());
        assert_eq!(accounts.turns().waiting.load(Ordering::SeqCst), 2);
        drop(waiting);
        assert!(is_empty(&accounts));
    }

    #[test]
    fn where_nobody_may_wait_one_alone_is_corrected_all_the_same() {
        let accounts = accounts();
        let nobody = |max| Asked { most: 0, ..asked(max) };
        assert!(enter(&accounts, nobody(70)).is_some());
        let _hold = hold(&accounts, 10);
        assert!(enter(&accounts, nobody(70)).is_none());
    }

    #[test]
    fn a_time_that_is_over_ends_the_waiting() {
        in_runtime(async {
            let accounts = accounts();
            let _hold = hold(&accounts, 10);
            let mut waiting = accounts.turns().enter(&accounts, id(), asked(20), Instant::now()).unwrap();
            assert!(matches!(waiting.called().await, Called::InVain));
        });
    }

    #[test]
    fn grants_nobody_waits_for_are_bounded() {
        let accounts = Accounts::in_memory();
        let correction = Asked { wants: Wants::Correction, ..asked(10) };
        let nth = |n: usize| {
            let mut bytes = [0; 32];
            bytes[..8].copy_from_slice(&n.to_be_bytes());
            ChannelId(bytes)
        };
        for n in 0..MAX_LINGERING + 10 {
            let mut waiting = accounts.turns().enter(&accounts, nth(n), correction, Instant::now()).unwrap();
            let called = pin!(waiting.called()).poll(&mut Context::from_waker(Waker::noop()));
            assert!(matches!(called, Poll::Ready(Called::ToBeCorrected(None))), "an unknown channel has no state");
        }
        let turns = accounts.turns();
        assert!(turns.channels.len() <= MAX_LINGERING, "{}", turns.channels.len());
        assert_eq!(turns.count.load(Ordering::SeqCst), turns.channels.len());
        assert!(!turns.channels.contains_key(&nth(0)), "the oldest is forgotten first");
        assert!(turns.channels.contains_key(&nth(MAX_LINGERING + 9)));
    }

    #[test]
    fn of_many_threads_each_is_called_in_the_end() {
        let accounts = accounts();
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let accounts = accounts.clone();
                std::thread::spawn(move || {
                    in_runtime(async {
                        for _ in 0..10 {
                            // Out of step on purpose: each has to be told the base, and to come back with it.
                            let mut waiting = enter(&accounts, Asked { most: 8, ..asked(999) }).unwrap();
                            let Called::ToBeCorrected(Some(correction)) = waiting.called().await else { panic!() };
                            drop(waiting);
                            let base = correction.0.charged_cumulative_amount;
                            let hold = hold(&accounts, base.checked_add(PRICE).unwrap().units());
                            tokio::task::yield_now().await;
                            hold.post(PRICE).unwrap();
                        }
                    });
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(accounts.statement(&id()).unwrap().charged, Amount::new(8 * 10 * 10));
        assert!(is_empty(&accounts));
    }
}
