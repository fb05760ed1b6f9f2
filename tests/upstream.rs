//! The side of the upstream: several targets, those that fail, time limits, TLS and HTTP/2.
//!
//! Real servers on real sockets. What reached each of them is counted, because that is what must not happen twice.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "in a test a panic is the report")]

#[path = "support/nobody.rs"]
mod nobody;
#[path = "support/payer.rs"]
mod payer;
#[path = "support/stand.rs"]
mod stand;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use http::uri::PathAndQuery;
use http::{Method, Request, Response};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use peaje::gate::Way;
use peaje::pricing::{Tariff, Unit};
use peaje::protocol::Amount;
use peaje::proxy::{Bounds, Breaker, HealthCheck, NoUpstream, Standing, Upstream, UpstreamSettings, UpstreamTls};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls;

use nobody::nobody;
use stand::{PATIENCE, Setup, Stand, tariff, until, upstream_of};

// ---- a server to sell

/// A server that answers with its name, and what it saw.
#[derive(Clone)]
struct Api {
    address: SocketAddr,
    seen: Arc<Seen>,
}

struct Seen {
    name: &'static str,
    connections: AtomicUsize,
    requests: AtomicUsize,
    /// Bytes of bodies.
    bytes: AtomicUsize,
    checks: AtomicUsize,
    status: AtomicU16,
    healthy: AtomicBool,
    /// While it is set, requests wait.
    busy: AtomicBool,
    free: Notify,
    max_streams: Option<u32>,
}

impl Api {
    async fn start(name: &'static str) -> Self {
        Self::start_with(name, None, None).await
    }

    async fn start_with(name: &'static str, tls: Option<TlsAcceptor>, max_streams: Option<u32>) -> Self {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let seen = Arc::new(Seen {
            name,
            connections: AtomicUsize::new(0),
            requests: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            checks: AtomicUsize::new(0),
            status: AtomicU16::new(200),
            healthy: AtomicBool::new(true),
            busy: AtomicBool::new(false),
            free: Notify::new(),
            max_streams,
        });
        let api = Self { address: socket.local_addr().unwrap(), seen };
        let seen = Arc::clone(&api.seen);
        tokio::spawn(async move {
            loop {
                let (stream, _) = socket.accept().await.unwrap();
                seen.connections.fetch_add(1, Ordering::SeqCst);
                let (seen, tls) = (Arc::clone(&seen), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => seen.serve(stream).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                seen.serve(stream).await;
                            }
                        }
                    }
                });
            }
        });
        api
    }

    fn requests(&self) -> usize {
        self.seen.requests.load(Ordering::SeqCst)
    }

    fn connections(&self) -> usize {
        self.seen.connections.load(Ordering::SeqCst)
    }

    fn answer_with(&self, status: u16) {
        self.seen.status.store(status, Ordering::SeqCst);
    }

    fn hold(&self) {
        self.seen.busy.store(true, Ordering::SeqCst);
    }

    fn let_go(&self) {
        self.seen.busy.store(false, Ordering::SeqCst);
        self.seen.free.notify_waiters();
    }
}

impl Seen {
    async fn serve<S>(self: Arc<Self>, stream: S)
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    {
        let mut http = auto::Builder::new(TokioExecutor::new());
        http.http2().max_concurrent_streams(self.max_streams);
        let service = service_fn(move |request| {
            let seen = Arc::clone(&self);
            async move { Ok::<_, Infallible>(seen.answer(request).await) }
        });
        let _ = http.serve_connection(TokioIo::new(stream), service).await;
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        if request.uri().path() == "/healthz" {
            self.checks.fetch_add(1, Ordering::SeqCst);
            let status = if self.healthy.load(Ordering::SeqCst) { 204 } else { 500 };
            return Response::builder().status(status).body(Full::default()).unwrap();
        }
        self.requests.fetch_add(1, Ordering::SeqCst);
        let (version, is_head) = (format!("{:?}", request.version()), request.method() == Method::HEAD);
        let host = request.uri().authority().map(ToString::to_string);
        let host = host.or_else(|| Some(request.headers().get("host")?.to_str().unwrap().to_owned()));
        if let Ok(body) = request.into_body().collect().await {
            self.bytes.fetch_add(body.to_bytes().len(), Ordering::SeqCst);
        }
        loop {
            let free = self.free.notified();
            if !self.busy.load(Ordering::SeqCst) {
                break;
            }
            free.await;
        }
        let status = self.status.load(Ordering::SeqCst);
        let answer = Response::builder().status(status).header("x-version", version);
        let answer = answer.header("x-host", host.unwrap_or_default());
        // On HTTP/2 the library would send it.
        answer.body(if is_head { Full::default() } else { Full::from(self.name) }).unwrap()
    }
}

type LiveBody = UnsyncBoxBody<Bytes, Infallible>;

