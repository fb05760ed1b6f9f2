//! Many requests in flight on one channel, against a naive ledger that colours the units of the channel's line one by
//! one; and the rules of it in tables.
//!
//! The seed of a failure is printed and kept by proptest.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap, HashSet};

use peaje::ledger::{
    Channel, Command, Event, HoldNumber, LatestVoucher, Limits, MAX_SPENT_SEGMENTS, Reject, SentRefund, View,
    Violation, Withdrawal,
};
use peaje::protocol::voucher::PayerEvidence;
use peaje::protocol::x402::Order::{self, Ahead, InTurn};
use peaje::protocol::x402::RefundRequest;
use peaje::protocol::{Address, Amount, ChannelConfig, Domain, Hash, LocalKey, VerifiedVoucher, Voucher};
use proptest::prelude::*;

fn amount(value: i128) -> Amount {
    Amount::new(u128::try_from(value).unwrap())
}

fn units(amount: Amount) -> i128 {
    i128::try_from(amount.units()).unwrap()
}

/// What is risked with a wallet here.
const EXPOSURE: i128 = 60;

fn limits(max_in_flight: u32) -> Limits {
    Limits { max_in_flight, max_wallet_exposure: amount(EXPOSURE), ..Limits::default() }
}

/// A channel, and its payer's pen. Signatures are kept: signing is what takes the time.
struct Desk {
    channel: Channel,
    config: ChannelConfig,
    limits: Limits,
    block: u64,
}

thread_local! {
    static SIGNED: RefCell<HashMap<(bool, u128), VerifiedVoucher>> = RefCell::default();
}

impl Desk {
    fn new(max_in_flight: u32, balance: i128) -> Self {
        Self::of(false, max_in_flight, balance)
    }

    fn of(wallet: bool, max_in_flight: u32, balance: i128) -> Self {
        let key = LocalKey::from_bytes(&[7; 32]).unwrap();
        let config = ChannelConfig {
            payer: key.address(),
            payer_authorizer: if wallet { Address::ZERO } else { key.address() },
            receiver: Address([1; 20]),
            receiver_authorizer: Address([2; 20]),
            token: Address([3; 20]),
            withdraw_delay: 900,
            salt: Hash::ZERO,
        };
        let id = config.id(&Domain::settlement(84532));
        let view = View { block: 1, balance: amount(balance), ..View::default() };
        let channel = Channel::open(id, config, view, 0).unwrap();
        Self { channel, config, limits: limits(max_in_flight), block: 1 }
    }

    fn voucher(&self, max: i128) -> VerifiedVoucher {
        self.voucher_at(amount(max))
    }

    fn voucher_at(&self, max_claimable: Amount) -> VerifiedVoucher {
        let key = (self.config.payer_authorizer.is_zero(), max_claimable.units());
        let sign = || {
            let domain = Domain::settlement(84532);
            let voucher = Voucher { channel: self.config.id(&domain), max_claimable };
            let signed = voucher.sign(&domain, &LocalKey::from_bytes(&[7; 32]).unwrap());
            signed.verify_by_payer(&domain, &self.config, PayerEvidence::NoCode).unwrap()
        };
        SIGNED.with_borrow_mut(|signed| signed.entry(key).or_insert_with(sign).clone())
    }

    fn run(&mut self, command: &Command<'_>) -> Result<Event, Reject> {
        let event = self.channel.decide(command, 0)?;
        self.channel.evolve(&event);
        Ok(event)
    }

    fn hold(&mut self, order: Order, max: i128, price: i128) -> Result<HoldNumber, Reject> {
        let (voucher, price, limits) = (self.voucher(max), amount(price), self.limits);
        let preview = self.channel.preview_hold(amount(max), price, order, limits, 0);
        let held = self.run(&Command::Hold { voucher: &voucher, price, order, limits });
        assert_eq!(held.as_ref().map(|_| ()).map_err(|reject| *reject), preview, "the preview is the verdict");
        held.map(|event| match event {
            Event::Held(hold) => hold.number,
            other => panic!("{other:?}"),
        })
    }

    fn post(&mut self, hold: HoldNumber, charge: i128) -> Result<(), Reject> {
        self.run(&Command::Post { hold, charge: amount(charge) }).map(|_| ())
    }

    fn void(&mut self, hold: HoldNumber) -> Result<(), Reject> {
        self.run(&Command::Void { hold }).map(|_| ())
    }

    /// Serves a request whole.
    fn serve(&mut self, order: Order, max: i128, price: i128) -> Result<(), Reject> {
        let hold = self.hold(order, max, price)?;
        self.post(hold, price)
    }

    fn observe(&mut self, balance: i128, claimed: i128) -> Result<(), Reject> {
        self.block += 1;
        let view =
            View { block: self.block, balance: amount(balance), total_claimed: amount(claimed), ..View::default() };
        self.run(&Command::Observe { view }).map(|_| ())
    }

    /// The process dies and opens its books again.
    fn crash(&mut self) {
        self.channel = Channel::restore(self.channel.snapshot()).unwrap();
    }

    fn charged(&self) -> i128 {
        units(self.channel.charged())
    }

    fn base(&self, price: i128) -> i128 {
        units(self.channel.base(amount(price)))
    }

    fn spent_up_to(&self) -> Option<i128> {
        self.channel.spent_up_to().map(units)
    }
}

