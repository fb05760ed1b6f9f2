//! Flights: every transaction that is on its way, and the one place where a key's nonces are given out.
//!
//! A flight is one nonce of one sender with one purpose, in one or more versions: the transaction as it was signed first,
//! and what was signed in its place to pay more. At most one of them will ever be in a block.
//!
//! **Owns** the nonces. **Promises** that a nonce which a flight has is given to nothing else, whatever a node says of
//! counts; that each version is in the books before it leaves; and that each flight has a pilot ([`super::pilot`]) that
//! brings it to its end. **Does not** decide what to send, nor repeat a purpose under another nonce: whoever wanted it
//! hears that the flight is lost, and decides.
//!
//! The nonce for a flight is the lowest that no block and no flight has. So a gap, which a reorganisation, a lying node or
//! a refused transaction can leave below a flight, is filled by whatever is sent next; where nothing is, the pilot of the
//! flight above it fills it with a settlement, which is cheap and does no harm however often. Nothing else is repeated
//! for a gap: a deposit or a refund under a second nonce would revert and cost as much.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use super::record::CallError;
use super::vitals::InFlight;
use super::{Office, pilot};
use crate::chain::{Bid, Call, Chain, ChainError, Mined};
use crate::protocol::{Address, Amount, ChannelId};
use crate::store::{Purpose, Transaction};

/// How many nonces are tried for one call. Each that turns out to be used says that a node lied, or that somebody else
/// has the key.
const MAX_NONCE_TRIES: usize = 8;

/// For how long our own count is believed where a node's is lower. A node that is behind catches up long before; after a
/// reorganisation the lower count is the right one.
const COUNT_TRUST: Duration = Duration::from_secs(120);

/// How often a node is asked again that counts more than was ever sent from here, before it is believed.
const MAX_DOUBTS: usize = 3;

/// How many missing nonces are filled at once. A flight further ahead than this has its nonce from a node that lied; it
/// is given up, and its nonce is free again.
pub(super) const MAX_GAP: u64 = 16;

/// One nonce of one sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Slot {
    pub(super) sender: Address,
    pub(super) nonce: u64,
}

impl Slot {
    pub(super) fn of(transaction: &Transaction) -> Self {
        Self { sender: transaction.sender, nonce: transaction.nonce }
    }
}

/// How far a flight has come.
#[derive(Debug, Clone)]
pub(super) enum Stage {
    /// No block has it.
    Aloft,
    /// A block has one of its versions, and what that changed is booked. It may be dropped by a reorganisation while it
    /// has few confirmations; then the flight is aloft again.
    Mined(Box<Mined>),
    /// Nothing is expected of it any more.
    Lost {
        /// Whether it may land all the same: its nonce is far ahead and nobody fills the gap.
        may_land: bool,
    },
    /// Nobody follows it any more in this process; the next one does.
    Left,
}

/// A flight.
#[derive(Debug)]
pub(super) struct Flight {
    /// Every version that may land, the newest last; never empty.
    pub(super) versions: Vec<Transaction>,
    /// Whether it is in the way of something that must not come late.
    pub(super) urgent: bool,
    /// Whether the newest version bids accordingly.
    pub(super) bid_urgently: bool,
    /// What keeps it waiting, for operators.
    pub(super) trouble: Option<String>,
    stage: watch::Sender<Stage>,
}

impl Flight {
    fn new(versions: Vec<Transaction>, urgent: bool) -> Self {
        Self { versions, urgent, bid_urgently: urgent, trouble: None, stage: watch::Sender::new(Stage::Aloft) }
    }

    fn newest(&self) -> &Transaction {
        self.versions.last().expect("a flight has a version")
    }

    /// Whether no block has it, and one still may.
    fn is_aloft(&self) -> bool {
        matches!(*self.stage.borrow(), Stage::Aloft)
    }

    /// Whether it will have done what it is for, once it is at its end.
    fn counts(&self) -> bool {
        match &*self.stage.borrow() {
            Stage::Aloft => true,
            Stage::Mined(mined) => mined.success,
            Stage::Lost { .. } | Stage::Left => false,
        }
    }
}

