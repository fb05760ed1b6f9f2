use std::convert::Infallible;

use bytes::Bytes;
use http::header::HeaderName;
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use tokio::sync::mpsc;

use super::super::accounts::Accounts;
use super::super::background::Background;
use super::*;
use crate::gate::path::PathPattern;
use crate::ledger::{Limits, View};
use crate::pricing::{Rate, Tier};
use crate::protocol::x402::Order;
use crate::protocol::{Address, ChannelConfig, ChannelId, Domain, Hash, LocalKey, Voucher};

const MOST: u128 = 1_000;

/// A channel with one hold, and a request that it pays for.
struct Booth {
    accounts: Accounts,
    channel: ChannelId,
}

impl Booth {
    fn bill(units: &[Unit]) -> (Self, Box<Bill>, Request<()>) {
        let (domain, key) = (Domain::settlement(84_532), LocalKey::from_bytes(&[7; 32]).unwrap());
        let config = ChannelConfig {
            payer: key.address(),
            payer_authorizer: key.address(),
            receiver: Address([1; 20]),
            receiver_authorizer: Address([2; 20]),
            token: Address([3; 20]),
            withdraw_delay: 900,
            salt: Hash::ZERO,
        };
        let (accounts, channel) = (Accounts::in_memory(), config.id(&domain));
        let view = View { block: 1, balance: Amount::new(MOST), ..View::default() };
        accounts.observe(channel, &config, view).unwrap();
        let voucher = Voucher { channel, max_claimable: Amount::new(MOST) }.sign(&domain, &key);
        let voucher = voucher.verify(&domain, &config).unwrap();
        let (limits, route) = (Limits::default(), "r".into());
        let permit = accounts.journal().permit().unwrap();
        let hold = accounts.hold(&voucher, Amount::new(MOST), Order::default(), limits, &route, permit);
        let mut hold = hold.unwrap().unwrap();
        hold.sent();
        let rate = |unit: &Unit| {
            let tiers = vec![Tier { up_to: None, price: Amount::new(1), per: 1 }];
            Rate { unit: unit.clone(), tiers }
        };
        let rates = units.iter().map(rate).collect();
        let tariff = Tariff { base: Amount::ZERO, rates, most: Amount::new(MOST) };
        let route = Route::new(PathPattern::parse("/x").unwrap(), Price::Metered(Arc::new(tariff)));
        let mut request = Request::new(());
        let price = route.price.clone();
        match Due::of(hold, &Arc::new(route), price, 6, None, &mut request, None) {
            Due::Metered(bill) => (Self { accounts, channel }, bill, request),
            Due::Fixed(..) => unreachable!("the route is metered"),
        }
    }

    fn charged(&self) -> u128 {
        self.accounts.statement(&self.channel).unwrap().charged.units()
    }

    /// Whether its hold is resolved.
    fn is_at_rest(&self) -> bool {
        self.accounts.read(&self.channel, crate::ledger::Channel::in_flight) == Some(0)
    }
}

fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    let header =
        |(name, value): &(&'static str, &'static str)| (HeaderName::from_static(name), HeaderValue::from_static(value));
    pairs.iter().map(header).collect()
}

const SSE: &[(&str, &str)] = &[("content-type", "text/event-stream")];

#[test]
fn what_is_asked_of_the_upstream_depends_on_what_is_counted() {
    let asked = |unit: Unit| Booth::bill(&[unit]).2.headers().get(ACCEPT_ENCODING).cloned();
    for inside in [Unit::Events, Unit::InputTokens, Unit::CachedInputTokens, Unit::CacheWriteTokens, Unit::OutputTokens]
    {
        assert_eq!(asked(inside).unwrap(), "identity");
    }
    for outside in [Unit::RequestBytes, Unit::ResponseBytes, Unit::Milliseconds, Unit::Reported("x".into())] {
        assert_eq!(asked(outside), None);
    }
}

#[test]
fn a_bill_that_is_dropped_was_left_by_its_payer_unless_we_stop() {
    for (head, abandoned, expected) in [(true, false, 3), (true, true, 3), (false, false, 3), (false, true, 0)] {
        let (booth, mut bill, _) = Booth::bill(&[Unit::ResponseBytes]);
        if head {
            bill.head(200, &HeaderMap::new());
        }
        bill.data(b"abc");
        if abandoned {
            booth.accounts.abandon();
        }
        drop(bill);
        assert_eq!((booth.charged(), booth.is_at_rest()), (expected, true), "{head} {abandoned}");
    }
}

