//! Money under a chain that misbehaves: the gate and redemption together, over a chain that is scripted.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests fail the test")]

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use serde_json::{Value, json};
use tower::{Layer as _, ServiceExt as _};

use peaje::chain::{
    Bid, Call, Chain, ChainError, ChannelEvent, GasPrice, Happening, Head, LogPosition, Mined, Nonces, Owed,
    Replacement, Resent, SendError, SignedTransaction, TokenDomain, Witness,
};
use peaje::gate::path::PathPattern;
use peaje::gate::policy::{Policy, Price, Route, Terms, TokenTerms};
use peaje::gate::{Desk, Gate};
use peaje::ledger::{View, Withdrawal};
use peaje::protocol::claim::ClaimRow;
use peaje::protocol::deposit::Authorization;
use peaje::protocol::voucher::PayerEvidence;
use peaje::protocol::x402::{self, PAYMENT_REQUIRED, PAYMENT_RESPONSE, PAYMENT_SIGNATURE, Receipt};
use peaje::protocol::{
    Address, Amount, ChannelConfig, ChannelId, Code, Domain, Hash, LocalKey, Network, Signature, Voucher,
};
use peaje::redeem::{Redemption, Sending, Settings};
use peaje::store::Opening;

const CHAIN_ID: u64 = 84_532;
const PRICE: u128 = 2_000;
const DEPOSIT: u128 = 10 * PRICE;

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

// -------------------------------------------------------------------------------------------------------- the chain

/// A chain that carries out every call in a block of its own, except where it is told to misbehave.
#[derive(Default)]
struct Scripted(Mutex<State>);

#[derive(Default)]
struct State {
    block: u64,
    channels: HashMap<ChannelId, View>,
    used: HashSet<Hash>,
    owed: u128,
    settled: u128,
    mined: HashMap<Hash, Mined>,
    /// How many rows each claim that was sent had.
    claims: Vec<usize>,
    /// Somebody else relays every deposit first, so that ours reverts.
    front_run: bool,
    /// With every deposit so much is claimed, past the gate.
    claimed_elsewhere: u128,
    /// A claim of this channel passes its simulation and reverts when it is mined.
    poison: Option<ChannelId>,
    /// Claims of these channels fail their simulation, and why.
    refused: HashMap<ChannelId, &'static str>,
    /// How many claims were simulated.
    simulated: usize,
    /// The node does not answer simulations.
    mute: bool,
    /// Gas costs more than may be paid for what is not urgent.
    dear: bool,
    /// The node names a nonce that is far too high, and no block has what has it.
    ahead: bool,
    /// Nobody can say how channels are.
    blind: bool,
    /// How many receipts name a block that is far ahead of the chain.
    false_receipts: usize,
}

impl State {
    fn view(&self, id: ChannelId) -> View {
        View { block: self.block, ..self.channels.get(&id).copied().unwrap_or_default() }
    }

    /// Carries out a call; whether that went well, and what happened.
    fn run(&mut self, call: &Call) -> (bool, Vec<Happening>) {
        let settlement = Domain::settlement(CHAIN_ID);
        match call {
            Call::Deposit { config, amount, authorization, .. } => {
                let channel = config.id(&settlement);
                self.used.insert(Authorization::nonce(channel, authorization.salt()));
                let view = self.channels.entry(channel).or_default();
                view.balance = view.balance.checked_add(*amount).unwrap();
                view.total_claimed = view.total_claimed.checked_add(Amount::new(self.claimed_elsewhere)).unwrap();
                (!self.front_run, Vec::new())
            }
            Call::ClaimWithSignature { rows, .. } | Call::Claim { rows } => {
                self.claims.push(rows.len());
                let id = |row: &ClaimRow| row.config.id(&settlement);
                if rows.iter().any(|row| Some(id(row)) == self.poison) {
                    return (false, Vec::new());
                }
                let mut happened = Vec::new();
                for row in rows {
                    let view = self.channels.get_mut(&id(row)).unwrap();
                    let amount = row.total_claimed.checked_sub(view.total_claimed).unwrap();
                    view.total_claimed = row.total_claimed;
                    self.owed += amount.units();
                    happened.push(Happening::Claimed {
                        channel: id(row),
                        amount,
                        new_total_claimed: row.total_claimed,
                    });
                }
                (true, happened)
            }
            Call::Settle { receiver, token } => {
                let amount = Amount::new(self.owed - self.settled);
                self.settled = self.owed;
                (true, vec![Happening::Settled { receiver: *receiver, token: *token, amount }])
            }
            other => panic!("no test sends {other:?}"),
        }
    }
}

