//! What happens to channels past the proxy is found out: through events, through reorganisations that take events back,
//! and by the sweep where a node leaves events out. And what strangers may cost: deposits, wallets, idle channels.
//!
//! The chain is the development chain behind a gateway that can hide things; blocks come when the test says so.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests fail the test")]

#[path = "support/payer.rs"]
mod payer;

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use peaje::chain::{AlloyChain, Call, Chain as _, KeyRef};
use peaje::devnet::{Devnet, DevnetConfig, Mining, genesis};
use peaje::gate::desk::{DepositEnd, Question};
use peaje::gate::path::PathPattern;
use peaje::gate::policy::{Policy, Price, Route, Terms};
use peaje::gate::{DepositLimits, Desk, Gate, Limits, Peer, Statement};
use peaje::ledger::View;
use peaje::protocol::claim::{ClaimRow, claim_batch_digest};
use peaje::protocol::x402::{self, PAYMENT_REQUIRED, PAYMENT_SIGNATURE};
use peaje::protocol::{Address, Amount, Hash, LocalKey};
use peaje::redeem::{Redemption, Settings, Watch};
use peaje::store::Opening;
use serde_json::{Value, json};
use tower::{Layer as _, ServiceExt as _};

use payer::{Payer, Payment, usual_terms};

const PRICE: u128 = 2_000;
const DEPOSIT: u128 = 10 * PRICE;
const PURSE: u128 = 100 * DEPOSIT;
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);
const NEVER: Duration = Duration::from_secs(3_600);

fn dev(name: &str) -> LocalKey {
    format!("dev:{name}").parse::<KeyRef>().unwrap().load(true).unwrap()
}

fn evm(address: Address) -> alloy::primitives::Address {
    alloy::primitives::Address::new(address.0)
}

async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let begun = tokio::time::Instant::now();
    while !condition().await {
        assert!(begun.elapsed() < PATIENCE, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

// ------------------------------------------------------------------------------------------------------- the gateway

/// What stands between redemption and the node.
struct Gateway {
    to: String,
    http: reqwest::Client,
    state: Mutex<Ways>,
}

#[derive(Debug, Default)]
struct Ways {
    /// Events are left out of answers.
    hides_events: bool,
    /// No transaction is taken.
    pool_full: bool,
    /// There is no block of this number, says the node.
    misses: Option<u64>,
    /// There is no newest block, says the node.
    is_blind: bool,
    /// How often the newest block was asked for.
    looks: u64,
    /// The last block whose events were asked for.
    read_to: u64,
}

async fn pass(State(gateway): State<Arc<Gateway>>, Json(question): Json<Value>) -> Json<Value> {
    let method = question["method"].as_str().unwrap();
    let (hides_events, pool_full) = {
        let ways = gateway.state.lock().unwrap();
        (ways.hides_events, ways.pool_full)
    };
    if method == "eth_sendRawTransaction" && pool_full {
        let error = json!({"code": -32000, "message": "txpool is full"});
        return Json(json!({"jsonrpc": "2.0", "id": question["id"], "error": error}));
    }
    let mut answer: Value = gateway.http.post(&gateway.to).json(&question).send().await.unwrap().json().await.unwrap();
    let mut ways = gateway.state.lock().unwrap();
    match method {
        "eth_getLogs" => {
            let to = question["params"][0]["toBlock"].as_str().unwrap().trim_start_matches("0x");
            ways.read_to = u64::from_str_radix(to, 16).unwrap();
            if hides_events {
                answer["result"] = json!([]);
            }
        }
        "eth_getBlockByNumber" if question["params"][0] == "latest" => {
            ways.looks += 1;
            if ways.is_blind {
                answer["result"] = Value::Null;
            }
        }
        "eth_getBlockByNumber" if ways.misses.is_some_and(|n| question["params"][0] == format!("{n:#x}")) => {
            answer["result"] = Value::Null;
        }
        _ => {}
    }
    Json(answer)
}

// --------------------------------------------------------------------------------------------------------- the stage

struct Stage {
    devnet: Devnet,
    gateway: Arc<Gateway>,
    gate: Gate,
    redemption: Redemption,
    /// Past the gateway.
    chain: AlloyChain,
    terms: Terms,
}

struct Options {
    watch: Watch,
    limits: Limits,
}

impl Default for Options {
    fn default() -> Self {
        Self { watch: Watch { sweep_interval: NEVER, refund_idle: None }, limits: Limits::default() }
    }
}

/// An answer as it came.
#[derive(Debug)]
struct Answered {
    status: StatusCode,
    headers: HeaderMap,
    body: Value,
}

impl Answered {
    fn error(&self) -> &str {
        self.body["error"].as_str().unwrap_or_default()
    }

    #[track_caller]
    fn assert_served(&self) {
        assert_eq!(self.status, StatusCode::OK, "{self:?}");
    }

    #[track_caller]
    fn assert_refused(&self, status: u16, error: &str) {
        assert_eq!((self.status.as_u16(), self.error()), (status, error), "{self:?}");
    }
}

/// Sends a paid request to a gate.
async fn ask(gate: &Gate, peer: Option<&str>, payment: &Payment) -> Answered {
    let mut request = Request::get("/paid").header(PAYMENT_SIGNATURE, payment.header()).body(()).unwrap();
    if let Some(peer) = peer {
        request.extensions_mut().insert(Peer(peer.parse::<IpAddr>().unwrap()));
    }
    let upstream = tower::service_fn(async |_: Request<()>| {
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"{}"))))
    });
    let response = gate.layer().layer(upstream).oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let body = serde_json::from_slice(&body).unwrap_or_default();
    Answered { status: parts.status, headers: parts.headers, body }
}

