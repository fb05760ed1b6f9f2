//! HTTP/1 as bytes: a client that sees them, and upstreams that record them.
#![allow(dead_code, reason = "a toolbox: not every test needs every tool")]

use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{HeaderMap, HeaderValue};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// How long any one step may take before the test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("this should not take so long")
}

pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    pub(crate) buffer: Vec<u8>,
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// The whole head, status line included.
    pub(crate) head: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }

    /// Status and error; no error where there is none.
    pub(crate) fn told(&self) -> (u16, String) {
        let json: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        (self.status, json["error"].as_str().unwrap_or_default().to_owned())
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let stream = soon(TcpStream::connect(address)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, buffer: Vec::new() }
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        soon(self.stream.write_all(bytes.as_ref())).await.unwrap();
    }

    pub(crate) async fn ask(&mut self, request: &str) -> Answer {
        self.send(request).await;
        self.answer(request.starts_with("HEAD ")).await
    }

    /// Reads on; false at the end of the stream. A reset is an end, too.
    pub(crate) async fn more(&mut self) -> bool {
        let mut chunk = vec![0; 16 * 1024];
        match soon(self.stream.read(&mut chunk)).await {
            Ok(0) | Err(_) => false,
            Ok(count) => {
                self.buffer.extend_from_slice(&chunk[..count]);
                true
            }
        }
    }

    pub(crate) async fn until(&mut self, marker: &[u8]) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = self.buffer.windows(marker.len()).position(|window| window == marker) {
                return Some(self.buffer.drain(..at + marker.len()).collect());
            }
            if !self.more().await {
                return None;
            }
        }
    }

    pub(crate) async fn exactly(&mut self, count: usize) -> Option<Vec<u8>> {
        while self.buffer.len() < count {
            if !self.more().await {
                return None;
            }
        }
        Some(self.buffer.drain(..count).collect())
    }

    pub(crate) async fn head(&mut self) -> Option<Answer> {
        let head = String::from_utf8(self.until(b"\r\n\r\n").await?).unwrap();
        let mut lines = head.trim_end().split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let mut headers = HeaderMap::new();
        for line in lines {
            let (name, value) = line.split_once(':').unwrap();
            let name: http::HeaderName = name.parse().unwrap();
            headers.append(name, HeaderValue::from_str(value.trim()).unwrap());
        }
        Some(Answer { status, head, headers, body: Vec::new() })
    }

    /// One chunk of a chunked body; empty at its end.
    pub(crate) async fn chunk(&mut self) -> Option<Vec<u8>> {
        let size = String::from_utf8(self.until(b"\r\n").await?).unwrap();
        let size = usize::from_str_radix(size.trim(), 16).unwrap();
        if size == 0 {
            return Some(Vec::new());
        }
        let mut data = self.exactly(size + 2).await?;
        data.truncate(size);
        Some(data)
    }

    pub(crate) async fn answer(&mut self, to_head: bool) -> Answer {
        self.try_answer(to_head).await.expect("an answer that is whole")
    }

    /// `None` if the connection ended before the answer did.
    pub(crate) async fn try_answer(&mut self, to_head: bool) -> Option<Answer> {
        let mut answer = self.head().await?;
        if to_head || answer.status < 200 || [204, 304].contains(&answer.status) {
            return Some(answer);
        }
        if let Some(length) = answer.header("content-length").map(|text| text.parse().unwrap()) {
            answer.body = self.exactly(length).await?;
        } else if answer.header("transfer-encoding") == Some("chunked") {
            loop {
                let chunk = self.chunk().await?;
                if chunk.is_empty() {
                    break;
                }
                answer.body.extend(chunk);
            }
            while self.until(b"\r\n").await? != b"\r\n" {}
        } else {
            while self.more().await {}
            answer.body = std::mem::take(&mut self.buffer);
        }
        Some(answer)
    }

    /// Whether the other side ends the connection without another byte.
    pub(crate) async fn ends(&mut self) -> bool {
        self.buffer.is_empty() && !self.more().await
    }
}

/// A request as the upstream saw it.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Seen {
    pub(crate) fn line(&self) -> &str {
        self.head.lines().next().unwrap()
    }

    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        let of = |line: &'_ str| line.split_once(':').is_some_and(|(key, _)| key.eq_ignore_ascii_case(name));
        self.head.lines().skip(1).filter(|line| of(line)).map(|line| line.split_once(':').unwrap().1.trim()).collect()
    }
}

/// An upstream that reads whole requests and answers with the bytes a test gives it.
pub(crate) struct Api {
    pub(crate) address: SocketAddr,
    pub(crate) seen: Arc<Mutex<Vec<Seen>>>,
    pub(crate) connections: Arc<AtomicUsize>,
}

impl Api {
    pub(crate) fn requests(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// What came since the last time.
    pub(crate) fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }

    pub(crate) fn last(&self) -> Seen {
        self.requests().pop().expect("a request came")
    }
}

pub(crate) const OK: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n\r\nok";

pub(crate) async fn api(answer: impl Fn(&Seen) -> String + Send + Sync + 'static) -> Api {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let connections = Arc::new(AtomicUsize::new(0));
    let (log, count, answer) = (Arc::clone(&seen), Arc::clone(&connections), Arc::new(answer));
    let address = script(move |stream| {
        count.fetch_add(1, Ordering::SeqCst);
        let (log, answer) = (Arc::clone(&log), Arc::clone(&answer));
        async move {
            let mut peer = Client { stream, buffer: Vec::new() };
            while let Some(request) = receive(&mut peer).await {
                let bytes = answer(&request);
                log.lock().unwrap().push(request);
                if peer.stream.write_all(bytes.as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    Api { address, seen, connections }
}

pub(crate) async fn plain_api() -> Api {
    api(|_| OK.to_owned()).await
}

/// Reads one whole request; `None` if the connection ends first.
pub(crate) async fn receive(peer: &mut Client) -> Option<Seen> {
    let head = String::from_utf8(peer.until(b"\r\n\r\n").await?).unwrap();
    let mut request = Seen { head, body: Vec::new() };
    if let Some(length) = request.all("content-length").first().map(|text| text.parse().unwrap()) {
        request.body = peer.exactly(length).await?;
    } else if request.all("transfer-encoding") == ["chunked"] {
        loop {
            let chunk = peer.chunk().await?;
            if chunk.is_empty() {
                break;
            }
            request.body.extend(chunk);
        }
        while peer.until(b"\r\n").await? != b"\r\n" {}
    }
    Some(request)
}

/// An upstream that does with each connection what a test says.
pub(crate) async fn script<F>(talk: impl Fn(TcpStream) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            stream.set_nodelay(true).unwrap();
            tokio::spawn(talk(stream));
        }
    });
    address
}
