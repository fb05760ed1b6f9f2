//! The protocol room against two witnesses: the values in `vectors.json`, which another implementation computed, and
//! alloy's EIP-712 and signer, on random input.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests fail the test")]

use alloy::primitives::{Address as EvmAddress, B256, U256, aliases::U40};
use alloy::signers::SignerSync as _;
use alloy::signers::local::PrivateKeySigner;
use alloy::sol_types::{Eip712Domain, SolStruct, eip712_domain};
use proptest::prelude::*;
use serde_json::Value;

use peaje::protocol::bytes::{decode_decimal, encode_decimal};
use peaje::protocol::claim::{ClaimRow, claim_batch_digest, refund_digest};
use peaje::protocol::contracts::{ERC3009_COLLECTOR, PERMIT2, PERMIT2_COLLECTOR, SETTLEMENT};
use peaje::protocol::deposit::{Authorization, Permit2Authorization, TokenPermit};
use peaje::protocol::{Address, Amount, ChannelConfig, ChannelId, Domain, Hash, LocalKey, Signature, Voucher};

mod vectors {
    use super::*;

    fn vectors() -> Value {
        serde_json::from_str(include_str!("vectors.json")).unwrap()
    }

    fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
        value.pointer(pointer).and_then(Value::as_str).unwrap_or_else(|| panic!("no text at {pointer}"))
    }

    fn read<T: std::str::FromStr<Err: std::fmt::Debug>>(value: &Value, pointer: &str) -> T {
        text(value, pointer).parse().unwrap()
    }

    fn key(name: &str) -> LocalKey {
        LocalKey::from_hex(text(&vectors(), &format!("/keys/{name}"))).unwrap()
    }

    fn settlement() -> Domain {
        Domain::settlement(vectors()["chainId"].as_u64().unwrap())
    }

    fn config(salt: u8) -> ChannelConfig {
        let mut config: ChannelConfig = serde_json::from_value(vectors()["channelConfig"].clone()).unwrap();
        config.salt.0[31] = salt;
        config
    }

    /// Checks a digest and the deterministic signature over it, byte by byte.
    fn check(at: &str, digest: Hash, signer: &LocalKey) {
        let vectors = vectors();
        assert_eq!(digest, read(&vectors, &format!("{at}/digest")), "{at}");
        let signature = signer.sign(digest);
        let expected: Signature =
            serde_json::from_value(vectors.pointer(&format!("{at}/signature")).unwrap().clone()).unwrap();
        assert_eq!(signature.as_bytes(), expected.as_bytes(), "{at}");
        assert_eq!(expected.recover(digest), Ok(signer.address()), "{at}");
    }

    #[test]
    fn keys_have_their_accounts() {
        let vectors = vectors();
        for name in ["payer", "payerAuthorizer", "receiverAuthorizer"] {
            assert_eq!(key(name).address(), read(&vectors, &format!("/channelConfig/{name}")));
        }
    }

    #[test]
    fn the_domain_and_the_channel_ids() {
        let vectors = vectors();
        assert_eq!(settlement().separator(), read(&vectors, "/domainSeparator"));
        assert_eq!(config(0).id(&settlement()), read(&vectors, "/channelId"));
        assert_eq!(config(1).id(&settlement()), read(&vectors, "/channelIdSalt1"));
    }

    #[test]
    fn the_voucher() {
        let max_claimable = read(&vectors(), "/voucher/maxClaimableAmount");
        let voucher = Voucher { channel: config(0).id(&settlement()), max_claimable };
        check("/voucher", voucher.digest(&settlement()), &key("payerAuthorizer"));
        let signed = voucher.sign(&settlement(), &key("payerAuthorizer"));
        assert!(signed.verify(&settlement(), &config(0)).is_ok());
    }

    #[test]
    fn the_refund() {
        let vectors = vectors();
        let nonce = text(&vectors, "/refund/nonce").parse().unwrap();
        let digest = refund_digest(&settlement(), config(0).id(&settlement()), nonce, read(&vectors, "/refund/amount"));
        check("/refund", digest, &key("receiverAuthorizer"));
    }

    #[test]
    fn the_claim_batch() {
        let vectors = vectors();
        let row = |index: u8| {
            let at = |field: &str| format!("/claimBatch/claims/{index}/{field}");
            let row = ClaimRow {
                config: config(index),
                max_claimable: read(&vectors, &at("maxClaimableAmount")),
                signature: Signature::from_bytes([0; 65]).unwrap(),
                total_claimed: read(&vectors, &at("totalClaimed")),
            };
            assert_eq!(row.config.id(&settlement()), read(&vectors, &at("channelId")));
            row
        };
        let rows = [row(0), row(1)];
        check("/claimBatch", claim_batch_digest(&settlement(), &rows), &key("receiverAuthorizer"));
        assert_eq!(claim_batch_digest(&settlement(), &[]), read(&vectors, "/claimBatch/digestEmpty"));
        let [first, second] = rows;
        let swapped = claim_batch_digest(&settlement(), &[second, first]);
        assert_ne!(swapped, read(&vectors, "/claimBatch/digest"), "the order of the rows counts");
    }

    #[test]
    fn the_deposit_authorization() {
        let vectors = vectors();
        let domain = Domain::new(
            text(&vectors, "/erc3009/tokenDomain/name"),
            text(&vectors, "/erc3009/tokenDomain/version"),
            vectors["erc3009"]["tokenDomain"]["chainId"].as_u64().unwrap(),
            read(&vectors, "/erc3009/tokenDomain/verifyingContract"),
        );
        assert_eq!(domain.separator(), read(&vectors, "/erc3009/tokenDomainSeparator"));
        let nonce = Authorization::nonce(config(0).id(&settlement()), read(&vectors, "/erc3009/salt"));
        assert_eq!(nonce, read(&vectors, "/erc3009/nonce"));
        let digest = Authorization::digest(
            &domain,
            config(0).payer,
            read(&vectors, "/erc3009/value"),
            text(&vectors, "/erc3009/validAfter").parse().unwrap(),
            text(&vectors, "/erc3009/validBefore").parse().unwrap(),
            nonce,
        );
        check("/erc3009", digest, &key("payer"));
    }

    #[test]
    fn the_permit2_transfer() {
        let vectors = vectors();
        let digest = Permit2Authorization::digest(
            &Domain::permit2(84_532),
            config(0).token,
            read(&vectors, "/permit2/amount"),
            decode_decimal(text(&vectors, "/permit2/nonce")).unwrap(),
            text(&vectors, "/permit2/deadline").parse().unwrap(),
            config(0).id(&settlement()),
        );
        check("/permit2", digest, &key("payer"));
    }
}