impl Stage {
    async fn set(options: Options) -> Self {
        peaje::chain::install_tls();
        let devnet = Devnet::start(DevnetConfig::default()).await.unwrap();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let gateway = Arc::new(Gateway { to: devnet.rpc_url(), http, state: Mutex::default() });
        let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", socket.local_addr().unwrap());
        let router = axum::Router::new().fallback(axum::routing::post(pass)).with_state(Arc::clone(&gateway));
        tokio::spawn(async move { axum::serve(socket, router).await.unwrap() });

        let terms = Terms {
            receiver_authorizer: dev("authorizer").address(),
            pay_to: Address([0xc0; 20]),
            withdraw_delay_s: 900,
            ..usual_terms()
        };
        let routes = vec![Route::new(PathPattern::parse("/paid").unwrap(), Price::Fixed(Amount::new(PRICE)))];
        let policy = Policy::new(terms.clone(), "https://api.example", routes).unwrap();
        let (desk, questions) = Desk::new();
        let gate = Gate::new(policy, desk).with_limits(options.limits);
        let settings = Settings { poll: POLL, watch: options.watch, ..Settings::default() };
        let chain = Arc::new(AlloyChain::connect(url.parse().unwrap(), Some(dev("gas"))).await.unwrap());
        let redemption =
            Redemption::start(gate.clone(), questions, chain, dev("authorizer"), settings, Opening::default());
        let chain = AlloyChain::connect(devnet.rpc_url().parse().unwrap(), Some(dev("5"))).await.unwrap();
        devnet.fund(evm(dev("5").address()), genesis::DEV_BALANCE);
        Self { devnet, gateway, gate, redemption, chain, terms }
    }

    fn payer(&self, n: u8) -> Payer {
        let payer = Payer::new(n, &self.terms, PRICE);
        self.devnet.mint_dollars(evm(payer.address()), PURSE).unwrap();
        payer
    }

    async fn pay(&self, payment: &Payment) -> Answered {
        self.pay_from(None, payment).await
    }

    async fn pay_from(&self, peer: Option<&str>, payment: &Payment) -> Answered {
        ask(&self.gate, peer, payment).await
    }

    /// A payer whose channel has [`DEPOSIT`] and was charged once.
    async fn opened(&self, n: u8) -> Payer {
        let payer = self.payer(n);
        self.pay(&payer.deposit(DEPOSIT, PRICE)).await.assert_served();
        payer
    }

    fn books(&self, payer: &Payer) -> Statement {
        self.gate.accounts().statement(&payer.id()).expect("the channel is known")
    }

    fn dollars(&self, owner: Address) -> u128 {
        self.devnet.dollar_balance(evm(owner)).unwrap()
    }

    fn ways<T>(&self, change: impl FnOnce(&mut Ways) -> T) -> T {
        change(&mut self.gateway.state.lock().unwrap())
    }

    /// Waits until the follower has read everything there is, and has looked once more.
    async fn followed(&self) {
        let head = self.devnet.block_number();
        eventually("the chain is followed", async || self.ways(|ways| ways.read_to) >= head).await;
        // The look that read it is over by then, whoever else asked for the newest block meanwhile.
        self.looked(5).await;
    }

    /// Waits for some looks.
    async fn looked(&self, times: u64) {
        let looks = || self.ways(|ways| ways.looks);
        let before = looks();
        eventually("the chain is looked at", async || looks() > before + times).await;
    }

    /// Sends a call past the proxy and waits until it is carried out.
    async fn past_the_proxy(&self, key: LocalKey, call: &Call) {
        self.devnet.fund(evm(key.address()), genesis::DEV_BALANCE);
        let chain = AlloyChain::connect(self.devnet.rpc_url().parse().unwrap(), Some(key)).await.unwrap();
        let hash = chain.send(call).await.unwrap();
        let mined = chain.await_receipt(hash, PATIENCE, POLL).await.unwrap().expect("mined in time");
        assert!(mined.success, "{mined:?}");
    }

    async fn withdraw(&self, payer: &Payer, amount: u128) {
        let call = Call::InitiateWithdraw { config: payer.config, amount: Amount::new(amount) };
        self.past_the_proxy(payer.key.clone(), &call).await;
    }

