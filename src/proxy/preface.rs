//! What a load balancer says of a connection before its client does: the PROXY protocol, versions 1 and 2.
//!
//! **Owns** reading that header off a connection, and not a byte more. **Promises** a named bound for its size; whoever calls
//! bounds its time. **Does not** decide who may send one.
//!
//! Source: the PROXY protocol, versions 1 and 2 (haproxy, `doc/proxy-protocol.txt`), sections 2.1 and 2.2.

use std::io;
use std::net::SocketAddr;

use ppp::{v1, v2};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

/// The longest header of version 1 there can be, its line end included, bytes (section 2.1).
const MAX_V1_BYTES: usize = 107;
/// The longest header of version 2 that is read, bytes. Its addresses take 36 at most; the rest are extensions, of which
/// the largest are TLS certificates' names.
const MAX_V2_BYTES: usize = 4_096;
/// What tells the two versions apart, and is shorter than either.
const BEGINNING_BYTES: usize = v2::PROTOCOL_PREFIX.len();

/// Why a connection has no header that can be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoPreface {
    #[error("the connection ended before its PROXY header did")]
    Ended(#[from] io::Error),
    #[error("the connection does not begin with a PROXY header")]
    Missing,
    #[error("the PROXY header is longer than any that is needed")]
    TooLong,
    #[error("the PROXY header cannot be read")]
    Unreadable,
}

/// Reads the header. The client's address, or `None` where the balancer speaks for itself (a health check) or does not know.
///
/// # Cancellation
/// What was read is lost, and so is the connection.
pub(super) async fn read(stream: &mut TcpStream) -> Result<Option<SocketAddr>, NoPreface> {
    let mut beginning = [0; BEGINNING_BYTES];
    stream.read_exact(&mut beginning).await?;
    if beginning == v2::PROTOCOL_PREFIX {
        return read_v2(stream).await;
    }
    if beginning.starts_with(v1::PROTOCOL_PREFIX.as_bytes()) {
        return read_v1(stream, &beginning).await;
    }
    Err(NoPreface::Missing)
}

async fn read_v2(stream: &mut TcpStream) -> Result<Option<SocketAddr>, NoPreface> {
    let mut header = v2::PROTOCOL_PREFIX.to_vec();
    let mut kind = [0; 2];
    stream.read_exact(&mut kind).await?;
    let length = stream.read_u16().await?;
    header.extend(kind);
    header.extend(length.to_be_bytes());
    let whole = header.len() + usize::from(length);
    if whole > MAX_V2_BYTES {
        return Err(NoPreface::TooLong);
    }
    let so_far = header.len();
    header.resize(whole, 0);
    let (_, rest) = header.split_at_mut(so_far);
    stream.read_exact(rest).await?;
    let header = v2::Header::try_from(header.as_slice()).map_err(|_| NoPreface::Unreadable)?;
    Ok(match (header.command, header.protocol, header.addresses) {
        (v2::Command::Proxy, v2::Protocol::Stream, v2::Addresses::IPv4(of)) => {
            Some(SocketAddr::from((of.source_address, of.source_port)))
        }
        (v2::Command::Proxy, v2::Protocol::Stream, v2::Addresses::IPv6(of)) => {
            Some(SocketAddr::from((of.source_address, of.source_port)))
        }
        _ => None,
    })
}

