//! What requests cost, in a table an operator can read, and what holds for every tariff there can be.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "in a test a panic is the report")]

#[path = "support/payer.rs"]
mod payer;
#[path = "streaming/stage.rs"]
mod stage;

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use alloy::primitives::Uint;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method, Request, Response, StatusCode};
use http_body_util::{Either, Empty, Full};
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use peaje::config::Config;
use peaje::gate::path::PathPattern;
use peaje::gate::policy::{Asked, Listing, Policy, Price, Route, Verdict};
use peaje::gate::{Accounts, Desk, Gate};
use peaje::ledger::View;
use peaje::pricing::{Days, End, Measured, Rate, Schedule, Tariff, Tier, Tokens, Unit, Window};
use peaje::protocol::x402::{self, PAYMENT_RESPONSE, PAYMENT_SIGNATURE, Quote, QuoteDetails, Receipt};
use peaje::protocol::{Address, Amount, ChannelId, contracts};
use peaje::store::sqlite::{Reader, SqliteStore};
use peaje::store::{Filter, Identity};
use proptest::prelude::*;
use serde_json::json;
use tower::{Layer as _, ServiceExt as _, service_fn};

use payer::{Payer, now_s, usual_terms};
use stage::{Site, eventually, live, send, sums, whole};

const DECIMALS: u8 = 6;

// -------------------------------------------------------------------------------------------------------- the table

/// Lines that begin with a space are a route's keys as the config file has them, and begin a new price list. Each other
/// line is a request: what is asked, perhaps when; what came of it, in the words of [`measured`]; what the quote says; and
/// what is charged, in units of the token and in dollars.
const TABLE: &str = r#"
# ---- a price for each request
 price = "$0.002"
GET                             | 200                                       | $0.002  | 2000 = $0.002
GET                             | 204                                       | $0.002  | 2000 = $0.002
GET                             | 101                                       | $0.002  | 2000 = $0.002
GET                             | 304                                       | $0.002  | 2000 = $0.002
GET                             | 399                                       | $0.002  | 2000 = $0.002
GET                             | 400                                       | $0.002  | 0 = $0.00
GET                             | 402                                       | $0.002  | 0 = $0.00
GET                             | 404                                       | $0.002  | 0 = $0.00
GET                             | 500                                       | $0.002  | 0 = $0.00
POST                            | 200, sent 3 MiB, got 1 GiB, 90000 ms      | $0.002  | 2000 = $0.002

# ---- units of the token, the least price, a price in cents
 price = "2000 units"
GET                             | 200                                       | $0.002  | 2000 = $0.002
 price = "1 unit"
GET                             | 200                                       | $0.000001 | 1 = $0.000001
 price = "$12.50"
GET                             | 200                                       | $12.50  | 12500000 = $12.50

# ---- nothing
 price = "free"
GET                             | 200                                       | free    | 0 = $0.00

# ---- a part of the price, by the answer's status
 price = "$0.002"
 charge_on = { "404" = "10%", "3xx" = "0%", "304" = "50%", "4xx" = "0.01%" }
GET                             | 200                                       | $0.002  | 2000 = $0.002
GET                             | 404                                       | $0.002  | 200 = $0.0002
GET                             | 302                                       | $0.002  | 0 = $0.00
GET                             | 304                                       | $0.002  | 1000 = $0.001
GET                             | 410                                       | $0.002  | 1 = $0.000001
GET                             | 401                                       | $0.002  | 0 = $0.00
GET                             | 402                                       | $0.002  | 0 = $0.00
GET                             | 407                                       | $0.002  | 0 = $0.00
GET                             | 503                                       | $0.002  | 0 = $0.00
 price = "1 unit"
 charge_on = { "2xx" = "50%" }
GET                             | 200                                       | $0.000001 | 1 = $0.000001

# ---- a price of another path, and of no path
 price = "$0.002"
 methods = ["POST"]
POST                            | 200                                       | $0.002  | 2000 = $0.002
GET                             | 405                                       | not sold | 0 = $0.00

# ---- by what a language model used
 price = { input_tokens = "$2.50 / 1M", output_tokens = "$10 / 1M", most = "$0.25" }
POST                            | 200, 1000 input, 500 output               | $0.25   | 7500 = $0.0075
POST                            | 200, 1 input, 0 output                    | $0.25   | 3 = $0.000003
POST                            | 200, 1 input, 1 output                    | $0.25   | 13 = $0.000013
POST                            | 200, 2 input, 1 output                    | $0.25   | 15 = $0.000015
POST                            | 200, 0 input, 0 output                    | $0.25   | 0 = $0.00
POST                            | 200, 600 input, 400 cached, 500 output    | $0.25   | 7500 = $0.0075
POST                            | 200, 99999 input, 1 output                | $0.25   | 250000 = $0.25
POST                            | 200, 100000 input, 1 output               | $0.25   | 250000 = $0.25
POST                            | 200, 9999999 input, 9999999 output        | $0.25   | 250000 = $0.25
POST                            | 200                                       | $0.25   | 250000 = $0.25
POST                            | 200, payer left                           | $0.25   | 250000 = $0.25
POST                            | 200, 1000 input, 20 output, payer left    | $0.25   | 2700 = $0.0027
POST                            | 200, upstream broke off                   | $0.25   | 0 = $0.00
POST                            | 200, 1000 input, 20 output, upstream broke off | $0.25 | 2700 = $0.0027
POST                            | 200, we stopped                           | $0.25   | 0 = $0.00
POST                            | 429                                       | $0.25   | 0 = $0.00
 price = { base = "$0.001", input_tokens = "$3 / 1M", cached_input_tokens = "$0.30 / 1M", cache_write_tokens = "$3.75 / 1M", output_tokens = "$15 / 1M", most = "$1" }