    /// Another instance with the same authorizer's key claims.
    async fn claim_elsewhere(&self, payer: &Payer, total: u128) {
        let signed = payer.signed(total);
        let (max_claimable, signature) = (signed.max_claimable, signed.signature);
        let rows = vec![ClaimRow { config: payer.config, max_claimable, signature, total_claimed: Amount::new(total) }];
        let signature = dev("authorizer").sign(claim_batch_digest(&payer.settlement(), &rows));
        self.past_the_proxy(dev("5"), &Call::ClaimWithSignature { rows, signature }).await;
    }

    /// Waits until the provider has so much, and everything is booked.
    async fn redeemed(&self, sum: u128) {
        eventually("it is settled", async || self.dollars(self.terms.pay_to) == sum).await;
        // A round that was in progress is over when the next one is.
        self.redemption.redeem().await.unwrap();
    }

    /// What the contract says: balance, claimed.
    async fn on_chain(&self, payer: &Payer) -> (u128, u128) {
        let view = self.chain.channel(payer.id()).await.unwrap();
        (view.balance.units(), view.total_claimed.units())
    }

    async fn strike(self) {
        self.devnet.set_mining(Mining::OnDemand);
        self.redemption.stop().await;
        self.devnet.shutdown().await;
    }
}

// ---------------------------------------------------------------------------------------------------- reorganisations

#[tokio::test]
async fn a_withdrawal_that_a_reorganisation_drops_is_forgotten() {
    let stage = Stage::set(Options::default()).await;
    let payer = stage.opened(1).await;
    stage.withdraw(&payer, DEPOSIT - PRICE).await;
    eventually("it is seen", async || stage.books(&payer).view.withdrawal.is_some()).await;
    // The claim it calls for is in a block of its own; all of them go, and more than the overlap.
    stage.redeemed(PRICE).await;
    stage.devnet.mine(20).unwrap();
    stage.followed().await;
    stage
        .pay(&payer.voucher(2 * PRICE))
        .await
        .assert_refused(402, "invalid_batch_settlement_evm_cumulative_exceeds_balance");

    let announced = stage.books(&payer).view.withdrawal.unwrap();
    let depth = stage.devnet.block_number() - deposit_block(&stage).await;
    stage.devnet.reorg(depth).unwrap();
    assert_eq!(stage.on_chain(&payer).await, (DEPOSIT, 0));
    eventually("it is forgotten", async || stage.books(&payer).view.withdrawal.is_none()).await;
    assert!(announced.initiated_at > 0);
    let books = stage.books(&payer);
    assert_eq!(
        (books.view.total_claimed, books.unclaimed),
        (Amount::ZERO, Amount::new(PRICE)),
        "the claim went with it"
    );
    stage.pay(&payer.voucher(2 * PRICE)).await.assert_served();
    stage.strike().await;
}

/// The block of the first deposit.
async fn deposit_block(stage: &Stage) -> u64 {
    let events = stage.chain.events(0, stage.devnet.block_number()).await.unwrap();
    let deposit = events.iter().find(|event| matches!(event.what, peaje::chain::Happening::Deposited { .. }));
    deposit.expect("there was one").at.block
}

#[tokio::test]
async fn a_claim_that_a_reorganisation_drops_is_due_again_and_claimed_again() {
    let stage = Stage::set(Options::default()).await;
    let payer = stage.opened(1).await;
    stage.pay(&payer.voucher(2 * PRICE)).await.assert_served();
    let before = stage.devnet.block_number();
    stage.claim_elsewhere(&payer, 2 * PRICE).await;
    stage.devnet.mine(6).unwrap();
    eventually("it is booked", async || stage.books(&payer).unclaimed.is_zero()).await;
    stage.followed().await;
    stage.devnet.reorg(stage.devnet.block_number() - before).unwrap();
    eventually("it is due again", async || stage.books(&payer).unclaimed == Amount::new(2 * PRICE)).await;
    let report = stage.redemption.redeem().await.unwrap();
    assert_eq!((report.claimed.units(), report.settled.units()), (2 * PRICE, 2 * PRICE), "{report:?}");
    stage.strike().await;
}

/// A view is also booked by whoever pays, and by the sweep: perhaps of a block that the follower never reads.
#[tokio::test]
async fn what_others_have_booked_of_a_block_is_taken_back_although_the_follower_never_read_it() {
    let stage = Stage::set(Options::default()).await;
    let payer = stage.opened(1).await;
    stage.pay(&payer.voucher(2 * PRICE)).await.assert_served();
    stage.devnet.mine(6).unwrap();
    stage.followed().await;
    stage.ways(|ways| ways.is_blind = true);
    stage.looked(2).await;
    let before = stage.devnet.block_number();
    stage.claim_elsewhere(&payer, 2 * PRICE).await;
    let view = stage.chain.channel(payer.id()).await.unwrap();
    stage.gate.accounts().observe(payer.id(), &payer.config, view).unwrap();
    assert!(stage.books(&payer).unclaimed.is_zero());
    stage.devnet.reorg(stage.devnet.block_number() - before).unwrap();
    stage.ways(|ways| ways.is_blind = false);
    eventually("it is due again", async || stage.books(&payer).unclaimed == Amount::new(2 * PRICE)).await;
    stage.strike().await;
}

