//! The chain room against a live node: the development chain, straight or through a gateway that lies.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests fail the test")]

#[path = "chain/fees.rs"]
mod fees;
#[path = "support/nobody.rs"]
mod nobody;
#[path = "chain/nodes.rs"]
mod nodes;

use std::error::Error as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use alloy::primitives::{Address as EvmAddress, B256, Bytes, U256};
use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};

use peaje::chain::{
    AlloyChain, Bid, Call, Chain, ChainError, Happening, KeyRef, Mined, Objection, Owed, Resent, RpcUrl, SendError,
    SignedTransaction, View, Withdrawal, Witness,
};
use peaje::devnet::{Devnet, DevnetConfig, Mining, genesis};
use peaje::protocol::bytes::keccak256;
use peaje::protocol::claim::{ClaimRow, claim_batch_digest, refund_digest};
use peaje::protocol::contracts::SETTLEMENT;
use peaje::protocol::deposit::Authorization;
use peaje::protocol::voucher::PayerEvidence;
use peaje::protocol::{Address, Amount, ChannelConfig, ChannelId, Domain, Hash, LocalKey, Signature, Voucher};

use nobody::nobody;

const WAIT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);
/// What the payer of a [`Stage`] has.
const PURSE: u128 = 50_000_000;

/// A development chain, and everybody who has a part in a channel.
struct Stage {
    devnet: Devnet,
    chain: AlloyChain,
    domain: Domain,
    token: Domain,
    payer: LocalKey,
    receiver: LocalKey,
    authorizer: LocalKey,
}

fn dev(name: &str) -> LocalKey {
    format!("dev:{name}").parse::<KeyRef>().unwrap().load(true).unwrap()
}

fn here(address: EvmAddress) -> Address {
    Address(address.into_array())
}

fn evm(address: Address) -> EvmAddress {
    EvmAddress::new(address.0)
}

fn dollar() -> Address {
    here(genesis::DOLLAR)
}

impl Stage {
    async fn set() -> Self {
        let devnet = Devnet::start(DevnetConfig::default()).await.unwrap();
        let chain = AlloyChain::connect(devnet.rpc_url().parse().unwrap(), Some(dev("gas"))).await.unwrap();
        let payer = dev("agent");
        devnet.mint_dollars(evm(payer.address()), PURSE).unwrap();
        Self {
            domain: Domain::settlement(chain.chain_id()),
            token: Domain::new("USDC", "2", chain.chain_id(), dollar()),
            payer,
            receiver: dev("receiver"),
            authorizer: dev("authorizer"),
            devnet,
            chain,
        }
    }

    async fn chain_of(&self, key: LocalKey) -> AlloyChain {
        AlloyChain::connect(self.devnet.rpc_url().parse().unwrap(), Some(key)).await.unwrap()
    }

    fn config(&self, salt: u8) -> ChannelConfig {
        ChannelConfig {
            payer: self.payer.address(),
            payer_authorizer: self.payer.address(),
            receiver: self.receiver.address(),
            receiver_authorizer: self.authorizer.address(),
            token: dollar(),
            withdraw_delay: 900,
            salt: Hash([salt; 32]),
        }
    }

    fn id(&self, salt: u8) -> ChannelId {
        self.config(salt).id(&self.domain)
    }

    fn deposit(&self, salt: u8, amount: u128) -> Call {
        let (config, amount) = (self.config(salt), Amount::new(amount));
        let authorization_salt = Hash([0x5a; 32]);
        let nonce = Authorization::nonce(config.id(&self.domain), authorization_salt);
        let valid_before = self.devnet.now() + 300;
        let digest = Authorization::digest(&self.token, config.payer, amount, 0, valid_before, nonce);
        let signature = self.payer.sign(digest);
        let authorization = Authorization { valid_after: 0, valid_before, salt: authorization_salt, signature };
        Call::Deposit { config, amount, authorization: authorization.into(), payment: None }
    }

    fn row(&self, salt: u8, max: u128, total: u128) -> ClaimRow {
        let config = self.config(salt);
        let max_claimable = Amount::new(max);
        let voucher = Voucher { channel: config.id(&self.domain), max_claimable }.sign(&self.domain, &self.payer);
        ClaimRow { config, max_claimable, signature: voucher.signature, total_claimed: Amount::new(total) }
    }

    fn claim_with_signature(&self, rows: Vec<ClaimRow>) -> Call {
        let signature = self.authorizer.sign(claim_batch_digest(&self.domain, &rows));
        Call::ClaimWithSignature { rows, signature }
    }

    fn claim_and_refund(&self, rows: Vec<ClaimRow>, salt: u8, amount: u128, nonce: u128) -> Call {
        let amount = Amount::new(amount);
        Call::ClaimAndRefund {
            claim_signature: self.authorizer.sign(claim_batch_digest(&self.domain, &rows)),
            rows,
            config: self.config(salt),
            amount,
            nonce,
            refund_signature: self.authorizer.sign(refund_digest(&self.domain, self.id(salt), nonce, amount)),
        }
    }

    /// Sends and waits until it is mined, with success.
    async fn mine(&self, call: &Call) -> Mined {
        mine(&self.chain, call).await
    }
}