/// Somebody waits for a flight. Dropping it changes nothing for the flight.
#[derive(Debug)]
pub(super) struct Seat {
    /// The version that was the newest when the seat was taken.
    pub(super) transaction: Transaction,
    stage: watch::Receiver<Stage>,
}

impl Seat {
    /// How far the flight has come.
    pub(super) fn stage(&self) -> Stage {
        self.stage.borrow().clone()
    }

    /// Waits until that changes; for ever, if it never will.
    pub(super) async fn changed(&mut self) {
        if self.stage.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Waits until a block has it, however long that takes.
    ///
    /// # Errors
    /// [`CallError::Lost`], [`CallError::Left`].
    pub(super) async fn landed(&mut self) -> Result<Mined, CallError> {
        let transaction = self.transaction.hash;
        match self.stage.wait_for(|stage| !matches!(stage, Stage::Aloft)).await.as_deref() {
            Ok(Stage::Mined(mined)) => Ok((**mined).clone()),
            Ok(Stage::Lost { .. }) => Err(CallError::Lost { transaction }),
            Ok(Stage::Aloft | Stage::Left) | Err(_) => Err(CallError::Left { transaction }),
        }
    }
}

/// The lowest nonce that may be free, by what happened here, and when that was learnt.
#[derive(Debug, Clone, Copy)]
struct Count {
    next: u64,
    learnt: Instant,
}

impl Count {
    fn is_fresh(&self) -> bool {
        self.learnt.elapsed() < COUNT_TRUST
    }
}

/// All flights. Cheap to clone; all clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Flights(Arc<Board>);

#[derive(Debug)]
struct Board {
    /// Held while a nonce is chosen and its transaction leaves.
    sending: tokio::sync::Mutex<()>,
    /// Deposits come in any number, and queue here, so that a claim waits for one of them at most.
    deposits: Semaphore,
    count: Mutex<Option<Count>>,
    aloft: Mutex<BTreeMap<Slot, Flight>>,
    /// How often somebody was in a hurry.
    calls: watch::Sender<u64>,
}

impl Default for Flights {
    fn default() -> Self {
        Self(Arc::new(Board {
            sending: tokio::sync::Mutex::default(),
            deposits: Semaphore::new(1),
            count: Mutex::default(),
            aloft: Mutex::default(),
            calls: watch::Sender::new(0),
        }))
    }
}

impl Flights {
    fn aloft(&self) -> MutexGuard<'_, BTreeMap<Slot, Flight>> {
        self.0.aloft.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a flight on the board; the newest version last.
    pub(super) fn board(&self, slot: Slot, versions: Vec<Transaction>, urgent: bool) -> Seat {
        let transaction = versions.last().cloned().expect("a flight has a version");
        let flight = Flight::new(versions, urgent);
        let stage = flight.stage.subscribe();
        self.aloft().insert(slot, flight);
        Seat { transaction, stage }
    }

    /// Looks at a flight, or changes it.
    pub(super) fn with<R>(&self, slot: Slot, look: impl FnOnce(&mut Flight) -> R) -> Option<R> {
        self.aloft().get_mut(&slot).map(look)
    }

    /// Tells those who wait how far a flight has come.
    pub(super) fn publish(&self, slot: Slot, stage: Stage) {
        self.with(slot, |flight| flight.stage.send_replace(stage));
    }

    /// Takes a flight that is at its end off the board, and tells those who wait.
    pub(super) fn end(&self, slot: Slot, stage: Stage) {
        if let Some(flight) = self.aloft().remove(&slot) {
            flight.stage.send_replace(stage);
        }
    }

    /// Waits until nobody waits for a flight any more.
    pub(super) async fn unattended(&self, slot: Slot) {
        if let Some(stage) = self.with(slot, |flight| flight.stage.clone()) {
            stage.closed().await;
        }
    }

    /// Whether no flight of the same sender is in the way of this one.
    pub(super) fn is_first(&self, slot: Slot) -> bool {
        let below = Slot { nonce: 0, ..slot }..slot;
        !self.aloft().range(below).any(|(_, flight)| flight.is_aloft())
    }

