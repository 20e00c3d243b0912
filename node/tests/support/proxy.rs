//! A TCP proxy that holds and breaks connections.

#![allow(dead_code, reason = "each test crate uses a part")]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use holdfast_actors::ports::coordination::conformance::Connection;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;

/// What a proxy does with bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    Open,
    /// Nothing passes, nothing is lost, nothing is refused: a pulled cable.
    Stalled,
    /// Requests pass, answers do not: what happened is not learned.
    AnswersHeld,
}

/// A TCP proxy before one server.
#[derive(Clone)]
pub struct Proxy {
    pub address: SocketAddr,
    flow: Arc<watch::Sender<Flow>>,
    /// Connections opened under an older number are closed.
    generation: Arc<watch::Sender<u64>>,
    /// Bytes that came from the server.
    answered: Arc<AtomicU64>,
}

#[async_trait]
impl Connection for Proxy {
    async fn cut(&self) {
        self.set(Flow::Stalled);
    }

    async fn restore(&self) {
        self.set(Flow::Open);
    }
}

impl Proxy {
    pub async fn start(upstream: SocketAddr) -> Self {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let proxy = Self {
            address: listener.local_addr().unwrap(),
            flow: Arc::new(watch::Sender::new(Flow::Open)),
            generation: Arc::default(),
            answered: Arc::default(),
        };
        let (flow, generation) = (proxy.flow.subscribe(), proxy.generation.subscribe());
        let answered = proxy.answered.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (flow, mut generation, answered) = (flow.clone(), generation.clone(), answered.clone());
                generation.mark_unchanged();
                tokio::spawn(async move {
                    let mut gate = flow.clone();
                    // Dropped with the test.
                    if gate.wait_for(|f| *f != Flow::Stalled).await.is_err() {
                        return;
                    }
                    let Ok(server) = tokio::net::TcpStream::connect(upstream).await else { return };
                    let (client_in, client_out) = client.into_split();
                    let (server_in, server_out) = server.into_split();
                    let asked = AtomicU64::new(0);
                    tokio::select! {
                        () = pump(client_in, server_out, flow.clone(), |f| f != Flow::Stalled, &asked) => {}
                        () = pump(server_in, client_out, flow, |f| f == Flow::Open, &answered) => {}
                        _ = generation.changed() => {}
                    }
                });
            }
        });
        proxy
    }

    pub fn set(&self, flow: Flow) {
        self.flow.send_replace(flow);
    }

    /// Bytes that came from the server so far.
    pub fn answered_bytes(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Closes all connections; what was not passed on is lost.
    pub fn sever(&self) {
        self.generation.send_modify(|g| *g += 1);
    }
}

async fn pump(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut flow: watch::Receiver<Flow>,
    passes: fn(Flow) -> bool,
    passed: &AtomicU64,
) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let Ok(read @ 1..) = from.read(&mut buffer).await else { return };
        passed.fetch_add(read as u64, Ordering::Relaxed);
        if flow.wait_for(|f| passes(*f)).await.is_err() || to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