/// A server that does with each request what a test says; it speaks both protocols.
async fn live<F>(answer: impl Fn(Request<Incoming>) -> F + Clone + Send + 'static) -> SocketAddr
where
    F: Future<Output = Response<LiveBody>> + Send + 'static,
{
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = socket.accept().await.unwrap();
            let answer = answer.clone();
            let service = service_fn(move |request| {
                let answered = answer(request);
                async move { Ok::<_, Infallible>(answered.await) }
            });
            tokio::spawn(async move {
                let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    address
}

/// A body whose pieces are sent while it is read.
fn pieces() -> (mpsc::Sender<Bytes>, LiveBody) {
    let (sender, pieces) = mpsc::channel::<Bytes>(1);
    let stream = futures_util::stream::unfold(pieces, |mut pieces| async move {
        Some((Ok::<_, Infallible>(Frame::data(pieces.recv().await?)), pieces))
    });
    (sender, StreamBody::new(stream).boxed_unsync())
}

/// A server of HTTP/2 that sends a piece of an answer, its end if it is to be whole, and resets the stream without an
/// error once it is told that the piece was read.
async fn resetting(whole: bool, read: Arc<Notify>) -> SocketAddr {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = socket.accept().await.unwrap();
            let read = Arc::clone(&read);
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((_request, mut respond))) = connection.accept().await {
                    let read = Arc::clone(&read);
                    tokio::spawn(async move {
                        let mut answer = respond.send_response(Response::new(()), false).unwrap();
                        answer.send_data(Bytes::from("piece"), whole).unwrap();
                        read.notified().await;
                        respond.send_reset(h2::Reason::NO_ERROR);
                    });
                }
            });
        }
    });
    address
}

// ---- a client

/// Reads until the bytes end with this; what there is, where the connection ends before.
async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut read = Vec::new();
    while !read.ends_with(end.as_bytes()) {
        match tokio::time::timeout(PATIENCE, stream.read_u8()).await.expect("it goes on") {
            Ok(byte) => read.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(read).unwrap()
}

#[derive(Debug)]
struct Answer {
    status: u16,
    headers: http::HeaderMap,
    text: String,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

fn client() -> reqwest::Client {
    peaje::chain::install_tls();
    reqwest::Client::builder().no_proxy().timeout(2 * PATIENCE).build().unwrap()
}

impl Stand {
    async fn get(&self, path: &str) -> Answer {
        self.post(path, String::new()).await
    }

    /// Pays, if the path costs something.
    async fn post(&self, path: &str, body: String) -> Answer {
        let request = client().post(self.url(path)).header("payment-signature", self.payment()).body(body);
        let answer = request.send().await.unwrap();
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        Answer { status, headers, text: answer.text().await.unwrap() }
    }
}

// ---- several targets

#[tokio::test]
async fn a_request_goes_to_the_target_that_has_the_fewest() {
    let (busy, free) = (Api::start("busy").await, Api::start("free").await);
    let stand = Arc::new(Setup::new(upstream_of(&[busy.address, free.address])).open().await);
    let loads = || stand.upstream.targets().iter().map(|target| target.requests).collect::<Vec<_>>();
    // As many requests, so each in its turn.
    for _ in 0..4 {
        // The end of an answer is read a moment before it counts as over.
        until(|| loads() == [Some(0), Some(0)]).await;
        assert_eq!(stand.get("/paid/x").await.status, 200);
    }
    assert_eq!((busy.requests(), free.requests()), (2, 2));
    busy.hold();
    let waiting: Vec<_> = (0..2)
        .map(|_| {
            let stand = Arc::clone(&stand);
            tokio::spawn(async move { stand.get("/free").await.text })
        })
        .collect();
    until(|| (busy.requests(), free.requests()) == (3, 3)).await;
    for _ in 0..6 {
        until(|| loads() == [Some(1), Some(0)]).await;
        assert_eq!(stand.get("/paid/x").await.text, "free");
    }
    assert_eq!(busy.requests(), 3);
    until(|| loads() == [Some(1), Some(0)]).await;
    busy.let_go();
    join_all(waiting).await;
    until(|| loads() == [Some(0), Some(0)]).await;
    assert_eq!(stand.charges(), 10);
}

#[tokio::test]
async fn what_cannot_be_connected_to_is_passed_over_and_nothing_arrives_twice() {
    let api = Api::start("api").await;
    let ((_first, first), (_last, last)) = (nobody(), nobody());
    let stand = Setup::new(upstream_of(&[first, api.address, last])).open().await;
    for n in 1..=12 {
        let answer = stand.post("/paid/x", "0123456789".to_owned()).await;
        assert_eq!((answer.status, answer.text.as_str()), (200, "api"));
        assert_eq!(answer.header("x-host"), api.address.to_string(), "it is called by its own name");
        assert_eq!((api.requests(), api.seen.bytes.load(Ordering::SeqCst)), (n, 10 * n));
    }
    assert_eq!(stand.charges(), 12);
}

#[tokio::test]
async fn where_no_target_can_be_connected_to_nothing_is_charged() {
    let ((_one, one), (_other, other)) = (nobody(), nobody());
    let stand = Setup::new(upstream_of(&[one, other])).open().await;
    let answer = stand.get("/paid/x").await;
    assert_eq!(answer.status, 502);
    assert!(answer.text.contains("upstream_unreachable"), "{answer:?}");
    assert_eq!(stand.charges(), 0);
}

#[tokio::test]
async fn what_was_sent_is_not_sent_again() {
    // Takes a request and hangs up.
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let rude = socket.local_addr().unwrap();
    let taken = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&taken);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = socket.accept().await.unwrap();
            let read = stream.read(&mut [0; 1_024]).await.unwrap();
            counter.fetch_add(usize::from(read > 0), Ordering::SeqCst);
        }
    });
    let api = Api::start("api").await;
    let stand = Setup::new(upstream_of(&[rude, api.address])).open().await;
    let mut answers = Vec::new();
    for _ in 0..6 {
        answers.push(stand.get("/paid/x").await.status);
    }
    assert_eq!((taken.load(Ordering::SeqCst), api.requests()), (3, 3));
    answers.sort_unstable();
    assert_eq!(answers, [200, 200, 200, 502, 502, 502]);
    assert_eq!(stand.charges(), 3);
}

