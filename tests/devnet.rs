//! The development chain, through a socket and a stock client: the stand-in contracts against the protocol's vectors and
//! rules, and the node against what clients of a public one rely on.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests fail the test")]
#![allow(clippy::too_many_arguments, reason = "the contracts' signatures are given")]

use std::net::SocketAddr;
use std::time::Duration;

use alloy::consensus::{SignableTransaction as _, TxEip1559, TxEnvelope};
use alloy::contract::Error as ContractError;
use alloy::eips::{BlockId, BlockNumberOrTag, Encodable2718 as _};
use alloy::json_abi::JsonAbi;
use alloy::network::{EthereumWallet, TransactionBuilder as _, TxSignerSync as _};
use alloy::primitives::aliases::U40;
use alloy::primitives::{Address, B256, Bytes, Signature, TxKind, U256, address, b256, bytes, keccak256};
use alloy::providers::{DynProvider, Provider as _, ProviderBuilder};
use alloy::rpc::types::{Filter, TransactionReceipt, TransactionRequest};
use alloy::signers::SignerSync as _;
use alloy::signers::local::PrivateKeySigner;
use alloy::sol_types::{SolCall as _, SolEvent as _, SolStruct as _, SolValue as _, eip712_domain};
use peaje::devnet::{Devnet, DevnetConfig, DevnetError, Mining, genesis};
use serde_json::{Value, json};

use settlement::{ChannelConfig, Settlement, Voucher, VoucherClaim};

mod settlement {
    alloy::sol! {
        #[derive(Debug, PartialEq, Eq)]
        struct ChannelConfig {
            address payer;
            address payerAuthorizer;
            address receiver;
            address receiverAuthorizer;
            address token;
            uint40 withdrawDelay;
            bytes32 salt;
        }
        struct Voucher {
            ChannelConfig channel;
            uint128 maxClaimableAmount;
        }
        struct VoucherClaim {
            Voucher voucher;
            bytes signature;
            uint128 totalClaimed;
        }
        struct ReceiveWithAuthorization {
            address from;
            address to;
            uint256 value;
            uint256 validAfter;
            uint256 validBefore;
            bytes32 nonce;
        }

        #[sol(rpc)]
        contract Settlement {
            event ChannelCreated(bytes32 indexed channelId, ChannelConfig config);
            event ChannelClosed(bytes32 indexed channelId, ChannelConfig config);
            event Deposited(bytes32 indexed channelId, address indexed sender, uint128 amount, uint128 newBalance);
            event Claimed(bytes32 indexed channelId, address indexed sender, uint128 claimAmount, uint128 newTotalClaimed);
            event Settled(address indexed receiver, address indexed token, address indexed sender, uint128 amount);
            event Refunded(bytes32 indexed channelId, address indexed sender, uint128 amount);
            event WithdrawInitiated(bytes32 indexed channelId, uint128 amount, uint40 finalizeAfter);
            event WithdrawFinalized(bytes32 indexed channelId, address indexed sender, uint128 amount);

            function deposit(ChannelConfig config, uint128 amount, address collector, bytes collectorData) external;
            function claim(VoucherClaim[] voucherClaims) external;
            function claimWithSignature(VoucherClaim[] voucherClaims, bytes authorizerSignature) external;
            function settle(address receiver, address token) external;
            function initiateWithdraw(ChannelConfig config, uint128 amount) external;
            function finalizeWithdraw(ChannelConfig config) external;
            function refund(ChannelConfig config, uint128 amount) external;
            function refundWithSignature(ChannelConfig config, uint128 amount, uint256 nonce, bytes signature) external;
            function multicall(bytes[] data) external returns (bytes[] results);
            function getChannelId(ChannelConfig config) external view returns (bytes32);
            function channels(bytes32 channelId) external view returns (uint128 balance, uint128 totalClaimed);
            function pendingWithdrawals(bytes32 channelId) external view returns (uint128 amount, uint40 initiatedAt);
            function refundNonce(bytes32 channelId) external view returns (uint256);
            function receivers(address receiver, address token) external view returns (uint128 totalClaimed, uint128 totalSettled);
            function getVoucherDigest(bytes32 channelId, uint128 maxClaimableAmount) external view returns (bytes32);
            function getRefundDigest(bytes32 channelId, uint256 nonce, uint128 amount) external view returns (bytes32);
            function getClaimBatchDigest(VoucherClaim[] voucherClaims) external view returns (bytes32);
            function eip712Domain() external view returns (bytes1 fields, string name, string version, uint256 chainId, address verifyingContract, bytes32 salt, uint256[] extensions);
        }

        #[sol(rpc)]
        contract Dollar {
            event Transfer(address indexed from, address indexed to, uint256 value);
            function mint(address to, uint256 value) external;
            function balanceOf(address account) external view returns (uint256);
            function name() external view returns (string);
            function symbol() external view returns (string);
            function version() external view returns (string);
            function decimals() external view returns (uint8);
            function DOMAIN_SEPARATOR() external view returns (bytes32);
            function authorizationState(address authorizer, bytes32 nonce) external view returns (bool);
            function receiveWithAuthorization(address from, address to, uint256 value, uint256 validAfter, uint256 validBefore, bytes32 nonce, uint8 v, bytes32 r, bytes32 s) external;
        }

        #[sol(rpc)]
        contract Wallet {
            function init(address newOwner) external;
            function execute(address target, bytes data) external payable returns (bytes);
        }
    }
}

// The selectors and topics of the canonical contract.

const FUNCTIONS: [(&str, &str); 18] = [
    ("deposit((address,address,address,address,address,uint40,bytes32),uint128,address,bytes)", "0x140f1e75"),
    ("claim((((address,address,address,address,address,uint40,bytes32),uint128),bytes,uint128)[])", "0x29237b0c"),
    (
        "claimWithSignature((((address,address,address,address,address,uint40,bytes32),uint128),bytes,uint128)[],bytes)",
        "0xe43ce1f2",
    ),
    ("settle(address,address)", "0x9db32a8f"),
    ("initiateWithdraw((address,address,address,address,address,uint40,bytes32),uint128)", "0xcf5cf3dc"),
    ("finalizeWithdraw((address,address,address,address,address,uint40,bytes32))", "0xe88377b1"),
    ("refund((address,address,address,address,address,uint40,bytes32),uint128)", "0xdce4bfae"),
    (
        "refundWithSignature((address,address,address,address,address,uint40,bytes32),uint128,uint256,bytes)",
        "0xb77433e9",
    ),
    ("multicall(bytes[])", "0xac9650d8"),
    ("getChannelId((address,address,address,address,address,uint40,bytes32))", "0x5e5e0b87"),
    ("channels(bytes32)", "0x7a7ebd7b"),
    ("pendingWithdrawals(bytes32)", "0xb7f06ebe"),
    ("refundNonce(bytes32)", "0xf0dc792e"),
    ("receivers(address,address)", "0x21ff6389"),
    ("getVoucherDigest(bytes32,uint128)", "0x862bb199"),
    ("getRefundDigest(bytes32,uint256,uint128)", "0xe25cf189"),
    (
        "getClaimBatchDigest((((address,address,address,address,address,uint40,bytes32),uint128),bytes,uint128)[])",
        "0x488ccc3b",
    ),
    ("eip712Domain()", "0x84b0196e"),
];

const EVENTS: [(&str, &str); 8] = [
    (
        "ChannelCreated(bytes32,(address,address,address,address,address,uint40,bytes32))",
        "0x69d8248d5566bdb2ebc4d218970710d8378a2ff9b709a999e052b71970f808fa",
    ),
    (
        "ChannelClosed(bytes32,(address,address,address,address,address,uint40,bytes32))",
        "0x8d5942f197f362dfd44dfdc1b0b7a9721c9151b67f55817c83349271d3c08d37",
    ),
    (
        "Deposited(bytes32,address,uint128,uint128)",
        "0x6c2a09353b5e75e70d0b9778b80a413809bb235d46c211811c474b3346791d89",
    ),
    ("Claimed(bytes32,address,uint128,uint128)", "0x36bd546bb573e8921fdbfd934bbed62d872796b01792cd240cce27f79dd3eddd"),
    ("Settled(address,address,address,uint128)", "0x7337b4386b690fdb8ba66905b92b9d45d33bc6626ee2620c905fb150ec0cc47d"),
    ("Refunded(bytes32,address,uint128)", "0xa84286cf8ebc7903a663c77c8d99aa92b600d4c2fcca872a5d4a663db4eb394b"),
    ("WithdrawInitiated(bytes32,uint128,uint40)", "0xe4280d0d903c7f258f62b07c62f262377cbaa23f7791d78126e6446e0f0e3c23"),
    (
        "WithdrawFinalized(bytes32,address,uint128)",
        "0x546ce1e2242cd930c196bd08b894443562d709b4fffe4f028a75a6d233efc6e3",
    ),
];

