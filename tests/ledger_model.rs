//! The channel state machine against a naive ledger that only adds and subtracts.
//!
//! Random sequences of requests, refunds and chain movements go to both; every verdict and every sum must agree. The
//! seed of a failure is printed and kept by proptest.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

use peaje::ledger::{Channel, Command, Event, HoldNumber, Limits, Reject, SentRefund, View, Withdrawal};
use peaje::protocol::voucher::PayerEvidence;
use peaje::protocol::x402::{Order, RefundRequest};
use peaje::protocol::{Address, Amount, ChannelConfig, Domain, Hash, LocalKey, VerifiedVoucher, Voucher};
use proptest::prelude::*;

/// The naive ledger: plain numbers, rules in the order a person would list them.
#[derive(Debug, Default, Clone)]
struct Naive {
    balance: i128,
    claimed: i128,
    leaving: i128,
    charged: i128,
    signed: Option<i128>,
    hold: Option<(i128, i128)>,
    refunding: bool,
    /// A refund that was sent and may still be paid.
    returning: i128,
    block: u64,
    /// Whether the payer's own account approves vouchers.
    wallet: bool,
}

/// What is risked with a wallet in the model.
const EXPOSURE: i128 = 40;
/// The margin before a withdrawal in the model, of a delay of 900 s; they are announced at second 1.
const LIMITS: Limits = Limits { withdraw_margin_s: 300, max_wallet_exposure: Amount::new(40), max_in_flight: 1 };
const LAST_SERVED: u64 = 600;

impl Naive {
    fn hold(&mut self, max: i128, price: i128, late: bool) -> Result<(), Reject> {
        let verdict = match () {
            () if price == 0 => Err(Reject::ZeroPrice),
            () if self.hold.is_some() || self.refunding => Err(Reject::Busy),
            () if max != self.charged + price => Err(Reject::AmountMismatch),
            () if late && self.leaving > 0 => Err(Reject::Withdrawing),
            () if self.balance == 0 => Err(Reject::NoDeposit),
            () if max > self.balance => Err(Reject::ExceedsBalance),
            () if max > self.balance - self.leaving - self.returning => Err(Reject::ExceedsWithdrawal),
            () if self.wallet && self.charged - self.claimed + price > EXPOSURE => Err(Reject::WalletExposed),
            () => Ok(()),
        };
        if verdict.is_ok() {
            self.hold = Some((price, max));
        }
        verdict
    }

    fn post(&mut self, charge: i128) -> Result<(), Reject> {
        let (price, max) = self.hold.ok_or(Reject::NoSuchHold)?;
        if charge > price {
            return Err(Reject::ChargeExceedsHold);
        }
        self.hold = None;
        self.charged += charge;
        self.signed = self.signed.max(Some(max));
        Ok(())
    }

    fn void(&mut self) -> Result<(), Reject> {
        self.hold.take().map(|_| ()).ok_or(Reject::NoSuchHold)
    }

    fn refund(&mut self, max: i128, size: Option<i128>) -> Result<i128, Reject> {
        let left = (self.balance - self.charged).max(0);
        let amount = size.unwrap_or(left).min(left);
        match () {
            () if self.hold.is_some() || self.refunding => Err(Reject::Busy),
            () if max != self.charged => Err(Reject::AmountMismatch),
            () if amount == 0 => Err(Reject::NothingToRefund),
            () => {
                self.refunding = true;
                Ok(amount)
            }
        }
    }

    /// The provider gives everything back.
    fn give_back(&mut self) -> Result<i128, Reject> {
        let left = (self.balance - self.charged).max(0);
        match () {
            () if self.hold.is_some() || self.refunding || self.returning > 0 => Err(Reject::Busy),
            () if self.leaving > 0 => Err(Reject::Withdrawing),
            () if left == 0 => Err(Reject::NothingToRefund),
            () => {
                self.refunding = true;
                Ok(left)
            }
        }
    }