POST                            | 200, 10 input, 90000 cached, 2000 cache write, 300 output | $1.00 | 40030 = $0.04003
POST                            | 200, upstream broke off                   | $1.00   | 1000 = $0.001
POST                            | 200, we stopped                           | $1.00   | 1000 = $0.001

# ---- by bytes
 price = { request_bytes = "$0.01 / 1 MiB", response_bytes = "$0.02 / 1 GiB", most = "$0.10" }
POST                            | 200, sent 1 MiB, got 0 B                  | $0.10   | 10000 = $0.01
POST                            | 200, sent 1 B, got 0 B                    | $0.10   | 1 = $0.000001
POST                            | 200, sent 0 B, got 1 GiB                  | $0.10   | 20000 = $0.02
POST                            | 200, sent 104 B, got 439 B                | $0.10   | 1 = $0.000001
POST                            | 200, sent 104 B, got 440 B                | $0.10   | 2 = $0.000002
POST                            | 200, sent 11 MiB, got 0 B                 | $0.10   | 100000 = $0.10
POST                            | 200, sent 0 B, got 512 MiB, payer left    | $0.10   | 10000 = $0.01

# ---- by time
 price = { base = "$0.001", time = "$0.0005 / 1s", most = "$0.05" }
GET                             | 200, 0 ms                                 | $0.05   | 1000 = $0.001
GET                             | 200, 1 ms                                 | $0.05   | 1001 = $0.001001
GET                             | 200, 1500 ms                              | $0.05   | 1750 = $0.00175
GET                             | 200, 3600000 ms                           | $0.05   | 50000 = $0.05
GET                             | 101, 60000 ms, payer left                 | $0.05   | 31000 = $0.031
GET                             | 200, 2000 ms, we stopped                  | $0.05   | 2000 = $0.002

# ---- by events, the first hundred for nothing
 price = { events = [{ up_to = 100, price = "$0" }, { up_to = "1K", price = "$0.10 / 1K" }, { price = "$0.05 / 1K" }], most = "$1" }
GET                             | 200, 100 events                           | $1.00   | 0 = $0.00
GET                             | 200, 101 events                           | $1.00   | 100 = $0.0001
GET                             | 200, 1000 events                          | $1.00   | 90000 = $0.09
GET                             | 200, 1001 events                          | $1.00   | 90050 = $0.09005
GET                             | 200, 1001 events, payer left              | $1.00   | 90050 = $0.09005
GET                             | 200, 99999 events                         | $1.00   | 1000000 = $1.00

# ---- by what the upstream reports
 price = { reported = { x-units-used = "$0.0002", x-gpu-ms = "$0.36 / 1K" }, most = "$0.05" }
POST                            | 200, x-units-used: 7, x-gpu-ms: 10        | $0.05   | 5000 = $0.005
POST                            | 200, x-units-used: 0, x-gpu-ms: 0         | $0.05   | 0 = $0.00
POST                            | 200, x-units-used: 7                      | $0.05   | 50000 = $0.05
POST                            | 200, x-units-used: 7, upstream broke off  | $0.05   | 1400 = $0.0014
POST                            | 200, x-units-used: 7, x-units-used: 8, x-gpu-ms: 0 | $0.05 | 1600 = $0.0016
POST                            | 200, x-units-used: 18446744073709551615, x-gpu-ms: 1 | $0.05 | 50000 = $0.05

# ---- fractions are added before they are rounded: a third and seven thirds are three units, not four
 price = { events = "1 unit / 3", response_bytes = "1 unit / 3", most = "$1" }
GET                             | 200, 1 events, got 7 B                    | $1.00   | 3 = $0.000003
GET                             | 200, 1 events, got 8 B                    | $1.00   | 3 = $0.000003
GET                             | 200, 1 events, got 9 B                    | $1.00   | 4 = $0.000004
GET                             | 200, 2 events, got 14 B                   | $1.00   | 6 = $0.000006
GET                             | 200, 2 events, got 14 B, payer left       | $1.00   | 6 = $0.000006

# ---- a part of a metered charge
 price = { base = "1 unit", events = "1 unit / 2", most = "10 units" }
 charge_on = { "404" = "50%" }
GET                             | 404, 1 events                             | $0.00001 | 1 = $0.000001
GET                             | 404, 3 events                             | $0.00001 | 2 = $0.000002
GET                             | 404, 99 events                            | $0.00001 | 5 = $0.000005

