//! WebSocket through the proxy: a real client and a real server, paid at the handshake.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "in a test a panic is the report")]

#[path = "support/payer.rs"]
mod payer;
#[path = "support/stand.rs"]
mod stand;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::{SinkExt as _, StreamExt as _};
use http::Method;
use peaje::gate::Way;
use peaje::pricing::{Tariff, Unit};
use peaje::proxy::{Bounds, UpstreamSettings};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use stand::{PATIENCE, Setup, Stand, tariff, until, upstream_of};

/// Larger than any buffer on the way.
const LARGE: usize = 8 << 20;

type Socket = WebSocketStream<TcpStream>;

fn config() -> WebSocketConfig {
    WebSocketConfig::default().max_message_size(Some(2 * LARGE)).max_frame_size(Some(2 * LARGE))
}

/// A server that sends back what it is sent. It counts who is there.
async fn echo() -> (SocketAddr, Arc<AtomicUsize>) {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let there = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&there);
    tokio::spawn(async move {
        loop {
            let (stream, _) = socket.accept().await.unwrap();
            let count = Arc::clone(&count);
            tokio::spawn(async move {
                let Ok(mut socket) = tokio_tungstenite::accept_async_with_config(stream, Some(config())).await else {
                    return;
                };
                count.fetch_add(1, Ordering::SeqCst);
                while let Some(Ok(message)) = socket.next().await {
                    let done = match message {
                        message @ (Message::Text(_) | Message::Binary(_)) => socket.send(message).await,
                        // Pings and closes are answered by the library.
                        _ => socket.flush().await,
                    };
                    if done.is_err() {
                        break;
                    }
                }
                count.fetch_sub(1, Ordering::SeqCst);
            });
        }
    });
    (address, there)
}

fn websocket() -> Way {
    Way { upstream: None, upgrades: vec!["websocket".to_owned()] }
}

fn setup(upstream: UpstreamSettings) -> Setup {
    let mut setup = Setup::new(upstream);
    setup.paid.push(("/live/*", websocket()));
    setup
}

impl Stand {
    async fn connect(&self, path: &str, payment: Option<String>) -> Result<(Socket, http::HeaderMap), Error> {
        let mut request = format!("ws://{}{path}", self.address).into_client_request().unwrap();
        if let Some(payment) = payment {
            request.headers_mut().insert("payment-signature", payment.parse().unwrap());
        }
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (socket, answer) = client_async_with_config(request, stream, Some(config())).await?;
        Ok((socket, answer.headers().clone()))
    }

    async fn paid(&self) -> Socket {
        self.connect("/live/x", Some(self.payment())).await.unwrap().0
    }

