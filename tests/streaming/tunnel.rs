//! What goes on as another protocol, and what panics: the gate as a layer, without sockets.

use std::convert::Infallible;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, StreamBody};
use peaje::gate::metered::Metering;
use peaje::gate::{AnswerBody, Desk, Gate};
use peaje::ledger::View;
use peaje::pricing::End;
use peaje::protocol::Amount;
use peaje::protocol::x402::PAYMENT_SIGNATURE;
use tower::{Layer as _, ServiceExt as _, service_fn};

use super::payer::{Payer, usual_terms};
use super::stage::{MOST, next_payment, policy, withdraws};

struct Booth {
    gate: Gate,
    payer: Payer,
}

impl Booth {
    fn open() -> Self {
        let gate = Gate::new(policy(), Desk::closed());
        let payer = Payer::new(7, &usual_terms(), MOST);
        let view = View { block: 1, balance: Amount::new(100 * MOST), ..View::default() };
        gate.accounts().observe(payer.id(), &payer.config, view).unwrap();
        Self { gate, payer }
    }

    fn charged(&self) -> u128 {
        self.gate.accounts().statement(&self.payer.id()).unwrap().charged.units()
    }

    async fn ask<B, F>(
        &self,
        path: &str,
        serve: impl Fn(Request<()>) -> F + Clone + Send + 'static,
    ) -> Response<AnswerBody<B>>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<tower::BoxError>,
        F: Future<Output = Response<B>> + Send + 'static,
    {
        let header = next_payment(&self.gate, &self.payer, path);
        let request = Request::get(path).header(PAYMENT_SIGNATURE, header).body(()).unwrap();
        let service = service_fn(move |request| {
            let answer = serve(request);
            async move { Ok::<_, Infallible>(answer.await) }
        });
        self.gate.layer().layer(service).oneshot(request).await.unwrap()
    }

    /// The handle of a tunnel.
    async fn tunnel(&self, path: &str) -> Option<Metering> {
        let mut response = self.ask(path, |_| async { switched() }).await;
        assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
        response.extensions_mut().remove()
    }
}

fn switched() -> Response<Full<Bytes>> {
    Response::builder().status(StatusCode::SWITCHING_PROTOCOLS).body(Full::default()).unwrap()
}

#[tokio::test]
async fn a_tunnel_is_charged_when_it_ends_and_once() {
    for end in [End::Complete, End::PayerLeft, End::UpstreamFailed, End::Stopped] {
        let booth = Booth::open();
        let metering = booth.tunnel("/bytes").await.unwrap();
        metering.count_down(100);
        metering.count_up(1_000);
        metering.message();
        assert_eq!(booth.charged(), 0);
        metering.clone().finish(end);
        metering.count_down(100);
        metering.finish(end);
        drop(metering);
        assert_eq!(booth.charged(), 200, "{end:?}");
    }
    let booth = Booth::open();
    let metering = booth.tunnel("/upload").await.unwrap();
    metering.count_up(7);
    let other = metering.clone();
    drop(metering);
    assert_eq!(booth.charged(), 0, "somebody still has it");
    drop(other);
    assert_eq!(booth.charged(), 21, "dropped without a word");
    let metering = booth.tunnel("/events").await.unwrap();
    metering.message();
    booth.gate.accounts().abandon();
    drop(metering);
    assert_eq!(booth.charged(), 31, "we stop, and it had that much");
}

#[tokio::test]
async fn a_tunnel_on_a_route_with_a_fixed_price_is_charged_at_the_handshake() {
    let booth = Booth::open();
    assert!(booth.tunnel("/fixed").await.is_none());
    assert_eq!(booth.charged(), MOST);
}

