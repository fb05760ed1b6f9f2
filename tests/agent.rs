//! The paying agent against a scripted server: what it sends, what it books, and what it does not believe.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests fail the test")]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use peaje::agent::judge::{CorrectiveFault, OfferFault, QuoteFault, ReceiptFault};
use peaje::agent::{
    Agent, AgentConfig, AgentError, Allowance, Answer, Book, BookError, Budget, ChainChannel, ChainReadError,
    ChainReader, Dollars, Limit, NoChain, PayRequest, Record,
};
use peaje::protocol::deposit::{Authorization, Permission};
use peaje::protocol::x402::{
    Action, ChannelState, Deposit, Order, PAYMENT_REQUIRED, PAYMENT_RESPONSE, PAYMENT_SIGNATURE, Payment, Receipt,
    encode,
};
use peaje::protocol::{Address, Amount, ChannelId, Code, Domain, Hash, LocalKey, SignedVoucher, Voucher};
use serde_json::{Value, json};

const NETWORK: &str = "eip155:84532";
const CHAIN_ID: u64 = 84_532;
const PRICE: u128 = 2_000;
const TX: Hash = Hash([9; 32]);

// ------------------------------------------------------------------------------------------------------- the server

/// One line of a script.
type Play = fn(&Seen) -> Reply;

/// What the server saw of one request.
struct Seen {
    /// Counted from 0.
    number: usize,
    method: Method,
    headers: HeaderMap,
    body: Bytes,
    /// The payment, if there was one; it is well-formed, or the test fails.
    payment: Option<Payment<'static>>,
}

impl Seen {
    fn paid(&self) -> &Payment<'static> {
        self.payment.as_ref().expect("this request should have been paid")
    }

    fn max(&self) -> u128 {
        self.paid().voucher.max_claimable.units()
    }

    fn deposit(&self) -> Option<(Amount, Authorization)> {
        match &self.paid().action {
            Action::DepositAndPay(Deposit { amount, authorization: Permission::Erc3009(authorization) }) => {
                Some((*amount, authorization.clone()))
            }
            _ => None,
        }
    }
}

type Body = BoxBody<Bytes, std::convert::Infallible>;

struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Body,
    /// Answers only when so many requests are here.
    meet: Option<Arc<tokio::sync::Barrier>>,
    /// Closes the connection instead.
    hang_up: bool,
}

impl Reply {
    fn new(status: u16) -> Self {
        let body = Full::new(Bytes::from_static(b"body")).boxed();
        Self { status, headers: Vec::new(), body, meet: None, hang_up: false }
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    fn hang_up() -> Self {
        Self { hang_up: true, ..Self::new(500) }
    }
}

#[derive(Clone)]
struct Server {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Server {
    async fn start(play: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self { address: listener.local_addr().unwrap(), seen: Arc::default() };
        let (seen, play) = (Arc::clone(&server.seen), Arc::new(play));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (seen, play) = (Arc::clone(&seen), Arc::clone(&play));
                let service = service_fn(move |request| serve(request, Arc::clone(&seen), Arc::clone(&play)));
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        server
    }

    /// Plays one reply a request, in order.
    async fn script(replies: Vec<Play>) -> Self {
        Self::start(move |seen| match replies.get(seen.number) {
            Some(reply) => reply(seen),
            None => panic!("request {} was not expected", seen.number),
        })
        .await
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn count(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    fn check<T>(&self, number: usize, look: impl FnOnce(&Seen) -> T) -> T {
        look(&self.seen.lock().unwrap()[number])
    }
}

async fn serve<P: Fn(&Seen) -> Reply>(
    request: Request<Incoming>,
    all: Arc<Mutex<Vec<Seen>>>,
    play: Arc<P>,
) -> Result<Response<Body>, std::io::Error> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
    let payment = head.headers.get(PAYMENT_SIGNATURE).map(|text| Payment::read(text.as_bytes()).unwrap());
    let reply = {
        let mut all = all.lock().unwrap();
        let seen = Seen { number: all.len(), method: head.method, headers: head.headers, body, payment };
        let reply = play(&seen);
        all.push(seen);
        reply
    };
    if let Some(meet) = reply.meet {
        meet.wait().await;
    }
    if reply.hang_up {
        return Err(std::io::Error::other("hung up"));
    }
    let mut response = Response::builder().status(reply.status);
    for (name, value) in reply.headers {
        response = response.header(name, value);
    }
    Ok(response.body(reply.body).unwrap())
}

// --------------------------------------------------------------------------------------------------- what it answers

fn offer(price: u128) -> Value {
    json!({
        "scheme": "batch-settlement", "network": NETWORK, "amount": price.to_string(),
        "asset": "0x036CbD53842c5426634e7929541eC2318f3dCF7e",
        "payTo": "0x209693Bc6afc0C5328bA36FaF03C514EF312287C",
        "maxTimeoutSeconds": 300,
        "extra": {"receiverAuthorizer": "0x3325a78425F17a7E487Eb5666b2bFd93aBb06c70", "withdrawDelay": 900,
                  "name": "USDC", "version": "2"}
    })
}

fn quote(error: &str, offer: Value) -> Reply {
    let quote = json!({"x402Version": 2, "error": error, "accepts": [offer],
                       "resource": {"url": "https://api.example/paid"}});
    Reply::new(402).with(PAYMENT_REQUIRED, encode(&quote))
}

fn unpaid(seen: &Seen) -> Reply {
    assert!(seen.payment.is_none(), "the price was not known yet");
    quote("Payment required", offer(PRICE))
}

fn receipt(seen: &Seen, charged: Value) -> String {
    let payment = seen.paid();
    let state = ChannelState {
        channel_id: payment.voucher.channel,
        // Nonsense on purpose: none of it may be copied.
        balance: Amount::MAX,
        total_claimed: Amount::MAX,
        withdraw_requested_at: 0,
        refund_nonce: 0,
        charged_cumulative_amount: Amount::MAX,
    };
    let mut receipt = match seen.deposit() {
        Some((amount, _)) => Receipt::deposited(NETWORK, payment.config.payer, TX, amount, Amount::ZERO, &state),
        None => Receipt::charged(NETWORK, payment.config.payer, Amount::ZERO, &state),
    };
    receipt.extra.insert("chargedAmount".to_owned(), charged);
    encode(&receipt)
}

fn served(seen: &Seen, charged: u128) -> Reply {
    Reply::new(200).with(PAYMENT_RESPONSE, receipt(seen, json!(charged.to_string())))
}

fn served_in_full(seen: &Seen) -> Reply {
    served(seen, PRICE)
}

fn refused(code: Code) -> Reply {
    quote(code.as_str(), offer(PRICE))
}

fn corrective(seen: &Seen, charged: u128, signed: &SignedVoucher) -> Reply {
    corrective_with(seen, charged, 10_000, signed)
}

fn corrective_with(seen: &Seen, charged: u128, balance: u128, signed: &SignedVoucher) -> Reply {
    let mut offer = offer(PRICE);
    offer["extra"]["channelState"] = json!({
        "channelId": seen.paid().voucher.channel, "balance": balance.to_string(), "totalClaimed": "0",
        "withdrawRequestedAt": 0,
        "refundNonce": "0", "chargedCumulativeAmount": charged.to_string(),
    });
    offer["extra"]["voucherState"] = json!({"signedMaxClaimable": signed.max_claimable, "signature": signed.signature});
    quote(Code::CumulativeAmountMismatch.as_str(), offer)
}

// ---------------------------------------------------------------------------------------------------------- the agent

fn key() -> LocalKey {
    LocalKey::from_bytes(&[3; 32]).unwrap()
}

fn agent() -> Agent<NoChain> {
    Agent::new(AgentConfig::new(key()), NoChain).unwrap()
}

fn agent_with(budget: Budget, book: Book) -> Agent<NoChain> {
    Agent::new(AgentConfig { budget, book, ..AgentConfig::new(key()) }, NoChain).unwrap()
}

fn open(path: &Path) -> Book {
    Book::open(path, Duration::from_secs(5)).unwrap()
}

/// A chain that says whatever it was told to say.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<(u128, u128)>>);

impl Told {
    fn tell(&self, balance: u128, claimed: u128) {
        *self.0.lock().unwrap() = (balance, claimed);
    }