    fn rewind(&mut self, gone: u64, block: u64, balance: i128, claimed: i128, leaving: i128) -> Result<(), Reject> {
        if gone == self.block && claimed <= balance {
            self.block = 0;
        }
        self.observe(block, balance, claimed, leaving)
    }

    fn observe(&mut self, block: u64, balance: i128, claimed: i128, leaving: i128) -> Result<(), Reject> {
        if claimed > balance {
            return Err(Reject::ImpossibleView);
        }
        if block < self.block {
            return Ok(());
        }
        (self.block, self.balance, self.claimed, self.leaving) = (block, balance, claimed, leaving);
        if claimed > self.charged {
            self.charged = claimed;
            self.hold = self.hold.filter(|(price, max)| claimed + price <= *max);
        }
        self.signed = self.signed.filter(|signed| *signed >= self.charged);
        if self.signed.is_none() {
            self.charged = claimed;
        }
        Ok(())
    }
}

#[derive(Debug, Clone)]
enum Step {
    /// A request whose voucher is off by `skew` from the right one.
    Hold {
        price: u8,
        skew: i8,
        /// Within the margin before a withdrawal can be finished.
        late: bool,
    },
    Post {
        charge: u8,
    },
    Void,
    Refund {
        skew: i8,
        size: Option<u8>,
    },
    EndRefund {
        sent: Option<u8>,
    },
    GiveBack,
    /// The block of the view in the books, or another one, is not in the chain.
    Rewind {
        mistaken: bool,
        block: u8,
        balance: u16,
        claimed: u16,
        leaving: u8,
    },
    Observe {
        block: u8,
        balance: u16,
        claimed: u16,
        leaving: u8,
    },
    /// The chain moves the way it does when nobody misbehaves: a deposit, or a claim of everything charged.
    Deposit {
        amount: u8,
    },
    ClaimAll,
}

fn step() -> impl Strategy<Value = Step> {
    let skew = prop_oneof![8 => Just(0i8), 1 => Just(1i8), 1 => Just(-1i8)];
    prop_oneof![
        6 => (0u8..20, skew.clone(), proptest::bool::weighted(0.2))
            .prop_map(|(price, skew, late)| Step::Hold { price, skew, late }),
        5 => (0u8..22).prop_map(|charge| Step::Post { charge }),
        2 => Just(Step::Void),
        1 => (skew, proptest::option::of(0u8..40)).prop_map(|(skew, size)| Step::Refund { skew, size }),
        2 => proptest::option::weighted(0.2, 1u8..10).prop_map(|sent| Step::EndRefund { sent }),
        1 => (0u8..40, 0u16..300, 0u16..300, 0u8..20)
            .prop_map(|(block, balance, claimed, leaving)| Step::Observe { block, balance, claimed, leaving }),
        1 => Just(Step::GiveBack),
        1 => (any::<bool>(), 0u8..40, 0u16..300, 0u16..300, 0u8..20).prop_map(
            |(mistaken, block, balance, claimed, leaving)| Step::Rewind { mistaken, block, balance, claimed, leaving }
        ),
        3 => (1u8..60).prop_map(|amount| Step::Deposit { amount }),
        1 => Just(Step::ClaimAll),
    ]
}

fn amount(value: i128) -> Amount {
    Amount::new(u128::try_from(value.max(0)).unwrap())
}

fn signed(config: &ChannelConfig, key: &LocalKey, domain: &Domain, max: i128) -> VerifiedVoucher {
    let voucher = Voucher { channel: config.id(domain), max_claimable: amount(max) };
    voucher.sign(domain, key).verify_by_payer(domain, config, PayerEvidence::NoCode).unwrap()
}

fn channel() -> (Channel, ChannelConfig, LocalKey, Domain) {
    channel_of(false)
}

