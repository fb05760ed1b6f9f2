//! Payers with channels that are open already, and the vouchers they sign before the clock starts.
//!
//! **Owns** what every channel has promised so far. **Promises** that vouchers rise by one price at a time and that each is
//! sent once, in order, on the connection that has the channel.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

use peaje::chain::KeyRef;
use peaje::gate::policy::Terms;
use peaje::ledger::{LatestVoucher, Snapshot, View};
use peaje::protocol::bytes::keccak256;
use peaje::protocol::contracts::SETTLEMENT;
use peaje::protocol::x402::{self, PAYMENT_REQUIRED, PAYMENT_SIGNATURE};
use peaje::protocol::{Address, Amount, ChannelConfig, ChannelId, Domain, Hash, LocalKey, SignedVoucher, Voucher};
use peaje::store::sqlite::SqliteStore;
use peaje::store::{Booking, ChannelEntry, ChannelRow, Entry, Identity, LastDeposit, LedgerStore as _};
use serde::Serialize;
use serde_json::{Value, json};

use super::load::{HERE, Supply};
use super::machine::Running;
use super::wire;

/// What a request costs, and what the config says of it.
pub(crate) const PRICE: u128 = 2_000;
pub(crate) const PRICE_TEXT: &str = "$0.002";
pub(crate) const CHAIN_ID: u64 = 84_532;
/// What a hot channel holds.
const BALANCE: u128 = u128::MAX / 4;
/// What an idle one does.
const IDLE_BALANCE: u128 = 1_000_000;
/// Entries a commit, while books are filled.
const FILL: usize = 1_024;
/// Slots the chain is given at once.
const SLOTS: usize = 500;

/// What a proxy asks for: the first offer of its quote, as a client reads it.
#[derive(Debug, Clone)]
pub(crate) struct Quote {
    accepted: Value,
    resource: Value,
}

impl Quote {
    /// Asks for it.
    pub(crate) fn of(proxy: &Running, path: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let answer = runtime.block_on(async {
            let mut connection = wire::Connection::open(proxy.address, HERE).await.unwrap();
            assert_eq!(connection.exchange(&wire::get(path, &[])).await.unwrap(), 402);
            connection.answer().to_vec()
        });
        let header = wire::header(&answer, PAYMENT_REQUIRED).expect("a 402 has a quote");
        let mut quote: Value = x402::decode(header.as_bytes()).unwrap();
        Self { accepted: quote["accepts"][0].take(), resource: quote["resource"].take() }
    }

    /// How many requests of a channel may be under way at once, where vouchers are signed ahead.
    pub(crate) fn max_in_flight(&self) -> Option<u64> {
        self.accepted["extra"]["maxInFlight"].as_u64()
    }
}

/// A channel and what was signed on it.
#[derive(Debug, Clone)]
pub(crate) struct Channel {
    key: LocalKey,
    config: ChannelConfig,
    pub(crate) id: ChannelId,
    signed: u128,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Payment<'a> {
    x402_version: u8,
    resource: &'a Value,
    accepted: &'a Value,
    payload: Payload<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Payload<'a> {
    r#type: &'a str,
    channel_config: &'a ChannelConfig,
    voucher: &'a SignedVoucher,
    #[serde(skip_serializing_if = "Option::is_none")]
    signed_ahead: Option<bool>,
}

impl Channel {
    /// The channel of the `number`th payer.
    pub(crate) fn new(number: usize, terms: &Terms) -> Self {
        let key = LocalKey::from_bytes(&keccak256(&number.to_be_bytes()).0).unwrap();
        let config = terms.channel_of(key.address());
        Self { id: config.id(&terms.settlement()), key, config, signed: 0 }
    }

    /// The next request: it pays one price more than the one before.
    pub(crate) fn request(&mut self, path: &str, quote: &Quote, domain: &Domain, ahead: bool) -> Vec<u8> {
        self.signed += PRICE;
        let voucher = Voucher { channel: self.id, max_claimable: Amount::new(self.signed) };
        self.paying(path, quote, &voucher.sign(domain, &self.key), ahead)
    }