# ---- cheaper at night and free on Sundays, by the clock in Madrid
 price = "$0.002"
 [[route.at]]
 days = "mon-sat"
 hours = "22:00-06:00"
 zone = "Europe/Madrid"
 price = { base = "$0.0005", events = "$0.0001", most = "$0.001" }
 [[route.at]]
 days = "sun"
 hours = "06:00-24:00"
 zone = "Europe/Madrid"
 price = "free"
GET at 2026-07-06T21:59:59      | 200, 3 events                             | $0.002  | 2000 = $0.002
GET at 2026-07-06T22:00:00      | 200, 3 events                             | $0.001  | 800 = $0.0008
GET at 2026-07-07T05:59:59      | 200, 9 events                             | $0.001  | 1000 = $0.001
GET at 2026-07-07T06:00:00      | 200, 3 events                             | $0.002  | 2000 = $0.002
GET at 2026-01-05T22:00:00      | 200, 3 events                             | $0.001  | 800 = $0.0008
GET at 2026-07-05T05:59:59      | 200, 3 events                             | $0.001  | 800 = $0.0008
GET at 2026-07-05T06:00:00      | 200, 3 events                             | free    | 0 = $0.00
GET at 2026-07-05T23:59:59      | 200, 3 events                             | free    | 0 = $0.00
GET at 2026-07-06T00:00:00      | 200, 3 events                             | $0.002  | 2000 = $0.002
GET at 2026-10-25T02:30:00      | 200, 3 events                             | $0.001  | 800 = $0.0008
"#;

/// The zone of the table's times.
const ZONE: &str = "Europe/Madrid";

/// The most rows that may be lost by mistake before the table is none any more.
const LEAST_ROWS: usize = 60;

/// The same of those that are done over HTTP.
const LEAST_DONE: usize = 80;

/// How long something that should not happen has time to.
const A_MOMENT: Duration = Duration::from_millis(30);

#[test]
fn requests_cost_what_the_table_says() {
    let mut rows = 0;
    let mut lists = Lists::default();
    for line in TABLE.lines() {
        let Some((gate, row)) = lists.read(line) else { continue };
        let policy = gate.policy();
        rows += 1;
        let listing = match policy.judge(&row.asked(&HeaderMap::new())) {
            Verdict::Paid(listing) => Some(listing),
            Verdict::Free(_) => {
                assert_eq!(row.quote, "free", "{line}");
                None
            }
            Verdict::OtherMethods(_) => {
                assert_eq!(row.quote, "not sold", "{line}");
                None
            }
            other => panic!("{line}: {other:?}"),
        };
        let charge = listing.map_or(Amount::ZERO, |listing| {
            assert_eq!(quoted(listing).to_price(DECIMALS), row.quote, "{line}");
            listing.charge(&listing.preferred, &row.measured)
        });
        assert_eq!(format!("{charge} = {}", charge.to_price(DECIMALS)), row.charge, "{line}");
    }
    assert!(rows >= LEAST_ROWS, "{rows}");
}

/// The same rows over HTTP, from a real client to a real upstream and back: what the row says is done, and the books, the
/// receipt and the status are looked at.
#[tokio::test]
async fn requests_are_charged_what_the_table_says() {
    let mut rows = 0;
    let mut lists = Lists::default();
    for line in TABLE.lines() {
        let Some((gate, row)) = lists.read(line) else { continue };
        let policy = gate.policy();
        let headers = HeaderMap::new();
        let verdict = policy.judge(&row.asked(&headers));
        let price = if let Verdict::Paid(listing) = verdict { Some(&listing.preferred.charged) } else { None };
        if row.can_be_done(price) {
            rows += 1;
            if row.is_of_an_hour {
                early_in_a_minute().await;
            }
            row.done(Site::selling(moved(lists.policy(), row.at)).await, price, line).await;
        }
    }
    assert!(rows >= LEAST_DONE, "{rows}");
}

/// The price list that the lines of the table so far make.
#[derive(Default)]
struct Lists {
    keys: String,
    in_keys: bool,
    gate: Option<Gate>,
}

/// A line of the table that is a request.
struct Row<'t> {
    method: Method,
    at: u64,
    is_of_an_hour: bool,
    measured: Measured,
    quote: &'t str,
    charge: &'t str,
}

