//! gRPC through the proxy: a real client, a real server, paid by voucher.
//!
//! The messages and the service are written by hand, as a generator would write them.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "in a test a panic is the report")]

#[path = "support/nobody.rs"]
mod nobody;
#[path = "support/payer.rs"]
mod payer;
#[path = "support/stand.rs"]
mod stand;

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::{Stream, StreamExt as _, stream};
use http::uri::PathAndQuery;
use peaje::gate::Way;
use peaje::pricing::{Tariff, Unit};
use peaje::protocol::x402::{self, PAYMENT_RESPONSE};
use peaje::proxy::UpstreamSettings;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tonic::body::Body;
use tonic::client::Grpc as Client;
use tonic::codegen::{BoxFuture, Service, StdError, http};
use tonic::metadata::MetadataMap;
use tonic::server::{
    ClientStreamingService, Grpc as Server, NamedService, ServerStreamingService, StreamingService, UnaryService,
};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use nobody::nobody;
use stand::{PATIENCE, Setup, Stand, tariff, until, upstream_of};

/// What is said, in both directions.
#[derive(Clone, PartialEq, prost::Message)]
struct Say {
    #[prost(string, tag = "1")]
    text: String,
    #[prost(uint32, tag = "2")]
    times: u32,
}

fn say(text: &str, times: u32) -> Say {
    Say { text: text.to_owned(), times }
}

// ---- the server

/// The metadata of a call that says what the server is to report of its cost.
const COSTS: &str = "x-costs";

type Answers = Pin<Box<dyn Stream<Item = Result<Say, Status>> + Send>>;

#[derive(Clone, Default)]
struct Echo {
    /// Calls that are being answered.
    open: Arc<AtomicUsize>,
    calls: Arc<AtomicUsize>,
}

impl NamedService for Echo {
    const NAME: &'static str = "test.Echo";
}

/// Counts a call for as long as its answer lasts.
struct Open(Arc<AtomicUsize>);

impl Open {
    fn of(echo: &Echo) -> Self {
        echo.open.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(&echo.open))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// `Once`: one message, one answer. It fails if it is told to, and says what it saw of the call.
impl UnaryService<Say> for Echo {
    type Response = Say;
    type Future = Ready<Result<Response<Say>, Status>>;

    fn call(&mut self, request: Request<Say>) -> Self::Future {
        let metadata = request.metadata().clone();
        let seen = |name: &str| metadata.get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
        ready(if request.get_ref().text == "fail" {
            let mut status =
                Status::with_details(Code::NotFound, "there is no such thing", b"\x01\x02".to_vec().into());
            status.metadata_mut().insert("x-more", "why".parse().unwrap());
            Err(status)
        } else {
            assert_eq!(seen("te"), "trailers");
            assert_eq!(seen("payment-signature"), "");
            let mut answer = Response::new(request.into_inner());
            answer.metadata_mut().insert("x-payer", seen("x-peaje-payer").parse().unwrap());
            answer.metadata_mut().insert("x-deadline", seen("grpc-timeout").parse().unwrap());
            Ok(answer)
        })
    }
}

/// `Many`: one message, as many answers, and then an error if it is told to. For ever where it is zero. What its call has in
/// [`COSTS`] it reports of itself in its trailers.
impl ServerStreamingService<Say> for Echo {
    type Response = Say;
    type ResponseStream = Answers;
    type Future = Ready<Result<Response<Answers>, Status>>;

    fn call(&mut self, request: Request<Say>) -> Self::Future {
        let costs = request.metadata().get(COSTS).cloned();
        // Servers of gRPC insist on that, whatever the call costs.
        assert_eq!(request.metadata().get("te").unwrap(), "trailers");
        let Say { text, times } = request.into_inner();
        if text == "refuse" {
            return ready(Err(Status::not_found("there is no such thing")));
        }
        let open = Open::of(self);
        let end = (text == "fail").then(|| Status::new(Code::DataLoss, "half of it is gone"));
        let end = match (end, costs) {
            (end, None) => end.map(Err),
            // A status of success is the end of a stream too, and has the trailers.
            (end, Some(costs)) => {
                let mut end = end.unwrap_or_else(|| Status::new(Code::Ok, ""));
                end.metadata_mut().insert("settlement-overrides", costs);
                end.metadata_mut().insert("x-other", "kept".parse().unwrap());
                Some(Err(end))
            }
        };
        let count = if times == 0 { usize::MAX } else { usize::try_from(times).unwrap() };
        let answers = stream::iter(0..count).then(move |n| {
            let (text, _open) = (text.clone(), &open);
            async move {
                tokio::time::sleep(Duration::from_millis(u64::from(times == 0))).await;
                Ok(say(&text, u32::try_from(n).unwrap()))
            }
        });
        // The closure above owns the guard, and is dropped with the stream.
        ready(Ok(Response::new(Box::pin(answers.chain(stream::iter(end))))))
    }
}

/// `Sum`: many messages, one answer.
impl ClientStreamingService<Say> for Echo {
    type Response = Say;
    type Future = BoxFuture<Response<Say>, Status>;