    /// Whether this one is in the way of another flight of the same sender.
    pub(super) fn is_awaited(&self, slot: Slot) -> bool {
        let above = Slot { nonce: slot.nonce.saturating_add(1), ..slot }..=Slot { nonce: u64::MAX, ..slot };
        self.aloft().range(above).any(|(_, flight)| flight.is_aloft())
    }

    /// What flights claim of each channel in all, those of other senders only where asked for.
    pub(super) fn claiming(&self, sender: Option<Address>, others_too: bool) -> HashMap<ChannelId, Amount> {
        let mut claiming = HashMap::new();
        for (slot, flight) in &*self.aloft() {
            if flight.counts() && (others_too || Some(slot.sender) == sender) {
                for row in flight.newest().purpose.rows() {
                    let most = claiming.entry(row.channel).or_insert(Amount::ZERO);
                    *most = row.total_claimed.max(*most);
                }
            }
        }
        claiming
    }

    /// Whether a settlement for a receiver waits for a block; one of another sender only where asked for: nobody can make
    /// it pay more, and no block may ever have it.
    pub(super) fn is_settling(&self, to: Address, of: Address, sender: Address, others_too: bool) -> bool {
        let pays = |purpose: &Purpose| matches!(purpose, Purpose::Settle { receiver, token } if (*receiver, *token) == (to, of));
        let counts = |slot: &Slot| others_too || slot.sender == sender;
        let aloft = self.aloft();
        aloft.iter().any(|(slot, flight)| counts(slot) && flight.is_aloft() && pays(&flight.newest().purpose))
    }

    /// How often somebody was in a hurry so far.
    pub(super) fn calls(&self) -> u64 {
        *self.0.calls.borrow()
    }

    /// Tells when somebody is in a hurry.
    pub(super) fn listen(&self) -> watch::Receiver<u64> {
        self.0.calls.subscribe()
    }

    /// What is on its way, for operators.
    pub(super) fn list(&self) -> Vec<InFlight> {
        let in_flight = |(slot, flight): (&Slot, &Flight)| InFlight {
            transaction: flight.newest().hash,
            purpose: flight.newest().purpose.as_str().to_owned(),
            nonce: slot.nonce,
            since: flight.versions.first().map_or(0, |first| first.signed_at),
            replaced: u32::try_from(flight.versions.len().saturating_sub(1)).unwrap_or(u32::MAX),
            block: match &*flight.stage.borrow() {
                Stage::Mined(mined) => Some(mined.block),
                Stage::Aloft | Stage::Lost { .. } | Stage::Left => None,
            },
        };
        self.aloft().iter().map(in_flight).collect()
    }

    /// The flight that has waited longest among those that something keeps waiting: since when, Unix seconds, and what.
    /// A deposit counts only where something of ours waits behind it.
    pub(super) fn trouble(&self) -> Option<(u64, String)> {
        let aloft = self.aloft();
        let ours = |flight: &Flight| !matches!(flight.newest().purpose, Purpose::Deposit { .. });
        let waiting = |slot: &Slot| {
            let from_here = *slot..=Slot { nonce: u64::MAX, ..*slot };
            aloft.range(from_here).any(|(_, flight)| flight.is_aloft() && ours(flight))
        };
        let troubled = aloft.iter().filter(|(_, flight)| flight.is_aloft()).filter_map(|(slot, flight)| {
            let (first, trouble) = flight.versions.first().zip(flight.trouble.as_ref()).filter(|_| waiting(slot))?;
            let text = format!("{} transaction {}: {trouble}", first.purpose.as_str(), flight.newest().hash);
            Some((first.signed_at, text))
        });
        troubled.min_by_key(|(since, _)| *since)
    }

    /// Notes that all nonces below this are used, as far as we saw.
    pub(super) fn learn(&self, next: u64) {
        let mut count = self.count();
        if !count.is_some_and(|count| count.is_fresh() && count.next > next) {
            *count = Some(Count { next, learnt: Instant::now() });
        }
    }