impl Lists {
    fn read<'t>(&mut self, line: &'t str) -> Option<(Gate, Row<'t>)> {
        if line.is_empty() || line.starts_with('#') {
            return None;
        }
        if let Some(key) = line.strip_prefix(' ') {
            if !self.in_keys {
                self.keys.clear();
            }
            self.keys += &format!("{key}\n");
            self.in_keys = true;
            return None;
        }
        if std::mem::take(&mut self.in_keys) {
            self.gate = Some(Gate::new(self.policy(), Desk::closed()));
        }
        let columns: Vec<_> = line.split('|').map(str::trim).collect();
        let [asked, answer, quote, charge] = columns[..] else { panic!("{line}") };
        let (method, at) = asked.split_once(" at ").unwrap_or((asked, "2026-07-06T12:00:00"));
        let is_of_an_hour = asked != method;
        let time: DateTime = at.parse().unwrap();
        let at = time.in_tz(ZONE).unwrap().timestamp().as_second().try_into().unwrap();
        Some((
            self.gate.clone()?,
            Row { method: method.parse().unwrap(), at, is_of_an_hour, measured: measured(answer), quote, charge },
        ))
    }

    /// The price list as the config file would make it.
    fn policy(&self) -> Policy {
        let pay_to = usual_terms().pay_to;
        let text = format!(
            "[upstream]\nurl = \"http://127.0.0.1:8080\"\n[chain]\nnetwork = \"base-sepolia\"\nrpc = \"env:RPC\"\n\
             [receiver]\npay_to = \"{pay_to}\"\nauthorizer_key = \"env:KEY\"\n[[route]]\npath = \"/paid\"\n{}",
            self.keys
        );
        let config = Config::parse(&text, "table.toml").unwrap_or_else(|errors| panic!("{errors}"));
        config.policy(usual_terms().receiver_authorizer).unwrap()
    }
}

impl Row<'_> {
    fn asked<'a>(&'a self, headers: &'a HeaderMap) -> Asked<'a> {
        Asked { method: &self.method, path: "/paid", query: None, host: None, headers, at: self.at }
    }

    /// Whether a test can do it: not what takes a time to the millisecond, and an upgrade is none of the stage's answers.
    fn can_be_done(&self, price: Option<&Price>) -> bool {
        self.measured.status != 101 && !is_priced(price, &[Unit::Milliseconds])
    }

    /// Does it on a site of its own.
    async fn done(&self, mut site: Site, price: Option<&Price>, line: &str) {
        let Measured { end, ref reported, .. } = self.measured;
        let in_events = is_priced(price, &[Unit::Events]) || (is_priced(price, &TOKENS) && end != End::Complete);
        let content = self.content(price, in_events);
        let length: usize = content.iter().map(Bytes::len).sum();
        let mut frames = None;
        let mut answer = if in_events || end != End::Complete || content.len() > 1 {
            let (sender, answer) = live(if in_events { &[("content-type", "text/event-stream")] } else { &[] });
            frames = Some(sender);
            answer
        } else {
            whole(&[("content-type", "application/json")], content.first().cloned().unwrap_or_default())
        };
        *answer.status_mut() = StatusCode::from_u16(self.measured.status).unwrap();
        for (name, count) in reported {
            answer.headers_mut().append(HeaderName::try_from(&**name).unwrap(), (*count).into());
        }
        site.api.next(answer);
        let writing = tokio::spawn(async move {
            if let Some(frames) = &frames {
                for piece in content {
                    send(frames, piece).await;
                }
            }
            // A body ends where this is let go.
            frames.filter(|_| end != End::Complete)
        });

        let request = if price.is_some() { site.request("/paid") } else { Request::post("/paid").header("host", "a") };
        let request = request.method(self.method.clone()).header("te", "trailers").header("connection", "te");
        let body = vec![b'x'; usize::try_from(self.measured.request_bytes).unwrap()];
        let mut answer = site.ask_of(request, body).await;
        assert_eq!(answer.status, self.measured.status, "{line}");
        let is_sold = self.quote != "not sold";
        let mut got = 0;
        while is_sold && got < length {
            got += answer.piece().await.expect(line).expect(line).len();
        }
        let mut receipt = None;
        match end {
            End::Complete => {
                let rest = answer.rest().await;
                assert!(!is_sold || (got == length && rest.is_empty()), "{line}");
                receipt = sums(answer.receipt().or(answer.late_receipt()));
            }
            End::PayerLeft => {
                answer.leave();
                // The upstream goes on for a moment.
                tokio::time::sleep(A_MOMENT).await;
                drop(writing.await.unwrap());
            }
            End::UpstreamFailed => {
                let frames = writing.await.unwrap().unwrap();
                frames.send(Err(io::Error::other("out of order"))).await.unwrap();
                assert!(answer.piece().await.expect(line).is_err(), "{line}");
            }
            End::Stopped => site.stopped().await,
        }
        let charged = || Amount::new(site.charged());
        if self.charge.starts_with("0 =") {
            tokio::time::sleep(A_MOMENT).await;
        } else {
            eventually(line, || !charged().is_zero()).await;
        }
        assert_eq!(format!("{} = {}", charged(), charged().to_price(DECIMALS)), self.charge, "{line}");
        if end == End::Complete {
            assert_eq!(receipt.map_or(0, |(charge, _)| charge), charged().units(), "{line}");
        }
    }

    /// The answer's body, in pieces.
    fn content(&self, price: Option<&Price>, in_events: bool) -> Vec<Bytes> {
        let Measured { tokens, events, response_bytes, .. } = self.measured;
        let bytes = usize::try_from(response_bytes).unwrap();
        if let Some(Tokens { input, cached_input, cache_write, output }) = tokens {
            let usage = if cache_write == 0 {
                let cached = json!({"cached_tokens": cached_input});
                let read = input + cached_input;
                json!({"prompt_tokens": read, "prompt_tokens_details": cached, "completion_tokens": output})
            } else {
                json!({
                    "input_tokens": input,
                    "cache_read_input_tokens": cached_input,
                    "cache_creation_input_tokens": cache_write,
                    "output_tokens": output,
                })
            };
            let report = json!({"usage": usage});
            return vec![if in_events { format!("data: {report}\n\n") } else { report.to_string() }.into()];
        }
        if in_events {
            let mut text = "data:\n\n".repeat(usize::try_from(events).unwrap());
            // A comment is no event.
            let missing = bytes.saturating_sub(text.len());
            text.extend((1..=missing).map(|place| if place < missing { ':' } else { '\n' }));
            assert!(bytes == 0 || text.len() == bytes, "{events} events are more than {bytes} B");
            return if text.is_empty() { Vec::new() } else { vec![text.into()] };
        }
        let has_none = [204, 304].contains(&self.measured.status) || is_priced(price, &[Unit::ResponseBytes]);
        if bytes == 0 && !has_none && self.measured.end == End::Complete {
            return vec![Bytes::from_static(b"served")];
        }
        let piece = Bytes::from(vec![b'x'; bytes.min(1 << 20)]);
        (0..bytes).step_by(1 << 20).map(|from| piece.slice(..(bytes - from).min(1 << 20))).collect()
    }
}