async fn mine(chain: &AlloyChain, call: &Call) -> Mined {
    let hash = chain.send(call).await.unwrap();
    let mined = chain.await_receipt(hash, WAIT, POLL).await.unwrap().expect("mined in time");
    assert!(mined.success && mined.hash == hash);
    mined
}

fn happenings(mined: &Mined) -> Vec<Happening> {
    mined.events.iter().map(|event| event.what.clone()).collect()
}

fn shown(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = format!("{error} {error:?}");
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(" {error} {error:?}");
        cause = error.source();
    }
    text
}

#[tokio::test]
async fn a_deposit_opens_a_channel() {
    let stage = Stage::set().await;
    let (id, payer) = (stage.id(1), stage.payer.address());
    let nonce = Authorization::nonce(id, Hash([0x5a; 32]));
    let nothing = stage.chain.channel(id).await.unwrap();
    assert_eq!((nothing.balance, nothing.total_claimed, nothing.withdrawal), (Amount::ZERO, Amount::ZERO, None));
    assert_eq!(stage.chain.token_balance(dollar(), payer).await.unwrap(), Amount::new(PURSE));
    assert!(!stage.chain.authorization_used(dollar(), payer, nonce).await.unwrap());

    let deposit = stage.deposit(1, 100_000);
    assert!((60_000..200_000).contains(&stage.chain.simulate(&deposit).await.unwrap()));
    let mined = stage.mine(&deposit).await;

    let channel = id;
    let amount = Amount::new(100_000);
    assert_eq!(
        happenings(&mined),
        [
            Happening::Created { channel, config: stage.config(1) },
            Happening::Deposited { channel, amount, new_balance: amount },
        ]
    );
    let view = stage.chain.channel(id).await.unwrap();
    assert_eq!((view.balance, view.available(), view.block >= mined.block), (amount, amount, true));
    assert!(stage.chain.authorization_used(dollar(), payer, nonce).await.unwrap());
    assert_eq!(stage.chain.token_balance(dollar(), payer).await.unwrap(), Amount::new(PURSE - 100_000));

    // The same authorization is worthless now, and says so before it costs anything.
    let again = stage.chain.send(&deposit).await.unwrap_err();
    assert!(matches!(&again, SendError::Refused(ChainError::Reverted { name: Some(_) })), "{again:?}");
    assert_eq!(again.maybe_sent(), None);
}

#[tokio::test]
async fn claims_credit_the_receiver_and_a_settlement_pays_it() {
    let stage = Stage::set().await;
    let receiver = stage.receiver.address();
    for salt in [1, 2] {
        stage.mine(&stage.deposit(salt, 100_000)).await;
    }

    // Signed by the authorizer, sent by anybody.
    let rows = vec![stage.row(1, 5_000, 4_200), stage.row(2, 900, 900)];
    let mined = stage.mine(&stage.claim_with_signature(rows)).await;
    let claimed = |salt, amount, new_total_claimed| Happening::Claimed {
        channel: stage.id(salt),
        amount: Amount::new(amount),
        new_total_claimed: Amount::new(new_total_claimed),
    };
    assert_eq!(happenings(&mined), [claimed(1, 4_200, 4_200), claimed(2, 900, 900)]);

    // Sent by the authorizer itself; a row that adds nothing is skipped.
    let by_authorizer = stage.chain_of(stage.authorizer.clone()).await;
    assert_eq!(by_authorizer.sender(), Some(stage.authorizer.address()));
    let rows = vec![stage.row(1, 7_000, 7_000), stage.row(2, 900, 900)];
    let mined = mine(&by_authorizer, &Call::Claim { rows }).await;
    assert_eq!(happenings(&mined), [claimed(1, 2_800, 7_000)]);

    let owed = |total_claimed, total_settled| Owed {
        total_claimed: Amount::new(total_claimed),
        total_settled: Amount::new(total_settled),
    };
    assert_eq!(stage.chain.receivers(receiver, dollar()).await.unwrap(), owed(7_900, 0));
    let settle = Call::Settle { receiver, token: dollar() };
    let mined = stage.mine(&settle).await;
    assert_eq!(happenings(&mined), [Happening::Settled { receiver, token: dollar(), amount: Amount::new(7_900) }]);
    assert_eq!(stage.chain.receivers(receiver, dollar()).await.unwrap(), owed(7_900, 7_900));
    assert_eq!(stage.chain.token_balance(dollar(), receiver).await.unwrap(), Amount::new(7_900));

    // Nothing due is no error.
    assert_eq!(happenings(&stage.mine(&settle).await), []);
}

#[tokio::test]
async fn a_claim_and_a_refund_are_one_transaction() {
    let stage = Stage::set().await;
    let channel = stage.id(1);
    stage.mine(&stage.deposit(1, 100_000)).await;

    let call = stage.claim_and_refund(vec![stage.row(1, 5_000, 5_000)], 1, 20_000, 0);
    let mined = stage.mine(&call).await;
    let amount = Amount::new(5_000);
    assert_eq!(
        happenings(&mined),
        [
            Happening::Claimed { channel, amount, new_total_claimed: amount },
            Happening::Refunded { channel, amount: Amount::new(20_000) },
        ]
    );
    let view = stage.chain.channel(channel).await.unwrap();
    assert_eq!((view.balance, view.available(), view.refund_nonce), (Amount::new(80_000), Amount::new(75_000), 1));

    // Without anything to claim, and for more than there is.
    let mined = stage.mine(&stage.claim_and_refund(Vec::new(), 1, 1_000_000, 1)).await;
    assert!(happenings(&mined).contains(&Happening::Refunded { channel, amount: Amount::new(75_000) }));

    let stale = stage.claim_and_refund(Vec::new(), 1, 1, 1);
    assert_eq!(stage.chain.simulate(&stale).await.unwrap_err().revert_name(), Some("InvalidRefundNonce"));
}

