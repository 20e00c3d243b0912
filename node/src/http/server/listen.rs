//! Listeners of one port.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};

use tokio::net::TcpSocket;

/// Connections that wait to be accepted, for each listener.
const LISTEN_BACKLOG: u32 = 1024;

/// Whose port a listener takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sharing {
    /// A port that nobody has. `SO_REUSEPORT` alone would let a second node of the same user join in silence, and the
    /// kernel would divide the clients between two nodes with different data.
    Exclusive,
    /// The port of this server's first listener.
    WithOurs,
}

pub(super) fn listen(addr: SocketAddr, sharing: Sharing) -> io::Result<StdListener> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    if sharing == Sharing::WithOurs {
        socket.set_reuseport(true)?;
    }
    socket.bind(addr)?;
    // Set after the first bind, so that the bind fails if anybody else has the port, and before the listener joins the
    // group of those that share it.
    socket.set_reuseport(true)?;
    socket.listen(LISTEN_BACKLOG)?.into_std()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_port_of_another_server_is_refused_while_own_listeners_share_theirs() {
        let first = listen(SocketAddr::from(([127, 0, 0, 1], 0)), Sharing::Exclusive).expect("a free port");
        let addr = first.local_addr().expect("its address");
        let _second = listen(addr, Sharing::WithOurs).expect("a second listener of the same server");
        let error = listen(addr, Sharing::Exclusive).expect_err("another server");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
}
