//! A TCP proxy before a server, which holds or breaks what passes: partitions without root.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// How much a direction copies at a time.
const BUFFER_BYTES: usize = 64 << 10;
/// How long the server may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// What a proxy does with bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// They pass.
    Open,
    /// Nothing passes, nothing is lost, nothing is refused: a pulled cable.
    Stalled,
    /// Requests pass, answers do not: what happened is not learned.
    AnswersHeld,
}

#[derive(Debug)]
struct State {
    flow: Flow,
    closed: bool,
    /// Both ends of each connection.
    connections: Vec<[TcpStream; 2]>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    /// Waits until bytes may pass; false when the proxy is gone.
    fn wait(&self, passes: fn(Flow) -> bool) -> bool {
        let state = self.state.lock().unwrap();
        let state = self.changed.wait_while(state, |state| !state.closed && !passes(state.flow)).unwrap();
        !state.closed
    }
}

/// See the module's page. Its connections break when it is dropped.
#[derive(Debug)]
pub struct TcpProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl TcpProxy {
    /// A proxy on a free port before `upstream`.
    ///
    /// # Panics
    /// When there is no port.
    pub fn start(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let state = State { flow: Flow::Open, closed: false, connections: Vec::new() };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let of_listener = shared.clone();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if of_listener.state.lock().unwrap().closed {
                    return;
                }
                let shared = of_listener.clone();
                if let Ok(client) = client {
                    std::thread::spawn(move || serve(&shared, client, upstream));
                }
            }
        });
        Self { address, shared }
    }

    /// Where clients connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes what passes from now on.
    pub fn set(&self, flow: Flow) {
        self.shared.state.lock().unwrap().flow = flow;
        self.shared.changed.notify_all();
    }

    /// Breaks all connections; what was not passed on is lost.
    pub fn sever(&self) {
        for end in self.shared.state.lock().unwrap().connections.drain(..).flatten() {
            // It may be closed already.
            let _ = end.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for TcpProxy {
    fn drop(&mut self) {
        self.shared.state.lock().unwrap().closed = true;
        self.shared.changed.notify_all();
        self.sever();
        // Wakes the listener, which sees that it is over.
        let _ = TcpStream::connect_timeout(&self.address, CONNECT_TIMEOUT);
    }
}

fn serve(shared: &Arc<Shared>, client: TcpStream, upstream: SocketAddr) {
    if !shared.wait(|flow| flow != Flow::Stalled) {
        return;
    }
    let Ok(server) = TcpStream::connect_timeout(&upstream, CONNECT_TIMEOUT) else { return };
    // An end that is closed already shows in the copying below.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let ends = [client.try_clone(), server.try_clone()];
    let [Ok(client_end), Ok(server_end)] = ends else { return };
    {
        let mut state = shared.state.lock().unwrap();
        state.connections.retain(|[client, _]| client.peer_addr().is_ok());
        state.connections.push([client_end, server_end]);
    }
    let ends = (client.try_clone(), server.try_clone());
    let (Ok(client_in), Ok(server_out)) = ends else { return };
    let of_requests = shared.clone();
    let requests = std::thread::spawn(move || copy(&of_requests, client_in, server_out, |flow| flow != Flow::Stalled));
    copy(shared, server, client, |flow| flow == Flow::Open);
    // The other direction ends by the shutdown.
    let _ = requests.join();
}

fn copy(shared: &Shared, mut from: TcpStream, mut to: TcpStream, passes: fn(Flow) -> bool) {
    let mut buffer = vec![0; BUFFER_BYTES];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        if !shared.wait(passes) || to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    for end in [from, to] {
        // The other end may have closed first.
        let _ = end.shutdown(Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn echo() -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                std::thread::spawn(move || std::io::copy(&mut stream.try_clone().unwrap(), &mut stream));
            }
        });
        address
    }

    fn client(proxy: &TcpProxy) -> TcpStream {
        let stream = TcpStream::connect(proxy.address()).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        stream
    }

    #[test]
    fn bytes_are_held_until_the_proxy_opens_and_lost_when_it_severs() {
        let proxy = TcpProxy::start(echo());
        let mut stream = client(&proxy);
        let mut buffer = [0; 4];
        stream.write_all(b"ping").unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream.read_exact(&mut buffer).unwrap();

        for flow in [Flow::Stalled, Flow::AnswersHeld] {
            proxy.set(flow);
            stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            stream.write_all(b"pong").unwrap();
            assert!(stream.read_exact(&mut buffer).is_err());
            proxy.set(Flow::Open);
            stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
            stream.read_exact(&mut buffer).unwrap();
            assert_eq!(&buffer, b"pong");
        }
        proxy.sever();
        assert!(matches!(stream.read(&mut buffer), Ok(0) | Err(_)));
    }
}