const ERRORS: [(&str, &str); 21] = [
    ("InvalidChannel()", "0xea3a9a39"),
    ("ZeroDeposit()", "0x56316e87"),
    ("DepositOverflow()", "0x1132981b"),
    ("InvalidSignature()", "0x8baa579f"),
    ("NotReceiverAuthorizer()", "0xf5e2237d"),
    ("NotAuthorizedToClaim()", "0xdefb7069"),
    ("NotAuthorizedToRefund()", "0x7864f008"),
    ("ClaimExceedsCeiling()", "0xf1789775"),
    ("ClaimExceedsBalance()", "0x7d8242b6"),
    ("WithdrawalAlreadyPending()", "0xa2aed0f0"),
    ("WithdrawalNotPending()", "0x3a0a1ca6"),
    ("NotAuthorizedToFinalizeWithdraw()", "0x15f969d5"),
    ("WithdrawDelayNotElapsed()", "0xf3965827"),
    ("NothingToWithdraw()", "0xd0d04f60"),
    ("WithdrawAmountExceedsAvailable()", "0x6d3d5764"),
    ("WithdrawDelayOutOfRange()", "0x4574fab6"),
    ("EmptyBatch()", "0xc2e5347d"),
    ("DepositCollectionFailed()", "0xeb43592c"),
    ("InvalidCollector()", "0x18b1afd4"),
    ("InvalidRefundNonce()", "0x164f1afe"),
    ("ZeroRefund()", "0xd758525c"),
];

const CHAIN_ID: u64 = 84_532;

// Vectors of the protocol, computed with another implementation.
const DOMAIN_SEPARATOR: B256 = b256!("fdef80764086b1e0fc6ba99f0cb9aa1d59109fda7c23d60334c89d2de44dffce");
const DOLLAR_DOMAIN_SEPARATOR: B256 = b256!("71f17a3b2ff373b803d70a5a07c046c1a2bc8e89c09ef722fcb047abe94c9818");
const CHANNEL_ID: B256 = b256!("75c9da072356bcbba14d96aab511deac1e0d880379caad068117afab8925f32d");
const CHANNEL_ID_SALT_1: B256 = b256!("f38e610b11fc591834b2c8736aa372726f0af9a613d222acc1ec1ad080175c4f");
const VOUCHER_DIGEST: B256 = b256!("6d628eea4cd1b646da30c46ef2bba6cb79a62b3c321233f0ca81f38c3f9485a8");
const REFUND_DIGEST: B256 = b256!("1a897972a8123c78ed2904cdb259879227f2f1e8e6f67aeda7f62a170a8c1a78");
const BATCH_DIGEST: B256 = b256!("eb5ad051e5cf4c002fb4459c087bee34eb22f05be4bde0fdeb5c5b92c3ed750e");
const EMPTY_BATCH_DIGEST: B256 = b256!("57b970b91bd540b4ca1aa82be12adbc9b769b6e978e5285b2a859bd989304e9a");
const VOUCHER_SIGNATURE: Bytes = bytes!(
    "e31a0146bfc78a234ec06f8bc306086774aa558789f17bb6d226179e8f72dd5f1c856c29304ff35c95db50d5cb5cd33aa2f41fb36afe97433d6ee4a7e1b9d56c1b"
);
const DEPOSIT_NONCE: B256 = b256!("72f1015c314ff5f7231ba487ead4be549ee1743c28430284611b5d14a5e435b5");

// ---- the contracts against the protocol

#[test]
fn the_compiled_settlement_has_the_canonical_selectors_topics_and_errors() {
    let artifact: Value =
        serde_json::from_str(include_str!("../deploy/contracts/artifacts/X402BatchSettlement.json")).unwrap();
    let abi: JsonAbi = serde_json::from_value(artifact["abi"].clone()).unwrap();
    for (signature, selector) in FUNCTIONS {
        let function = abi.functions().find(|function| function.signature() == signature);
        assert_eq!(function.map(|it| it.selector().to_string()).as_deref(), Some(selector), "{signature}");
    }
    for (signature, topic) in EVENTS {
        let event = abi.events().find(|event| event.signature() == signature);
        assert_eq!(event.map(|it| it.selector().to_string()).as_deref(), Some(topic), "{signature}");
    }
    for (signature, selector) in ERRORS {
        let error = abi.errors().find(|error| error.signature() == signature);
        assert_eq!(error.map(|it| it.selector().to_string()).as_deref(), Some(selector), "{signature}");
    }
    let indexed = |name: &str| abi.event(name).unwrap()[0].inputs.iter().filter(|input| input.indexed).count();
    let counts = [
        ("ChannelCreated", 1),
        ("ChannelClosed", 1),
        ("Deposited", 2),
        ("Claimed", 2),
        ("Settled", 3),
        ("Refunded", 2),
        ("WithdrawInitiated", 1),
        ("WithdrawFinalized", 2),
    ];
    for (name, expected) in counts {
        assert_eq!(indexed(name), expected, "{name}");
    }
}

#[tokio::test]
async fn digests_are_those_of_the_protocol_vectors() {
    let devnet = start().await;
    let contract = Settlement::new(genesis::SETTLEMENT, reader(&devnet));
    let config = vector_config(0);
    let other = vector_config(1);

    let domain = contract.eip712Domain().call().await.unwrap();
    assert_eq!((domain.name.as_str(), domain.version.as_str()), ("x402 Batch Settlement", "1"));
    assert_eq!((domain.chainId, domain.verifyingContract), (U256::from(CHAIN_ID), genesis::SETTLEMENT));
    let separator = eip712_domain! {
        name: domain.name,
        version: domain.version,
        chain_id: CHAIN_ID,
        verifying_contract: domain.verifyingContract,
    };
    assert_eq!(separator.separator(), DOMAIN_SEPARATOR);

    assert_eq!(contract.getChannelId(config.clone()).call().await.unwrap(), CHANNEL_ID);
    assert_eq!(contract.getChannelId(other.clone()).call().await.unwrap(), CHANNEL_ID_SALT_1);
    assert_eq!(contract.getVoucherDigest(CHANNEL_ID, 5_000).call().await.unwrap(), VOUCHER_DIGEST);
    assert_eq!(contract.getRefundDigest(CHANNEL_ID, U256::from(1), 1_500).call().await.unwrap(), REFUND_DIGEST);
    let rows = vec![row(&config, 5_000, 4_200, Bytes::new()), row(&other, 900, 900, Bytes::new())];
    assert_eq!(contract.getClaimBatchDigest(rows).call().await.unwrap(), BATCH_DIGEST);
    assert_eq!(contract.getClaimBatchDigest(vec![]).call().await.unwrap(), EMPTY_BATCH_DIGEST);
}

#[tokio::test]
async fn the_test_dollar_has_the_domain_of_base_sepolias_usdc() {
    let devnet = start().await;
    let dollar = settlement::Dollar::new(genesis::DOLLAR, reader(&devnet));
    assert_eq!(dollar.name().call().await.unwrap(), "USDC");
    assert_eq!(dollar.symbol().call().await.unwrap(), "USDC");
    assert_eq!(dollar.version().call().await.unwrap(), "2");
    assert_eq!(dollar.decimals().call().await.unwrap(), 6);
    assert_eq!(dollar.DOMAIN_SEPARATOR().call().await.unwrap(), DOLLAR_DOMAIN_SEPARATOR);
    assert_eq!(deposit_nonce(CHANNEL_ID, U256::from_be_bytes([0x5a; 32])), DEPOSIT_NONCE);
}

// ---- a channel's life