    fn agent(&self) -> Agent<Self> {
        Agent::new(AgentConfig::new(key()), self.clone()).unwrap()
    }
}

impl ChainReader for Told {
    async fn channel(&self, network: &str, _id: ChannelId) -> Result<Option<ChainChannel>, ChainReadError> {
        assert_eq!(network, NETWORK);
        let (balance, claimed) = *self.0.lock().unwrap();
        Ok(Some(ChainChannel { balance: Amount::new(balance), total_claimed: Amount::new(claimed) }))
    }

    async fn allowance(&self, _: &str, _: Address, _: Address) -> Result<Option<Allowance>, ChainReadError> {
        panic!("no test asks")
    }
}

async fn pay<R: ChainReader>(agent: &Agent<R>, server: &Server) -> Result<Answer, AgentError> {
    agent.pay(PayRequest::get(server.url("/paid"))).await
}

fn record<R: ChainReader>(agent: &Agent<R>) -> Record {
    let mut records = agent.book().channels().unwrap();
    assert_eq!(records.len(), 1);
    records.remove(0)
}

/// Charged, signed, balance.
fn books<R: ChainReader>(agent: &Agent<R>) -> (u128, u128, u128) {
    let record = record(agent);
    (record.charged.units(), record.signed_max.units(), record.balance.units())
}

fn charged(answer: &Answer) -> u128 {
    answer.charged().units()
}

fn dollars(micros: u128) -> Dollars {
    Dollars::from_micros(micros)
}

// ------------------------------------------------------------------------------------------------------------ paying

#[tokio::test]
async fn the_first_payment_opens_a_channel_and_the_next_ones_only_sign() {
    let server =
        Server::script(vec![unpaid, served_in_full, |seen| served(seen, 500), |seen| served(seen, 0), served_in_full])
            .await;
    let agent = agent();
    let request =
        PayRequest { body: Bytes::from_static(b"question"), ..PayRequest::new(Method::POST, server.url("/")) };

    let first = agent.pay(request.clone()).await.unwrap();
    let payment = first.payment.as_ref().unwrap();
    assert_eq!((first.attempts, charged(&first)), (2, PRICE));
    assert_eq!((payment.deposited, payment.transaction), (Some(Amount::new(10_000)), Some(TX)));
    assert_eq!((payment.remaining, payment.doubt.clone()), (Amount::new(8_000), None));
    assert!(payment.to_string().starts_with("charged $0.002, deposited $0.01, $0.008 left on channel 0x"));
    assert_eq!(first.bytes(4).await.unwrap(), "body");

    for (expected, base) in [(500, 2_000), (0, 2_500), (PRICE, 2_500)] {
        let answer = agent.pay(request.clone()).await.unwrap();
        assert_eq!((answer.attempts, charged(&answer)), (1, expected), "a known offer is paid at once");
        assert_eq!(server.check(server.count() - 1, Seen::max), base + PRICE);
    }
    assert_eq!(books(&agent), (4_500, 4_500, 10_000));

    server.check(1, |seen| {
        let payment = seen.paid();
        assert_eq!((seen.method.clone(), &seen.body[..]), (Method::POST, &b"question"[..]));
        assert!(payment.accepted.answers(&serde_json::from_value(offer(PRICE)).unwrap()));
        let settlement = Domain::settlement(CHAIN_ID);
        assert_eq!(payment.config.id(&settlement), payment.voucher.channel);
        payment.voucher.verify(&settlement, &payment.config).unwrap();
        let (amount, authorization) = seen.deposit().unwrap();
        let token = Domain::new("USDC", "2", CHAIN_ID, payment.config.token);
        let nonce = Authorization::nonce(payment.voucher.channel, authorization.salt);
        let end = authorization.valid_before;
        let digest = Authorization::digest(&token, key().address(), amount, 0, end, nonce);
        assert_eq!(authorization.signature.recover(digest), Ok(key().address()));
        assert_eq!(authorization.valid_after, 0);
    });
    assert!((2..5).all(|number| server.check(number, |seen| seen.deposit().is_none())));
}

#[tokio::test]
async fn a_voucher_key_signs_vouchers_and_the_wallet_deposits() {
    let server = Server::script(vec![unpaid, served_in_full]).await;
    let other = LocalKey::from_bytes(&[8; 32]).unwrap();
    let config = AgentConfig { voucher_key: Some(other.clone()), ..AgentConfig::new(key()) };
    let agent = Agent::new(config, NoChain).unwrap();
    pay(&agent, &server).await.unwrap();
    server.check(1, |seen| {
        let payment = seen.paid();
        assert_eq!((payment.config.payer, payment.config.payer_authorizer), (key().address(), other.address()));
        payment.voucher.verify(&Domain::settlement(CHAIN_ID), &payment.config).unwrap();
    });
}

#[tokio::test]
async fn a_channel_is_topped_up_when_it_runs_low() {
    let server = Server::start(|seen| if seen.number == 0 { unpaid(seen) } else { served_in_full(seen) }).await;
    let agent = agent();
    for _ in 0..6 {
        pay(&agent, &server).await.unwrap();
    }
    let deposits: Vec<_> = (1..7).map(|number| server.check(number, |seen| seen.deposit().is_some())).collect();
    assert_eq!(deposits, [true, false, false, false, false, true]);
    assert_eq!(books(&agent), (12_000, 12_000, 20_000));
}

#[tokio::test]
async fn what_is_free_stays_free_and_redirects_are_not_followed() {
    let server = Server::script(vec![|_| Reply::new(200), |_| Reply::new(302).with("location", "/paid")]).await;
    let agent = agent();
    let free = pay(&agent, &server).await.unwrap();
    assert!(free.payment.is_none() && free.is_success());
    assert_eq!(pay(&agent, &server).await.unwrap().status(), StatusCode::FOUND);
    assert_eq!(agent.book().channels().unwrap(), []);
}

#[tokio::test]
async fn the_callers_headers_go_along_except_those_of_payments() {
    let server = Server::script(vec![unpaid, served_in_full]).await;
    let mut request = PayRequest::get(server.url("/paid?q=1"));
    request.headers.append("x-mine", "1".parse().unwrap());
    request.headers.append("x-mine", "2".parse().unwrap());
    request.headers.insert(PAYMENT_SIGNATURE, "forged".parse().unwrap());
    request.headers.insert("content-length", "99".parse().unwrap());
    agent().pay(request).await.unwrap();
    for number in [0, 1] {
        server.check(number, |seen| {
            assert_eq!(seen.headers.get_all("x-mine").iter().collect::<Vec<_>>(), ["1", "2"]);
            assert_eq!(seen.payment.is_some(), number == 1);
        });
    }
}

#[tokio::test]
async fn a_remembered_offer_that_is_refused_gives_way_to_the_fresh_one() {
    let server = Server::script(vec![
        unpaid,
        served_in_full,
        |_| quote(Code::NoMatchingRequirements.as_str(), offer(3_000)),
        |seen| served(seen, 3_000),
        |seen| served(seen, 3_000),
        |_| quote(Code::NoMatchingRequirements.as_str(), offer(3_000)),
    ])
    .await;
    let agent = agent();
    assert_eq!(charged(&pay(&agent, &server).await.unwrap()), PRICE);
    let second = pay(&agent, &server).await.unwrap();
    assert_eq!((second.attempts, charged(&second)), (2, 3_000));
    assert_eq!(pay(&agent, &server).await.unwrap().attempts, 1);
    assert_eq!(server.check(2, Seen::max), 4_000);
    assert_eq!(server.check(3, Seen::max), 5_000);
    // The same offer, refused: asking once more would change nothing.
    let error = pay(&agent, &server).await.unwrap_err();
    assert!(
        matches!(&error, AgentError::Refused { code, .. } if code == "No matching payment requirements"),
        "{error}"
    );
    assert_eq!(server.count(), 6);
}

#[tokio::test]
async fn a_body_is_streamed_while_it_is_made() {
    let (sender, receiver) = tokio::sync::mpsc::channel::<Bytes>(1);
    let receiver = Mutex::new(Some(receiver));
    let server = Server::start(move |seen| {
        if seen.number == 0 {
            return unpaid(seen);
        }
        let receiver = receiver.lock().unwrap().take().unwrap();
        let pieces = futures_util::stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|piece| (Ok(Frame::data(piece)), receiver))
        });
        Reply { body: StreamBody::new(pieces).boxed(), ..served_in_full(seen) }
    })
    .await;
    let mut answer = pay(&agent(), &server).await.unwrap();
    assert_eq!(charged(&answer), PRICE, "the receipt is in the head");
    for piece in ["one", "two"] {
        sender.send(Bytes::from_static(piece.as_bytes())).await.unwrap();
        assert_eq!(answer.body.chunk().await.unwrap().unwrap(), piece);
    }
    drop(sender);
    assert_eq!(answer.body.chunk().await.unwrap(), None);
}