    /// Notes that our own count was wrong: there is a gap below a flight.
    pub(super) fn unlearn(&self) {
        *self.count() = None;
    }

    fn count(&self) -> MutexGuard<'_, Option<Count>> {
        self.0.count.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The highest nonce a block may have after all that was sent from here, if anything is known of that.
    fn most(&self, sender: Address) -> Option<u64> {
        let next = (*self.count())?.next;
        let above = Slot { sender, nonce: 0 }..=Slot { sender, nonce: u64::MAX };
        let highest = self.aloft().range(above).next_back().map(|(slot, _)| slot.nonce.saturating_add(1));
        Some(highest.map_or(next, |highest| highest.max(next)))
    }

    /// The lowest nonce that no flight has, from one on.
    fn first_free(&self, sender: Address, mut nonce: u64) -> u64 {
        let aloft = self.aloft();
        while aloft.contains_key(&Slot { sender, nonce }) {
            nonce = nonce.saturating_add(1);
        }
        nonce
    }
}

impl<C: Chain> Office<C> {
    /// Sends a call and waits until a block has it, however long that takes. What it changed is booked then.
    ///
    /// # Errors
    /// It was not sent, or is lost; [`CallError::Left`] where this process stops meanwhile.
    pub(super) async fn carry_out(&self, call: &Call, purpose: Purpose, urgent: bool) -> Result<Mined, CallError> {
        let mut seat = self.launch(call, purpose, urgent).await?;
        tokio::select! {
            biased;
            mined = seat.landed() => mined,
            latched = self.accounts().journal().latched() => Err(CallError::Withheld(latched.into())),
        }
    }

    /// Writes a call's transaction down, sends it, and has it followed to its end.
    ///
    /// # Errors
    /// It certainly was not sent; that is in the books too.
    ///
    /// # Cancellation
    /// It may have been sent, and is in the books as unfinished until the next start. Spawn it.
    pub(super) async fn launch(&self, call: &Call, purpose: Purpose, urgent: bool) -> Result<Seat, CallError> {
        self.may_sign()?;
        let sender = self.sender();
        let board = &self.flights.0;
        let _queue = match purpose {
            // What the contract would refuse does not even queue.
            Purpose::Deposit { .. } => {
                self.chain.simulate(call).await?;
                board.deposits.acquire().await.ok()
            }
            Purpose::Claim { .. } | Purpose::Settle { .. } | Purpose::Refund { .. } => None,
        };
        let _sending = board.sending.lock().await;
        let mut tries = 0;
        loop {
            let nonce = self.free_nonce(sender).await?;
            match self.take_off(call, purpose.clone(), urgent, nonce).await {
                Err(CallError::Chain(ChainError::NonceUsed { nonce })) if tries < MAX_NONCE_TRIES => {
                    tracing::warn!(nonce, "a nonce is used already; the node is behind, or somebody else has the key");
                    self.flights.learn(nonce.saturating_add(1));
                    tries += 1;
                }
                sent => return sent,
            }
        }
    }

    /// Sends a call with a nonce that no flight has.
    async fn take_off(&self, call: &Call, purpose: Purpose, urgent: bool, nonce: u64) -> Result<Seat, CallError> {
        let transaction = self.sign_and_send(call, purpose, self.bid(urgent), nonce).await?;
        let slot = Slot::of(&transaction);
        let seat = self.flights.board(slot, vec![transaction], urgent);
        self.follow(slot);
        Ok(seat)
    }

    /// Whose nonces flights have: those of the account that pays for transactions. What a facilitator sends for us is
    /// nobody's, and has nonces of its own making.
    pub(super) fn sender(&self) -> Address {
        self.chain.sender().unwrap_or(Address::ZERO)
    }

    /// Has a flight on the board brought to its end.
    pub(super) fn follow(&self, slot: Slot) {
        self.tasks.spawn(pilot::fly(self.clone(), slot));
    }

