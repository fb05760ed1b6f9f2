//! HTTP/2 by its sections: what a server owes a client that breaks the rules, frame by frame.
//!
//! Each case is a connection on which bytes are sent that no client library would send, and what RFC 9113 or RFC 7541 wants
//! to come back. It covers what the well-known conformance suite asks of a server; the numbers are the RFC's.

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

use std::time::{Duration, Instant};

use peaje::proxy::Listener;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use front::{Setup, Site};
use raw::{PATIENCE, api, soon};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const WITH_PRIORITY: u8 = 0x20;

const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const STREAM_CLOSED: u32 = 5;
const FRAME_SIZE_ERROR: u32 = 6;
const REFUSED_STREAM: u32 = 7;
const COMPRESSION_ERROR: u32 = 9;

/// How long what is not to come is waited for.
const QUIET: Duration = Duration::from_millis(1_500);

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A header that is in no table and goes into none (RFC 7541, 6.2.2).
fn literal(name: &str, value: &str) -> Vec<u8> {
    let (name, value) = (name.as_bytes(), value.as_bytes());
    assert!(name.len() < 127 && value.len() < 127);
    [&[0, name.len() as u8], name, &[value.len() as u8], value].concat()
}

fn block(headers: &[(&str, &str)]) -> Vec<u8> {
    headers.iter().flat_map(|(name, value)| literal(name, value)).collect()
}

const GET: [(&str, &str); 4] = [(":method", "GET"), (":scheme", "http"), (":path", "/x"), (":authority", "h")];
const POST: [(&str, &str); 4] = [(":method", "POST"), (":scheme", "http"), (":path", "/x"), (":authority", "h")];

fn request(stream: u32, headers: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, stream, &block(headers))
}

/// A request whose body is to follow.
fn open(stream: u32, headers: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &block(headers))
}

fn get_with(more: &[(&str, &str)]) -> Vec<u8> {
    request(1, &[&GET[..], more].concat())
}

fn post_with(more: &[(&str, &str)]) -> Vec<u8> {
    open(1, &[&POST[..], more].concat())
}

fn settings(parameters: &[(u16, u32)]) -> Vec<u8> {
    let payload: Vec<u8> =
        parameters.iter().flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()).collect();
    frame(SETTINGS, 0, 0, &payload)
}

fn window(stream: u32, increment: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &increment.to_be_bytes())
}