    fn call(&mut self, request: Request<Streaming<Say>>) -> Self::Future {
        Box::pin(async move {
            let mut messages = request.into_inner();
            let mut sum = say("", 0);
            while let Some(message) = messages.message().await? {
                sum.text.push_str(&message.text);
                sum.times += message.times;
            }
            Ok(Response::new(sum))
        })
    }
}

/// `Chat`: every message is answered as it comes.
struct Chat(Echo);

impl StreamingService<Say> for Chat {
    type Response = Say;
    type ResponseStream = Answers;
    type Future = Ready<Result<Response<Answers>, Status>>;

    fn call(&mut self, request: Request<Streaming<Say>>) -> Self::Future {
        let open = Open::of(&self.0);
        let answers = request.into_inner().map(move |message| {
            let _open = &open;
            message
        });
        ready(Ok(Response::new(Box::pin(answers))))
    }
}

impl Service<http::Request<Body>> for Echo {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let echo = self.clone();
        echo.calls.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move {
            let mut server = Server::new(ProstCodec::<Say, Say>::default());
            Ok(match request.uri().path() {
                "/test.Echo/Once" => server.unary(echo, request).await,
                "/test.Echo/Many" => server.server_streaming(echo, request).await,
                "/test.Echo/Sum" => server.client_streaming(echo, request).await,
                "/test.Echo/Chat" => server.streaming(Chat(echo), request).await,
                _ => Status::unimplemented("there is no such method").into_http(),
            })
        })
    }
}

async fn serve() -> (SocketAddr, Echo) {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let echo = Echo::default();
    let server = tonic::transport::Server::builder().add_service(echo.clone());
    tokio::spawn(server.serve_with_incoming(TcpIncoming::from(socket)));
    (address, echo)
}

// ---- the client

/// A proxy before that server, and a client of it.
async fn shop() -> (Stand, Client<Channel>, Echo) {
    shop_with(|_| ()).await
}

async fn shop_with(change: impl FnOnce(&mut Setup)) -> (Stand, Client<Channel>, Echo) {
    let (address, echo) = serve().await;
    let mut setup = Setup::new(UpstreamSettings { http2: true, ..upstream_of(&[address]) });
    change(&mut setup);
    setup.paid.push(("/test.Echo/*", Way::default()));
    let stand = setup.open().await;
    let channel = Endpoint::from_shared(stand.url("")).unwrap().timeout(PATIENCE).connect().await.unwrap();
    (stand, Client::new(channel), echo)
}

fn path(method: &str) -> PathAndQuery {
    format!("/test.Echo/{method}").parse().unwrap()
}

fn codec() -> ProstCodec<Say, Say> {
    ProstCodec::default()
}

impl Stand {
    /// A call that pays.
    fn paid<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("payment-signature", self.payment().parse().unwrap());
        request
    }
}

async fn once(client: &mut Client<Channel>, request: Request<Say>) -> Result<Response<Say>, Status> {
    client.ready().await.map_err(|error| Status::unknown(StdError::from(error).to_string()))?;
    client.unary(request, path("Once"), codec()).await
}

#[tokio::test]
async fn a_paid_call_is_answered_and_charged_once() {
    let (stand, mut client, _) = shop().await;
    for n in 1..=3 {
        let mut request = stand.paid(say("hello", n));
        request.set_timeout(PATIENCE);
        let answer = once(&mut client, request).await.unwrap();
        assert_eq!(answer.get_ref(), &say("hello", n));
        assert!(answer.metadata().contains_key("payment-response"));
        assert!(answer.metadata().get("x-payer").unwrap().to_str().unwrap().starts_with("0x"));
        assert!(answer.metadata().get("x-deadline").unwrap().to_str().unwrap().ends_with('u'), "deadlines go through");
        assert_eq!(stand.charges(), u128::from(n));
    }
}

