//! Where a node listens: an IP address or `localhost`, and a port.
//!
//! Other host names are not looked up: a name may have several addresses, or another one tomorrow, and a node listens
//! at one. At which name others find it is told by `cluster.advertise_*`.

use std::net::{Ipv4Addr, SocketAddr};

use serde::{Deserialize, Deserializer, de};

/// Reads `127.0.0.1:9000`, `[::]:9000` or `localhost:9000`, which is `127.0.0.1:9000`.
///
/// # Errors
/// What is wrong, and what to write.
pub fn listen_addr(text: &str) -> Result<SocketAddr, String> {
    let named = || {
        let (name, port) = text.rsplit_once(':')?;
        let port = port.bytes().all(|byte| byte.is_ascii_digit()).then(|| port.parse().ok())??;
        name.eq_ignore_ascii_case("localhost").then(|| SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
    };
    text.parse().ok().or_else(named).ok_or_else(|| {
        format!("{text:?} is no socket address to listen at: write an IP address or localhost, and a port")
    })
}

/// The same from a configuration.
pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    listen_addr(&String::deserialize(deserializer)?).map_err(de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_localhost_are_understood_and_nothing_is_looked_up() {
        for (text, addr) in [
            ("127.0.0.1:9000", "127.0.0.1:9000"),
            ("0.0.0.0:0", "0.0.0.0:0"),
            ("[::1]:9000", "[::1]:9000"),
            ("localhost:9000", "127.0.0.1:9000"),
            ("LocalHost:0", "127.0.0.1:0"),
        ] {
            assert_eq!(listen_addr(text).unwrap().to_string(), addr, "{text}");
        }
        for text in
            ["", "localhost", "localhost:", "localhost:+1", "localhost:65536", "node1:9000", "9000", "::1:9000x"]
        {
            let error = listen_addr(text).unwrap_err();
            assert!(error.contains(&format!("{text:?}")), "{error}");
        }
    }
}