    /// What may be paid.
    pub(super) fn bid(&self, urgent: bool) -> Bid {
        let sending = &self.settings.sending;
        let ceiling_wei =
            if urgent { sending.urgent_max_fee_wei.max(sending.max_fee_wei) } else { sending.max_fee_wei };
        Bid { ceiling_wei, urgent }
    }

    /// Something must not come late: all that waits for a block is in its way, and may cost more from now on. The pilots
    /// bid at once, and a round that is in progress looks again at what to claim first.
    pub(super) fn hurry(&self) {
        for flight in self.flights.aloft().values_mut() {
            flight.urgent |= flight.is_aloft();
        }
        self.flights.0.calls.send_modify(|calls| *calls = calls.wrapping_add(1));
    }

    /// The lowest nonce that neither a block nor a flight has.
    async fn free_nonce(&self, sender: Address) -> Result<u64, ChainError> {
        let flights = &self.flights;
        let mut doubts = 0;
        let mined = loop {
            let mined = self.chain.nonces().await?.mined;
            let beyond = flights.most(sender).is_some_and(|most| mined > most);
            if !beyond {
                break mined;
            }
            if doubts >= MAX_DOUBTS {
                tracing::warn!(mined, "transactions of this key were made elsewhere, says the node");
                break mined;
            }
            doubts += 1;
            tokio::time::sleep(self.settings.poll).await;
        };
        let ours = flights.count().filter(Count::is_fresh).map_or(0, |count| count.next);
        let next = mined.max(ours);
        if ours <= mined {
            flights.learn(mined);
        }
        Ok(flights.first_free(sender, next))
    }