impl Scripted {
    fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.0.lock().unwrap())
    }
}

impl Chain for Scripted {
    fn chain_id(&self) -> u64 {
        CHAIN_ID
    }

    fn sender(&self) -> Option<Address> {
        Some(Address([0x6a; 20]))
    }

    async fn nonces(&self) -> Result<Nonces, ChainError> {
        let made = self.with(|state| if state.ahead { state.block - 100 } else { state.block });
        Ok(Nonces { mined: made, pending: made })
    }

    async fn gas_price(&self) -> Result<GasPrice, ChainError> {
        Ok(GasPrice { base_wei: 1, tip_wei: 1, data_wei_per_byte: 0, block_gas_limit: 30_000_000 })
    }

    async fn block(&self, number: u64) -> Result<Option<Head>, ChainError> {
        let known = self.with(|state| number <= state.block);
        Ok(known.then(|| Head { number, hash: Hash::ZERO, timestamp: now_s() }))
    }

    async fn head(&self) -> Result<Head, ChainError> {
        Ok(Head { number: self.with(|state| state.block), hash: Hash::ZERO, timestamp: now_s() })
    }

    async fn channel(&self, id: ChannelId) -> Result<View, ChainError> {
        Ok(self.with(|state| state.view(id)))
    }

    async fn channels(&self, ids: &[ChannelId]) -> Result<Vec<View>, ChainError> {
        self.with(|state| match state.blind {
            true => Err(ChainError::Disagreement { what: "the channels", nodes: Vec::new() }),
            false => Ok(ids.iter().map(|id| state.view(*id)).collect()),
        })
    }

    async fn payer_evidence(&self, _: Address, _: Hash, _: &Signature) -> Result<PayerEvidence, ChainError> {
        Ok(PayerEvidence::NoCode)
    }

    async fn has_code(&self, _: Address) -> Result<bool, ChainError> {
        Ok(false)
    }

    async fn token_balance(&self, _: Address, _: Address) -> Result<Amount, ChainError> {
        Ok(Amount::MAX)
    }

    async fn allowance(&self, _: Address, _: Address, _: Address) -> Result<Amount, ChainError> {
        Ok(Amount::MAX)
    }

    async fn permit_nonce(&self, _: Address, _: Address) -> Result<Option<Hash>, ChainError> {
        Ok(None)
    }

    async fn permit2_nonce_used(&self, _: Address, nonce: Hash) -> Result<bool, ChainError> {
        Ok(self.with(|state| state.used.contains(&nonce)))
    }

    async fn authorization_used(&self, _: Address, _: Address, nonce: Hash) -> Result<bool, ChainError> {
        Ok(self.with(|state| state.used.contains(&nonce)))
    }

    async fn token_domain(&self, _: Address) -> Result<TokenDomain, ChainError> {
        panic!("no test asks")
    }

    async fn gas_balance(&self, _: Address) -> Result<u128, ChainError> {
        Ok(u128::MAX)
    }

    async fn receivers(&self, _: Address, _: Address) -> Result<Owed, ChainError> {
        Ok(self
            .with(|state| Owed { total_claimed: Amount::new(state.owed), total_settled: Amount::new(state.settled) }))
    }

    async fn simulate(&self, call: &Call) -> Result<u64, ChainError> {
        let (Call::ClaimWithSignature { rows, .. } | Call::Claim { rows }) = call else { return Ok(100_000) };
        self.with(|state| {
            state.simulated += 1;
            if state.mute {
                return Err(ChainError::Unreachable { source: "no answer".into() });
            }
            let id = |row: &ClaimRow| row.config.id(&Domain::settlement(CHAIN_ID));
            match rows.iter().find_map(|row| state.refused.get(&id(row))) {
                Some(name) => Err(ChainError::Reverted { name: Some((*name).to_owned()) }),
                None => Ok(100_000),
            }
        })
    }

