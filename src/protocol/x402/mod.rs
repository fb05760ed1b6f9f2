//! x402 version 2: the three headers of a paid HTTP request.
//!
//! | header | direction | here |
//! |---|---|---|
//! | `PAYMENT-REQUIRED` | to the client, on 402 | [`Quote`] |
//! | `PAYMENT-SIGNATURE` | to the server | [`Payment`] |
//! | `PAYMENT-RESPONSE` | to the client, with the answer | [`Receipt`] |
//!
//! **Owns** their JSON and base64, their size limit, and the question whether a payment answers an offer. **Promises**
//! a refusal with a code for anything else than a well-formed header. **Does not** judge a payment's money.

mod direct;
mod header;
mod json;
mod offer;
mod payment;
mod quote;
mod receipt;

pub use header::{
    HeaderError, MAX_PAYMENT_HEADER_BYTES, PAYMENT_REQUIRED, PAYMENT_RESPONSE, PAYMENT_SIGNATURE, X_PAYMENT,
    X_PAYMENT_RESPONSE, decode, encode,
};
pub use offer::{
    Accepted, ChannelState, Echo, MAX_IN_FLIGHT, Offer, PAYMENT_IDENTIFIER, PERMIT2_METHOD, Quote, Resource, SCHEME,
    TARIFF, TRANSFER_METHOD, VERSION, VoucherState, WrittenOffer, chain_id_of, network_of,
};
pub use payment::{Action, Deposit, Order, Payment, PaymentError, RefundRequest, SIGNED_AHEAD};
pub use quote::{QuoteDetails, WrittenQuote};
pub use receipt::{PRICE_GENERATION, Receipt};
