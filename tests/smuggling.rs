//! Requests that two servers could read differently, and clients that are slow on purpose: bytes in, and what the upstream
//! saw of them.
//!
//! A shape is either refused, or reaches the upstream as one request that no two servers read differently: that is compared
//! byte by byte with what is recorded there. `tests/proxy.rs` has the shapes that try to reach a paid route unpaid.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::as_conversions,
    reason = "a test that cannot go on should say so at once"
)]

#[path = "support/front.rs"]
mod front;
#[path = "support/payer.rs"]
mod payer;
#[path = "support/raw.rs"]
mod raw;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use peaje::proxy::Listener;
use tokio::io::AsyncWriteExt as _;

use front::{Setup, Site};
use raw::{Client, OK, plain_api, script, soon};

/// How long a connection is listened to that should just wait for more. One that takes longer to do something else is
/// not found out.
const QUIET: Duration = Duration::from_millis(150);

/// What must become of a shape.
#[derive(Debug, Clone, Copy)]
enum Fate {
    /// One of these, nothing reaches the upstream, and whatever follows on the connection is not read as a request.
    Refused(&'static [u16]),
    /// The upstream sees this one request with this line and body, and the connection goes on or not.
    One(&'static str, &'static str),
    /// Nothing is answered and nothing reaches the upstream: there is no whole request.
    Nothing,
}

use Fate::{Nothing, One, Refused};

/// What a smuggler would like to be read as a request of its own. Once it is answered the connection ends, as after an
/// error, so at its end everything that was read has reached the upstream.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n";

fn post(headers: &str, body: &str) -> String {
    format!("POST /x HTTP/1.1\r\nhost: h\r\n{headers}\r\n\r\n{body}{SMUGGLED}")
}

fn get(start: &str, headers: &str) -> String {
    format!("{start}\r\n{headers}\r\n\r\n")
}

fn shapes() -> Vec<(&'static str, String, Fate)> {
    let chunked = |body: &str| post("transfer-encoding: chunked", body);
    let bad = Refused(&[400]);
    let unknown = Refused(&[400, 501]);
    vec![
        // ---- a length and a coding (RFC 9112, 6.1 and 6.3)
        (
            "CL.TE",
            post("content-length: 4\r\ntransfer-encoding: chunked", "2\r\nhi\r\n0\r\n\r\n"),
            One("POST /x HTTP/1.1", "hi"),
        ),
        (
            "TE.CL",
            post("transfer-encoding: chunked\r\ncontent-length: 3", "2\r\nhi\r\n0\r\n\r\n"),
            One("POST /x HTTP/1.1", "hi"),
        ),
        (
            "CL.0 and TE",
            post("content-length: 0\r\ntransfer-encoding: chunked", "0\r\n\r\n"),
            One("POST /x HTTP/1.1", ""),
        ),
        (
            "TE in HTTP/1.0",
            format!("POST /x HTTP/1.0\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{SMUGGLED}"),
            bad,
        ),
        // ---- codings that are chunked for some
        ("TE twice", post("transfer-encoding: chunked\r\ntransfer-encoding: chunked", "0\r\n\r\n"), unknown),
        ("TE and identity", post("transfer-encoding: chunked\r\ntransfer-encoding: identity", "0\r\n\r\n"), unknown),
        ("TE identity first", post("transfer-encoding: identity, chunked", "0\r\n\r\n"), unknown),
        ("TE chunked not last", post("transfer-encoding: chunked, gzip", "0\r\n\r\n"), unknown),
        ("TE with a parameter", post("transfer-encoding: chunked;a=b", "0\r\n\r\n"), unknown),
        ("TE with a comma", post("transfer-encoding: chunked,", "0\r\n\r\n"), unknown),
        ("TE with a comma first", post("transfer-encoding: ,chunked", "0\r\n\r\n"), unknown),
        ("TE in quotes", post("transfer-encoding: \"chunked\"", "0\r\n\r\n"), unknown),
        ("TE with a vertical tab", post("transfer-encoding: \x0bchunked", "0\r\n\r\n"), unknown),
        ("TE behind a tab", post("transfer-encoding:\tchunked", "2\r\nhi\r\n0\r\n\r\n"), One("POST /x HTTP/1.1", "hi")),
        ("TE in capitals", post("TRANSFER-ENCODING: CHUNKED", "2\r\nhi\r\n0\r\n\r\n"), One("POST /x HTTP/1.1", "hi")),
        ("TE that is empty", post("transfer-encoding:", "0\r\n\r\n"), unknown),
        (
            "TE with an underscore",
            post("transfer_encoding: chunked\r\ncontent-length: 5", "0\r\n\r\n"),
            One("POST /x HTTP/1.1", "0\r\n\r\n"),
        ),
        // ---- lengths (RFC 9110, 8.6)
        ("CL twice, different", post("content-length: 4\r\ncontent-length: 5", "body"), bad),
        (
            "CL twice, the same",
            format!("POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 4\r\ncontent-length: 4\r\n\r\nbody{SMUGGLED}"),
            One("POST /x HTTP/1.1", "body"),
        ),
        ("CL as a list, different", post("content-length: 4, 5", "body"), bad),
        ("CL with a plus", post("content-length: +4", "body"), bad),
        ("CL with a minus", post("content-length: -4", "body"), bad),
        ("CL in hex", post("content-length: 0x4", "body"), bad),
        ("CL with a point", post("content-length: 4.0", "body"), bad),
        ("CL with spaces", post("content-length: 4 4", "body"), bad),
        ("CL empty", post("content-length:", "body"), bad),
        ("CL of 2^64", post("content-length: 18446744073709551616", "body"), bad),
        ("CL of 2^64 and a bit", post("content-length: 18446744073709551620", "body"), bad),
        // ---- lines (RFC 9112, 2.2, 5.1, 5.2)
        ("a folded header", post("x-a: 1\r\n b: 2", ""), bad),
        ("a folded length", post("content-length:\r\n 4", "body"), bad),
        ("a folded first header", "GET /x HTTP/1.1\r\n host: h\r\n\r\n".to_owned(), bad),
        ("a space before the colon", post("content-length : 4", "body"), bad),
        ("a tab before the colon", post("content-length\t: 4", "body"), bad),
        ("no colon", post("x-a", ""), bad),
        ("no name", post(": 1", ""), bad),
        ("a CR in a value", post("x-a: 1\rx-b: 2", ""), bad),
        ("a NUL in a value", post("x-a: 1\0", ""), bad),
        ("a NUL in a name", post("x\0a: 1", ""), bad),
        ("a control character in a name", post("x\x01a: 1", ""), bad),
        ("a CR at the end of the head", "GET /x HTTP/1.1\r\nhost: h\r\n\r\r\n".to_owned(), Nothing),
        // ---- chunks (RFC 9112, 7.1)
        ("a chunk's size too large", chunked("10000000000000000\r\nx\r\n0\r\n\r\n"), bad),
        ("a chunk's size with a sign", chunked("+2\r\nhi\r\n0\r\n\r\n"), bad),
        ("a chunk's size in 0x", chunked("0x2\r\nhi\r\n0\r\n\r\n"), bad),
        ("no size", chunked("\r\nhi\r\n0\r\n\r\n"), bad),
        ("a space before the size", chunked(" 2\r\nhi\r\n0\r\n\r\n"), bad),
        ("more data than the size", chunked("2\r\nhid\r\n0\r\n\r\n"), bad),
        ("a bare LF behind the size", chunked("2\nhi\r\n0\r\n\r\n"), bad),
        ("an extension", chunked("2;a=b\r\nhi\r\n0\r\n\r\n"), One("POST /x HTTP/1.1", "hi")),
        ("a bare LF in an extension", chunked("2;a\nhi\r\n0\r\n\r\n"), bad),
        ("an extension that is huge", chunked(&format!("2;{}\r\nhi\r\n0\r\n\r\n", "a".repeat(40_000))), bad),
        ("too many trailers", chunked(&format!("2\r\nhi\r\n0\r\n{}\r\n", "x-t: 1\r\n".repeat(2_000))), bad),
        ("a trailer that is no header", chunked("2\r\nhi\r\n0\r\nx t: 1\r\n\r\n"), bad),
        // ---- hosts (RFC 9112, 3.2; RFC 9110, 4.2.4)
        ("no Host", get("GET /x HTTP/1.1", "x-a: 1"), bad),
        ("two Hosts", get("GET /x HTTP/1.1", "host: h\r\nhost: h"), bad),
        ("a user in Host", get("GET /x HTTP/1.1", "host: user@h"), bad),
        ("a path in Host", get("GET /x HTTP/1.1", "host: h/x"), bad),
        ("a query in Host", get("GET /x HTTP/1.1", "host: h?x"), bad),
        ("a fragment in Host", get("GET /x HTTP/1.1", "host: h#x"), bad),
        ("a space in Host", get("GET /x HTTP/1.1", "host: h x"), bad),
        ("two names in Host", get("GET /x HTTP/1.1", "host: h, g"), bad),
        ("a user in the target", get("GET http://user@h/x HTTP/1.1", "host: h"), bad),
        ("a user and a password in it", get("GET http://user:pass@h/x HTTP/1.1", "host: h"), bad),
        ("the target names another host", get("GET http://g/x HTTP/1.1", "host: h"), One("GET /x HTTP/1.1", "")),
        // ---- request lines (RFC 9112, 3)
        ("two spaces", get("GET  /x HTTP/1.1", "host: h"), bad),
        ("a tab", get("GET\t/x\tHTTP/1.1", "host: h"), bad),
        ("a space at the end", get("GET /x HTTP/1.1 ", "host: h"), bad),
        ("HTTP/0.9", "GET /x\r\n\r\n".to_owned(), bad),
        ("HTTP/1.2", get("GET /x HTTP/1.2", "host: h"), bad),
        ("HTTP/2.0 as text", get("GET /x HTTP/2.0", "host: h"), bad),
        ("HTTP/1.10", get("GET /x HTTP/1.10", "host: h"), bad),
        ("http in small letters", get("GET /x http/1.1", "host: h"), bad),
        ("no target", get("GET HTTP/1.1", "host: h"), bad),
        ("a relative target", get("GET x HTTP/1.1", "host: h"), bad),
        ("another scheme", get("GET ftp://h/x HTTP/1.1", "host: h"), One("GET /x HTTP/1.1", "")),
        ("a NUL in the target", get("GET /x\0 HTTP/1.1", "host: h"), bad),
        ("a DEL in the target", get("GET /x\x7f HTTP/1.1", "host: h"), bad),
        ("a method in brackets", get("[GET] /x HTTP/1.1", "host: h"), bad),
        (
            "a line end before the line",
            format!("\r\n{}", get("GET /x HTTP/1.1", "host: h")),
            One("GET /x HTTP/1.1", ""),
        ),
        ("a bare CR before the line", format!("\r{}", get("GET /x HTTP/1.1", "host: h")), bad),
        (
            "TLS on a plain port",
            "\x16\x03\x01\x02\0\x01\0\x01\u{fc}\x03\x03 and more of the same\r\n\r\n".to_owned(),
            bad,
        ),
        ("a head that is not whole", "GET /x HTTP/1.1\r\nhost: h\r\n".to_owned(), Nothing),
    ]
}

/// What came back until there was enough of it or nothing for so long, and whether the connection is over.
async fn listen(client: &mut Client, limit: Duration, enough: impl Fn(&[u8]) -> bool) -> (String, bool) {
    let over = loop {
        if enough(&client.buffer) {
            break false;
        }
        match tokio::time::timeout(limit, client.more()).await {
            Ok(true) => {}
            Ok(false) => break true,
            Err(_) => break false,
        }
    };
    (String::from_utf8_lossy(&client.buffer).into_owned(), over)
}

/// What comes back for a shape. Where another request follows, it is all there is until the connection ends. Otherwise an
/// upstream has noted what it saw before it answers, and a moment after the head shows that nothing more is made of it.
async fn hear(client: &mut Client, shape: &str, fate: Fate) -> (String, bool) {
    // Shorter than what the client waits for itself, which would say less.
    let long = raw::PATIENCE / 2;
    match fate {
        Nothing => listen(client, QUIET, |_| false).await,
        Refused(_) | One(..) if shape.contains(SMUGGLED) => listen(client, long, |_| false).await,
        Refused(_) | One(..) => {
            listen(client, long, |read| read.windows(4).any(|end| end == b"\r\n\r\n")).await;
            listen(client, QUIET, |_| false).await
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_shape_is_read_in_two_ways() {
    let api = plain_api().await;
    let site = Setup::new(api.address).open().await;
    let mut wrong = Vec::new();
    for (name, shape, fate) in shapes() {
        let mut client = site.client().await;
        // It may be closed before all of it was written.
        let _ = client.stream.write_all(shape.as_bytes()).await;
        let (text, over) = hear(&mut client, &shape, fate).await;
        let status: Option<u16> = text.strip_prefix("HTTP/1.1 ").map(|rest| rest[..3].parse().unwrap());
        let seen = api.take();
        let whole: Vec<_> = seen.iter().filter(|seen| !seen.line().contains("/smuggled")).collect();
        // A request that follows a good one is one of its own, and only then.
        let followed = seen.len() > whole.len();
        let fine = match fate {
            Refused(statuses) => {
                // An answer that nobody could read any more says nothing.
                let told = status.is_none_or(|status| statuses.contains(&status));
                told && (over || status.is_some()) && whole.is_empty() && !followed
            }
            One(line, body) => {
                let length = |seen: &raw::Seen| match (
                    seen.all("content-length").as_slice(),
                    seen.all("transfer-encoding").as_slice(),
                ) {
                    ([], []) => body.is_empty(),
                    ([length], []) => *length == body.len().to_string(),
                    ([], [coding]) => *coding == "chunked",
                    _ => false,
                };
                let same = |seen: &raw::Seen| seen.line() == line && seen.body == body.as_bytes() && length(seen);
                status == Some(200) && matches!(whole.as_slice(), [one] if same(one))
            }
            Nothing => status.is_none() && seen.is_empty() && !over,
        };
        if !fine {
            let heads: Vec<_> = seen.iter().map(|seen| (seen.line(), String::from_utf8_lossy(&seen.body))).collect();
            wrong.push(format!("{name}: {fate:?}, answered {:?}, over: {over}, seen {heads:?}", text.lines().next()));
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// Bare line feeds end lines for us as they do for many (RFC 9112, 2.2); nobody behind us gets to see one.
#[tokio::test]
async fn bare_line_feeds_do_not_get_through() {
    let record = Arc::new(Mutex::new(Vec::new()));
    let bytes = Arc::clone(&record);
    let upstream = script(move |stream| {
        let bytes = Arc::clone(&bytes);
        async move {
            let mut peer = Client { stream, buffer: Vec::new() };
            let head = peer.until(b"\r\n\r\n").await.unwrap_or_default();
            bytes.lock().unwrap().extend(head);
            peer.send(OK).await;
        }
    })
    .await;
    let site = Setup::new(upstream).open().await;
    let mut client = site.client().await;
    client.send("GET /x HTTP/1.1\nhost: h\nx-a: 1\n\n").await;
    // The upstream has noted what it saw before it answers.
    let answer = client.head().await.expect("it is answered");
    let head = String::from_utf8(record.lock().unwrap().clone()).unwrap();
    assert!([200, 400].contains(&answer.status), "{answer:?}");
    assert!(!head.replace("\r\n", "").contains(['\n', '\r']), "{head:?}");
}

/// After what could not be read, nothing on the connection is: where the next request begins is anybody's guess.
#[tokio::test]
async fn nothing_is_read_behind_an_error() {
    let api = plain_api().await;
    let site = Setup::new(api.address).open().await;
    let good = "GET /x HTTP/1.1\r\nhost: h\r\n\r\n";
    for bad in [
        "GET /x HTTP/1.1\r\nhost: h\r\nx a: 1\r\n\r\n",
        "POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: z\r\n\r\n",
        "POST /x HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        "POST /x HTTP/1.1\r\nhost: h\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "GET /x HTTP/9.9\r\nhost: h\r\n\r\n",
    ] {
        let mut client = site.client().await;
        let _ = client.stream.write_all([good, bad, &SMUGGLED.repeat(2)].concat().as_bytes()).await;
        // The connection ends; what was read before that has reached the upstream.
        while client.more().await {}
        let text = String::from_utf8_lossy(&client.buffer);
        assert!(text.starts_with("HTTP/1.1 200"), "{bad:?}: {text}");
        assert!(api.take().iter().all(|seen| !seen.line().contains("smuggled")), "{bad:?}");
    }
}

/// Whatever HTTP/2 lets a client put into a header, HTTP/1 upstream is one request.
#[tokio::test]
async fn what_http_2_carries_makes_one_http_1_request() {
    let api = plain_api().await;
    let site = Setup::new(api.address).open().await;
    let connect = async |site: &Site| {
        let (sender, connection) = soon(h2::client::handshake(site.client().await.stream)).await.unwrap();
        tokio::spawn(connection);
        soon(sender.ready()).await.unwrap()
    };
    let request = |headers: &[(&'static str, &str)]| {
        let mut request = http::Request::post("http://h/x");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap()
    };
    // A length that the frames do not have, and no length where there is a body.
    let mut sender = connect(&site).await;
    let (answer, mut body) = sender.send_request(request(&[]), false).unwrap();
    body.send_data(SMUGGLED.into(), true).unwrap();
    assert_eq!(soon(answer).await.unwrap().status(), 200);
    let seen = api.take();
    assert_eq!((seen.len(), seen[0].body.as_slice()), (1, SMUGGLED.as_bytes()));
    let mut sender = connect(&site).await;
    let (answer, mut body) = sender.send_request(request(&[("content-length", "3")]), false).unwrap();
    let _ = body.send_data(SMUGGLED.into(), true);
    assert!(soon(answer).await.map_or(true, |answer| answer.status() == 400));
    assert!(api.take().is_empty());
    // Headers that HTTP/1 frames messages by, or hides headers with.
    for (name, value) in [("upgrade", "websocket"), ("keep-alive", "timeout=5"), ("proxy-connection", "close")] {
        let mut sender = connect(&site).await;
        let outcome = sender.send_request(request(&[(name, value)]), true);
        if let Ok((answer, _)) = outcome {
            let _ = soon(answer).await;
        }
        assert!(api.take().iter().all(|seen| seen.all(name).is_empty()), "{name}");
    }
}

/// What a client lists in `Connection` is its hop's: neither what we add nor what frames the message.
#[tokio::test]
async fn connection_cannot_name_what_frames_or_identifies() {
    let api = plain_api().await;
    let site = Setup::new(api.address).open().await;
    let mut client = site.client().await;
    client
        .send("POST /x HTTP/1.1\r\nhost: h\r\nconnection: close, content-length, host, x-forwarded-host, x-mine, transfer-encoding\r\nx-mine: 1\r\ncontent-length: 4\r\n\r\nbody")
        .await;
    assert_eq!(client.answer(false).await.status, 200);
    let seen = api.last();
    assert_eq!(
        (seen.body.as_slice(), seen.all("content-length"), seen.all("x-forwarded-host")),
        (b"body".as_slice(), vec!["4"], vec!["h"])
    );
    assert!(seen.all("x-mine").is_empty() && seen.all("host").len() == 1);
}

// ---- slow on purpose

#[tokio::test]
async fn many_heads_that_do_not_end_leave_room_for_others() {
    let short = Duration::from_secs(2);
    let settle = |listener: Listener| listener.header_time(short).max_connections(8);
    let site = Setup::new(plain_api().await.address).open_with(settle).await;
    let begun = Instant::now();
    let mut slow = Vec::new();
    for n in 0..8 {
        let mut client = site.client().await;
        client.send(["GET /x HT", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "G", ""][n % 4]).await;
        slow.push(client);
    }
    let mut other = site.client().await;
    assert_eq!(other.ask("GET /x HTTP/1.1\r\nhost: h\r\n\r\n").await.status, 200);
    assert!(begun.elapsed() >= short / 2);
    for client in &mut slow {
        while client.more().await {}
    }
}