/// The structs as the specification writes them; alloy makes the type strings and digests.
mod spec {
    alloy::sol! {
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
            bytes32 channelId;
            uint128 maxClaimableAmount;
        }
        struct Refund {
            bytes32 channelId;
            uint256 nonce;
            uint128 amount;
        }
        struct ClaimEntry {
            bytes32 channelId;
            uint128 maxClaimableAmount;
            uint128 totalClaimed;
        }
        struct ClaimBatch {
            ClaimEntry[] claims;
        }
        struct ReceiveWithAuthorization {
            address from;
            address to;
            uint256 value;
            uint256 validAfter;
            uint256 validBefore;
            bytes32 nonce;
        }
        struct TokenPermissions {
            address token;
            uint256 amount;
        }
        struct DepositWitness {
            bytes32 channelId;
        }
        struct PermitWitnessTransferFrom {
            TokenPermissions permitted;
            address spender;
            uint256 nonce;
            uint256 deadline;
            DepositWitness witness;
        }
        struct Permit {
            address owner;
            address spender;
            uint256 value;
            uint256 nonce;
            uint256 deadline;
        }
    }
}

fn evm(address: Address) -> EvmAddress {
    EvmAddress::new(address.0)
}

fn settlement_domain(chain_id: u64) -> Eip712Domain {
    eip712_domain! {
        name: "x402 Batch Settlement",
        version: "1",
        chain_id: chain_id,
        verifying_contract: evm(SETTLEMENT),
    }
}

