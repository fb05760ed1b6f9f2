//! What must hold of any text as a config file.
#![allow(clippy::panic, reason = "here a panic is the report")]

use peaje::config::Config;
use peaje::protocol::Address;

/// A text is a config, and then one that a policy can be made of; or it is refused, with a cause for each error and places
/// that are in the text. Says which.
pub(crate) fn run(text: &str) -> bool {
    match Config::parse(text, "peaje.toml") {
        Ok(config) => {
            let policy = config.policy(Address([7; 20]));
            assert!(policy.is_ok(), "what was accepted makes a price list: {policy:?}");
            true
        }
        Err(errors) => {
            let lines = text.split('\n').count();
            assert!(errors.errors().iter().next().is_some(), "a refusal names an error");
            for error in errors.errors().iter() {
                assert!(!error.problem.is_empty(), "{error:?}");
                assert!(error.place.as_ref().is_none_or(|place| (1..=lines).contains(&place.line)), "{error:?}");
            }
            // It can be shown.
            assert!(!errors.to_string().is_empty());
            false
        }
    }
}
