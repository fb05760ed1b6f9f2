//! What redemption costs: gas a channel, by the number of channels in one claim, and what one paid request costs in all.
//!
//! `cargo bench --bench gas` prints tables and, as its last line, one JSON object. The contracts are the stand-ins of the
//! development chain; what is measured is what receipts say, so nothing here depends on the machine. The state is the
//! usual one: channels, the receiver's account and its balance have been used before. Amounts differ from row to row.
//!
//! * `gas_per_row_N`: gas of a claim of N channels with the authorizer's signature, a channel.
//! * `gas_settle`, `gas_deposit`: gas of a settlement, and of a first deposit that the proxy relays.
//! * `request_cost_usd_N`: what one request costs the provider in gas where a channel is used for N requests: its deposit,
//!   its share of a claim of a hundred channels and of the settlement after it, at the prices below.
//! * `rows_chosen`: how many channels redemption puts into one claim if there are enough.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a benchmark that cannot run should say so at once")]
#![allow(clippy::print_stdout, reason = "the result")]
#![allow(clippy::as_conversions, reason = "of counts that are small")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use peaje::chain::{
    AlloyChain, Bid, Call, Chain as _, Happening, KeyRef, Mined, Objection, SignedTransaction, Witness,
};
use peaje::devnet::{Devnet, DevnetConfig, genesis};
use peaje::gate::path::PathPattern;
use peaje::gate::policy::{Policy, Price, Route, Terms, TokenTerms};
use peaje::gate::{Accounts, Desk, Gate};
use peaje::ledger::{LatestVoucher, Snapshot};
use peaje::protocol::bytes::keccak256;
use peaje::protocol::claim::{ClaimRow, claim_batch_digest};
use peaje::protocol::deposit::Authorization;
use peaje::protocol::{Address, Amount, ChannelConfig, Hash, LocalKey, Network, Voucher};
use peaje::redeem::{Redemption, Settings};
use peaje::store::{ChannelRow, Cursor, Entry, LedgerStore, StoreError, Transaction};
use serde_json::{Value, json};

const CHAIN_ID: u64 = 84_532;
/// Channels there are.
const CHANNELS: usize = 600;
/// Channels in one claim.
const ROWS: [usize; 4] = [1, 25, 100, 200];
/// The batch whose share a request pays in the second table.
const SHARED_BY: usize = 100;
/// Requests that a channel is used for.
const REQUESTS: [u64; 3] = [1, 100, 10_000];
const DEPOSIT: u128 = 1_000_000_000;

/// A usual price of gas on a large layer 2, wei a unit.
const GAS_WEI: f64 = 0.01e9;
/// What it takes beside gas for a byte of a transaction, wei: with layer 1 at 1 gwei and blobs nearly free.
const DATA_WEI_PER_BYTE: f64 = 0.04e9;
/// What its coin is worth, dollars.
const COIN_USD: f64 = 3_000.0;

const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(5);

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(measure());
}

/// What a transaction took.
#[derive(Debug, Clone, Copy)]
struct Cost {
    gas: u64,
    /// Of the signed transaction.
    bytes: usize,
}

impl Cost {
    /// Its share for one of so many.
    fn usd(&self, shared_by: usize) -> f64 {
        let wei = self.gas as f64 * GAS_WEI + self.bytes as f64 * DATA_WEI_PER_BYTE;
        wei * 1e-18 * COIN_USD / shared_by as f64
    }
}

struct Payer {
    key: LocalKey,
    config: ChannelConfig,
    claimed: u128,
}

struct Bench {
    devnet: Devnet,
    terms: Terms,
    /// The account that pays for gas.
    gas: AlloyChain,
    /// The receiver's authorizer, where it sends by itself.
    authorizer: AlloyChain,
    payers: Vec<Payer>,
    turns: u128,
}