fn digest(message: &impl SolStruct, domain: &Eip712Domain) -> Hash {
    Hash(message.eip712_signing_hash(domain).0)
}

prop_compose! {
    fn address()(bytes: [u8; 20]) -> Address { Address(bytes) }
}

prop_compose! {
    fn config()(
        payer in address(), payer_authorizer in address(), receiver in address(), receiver_authorizer in address(),
        token in address(), withdraw_delay in 0u64..1 << 40, salt: [u8; 32],
    ) -> ChannelConfig {
        ChannelConfig {
            payer, payer_authorizer, receiver, receiver_authorizer, token, withdraw_delay, salt: Hash(salt),
        }
    }
}

prop_compose! {
    fn row()(config in config(), max_claimable: u128, total_claimed: u128) -> ClaimRow {
        ClaimRow {
            config,
            max_claimable: Amount::new(max_claimable),
            signature: Signature::from_bytes([0; 65]).unwrap(),
            total_claimed: Amount::new(total_claimed),
        }
    }
}

fn specified(config: &ChannelConfig) -> spec::ChannelConfig {
    spec::ChannelConfig {
        payer: evm(config.payer),
        payerAuthorizer: evm(config.payer_authorizer),
        receiver: evm(config.receiver),
        receiverAuthorizer: evm(config.receiver_authorizer),
        token: evm(config.token),
        withdrawDelay: U40::from(config.withdraw_delay),
        salt: B256::new(config.salt.0),
    }
}