    /// Fills the gap between the nonces that blocks have and a flight, whoever left it.
    pub(super) async fn fill_gap(&self, mined: u64, slot: Slot) {
        let Some((receiver, token)) = self.gate.payees().first().copied() else { return };
        self.flights.unlearn();
        for nonce in (mined..slot.nonce).take(usize::try_from(MAX_GAP).unwrap_or(usize::MAX)) {
            let _sending = self.flights.0.sending.lock().await;
            if self.flights.with(Slot { nonce, ..slot }, |_| ()).is_some() || self.may_sign().is_err() {
                return;
            }
            let urgent = self.flights.with(slot, |flight| flight.urgent).unwrap_or_default();
            tracing::warn!(nonce, "nobody has a nonce that a transaction waits for; it is filled with a settlement");
            let (call, purpose) = (Call::Settle { receiver, token }, Purpose::Settle { receiver, token });
            match self.take_off(&call, purpose, urgent, nonce).await {
                Ok(_) => {}
                Err(CallError::Chain(ChainError::NonceUsed { .. })) => self.flights.learn(nonce.saturating_add(1)),
                Err(error) => return tracing::warn!(nonce, %error, "a missing nonce cannot be filled"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Hash;
    use crate::store::ClaimedRow;

    const SENDER: Address = Address([1; 20]);

    fn slot(nonce: u64) -> Slot {
        Slot { sender: SENDER, nonce }
    }

    fn claim(nonce: u64, total: u128) -> Transaction {
        let rows = vec![ClaimedRow { channel: ChannelId([7; 32]), total_claimed: Amount::new(total) }];
        let raw = vec![u8::try_from(nonce).unwrap()];
        Transaction { hash: Hash::ZERO, sender: SENDER, nonce, raw, signed_at: 1, purpose: Purpose::Claim { rows } }
    }

    fn mined(success: bool) -> Stage {
        let (hash, block_hash) = (Hash::ZERO, Hash::ZERO);
        let mined = Mined { hash, block: 5, block_hash, success, gas_used: 1, fee_wei: None, events: Vec::new() };
        Stage::Mined(Box::new(mined))
    }

    #[test]
    fn a_nonce_that_a_flight_has_is_not_free_and_a_gap_is_the_next() {
        let flights = Flights::default();
        for nonce in [4, 5, 7] {
            drop(flights.board(slot(nonce), vec![claim(nonce, 1)], false));
        }
        let free = |from| flights.first_free(SENDER, from);
        assert_eq!([3, 4, 6, 7, 8].map(free), [3, 6, 6, 8, 8]);
        assert_eq!(flights.first_free(Address([2; 20]), 4), 4, "of another sender");
        // Mined and not confirmed: it may come back.
        flights.publish(slot(4), mined(true));
        assert_eq!(free(4), 6);
        flights.end(slot(4), mined(true));
        assert_eq!(free(4), 4);
    }

    #[test]
    fn the_lowest_flight_without_a_block_is_first_and_the_others_wait_for_it() {
        let flights = Flights::default();
        for nonce in [4, 5, 6] {
            drop(flights.board(slot(nonce), vec![claim(nonce, 1)], false));
        }
        let first = || [4, 5, 6].map(|nonce| flights.is_first(slot(nonce)));
        assert_eq!(first(), [true, false, false]);
        assert_eq!([4, 5, 6].map(|nonce| flights.is_awaited(slot(nonce))), [true, true, false]);
        flights.publish(slot(4), mined(true));
        assert_eq!(first(), [true, true, false]);
    }

    #[test]
    fn a_deposit_keeps_nobody_waiting_unless_something_of_ours_is_behind_it() {
        let flights = Flights::default();
        let config = crate::protocol::ChannelConfig {
            payer: Address([9; 20]),
            payer_authorizer: Address([9; 20]),
            receiver: Address([1; 20]),
            receiver_authorizer: Address([2; 20]),
            token: Address([3; 20]),
            withdraw_delay: 900,
            salt: Hash::ZERO,
        };
        let purpose = Purpose::Deposit { config, amount: Amount::new(1), salt: Hash::ZERO, valid_before: 1 };
        drop(flights.board(slot(4), vec![Transaction { purpose, ..claim(4, 1) }], false));
        flights.with(slot(4), |flight| flight.trouble = Some("too dear".to_owned()));
        assert_eq!(flights.trouble(), None);
        drop(flights.board(slot(5), vec![claim(5, 1)], false));
        assert!(flights.trouble().is_some_and(|(since, text)| since == 1 && text.contains("too dear")));
        flights.publish(slot(5), mined(true));
        assert_eq!(flights.trouble(), None);
    }

    #[test]
    fn a_settlement_of_a_key_that_is_gone_does_not_stand_for_one_of_ours_for_ever() {
        let flights = Flights::default();
        let (to, of, other) = (Address([5; 20]), Address([6; 20]), Address([2; 20]));
        let settle = || Transaction { purpose: Purpose::Settle { receiver: to, token: of }, ..claim(1, 1) };
        drop(flights.board(Slot { sender: other, nonce: 1 }, vec![settle()], false));
        assert!(flights.is_settling(to, of, SENDER, true) && !flights.is_settling(to, of, SENDER, false));
        drop(flights.board(slot(1), vec![settle()], false));
        assert!(flights.is_settling(to, of, SENDER, false) && !flights.is_settling(of, to, SENDER, true));
        flights.publish(slot(1), mined(true));
        assert!(!flights.is_settling(to, of, SENDER, false));
    }

    #[test]
    fn rows_are_in_flight_until_their_claim_is_known_not_to_have_claimed_them() {
        let flights = Flights::default();
        let claiming = |flights: &Flights| flights.claiming(Some(SENDER), false).into_values().collect::<Vec<_>>();
        drop(flights.board(slot(4), vec![claim(4, 30)], false));
        drop(flights.board(slot(5), vec![claim(5, 20)], false));
        assert_eq!(claiming(&flights), [Amount::new(30)], "the most of both");
        flights.publish(slot(4), mined(false));
        assert_eq!(claiming(&flights), [Amount::new(20)], "one reverted");
        flights.publish(slot(5), mined(true));
        assert_eq!(claiming(&flights), [Amount::new(20)], "a reorganisation may drop it");
        flights.end(slot(5), mined(true));
        assert_eq!(claiming(&flights), []);
        let other = Address([2; 20]);
        drop(flights.board(Slot { sender: other, nonce: 1 }, vec![claim(1, 9)], false));
        assert_eq!(claiming(&flights), []);
        assert_eq!(flights.claiming(Some(SENDER), true).len(), 1);
    }
}