#[tokio::test]
async fn an_answer_longer_than_the_caller_holds_is_refused() {
    let server = Server::script(vec![|_| Reply::new(200)]).await;
    let answer = pay(&agent(), &server).await.unwrap();
    assert!(matches!(answer.bytes(3).await, Err(AgentError::BodyTooLarge { limit: 3 })));
}

// -------------------------------------------------------------------------------------------------- what is believed

#[tokio::test]
async fn a_receipt_that_lies_moves_nothing_and_the_next_payment_settles_it() {
    for lie in [json!(2_000), json!("2001"), json!(null), json!("-5"), json!("two")] {
        let told = lie.clone();
        let server = Server::start(move |seen| match seen.number {
            0 => unpaid(seen),
            1 => served(seen, 0),
            2 => Reply::new(200).with(PAYMENT_RESPONSE, receipt(seen, told.clone())),
            3 => corrective(seen, 2_000, &seen.paid().voucher),
            _ => served_in_full(seen),
        })
        .await;
        let agent = agent();
        pay(&agent, &server).await.unwrap();
        let doubtful = pay(&agent, &server).await.unwrap();
        assert_eq!(doubtful.status(), StatusCode::OK, "the answer is the caller's all the same");
        let doubt = doubtful.payment.as_ref().unwrap().doubt.clone().unwrap();
        assert!(matches!(doubt, ReceiptFault::NoCharge | ReceiptFault::Overcharged { .. }), "{lie}: {doubt}");
        assert_eq!(books(&agent), (0, 2_000, 10_000), "{lie}");

        let third = pay(&agent, &server).await.unwrap();
        assert_eq!((third.attempts, charged(&third)), (2, PRICE));
        assert_eq!((server.check(3, Seen::max), server.check(4, Seen::max)), (2_000, 4_000));
        assert_eq!(books(&agent), (4_000, 4_000, 10_000));
    }
}

#[tokio::test]
async fn an_answer_without_a_receipt_is_passed_on_and_charges_nothing() {
    let server = Server::script(vec![
        unpaid,
        |seen| served(seen, 0),
        |_| Reply::new(200),
        |_| Reply::new(500),
        |_| Reply::new(404),
        |_| Reply::new(503),
        served_in_full,
    ])
    .await;
    let agent = agent();
    pay(&agent, &server).await.unwrap();
    let silent = pay(&agent, &server).await.unwrap();
    assert_eq!(silent.payment.unwrap().doubt, Some(ReceiptFault::Missing));
    for status in [500, 404, 503] {
        let failed = pay(&agent, &server).await.unwrap();
        assert_eq!(failed.status().as_u16(), status);
        assert!(failed.payment.is_none());
    }
    assert_eq!(books(&agent), (0, 2_000, 10_000));
    pay(&agent, &server).await.unwrap();
    assert_eq!(books(&agent), (2_000, 2_000, 10_000), "the same voucher was good again");
}

#[tokio::test]
async fn a_receipt_on_a_failure_books_the_deposit() {
    let server = Server::script(vec![unpaid, |seen| Reply { status: 502, ..served(seen, 0) }, served_in_full]).await;
    let agent = agent();
    let failed = pay(&agent, &server).await.unwrap();
    assert_eq!(failed.status(), StatusCode::BAD_GATEWAY);
    assert_eq!(failed.payment.unwrap().deposited, Some(Amount::new(10_000)));
    assert_eq!(books(&agent), (0, 2_000, 10_000));
    pay(&agent, &server).await.unwrap();
    assert!(server.check(2, |seen| seen.deposit().is_none()));
}

#[tokio::test]
async fn a_corrective_without_our_signature_is_not_followed() {
    fn foreign(seen: &Seen) -> Reply {
        let key = LocalKey::from_bytes(&[5; 32]).unwrap();
        let voucher = Voucher { channel: seen.paid().voucher.channel, max_claimable: Amount::new(9_000) };
        corrective(seen, 9_000, &voucher.sign(&Domain::settlement(CHAIN_ID), &key))
    }
    fn above_signed(seen: &Seen) -> Reply {
        let voucher = &seen.paid().voucher;
        corrective(seen, voucher.max_claimable.units() + 1, voucher)
    }
    fn raised(seen: &Seen) -> Reply {
        let voucher = SignedVoucher { max_claimable: Amount::new(9_000), ..seen.paid().voucher.clone() };
        corrective(seen, 9_000, &voucher)
    }
    let lies: [(Play, CorrectiveFault); 3] = [
        (foreign, CorrectiveFault::ForeignSignature),
        (above_signed, CorrectiveFault::ChargedAboveSigned),
        (raised, CorrectiveFault::ForeignSignature),
    ];
    for (lie, expected) in lies {
        let server = Server::script(vec![unpaid, served_in_full, lie]).await;
        let agent = agent();
        pay(&agent, &server).await.unwrap();
        let error = pay(&agent, &server).await.unwrap_err();
        assert!(matches!(error, AgentError::Corrective(fault) if fault == expected), "{error}");
        assert_eq!(books(&agent), (2_000, 4_000, 10_000));
        assert_eq!(server.count(), 3, "no retry");
    }
}

#[tokio::test]
async fn a_server_is_corrected_by_once_a_payment() {
    let server = Server::start(|seen| match seen.number {
        0 => unpaid(seen),
        1 => served_in_full(seen),
        _ => corrective(seen, seen.max(), &seen.paid().voucher),
    })
    .await;
    let agent = agent();
    pay(&agent, &server).await.unwrap();
    let error = pay(&agent, &server).await.unwrap_err();
    assert!(matches!(error, AgentError::Refused { .. }), "{error}");
    assert_eq!(server.count(), 4);
}