#[tokio::test]
async fn a_tunnel_that_has_cost_the_most_says_so() {
    let booth = Booth::open();
    let metering = booth.tunnel("/bytes").await.unwrap();
    let told = tokio::spawn({
        let metering = metering.clone();
        async move { metering.exhausted().await }
    });
    tokio::task::yield_now().await;
    let half = usize::try_from(MOST / 2).unwrap();
    metering.count_down(half - 1);
    assert!(!metering.spent());
    tokio::task::yield_now().await;
    assert!(!told.is_finished());
    metering.count_down(1);
    assert!(metering.spent());
    tokio::time::timeout(Duration::from_secs(10), told).await.unwrap().unwrap();
    tokio::time::timeout(Duration::from_secs(10), metering.exhausted()).await.unwrap();
    metering.count_down(half);
    metering.finish(End::Complete);
    assert_eq!(booth.charged(), MOST, "and no more than that");
}

#[tokio::test]
async fn a_tunnel_whose_payer_is_about_to_withdraw_says_so() {
    for (path, expected) in [("/bytes", 200), ("/seconds", 1)] {
        let booth = Booth::open();
        let metering = booth.tunnel(path).await.unwrap();
        metering.count_down(100);
        withdraws(&booth.gate, &booth.payer, 400);
        assert!(tokio::time::timeout(Duration::from_millis(50), metering.exhausted()).await.is_err(), "{path}");
        withdraws(&booth.gate, &booth.payer, 200);
        tokio::time::timeout(Duration::from_secs(10), metering.exhausted()).await.unwrap();
        metering.finish(End::Complete);
        assert!(booth.charged() >= expected, "{path}");
    }
}

#[tokio::test]
async fn a_panic_beside_a_metered_answer_costs_nothing() {
    // Of the upstream, before its head.
    let booth = Booth::open();
    let asked = booth.ask("/bytes", |_| async {
        assert!(std::env::args().count() == 0, "on purpose");
        switched()
    });
    assert!(futures_util::FutureExt::catch_unwind(AssertUnwindSafe(asked)).await.is_err());
    assert_eq!(booth.charged(), 0);
    // Of whoever has the body, and of the body itself.
    let endless = || {
        let frames =
            futures_util::stream::repeat_with(|| Ok::<_, Infallible>(http_body::Frame::data(Bytes::from("x"))));
        Response::new(StreamBody::new(frames))
    };
    let mut body = booth.ask("/bytes", move |_| async move { endless() }).await.into_body();
    body.frame().await.unwrap().unwrap();
    let panics = std::panic::catch_unwind(AssertUnwindSafe(move || {
        let _body = body;
        panic!("on purpose");
    }));
    assert!(panics.is_err());
    assert_eq!(booth.charged(), 0);
    // The same without a panic.
    let mut body = booth.ask("/bytes", move |_| async move { endless() }).await.into_body();
    body.frame().await.unwrap().unwrap();
    drop(body);
    assert_eq!(booth.charged(), 2);
}

#[tokio::test]
async fn a_body_that_nobody_asks_for_its_end_is_charged_when_its_last_piece_is_given() {
    let booth = Booth::open();
    let answer = || {
        let frames = futures_util::stream::iter([Ok::<_, Infallible>(http_body::Frame::data(Bytes::from("1234")))]);
        Response::new(StreamBody::new(frames))
    };
    let mut body = booth.ask("/bytes", move |_| async move { answer() }).await.into_body();
    assert!(!http_body::Body::is_end_stream(&body));
    body.frame().await.unwrap().unwrap();
    assert_eq!(booth.charged(), 0, "this body does not know that it was the last");
    drop(body);
    assert_eq!(booth.charged(), 8, "so far is all of it");
}

#[tokio::test]
async fn where_nobody_counts_what_is_passed_on_the_length_of_the_request_counts() {
    let booth = Booth::open();
    let payment = next_payment(&booth.gate, &booth.payer, "/upload");
    let request = Request::post("/upload").header(PAYMENT_SIGNATURE, payment).header("content-length", "12");
    let service = service_fn(|_: Request<()>| async { Ok::<_, Infallible>(Response::new(Full::<Bytes>::default())) });
    booth.gate.layer().layer(service).oneshot(request.body(()).unwrap()).await.unwrap();
    assert_eq!(booth.charged(), 36);
}