#[tokio::test]
async fn a_deposit_that_a_reorganisation_drops_covers_nothing_any_more() {
    let stage = Stage::set(Options::default()).await;
    let payer = stage.opened(1).await;
    let before = stage.devnet.block_number();
    stage.pay(&payer.deposit(DEPOSIT, 2 * PRICE)).await.assert_served();
    stage.devnet.mine(6).unwrap();
    stage.followed().await;
    assert_eq!(stage.books(&payer).view.balance.units(), 2 * DEPOSIT);
    stage.devnet.reorg(stage.devnet.block_number() - before).unwrap();
    eventually("it is gone", async || stage.books(&payer).view.balance.units() == DEPOSIT).await;
    assert_eq!(stage.books(&payer).charged.units(), 2 * PRICE, "what was charged stays charged");
    stage.strike().await;
}

/// Where nothing that is remembered is left, every open channel is read.
#[tokio::test]
async fn a_reorganisation_beyond_all_that_is_remembered_is_answered_by_a_sweep() {
    let stage = Stage::set(Options::default()).await;
    let payer = stage.opened(1).await;
    let before = stage.devnet.block_number();
    stage.withdraw(&payer, PRICE).await;
    stage.redeemed(PRICE).await;
    for _ in 0..4 {
        stage.devnet.mine(90).unwrap();
        stage.followed().await;
    }
    assert!(stage.books(&payer).view.withdrawal.is_some());
    stage.devnet.reorg(stage.devnet.block_number() - before).unwrap();
    assert!(stage.chain.channel(payer.id()).await.unwrap().withdrawal.is_none());
    // The sweep reads a chain that is no longer than the one before; it is believed once it is.
    stage.devnet.mine(1).unwrap();
    eventually("it is forgotten", async || stage.books(&payer).view.withdrawal.is_none()).await;
    stage.strike().await;
}

/// A chain that became shorter has older blocks than the books; what it says is true all the same.
#[tokio::test]
async fn a_chain_that_became_shorter_is_believed_where_blocks_were_dropped() {
    let stage = Stage::set(Options::default()).await;
    let payer = stage.opened(1).await;
    let snapshot = stage.devnet.snapshot();
    stage.devnet.mine(1).unwrap();
    stage.withdraw(&payer, PRICE).await;
    stage.redeemed(PRICE).await;
    stage.devnet.mine(7).unwrap();
    stage.followed().await;
    let high = stage.books(&payer).view;
    assert!(high.withdrawal.is_some());
    assert!(stage.devnet.revert(snapshot));
    // Two other blocks in place of eleven; the clock makes them others.
    stage.devnet.increase_time(Duration::from_secs(7));
    stage.devnet.mine(3).unwrap();
    let head = stage.devnet.block_number();
    assert!(head < high.block, "{head} {high:?}");
    // Empty blocks at the same heights: the ones that were remembered are not there.
    eventually("it is forgotten", async || stage.books(&payer).view.withdrawal.is_none()).await;
    assert!(stage.books(&payer).view.block <= stage.devnet.block_number());
    stage.strike().await;
}

/// One bad answer must not shut a payer out for ever, nor must a node that hangs take the books back.
#[tokio::test]
async fn a_view_of_a_block_the_chain_does_not_reach_is_replaced_once_the_chain_has_moved_on() {
    let watch = Watch { sweep_interval: POLL, refund_idle: None };
    let stage = Stage::set(Options { watch, ..Options::default() }).await;
    let payer = stage.opened(1).await;
    stage.followed().await;
    let bogus = View { block: 1_000_000_000, balance: Amount::new(7 * DEPOSIT), ..stage.books(&payer).view };
    stage.gate.accounts().observe(payer.id(), &payer.config, bogus).unwrap();
    stage.looked(100).await;
    assert_eq!(stage.books(&payer).view, bogus, "a chain that stands still proves nothing");
    stage.devnet.mine(1).unwrap();
    eventually("the truth is booked", async || stage.books(&payer).view.balance.units() == DEPOSIT).await;
    assert!(stage.books(&payer).view.block <= stage.devnet.block_number());
    stage.pay(&payer.voucher(2 * PRICE)).await.assert_served();
    stage.strike().await;
}

// --------------------------------------------------------------------------------------------------- sweep and vitals