#[tokio::test]
async fn a_corrective_without_a_voucher_is_settled_by_the_chain_alone() {
    let script: Vec<Play> = vec![unpaid, served_in_full, |_| refused(Code::CumulativeAmountMismatch), served_in_full];
    let server = Server::script(script.clone()).await;
    let alone = agent();
    pay(&alone, &server).await.unwrap();
    let error = pay(&alone, &server).await.unwrap_err();
    assert!(matches!(error, AgentError::NeedsChain { .. }), "{error}");
    assert_eq!(books(&alone), (2_000, 4_000, 10_000));

    // The server gave the rest back: all that was deposited is claimed, and a new deposit is needed.
    let server = Server::script(script).await;
    let chain = Told::default();
    let agent = chain.agent();
    pay(&agent, &server).await.unwrap();
    chain.tell(2_000, 2_000);
    pay(&agent, &server).await.unwrap();
    assert_eq!(server.check(3, |seen| seen.deposit().unwrap().0), Amount::new(10_000));
    assert_eq!(books(&agent), (4_000, 4_000, 12_000));
}

#[tokio::test]
async fn a_corrective_that_agrees_on_the_charge_is_about_the_balance() {
    // The server knows of a withdrawal that we did not see.
    let script: Vec<Play> = vec![
        unpaid,
        served_in_full,
        |seen| {
            let voucher = Voucher { max_claimable: Amount::new(2_000), channel: seen.paid().voucher.channel };
            corrective_with(seen, 2_000, 3_000, &voucher.sign(&Domain::settlement(CHAIN_ID), &key()))
        },
        served_in_full,
    ];
    let server = Server::script(script.clone()).await;
    let alone = agent();
    pay(&alone, &server).await.unwrap();
    assert!(matches!(pay(&alone, &server).await, Err(AgentError::NeedsChain { .. })), "not on its word");
    assert_eq!(server.count(), 3);

    let server = Server::script(script).await;
    let chain = Told::default();
    let agent = chain.agent();
    pay(&agent, &server).await.unwrap();
    chain.tell(3_000, 0);
    pay(&agent, &server).await.unwrap();
    assert_eq!(server.check(3, |seen| (seen.max(), seen.deposit().unwrap().0.units())), (4_000, 10_000));
    assert_eq!(books(&agent), (4_000, 4_000, 13_000));
}

#[tokio::test]
async fn a_lost_book_is_found_again_on_the_chain_or_by_our_own_signature() {
    let chain = Told::default();
    chain.tell(10_000, 4_000);
    let server = Server::script(vec![unpaid, served_in_full]).await;
    pay(&chain.agent(), &server).await.unwrap();
    assert_eq!(server.check(1, |seen| (seen.max(), seen.deposit())), (6_000, None));

    let server = Server::script(vec![
        unpaid,
        |seen| {
            let voucher = Voucher { channel: seen.paid().voucher.channel, max_claimable: Amount::new(6_000) };
            corrective(seen, 6_000, &voucher.sign(&Domain::settlement(CHAIN_ID), &key()))
        },
        served_in_full,
    ])
    .await;
    let agent = agent();
    pay(&agent, &server).await.unwrap();
    assert_eq!(server.check(2, |seen| (seen.max(), seen.deposit())), (8_000, None));
    assert_eq!(books(&agent), (8_000, 8_000, 10_000));
}

#[tokio::test]
async fn a_quote_or_an_offer_that_is_not_ours_to_pay_is_explained() {
    let server = Server::script(vec![
        |_| Reply::new(402),
        |_| quote("", json!({"scheme": "exact", "network": "solana:x"})),
        |_| {
            let mut offer = offer(PRICE);
            offer["asset"] = json!(Address([7; 20]));
            quote("", offer)
        },
    ])
    .await;
    let agent = agent();
    assert!(matches!(pay(&agent, &server).await, Err(AgentError::Quote(QuoteFault::Missing))));
    assert!(matches!(pay(&agent, &server).await, Err(AgentError::NoOffer(faults)) if faults.len() == 1));
    let error = pay(&agent, &server).await.unwrap_err();
    assert!(matches!(&error, AgentError::NoOffer(faults) if faults[..] == [OfferFault::Token(Address([7; 20]))]));
    for url in ["ftp://x/", "/relative", "http://user:secret@x/", "http://"] {
        let error = agent.pay(PayRequest::get(url)).await.unwrap_err();
        assert!(matches!(error, AgentError::Url(_)) && !error.to_string().contains("secret"), "{url}: {error}");
    }
}

// --------------------------------------------------------------------------------------------------- deposits at risk

/// Refusals of a voucher that hopes for a deposit on its way: by the book, while busy, and by correctives.
fn not_there_yet() -> [Play; 5] {
    [
        |_| refused(Code::ChannelNotFound),
        |_| refused(Code::CumulativeExceedsBalance),
        |_| refused(Code::ChannelBusy).with("retry-after", "1"),
        |_| refused(Code::CumulativeAmountMismatch),
        |seen| corrective_with(seen, 0, 0, &seen.paid().voucher),
    ]
}

#[tokio::test]
async fn a_deposit_whose_fate_is_open_is_not_signed_twice() {
    for (case, refusal) in not_there_yet().into_iter().enumerate() {
        let server = Server::script(vec![
            unpaid,
            |seen| {
                let payer = seen.paid().config.payer;
                let receipt = Receipt::failed(NETWORK, payer, Code::SettlementPending, "not mined yet");
                Reply::new(503).with("retry-after", "5").with(PAYMENT_RESPONSE, encode(&receipt))
            },
            unpaid,
            // It is asked first whether the deposit has landed, then offered once more.
            refusal,
            |_| Reply::new(503).with("retry-after", "7"),
            unpaid,
            refusal,
            served_in_full,
        ])
        .await;
        let agent = agent();
        let mut waits = Vec::new();
        for _ in 0..2 {
            match pay(&agent, &server).await.unwrap_err() {
                AgentError::SettlementPending { retry_after_s, deposit_until: Some(_) } => waits.push(retry_after_s),
                other => panic!("case {case}: {other}"),
            }
        }
        assert_eq!(waits, [Some(5), Some(7)]);
        assert!(record(&agent).pending_deposit.is_some());
        let paid = pay(&agent, &server).await.unwrap();
        assert_eq!(paid.payment.unwrap().deposited, Some(Amount::new(10_000)));
        let deposit = |number| server.check(number, Seen::deposit);
        assert_eq!((deposit(3), deposit(6)), (None, None));
        assert!(deposit(1).is_some() && deposit(1) == deposit(4) && deposit(1) == deposit(7), "one authorization only");
        assert_eq!(books(&agent), (2_000, 2_000, 10_000));
        assert_eq!(record(&agent).pending_deposit, None);
    }
}

#[tokio::test]
async fn a_deposit_that_landed_unheard_of_is_found_by_asking() {
    let server = Server::script(vec![unpaid, |_| Reply::hang_up(), unpaid, served_in_full]).await;
    let agent = agent();
    assert!(matches!(pay(&agent, &server).await, Err(AgentError::Http(_))));
    pay(&agent, &server).await.unwrap();
    assert_eq!(server.check(3, Seen::deposit), None);
    assert_eq!(books(&agent), (2_000, 2_000, 10_000));
    assert_eq!(record(&agent).pending_deposit, None);
}