/// Its payer signs with a key; its vouchers name that key, or leave it to the payer's account.
fn channel_of(wallet: bool) -> (Channel, ChannelConfig, LocalKey, Domain) {
    let key = LocalKey::from_bytes(&[7; 32]).unwrap();
    let domain = Domain::settlement(84532);
    let config = ChannelConfig {
        payer: key.address(),
        payer_authorizer: if wallet { Address::ZERO } else { key.address() },
        receiver: Address([1; 20]),
        receiver_authorizer: Address([2; 20]),
        token: Address([3; 20]),
        withdraw_delay: 900,
        salt: Hash::ZERO,
    };
    (Channel::open(config.id(&domain), config, View::default(), 0).unwrap(), config, key, domain)
}

fn run(channel: &mut Channel, command: &Command<'_>) -> Result<Event, Reject> {
    run_at(channel, command, 0)
}

fn run_at(channel: &mut Channel, command: &Command<'_>, now: u64) -> Result<Event, Reject> {
    let event = channel.decide(command, now)?;
    channel.evolve(&event);
    Ok(event)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn the_ledger_agrees_with_a_naive_one(wallet: bool, steps in proptest::collection::vec(step(), 1..60)) {
        let (mut channel, config, key, domain) = channel_of(wallet);
        let mut naive = Naive { wallet, ..Naive::default() };
        let mut last_hold: Option<HoldNumber> = None;
        for step in steps {
            let max_base = naive.charged;
            match step {
                Step::Hold { price, skew, late } => {
                    let (price, max) = (i128::from(price), (max_base + i128::from(price) + i128::from(skew)).max(0));
                    let voucher = signed(&config, &key, &domain, max);
                    let command = Command::Hold { voucher: &voucher, price: amount(price), order: Order::InTurn, limits: LIMITS };
                    // The view must be of then; that is another test's.
                    let now = LAST_SERVED + u64::from(late);
                    let view = channel.view();
                    run_at(&mut channel, &Command::Observe { view }, now).unwrap();
                    let event = run_at(&mut channel, &command, now);
                    run(&mut channel, &Command::Observe { view }).unwrap();
                    if let Ok(Event::Held(hold)) = &event {
                        last_hold = Some(hold.number);
                    }
                    prop_assert_eq!(event.map(|_| ()), naive.hold(max, price, late));
                }
                Step::Post { charge } => {
                    let Some(hold) = last_hold else { continue };
                    let event = run(&mut channel, &Command::Post { hold, charge: amount(i128::from(charge)) });
                    prop_assert_eq!(event.map(|_| ()), naive.post(i128::from(charge)));
                }
                Step::Void => {
                    let Some(hold) = last_hold else { continue };
                    prop_assert_eq!(run(&mut channel, &Command::Void { hold }).map(|_| ()), naive.void());
                }
                Step::Refund { skew, size } => {
                    let max = (max_base + i128::from(skew)).max(0);
                    let voucher = signed(&config, &key, &domain, max);
                    let wish = size.map_or(RefundRequest::Remainder, |size| RefundRequest::Amount(amount(i128::from(size))));
                    let event = run(&mut channel, &Command::BeginRefund { voucher: &voucher, size: wish });
                    let refunded = event.map(|event| match event {
                        Event::RefundBegun { amount } => i128::try_from(amount.units()).unwrap(),
                        other => panic!("{other:?}"),
                    });
                    prop_assert_eq!(refunded, naive.refund(max, size.map(i128::from)));
                }
                Step::EndRefund { sent } => {
                    let sent = sent.map(i128::from);
                    if let Some(sent) = sent {
                        let refund = SentRefund { nonce: 0, amount: amount(sent) };
                        prop_assert_eq!(run(&mut channel, &Command::SignRefund { refund }).is_ok(), naive.refunding);
                    }
                    let ended = run(&mut channel, &Command::EndRefund { sent: sent.is_some() }).is_ok();
                    prop_assert_eq!(ended, std::mem::take(&mut naive.refunding));
                    if ended {
                        naive.returning = naive.returning.max(sent.unwrap_or_default());
                    }
                }
                Step::GiveBack => {
                    let returned = run(&mut channel, &Command::BeginReturn).map(|event| match event {
                        Event::RefundBegun { amount } => i128::try_from(amount.units()).unwrap(),
                        other => panic!("{other:?}"),
                    });
                    prop_assert_eq!(returned, naive.give_back());
                }
                Step::Rewind { mistaken, block, balance, claimed, leaving } => {
                    let (balance, claimed, leaving) = (i128::from(balance), i128::from(claimed), i128::from(leaving));
                    let gone = naive.block + u64::from(mistaken);
                    let view = view(u64::from(block), balance, claimed, leaving);
                    let event = run(&mut channel, &Command::Rewind { view, gone });
                    let expected = naive.rewind(gone, u64::from(block), balance, claimed, leaving);
                    prop_assert_eq!(event.map(|_| ()), expected);
                    prop_assert_eq!(channel.view().block, naive.block);
                }
                Step::Observe { block, balance, claimed, leaving } => {
                    let (balance, claimed, leaving) = (i128::from(balance), i128::from(claimed), i128::from(leaving));
                    observe(&mut channel, &mut naive, u64::from(block), balance, claimed, leaving)?;
                }
                Step::Deposit { amount } => {
                    let next = naive.clone();
                    let balance = next.balance + i128::from(amount);
                    observe(&mut channel, &mut naive, next.block + 1, balance, next.claimed, next.leaving)?;
                }
                Step::ClaimAll => {
                    let next = naive.clone();
                    let claimed = next.charged.min(next.balance);
                    observe(&mut channel, &mut naive, next.block + 1, next.balance, claimed, next.leaving)?;
                }
            }
            prop_assert_eq!(channel.charged(), amount(naive.charged));
            prop_assert_eq!(channel.latest().map(|latest| latest.max_claimable), naive.signed.map(amount));
            prop_assert_eq!(channel.unclaimed(), amount(naive.charged - naive.claimed));
            prop_assert_eq!(channel.shortfall(), amount(naive.charged - naive.balance));
            prop_assert_eq!(channel.in_flight() > 0, naive.hold.is_some());
            // What is written down opens the same books again, without the request that was being served.
            let again = Channel::restore(channel.snapshot());
            prop_assert_eq!(again.as_ref().map(Channel::snapshot), Ok(channel.snapshot()));
            prop_assert!(again.is_ok_and(|again| again.in_flight() == 0 && !again.is_refunding()));
        }
    }
}