/// The naive ledger: every unit of the line has its own fate.
#[derive(Debug, Clone, Default)]
struct Naive {
    most: usize,
    wallet: bool,
    balance: i128,
    claimed: i128,
    charged: i128,
    /// The highest ceiling that was posted and still covers something.
    signed: Option<i128>,
    /// The highest ceiling spent among several.
    line: i128,
    /// Number, ceiling, price, and whether it is one of several.
    holds: Vec<(HoldNumber, i128, i128)>,
    /// The floor and the spent units, from when there were several on.
    several: Option<(i128, BTreeSet<i128>)>,
}

impl Naive {
    fn floor(&self) -> i128 {
        let plain = self.charged.max(self.signed.unwrap_or(0)).max(self.line);
        self.several.as_ref().map_or(plain, |(floor, _)| *floor)
    }

    fn top(&self) -> i128 {
        let held = self.holds.iter().map(|(_, max, _)| *max).max().unwrap_or(0);
        let spent = self.several.iter().filter_map(|(_, spent)| spent.last().copied()).max().unwrap_or(0);
        self.floor().max(held).max(spent).max(self.charged).max(self.line)
    }

    fn base(&self, price: i128) -> i128 {
        if !self.holds.is_empty() {
            self.top()
        } else if self.charged + price > self.line {
            self.charged
        } else {
            self.line + 1 - price
        }
    }

    fn is_free(&self, unit: i128) -> bool {
        let held = self.holds.iter().any(|(_, max, price)| max - price < unit && unit <= *max);
        let spent = self.several.as_ref().is_some_and(|(_, spent)| spent.contains(&unit));
        unit > self.floor() && !held && !spent
    }

    fn judge(&self, order: Order, max: i128, price: i128) -> Result<(), Reject> {
        let held: i128 = self.holds.iter().map(|(_, _, price)| price).sum();
        let ahead = order == Ahead && self.most > 1;
        match () {
            () if price == 0 => Err(Reject::ZeroPrice),
            () if self.holds.len() >= self.most => Err(Reject::Busy),
            () if !ahead && max != self.base(price) + price => Err(Reject::AmountMismatch),
            () if ahead && !(max - price + 1..=max).all(|unit| self.is_free(unit)) => Err(Reject::Spent),
            () if ahead && max - price > self.top() + i128::try_from(self.most - 1).unwrap() * price => {
                Err(Reject::TooFarAhead)
            }
            () if self.balance == 0 => Err(Reject::NoDeposit),
            () if max > self.balance => Err(Reject::ExceedsBalance),
            () if self.wallet && self.charged - self.claimed + held + price > EXPOSURE => Err(Reject::WalletExposed),
            () => Ok(()),
        }
    }

    fn hold(&mut self, number: HoldNumber, order: Order, max: i128, price: i128) {
        if order == InTurn || self.most == 1 {
            if self.holds.is_empty() {
                self.several = None;
            } else {
                self.several.get_or_insert((self.floor(), BTreeSet::new()));
            }
        } else {
            let floor = self.floor();
            self.several.get_or_insert((floor, BTreeSet::new()));
        }
        self.holds.push((number, max, price));
    }

    fn take(&mut self, number: HoldNumber) -> Option<(i128, i128)> {
        let place = self.holds.iter().position(|(other, ..)| *other == number)?;
        let (_, max, price) = self.holds.remove(place);
        Some((max, price))
    }

    fn post(&mut self, number: HoldNumber, charge: i128) -> Result<(), Reject> {
        let price = self.holds.iter().find(|(other, ..)| *other == number).ok_or(Reject::NoSuchHold)?.2;
        if charge > price {
            return Err(Reject::ChargeExceedsHold);
        }
        let (max, price) = self.take(number).unwrap();
        match &mut self.several {
            Some((_, spent)) => {
                spent.extend(max - price + 1..=max);
                self.line = self.line.max(max);
            }
            None if max - price > self.charged => self.line = self.line.max(max),
            None => {}
        }
        self.charged += charge;
        self.signed = self.signed.max(Some(max));
        self.forget();
        Ok(())
    }

    fn observe(&mut self, balance: i128, claimed: i128) -> Result<(), Reject> {
        if claimed > balance {
            return Err(Reject::ImpossibleView);
        }
        (self.balance, self.claimed) = (balance, claimed);
        if claimed > self.charged {
            self.charged = claimed;
            self.holds.retain(|(_, max, price)| max - price >= claimed);
            if let Some((floor, _)) = &mut self.several {
                *floor = claimed.max(*floor);
            }
            self.forget();
        }
        self.signed = self.signed.filter(|signed| *signed >= self.charged);
        Ok(())
    }

    /// What several leave behind matters above what was charged.
    fn forget(&mut self) {
        if self.line <= self.charged {
            self.line = 0;
        }
    }

    fn crash(&mut self) {
        self.holds.clear();
        self.several = None;
    }
}