    /// The first request of the channel, but with the signature of somebody else.
    pub(crate) fn forged(&self, path: &str, quote: &Quote, domain: &Domain, forger: &LocalKey) -> Vec<u8> {
        let voucher = Voucher { channel: self.id, max_claimable: Amount::new(self.signed + PRICE) };
        self.paying(path, quote, &voucher.sign(domain, forger), false)
    }

    fn paying(&self, path: &str, quote: &Quote, voucher: &SignedVoucher, ahead: bool) -> Vec<u8> {
        let payload =
            Payload { r#type: "voucher", channel_config: &self.config, voucher, signed_ahead: ahead.then_some(true) };
        let header =
            x402::encode(&Payment { x402_version: 2, resource: &quote.resource, accepted: &quote.accepted, payload });
        wire::get(path, &[(PAYMENT_SIGNATURE, &header)])
    }
}

/// The channels of one connection, and the requests that are ready.
#[derive(Debug)]
pub(crate) struct Lane {
    channels: Vec<Channel>,
    next: usize,
    pub(crate) supply: Supply,
}

impl Lane {
    pub(crate) fn new(channels: Vec<Channel>) -> Self {
        Self { channels, next: 0, supply: Supply::Once(VecDeque::new()) }
    }

    /// Shares channels out among so many connections.
    pub(crate) fn share_out(channels: Vec<Channel>, connections: usize) -> Vec<Self> {
        let mut shares: Vec<Vec<Channel>> = (0..connections).map(|_| Vec::new()).collect();
        for (number, channel) in channels.into_iter().enumerate() {
            shares[number % connections].push(channel);
        }
        shares.into_iter().map(Self::new).collect()
    }

    /// Signs until so many requests are ready, taking the channels in turn.
    fn prepare(&mut self, wanted: usize, path: &str, quote: &Quote, domain: &Domain, ahead: bool) {
        let Supply::Once(ready) = &mut self.supply else { return };
        while ready.len() < wanted {
            let next = self.next;
            self.next = (next + 1) % self.channels.len();
            let channel = &mut self.channels[next];
            ready.push_back(channel.request(path, quote, domain, ahead));
        }
    }
}

/// What vouchers are signed for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Purpose<'a> {
    pub(crate) path: &'a str,
    pub(crate) quote: &'a Quote,
    pub(crate) domain: &'a Domain,
    pub(crate) ahead: bool,
}

/// Has every lane sign until so many requests are ready, on all of the machine's cores.
pub(crate) fn prepare(lanes: &mut [Lane], wanted: usize, purpose: Purpose<'_>) {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let chunk = lanes.len().div_ceil(cores).max(1);
    let Purpose { path, quote, domain, ahead } = purpose;
    std::thread::scope(|scope| {
        for lanes in lanes.chunks_mut(chunk) {
            scope.spawn(move || lanes.iter_mut().for_each(|lane| lane.prepare(wanted, path, quote, domain, ahead)));
        }
    });
}

/// The first requests that are ready in each lane, for a proxy to which they are only bytes.
pub(crate) fn samples(lanes: &[Lane], each: usize) -> Vec<Supply> {
    let sample = |lane: &Lane| match &lane.supply {
        Supply::Once(ready) => Supply::around(ready.iter().take(each).cloned().collect()),
        Supply::Around(..) => unreachable!("lanes hold each request once"),
    };
    lanes.iter().map(sample).collect()
}