fn view(block: u64, balance: i128, claimed: i128, leaving: i128) -> View {
    let withdrawal = (leaving > 0).then(|| Withdrawal { amount: amount(leaving), initiated_at: 1 });
    View { block, balance: amount(balance), total_claimed: amount(claimed), withdrawal, refund_nonce: 0 }
}

fn observe(
    channel: &mut Channel,
    naive: &mut Naive,
    block: u64,
    balance: i128,
    claimed: i128,
    leaving: i128,
) -> Result<(), TestCaseError> {
    let view = view(block, balance, claimed, leaving);
    let event = run(channel, &Command::Observe { view });
    prop_assert_eq!(event.map(|_| ()), naive.observe(block, balance, claimed, leaving));
    Ok(())
}

#[test]
fn a_hold_is_resolved_once() {
    let (mut channel, config, key, domain) = channel();
    let view = View { block: 1, balance: Amount::new(100), ..View::default() };
    run(&mut channel, &Command::Observe { view }).unwrap();
    let voucher = signed(&config, &key, &domain, 10);
    let Ok(Event::Held(hold)) = run(
        &mut channel,
        &Command::Hold { voucher: &voucher, price: Amount::new(10), order: Order::InTurn, limits: Limits::default() },
    ) else {
        panic!("the voucher is good")
    };
    run(&mut channel, &Command::Post { hold: hold.number, charge: Amount::new(4) }).unwrap();
    for again in [Command::Post { hold: hold.number, charge: Amount::ZERO }, Command::Void { hold: hold.number }] {
        assert_eq!(run(&mut channel, &again), Err(Reject::NoSuchHold));
    }
    assert_eq!((channel.charged(), channel.unclaimed()), (Amount::new(4), Amount::new(4)));
}

