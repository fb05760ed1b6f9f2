//! The listener as operators meet it: TLS, load balancers, limits, and an end without a failed request. Real sockets and real
//! clients on both sides.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test that cannot go on should say so at once"
)]

#[path = "support/front.rs"]
mod front;
#[path = "support/payer.rs"]
mod payer;
#[path = "support/raw.rs"]
mod raw;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use ipnet::IpNet;
use peaje::gate::Limits;
use peaje::protocol::{Amount, Voucher};
use peaje::proxy::{Bounds, CertificateFiles, Certificates, ForwardedHeader, Listener, Trusted};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use front::{Authority, PRICE, Setup, Site};
use raw::{Client, OK, PATIENCE, api, plain_api, soon};

/// What the tests that wait for a limit set it to.
const SHORT: Duration = Duration::from_millis(300);
/// The same where something has to succeed within it, on a machine that may be slow.
const LONG: Duration = Duration::from_secs(3);

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: api.example.com\r\n\r\n")
}

fn with(path: &str, headers: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: api.example.com\r\n{headers}\r\n\r\n")
}

// ---- TLS

async fn tls_site(upstream: SocketAddr, files: &[CertificateFiles]) -> Site {
    let certificates = Certificates::load(files).unwrap();
    Setup::new(upstream).open_with(|listener| listener.tls(certificates)).await
}

async fn handshake(
    site: &Site,
    config: Arc<rustls::ClientConfig>,
    name: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(site.address).await.unwrap();
    let name = rustls_pki_types::ServerName::try_from(name.to_owned()).unwrap();
    soon(TlsConnector::from(config).connect(name, stream)).await
}

async fn h1(stream: TlsStream<TcpStream>) -> http1::SendRequest<Full<Bytes>> {
    let (sender, connection) = soon(http1::handshake(TokioIo::new(stream))).await.unwrap();
    tokio::spawn(connection);
    sender
}

async fn h2<S>(stream: S) -> http2::SendRequest<Full<Bytes>>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = soon(http2::handshake(TokioExecutor::new(), TokioIo::new(stream))).await.unwrap();
    tokio::spawn(connection);
    sender
}

async fn text_of(response: Response<Incoming>) -> (u16, Bytes) {
    let status = response.status().as_u16();
    (status, soon(response.into_body().collect()).await.unwrap().to_bytes())
}

