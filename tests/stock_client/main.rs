//! The stock client (`@x402/fetch` and `@x402/evm` from npm, unchanged, with its defaults) pays through `peaje serve`, on
//! our development chain and on anvil.
//!
//! Nothing here is ours but the proxy: the client runs in Node, the proxy is the real binary with a config file, and what
//! is believed in the end is what the chain says. Every story closes with the proxy told to stop (SIGTERM), after which
//! the receiver must have been paid for exactly what was served.
//!
//! The npm package is in `tests/stock_client`; it is installed when needed. `PEAJE_SKIP_NODE_TESTS=1` skips.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests fail the test")]
#![allow(clippy::print_stdout, reason = "a story is told")]

mod chain;
mod client;
#[path = "../support/npm.rs"]
mod npm;
mod package;
mod permit2;
#[path = "../support/serve.rs"]
mod proxy;
mod upstream;

use std::cell::RefCell;
use std::io::Write as _;
use std::time::{Duration, Instant};

use peaje::chain::{Call, Chain as _};
use peaje::devnet::genesis;
use peaje::protocol::claim::{claim_batch_digest, refund_digest};
use peaje::protocol::{Address, Amount, ChannelConfig, ChannelId, Domain, Hash};

use chain::{Kind, TestChain, dev};
use client::{Answer, Client};
use proxy::{Peaje, Settings};
use upstream::Upstream;

/// What the payer has in the beginning, atomic units like all sums here.
const PURSE: u128 = 10_000_000;
/// What a request costs.
const PRICE: u128 = 2_000;
/// What the proxy asks as the least deposit, and so what the client deposits.
const DEPOSIT: u128 = 150_000;

/// How long the chain and the proxy may take for what they are about to do.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a call looks like that needed no more than a voucher.
const BY_VOUCHER: &[&str] = &["nothing 402", "voucher 200"];
/// The same, with the deposit it needed first.
const BY_DEPOSIT: &[&str] = &["nothing 402", "deposit 200"];

