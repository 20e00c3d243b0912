//! Turns Nagle's algorithm off on the connections to the metadata server.
//!
//! sqlx 0.9.0 opens its sockets without TCP_NODELAY and gives no way to set it
//! (<https://github.com/launchbadge/sqlx/issues/4335>). A prepared statement that falls out of its cache is closed by a
//! small packet that the server does not answer; the next statement then waits for the acknowledgement that the server
//! delays, 40 ms each time. So the socket is looked for among those of this process. To be removed with the first sqlx
//! that sets the option.

use std::net::SocketAddr;

use rustix::net::{getpeername, sockopt::set_tcp_nodelay};
use rustix::process::{ForeignRawFd, PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

/// Sets TCP_NODELAY on every connection of this process whose other end has this port, and returns on how many.
///
/// The sockets belong to others: a duplicate of the descriptor is made, looked at, and closed at once. Where the kernel
/// refuses that (before Linux 5.6, or under a seccomp filter), nothing is set and statements are slower.
pub(super) fn set_towards(port: u16) -> usize {
    let Ok(myself) = pidfd_open(getpid(), PidfdFlags::empty()) else { return 0 };
    let Ok(descriptors) = std::fs::read_dir("/proc/self/fd") else { return 0 };
    let mut set = 0;
    for entry in descriptors.flatten() {
        let Some(descriptor) = entry.file_name().to_str().and_then(|name| name.parse::<ForeignRawFd>().ok()) else {
            continue;
        };
        let is_socket =
            std::fs::read_link(entry.path()).is_ok_and(|to| to.as_os_str().as_encoded_bytes().starts_with(b"socket:"));
        if !is_socket {
            continue;
        }
        let Ok(socket) = pidfd_getfd(&myself, descriptor, PidfdGetfdFlags::empty()) else { continue };
        let Ok(Some(peer)) = getpeername(&socket) else { continue };
        let Ok(peer) = SocketAddr::try_from(peer) else { continue };
        if peer.port() == port && set_tcp_nodelay(&socket, true).is_ok() {
            set += 1;
        }
    }
    set
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn connections_to_the_port_are_set_and_no_others() {
        let loopback = std::net::Ipv4Addr::LOCALHOST;
        let meant = tokio::net::TcpListener::bind((loopback, 0)).await.unwrap();
        let other = tokio::net::TcpListener::bind((loopback, 0)).await.unwrap();
        let to_meant = tokio::net::TcpStream::connect(meant.local_addr().unwrap()).await.unwrap();
        let to_other = tokio::net::TcpStream::connect(other.local_addr().unwrap()).await.unwrap();
        assert!(!to_meant.nodelay().unwrap(), "this test shows nothing");
        // Other tests of this process may have a socket whose other end had this port before.
        assert!(set_towards(meant.local_addr().unwrap().port()) >= 1);
        assert!(to_meant.nodelay().unwrap());
        assert!(!to_other.nodelay().unwrap());
    }
}
