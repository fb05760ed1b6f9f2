//! What a paid request costs the gate: CPU time of one thread, without sockets, disk or chain.
//!
//! `cargo bench --bench paid_request` prints a table and, as its last line, one JSON object. The machine may be noisy:
//! compare the ratios, which are taken within one run, not the microseconds of two runs.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot run should say so at once")]
#![allow(clippy::print_stdout, reason = "the result")]

#[path = "../tests/support/payer.rs"]
mod payer;

use std::convert::Infallible;
use std::hint::black_box;
use std::time::Instant;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use peaje::gate::path::PathPattern;
use peaje::gate::policy::{Policy, Price, Route, Terms};
use peaje::gate::{Desk, Gate};
use peaje::ledger::View;
use peaje::protocol::x402::{
    self, ChannelState, PAYMENT_SIGNATURE, Payment, Quote, QuoteDetails, Receipt, Resource, VERSION, WrittenOffer,
    WrittenQuote,
};
use peaje::protocol::{Address, Amount, ChannelConfig, Domain, LocalKey, SignedVoucher, Voucher};
use serde_json::{Map, json};
use tower::{Layer as _, Service as _, ServiceExt as _, service_fn};

use payer::usual_terms;

/// Requests in a run; each of the runs is one sample, and the median of them is reported.
const REQUESTS: u128 = 2_000;
const RUNS: usize = 7;
const PRICE: Amount = Amount::new(2_000);

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let bench = Bench::new();
        let free = bench.sample("free pass-through", &bench.requests("/free", None)).await;
        let quote = bench.sample("402 quote", &bench.requests("/paid", None)).await;
        let headers = bench.vouchers();
        let paid = bench.sample("paid by voucher", &bench.requests("/paid", Some(&headers))).await;
        let verify = bench.verify();
        println!("{:<20} {verify:>8.1} us", "of which signature");
        let (paid_vs_verify, paid_vs_free) = (paid / verify, paid / free);
        println!("{:<20} {paid_vs_verify:>8.2} times the signature alone", "paid");
        let [read, receipt, written_quote] = bench.wire(&headers);
        println!("{:<20} {:>8.2} us, {:.2} the plain way", "header read", read.0, read.1);
        println!("{:<20} {:>8.2} us, {:.2} the plain way", "receipt written", receipt.0, receipt.1);
        println!("{:<20} {:>8.2} us, {:.2} the plain way", "quote written", written_quote.0, written_quote.1);
        let [id, digest, checksum] = bench.hashes();
        println!("{:<20} {id:>8.2} us", "channel id");
        println!("{:<20} {digest:>8.2} us", "voucher digest");
        println!("{:<20} {checksum:>8.2} us", "address checksum");
        let line = json!({
            "free_us": free, "quote_us": quote, "paid_us": paid, "verify_us": verify,
            "paid_vs_verify": paid_vs_verify, "paid_vs_free": paid_vs_free,
            "read_us": read.0, "read_vs_plain": read.0 / read.1,
            "receipt_us": receipt.0, "receipt_vs_plain": receipt.0 / receipt.1,
            "written_quote_us": written_quote.0, "written_quote_vs_plain": written_quote.0 / written_quote.1,
            "channel_id_us": id, "digest_us": digest, "checksum_us": checksum,
        });
        println!("{line}");
    });
}

struct Bench {
    gate: Gate,
    terms: Terms,
    key: LocalKey,
    config: ChannelConfig,
}

impl Bench {
    fn new() -> Self {
        let key = LocalKey::from_bytes(&[7; 32]).unwrap();
        let terms = usual_terms();
        let config = terms.channel_of(key.address());
        let route = |path: &str, price| Route::new(PathPattern::parse(path).unwrap(), price);
        let routes = vec![route("/free", Price::Free), route("/paid", Price::Fixed(PRICE))];
        let policy = Policy::new(terms.clone(), "https://api.example.com", routes).unwrap();
        let gate = Gate::new(policy, Desk::closed());
        let view = View { block: 1, balance: Amount::new(u128::MAX / 2), ..View::default() };
        gate.accounts().observe(config.id(&terms.settlement()), &config, view).unwrap();
        Self { gate, terms, key, config }
    }

    /// The payment headers of all runs, signed before the clock starts.
    fn vouchers(&self) -> Vec<String> {
        let domain: Domain = self.terms.settlement();
        let offer = self.terms.offer(PRICE);
        let runs = u128::try_from(RUNS).unwrap();
        (1..=REQUESTS * runs)
            .map(|number| {
                let max_claimable = Amount::new(PRICE.units() * number);
                let voucher = Voucher { channel: self.config.id(&domain), max_claimable }.sign(&domain, &self.key);
                let payload = json!({"type": "voucher", "channelConfig": self.config, "voucher": voucher});
                x402::encode(&json!({"x402Version": 2, "accepted": offer, "payload": payload}))
            })
            .collect()
    }

    fn requests(&self, path: &str, headers: Option<&[String]>) -> Vec<Request<()>> {
        let runs = u128::try_from(RUNS).unwrap();
        let count = usize::try_from(REQUESTS * runs).unwrap();
        (0..count)
            .map(|number| {
                let request = Request::get(path);
                let request = match headers.and_then(|headers| headers.get(number)) {
                    Some(header) => request.header(PAYMENT_SIGNATURE, header),
                    None => request,
                };
                request.body(()).unwrap()
            })
            .collect()
    }