#[derive(Debug, Clone)]
enum Step {
    InTurn {
        price: u8,
        skew: i8,
    },
    Ahead {
        price: u8,
        above: i8,
    },
    /// A voucher that was taken before, for its own price or another.
    Again {
        which: usize,
        order: bool,
        price: Option<u8>,
    },
    Post {
        which: usize,
        part: u8,
    },
    Void {
        which: usize,
    },
    Refund,
    Deposit {
        amount: u8,
    },
    /// We claim, or another instance with our key does.
    Claim {
        others: u8,
    },
    /// What was done is on the disk.
    Commit,
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    let price = || prop_oneof![6 => Just(3u8), 4 => 1u8..8, 1 => Just(0u8)];
    prop_oneof![
        5 => (price(), prop_oneof![9 => Just(0i8), 1 => -2i8..3]).prop_map(|(price, skew)| Step::InTurn { price, skew }),
        9 => (price(), prop_oneof![5 => Just(0i8), 3 => -12i8..13, 1 => 12i8..40])
            .prop_map(|(price, above)| Step::Ahead { price, above }),
        6 => (any::<usize>(), any::<bool>(), proptest::option::of(1u8..9))
            .prop_map(|(which, order, price)| Step::Again { which, order, price }),
        9 => (any::<usize>(), prop_oneof![4 => Just(255u8), 2 => any::<u8>(), 1 => Just(0u8)])
            .prop_map(|(which, part)| Step::Post { which, part }),
        4 => any::<usize>().prop_map(|which| Step::Void { which }),
        1 => Just(Step::Refund),
        2 => (0u8..60).prop_map(|amount| Step::Deposit { amount }),
        1 => prop_oneof![3 => Just(0u8), 1 => 1u8..12].prop_map(|others| Step::Claim { others }),
        3 => Just(Step::Commit),
        1 => Just(Step::Crash),
    ]
}

/// What was charged, as a payer's book would have it.
#[derive(Debug, Clone, Default)]
struct Charges {
    /// Vouchers that paid among several, or ahead: good for nothing any more.
    burnt: HashSet<i128>,
    /// Vouchers with the prices they paid, where that was more than nothing: not good for that price any more.
    paid: HashSet<(i128, i128)>,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn the_ledger_agrees_with_a_naive_one_that_colours_units(
        wallet in proptest::bool::weighted(0.2),
        most in prop_oneof![1 => Just(1u32), 4 => 2u32..7],
        steps in proptest::collection::vec(step(), 1..90),
    ) {
        let mut desk = Desk::of(wallet, most, 200);
        let mut naive =
            Naive { most: usize::try_from(most).unwrap(), wallet, balance: 200, ..Naive::default() };
        // What a crash falls back to.
        let mut disk = (desk.channel.snapshot(), naive.clone(), Charges::default());
        let mut charges = Charges::default();
        let mut taken: Vec<(i128, i128)> = Vec::new();
        let mut posted = 0;
        for step in steps {
            let asked = match &step {
                Step::InTurn { price, skew } => {
                    let price = i128::from(*price);
                    Some((InTurn, (naive.base(price) + price + i128::from(*skew)).max(0), price))
                }
                Step::Ahead { price, above } => {
                    let price = i128::from(*price);
                    Some((Ahead, (naive.top() + price + i128::from(*above)).max(0), price))
                }
                Step::Again { which, order, price } if !taken.is_empty() => {
                    let (max, paid) = taken[which % taken.len()];
                    Some((if *order { InTurn } else { Ahead }, max, price.map_or(paid, i128::from)))
                }
                _ => None,
            };
            match step {
                Step::InTurn { .. } | Step::Ahead { .. } | Step::Again { .. } => {
                    let Some((order, max, price)) = asked else { continue };
                    let verdict = naive.judge(order, max, price);
                    let held = desk.hold(order, max, price);
                    prop_assert_eq!(held.map(|_| ()), verdict, "{:?} {} {}", order, max, price);
                    if let Ok(number) = held {
                        prop_assert!(!charges.burnt.contains(&max), "{} was spent", max);
                        prop_assert!(!charges.paid.contains(&(max, price)), "{} paid {} before", max, price);
                        naive.hold(number, order, max, price);
                        taken.push((max, price));
                    }
                }
                Step::Post { which, part } => {
                    let Some((number, max, price)) = naive.holds.get(which % naive.holds.len().max(1)).copied() else {
                        continue;
                    };
                    let charge = (price * i128::from(part) + 254) / 255;
                    prop_assert_eq!(desk.post(number, price + 1), Err(Reject::ChargeExceedsHold));
                    let before = naive.charged;
                    prop_assert_eq!(desk.post(number, charge), naive.post(number, charge));
                    prop_assert_eq!(desk.void(number), Err(Reject::NoSuchHold));
                    posted += naive.charged - before;
                    if naive.several.is_some() {
                        charges.burnt.insert(max);
                    }
                    if charge > 0 {
                        charges.paid.insert((max, price));
                    }
                }
                Step::Void { which } => {
                    let Some((number, max, price)) = naive.holds.get(which % naive.holds.len().max(1)).copied() else {
                        continue;
                    };
                    prop_assert_eq!(desk.void(number).is_ok(), naive.take(number).is_some());
                    prop_assert_eq!(desk.post(number, 0), Err(Reject::NoSuchHold));
                    let order = if most > 1 && max - price >= naive.floor() { Ahead } else { InTurn };
                    if order == Ahead || naive.holds.is_empty() {
                        // Whatever the balance is by now, it is not the voucher's own piece that refuses it.
                        let again = desk.channel.preview_hold(amount(max), amount(price), order, desk.limits, 0);
                        prop_assert_ne!(again, Err(Reject::Spent), "a failed request gives its voucher back");
                    }
                }
                Step::Refund => {
                    let voucher = desk.voucher(naive.charged);
                    let size = RefundRequest::Remainder;
                    let begun = desk.run(&Command::BeginRefund { voucher: &voucher, size }).map(|_| ());
                    let expected = match () {
                        () if !naive.holds.is_empty() => Err(Reject::Busy),
                        () if naive.balance <= naive.charged => Err(Reject::NothingToRefund),
                        () => Ok(()),
                    };
                    prop_assert_eq!(begun, expected);
                    if begun.is_ok() {
                        prop_assert_eq!(desk.hold(Ahead, naive.top() + 1, 1), Err(Reject::Busy));
                        desk.run(&Command::EndRefund { sent: false }).unwrap();
                    }
                }
                Step::Deposit { amount } => {
                    let balance = naive.balance + i128::from(amount);
                    prop_assert_eq!(desk.observe(balance, naive.claimed), naive.observe(balance, naive.claimed));
                }
                Step::Claim { others } => {
                    let claimed = (naive.charged + i128::from(others)).min(naive.balance);
                    posted += (claimed - naive.charged).max(0);
                    prop_assert_eq!(desk.observe(naive.balance, claimed), naive.observe(naive.balance, claimed));
                }
                Step::Commit => disk = (desk.channel.snapshot(), naive.clone(), charges.clone()),
                Step::Crash => {
                    let view = desk.channel.view();
                    let (snapshot, books, known) = disk.clone();
                    desk.channel = Channel::restore(snapshot).unwrap();
                    (naive, charges) = (books, known);
                    naive.crash();
                    posted = naive.charged;
                    // The chain remembers what the disk does not.
                    let (balance, claimed) = (units(view.balance), units(view.total_claimed));
                    posted += (claimed - naive.charged).max(0);
                    prop_assert_eq!(desk.observe(balance, claimed), naive.observe(balance, claimed));
                    disk = (desk.channel.snapshot(), naive.clone(), charges.clone());
                }
            }
            let channel = &desk.channel;
            prop_assert_eq!(channel.charged(), amount(naive.charged));
            prop_assert_eq!(naive.charged, posted, "nothing else was charged");
            prop_assert_eq!(channel.latest().map(|latest| units(latest.max_claimable)), naive.signed);
            prop_assert_eq!(desk.spent_up_to(), (naive.line > naive.charged).then_some(naive.line));
            prop_assert_eq!(channel.in_flight(), naive.holds.len());
            for price in [1, 3, 100] {
                prop_assert_eq!(desk.base(price), naive.base(price));
                let known = channel.highest().map(|voucher| units(voucher.max_claimable));
                prop_assert!(known.is_none_or(|known| naive.base(price) <= known), "a client believes no more");
            }
            let again = Channel::restore(channel.snapshot());
            prop_assert_eq!(again.as_ref().map(Channel::snapshot), Ok(channel.snapshot()));
            prop_assert!(again.is_ok_and(|again| again.in_flight() == 0));
        }
    }
}