#[tokio::test]
async fn a_withdrawal_whose_event_is_left_out_is_found_by_the_sweep_and_claimed() {
    let watch = Watch { sweep_interval: Duration::from_millis(100), refund_idle: None };
    let stage = Stage::set(Options { watch, ..Options::default() }).await;
    stage.ways(|ways| ways.hides_events = true);
    let payer = stage.opened(1).await;
    stage.withdraw(&payer, DEPOSIT - PRICE).await;
    eventually("it is found", async || stage.books(&payer).view.withdrawal.is_some()).await;
    eventually("it is claimed", async || stage.on_chain(&payer).await == (DEPOSIT, PRICE)).await;
    eventually("it is settled", async || stage.dollars(Address([0xc0; 20])) == PRICE).await;
    stage.strike().await;
}

#[tokio::test]
async fn a_block_that_stays_missing_stops_neither_the_follower_nor_the_sweep() {
    let watch = Watch { sweep_interval: POLL, refund_idle: None };
    let stage = Stage::set(Options { watch, ..Options::default() }).await;
    let payer = stage.opened(1).await;
    stage.followed().await;
    // The last one that was read, and no longer the newest.
    let missing = stage.devnet.block_number();
    stage.ways(|ways| ways.misses = Some(missing));
    stage.withdraw(&payer, DEPOSIT).await;
    eventually("the sweep sees it", async || stage.books(&payer).view.withdrawal.is_some()).await;
    eventually("it is claimed", async || stage.books(&payer).view.total_claimed.units() == PRICE).await;
    let head = stage.devnet.block_number();
    eventually("blocks are read again", async || stage.ways(|ways| ways.read_to) >= head).await;
    let since = tokio::time::Instant::now();
    eventually("the chain is heard again", async || since.elapsed() > stage.redemption.chain_silence()).await;
}

#[tokio::test]
async fn without_event_and_sweep_nothing_is_found() {
    let stage = Stage::set(Options::default()).await;
    let payer = stage.opened(1).await;
    // The follower may have been faster than the payment. Then it reads the channel with the next block.
    stage.followed().await;
    stage.devnet.mine(1).unwrap();
    stage.followed().await;
    stage.ways(|ways| ways.hides_events = true);
    stage.withdraw(&payer, DEPOSIT - PRICE).await;
    stage.followed().await;
    stage.looked(20).await;
    assert!(stage.books(&payer).view.withdrawal.is_none(), "the test above would show nothing");
    stage.strike().await;
}

#[tokio::test]
async fn operators_are_told_how_far_the_chain_is_behind() {
    let stage = Stage::set(Options::default()).await;
    stage.devnet.mine(1).unwrap();
    eventually("it is noted", async || stage.redemption.vitals().chain_lag_s.is_some()).await;
    eventually("a fresh block", async || stage.redemption.vitals().chain_lag_s.is_some_and(|lag| lag < 30)).await;
    stage.strike().await;
}

// ------------------------------------------------------------------------------------------------------------ wallets

/// A payer whose own account approves its vouchers.
fn of_account(payer: &Payer) -> Payer {
    let mut payer = payer.clone();
    payer.config.payer_authorizer = Address::ZERO;
    payer
}

#[tokio::test]
async fn a_wallets_channel_is_claimed_at_half_of_what_is_risked_on_it_and_refused_above() {
    let limits = Limits { max_wallet_exposure: Amount::new(4 * PRICE), ..Limits::default() };
    let stage = Stage::set(Options { limits, ..Options::default() }).await;
    let payer = of_account(&stage.payer(1));
    stage.pay(&payer.deposit(DEPOSIT, PRICE)).await.assert_served();
    stage.looked(20).await;
    assert_eq!(stage.on_chain(&payer).await, (DEPOSIT, 0), "below half of it, a claim waits for the clock");
    stage.ways(|ways| ways.pool_full = true);
    for n in 2..=4 {
        stage.pay(&payer.voucher(n * PRICE)).await.assert_served();
    }
    let refused = stage.pay(&payer.voucher(5 * PRICE)).await;
    refused.assert_refused(402, "wallet_exposure_limit");
    assert!(refused.headers.contains_key("retry-after"));
    let quote: Value = x402::decode(refused.headers[PAYMENT_REQUIRED].as_bytes()).unwrap();
    assert_eq!(quote["accepts"][0]["extra"].get("channelState"), None, "no corrective: signing again would not help");
    // A payer with a key of its own for vouchers is not limited so.
    let other = stage.payer(2);
    stage.ways(|ways| ways.pool_full = false);
    eventually("it is claimed", async || stage.on_chain(&payer).await.1 == 4 * PRICE).await;
    eventually("it is booked", async || stage.books(&payer).unclaimed.is_zero()).await;
    stage.pay(&payer.voucher(5 * PRICE)).await.assert_served();
    stage.pay(&other.deposit(DEPOSIT, PRICE)).await.assert_served();
    for n in 2..=6 {
        stage.pay(&other.voucher(n * PRICE)).await.assert_served();
    }
    stage.strike().await;
}