#[test]
fn an_old_view_lets_nobody_through() {
    let (mut channel, config, key, domain) = channel();
    let view = View { block: 1, balance: Amount::new(100), ..View::default() };
    run(&mut channel, &Command::Observe { view }).unwrap();
    let voucher = signed(&config, &key, &domain, 10);
    let command =
        Command::Hold { voucher: &voucher, price: Amount::new(10), order: Order::InTurn, limits: Limits::default() };
    assert!(channel.decide(&command, 300).is_ok(), "a third of the withdraw delay of 900 s");
    assert_eq!(channel.decide(&command, 301), Err(Reject::ViewTooOld));
}

/// The time of a view is in the books, and a machine's clock may be wrong when they are written or when they are opened.
#[test]
fn a_view_from_the_future_lets_nobody_through_until_the_chain_is_read_again() {
    const BOOTED: u64 = 1_000;
    let (mut channel, config, key, domain) = channel();
    let view = View { block: 1, balance: Amount::new(100), ..View::default() };
    let late = channel.decide(&Command::Observe { view }, 1_000_000).unwrap();
    channel.evolve(&late);
    let mut channel = Channel::restore(channel.snapshot()).unwrap();
    let voucher = signed(&config, &key, &domain, 10);
    let command =
        Command::Hold { voucher: &voucher, price: Amount::new(10), order: Order::InTurn, limits: Limits::default() };
    assert_eq!(channel.decide(&command, BOOTED), Err(Reject::ViewTooOld));
    let now = channel.decide(&Command::Observe { view: View { block: 2, ..view } }, BOOTED).unwrap();
    channel.evolve(&now);
    assert!(channel.decide(&command, BOOTED + 1).is_ok());
    assert_eq!(channel.decide(&command, BOOTED + 301), Err(Reject::ViewTooOld));
}

/// Whoever saw the signature of a refund that reverted or got stuck can bring it to the contract later, when what it
/// gives back was already spent on requests that nobody has claimed yet.
#[test]
fn what_a_sent_refund_gives_back_is_not_served_on_until_its_nonce_is_used_up() {
    let (mut channel, config, key, domain) = channel();
    let view = View { block: 1, balance: Amount::new(100), refund_nonce: 4, ..View::default() };
    run(&mut channel, &Command::Observe { view }).unwrap();
    let proof = signed(&config, &key, &domain, 0);
    let size = RefundRequest::Amount(Amount::new(70));
    run(&mut channel, &Command::BeginRefund { voucher: &proof, size }).unwrap();
    let refund = SentRefund { nonce: 4, amount: Amount::new(70) };
    run(&mut channel, &Command::SignRefund { refund }).unwrap();
    run(&mut channel, &Command::EndRefund { sent: true }).unwrap();

    let hold = |channel: &Channel, max: i128| {
        let voucher = signed(&config, &key, &domain, max);
        channel
            .decide(
                &Command::Hold {
                    voucher: &voucher,
                    price: amount(max),
                    order: Order::InTurn,
                    limits: Limits::default(),
                },
                0,
            )
            .map(|_| ())
    };
    assert_eq!((hold(&channel, 30), hold(&channel, 31)), (Ok(()), Err(Reject::ExceedsWithdrawal)));
    // A later block in which it is still not paid changes nothing.
    run(&mut channel, &Command::Observe { view: View { block: 2, ..view } }).unwrap();
    assert_eq!(hold(&channel, 31), Err(Reject::ExceedsWithdrawal));
    // The payer can ask again; the same nonce pays once.
    run(&mut channel, &Command::BeginRefund { voucher: &proof, size: RefundRequest::Remainder }).unwrap();
    run(&mut channel, &Command::EndRefund { sent: false }).unwrap();
    assert_eq!(hold(&channel, 31), Err(Reject::ExceedsWithdrawal));
    let paid = View { block: 3, balance: Amount::new(30), refund_nonce: 5, ..view };
    run(&mut channel, &Command::Observe { view: paid }).unwrap();
    assert_eq!((hold(&channel, 30), hold(&channel, 31)), (Ok(()), Err(Reject::ExceedsBalance)));
}