const TOKENS: [Unit; 4] = [Unit::InputTokens, Unit::CachedInputTokens, Unit::CacheWriteTokens, Unit::OutputTokens];

fn is_priced(price: Option<&Price>, units: &[Unit]) -> bool {
    let Some(Price::Metered(tariff)) = price else { return false };
    tariff.rates.iter().any(|rate| units.contains(&rate.unit))
}

/// Waits until a minute has enough seconds left for a request.
async fn early_in_a_minute() {
    let second = now_s() % 60;
    if second >= 55 {
        tokio::time::sleep(Duration::from_secs(60 - second)).await;
    }
}

/// The same price list, with its hours moved along the week: what held in the minute of `at` holds in this one.
fn moved(policy: Policy, at: u64) -> Policy {
    const DAY_MIN: u16 = 24 * 60;
    let minute_of_week = |at: u64, zone: TimeZone| {
        let local = Timestamp::from_second(at.try_into().unwrap()).unwrap().to_zoned(zone);
        let minutes = i32::from(local.weekday().to_monday_zero_offset()) * 24 * 60
            + i32::from(local.hour()) * 60
            + i32::from(local.minute());
        u16::try_from(minutes).unwrap()
    };
    let then = minute_of_week(at, TimeZone::get(ZONE).unwrap());
    let later_min = (minute_of_week(now_s(), TimeZone::UTC) + 7 * DAY_MIN - then) % (7 * DAY_MIN);
    let moved = |window: &Window| {
        let length_min = (window.until_min + DAY_MIN - window.from_min) % DAY_MIN;
        let from_min = window.from_min + later_min;
        let later_days = u8::try_from(from_min / DAY_MIN).unwrap();
        let days = (0..7).filter(|day| window.days.has(*day));
        let days = days.fold(Days::NONE, |days, day| days.and(day + later_days, day + later_days));
        let from_min = from_min % DAY_MIN;
        Window { days, from_min, until_min: (from_min + length_min) % DAY_MIN, zone: TimeZone::UTC }
    };
    let routes = policy.routes().map(|route| {
        let windows = route.schedule.windows().iter().map(|(window, price)| (moved(window), price.clone()));
        Route { schedule: Schedule::new(windows.collect()).unwrap(), ..Route::clone(route) }
    });
    Policy::new(policy.terms().clone(), policy.public_url(), routes.collect()).unwrap()
}

/// What an answer turned out to be, in words: its status, and what there was of anything else.
fn measured(words: &str) -> Measured {
    let mut words = words.split(',').map(str::trim);
    let status = words.next().unwrap().parse().unwrap();
    let mut measured = Measured::nothing(status, End::Complete);
    for word in words {
        let (number, rest) = word.split_once(' ').unwrap();
        let count = || number.parse::<u64>().unwrap();
        let mut tokens = measured.tokens.unwrap_or_default();
        match rest {
            "left" => measured.end = End::PayerLeft,
            "broke off" => measured.end = End::UpstreamFailed,
            "stopped" => measured.end = End::Stopped,
            "ms" => measured.elapsed_ms = count(),
            "events" => measured.events = count(),
            "input" => tokens.input = count(),
            "cached" => tokens.cached_input = count(),
            "cache write" => tokens.cache_write = count(),
            "output" => tokens.output = count(),
            size if number == "sent" => measured.request_bytes = bytes_of(size),
            size if number == "got" => measured.response_bytes = bytes_of(size),
            count => measured.reported.push((number.strip_suffix(':').unwrap().into(), count.parse().unwrap())),
        }
        if ["input", "cached", "cache write", "output"].contains(&rest) {
            measured.tokens = Some(tokens);
        }
    }
    measured
}

