//! The API that is sold: it knows nothing of payments, and remembers what reached it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// How long `/slow` works.
pub(crate) const SLOW: Duration = Duration::from_millis(400);

pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    desk: Arc<Desk>,
    server: JoinHandle<()>,
}

#[derive(Default)]
struct Desk {
    seen: Mutex<Vec<HeaderMap>>,
    failures: AtomicUsize,
    working: AtomicUsize,
    most_at_once: AtomicUsize,
    stream: Mutex<Option<mpsc::UnboundedReceiver<String>>>,
}

impl Upstream {
    pub(crate) async fn start() -> Self {
        let desk = Arc::<Desk>::default();
        let app = Router::new()
            .route("/thing", get(thing))
            .route("/slow", get(slow))
            .route("/after/{milliseconds}", get(after))
            .route("/stream", get(stream))
            .with_state(Arc::clone(&desk));
        let socket = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = socket.local_addr().unwrap();
        let server = tokio::spawn(async move { axum::serve(socket, app).await.unwrap() });
        Self { address, desk, server }
    }

    /// The headers of every call so far.
    pub(crate) fn seen(&self) -> Vec<HeaderMap> {
        self.desk.seen.lock().unwrap().clone()
    }

    /// How many calls of `/after` were worked on at once, at most.
    pub(crate) fn most_at_once(&self) -> usize {
        self.desk.most_at_once.load(Ordering::SeqCst)
    }

    /// Lets the next calls of `/thing` fail.
    pub(crate) fn fail_next(&self, count: usize) {
        self.desk.failures.store(count, Ordering::SeqCst);
    }

    /// The other end of the next `/stream`: what is sent there is its body, until it is dropped.
    pub(crate) fn next_stream(&self) -> mpsc::UnboundedSender<String> {
        let (sender, body) = mpsc::unbounded_channel();
        *self.desk.stream.lock().unwrap() = Some(body);
        sender
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Desk {
    /// Remembers a call; its number.
    fn see(&self, request: Request) -> usize {
        let mut seen = self.seen.lock().unwrap();
        seen.push(request.into_parts().0.headers);
        seen.len()
    }
}

async fn thing(State(desk): State<Arc<Desk>>, request: Request) -> Response {
    let number = desk.see(request);
    let failing = desk.failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
    match failing {
        Ok(_) => (StatusCode::INTERNAL_SERVER_ERROR, "out of order").into_response(),
        Err(_) => format!("thing {number}").into_response(),
    }
}

async fn slow(State(desk): State<Arc<Desk>>, request: Request) -> String {
    let number = desk.see(request);
    tokio::time::sleep(SLOW).await;
    format!("slow thing {number}")
}

async fn after(State(desk): State<Arc<Desk>>, Path(milliseconds): Path<u64>, request: Request) -> String {
    let number = desk.see(request);
    let at_once = desk.working.fetch_add(1, Ordering::SeqCst) + 1;
    desk.most_at_once.fetch_max(at_once, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
    desk.working.fetch_sub(1, Ordering::SeqCst);
    format!("thing {number}")
}

async fn stream(State(desk): State<Arc<Desk>>, request: Request) -> Response {
    desk.see(request);
    let pieces = desk.stream.lock().unwrap().take().expect("the test prepared a stream");
    let body = futures_util::stream::unfold(pieces, |mut pieces| async move {
        let piece = pieces.recv().await?;
        Some((Ok::<_, Infallible>(Bytes::from(piece)), pieces))
    });
    ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(body)).into_response()
}