    async fn send_witnessed<W: Witness>(
        &self,
        call: &Call,
        bid: Bid,
        _: Option<u64>,
        witness: &W,
    ) -> Result<Hash, SendError> {
        self.simulate(call).await.map_err(SendError::Refused)?;
        if self.with(|state| state.dear) && !bid.urgent {
            return Err(SendError::Refused(ChainError::TooDear { asked_wei: 2, ceiling_wei: 1 }));
        }
        let nonce = self.with(|state| state.block);
        let hash = Hash([u8::try_from(nonce + 1).unwrap(); 32]);
        let transaction = SignedTransaction { hash, sender: Address([0x6a; 20]), nonce, raw: Vec::new() };
        witness.sees(&transaction).await.map_err(SendError::Withheld)?;
        Ok(self.with(|state| {
            if state.ahead {
                return hash;
            }
            let (success, happened) = state.run(call);
            state.block += 1;
            let block = state.block;
            let hash = Hash([u8::try_from(block).unwrap(); 32]);
            let at = LogPosition { block, log_index: 0, block_hash: hash, transaction: hash };
            let events = happened.into_iter().map(|what| ChannelEvent { at, what }).collect();
            state
                .mined
                .insert(hash, Mined { hash, block, block_hash: hash, success, gas_used: 1, fee_wei: None, events });
            hash
        }))
    }

    async fn replace_witnessed<W: Witness>(
        &self,
        _: &SignedTransaction,
        _: Bid,
        _: &W,
    ) -> Result<Replacement, SendError> {
        Ok(Replacement::AtCeiling)
    }

    async fn resend(&self, _: &SignedTransaction) -> Result<Resent, ChainError> {
        Ok(Resent::Known)
    }

    async fn receipt(&self, transaction: Hash) -> Result<Option<Mined>, ChainError> {
        Ok(self.with(|state| {
            let lies = state.false_receipts.checked_sub(1);
            let mined = state.mined.get(&transaction).cloned()?;
            state.false_receipts = lies.unwrap_or_default();
            Some(if lies.is_some() { Mined { block: 1_000_000_000, ..mined } } else { mined })
        }))
    }

    async fn events(&self, _: u64, _: u64) -> Result<Vec<ChannelEvent>, ChainError> {
        Ok(Vec::new())
    }
}

// --------------------------------------------------------------------------------------------------------- the toll

struct Toll {
    gate: Gate,
    chain: Arc<Scripted>,
    redemption: Redemption,
    terms: Terms,
}

impl Toll {
    fn open(state: State) -> Self {
        Self::run(state, Settings { poll: Duration::from_millis(5), ..Settings::default() })
    }

    fn run(state: State, settings: Settings) -> Self {
        let usdc = Network::by_chain_id(CHAIN_ID).unwrap().token("usdc").unwrap();
        let authorizer = LocalKey::from_bytes(&[3; 32]).unwrap();
        let terms = Terms {
            chain_id: CHAIN_ID,
            token: TokenTerms::preset(usdc),
            pay_to: Address([1; 20]),
            receiver_authorizer: authorizer.address(),
            withdraw_delay_s: 900,
            max_timeout_s: 60,
            max_in_flight: 32,
            min_deposit: None,
        };
        let routes = vec![Route::new(PathPattern::parse("/paid").unwrap(), Price::Fixed(Amount::new(PRICE)))];
        let policy = Policy::new(terms.clone(), "https://api.example", routes).unwrap();
        let (desk, questions) = Desk::new();
        let gate = Gate::new(policy, desk);
        let chain = Arc::new(Scripted(Mutex::new(state)));
        let redemption =
            Redemption::start(gate.clone(), questions, Arc::clone(&chain), authorizer, settings, Opening::default());
        Self { gate, chain, redemption, terms }
    }