#[tokio::test]
async fn a_price_above_what_is_risked_on_a_wallet_is_refused_before_its_deposit_is_sent() {
    let limits = Limits { max_wallet_exposure: Amount::new(PRICE - 1), ..Limits::default() };
    let stage = Stage::set(Options { limits, ..Options::default() }).await;
    let payer = of_account(&stage.payer(1));
    stage.pay(&payer.deposit(DEPOSIT, PRICE)).await.assert_refused(402, "wallet_exposure_limit");
    assert_eq!((stage.on_chain(&payer).await, stage.dollars(payer.address())), ((0, 0), PURSE));
    stage.opened(2).await;
    stage.strike().await;
}

// ------------------------------------------------------------------------------------------------------- withdrawals

#[tokio::test]
async fn within_the_margin_neither_vouchers_nor_deposits_are_taken() {
    // The margin begins with the announcement.
    let limits = Limits { withdraw_margin_s: 900, ..Limits::default() };
    let stage = Stage::set(Options { limits, ..Options::default() }).await;
    let payer = stage.opened(1).await;
    stage.withdraw(&payer, PRICE).await;
    eventually("it is seen", async || stage.books(&payer).view.withdrawal.is_some()).await;
    let refused = stage.pay(&payer.voucher(2 * PRICE)).await;
    refused.assert_refused(402, "channel_withdrawing");
    let quote: Value = x402::decode(refused.headers[PAYMENT_REQUIRED].as_bytes()).unwrap();
    assert_eq!(quote["accepts"][0]["extra"].get("channelState"), None);
    stage.pay(&payer.deposit(DEPOSIT, 2 * PRICE)).await.assert_refused(402, "channel_withdrawing");
    assert_eq!(stage.on_chain(&payer).await.0, DEPOSIT);
    // Another channel of the payer is served.
    stage.pay(&payer.with_salt(1).deposit(DEPOSIT, PRICE)).await.assert_served();
    stage.devnet.increase_time(Duration::from_secs(901));
    stage.past_the_proxy(payer.key.clone(), &Call::FinalizeWithdraw { config: payer.config }).await;
    eventually("it is finished", async || stage.books(&payer).view.withdrawal.is_none()).await;
    stage.pay(&payer.voucher(2 * PRICE)).await.assert_served();
    stage.strike().await;
}

// ----------------------------------------------------------------------------------------------------------- deposits

#[tokio::test]
async fn deposits_are_relayed_within_a_budget_for_each_peer_and_for_all() {
    let deposits = DepositLimits { per_peer_per_hour: 1, per_hour: 3 };
    let stage = Stage::set(Options { limits: Limits { deposits, ..Limits::default() }, ..Options::default() }).await;
    let (near, far) = (Some("192.0.2.1"), Some("2001:db8::1"));
    let payers: Vec<_> = (1..=6).map(|n| stage.payer(n)).collect();
    stage.pay_from(near, &payers[0].deposit(DEPOSIT, PRICE)).await.assert_served();
    let refused = stage.pay_from(near, &payers[1].deposit(DEPOSIT, PRICE)).await;
    refused.assert_refused(429, "deposit_rate_limited");
    let seconds: u64 = refused.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((3_500..=3_600).contains(&seconds), "{seconds}");
    assert!(!refused.headers.contains_key(PAYMENT_REQUIRED), "it does not ask for another payment");
    assert_eq!((stage.on_chain(&payers[1]).await, stage.dollars(payers[1].address())), ((0, 0), PURSE));
    // Vouchers are not counted.
    stage.pay_from(near, &payers[0].voucher(2 * PRICE)).await.assert_served();
    stage.pay_from(far, &payers[1].deposit(DEPOSIT, PRICE)).await.assert_served();
    // What is tried and not sent does not count: signatures of accounts with nothing cost nothing, and must not use up
    // what there is for those who have something.
    let mut poor = payers[5].clone();
    poor.key = LocalKey::from_bytes(&[77; 32]).unwrap();
    poor.config = stage.terms.channel_of(poor.key.address());
    for peer in [None, None, Some("198.51.100.1"), Some("198.51.100.1")] {
        let refused = stage.pay_from(peer, &poor.deposit(DEPOSIT, PRICE)).await;
        refused.assert_refused(402, "invalid_batch_settlement_evm_insufficient_balance");
    }
    // What is refused before does not.
    let refused = stage.pay_from(None, &payers[2].deposit(DEPOSIT, 2 * PRICE)).await;
    refused.assert_refused(402, "invalid_batch_settlement_evm_cumulative_amount_mismatch");
    stage.pay_from(None, &payers[2].deposit(DEPOSIT, PRICE)).await.assert_served();
    stage
        .pay_from(Some("192.0.2.9"), &payers[3].deposit(DEPOSIT, PRICE))
        .await
        .assert_refused(429, "deposit_rate_limited");
    stage.pay_from(None, &payers[3].deposit(DEPOSIT, PRICE)).await.assert_refused(429, "deposit_rate_limited");
    stage.strike().await;
}