#[tokio::test]
async fn a_deposit_is_pulled_by_the_payers_authorization() {
    let stage = Stage::new().await;
    let receipt = stage.deposit(&stage.config, 100_000).await;

    assert_eq!(stage.channel().await, (100_000, 0));
    assert_eq!(stage.devnet.dollar_balance(stage.payer.address()).unwrap(), 900_000);
    assert_eq!(stage.devnet.dollar_balance(genesis::SETTLEMENT).unwrap(), 100_000);
    let created = event::<Settlement::ChannelCreated>(&receipt).unwrap();
    assert_eq!((created.channelId, created.config), (stage.id, stage.config.clone()));
    let deposited = event::<Settlement::Deposited>(&receipt).unwrap();
    assert_eq!((deposited.sender, deposited.amount, deposited.newBalance), (stage.relayer(), 100_000, 100_000));

    let topped_up = stage.deposit(&stage.config, 50_000).await;
    assert!(event::<Settlement::ChannelCreated>(&topped_up).is_none());
    assert_eq!(event::<Settlement::Deposited>(&topped_up).unwrap().newBalance, 150_000);
}

#[tokio::test]
async fn a_deposit_refuses_what_the_protocol_forbids() {
    let stage = Stage::new().await;
    let zero_receiver = ChannelConfig { receiver: Address::ZERO, ..stage.config.clone() };
    let short = ChannelConfig { withdrawDelay: U40::from(899), ..stage.config.clone() };
    let long = ChannelConfig { withdrawDelay: U40::from(2_592_001), ..stage.config.clone() };

    assert_eq!(stage.deposit_error(&stage.config, 0).await, "ZeroDeposit()");
    assert_eq!(stage.deposit_error(&zero_receiver, 1).await, "InvalidChannel()");
    assert_eq!(stage.deposit_error(&short, 1).await, "WithdrawDelayOutOfRange()");
    assert_eq!(stage.deposit_error(&long, 1).await, "WithdrawDelayOutOfRange()");
    let no_collector = stage.contract.deposit(stage.config.clone(), 1, Address::ZERO, Bytes::new());
    assert_eq!(error_name(no_collector.call().await), "InvalidCollector()");

    for edge in [900u64, 2_592_000] {
        let config = ChannelConfig { withdrawDelay: U40::from(edge), ..stage.config.clone() };
        stage.deposit(&config, 1_000).await;
    }

    // An authorization is good for one channel, once.
    let data = stage.authorize(stage.id, 10, U256::from(9));
    let other = ChannelConfig { salt: B256::repeat_byte(7), ..stage.config.clone() };
    let stolen = stage.contract.deposit(other, 10, genesis::ERC3009_COLLECTOR, data.clone());
    assert!(stolen.call().await.err().unwrap().to_string().contains("invalid signature"));
    let once = stage.contract.deposit(stage.config.clone(), 10, genesis::ERC3009_COLLECTOR, data.clone());
    stage.run(once).await;
    let twice = stage.contract.deposit(stage.config.clone(), 10, genesis::ERC3009_COLLECTOR, data);
    assert!(twice.call().await.err().unwrap().to_string().contains("authorization is used"));
}

#[tokio::test]
async fn a_claim_takes_the_charge_not_the_ceiling_and_settle_pays_it_out() {
    let stage = Stage::new().await;
    stage.deposit(&stage.config, 100_000).await;

    let receipt = stage.claim(&[stage.row(5_000, 4_200)]).await;
    let claimed = event::<Settlement::Claimed>(&receipt).unwrap();
    assert_eq!((claimed.channelId, claimed.sender), (stage.id, stage.relayer()));
    assert_eq!((claimed.claimAmount, claimed.newTotalClaimed), (4_200, 4_200));
    assert_eq!(stage.channel().await, (100_000, 4_200));

    // A row claimed before is skipped without looking at its signature.
    let stale = stage.claim(&[row(&stage.config, 4_200, 4_200, bytes!("00"))]).await;
    assert!(stale.status() && stale.inner.logs().is_empty());

    let settled = stage.settle().await;
    assert_eq!(event::<Settlement::Settled>(&settled).unwrap().amount, 4_200);
    assert_eq!(stage.devnet.dollar_balance(stage.config.receiver).unwrap(), 4_200);
    let nothing_due = stage.settle().await;
    assert!(nothing_due.status() && nothing_due.inner.logs().is_empty());

    let books = stage.contract.receivers(stage.config.receiver, genesis::DOLLAR).call().await.unwrap();
    assert_eq!((books.totalClaimed, books.totalSettled), (4_200, 4_200));
}

#[tokio::test]
async fn a_claim_names_what_is_wrong_with_a_row() {
    let stage = Stage::new().await;
    stage.deposit(&stage.config, 10_000).await;

    assert_eq!(stage.claim_error(&[stage.row(100, 101)]).await, "ClaimExceedsCeiling()");
    assert_eq!(stage.claim_error(&[stage.row(20_000, 10_001)]).await, "ClaimExceedsBalance()");
    assert_eq!(stage.claim_error(&[]).await, "EmptyBatch()");
    let theirs = stage.receiver_authorizer.sign_hash_sync(&stage.voucher_digest(100)).unwrap();
    let by_another = row(&stage.config, 100, 100, theirs.as_bytes().into());
    assert_eq!(stage.claim_error(&[by_another]).await, "InvalidSignature()");

    // One bad row takes the whole batch with it.
    assert_eq!(stage.claim_error(&[stage.row(50, 50), stage.row(100, 101)]).await, "ClaimExceedsCeiling()");
    stage.claim(&[stage.row(20_000, 10_000)]).await;
    assert_eq!(stage.channel().await, (10_000, 10_000));
}

#[tokio::test]
async fn a_voucher_signature_has_one_valid_form() {
    let stage = Stage::new().await;
    stage.deposit(&stage.config, 10_000).await;
    let good = stage.payer_authorizer.sign_hash_sync(&stage.voucher_digest(100)).unwrap();
    let claim = async |signature: Vec<u8>| stage.claim_error(&[row(&stage.config, 100, 100, signature.into())]).await;

    let order = U256::from_be_bytes(b256!("fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141").0);
    let high_s = Signature::new(good.r(), order - good.s(), !good.v());
    assert_eq!(claim(high_s.as_bytes().to_vec()).await, "ECDSAInvalidSignatureS(bytes32)");
    let mut zero_v = good.as_bytes().to_vec();
    zero_v[64] -= 27;
    assert_eq!(claim(zero_v).await, "ECDSAInvalidSignature()");
    assert_eq!(claim(good.as_bytes()[..64].to_vec()).await, "ECDSAInvalidSignatureLength(uint256)");
    assert_eq!(claim([good.as_bytes().to_vec(), vec![0]].concat()).await, "ECDSAInvalidSignatureLength(uint256)");
    stage.claim(&[row(&stage.config, 100, 100, good.as_bytes().into())]).await;
}

#[tokio::test]
async fn only_the_receiving_side_claims_without_a_signature() {
    let stage = Stage::new().await;
    stage.deposit(&stage.config, 10_000).await;
    let rows = vec![stage.row(100, 100)];

    assert_eq!(error_name(stage.contract.claim(rows.clone()).call().await), "NotAuthorizedToClaim()");
    for insider in [stage.config.receiver, stage.config.receiverAuthorizer] {
        stage.contract.claim(rows.clone()).from(insider).call().await.unwrap();
    }

    let forged = stage.payer.sign_hash_sync(&stage.batch_digest(&rows).await).unwrap();
    let call = stage.contract.claimWithSignature(rows.clone(), forged.as_bytes().into());
    assert_eq!(error_name(call.call().await), "InvalidSignature()");

    let other = ChannelConfig { receiverAuthorizer: Address::repeat_byte(9), ..stage.config.clone() };
    let mixed = vec![stage.row(100, 100), row(&other, 1, 1, Bytes::new())];
    let call = stage.contract.claimWithSignature(mixed, Bytes::new());
    assert_eq!(error_name(call.call().await), "NotReceiverAuthorizer()");
}