#[tokio::test]
async fn a_route_has_the_upstream_it_names() {
    let (usual, other) = (Api::start("usual").await, Api::start("other").await);
    let mut setup = Setup::new(upstream_of(&[usual.address]));
    setup.named.push(("other", upstream_of(&[other.address])));
    let way = |name: &str| Way { upstream: Some(name.into()), upgrades: Vec::new() };
    setup.paid.extend([("/other/*", way("other")), ("/gone/*", way("gone"))]);
    let stand = setup.open().await;
    assert_eq!(stand.get("/paid/x").await.text, "usual");
    assert_eq!(stand.get("/other/x").await.text, "other");
    assert_eq!(stand.get("/free").await.text, "usual");
    assert_eq!(stand.get("/gone/x").await.status, 502);
    assert_eq!(stand.charges(), 2);
    let names: Vec<_> = stand.upstream.targets().into_iter().map(|target| target.upstream).collect();
    assert_eq!(names, [None, Some("other".to_owned())]);
}

// ---- breakers and health

#[tokio::test]
async fn a_target_that_fails_is_left_alone_for_a_while_and_nothing_is_charged() {
    let api = Api::start("api").await;
    let open_for = Duration::from_millis(4_500);
    let breaker = Some(Breaker { failures: 2, open_for });
    let stand = Setup::new(UpstreamSettings { breaker, ..upstream_of(&[api.address]) }).open().await;
    let standing = || stand.upstream.targets()[0].standing;
    // An answer that only one request may have got is no failure.
    api.answer_with(500);
    for _ in 0..3 {
        assert_eq!(stand.get("/paid/x").await.status, 500);
    }
    assert_eq!(standing(), Standing::Up);
    api.answer_with(503);
    for _ in 0..2 {
        assert_eq!(stand.get("/paid/x").await.text, "api");
    }
    assert_eq!((standing(), api.requests()), (Standing::Out, 5));
    let answer = stand.get("/paid/x").await;
    assert_eq!((answer.status, api.requests()), (503, 5), "nobody asked it");
    assert!(answer.text.contains("upstream_unavailable"), "{answer:?}");
    assert!((1..=5).contains(&answer.header("retry-after").parse::<u64>().unwrap()), "{answer:?}");
    assert_eq!(stand.charges(), 0);
    api.answer_with(200);
    tokio::time::sleep(open_for).await;
    assert_eq!(stand.get("/paid/x").await.text, "api");
    assert_eq!((standing(), stand.charges()), (Standing::Up, 1));
}