async fn read_v1(stream: &mut TcpStream, beginning: &[u8]) -> Result<Option<SocketAddr>, NoPreface> {
    let mut line = beginning.to_vec();
    while !line.ends_with(b"\n") {
        let left = MAX_V1_BYTES.saturating_sub(line.len());
        if left == 0 {
            return Err(NoPreface::TooLong);
        }
        // What follows the line is the client's, and has to stay where it is.
        let mut ahead = vec![0; left];
        let seen = stream.peek(&mut ahead).await?;
        let end = ahead.iter().take(seen).position(|byte| *byte == b'\n');
        ahead.truncate(end.map_or(seen, |end| end + 1));
        if ahead.is_empty() {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        stream.read_exact(&mut ahead).await?;
        line.extend(ahead);
    }
    let header = v1::Header::try_from(line.as_slice()).map_err(|_| NoPreface::Unreadable)?;
    Ok(match header.addresses {
        v1::Addresses::Tcp4(of) => Some(SocketAddr::from((of.source_address, of.source_port))),
        v1::Addresses::Tcp6(of) => Some(SocketAddr::from((of.source_address, of.source_port))),
        v1::Addresses::Unknown => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;

    /// What is read off a connection on which this is sent, piece by piece, and what is left of it.
    async fn read_off(pieces: &[&[u8]]) -> (Result<Option<SocketAddr>, NoPreface>, Vec<u8>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        client.set_nodelay(true).unwrap();
        let sending = async {
            for piece in pieces {
                let _ = client.write_all(piece).await;
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            let _ = client.shutdown().await;
        };
        let (read, ()) = tokio::join!(read(&mut stream), sending);
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
        (read, rest)
    }

    fn v2(command: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
        let length = u16::try_from(addresses.len()).unwrap().to_be_bytes();
        [v2::PROTOCOL_PREFIX, &[command, family], &length, addresses].concat()
    }

    #[tokio::test]
    async fn both_versions_name_the_client_and_take_no_byte_of_it() {
        let of_4 = [192, 0, 2, 7, 10, 0, 0, 1, 0x1f, 0x90, 0x01, 0xbb];
        let of_6: Vec<u8> = [[0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]; 2]
            .concat()
            .into_iter()
            .chain([0x1f, 0x90, 0x01, 0xbb])
            .collect();
        let with_extension = [of_4.as_slice(), &[0x04, 0, 3, 1, 2, 3]].concat();
        let cases: Vec<(Vec<u8>, Option<&str>)> = vec![
            (b"PROXY TCP4 192.0.2.7 10.0.0.1 8080 443\r\n".to_vec(), Some("192.0.2.7:8080")),
            (b"PROXY TCP6 2001:db8::9 2001:db8::9 8080 443\r\n".to_vec(), Some("[2001:db8::9]:8080")),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n".to_vec(), None),
            (v2(0x21, 0x11, &of_4), Some("192.0.2.7:8080")),
            (v2(0x21, 0x11, &with_extension), Some("192.0.2.7:8080")),
            (v2(0x21, 0x21, &of_6), Some("[2001:db8::9]:8080")),
            // The balancer's own connection, and one it cannot say anything about.
            (v2(0x20, 0x00, &[]), None),
            (v2(0x20, 0x11, &of_4), None),
            (v2(0x21, 0x00, &[]), None),
        ];
        for (header, expected) in cases {
            let expected = expected.map(|text| text.parse().unwrap());
            let whole = [header.as_slice(), b"GET / HTTP/1.1\r\n\nPROXY"].concat();
            let one_by_one: Vec<&[u8]> = whole.chunks(1).collect();
            for pieces in [vec![whole.as_slice()], vec![header.as_slice(), b"GET / HTTP/1.1\r\n\nPROXY"], one_by_one] {
                let (read, rest) = read_off(&pieces).await;
                assert_eq!(read.unwrap(), expected, "{header:?}");
                assert_eq!(rest, b"GET / HTTP/1.1\r\n\nPROXY", "{header:?}");
            }
        }
    }

    #[tokio::test]
    async fn anything_else_is_no_header() {
        let long = format!("PROXY TCP4 {}\r\n", "1".repeat(MAX_V1_BYTES));
        let cases: [(&[u8], &str); 11] = [
            (b"GET / HTTP/1.1\r\nhost: h\r\n\r\n", "Missing"),
            (b"PROXX TCP4 192.0.2.7 10.0.0.1 1 2\r\n", "Missing"),
            (b"\r\n\r\n\0\r\nQUIX\n\x21\x11\0\0", "Missing"),
            (b"PROXY TCP4", "Ended"),
            (b"PROXY TCP4 192.0.2.7 10.0.0.1", "Ended"),
            (b"PROXY TCP4 192.0.2.7 10.0.0.1 99999 2\r\n", "Unreadable"),
            (b"PROXY TCP4 192.0.2.7 10.0.0.1 1 2\n", "Unreadable"),
            (b"PROXY TCP4 2001:db8::9 10.0.0.1 1 2\r\n", "Unreadable"),
            (long.as_bytes(), "TooLong"),
            (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff", "TooLong"),
            (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x04\x01\x02\x03\x04", "Unreadable"),
        ];
        for (bytes, expected) in cases {
            let (read, _) = read_off(&[bytes]).await;
            let error = format!("{:?}", read.unwrap_err());
            assert!(error.starts_with(expected), "{bytes:?}: {error}");
        }
    }
}
