//! Networks and tokens by name.
//!
//! **Owns** the presets: chain ids, token addresses, decimals and the tokens' EIP-712 domains. `peaje check` compares
//! them with the chain, so a preset that is wrong is found before it can cost anything. **Does not** promise that the
//! settlement contract is deployed on a network; only the chain can say that.

use super::bytes::{Address, decode_fixed};
use super::eip712::Domain;

/// A chain we know by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    /// Its name in the config file.
    pub name: &'static str,
    /// Its EIP-155 chain id.
    pub chain_id: u64,
    /// How many blocks, its own included, a transaction has on it once nobody expects it to be undone. A sequencer keeps
    /// its order; a chain of many producers may drop its newest blocks.
    pub confirmations: u64,
    /// The most that should be paid for a unit of gas on it, wei, where nothing is urgent: some times of what it usually
    /// costs, and still little money for a claim.
    pub max_fee_wei: u128,
    /// The tokens we know there; the first is the default.
    pub tokens: &'static [Token],
}

/// A token we know by its symbol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    /// Its name in the config file, lower case.
    pub symbol: &'static str,
    /// Where it is, checksummed.
    pub address: &'static str,
    /// Decimal places of a dollar.
    pub decimals: u8,
    /// The `name` of its EIP-712 domain; often not its ERC-20 name.
    pub domain_name: &'static str,
    /// The `version` of its EIP-712 domain.
    pub domain_version: &'static str,
}

/// Wei in a gwei.
const GWEI: u128 = 1_000_000_000;

const fn usdc(address: &'static str, domain_name: &'static str) -> Token {
    Token { symbol: "usdc", address, decimals: 6, domain_name, domain_version: "2" }
}

/// Every network with a preset. The scheme's documents name Base and Base Sepolia; on the others it is the operator who
/// finds out with `peaje check` whether the contracts are there.
pub const NETWORKS: &[Network] = &[
    Network {
        name: "base",
        chain_id: 8453,
        confirmations: 1,
        max_fee_wei: 50 * GWEI,
        tokens: &[usdc("0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913", "USD Coin")],
    },
    Network {
        name: "base-sepolia",
        chain_id: 84532,
        confirmations: 1,
        max_fee_wei: 50 * GWEI,
        tokens: &[usdc("0x036CbD53842c5426634e7929541eC2318f3dCF7e", "USDC")],
    },
    Network {
        name: "arbitrum",
        chain_id: 42161,
        confirmations: 1,
        max_fee_wei: 50 * GWEI,
        tokens: &[usdc("0xaf88d065e77c8cC2239327C5EDb3A432268e5831", "USD Coin")],
    },
    Network {
        name: "arbitrum-sepolia",
        chain_id: 421614,
        confirmations: 1,
        max_fee_wei: 50 * GWEI,
        tokens: &[usdc("0x75faf114eafb1BDbe2F0316DF893fd58CE46AA4d", "USD Coin")],
    },
    Network {
        name: "polygon",
        chain_id: 137,
        confirmations: 8,
        // Its own coin is worth cents, and its gas costs tens of gwei on a quiet day.
        max_fee_wei: 500 * GWEI,
        tokens: &[usdc("0x3c499c542cEF5E3811e1192ce70d8cC03d5c3359", "USD Coin")],
    },
];

impl Network {
    /// The preset of this name.
    pub fn by_name(name: &str) -> Option<&'static Self> {
        NETWORKS.iter().find(|network| network.name == name)
    }

    /// The preset of this chain.
    pub fn by_chain_id(chain_id: u64) -> Option<&'static Self> {
        NETWORKS.iter().find(|network| network.chain_id == chain_id)
    }

    /// The token of this symbol, in lower case.
    pub fn token(&self, symbol: &str) -> Option<&'static Token> {
        self.tokens.iter().find(|token| token.symbol == symbol)
    }
}

impl Token {
    /// Where it is.
    pub fn address(&self) -> Address {
        Address(decode_fixed(self.address).expect("preset addresses are 20 bytes of hex, as the tests check"))
    }

    /// Its signing domain on a chain.
    pub fn domain(&self, chain_id: u64) -> Domain {
        Domain::new(self.domain_name, self.domain_version, chain_id, self.address())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn presets_are_well_formed() {
        let names: HashSet<_> = NETWORKS.iter().map(|network| network.name).collect();
        let ids: HashSet<_> = NETWORKS.iter().map(|network| network.chain_id).collect();
        assert_eq!((names.len(), ids.len()), (NETWORKS.len(), NETWORKS.len()));
        for network in NETWORKS {
            assert!(!network.tokens.is_empty() && network.confirmations > 0);
            assert!(network.max_fee_wei > 0);
            for token in network.tokens {
                assert_eq!(token.address().to_string(), token.address, "the checksum guards against a typo");
            }
        }
    }
}