/// Every story, told once on each chain.
macro_rules! on_both_chains {
    ($($claim:ident,)*) => {
        mod on_our_devnet {
            $(#[test] fn $claim() { super::tell(super::Kind::Devnet, stringify!($claim), super::$claim); })*
        }
        mod on_anvil {
            $(#[test] fn $claim() { super::tell(super::Kind::Anvil, stringify!($claim), super::$claim); })*
        }
    };
}

on_both_chains! {
    the_first_request_deposits_the_next_fifty_are_vouchers_and_a_refund_returns_the_rest,
    a_partial_refund_leaves_a_channel_that_still_pays,
    a_channel_that_ran_out_is_topped_up,
    a_client_without_memory_is_told_what_it_owes,
    a_client_without_memory_reads_the_chain_after_a_claim,
    a_client_without_memory_gets_its_rest_back,
    a_restarted_proxy_goes_on_where_its_redemption_ended,
    after_a_crash_nobody_notices_and_nothing_is_lost,
    after_a_total_loss_the_client_follows_the_chain,
    a_channel_refunded_behind_the_clients_back_is_topped_up,
    a_channel_refunded_before_its_first_charge_is_funded_again,
    a_channel_drained_before_a_restart_is_topped_up,
    a_channel_drained_by_the_provider_is_topped_up,
    parallel_requests_are_all_served,
    parallel_requests_are_all_served_one_after_the_other,
    parallel_first_requests_make_one_deposit_and_are_all_served,
    parallel_first_requests_are_all_served_one_after_the_other,
    a_failed_first_request_keeps_its_deposit,
    a_failed_request_costs_nothing,
    a_lost_answer_is_charged_and_the_client_goes_on,
    a_lost_answer_to_the_first_request_is_no_reason_to_deposit_twice,
    a_stream_is_read_while_it_is_written,
}

/// Everybody who has a part.
struct Stage {
    chain: TestChain,
    upstream: Upstream,
    peaje: Peaje,
    client: Client,
    /// The URL of what is sold.
    thing: String,
}

fn tell<F: Future<Output = ()>>(kind: Kind, claim: &str, story: fn(Stage) -> F) {
    if npm::skipped() {
        // Past the test harness, which would swallow it: nobody shall believe that this was tested.
        let _ = writeln!(std::io::stderr(), "SKIPPED, told so by the environment: {kind:?} {claim}");
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let book = Book { title: format!("{kind:?}: {}", claim.replace('_', " ")), begun: Instant::now() };
    runtime.block_on(async {
        let stage = Stage::set(kind).await;
        story(stage).await;
    });
    drop(book);
}

thread_local! {
    /// What happened so far in the story that this thread tells.
    static LINES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

fn say(line: &str) {
    LINES.with_borrow_mut(|lines| lines.push(format!("  {line}\n")));
}

/// Prints a story as a whole when it ends, well or badly, so that two told at once stay apart.
struct Book {
    title: String,
    begun: Instant,
}

impl Drop for Book {
    fn drop(&mut self) {
        let lines = LINES.take().concat();
        print!("{} ({:.1?})\n{lines}", self.title, self.begun.elapsed());
    }
}

impl Stage {
    async fn set(kind: Kind) -> Self {
        // Before anything that counts time: the first test of a fresh checkout installs it.
        package::directory();
        let chain = TestChain::start(kind).await;
        chain.mint(payer(), PURSE).await;
        let upstream = Upstream::start().await;
        let settings = Settings {
            rpc: &chain.rpc,
            upstream: upstream.address,
            pay_to: receiver().to_string(),
            price: "$0.002",
            min_deposit: "$0.15",
            log: "debug",
            books: None,
            redeem: "",
            within: None,
        };
        let peaje = Peaje::start(&settings).await;
        let client = agent(&chain).await;
        let thing = peaje.url("/thing");
        Self { chain, upstream, peaje, client, thing }
    }

    /// Pays for the thing.
    async fn pay(&mut self) -> Answer {
        self.client.pay(&self.thing).await
    }

    /// Pays for a number of things, each with a voucher and nothing else.
    async fn pay_by_voucher(&mut self, count: usize) -> Vec<Answer> {
        let answers = self.client.pay_times(&self.thing, count).await;
        answers.iter().for_each(|answer| answer.served_by(BY_VOUCHER));
        answers
    }

    /// Opens the channel and pays for three things, the first of which deposits.
    async fn open_with_three(&mut self) {
        self.pay().await.served_by(BY_DEPOSIT);
        self.pay_by_voucher(2).await;
        say("the client deposited and paid for three things");
    }

    /// From now on no call waits in vain for its turn on the channel, however slow the machine is.
    async fn patiently(&mut self) {
        self.start_again_with(PATIENTLY).await;
    }

    /// The same, and the proxy serves one request of a channel at a time.
    async fn one_after_the_other(&mut self) {
        self.start_again_with(&format!("max_in_flight = 1\n{PATIENTLY}")).await;
    }

    /// Starts the proxy again with these lines about channels.
    async fn start_again_with(&mut self, lines: &str) {
        self.peaje.stop().await;
        self.peaje.amend("[channel]", &format!("[channel]\n{lines}"));
        self.peaje.start_again().await;
    }

    async fn paid_to_receiver(&self) -> u128 {
        self.chain.dollars(receiver()).await
    }

    /// The end: the proxy stops well, and every unit is where it belongs. `charged` calls were paid for.
    async fn strike(mut self, charged: u128) {
        self.peaje.stop().await;
        assert_eq!(self.paid_to_receiver().await, charged * PRICE, "the receiver has what was charged");
        assert!(self.chain.owed(receiver()).await.due().is_zero(), "nothing is left to settle");
        let (payer, locked) = (self.chain.dollars(payer()).await, self.chain.locked().await);
        assert_eq!(payer + locked + charged * PRICE, PURSE, "no unit is lost");
        let (balance, claimed) = self.chain.channel(channel_id()).await;
        assert_eq!((claimed, locked), (charged * PRICE, balance - claimed), "the channel says the same");
        say(&format!("stopped: {charged} calls charged, receiver {}, locked {locked}, payer {payer}", charged * PRICE));
    }
}

fn payer() -> Address {
    dev("agent").address()
}

fn receiver() -> Address {
    dev("receiver").address()
}

/// A stock client with the payer's key and empty storage.
async fn agent(chain: &TestChain) -> Client {
    // The key that `dev:agent` names.
    Client::start(genesis::DEV_KEYS[3].to_string(), chain.rpc.clone()).await
}

/// The terms a stock client derives from the offer.
fn channel_config() -> ChannelConfig {
    ChannelConfig {
        payer: payer(),
        payer_authorizer: payer(),
        receiver: receiver(),
        receiver_authorizer: dev("authorizer").address(),
        token: Address(genesis::DOLLAR.into_array()),
        withdraw_delay: 86_400,
        salt: Hash::ZERO,
    }
}

fn domain() -> Domain {
    Domain::settlement(84_532)
}

fn channel_id() -> ChannelId {
    channel_config().id(&domain())
}

fn units(text: &str) -> u128 {
    text.parse().unwrap()
}

/// Waits until a condition holds that is about to.
async fn eventually<F: Future<Output = bool>>(what: &str, condition: impl Fn() -> F) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

// ---- the stories

async fn the_first_request_deposits_the_next_fifty_are_vouchers_and_a_refund_returns_the_rest(mut stage: Stage) {
    let first = stage.pay().await;
    first.served_by(BY_DEPOSIT);
    assert_eq!(first.body, "thing 1");
    assert_eq!(units(first.last().deposit.as_deref().unwrap()), DEPOSIT);
    assert_eq!(units(first.receipt("/amount")), DEPOSIT);
    assert_eq!(units(first.receipt("/extra/chargedAmount")), PRICE);
    assert_eq!(first.receipt("/transaction").len(), 66);
    assert_eq!(stage.chain.deposits().await, [DEPOSIT]);
    assert_eq!(stage.chain.dollars(payer()).await, PURSE - DEPOSIT);
    say("first request: one deposit on chain, 200");

    let head = stage.chain.head().await;
    let rest = stage.pay_by_voucher(50).await;
    for (answer, number) in rest.iter().zip(2u128..) {
        assert_eq!(answer.body, format!("thing {number}"));
        assert_eq!(units(answer.last().max.as_deref().unwrap()), number * PRICE);
        assert_eq!((answer.receipt("/transaction"), answer.receipt("/amount")), ("", ""));
        assert_eq!(units(answer.receipt("/extra/chargedAmount")), PRICE);
        assert_eq!(units(answer.receipt("/extra/channelState/chargedCumulativeAmount")), number * PRICE);
    }
    assert_eq!(stage.chain.head().await, head, "a voucher is no transaction");
    say("next 50 requests: vouchers only, no transaction");

    let seen = stage.upstream.seen();
    assert_eq!(seen.len(), 51);
    for headers in &seen {
        let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
        assert_eq!(text("x-peaje-payer"), Some(payer().to_string()));
        assert_eq!(text("x-peaje-channel"), Some(channel_id().to_string()));
        assert_eq!(text("x-peaje-charged"), Some(PRICE.to_string()));
        let payment = headers.keys().find(|name| name.as_str().contains("payment"));
        assert_eq!(payment, None, "payment headers end at the proxy");
    }
    say("the upstream saw 51 calls, who paid for them, and no payment header");

    let report = stage.peaje.redeem();
    assert_eq!((report.channels, report.transactions.len()), (1, 2));
    assert_eq!((report.claimed, report.settled), (Amount::new(51 * PRICE), Amount::new(51 * PRICE)));
    assert_eq!(stage.paid_to_receiver().await, 51 * PRICE);
    say("peaje redeem: one claim, one settlement, the receiver is paid");

    stage.pay_by_voucher(1).await;
    let refund = stage.client.refund(&stage.thing, None).await;
    assert_eq!(refund.story(), ["nothing 402", "refund 200"], "{refund:#?}");
    assert_eq!(units(refund.receipt("/amount")), DEPOSIT - 52 * PRICE);
    assert_eq!(stage.chain.claims().await, [51 * PRICE, PRICE], "a refund claims what it leaves behind");
    assert_eq!(stage.chain.dollars(payer()).await, PURSE - 52 * PRICE);
    assert_eq!(stage.chain.channel(channel_id()).await, (52 * PRICE, 52 * PRICE));
    assert_eq!(stage.upstream.seen().len(), 52, "a refund is no call");
    say("refund: the rest is back with the payer");

    assert_eq!(stage.chain.deposits().await, [DEPOSIT]);
    stage.strike(52).await;
}

async fn a_partial_refund_leaves_a_channel_that_still_pays(mut stage: Stage) {
    stage.open_with_three().await;
    let refund = stage.client.refund(&stage.thing, Some("100000")).await;
    assert_eq!(refund.receipt("/amount"), "100000");
    assert_eq!(stage.chain.channel(channel_id()).await, (DEPOSIT - 100_000, 3 * PRICE));
    say("two thirds of the deposit are back");
    stage.pay_by_voucher(2).await;
    assert_eq!(stage.chain.deposits().await, [DEPOSIT]);
    stage.strike(5).await;
}

async fn a_channel_that_ran_out_is_topped_up(mut stage: Stage) {
    let calls = usize::try_from(DEPOSIT / PRICE).unwrap();
    stage.pay().await.served_by(BY_DEPOSIT);
    stage.pay_by_voucher(calls - 1).await;
    say(&format!("{calls} calls used the deposit up"));
    stage.pay().await.served_by(BY_DEPOSIT);
    assert_eq!(stage.chain.deposits().await, [DEPOSIT, DEPOSIT]);
    stage.pay_by_voucher(1).await;
    say("the next one deposited again, the one after it did not");
    stage.strike(DEPOSIT / PRICE + 2).await;
}

async fn a_client_without_memory_is_told_what_it_owes(mut stage: Stage) {
    stage.open_with_three().await;
    stage.client.forget().await;
    // On chain nothing is claimed, so the client signs for its first call again.
    let answer = stage.pay().await;
    answer.served_by(&["nothing 402", "voucher corrected by voucher", "voucher 200"]);
    assert_eq!(units(answer.last().max.as_deref().unwrap()), 4 * PRICE);
    stage.pay_by_voucher(2).await;
    assert_eq!(stage.chain.deposits().await, [DEPOSIT]);
    say("it was shown its last voucher, and went on from there");
    stage.strike(6).await;
}

async fn a_client_without_memory_reads_the_chain_after_a_claim(mut stage: Stage) {
    stage.open_with_three().await;
    stage.peaje.redeem();
    stage.client.forget().await;
    stage.pay_by_voucher(2).await;
    say("it found all that was charged on chain, and went on from there");
    // Now the proxy is ahead of the chain by two.
    stage.client.forget().await;
    stage.pay().await.served_by(&["nothing 402", "voucher corrected by voucher", "voucher 200"]);
    stage.pay_by_voucher(1).await;
    assert_eq!(stage.chain.deposits().await, [DEPOSIT]);
    say("it forgot again, and was shown what came after the claim");
    stage.strike(7).await;
}

async fn a_client_without_memory_gets_its_rest_back(mut stage: Stage) {
    stage.open_with_three().await;
    stage.client.forget().await;
    let refund = stage.client.refund(&stage.thing, None).await;
    assert_eq!(refund.story(), ["nothing 402", "refund corrected by voucher", "refund 200"], "{refund:#?}");
    assert_eq!(units(refund.receipt("/amount")), DEPOSIT - 3 * PRICE);
    assert_eq!(stage.chain.dollars(payer()).await, PURSE - 3 * PRICE);
    say("it was told what it had spent, and got the rest back");
    stage.strike(3).await;
}

async fn a_restarted_proxy_goes_on_where_its_redemption_ended(mut stage: Stage) {
    stage.open_with_three().await;
    // A request that is being served when the order to stop comes is served to its end, and charged.
    stage.client.begin_stream(&stage.peaje.url("/slow"));
    eventually("the upstream works", || async { stage.upstream.seen().len() == 4 }).await;
    stage.peaje.terminate();
    stage.client.answers().await[0].served_by(BY_VOUCHER);
    assert_eq!(stage.peaje.ended().await.code(), Some(0));
    assert_eq!(stage.chain.claims().await, [4 * PRICE]);
    assert_eq!(stage.paid_to_receiver().await, 4 * PRICE);
    say("told to stop: the call in flight was served, everything claimed and settled");

    stage.peaje.start_again().await;
    stage.pay_by_voucher(3).await;
    assert_eq!(stage.chain.deposits().await, [DEPOSIT]);
    say("started again: the client did not notice");
    stage.strike(7).await;
}

async fn after_a_crash_nobody_notices_and_nothing_is_lost(mut stage: Stage) {
    stage.open_with_three().await;
    stage.peaje.redeem();
    stage.pay_by_voucher(2).await;
    stage.peaje.crash();
    stage.peaje.start_again().await;
    say("the proxy was killed with two calls unclaimed, and started again");
    stage.pay_by_voucher(2).await;
    assert_eq!(stage.chain.deposits().await, [DEPOSIT]);
    say("the client did not notice");
    stage.strike(7).await;
}

async fn after_a_total_loss_the_client_follows_the_chain(mut stage: Stage) {
    stage.open_with_three().await;
    stage.peaje.redeem();
    stage.pay_by_voucher(2).await;
    stage.peaje.crash();
    stage.peaje.lose_books();
    stage.peaje.start_again().await;
    say("the proxy was killed with two calls unclaimed, and its disk is gone");
    // What was not claimed is the provider's loss, never the client's.
    let answer = stage.pay().await;
    answer.served_by(&["nothing 402", "voucher corrected by chain", "voucher 200"]);
    assert_eq!(units(answer.last().max.as_deref().unwrap()), 4 * PRICE);
    stage.pay_by_voucher(1).await;
    assert_eq!(stage.chain.deposits().await, [DEPOSIT]);
    say("the client read the chain and went on from what was claimed");
    stage.strike(5).await;
}

async fn a_channel_refunded_behind_the_clients_back_is_topped_up(mut stage: Stage) {
    stage.open_with_three().await;
    let mut other = agent(&stage.chain).await;
    let refund = other.refund(&stage.thing, None).await;
    assert_eq!(units(refund.receipt("/amount")), DEPOSIT - 3 * PRICE);
    say("another client of the same key took the rest out");
    let answer = stage.pay().await;
    answer.served_by(&["nothing 402", "voucher corrected by voucher", "deposit 200"]);
    assert_eq!(stage.chain.deposits().await, [DEPOSIT, DEPOSIT]);
    stage.pay_by_voucher(1).await;
    say("the first one was corrected, deposited again, and went on");
    // The other one knows nothing of it: its record went with the refund.
    other.pay(&stage.thing).await.served_by(&["nothing 402", "voucher corrected by voucher", "voucher 200"]);
    stage.strike(6).await;
}

async fn a_channel_refunded_before_its_first_charge_is_funded_again(mut stage: Stage) {
    // Nothing is left of such a channel on chain, unlike of one that was claimed from.
    stage.upstream.fail_next(1);
    assert_eq!(stage.pay().await.story(), ["nothing 402", "deposit 500"]);
    let refund = agent(&stage.chain).await.refund(&stage.thing, None).await;
    assert_eq!(units(refund.receipt("/amount")), DEPOSIT);
    assert_eq!(stage.chain.channel(channel_id()).await, (0, 0));
    say("the first request failed, and another client of the same key took the whole deposit out");
    stage.pay().await.served_by(&["nothing 402", "voucher corrected by chain", "deposit 200"]);
    stage.pay_by_voucher(1).await;
    say("the first one was corrected, deposited again, and went on");
    stage.strike(2).await;
}

async fn a_channel_drained_before_a_restart_is_topped_up(mut stage: Stage) {
    stage.open_with_three().await;
    let refund = agent(&stage.chain).await.refund(&stage.thing, None).await;
    assert_eq!(units(refund.receipt("/amount")), DEPOSIT - 3 * PRICE);
    stage.peaje.stop().await;
    stage.peaje.start_again().await;
    say("another client took the rest out, and the proxy was restarted");
    stage.pay().await.served_by(&["nothing 402", "voucher corrected by voucher", "deposit 200"]);
    stage.pay_by_voucher(1).await;
    assert_eq!(stage.chain.deposits().await, [DEPOSIT, DEPOSIT]);
    stage.strike(5).await;
}

async fn a_channel_drained_by_the_provider_is_topped_up(mut stage: Stage) {
    stage.open_with_three().await;
    stage.peaje.redeem();
    // What an idle refund is, made with the authorizer's key past the proxy.
    let (authorizer, left) = (dev("authorizer"), Amount::new(DEPOSIT - 3 * PRICE));
    let nonce = stage.chain.eyes.channel(channel_id()).await.unwrap().refund_nonce;
    let call = Call::ClaimAndRefund {
        claim_signature: authorizer.sign(claim_batch_digest(&domain(), &[])),
        rows: Vec::new(),
        config: channel_config(),
        amount: left,
        nonce,
        refund_signature: authorizer.sign(refund_digest(&domain(), channel_id(), nonce, left)),
    };
    stage.chain.send(authorizer, &call).await;
    assert_eq!(stage.chain.dollars(payer()).await, PURSE - 3 * PRICE);
    let drained = Amount::new(3 * PRICE);
    eventually("the proxy sees the refund", || async { stage.peaje.channel().await.balance == drained }).await;
    say("the provider gave the rest back on chain");
    let answer = stage.pay().await;
    answer.served_by(&["nothing 402", "voucher corrected by voucher", "deposit 200"]);
    assert_eq!(stage.chain.deposits().await, [DEPOSIT, DEPOSIT]);
    stage.pay_by_voucher(2).await;
    say("the client, none the wiser, was corrected, deposited again, and went on");
    stage.strike(6).await;
}

async fn parallel_requests_are_all_served(mut stage: Stage) {
    stage.patiently().await;
    stage.open_with_three().await;
    side_by_side(&mut stage, 3).await;
    stage.strike(3 + 2 * CROWD + 3).await;
}

async fn parallel_requests_are_all_served_one_after_the_other(mut stage: Stage) {
    stage.open_with_three().await;
    stage.one_after_the_other().await;
    side_by_side(&mut stage, 3).await;
    assert_eq!(stage.upstream.most_at_once(), 1);
    stage.strike(3 + 2 * CROWD + 3).await;
}

async fn parallel_first_requests_make_one_deposit_and_are_all_served(mut stage: Stage) {
    stage.patiently().await;
    side_by_side(&mut stage, 0).await;
    stage.strike(2 * CROWD + 3).await;
}

async fn parallel_first_requests_are_all_served_one_after_the_other(mut stage: Stage) {
    stage.one_after_the_other().await;
    side_by_side(&mut stage, 0).await;
    assert_eq!(stage.upstream.most_at_once(), 1);
    stage.strike(2 * CROWD + 3).await;
}

/// How many calls are made side by side.
const CROWD: u128 = 20;

/// As long as may be.
const PATIENTLY: &str = "max_wait = \"60s\"";

/// A crowd of calls at once, each of which is served and charged once; then, by a client that has forgotten what it
/// signed, another, of a slower upstream; then three more. `before` were charged before.
async fn side_by_side(stage: &mut Stage, before: u128) {
    let crowd = usize::try_from(CROWD).unwrap();
    let fast = stage.client.pay_at_once(&stage.peaje.url("/after/5"), crowd).await;
    all_charged_once(stage, &fast, before).await;
    assert_eq!(stage.chain.deposits().await, [DEPOSIT]);
    stage.client.forget().await;
    let slow = stage.client.pay_at_once(&stage.peaje.url("/after/50"), crowd).await;
    all_charged_once(stage, &slow, before + CROWD).await;
    // Whatever the client believes now, it finds its way back.
    assert_eq!(stage.pay().await.status, Some(200));
    stage.pay_by_voucher(2).await;
    assert_eq!(stage.chain.deposits().await, [DEPOSIT]);
}

/// All calls were served, by a handler of its own each, and charged the price each. `before` were charged before.
async fn all_charged_once(stage: &Stage, answers: &[Answer], before: u128) {
    for answer in answers {
        say(&format!("  {}", answer.story().join(", ")));
    }
    for answer in answers {
        assert_eq!((answer.status, &answer.thrown), (Some(200), &None), "{answer:#?}");
        assert_eq!(units(answer.receipt("/extra/chargedAmount")), PRICE);
    }
    let count = u128::try_from(answers.len()).unwrap();
    // Every accepted voucher is another one, a price above the one before.
    let mut ceilings: Vec<_> = answers.iter().map(|answer| units(answer.last().max.as_deref().unwrap())).collect();
    ceilings.sort_unstable();
    let expected: Vec<_> = (1..=count).map(|number| (before + number) * PRICE).collect();
    assert_eq!(ceilings, expected);
    let bodies: std::collections::BTreeSet<_> = answers.iter().map(|answer| &answer.body).collect();
    assert_eq!(bodies.len(), answers.len(), "each has the answer of a handler of its own");
    assert_eq!(u128::try_from(stage.upstream.seen().len()).unwrap(), before + count);
    assert_eq!(stage.peaje.channel().await.charged, Amount::new((before + count) * PRICE));
    let most = stage.upstream.most_at_once();
    say(&format!("{count} calls at once: all served and charged once each, up to {most} at a time"));
}

async fn a_failed_first_request_keeps_its_deposit(mut stage: Stage) {
    stage.upstream.fail_next(1);
    let first = stage.pay().await;
    assert_eq!(first.story(), ["nothing 402", "deposit 500"]);
    assert_eq!((first.status, first.body.as_str()), (Some(500), "out of order"));
    assert_eq!(units(first.receipt("/amount")), DEPOSIT);
    assert_eq!(first.receipt("/extra/chargedAmount"), "0");
    say("the upstream failed: the deposit is on chain, nothing is charged, and the client is told both");
    let next = stage.pay_by_voucher(2).await;
    assert_eq!(units(next[0].last().max.as_deref().unwrap()), PRICE);
    assert_eq!(stage.chain.deposits().await, [DEPOSIT]);
    stage.strike(2).await;
}

async fn a_failed_request_costs_nothing(mut stage: Stage) {
    stage.open_with_three().await;
    stage.upstream.fail_next(2);
    for answer in stage.client.pay_times(&stage.thing, 2).await {
        assert_eq!(answer.story(), ["nothing 402", "voucher 500"]);
        assert_eq!(units(answer.last().max.as_deref().unwrap()), 4 * PRICE, "the same voucher again");
    }
    stage.pay_by_voucher(1).await;
    stage.strike(4).await;
}

async fn a_lost_answer_is_charged_and_the_client_goes_on(mut stage: Stage) {
    stage.open_with_three().await;
    let lost = stage.client.lose(&stage.thing).await;
    assert_eq!(lost.story(), ["nothing 402", "voucher 200"]);
    assert_eq!(lost.thrown.as_deref(), Some("the connection was lost"));
    let answer = stage.pay().await;
    answer.served_by(&["nothing 402", "voucher corrected by voucher", "voucher 200"]);
    stage.pay_by_voucher(1).await;
    say("what was served is paid, though its receipt was lost; the client was told");
    stage.strike(6).await;
}

async fn a_lost_answer_to_the_first_request_is_no_reason_to_deposit_twice(mut stage: Stage) {
    // The client knows of no deposit and signs another one. Nothing was charged, so the first one is all there.
    stage.upstream.fail_next(1);
    let lost = stage.client.lose(&stage.thing).await;
    assert_eq!(lost.story(), ["nothing 402", "deposit 500"]);
    stage.pay().await.served_by(&["nothing 402", "deposit corrected by chain", "voucher 200"]);
    stage.pay_by_voucher(1).await;
    assert_eq!(stage.chain.deposits().await, [DEPOSIT]);
    say("a second deposit was not relayed: the client read the chain and found the first");
    stage.strike(2).await;
}

async fn a_stream_is_read_while_it_is_written(mut stage: Stage) {
    stage.pay().await.served_by(BY_DEPOSIT);
    let upstream = stage.upstream.next_stream();
    stage.client.begin_stream(&stage.peaje.url("/stream"));
    let mut whole = String::new();
    for number in 1..=3 {
        // The next piece is written after the one before was read, so nothing on the way waits for the end.
        let piece = format!("data: {number}\n\n");
        upstream.send(piece.clone()).unwrap();
        assert_eq!(stage.client.chunk().await, piece);
        whole.push_str(&piece);
    }
    drop(upstream);
    let answer = stage.client.answers().await.remove(0);
    answer.served_by(BY_VOUCHER);
    assert_eq!(answer.body, whole);
    assert_eq!(units(answer.receipt("/extra/chargedAmount")), PRICE);
    say("three pieces, each read before the next was written");
    stage.pay_by_voucher(1).await;
    stage.strike(3).await;
}