fn bytes_of(size: &str) -> u64 {
    let (number, unit) = size.split_once(' ').unwrap();
    let bytes = match unit {
        "B" => 1,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        other => panic!("{other}"),
    };
    number.parse::<u64>().unwrap() * bytes
}

/// What a client is told that the request costs at most.
fn quoted(listing: &Listing) -> Amount {
    let details = QuoteDetails { error: "Payment required", path_and_query: "/paid", corrective: None };
    let (header, _) = listing.preferred.quote.write(details, None);
    let quote: Quote = x402::decode(header.as_bytes()).unwrap();
    quote.accepts[0].amount
}

// --------------------------------------------------------------------------------------------------------- the books

/// Somebody who pays at a gate, and knows what it owes.
struct Till<'g> {
    gate: &'g Gate,
    payer: Payer,
    most: Amount,
}

impl<'g> Till<'g> {
    fn open(gate: &'g Gate, offer: &serde_json::Value, most: Amount) -> Self {
        let payer = Payer { offer: offer.clone(), ..Payer::new(1, gate.policy().terms(), 0) };
        let view = View { block: 1, balance: Amount::new(1 << 100), ..View::default() };
        gate.accounts().observe(payer.id(), &payer.config, view).unwrap();
        Self { gate, payer, most }
    }

    fn id(&self) -> ChannelId {
        self.payer.id()
    }

    fn charged(&self) -> Amount {
        self.gate.accounts().statement(&self.id()).unwrap().charged
    }

    /// Pays for a request that the upstream answers with this status, and says that it cost so much.
    async fn ask(&self, method: Method, status: u16, cost: Option<Amount>) -> Response<()> {
        let served = service_fn(move |_: Request<()>| async move {
            let mut response = Response::new(match status {
                204 | 304 => Either::Left(Empty::<Bytes>::new()),
                _ => Either::Right(Full::new(Bytes::from_static(b"served"))),
            });
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            if let Some(cost) = cost {
                let report = json!({"amount": cost.to_string()}).to_string();
                response.headers_mut().insert("settlement-overrides", report.parse().unwrap());
            }
            Ok::<_, Infallible>(response)
        });
        let ceiling = self.charged().checked_add(self.most).unwrap();
        let payment = self.payer.voucher(ceiling.units()).header();
        let request = Request::builder().method(method).uri("/paid").header(PAYMENT_SIGNATURE, payment);
        self.gate.layer().layer(served).oneshot(request.body(()).unwrap()).await.unwrap().map(|_| ())
    }
}

fn receipt(response: &Response<()>) -> Option<Receipt> {
    response.headers().get(PAYMENT_RESPONSE).map(|text| x402::decode(text.as_bytes()).unwrap())
}

fn gate_for(tariff: Tariff, accounts: Accounts) -> Gate {
    let route = Route::new(PathPattern::parse("/paid").unwrap(), Price::Metered(Arc::new(tariff)));
    let policy = Policy::new(usual_terms(), "https://api.example", vec![route]).unwrap();
    Gate::with_accounts(policy, Desk::closed(), accounts)
}

/// Charges them all; what the accounts say then.
async fn post_all(gate: &Gate, charges: &[Amount]) -> (ChannelId, Amount) {
    let policy = gate.policy();
    let listing = policy.first_paid().unwrap();
    let till = Till::open(gate, &json!(listing.preferred.offer.offer()), listing.preferred.price);
    for charge in charges {
        let answer = till.ask(Method::GET, 200, Some(*charge)).await;
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(receipt(&answer).unwrap().charged_amount(), Some(*charge));
    }
    (till.id(), till.charged())
}

/// What the file says of a channel: its lines of charges with their number of requests, and the sum of its last row.
fn in_the_file(directory: &std::path::Path, id: &ChannelId) -> (u64, Amount, Amount) {
    let reader = Reader::open(directory).unwrap();
    let (mut requests, mut sum) = (0, Amount::ZERO);
    reader
        .charges(&Filter::default(), &mut |line| {
            assert_eq!(line.channel, *id);
            requests += line.requests;
            sum = sum.checked_add(line.amount).unwrap();
            Ok(())
        })
        .unwrap();
    (requests, sum, reader.channel(id).unwrap().unwrap().snapshot.charged)
}

// --------------------------------------------------------------------------------------------- what holds for them all

const UNITS: [Unit; 8] = [
    Unit::RequestBytes,
    Unit::ResponseBytes,
    Unit::Milliseconds,
    Unit::Events,
    Unit::InputTokens,
    Unit::CachedInputTokens,
    Unit::CacheWriteTokens,
    Unit::OutputTokens,
];

/// A count that is small enough to be counted one by one, and large enough to go through all tiers.
fn a_count() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), 0..40u64, 0..400u64]
}