    /// The answer to a handshake whose bytes the test writes, and the connection.
    async fn handshake(&self, lines: &str) -> (String, TcpStream) {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let payment = self.payment();
        let head = format!(
            "host: h\r\npayment-signature: {payment}\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        );
        let (first, rest) = lines.split_once("\r\n").unwrap();
        stream.write_all(format!("{first}\r\n{head}{rest}\r\n").as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(tokio::time::timeout(PATIENCE, stream.read_u8()).await.unwrap().unwrap());
        }
        (String::from_utf8(answer).unwrap(), stream)
    }
}

async fn next(socket: &mut Socket) -> Message {
    tokio::time::timeout(PATIENCE, socket.next()).await.expect("a message in time").unwrap().unwrap()
}

#[tokio::test]
async fn a_paid_handshake_opens_a_socket_and_everything_comes_back() {
    let (upstream, there) = echo().await;
    let stand = setup(upstream_of(&[upstream])).open().await;
    let (mut socket, headers) = stand.connect("/live/x", Some(stand.payment())).await.unwrap();
    assert!(headers.contains_key("payment-response"), "{headers:?}");
    assert_eq!(stand.charges(), 1);
    let large: Vec<u8> = (0..LARGE).map(|n| u8::try_from(n % 251).unwrap()).collect();
    for message in [
        Message::text("hello"),
        Message::text("ü".repeat(70_000)),
        Message::binary(vec![0, 255, 1]),
        Message::binary(large),
        Message::text(""),
    ] {
        socket.send(message.clone()).await.unwrap();
        assert!(next(&mut socket).await == message, "what comes back is what was sent");
    }
    socket.send(Message::Ping("are you there".into())).await.unwrap();
    assert_eq!(next(&mut socket).await, Message::Pong("are you there".into()));
    let farewell = CloseFrame { code: CloseCode::Normal, reason: "enough".into() };
    socket.close(Some(farewell.clone())).await.unwrap();
    assert_eq!(next(&mut socket).await, Message::Close(Some(farewell)));
    assert!(tokio::time::timeout(PATIENCE, socket.next()).await.unwrap().is_none(), "the connection ends with it");
    until(|| there.load(Ordering::SeqCst) == 0).await;
    assert_eq!(stand.charges(), 1);
}

#[tokio::test]
async fn many_messages_go_both_ways_at_once() {
    let (upstream, _) = echo().await;
    let stand = setup(upstream_of(&[upstream])).open().await;
    let (mut up, mut down) = stand.paid().await.split();
    let sending = tokio::spawn(async move {
        for n in 0..2_000 {
            up.send(Message::text(n.to_string())).await.unwrap();
        }
        up
    });
    for n in 0..2_000 {
        let message = tokio::time::timeout(PATIENCE, down.next()).await.unwrap().unwrap().unwrap();
        assert_eq!(message, Message::text(n.to_string()));
    }
    drop(sending.await.unwrap());
}

#[tokio::test]
async fn an_unpaid_handshake_is_quoted_and_reaches_nobody() {
    let (upstream, there) = echo().await;
    let stand = setup(upstream_of(&[upstream])).open().await;
    match stand.connect("/live/x", None).await {
        Err(Error::Http(answer)) => {
            assert_eq!(answer.status(), 402);
            assert!(answer.headers().contains_key("payment-required"));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!((there.load(Ordering::SeqCst), stand.charges()), (0, 0));
}

#[tokio::test]
async fn a_route_that_allows_no_upgrade_has_none() {
    let (upstream, there) = echo().await;
    let stand = setup(upstream_of(&[upstream])).open().await;
    // What arrives there is no handshake any more.
    assert!(stand.connect("/paid/x", Some(stand.payment())).await.is_err());
    assert!(stand.connect("/free", None).await.is_err());
    assert_eq!(there.load(Ordering::SeqCst), 0);
}

/// What only looks like a handshake is an ordinary request: the upstream sees no `Upgrade`, and no tunnel opens.
#[tokio::test]
async fn only_a_get_without_a_body_that_asks_for_one_protocol_is_a_handshake() {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let (tell, mut heads) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = socket.accept().await.unwrap();
            let tell = tell.clone();
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let Ok(byte) = stream.read_u8().await else { return };
                    head.push(byte);
                }
                let head = String::from_utf8(head).unwrap().to_lowercase();
                let answer: &[u8] = if head.contains("upgrade: websocket\r\n") {
                    b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
                } else {
                    b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
                };
                tell.send(head).unwrap();
                stream.write_all(answer).await.unwrap();
                let _ = stream.read_to_end(&mut Vec::new()).await;
            });
        }
    });
    let stand = setup(upstream_of(&[address])).open().await;
    let upgrade = "connection: upgrade\r\nupgrade: websocket\r\n";
    let (answer, _stream) = stand.handshake(&format!("GET /live/x HTTP/1.1\r\n{upgrade}")).await;
    assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
    let head = heads.recv().await.unwrap();
    assert!(head.contains("sec-websocket-key: dgh") && head.contains("connection: upgrade\r\n"), "{head}");
    for lines in [
        format!("POST /live/x HTTP/1.1\r\n{upgrade}content-length: 0\r\n"),
        format!("GET /live/x HTTP/1.1\r\n{upgrade}content-length: 0\r\n"),
        format!("GET /live/x HTTP/1.0\r\n{upgrade}"),
        "GET /live/x HTTP/1.1\r\nupgrade: websocket\r\n".to_owned(),
        "GET /live/x HTTP/1.1\r\nconnection: upgrade\r\nupgrade: websocket, h2c\r\n".to_owned(),
        "GET /live/x HTTP/1.1\r\nconnection: upgrade\r\nupgrade: h2c\r\n".to_owned(),
    ] {
        let (answer, _) = stand.handshake(&lines).await;
        assert!(answer.contains(" 200 OK"), "{lines}{answer}");
        let head = heads.recv().await.unwrap();
        assert!(!head.contains("\r\nupgrade:") && !head.contains("\r\nconnection: upgrade"), "{head}");
    }
    assert_eq!(stand.charges(), 7);
}