/// The live nonce is read when a refund is signed, and may be ahead of the view in the books.
#[test]
fn a_refund_with_a_later_nonce_is_reckoned_with_though_the_one_before_it_was_larger() {
    let (mut channel, config, key, domain) = channel();
    let view = View { block: 1, balance: Amount::new(100), refund_nonce: 4, ..View::default() };
    run(&mut channel, &Command::Observe { view }).unwrap();
    let proof = signed(&config, &key, &domain, 0);
    let mut last = None;
    for (nonce, sum) in [(4, 60), (5, 20)] {
        let size = RefundRequest::Amount(Amount::new(sum));
        run(&mut channel, &Command::BeginRefund { voucher: &proof, size }).unwrap();
        let refund = SentRefund { nonce, amount: Amount::new(sum) };
        run(&mut channel, &Command::SignRefund { refund }).unwrap();
        assert_eq!(channel.snapshot().open_refund, Some(refund), "it is written down before it is signed");
        run(&mut channel, &Command::EndRefund { sent: true }).unwrap();
        last = Some(refund);
    }
    // The first one is seen paid, the second is still on its way.
    let paid = View { block: 2, balance: Amount::new(40), refund_nonce: 5, ..view };
    run(&mut channel, &Command::Observe { view: paid }).unwrap();
    assert_eq!((channel.snapshot().open_refund, channel.ceiling()), (last, Amount::new(20)));
}

/// What is served in the last moments before a withdrawal can be finished may not be claimed in time.
#[test]
fn from_the_margin_before_a_withdrawal_on_nothing_is_served_until_it_is_gone() {
    const ANNOUNCED: u64 = 10_000;
    let (mut channel, config, key, domain) = channel();
    let withdrawal = Some(Withdrawal { amount: Amount::new(50), initiated_at: ANNOUNCED });
    let leaving = View { block: 1, balance: Amount::new(100), withdrawal, ..View::default() };
    let voucher = signed(&config, &key, &domain, 10);
    let hold = |channel: &Channel, margin: u64, now: u64| {
        let limits = Limits { withdraw_margin_s: margin, ..Limits::default() };
        let command = Command::Hold { voucher: &voucher, price: Amount::new(10), order: Order::InTurn, limits };
        let mut channel = channel.clone();
        let view = channel.view();
        run_at(&mut channel, &Command::Observe { view }, now).unwrap();
        channel.decide(&command, now).map(|_| ())
    };
    run_at(&mut channel, &Command::Observe { view: leaving }, ANNOUNCED).unwrap();
    // The withdraw delay is 900 s.
    for (margin, last) in [(300, 599), (0, 899), (899, 0)] {
        assert_eq!(hold(&channel, margin, ANNOUNCED + last), Ok(()), "margin {margin}");
        assert_eq!(hold(&channel, margin, ANNOUNCED + last + 1), Err(Reject::Withdrawing), "margin {margin}");
    }
    assert_eq!(hold(&channel, 900, ANNOUNCED), Err(Reject::Withdrawing));
    assert_eq!(hold(&channel, u64::MAX, 0), Err(Reject::Withdrawing));
    // It can be finished, and is not: nobody knows when it will be.
    assert_eq!(hold(&channel, 300, ANNOUNCED + 1_000_000), Err(Reject::Withdrawing));
    let finished = View { block: 2, balance: Amount::new(50), withdrawal: None, ..leaving };
    run_at(&mut channel, &Command::Observe { view: finished }, ANNOUNCED + 900).unwrap();
    assert_eq!(hold(&channel, 300, ANNOUNCED + 900), Ok(()));
}