    fn payer(&self, number: u8) -> Payer {
        let key = LocalKey::from_bytes(&[number; 32]).unwrap();
        let config = self.terms.channel_of(key.address());
        Payer { key, config }
    }

    async fn pay(&self, payload: Value) -> Response<()> {
        let accepted = json!(self.terms.offer(Amount::new(PRICE)));
        let payment = json!({"x402Version": 2, "accepted": accepted, "payload": payload});
        let served = tower::service_fn(|_: Request<()>| async {
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"served"))))
        });
        let request = Request::get("/paid").header(PAYMENT_SIGNATURE, x402::encode(&payment)).body(()).unwrap();
        self.gate.layer().layer(served).oneshot(request).await.unwrap().map(|_| ())
    }
}

struct Payer {
    key: LocalKey,
    config: ChannelConfig,
}

impl Payer {
    fn id(&self) -> ChannelId {
        self.config.id(&Domain::settlement(CHAIN_ID))
    }

    fn voucher(&self, terms: &Terms, max: u128) -> Value {
        let voucher = Voucher { channel: self.id(), max_claimable: Amount::new(max) };
        json!({
            "type": "voucher",
            "channelConfig": self.config,
            "voucher": voucher.sign(&terms.settlement(), &self.key),
        })
    }

    /// A voucher up to `max`, and the deposit that goes with it.
    fn deposit(&self, terms: &Terms, amount: u128, max: u128) -> Value {
        let (amount, salt, valid_before) = (Amount::new(amount), Hash([7; 32]), now_s() + 60);
        let nonce = Authorization::nonce(self.id(), salt);
        let digest = Authorization::digest(&terms.token_domain(), self.config.payer, amount, 0, valid_before, nonce);
        let voucher = Voucher { channel: self.id(), max_claimable: Amount::new(max) };
        json!({
            "type": "deposit",
            "channelConfig": self.config,
            "voucher": voucher.sign(&terms.settlement(), &self.key),
            "deposit": {"amount": amount, "authorization": {"erc3009Authorization": {
                "validAfter": "0", "validBefore": valid_before.to_string(), "salt": salt,
                "signature": self.key.sign(digest),
            }}},
        })
    }
}

fn receipt(response: &Response<()>) -> Option<Receipt> {
    response.headers().get(PAYMENT_RESPONSE).map(|text| x402::decode(text.as_bytes()).unwrap())
}

// --------------------------------------------------------------------------------------------------------- the tests

/// Its authorization may be good for years, and nobody sends it again.
#[tokio::test]
async fn a_deposit_that_is_given_up_does_not_keep_its_payer_from_bringing_it_again() {
    let sending = Sending { bump_after: Duration::from_millis(20), ..Sending::default() };
    let settings = Settings { poll: Duration::from_millis(5), sending, ..Settings::default() };
    let toll = Toll::run(State { ahead: true, block: 100, ..State::default() }, settings);
    let payer = toll.payer(9);
    let deposit = payer.deposit(&toll.terms, DEPOSIT, PRICE);
    let answer = toll.pay(deposit.clone()).await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE, "it is not called failed: {answer:?}");
    toll.chain.with(|state| state.ahead = false);
    assert_eq!(toll.pay(deposit).await.status(), StatusCode::OK);
    toll.redemption.stop().await;
}

/// Told that it failed, a stock client signs another deposit and has paid twice.
#[tokio::test]
async fn a_deposit_that_somebody_else_relayed_is_not_called_failed() {
    let toll = Toll::open(State { front_run: true, ..State::default() });
    let payer = toll.payer(9);
    let answer = toll.pay(payer.deposit(&toll.terms, DEPOSIT, PRICE)).await;
    assert_eq!(answer.status(), StatusCode::OK, "{answer:?}");
    let receipt = receipt(&answer).unwrap();
    assert!(receipt.success);
    assert_eq!(receipt.amount, Some(DEPOSIT.to_string()));
    assert_eq!(receipt.charged_amount(), Some(Amount::new(PRICE)));
    toll.redemption.stop().await;
}