async fn measure() {
    let mut bench = Bench::set().await;
    let first = bench.deposit(0, 1).await;
    for payer in 1..CHANNELS {
        bench.deposit(payer, 1).await;
    }
    let again = bench.deposit(0, 2).await;
    // Every slot is used once before anything counts.
    for some in (0..CHANNELS).collect::<Vec<_>>().chunks(200) {
        bench.claim(some, true).await;
    }
    bench.settle().await;

    println!("{:>5} {:>10} {:>13} {:>8} {:>22}", "rows", "gas", "gas a channel", "bytes", "by the authorizer itself");
    let mut line = serde_json::Map::new();
    let mut shared = None;
    for rows in ROWS {
        let range: Vec<_> = (0..rows).collect();
        let signed = bench.claim(&range, true).await;
        let own = bench.claim(&range, false).await;
        let each = |cost: Cost| cost.gas / rows as u64;
        println!("{rows:>5} {:>10} {:>13} {:>8} {:>22}", signed.gas, each(signed), signed.bytes, each(own));
        line.insert(format!("gas_per_row_{rows}"), json!(each(signed)));
        if rows == SHARED_BY {
            shared = Some(signed);
        }
    }
    let (claim, settle) = (shared.unwrap(), bench.settle().await);
    println!("\nsettle {}, first deposit {}, another deposit {} gas", settle.gas, first.gas, again.gas);
    line.insert("gas_settle".to_owned(), json!(settle.gas));
    line.insert("gas_deposit".to_owned(), json!(first.gas));

    println!(
        "\nat {} gwei a unit of gas, {} gwei a byte of data and ${COIN_USD} a coin, a channel costs",
        GAS_WEI / 1e9,
        DATA_WEI_PER_BYTE / 1e9
    );
    let parts =
        [("its deposit", first.usd(1)), ("its claim", claim.usd(SHARED_BY)), ("its settlement", settle.usd(SHARED_BY))];
    for (what, usd) in parts {
        println!("{what:>16} ${usd:.6}");
    }
    let channel: f64 = parts.iter().map(|(_, usd)| usd).sum();
    println!("{:>16} ${channel:.6}, which is\n{:>10} {:>14}", "in all", "requests", "USD a request");
    for requests in REQUESTS {
        let each = channel / requests as f64;
        println!("{requests:>10} {each:>14.10}");
        line.insert(format!("request_cost_usd_{requests}"), json!(each));
    }
    let chosen = bench.rows_chosen().await;
    println!("\n{CHANNELS} channels are claimed in transactions of {chosen:?}");
    line.insert("rows_chosen".to_owned(), json!(chosen.iter().max()));
    println!("{}", Value::Object(line));
}

fn dev(name: &str) -> LocalKey {
    format!("dev:{name}").parse::<KeyRef>().unwrap().load(true).unwrap()
}

impl Bench {
    async fn set() -> Self {
        let devnet = Devnet::start(DevnetConfig::default()).await.unwrap();
        let usdc = Network::by_chain_id(CHAIN_ID).unwrap().token("usdc").unwrap();
        let terms = Terms {
            chain_id: CHAIN_ID,
            token: TokenTerms::preset(usdc),
            pay_to: Address(keccak256(b"who is paid").0[..20].try_into().unwrap()),
            receiver_authorizer: dev("authorizer").address(),
            withdraw_delay_s: 86_400,
            max_timeout_s: 60,
            max_in_flight: 32,
            min_deposit: None,
        };
        let connect = async |name: &str| {
            let key = dev(name);
            devnet.fund(alloy::primitives::Address::new(key.address().0), genesis::DEV_BALANCE);
            AlloyChain::connect(devnet.rpc_url().parse().unwrap(), Some(key)).await.unwrap()
        };
        let (gas, authorizer) = (connect("gas").await, connect("authorizer").await);
        let payers = (0..CHANNELS).map(|number| {
            let key = LocalKey::from_bytes(&keccak256(&number.to_be_bytes()).0).unwrap();
            let config = terms.channel_of(key.address());
            devnet.mint_dollars(alloy::primitives::Address::new(key.address().0), 3 * DEPOSIT).unwrap();
            Payer { config, key, claimed: 0 }
        });
        let payers = payers.collect();
        Self { devnet, terms, gas, authorizer, payers, turns: 0 }
    }

    async fn deposit(&self, payer: usize, salt: u8) -> Cost {
        let Payer { key, config, .. } = &self.payers[payer];
        let (salt, valid_before, amount) = (Hash([salt; 32]), 4_000_000_000, Amount::new(DEPOSIT));
        let nonce = Authorization::nonce(config.id(&self.terms.settlement()), salt);
        let digest = Authorization::digest(&self.terms.token_domain(), config.payer, amount, 0, valid_before, nonce);
        let authorization = Authorization { valid_after: 0, valid_before, salt, signature: key.sign(digest) };
        send(
            &self.gas,
            &Call::Deposit {
                config: *config,
                amount,
                authorization: peaje::protocol::deposit::Permission::Erc3009(authorization),
                payment: None,
            },
        )
        .await
        .0
    }

    /// Claims another sum of these channels.
    async fn claim(&mut self, payers: &[usize], signed: bool) -> Cost {
        self.turns += 1;
        for payer in payers {
            // Of three or four bytes, none like another.
            self.payers[*payer].claimed += 70_000 + 991 * *payer as u128 + 13 * self.turns;
        }
        let rows: Vec<_> = payers.iter().map(|payer| self.row(*payer)).collect();
        let signature = dev("authorizer").sign(claim_batch_digest(&self.terms.settlement(), &rows));
        let (cost, mined) = match signed {
            true => send(&self.gas, &Call::ClaimWithSignature { rows, signature }).await,
            false => send(&self.authorizer, &Call::Claim { rows }).await,
        };
        assert_eq!(claimed_in(&mined), payers.len(), "every row counts");
        cost
    }

