//! Just enough HTTP/1.1 to send prepared bytes and to see where an answer ends.

use std::io;
use std::net::{IpAddr, SocketAddr};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

/// The longest answer that is read, bytes.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// An answer's status and how many bytes it has in all.
#[derive(Debug, Clone, Copy)]
struct Shape {
    status: u16,
    length: usize,
}

/// Reads the shape of an answer once its head is there.
fn shape(bytes: &[u8]) -> Option<Shape> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let head = &bytes[..end];
    let digit = |at: usize| head.get(at).map_or(0, |digit| u16::from(digit.wrapping_sub(b'0')));
    let status = digit(9) * 100 + digit(10) * 10 + digit(11);
    let name = b"content-length:";
    let length = head.split(|byte| *byte == b'\n').find_map(|line| {
        let named = line.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name));
        named.then(|| String::from_utf8_lossy(&line[name.len()..]).trim().parse::<usize>().unwrap())
    });
    // Without a length nobody here could see the end of an answer.
    let body = length.unwrap_or_else(|| panic!("no length: {}", String::from_utf8_lossy(head)));
    Some(Shape { status, length: end + body })
}

/// A keep-alive connection on which one request is under way at a time.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    answer: usize,
}

impl Connection {
    /// Connects from this address of the machine's own.
    pub(crate) async fn open(target: SocketAddr, source: IpAddr) -> io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(source, 0))?;
        let stream = socket.connect(target).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: vec![0; MAX_ANSWER_BYTES], answer: 0 })
    }

    /// Sends a request and reads its answer: the status.
    pub(crate) async fn exchange(&mut self, request: &[u8]) -> io::Result<u16> {
        self.stream.write_all(request).await?;
        let (mut filled, mut known) = (0, None);
        loop {
            let read = self.stream.read(&mut self.buffer[filled..]).await?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            filled += read;
            if known.is_none() {
                known = shape(&self.buffer[..filled]);
            }
            if let Some(Shape { status, length }) = known
                && filled >= length
            {
                self.answer = length;
                return Ok(status);
            }
        }
    }

    /// The last answer, as it came.
    pub(crate) fn answer(&self) -> &[u8] {
        &self.buffer[..self.answer]
    }
}

/// A `GET` with these headers besides the usual ones of a plain client.
pub(crate) fn get(path: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    let mut text =
        format!("GET {path} HTTP/1.1\r\nhost: api.example.test\r\naccept: */*\r\nuser-agent: line-rate/1.0\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    text.into_bytes()
}

/// The value of a header in an answer.
pub(crate) fn header(answer: &[u8], name: &str) -> Option<String> {
    let head = String::from_utf8_lossy(answer);
    head.lines().skip(1).take_while(|line| !line.is_empty()).find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
    })
}