/// An upstream that answers one request so; what it heard: the request's head in small letters, and all that came after.
async fn answering(answer: &'static str) -> (SocketAddr, JoinHandle<(String, Vec<u8>)>) {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let heard = tokio::spawn(async move {
        let (mut stream, _) = socket.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        stream.write_all(answer.as_bytes()).await.unwrap();
        let mut more = Vec::new();
        let _ = stream.read_to_end(&mut more).await;
        (String::from_utf8(head).unwrap().to_lowercase(), more)
    });
    (address, heard)
}

/// An upstream that does not switch, or switches to something else, opens no tunnel.
#[tokio::test]
async fn a_tunnel_opens_only_if_the_upstream_agrees_to_just_that() {
    for (answer, expected, charged) in [
        ("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: other\r\n\r\n", "502", 0),
        ("HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n\r\n", "502", 0),
        ("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n\r\n", "502", 0),
        ("HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno", "403", 0),
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nno", "200", 1),
    ] {
        let (address, heard) = answering(answer).await;
        let stand = setup(upstream_of(&[address])).open().await;
        let lines = "GET /live/x HTTP/1.1\r\nconnection: upgrade\r\nupgrade: websocket\r\n";
        let (head, mut stream) = stand.handshake(lines).await;
        assert!(head.starts_with(&format!("HTTP/1.1 {expected} ")), "{answer}: {head}");
        assert!(!head.contains("\r\nupgrade"), "{head}");
        assert_eq!(stand.charges(), charged);
        // What the client says next is its next request, and none of the upstream's business.
        stream.write_all(b"GET /none HTTP/1.1\r\nhost: h\r\n\r\n").await.unwrap();
        let (_, more) = tokio::time::timeout(PATIENCE, heard).await.expect("the connection is not kept").unwrap();
        assert_eq!(more, b"");
    }
}

#[tokio::test]
async fn a_socket_that_stands_still_ends_and_one_that_is_used_does_not() {
    let (upstream, there) = echo().await;
    let idle_timeout = Duration::from_secs(3);
    let stand = setup(UpstreamSettings { idle_timeout, ..upstream_of(&[upstream]) }).open().await;
    let mut socket = stand.paid().await;
    let mut begun = Instant::now();
    for _ in 0..6 {
        tokio::time::sleep(idle_timeout / 4).await;
        begun = Instant::now();
        exchange(&mut socket, "x").await;
    }
    assert!(!matches!(tokio::time::timeout(PATIENCE, socket.next()).await.unwrap(), Some(Ok(_))));
    assert!(begun.elapsed() >= idle_timeout);
    until(|| there.load(Ordering::SeqCst) == 0).await;
}

