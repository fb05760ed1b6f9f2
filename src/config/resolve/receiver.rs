//! `[receiver]`: who is paid, and with whose signatures.

use super::values::address;
use crate::config::KeyReference;
use crate::config::reader::{Given, Problem, Section};
use crate::protocol::{Address, contracts};

pub(super) fn receiver(
    mut section: Section<'_>,
    tokens: &[Address],
    in_our_place: bool,
) -> Option<crate::config::Receiver> {
    let pay_to = section.text("pay_to", |text| {
        let address = address(text)?;
        let contract = if tokens.contains(&address) { Some("the token's") } else { None };
        let contract = contract.or((address == contracts::SETTLEMENT).then_some("the settlement"));
        match contract {
            Some(which) => {
                Err(Problem::new(format!("this is {which} contract")).fix("name the account that should be paid"))
            }
            None => Ok(address),
        }
    });
    let pay_to = section.required("pay_to", pay_to, "pay_to = \"0x…\", the account that is paid");
    let authorizer_key = section.text("authorizer_key", |text| key_reference(text, "PEAJE_AUTHORIZER_KEY"));
    let authorizer_key =
        section.required("authorizer_key", authorizer_key, "authorizer_key = \"env:PEAJE_AUTHORIZER_KEY\"");
    let gas_key = section.text("gas_key", |text| key_reference(text, "PEAJE_GAS_KEY"));
    if let (Given::Value(_, span), true) = (&gas_key, in_our_place) {
        let problem = Problem::new("is not used where a [facilitator] sends the transactions");
        section.error("gas_key", Some(span.clone()), problem.fix("remove it, or [facilitator]"));
    }
    let gas_key = gas_key.optional();
    let authorizer_key = authorizer_key?;
    Some(crate::config::Receiver {
        pay_to: pay_to?,
        gas_key: gas_key?.unwrap_or_else(|| authorizer_key.clone()),
        authorizer_key,
    })
}

pub(super) fn key_reference(text: &str, variable: &str) -> Result<KeyReference, Problem> {
    text.parse().map_err(|error: crate::config::KeyReferenceError| {
        Problem::new(error).fix(format!("write \"env:{variable}\" and set that variable"))
    })
}
