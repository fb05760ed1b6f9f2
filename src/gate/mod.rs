//! The payment core: what a request costs, whether its voucher pays for it, and the one door through which a channel's
//! money changes.
//!
//! **Owns** quotes, accounts and holds, and the tower layer that puts them in front of any HTTP service.
//! **Promises** that the service behind it is called only for a request that is free or held against a verified,
//! covered voucher; that a hold is posted or voided exactly once, whatever drops the request; and that the head of a paid
//! answer leaves only after its charge is in the books.
//! **Does not** listen, connect or speak to a chain: deposits, refunds and reads go to the [`desk`], whose other end
//! the redeemer holds.

pub mod path;
pub mod policy;