    fn row(&self, payer: usize) -> ClaimRow {
        let Payer { key, config, claimed } = &self.payers[payer];
        let settlement = self.terms.settlement();
        // Metered prices: the ceiling is above what was charged.
        let voucher = Voucher { channel: config.id(&settlement), max_claimable: Amount::new(claimed + 100) };
        let voucher = voucher.sign(&settlement, key);
        ClaimRow {
            config: *config,
            max_claimable: voucher.max_claimable,
            signature: voucher.signature,
            total_claimed: Amount::new(*claimed),
        }
    }

    async fn settle(&self) -> Cost {
        let Terms { pay_to: receiver, token, .. } = &self.terms;
        let (cost, mined) = send(&self.gas, &Call::Settle { receiver: *receiver, token: token.address }).await;
        assert!(mined.events.iter().any(|event| matches!(event.what, Happening::Settled { .. })), "something was due");
        cost
    }

    /// How many channels redemption claims with one transaction, in the order of the transactions, when all have
    /// something to claim.
    async fn rows_chosen(&mut self) -> Vec<usize> {
        let settlement = self.terms.settlement();
        let ids: Vec<_> = self.payers.iter().map(|payer| payer.config.id(&settlement)).collect();
        let mut views = Vec::new();
        for some in ids.chunks(200) {
            views.extend(self.gas.channels(some).await.unwrap());
        }
        let mut rows = Vec::new();
        for (payer, view) in views.into_iter().enumerate() {
            self.payers[payer].claimed += 1_000_000;
            let ClaimRow { config, max_claimable, signature, total_claimed } = self.row(payer);
            let snapshot = Snapshot {
                id: ids[payer],
                config,
                view,
                viewed_at: 1,
                charged: total_claimed,
                latest: Some(LatestVoucher { max_claimable, signature }),
                spent_up_to: None,
                open_refund: None,
                unclaimed_since: None,
            };
            rows.push(ChannelRow { snapshot, version: 1, last_deposit: None });
        }
        let (accounts, opening) = Accounts::open(Ready(rows)).unwrap();
        let route = Route::new(PathPattern::parse("/paid").unwrap(), Price::Fixed(Amount::new(1)));
        let policy = Policy::new(self.terms.clone(), "https://api.example", vec![route]).unwrap();
        let (desk, questions) = Desk::new();
        let gate = Gate::with_accounts(policy, desk, accounts.clone());
        let chain = AlloyChain::connect(self.devnet.rpc_url().parse().unwrap(), Some(dev("gas"))).await.unwrap();
        let settings = Settings { poll: POLL, ..Settings::default() };
        let redemption = Redemption::start(gate, questions, Arc::new(chain), dev("authorizer"), settings, opening);
        let report = redemption.redeem().await.unwrap();
        assert!(report.is_complete(), "{report:?}");
        let mut chosen = Vec::new();
        for transaction in report.transactions {
            let rows = claimed_in(&self.gas.receipt(transaction).await.unwrap().unwrap());
            chosen.extend((rows > 0).then_some(rows));
        }
        redemption.stop().await;
        accounts.journal().close();
        chosen
    }
}

fn claimed_in(mined: &Mined) -> usize {
    mined.events.iter().filter(|event| matches!(event.what, Happening::Claimed { .. })).count()
}

/// Remembers how long a transaction is.
#[derive(Default)]
struct Ruler(Mutex<usize>);

impl Witness for Ruler {
    async fn sees(&self, transaction: &SignedTransaction) -> Result<(), Objection> {
        *self.0.lock().unwrap() = transaction.raw.len();
        Ok(())
    }
}

async fn send(chain: &AlloyChain, call: &Call) -> (Cost, Mined) {
    let ruler = Ruler::default();
    let hash = chain.send_witnessed(call, Bid::default(), None, &ruler).await.unwrap();
    let mined = chain.await_receipt(hash, PATIENCE, POLL).await.unwrap().unwrap();
    assert!(mined.success, "{mined:?}");
    (Cost { gas: mined.gas_used, bytes: ruler.0.into_inner().unwrap() }, mined)
}

/// Books that are there already and keep nothing.
struct Ready(Vec<ChannelRow>);

impl LedgerStore for Ready {
    fn channels(&mut self, each: &mut dyn FnMut(ChannelRow) -> Result<(), StoreError>) -> Result<(), StoreError> {
        self.0.drain(..).try_for_each(each)
    }

    fn unfinished(&mut self) -> Result<Vec<Transaction>, StoreError> {
        Ok(Vec::new())
    }

    fn cursor(&mut self) -> Result<Option<Cursor>, StoreError> {
        Ok(None)
    }

    fn commit(&mut self, _: &[Entry]) -> Result<(), StoreError> {
        Ok(())
    }
}