#[tokio::test]
async fn a_target_that_is_unwell_gets_nothing_until_it_is_well_unless_none_is() {
    let (one, other) = (Api::start("one").await, Api::start("other").await);
    let health = HealthCheck {
        path: PathAndQuery::from_static("/healthz"),
        interval: Duration::from_millis(20),
        timeout: Duration::from_secs(1),
        unhealthy_after: 3,
        healthy_after: 2,
    };
    let settings = UpstreamSettings { health: Some(health), ..upstream_of(&[one.address, other.address]) };
    let stand = Setup::new(settings).open().await;
    let standings = || stand.upstream.targets().iter().map(|target| target.standing).collect::<Vec<_>>();
    until(|| one.seen.checks.load(Ordering::SeqCst) > 2).await;
    assert_eq!(standings(), [Standing::Up, Standing::Up]);
    one.seen.healthy.store(false, Ordering::SeqCst);
    until(|| standings() == [Standing::Unhealthy, Standing::Up]).await;
    for _ in 0..6 {
        assert_eq!(stand.get("/paid/x").await.text, "other");
    }
    other.seen.healthy.store(false, Ordering::SeqCst);
    until(|| standings() == [Standing::Unhealthy, Standing::Unhealthy]).await;
    let mut names = Vec::new();
    for _ in 0..2 {
        names.push(stand.get("/paid/x").await.text);
    }
    names.sort_unstable();
    assert_eq!(names, ["one", "other"], "a check that is wrong does not close the shop");
    one.seen.healthy.store(true, Ordering::SeqCst);
    until(|| standings() == [Standing::Up, Standing::Unhealthy]).await;
    assert_eq!(stand.get("/paid/x").await.text, "one");
}

// ---- time

#[tokio::test]
async fn the_wait_for_the_head_begins_when_the_request_was_sent() {
    let api = Api::start("api").await;
    let response_timeout = Duration::from_secs(3);
    let stand = Setup::new(UpstreamSettings { response_timeout, ..upstream_of(&[api.address]) }).open().await;
    let mut stream = TcpStream::connect(stand.address).await.unwrap();
    stream
        .write_all(b"POST /free HTTP/1.1\r\nhost: h\r\ncontent-length: 6\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    // Longer in all than the upstream has, and one pause as well.
    for pause_ms in [100, 100, 3_500, 100, 100, 100] {
        tokio::time::sleep(Duration::from_millis(pause_ms)).await;
        stream.write_all(b"x").await.unwrap();
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    api.hold();
    let begun = Instant::now();
    let answer = stand.post("/paid/x", "x".to_owned()).await;
    assert_eq!((answer.status, stand.charges()), (504, 0));
    assert!(answer.text.contains("upstream_timeout"), "{answer:?}");
    assert!(begun.elapsed() >= response_timeout);
}

#[tokio::test]
async fn an_upstream_that_does_not_take_a_body_has_no_more_time_than_one_that_does_not_answer() {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let silent = tokio::spawn(async move { (socket.accept().await.unwrap(), std::future::pending::<()>().await) });
    let response_timeout = Duration::from_millis(400);
    let stand = Setup::new(UpstreamSettings { response_timeout, ..upstream_of(&[address]) }).open().await;
    // More than the buffers between hold, and no more than is thrown away for a client that is refused.
    let answer = stand.post("/paid/x", "x".repeat(14 << 20)).await;
    assert_eq!((answer.status, stand.charges()), (504, 0));
    silent.abort();
}

#[tokio::test]
async fn an_answer_that_stands_still_is_broken_off_and_one_that_moves_is_not() {
    let idle_timeout = Duration::from_secs(3);
    let pause = idle_timeout / 6;
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = socket.accept().await.unwrap();
            tokio::spawn(async move {
                let read = stream.read(&mut [0; 1_024]).await.unwrap();
                assert!(read > 0);
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\n").await.unwrap();
                for _ in 0..7 {
                    tokio::time::sleep(pause).await;
                    stream.write_all(b"x").await.unwrap();
                }
                std::future::pending::<()>().await;
            });
        }
    });
    let stand = Setup::new(UpstreamSettings { idle_timeout, ..upstream_of(&[address]) }).open().await;
    let begun = Instant::now();
    let mut body = client().get(stand.url("/free")).send().await.unwrap();
    let mut read = 0;
    let end = loop {
        match body.chunk().await {
            Ok(Some(bytes)) => read += bytes.len(),
            other => break other,
        }
    };
    assert_eq!(read, 7, "it moved all the time");
    assert!(end.is_err(), "it is not whole");
    assert!(begun.elapsed() >= 7 * pause + idle_timeout);
}

// ---- TLS

/// A directory with the certificates of an upstream and its friends.
struct Pki {
    directory: TempDir,
    ca: CertifiedIssuer<'static, KeyPair>,
}

