//! A proxy between real sockets: an API that answers what a test tells it to, a payer with a channel, and clients that see
//! every frame.
#![allow(dead_code, reason = "a toolbox: not every test needs every tool")]

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, Version};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use peaje::gate::path::PathPattern;
use peaje::gate::policy::{Asked, Policy, Price, Route, Verdict};
use peaje::gate::{Accounts, Desk, Gate};
use peaje::ledger::{View, Withdrawal};
use peaje::pricing::{Rate, Tariff, Tier, Unit};
use peaje::protocol::Amount;
use peaje::protocol::x402::{self, PAYMENT_RESPONSE, PAYMENT_SIGNATURE};
use peaje::proxy::{Bounds, Cors, Listener, Upstream, UpstreamSettings};
use peaje::store::{ChannelRow, Cursor, Entry, LedgerStore, StoreError, Transaction};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::payer::{self, usual_terms};

/// The most a request costs, on every route here; atomic units.
pub(crate) const MOST: u128 = 1_000_000;
/// How long any one step may take before the test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// How long a proxy that stops waits for what does not end, unless said.
const DRAIN: Duration = Duration::from_millis(300);

pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("this should not take so long")
}

/// Waits until a condition holds that is about to.
pub(crate) async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn rate(unit: Unit, price: u128, per: u64) -> Rate {
    Rate { unit, tiers: vec![Tier { up_to: None, price: Amount::new(price), per }] }
}

/// So much for a thousand bytes, a second, an event, a page that is reported, and tokens at four prices.
pub(crate) fn routes() -> Vec<Route> {
    let metered = |path: &str, base, rates| {
        let tariff = Tariff { base: Amount::new(base), rates, most: Amount::new(MOST) };
        Route::new(PathPattern::parse(path).unwrap(), Price::Metered(Arc::new(tariff)))
    };
    let tokens = vec![
        rate(Unit::InputTokens, 3, 1),
        rate(Unit::CachedInputTokens, 1, 2),
        rate(Unit::CacheWriteTokens, 4, 1),
        rate(Unit::OutputTokens, 15, 1),
    ];
    vec![
        metered("/tokens", 7, tokens),
        metered("/bytes", 0, vec![rate(Unit::ResponseBytes, 2, 1)]),
        metered("/upload", 0, vec![rate(Unit::RequestBytes, 3, 1)]),
        metered("/seconds", 0, vec![rate(Unit::Milliseconds, 1, 1)]),
        metered("/events", 0, vec![rate(Unit::Events, 10, 1)]),
        metered("/pages", 5, vec![rate(Unit::Reported("x-pages".into()), 100, 1)]),
        Route::new(PathPattern::parse("/fixed").unwrap(), Price::Fixed(Amount::new(MOST))),
    ]
}

/// What `/tokens` charges.
pub(crate) fn price_of_tokens(input: u128, cached: u128, written: u128, output: u128) -> u128 {
    7 + 3 * input + cached.div_ceil(2) + 4 * written + 15 * output
}

// ---- the API that is sold

pub(crate) type ApiBody = UnsyncBoxBody<Bytes, io::Error>;
pub(crate) type Frames = mpsc::Sender<Result<Frame<Bytes>, io::Error>>;

/// An upstream that gives the answers it was given, in their order.
pub(crate) struct Api {
    pub(crate) address: SocketAddr,
    answers: Arc<Mutex<VecDeque<Response<ApiBody>>>>,
    seen: Arc<Mutex<Vec<HeaderMap>>>,
}