#[tokio::test]
async fn the_chain_tells_whether_a_deposit_landed() {
    let script: Vec<Play> = vec![unpaid, |_| Reply::hang_up(), unpaid, served_in_full];
    for landed in [true, false] {
        let server = Server::script(script.clone()).await;
        let chain = Told::default();
        let agent = chain.agent();
        pay(&agent, &server).await.unwrap_err();
        chain.tell(if landed { 10_000 } else { 0 }, 0);
        pay(&agent, &server).await.unwrap();
        let (first, second) = (server.check(1, Seen::deposit), server.check(3, Seen::deposit));
        assert_eq!(second, if landed { None } else { first }, "landed: {landed}");
        assert_eq!(books(&agent), (2_000, 2_000, 10_000));
    }
}

#[tokio::test]
async fn an_open_deposit_that_is_too_small_is_waited_for() {
    let server = Server::script(vec![unpaid, |_| Reply::hang_up(), |_| quote("", offer(20_000))]).await;
    let agent = agent();
    pay(&agent, &server).await.unwrap_err();
    match pay(&agent, &server).await.unwrap_err() {
        AgentError::DepositOpen { seconds } => assert!((300..=360).contains(&seconds), "{seconds}"),
        other => panic!("{other}"),
    }
    assert_eq!(server.count(), 3);
}

#[tokio::test]
async fn a_channel_that_holds_less_than_we_think_is_looked_up() {
    let script: Vec<Play> = vec![unpaid, served_in_full, |_| refused(Code::CumulativeExceedsBalance), served_in_full];
    let server = Server::script(script.clone()).await;
    let alone = agent();
    pay(&alone, &server).await.unwrap();
    assert!(matches!(pay(&alone, &server).await, Err(AgentError::NeedsChain { .. })), "no second deposit on its word");

    let chain = Told::default();
    let server = Server::script(script.clone()).await;
    let agent = chain.agent();
    pay(&agent, &server).await.unwrap();
    chain.tell(3_000, 0);
    pay(&agent, &server).await.unwrap();
    assert_eq!(server.check(3, |seen| (seen.max(), seen.deposit().unwrap().0.units())), (4_000, 10_000));

    let chain = Told::default();
    let server = Server::script(script).await;
    let agent = chain.agent();
    pay(&agent, &server).await.unwrap();
    chain.tell(10_000, 0);
    assert!(matches!(pay(&agent, &server).await, Err(AgentError::Refused { .. })), "the chain says it is all there");
}

// ------------------------------------------------------------------------------------------------------------ budgets

#[tokio::test]
async fn what_the_budget_refuses_is_never_signed() {
    let cases = [
        (Limit::Request, Budget { max_per_request: dollars(1_999), ..Budget::default() }),
        (Limit::Host, Budget { max_per_host: dollars(1_999), ..Budget::default() }),
        (Limit::Day, Budget { max_per_day: dollars(1_999), ..Budget::default() }),
        (Limit::Deposit, Budget { max_deposit: dollars(1_999), ..Budget::default() }),
    ];
    for (limit, budget) in cases {
        let server = Server::script(vec![unpaid]).await;
        let agent = agent_with(budget, Book::in_memory());
        match pay(&agent, &server).await.unwrap_err() {
            AgentError::Budget(refusal) => {
                assert_eq!((refusal.limit, refusal.asked, refusal.allowed), (limit, dollars(2_000), dollars(1_999)));
                assert!(refusal.to_string().contains("$0.002") && refusal.to_string().contains("$0.001999"));
            }
            other => panic!("{other}"),
        }
        assert_eq!(server.count(), 1);
        assert_eq!(agent.book().channels().unwrap(), []);
    }
}

#[tokio::test]
async fn the_day_is_counted_across_processes_by_what_was_charged() {
    let directory = tempfile::tempdir().unwrap();
    let budget = Budget { max_per_day: dollars(5_000), ..Budget::default() };
    let server = Server::start(|seen| match seen.payment {
        None => unpaid(seen),
        Some(_) => served(seen, 1_000),
    })
    .await;
    for _ in 0..4 {
        let agent = agent_with(budget, open(directory.path()));
        pay(&agent, &server).await.unwrap();
    }
    let agent = agent_with(budget, open(directory.path()));
    let error = pay(&agent, &server).await.unwrap_err();
    assert!(matches!(&error, AgentError::Budget(refusal) if refusal.spent == dollars(4_000)), "{error}");
    assert_eq!(books(&agent), (4_000, 5_000, 10_000));
}

/// A server that takes payments and gives no receipt, each time in the name of another authorizer, that is, on another
/// channel: every voucher it was given can be claimed.
#[tokio::test]
async fn what_was_sent_without_a_receipt_counts_against_the_budget() {
    for silence in [|| Reply::new(200), || Reply::new(500), Reply::hang_up] {
        let server = Server::start(move |seen| match &seen.payment {
            Some(_) => silence(),
            None => {
                let mut offer = offer(PRICE);
                offer["extra"]["receiverAuthorizer"] = json!(Address([u8::try_from(seen.number + 1).unwrap(); 20]));
                quote("Payment required", offer)
            }
        })
        .await;
        let directory = tempfile::tempdir().unwrap();
        let budget = Budget { max_per_day: dollars(3 * PRICE), ..Budget::default() };
        for number in 0..3 {
            let agent = agent_with(budget, open(directory.path()));
            assert!(!matches!(pay(&agent, &server).await, Err(AgentError::Budget(_))), "payment {number}");
        }
        let agent = agent_with(budget, open(directory.path()));
        let refused = pay(&agent, &server).await.unwrap_err();
        assert!(matches!(&refused, AgentError::Budget(refusal) if refusal.limit == Limit::Day), "{refused:?}");
    }
}

/// The server that failed once and then charges for the same ceiling is paid once.
#[tokio::test]
async fn a_ceiling_that_was_counted_is_not_counted_again() {
    let server = Server::script(vec![unpaid, |_| Reply::new(500), served_in_full, served_in_full]).await;
    let directory = tempfile::tempdir().unwrap();
    let budget = Budget { max_per_day: dollars(2 * PRICE), ..Budget::default() };
    let agent = agent_with(budget, open(directory.path()));
    for _ in 0..3 {
        pay(&agent, &server).await.unwrap();
    }
    assert_eq!(agent.book().day().unwrap().total, dollars(2 * PRICE));
    assert!(matches!(pay(&agent, &server).await, Err(AgentError::Budget(_))));
}

#[tokio::test]
async fn a_charge_nobody_told_us_of_counts_once_it_is_known() {
    let server = Server::start(|seen| match seen.number {
        0 => unpaid(seen),
        1 => served_in_full(seen),
        2 => Reply::hang_up(),
        3 => unpaid(seen),
        4 => corrective(seen, 4_000, &seen.paid().voucher),
        _ => served_in_full(seen),
    })
    .await;
    let agent = agent_with(Budget { max_per_host: dollars(5_999), ..Budget::default() }, Book::in_memory());
    pay(&agent, &server).await.unwrap();
    pay(&agent, &server).await.unwrap_err();
    let error = pay(&agent, &server).await.unwrap_err();
    assert!(matches!(&error, AgentError::Budget(refusal) if refusal.spent == dollars(4_000)), "{error}");
    assert_eq!(books(&agent), (4_000, 4_000, 10_000));
}

// ----------------------------------------------------------------------------------------------------------- the book