#[test]
fn no_model_says_anything_in_an_answer_that_has_no_body() {
    for (status, expected) in [(204, 5), (304, 5), (200, MOST), (205, MOST)] {
        let (booth, mut bill, _) = Booth::bill(&[Unit::OutputTokens, Unit::RequestBytes]);
        bill.passed.add(5);
        bill.head(status, &headers(SSE));
        bill.close(End::Complete);
        assert_eq!(booth.charged(), expected, "{status}");
    }
}

#[test]
fn what_was_read_of_a_report_in_time_is_not_its_last_word() {
    let part = b"data: {\"usage\":{\"completion_tokens\":2}}\n\n";
    let left = || {
        let (booth, mut bill, _) = Booth::bill(&[Unit::OutputTokens, Unit::ResponseBytes]);
        bill.head(200, &headers(SSE));
        bill.data(b": ping\n\n");
        bill.leave();
        bill.data(part);
        (booth, bill)
    };
    let (booth, mut bill) = left();
    bill.close_unreported();
    assert_eq!(booth.charged(), MOST, "it took too long");
    let (booth, mut bill) = left();
    bill.close(End::PayerLeft);
    assert_eq!(booth.charged(), 10, "it came to its end; what came after the payer left is not its");
    let (booth, bill) = left();
    drop(bill);
    assert_eq!((booth.charged(), booth.is_at_rest()), (10, true), "we stopped reading on");
}

/// A stream that goes on for as long as its other end is held.
fn endless() -> (mpsc::UnboundedSender<Bytes>, impl http_body::Body<Data = Bytes, Error = Infallible> + Send + 'static)
{
    let (sender, pieces) = mpsc::unbounded_channel::<Bytes>();
    let frames = futures_util::stream::unfold(pieces, |mut pieces| async move {
        pieces.recv().await.map(|piece| (Ok(Frame::data(piece)), pieces))
    });
    (sender, StreamBody::new(Box::pin(frames)))
}

#[tokio::test]
async fn so_many_answers_are_read_on_and_no_more() {
    for (free, expected) in [(1, 2), (0, MOST)] {
        let places = Background::of(free);
        let (booth, mut bill, _) = Booth::bill(&[Unit::OutputTokens]);
        bill.head(200, &headers(SSE));
        let (upstream, body) = endless();
        let mut body = Box::pin(http_body_util::combinators::UnsyncBoxBody::new(super::super::AnswerBody::metered(
            MeteredBody::new(body, bill, None, &places),
        )));
        upstream.send(Bytes::from_static(b": ping\n\n")).unwrap();
        body.frame().await.unwrap().unwrap();
        drop(body);
        assert_eq!(places.free_places(), 0);
        let _ = upstream.send(Bytes::from_static(b"data: {\"usage\":{\"completion_tokens\":2}}\n\n"));
        drop(upstream);
        while !booth.is_at_rest() {
            tokio::task::yield_now().await;
        }
        assert_eq!(booth.charged(), expected);
        while places.free_places() < free {
            tokio::task::yield_now().await;
        }
    }
}

#[test]
fn counts_in_headers_are_digits_and_nothing_else() {
    for (text, expected) in [
        ("0", Some(0)),
        (" 12\t", Some(12)),
        ("007", Some(7)),
        ("1000000000001", Some(MAX_COUNT)),
        ("99999999999999999999999999", Some(MAX_COUNT)),
        ("", None),
        (" ", None),
        ("-1", None),
        ("+1", None),
        ("1.0", None),
        ("1 2", None),
        ("0x1", None),
        ("many", None),
    ] {
        assert_eq!(whole_number(text.as_bytes()), expected, "{text:?}");
    }
}

#[test]
fn a_report_in_trailers_is_the_last_word() {
    let (_booth, mut bill, _) = Booth::bill(&[Unit::Reported("x-pages".into())]);
    let said = |bill: &Bill| bill.measured(End::Complete).reported.first().map(|(_, count)| *count);
    bill.head(200, &headers(&[("x-pages", "4"), ("x-pages", "5")]));
    assert_eq!(said(&bill), Some(5));
    bill.hear(&headers(&[("x-lines", "9")]));
    assert_eq!(said(&bill), Some(5));
    bill.hear(&headers(&[("x-pages", "1")]));
    assert_eq!(said(&bill), Some(1));
    bill.hear(&headers(&[("x-pages", "?")]));
    assert_eq!(said(&bill), None);
}
