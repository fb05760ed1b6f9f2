//! Which hosts are this machine.

use std::net::IpAddr;

/// Whether a host, as it stands in a URL, is this machine whoever asks: `localhost` or a loopback address.
pub(crate) fn is_this_machine(host: &str) -> bool {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let is_loopback = |address: IpAddr| address.to_canonical().is_loopback();
    bare.eq_ignore_ascii_case("localhost") || bare.parse().is_ok_and(is_loopback)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_this_machine_in_every_spelling() {
        for host in ["localhost", "LocalHost", "127.0.0.1", "127.8.9.1", "[::1]", "::1", "[::ffff:127.0.0.1]"] {
            assert!(is_this_machine(host), "{host}");
        }
        for host in ["", "localhost.example", "128.0.0.1", "0.0.0.0", "[::]", "::2", "[127.0.0.1", "10.0.0.1"] {
            assert!(!is_this_machine(host), "{host}");
        }
    }
}
