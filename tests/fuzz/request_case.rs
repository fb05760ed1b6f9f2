//! What must hold of any bytes that a client writes to the proxy: a real listener, a real upstream, nobody who can pay.
#![allow(clippy::panic, clippy::expect_used, clippy::unwrap_used, reason = "here a panic is the report")]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::mpsc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use peaje::gate::path::PathPattern;
use peaje::gate::policy::{Policy, Price, Route, Terms, TokenTerms};
use peaje::gate::{Desk, Gate};
use peaje::protocol::{Address, Amount, Network};
use peaje::proxy::{Bounds, Cors, Listener, Upstream, UpstreamSettings};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

/// How long a conversation may take. Nothing in it waits for anything but this machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// A proxy with a free and a paid part, and what went wrong behind it.
pub(crate) struct House {
    address: SocketAddr,
    runtime: Runtime,
    wrong: &'static Mutex<Vec<String>>,
}

impl House {
    /// Starts everything; it lives as long as the process.
    pub(crate) fn open() -> Self {
        let wrong: &'static Mutex<Vec<String>> = Box::leak(Box::default());
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
                let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
                let url = format!("http://{}", upstream.local_addr().unwrap()).parse().unwrap();
                let settings = UpstreamSettings {
                    connect_timeout: PATIENCE,
                    response_timeout: PATIENCE,
                    ..UpstreamSettings::of(url)
                };
                let stack =
                    peaje::proxy::stack(&gate(), Upstream::new(&settings).unwrap(), Cors::Any, Bounds::default());
                tell.send(listener.address().unwrap()).unwrap();
                tokio::spawn(serve_upstream(upstream, wrong));
                listener.serve(stack, CancellationToken::new(), Duration::ZERO, || {}).await;
            });
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Self { address: told.recv().unwrap(), runtime, wrong }
    }

    /// Writes `bytes` on a connection and reads whatever comes until it is closed.
    pub(crate) fn run(&self, bytes: &[u8]) {
        let answer = self.runtime.block_on(async {
            let talk = tokio::time::timeout(PATIENCE, talk(self.address, bytes));
            talk.await.expect("a client that has said everything is answered, and its connection closed")
        });
        let wrong = std::mem::take(&mut *self.wrong.lock().unwrap());
        assert!(wrong.is_empty(), "{wrong:?}");
        let text = String::from_utf8_lossy(&answer);
        assert!(!text.contains("internal_error"), "serving it panicked: {text}");
        let is_http1 = answer.starts_with(b"HTTP/1.");
        // The first frame of HTTP/2 is the settings.
        let is_http2 = answer.get(3) == Some(&4);
        assert!(answer.is_empty() || is_http1 || is_http2, "no HTTP: {text}");
        assert!(!is_http1 || !text.to_ascii_lowercase().contains("payment-response:"), "nobody paid: {text}");
    }
}

async fn talk(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut answer = Vec::new();
    let mut stream = loop {
        match TcpStream::connect(address).await {
            Ok(stream) => break stream,
            // All ports are in their last wait.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    };
    // A thousand conversations a second would use up the ports otherwise.
    drop(stream.set_zero_linger());
    // The proxy may have heard enough before everything is said.
    let (mut reader, mut writer) = stream.split();
    let write = async {
        drop(writer.write_all(bytes).await);
        drop(writer.shutdown().await);
    };
    let read = async { drop(reader.read_to_end(&mut answer).await) };
    tokio::join!(write, read);
    answer
}

fn gate() -> Gate {
    let token = Network::by_name("base-sepolia").unwrap().tokens[0];
    let terms = Terms {
        chain_id: 84_532,
        token: TokenTerms::preset(&token),
        pay_to: Address([1; 20]),
        receiver_authorizer: Address([2; 20]),
        withdraw_delay_s: 900,
        max_timeout_s: 60,
        max_in_flight: 32,
        min_deposit: None,
    };
    let route = |path: &str, price| Route::new(PathPattern::parse(path).unwrap(), price);
    let routes = vec![route("/free/*", Price::Free), route("/paid/*", Price::Fixed(Amount::new(2_000)))];
    Gate::new(Policy::new(terms, "https://api.example.com", routes).unwrap(), Desk::closed())
}

async fn serve_upstream(socket: TcpListener, wrong: &'static Mutex<Vec<String>>) {
    loop {
        let Ok((stream, _)) = socket.accept().await else { continue };
        let service = hyper::service::service_fn(move |request: Request<Incoming>| async move {
            if let Some(what) = wrong_with(&request) {
                wrong.lock().unwrap().push(what);
            }
            let _ = request.into_body().collect().await;
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"served"))))
        });
        tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

/// What must never reach an upstream: what was not paid for, what is not for sale, and what only the proxy may say.
fn wrong_with(request: &Request<Incoming>) -> Option<String> {
    let path = request.uri().path();
    if !path.starts_with("/free") {
        return Some(format!("{} {path} reached the upstream", request.method()));
    }
    let ours = |name: &str| {
        let name = name.replace('_', "-");
        let of_the_protocol = ["payment-signature", "payment-required", "payment-response", "x-payment"];
        name.starts_with("x-peaje-") || of_the_protocol.contains(&name.as_str())
    };
    let name = request.headers().keys().find(|name| ours(name.as_str()))?;
    Some(format!("{name} reached the upstream"))
}