#[tokio::test]
async fn a_withdrawal_is_seen_from_its_announcement_to_its_end() {
    let stage = Stage::set().await;
    let channel = stage.id(1);
    stage.mine(&stage.deposit(1, 100_000)).await;
    let by_payer = stage.chain_of(stage.payer.clone()).await;

    let amount = Amount::new(30_000);
    let mined = mine(&by_payer, &Call::InitiateWithdraw { config: stage.config(1), amount }).await;
    let view = stage.chain.channel(channel).await.unwrap();
    let Some(Withdrawal { amount: pending, initiated_at }) = view.withdrawal else { panic!("{view:?}") };
    assert_eq!((pending, view.balance), (amount, Amount::new(100_000)));
    let finalize_after = initiated_at + 900;
    assert_eq!(happenings(&mined), [Happening::WithdrawInitiated { channel, amount, finalize_after }]);

    let finalize = Call::FinalizeWithdraw { config: stage.config(1) };
    let early = by_payer.simulate(&finalize).await.unwrap_err();
    assert_eq!(early.revert_name(), Some("WithdrawDelayNotElapsed"));
    stage.devnet.increase_time(Duration::from_secs(901));
    stage.devnet.mine(1).unwrap();
    let mined = mine(&by_payer, &finalize).await;
    assert!(happenings(&mined).contains(&Happening::WithdrawFinalized { channel, amount }));
    assert_eq!(stage.chain.channel(channel).await.unwrap().withdrawal, None);
}

#[tokio::test]
async fn a_simulation_names_what_is_wrong() {
    let stage = Stage::set().await;
    stage.mine(&stage.deposit(1, 10_000)).await;
    let forged = || {
        let mut row = stage.row(1, 5_000, 5_000);
        row.max_claimable = Amount::new(6_000);
        row
    };
    let calls = [
        (stage.claim_with_signature(vec![stage.row(1, 10_001, 10_001)]), "ClaimExceedsBalance"),
        (stage.claim_with_signature(vec![stage.row(1, 5_000, 5_001)]), "ClaimExceedsCeiling"),
        (stage.claim_with_signature(vec![forged()]), "InvalidSignature"),
        (stage.claim_with_signature(vec![]), "EmptyBatch"),
        (Call::Claim { rows: vec![stage.row(1, 1, 1)] }, "NotAuthorizedToClaim"),
        (stage.deposit(2, 0), "ZeroDeposit"),
    ];
    for (call, name) in calls {
        let error = stage.chain.simulate(&call).await.unwrap_err();
        assert_eq!(error.revert_name(), Some(name), "{error:?}");
        let error = stage.chain.send(&call).await.unwrap_err();
        assert!(matches!(&error, SendError::Refused(ChainError::Reverted { .. })), "{error:?}");
    }
    // The token's own words come through.
    let error = stage.chain.simulate(&stage.deposit(3, PURSE + 1)).await.unwrap_err();
    assert!(error.revert_name().unwrap().contains("balance"), "{error:?}");
}

#[tokio::test]
async fn events_are_those_of_the_receipts_in_order() {
    let stage = Stage::set().await;
    let mut expected = Vec::new();
    for salt in 1..=3 {
        expected.extend(stage.mine(&stage.deposit(salt, 50_000)).await.events);
        let rows = vec![stage.row(salt, 10_000, 10_000)];
        expected.extend(stage.mine(&stage.claim_with_signature(rows)).await.events);
    }
    let head = stage.chain.head().await.unwrap();
    assert_eq!(stage.chain.events(0, head.number).await.unwrap(), expected);
    assert!(expected.is_sorted_by_key(|event| event.at));

    // A part, an empty part, and a range the other way round.
    let last = expected.last().unwrap().at;
    let found = stage.chain.events(last.block, last.block).await.unwrap();
    assert_eq!(found.last().unwrap().at, last);
    assert_eq!(stage.chain.events(head.number + 1, head.number + 9).await.unwrap(), []);
    assert_eq!(stage.chain.events(5, 4).await.unwrap(), []);

    // More blocks than one query may ask for.
    stage.devnet.mine(4_500).unwrap();
    stage.mine(&stage.deposit(4, 1)).await;
    let head = stage.chain.head().await.unwrap();
    assert_eq!(stage.chain.events(0, head.number).await.unwrap().len(), expected.len() + 2);
}