#[tokio::test]
async fn the_vector_voucher_claims() {
    let stage = Stage::new().await;
    let config = vector_config(0);
    let payer = key(1);
    stage.devnet.mint_dollars(payer.address(), 100_000).unwrap();
    stage.deposit(&config, 100_000).await;
    stage.claim(&[row(&config, 5_000, 5_000, VOUCHER_SIGNATURE)]).await;
    let state = stage.contract.channels(CHANNEL_ID).call().await.unwrap();
    assert_eq!((state.balance, state.totalClaimed), (100_000, 5_000));
}

#[tokio::test]
async fn a_refund_spends_its_nonce_and_is_capped_at_what_is_free() {
    let stage = Stage::new().await;
    stage.deposit(&stage.config, 10_000).await;

    let refund = |amount: u128, nonce: u64| {
        stage.contract.refundWithSignature(
            stage.config.clone(),
            amount,
            U256::from(nonce),
            stage.sign_refund(amount, nonce),
        )
    };
    assert_eq!(error_name(refund(0, 0).call().await), "ZeroRefund()");
    assert_eq!(error_name(refund(100, 1).call().await), "InvalidRefundNonce()");
    assert_eq!(error_name(stage.contract.refund(stage.config.clone(), 1).call().await), "NotAuthorizedToRefund()");

    let part = stage.run(refund(1_500, 0)).await;
    assert_eq!(event::<Settlement::Refunded>(&part).unwrap().amount, 1_500);
    assert_eq!(stage.channel().await, (8_500, 0));
    assert_eq!(error_name(refund(1_500, 0).call().await), "InvalidRefundNonce()");

    // Claim and refund of the rest, in one transaction.
    let rows = vec![stage.row(2_000, 2_000)];
    let signature = stage.receiver_authorizer.sign_hash_sync(&stage.batch_digest(&rows).await).unwrap();
    let claim =
        Settlement::claimWithSignatureCall { voucherClaims: rows, authorizerSignature: signature.as_bytes().into() };
    let rest = Settlement::refundWithSignatureCall {
        config: stage.config.clone(),
        amount: 1_000_000,
        nonce: U256::from(1),
        signature: stage.sign_refund(1_000_000, 1),
    };
    let both = stage.run(stage.contract.multicall(vec![claim.abi_encode().into(), rest.abi_encode().into()])).await;
    assert_eq!(event::<Settlement::Claimed>(&both).unwrap().newTotalClaimed, 2_000);
    assert_eq!(event::<Settlement::Refunded>(&both).unwrap().amount, 6_500);
    assert_eq!(stage.channel().await, (2_000, 2_000));

    // Nothing free: no event, but the nonce is spent all the same.
    let empty = stage.run(refund(5, 2)).await;
    assert!(empty.status() && empty.inner.logs().is_empty());
    assert_eq!(stage.contract.refundNonce(stage.id).call().await.unwrap(), U256::from(3));

    // A step that fails undoes the steps before it.
    let top_up = stage.authorize(stage.id, 10, U256::from(77));
    let deposit = Settlement::depositCall {
        config: stage.config.clone(),
        amount: 10,
        collector: genesis::ERC3009_COLLECTOR,
        collectorData: top_up,
    };
    let stale = Settlement::refundWithSignatureCall {
        config: stage.config.clone(),
        amount: 1,
        nonce: U256::ZERO,
        signature: stage.sign_refund(1, 0),
    };
    let call = stage.contract.multicall(vec![deposit.abi_encode().into(), stale.abi_encode().into()]);
    assert_eq!(error_name(call.call().await), "InvalidRefundNonce()");
}

#[tokio::test]
async fn an_unused_channel_closes_when_all_of_it_goes_back() {
    let stage = Stage::new().await;
    stage.deposit(&stage.config, 10_000).await;
    let call =
        stage.contract.refundWithSignature(stage.config.clone(), 10_000, U256::ZERO, stage.sign_refund(10_000, 0));
    let receipt = stage.run(call).await;
    assert_eq!(event::<Settlement::ChannelClosed>(&receipt).unwrap().channelId, stage.id);
}

#[tokio::test]
async fn a_withdrawal_waits_for_its_delay_and_pays_what_was_not_claimed() {
    let stage = Stage::new().await;
    stage.deposit(&stage.config, 10_000).await;
    let payer = stage.payer.address();
    let initiate = |amount: u128| stage.contract.initiateWithdraw(stage.config.clone(), amount).from(payer);
    let finalize = || stage.contract.finalizeWithdraw(stage.config.clone()).from(payer);

    let stranger = stage.contract.initiateWithdraw(stage.config.clone(), 1);
    assert_eq!(error_name(stranger.call().await), "InvalidChannel()");
    assert_eq!(error_name(initiate(0).call().await), "NothingToWithdraw()");
    assert_eq!(error_name(initiate(10_001).call().await), "WithdrawAmountExceedsAvailable()");
    assert_eq!(error_name(finalize().call().await), "WithdrawalNotPending()");

    let payer_side = writer(&stage.devnet, &stage.payer);
    let as_payer = Settlement::new(genesis::SETTLEMENT, payer_side);
    let receipt = stage.run(as_payer.initiateWithdraw(stage.config.clone(), 10_000)).await;
    let initiated = event::<Settlement::WithdrawInitiated>(&receipt).unwrap();
    let mined_at = timestamp(&stage.reader, receipt.block_number.unwrap()).await;
    assert_eq!((initiated.amount, initiated.finalizeAfter.to::<u64>()), (10_000, mined_at + 900));
    assert_eq!(error_name(initiate(1).call().await), "WithdrawalAlreadyPending()");
    assert_eq!(error_name(finalize().call().await), "WithdrawDelayNotElapsed()");
    assert_eq!(
        error_name(stage.contract.finalizeWithdraw(stage.config.clone()).call().await),
        "NotAuthorizedToFinalizeWithdraw()"
    );

    // The receiver still claims, and gives some back, before the time is up.
    stage.claim(&[stage.row(4_000, 4_000)]).await;
    let refund =
        stage.contract.refundWithSignature(stage.config.clone(), 1_000, U256::ZERO, stage.sign_refund(1_000, 0));
    stage.run(refund).await;
    let pending = stage.contract.pendingWithdrawals(stage.id).call().await.unwrap();
    assert_eq!(pending.amount, 9_000);

    stage.devnet.set_next_block_timestamp(mined_at + 900).unwrap();
    let receipt = stage.run(as_payer.finalizeWithdraw(stage.config.clone())).await;
    assert_eq!(event::<Settlement::WithdrawFinalized>(&receipt).unwrap().amount, 5_000);
    assert!(event::<Settlement::ChannelClosed>(&receipt).is_none());
    assert_eq!(stage.channel().await, (4_000, 4_000));
    assert_eq!(stage.devnet.dollar_balance(payer).unwrap(), 1_000_000 - 4_000);
}

#[tokio::test]
async fn a_contract_can_be_payer_and_vouch_for_its_own_signatures() {
    let stage = Stage::new().await;
    let deploy = TransactionRequest::default().with_deploy_code(genesis::test_wallet_bytecode());
    let receipt = stage.provider.send_transaction(deploy).await.unwrap().get_receipt().await.unwrap();
    let wallet = receipt.contract_address.unwrap();
    let owner = settlement::Wallet::new(wallet, stage.provider.clone());
    stage.run(owner.init(stage.payer.address())).await;
    assert!(owner.init(stage.relayer()).call().await.is_err());
    stage.devnet.mint_dollars(wallet, 10_000).unwrap();

    // No authorizer: the wallet itself stands behind deposits and vouchers, through ERC-1271.
    let config = ChannelConfig { payer: wallet, payerAuthorizer: Address::ZERO, ..stage.config.clone() };
    stage.deposit(&config, 10_000).await;
    let id = stage.contract.getChannelId(config.clone()).call().await.unwrap();
    let digest = stage.contract.getVoucherDigest(id, 700).call().await.unwrap();
    let by_owner = stage.payer.sign_hash_sync(&digest).unwrap();
    let by_other = stage.payer_authorizer.sign_hash_sync(&digest).unwrap();
    assert_eq!(stage.claim_error(&[row(&config, 700, 700, by_other.as_bytes().into())]).await, "InvalidSignature()");
    stage.claim(&[row(&config, 700, 700, by_owner.as_bytes().into())]).await;
    assert_eq!(stage.contract.channels(id).call().await.unwrap().totalClaimed, 700);

    // The wallet withdraws through its owner.
    let call = Settlement::initiateWithdrawCall { config, amount: 100 }.abi_encode();
    let as_owner = settlement::Wallet::new(wallet, writer(&stage.devnet, &stage.payer));
    stage.run(as_owner.execute(genesis::SETTLEMENT, call.into())).await;
    assert_eq!(stage.contract.pendingWithdrawals(id).call().await.unwrap().amount, 100);
}