#[test]
fn a_wallet_is_trusted_with_so_much_and_wants_a_claim_at_half_of_it() {
    let limits = Limits { max_wallet_exposure: Amount::new(20), ..Limits::default() };
    for wallet in [true, false] {
        let (mut channel, config, key, domain) = channel_of(wallet);
        let view = View { block: 1, balance: Amount::new(100), ..View::default() };
        run(&mut channel, &Command::Observe { view }).unwrap();
        let pay = |channel: &mut Channel, max: i128, price: i128| {
            let voucher = signed(&config, &key, &domain, max);
            let held =
                run(channel, &Command::Hold { voucher: &voucher, price: amount(price), order: Order::InTurn, limits })?;
            let Event::Held(hold) = held else { panic!("{held:?}") };
            run(channel, &Command::Post { hold: hold.number, charge: amount(price) })
        };
        assert!(pay(&mut channel, 9, 9).is_ok());
        assert!(!channel.wants_claim(limits));
        assert!(pay(&mut channel, 10, 1).is_ok());
        assert_eq!(channel.wants_claim(limits), wallet);
        assert_eq!(pay(&mut channel, 21, 11).is_ok(), !wallet, "a unit too much");
        if wallet {
            assert_eq!(pay(&mut channel, 21, 11), Err(Reject::WalletExposed));
            assert!(pay(&mut channel, 20, 10).is_ok(), "up to the limit");
            assert_eq!(pay(&mut channel, 21, 1), Err(Reject::WalletExposed));
            let claimed = View { block: 2, total_claimed: Amount::new(20), ..view };
            run(&mut channel, &Command::Observe { view: claimed }).unwrap();
            assert!(!channel.wants_claim(limits));
            assert!(pay(&mut channel, 40, 20).is_ok(), "after a claim as much again");
        }
    }
}

/// The follower says so when the block of the view in the books was reorganised away, or never was.
#[test]
fn a_view_of_a_block_that_is_not_in_the_chain_is_replaced_by_an_older_one() {
    let (mut channel, ..) = channel();
    let bogus = View { block: 1_000_000, balance: Amount::new(100), ..View::default() };
    run(&mut channel, &Command::Observe { view: bogus }).unwrap();
    let truth = View { block: 7, balance: Amount::new(60), ..View::default() };
    run(&mut channel, &Command::Observe { view: truth }).unwrap();
    assert_eq!(channel.view(), bogus, "nodes lag, so an older view proves nothing");
    run(&mut channel, &Command::Rewind { view: truth, gone: 999_999 }).unwrap();
    assert_eq!(channel.view(), bogus, "another view than the one that was doubted");
    let impossible = View { total_claimed: Amount::new(61), ..truth };
    assert_eq!(run(&mut channel, &Command::Rewind { view: impossible, gone: 1_000_000 }), Err(Reject::ImpossibleView));
    run_at(&mut channel, &Command::Rewind { view: truth, gone: 1_000_000 }, 50).unwrap();
    assert_eq!((channel.view(), channel.view_too_old(50)), (truth, false));
    // Restored from the books, too.
    assert_eq!(Channel::restore(channel.snapshot()).unwrap().view(), truth);
}

#[test]
fn a_reorganisation_that_drops_a_claim_makes_it_due_again_and_one_that_drops_a_deposit_leaves_a_shortfall() {
    let (mut channel, config, key, domain) = channel();
    let view = View { block: 5, balance: Amount::new(100), ..View::default() };
    run(&mut channel, &Command::Observe { view }).unwrap();
    let voucher = signed(&config, &key, &domain, 30);
    let hold =
        Command::Hold { voucher: &voucher, price: Amount::new(30), order: Order::InTurn, limits: Limits::default() };
    let Ok(Event::Held(hold)) = run(&mut channel, &hold) else { panic!() };
    run(&mut channel, &Command::Post { hold: hold.number, charge: Amount::new(30) }).unwrap();
    let claimed = View { block: 8, total_claimed: Amount::new(30), ..view };
    run(&mut channel, &Command::Observe { view: claimed }).unwrap();
    assert_eq!((channel.unclaimed(), channel.unclaimed_since()), (Amount::ZERO, None));
    let dropped = View { block: 6, ..view };
    run_at(&mut channel, &Command::Rewind { view: dropped, gone: 8 }, 77).unwrap();
    assert_eq!((channel.unclaimed(), channel.unclaimed_since()), (Amount::new(30), Some(77)));
    assert_eq!(
        channel.latest().map(|latest| latest.max_claimable),
        Some(Amount::new(30)),
        "the voucher is still there"
    );
    run_at(&mut channel, &Command::Rewind { view: View { block: 4, ..View::default() }, gone: 6 }, 78).unwrap();
    assert_eq!((channel.shortfall(), channel.ceiling()), (Amount::new(30), Amount::ZERO));
}