#[tokio::test]
async fn many_channels_are_read_at_one_block_with_and_without_a_multicall() {
    let stage = Stage::set().await;
    stage.mine(&stage.deposit(7, 70_000)).await;
    stage.mine(&stage.deposit(200, 20_000)).await;
    let ids: Vec<_> = (0..=u8::MAX).map(|salt| stage.id(salt)).collect();

    let with = stage.chain.channels(&ids).await.unwrap();
    stage.devnet.set_code(genesis::MULTICALL3, Bytes::new()).unwrap();
    let fresh = stage.chain_of(dev("gas")).await;
    assert!(!fresh.has_code(here(genesis::MULTICALL3)).await.unwrap());
    let without = fresh.channels(&ids).await.unwrap();

    for views in [&with, &without] {
        assert_eq!(views.len(), ids.len());
        assert!(views.iter().all(|view| view.block == views[0].block));
        let funded: Vec<_> =
            views.iter().map(|view| view.balance.units()).enumerate().filter(|(_, sum)| *sum > 0).collect();
        assert_eq!(funded, [(7, 70_000), (200, 20_000)]);
    }
    let bare = |view: &View| View { block: 0, ..*view };
    assert_eq!(with.iter().map(bare).collect::<Vec<_>>(), without.iter().map(bare).collect::<Vec<_>>());
    assert_eq!(stage.chain.channels(&[]).await.unwrap(), []);
}

#[tokio::test]
async fn a_payer_is_judged_by_its_code() {
    let stage = Stage::set().await;
    let digest = Hash([9; 32]);
    let signature = stage.payer.sign(digest);
    let judged = async |payer| stage.chain.payer_evidence(payer, digest, &signature).await.unwrap();
    assert_eq!(judged(stage.payer.address()).await, PayerEvidence::NoCode);
    assert_eq!(judged(SETTLEMENT).await, PayerEvidence::Refused, "a contract without isValidSignature");

    let wallet = Address([0xaa; 20]);
    let code = |text: &str| Bytes::from(alloy::primitives::hex::decode(text).unwrap());
    let cases = [
        // Returns the magic value, padded with zeros, and with something else.
        ("631626ba7e60e01b60005260206000f3", PayerEvidence::Approved),
        ("631626ba7e60e01b60010160005260206000f3", PayerEvidence::Refused),
        // Four bytes only, nothing, a revert, an invalid opcode, and a loop without end.
        ("631626ba7e60e01b60005260046000f3", PayerEvidence::Refused),
        ("00", PayerEvidence::Refused),
        ("60006000fd", PayerEvidence::Refused),
        ("fe", PayerEvidence::Refused),
        ("5b600056", PayerEvidence::Refused),
    ];
    for (text, expected) in cases {
        stage.devnet.set_code(evm(wallet), code(text)).unwrap();
        assert_eq!(judged(wallet).await, expected, "{text}");
    }
    let nobody = AlloyChain::connect(stage.devnet.rpc_url().parse().unwrap(), None).await.unwrap();
    stage.devnet.shutdown().await;
    let error = nobody.payer_evidence(wallet, digest, &signature).await.unwrap_err();
    assert!(matches!(error, ChainError::Unreachable { .. }), "{error:?}");
}