/// A refund costs gas as a deposit does, and a payer may ask for a unit at a time, on any number of channels.
#[tokio::test]
async fn refunds_are_paid_within_a_budget_for_each_peer_and_for_all() {
    let deposits = DepositLimits { per_peer_per_hour: 2, per_hour: 3 };
    let stage = Stage::set(Options { limits: Limits { deposits, ..Limits::default() }, ..Options::default() }).await;
    let near = Some("192.0.2.1");
    let (one, two) = (stage.opened(1).await, stage.opened(2).await);
    let unit = |payer: &Payer| payer.refund(PRICE, Some("1"));
    for payer in [&one, &two] {
        assert_eq!(stage.pay_from(near, &unit(payer)).await.status, 200);
    }
    let refused = stage.pay_from(near, &unit(&one)).await;
    refused.assert_refused(429, "refund_rate_limited");
    let seconds: u64 = refused.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((3_500..=3_600).contains(&seconds), "{seconds}");
    assert_eq!(stage.pay_from(None, &unit(&one)).await.status, 200);
    stage.pay_from(None, &unit(&two)).await.assert_refused(429, "refund_rate_limited");
    // Deposits have a count of their own.
    stage.pay_from(near, &stage.payer(3).deposit(DEPOSIT, PRICE)).await.assert_served();
    stage.strike().await;
}

/// Anybody can name an account as the payer of a channel whose vouchers are signed by another key.
#[tokio::test]
async fn nobody_else_takes_a_payers_place_for_a_deposit() {
    let stage = Stage::set(Options::default()).await;
    let (payer, thief) = (stage.payer(1), stage.payer(2));
    let mut forged = thief.clone();
    forged.config.payer = payer.address();
    stage.devnet.set_mining(Mining::Manual);
    let deposit = payer.deposit(DEPOSIT, PRICE);
    let (served, ()) = tokio::join!(stage.pay(&deposit), async {
        eventually("it is sent", async || stage.devnet.pending_transactions().len() == 1).await;
        // Told at once: it does not even wait for the place.
        let refused = stage.pay(&forged.deposit(DEPOSIT, PRICE)).await;
        refused.assert_refused(402, "invalid_batch_settlement_evm_receive_authorization_signature");
        assert_eq!(stage.devnet.pending_transactions().len(), 1);
        stage.devnet.mine(1).unwrap();
    });
    served.assert_served();
    stage.strike().await;
}

#[tokio::test]
async fn a_payer_has_one_deposit_on_its_way_however_many_channels_it_has() {
    let stage = Stage::set(Options::default()).await;
    let payer = stage.payer(1);
    let channels = [payer.clone(), payer.with_salt(1), payer.with_salt(2)];
    let other = stage.payer(2);
    stage.devnet.set_mining(Mining::Manual);
    let pending = || stage.devnet.pending_transactions().len();
    let payments = channels.each_ref().map(|channel| channel.deposit(DEPOSIT, PRICE));
    let (first, second, third, ()) =
        tokio::join!(stage.pay(&payments[0]), stage.pay(&payments[1]), stage.pay(&payments[2]), async {
            for mined in 1..=3 {
                eventually("one is sent", async || pending() == 1).await;
                stage.looked(5).await;
                assert_eq!(pending(), 1, "and no more");
                if mined == 1 {
                    // Another payer does not wait.
                    let payment = other.deposit(DEPOSIT, PRICE);
                    let (served, ()) = tokio::join!(stage.pay(&payment), async {
                        eventually("both are sent", async || pending() == 2).await;
                        stage.devnet.mine(1).unwrap();
                    });
                    served.assert_served();
                } else {
                    stage.devnet.mine(1).unwrap();
                }
            }
        });
    for answer in [first, second, third] {
        answer.assert_served();
    }
    for channel in &channels {
        assert_eq!(stage.on_chain(channel).await, (DEPOSIT, 0));
    }
    assert_eq!(stage.dollars(payer.address()), PURSE - 3 * DEPOSIT);
    stage.strike().await;
}

/// A chain on which deposits count late: a desk where the test says what the chain says.
struct LateChain {
    gate: Gate,
    /// The balance that counts.
    balance: Mutex<u128>,
    /// Questions so far: for views, and deposits to relay.
    asked: Mutex<(u64, usize)>,
}

impl LateChain {
    fn start(max_timeout_s: u64) -> Arc<Self> {
        let terms = Terms { max_timeout_s, ..usual_terms() };
        let routes = vec![Route::new(PathPattern::parse("/paid").unwrap(), Price::Fixed(Amount::new(PRICE)))];
        let (desk, mut questions) = Desk::new();
        let gate = Gate::new(Policy::new(terms, "https://api.example", routes).unwrap(), desk);
        let chain = Arc::new(Self { gate, balance: Mutex::new(0), asked: Mutex::default() });
        let at_the_desk = Arc::clone(&chain);
        tokio::spawn(async move {
            while let Some(question) = questions.recv().await {
                at_the_desk.answer(question);
            }
        });
        chain
    }

