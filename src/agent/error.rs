//! Why a payment did not happen.
//!
//! **Owns** the agent's errors. **Promises** that each says what a person can do about it and that none holds a key, a
//! signature or a payment header. Texts of a server are shortened and stripped of control characters before they are
//! shown.

use std::time::Duration;

use super::book::BookError;
use super::budget::BudgetRefusal;
use super::judge::{CorrectiveFault, OfferFault, QuoteFault};
use super::reader::ChainReadError;
use crate::protocol::contracts::PERMIT2;
use crate::protocol::{Address, ChannelId};

/// Why a payment or a refund did not happen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    /// The URL cannot be asked.
    #[error("cannot use this URL: {0}")]
    Url(String),
    /// The system has no certificates to check a server with, so `https` cannot be used.
    #[error("no trusted root certificates were found, so https cannot be used; install your system's CA certificates")]
    NoRoots,
    /// The request could not be sent or not be answered. If it was paid, the next payment finds out whether it counted.
    #[error("the request failed")]
    Http(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// No answer in time. If it was paid, the next payment finds out whether it counted.
    #[error("no answer within {} seconds", .0.as_secs())]
    Timeout(Duration),
    /// The server asks for payment and does not say how, in a way this agent reads.
    #[error("the server asks for payment, but its quote cannot be used: {0}")]
    Quote(QuoteFault),
    /// None of the ways to pay is acceptable.
    #[error("none of the server's offers is acceptable: {}", list(.0))]
    NoOffer(Vec<OfferFault>),
    /// The budget refuses. Nothing was signed.
    #[error("not paid: {0}; raise the limit to allow it")]
    Budget(BudgetRefusal),
    /// The server refused the payment.
    #[error(
        "the server refused the payment: {code}{}{}{}",
        spaced(message), after(*retry_after_s), pending(*deposit_until)
    )]
    Refused {
        /// The server's code, as it came but for control characters and length.
        code: String,
        /// The same in words, if the server sent any, or what the agent found out about it.
        message: String,
        /// Seconds after which the server invites another try.
        retry_after_s: Option<u64>,
        /// Set if a deposit went with the payment: Unix time until which it may still land, seconds.
        deposit_until: Option<u64>,
    },
    /// A transaction is on its way and its fate is open. Asking again is safe: no second deposit is signed before the
    /// first one has landed or can land no more.
    #[error(
        "the deposit was sent and may still land; try again{}, it will not be deposited twice", after(*retry_after_s)
    )]
    SettlementPending {
        /// Seconds after which the server invites another try.
        retry_after_s: Option<u64>,
        /// Unix time until which the deposit may land, seconds, if one of ours is open.
        deposit_until: Option<u64>,
    },
    /// An earlier deposit may still land and does not cover this payment.
    #[error("an earlier deposit may still land for {seconds} seconds and does not cover this payment; try again then")]
    DepositOpen {
        /// Seconds until it can land no more.
        seconds: u64,
    },
    /// The server's correction of our books is not proven. The books are unchanged.
    #[error("the server asks to correct the channel's books without proof: {0}; the books are unchanged")]
    Corrective(CorrectiveFault),
    /// The two sides' books differ, only the chain can tell who is right, and there is no node to ask.
    #[error(
        "the server and the book disagree about channel {channel}, and only the chain can tell who is right; configure \
         a chain node (RPC URL) and try again"
    )]
    NeedsChain {
        /// The channel.
        channel: ChannelId,
    },
    /// The token is deposited through Permit2, the payer has not allowed that, and no permit would be relayed. Nothing was
    /// signed.
    #[error(
        "token {token} is deposited through Permit2, which may not move so much of it yet, and no permit can be sent \
         along; approve Permit2 ({PERMIT2}) for the token once and try again"
    )]
    NeedsAllowance {
        /// The token.
        token: Address,
    },
    /// A node is configured and does not answer.
    #[error(transparent)]
    Chain(#[from] ChainReadError),
    /// The book cannot be used.
    #[error(transparent)]
    Book(#[from] BookError),
    /// The payment header would be longer than a server has to read.
    #[error("the payment header would be {bytes} bytes long; the server's quote is too large to be echoed")]
    PaymentTooLarge {
        /// Its length.
        bytes: usize,
    },
    /// The sum of all charges does not fit.
    #[error("the channel cannot count any further; use another salt")]
    Overflow,
    /// The system has no randomness or no clock.
    #[error("the system gave no {0}")]
    System(&'static str),
    /// A refund was asked where nothing is to be paid.
    #[error("to be refunded, ask a URL that costs money: this one answered {status} instead of 402")]
    NotForSale {
        /// Its status.
        status: u16,
    },
    /// There is no channel to be refunded from.
    #[error("nothing to refund: {0}")]
    NothingToRefund(&'static str),
    /// A refund was asked and not confirmed.
    #[error("the refund was not confirmed: {0}; look at the channel again later")]
    RefundUnconfirmed(String),
    /// The body of the answer is longer than the caller wanted to hold.
    #[error("the answer is longer than {limit} bytes")]
    BodyTooLarge {
        /// The caller's limit, in bytes.
        limit: usize,
    },
}

impl From<QuoteFault> for AgentError {
    fn from(fault: QuoteFault) -> Self {
        Self::Quote(fault)
    }
}

impl From<BudgetRefusal> for AgentError {
    fn from(refusal: BudgetRefusal) -> Self {
        Self::Budget(refusal)
    }
}

fn list(faults: &[OfferFault]) -> String {
    faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

fn spaced(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(" ({message})") }
}

fn after(seconds: Option<u64>) -> String {
    seconds.map(|seconds| format!(" in {seconds} seconds")).unwrap_or_default()
}

fn pending(until: Option<u64>) -> &'static str {
    if until.is_some() { "; the deposit that went with it may still land and will not be signed twice" } else { "" }
}