#[tokio::test]
async fn a_token_tells_how_it_is_signed_for() {
    let stage = Stage::set().await;
    let domain = stage.chain.token_domain(dollar()).await.unwrap();
    assert_eq!((domain.name.as_str(), domain.version.as_deref(), domain.decimals), ("USDC", Some("2"), 6));
    assert_eq!(domain.separator, stage.token.separator());
    for no_token in [SETTLEMENT, stage.payer.address()] {
        let error = stage.chain.token_domain(no_token).await.unwrap_err();
        assert!(matches!(error, ChainError::Reverted { .. } | ChainError::Decode { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn reading_takes_no_key_and_sending_does() {
    let stage = Stage::set().await;
    let reader = AlloyChain::connect(stage.devnet.rpc_url().parse().unwrap(), None).await.unwrap();
    assert_eq!((reader.chain_id(), reader.sender()), (84532, None));
    assert_eq!(reader.head().await.unwrap().number, stage.devnet.block_number());
    assert!(reader.gas_balance(dev("gas").address()).await.unwrap() > 0);
    assert!(reader.has_code(SETTLEMENT).await.unwrap() && !reader.has_code(Address([1; 20])).await.unwrap());
    let deposit = stage.deposit(1, 1);
    assert!(matches!(reader.simulate(&deposit).await, Err(ChainError::NoGasKey)));
    assert!(matches!(reader.send(&deposit).await, Err(SendError::Refused(ChainError::NoGasKey))));
}

#[tokio::test]
async fn a_node_that_is_not_there_is_unreachable_and_its_address_stays_secret() {
    let (_held, closed) = nobody();
    let url: RpcUrl = format!("http://user:pa55word@{closed}/v2/secret-api-key?k=secret-api-key").parse().unwrap();
    let error = AlloyChain::connect(url, None).await.unwrap_err();
    assert!(matches!(error, ChainError::Unreachable { .. }));
    assert!(error.source().is_some());
    let text = shown(&error);
    assert!(!text.contains("secret-api-key") && !text.contains("pa55word"), "{text}");
}

#[tokio::test]
async fn an_account_without_gas_sends_nothing() {
    let stage = Stage::set().await;
    let poor = stage.chain_of(LocalKey::from_bytes(&[7; 32]).unwrap()).await;
    assert_eq!(poor.gas_balance(poor.sender().unwrap()).await.unwrap(), 0);
    let notary = Notary::of(&stage, true);
    let error = poor.send_witnessed(&stage.deposit(1, 1), Bid::default(), None, &notary).await.unwrap_err();
    assert!(matches!(&error, SendError::Refused(ChainError::Refused { .. })), "{error:?}");
    assert_eq!(notary.shown(), [], "what is never sent is not written down either");
}

#[tokio::test]
async fn transactions_sent_at_once_have_nonces_of_their_own() {
    let stage = Stage::set().await;
    stage.devnet.set_mining(Mining::Manual);
    let calls: Vec<_> = (1..=10).map(|salt| stage.deposit(salt, 1_000)).collect();
    let sends = calls.iter().map(|call| stage.chain.send(call));
    let hashes: Vec<_> = futures_util::future::join_all(sends).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(stage.chain.receipt(hashes[0]).await.unwrap(), None, "pending is not mined");
    assert_eq!(stage.chain.await_receipt(hashes[0], Duration::from_millis(50), POLL).await.unwrap(), None);
    stage.devnet.mine(1).unwrap();
    for hash in hashes {
        assert!(stage.chain.receipt(hash).await.unwrap().unwrap().success);
    }
}

#[tokio::test]
async fn another_sender_with_the_same_key_costs_one_more_question() {
    let stage = Stage::set().await;
    let other = stage.chain_of(dev("gas")).await;
    for salt in 1..=3 {
        stage.mine(&stage.deposit(salt, 1_000)).await;
        mine(&other, &stage.deposit(100 + salt, 1_000)).await;
    }
}

#[tokio::test]
async fn a_transaction_that_reverts_when_mined_is_mined_without_effect() {
    let stage = Stage::set().await;
    stage.devnet.set_mining(Mining::Manual);
    let deposit = stage.deposit(1, 1_000);
    // Both pass their simulation; only one can have the authorization.
    let first = stage.chain.send(&deposit).await.unwrap();
    let second = stage.chain.send(&deposit).await.unwrap();
    stage.devnet.mine(1).unwrap();
    assert!(stage.chain.receipt(first).await.unwrap().unwrap().success);
    let mined = stage.chain.receipt(second).await.unwrap().unwrap();
    assert_eq!((mined.success, mined.events), (false, vec![]));
}

#[tokio::test]
async fn a_reorganisation_takes_the_receipt_back() {
    let stage = Stage::set().await;
    let mined = stage.mine(&stage.deposit(1, 1_000)).await;
    let before = stage.chain.head().await.unwrap();
    stage.devnet.reorg(1).unwrap();
    let after = stage.chain.head().await.unwrap();
    assert!(before.number == after.number && before.hash != after.hash);
    assert_eq!(stage.chain.receipt(mined.hash).await.unwrap(), None);
    assert_eq!(stage.chain.events(0, after.number).await.unwrap(), []);
}

// ---- witnesses, and what is sent again

/// Notes what it is shown and what the node had by then.
struct Notary<'a> {
    stage: &'a Stage,
    consents: bool,
    shown: Mutex<Vec<(SignedTransaction, Vec<B256>)>>,
}

impl<'a> Notary<'a> {
    fn of(stage: &'a Stage, consents: bool) -> Self {
        Self { stage, consents, shown: Mutex::default() }
    }

    fn shown(&self) -> Vec<SignedTransaction> {
        self.shown.lock().unwrap().iter().map(|(signed, _)| signed.clone()).collect()
    }
}

impl Witness for Notary<'_> {
    async fn sees(&self, transaction: &SignedTransaction) -> Result<(), Objection> {
        // Long enough for a broadcast that did not wait.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let pending = self.stage.devnet.pending_transactions();
        self.shown.lock().unwrap().push((transaction.clone(), pending));
        if self.consents { Ok(()) } else { Err("the disk is full".into()) }
    }
}

#[tokio::test]
async fn a_witness_sees_a_transaction_before_the_node_does() {
    let stage = Stage::set().await;
    stage.devnet.set_mining(Mining::Manual);
    let notary = Notary::of(&stage, true);
    let hash = stage.chain.send_witnessed(&stage.deposit(1, 1_000), Bid::default(), None, &notary).await.unwrap();
    let (signed, pending) = notary.shown.lock().unwrap().pop().unwrap();
    assert!(pending.is_empty(), "the node has nothing yet");
    assert_eq!(stage.devnet.pending_transactions(), [B256::new(hash.0)]);
    assert_eq!((signed.hash, signed.nonce, Some(signed.sender)), (hash, 0, stage.chain.sender()));
    assert_eq!(keccak256(&signed.raw), hash, "these are the bytes");
}

#[tokio::test]
async fn what_a_witness_withholds_is_not_sent_and_its_nonce_is_free() {
    let stage = Stage::set().await;
    stage.devnet.set_mining(Mining::Manual);
    // With a nonce that was asked for, and with one that was counted.
    for (salt, nonce) in [(1, 0), (2, 1)] {
        let before = stage.devnet.pending_transactions();
        let (refusing, willing) = (Notary::of(&stage, false), Notary::of(&stage, true));
        let error =
            stage.chain.send_witnessed(&stage.deposit(salt, 1_000), Bid::default(), None, &refusing).await.unwrap_err();
        assert!(matches!(error, SendError::Withheld(_)) && error.maybe_sent().is_none(), "{error:?}");
        assert!(shown(&error).contains("the disk is full"));
        assert_eq!(stage.devnet.pending_transactions(), before);
        stage.chain.send_witnessed(&stage.deposit(salt, 1_000), Bid::default(), None, &willing).await.unwrap();
        assert_eq!([refusing.shown()[0].nonce, willing.shown()[0].nonce], [nonce, nonce]);
    }
}

#[tokio::test]
async fn a_witness_sees_what_is_signed_again_too() {
    let stage = Stage::set().await;
    let other = stage.chain_of(dev("gas")).await;
    stage.mine(&stage.deposit(1, 1_000)).await;
    mine(&other, &stage.deposit(2, 1_000)).await;
    let notary = Notary::of(&stage, true);
    let hash = stage.chain.send_witnessed(&stage.deposit(3, 1_000), Bid::default(), None, &notary).await.unwrap();
    let shown = notary.shown();
    assert_eq!(shown.iter().map(|signed| signed.nonce).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(shown[1].hash, hash);
}

#[tokio::test]
async fn a_transaction_sent_again_is_one_transaction() {
    let stage = Stage::set().await;
    stage.devnet.set_mining(Mining::Manual);
    let notary = Notary::of(&stage, true);
    let hash = stage.chain.send_witnessed(&stage.deposit(1, 1_000), Bid::default(), None, &notary).await.unwrap();
    let signed = notary.shown().pop().unwrap();
    let in_pool = [B256::new(hash.0)];

    assert_eq!(stage.chain.resend(&signed).await.unwrap(), Resent::Known, "it waits");
    assert_eq!(stage.devnet.pending_transactions(), in_pool);
    assert!(stage.devnet.drop_transaction(in_pool[0]));
    // By anybody: another process, without the key.
    let reader = AlloyChain::connect(stage.devnet.rpc_url().parse().unwrap(), None).await.unwrap();
    assert_eq!(reader.resend(&signed).await.unwrap(), Resent::Known, "the node had lost it");
    assert_eq!(stage.devnet.pending_transactions(), in_pool);
    stage.devnet.mine(1).unwrap();
    for _ in 0..2 {
        assert_eq!(stage.chain.resend(&signed).await.unwrap(), Resent::Known, "it is mined");
    }
    stage.devnet.mine(1).unwrap();
    assert_eq!(stage.chain.channel(stage.id(1)).await.unwrap().balance, Amount::new(1_000));
    stage.devnet.set_mining(Mining::OnDemand);
    stage.mine(&stage.deposit(2, 1_000)).await;
}

#[tokio::test]
async fn a_transaction_whose_nonce_another_one_took_is_replaced() {
    let stage = Stage::set().await;
    stage.devnet.set_mining(Mining::Manual);
    let notary = Notary::of(&stage, true);
    let hash = stage.chain.send_witnessed(&stage.deposit(1, 1_000), Bid::default(), None, &notary).await.unwrap();
    assert!(stage.devnet.drop_transaction(B256::new(hash.0)));
    stage.devnet.set_mining(Mining::OnDemand);
    mine(&stage.chain_of(dev("gas")).await, &stage.deposit(2, 1_000)).await;
    let signed = notary.shown().pop().unwrap();
    assert_eq!(stage.chain.resend(&signed).await.unwrap(), Resent::Replaced);
    assert_eq!(stage.chain.channel(stage.id(1)).await.unwrap().balance, Amount::ZERO);
    // A node that says no for another reason has not said that.
    let broken = SignedTransaction { raw: vec![2, 0xc0], ..signed };
    assert!(stage.chain.resend(&broken).await.is_err());
}

#[tokio::test]
async fn a_transaction_sent_again_has_its_nonce_for_itself() {
    let stage = Stage::set().await;
    stage.devnet.set_mining(Mining::Manual);
    let notary = Notary::of(&stage, true);
    let hash = stage.chain.send_witnessed(&stage.deposit(1, 1_000), Bid::default(), None, &notary).await.unwrap();
    assert!(stage.devnet.drop_transaction(B256::new(hash.0)));
    // A new process with the same key.
    let next = stage.chain_of(dev("gas")).await;
    next.resend(&notary.shown()[0]).await.unwrap();
    next.send(&stage.deposit(2, 1_000)).await.unwrap();
    assert_eq!(stage.devnet.pending_transactions().len(), 2);
}

#[tokio::test]
async fn a_receipt_says_what_a_transaction_cost() {
    let stage = Stage::set().await;
    let before = stage.devnet.balance(evm(dev("gas").address()));
    let mined = stage.mine(&stage.deposit(1, 1_000)).await;
    let spent = before - stage.devnet.balance(evm(dev("gas").address()));
    assert_eq!(mined.fee_wei.map(U256::from), Some(spent));

    // An OP stack adds what layer 1 takes for the data; other nodes may not name a price at all.
    let receipt = |more: Value| {
        let mut receipt = json!({
            "transactionHash": B256::new(mined.hash.0), "blockNumber": "0x5", "blockHash": B256::ZERO, "status": "0x1",
            "gasUsed": "0x10", "logs": [],
        });
        receipt.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        receipt
    };
    for (more, fee) in [
        (json!({"effectiveGasPrice": "0x3", "l1Fee": "0x7"}), Some(55)),
        (json!({"effectiveGasPrice": "0x3", "l1Fee": null}), Some(48)),
        (json!({"l1Fee": "0x7"}), None),
        (json!({"effectiveGasPrice": format!("{:#x}", U256::MAX)}), None),
        (json!({"effectiveGasPrice": format!("{:#x}", u128::MAX)}), None),
    ] {
        let reader = answering_always(rpc_result(receipt(more))).await;
        assert_eq!(reader.receipt(mined.hash).await.unwrap().unwrap().fee_wei, fee);
    }
}

/// A chain behind a node that gives the same answer to every question but that for its chain id.
async fn answering_always(answer: Value) -> AlloyChain {
    let reply = move |Json(request): Json<Value>| {
        let id = request["method"] == "eth_chainId";
        let answer = if id { rpc_result(json!("0x14a34")) } else { answer.clone() };
        async move { Json(answer) }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let router = axum::Router::new().fallback(axum::routing::post(reply));
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    AlloyChain::connect(url.parse().unwrap(), None).await.unwrap()
}

// ---- a gateway between us and the node

/// What a gateway does with one request. It is asked with the method, and how often that was asked for before.
type Fault = fn(&str, usize) -> Deed;

enum Deed {
    /// Passes it on, and the answer back.
    Pass,
    /// Passes it on, and answers with this.
    PassAndSay(StatusCode, Value),
    /// Answers with this alone.
    Say(StatusCode, Value),
}

fn rpc_error(code: i64, message: &str) -> Value {
    json!({"jsonrpc": "2.0", "id": 1, "error": {"code": code, "message": message}})
}

fn rpc_result(result: Value) -> Value {
    json!({"jsonrpc": "2.0", "id": 1, "result": result})
}

/// Starts a gateway to the stage's node, with this fault; a chain that goes through it.
async fn through_gateway(stage: &Stage, fault: Fault) -> AlloyChain {
    peaje::chain::install_tls();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let upstream = stage.devnet.rpc_url();
    let sends = Arc::new(AtomicUsize::new(0));
    let answer = move |Json(request): Json<Value>| {
        let (client, upstream, sends) = (client.clone(), upstream.clone(), sends.clone());
        async move {
            let method = request["method"].as_str().unwrap();
            let count = if method == "eth_sendRawTransaction" { sends.fetch_add(1, Ordering::SeqCst) } else { 0 };
            let pass =
                async || client.post(&upstream).json(&request).send().await.unwrap().json::<Value>().await.unwrap();
            let reply: Response = match fault(method, count) {
                Deed::Pass => Json(pass().await).into_response(),
                Deed::PassAndSay(status, body) => {
                    pass().await;
                    (status, Json(body)).into_response()
                }
                Deed::Say(status, body) => (status, Json(body)).into_response(),
            };
            reply
        }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v2/secret-api-key", listener.local_addr().unwrap());
    let router = axum::Router::new().fallback(axum::routing::post(answer));
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    AlloyChain::connect(url.parse().unwrap(), Some(dev("gas"))).await.unwrap()
}

const SEND: &str = "eth_sendRawTransaction";

#[tokio::test]
async fn a_transaction_that_may_land_is_never_called_refused() {
    let faults: [Fault; 5] = [
        |method, _| {
            if method == SEND { Deed::PassAndSay(StatusCode::BAD_GATEWAY, json!("gateway")) } else { Deed::Pass }
        },
        |method, _| {
            if method == SEND {
                Deed::PassAndSay(StatusCode::OK, rpc_error(-32000, "already known"))
            } else {
                Deed::Pass
            }
        },
        |method, _| {
            if method == SEND {
                Deed::PassAndSay(StatusCode::OK, rpc_error(-32603, "internal error"))
            } else {
                Deed::Pass
            }
        },
        |method, _| if method == SEND { Deed::PassAndSay(StatusCode::OK, json!("nonsense")) } else { Deed::Pass },
        |method, _| {
            if method == SEND { Deed::PassAndSay(StatusCode::OK, rpc_result(json!(U256::from(7)))) } else { Deed::Pass }
        },
    ];
    let stage = Stage::set().await;
    for (salt, fault) in (1..).zip(faults) {
        let chain = through_gateway(&stage, fault).await;
        let error = chain.send(&stage.deposit(salt, 1_000)).await.unwrap_err();
        let hash = error.maybe_sent().unwrap_or_else(|| panic!("{salt}: {error:?}"));
        assert!(chain.await_receipt(hash, WAIT, POLL).await.unwrap().unwrap().success, "it did land");
        assert!(!shown(&error).contains("secret-api-key"));
    }
}

#[tokio::test]
async fn what_a_node_turned_away_is_called_refused_and_holds_up_nothing() {
    let faults: [Fault; 4] = [
        |method, count| {
            if method == SEND && count == 0 {
                Deed::Say(StatusCode::OK, rpc_error(-32000, "transaction underpriced"))
            } else {
                Deed::Pass
            }
        },
        |method, count| {
            if method == SEND && count == 0 {
                Deed::Say(StatusCode::TOO_MANY_REQUESTS, json!("slow down"))
            } else {
                Deed::Pass
            }
        },
        |method, count| {
            if method == SEND && count == 0 {
                Deed::Say(StatusCode::UNAUTHORIZED, rpc_error(-32600, "bad key secret-api-key"))
            } else {
                Deed::Pass
            }
        },
        |method, count| {
            if method == SEND && count < 2 {
                Deed::Say(StatusCode::OK, rpc_error(-32000, "nonce too low"))
            } else {
                Deed::Pass
            }
        },
    ];
    let stage = Stage::set().await;
    for (salt, fault) in (1..).zip(faults) {
        let chain = through_gateway(&stage, fault).await;
        let deposit = stage.deposit(salt, 1_000);
        let error = chain.send(&deposit).await.unwrap_err();
        assert!(matches!(error, SendError::Refused(_)), "{salt}: {error:?}");
        assert!(!shown(&error).contains("secret-api-key"));
        mine(&chain, &deposit).await;
    }
}

#[tokio::test]
async fn a_transaction_delivered_twice_is_one_transaction() {
    let stage = Stage::set().await;
    let chain = through_gateway(&stage, |method, count| match (method, count) {
        (SEND, 0) => Deed::PassAndSay(StatusCode::OK, rpc_error(-32000, "nonce too low: next nonce 1, tx nonce 0")),
        _ => Deed::Pass,
    })
    .await;
    mine(&chain, &stage.deposit(1, 1_000)).await;
    mine(&chain, &stage.deposit(2, 1_000)).await;
}

#[tokio::test]
async fn garbage_from_a_node_is_an_error() {
    let stage = Stage::set().await;
    let cases: [(Fault, &str); 3] = [
        (
            |method, _| {
                if method == "eth_call" {
                    Deed::Say(StatusCode::OK, rpc_result(json!(format!("0x{}", "ff".repeat(64)))))
                } else {
                    Deed::Pass
                }
            },
            "amounts beyond 128 bits",
        ),
        (
            |method, _| {
                if method == "eth_call" { Deed::Say(StatusCode::OK, rpc_result(json!("0x"))) } else { Deed::Pass }
            },
            "no contract",
        ),
        (
            |method, _| if method == "eth_call" { Deed::Say(StatusCode::OK, json!({"hello": 1})) } else { Deed::Pass },
            "null",
        ),
    ];
    for (fault, case) in cases {
        let chain = through_gateway(&stage, fault).await;
        let error = chain.receivers(stage.receiver.address(), dollar()).await.unwrap_err();
        assert!(matches!(error, ChainError::Decode { .. }), "{case}: {error:?}");
        let error = chain.channel(stage.id(1)).await.unwrap_err();
        assert!(matches!(error, ChainError::Decode { .. }), "{case}: {error:?}");
    }
}

#[tokio::test]
async fn a_provider_with_narrower_log_queries_is_asked_for_less() {
    let stage = Stage::set().await;
    stage.mine(&stage.deposit(1, 1_000)).await;
    stage.devnet.mine(30).unwrap();
    stage.mine(&stage.deposit(2, 1_000)).await;
    let chain = narrow_gateway(&stage).await;
    let head = chain.head().await.unwrap();
    assert_eq!(chain.events(0, head.number).await.unwrap(), stage.chain.events(0, head.number).await.unwrap());
}

/// A gateway that allows ten blocks a query.
async fn narrow_gateway(stage: &Stage) -> AlloyChain {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let upstream = stage.devnet.rpc_url();
    let answer = move |Json(request): Json<Value>| {
        let (client, upstream) = (client.clone(), upstream.clone());
        async move {
            let number =
                |value: &Value| u64::from_str_radix(value.as_str().unwrap().trim_start_matches("0x"), 16).unwrap();
            if request["method"] == "eth_getLogs" {
                let filter = &request["params"][0];
                if number(&filter["toBlock"]) - number(&filter["fromBlock"]) >= 10 {
                    return Json(rpc_error(-32602, "range too large"));
                }
            }
            Json(client.post(&upstream).json(&request).send().await.unwrap().json::<Value>().await.unwrap())
        }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let router = axum::Router::new().fallback(axum::routing::post(answer));
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    AlloyChain::connect(url.parse().unwrap(), None).await.unwrap()
}

#[tokio::test]
async fn a_wallet_contract_can_be_the_payer() {
    let stage = Stage::set().await;
    let wallet = Address([0xbb; 20]);
    // Approves everything: what counts here is that its word is taken by us and by the contract alike.
    let code = alloy::primitives::hex::decode("631626ba7e60e01b60005260206000f3").unwrap();
    stage.devnet.set_code(evm(wallet), code.into()).unwrap();
    stage.devnet.mint_dollars(evm(wallet), 1_000).unwrap();
    let config = ChannelConfig { payer: wallet, payer_authorizer: Address::ZERO, ..stage.config(1) };
    let signature = Signature::from_bytes([1, 2, 3]).unwrap();
    let authorization = Authorization {
        valid_after: 0,
        valid_before: stage.devnet.now() + 300,
        salt: Hash::ZERO,
        signature: signature.clone(),
    };
    stage
        .mine(&Call::Deposit { config, amount: Amount::new(1_000), authorization: authorization.into(), payment: None })
        .await;
    let row = ClaimRow { config, max_claimable: Amount::new(400), signature, total_claimed: Amount::new(400) };
    stage.mine(&stage.claim_with_signature(vec![row])).await;
    let view = stage.chain.channel(config.id(&stage.domain)).await.unwrap();
    assert_eq!(view.available(), Amount::new(600));
}
