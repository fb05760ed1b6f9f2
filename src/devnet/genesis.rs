//! What the chain starts with: the stand-in contracts and the development accounts.
//!
//! Owns the addresses and the runtime code of `deploy/contracts`, compiled into the library, so that a test can install
//! the same contracts on another development node. Everything here is public knowledge: the keys are in every tool's
//! manual, and nothing of value may ever be sent to them.

use std::sync::LazyLock;

use alloy::primitives::{Address, B256, Bytes, U256, address, b256};
use alloy::signers::local::PrivateKeySigner;
use serde::Deserialize;

/// The channel contract, at the address it has on every chain.
pub const SETTLEMENT: Address = address!("4020074e9dF2ce1deE5A9C1b5c3f541D02a10003");

/// The collector that pulls deposits by ERC-3009.
pub const ERC3009_COLLECTOR: Address = address!("4020806089470a89826cB9fB1f4059150b550004");

/// The collector that pulls deposits through Permit2.
pub const PERMIT2_COLLECTOR: Address = address!("4020425FAf3B746C082C2f942b4E5159887B0005");

/// Permit2, at the address it has on every chain.
pub const PERMIT2: Address = address!("000000000022D473030F116dDEE9F6B43aC78BA3");

/// The test dollar, at the address of Base Sepolia's USDC and with its EIP-712 domain ("USDC", "2").
pub const DOLLAR: Address = address!("036CbD53842c5426634e7929541eC2318f3dCF7e");

/// A dollar without ERC-3009 and with EIP-2612, at an address of its own (domain "Plain Dollar", "1").
pub const PLAIN_DOLLAR: Address = address!("d011A20000000000000000000000000000000001");

/// Multicall3, which stock clients batch their reads through.
pub const MULTICALL3: Address = address!("cA11bde05977b3631167028862bE2a173976CA11");

/// Wei each development account starts with: 10 000 ether.
pub const DEV_BALANCE: U256 =
    U256::from_limbs([0x1bc1_6d67_4ec8_0000, 0, 0, 0]).wrapping_mul(U256::from_limbs([5_000, 0, 0, 0]));

/// Keys of the accounts derived from the mnemonic "test test test test test test test test test test test junk", the
/// ones every development node prefunds. Development accounts: they are known to everyone.
pub const DEV_KEYS: [B256; 10] = [
    b256!("ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"),
    b256!("59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d"),
    b256!("5de4111afa1a4b94908f83103eb1f1706367c2e68ca870fc3fb9a804cdab365a"),
    b256!("7c852118294e51e653712a81e05800f419141751be58f605c371e15141b007a6"),
    b256!("47e179ec197488593b187f80a00eb0da91f1b9d0b13f8733639f19c30a34926a"),
    b256!("8b3a350cf5c34c9194ca85829a2df0ec3153be0318b5e2d3348e872092edffba"),
    b256!("92db14e403b83dfe3df233f83dfa3a0d7096f21ca9b0d6d6b8d88b2b4ec1564e"),
    b256!("4bbbf85ce3377467afe5d46f804f221813b2bb87f24d81f60f1fcdbf7cbf4356"),
    b256!("dbda1821b80551c9d65939329250298aa3472ba22feea921c0cf5d620ea67b97"),
    b256!("2a871d0798f97d79848a013d4936a73bf4cc922c825d33c1cf7073dff6d409c6"),
];

static DEV_SIGNERS: LazyLock<Vec<PrivateKeySigner>> = LazyLock::new(|| {
    DEV_KEYS.iter().map(|key| PrivateKeySigner::from_bytes(key).expect("the well-known keys are valid")).collect()
});

/// The prefunded development accounts, in the customary order.
pub fn dev_signers() -> &'static [PrivateKeySigner] {
    &DEV_SIGNERS
}

/// The contracts of genesis: where each lives, and its runtime code.
pub fn contracts() -> Vec<(Address, Bytes)> {
    vec![
        (SETTLEMENT, Artifact::settlement().deployed_bytecode),
        (ERC3009_COLLECTOR, Artifact::erc3009_collector().deployed_bytecode),
        (PERMIT2_COLLECTOR, Artifact::permit2_collector().deployed_bytecode),
        (PERMIT2, Artifact::permit2().deployed_bytecode),
        (DOLLAR, Artifact::dollar().deployed_bytecode),
        (PLAIN_DOLLAR, Artifact::plain_dollar().deployed_bytecode),
        (MULTICALL3, Artifact::multicall3().deployed_bytecode),
    ]
}

/// Creation code of the ERC-1271 test wallet, which is not in genesis: a test deploys one for each contract payer.
pub fn test_wallet_bytecode() -> Bytes {
    Artifact::test_wallet().bytecode
}

/// What `deploy/contracts/build.mjs` writes for a contract.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Artifact {
    bytecode: Bytes,
    deployed_bytecode: Bytes,
}

impl Artifact {
    fn settlement() -> Self {
        Self::parse(include_str!("../../deploy/contracts/artifacts/X402BatchSettlement.json"))
    }

    fn erc3009_collector() -> Self {
        Self::parse(include_str!("../../deploy/contracts/artifacts/ERC3009DepositCollector.json"))
    }

    fn permit2_collector() -> Self {
        Self::parse(include_str!("../../deploy/contracts/artifacts/Permit2DepositCollector.json"))
    }

    fn permit2() -> Self {
        Self::parse(include_str!("../../deploy/contracts/artifacts/Permit2.json"))
    }

    fn dollar() -> Self {
        Self::parse(include_str!("../../deploy/contracts/artifacts/TestDollar.json"))
    }

    fn plain_dollar() -> Self {
        Self::parse(include_str!("../../deploy/contracts/artifacts/PlainDollar.json"))
    }

    fn multicall3() -> Self {
        Self::parse(include_str!("../../deploy/contracts/artifacts/Multicall3.json"))
    }

    fn test_wallet() -> Self {
        Self::parse(include_str!("../../deploy/contracts/artifacts/TestWallet.json"))
    }

    fn parse(text: &str) -> Self {
        serde_json::from_str(text).expect("an artifact in the library is the JSON the build wrote")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_contract_of_genesis_has_code() {
        for (address, code) in contracts() {
            assert!(code.len() > 100, "{address}");
        }
        assert!(test_wallet_bytecode().len() > 100);
    }

    #[test]
    fn the_first_development_account_is_the_well_known_one() {
        assert_eq!(dev_signers()[0].address(), address!("f39Fd6e51aad88F6F4ce6aB8827279cffFb92266"));
        assert_eq!(dev_signers()[9].address(), address!("a0Ee7A142d267C1f36714E4a8F75612F20a79720"));
        assert_eq!(DEV_BALANCE, U256::from(10_000u64) * U256::from(10u64).pow(U256::from(18u64)));
    }
}
