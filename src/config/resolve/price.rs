//! What a price is written like.

use super::values::amount;
use crate::config::reader::{Problem, quoted};
use crate::gate::policy::Price;
use crate::protocol::Amount;

pub(super) fn price(text: &str, decimals: Option<u8>) -> Result<Price, Problem> {
    if text == "free" {
        return Ok(Price::Free);
    }
    if text.eq_ignore_ascii_case("free") {
        return Err(Problem::new(format!("{} is not a price", quoted(text))).fix("write \"free\", in lower case"));
    }
    match amount(text, decimals)? {
        Amount::ZERO => Err(Problem::new(format!("{} is no price", quoted(text))).fix("write \"free\" if you mean it")),
        price => Ok(Price::Fixed(price)),
    }
}

/// A number is the likeliest mistake, so its error shows the number as it should be written.
pub(super) fn price_without_quotes(kind: &str) -> Problem {
    match kind.strip_prefix("the number ") {
        Some(number) => Problem::new(format!("{number} is not a price"))
            .fix(format!("write it as text with a dollar sign: \"${number}\"")),
        None => Problem::new(format!("expected a price, found {kind}")).fix("write it like \"$0.002\", or \"free\""),
    }
}
