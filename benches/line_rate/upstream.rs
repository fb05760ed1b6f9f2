//! The API behind both proxies: it answers at once, or after five milliseconds.
//!
//! **Promises** to cost next to nothing: one thread, no HTTP library, the same bytes for every answer. **Does not** read
//! bodies; nobody here sends any.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// How long an answer under [`SLOW`] takes.
pub(crate) const SLOW_TIME: Duration = Duration::from_millis(5);
/// Where answers take that long.
pub(crate) const SLOW: &str = "/slow";

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 13\r\n\r\n{\"answer\":42}";
/// The longest head that is read; nginx passes the payment header on.
const MAX_HEAD_BYTES: usize = 64 * 1024;

/// Starts it on a thread of its own, which lives as long as the process.
pub(crate) fn start() -> SocketAddr {
    let (told, address) = std::sync::mpsc::channel();
    let serve = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
            told.send(socket.local_addr().unwrap()).unwrap();
            loop {
                let (stream, _) = socket.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                tokio::spawn(answer_all(stream));
            }
        });
    };
    std::thread::Builder::new().name("upstream".to_owned()).spawn(serve).unwrap();
    address.recv().unwrap()
}

async fn answer_all(mut stream: TcpStream) {
    let mut head = vec![0; MAX_HEAD_BYTES];
    let mut length = 0;
    loop {
        let Ok(read) = stream.read(&mut head[length..]).await else { return };
        if read == 0 {
            return;
        }
        length += read;
        // A proxy sends the next request only after the answer, so a head ends where the bytes end.
        if !head[..length].ends_with(b"\r\n\r\n") {
            continue;
        }
        let is_slow = head.get(4..4 + SLOW.len()) == Some(SLOW.as_bytes());
        if is_slow {
            tokio::time::sleep(SLOW_TIME).await;
        }
        length = 0;
        if stream.write_all(ANSWER).await.is_err() {
            return;
        }
    }
}
