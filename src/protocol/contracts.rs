//! Where the canonical contracts are: the same address on every chain.
//!
//! The x402 deployments are made with CREATE2 through the deterministic deployer, so their addresses hold on every
//! chain that has them; `peaje check` asks the chain for their code.

use super::bytes::Address;

/// `x402BatchSettlement`: holds the deposits, verifies vouchers, pays receivers.
pub const SETTLEMENT: Address = Address([
    0x40, 0x20, 0x07, 0x4e, 0x9d, 0xf2, 0xce, 0x1d, 0xee, 0x5a, 0x9c, 0x1b, 0x5c, 0x3f, 0x54, 0x1d, 0x02, 0xa1, 0x00,
    0x03,
]);

/// `ERC3009DepositCollector`: moves a deposit from a payer who only signed an ERC-3009 authorization.
pub const ERC3009_COLLECTOR: Address = Address([
    0x40, 0x20, 0x80, 0x60, 0x89, 0x47, 0x0a, 0x89, 0x82, 0x6c, 0xb9, 0xfb, 0x1f, 0x40, 0x59, 0x15, 0x0b, 0x55, 0x00,
    0x04,
]);

/// `Permit2DepositCollector`: moves a deposit from a payer who signed a Permit2 transfer with the channel as its witness.
pub const PERMIT2_COLLECTOR: Address = Address([
    0x40, 0x20, 0x42, 0x5f, 0xaf, 0x3b, 0x74, 0x6c, 0x08, 0x2c, 0x2f, 0x94, 0x2b, 0x4e, 0x51, 0x59, 0x88, 0x7b, 0x00,
    0x05,
]);

/// Permit2: moves any token by signature, once its owner has allowed it to.
pub const PERMIT2: Address = Address([
    0x00, 0x00, 0x00, 0x00, 0x00, 0x22, 0xd4, 0x73, 0x03, 0x0f, 0x11, 0x6d, 0xde, 0xe9, 0xf6, 0xb4, 0x3a, 0xc7, 0x8b,
    0xa3,
]);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_addresses_are_the_published_ones() {
        assert_eq!(SETTLEMENT.to_string(), "0x4020074e9dF2ce1deE5A9C1b5c3f541D02a10003");
        assert_eq!(ERC3009_COLLECTOR.to_string(), "0x4020806089470a89826cB9fB1f4059150b550004");
        assert_eq!(PERMIT2_COLLECTOR.to_string(), "0x4020425FAf3B746C082C2f942b4E5159887B0005");
        assert_eq!(PERMIT2.to_string(), "0x000000000022D473030F116dDEE9F6B43aC78BA3");
    }
}