/// What payers, nodes and operators can do, in any order and with any numbers.
#[derive(Debug, Clone)]
enum Chaos {
    Hold { order: bool, above: i8, price: u8, most: u32 },
    Post { which: usize, part: u8 },
    Void { which: usize },
    View { gone: bool, block: u8, balance: u8, claimed: u8, leaving: Option<u8>, nonce: u8 },
    BeginRefund { voucher: bool },
    SignRefund { nonce: u8, amount: u8 },
    EndRefund { sent: bool },
    Crash,
}

fn chaos() -> impl Strategy<Value = Chaos> {
    prop_oneof![
        12 => (any::<bool>(), -20i8..30, 0u8..9, 0u32..6)
            .prop_map(|(order, above, price, most)| Chaos::Hold { order, above, price, most }),
        8 => (any::<usize>(), any::<u8>()).prop_map(|(which, part)| Chaos::Post { which, part }),
        3 => any::<usize>().prop_map(|which| Chaos::Void { which }),
        4 => (any::<bool>(), 0u8..6, 100u8..=200, 0u8..90, proptest::option::weighted(0.2, 0u8..250), 0u8..3).prop_map(
            |(gone, block, balance, claimed, leaving, nonce)| Chaos::View {
                gone, block, balance, claimed, leaving, nonce,
            }
        ),
        2 => any::<bool>().prop_map(|voucher| Chaos::BeginRefund { voucher }),
        1 => (0u8..3, 0u8..50).prop_map(|(nonce, amount)| Chaos::SignRefund { nonce, amount }),
        2 => any::<bool>().prop_map(|sent| Chaos::EndRefund { sent }),
        1 => Just(Chaos::Crash),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn nothing_from_outside_breaks_the_books(
        // The last 200 units there are, too.
        high in any::<bool>(),
        steps in proptest::collection::vec(chaos(), 1..120),
    ) {
        let zero = if high { u128::MAX - 200 } else { 0 };
        let units = |above: u8| Amount::new(zero).saturating_add(Amount::new(above.into()));
        let mut desk = Desk::new(1, 0);
        let view = View { block: 3, balance: units(200), total_claimed: units(0), ..View::default() };
        desk.channel = Channel::open(desk.channel.id(), desk.config, view, 0).unwrap();
        let mut holds: Vec<(HoldNumber, Amount)> = Vec::new();
        for step in steps {
            match step {
                Chaos::Hold { order, above, price, most } => {
                    let order = if order { InTurn } else { Ahead };
                    let price = Amount::new(u128::from(price));
                    let base = desk.channel.base(price);
                    let above = u128::from(above.unsigned_abs()) * u128::from(above > 0 || order == Ahead);
                    let max = base.checked_add(price).and_then(|max| max.checked_add(Amount::new(above)));
                    let max = max.unwrap_or(Amount::MAX);
                    let voucher = desk.voucher_at(max);
                    let limits = limits(most);
                    let held = desk.run(&Command::Hold { voucher: &voucher, price, order, limits });
                    if let Ok(Event::Held(hold)) = held {
                        prop_assert!(hold.voucher.max_claimable <= desk.channel.view().balance);
                        holds.push((hold.number, price));
                    }
                }
                Chaos::Post { which, part } if !holds.is_empty() => {
                    let (hold, price) = holds.swap_remove(which % holds.len());
                    let charge = Amount::new(price.units() * u128::from(part) / 255);
                    let before = desk.channel.charged();
                    if desk.run(&Command::Post { hold, charge }).is_ok() {
                        prop_assert_eq!(before.checked_add(charge), Some(desk.channel.charged()));
                    }
                }
                Chaos::Void { which } if !holds.is_empty() => {
                    let (hold, _) = holds.swap_remove(which % holds.len());
                    let _ = desk.run(&Command::Void { hold });
                }
                Chaos::Post { .. } | Chaos::Void { .. } => {}
                Chaos::View { gone, block, balance, claimed, leaving, nonce } => {
                    let leaving = leaving.map(|amount| Withdrawal { amount: units(amount), initiated_at: u64::MAX });
                    let view = View {
                        block: u64::from(block),
                        balance: units(balance),
                        total_claimed: units(claimed),
                        withdrawal: leaving,
                        refund_nonce: u128::from(nonce),
                    };
                    let there = desk.channel.view().block;
                    let command = if gone { Command::Rewind { view, gone: there } } else { Command::Observe { view } };
                    desk.run(&command).unwrap();
                }
                Chaos::BeginRefund { voucher } => {
                    let proof = desk.voucher_at(desk.channel.charged());
                    let command = Command::BeginRefund { voucher: &proof, size: RefundRequest::Remainder };
                    let _ = desk.run(if voucher { &command } else { &Command::BeginReturn });
                }
                Chaos::SignRefund { nonce, amount } => {
                    let refund = SentRefund { nonce: u128::from(nonce), amount: Amount::new(u128::from(amount)) };
                    let _ = desk.run(&Command::SignRefund { refund });
                }
                Chaos::EndRefund { sent } => drop(desk.run(&Command::EndRefund { sent })),
                Chaos::Crash => {
                    desk.crash();
                    holds.clear();
                }
            }
            let channel = &desk.channel;
            let shown = channel.highest().map_or(channel.view().total_claimed, |voucher| voucher.max_claimable);
            for price in [1, 3, 100].map(Amount::new) {
                prop_assert!(channel.base(price) <= shown, "a client believes no more");
                prop_assert!(channel.base(price) >= channel.charged());
            }
            let again = Channel::restore(channel.snapshot());
            prop_assert_eq!(again.as_ref().map(Channel::snapshot), Ok(channel.snapshot()));
        }
    }
}

#[test]
fn vouchers_signed_ahead_are_served_in_any_order_each_once() {
    let mut desk = Desk::new(4, 100);
    let third = desk.hold(Ahead, 30, 10).unwrap();
    let first = desk.hold(Ahead, 10, 10).unwrap();
    let fourth = desk.hold(Ahead, 40, 10).unwrap();
    desk.post(third, 10).unwrap();
    desk.post(first, 10).unwrap();
    desk.post(fourth, 10).unwrap();
    assert_eq!((desk.charged(), desk.spent_up_to(), desk.channel.in_flight()), (30, Some(40), 0));
    for max in [10, 30, 40] {
        assert_eq!(desk.hold(Ahead, max, 10), Err(Reject::Spent), "{max}");
    }
    // The one that is still on its way, although nothing is in flight.
    desk.serve(Ahead, 20, 10).unwrap();
    assert_eq!((desk.charged(), desk.spent_up_to()), (40, None), "in step again");
    assert_eq!(desk.hold(Ahead, 20, 10), Err(Reject::Spent));
    desk.serve(InTurn, 50, 10).unwrap();
    assert_eq!(desk.charged(), 50);
}

#[test]
fn a_segment_is_free_as_a_whole_or_not_at_all() {
    let mut desk = Desk::new(8, 1_000);
    desk.serve(InTurn, 10, 10).unwrap();
    desk.serve(Ahead, 30, 10).unwrap();
    let held = desk.hold(Ahead, 50, 10).unwrap();
    // Below is charged, (20, 30] is spent, (40, 50] is held.
    for (max, price, expected) in [
        (20, 11, Err(Reject::Spent)),
        (20, 10, Ok(())),
        (19, 9, Ok(())),
        (21, 10, Err(Reject::Spent)),
        (30, 5, Err(Reject::Spent)),
        (31, 1, Ok(())),
        (31, 2, Err(Reject::Spent)),
        (40, 10, Ok(())),
        (41, 10, Err(Reject::Spent)),
        (60, 60, Err(Reject::Spent)),
        (60, 10, Ok(())),
        (59, 10, Err(Reject::Spent)),
        (5, 9, Err(Reject::Spent)),
        (0, 1, Err(Reject::Spent)),
    ] {
        let verdict = desk.channel.preview_hold(amount(max), amount(price), Ahead, desk.limits, 0);
        assert_eq!(verdict, expected, "({}, {max}]", max - price);
    }
    desk.void(held).unwrap();
    assert!(desk.hold(Ahead, 45, 10).is_ok(), "what failed is free again, in any size");
}

#[test]
fn nobody_is_too_far_ahead_of_what_is_in_use() {
    for most in [2, 3, 32] {
        let mut desk = Desk::new(most, 10_000);
        let furthest = i128::from(most) * 10;
        assert_eq!(desk.hold(Ahead, furthest + 1, 10), Err(Reject::TooFarAhead), "{most}");
        desk.serve(Ahead, furthest, 10).unwrap();
        assert_eq!(desk.hold(Ahead, 2 * furthest + 1, 10), Err(Reject::TooFarAhead), "{most}");
        assert!(desk.hold(Ahead, 2 * furthest, 10).is_ok(), "{most}");
    }
    // Beyond what can be counted nothing is too far; the balance has the last word.
    let mut desk = Desk::new(u32::MAX, 10);
    let price = i128::MAX / 2;
    assert_eq!(desk.hold(Ahead, i128::MAX, price), Err(Reject::ExceedsBalance));
}

#[test]
fn so_many_are_in_flight_and_no_more() {
    for most in [0, 1, 2, 5] {
        for order in [InTurn, Ahead] {
            let mut desk = Desk::new(most, 1_000);
            let most = i128::from(most.max(1));
            let mut holds: Vec<_> = (1..=most).map(|n| desk.hold(order, n * 10, 10).unwrap()).collect();
            assert_eq!(desk.hold(order, (most + 1) * 10, 10), Err(Reject::Busy), "{order:?} {most}");
            assert_eq!(desk.channel.in_flight(), holds.len());
            desk.post(holds.pop().unwrap(), 10).unwrap();
            assert!(desk.hold(order, (most + 1) * 10, 10).is_ok() || most == 1, "{order:?} {most}");
        }
    }
}

#[test]
fn one_at_a_time_knows_nothing_of_vouchers_signed_ahead() {
    let mut desk = Desk::new(1, 100);
    assert_eq!(desk.hold(Ahead, 20, 10), Err(Reject::AmountMismatch));
    let held = desk.hold(Ahead, 10, 10).unwrap();
    assert_eq!(desk.hold(Ahead, 20, 10), Err(Reject::Busy));
    desk.post(held, 4).unwrap();
    assert_eq!((desk.charged(), desk.spent_up_to(), desk.base(10)), (4, None, 4));
    // As ever: a voucher that cost nothing is good again.
    let held = desk.hold(InTurn, 14, 10).unwrap();
    desk.post(held, 0).unwrap();
    desk.serve(InTurn, 14, 10).unwrap();
    assert_eq!(desk.hold(InTurn, 14, 10), Err(Reject::AmountMismatch));
}

#[test]
fn a_voucher_in_turn_joins_the_others_above_all_of_them() {
    let mut desk = Desk::new(4, 100);
    let first = desk.hold(InTurn, 10, 10).unwrap();
    assert_eq!(desk.base(10), 10);
    assert_eq!(desk.hold(InTurn, 10, 10), Err(Reject::AmountMismatch));
    assert_eq!(desk.hold(InTurn, 21, 10), Err(Reject::AmountMismatch));
    let second = desk.hold(InTurn, 20, 10).unwrap();
    let known = desk.channel.highest().map(|voucher| voucher.max_claimable);
    assert_eq!((desk.base(5), known), (20, Some(amount(20))), "the voucher that proves the base is shown with it");
    // The lower one fails, and the upper one is served: covered by its own ceiling.
    desk.void(first).unwrap();
    desk.post(second, 10).unwrap();
    assert_eq!((desk.charged(), desk.spent_up_to()), (10, Some(20)));
    // Its gap is open to the voucher itself, and closed to a replay of the other.
    assert_eq!(desk.hold(InTurn, 20, 10), Err(Reject::AmountMismatch), "charged plus price, and spent");
    assert!(desk.channel.preview_hold(amount(10), amount(10), Ahead, desk.limits, 0).is_ok());
}

#[test]
fn a_voucher_in_turn_ends_what_is_open_and_the_channel_comes_into_step_again() {
    let mut desk = Desk::new(4, 1_000);
    desk.serve(Ahead, 10, 10).unwrap();
    desk.serve(Ahead, 30, 10).unwrap();
    assert_eq!((desk.charged(), desk.spent_up_to()), (20, Some(30)));
    // 30 would be right by the sum, and paid already. The next unit was never signed.
    for (price, base) in [(10, 21), (11, 20), (12, 20), (1, 30), (31, 20)] {
        assert_eq!(desk.base(price), base, "{price}");
    }
    assert_eq!(desk.hold(InTurn, 30, 10), Err(Reject::AmountMismatch));
    desk.serve(InTurn, 31, 10).unwrap();
    assert_eq!((desk.charged(), desk.spent_up_to(), desk.base(10)), (30, Some(31), 30));
    assert_eq!(desk.hold(Ahead, 20, 10), Err(Reject::Spent), "what was skipped is too late");
    for again in [10, 30, 31] {
        for order in [InTurn, Ahead] {
            assert!(desk.hold(order, again, 10).is_err(), "{again}");
        }
    }
    desk.serve(InTurn, 40, 10).unwrap();
    assert_eq!((desk.charged(), desk.spent_up_to(), desk.base(10)), (40, None, 40), "in step");
}

#[test]
fn what_cost_less_than_its_price_among_several_is_never_served_again() {
    let mut desk = Desk::new(4, 1_000);
    let holds: Vec<_> = [10, 20, 30].map(|max| desk.hold(Ahead, max, 10).unwrap()).into();
    for (hold, charge) in holds.into_iter().zip([1, 0, 2]) {
        desk.post(hold, charge).unwrap();
    }
    assert_eq!((desk.charged(), desk.spent_up_to()), (3, Some(30)));
    let replays = |desk: &mut Desk| {
        for max in [10, 20, 30] {
            for price in 1..=max {
                for order in [InTurn, Ahead] {
                    assert!(desk.hold(order, max, price).is_err(), "{max} for {price}, {order:?}");
                }
            }
        }
    };
    replays(&mut desk);
    desk.crash();
    replays(&mut desk);
    assert_eq!(desk.spent_up_to(), Some(30));
    let held = desk.hold(InTurn, 31, 10).unwrap();
    replays(&mut desk);
    desk.void(held).unwrap();
    replays(&mut desk);
    // Each new voucher is a unit above the last one until what was charged has caught up.
    for max in [31, 32, 33] {
        desk.serve(InTurn, max, 10).unwrap();
        replays(&mut desk);
    }
    assert_eq!((desk.charged(), desk.spent_up_to(), desk.base(10)), (33, None, 33));
    desk.limits = limits(1);
    replays(&mut desk);
}

#[test]
fn a_crash_voids_what_is_in_flight_and_serves_nothing_twice() {
    let mut desk = Desk::new(4, 1_000);
    let holds: Vec<_> = [10, 20, 30, 40].map(|max| desk.hold(Ahead, max, 10).unwrap()).into();
    desk.post(holds[0], 10).unwrap();
    desk.post(holds[2], 10).unwrap();
    desk.crash();
    assert_eq!((desk.charged(), desk.spent_up_to(), desk.channel.in_flight()), (20, Some(30), 0));
    for (max, expected) in [(10, Err(Reject::Spent)), (20, Err(Reject::Spent)), (30, Err(Reject::Spent)), (40, Ok(()))]
    {
        let verdict = desk.channel.preview_hold(amount(max), amount(10), Ahead, desk.limits, 0);
        assert_eq!(verdict, expected, "{max}");
    }
    assert_eq!(desk.hold(InTurn, 30, 10), Err(Reject::AmountMismatch), "charged plus price, and spent");
}

/// A voucher in turn that cost less than its price can have a ceiling above what was charged. What was signed in turn and
/// is replayed as signed ahead must not slip in there.
#[test]
fn vouchers_signed_ahead_begin_above_all_that_was_signed_in_turn() {
    let mut desk = Desk::new(4, 1_000);
    let held = desk.hold(InTurn, 20, 20).unwrap();
    desk.post(held, 1).unwrap();
    // A cheaper one keeps the higher voucher, which covers it too.
    desk.serve(InTurn, 3, 2).unwrap();
    assert_eq!(desk.channel.latest().map(|latest| units(latest.max_claimable)), Some(20));
    assert_eq!((desk.charged(), desk.spent_up_to(), desk.base(5)), (3, None, 3));
    for price in 1..=20 {
        assert_eq!(desk.hold(Ahead, 20, price), Err(Reject::Spent), "{price}");
    }
    assert!(desk.hold(Ahead, 30, 10).is_ok());
}

#[test]
fn prices_in_flight_count_as_exposed() {
    let mut desk = Desk::of(true, 8, 1_000);
    let first = desk.hold(Ahead, 30, 30).unwrap();
    desk.hold(Ahead, 50, 20).unwrap();
    assert_eq!(desk.hold(Ahead, 61, 11), Err(Reject::WalletExposed), "{EXPOSURE} may be");
    let last = desk.hold(Ahead, 60, 10).unwrap();
    assert_eq!(desk.hold(Ahead, 61, 1), Err(Reject::WalletExposed));
    desk.void(last).unwrap();
    desk.post(first, 29).unwrap();
    assert_eq!(desk.hold(Ahead, 72, 12), Err(Reject::WalletExposed));
    assert!(desk.hold(Ahead, 71, 11).is_ok());
}

#[test]
fn all_ceilings_in_flight_are_within_the_balance() {
    let mut desk = Desk::new(8, 35);
    for (max, expected) in [(10, Ok(())), (30, Ok(())), (36, Err(Reject::ExceedsBalance)), (35, Ok(()))] {
        assert_eq!(desk.hold(Ahead, max, if max > 30 { 5 } else { 10 }).map(|_| ()), expected, "{max}");
    }
}

#[test]
fn another_instance_that_claims_takes_the_holds_below_its_claim_with_it() {
    let mut desk = Desk::new(8, 1_000);
    let holds: Vec<_> = [10, 20, 30, 40].map(|max| desk.hold(Ahead, max, 10).unwrap()).into();
    desk.post(holds[3], 10).unwrap();
    desk.observe(1_000, 11).unwrap();
    assert_eq!((desk.charged(), desk.channel.in_flight()), (11, 1));
    assert_eq!(desk.post(holds[0], 1), Err(Reject::NoSuchHold));
    assert_eq!(desk.post(holds[1], 1), Err(Reject::NoSuchHold));
    desk.post(holds[2], 10).unwrap();
    assert_eq!((desk.charged(), desk.spent_up_to()), (21, Some(40)));
    for (max, price, free) in [(20, 9, true), (20, 10, false), (21, 10, false), (40, 10, false)] {
        let verdict = desk.channel.preview_hold(amount(max), amount(price), Ahead, desk.limits, 0);
        assert_eq!(verdict.is_ok(), free, "({}, {max}]", max - price);
    }
    // A claim above everything known.
    let held = desk.hold(Ahead, 50, 10).unwrap();
    desk.observe(1_000, 45).unwrap();
    assert_eq!((desk.charged(), desk.channel.in_flight(), desk.channel.latest()), (45, 0, None));
    assert_eq!(desk.post(held, 10), Err(Reject::NoSuchHold));
    assert_eq!((desk.spent_up_to(), desk.base(10)), (None, 45));
}

#[test]
fn a_refund_and_requests_in_flight_exclude_each_other() {
    let mut desk = Desk::new(4, 100);
    let holds: Vec<_> = [10, 20].map(|max| desk.hold(Ahead, max, 10).unwrap()).into();
    desk.post(holds[1], 10).unwrap();
    let refund = |desk: &mut Desk, max| {
        let voucher = desk.voucher(max);
        desk.run(&Command::BeginRefund { voucher: &voucher, size: RefundRequest::Remainder })
    };
    assert_eq!(refund(&mut desk, 10), Err(Reject::Busy));
    assert_eq!(desk.run(&Command::BeginReturn), Err(Reject::Busy));
    desk.void(holds[0]).unwrap();
    assert_eq!(refund(&mut desk, 20), Err(Reject::AmountMismatch), "it is about what was charged");
    assert_eq!(refund(&mut desk, 10), Ok(Event::RefundBegun { amount: amount(90) }));
    assert_eq!(desk.hold(Ahead, 10, 10), Err(Reject::Busy));
    assert_eq!(desk.hold(InTurn, 30, 10), Err(Reject::Busy));
}

#[test]
fn what_is_remembered_is_bounded_and_what_is_forgotten_is_spent() {
    let most = i128::try_from(MAX_SPENT_SEGMENTS).unwrap();
    let mut desk = Desk::new(1_000, 1_000_000);
    // Every other unit: gaps at 1, 3, 5 ..
    for n in 1..=most {
        desk.serve(Ahead, 2 * n, 1).unwrap();
    }
    let free = |desk: &Desk, max| desk.channel.preview_hold(amount(max), amount(1), Ahead, desk.limits, 0).is_ok();
    assert!(free(&desk, 1) && free(&desk, 3) && !free(&desk, 2));
    let late = desk.hold(Ahead, 1, 1).unwrap();
    desk.serve(Ahead, 2 * (most + 1), 1).unwrap();
    // The lowest gap is given up, also for what is in flight in it; that is charged all the same.
    assert!(free(&desk, 3) && !free(&desk, 2));
    desk.post(late, 1).unwrap();
    assert!(!free(&desk, 1) && free(&desk, 3));
    desk.serve(Ahead, 2 * (most + 2), 1).unwrap();
    assert!(!free(&desk, 3) && free(&desk, 5));
    assert_eq!(desk.charged(), most + 3);
    // Filled in one by one, nothing is left to remember.
    for n in 2..most + 2 {
        desk.serve(Ahead, 2 * n + 1, 1).unwrap();
    }
    assert_eq!((desk.charged(), desk.spent_up_to()), (2 * most + 3, Some(2 * (most + 2))), "one was given up");
}

#[test]
fn books_whose_spent_ceilings_cannot_be_are_refused() {
    let mut desk = Desk::new(4, 100);
    desk.serve(Ahead, 20, 10).unwrap();
    let snapshot = desk.channel.snapshot();
    assert_eq!(snapshot.spent_up_to, Some(amount(20)));
    let with = |spent: i128| {
        let mut snapshot = snapshot.clone();
        snapshot.spent_up_to = Some(amount(spent));
        Channel::restore(snapshot).map(|_| ())
    };
    assert_eq!(with(11), Ok(()));
    assert_eq!(with(20), Ok(()));
    assert_eq!(with(10), Err(Violation::SpentBeyondVoucher), "what was charged needs no memory");
    assert_eq!(with(21), Err(Violation::SpentBeyondVoucher), "it was a voucher's");
    let mut other = snapshot.clone();
    let signature = other.latest.take().unwrap().signature;
    other.latest = Some(LatestVoucher { max_claimable: amount(19), signature });
    assert_eq!(Channel::restore(other).map(|_| ()), Err(Violation::SpentBeyondVoucher));
}