#[tokio::test]
async fn the_split_signature_form_of_erc3009_works_for_its_payee_only() {
    let stage = Stage::new().await;
    let (from, to, nonce) = (stage.payer.address(), stage.relayer(), B256::repeat_byte(3));
    let message = settlement::ReceiveWithAuthorization {
        from,
        to,
        value: U256::from(5),
        validAfter: U256::ZERO,
        validBefore: U256::MAX,
        nonce,
    };
    let signature = stage.payer.sign_hash_sync(&message.eip712_signing_hash(&dollar_domain())).unwrap();
    let dollar = settlement::Dollar::new(genesis::DOLLAR, stage.provider.clone());
    let (v, r, s) = (27 + u8::from(signature.v()), signature.r().into(), signature.s().into());
    let call = || dollar.receiveWithAuthorization(from, to, U256::from(5), U256::ZERO, U256::MAX, nonce, v, r, s);
    assert!(call().from(Address::repeat_byte(1)).call().await.is_err());
    stage.run(call()).await;
    assert!(dollar.authorizationState(from, nonce).call().await.unwrap());
    assert_eq!(stage.devnet.dollar_balance(to).unwrap(), 5);
}

// ---- the node

#[tokio::test]
async fn others_cannot_reach_it() {
    for listen in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"] {
        let listen: SocketAddr = listen.parse().unwrap();
        let refused = Devnet::start(DevnetConfig { listen, ..DevnetConfig::default() }).await;
        assert!(matches!(refused, Err(DevnetError::NotLoopback(addr)) if addr == listen), "{listen}");
    }
}

#[tokio::test]
async fn shutting_down_frees_the_address() {
    let devnet = start().await;
    let addr = devnet.addr();
    reader(&devnet).get_block_number().await.unwrap();
    devnet.shutdown().await;
    assert!(tokio::net::TcpStream::connect(addr).await.is_err());
}

#[tokio::test]
async fn blocks_link_and_commit_to_their_transactions() {
    let stage = Stage::new().await;
    let receipt = stage.deposit(&stage.config, 1_000).await;
    let number = receipt.block_number.unwrap();
    let block = stage.reader.get_block_by_number(number.into()).full().await.unwrap().unwrap();
    let parent = stage.reader.get_block_by_number((number - 1).into()).await.unwrap().unwrap();
    assert_eq!(block.header.parent_hash, parent.header.hash);
    assert_eq!(block.header.hash, block.header.inner.hash_slow());
    assert_eq!(receipt.block_hash, Some(block.header.hash));
    assert_eq!(block.header.gas_used, receipt.gas_used);
    let by_hash = stage.reader.get_block_by_hash(block.header.hash).await.unwrap().unwrap();
    assert_eq!(by_hash.header, block.header);
    let tx = stage.reader.get_transaction_by_hash(receipt.transaction_hash).await.unwrap().unwrap();
    assert_eq!(block.transactions.txns().next(), Some(&tx));
    let fee = u128::from(block.header.base_fee_per_gas.unwrap());
    assert!(receipt.effective_gas_price >= fee);
    let receipts = stage.reader.get_block_receipts(number.into()).await.unwrap().unwrap();
    assert_eq!(receipts, vec![receipt]);
}

