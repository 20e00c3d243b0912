//! The network between nodes that speak QUIC: a relay before each, and rules about who may reach whom.
//!
//! A node is told to advertise its relay's address. Packets that come to a relay are known by their source port, since
//! a node sends all it sends from one socket: so each direction of each pair can be cut, also for connections that the
//! other one opened.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

/// Packets wait here while a thread of the relay is not scheduled: enough for a window of QUIC.
const SOCKET_BUFFER_BYTES: usize = 8 << 20;
/// How often threads look whether the network is gone.
const LOOK: Duration = Duration::from_millis(200);

/// A node's number in the test.
pub type Node = usize;

#[derive(Debug, Default)]
struct Rules {
    /// By source port of the node's own socket.
    nodes: HashMap<SocketAddr, Node>,
    /// `(from, to)`: packets of this direction are lost.
    cut: HashSet<(Node, Node)>,
    /// Packets of this direction are late.
    delays: HashMap<(Node, Node), Duration>,
}

#[derive(Debug, Default)]
struct Shared {
    rules: RwLock<Rules>,
    passed: AtomicU64,
    closed: AtomicBool,
}

impl Shared {
    fn passes(&self, from: Option<Node>, to: Node) -> bool {
        let Some(from) = from else { return true };
        let rules = self.rules.read().unwrap();
        if rules.cut.contains(&(from, to)) {
            return false;
        }
        let delay = rules.delays.get(&(from, to)).copied();
        drop(rules);
        // Holds up what comes behind it too: the order stays, and a slow link is narrow as well.
        if let Some(delay) = delay {
            std::thread::sleep(delay);
        }
        self.passed.fetch_add(1, Ordering::Relaxed);
        true
    }

    fn closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }
}

/// See the module's page.
#[derive(Debug, Default)]
pub struct UdpNetwork {
    shared: Arc<Shared>,
}

impl UdpNetwork {
    /// Puts a relay before the node `node` that listens (or will) at `address`; gives back the relay's address.
    ///
    /// # Panics
    /// When there is no port.
    pub fn relay(&self, node: Node, address: SocketAddr) -> SocketAddr {
        self.shared.rules.write().unwrap().nodes.insert(address, node);
        let front = Arc::new(socket().unwrap());
        let at = front.local_addr().unwrap();
        let shared = self.shared.clone();
        std::thread::spawn(move || forward(&shared, &front, node, address));
        at
    }

    /// Loses what `from` sends to `to`.
    pub fn cut(&self, from: Node, to: Node) {
        self.shared.rules.write().unwrap().cut.insert((from, to));
    }

    /// Loses what the two send each other.
    pub fn cut_both(&self, a: Node, b: Node) {
        self.cut(a, b);
        self.cut(b, a);
    }

    /// Makes each packet from `from` to `to` wait.
    pub fn delay(&self, from: Node, to: Node, delay: Duration) {
        self.shared.rules.write().unwrap().delays.insert((from, to), delay);
    }

    /// Ends cuts and delays of both directions between the two.
    pub fn mend(&self, a: Node, b: Node) {
        let mut rules = self.shared.rules.write().unwrap();
        for direction in [(a, b), (b, a)] {
            rules.cut.remove(&direction);
            rules.delays.remove(&direction);
        }
    }

    /// Ends all cuts and delays.
    pub fn heal(&self) {
        let mut rules = self.shared.rules.write().unwrap();
        rules.cut.clear();
        rules.delays.clear();
    }

    /// Packets passed so far.
    pub fn passed(&self) -> u64 {
        self.shared.passed.load(Ordering::Relaxed)
    }
}

impl Drop for UdpNetwork {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Relaxed);
    }
}

fn socket() -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.set_read_timeout(Some(LOOK))?;
    // Beyond the system's limit where that is allowed, else up to it.
    if rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, SOCKET_BUFFER_BYTES).is_err() {
        rustix::net::sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER_BYTES)?;
    }
    Ok(socket)
}

/// Carries what comes to a relay to its node, each sender by a socket of its own.
fn forward(shared: &Arc<Shared>, front: &Arc<UdpSocket>, to: Node, address: SocketAddr) {
    let mut buffer = vec![0; 65_536];
    let mut senders: HashMap<SocketAddr, (Option<Node>, Arc<UdpSocket>)> = HashMap::new();
    while !shared.closed() {
        let Ok((length, sender)) = front.recv_from(&mut buffer) else { continue };
        let (from, back) = senders.entry(sender).or_insert_with(|| {
            let from = shared.rules.read().unwrap().nodes.get(&sender).copied();
            let back = Arc::new(socket().unwrap());
            back.connect(address).unwrap();
            let (shared, front, answers) = (shared.clone(), front.clone(), back.clone());
            std::thread::spawn(move || answer(&shared, &front, &answers, (to, from), sender));
            (from, back)
        });
        if shared.passes(*from, to) {
            // A node that is down: the packet is lost, as in any network.
            let _ = back.send(&buffer[..length]);
        }
    }
}

/// Carries a node's answers back.
fn answer(shared: &Shared, front: &UdpSocket, back: &UdpSocket, pair: (Node, Option<Node>), sender: SocketAddr) {
    let mut buffer = vec![0; 65_536];
    while !shared.closed() {
        let Ok(length) = back.recv(&mut buffer) else { continue };
        if pair.1.is_none_or(|to| shared.passes(Some(pair.0), to)) {
            let _ = front.send_to(&buffer[..length], sender);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who sent what comes to a socket. What is to come is waited for: the threads of a relay may have to wait for
    /// their turn. What is not to come would have come in a third of a second, mostly.
    fn heard(socket: &UdpSocket, wanted: bool) -> Option<SocketAddr> {
        let patience = if wanted { Duration::from_secs(60) } else { Duration::from_millis(300) };
        socket.set_read_timeout(Some(patience)).unwrap();
        Some(socket.recv_from(&mut [0; 16]).ok()?.1)
    }

    /// Whether `to` hears what `from` sends it at its relay, and the other one its answer, if that is `wanted`.
    fn exchange(from: &UdpSocket, to: &UdpSocket, relay: SocketAddr, wanted: (bool, bool)) -> (bool, bool) {
        from.send_to(b"question", relay).unwrap();
        let Some(back) = heard(to, wanted.0) else { return (false, false) };
        to.send_to(b"answer", back).unwrap();
        (true, heard(from, wanted.1).is_some())
    }

    #[test]
    fn each_direction_of_a_pair_is_cut_whoever_opened_the_connection() {
        let sockets = [socket().unwrap(), socket().unwrap(), socket().unwrap()];
        let network = UdpNetwork::default();
        let relays: Vec<_> = (0..3).map(|i| network.relay(i, sockets[i].local_addr().unwrap())).collect();
        let check = |from: usize, to: usize, wanted: (bool, bool)| {
            assert_eq!(exchange(&sockets[from], &sockets[to], relays[to], wanted), wanted, "{from} asks {to}");
        };
        check(0, 1, (true, true));

        network.cut(0, 1);
        check(0, 1, (false, false));
        check(1, 0, (true, false));
        check(0, 2, (true, true));

        network.cut_both(0, 1);
        check(1, 0, (false, false));
        network.heal();
        check(1, 0, (true, true));
    }
}