impl Pki {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("ca.pem"), ca.pem()).unwrap();
        Self { directory, ca }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.directory.path().join(file)
    }

    /// Signs a certificate, and writes it and its key to files.
    fn sign(&self, name: &str) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &self.ca).unwrap();
        let files = (self.path(&format!("{name}.pem")), self.path(&format!("{name}.key")));
        std::fs::write(&files.0, certificate.pem()).unwrap();
        std::fs::write(&files.1, key.serialize_pem()).unwrap();
        files
    }

    /// A server's side of TLS.
    fn acceptor(&self, name: &str, asks_clients: bool, protocols: &[&str]) -> TlsAcceptor {
        use rustls_pki_types::pem::PemObject as _;
        use rustls_pki_types::{CertificateDer, PrivateKeyDer};
        peaje::chain::install_tls();
        let (certificate, key) = self.sign(name);
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.ca.der().clone()).unwrap();
        let builder = rustls::ServerConfig::builder();
        let builder = if asks_clients {
            let verifier = rustls::server::WebPkiClientVerifier::builder(Arc::new(roots)).build().unwrap();
            builder.with_client_cert_verifier(verifier)
        } else {
            builder.with_no_client_auth()
        };
        let certificates = vec![CertificateDer::from_pem_file(certificate).unwrap()];
        let mut config = builder.with_single_cert(certificates, PrivateKeyDer::from_pem_file(key).unwrap()).unwrap();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        TlsAcceptor::from(Arc::new(config))
    }
}

fn encrypted(address: SocketAddr, tls: UpstreamTls) -> UpstreamSettings {
    UpstreamSettings { urls: vec![format!("https://{address}").parse().unwrap()], tls, ..upstream_of(&[address]) }
}

#[tokio::test]
async fn an_upstream_is_believed_if_its_own_ca_says_who_it_is() {
    let pki = Pki::new();
    let api = Api::start_with("api", Some(pki.acceptor("api.internal", false, &[])), None).await;
    let ask = async |tls| {
        let stand = Setup::new(encrypted(api.address, tls)).open().await;
        let answer = stand.get("/paid/x").await;
        assert_eq!(stand.charges(), u128::from(answer.status == 200));
        answer.status
    };
    let ca = Some(pki.path("ca.pem"));
    let name = Some("api.internal".to_owned());
    assert_eq!(ask(UpstreamTls { ca: ca.clone(), server_name: name.clone(), ..UpstreamTls::default() }).await, 200);
    let another = Some("another.internal".to_owned());
    assert_eq!(ask(UpstreamTls { ca: ca.clone(), server_name: another, ..UpstreamTls::default() }).await, 502);
    assert_eq!(ask(UpstreamTls { ca, ..UpstreamTls::default() }).await, 502, "its address is not its name");
    let stranger = Pki::new();
    let ca = Some(stranger.path("ca.pem"));
    assert_eq!(ask(UpstreamTls { ca, server_name: name, ..UpstreamTls::default() }).await, 502);
}

#[tokio::test]
async fn an_upstream_that_wants_to_know_us_is_shown_our_certificate() {
    let pki = Pki::new();
    let api = Api::start_with("api", Some(pki.acceptor("api.internal", true, &[])), None).await;
    let tls = UpstreamTls { ca: Some(pki.path("ca.pem")), server_name: Some("api.internal".to_owned()), client: None };
    let stand = Setup::new(encrypted(api.address, tls.clone())).open().await;
    assert_eq!(stand.get("/paid/x").await.status, 502);
    let tls = UpstreamTls { client: Some(pki.sign("peaje")), ..tls };
    let stand = Setup::new(encrypted(api.address, tls)).open().await;
    assert_eq!(stand.get("/paid/x").await.status, 200);
}

#[test]
fn files_that_are_not_what_they_should_be_are_named() {
    let pki = Pki::new();
    let (certificate, key) = pki.sign("peaje");
    let make = |ca: PathBuf, client| {
        let tls = UpstreamTls { ca: Some(ca), client, server_name: None };
        Upstream::new(&encrypted("127.0.0.1:1".parse().unwrap(), tls)).map(|_| ())
    };
    assert_eq!(make(pki.path("ca.pem"), Some((certificate.clone(), key.clone()))), Ok(()));
    let blamed = |result: Result<(), NoUpstream>| match result {
        Err(NoUpstream::Tls { path, .. }) => path,
        other => panic!("{other:?}"),
    };
    assert_eq!(blamed(make(pki.path("none.pem"), None)), pki.path("none.pem"));
    assert_eq!(blamed(make(key.clone(), None)), key, "a key is no certificate");
    assert_eq!(blamed(make(pki.path("ca.pem"), Some((certificate.clone(), certificate.clone())))), certificate);
    let (_, foreign) = pki.sign("another");
    assert_eq!(blamed(make(pki.path("ca.pem"), Some((certificate, foreign.clone())))), foreign);
}

// ---- HTTP/2

#[tokio::test]
async fn requests_share_a_connection_of_http2() {
    let api = Api::start("api").await;
    let stand = Arc::new(Setup::new(UpstreamSettings { http2: true, ..upstream_of(&[api.address]) }).open().await);
    api.hold();
    let asking = |n: usize| {
        let stand = Arc::clone(&stand);
        tokio::spawn(async move { stand.post("/free", "x".repeat(n)).await })
    };
    let waiting: Vec<_> = (0..20).map(asking).collect();
    until(|| api.requests() == 20).await;
    assert_eq!(api.connections(), 1);
    api.let_go();
    for answer in join_all(waiting).await {
        let answer = answer.unwrap();
        assert_eq!((answer.status, answer.header("x-version")), (200, "HTTP/2.0"));
        assert_eq!(answer.header("x-host"), api.address.to_string());
    }
    assert_eq!(api.seen.bytes.load(Ordering::SeqCst), (0..20).sum::<usize>());
    assert_eq!(stand.get("/paid/x").await.status, 200);
    assert_eq!((api.connections(), stand.charges()), (1, 1));
}

