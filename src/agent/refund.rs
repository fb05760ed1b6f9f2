//! Getting the unspent money back, with the server's help.
//!
//! **Owns** the refund request. **Promises** to sign no ceiling above what was charged. **Does not** withdraw against a
//! server's will; that takes a transaction and the channel's withdraw delay.

use http::{Method, StatusCode};
use serde_json::Value;

use super::book::Record;
use super::error::AgentError;
use super::http::drain;
use super::judge;
use super::pay::{Agent, PayRequest, Target, header, retry_after};
use super::payload::{self, Kind};
use super::reader::ChainReader;
use crate::protocol::x402::{self, PAYMENT_REQUIRED, PAYMENT_RESPONSE, Receipt};
use crate::protocol::{Amount, ChannelId, Code, Hash};

/// A refund the server confirmed.
#[derive(Debug, Clone)]
pub struct Refunded {
    /// How much came back, in atomic units.
    pub amount: Amount,
    /// Decimal places of the token, to show amounts as dollars.
    pub decimals: u8,
    /// The transaction, as the server says.
    pub transaction: Option<Hash>,
    /// The channel.
    pub channel: ChannelId,
    /// Its chain, as `eip155:` and the id.
    pub network: String,
    /// What is left on the channel, in atomic units.
    pub remaining: Amount,
    /// The receipt as it came. Untrusted.
    pub receipt: Receipt,
}

impl<R: ChainReader> Agent<R> {
    /// Asks the server behind `url`, any URL of it that costs money, to give back `amount` (atomic units) of what is
    /// left on the channel, or all of it.
    ///
    /// The books follow the chain where there is a node, else the receipt.
    ///
    /// # Cancellation
    /// Safe. The refund may still happen; the next payment then finds less on the channel.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn refund(&self, url: &str, amount: Option<Amount>) -> Result<Refunded, AgentError> {
        if amount.is_some_and(Amount::is_zero) {
            return Err(AgentError::NothingToRefund("the amount is zero"));
        }
        let target = Target::of(url)?;
        let request = PayRequest::new(Method::GET, url);
        let response = self.send(&request, &target, None).await?;
        let status = response.status();
        if status != StatusCode::PAYMENT_REQUIRED {
            return Err(AgentError::NotForSale { status: status.as_u16() });
        }
        let quote = judge::read_quote(header(&response, PAYMENT_REQUIRED));
        drain(response.into_body()).await;
        let quoted = self.choose(quote?, None)?;
        let (config, channel) = self.channel_of(&quoted.choice);
        let mut slot = self.open(&quoted.choice, config, channel, &target.host).await?;

        let mut corrected = false;
        loop {
            if slot.record.remaining().is_zero() {
                return Err(AgentError::NothingToRefund(nothing_left(&slot.record)));
            }
            let voucher = self.voucher(&slot.record, &quoted.choice, slot.record.charged);
            let payment = payload::header(quoted.echo(), &slot.record.config, &voucher, Kind::Refund(amount))?;
            slot = self.save(slot).await?;
            let response = self.send(&request, &target, Some(payment)).await?;

            let status = response.status();
            let retry_after_s = retry_after(response.headers());
            let receipt: Option<Receipt> = header(&response, PAYMENT_RESPONSE).and_then(|text| x402::decode(text).ok());
            let quote = judge::read_quote(header(&response, PAYMENT_REQUIRED));
            let body = drain(response.into_body()).await;
            let refusal = |code: &str, message: &str| refusal(code, message, retry_after_s);
            match (receipt, quote) {
                (Some(receipt), _) if receipt.success => {
                    let record = &mut slot.record;
                    let refunded = refunded_amount(&receipt, record)?;
                    record.balance = match self.on_chain(record).await {
                        // A node that lags would show the balance of before.
                        Ok(Some(seen)) if seen.balance < record.balance => seen.balance,
                        _ => record.balance.saturating_sub(refunded),
                    };
                    slot = self.save(slot).await?;
                    let record = &slot.record;
                    return Ok(Refunded {
                        amount: refunded,
                        decimals: record.decimals,
                        transaction: receipt.transaction.parse().ok(),
                        channel,
                        network: record.network.clone(),
                        remaining: record.remaining(),
                        receipt,
                    });
                }
                (Some(receipt), _) => {
                    let code = receipt.error_reason.as_deref().unwrap_or("refund failed");
                    return Err(refusal(code, receipt.error_message.as_deref().unwrap_or_default()));
                }
                (None, Ok(quote)) if !status.is_success() => {
                    let code = quote.error.as_deref().unwrap_or_default();
                    if !judge::is_corrective(code) || std::mem::replace(&mut corrected, true) {
                        return Err(refusal(code, ""));
                    }
                    self.correct(&mut slot.record, &quote.accepts, &quoted.choice).await?;
                }
                (None, _) => {
                    return Err(match error_in(&body).filter(|_| !status.is_success()) {
                        Some(code) => refusal(&code, ""),
                        None => AgentError::RefundUnconfirmed(format!("status {} without a receipt", status.as_u16())),
                    });
                }
            }
        }
    }
}

fn nothing_left(record: &Record) -> &'static str {
    if record.balance.is_zero() {
        "the book knows of no deposit with this server; with a chain node configured, the chain is asked"
    } else {
        "everything that was deposited with this server is spent"
    }
}

/// A receipt may not give back more than there was.
fn refunded_amount(receipt: &Receipt, record: &Record) -> Result<Amount, AgentError> {
    let amount: Option<Amount> = receipt.amount.as_deref().and_then(|amount| amount.parse().ok());
    match amount {
        Some(amount) if amount <= record.remaining() => Ok(amount),
        Some(_) => Err(AgentError::RefundUnconfirmed("the receipt gives back more than there was".to_owned())),
        None => Err(AgentError::RefundUnconfirmed("the receipt does not say how much came back".to_owned())),
    }
}

/// The `error` of a JSON body. Refusals other than 402 carry their code there.
fn error_in(body: &[u8]) -> Option<String> {
    let body: Value = serde_json::from_slice(body).ok()?;
    body.get("error")?.as_str().map(str::to_owned)
}

fn refusal(code: &str, message: &str, retry_after_s: Option<u64>) -> AgentError {
    if code == Code::SettlementPending.as_str() {
        return AgentError::RefundUnconfirmed("its transaction is on its way".to_owned());
    }
    let code = if code.is_empty() { "no reason given".to_owned() } else { judge::shown(code) };
    AgentError::Refused { code, message: judge::shown(message), retry_after_s, deposit_until: None }
}