#[tokio::test]
async fn what_is_written_down_is_counted_although_the_caller_leaves_meanwhile() {
    for ahead in [1, 8] {
        let directory = tempfile::tempdir().unwrap();
        let server = Server::start(|seen| match &seen.payment {
            None => quote_ahead(json!(8)),
            Some(_) => served_in_full(seen),
        })
        .await;
        let budget = Budget { max_per_host: dollars(2 * PRICE), ..Budget::default() };
        let agent = agent_ahead(ahead, budget, open(directory.path()));
        pay(&agent, &server).await.unwrap();
        {
            // Not polled any more once it is on the disk.
            let mut leaving = std::pin::pin!(pay(&agent, &server));
            while record(&agent).signed_max == Amount::new(PRICE) {
                assert!(futures_util::poll!(&mut leaving).is_pending());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        // In turn the same ceiling is signed for once more; ahead it is left, and there is room for no other.
        let (again, next) = (pay(&agent, &server).await, pay(&agent, &server).await);
        assert_eq!(again.is_ok(), ahead == 1, "{again:?}");
        assert!(matches!(next, Err(AgentError::Budget(_))), "{next:?}");
        assert_eq!(record(&agent).signed_max, Amount::new(2 * PRICE));
    }
}

#[tokio::test]
async fn what_was_signed_is_on_disk_before_the_server_sees_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_owned();
    let server = Server::start(move |seen| {
        let Some(payment) = &seen.payment else { return unpaid(seen) };
        let file = std::fs::read_to_string(path.join(format!("{}.json", payment.voucher.channel))).unwrap();
        let file: Value = serde_json::from_str(&file).unwrap();
        assert_eq!(file["signedMax"], json!(payment.voucher.max_claimable));
        if let Some((amount, authorization)) = seen.deposit() {
            let pending = &file["pendingDeposit"];
            assert_eq!((&pending["amount"], &pending["salt"]), (&json!(amount), &json!(authorization.salt)));
        }
        assert!(!file.to_string().contains("ignature"), "no signature is kept");
        served_in_full(seen)
    })
    .await;
    let agent = agent_with(Budget::default(), open(directory.path()));
    for _ in 0..2 {
        assert_eq!(charged(&pay(&agent, &server).await.unwrap()), PRICE);
    }
    let before = record(&agent);
    drop(agent);
    assert_eq!(record(&agent_with(Budget::default(), open(directory.path()))), before);
}

#[tokio::test]
async fn a_crash_after_sending_signs_no_other_deposit() {
    let directory = tempfile::tempdir().unwrap();
    let server =
        Server::script(vec![unpaid, |_| Reply::hang_up(), unpaid, |_| refused(Code::ChannelNotFound), served_in_full])
            .await;
    pay(&agent_with(Budget::default(), open(directory.path())), &server).await.unwrap_err();
    let agent = agent_with(Budget::default(), open(directory.path()));
    pay(&agent, &server).await.unwrap();
    assert!(server.check(1, Seen::deposit) == server.check(4, Seen::deposit));
}

/// Signed both ways, the same deposit could land twice.
#[tokio::test]
async fn an_open_deposit_keeps_its_way_when_the_server_asks_for_another() {
    let by_permit2 = |_: &Seen| {
        let mut offer = offer(PRICE);
        offer["extra"]["assetTransferMethod"] = json!("permit2");
        quote("Payment required", offer)
    };
    let permission = |seen: &Seen| match &seen.paid().action {
        Action::DepositAndPay(deposit) => deposit.authorization.clone(),
        other => panic!("{other:?}"),
    };
    let directory = tempfile::tempdir().unwrap();
    let refused = |_: &Seen| refused(Code::Permit2AuthorizationRequired);
    let absent = |_: &Seen| self::refused(Code::ChannelNotFound);
    let server = Server::script(vec![unpaid, |_| Reply::hang_up(), by_permit2, absent, refused]).await;
    pay(&agent_with(Budget::default(), open(directory.path())), &server).await.unwrap_err();
    let agent = agent_with(Budget::default(), open(directory.path()));
    let error = pay(&agent, &server).await.unwrap_err();
    assert!(matches!(error, AgentError::Refused { .. }), "{error}");
    let first = server.check(1, permission);
    assert!(matches!(first, Permission::Erc3009(_)));
    assert!(first == server.check(4, permission));
}

#[tokio::test]
async fn two_agents_do_not_share_a_directory() {
    let directory = tempfile::tempdir().unwrap();
    let agent = agent_with(Budget::default(), open(directory.path()));
    let second = Book::open(directory.path(), Duration::ZERO);
    assert!(matches!(second, Err(BookError::Locked { .. })));
    drop(agent);
    open(directory.path());
}

#[tokio::test]
async fn a_book_that_cannot_be_written_stops_the_payment() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("book");
    let server = Server::script(vec![unpaid]).await;
    let agent = agent_with(Budget::default(), open(&path));
    std::fs::remove_dir_all(&path).unwrap();
    let error = pay(&agent, &server).await.unwrap_err();
    assert!(matches!(error, AgentError::Book(BookError::Io { .. })), "{error}");
    assert_eq!(server.count(), 1);
}

// -------------------------------------------------------------------------------------------------------- concurrency

#[tokio::test]
async fn payments_on_one_channel_queue_up() {
    let base = Mutex::new(0);
    let server = Server::start(move |seen| match seen.payment {
        None => unpaid(seen),
        Some(_) => {
            let mut base = base.lock().unwrap();
            assert_eq!(seen.max(), *base + PRICE);
            *base += PRICE;
            served_in_full(seen)
        }
    })
    .await;
    let agent = agent();
    let all = futures_util::future::join_all((0..20).map(|_| pay(&agent, &server))).await;
    assert!(all.into_iter().all(|answer| answer.unwrap().is_success()));
    assert_eq!(books(&agent), (40_000, 40_000, 40_000));
    assert_eq!(record(&agent).pending_deposit, None);
}

/// An agent that signs up to `ahead` vouchers of a channel ahead.
fn agent_ahead(ahead: u32, budget: Budget, book: Book) -> Agent<NoChain> {
    Agent::new(AgentConfig { ahead, budget, book, ..AgentConfig::new(key()) }, NoChain).unwrap()
}

/// A quote that allows so many in flight.
fn quote_ahead(most: Value) -> Reply {
    let mut offer = offer(PRICE);
    offer["extra"]["maxInFlight"] = most;
    offer["extra"]["minDeposit"] = json!("40000");
    quote("Payment required", offer)
}

async fn pay_at_once(agent: &Agent<NoChain>, server: &Server, count: usize) -> Vec<Result<Answer, AgentError>> {
    futures_util::future::join_all((0..count).map(|_| pay(agent, server))).await
}

#[tokio::test]
async fn vouchers_are_signed_ahead_as_far_as_both_sides_agree_and_never_twice() {
    let cases =
        [(json!(3), 8, 3), (json!(8), 3, 3), (json!(1), 8, 1), (json!(0), 8, 1), (json!("8"), 8, 1), (json!(8), 1, 1)];
    for (most, ahead, expected) in cases {
        let meet = Arc::new(tokio::sync::Barrier::new(expected));
        let allowed = most.clone();
        let server = Server::start(move |seen| match &seen.payment {
            None => quote_ahead(allowed.clone()),
            Some(payment) => {
                let first = matches!(payment.action, Action::DepositAndPay(_));
                assert_eq!(payment.order == Order::Ahead, expected > 1 && !first);
                let reply = served_in_full(seen);
                if first { reply } else { Reply { meet: Some(Arc::clone(&meet)), ..reply } }
            }
        })
        .await;
        let agent = agent_ahead(ahead, Budget::default(), Book::in_memory());
        pay(&agent, &server).await.unwrap();
        let all = tokio::time::timeout(Duration::from_secs(10), pay_at_once(&agent, &server, 12)).await;
        let all = all.unwrap_or_else(|_| panic!("{expected} never met at the server: {most} {ahead}"));
        assert!(all.into_iter().all(|answer| answer.unwrap().is_success()));
        let mut ceilings: Vec<_> = (1..server.count()).map(|number| server.check(number, Seen::max)).collect();
        ceilings.sort_unstable();
        assert_eq!(ceilings, (1..=13).map(|count| count * PRICE).collect::<Vec<_>>());
        assert_eq!(books(&agent), (13 * PRICE, 13 * PRICE, 40_000));
    }
}