#[tokio::test]
async fn a_connection_has_no_more_requests_than_the_upstream_lets_it_have() {
    let api = Api::start_with("api", None, Some(2)).await;
    let stand = Arc::new(Setup::new(UpstreamSettings { http2: true, ..upstream_of(&[api.address]) }).open().await);
    // The first one learns how many there may be.
    assert_eq!(stand.get("/free").await.status, 200);
    api.hold();
    let asking = |_| {
        let stand = Arc::clone(&stand);
        tokio::spawn(async move { stand.get("/free").await.status })
    };
    let waiting: Vec<_> = (0..6).map(asking).collect();
    until(|| api.requests() == 7).await;
    assert!(api.connections() >= 3, "{}", api.connections());
    api.let_go();
    assert!(join_all(waiting).await.into_iter().all(|status| status.unwrap() == 200));
}

#[tokio::test]
async fn http2_is_agreed_on_under_tls_or_there_is_no_connection() {
    let pki = Pki::new();
    let tls = UpstreamTls { ca: Some(pki.path("ca.pem")), server_name: Some("api.internal".to_owned()), client: None };
    for (protocols, http2, expected) in [
        (["h2", "http/1.1"].as_slice(), true, (200, "HTTP/2.0")),
        (&["h2", "http/1.1"], false, (200, "HTTP/1.1")),
        (&["http/1.1"], true, (502, "")),
        (&[], true, (502, "")),
    ] {
        let api = Api::start_with("api", Some(pki.acceptor("api.internal", false, protocols)), None).await;
        let stand = Setup::new(UpstreamSettings { http2, ..encrypted(api.address, tls.clone()) }).open().await;
        let answer = stand.get("/paid/x").await;
        assert_eq!((answer.status, answer.header("x-version")), expected, "{protocols:?} {http2}");
    }
}

#[tokio::test]
async fn readers_that_are_slow_do_not_stall_the_others_on_their_connection() {
    let sent = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&sent);
    let address = live(move |request| {
        let count = Arc::clone(&count);
        async move {
            if request.uri().path() == "/fast" {
                return Response::new(Full::from("fast").boxed_unsync());
            }
            let endless = futures_util::stream::unfold(count, |count| async move {
                count.fetch_add(1, Ordering::SeqCst);
                Some((Ok(Frame::data(Bytes::from(vec![0; 0x1_0000]))), count))
            });
            Response::new(StreamBody::new(endless).boxed_unsync())
        }
    })
    .await;
    let stand = Setup::new(UpstreamSettings { http2: true, ..upstream_of(&[address]) }).open().await;
    let mut slow = Vec::new();
    for _ in 0..8 {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4_096).unwrap();
        let mut stream = socket.connect(stand.address).await.unwrap();
        stream.write_all(b"GET /slow HTTP/1.1\r\nhost: h\r\n\r\n").await.unwrap();
        assert!(read_until(&mut stream, "\r\n\r\n").await.starts_with("HTTP/1.1 200"));
        slow.push(stream);
    }
    let mut before = 0;
    while before != sent.load(Ordering::SeqCst) {
        before = sent.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let fast = async { client().get(stand.url("/fast")).send().await.unwrap().text().await.unwrap() };
    assert_eq!(tokio::time::timeout(PATIENCE, fast).await.expect("it waits for nobody"), "fast");
}

#[tokio::test]
async fn a_body_that_its_client_breaks_is_no_failure_of_the_target() {
    let body_time = Duration::from_millis(200);
    let broken = [
        // No chunk begins so; the rest does not come; and one that is too large.
        ("transfer-encoding: chunked", "3\r\nabc\r\nzz\r\n".to_owned(), 400, "body_broken"),
        ("content-length: 6", "abc".to_owned(), 408, "body_timeout"),
        ("transfer-encoding: chunked", format!("ff\r\n{}\r\n", "x".repeat(0xff)), 413, "body_too_large"),
    ];
    for http2 in [false, true] {
        let api = Api::start("api").await;
        let breaker = Some(Breaker { failures: 5, open_for: PATIENCE });
        let mut setup = Setup::new(UpstreamSettings { http2, breaker, ..upstream_of(&[api.address]) });
        setup.bounds = Bounds { body_time, max_body: 100, ..Bounds::default() };
        let stand = setup.open().await;
        for _ in 0..2 {
            for (framing, body, status, code) in &broken {
                let mut stream = TcpStream::connect(stand.address).await.unwrap();
                let payment = stand.payment();
                let head =
                    format!("POST /paid/x HTTP/1.1\r\nhost: h\r\npayment-signature: {payment}\r\n{framing}\r\n\r\n");
                stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
                let answer = read_until(&mut stream, "}").await;
                assert!(
                    answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.contains(code),
                    "{http2}: {answer}"
                );
            }
        }
        assert_eq!(stand.upstream.targets()[0].standing, Standing::Up, "{http2}");
        assert_eq!((stand.get("/paid/x").await.status, stand.charges()), (200, 1), "{http2}");
    }
}