impl Api {
    pub(crate) async fn start() -> Self {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let answers = Arc::new(Mutex::new(VecDeque::<Response<ApiBody>>::new()));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let api = Self { address, answers: Arc::clone(&answers), seen: Arc::clone(&seen) };
        tokio::spawn(async move {
            while let Ok((stream, _)) = socket.accept().await {
                stream.set_nodelay(true).unwrap();
                let (answers, seen) = (Arc::clone(&answers), Arc::clone(&seen));
                let serve = service_fn(move |request: Request<Incoming>| {
                    let (answers, seen) = (Arc::clone(&answers), Arc::clone(&seen));
                    async move {
                        let (head, body) = request.into_parts();
                        let _ = body.collect().await;
                        seen.lock().unwrap().push(head.headers);
                        loop {
                            let answer = answers.lock().unwrap().pop_front();
                            if let Some(answer) = answer {
                                return Ok::<_, Infallible>(answer);
                            }
                            // A request nobody answers yet, or ever.
                            tokio::time::sleep(Duration::from_millis(5)).await;
                        }
                    }
                });
                tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), serve));
            }
        });
        api
    }

    /// The next answer.
    pub(crate) fn next(&self, answer: Response<ApiBody>) {
        self.answers.lock().unwrap().push_back(answer);
    }

    /// The next answer, with a body that is written while it is read; one that is dropped is whole.
    pub(crate) fn next_live(&self, headers: &[(&'static str, &str)]) -> Frames {
        let (frames, answer) = live(headers);
        self.next(answer);
        frames
    }

    /// The heads of the requests that have come whole, with their bodies.
    pub(crate) fn seen(&self) -> Vec<HeaderMap> {
        self.seen.lock().unwrap().clone()
    }
}

/// An answer with a body that is written while it is read.
pub(crate) fn live(headers: &[(&'static str, &str)]) -> (Frames, Response<ApiBody>) {
    let (frames, body) = mpsc::channel(1);
    let body = futures_util::stream::unfold(body, |mut body: mpsc::Receiver<_>| async move {
        body.recv().await.map(|frame| (frame, body))
    });
    (frames, with_headers(StreamBody::new(body).boxed_unsync(), headers))
}

/// An answer with a body of known length.
pub(crate) fn whole(headers: &[(&'static str, &str)], body: impl Into<Bytes>) -> Response<ApiBody> {
    with_headers(Full::new(body.into()).map_err(|never| match never {}).boxed_unsync(), headers)
}

fn with_headers(body: ApiBody, headers: &[(&'static str, &str)]) -> Response<ApiBody> {
    let mut answer = Response::new(body);
    for (name, value) in headers {
        answer.headers_mut().append(*name, value.parse().unwrap());
    }
    answer
}

pub(crate) async fn send(frames: &Frames, data: impl Into<Bytes>) {
    frames.send(Ok(Frame::data(data.into()))).await.expect("the body is wanted");
}

pub(crate) async fn send_trailers(frames: Frames, trailers: &[(&'static str, &str)]) {
    let mut map = HeaderMap::new();
    trailers.iter().for_each(|(name, value)| drop(map.insert(*name, value.parse().unwrap())));
    frames.send(Ok(Frame::trailers(map))).await.expect("the body is wanted");
}

// ---- the proxy

pub(crate) struct Site {
    pub(crate) address: SocketAddr,
    pub(crate) gate: Gate,
    pub(crate) api: Api,
    pub(crate) payer: payer::Payer,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Site {
    pub(crate) async fn open() -> Self {
        Self::with(Accounts::in_memory()).await
    }

    pub(crate) async fn with(accounts: Accounts) -> Self {
        Self::of(policy(), accounts, DRAIN).await
    }

    /// With this price list.
    pub(crate) async fn selling(policy: Policy) -> Self {
        Self::stopping_within(DRAIN, policy).await
    }

    /// The same, with so much time for what is in progress when it stops.
    pub(crate) async fn stopping_within(drain: Duration, policy: Policy) -> Self {
        Self::of(policy, Accounts::in_memory(), drain).await
    }

    async fn of(policy: Policy, accounts: Accounts, drain: Duration) -> Self {
        let api = Api::start().await;
        let terms = policy.terms().clone();
        let gate = Gate::with_accounts(policy, Desk::closed(), accounts);
        let upstream = Upstream::new(&UpstreamSettings {
            connect_timeout: PATIENCE,
            response_timeout: PATIENCE,
            ..UpstreamSettings::of(format!("http://{}", api.address).parse().unwrap())
        })
        .unwrap();
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.address().unwrap();
        let stop = CancellationToken::new();
        let accounts = gate.accounts().clone();
        let stack = peaje::proxy::stack(&gate, upstream, Cors::Off, Bounds::default());
        let task = tokio::spawn(listener.serve(stack, stop.clone(), drain, move || accounts.abandon()));
        let payer = payer::Payer::new(7, &terms, MOST);
        fund(&gate, &payer);
        Self { address, gate, api, payer, stop, task }
    }

    /// From now on this one pays, on a channel of its own.
    pub(crate) fn is_paid_by(&mut self, number: u8) {
        self.payer = payer::Payer::new(number, self.gate.policy().terms(), MOST);
        self.fund();
    }

    /// The payer's channel is on chain, if it was not.
    pub(crate) fn fund(&self) {
        if self.gate.accounts().statement(&self.payer.id()).is_none() {
            fund(&self.gate, &self.payer);
        }
    }

    pub(crate) fn charged(&self) -> u128 {
        self.gate.accounts().statement(&self.payer.id()).unwrap().charged.units()
    }

    /// Waits until a charge is in the books; how much it is.
    pub(crate) async fn charged_soon(&self) -> u128 {
        eventually("it is charged", || self.charged() > 0).await;
        self.charged()
    }

    /// The payment header of the next request for this path.
    pub(crate) fn header(&self, path: &str) -> String {
        next_payment(&self.gate, &self.payer, path)
    }

    pub(crate) fn request(&self, path: &str) -> http::request::Builder {
        Request::post(path).header("host", "api.example").header(PAYMENT_SIGNATURE, self.header(path))
    }

    /// Sends a paid request over HTTP/1.1, on a connection of its own.
    pub(crate) async fn ask(&self, path: &str) -> Answer {
        self.ask_with(self.request(path)).await
    }

    /// The same where the client takes trailers.
    pub(crate) async fn ask_taking_trailers(&self, path: &str) -> Answer {
        self.ask_with(self.request(path).header("te", "trailers").header("connection", "te")).await
    }

    pub(crate) async fn ask_with(&self, request: http::request::Builder) -> Answer {
        self.ask_of(request, Bytes::new()).await
    }

    pub(crate) async fn ask_of(&self, request: http::request::Builder, body: impl Into<Bytes>) -> Answer {
        self.try_ask(request, body).await.unwrap()
    }

    pub(crate) async fn try_ask(
        &self,
        request: http::request::Builder,
        body: impl Into<Bytes>,
    ) -> Result<Answer, hyper::Error> {
        ask_at(self.address, request, body.into()).await
    }

    /// Asks the API itself for the same, past the proxy.
    pub(crate) async fn ask_the_api(&self, path: &str) -> Answer {
        let request = Request::post(path).header("host", "api.example");
        ask_at(self.api.address, request, Bytes::new()).await.unwrap()
    }

    /// Sends a paid request over HTTP/2.
    pub(crate) async fn ask_h2(&self, path: &str) -> Answer {
        let stream = soon(TcpStream::connect(self.address)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        let connection = tokio::spawn(async move { drop(connection.await) });
        let request = Request::post(format!("http://api.example{path}")).header(PAYMENT_SIGNATURE, self.header(path));
        let request = request.version(Version::HTTP_2).body(Full::<Bytes>::default()).unwrap();
        let response = soon(sender.send_request(request)).await.unwrap();
        Answer::of(response, connection)
    }

    /// Begins to stop, as an operator does.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }

    /// Stops, and waits for that.
    pub(crate) async fn stopped(&mut self) {
        self.stop.cancel();
        soon(&mut self.task).await.unwrap();
    }
}

async fn ask_at(address: SocketAddr, request: http::request::Builder, body: Bytes) -> Result<Answer, hyper::Error> {
    let stream = soon(TcpStream::connect(address)).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(async move { drop(connection.await) });
    let response = soon(sender.send_request(request.body(Full::new(body)).unwrap())).await?;
    Ok(Answer::of(response, connection))
}

/// A payer's channel is on chain, with more than any test spends.
fn fund(gate: &Gate, payer: &payer::Payer) {
    let view = View { block: 1, balance: Amount::new(1_000 * MOST), ..View::default() };
    gate.accounts().observe(payer.id(), &payer.config, view).unwrap();
}

/// The payer announced a withdrawal so long before it could be finished now, seconds.
pub(crate) fn withdraws(gate: &Gate, payer: &payer::Payer, finished_in_s: u64) {
    let initiated_at = payer::now_s() + finished_in_s - payer.config.withdraw_delay;
    let withdrawal = Some(Withdrawal { amount: Amount::new(MOST), initiated_at });
    let view = View { block: 2, balance: Amount::new(1_000 * MOST), withdrawal, ..View::default() };
    gate.accounts().observe(payer.id(), &payer.config, view).unwrap();
}

/// The payment header of a payer's next request for this path: it answers its offer.
pub(crate) fn next_payment(gate: &Gate, payer: &payer::Payer, path: &str) -> String {
    let (policy, headers) = (gate.policy(), HeaderMap::new());
    let asked = Asked { method: &Method::POST, path, query: None, host: None, headers: &headers, at: payer::now_s() };
    let Verdict::Paid(listing) = policy.judge(&asked) else { panic!("{path} costs nothing") };
    let (offer, price) = (json!(listing.preferred.offer.offer()), listing.preferred.price.units());
    let charged = gate.accounts().statement(&payer.id()).unwrap().charged.units();
    payer::Payer { offer, ..payer.clone() }.voucher(charged + price).header()
}

pub(crate) fn policy() -> Policy {
    Policy::new(usual_terms(), "https://api.example.com", routes()).unwrap()
}

/// An answer, whose body is read by whoever wants it.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    body: Incoming,
    pub(crate) trailers: HeaderMap,
    connection: tokio::task::JoinHandle<()>,
}

impl Answer {
    fn of(response: Response<Incoming>, connection: tokio::task::JoinHandle<()>) -> Self {
        let (head, body) = response.into_parts();
        Self { status: head.status.as_u16(), headers: head.headers, body, trailers: HeaderMap::new(), connection }
    }

    /// The next piece of the body; nothing at its end.
    pub(crate) async fn piece(&mut self) -> Option<Result<Bytes, hyper::Error>> {
        loop {
            match soon(self.body.frame()).await? {
                Ok(frame) => match frame.into_data() {
                    Ok(data) => return Some(Ok(data)),
                    Err(frame) => self.trailers = frame.into_trailers().unwrap_or_default(),
                },
                Err(error) => return Some(Err(error)),
            }
        }
    }

    /// The rest of the body, which has to come to its end.
    pub(crate) async fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        while let Some(piece) = self.piece().await {
            rest.extend_from_slice(&piece.expect("the body is whole"));
        }
        rest
    }

    /// The receipt in the head.
    pub(crate) fn receipt(&self) -> Option<Value> {
        receipt(&self.headers)
    }

    /// The receipt in the trailers.
    pub(crate) fn late_receipt(&self) -> Option<Value> {
        receipt(&self.trailers)
    }

    /// Hangs up.
    pub(crate) fn leave(self) {
        self.connection.abort();
    }
}

fn receipt(headers: &HeaderMap) -> Option<Value> {
    headers.get(PAYMENT_RESPONSE).map(|header| x402::decode(header.as_bytes()).unwrap())
}

/// What a receipt says was charged, and in all.
pub(crate) fn sums(receipt: Option<Value>) -> Option<(u128, u128)> {
    let receipt = receipt?;
    assert_eq!(receipt["success"], true, "{receipt}");
    let units = |pointer: &str| receipt.pointer(pointer).unwrap().as_str().unwrap().parse().unwrap();
    Some((units("/extra/chargedAmount"), units("/extra/channelState/chargedCumulativeAmount")))
}

// ---- books

/// Books whose disk waits, or fails.
#[derive(Clone, Default)]
pub(crate) struct Disk(Arc<(Mutex<(bool, bool)>, Condvar)>);

impl Disk {
    /// From now on commits wait.
    pub(crate) fn stall(&self) {
        self.0.0.lock().unwrap().0 = true;
    }

    /// Commits go on, and fail if they shall.
    pub(crate) fn go_on(&self, fails: bool) {
        *self.0.0.lock().unwrap() = (false, fails);
        self.0.1.notify_all();
    }
}

impl LedgerStore for Disk {
    fn channels(&mut self, _: &mut dyn FnMut(ChannelRow) -> Result<(), StoreError>) -> Result<(), StoreError> {
        Ok(())
    }

    fn unfinished(&mut self) -> Result<Vec<Transaction>, StoreError> {
        Ok(Vec::new())
    }

    fn cursor(&mut self) -> Result<Option<Cursor>, StoreError> {
        Ok(None)
    }

    fn commit(&mut self, _: &[Entry]) -> Result<(), StoreError> {
        let mut state = self.0.0.lock().unwrap();
        while state.0 {
            state = self.0.1.wait(state).unwrap();
        }
        if state.1 { Err(StoreError::Full("no room".into())) } else { Ok(()) }
    }
}