    fn view(&self) -> View {
        let mut asked = self.asked.lock().unwrap();
        asked.0 += 1;
        View { block: asked.0, balance: Amount::new(*self.balance.lock().unwrap()), ..View::default() }
    }

    fn answer(&self, question: Question) {
        match question {
            Question::View { reply, .. } => reply.send(Ok(self.view())).unwrap(),
            Question::Deposit { config, deposit, place, .. } => {
                self.asked.lock().unwrap().1 += 1;
                // So much counts at once.
                *self.balance.lock().unwrap() = 1;
                let view = self.view();
                self.gate.accounts().observe(place.channel(), &config, view).unwrap();
                self.gate.accounts().note_deposit(&place.channel(), deposit.authorization.salt());
                place.end(DepositEnd::Landed { transaction: Hash([7; 32]), view });
            }
            other => panic!("{other:?}"),
        }
    }

    async fn pay(&self, payment: &Payment) -> Answered {
        ask(&self.gate, None, payment).await
    }

    fn asked(&self) -> (u64, usize) {
        *self.asked.lock().unwrap()
    }
}

#[tokio::test]
async fn a_deposit_that_landed_and_does_not_count_yet_keeps_its_request_waiting() {
    let chain = LateChain::start(60);
    let payer = Payer::new(1, chain.gate.policy().terms(), PRICE);
    let payment = payer.deposit(DEPOSIT, PRICE);
    let (served, ()) = tokio::join!(chain.pay(&payment), async {
        eventually("it is asked again and again", async || chain.asked().0 > 4).await;
        *chain.balance.lock().unwrap() = DEPOSIT;
    });
    served.assert_served();
    let receipt: Value = x402::decode(served.headers[x402::PAYMENT_RESPONSE].as_bytes()).unwrap();
    assert_eq!((receipt["success"].as_bool(), receipt["amount"].as_str()), (Some(true), Some("20000")));
}

#[tokio::test]
async fn a_deposit_that_does_not_count_in_time_is_pending_and_its_payload_finds_it_later() {
    let chain = LateChain::start(4);
    let payer = Payer::new(1, chain.gate.policy().terms(), PRICE);
    let payment = payer.deposit_with(DEPOSIT, PRICE, |wish| wish.valid_before += 600);
    for _ in 0..2 {
        let pending = chain.pay(&payment).await;
        pending.assert_refused(503, "settlement_pending");
        assert!(!pending.headers.contains_key(x402::PAYMENT_RESPONSE), "nothing is said to have failed");
    }
    *chain.balance.lock().unwrap() = DEPOSIT;
    chain.pay(&payment).await.assert_served();
    assert_eq!(chain.asked().1, 1, "it was relayed once");
}

// ------------------------------------------------------------------------------------------------------ idle channels

#[tokio::test]
async fn what_is_left_on_an_idle_channel_goes_back_and_its_payer_can_go_on() {
    let watch = Watch { sweep_interval: NEVER, refund_idle: Some(Duration::from_secs(3)) };
    let stage = Stage::set(Options { watch, ..Options::default() }).await;
    let payer = stage.opened(1).await;
    // One with less than a cent left, and one that withdraws: nothing is taken from us until we know that.
    let nearly_empty = stage.payer(3);
    stage.pay(&nearly_empty.deposit(PRICE + 9_999, PRICE)).await.assert_served();
    let leaving = stage.opened(2).await;
    stage.ways(|ways| ways.pool_full = true);
    stage.withdraw(&leaving, 2 * PRICE).await;
    eventually("it is seen", async || stage.books(&leaving).view.withdrawal.is_some()).await;
    stage.ways(|ways| ways.pool_full = false);
    eventually("it is refunded", async || stage.dollars(payer.address()) == PURSE - PRICE).await;
    assert_eq!(stage.on_chain(&payer).await, (PRICE, PRICE), "what was charged is claimed with it");
    eventually("it is booked", async || stage.books(&payer).view.balance.units() == PRICE).await;

    // As a stock client goes on: its voucher is corrected, it reads the chain, and deposits.
    let corrected = stage.pay(&payer.voucher(2 * PRICE)).await;
    corrected.assert_refused(402, "invalid_batch_settlement_evm_cumulative_amount_mismatch");
    stage.pay(&payer.deposit(DEPOSIT, 2 * PRICE)).await.assert_served();
    // That one is idle again after a while, the others still are, and are left alone.
    eventually("again", async || stage.dollars(payer.address()) == PURSE - 2 * PRICE).await;
    assert_eq!(stage.on_chain(&leaving).await.0, DEPOSIT);
    assert_eq!(stage.on_chain(&nearly_empty).await.0, PRICE + 9_999);
    stage.strike().await;
}

#[tokio::test]
async fn unless_asked_for_nothing_is_given_back() {
    let stage = Stage::set(Options::default()).await;
    let payer = stage.opened(1).await;
    stage.looked(100).await;
    assert_eq!(stage.on_chain(&payer).await, (DEPOSIT, 0));
    stage.strike().await;
}