fn a_rate(unit: Unit) -> impl Strategy<Value = Rate> {
    let per = prop_oneof![Just(1), 1..50u64, prop::sample::select(vec![1_000, 1_000_000, 1 << 20, 1 << 30])];
    let tier = (1..150u64, prop_oneof![0..20u128, 0..5_000_000u128], per);
    proptest::collection::vec(tier, 1..4).prop_map(move |tiers| {
        let (count, mut end) = (tiers.len(), 0);
        let tiers = tiers.into_iter().enumerate().map(|(index, (length, price, per))| {
            end += length;
            Tier { up_to: (index + 1 < count).then_some(end), price: Amount::new(price), per }
        });
        Rate { unit: unit.clone(), tiers: tiers.collect() }
    })
}

fn a_tariff() -> impl Strategy<Value = Tariff> {
    let reported = ["x-a", "x-b"].map(|name| Unit::Reported(name.into()));
    let units: Vec<_> = UNITS.into_iter().chain(reported).collect();
    let rates = prop::sample::subsequence(units, 1..=4)
        .prop_flat_map(|units| units.into_iter().map(a_rate).collect::<Vec<_>>());
    let sums = (prop_oneof![Just(0), 0..10_000u128], 0..10_000_000u128);
    (rates, sums).prop_map(|(rates, (base, above))| Tariff {
        base: Amount::new(base),
        rates,
        most: Amount::new((base + above).max(1)),
    })
}

fn an_answer() -> impl Strategy<Value = Measured> {
    let counts = (a_count(), a_count(), a_count(), a_count());
    let tokens = (a_count(), a_count(), a_count(), a_count())
        .prop_map(|(input, cached_input, cache_write, output)| Tokens { input, cached_input, cache_write, output });
    let reported = proptest::collection::vec((prop::sample::select(vec!["x-a", "x-b"]), a_count()), 0..4);
    let ends = prop::sample::select(vec![End::Complete, End::PayerLeft, End::UpstreamFailed, End::Stopped]);
    (counts, prop::option::weighted(0.8, tokens), reported, ends).prop_map(|(counts, tokens, reported, end)| {
        let (request_bytes, response_bytes, elapsed_ms, events) = counts;
        let reported = reported.into_iter().map(|(name, count)| (name.into(), count)).collect();
        Measured { request_bytes, response_bytes, elapsed_ms, events, tokens, reported, ..Measured::nothing(200, end) }
    })
}

/// Room for every denominator and numerator there can be here.
type Wide = Uint<2048, 32>;

/// The charge as the rules of `peaje::pricing` tell it: every single thing is looked at by itself, and all fractions are
/// of one denominator, the product of all there are.
fn by_hand(tariff: &Tariff, answer: &Measured) -> Amount {
    let wide = |amount: Amount| Wide::from(amount.units());
    let denominator: Wide = tariff.rates.iter().flat_map(|rate| &rate.tiers).map(|tier| Wide::from(tier.per)).product();
    let mut sum = wide(tariff.base) * denominator;
    let rated = |unit: Unit| tariff.rates.iter().any(|rate| rate.unit == unit);
    for rate in &tariff.rates {
        let tokens = answer.tokens;
        let count = match &rate.unit {
            Unit::RequestBytes => Some(answer.request_bytes),
            Unit::ResponseBytes => Some(answer.response_bytes),
            Unit::Milliseconds => Some(answer.elapsed_ms),
            Unit::Events => Some(answer.events),
            Unit::OutputTokens => tokens.map(|tokens| tokens.output),
            Unit::CachedInputTokens => tokens.map(|tokens| tokens.cached_input),
            Unit::CacheWriteTokens => tokens.map(|tokens| tokens.cache_write),
            Unit::InputTokens => tokens.map(|tokens| {
                let cached = if rated(Unit::CachedInputTokens) { 0 } else { tokens.cached_input };
                let written = if rated(Unit::CacheWriteTokens) { 0 } else { tokens.cache_write };
                tokens.input + cached + written
            }),
            Unit::Reported(name) => {
                let last = answer.reported.iter().rfind(|(reported, _)| reported == name);
                last.map(|(_, count)| *count)
            }
        };
        let failed = matches!(answer.end, End::UpstreamFailed | End::Stopped);
        let Some(count) = count.or(failed.then_some(0)) else { return tariff.most };
        for number in 0..count {
            let tier = rate.tiers.iter().find(|tier| tier.up_to.is_none_or(|up_to| number < up_to)).unwrap();
            sum += wide(tier.price) * (denominator / Wide::from(tier.per));
        }
    }
    let units = sum.div_ceil(denominator);
    u128::try_from(units).map_or(tariff.most, |units| Amount::new(units).min(tariff.most))
}

/// The same answer with more of one thing.
fn with_more(answer: &Measured, which: usize, more: u64) -> Measured {
    let mut answer = answer.clone();
    let tokens = answer.tokens.as_mut();
    match which {
        0 => answer.request_bytes += more,
        1 => answer.response_bytes += more,
        2 => answer.elapsed_ms += more,
        3 => answer.events += more,
        4..=7 => {
            if let Some(tokens) = tokens {
                let counts = [&mut tokens.input, &mut tokens.cached_input, &mut tokens.cache_write, &mut tokens.output];
                *counts.into_iter().nth(which - 4).unwrap() += more;
            }
        }
        _ => answer.reported.iter_mut().for_each(|(_, count)| *count += more),
    }
    answer
}