#[tokio::test]
async fn there_are_no_more_tunnels_than_said_and_who_finds_no_room_pays_nothing() {
    let (upstream, there) = echo().await;
    let bounds = Bounds { max_tunnels: 2, ..Bounds::default() };
    let stand = Setup { bounds, ..setup(upstream_of(&[upstream])) }.open().await;
    let (one, _two) = (stand.paid().await, stand.paid().await);
    match stand.connect("/live/x", Some(stand.payment())).await {
        Err(Error::Http(answer)) => {
            assert_eq!(answer.status(), 503);
            assert!(answer.headers().contains_key("retry-after"));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!((stand.charges(), there.load(Ordering::SeqCst)), (2, 2));
    drop(one);
    until(|| there.load(Ordering::SeqCst) == 1).await;
    // Its place is free a moment after the upstream sees it go.
    let again = async {
        loop {
            match stand.connect("/live/x", Some(stand.payment())).await {
                Ok((socket, _)) => break socket,
                Err(Error::Http(answer)) if answer.status() == 503 => {}
                Err(other) => panic!("{other:?}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let mut third = tokio::time::timeout(PATIENCE, again).await.expect("there is room again");
    exchange(&mut third, "x").await;
    assert_eq!(stand.charges(), 3);
}

#[tokio::test]
async fn a_proxy_that_stops_lets_a_socket_go_on_until_its_deadline() {
    let (upstream, there) = echo().await;
    let drain = Duration::from_secs(3);
    let mut stand = Setup { drain, ..setup(upstream_of(&[upstream])) }.open().await;
    let mut socket = stand.paid().await;
    let begun = Instant::now();
    let using = tokio::spawn(async move {
        tokio::time::sleep(drain / 4).await;
        socket.send(Message::text("still here")).await.unwrap();
        let answer = next(&mut socket).await;
        (answer, tokio::time::timeout(PATIENCE, socket.next()).await.unwrap())
    });
    stand.stop().await;
    assert!(begun.elapsed() >= drain);
    let (answer, end) = using.await.unwrap();
    assert_eq!(answer, Message::text("still here"));
    assert!(!matches!(end, Some(Ok(_))), "{end:?}");
    until(|| there.load(Ordering::SeqCst) == 0).await;
    assert_eq!(stand.charges(), 1);
}

#[tokio::test]
async fn a_handshake_while_a_proxy_stops_opens_its_socket_all_the_same() {
    let (upstream, _) = echo().await;
    let last_request_time = Duration::from_secs(10);
    let mut stand = Setup { last_request_time, ..setup(upstream_of(&[upstream])) }.open().await;
    let mut request = format!("ws://{}/live/x", stand.address).into_client_request().unwrap();
    request.headers_mut().insert("payment-signature", stand.payment().parse().unwrap());
    let mut stream = TcpStream::connect(stand.address).await.unwrap();
    // A connection that has been used may ask once more.
    stream.write_all(b"HEAD /paid/x HTTP/1.1\r\nhost: h\r\n\r\n").await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let talking = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let (mut socket, answer) = client_async_with_config(request, stream, Some(config())).await.unwrap();
        assert_eq!(answer.headers().get_all("connection").iter().collect::<Vec<_>>(), ["upgrade"]);
        socket.send(Message::text("x")).await.unwrap();
        assert_eq!(next(&mut socket).await, Message::text("x"));
        close(socket).await;
    };
    tokio::join!(stand.stop(), talking);
    assert_eq!(stand.charges(), 1);
}

#[tokio::test]
async fn a_server_that_goes_ends_the_clients_socket() {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let (stream, _) = socket.accept().await.unwrap();
        let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
        socket.send(Message::text("bye")).await.unwrap();
        let stream = socket.into_inner();
        drop(WebSocketStream::from_raw_socket(stream, Role::Server, None).await);
    });
    let stand = setup(upstream_of(&[address])).open().await;
    let mut socket = stand.paid().await;
    assert_eq!(next(&mut socket).await, Message::text("bye"));
    assert!(!matches!(tokio::time::timeout(PATIENCE, socket.next()).await.unwrap(), Some(Ok(_))));
}

// ---- sockets that cost what they use

/// The most that any of them costs, atomic units.
const MOST: u128 = 1_000_000;
/// A frame's head: from the client with a mask, from the server without.
const UP_HEAD: u128 = 6;
const DOWN_HEAD: u128 = 2;

/// A stand whose sockets cost this, before the echo, and how many of them there are.
async fn metered(tariff: Tariff) -> (Stand, Arc<AtomicUsize>) {
    metered_with(tariff, |_| ()).await
}

async fn metered_with(tariff: Tariff, change: impl FnOnce(&mut Setup)) -> (Stand, Arc<AtomicUsize>) {
    let (upstream, there) = echo().await;
    let mut setup = Setup::new(upstream_of(&[upstream]));
    setup.metered.push(("/metered", tariff, websocket()));
    change(&mut setup);
    (setup.open().await, there)
}

impl Stand {
    async fn metered(&self) -> Socket {
        let payment = self.payment_for(&Method::GET, "/metered");
        let (socket, headers) = self.connect("/metered", Some(payment)).await.unwrap();
        assert!(!headers.contains_key("settlement-overrides"), "{headers:?}");
        socket
    }

    /// Waits until something is charged; how much it is.
    async fn charged_soon(&self) -> u128 {
        until(|| self.charged() > 0).await;
        self.charged()
    }
}

/// Says a short text and hears it again.
async fn exchange(socket: &mut Socket, text: &str) {
    socket.send(Message::text(text)).await.unwrap();
    assert_eq!(next(socket).await, Message::text(text));
}

/// Closes it as one should.
async fn close(mut socket: Socket) {
    socket.close(None).await.unwrap();
    assert!(matches!(next(&mut socket).await, Message::Close(_)));
    assert!(tokio::time::timeout(PATIENCE, socket.next()).await.unwrap().is_none());
}

#[tokio::test]
async fn a_metered_socket_costs_nothing_at_its_handshake_and_its_bytes_at_its_end() {
    // Whoever pays for the bytes up does not pay for those down, and the other way round.
    for (unit, price, head) in [(Unit::ResponseBytes, 7, DOWN_HEAD), (Unit::RequestBytes, 3, UP_HEAD)] {
        let (stand, there) = metered(tariff(unit.clone(), price, MOST)).await;
        let mut socket = stand.metered().await;
        for text in ["", "a", "hello", "a text of no great length"] {
            exchange(&mut socket, text).await;
        }
        assert_eq!(stand.charged(), 0, "{unit:?}: it goes on");
        close(socket).await;
        // Four texts, and a close that says nothing.
        let bytes = 5 * head + 31;
        assert_eq!(stand.charged_soon().await, price * bytes, "{unit:?}");
        until(|| there.load(Ordering::SeqCst) == 0).await;
        // The next one pays on top of that.
        let mut socket = stand.metered().await;
        exchange(&mut socket, "x").await;
        close(socket).await;
        until(|| stand.charged() == price * (bytes + 2 * head + 1)).await;
    }
}

#[tokio::test]
async fn a_metered_socket_that_its_client_just_leaves_is_charged_for_what_passed() {
    let (stand, there) = metered(tariff(Unit::ResponseBytes, 7, MOST)).await;
    let mut socket = stand.metered().await;
    exchange(&mut socket, "hello").await;
    drop(socket);
    assert_eq!(stand.charged_soon().await, 7 * (DOWN_HEAD + 5));
    until(|| there.load(Ordering::SeqCst) == 0).await;
    assert_eq!(stand.charged(), 7 * (DOWN_HEAD + 5), "once");
}

#[tokio::test]
async fn a_metered_socket_is_closed_once_it_has_cost_the_most_and_not_before() {
    // A hundred bytes down: five answers of twenty, with their heads.
    let text = "x".repeat(18);
    let (stand, there) = metered(tariff(Unit::ResponseBytes, 10, 1_000)).await;
    let mut socket = stand.metered().await;
    for _ in 0..4 {
        exchange(&mut socket, &text).await;
    }
    exchange(&mut socket, &text[..17]).await;
    // One byte is left. Who asks for its next message has it, or not, and the socket goes.
    assert_eq!((stand.charged(), there.load(Ordering::SeqCst)), (0, 1));
    socket.send(Message::text("y")).await.unwrap();
    let rest = async { while socket.next().await.is_some_and(|message| message.is_ok()) {} };
    tokio::time::timeout(PATIENCE, rest).await.expect("the proxy closes it");
    assert_eq!(stand.charged_soon().await, 1_000);
    until(|| there.load(Ordering::SeqCst) == 0).await;
    assert_eq!(stand.charged(), 1_000, "the most, whatever passed at last");
}

#[tokio::test]
async fn a_socket_that_costs_by_time_is_charged_for_its_time() {
    let (stand, _) = metered(tariff(Unit::Milliseconds, 1, MOST)).await;
    let begun = Instant::now();
    let socket = stand.metered().await;
    let open = Instant::now();
    let stays = Duration::from_millis(300);
    tokio::time::sleep(stays).await;
    let least = open.elapsed().as_millis();
    close(socket).await;
    let charged = stand.charged_soon().await;
    assert!((least..=begun.elapsed().as_millis() + 1).contains(&charged), "{least}..: {charged}");
}

#[tokio::test]
async fn a_silent_socket_that_costs_by_time_is_closed_once_it_has_cost_the_most() {
    let most = 3_000;
    let (stand, there) = metered(tariff(Unit::Milliseconds, 1, most)).await;
    let begun = Instant::now();
    let mut socket = stand.metered().await;
    exchange(&mut socket, "hello").await;
    let end = tokio::time::timeout(PATIENCE, socket.next()).await.expect("the proxy closes it");
    assert!(!matches!(end, Some(Ok(_))), "{end:?}");
    assert!(begun.elapsed().as_millis() >= most, "{:?}", begun.elapsed());
    assert_eq!(stand.charged_soon().await, most);
    until(|| there.load(Ordering::SeqCst) == 0).await;
}

#[tokio::test]
async fn a_metered_socket_that_a_shutdown_ends_is_charged_for_what_passed() {
    let drain = Duration::from_millis(300);
    let (mut stand, there) = metered_with(tariff(Unit::ResponseBytes, 7, MOST), |setup| setup.drain = drain).await;
    let mut socket = stand.metered().await;
    exchange(&mut socket, "hello").await;
    stand.stop().await;
    let end = tokio::time::timeout(PATIENCE, socket.next()).await.unwrap();
    assert!(!matches!(end, Some(Ok(_))), "{end:?}");
    assert_eq!(stand.charged_soon().await, 7 * (DOWN_HEAD + 5));
    until(|| there.load(Ordering::SeqCst) == 0).await;
}

/// The upstream sees an ordinary handshake: nothing of how its answer is metered. One that it refuses costs nothing.
#[tokio::test]
async fn a_metered_handshake_that_the_upstream_refuses_costs_nothing() {
    let (address, heard) = answering("HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno").await;
    let mut setup = Setup::new(upstream_of(&[address]));
    setup.metered.push(("/metered", tariff(Unit::ResponseBytes, 7, MOST), websocket()));
    let stand = setup.open().await;
    match stand.connect("/metered", Some(stand.payment_for(&Method::GET, "/metered"))).await {
        Err(Error::Http(answer)) => assert_eq!(answer.status(), 403),
        other => panic!("{other:?}"),
    }
    let (head, _) = heard.await.unwrap();
    assert!(head.contains("\r\nconnection: upgrade\r\n") && head.contains("\r\nupgrade: websocket\r\n"), "{head}");
    assert!(!head.contains("\r\nte:"), "{head}");
    assert_eq!(stand.charged(), 0);
}
