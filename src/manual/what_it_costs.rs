//! Prices: how they are written, how a charge is made of them, and when they change.
//!
//! A price in the config file is dollars (`"$0.002"`), units of the token (`"2000 units"`, where there is one token only),
//! `"free"`, or a table of rates:
//!
//! ```
//! # let text = r#"
//! # [upstream]
//! # url = "http://127.0.0.1:8080"
//! # [chain]
//! # network = "base"
//! # rpc = "env:RPC"
//! # [receiver]
//! # pay_to = "0x209693Bc6afc0C5328bA36FaF03C514EF312287C"
//! # authorizer_key = "env:KEY"
//! # "#.to_owned() + r#"
//! [[route]]
//! path = "/v1/chat/completions"
//! charge_on = { "404" = "10%" }
//!
//! [route.price]
//! base = "$0.001"
//! input_tokens = "$2.50 / 1M"
//! output_tokens = [{ up_to = "10K", price = "$10 / 1M" }, { price = "$8 / 1M" }]
//! most = "$0.25"
//!
//! [[route.at]]
//! days = "mon-fri"
//! hours = "22:00-06:00"
//! zone = "Europe/Madrid"
//! price = "$0.01"
//! # "#;
//! # peaje::config::Config::parse(&text, "peaje.toml")?;
//! # Ok::<(), peaje::config::ConfigErrors>(())
//! ```
//!
//! - **The quote says the most.** An agent signs for `most`, and is charged what the request really used. The offer tells
//!   the tariff in words (`extra.tariff`), so that an agent can tell beforehand what a request will cost.
//! - **The charge is exact.** Rates may be finer than a unit of the token. They are added up as fractions, and the sum is
//!   rounded once, up to a whole unit. The rules for answers that report nothing or end early are those of
//!   [`pricing`](crate::pricing#the-rules-of-a-charge).
//! - **Tiers are for a part of the count.** The first 10,000 output tokens above cost $10 a million, and only those beyond
//!   them $8.
//! - **The status decides a share.** Unless `charge_on` says otherwise, answers below 400 are charged in full and others not
//!   at all. One status goes before its class. Nothing makes 401, 402, 407 or 5xx cost anything: who fails, or asks for
//!   something first, is not paid. A part of a unit is rounded up.
//! - **Hours go by the clock on the wall.** A window over midnight belongs to the day it begins on. On a day when clocks
//!   are changed it is shorter or longer. No two windows of a route may hold at one moment.
//! - **A quote outlives its hour** by [`server.quote_grace`](crate::config::Server::quote_grace): a payment that answers an
//!   offer of the route which was in force so recently is served at that offer's price, be it higher or lower than the one
//!   of the hour.