#[tokio::test]
async fn an_unpaid_call_fails_with_the_quote_in_its_metadata_and_reaches_nobody() {
    let (stand, mut client, echo) = shop().await;
    let status = once(&mut client, Request::new(say("hello", 1))).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("payment required"), "{status:?}");
    assert!(status.metadata().contains_key("payment-required"), "{status:?}");
    assert_eq!((echo.calls.load(Ordering::SeqCst), stand.charges()), (0, 0));
}

#[tokio::test]
async fn a_call_that_fails_says_so_in_its_own_words_and_costs_nothing() {
    let (stand, mut client, _) = shop().await;
    let status = once(&mut client, stand.paid(say("fail", 1))).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::NotFound, "there is no such thing"));
    assert_eq!(
        (status.details(), status.metadata().get("x-more").unwrap().to_str().unwrap()),
        (&b"\x01\x02"[..], "why")
    );
    assert_eq!(stand.charges(), 0);
    // The same voucher is good again.
    once(&mut client, stand.paid(say("hello", 1))).await.unwrap();
    assert_eq!(stand.charges(), 1);
}

#[tokio::test]
async fn many_answers_come_one_by_one_and_an_error_after_them_too() {
    let (stand, mut client, echo) = shop().await;
    client.ready().await.unwrap();
    let answer = client.server_streaming(stand.paid(say("again", 500)), path("Many"), codec()).await.unwrap();
    let answers: Vec<Result<Say, Status>> = answer.into_inner().collect().await;
    assert_eq!(answers.len(), 500);
    for (n, answer) in answers.into_iter().enumerate() {
        assert_eq!(answer.unwrap(), say("again", u32::try_from(n).unwrap()));
    }
    client.ready().await.unwrap();
    let answer = client.server_streaming(stand.paid(say("fail", 2)), path("Many"), codec()).await.unwrap();
    let mut answers: Vec<Result<Say, Status>> = answer.into_inner().collect().await;
    let status = answers.pop().unwrap().unwrap_err();
    assert_eq!((answers.len(), status.code(), status.message()), (2, Code::DataLoss, "half of it is gone"));
    // Its head had left as paid.
    assert_eq!(stand.charges(), 2);
    until(|| echo.open.load(Ordering::SeqCst) == 0).await;
}

#[tokio::test]
async fn many_messages_have_one_answer() {
    let (stand, mut client, _) = shop().await;
    let messages = stream::iter(0..1_000).map(|n| say("x", n));
    client.ready().await.unwrap();
    let answer = client.client_streaming(stand.paid(messages), path("Sum"), codec()).await.unwrap();
    assert_eq!(answer.into_inner(), say(&"x".repeat(1_000), 499_500));
    assert_eq!(stand.charges(), 1);
}

#[tokio::test]
async fn both_sides_talk_at_once_and_either_may_be_silent() {
    // Neither the time for an answer nor that for a request's body ends a call that has begun.
    let short = Duration::from_secs(3);
    let (stand, mut client, echo) = shop_with(|setup| {
        setup.upstream.response_timeout = short;
        setup.bounds.body_time = short;
    })
    .await;
    let (tell, told) = mpsc::unbounded_channel();
    let messages = stream::unfold(told, |mut told| async move { Some((told.recv().await?, told)) });
    client.ready().await.unwrap();
    let answer = client.streaming(stand.paid(messages), path("Chat"), codec()).await.unwrap();
    let mut answers = answer.into_inner();
    for n in 0..20 {
        tell.send(say("ping", n)).unwrap();
        let answer: Say = tokio::time::timeout(PATIENCE, answers.message()).await.unwrap().unwrap().unwrap();
        assert_eq!(answer, say("ping", n));
        if n == 10 {
            tokio::time::sleep(2 * short).await;
        }
    }
    drop(tell);
    assert!(answers.message().await.unwrap().is_none());
    assert_eq!(stand.charges(), 1);
    until(|| echo.open.load(Ordering::SeqCst) == 0).await;
}