/// Whoever saw a refund that a reorganisation dropped can bring it again.
#[test]
fn what_a_dropped_refund_gave_back_is_not_served_on() {
    let (mut channel, ..) = channel();
    let before = View { block: 5, balance: Amount::new(100), refund_nonce: 2, ..View::default() };
    let refunded = View { block: 7, balance: Amount::new(30), refund_nonce: 3, ..before };
    run(&mut channel, &Command::Observe { view: refunded }).unwrap();
    run(&mut channel, &Command::Rewind { view: View { block: 6, ..before }, gone: 7 }).unwrap();
    assert_eq!((channel.view().balance, channel.ceiling()), (Amount::new(100), Amount::new(30)));
    assert_eq!(channel.snapshot().open_refund, Some(SentRefund { nonce: 2, amount: Amount::new(70) }));
    run(&mut channel, &Command::Observe { view: View { block: 8, ..refunded } }).unwrap();
    assert_eq!((channel.snapshot().open_refund, channel.ceiling()), (None, Amount::new(30)));
}

#[test]
fn the_provider_gives_back_what_is_left_unless_something_is_going_on() {
    let (mut channel, config, key, domain) = channel();
    assert_eq!(run(&mut channel, &Command::BeginReturn), Err(Reject::NothingToRefund));
    let view = View { block: 1, balance: Amount::new(100), ..View::default() };
    run(&mut channel, &Command::Observe { view }).unwrap();
    assert_eq!(run_at(&mut channel, &Command::BeginReturn, 301), Err(Reject::ViewTooOld));
    let voucher = signed(&config, &key, &domain, 40);
    let hold =
        Command::Hold { voucher: &voucher, price: Amount::new(40), order: Order::InTurn, limits: Limits::default() };
    let Ok(Event::Held(held)) = run(&mut channel, &hold) else { panic!() };
    assert_eq!(run(&mut channel, &Command::BeginReturn), Err(Reject::Busy));
    run(&mut channel, &Command::Post { hold: held.number, charge: Amount::new(40) }).unwrap();
    let begun = run(&mut channel, &Command::BeginReturn);
    assert_eq!(begun, Ok(Event::RefundBegun { amount: Amount::new(60) }));
    assert_eq!(run(&mut channel, &Command::BeginReturn), Err(Reject::Busy));
    let refund = SentRefund { nonce: 0, amount: Amount::new(60) };
    run(&mut channel, &Command::SignRefund { refund }).unwrap();
    run(&mut channel, &Command::EndRefund { sent: true }).unwrap();
    assert_eq!(run(&mut channel, &Command::BeginReturn), Err(Reject::Busy), "one is on its way");
    let withdrawal = Some(Withdrawal { amount: Amount::new(60), initiated_at: 1 });
    let leaving = View { block: 2, refund_nonce: 1, withdrawal, ..view };
    run(&mut channel, &Command::Observe { view: leaving }).unwrap();
    assert_eq!(run(&mut channel, &Command::BeginReturn), Err(Reject::Withdrawing));
    assert!(channel.is_open());
    let drained =
        View { block: 3, balance: Amount::new(40), total_claimed: Amount::new(40), withdrawal: None, ..leaving };
    run(&mut channel, &Command::Observe { view: drained }).unwrap();
    assert_eq!(run(&mut channel, &Command::BeginReturn), Err(Reject::NothingToRefund));
    assert!(!channel.is_open());
}
