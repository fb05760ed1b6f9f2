//! What both sides of a payment channel agree on: amounts, ids, digests, signatures and the x402 headers.
//!
//! **Owns** the wire: every byte that is signed, and every header that carries a quote, a payment or a receipt.
//! **Promises** to accept exactly what the settlement contract accepts (see [`signature`]) and never to panic on bytes
//! from outside. Everything here is a pure function of its arguments.
//! **Does not** know a clock, a socket, a chain node, a log or an account; it cannot tell whether a voucher is covered,
//! only whether it is genuine.
//!
//! The sources of its rules are the x402 v2 `batch-settlement` specification for EVM, EIP-712, EIP-3009 and the
//! semantics of the deployed settlement contract.

pub mod amount;
pub mod bytes;
pub mod channel;
pub mod claim;
pub mod code;
pub mod contracts;
pub mod deposit;
pub mod dollars;
pub mod eip712;
pub mod hot;
pub mod networks;
pub mod signature;
pub mod voucher;
pub mod x402;

pub use amount::Amount;
pub use bytes::{Address, ChannelId, Hash};
pub use channel::{BoundConfig, ChannelConfig};
pub use code::Code;
pub use dollars::Dollars;
pub use eip712::Domain;
pub use networks::{Network, Token};
pub use signature::{LocalKey, Signature};
pub use voucher::{SignedVoucher, VerifiedVoucher, Voucher};