#[tokio::test]
async fn both_protocols_are_spoken_over_tls_and_the_upstream_is_told_of_it() {
    let (directory, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let api = plain_api().await;
    let site = tls_site(api.address, &[authority.issue(directory.path(), &["api.example.com"])]).await;
    for (offered, chosen) in
        [(&["h2", "http/1.1"][..], Some("h2")), (&["http/1.1"], Some("http/1.1")), (&["h2"], Some("h2")), (&[], None)]
    {
        let stream = handshake(&site, authority.client(offered), "api.example.com").await.unwrap();
        let protocol = stream.get_ref().1.alpn_protocol().map(|name| String::from_utf8(name.to_vec()).unwrap());
        assert_eq!(protocol.as_deref(), chosen);
        let request = Request::get("https://api.example.com/x").header("host", "api.example.com");
        let request = request.body(Full::default()).unwrap();
        let response = if chosen == Some("h2") {
            soon(h2(stream).await.send_request(request)).await
        } else {
            soon(h1(stream).await.send_request(request)).await
        };
        assert_eq!(text_of(response.unwrap()).await, (200, Bytes::from("ok")));
        // Whatever the public URL says: this request came over TLS.
        assert_eq!(api.last().all("x-forwarded-proto"), ["https"]);
        assert_eq!(api.last().all("x-forwarded-for"), ["127.0.0.1"]);
    }
    // A protocol that is not spoken is refused in the handshake, and plain text is no handshake.
    assert!(handshake(&site, authority.client(&["spdy/3"]), "api.example.com").await.is_err());
    let mut plain = site.client().await;
    plain.send(get("/x")).await;
    while plain.more().await {}
    assert!(!plain.buffer.starts_with(b"HTTP"));
}

#[tokio::test]
async fn it_is_paid_over_tls_as_it_is_without() {
    let (directory, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let site = tls_site(plain_api().await.address, &[authority.issue(directory.path(), &["h"])]).await;
    let payer = site.payer(1);
    for protocols in [&["h2"][..], &["http/1.1"]] {
        let stream = handshake(&site, authority.client(protocols), "h").await.unwrap();
        let before = site.charged(&payer);
        let request =
            Request::get("https://h/paid/x").header("host", "h").header("payment-signature", site.payment(&payer));
        let request = request.body(Full::default()).unwrap();
        let response = match protocols {
            ["h2"] => soon(h2(stream).await.send_request(request)).await,
            _ => soon(h1(stream).await.send_request(request)).await,
        };
        let response = response.unwrap();
        assert!(response.headers().contains_key("payment-response"));
        assert_eq!(text_of(response).await.0, 200);
        assert_eq!(site.charged(&payer), before + PRICE);
    }
}

fn names_of(stream: &TlsStream<TcpStream>, candidates: &[&str]) -> Vec<String> {
    let certificate = &stream.get_ref().1.peer_certificates().unwrap()[0];
    let parsed = rustls::server::ParsedCertificate::try_from(certificate).unwrap();
    let covers = |name: &&&str| {
        let name = rustls_pki_types::ServerName::try_from(**name).unwrap();
        rustls::client::verify_server_name(&parsed, &name).is_ok()
    };
    candidates.iter().filter(covers).map(|name| (*name).to_owned()).collect()
}

#[tokio::test]
async fn the_certificate_is_the_one_for_the_name_that_is_asked_for() {
    let authority = Authority::new();
    let [first, second] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let files = [authority.issue(first.path(), &["a.example"]), authority.issue(second.path(), &["b.example"])];
    let site = tls_site(plain_api().await.address, &files).await;
    for name in ["a.example", "b.example"] {
        let stream = handshake(&site, authority.client(&[]), name).await.unwrap();
        assert_eq!(names_of(&stream, &["a.example", "b.example"]), [name]);
    }
    // No other name, and no name at all, gets the first; whether that will do is for the client to say.
    for name in ["c.example", "127.0.0.1"] {
        let error = handshake(&site, authority.client(&[]), name).await.unwrap_err();
        assert!(error.to_string().contains("not valid for name"), "{error}");
    }
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_to_new_connections_and_a_broken_one_never() {
    let (directory, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let files = authority.issue(directory.path(), &["old.example"]);
    let certificates = Certificates::load(std::slice::from_ref(&files)).unwrap();
    let settle = |listener: Listener| listener.tls_renewed_every(certificates, Duration::from_millis(20));
    let site = Setup::new(plain_api().await.address).open_with(settle).await;
    let mut kept = h1(handshake(&site, authority.client(&["http/1.1"]), "old.example").await.unwrap()).await;
    // Half of a renewal: a key that is not the certificate's.
    let other = tempfile::tempdir().unwrap();
    let unfit = authority.issue(other.path(), &["new.example"]);
    fs::copy(&unfit.key, &files.key).unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(handshake(&site, authority.client(&[]), "old.example").await.is_ok());
    // The other half.
    fs::copy(&unfit.cert, &files.cert).unwrap();
    soon(async {
        while handshake(&site, authority.client(&[]), "new.example").await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert!(handshake(&site, authority.client(&[]), "old.example").await.is_err());
    let request = Request::get("/x").header("host", "h").body(Full::default()).unwrap();
    assert_eq!(soon(kept.send_request(request)).await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_handshake_that_does_not_come_to_its_end_keeps_no_place() {
    let (directory, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let certificates = Certificates::load(&[authority.issue(directory.path(), &["h"])]).unwrap();
    let settle = |listener: Listener| listener.tls(certificates).header_time(LONG).max_connections(1);
    let site = Setup::new(plain_api().await.address).open_with(settle).await;
    // Nothing, and the beginning of a client's hello.
    for beginning in [&b""[..], b"\x16\x03\x01\x02\x00\x01\x00"] {
        let begun = Instant::now();
        let mut silent = site.client().await;
        silent.send(beginning).await;
        let stream = handshake(&site, authority.client(&["h2"]), "h").await.unwrap();
        assert!(begun.elapsed() >= LONG, "there is one place");
        let request = Request::get("https://h/x").body(Full::default()).unwrap();
        assert_eq!(soon(h2(stream).await.send_request(request)).await.unwrap().status(), 200);
        assert!(silent.ends().await);
    }
}

/// Whether a program is here. Where it is not, its test says so and passes.
fn has(program: &str) -> bool {
    let there = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !there {
        println!("there is no {program} here; skipped");
    }
    there
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_is_served_over_tls_and_over_both_kinds_of_http_2() {
    if !has("curl") {
        return;
    }
    let (directory, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let api = plain_api().await;
    let secure = tls_site(api.address, &[authority.issue(directory.path(), &["localhost"])]).await;
    let plain = Setup::new(api.address).open().await;
    let trusted = authority.trusted_in(directory.path());
    let payer = secure.payer(1);
    let https = |path: &str| format!("https://localhost:{}{path}", secure.address.port());
    let http = |path: &str| format!("http://127.0.0.1:{}{path}", plain.address.port());
    let payment = format!("payment-signature: {}", secure.payment(&payer));
    let (large, upload) = ("x".repeat(300_000), directory.path().join("upload"));
    fs::write(&upload, large).unwrap();
    let file = format!("@{}", upload.display());
    let cases: Vec<(Vec<&str>, String, &str)> = vec![
        (vec!["--http1.1"], https("/x"), "200 1.1"),
        (vec!["--http2"], https("/x"), "200 2"),
        (vec!["--tlsv1.2", "--tls-max", "1.2"], https("/x"), "200 2"),
        (vec!["--tlsv1.3"], https("/x"), "200 2"),
        (vec!["--http2"], https("/paid/x"), "402 2"),
        (vec!["--http2", "-H", &payment], https("/paid/x"), "200 2"),
        (vec!["--http1.1", "--data-binary", &file], https("/x"), "200 1.1"),
        (vec!["--http2", "--data-binary", &file], https("/x"), "200 2"),
        (vec!["--http1.1", "-H", "expect: 100-continue", "--data-binary", &file], https("/x"), "200 1.1"),
        (vec!["--http1.1", "-H", "expect: 100-continue", "--data-binary", &file], https("/paid/x"), "402 1.1"),
        (vec!["--http2-prior-knowledge"], http("/x"), "200 2"),
        (vec!["--http2-prior-knowledge", "--data-binary", &file], http("/paid/x"), "402 2"),
        // An offer to upgrade, which a server may ignore (RFC 9113, 3.1).
        (vec!["--http2"], http("/x"), "200 1.1"),
        (vec!["-I", "--http2"], https("/paid/x"), "402 2"),
    ];
    for (arguments, url, expected) in cases {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--noproxy", "*", "--max-time", "20", "--output", "/dev/null"]);
        curl.args(["--write-out", "%{http_code} %{http_version}", "--cacert"]).arg(&trusted).args(&arguments).arg(&url);
        let output = tokio::task::spawn_blocking(move || curl.output().unwrap()).await.unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(said, expected, "{arguments:?} {url}: {}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(secure.charged(&payer), PRICE);
    // 1.1 is no longer spoken (RFC 8996), and a stranger's certificate is not taken.
    for arguments in [&["--tls-max", "1.1", "--cacert"][..], &["--cacert"]] {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--noproxy", "*", "--max-time", "20"]).args(arguments);
        curl.arg(if arguments.len() == 1 { directory.path().join("cert.pem") } else { trusted.clone() });
        if arguments.len() == 1 {
            fs::write(
                directory.path().join("cert.pem"),
                fs::read(Authority::new().trusted_in(directory.path())).unwrap(),
            )
            .unwrap();
        }
        let curl = curl.arg(https("/x")).status().unwrap();
        assert!(!curl.success(), "{arguments:?}");
    }
}

// ---- load balancers

/// A voucher of a channel that somebody else signed.
fn forged() -> String {
    let [victim, forger] = [99, 77].map(|n| payer::Payer::new(n, &payer::usual_terms(), PRICE));
    let voucher = Voucher { channel: victim.id(), max_claimable: Amount::new(PRICE) };
    let signed = voucher.sign(&victim.settlement(), &forger.key);
    victim.voucher(PRICE).set("/payload/voucher", serde_json::to_value(signed).unwrap()).header()
}

fn believe(networks: &[&str]) -> Trusted {
    let networks: Vec<IpNet> = networks.iter().map(|text| text.parse().unwrap()).collect();
    Trusted::new(&networks, ForwardedHeader::XForwardedFor)
}

async fn from(site: &Site, last: u8) -> Client {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((Ipv4Addr::new(127, 0, 0, last), 0).into()).unwrap();
    Client { stream: soon(socket.connect(site.address)).await.unwrap(), buffer: Vec::new() }
}

#[tokio::test]
async fn a_trusted_proxy_names_the_client_of_each_request_and_nobody_else_does() {
    let api = plain_api().await;
    let site = Setup::new(api.address).open_with(|listener| listener.trust(believe(&["127.0.0.2/32"]))).await;
    let claims = |client: &str| {
        with(
            "/x",
            &format!(
                "x-forwarded-for: 6.6.6.6, {client}\r\nx-forwarded-proto: https\r\nx-forwarded-host: shop.example"
            ),
        )
    };
    let told = |name: &str| api.last().all(name).join("|");
    let mut balancer = from(&site, 2).await;
    for client in ["192.0.2.1", "2001:db8::1"] {
        assert_eq!(balancer.ask(&claims(client)).await.status, 200);
        assert_eq!(told("x-forwarded-for"), client);
        assert_eq!(
            (told("x-forwarded-proto"), told("x-forwarded-host")),
            ("https".to_owned(), "shop.example".to_owned())
        );
    }
    // One that says nothing is the client itself.
    assert_eq!(balancer.ask(&get("/x")).await.status, 200);
    assert_eq!((told("x-forwarded-for"), told("x-forwarded-proto")), ("127.0.0.2".to_owned(), "http".to_owned()));
    let mut stranger = from(&site, 3).await;
    assert_eq!(stranger.ask(&claims("192.0.2.1")).await.status, 200);
    assert_eq!(told("x-forwarded-for"), "127.0.0.3");
    assert_eq!(
        (told("x-forwarded-proto"), told("x-forwarded-host")),
        ("http".to_owned(), "api.example.com".to_owned())
    );
    // The same on HTTP/2, stream by stream.
    let mut streams = h2(from(&site, 2).await.stream).await;
    for client in ["192.0.2.1", "192.0.2.2"] {
        let request = Request::get("http://inner.example/x").header("x-forwarded-for", client);
        let request = request.header("x-forwarded-host", "shop.example").body(Full::default()).unwrap();
        assert_eq!(soon(streams.send_request(request)).await.unwrap().status(), 200);
        assert_eq!((told("x-forwarded-for"), told("x-forwarded-host")), (client.to_owned(), "shop.example".to_owned()));
    }
}

#[tokio::test]
async fn limits_for_a_peer_are_the_clients_behind_a_trusted_proxy() {
    let limits = Limits { bad_signatures_per_minute: 2, ..Limits::default() };
    let setup = Setup { limits, ..Setup::new(plain_api().await.address) };
    let site = setup.open_with(|listener| listener.trust(believe(&["127.0.0.2/32"])).connections_per_peer(1)).await;
    let stranger = forged();
    let ask = |client: &str| with("/paid/x", &format!("x-forwarded-for: {client}\r\npayment-signature: {stranger}"));
    // More connections than a peer may have: they are the proxy's, not a client's.
    let (mut one, mut two) = (from(&site, 2).await, from(&site, 2).await);
    for balancer in [&mut one, &mut two] {
        assert_eq!(balancer.ask(&ask("192.0.2.1")).await.status, 402);
    }
    let mut limited = 0;
    for balancer in [&mut one, &mut two] {
        limited += u16::from(balancer.ask(&ask("192.0.2.1")).await.status == 429);
    }
    assert!(limited > 0, "this client has sent too many");
    assert_eq!(one.ask(&ask("192.0.2.2")).await.status, 402, "another one has not");
    let (mut own, mut more) = (from(&site, 3).await, from(&site, 3).await);
    assert_eq!(own.ask(&get("/x")).await.status, 200);
    assert!(more.ends().await, "who is no proxy has its share");
}

const V1: &[u8] = b"PROXY TCP4 192.0.2.7 10.0.0.1 4711 443\r\n";
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c\xc0\x00\x02\x08\x0a\0\0\x01\x12\x67\x01\xbb";
const V2_LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00";

#[tokio::test]
async fn the_proxy_protocol_names_the_client_of_a_connection() {
    let api = plain_api().await;
    let settle = |listener: Listener| listener.proxy_protocol(true).trust(believe(&["127.0.0.2/32"]));
    let site = Setup::new(api.address).open_with(settle).await;
    for (header, client) in
        [(V1, "192.0.2.7"), (V2, "192.0.2.8"), (V2_LOCAL, "127.0.0.2"), (b"PROXY UNKNOWN\r\n", "127.0.0.2")]
    {
        let mut balancer = from(&site, 2).await;
        balancer.send([header, get("/x").as_bytes()].concat()).await;
        assert_eq!(balancer.answer(false).await.status, 200);
        assert_eq!(api.last().all("x-forwarded-for"), [client]);
        // The client behind it is nobody's proxy, and says nothing of where it comes from.
        let claimed = balancer.ask(&with("/x", "x-forwarded-for: 6.6.6.6")).await;
        assert_eq!(claimed.status, 200);
        let expected = if client == "127.0.0.2" { "6.6.6.6" } else { client };
        assert_eq!(api.last().all("x-forwarded-for"), [expected]);
    }
    // No header, half of one, and one from somebody else.
    let count = api.requests().len();
    let site = Setup::new(api.address).open_with(|listener| settle(listener).header_time(SHORT)).await;
    let cases: [(&[u8], u8); 5] =
        [(get("/x").leak().as_bytes(), 2), (b"PROXY TCP4 192", 2), (&V2[..20], 2), (b"", 2), (V1, 3)];
    for (bytes, last) in cases {
        let mut client = from(&site, last).await;
        let _ = client.stream.write_all(bytes).await;
        assert!(client.ends().await, "{bytes:?}");
    }
    assert_eq!(api.requests().len(), count);
}

#[tokio::test]
async fn tls_follows_the_proxy_protocol_and_clients_are_counted_by_it() {
    let (directory, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let api = plain_api().await;
    let certificates = Certificates::load(&[authority.issue(directory.path(), &["h"])]).unwrap();
    let settle = |listener: Listener| listener.proxy_protocol(true).tls(certificates).connections_per_peer(1);
    let site = Setup::new(api.address).open_with(settle).await;
    let connect = async |header: &[u8]| {
        let mut client = site.client().await;
        client.send(header).await;
        let name = rustls_pki_types::ServerName::try_from("h").unwrap();
        soon(TlsConnector::from(authority.client(&["h2"])).connect(name, client.stream)).await
    };
    let mut first = h2(connect(V2).await.unwrap()).await;
    assert!(connect(V2).await.is_err(), "a second one of the same client");
    let mut second = h2(connect(V1).await.unwrap()).await;
    for (client, address) in [(&mut first, "192.0.2.8"), (&mut second, "192.0.2.7")] {
        let request = Request::get("https://h/x").body(Full::default()).unwrap();
        assert_eq!(soon(client.send_request(request)).await.unwrap().status(), 200);
        assert_eq!(api.last().all("x-forwarded-for"), [address]);
        assert_eq!(api.last().all("x-forwarded-proto"), ["https"]);
    }
}

// ---- limits

#[tokio::test]
async fn a_body_that_is_too_large_is_refused_before_it_is_paid() {
    let api = plain_api().await;
    let bounds = Bounds { max_body: 10, ..Bounds::default() };
    let site = Setup { bounds, ..Setup::new(api.address) }.open().await;
    let payer = site.payer(1);
    let post = |path: &str, more: &str| format!("POST {path} HTTP/1.1\r\nhost: h\r\n{more}\r\n\r\n");
    let mut client = site.client().await;
    let exact = format!("{}0123456789", post("/x", "content-length: 10"));
    assert_eq!(client.ask(&exact).await.status, 200);
    // As long as it says that it is larger, nothing of it is waited for, and nothing is paid.
    for path in ["/x", "/paid/x"] {
        let payment = format!("payment-signature: {}\r\n", site.payment(&payer));
        client.send(post(path, &format!("{payment}content-length: 11"))).await;
        let refused = client.answer(false).await;
        assert_eq!(refused.told(), (413, "body_too_large".to_owned()));
        client.send("01234567890").await;
        assert_eq!(client.ask(&get("/x")).await.status, 200, "the connection goes on");
    }
    // Otherwise it is cut off where it is too large, and costs nothing.
    let head = post("/paid/x", &format!("payment-signature: {}\r\ntransfer-encoding: chunked", site.payment(&payer)));
    client.send(format!("{head}6\r\n012345\r\n5\r\n67890\r\n0\r\n\r\n")).await;
    assert_eq!(client.answer(false).await.told(), (413, "body_too_large".to_owned()));
    assert_eq!(site.charged(&payer), 0);
    let mut client = site.client().await;
    let head = post("/paid/x", &format!("payment-signature: {}\r\ntransfer-encoding: chunked", site.payment(&payer)));
    client.send(format!("{head}5\r\n01234\r\n5\r\n56789\r\n0\r\n\r\n")).await;
    assert_eq!((client.answer(false).await.status, site.charged(&payer)), (200, PRICE));
    let mut streams = h2(site.client().await.stream).await;
    for (length, status) in [(10, 200), (11, 413)] {
        let request = Request::post("http://h/x").body(Full::from(vec![b'x'; length])).unwrap();
        assert_eq!(soon(streams.send_request(request)).await.unwrap().status(), status);
    }
    assert!(api.requests().iter().all(|seen| seen.body.len() <= 10));
}

#[tokio::test]
async fn heads_are_bounded_as_the_operator_says() {
    let api = plain_api().await;
    let bounds = Bounds { max_headers: 40, ..Bounds::default() };
    let settle = |listener: Listener| listener.header_bytes(128 * 1024).max_headers(40);
    let site = Setup { bounds, ..Setup::new(api.address) }.open_with(settle).await;
    let many = |count: usize| (0..count).map(|n| format!("x-{n}: 1")).collect::<Vec<_>>().join("\r\n");
    let large = |kib: usize| format!("x-large: {}", "a".repeat(kib * 1024));
    for (headers, status) in [(many(39), 200), (many(40), 431), (large(100), 200), (large(130), 431)] {
        let mut client = site.client().await;
        client.send(with("/x", &headers)).await;
        assert_eq!(client.answer(false).await.status, status, "{}", headers.len());
    }
    for (count, status) in [(40, 200), (41, 431)] {
        let mut streams = h2(site.client().await.stream).await;
        let mut request = Request::get("http://h/x");
        for n in 0..count {
            request = request.header(format!("x-{n}"), "1");
        }
        let response = soon(streams.send_request(request.body(Full::default()).unwrap())).await.unwrap();
        assert_eq!(response.status(), status, "{count}");
    }
}

#[tokio::test]
async fn the_time_for_a_head_is_that_of_every_request() {
    let site = Setup::new(plain_api().await.address).open_with(|listener| listener.header_time(LONG)).await;
    let ends = async |beginning: &str| {
        let mut client = site.client().await;
        assert_eq!(client.ask(&get("/x")).await.status, 200);
        let begun = Instant::now();
        let _ = client.stream.write_all(beginning.as_bytes()).await;
        // Byte by byte does not help.
        let more = async {
            while !beginning.is_empty() && client.stream.write_all(b"a").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        soon(more).await;
        assert!(client.ends().await, "{beginning:?}");
        // Sooner than the time that there is unless said.
        assert!(begun.elapsed() < 4 * LONG, "{beginning:?}");
    };
    tokio::join!(ends(""), ends("GET /x"), ends("GET /x HTTP/1.1\r\nhost: h\r\nx-slow: "));
}

#[tokio::test]
async fn an_http_2_connection_that_asks_for_nothing_more_is_told_to_end() {
    let site = Setup::new(plain_api().await.address).open_with(|listener| listener.idle_time(LONG)).await;
    let stream = site.client().await.stream;
    let (mut sender, connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        // A client that is there, and says so.
        .keep_alive_interval(Duration::from_millis(50))
        .keep_alive_while_idle(true)
        .handshake(TokioIo::new(stream))
        .await
        .unwrap();
    let ended = tokio::spawn(connection);
    // One that asks for something now and then has longer than that.
    for _ in 0..6 {
        let request = Request::get("http://h/x").body(Full::<Bytes>::default()).unwrap();
        assert_eq!(soon(sender.send_request(request)).await.unwrap().status(), 200);
        tokio::time::sleep(LONG / 4).await;
    }
    soon(ended).await.unwrap().unwrap();
}

#[tokio::test]
async fn an_http_2_connection_that_is_told_to_end_finishes_what_was_asked() {
    let upstream = raw::script(|stream| async move {
        let mut peer = Client { stream, buffer: Vec::new() };
        while raw::receive(&mut peer).await.is_some() {
            tokio::time::sleep(4 * SHORT).await;
            peer.send(OK).await;
        }
    })
    .await;
    let site = Setup::new(upstream).open_with(|listener| listener.idle_time(SHORT)).await;
    let mut streams = h2(site.client().await.stream).await;
    let request = Request::get("http://h/x").body(Full::default()).unwrap();
    let response = soon(streams.send_request(request)).await.unwrap();
    assert_eq!(text_of(response).await, (200, Bytes::from("ok")));
}

#[tokio::test]
async fn an_http_2_connection_that_is_told_to_end_waits_for_an_upstream_that_is_silent() {
    let upstream = raw::script(|stream| async move {
        let mut peer = Client { stream, buffer: Vec::new() };
        raw::receive(&mut peer).await.unwrap();
        peer.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n").await;
        tokio::time::sleep(6 * SHORT).await;
        peer.send("4\r\nlast\r\n0\r\n\r\n").await;
    })
    .await;
    let site = Setup::new(upstream).open_with(|listener| listener.idle_time(SHORT)).await;
    let mut streams = h2(site.client().await.stream).await;
    let request = Request::get("http://h/x").body(Full::default()).unwrap();
    let response = soon(streams.send_request(request)).await.unwrap();
    assert_eq!(text_of(response).await, (200, Bytes::from("firstlast")));
}

/// An upstream that tells of each request and answers once it may, each time.
async fn waiting_upstream() -> (SocketAddr, Arc<Semaphore>, UnboundedReceiver<()>) {
    let may = Arc::new(Semaphore::new(0));
    let gate = Arc::clone(&may);
    let (told, arrived) = unbounded_channel();
    let upstream = raw::script(move |stream| {
        let (gate, told) = (Arc::clone(&gate), told.clone());
        async move {
            let mut peer = Client { stream, buffer: Vec::new() };
            while raw::receive(&mut peer).await.is_some() {
                told.send(()).unwrap();
                gate.acquire().await.unwrap().forget();
                peer.send(OK).await;
            }
        }
    })
    .await;
    (upstream, may, arrived)
}

#[tokio::test]
async fn one_client_does_not_take_all_requests_that_are_served_at_once() {
    let (upstream, may, mut arrived) = waiting_upstream().await;
    let bounds = Bounds { max_requests: 16, ..Bounds::default() };
    let site = Setup { bounds, ..Setup::new(upstream) };
    let site = site.open_with(|listener| listener.trust(believe(&["127.0.0.2/32", "203.0.113.0/24"]))).await;
    let mut served = Vec::new();
    let mut ask = async |client: &str| {
        let mut balancer = from(&site, 2).await;
        balancer.send(with("/x", client)).await;
        tokio::select! {
            answer = balancer.try_answer(false) => answer.unwrap().told(),
            arrived = soon(arrived.recv()) => {
                arrived.unwrap();
                served.push(balancer);
                (200, String::new())
            }
        }
    };
    let (served_told, refused) = ((200, String::new()), (503, "overloaded".to_owned()));
    for _ in 0..4 {
        assert_eq!(ask("x-forwarded-for: 192.0.2.1").await, served_told);
    }
    assert_eq!(ask("x-forwarded-for: 192.0.2.1").await, refused, "it has a quarter");
    assert_eq!(ask("x-forwarded-for: 2001:db8::1").await, served_told, "others have theirs");
    // Who is believed and names nobody stands for many; so does this machine.
    for unnamed in ["x-other: 1", "x-forwarded-for: 203.0.113.9", "x-forwarded-for: 127.0.0.1"] {
        for _ in 0..2 {
            assert_eq!(ask(unnamed).await, served_told, "{unnamed}");
        }
    }
    may.add_permits(1_000);
    for client in &mut served {
        assert_eq!(client.answer(false).await.status, 200);
    }
    let mut again = from(&site, 2).await;
    assert_eq!(again.ask(&with("/x", "x-forwarded-for: 192.0.2.1")).await.status, 200, "its places are free again");
}

// ---- what passes through

#[tokio::test]
async fn who_pays_and_asks_first_is_invited_and_charged_once() {
    let api = plain_api().await;
    let site = Setup::new(api.address).open().await;
    let payer = site.payer(1);
    let mut client = site.client().await;
    let payment = site.payment(&payer);
    let head = format!(
        "POST /paid/x HTTP/1.1\r\nhost: h\r\npayment-signature: {payment}\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n"
    );
    client.send(head).await;
    assert_eq!(client.answer(false).await.status, 100);
    client.send("body").await;
    assert_eq!(client.answer(false).await.text(), "ok");
    assert_eq!((api.last().body, site.charged(&payer)), (b"body".to_vec(), PRICE));
    // One that is too large is not invited.
    let bounds = Bounds { max_body: 3, ..Bounds::default() };
    let small = Setup { bounds, ..Setup::new(api.address) }.open().await;
    let mut client = small.client().await;
    client.send("POST /x HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n").await;
    assert_eq!(client.answer(false).await.status, 413);
}

#[tokio::test]
async fn parts_are_sold_as_whole_answers_are_and_encodings_are_not_touched() {
    let api = api(|seen| {
        let part = "HTTP/1.1 206 Partial Content\r\ncontent-range: bytes 0-1/9\r\ncontent-length: 2\r\n\r\nab";
        let none = "HTTP/1.1 416 Range Not Satisfiable\r\ncontent-range: bytes */9\r\ncontent-length: 0\r\n\r\n";
        let squeezed = "HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\nvary: accept-encoding\r\netag: W/\"1\"\r\ncontent-length: 3\r\n\r\n\x1f\x08!";
        match (seen.all("range").first(), seen.line().starts_with("HEAD")) {
            (_, true) => "HTTP/1.1 200 OK\r\naccept-ranges: bytes\r\ncontent-length: 9\r\n\r\n".to_owned(),
            (Some(&"bytes=0-1"), _) => part.to_owned(),
            (Some(_), _) => none.to_owned(),
            (None, _) => squeezed.to_owned(),
        }
    })
    .await;
    let site = Setup::new(api.address).open().await;
    let payer = site.payer(1);
    let mut client = site.client().await;
    let paid = |more: &str| format!("payment-signature: {}{more}", site.payment(&payer));
    let part = client.ask(&with("/paid/x", &paid("\r\nrange: bytes=0-1\r\nif-range: \"e\""))).await;
    assert_eq!((part.status, part.text(), part.header("content-range")), (206, "ab", Some("bytes 0-1/9")));
    assert_eq!((site.charged(&payer), api.last().all("if-range")), (PRICE, vec!["\"e\""]));
    let none = client.ask(&with("/paid/x", &paid("\r\nrange: bytes=99-"))).await;
    assert_eq!((none.status, none.header("content-range")), (416, Some("bytes */9")));
    assert_eq!(site.charged(&payer), PRICE, "what could not be served costs nothing");
    let squeezed = client.ask(&with("/paid/x", &paid("\r\naccept-encoding: gzip, br"))).await;
    assert_eq!((squeezed.header("content-encoding"), squeezed.text()), (Some("gzip"), "\x1f\x08!"));
    assert_eq!((squeezed.header("etag"), api.last().all("accept-encoding")), (Some("W/\"1\""), vec!["gzip, br"]));
    let head = format!("HEAD /paid/x HTTP/1.1\r\nhost: h\r\n{}\r\n\r\n", paid(""));
    let head = client.ask(&head).await;
    assert_eq!(
        (head.status, head.header("content-length"), head.header("accept-ranges")),
        (200, Some("9"), Some("bytes"))
    );
    assert_eq!(site.charged(&payer), 3 * PRICE);
    assert_eq!(client.ask(&get("/x")).await.status, 200, "the connection is in step");
}

// ---- the end

#[tokio::test]
async fn who_asks_while_it_ends_is_served_and_told_that_it_was_the_last_time() {
    for cores in [1, 2] {
        let api = plain_api().await;
        // What is told of the end is told before the deadline cuts it off, and before we stop waiting.
        let setup = Setup { cores, drain: 2 * PATIENCE, ..Setup::new(api.address) };
        let site = setup.open_with(|listener| listener.last_request_time(Duration::from_secs(5))).await;
        let mut kept = site.client().await;
        assert_eq!(kept.ask(&get("/x")).await.header("connection"), None);
        // Connected, and not yet heard of.
        let mut queued = site.client().await;
        let mut streams = h2(site.client().await.stream).await;
        let request = Request::get("http://h/x").body(Full::default()).unwrap();
        assert_eq!(soon(streams.send_request(request)).await.unwrap().status(), 200);
        site.stop.cancel();
        tokio::time::sleep(Duration::from_millis(50)).await;
        for client in [&mut kept, &mut queued] {
            let answer = client.ask(&get("/x")).await;
            assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
            assert!(client.ends().await);
        }
        // HTTP/2 is told before it asks.
        soon(async {
            while streams.ready().await.is_ok() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
        soon(site.task).await.unwrap();
    }
}

#[tokio::test]
async fn who_waits_for_a_place_when_the_end_begins_gets_one_that_becomes_free() {
    let (upstream, may, mut arrived) = waiting_upstream().await;
    let site = Setup::new(upstream).open_with(|listener| listener.max_connections(1)).await;
    let mut first = site.client().await;
    first.send(get("/x")).await;
    soon(arrived.recv()).await.unwrap();
    // One of them is accepted and waits; the others are in the queue.
    let mut waiting = Vec::new();
    for _ in 0..3 {
        let mut client = site.client().await;
        client.send(get("/x")).await;
        waiting.push(client);
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    site.stop.cancel();
    tokio::time::sleep(Duration::from_millis(50)).await;
    may.add_permits(10);
    assert_eq!(first.answer(false).await.status, 200);
    for client in &mut waiting {
        assert_eq!(client.answer(false).await.status, 200);
    }
    soon(site.task).await.unwrap();
}

#[tokio::test]
async fn connections_that_nobody_accepted_yet_are_served_by_who_listens_beside() {
    let api = plain_api().await;
    let first = Setup::new(api.address).open().await;
    let address = first.address;
    let second = Listener::bind_beside(address, std::num::NonZeroUsize::MIN).await.unwrap();
    // Both have a part of them now; the second one's wait.
    let mut clients = Vec::new();
    for _ in 0..40 {
        let mut client = Client::connect(address).await;
        client.send(with("/x", "connection: close")).await;
        clients.push(client);
    }
    first.stop.cancel();
    soon(first.task).await.unwrap();
    assert!(peaje::proxy::is_taken(address));
    let second = Setup::new(api.address).open_on(second);
    for client in &mut clients {
        assert_eq!(client.answer(false).await.status, 200);
    }
    assert_eq!(api.requests().len(), 40);
    second.stop.cancel();
    soon(second.task).await.unwrap();
    // A process that another test has just started has our sockets, until it becomes another program.
    soon(async {
        while peaje::proxy::is_taken(address) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn what_is_not_accepted_from_an_inherited_socket_stays_for_the_next() {
    let api = plain_api().await;
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let cores = std::num::NonZeroUsize::new(2).unwrap();
    let inherit = || Listener::inherit(vec![held.try_clone().unwrap()], cores).unwrap();
    let first = Setup::new(api.address).open_on(inherit());
    assert_eq!(first.client().await.ask(&get("/x")).await.status, 200);
    first.stop.cancel();
    soon(first.task).await.unwrap();
    let mut waiting = Client::connect(held.local_addr().unwrap()).await;
    waiting.send(get("/x")).await;
    let mut nothing = [0; 1];
    assert!(tokio::time::timeout(SHORT, waiting.stream.read(&mut nothing)).await.is_err());
    let second = Setup::new(api.address).open_on(inherit());
    assert_eq!(waiting.answer(false).await.status, 200);
    drop(second);
    assert!(Listener::inherit(Vec::new(), cores).is_err());
}