proptest! {
    #[test]
    fn channel_ids_are_alloys(config in config(), chain_id: u64) {
        let expected = digest(&specified(&config), &settlement_domain(chain_id));
        prop_assert_eq!(config.id(&Domain::settlement(chain_id)).0, expected.0);
    }

    #[test]
    fn voucher_digests_are_alloys(channel: [u8; 32], max: u128, chain_id: u64) {
        let ours = Voucher { channel: ChannelId(channel), max_claimable: Amount::new(max) };
        let theirs = spec::Voucher { channelId: B256::new(channel), maxClaimableAmount: max };
        prop_assert_eq!(ours.digest(&Domain::settlement(chain_id)), digest(&theirs, &settlement_domain(chain_id)));
    }

    #[test]
    fn refund_digests_are_alloys(channel: [u8; 32], nonce: u128, amount: u128, chain_id: u64) {
        let ours = refund_digest(&Domain::settlement(chain_id), ChannelId(channel), nonce, Amount::new(amount));
        let theirs = spec::Refund { channelId: B256::new(channel), nonce: U256::from(nonce), amount };
        prop_assert_eq!(ours, digest(&theirs, &settlement_domain(chain_id)));
    }

    #[test]
    fn claim_batch_digests_are_alloys(rows in prop::collection::vec(row(), 0..6), chain_id: u64) {
        let domain = Domain::settlement(chain_id);
        let entry = |row: &ClaimRow| spec::ClaimEntry {
            channelId: B256::new(row.config.id(&domain).0),
            maxClaimableAmount: row.max_claimable.units(),
            totalClaimed: row.total_claimed.units(),
        };
        let theirs = spec::ClaimBatch { claims: rows.iter().map(entry).collect() };
        prop_assert_eq!(claim_batch_digest(&domain, &rows), digest(&theirs, &settlement_domain(chain_id)));
    }

    #[test]
    fn authorization_digests_are_alloys(
        payer in address(), token in address(), channel: [u8; 32], salt: [u8; 32], amount: u128,
        window: (u64, u64), chain_id: u64, name in "\\PC{0,40}", version in "\\PC{0,4}",
    ) {
        let nonce = Authorization::nonce(ChannelId(channel), Hash(salt));
        let encoded = [channel, salt].concat();
        prop_assert_eq!(nonce.0, alloy::primitives::keccak256(encoded).0);

        let ours = Domain::new(&name, &version, chain_id, token);
        let theirs = eip712_domain! {
            name: name, version: version, chain_id: chain_id, verifying_contract: evm(token),
        };
        prop_assert_eq!(ours.separator().0, theirs.separator().0);
        let message = spec::ReceiveWithAuthorization {
            from: evm(payer),
            to: evm(ERC3009_COLLECTOR),
            value: U256::from(amount),
            validAfter: U256::from(window.0),
            validBefore: U256::from(window.1),
            nonce: B256::new(nonce.0),
        };
        let digest_here = Authorization::digest(&ours, payer, Amount::new(amount), window.0, window.1, nonce);
        prop_assert_eq!(digest_here, digest(&message, &theirs));
    }

    #[test]
    fn permit2_digests_are_alloys(
        token in address(), channel: [u8; 32], nonce: [u8; 32], amount: u128, deadline: u64, chain_id: u64,
    ) {
        let theirs = eip712_domain! { name: "Permit2", chain_id: chain_id, verifying_contract: evm(PERMIT2), };
        let ours = Domain::permit2(chain_id);
        prop_assert_eq!(ours.separator().0, theirs.separator().0);
        let message = spec::PermitWitnessTransferFrom {
            permitted: spec::TokenPermissions { token: evm(token), amount: U256::from(amount) },
            spender: evm(PERMIT2_COLLECTOR),
            nonce: U256::from_be_bytes(nonce),
            deadline: U256::from(deadline),
            witness: spec::DepositWitness { channelId: B256::new(channel) },
        };
        let digest_here = Permit2Authorization::digest(
            &ours, token, Amount::new(amount), Hash(nonce), deadline, ChannelId(channel),
        );
        prop_assert_eq!(digest_here, digest(&message, &theirs));
    }

    #[test]
    fn permit_digests_are_alloys(
        owner in address(), token in address(), nonce: [u8; 32], amount: u128, deadline: u64, chain_id: u64,
    ) {
        let theirs = eip712_domain! {
            name: "Plain Dollar", version: "1", chain_id: chain_id, verifying_contract: evm(token),
        };
        let message = spec::Permit {
            owner: evm(owner),
            spender: evm(PERMIT2),
            value: U256::from(amount),
            nonce: U256::from_be_bytes(nonce),
            deadline: U256::from(deadline),
        };
        let ours = Domain::new("Plain Dollar", "1", chain_id, token);
        let digest_here = TokenPermit::digest(&ours, owner, Amount::new(amount), Hash(nonce), deadline);
        prop_assert_eq!(digest_here, digest(&message, &theirs));
    }

    #[test]
    fn words_in_decimal_are_alloys(word: [u8; 32]) {
        let theirs = U256::from_be_bytes(word).to_string();
        prop_assert_eq!(encode_decimal(&Hash(word)), theirs.clone());
        prop_assert_eq!(decode_decimal(&theirs), Some(Hash(word)));
    }

    #[test]
    fn signatures_and_signers_are_alloys(secret: [u8; 32], message: [u8; 32]) {
        let Ok(ours) = LocalKey::from_bytes(&secret) else { return Ok(()) };
        let theirs = PrivateKeySigner::from_bytes(&B256::new(secret)).unwrap();
        prop_assert_eq!(evm(ours.address()), theirs.address());

        let here = ours.sign(Hash(message));
        let there = theirs.sign_hash_sync(&B256::new(message)).unwrap();
        prop_assert_eq!(here.as_bytes(), there.as_bytes());
        prop_assert_eq!(here.recover(Hash(message)), Ok(ours.address()));
    }

    /// Random bytes are hardly ever a signature, so this takes a real one and breaks a byte of it. Whatever we accept,
    /// alloy recovers to the same account; alloy, which is looser, may accept more.
    #[test]
    fn recovery_agrees_with_alloys(secret: [u8; 32], message: [u8; 32], at in 0usize..65, flip: u8) {
        let Ok(key) = LocalKey::from_bytes(&secret) else { return Ok(()) };
        let mut bytes = key.sign(Hash(message)).as_bytes().to_vec();
        bytes[at] ^= flip;
        if let Ok(signer) = Signature::from_bytes(bytes.clone()).unwrap().recover(Hash(message)) {
            let there = alloy::primitives::Signature::from_raw(&bytes).unwrap();
            prop_assert_eq!(evm(signer), there.recover_address_from_prehash(&B256::new(message)).unwrap());
        }
    }
}