#[tokio::test]
async fn a_client_that_cancels_ends_the_call_at_the_server() {
    let (stand, mut client, echo) = shop().await;
    client.ready().await.unwrap();
    let answer = client.server_streaming(stand.paid(say("for ever", 0)), path("Many"), codec()).await.unwrap();
    let mut answers: Streaming<Say> = answer.into_inner();
    assert!(answers.message().await.unwrap().is_some());
    assert_eq!(echo.open.load(Ordering::SeqCst), 1);
    drop(answers);
    until(|| echo.open.load(Ordering::SeqCst) == 0).await;
    // The connection to the server is well.
    once(&mut client, stand.paid(say("hello", 1))).await.unwrap();
    assert_eq!(stand.charges(), 2);
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unavailable_and_costs_nothing() {
    let (_held, nobody) = nobody();
    let urls = vec![format!("http://{nobody}").parse().unwrap()];
    let (stand, mut client, _) = shop_with(|setup| setup.upstream.urls = urls).await;
    let status = once(&mut client, stand.paid(say("hello", 1))).await.unwrap_err();
    assert_eq!((status.code(), stand.charges()), (Code::Unavailable, 0));
}

#[tokio::test]
async fn a_method_that_is_not_there_costs_nothing() {
    let (stand, mut client, _) = shop().await;
    client.ready().await.unwrap();
    let asked: Result<Response<Say>, _> = client.unary(stand.paid(say("hello", 1)), path("None"), codec()).await;
    assert_eq!((asked.unwrap_err().code(), stand.charges()), (Code::Unimplemented, 0));
}

// ---- calls that cost what they use

/// The most that any of them costs, atomic units.
const MOST: u128 = 1_000_000;

/// A proxy whose calls cost this.
async fn metered(tariff: Tariff) -> (Stand, Client<Channel>, Echo) {
    shop_with(|setup| {
        // Before the route of all methods, which is for others.
        setup.metered.push(("/test.Echo/Many", tariff, Way::default()));
    })
    .await
}

/// What a stream was, from its first message to its trailers.
struct Streamed {
    messages: Vec<Say>,
    end: Option<Status>,
    /// Without those of gRPC itself.
    trailers: MetadataMap,
}

impl Streamed {
    /// What its receipt says that it cost.
    fn receipt(&self) -> u128 {
        let receipt = self.trailers.get(PAYMENT_RESPONSE).unwrap_or_else(|| panic!("{:?}", self.trailers));
        let receipt: Value = x402::decode(receipt.as_bytes()).unwrap();
        receipt["extra"]["chargedAmount"].as_str().unwrap().parse().unwrap()
    }

    /// The bytes of its messages on the wire: each has a head of five.
    fn bytes(&self) -> u128 {
        let each = |message: &Say| 5 + prost::Message::encoded_len(message);
        u128::try_from(self.messages.iter().map(each).sum::<usize>()).unwrap()
    }
}

impl Stand {
    fn metered(&self, message: Say, costs: Option<&str>) -> Request<Say> {
        let mut request = Request::new(message);
        let payment = self.payment_for(&http::Method::POST, "/test.Echo/Many");
        request.metadata_mut().insert("payment-signature", payment.parse().unwrap());
        if let Some(costs) = costs {
            request.metadata_mut().insert(COSTS, costs.parse().unwrap());
        }
        request
    }

    async fn stream(&self, client: &mut Client<Channel>, message: Say, costs: Option<&str>) -> Streamed {
        client.ready().await.unwrap();
        let answer = client.server_streaming(self.metered(message, costs), path("Many"), codec()).await.unwrap();
        let mut answers: Streaming<Say> = answer.into_inner();
        let (mut messages, mut end) = (Vec::new(), None);
        loop {
            match tokio::time::timeout(PATIENCE, answers.message()).await.expect("it goes on") {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(status) => {
                    end = Some(status);
                    break;
                }
            }
        }
        let trailers = match &end {
            Some(status) => status.metadata().clone(),
            None => answers.trailers().await.unwrap().unwrap_or_default(),
        };
        Streamed { messages, end, trailers }
    }
}

#[tokio::test]
async fn a_metered_stream_is_charged_what_its_trailer_says_and_its_receipt_is_a_trailer() {
    let (stand, mut client, _) = metered(tariff(Unit::ResponseBytes, 3, MOST)).await;
    let mut charged = 0;
    for (costs, expected) in [
        (r#"{"amount":"1234"}"#, 1_234),
        (r#"{"amount":"50%"}"#, MOST / 2),
        (r#"{"amount":"0"}"#, 0),
        (r#"{"amount":"1000000"}"#, MOST),
        // Never more than was quoted; and the quote, where it cannot be read.
        (r#"{"amount":"1000001"}"#, MOST),
        ("as much as it was", MOST),
    ] {
        let streamed = stand.stream(&mut client, say("again", 100), Some(costs)).await;
        assert!(streamed.end.is_none(), "{costs}: {:?}", streamed.end);
        let texts: Vec<_> = (0..100).map(|n| say("again", n)).collect();
        assert_eq!(streamed.messages, texts, "{costs}");
        charged += expected;
        assert_eq!((streamed.receipt(), stand.charged()), (expected, charged), "{costs}");
        assert_eq!(streamed.trailers.get("x-other").unwrap(), "kept", "{costs}");
        assert!(!streamed.trailers.contains_key("settlement-overrides"), "{costs}");
    }
}

#[tokio::test]
async fn a_metered_stream_whose_trailer_says_nothing_costs_its_bytes() {
    let (stand, mut client, echo) = metered(tariff(Unit::ResponseBytes, 3, MOST)).await;
    let streamed = stand.stream(&mut client, say("again", 300), None).await;
    assert_eq!((streamed.messages.len(), streamed.end.is_none()), (300, true));
    assert_eq!((streamed.receipt(), stand.charged()), (3 * streamed.bytes(), 3 * streamed.bytes()));
    until(|| echo.open.load(Ordering::SeqCst) == 0).await;
}

#[tokio::test]
async fn a_count_that_a_trailer_does_not_report_costs_the_most() {
    let (stand, mut client, _) = metered(tariff(Unit::Reported("x-units".into()), 3, MOST)).await;
    let streamed = stand.stream(&mut client, say("again", 3), None).await;
    assert_eq!((streamed.messages.len(), streamed.receipt(), stand.charged()), (3, MOST, MOST));
    // One that says what it costs needs no count.
    let streamed = stand.stream(&mut client, say("again", 3), Some(r#"{"amount":"7"}"#)).await;
    assert_eq!((streamed.receipt(), stand.charged()), (7, MOST + 7));
}

#[tokio::test]
async fn a_metered_stream_that_ends_in_an_error_keeps_its_words_and_costs_what_its_trailer_says() {
    let (stand, mut client, _) = metered(tariff(Unit::ResponseBytes, 3, MOST)).await;
    let streamed = stand.stream(&mut client, say("fail", 2), Some(r#"{"amount":"21"}"#)).await;
    let status = streamed.end.as_ref().unwrap();
    assert_eq!((status.code(), status.message()), (Code::DataLoss, "half of it is gone"));
    assert_eq!((streamed.messages.len(), streamed.receipt(), stand.charged()), (2, 21, 21));
}

#[tokio::test]
async fn a_metered_call_that_fails_at_once_costs_nothing() {
    let (stand, mut client, _) = metered(tariff(Unit::ResponseBytes, 3, MOST)).await;
    client.ready().await.unwrap();
    let request = stand.metered(say("refuse", 1), None);
    let answer: Result<Response<Streaming<Say>>, _> = client.server_streaming(request, path("Many"), codec()).await;
    let status = answer.err().unwrap();
    assert_eq!((status.code(), stand.charged()), (Code::NotFound, 0));
    // The same voucher is good again.
    let streamed = stand.stream(&mut client, say("again", 1), Some(r#"{"amount":"5"}"#)).await;
    assert_eq!((streamed.receipt(), stand.charged()), (5, 5));
}

#[tokio::test]
async fn a_client_that_cancels_a_metered_stream_pays_for_what_it_had() {
    let (stand, mut client, echo) = metered(tariff(Unit::ResponseBytes, 3, MOST)).await;
    client.ready().await.unwrap();
    let request = stand.metered(say("for ever", 0), None);
    let answer = client.server_streaming(request, path("Many"), codec()).await.unwrap();
    let mut answers: Streaming<Say> = answer.into_inner();
    let mut had = Streamed { messages: Vec::new(), end: None, trailers: MetadataMap::new() };
    for _ in 0..20 {
        had.messages.push(answers.message().await.unwrap().unwrap());
    }
    assert_eq!(stand.charged(), 0, "it goes on");
    drop(answers);
    until(|| stand.charged() > 0).await;
    until(|| echo.open.load(Ordering::SeqCst) == 0).await;
    let charged = stand.charged();
    assert!(3 * had.bytes() <= charged && charged < MOST && charged % 3 == 0, "{charged}");
}