#[tokio::test]
async fn a_lying_receipt_of_a_voucher_signed_ahead_moves_nothing() {
    let server = Server::start(|seen| match seen.number {
        0 => quote_ahead(json!(8)),
        1 | 4 => served_in_full(seen),
        2 => served(seen, PRICE + 1),
        3 => Reply::new(200),
        _ => panic!("not expected"),
    })
    .await;
    let agent = agent_ahead(8, Budget::default(), Book::in_memory());
    pay(&agent, &server).await.unwrap();
    let doubts = [
        ReceiptFault::Overcharged { charged: Amount::new(PRICE + 1), amount: Amount::new(PRICE) },
        ReceiptFault::Missing,
    ];
    for (ceiling, doubt) in (2..).zip(doubts) {
        let answer = pay(&agent, &server).await.unwrap();
        assert_eq!(charged(&answer), 0);
        assert_eq!(answer.payment.unwrap().doubt, Some(doubt));
        assert_eq!(books(&agent), (PRICE, ceiling * PRICE, 40_000));
    }
    // It has these ceilings, so they are not signed for again.
    assert_eq!(charged(&pay(&agent, &server).await.unwrap()), PRICE);
    assert_eq!(server.check(4, Seen::max), 4 * PRICE);
}

#[tokio::test]
async fn every_voucher_signed_ahead_counts_against_the_budget_once() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(|seen| match (&seen.payment, seen.number) {
        (None, _) => quote_ahead(json!(8)),
        (_, 2) => Reply::new(500),
        (_, 3) => Reply::hang_up(),
        _ => served_in_full(seen),
    })
    .await;
    let budget = Budget { max_per_host: dollars(6 * PRICE), ..Budget::default() };
    let agent = agent_ahead(8, budget, open(directory.path()));
    pay(&agent, &server).await.unwrap();
    // The first fails and its piece is good again, the second is lost.
    let first = pay_at_once(&agent, &server, 2).await;
    assert_eq!(first.iter().filter(|answer| answer.is_err()).count(), 1);
    let rest = pay_at_once(&agent, &server, 8).await;
    let (paid, refused): (Vec<_>, Vec<_>) = rest.into_iter().partition(Result::is_ok);
    assert!(refused.iter().all(|refused| matches!(refused, Err(AgentError::Budget(_)))), "{refused:?}");
    assert_eq!(paid.len(), 4, "one of them for a piece that was counted");
    assert_eq!(agent.book().day().unwrap().total, dollars(6 * PRICE));
    assert_eq!(books(&agent), (5 * PRICE, 6 * PRICE, 40_000));
}

#[tokio::test]
async fn receipts_that_charge_nothing_do_not_lift_the_ceilings_above_the_budget() {
    let server = Server::start(|seen| match &seen.payment {
        None => quote_ahead(json!(8)),
        Some(_) => served(seen, 0),
    })
    .await;
    let budget = Budget { max_per_host: dollars(6 * PRICE), ..Budget::default() };
    let agent = agent_ahead(8, budget, Book::in_memory());
    for _ in 0..6 {
        pay(&agent, &server).await.unwrap();
    }
    for answer in pay_at_once(&agent, &server, 8).await {
        assert!(matches!(answer, Err(AgentError::Budget(_))), "{answer:?}");
    }
    assert_eq!(books(&agent), (0, 6 * PRICE, 40_000), "all that could be claimed is within the budget");
    assert_eq!(agent.book().day().unwrap().total, Dollars::ZERO, "and nothing of it is spent");
}

#[tokio::test]
async fn what_is_signed_ahead_is_on_disk_before_the_server_sees_it_and_after_a_crash() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_owned();
    let server = Server::start(move |seen| {
        let Some(payment) = &seen.payment else { return quote_ahead(json!(8)) };
        let file = std::fs::read_to_string(path.join(format!("{}.json", payment.voucher.channel))).unwrap();
        let file: Value = serde_json::from_str(&file).unwrap();
        let signed: u128 = file["signedMax"].as_str().unwrap().parse().unwrap();
        assert!(signed >= seen.max(), "{signed} {}", seen.max());
        if seen.max() > 5 * PRICE { Reply::hang_up() } else { served_in_full(seen) }
    })
    .await;
    let agent = agent_ahead(8, Budget::default(), open(directory.path()));
    pay(&agent, &server).await.unwrap();
    let answers = pay_at_once(&agent, &server, 8).await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 4);
    drop(agent);
    // Whatever became of the others: none of their ceilings is signed for in turn, nor ahead.
    let agent = agent_ahead(1, Budget::default(), open(directory.path()));
    let record = record(&agent);
    assert_eq!((record.charged.units(), record.signed_max.units()), (5 * PRICE, 9 * PRICE));
    assert_eq!(record.base(Amount::new(PRICE)).units() + PRICE, 9 * PRICE + 1);
    assert_eq!(record.top.units(), 9 * PRICE);
}

#[tokio::test]
async fn a_corrective_is_followed_in_turn_and_only_with_our_signature() {
    let server = Server::start(|seen| match seen.number {
        0 => quote_ahead(json!(8)),
        1 => served_in_full(seen),
        2 | 3 => {
            let forged = SignedVoucher { max_claimable: Amount::new(9_000), ..seen.paid().voucher.clone() };
            corrective(seen, 9_000, &forged)
        }
        _ => panic!("not expected"),
    })
    .await;
    let agent = agent_ahead(8, Budget::default(), Book::in_memory());
    pay(&agent, &server).await.unwrap();
    let error = pay(&agent, &server).await.unwrap_err();
    assert!(matches!(error, AgentError::Corrective(CorrectiveFault::ForeignSignature)), "{error}");
    assert_eq!(server.check(2, |seen| seen.paid().order), Order::Ahead);
    assert_eq!(server.check(3, |seen| (seen.paid().order, seen.max())), (Order::InTurn, 2 * PRICE));
    assert_eq!(books(&agent), (PRICE, 2 * PRICE, 40_000));
}

#[tokio::test]
async fn payments_on_different_channels_do_not_wait_for_each_other() {
    let both = Arc::new(tokio::sync::Barrier::new(2));
    let server = Server::start(move |seen| match seen.payment {
        None => {
            let mut offer = offer(PRICE);
            offer["payTo"] = json!(Address([seen.headers["x-seller"].as_bytes()[0]; 20]));
            quote("", offer)
        }
        Some(_) => Reply { meet: Some(Arc::clone(&both)), ..served_in_full(seen) },
    })
    .await;
    let agent = agent();
    let pay = |seller: &str| {
        let mut request = PayRequest::get(server.url(&format!("/{seller}")));
        request.headers.insert("x-seller", seller.parse().unwrap());
        agent.pay(request)
    };
    let together = async { tokio::join!(pay("a"), pay("b")) };
    let (a, b) = tokio::time::timeout(Duration::from_secs(10), together).await.expect("they meet at the server");
    assert!(a.unwrap().is_success() && b.unwrap().is_success());
    assert_eq!(agent.book().channels().unwrap().len(), 2);
}