/// What must come back.
#[derive(Debug, Clone, Copy)]
enum Owed {
    /// The connection ends: GOAWAY with one of these codes, or with the one for all kinds of errors, which is what the
    /// library beneath us says of everything it cannot decode; or without a word.
    Connection(&'static [u32]),
    /// The stream ends: RST_STREAM with one of these codes; or the connection does, as above; or, where the request makes
    /// no sense as one of HTTP, an answer that says so (RFC 9113, 8.1.1).
    Stream(&'static [u32]),
    /// The request on this stream is answered with 200.
    Served(u32),
    /// A ping that was sent last is answered.
    Alive,
    /// Settings are acknowledged, and a ping is answered.
    Acknowledged,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

/// What came of listening.
#[derive(Debug)]
enum Heard {
    Frame(Frame),
    /// The connection has ended.
    Closed,
    /// Nothing came in time.
    Silence,
}

struct Line {
    stream: TcpStream,
}

impl Line {
    async fn dial(site: &Site) -> Self {
        let stream = TcpStream::connect(site.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream }
    }

    /// As every client begins.
    async fn begin(site: &Site) -> Self {
        let mut line = Self::dial(site).await;
        line.send(&[PREFACE, &settings(&[])].concat()).await;
        // The server's own settings, and its word for ours.
        for _ in 0..16 {
            let frame = line.frame().await;
            if frame.kind == SETTINGS && frame.flags == ACK {
                line.send(&frame_ack()).await;
                return line;
            }
        }
        panic!("no acknowledgement");
    }

    async fn send(&mut self, bytes: &[u8]) {
        // It may be closed already: what it said before counts.
        let _ = tokio::time::timeout(Duration::from_secs(5), self.stream.write_all(bytes)).await;
    }

    /// What comes within that time.
    async fn next(&mut self, quiet: Duration) -> Heard {
        let read = async {
            let mut head = [0; 9];
            self.stream.read_exact(&mut head).await.ok()?;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let mut payload = vec![0; length];
            self.stream.read_exact(&mut payload).await.ok()?;
            let stream = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
            Some(Frame { kind: head[3], flags: head[4], stream, payload })
        };
        match tokio::time::timeout(quiet, read).await {
            Ok(Some(frame)) => Heard::Frame(frame),
            Ok(None) => Heard::Closed,
            Err(_) => Heard::Silence,
        }
    }

    /// The next frame, where one has to come.
    async fn frame(&mut self) -> Frame {
        match self.next(PATIENCE).await {
            Heard::Frame(frame) => frame,
            other => panic!("a frame is to come: {other:?}"),
        }
    }

    /// All that comes until enough is known, the connection ends, or it is quiet for so long; and whether it has ended.
    async fn hear(&mut self, quiet: Duration, enough: impl Fn(&Frame) -> bool) -> (Vec<Frame>, bool) {
        let mut frames = Vec::new();
        let begun = Instant::now();
        loop {
            match self.next(quiet).await {
                Heard::Frame(frame) => {
                    let is_enough = enough(&frame);
                    frames.push(frame);
                    if is_enough || begun.elapsed() > PATIENCE {
                        return (frames, false);
                    }
                }
                Heard::Closed => return (frames, true),
                Heard::Silence => return (frames, false),
            }
        }
    }
}

fn frame_ack() -> Vec<u8> {
    frame(SETTINGS, ACK, 0, &[])
}

fn code(frame: &Frame) -> u32 {
    let at = if frame.kind == GOAWAY { 4 } else { 0 };
    u32::from_be_bytes(frame.payload[at..at + 4].try_into().unwrap())
}

/// The status of an answer: ours are 200, 400 and the like, with which the first header begins, indexed or written.
fn status(frame: &Frame) -> u16 {
    match frame.payload.iter().find(|byte| **byte & 0xe0 != 0x20) {
        Some(0x88) => 200,
        Some(0x8c) => 400,
        Some(0x8d) => 404,
        Some(0x8e) => 500,
        _ => 0,
    }
}

fn ends_for(codes: &[u32], goaway: &Frame) -> bool {
    codes.contains(&code(goaway)) || code(goaway) == PROTOCOL_ERROR
}

/// What is wrong with what came back; nothing, as a rule.
fn judge(owed: Owed, frames: &[Frame], closed: bool) -> Option<String> {
    let goaway = frames.iter().find(|frame| frame.kind == GOAWAY && code(frame) != 0);
    let reset = frames.iter().find(|frame| frame.kind == RST_STREAM);
    let answer = |stream: u32| frames.iter().find(|frame| frame.kind == HEADERS && frame.stream == stream);
    let fine = match owed {
        Owed::Connection(codes) => goaway.map_or(closed, |frame| ends_for(codes, frame)),
        Owed::Stream(codes) => match (reset, goaway) {
            (Some(frame), _) => codes.contains(&code(frame)),
            (None, Some(frame)) => ends_for(codes, frame),
            (None, None) => closed || answer(1).is_some_and(|frame| status(frame) == 400),
        },
        Owed::Served(stream) => answer(stream).is_some_and(|frame| status(frame) == 200),
        Owed::Alive => frames.iter().any(|frame| (frame.kind, frame.flags) == (PING, ACK)),
        Owed::Acknowledged => {
            let acknowledged = frames.iter().any(|frame| (frame.kind, frame.flags) == (SETTINGS, ACK));
            acknowledged && frames.iter().any(|frame| (frame.kind, frame.flags) == (PING, ACK))
        }
    };
    let short: Vec<_> =
        frames.iter().map(|frame| (frame.kind, frame.flags, frame.stream, frame.payload.len())).collect();
    let codes: Vec<_> = frames.iter().filter(|frame| [RST_STREAM, GOAWAY].contains(&frame.kind)).map(code).collect();
    (!fine).then(|| {
        format!("owed {owed:?}, got (kind, flags, stream, length) {short:?}, codes {codes:?}, closed: {closed}")
    })
}

fn is_the_end(owed: Owed, frame: &Frame) -> bool {
    match owed {
        Owed::Connection(_) => frame.kind == GOAWAY && code(frame) != 0,
        Owed::Stream(_) => {
            frame.kind == RST_STREAM
                || (frame.kind == GOAWAY && code(frame) != 0)
                || (frame.kind == HEADERS && frame.stream == 1 && status(frame) == 400)
        }
        Owed::Served(stream) => frame.kind == HEADERS && frame.stream == stream,
        Owed::Alive | Owed::Acknowledged => (frame.kind, frame.flags) == (PING, ACK),
    }
}

fn ping() -> Vec<u8> {
    frame(PING, 0, 0, b"are you?")
}

fn all(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

/// A site whose upstream answers at once.
async fn site() -> Site {
    site_with(|listener| listener).await
}

async fn site_with(settle: impl FnOnce(Listener) -> Listener) -> Site {
    let api = api(|_| "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello".to_owned()).await;
    Setup::new(api.address).open_with(settle).await
}

use Owed::{Acknowledged, Alive, Connection, Served, Stream};

/// After the usual beginning.
fn cases() -> Vec<(&'static str, Vec<u8>, Owed)> {
    let half = |flags: u8| frame(HEADERS, flags, 1, &block(&GET));
    let (first, rest) = {
        let whole = block(&GET);
        let (first, rest) = whole.split_at(9);
        (first.to_vec(), rest.to_vec())
    };
    let padded = |pad: u8, length: usize| [&[pad][..], &vec![0; length]].concat();
    let priority = |on: u32| [&on.to_be_bytes()[..], &[15]].concat();
    let mut too_large = literal("x", "");
    too_large.resize(16_385, 0);
    vec![
        // ---- frames
        ("4.1 a frame of unknown type is ignored", all(&[&frame(0x16, 0, 0, b"12345678"), &ping()]), Alive),
        ("4.1 flags nobody knows are ignored", frame(PING, 0xfe, 0, b"12345678"), Alive),
        ("4.1 the reserved bit is ignored", frame(PING, 0, 0x8000_0000, b"12345678"), Alive),
        ("4.2 DATA of the largest size", all(&[&post_with(&[]), &frame(DATA, END_STREAM, 1, &[0; 16_384])]), Served(1)),
        (
            "4.2 DATA that is larger",
            all(&[&post_with(&[]), &frame(DATA, END_STREAM, 1, &[0; 16_385])]),
            Stream(&[FRAME_SIZE_ERROR]),
        ),
        (
            "4.2 HEADERS that are larger",
            frame(HEADERS, END_STREAM | END_HEADERS, 1, &too_large),
            Connection(&[FRAME_SIZE_ERROR]),
        ),
        (
            "4.3 a header block that cannot be decoded",
            frame(HEADERS, END_STREAM | END_HEADERS, 1, &[0x80]),
            Connection(&[COMPRESSION_ERROR]),
        ),
        (
            "4.3 PRIORITY within a header block",
            all(&[&half(END_STREAM), &frame(PRIORITY, 0, 1, &priority(0))]),
            Connection(&[PROTOCOL_ERROR]),
        ),
        (
            "4.3 another stream's HEADERS within one",
            all(&[&half(END_STREAM), &request(3, &GET)]),
            Connection(&[PROTOCOL_ERROR]),
        ),
        // ---- streams
        ("5.1 idle: DATA", frame(DATA, END_STREAM, 1, b"x"), Connection(&[PROTOCOL_ERROR, STREAM_CLOSED])),
        ("5.1 idle: RST_STREAM", frame(RST_STREAM, 0, 1, &[0, 0, 0, 8]), Connection(&[PROTOCOL_ERROR])),
        ("5.1 idle: WINDOW_UPDATE", window(1, 100), Connection(&[PROTOCOL_ERROR])),
        ("5.1 idle: CONTINUATION", frame(CONTINUATION, END_HEADERS, 1, &block(&GET)), Connection(&[PROTOCOL_ERROR])),
        (
            "5.1 half closed: DATA",
            all(&[&request(1, &GET), &frame(DATA, END_STREAM, 1, b"x")]),
            Stream(&[STREAM_CLOSED]),
        ),
        (
            "5.1 half closed: HEADERS",
            all(&[&request(1, &GET), &request(1, &GET)]),
            Stream(&[STREAM_CLOSED, PROTOCOL_ERROR]),
        ),
        (
            "5.1 half closed: CONTINUATION",
            all(&[&request(1, &GET), &frame(CONTINUATION, END_HEADERS, 1, &block(&GET))]),
            Connection(&[STREAM_CLOSED, PROTOCOL_ERROR]),
        ),
        (
            "5.1 closed by us: DATA",
            all(&[&post_with(&[]), &frame(RST_STREAM, 0, 1, &[0, 0, 0, 8]), &frame(DATA, END_STREAM, 1, b"x")]),
            Stream(&[STREAM_CLOSED]),
        ),
        (
            "5.1 closed by us: HEADERS",
            all(&[&post_with(&[]), &frame(RST_STREAM, 0, 1, &[0, 0, 0, 8]), &request(1, &GET)]),
            Stream(&[STREAM_CLOSED, PROTOCOL_ERROR]),
        ),
        (
            "5.1 closed by us: CONTINUATION",
            all(&[
                &post_with(&[]),
                &frame(RST_STREAM, 0, 1, &[0, 0, 0, 8]),
                &frame(CONTINUATION, END_HEADERS, 1, &block(&GET)),
            ]),
            Connection(&[STREAM_CLOSED, PROTOCOL_ERROR]),
        ),
        ("5.1.1 a client's stream is odd", request(2, &GET), Connection(&[PROTOCOL_ERROR])),
        (
            "5.1.1 streams go up",
            all(&[&request(5, &GET), &request(3, &GET)]),
            Connection(&[PROTOCOL_ERROR, STREAM_CLOSED]),
        ),
        (
            "5.3 a stream that depends on itself",
            frame(HEADERS, END_STREAM | END_HEADERS | WITH_PRIORITY, 1, &all(&[&priority(1), &block(&GET)])),
            Stream(&[PROTOCOL_ERROR]),
        ),
        ("5.4.1 GOAWAY is followed by the end", frame(PING, 0, 0, b"short"), Connection(&[FRAME_SIZE_ERROR])),
        (
            "5.5 an unknown frame within a header block",
            all(&[&half(END_STREAM), &frame(0x16, 0, 0, b"12345678")]),
            Connection(&[PROTOCOL_ERROR]),
        ),
        // ---- DATA
        ("6.1 DATA on stream 0", frame(DATA, END_STREAM, 0, b"x"), Connection(&[PROTOCOL_ERROR])),
        ("6.1 padding", all(&[&post_with(&[]), &frame(DATA, END_STREAM | PADDED, 1, &padded(5, 9))]), Served(1)),
        (
            "6.1 more padding than payload",
            all(&[&post_with(&[]), &frame(DATA, END_STREAM | PADDED, 1, &padded(10, 9))]),
            Connection(&[PROTOCOL_ERROR]),
        ),
        // ---- HEADERS
        (
            "6.2 without END_HEADERS, then DATA",
            all(&[&half(0), &frame(DATA, END_STREAM, 1, b"x")]),
            Connection(&[PROTOCOL_ERROR]),
        ),
        ("6.2 HEADERS on stream 0", request(0, &GET), Connection(&[PROTOCOL_ERROR])),
        (
            "6.2 padded HEADERS",
            frame(HEADERS, END_STREAM | END_HEADERS | PADDED, 1, &all(&[&[3], &block(&GET), &[0; 3]])),
            Served(1),
        ),
        (
            "6.2 more padding than HEADERS",
            frame(HEADERS, END_STREAM | END_HEADERS | PADDED, 1, &all(&[&[255], &block(&GET)])),
            Connection(&[PROTOCOL_ERROR]),
        ),
        (
            "6.2 HEADERS with a priority",
            frame(HEADERS, END_STREAM | END_HEADERS | WITH_PRIORITY, 1, &all(&[&priority(0), &block(&GET)])),
            Served(1),
        ),
        // ---- PRIORITY
        ("6.3 PRIORITY on stream 0", frame(PRIORITY, 0, 0, &priority(1)), Connection(&[PROTOCOL_ERROR])),
        ("6.3 PRIORITY of another size", frame(PRIORITY, 0, 1, &[0; 4]), Stream(&[FRAME_SIZE_ERROR])),
        ("6.3 PRIORITY on an idle stream", all(&[&frame(PRIORITY, 0, 1, &priority(0)), &request(1, &GET)]), Served(1)),
        // ---- RST_STREAM
        ("6.4 RST_STREAM on stream 0", frame(RST_STREAM, 0, 0, &[0, 0, 0, 8]), Connection(&[PROTOCOL_ERROR])),
        (
            "6.4 RST_STREAM of another size",
            all(&[&post_with(&[]), &frame(RST_STREAM, 0, 1, &[0; 3])]),
            Connection(&[FRAME_SIZE_ERROR]),
        ),
        // ---- SETTINGS
        ("6.5 an acknowledgement with a payload", frame(SETTINGS, ACK, 0, &[0; 6]), Connection(&[FRAME_SIZE_ERROR])),
        ("6.5 SETTINGS on a stream", frame(SETTINGS, 0, 1, &[0; 6]), Connection(&[PROTOCOL_ERROR])),
        ("6.5 SETTINGS of another size", frame(SETTINGS, 0, 0, &[0; 3]), Connection(&[FRAME_SIZE_ERROR])),
        ("6.5.2 push is on or off", settings(&[(2, 2)]), Connection(&[PROTOCOL_ERROR])),
        ("6.5.2 a window is below 2^31", settings(&[(4, 0x8000_0000)]), Connection(&[FLOW_CONTROL_ERROR])),
        ("6.5.2 the largest frame is 2^14 at least", settings(&[(5, 16_383)]), Connection(&[PROTOCOL_ERROR])),
        ("6.5.2 and below 2^24", settings(&[(5, 16_777_216)]), Connection(&[PROTOCOL_ERROR])),
        ("6.5.2 a setting nobody knows", all(&[&settings(&[(0xff, 1)]), &ping()]), Alive),
        (
            "6.5.3 the last of several values counts, and all are acknowledged",
            all(&[&settings(&[(4, 100), (4, 1)]), &ping()]),
            Acknowledged,
        ),
        // ---- PUSH_PROMISE
        (
            "6.6 clients promise nothing",
            frame(PUSH_PROMISE, END_HEADERS, 1, &all(&[&[0, 0, 0, 2], &block(&GET)])),
            Connection(&[PROTOCOL_ERROR]),
        ),
        // ---- PING
        ("6.7 PING is answered", ping(), Alive),
        ("6.7 PING on a stream", frame(PING, 0, 1, b"12345678"), Connection(&[PROTOCOL_ERROR])),
        ("6.7 PING of another size", frame(PING, 0, 0, &[0; 9]), Connection(&[FRAME_SIZE_ERROR])),
        // ---- GOAWAY
        ("6.8 GOAWAY on a stream", frame(GOAWAY, 0, 1, &[0; 8]), Connection(&[PROTOCOL_ERROR])),
        // ---- WINDOW_UPDATE
        ("6.9 a connection's window by nothing", window(0, 0), Connection(&[PROTOCOL_ERROR])),
        ("6.9 a stream's window by nothing", all(&[&post_with(&[]), &window(1, 0)]), Stream(&[PROTOCOL_ERROR])),
        ("6.9 WINDOW_UPDATE of another size", frame(WINDOW_UPDATE, 0, 0, &[0; 3]), Connection(&[FRAME_SIZE_ERROR])),
        (
            "6.9.1 a connection's window above 2^31",
            all(&[&window(0, 0x7fff_ffff), &window(0, 0x7fff_ffff)]),
            Connection(&[FLOW_CONTROL_ERROR]),
        ),
        (
            "6.9.1 a stream's window above 2^31",
            all(&[&post_with(&[]), &window(1, 0x7fff_ffff), &window(1, 0x7fff_ffff)]),
            Stream(&[FLOW_CONTROL_ERROR]),
        ),
        (
            "6.9.2 a stream's window above 2^31 by a setting",
            all(&[&post_with(&[]), &window(1, 0x7fff_0000), &settings(&[(4, 0x7fff_ffff)])]),
            Connection(&[FLOW_CONTROL_ERROR]),
        ),
        (
            "6.9.2 a window below nothing is no error",
            all(&[&settings(&[(4, 3)]), &request(1, &GET), &settings(&[(4, 0)]), &ping()]),
            Alive,
        ),
        // ---- CONTINUATION
        (
            "6.10 a head in three parts",
            all(&[
                &frame(HEADERS, END_STREAM, 1, &first),
                &frame(CONTINUATION, 0, 1, &[]),
                &frame(CONTINUATION, END_HEADERS, 1, &rest),
            ]),
            Served(1),
        ),
        (
            "6.10 CONTINUATION that continues nothing",
            all(&[&post_with(&[]), &frame(CONTINUATION, END_HEADERS, 1, &block(&GET))]),
            Connection(&[PROTOCOL_ERROR]),
        ),
        (
            "6.10 CONTINUATION on stream 0",
            all(&[&frame(HEADERS, END_STREAM, 1, &first), &frame(CONTINUATION, END_HEADERS, 0, &rest)]),
            Connection(&[PROTOCOL_ERROR]),
        ),
        (
            "6.10 CONTINUATION of another stream",
            all(&[&frame(HEADERS, END_STREAM, 1, &first), &frame(CONTINUATION, END_HEADERS, 3, &rest)]),
            Connection(&[PROTOCOL_ERROR]),
        ),
        (
            "6.10 DATA within a header block",
            all(&[&frame(HEADERS, 0, 1, &first), &frame(DATA, END_STREAM, 1, b"x")]),
            Connection(&[PROTOCOL_ERROR]),
        ),
        // ---- errors that nobody knows
        (
            "7 GOAWAY with a code nobody knows",
            all(&[&frame(GOAWAY, 0, 0, &[0, 0, 0, 0, 0, 0, 0, 0xff]), &ping()]),
            Alive,
        ),
        ("7 RST_STREAM with one", all(&[&post_with(&[]), &frame(RST_STREAM, 0, 1, &[0, 0, 0, 0xff]), &ping()]), Alive),
        // ---- HTTP
        (
            "8.1 trailers without END_STREAM",
            all(&[&post_with(&[]), &frame(HEADERS, END_HEADERS, 1, &block(&[("x-t", "1")]))]),
            Stream(&[PROTOCOL_ERROR]),
        ),
        (
            "8.1 trailers",
            all(&[
                &post_with(&[("trailer", "x-t")]),
                &frame(DATA, 0, 1, b"x"),
                &frame(HEADERS, END_STREAM | END_HEADERS, 1, &block(&[("x-t", "1")])),
            ]),
            Served(1),
        ),
        (
            "8.1 pseudo-headers in trailers",
            all(&[&post_with(&[]), &frame(HEADERS, END_STREAM | END_HEADERS, 1, &block(&[(":method", "GET")]))]),
            Stream(&[PROTOCOL_ERROR]),
        ),
        (
            "8.1.1 a length that is not the body's",
            all(&[&post_with(&[("content-length", "1")]), &frame(DATA, END_STREAM, 1, b"four")]),
            Stream(&[PROTOCOL_ERROR]),
        ),
        (
            "8.1.1 nor that of all its parts",
            all(&[
                &post_with(&[("content-length", "1")]),
                &frame(DATA, 0, 1, b"t"),
                &frame(DATA, END_STREAM, 1, b"wo"),
            ]),
            Stream(&[PROTOCOL_ERROR]),
        ),
        ("8.1.1 a length and no body", get_with(&[("content-length", "4")]), Stream(&[PROTOCOL_ERROR])),
        ("8.2 upper case", get_with(&[("X-Upper", "1")]), Stream(&[PROTOCOL_ERROR])),
        ("8.2.1 a line end in a value", get_with(&[("x-a", "1\r\nx-b: 2")]), Stream(&[PROTOCOL_ERROR])),
        ("8.2.1 a NUL in a value", get_with(&[("x-a", "1\0")]), Stream(&[PROTOCOL_ERROR])),
        ("8.2.1 a colon in a name", get_with(&[("x:a", "1")]), Stream(&[PROTOCOL_ERROR])),
        ("8.2.1 a space in a name", get_with(&[("x a", "1")]), Stream(&[PROTOCOL_ERROR])),
        ("8.2.2 Connection", get_with(&[("connection", "keep-alive")]), Stream(&[PROTOCOL_ERROR])),
        (
            "8.2.2 Transfer-Encoding",
            all(&[&post_with(&[("transfer-encoding", "chunked")]), &frame(DATA, END_STREAM, 1, b"0\r\n\r\n")]),
            Stream(&[PROTOCOL_ERROR]),
        ),
        ("8.2.2 TE that is not trailers", get_with(&[("te", "gzip")]), Stream(&[PROTOCOL_ERROR])),
        ("8.2.2 TE that is", get_with(&[("te", "trailers")]), Served(1)),
        ("8.3 a pseudo-header nobody knows", get_with(&[(":test", "1")]), Stream(&[PROTOCOL_ERROR])),
        ("8.3 one of answers", get_with(&[(":status", "200")]), Stream(&[PROTOCOL_ERROR])),
        (
            "8.3 one behind the others",
            request(1, &[("x-a", "1"), GET[0], GET[1], GET[2], GET[3]]),
            Stream(&[PROTOCOL_ERROR]),
        ),
        ("8.3.1 no method", request(1, &[GET[1], GET[2], GET[3]]), Stream(&[PROTOCOL_ERROR])),
        ("8.3.1 no scheme", request(1, &[GET[0], GET[2], GET[3]]), Stream(&[PROTOCOL_ERROR])),
        ("8.3.1 no path", request(1, &[GET[0], GET[1], GET[3]]), Stream(&[PROTOCOL_ERROR])),
        ("8.3.1 an empty path", request(1, &[GET[0], GET[1], (":path", ""), GET[3]]), Stream(&[PROTOCOL_ERROR])),
        ("8.3.1 two methods", get_with(&[(":method", "GET")]), Stream(&[PROTOCOL_ERROR])),
        ("8.3.1 two schemes", get_with(&[(":scheme", "http")]), Stream(&[PROTOCOL_ERROR])),
        ("8.3.1 two paths", get_with(&[(":path", "/")]), Stream(&[PROTOCOL_ERROR])),
        (
            "8.3.1 a space in the path",
            request(1, &[GET[0], GET[1], (":path", "/x HTTP/1.1\r\nx: y"), GET[3]]),
            Stream(&[PROTOCOL_ERROR]),
        ),
        (
            "8.3.1 a user in the authority",
            request(1, &[GET[0], GET[1], GET[2], (":authority", "u@h")]),
            Stream(&[PROTOCOL_ERROR]),
        ),
        ("8.3.1 a request is served", request(1, &GET), Served(1)),
        (
            "8.3.1 a body is served",
            all(&[&post_with(&[("content-length", "4")]), &frame(DATA, END_STREAM, 1, b"four")]),
            Served(1),
        ),
        (
            "8.3.1 HEAD and OPTIONS are requests",
            request(1, &[(":method", "OPTIONS"), GET[1], (":path", "/x"), GET[3]]),
            Served(1),
        ),
        // ---- HPACK (RFC 7541)
        (
            "hpack 2.3.3 an index beyond the tables",
            frame(HEADERS, END_STREAM | END_HEADERS, 1, &all(&[&block(&GET), &[0xc6]])),
            Connection(&[COMPRESSION_ERROR]),
        ),
        (
            "hpack 2.3.3 the same for a name",
            frame(HEADERS, END_STREAM | END_HEADERS, 1, &all(&[&block(&GET), &[0x7f, 0x20, 1, b'x']])),
            Connection(&[COMPRESSION_ERROR]),
        ),
        (
            "hpack 4.2 a table size at the end of a block",
            frame(HEADERS, END_STREAM | END_HEADERS, 1, &all(&[&block(&GET), &[0x20]])),
            Connection(&[COMPRESSION_ERROR]),
        ),
        (
            "hpack 5.2 Huffman padding that is too long",
            frame(
                HEADERS,
                END_STREAM | END_HEADERS,
                1,
                &all(&[&block(&GET), &[0, 1, b'x', 0x84, 0x1f, 0xff, 0xff, 0xff]]),
            ),
            Connection(&[COMPRESSION_ERROR]),
        ),
        (
            "hpack 5.2 Huffman padding that is not all ones",
            frame(HEADERS, END_STREAM | END_HEADERS, 1, &all(&[&block(&GET), &[0, 1, b'x', 0x81, 0x18]])),
            Connection(&[COMPRESSION_ERROR]),
        ),
        (
            "hpack 5.2 the end of strings in a string",
            frame(
                HEADERS,
                END_STREAM | END_HEADERS,
                1,
                &all(&[&block(&GET), &[0, 1, b'x', 0x84, 0xff, 0xff, 0xff, 0xfc]]),
            ),
            Connection(&[COMPRESSION_ERROR]),
        ),
        (
            "hpack 6.1 index 0",
            frame(HEADERS, END_STREAM | END_HEADERS, 1, &all(&[&[0x80], &block(&GET)])),
            Connection(&[COMPRESSION_ERROR]),
        ),
        (
            "hpack 6.3 a table larger than allowed",
            frame(HEADERS, END_STREAM | END_HEADERS, 1, &all(&[&[0x3f, 0xe2, 0x1f], &block(&GET)])),
            Connection(&[COMPRESSION_ERROR]),
        ),
        (
            "hpack 5.1 an integer without an end",
            frame(HEADERS, END_STREAM | END_HEADERS, 1, &[&[0xff][..], &[0xff; 16]].concat()),
            Connection(&[COMPRESSION_ERROR]),
        ),
        (
            "hpack 6.1 static entries",
            frame(HEADERS, END_STREAM | END_HEADERS, 1, &all(&[&[0x82, 0x86, 0x84], &literal(":authority", "h")])),
            Served(1),
        ),
    ]
}

/// What the library beneath us does otherwise, and why that is harmless here.
const OTHERWISE: [(&str, &str); 1] =
    [("8.1 pseudo-headers in trailers", "they are dropped, and the rest is good trailers")];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_broken_rule_is_answered_as_its_section_says() {
    // None is closed because no request comes, for as long as it is listened to.
    let site = site_with(|listener| listener.header_time(3 * PATIENCE)).await;
    let (mut wrong, mut otherwise) = (Vec::new(), Vec::new());
    let cases = cases();
    assert!(cases.len() > 90);
    let is_otherwise = |name: &str| OTHERWISE.iter().any(|(known, _)| *known == name);
    let judged = cases.into_iter().map(|(name, bytes, owed)| {
        let site = &site;
        let quiet = if is_otherwise(name) { QUIET } else { PATIENCE };
        async move {
            let mut line = Line::begin(site).await;
            line.send(&bytes).await;
            let (frames, closed) = line.hear(quiet, |frame| is_the_end(owed, frame)).await;
            judge(owed, &frames, closed).map(|what| (name, what))
        }
    });
    for found in futures_util::future::join_all(judged).await.into_iter().flatten() {
        match is_otherwise(found.0) {
            true => otherwise.push(found.0),
            false => wrong.push(format!("{}: {}", found.0, found.1)),
        }
    }
    assert_eq!(otherwise, OTHERWISE.map(|(name, _)| name), "what is right by now needs no excuse");
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[tokio::test]
async fn a_connection_begins_with_the_preface_and_settings() {
    let site = site().await;
    // 3.4: what begins otherwise is no HTTP/2.
    let mut line = Line::dial(&site).await;
    line.send(b"PRI * HTTP/2.0\r\n\r\nSX\r\n\r\n").await;
    let mut answer = Vec::new();
    let _ = soon(line.stream.read_to_end(&mut answer)).await;
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 4") || answer.starts_with(&[0, 0]), "{answer:?}");
    // 3.4: a server's first frame is SETTINGS. (That a client's is, the library beneath us does not insist on.)
    let mut line = Line::dial(&site).await;
    line.send(PREFACE).await;
    let first = line.frame().await;
    assert_eq!((first.kind, first.flags, first.stream), (SETTINGS, 0, 0));
}

#[tokio::test]
async fn after_an_error_the_connection_is_closed() {
    let site = site().await;
    let mut line = Line::begin(&site).await;
    line.send(&frame(DATA, END_STREAM, 0, b"x")).await;
    let mut rest = Vec::new();
    soon(line.stream.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(rest[rest.len() - 17 + 3], GOAWAY, "the last word");
}

#[tokio::test]
async fn more_streams_than_were_allowed_are_refused() {
    // An upstream that never answers, so that all of them stay.
    let upstream = raw::script(|stream| async move {
        let _held = stream;
        std::future::pending().await
    })
    .await;
    let site = Setup::new(upstream).open().await;
    let mut line = Line::begin(&site).await;
    let streams: Vec<u8> = (0..257_u32).flat_map(|n| request(2 * n + 1, &GET)).collect();
    line.send(&streams).await;
    let (frames, closed) = line.hear(PATIENCE, |frame| [RST_STREAM, GOAWAY].contains(&frame.kind)).await;
    assert!(judge(Stream(&[PROTOCOL_ERROR, REFUSED_STREAM]), &frames, closed).is_none(), "{frames:?}");
}

/// Data goes out as the client opens its windows, and not before (6.9).
#[tokio::test]
async fn data_waits_for_the_window() {
    let site = site().await;
    let mut line = Line::begin(&site).await;
    line.send(&all(&[&settings(&[(4, 1)]), &request(1, &GET)])).await;
    let (frames, _) = line.hear(PATIENCE, |frame| frame.kind == DATA).await;
    assert_eq!(frames.last().unwrap().payload.len(), 1, "a window of one byte");
    line.send(&settings(&[(4, 2)])).await;
    let (frames, _) = line.hear(PATIENCE, |frame| frame.kind == DATA).await;
    assert_eq!(frames.last().unwrap().payload.len(), 1, "and another one");
    line.send(&window(1, 100)).await;
    let (frames, _) = line.hear(PATIENCE, |frame| frame.kind == DATA).await;
    assert_eq!(frames.last().unwrap().payload, b"llo");
}

/// How long a connection may ask for nothing, where a test waits for that.
const IDLE: Duration = Duration::from_millis(300);

/// How many pieces such a test sends at most, a third of that time apart; fewer than there may be streams. The connection
/// has to end while they are sent: afterwards it could for their want.
const PIECES: u32 = 90;

/// Sends pieces with a pause after each while it hears what comes, until the connection has ended or so much time has
/// passed. Whether it has ended, and what came.
async fn live_on(
    line: Line,
    pieces: impl Iterator<Item = Vec<u8>>,
    pause: Duration,
    limit: Duration,
) -> (bool, Vec<Frame>) {
    let (reads, mut writes) = line.stream.into_split();
    let reading = tokio::spawn(async move {
        let mut reads = reads;
        let mut all = Vec::new();
        let ended = tokio::time::timeout(limit, reads.read_to_end(&mut all)).await.is_ok();
        (ended, all)
    });
    for piece in pieces {
        if reading.is_finished() || writes.write_all(&piece).await.is_err() {
            break;
        }
        tokio::time::sleep(pause).await;
    }
    let (ended, mut rest) = reading.await.unwrap();
    let mut frames = Vec::new();
    while rest.len() >= 9 {
        let length = u32::from_be_bytes([0, rest[0], rest[1], rest[2]]) as usize;
        let stream = u32::from_be_bytes([rest[5] & 0x7f, rest[6], rest[7], rest[8]]);
        frames.push(Frame { kind: rest[3], flags: rest[4], stream, payload: rest[9..9 + length].to_vec() });
        rest.drain(..9 + length);
    }
    (ended, frames)
}

/// A client whose windows never open: its answers stay, whether they are the upstream's or ours, and however alive it is.
#[tokio::test]
async fn answers_that_are_never_taken_end_the_connection() {
    let api = raw::plain_api().await;
    let site = Setup::new(api.address).open_with(|listener: Listener| listener.idle_time(IDLE)).await;
    let unpaid = [(":method", "GET"), (":scheme", "http"), (":path", "/paid/x"), (":authority", "h")];
    for headers in [&GET, &unpaid] {
        let mut line = Line::begin(&site).await;
        line.send(&all(&[&settings(&[(4, 0)]), &request(1, headers)])).await;
        let pings = (0..PIECES).map(|_| ping());
        let (ended, frames) = live_on(line, pings, IDLE / 3, PIECES * IDLE / 3).await;
        assert!(frames.iter().any(|frame| (frame.kind, frame.stream) == (HEADERS, 1)), "{frames:?}");
        assert!(frames.iter().all(|frame| frame.kind != DATA), "{frames:?}");
        assert!(ended, "{frames:?}");
    }
}

/// The same from one that goes on asking: it is told to end, and no more of its answers pile up.
#[tokio::test]
async fn answers_that_are_never_taken_end_the_connection_of_who_goes_on_asking() {
    let api = raw::plain_api().await;
    let site = Setup::new(api.address).open_with(|listener: Listener| listener.idle_time(IDLE)).await;
    let mut line = Line::begin(&site).await;
    line.send(&settings(&[(4, 0)])).await;
    let requests = (0..PIECES).map(|n| request(2 * n + 1, &GET));
    let (ended, frames) = live_on(line, requests, IDLE / 3, PIECES * IDLE / 3).await;
    assert!(frames.iter().any(|frame| frame.kind == GOAWAY), "{} frames", frames.len());
    assert!(ended);
}

/// One that takes its answers slowly is served.
#[tokio::test]
async fn answers_that_are_taken_slowly_are_given() {
    const REQUESTS: u32 = 30;
    // In all it takes three times as long as a connection may be idle, and for each answer a tenth of that.
    let idle = Duration::from_secs(3);
    let pause = 3 * idle / REQUESTS;
    let api = raw::plain_api().await;
    let site = Setup::new(api.address).open_with(|listener: Listener| listener.idle_time(idle)).await;
    let mut line = Line::begin(&site).await;
    line.send(&settings(&[(4, 0)])).await;
    // An answer is taken when the next is asked for, so that there always is one that is not.
    let pieces = (0..=REQUESTS).map(|n| {
        let ask = if n < REQUESTS { request(2 * n + 1, &GET) } else { Vec::new() };
        let take = if n > 0 { window(2 * n - 1, 5) } else { Vec::new() };
        all(&[&ask, &take])
    });
    let (_, frames) = live_on(line, pieces, pause, 2 * PATIENCE).await;
    let given = frames.iter().filter(|frame| frame.kind == DATA && frame.flags & END_STREAM != 0).count();
    assert!(given == REQUESTS as usize && frames.iter().all(|frame| frame.kind != RST_STREAM), "{given}: {frames:?}");
}

// ---- floods

/// How much of a flood is sent at most.
const FLOOD: usize = 20_000;

/// Sends pieces until the server has had enough, or has taken them all. What it said with GOAWAY.
async fn flood(site: &Site, pieces: impl Iterator<Item = Vec<u8>>) -> Option<u32> {
    let line = Line::begin(site).await;
    let (mut reads, mut writes) = line.stream.into_split();
    let reading = tokio::spawn(async move {
        let mut all = Vec::new();
        let _ = tokio::time::timeout(Duration::from_secs(10), reads.read_to_end(&mut all)).await;
        all
    });
    for piece in pieces {
        let written = tokio::time::timeout(Duration::from_secs(5), writes.write_all(&piece)).await;
        if !matches!(written, Ok(Ok(()))) {
            break;
        }
    }
    let _ = writes.shutdown().await;
    let all = soon(reading).await.unwrap();
    let mut rest = all.as_slice();
    while rest.len() >= 9 {
        let length = u32::from_be_bytes([0, rest[0], rest[1], rest[2]]) as usize;
        if rest.len() < 9 + length {
            break;
        }
        if rest[3] == GOAWAY {
            return Some(u32::from_be_bytes(rest[13..17].try_into().unwrap()));
        }
        rest = &rest[9 + length..];
    }
    None
}

const ENHANCE_YOUR_CALM: u32 = 11;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_end_the_connection_and_others_go_on() {
    let upstream = raw::script(|stream| async move {
        let _held = stream;
        std::future::pending().await
    })
    .await;
    let site = Setup::new(upstream).open_with(|listener: Listener| listener.write_pause(Duration::from_secs(2))).await;
    // Rapid reset (CVE-2023-44487), all in one write so that nobody has looked at the streams meanwhile.
    let resets: Vec<u8> = (0..1_000_u32)
        .flat_map(|n| [request(2 * n + 1, &GET), frame(RST_STREAM, 0, 2 * n + 1, &[0, 0, 0, 8])].concat())
        .collect();
    assert_eq!(flood(&site, std::iter::once(resets)).await, Some(ENHANCE_YOUR_CALM));
    // A head that does not end (CVE-2024-27316).
    let begun = frame(HEADERS, END_STREAM, 1, &block(&GET));
    let more = frame(CONTINUATION, 0, 1, &block(&[("x-more", &"y".repeat(100))]).repeat(40));
    let endless = std::iter::once(begun).chain(std::iter::repeat_n(more, FLOOD));
    assert_eq!(flood(&site, endless).await, Some(ENHANCE_YOUR_CALM));
    // The same without a byte in each part.
    let begun = frame(HEADERS, END_STREAM, 1, &block(&GET));
    let nothing = frame(CONTINUATION, 0, 1, &[]).repeat(100);
    let endless = std::iter::once(begun).chain(std::iter::repeat_n(nothing, FLOOD / 10));
    assert_eq!(flood(&site, endless).await, Some(ENHANCE_YOUR_CALM));
    // Streams that are all wrong.
    let bad: Vec<Vec<u8>> =
        (0..2_000_u32).map(|n| request(2 * n + 1, &[&GET[..], &[("connection", "x")]].concat())).collect();
    assert_eq!(flood(&site, bad.into_iter()).await, Some(ENHANCE_YOUR_CALM));
    let mut line = Line::begin(&site).await;
    line.send(&ping()).await;
    let (frames, _) = line.hear(PATIENCE, |frame| (frame.kind, frame.flags) == (PING, ACK)).await;
    assert!(frames.iter().any(|frame| frame.kind == PING));
}

/// Answers that nobody reads are not piled up: the server stops reading until they are taken (CVE-2019-9512, -9515), and
/// gives the connection up when they are not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_nobody_takes_are_not_piled_up() {
    let api = raw::plain_api().await;
    let pause = Duration::from_millis(500);
    let site = Setup::new(api.address).open_with(|listener: Listener| listener.write_pause(pause)).await;
    for piece in [ping().repeat(100), settings(&[(3, 1)]).repeat(100)] {
        let mut line = Line::begin(&site).await;
        let mut taken = 0_usize;
        let ended = loop {
            match tokio::time::timeout(Duration::from_secs(10), line.stream.write(&piece)).await {
                Ok(Ok(count)) => taken += count,
                Ok(Err(_)) => break true,
                Err(_) => break false,
            }
            assert!(taken < 256 << 20, "there is no end to what it takes");
        };
        assert!(ended, "the connection is given up");
    }
    assert_eq!(site.client().await.ask("GET /x HTTP/1.1\r\nhost: h\r\n\r\n").await.status, 200);
}