#[tokio::test]
async fn a_revert_comes_with_its_data() {
    let stage = Stage::new().await;
    let error = stage.contract.settle(Address::ZERO, Address::ZERO).call().await;
    assert!(error.is_ok(), "nothing due is a success");

    let request = TransactionRequest::default()
        .to(genesis::SETTLEMENT)
        .input(Settlement::refundCall { config: stage.config.clone(), amount: 1 }.abi_encode().into());
    for error in
        [stage.reader.call(request.clone()).await.unwrap_err(), stage.reader.estimate_gas(request).await.unwrap_err()]
    {
        let error = error.as_error_resp().unwrap().clone();
        assert_eq!((error.code, error.message.as_ref()), (3, "execution reverted"));
        assert_eq!(error.data.unwrap().get(), r#""0x7864f008""#);
    }
    let request = TransactionRequest::default().to(genesis::DOLLAR).input(
        alloy::hex::decode("a9059cbb00000000000000000000000000000000000000000000000000000000000000010000000000000000000000000000000000000000000000000000000000000001")
            .unwrap()
            .into(),
    );
    let error = stage.reader.call(request).await.unwrap_err();
    let message = &error.as_error_resp().unwrap().message;
    assert_eq!(message, "execution reverted: TestDollar: transfer amount exceeds balance");
}

#[tokio::test]
async fn reading_changes_nothing() {
    let stage = Stage::new().await;
    let before = stage.devnet.block_number();
    let dollar = settlement::Dollar::new(genesis::DOLLAR, stage.provider.clone());
    dollar.mint(stage.relayer(), U256::from(7)).call().await.unwrap();
    dollar.mint(stage.relayer(), U256::from(7)).estimate_gas().await.unwrap();
    assert_eq!(stage.devnet.dollar_balance(stage.relayer()).unwrap(), 0);
    assert_eq!(stage.devnet.block_number(), before);
    assert_eq!(stage.reader.get_transaction_count(stage.relayer()).await.unwrap(), 0);
}

#[tokio::test]
async fn an_estimate_is_enough_and_not_much_more() {
    let stage = Stage::new().await;
    let data = stage.authorize(stage.id, 1_000, U256::from(1));
    let call = stage.contract.deposit(stage.config.clone(), 1_000, genesis::ERC3009_COLLECTOR, data);
    let estimate = call.estimate_gas().await.unwrap();
    let receipt = stage.run(call.gas(estimate)).await;
    assert!(receipt.status());
    assert!(estimate < receipt.gas_used * 12 / 10, "{estimate} for {}", receipt.gas_used);
    let transfer = TransactionRequest::default().to(Address::repeat_byte(4)).value(U256::from(1));
    assert_eq!(stage.provider.estimate_gas(transfer).await.unwrap(), 21_000);
}

#[tokio::test]
async fn older_states_stay_readable() {
    let stage = Stage::new().await;
    stage.deposit(&stage.config, 1_000).await;
    let then = stage.devnet.block_number();
    stage.deposit(&stage.config, 500).await;
    let at = |number: u64| stage.contract.channels(stage.id).block(number.into());
    assert_eq!(at(then).call().await.unwrap().balance, 1_000);
    assert_eq!(at(then + 1).call().await.unwrap().balance, 1_500);
    assert_eq!(at(0).call().await.unwrap().balance, 0);
    let hash = stage.devnet.block_hash(then).unwrap();
    let by_hash = stage.contract.channels(stage.id).block(BlockId::hash(hash));
    assert_eq!(by_hash.call().await.unwrap().balance, 1_000);
    let nonce = stage.reader.get_transaction_count(stage.relayer()).block_id(then.into()).await.unwrap();
    assert_eq!(nonce, 1);
    assert!(at(then + 2).call().await.is_err());
}

#[tokio::test]
async fn nonces_and_funds_are_refused_in_the_words_clients_match_on() {
    let devnet = start().await;
    let reader = reader(&devnet);
    let signer = devnet.dev_signer(3);
    devnet.set_mining(Mining::Manual);
    let send = async |nonce: u64, fee: u128, value: U256| {
        let raw = transfer(&signer, CHAIN_ID, nonce, fee, value);
        reader.send_raw_transaction(&raw).await.map(|pending| *pending.tx_hash()).map_err(|error| error.to_string())
    };
    let one = U256::from(1);

    let first = send(0, 1_000_000_000, one).await.unwrap();
    assert!(send(0, 1_000_000_000, one).await.unwrap_err().contains("already known"));
    assert!(send(0, 1_050_000_000, one).await.unwrap_err().contains("replacement transaction underpriced"));
    let replacement = send(0, 1_100_000_000, one).await.unwrap();
    assert_ne!(first, replacement);
    assert!(
        send(1, 1_000_000_000, genesis::DEV_BALANCE)
            .await
            .unwrap_err()
            .contains("insufficient funds for gas * price + value")
    );

    // A gap waits until it is filled.
    let third = send(2, 1_000_000_000, one).await.unwrap();
    assert_eq!(pending_nonce(&reader, signer.address()).await, 1);
    devnet.mine(1).unwrap();
    assert!(receipt(&reader, replacement).await.is_some());
    assert!(receipt(&reader, first).await.is_none());
    assert!(receipt(&reader, third).await.is_none());
    assert!(send(0, 2_000_000_000, one).await.unwrap_err().contains("nonce too low"));
    send(1, 1_000_000_000, one).await.unwrap();
    assert_eq!(pending_nonce(&reader, signer.address()).await, 3);
    devnet.mine(1).unwrap();
    assert_eq!(receipt(&reader, third).await.unwrap().transaction_index, Some(1));

    // A fee below the base fee waits too.
    let cheap = send(3, 2, one).await.unwrap();
    devnet.mine(1).unwrap();
    assert_eq!(devnet.pending_transactions(), vec![cheap]);
    assert!(devnet.drop_transaction(cheap));

    let elsewhere = transfer(&signer, 1, 3, 1_000_000_000, one);
    let error = reader.send_raw_transaction(&elsewhere).await.unwrap_err();
    assert!(error.to_string().contains("invalid chain id"));
    assert!(reader.send_raw_transaction(&[0xc0]).await.is_err());
}

#[tokio::test]
async fn a_snapshot_brings_everything_back() {
    let stage = Stage::new().await;
    stage.deposit(&stage.config, 1_000).await;
    let height = stage.devnet.block_number();
    let id: String = stage.reader.raw_request("evm_snapshot".into(), ()).await.unwrap();
    stage.deposit(&stage.config, 500).await;
    stage.devnet.increase_time(Duration::from_secs(5_000));
    stage.devnet.set_balance(stage.relayer(), U256::ZERO);
    let replaced = stage.devnet.block_hash(height + 1).unwrap();

    assert!(stage.reader.raw_request::<_, bool>("evm_revert".into(), (id.clone(),)).await.unwrap());
    assert_eq!(stage.channel().await, (1_000, 0));
    assert_eq!(stage.devnet.block_number(), height);
    assert!(stage.devnet.balance(stage.relayer()) > U256::ZERO);
    assert!(stage.reader.get_block_by_hash(replaced).await.unwrap().is_none());
    assert!(!stage.reader.raw_request::<_, bool>("evm_revert".into(), (id,)).await.unwrap());
}

#[tokio::test]
async fn a_reorganisation_drops_transactions_and_their_logs() {
    let stage = Stage::new().await;
    stage.deposit(&stage.config, 1_000).await;
    let kept = stage.devnet.block_number();
    let lost = stage.deposit(&stage.config, 500).await;
    let filter = Filter::new().address(genesis::SETTLEMENT).event_signature(Settlement::Deposited::SIGNATURE_HASH);
    assert_eq!(stage.reader.get_logs(&filter.clone().from_block(0)).await.unwrap().len(), 2);
    let raw: Bytes =
        stage.reader.raw_request("eth_getRawTransactionByHash".into(), (lost.transaction_hash,)).await.unwrap();

    let dropped = stage.devnet.reorg(1).unwrap();
    assert_eq!(dropped, vec![lost.transaction_hash]);
    assert_eq!(stage.devnet.block_number(), kept + 1);
    assert_ne!(stage.devnet.block_hash(kept + 1), lost.block_hash);
    assert!(receipt(&stage.reader, lost.transaction_hash).await.is_none());
    assert!(stage.reader.get_transaction_by_hash(lost.transaction_hash).await.unwrap().is_none());
    assert_eq!(stage.reader.get_logs(&filter.clone().from_block(0)).await.unwrap().len(), 1);
    assert_eq!(stage.channel().await, (1_000, 0));

    // Whoever kept the transaction may send it again.
    let again = stage.reader.send_raw_transaction(&raw).await.unwrap().get_receipt().await.unwrap();
    assert_eq!(again.transaction_hash, lost.transaction_hash);
    assert_eq!(stage.channel().await, (1_500, 0));

    let height = stage.devnet.block_number();
    stage.reader.raw_request::<_, Value>("anvil_reorg".into(), (2, Vec::<Value>::new())).await.unwrap();
    assert_eq!(stage.devnet.block_number(), height);
    assert!(matches!(stage.devnet.reorg(height + 1), Err(DevnetError::Refused(_))));
}

#[tokio::test]
async fn logs_are_found_by_address_topic_list_range_and_block() {
    let stage = Stage::new().await;
    let first = stage.deposit(&stage.config, 1_000).await;
    let claimed = stage.claim(&[stage.row(10, 10)]).await;
    let any = Filter::new().from_block(0).address(genesis::SETTLEMENT);
    let count = async |filter: Filter| stage.reader.get_logs(&filter).await.unwrap().len();

    assert_eq!(count(any.clone()).await, 3);
    let topics = vec![Settlement::Deposited::SIGNATURE_HASH, Settlement::Claimed::SIGNATURE_HASH];
    assert_eq!(count(any.clone().event_signature(topics)).await, 2);
    assert_eq!(count(any.clone().topic1(vec![stage.id, B256::ZERO])).await, 3);
    assert_eq!(count(any.clone().topic1(B256::ZERO)).await, 0);
    assert_eq!(count(any.clone().from_block(claimed.block_number.unwrap())).await, 1);
    assert_eq!(count(any.clone().at_block_hash(first.block_hash.unwrap())).await, 2);
    let log = &stage.reader.get_logs(&any.at_block_hash(claimed.block_hash.unwrap())).await.unwrap()[0];
    assert_eq!((log.transaction_hash, log.log_index), (Some(claimed.transaction_hash), Some(0)));
    // The dollar's three logs of the first deposit come before and between the settlement's.
    let logs = first.inner.logs();
    assert_eq!(logs.iter().map(|log| log.log_index.unwrap()).collect::<Vec<_>>(), (0..5).collect::<Vec<_>>());
}

#[tokio::test]
async fn filters_report_what_is_new_once() {
    let stage = Stage::new().await;
    let blocks = stage.reader.new_block_filter().await.unwrap();
    let logs = stage.reader.new_filter(&Filter::new().address(genesis::SETTLEMENT)).await.unwrap();
    stage.deposit(&stage.config, 1_000).await;
    let new: Vec<B256> = stage.reader.get_filter_changes(blocks).await.unwrap();
    assert_eq!(new, vec![stage.devnet.block_hash(stage.devnet.block_number()).unwrap()]);
    let new: Vec<alloy::rpc::types::Log> = stage.reader.get_filter_changes(logs).await.unwrap();
    assert_eq!(new.len(), 2);
    assert!(stage.reader.get_filter_changes::<B256>(blocks).await.unwrap().is_empty());
    stage.devnet.reorg(1).unwrap();
    assert_eq!(stage.reader.get_filter_changes::<B256>(blocks).await.unwrap().len(), 1);
    assert!(stage.reader.uninstall_filter(blocks).await.unwrap());
    assert!(stage.reader.get_filter_changes::<B256>(blocks).await.is_err());
}

#[tokio::test]
async fn blocks_come_at_intervals_or_on_request() {
    let devnet = start().await;
    devnet.set_mining(Mining::Manual);
    let reader = reader(&devnet);
    let signer = devnet.dev_signer(0);
    let raw = transfer(&signer, CHAIN_ID, 0, 1_000_000_000, U256::from(1));
    let hash = *reader.send_raw_transaction(&raw).await.unwrap().tx_hash();
    assert_eq!(devnet.block_number(), 0);
    let waiting = reader.get_transaction_by_hash(hash).await.unwrap().unwrap();
    assert_eq!(waiting.block_number, None);
    let pending = reader.get_block_by_number(BlockNumberOrTag::Pending).await.unwrap().unwrap();
    assert_eq!(pending.transactions.hashes().collect::<Vec<_>>(), vec![hash]);
    assert_eq!(devnet.block_number(), 0);

    devnet.set_mining(Mining::Interval(Duration::from_millis(20)));
    tokio::time::timeout(Duration::from_secs(5), async {
        while devnet.block_number() < 3 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    assert_eq!(receipt(&reader, hash).await.unwrap().block_number, Some(1));
}

#[tokio::test]
async fn controls_have_the_names_of_other_development_nodes() {
    let devnet = start().await;
    let reader = reader(&devnet);
    let who = Address::repeat_byte(8);
    let ask = async |method: &'static str, params: Value| {
        reader.raw_request::<_, Value>(method.into(), params).await.unwrap_or_else(|error| panic!("{method}: {error}"))
    };

    ask("anvil_setBalance", json!([who, "0x64"])).await;
    assert_eq!(reader.get_balance(who).await.unwrap(), U256::from(100));
    ask("hardhat_setNonce", json!([who, "0x5"])).await;
    assert_eq!(reader.get_transaction_count(who).await.unwrap(), 5);
    ask("anvil_setStorageAt", json!([who, "0x1", B256::repeat_byte(2)])).await;
    assert_eq!(reader.get_storage_at(who, U256::from(1)).await.unwrap(), U256::from_be_bytes([2; 32]));
    for (address, code) in genesis::contracts() {
        let elsewhere = Address::from_word(keccak256(address));
        ask("anvil_setCode", json!([elsewhere, code])).await;
        assert_eq!(reader.get_code_at(elsewhere).await.unwrap(), code);
    }

    ask("evm_setAutomine", json!([false])).await;
    ask("evm_mine", json!([])).await;
    ask("anvil_mine", json!(["0x3", "0xa"])).await;
    assert_eq!(devnet.block_number(), 4);
    let head = timestamp(&reader, 4).await;
    assert!(head >= timestamp(&reader, 1).await + 20);
    ask("evm_setNextBlockTimestamp", json!([head + 100])).await;
    ask("evm_mine", json!([])).await;
    assert_eq!(timestamp(&reader, 5).await, head + 100);
    ask("evm_increaseTime", json!([1_000])).await;
    ask("evm_mine", json!([])).await;
    assert!(timestamp(&reader, 6).await >= head + 1_100);
    let past = reader.raw_request::<_, Value>("evm_setNextBlockTimestamp".into(), json!([head])).await;
    assert!(past.is_err());

    ask("evm_setIntervalMining", json!([0])).await;
    let from = devnet.dev_signer(0).address();
    let hash = ask("eth_sendTransaction", json!([{ "from": from, "to": who, "value": "0x1" }])).await;
    assert_eq!(ask("anvil_dropTransaction", json!([hash])).await, hash);
    assert_eq!(ask("anvil_dropTransaction", json!([hash])).await, Value::Null);
}

#[tokio::test]
async fn batches_answer_in_order_and_nonsense_is_refused() {
    let devnet = start().await;
    let http = reqwest::Client::new();
    let post = async |body: String| {
        let request = http.post(devnet.rpc_url()).header("content-type", "application/json").body(body);
        request.send().await.unwrap().json::<Value>().await.unwrap()
    };
    let batch = json!([
        { "jsonrpc": "2.0", "id": 1, "method": "eth_chainId", "params": [] },
        { "jsonrpc": "2.0", "id": "b", "method": "no_such_method" },
        7,
    ]);
    let answers = post(batch.to_string()).await;
    assert_eq!(answers[0], json!({ "jsonrpc": "2.0", "id": 1, "result": "0x14a34" }));
    assert_eq!((&answers[1]["id"], &answers[1]["error"]["code"]), (&json!("b"), &json!(-32601)));
    assert_eq!(answers[2]["error"]["code"], json!(-32600));
    assert_eq!(post("[]".to_owned()).await["error"]["code"], json!(-32600));
    assert_eq!(post("{".to_owned()).await["error"]["code"], json!(-32700));
    let missing = json!({ "id": 1, "method": "eth_getBalance" });
    assert_eq!(post(missing.to_string()).await["error"]["code"], json!(-32602));
}

#[tokio::test]
async fn multicall_answers_where_clients_expect_it() {
    let stage = Stage::new().await;
    stage.deposit(&stage.config, 1_000).await;
    let (state, nonce, block) = stage
        .reader
        .multicall()
        .block(BlockId::latest())
        .add(stage.contract.channels(stage.id))
        .add(stage.contract.refundNonce(stage.id))
        .get_block_number()
        .aggregate3()
        .await
        .unwrap();
    assert_eq!(state.unwrap().balance, 1_000);
    assert_eq!(nonce.unwrap(), U256::ZERO);
    assert_eq!(block.unwrap(), U256::from(stage.devnet.block_number()));
}

#[tokio::test]
async fn the_base_fee_follows_demand_down_to_its_floor() {
    let devnet = start().await;
    let reader = reader(&devnet);
    devnet.mine(200).unwrap();
    let head = reader.get_block_by_number(BlockNumberOrTag::Latest).await.unwrap().unwrap();
    assert_eq!(head.header.base_fee_per_gas, Some(1_000_000));
    let history = reader.get_fee_history(4, BlockNumberOrTag::Latest, &[50.0]).await.unwrap();
    assert_eq!((history.base_fee_per_gas.len(), history.gas_used_ratio.len()), (5, 4));
    assert_eq!(history.reward.unwrap().len(), 4);
    let fees = reader.estimate_eip1559_fees().await.unwrap();
    assert!(fees.max_fee_per_gas > 1_000_000);
}

#[tokio::test]
async fn genesis_starts_when_it_is_told_to() {
    init_tls();
    let config = DevnetConfig { genesis_time: Some(1_700_000_000), chain_id: 31_337, ..DevnetConfig::default() };
    let devnet = Devnet::start(config).await.unwrap();
    let reader = reader(&devnet);
    assert_eq!(reader.get_chain_id().await.unwrap(), 31_337);
    assert_eq!(timestamp(&reader, 0).await, 1_700_000_000);
    devnet.mine(1).unwrap();
    assert!((1_700_000_000..1_700_000_060).contains(&timestamp(&reader, 1).await));
}

// ---- the stage

/// A chain, a funded payer, and a relayer that pays for gas.
struct Stage {
    devnet: Devnet,
    reader: DynProvider,
    provider: DynProvider,
    contract: settlement::Settlement::SettlementInstance<DynProvider>,
    payer: PrivateKeySigner,
    payer_authorizer: PrivateKeySigner,
    receiver_authorizer: PrivateKeySigner,
    config: ChannelConfig,
    id: B256,
    salts: std::sync::atomic::AtomicU64,
}

impl Stage {
    async fn new() -> Self {
        let devnet = start().await;
        let reader = reader(&devnet);
        let provider = writer(&devnet, &devnet.dev_signer(0));
        let (payer, payer_authorizer, receiver_authorizer) = (key(0x11), key(0x12), key(0x13));
        let config = ChannelConfig {
            payer: payer.address(),
            payerAuthorizer: payer_authorizer.address(),
            receiver: address!("209693Bc6afc0C5328bA36FaF03C514EF312287C"),
            receiverAuthorizer: receiver_authorizer.address(),
            token: genesis::DOLLAR,
            withdrawDelay: U40::from(900),
            salt: B256::ZERO,
        };
        let contract = Settlement::new(genesis::SETTLEMENT, provider.clone());
        let id = contract.getChannelId(config.clone()).call().await.unwrap();
        devnet.mint_dollars(payer.address(), 1_000_000).unwrap();
        devnet.fund(payer.address(), U256::from(10u64).pow(U256::from(18)));
        let salts = 100.into();
        Self { devnet, reader, provider, contract, payer, payer_authorizer, receiver_authorizer, config, id, salts }
    }

    fn relayer(&self) -> Address {
        self.devnet.dev_signer(0).address()
    }

    async fn channel(&self) -> (u128, u128) {
        let state = self.contract.channels(self.id).call().await.unwrap();
        (state.balance, state.totalClaimed)
    }

    /// Collector data that lets `amount` of the payer's dollars go to the channel.
    fn authorize(&self, id: B256, amount: u128, salt: U256) -> Bytes {
        self.authorize_from(self.payer.address(), &self.payer, id, amount, salt)
    }

    fn authorize_from(&self, from: Address, signer: &PrivateKeySigner, id: B256, amount: u128, salt: U256) -> Bytes {
        let message = settlement::ReceiveWithAuthorization {
            from,
            to: genesis::ERC3009_COLLECTOR,
            value: U256::from(amount),
            validAfter: U256::ZERO,
            validBefore: U256::from(self.devnet.now() + 600),
            nonce: deposit_nonce(id, salt),
        };
        let signature = signer.sign_hash_sync(&message.eip712_signing_hash(&dollar_domain())).unwrap();
        let signature = Bytes::from(signature.as_bytes());
        (message.validAfter, message.validBefore, salt, signature).abi_encode_params().into()
    }

    async fn deposit_call_data(&self, config: &ChannelConfig, amount: u128) -> Bytes {
        let salt = self.salts.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let id = self.contract.getChannelId(config.clone()).call().await.unwrap();
        let vector_payer = key(1);
        let signer = if config.payer == vector_payer.address() { &vector_payer } else { &self.payer };
        self.authorize_from(config.payer, signer, id, amount, U256::from(salt))
    }

    async fn deposit(&self, config: &ChannelConfig, amount: u128) -> TransactionReceipt {
        let data = self.deposit_call_data(config, amount).await;
        self.run(self.contract.deposit(config.clone(), amount, genesis::ERC3009_COLLECTOR, data)).await
    }

    async fn deposit_error(&self, config: &ChannelConfig, amount: u128) -> String {
        let data = self.deposit_call_data(config, amount).await;
        let call = self.contract.deposit(config.clone(), amount, genesis::ERC3009_COLLECTOR, data);
        error_name(call.call().await)
    }

    fn voucher_digest(&self, max: u128) -> B256 {
        let type_hash = keccak256("Voucher(bytes32 channelId,uint128 maxClaimableAmount)");
        eip712(keccak256((type_hash, self.id, max).abi_encode()))
    }

    /// A row with the payer's voucher for `max`, claiming `total`.
    fn row(&self, max: u128, total: u128) -> VoucherClaim {
        let signature = self.payer_authorizer.sign_hash_sync(&self.voucher_digest(max)).unwrap();
        row(&self.config, max, total, signature.as_bytes().into())
    }

    async fn batch_digest(&self, rows: &[VoucherClaim]) -> B256 {
        self.contract.getClaimBatchDigest(rows.to_vec()).call().await.unwrap()
    }

    fn sign_refund(&self, amount: u128, nonce: u64) -> Bytes {
        let type_hash = keccak256("Refund(bytes32 channelId,uint256 nonce,uint128 amount)");
        let digest = eip712(keccak256((type_hash, self.id, U256::from(nonce), amount).abi_encode()));
        self.receiver_authorizer.sign_hash_sync(&digest).unwrap().as_bytes().into()
    }

    async fn claim(&self, rows: &[VoucherClaim]) -> TransactionReceipt {
        let signer = if rows[0].voucher.channel.receiverAuthorizer == key(3).address() {
            key(3)
        } else {
            self.receiver_authorizer.clone()
        };
        let signature = signer.sign_hash_sync(&self.batch_digest(rows).await).unwrap();
        self.run(self.contract.claimWithSignature(rows.to_vec(), signature.as_bytes().into())).await
    }

    async fn claim_error(&self, rows: &[VoucherClaim]) -> String {
        let signature = self.receiver_authorizer.sign_hash_sync(&self.batch_digest(rows).await).unwrap();
        error_name(self.contract.claimWithSignature(rows.to_vec(), signature.as_bytes().into()).call().await)
    }

    async fn settle(&self) -> TransactionReceipt {
        self.run(self.contract.settle(self.config.receiver, genesis::DOLLAR)).await
    }

    async fn run<D: alloy::contract::CallDecoder>(
        &self,
        call: alloy::contract::CallBuilder<impl alloy::providers::Provider, D>,
    ) -> TransactionReceipt {
        let receipt = call.send().await.unwrap().get_receipt().await.unwrap();
        assert!(receipt.status(), "the transaction failed");
        receipt
    }
}

async fn start() -> Devnet {
    init_tls();
    Devnet::start(DevnetConfig::default()).await.unwrap()
}

/// The HTTP client is built without a default TLS provider; installing one twice is harmless.
fn init_tls() {
    rustls::crypto::ring::default_provider().install_default().ok();
}

fn reader(devnet: &Devnet) -> DynProvider {
    quick(ProviderBuilder::new().connect_http(devnet.rpc_url().parse().unwrap()).erased())
}

fn writer(devnet: &Devnet, signer: &PrivateKeySigner) -> DynProvider {
    let wallet = EthereumWallet::from(signer.clone());
    quick(ProviderBuilder::new().wallet(wallet).connect_http(devnet.rpc_url().parse().unwrap()).erased())
}

fn quick(provider: DynProvider) -> DynProvider {
    provider.client().set_poll_interval(Duration::from_millis(10));
    provider
}

fn key(byte: u8) -> PrivateKeySigner {
    PrivateKeySigner::from_bytes(&B256::repeat_byte(byte)).unwrap()
}

fn vector_config(salt: u64) -> ChannelConfig {
    ChannelConfig {
        payer: key(1).address(),
        payerAuthorizer: key(2).address(),
        receiver: address!("209693Bc6afc0C5328bA36FaF03C514EF312287C"),
        receiverAuthorizer: key(3).address(),
        token: genesis::DOLLAR,
        withdrawDelay: U40::from(900),
        salt: U256::from(salt).into(),
    }
}

fn row(config: &ChannelConfig, max: u128, total: u128, signature: Bytes) -> VoucherClaim {
    let voucher = Voucher { channel: config.clone(), maxClaimableAmount: max };
    VoucherClaim { voucher, signature, totalClaimed: total }
}

fn eip712(struct_hash: B256) -> B256 {
    keccak256([&[0x19, 0x01][..], DOMAIN_SEPARATOR.as_slice(), struct_hash.as_slice()].concat())
}

fn dollar_domain() -> alloy::sol_types::Eip712Domain {
    eip712_domain! { name: "USDC", version: "2", chain_id: CHAIN_ID, verifying_contract: genesis::DOLLAR, }
}

fn deposit_nonce(id: B256, salt: U256) -> B256 {
    keccak256((id, salt).abi_encode())
}

fn transfer(signer: &PrivateKeySigner, chain_id: u64, nonce: u64, fee: u128, value: U256) -> Vec<u8> {
    let mut tx = TxEip1559 {
        chain_id,
        nonce,
        gas_limit: 21_000,
        max_fee_per_gas: fee,
        max_priority_fee_per_gas: fee,
        to: TxKind::Call(Address::repeat_byte(5)),
        value,
        ..TxEip1559::default()
    };
    let signature = signer.sign_transaction_sync(&mut tx).unwrap();
    TxEnvelope::from(tx.into_signed(signature)).encoded_2718()
}

fn event<E: alloy::sol_types::SolEvent>(receipt: &TransactionReceipt) -> Option<E> {
    receipt.inner.logs().iter().find_map(|log| log.log_decode::<E>().ok()).map(|log| log.inner.data)
}

/// The signature of the custom error a call failed with.
fn error_name<T>(outcome: Result<T, ContractError>) -> String {
    let data = outcome.err().expect("the call fails").as_revert_data().expect("a revert comes with data");
    let selector = alloy::hex::encode_prefixed(&data[..4]);
    let recovery = [
        ("ECDSAInvalidSignature()", "0xf645eedf"),
        ("ECDSAInvalidSignatureLength(uint256)", "0xfce698f7"),
        ("ECDSAInvalidSignatureS(bytes32)", "0xd78bce0c"),
    ];
    let known = ERRORS.iter().chain(&recovery).find(|(_, known)| *known == selector);
    known.map_or(selector.clone(), |(signature, _)| (*signature).to_owned())
}

async fn receipt(reader: &DynProvider, hash: B256) -> Option<TransactionReceipt> {
    reader.get_transaction_receipt(hash).await.unwrap()
}

async fn timestamp(reader: &DynProvider, number: u64) -> u64 {
    reader.get_block_by_number(number.into()).await.unwrap().unwrap().header.timestamp
}

async fn pending_nonce(reader: &DynProvider, who: Address) -> u64 {
    reader.get_transaction_count(who).pending().await.unwrap()
}