proptest! {
    #[test]
    fn a_charge_is_exact_and_never_above_the_quote(tariff in a_tariff(), answer in an_answer()) {
        let charge = tariff.charge(&answer);
        prop_assert!(charge <= tariff.most);
        prop_assert_eq!(charge, by_hand(&tariff, &answer));
        prop_assert!(tariff.adds_up());
    }

    #[test]
    fn more_never_costs_less(tariff in a_tariff(), answer in an_answer(), which in 0..9usize, more in a_count()) {
        prop_assert!(tariff.charge(&with_more(&answer, which, more)) >= tariff.charge(&answer));
    }

    #[test]
    fn counts_beyond_all_measure_cost_no_more_than_the_quote(tariff in a_tariff(), answer in an_answer(), which in 0..4usize) {
        let beyond = with_more(&answer, which, u64::MAX - 400);
        let charge = tariff.charge(&beyond);
        prop_assert!(charge <= tariff.most && charge >= tariff.charge(&answer));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn charges_add_up_to_what_the_books_say(tariff in a_tariff(), answers in proptest::collection::vec(an_answer(), 1..12)) {
        let charges: Vec<_> = answers.iter().map(|answer| tariff.charge(answer)).collect();
        let sum = charges.iter().try_fold(Amount::ZERO, |sum, charge| sum.checked_add(*charge)).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();

        let in_memory = gate_for(tariff.clone(), Accounts::in_memory());
        prop_assert_eq!(runtime.block_on(post_all(&in_memory, &charges)).1, sum);

        let directory = tempfile::tempdir().unwrap();
        let settlement: Address = contracts::SETTLEMENT;
        let identity = Identity { chain_id: usual_terms().chain_id, settlement };
        let open = || Accounts::open(SqliteStore::open(directory.path(), identity).unwrap()).unwrap().0;
        let on_disk = gate_for(tariff, open());
        let (id, charged) = runtime.block_on(post_all(&on_disk, &charges));
        prop_assert_eq!(charged, sum);
        on_disk.accounts().journal().close();
        drop(on_disk);
        let requests = u64::try_from(charges.len()).unwrap();
        prop_assert_eq!(in_the_file(directory.path(), &id), (requests, sum, sum));
        prop_assert_eq!(open().statement(&id).unwrap().charged, sum);
    }
}

// --------------------------------------------------------------------------------------------------------- the hours

/// A price list in which one price was in force until the minute that is now, and another has been since.
fn changed_this_minute(before: u128, since: u128) -> Policy {
    let day_min = 24 * 60;
    let now_min = u16::try_from(now_s() / 60 % u64::from(day_min)).unwrap();
    let zone = jiff::tz::TimeZone::UTC;
    let window = Window { days: Days::ALL, from_min: now_min, until_min: (now_min + 60) % day_min, zone };
    let schedule = Schedule::new(vec![(window, Price::Fixed(Amount::new(since)))]).unwrap();
    let route = Route::new(PathPattern::parse("/paid").unwrap(), Price::Fixed(Amount::new(before)));
    Policy::new(usual_terms(), "https://api.example", vec![Route { schedule, ..route }]).unwrap()
}

#[tokio::test]
async fn who_was_quoted_the_price_of_the_hour_before_pays_that() {
    let offer = |price| json!(usual_terms().offer(Amount::new(price)));
    // A minute may pass meanwhile.
    let gate = Gate::new(changed_this_minute(3, 5), Desk::closed()).with_quote_grace(Duration::from_secs(300));
    for (price, charged) in [(5, 5), (3, 8)] {
        let till = Till::open(&gate, &offer(price), Amount::new(price));
        let answer = till.ask(Method::GET, 200, None).await;
        assert_eq!(answer.status(), StatusCode::OK, "{price}");
        assert_eq!(receipt(&answer).unwrap().charged_amount(), Some(Amount::new(price)));
        assert_eq!(till.charged(), Amount::new(charged));
    }
    // Somebody who is out of step is asked to come back with the price it knows.
    let till = Till::open(&gate, &offer(3), Amount::new(1_000));
    let answer = till.ask(Method::GET, 200, None).await;
    assert_eq!(answer.status(), StatusCode::PAYMENT_REQUIRED);
    let quote: Quote = x402::decode(answer.headers()["payment-required"].as_bytes()).unwrap();
    assert_eq!(quote.accepts[0].amount, Amount::new(3));

    let strict = Gate::new(changed_this_minute(3, 5), Desk::closed());
    let till = Till::open(&strict, &offer(3), Amount::new(3));
    let answer = till.ask(Method::GET, 200, None).await;
    assert_eq!(answer.status(), StatusCode::PAYMENT_REQUIRED);
    let quote: Quote = x402::decode(answer.headers()["payment-required"].as_bytes()).unwrap();
    assert_eq!((quote.accepts[0].amount, till.charged()), (Amount::new(5), Amount::ZERO));
}