/// The most that a metered request costs here, atomic units.
const MOST: u128 = 1_000_000;

/// Five for a request, and something for what the upstream reports.
fn reported() -> Tariff {
    Tariff { base: Amount::new(5), ..tariff(Unit::Reported("x-units".into()), 1, MOST) }
}

#[tokio::test]
async fn an_answer_that_is_reset_before_its_end_is_not_whole_although_the_reset_is_no_error() {
    let read = Arc::new(Notify::new());
    let address = resetting(false, Arc::clone(&read)).await;
    let mut setup = Setup::new(UpstreamSettings { http2: true, ..upstream_of(&[address]) });
    setup.metered.push(("/metered/*", reported(), Way::default()));
    let stand = setup.open().await;
    let payment = stand.payment_for(&Method::POST, "/metered/x");
    let request = client().post(stand.url("/metered/x")).header("payment-signature", payment);
    let mut answer = request.send().await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.chunk().await.unwrap().unwrap().as_ref()), (200, &b"piece"[..]));
    read.notify_one();
    assert!(answer.chunk().await.is_err(), "it does not look whole");
    until(|| stand.charged() > 0).await;
    assert_eq!(stand.charged(), 5, "what is known by then");
}

#[tokio::test]
async fn an_answer_that_needs_no_more_of_its_request_is_whole_although_its_stream_is_reset() {
    let read = Arc::new(Notify::new());
    let address = resetting(true, Arc::clone(&read)).await;
    let stand = Setup::new(UpstreamSettings { http2: true, ..upstream_of(&[address]) }).open().await;
    let mut stream = TcpStream::connect(stand.address).await.unwrap();
    stream.write_all(b"POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 6\r\n\r\nabc").await.unwrap();
    let mut answer = read_until(&mut stream, "piece").await;
    read.notify_one();
    answer.push_str(&read_until(&mut stream, "\r\n0\r\n\r\n").await);
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("piece"), "{answer}");
    assert!(answer.ends_with("\r\n0\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn an_upload_that_its_client_resets_is_not_whole_although_the_reset_is_no_error() {
    let whole = Arc::new(AtomicUsize::new(0));
    let broken = Arc::new(AtomicUsize::new(0));
    let counts = (Arc::clone(&whole), Arc::clone(&broken));
    let address = live(move |request| {
        let (whole, broken) = counts.clone();
        async move {
            // It answers before it has read all.
            let (sender, body) = pieces();
            tokio::spawn(async move {
                let count = if request.into_body().collect().await.is_ok() { whole } else { broken };
                count.fetch_add(1, Ordering::SeqCst);
                drop(sender);
            });
            Response::new(body)
        }
    })
    .await;
    for http2 in [false, true] {
        let stand = Setup::new(UpstreamSettings { http2, ..upstream_of(&[address]) }).open().await;
        let stream = TcpStream::connect(stand.address).await.unwrap();
        let (client, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        let request = Request::post("http://h/free").body(()).unwrap();
        let (answer, mut upload) = client.ready().await.unwrap().send_request(request, false).unwrap();
        upload.send_data(Bytes::from("half"), false).unwrap();
        assert_eq!(answer.await.unwrap().status(), 200);
        upload.send_reset(h2::Reason::NO_ERROR);
        let before = usize::from(http2);
        until(|| whole.load(Ordering::SeqCst) + broken.load(Ordering::SeqCst) > before).await;
        assert_eq!((whole.load(Ordering::SeqCst), broken.load(Ordering::SeqCst)), (0, before + 1), "{http2}");
    }
}

#[tokio::test]
async fn who_waits_for_a_connection_that_cannot_be_opened_goes_elsewhere_with_the_first() {
    // Takes connections, and never shakes hands.
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = socket.local_addr().unwrap();
    let dialled = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&dialled);
    tokio::spawn(async move {
        let mut held = Vec::new();
        loop {
            held.push(socket.accept().await.unwrap());
            count.fetch_add(1, Ordering::SeqCst);
        }
    });
    let api = Api::start("api").await;
    let pki = Pki::new();
    let connect_timeout = Duration::from_secs(3);
    let settings = UpstreamSettings {
        urls: vec![format!("https://{silent}").parse().unwrap(), format!("http://{}", api.address).parse().unwrap()],
        tls: UpstreamTls { ca: Some(pki.path("ca.pem")), ..UpstreamTls::default() },
        http2: true,
        connect_timeout,
        breaker: Some(Breaker { failures: 2, open_for: PATIENCE }),
        ..upstream_of(&[silent])
    };
    let stand = Setup::new(settings).open().await;
    // One for all: to make one takes a while.
    let client = client();
    let begun = Instant::now();
    let asking = |_| {
        let answer = client.get(stand.url("/free")).send();
        tokio::spawn(async move { answer.await.unwrap().text().await.unwrap() })
    };
    let answers = join_all((0..12).map(asking)).await;
    assert!(answers.into_iter().all(|text| text.unwrap() == "api"));
    assert!(begun.elapsed() < 2 * connect_timeout, "{:?}", begun.elapsed());
    assert_eq!(dialled.load(Ordering::SeqCst), 1, "for all of them");
    assert_eq!(stand.upstream.targets()[0].standing, Standing::Up, "it failed once");
    // The next one tries again.
    while dialled.load(Ordering::SeqCst) == 1 {
        assert_eq!(stand.get("/free").await.text, "api");
    }
}

#[tokio::test]
async fn a_body_of_any_method_reaches_an_upstream_of_either_protocol() {
    for http2 in [false, true] {
        let api = Api::start("api").await;
        let stand = Setup::new(UpstreamSettings { http2, ..upstream_of(&[api.address]) }).open().await;
        let mut expected = 0;
        for method in ["GET", "HEAD", "POST"] {
            let mut stream = TcpStream::connect(stand.address).await.unwrap();
            let head = "HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\nconnection: close";
            stream.write_all(format!("{method} /free {head}\r\n\r\n5\r\nhello\r\n0\r\n\r\n").as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            expected += 5;
            assert_eq!(api.seen.bytes.load(Ordering::SeqCst), expected, "{method} over HTTP/1, {http2}");
            // On HTTP/2 a body needs no length.
            let stream = TcpStream::connect(stand.address).await.unwrap();
            let (client, connection) = h2::client::handshake(stream).await.unwrap();
            tokio::spawn(connection);
            let request = Request::builder().method(method).uri("http://h/free").body(()).unwrap();
            let (answer, mut upload) = client.ready().await.unwrap().send_request(request, false).unwrap();
            upload.send_data(Bytes::from("hello"), false).unwrap();
            upload.send_data(Bytes::from(" again"), true).unwrap();
            assert_eq!(answer.await.unwrap().status(), 200);
            expected += 11;
            assert_eq!(api.seen.bytes.load(Ordering::SeqCst), expected, "{method} over HTTP/2, {http2}");
        }
    }
}

// ---- who ends what costs by what it uses

#[tokio::test]
async fn a_payer_that_breaks_its_own_body_has_left_and_no_upstream_has_failed() {
    // Until then the first piece of the answer has come.
    let body_time = Duration::from_secs(3);
    for http2 in [false, true] {
        // Answers before it has all of the request, and reports nothing before its end.
        let address = live(|request| async move {
            let (sender, body) = pieces();
            tokio::spawn(async move {
                let _request = request;
                let _ = sender.send(Bytes::from("piece")).await;
                sender.closed().await;
            });
            Response::new(body)
        })
        .await;
        for ends in ["pauses", "breaks", "leaves", "leaves well"] {
            let mut setup = Setup::new(UpstreamSettings { http2, ..upstream_of(&[address]) });
            setup.metered.push(("/metered/*", reported(), Way::default()));
            setup.bounds = Bounds { body_time: if ends == "pauses" { body_time } else { PATIENCE }, ..setup.bounds };
            let stand = setup.open().await;
            let payment = stand.payment_for(&Method::POST, "/metered/x");
            let head = "transfer-encoding: chunked\r\nhost: h";
            let request =
                format!("POST /metered/x HTTP/1.1\r\n{head}\r\npayment-signature: {payment}\r\n\r\n3\r\nabc\r\n");
            let mut stream = TcpStream::connect(stand.address).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            assert!(read_until(&mut stream, "piece\r\n").await.starts_with("HTTP/1.1 200"), "{http2} {ends}");
            assert_eq!(stand.charged(), 0);
            match ends {
                "pauses" => {}
                "breaks" => stream.write_all(b"zz\r\n").await.unwrap(),
                "leaves well" => stream.shutdown().await.unwrap(),
                _ => {
                    stream.set_zero_linger().unwrap();
                    drop(stream);
                }
            }
            until(|| stand.charged() > 0).await;
            assert_eq!(stand.charged(), MOST, "{http2} {ends}");
        }
    }
}