/// Writes books in which these channels are open and were never used, and so many others are idle.
pub(crate) fn fill(directory: &Path, hot: &[Channel], idle: &[(ChannelId, ChannelConfig)]) {
    let identity = Identity { chain_id: CHAIN_ID, settlement: SETTLEMENT };
    let mut store = SqliteStore::open(directory, identity).unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    // Nobody verifies signatures of the past at the start; `peaje ledger verify` does.
    let signature = LocalKey::from_bytes(&[7; 32]).unwrap().sign(keccak256(b"any"));
    let route: Arc<str> = "/paid".into();
    let fresh = hot.iter().map(|channel| (channel.id, channel.config, BALANCE, 0));
    let used = idle.iter().zip(0_u128..).map(|((id, config), number)| (*id, *config, IDLE_BALANCE, charged(number)));
    let mut entries = Vec::with_capacity(FILL);
    for (id, config, balance, charged) in fresh.chain(used) {
        let charged = Amount::new(charged);
        let view = View { block: 0, balance: Amount::new(balance), total_claimed: charged, ..View::default() };
        let latest = LatestVoucher { max_claimable: charged, signature: signature.clone() };
        let snapshot = Snapshot {
            id,
            config,
            view,
            viewed_at: now,
            charged,
            latest: (!charged.is_zero()).then_some(latest),
            open_refund: None,
            unclaimed_since: None,
            spent_up_to: None,
        };
        let last_deposit = Some(LastDeposit { salt: Hash::ZERO, charged: Amount::ZERO });
        let row = ChannelRow { snapshot, version: 1, last_deposit };
        let booking = Booking::Charge { route: Arc::clone(&route), amount: charged, at: now };
        entries.push(Entry::Channel(Box::new(ChannelEntry { row, booking })));
        if entries.len() == FILL {
            store.commit(&entries).unwrap();
            entries.clear();
        }
    }
    if !entries.is_empty() {
        store.commit(&entries).unwrap();
    }
}

/// What the `number`th idle channel was charged, all of it claimed.
fn charged(number: u128) -> u128 {
    PRICE * (1 + number % 100)
}

/// So many channels that nobody uses.
pub(crate) fn idle_channels(count: usize, terms: &Terms) -> Vec<(ChannelId, ChannelConfig)> {
    let domain = terms.settlement();
    let channel = |number: usize| {
        let mut payer = Address::ZERO;
        payer.0.copy_from_slice(&keccak256(&(number as u64).to_le_bytes()).0[..20]);
        let config = terms.channel_of(payer);
        (config.id(&domain), config)
    };
    (0..count).map(channel).collect()
}

/// Tells the development chain the same of these channels, as if their deposits had been made there.
pub(crate) async fn put_on_chain(rpc: &str, hot: &[Channel], idle: &[(ChannelId, ChannelConfig)]) {
    peaje::chain::install_tls();
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let fresh = hot.iter().map(|channel| (channel.id, BALANCE, 0));
    let used = idle.iter().zip(0_u128..).map(|((id, _), number)| (*id, IDLE_BALANCE, charged(number)));
    let all: Vec<(ChannelId, u128, u128)> = fresh.chain(used).collect();
    for some in all.chunks(SLOTS) {
        let set = |(id, balance, claimed): &(ChannelId, u128, u128)| {
            // `channels` is the contract's first mapping: slot 0, the balance in the low half of the word.
            let place = keccak256(&[&id.0[..], &[0; 32][..]].concat());
            let word = format!("0x{claimed:032x}{balance:032x}");
            json!({"jsonrpc": "2.0", "id": 1, "method": "anvil_setStorageAt", "params": [SETTLEMENT, place, word]})
        };
        let batch: Vec<Value> = some.iter().map(set).collect();
        let answers: Value = http.post(rpc).json(&batch).send().await.unwrap().json().await.unwrap();
        let refused = answers.as_array().unwrap().iter().find(|answer| answer.get("error").is_some());
        assert!(refused.is_none(), "the chain refused: {refused:?}");
    }
}

/// The key that signs claims for the proxy.
pub(crate) fn authorizer() -> Address {
    "dev:authorizer".parse::<KeyRef>().unwrap().load(true).unwrap().address()
}