/// A stock client that finds a receipt does not recover; and it books none whose sums are not its own. It would sign
/// another deposit. The corrective alone makes it read the chain, where its money is.
#[tokio::test]
async fn a_corrective_after_a_deposit_has_no_receipt() {
    let toll = Toll::open(State { claimed_elsewhere: 1, ..State::default() });
    let payer = toll.payer(9);
    let answer = toll.pay(payer.deposit(&toll.terms, DEPOSIT, PRICE)).await;
    assert_eq!(answer.status(), StatusCode::PAYMENT_REQUIRED);
    assert_eq!(receipt(&answer), None);
    let quote: Value = x402::decode(answer.headers()[PAYMENT_REQUIRED].as_bytes()).unwrap();
    assert_eq!(quote["error"], Code::CumulativeAmountMismatch.as_str());
    let state = &quote["accepts"][0]["extra"]["channelState"];
    assert_eq!((&state["balance"], &state["chargedCumulativeAmount"]), (&json!(DEPOSIT.to_string()), &json!("1")));
    toll.redemption.stop().await;
}

/// A simulation cannot promise what happens when a claim is mined.
#[tokio::test]
async fn a_row_that_reverts_when_mined_does_not_hold_up_the_others() {
    let toll = Toll::open(State::default());
    let payers: Vec<_> = (1..=8).map(|number| toll.payer(number + 16)).collect();
    for payer in &payers {
        assert_eq!(toll.pay(payer.deposit(&toll.terms, DEPOSIT, PRICE)).await.status(), StatusCode::OK);
    }
    toll.chain.with(|state| state.poison = Some(payers[5].id()));
    let report = toll.redemption.redeem().await.unwrap();
    assert_eq!((report.channels, report.claimed), (7, Amount::new(7 * PRICE)));
    assert_eq!(report.settled, Amount::new(7 * PRICE));
    assert_eq!(report.failures.iter().map(|row| row.channel).collect::<Vec<_>>(), [payers[5].id()]);
    assert_eq!(report.left, Amount::new(PRICE));
    // All, all again because each passed when it was tried, and then halves: one with the bad row each time.
    let mut claims = toll.chain.with(|state| state.claims.clone());
    claims.sort_unstable();
    assert_eq!(claims, [1, 1, 2, 2, 4, 4, 8, 8]);
    // Each try costs gas, so there is no other for a while.
    assert_eq!(toll.redemption.redeem().await.unwrap().failures.len(), 1);
    assert_eq!(toll.chain.with(|state| state.claims.len()), 8);
    toll.redemption.stop().await;
}

#[tokio::test]
async fn two_bad_rows_in_twenty_are_found_by_simulation_and_the_others_claimed_in_one_transaction() {
    let toll = Toll::open(State::default());
    let payers: Vec<_> = (1..=20).map(|number| toll.payer(number + 16)).collect();
    for payer in &payers {
        assert_eq!(toll.pay(payer.deposit(&toll.terms, DEPOSIT, PRICE)).await.status(), StatusCode::OK);
    }
    let (gone, forged) = (payers[4].id(), payers[13].id());
    toll.chain.with(|state| state.refused = [(gone, "ClaimExceedsBalance"), (forged, "InvalidSignature")].into());
    let report = toll.redemption.redeem().await.unwrap();
    assert_eq!((report.channels, report.problem.as_ref()), (18, None), "{report:?}");
    assert_eq!((report.claimed, report.settled), (Amount::new(18 * PRICE), Amount::new(18 * PRICE)));
    assert_eq!(toll.chain.with(|state| state.claims.clone()), [18], "in one transaction");
    assert!(toll.chain.with(|state| state.simulated) < 30);
    let reason = |channel| report.quarantined.iter().find(|row| row.channel == channel).unwrap().reason.clone();
    assert!(reason(gone).starts_with("the deposit is gone"), "{}", reason(gone));
    assert!(reason(forged).contains("signature"), "{}", reason(forged));
    assert_eq!((report.quarantined.len(), report.failures.len()), (2, 2));
    let vitals = toll.redemption.vitals();
    assert_eq!((vitals.quarantined.len(), vitals.failing_since), (2, None), "a bad row is no failure of ours");
    assert_eq!(vitals.quarantined[0].unclaimed, Amount::new(PRICE));

    // Whoever orders a round by hand may know that the fault is mended; trying costs nothing.
    let simulated = toll.chain.with(|state| state.simulated);
    let report = toll.redemption.redeem().await.unwrap();
    assert_eq!((report.failures.len(), report.quarantined.len(), report.transactions.len()), (2, 2, 0));
    assert!(toll.chain.with(|state| state.simulated) > simulated);
    assert_eq!(toll.redemption.vitals().failing_since, None, "they were refused when others were not");
    toll.chain.with(|state| state.refused.remove(&forged));
    let report = toll.redemption.redeem().await.unwrap();
    assert_eq!((report.claimed, report.quarantined.len()), (Amount::new(PRICE), 1), "{report:?}");
    assert_eq!(report.quarantined[0].channel, gone);
    toll.redemption.stop().await;
}

