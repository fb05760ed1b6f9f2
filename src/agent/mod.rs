//! The paying side: a wallet key, a book of channels, a budget, and the client that pays with them.
//!
//! **Owns** what a program needs to buy from a server that speaks x402 v2 `batch-settlement`: reading a 402, choosing
//! an offer, opening or topping up a channel by a signed deposit, signing vouchers, believing exactly as much of an
//! answer as can be checked, and getting the rest of the money back.
//!
//! **Promises**
//! - nothing is signed that the [`Budget`] or the [`Terms`] refuse;
//! - what is signed is in the [`Book`] before it leaves, so a crash cannot make the agent forget it;
//! - a second deposit is never signed while the first one may still land;
//! - a server's word moves the books by no more than was signed for: a receipt counts up to the price that was offered,
//!   a corrective counts only with our own signature or the chain behind it;
//! - payments on different channels are made in parallel, those on one channel one at a time, unless both sides agree on
//!   more ([`AgentConfig::ahead`]).
//!
//! **Does not** send transactions (the server relays deposits and refunds), withdraw against a server's will, follow
//! redirects (a payment goes to the origin it was asked for), or hold a paid answer back: bodies are streamed.
//!
//! What decides is in [`judge`], pure and without a clock; sockets, disk and time are around it.

mod ahead;
mod answer;
mod book;
mod budget;
mod chain;
mod error;
mod http;
pub mod judge;
mod late;
mod pay;
mod payload;
mod reader;
mod refund;
mod spending;

pub use ahead::MAX_AHEAD;
pub use answer::{Answer, AnswerBody, PaymentMade};
pub use book::{Book, BookError, DaySpend, PendingDeposit, Record};
pub use budget::{Budget, BudgetRefusal, Dollars, Limit};
pub use chain::NodeReader;
pub use error::AgentError;
pub use judge::{KnownToken, Terms};
pub use pay::{Agent, AgentConfig, PayRequest};
pub use reader::{Allowance, ChainChannel, ChainReadError, ChainReader, NoChain};
pub use refund::Refunded;

/// Runs disk work beside the event loop.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BookError> + Send + 'static,
) -> Result<T, AgentError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(AgentError::System("thread for the disk")),
    }
}

/// Does what touches a book, beside the event loop where that means a disk.
async fn on_disk<T: Send + 'static>(
    book: &Book,
    work: impl FnOnce(&Book) -> Result<T, BookError> + Send + 'static,
) -> Result<T, AgentError> {
    if !book.is_on_disk() {
        return Ok(work(book)?);
    }
    let book = book.share();
    blocking(move || work(&book)).await
}