    /// Median microseconds a request.
    async fn sample(&self, name: &str, requests: &[Request<()>]) -> f64 {
        let upstream = service_fn(|request: Request<()>| async move {
            black_box(request);
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"ok"))))
        });
        let mut service = self.gate.layer().layer(upstream);
        let mut samples = Vec::new();
        for run in requests.chunks(requests.len() / RUNS) {
            let run = run.to_vec();
            let count = run.len();
            let begun = Instant::now();
            for request in run {
                let paid = request.headers().contains_key(PAYMENT_SIGNATURE);
                let response = service.ready().await.unwrap().call(request).await.unwrap();
                assert!(!paid || response.status() == StatusCode::OK, "{:?}", response.headers());
                black_box(response);
            }
            samples.push(micros_each(begun, count));
        }
        let median = median(samples);
        println!("{name:<20} {median:>8.1} us");
        median
    }

    /// What the headers take: reading a payment and comparing it with its offer, a receipt, a quote. Each beside the same by
    /// way of `serde`, which knows nothing beforehand. Median microseconds.
    fn wire(&self, headers: &[String]) -> [(f64, f64); 3] {
        let offer = WrittenOffer::new(self.terms.offer(PRICE));
        let first = headers.iter().take(500).map(|header| header.as_bytes());
        let read = each(first.clone(), |header| {
            let payment = Payment::read_for(header, [&offer]).unwrap();
            payment.accepted.answers(offer.offer()).then_some(payment)
        });
        let plain = each(first, |header| {
            let payment = Payment::read(header).unwrap();
            payment.accepted.answers(&self.terms.offer(PRICE)).then_some(payment)
        });

        let states = (1..500).map(|number| ChannelState {
            channel_id: self.config.id(&self.terms.settlement()),
            balance: Amount::new(1_000_000_000),
            total_claimed: Amount::new(1_000 * number),
            withdraw_requested_at: 0,
            refund_nonce: 1,
            charged_cumulative_amount: Amount::new(2_000 * number),
        });
        let states: Vec<_> = states.collect();
        let (network, payer) = (self.terms.network(), self.config.payer);
        let text = payer.text();
        let receipt = each(states.iter(), |state| Receipt::encode_charged(&network, &text, PRICE, state));
        let plain_receipt = each(states.iter(), |state| x402::encode(&Receipt::charged(&network, payer, PRICE, state)));

        let resource = |url: &str| Resource { url: url.to_owned(), description: None, mime_type: None };
        let written = WrittenQuote::new(&resource("https://api.example.com"), &offer, [], &Map::new());
        let (error, path_and_query) = ("Payment required", "/paid?q=1");
        let details = QuoteDetails { error, path_and_query, corrective: None };
        let quote = each(0..500, |_| written.write(details, None));
        let plain_quote = each(0..500, |_| {
            let quote = Quote {
                x402_version: VERSION,
                error: Some(error.to_owned()),
                resource: resource(&format!("https://api.example.com{path_and_query}")),
                accepts: vec![self.terms.offer(PRICE)],
                extensions: Map::new(),
            };
            (x402::encode(&quote), json!(quote).to_string())
        });
        [(read, plain), (receipt, plain_receipt), (quote, plain_quote)]
    }

    /// What the digests of a request take. Median microseconds.
    fn hashes(&self) -> [f64; 3] {
        let domain = self.terms.settlement();
        let channel = self.config.id(&domain);
        let id = each(0..500u64, |delay| ChannelConfig { withdraw_delay: delay, ..self.config }.id(&domain));
        let digest = each(0..500, |units| Voucher { channel, max_claimable: Amount::new(units) }.digest(&domain));
        let checksum = each(0..200, |byte| Address([byte; 20]).text());
        [id, digest, checksum]
    }

    /// Median microseconds to verify a voucher.
    fn verify(&self) -> f64 {
        let domain = self.terms.settlement();
        let sign = |units| {
            let voucher = Voucher { channel: self.config.id(&domain), max_claimable: Amount::new(units) };
            voucher.sign(&domain, &self.key)
        };
        let vouchers: Vec<SignedVoucher> = (1..=REQUESTS).map(sign).collect();
        let run = || {
            let begun = Instant::now();
            for voucher in &vouchers {
                black_box(voucher.verify(&domain, &self.config).unwrap());
            }
            micros_each(begun, vouchers.len())
        };
        median((0..RUNS).map(|_| run()).collect())
    }
}

/// Median microseconds for each of these, over and over.
fn each<T, R>(items: impl Iterator<Item = T> + Clone, work: impl Fn(T) -> R) -> f64 {
    let run = || {
        let begun = Instant::now();
        let mut count = 0;
        for item in items.clone() {
            black_box(work(black_box(item)));
            count += 1;
        }
        micros_each(begun, count)
    };
    median((0..10 * RUNS).map(|_| run()).collect())
}

fn micros_each(begun: Instant, count: usize) -> f64 {
    begun.elapsed().as_secs_f64() * 1e6 / f64::from(u32::try_from(count).unwrap())
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied().unwrap()
}