#[tokio::test]
async fn a_node_that_cannot_be_asked_is_no_reason_for_quarantine() {
    let toll = Toll::open(State::default());
    let payers: Vec<_> = (1..=4).map(|number| toll.payer(number + 16)).collect();
    for payer in &payers {
        assert_eq!(toll.pay(payer.deposit(&toll.terms, DEPOSIT, PRICE)).await.status(), StatusCode::OK);
    }
    toll.chain.with(|state| state.mute = true);
    let report = toll.redemption.redeem().await.unwrap();
    assert!(report.problem.is_some());
    assert_eq!((report.failures.len(), report.quarantined.len()), (0, 0));
    assert!(toll.redemption.vitals().failing_since.is_some());
    toll.chain.with(|state| state.mute = false);
    let report = toll.redemption.redeem().await.unwrap();
    assert!(report.is_complete(), "{report:?}");
    assert_eq!((report.channels, toll.redemption.vitals().failing_since), (4, None));
    toll.redemption.stop().await;
}

/// A node that named a block once that is not there must not be waited for to have it.
#[tokio::test]
async fn a_receipt_of_a_block_that_never_comes_is_asked_for_again() {
    let toll = Toll::open(State::default());
    let payer = toll.payer(9);
    assert_eq!(toll.pay(payer.deposit(&toll.terms, DEPOSIT, PRICE)).await.status(), StatusCode::OK);
    toll.chain.with(|state| state.false_receipts = 1);
    let report = toll.redemption.redeem().await.unwrap();
    assert_eq!((report.channels, report.settled), (1, Amount::new(PRICE)));
    assert!(report.is_complete(), "{report:?}");
    toll.redemption.stop().await;
}

/// A contract that takes nothing is nobody's bad row: the key is wrong, or the contract, or the node.
#[tokio::test]
async fn a_contract_that_refuses_every_row_is_a_failure_until_it_claims_one() {
    let toll = Toll::open(State::default());
    let payers: Vec<_> = (1..=3).map(|number| toll.payer(number + 16)).collect();
    for payer in &payers {
        assert_eq!(toll.pay(payer.deposit(&toll.terms, DEPOSIT, PRICE)).await.status(), StatusCode::OK);
    }
    toll.chain.with(|state| state.refused = payers.iter().map(|payer| (payer.id(), "InvalidSignature")).collect());
    let report = toll.redemption.redeem().await.unwrap();
    assert!(report.problem.as_ref().is_some_and(|problem| problem.contains("refuses rows")), "{report:?}");
    let since = toll.redemption.vitals().failing_since;
    assert!(since.is_some());
    toll.redemption.redeem().await.unwrap();
    assert_eq!(toll.redemption.vitals().failing_since, since);

    // One that is claimed shows that the others are bad by themselves.
    toll.chain.with(|state| state.refused.remove(&payers[0].id()));
    let report = toll.redemption.redeem().await.unwrap();
    assert_eq!((report.channels, report.quarantined.len(), report.problem), (1, 2, None));
    assert_eq!(toll.redemption.vitals().failing_since, None);
    toll.redemption.redeem().await.unwrap();
    assert_eq!(toll.redemption.vitals().failing_since, None);
    toll.redemption.stop().await;
}