#[tokio::test]
async fn a_payment_that_is_given_up_frees_its_channel_and_its_budget() {
    let never = Arc::new(tokio::sync::Barrier::new(2));
    let server = Server::start(move |seen| match seen.number {
        0 | 3 => unpaid(seen),
        1 => served_in_full(seen),
        2 => Reply { meet: Some(Arc::clone(&never)), ..served_in_full(seen) },
        _ => served_in_full(seen),
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let agent = agent_with(Budget { max_per_host: dollars(4_000), ..Budget::default() }, open(directory.path()));
    pay(&agent, &server).await.unwrap();
    let sent = async {
        while server.count() < 3 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let given_up = async {
        tokio::select! {
            answer = pay(&agent, &server) => panic!("nobody answers: {answer:?}"),
            () = sent => {}
        }
    };
    tokio::time::timeout(Duration::from_secs(20), given_up).await.expect("it reaches the server");
    assert_eq!(server.count(), 3);
    let again = agent.pay(PayRequest::get(server.url("/other"))).await.unwrap();
    assert_eq!(charged(&again), PRICE);
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_given_up_on() {
    let never = Arc::new(tokio::sync::Barrier::new(2));
    let server = Server::start(move |_| Reply { meet: Some(Arc::clone(&never)), ..Reply::new(200) }).await;
    let patience = Duration::from_millis(100);
    let agent = Agent::new(AgentConfig { patience, ..AgentConfig::new(key()) }, NoChain).unwrap();
    assert!(matches!(pay(&agent, &server).await, Err(AgentError::Timeout(_))));
}

// ------------------------------------------------------------------------------------------------------------ refunds

fn refund_receipt(seen: &Seen, amount: &str) -> Reply {
    let receipt = json!({"success": true, "transaction": TX, "network": NETWORK, "amount": amount});
    assert!(matches!(seen.paid().action, Action::Refund(_)));
    Reply::new(200).with(PAYMENT_RESPONSE, encode(&receipt))
}

#[tokio::test]
async fn a_refund_signs_what_was_charged_and_no_more() {
    let server = Server::script(vec![
        unpaid,
        served_in_full,
        unpaid,
        |seen| refund_receipt(seen, "3000"),
        unpaid,
        |seen| corrective_with(seen, 2_000, 7_000, &seen.paid().voucher),
        |seen| refund_receipt(seen, "5000"),
        unpaid,
    ])
    .await;
    let agent = agent();
    pay(&agent, &server).await.unwrap();
    let url = server.url("/paid");
    let part = agent.refund(&url, Some(Amount::new(3_000))).await.unwrap();
    assert_eq!((part.amount, part.remaining), (Amount::new(3_000), Amount::new(5_000)));
    assert_eq!(part.transaction, Some(TX));
    let rest = agent.refund(&url, None).await.unwrap();
    assert_eq!((rest.amount, rest.remaining), (Amount::new(5_000), Amount::ZERO));
    for number in [3, 5, 6] {
        assert_eq!(server.check(number, Seen::max), 2_000);
    }
    assert!(matches!(agent.refund(&url, None).await, Err(AgentError::NothingToRefund(_))));
    assert_eq!(books(&agent), (2_000, 2_000, 2_000));
}

#[tokio::test]
async fn a_refund_that_is_refused_or_not_confirmed_moves_nothing() {
    let server = Server::start(|seen| match seen.number {
        1 => served_in_full(seen),
        3 => {
            let receipt = Receipt::failed(NETWORK, seen.paid().config.payer, Code::RefundNoBalance, "");
            Reply::new(402).with(PAYMENT_RESPONSE, encode(&receipt))
        }
        5 => refund_receipt(seen, "8001"),
        7 => Reply::new(200),
        9 => {
            let body = Full::new(Bytes::from_static(br#"{"error":"refund_rate_limited"}"#)).boxed();
            Reply { body, ..Reply::new(429).with("retry-after", "60") }
        }
        11 | 12 => corrective(seen, 2_000, &seen.paid().voucher),
        13 => Reply::new(200),
        _ => unpaid(seen),
    })
    .await;
    let agent = agent();
    pay(&agent, &server).await.unwrap();
    let url = server.url("/paid");
    let refund = || agent.refund(&url, None);
    let code = Code::RefundNoBalance.as_str();
    assert!(matches!(refund().await, Err(AgentError::Refused { code: found, .. }) if found == code));
    assert!(matches!(refund().await, Err(AgentError::RefundUnconfirmed(_))), "more than there is");
    assert!(matches!(refund().await, Err(AgentError::RefundUnconfirmed(_))), "no receipt");
    let code = Code::RefundTooOften.as_str();
    assert!(
        matches!(refund().await, Err(AgentError::Refused { code: found, retry_after_s: Some(60), .. }) if found == code)
    );
    assert!(matches!(refund().await, Err(AgentError::Refused { .. })), "corrected once only");
    assert!(matches!(refund().await, Err(AgentError::NotForSale { status: 200 })));
    assert!(matches!(agent.refund(&url, Some(Amount::ZERO)).await, Err(AgentError::NothingToRefund(_))));
    assert_eq!(books(&agent), (2_000, 2_000, 10_000));
    assert_eq!(server.count(), 14);
}

/// The quote of a server that knows payments by their names.
fn named_unpaid(_: &Seen) -> Reply {
    let extensions = json!({"payment-identifier": {"info": {"required": false}}});
    let quote = json!({
        "x402Version": 2,
        "error": "Payment required",
        "resource": {"url": "https://api.example/paid"},
        "accepts": [offer(PRICE)],
        "extensions": extensions,
    });
    Reply::new(402).with(PAYMENT_REQUIRED, encode(&quote))
}

fn lost(_: &Seen) -> Reply {
    Reply::hang_up()
}

#[tokio::test]
async fn a_named_payment_whose_answer_is_lost_is_sent_again_as_it_was() {
    let server = Server::script(vec![named_unpaid, lost, lost, served_in_full, served_in_full]).await;
    let agent = agent();
    let answer = pay(&agent, &server).await.unwrap();
    assert_eq!((answer.status(), charged(&answer)), (StatusCode::OK, PRICE));
    let header = |number| server.check(number, |seen| seen.headers[PAYMENT_SIGNATURE].clone());
    assert_eq!(header(1), header(2));
    assert_eq!(header(1), header(3));
    let id = |number| {
        server.check(number, |seen| {
            let info = seen.paid().extensions["payment-identifier"]["info"].clone();
            assert_eq!(info["required"], json!(false));
            info["id"].as_str().unwrap().to_owned()
        })
    };
    assert!((16..=128).contains(&id(1).len()));
    // Another payment has another name.
    assert_eq!(charged(&pay(&agent, &server).await.unwrap()), PRICE);
    assert_ne!(id(4), id(1));
    assert_eq!(server.count(), 5);
}

#[tokio::test]
async fn a_payment_without_a_name_is_not_sent_again() {
    let server = Server::script(vec![unpaid, lost, served_in_full]).await;
    assert!(matches!(pay(&agent(), &server).await, Err(AgentError::Http(_))));
    assert_eq!(server.count(), 2);
    let server = Server::script(vec![named_unpaid, lost, lost, lost, served_in_full]).await;
    assert!(matches!(pay(&agent(), &server).await, Err(AgentError::Http(_))));
    assert_eq!(server.count(), 4, "it gives up");
}