/// Its payer is about to take the money, and what may be paid for it is more.
#[tokio::test]
async fn what_is_too_dear_for_others_does_not_keep_an_urgent_claim_waiting() {
    let toll = Toll::open(State::default());
    let mut wallet = toll.payer(8);
    wallet.config.payer_authorizer = Address::ZERO;
    for payer in [&wallet, &toll.payer(9)] {
        assert_eq!(toll.pay(payer.deposit(&toll.terms, DEPOSIT, PRICE)).await.status(), StatusCode::OK);
    }
    toll.chain.with(|state| {
        let withdrawal = Withdrawal { amount: Amount::new(DEPOSIT), initiated_at: now_s() };
        state.channels.get_mut(&wallet.id()).unwrap().withdrawal = Some(withdrawal);
        state.dear = true;
    });
    let report = toll.redemption.redeem().await.unwrap();
    assert_eq!((report.channels, report.claimed, report.left), (1, Amount::new(PRICE), Amount::new(PRICE)));
    assert!(report.problem.as_ref().is_some_and(|problem| problem.contains("gas costs")), "{report:?}");
    toll.chain.with(|state| state.dear = false);
    assert!(toll.redemption.redeem().await.unwrap().is_complete());
    toll.redemption.stop().await;
}

/// They may disagree for longer than a withdrawal takes.
#[tokio::test]
async fn nodes_that_disagree_do_not_keep_an_urgent_claim_from_being_made() {
    let toll = Toll::open(State::default());
    let [payer, calm] = [9, 10].map(|number| toll.payer(number));
    toll.chain.with(|state| {
        let withdrawal = Withdrawal { amount: Amount::new(1), initiated_at: now_s() };
        state.channels.entry(payer.id()).or_default().withdrawal = Some(withdrawal);
    });
    for payer in [&payer, &calm] {
        assert_eq!(toll.pay(payer.deposit(&toll.terms, DEPOSIT, PRICE)).await.status(), StatusCode::OK);
    }
    toll.chain.with(|state| state.blind = true);
    let redemption = toll.redemption.clone();
    let round = tokio::spawn(async move { redemption.redeem().await.unwrap() });
    while !round.is_finished() && toll.chain.with(|state| state.claims.is_empty()) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    toll.chain.with(|state| state.blind = false);
    let report = round.await.unwrap();
    assert_eq!((report.channels, report.left), (1, Amount::new(PRICE)), "only what is urgent: {report:?}");
    assert!(report.problem.as_ref().is_some_and(|problem| problem.contains("disagree")), "{report:?}");
    assert!(toll.redemption.redeem().await.unwrap().is_complete());
    toll.redemption.stop().await;
}

/// A wallet can refuse when mined what it approved in the simulation; it costs its own claim only.
#[tokio::test]
async fn a_wallets_row_is_not_in_a_batch_with_others() {
    let toll = Toll::open(State::default());
    let mut wallet = toll.payer(8);
    wallet.config.payer_authorizer = Address::ZERO;
    for payer in [&wallet, &toll.payer(9), &toll.payer(10)] {
        assert_eq!(toll.pay(payer.deposit(&toll.terms, DEPOSIT, PRICE)).await.status(), StatusCode::OK);
    }
    toll.chain.with(|state| state.poison = Some(wallet.id()));
    let report = toll.redemption.redeem().await.unwrap();
    assert_eq!((report.channels, report.failures.len()), (2, 1));
    assert_eq!(toll.chain.with(|state| state.claims.clone()), [2, 1]);
    // It can sign as many vouchers as it likes; trying costs us gas each time.
    assert_eq!(toll.pay(wallet.voucher(&toll.terms, 2 * PRICE)).await.status(), StatusCode::OK);
    assert_eq!(toll.redemption.redeem().await.unwrap().failures.len(), 1);
    assert_eq!(toll.chain.with(|state| state.claims.clone()), [2, 1]);
    toll.redemption.stop().await;
}
