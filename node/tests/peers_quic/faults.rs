//! Peers that stop, fall silent, or take nothing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{FutureExt as _, TryStreamExt as _};
use holdfast_actors::ports::chunks::memory::MemoryChunkStore;
use holdfast_actors::ports::peers::conformance::{put, write_of};
use holdfast_actors::ports::{ChunkError, PeerError, Peers as _};
use holdfast_actors::wait::{eventually, until_ok};
use holdfast_node::peers::{PeerEndpoint, PeerOptions, PeerParts};
use holdfast_protocol::{CHUNK_SIZE_MAX, ClusterId, ContentId};
use parking_lot::Mutex;
use tokio::net::UdpSocket;

use super::support::Cluster;

fn impatient() -> PeerOptions {
    PeerOptions {
        progress_timeout: Duration::from_millis(500),
        request_timeout: Duration::from_secs(2),
        idle_timeout: Duration::from_secs(1),
        keep_alive: Duration::from_millis(200),
        dial_timeout: Duration::from_secs(1),
        stream_window_bytes: 1 << 20,
        connection_window_bytes: 4 << 20,
        send_window_bytes: 2 << 20,
        ..PeerOptions::default()
    }
}

/// Patient with everything but payload that is not taken: on a busy machine nothing else comes to its end by being
/// late.
fn steady(progress: Duration) -> PeerOptions {
    PeerOptions {
        progress_timeout: progress,
        request_timeout: Duration::from_secs(30),
        idle_timeout: Duration::from_secs(30),
        dial_timeout: Duration::from_secs(20),
        ..impatient()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_answers_nobody_any_more_says_so() {
    let mut cluster = Cluster::new(ClusterId::generate());
    let node = cluster.node(impatient());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let parts = PeerParts {
        runtime: runtime.handle().clone(),
        bind: "127.0.0.1:0".parse().unwrap(),
        identity: node.identity.clone(),
        addresses: cluster.book(),
        options: impatient(),
    };
    let mut endpoint = PeerEndpoint::bind(parts).unwrap();
    endpoint.serve(node.service.clone(), None).unwrap();
    assert!(endpoint.lost().now_or_never().is_none());
    // What drives it ends.
    runtime.shutdown_background();
    tokio::time::timeout(Duration::from_secs(60), endpoint.lost()).await.expect("it is lost");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peer_that_stops_mid_stream_is_unreachable() {
    // So patient that only the end of the connection can end this: on a busy machine half a second without progress may
    // be over before the thread ran that was to hear of the end.
    let patient = PeerOptions {
        request_timeout: Duration::from_secs(60),
        idle_timeout: Duration::from_secs(15),
        ..steady(Duration::from_secs(60))
    };
    let mut cluster = Cluster::new(ClusterId::generate());
    let (a, b) = (cluster.node(patient.clone()), cluster.node(patient));
    let data = Bytes::from(vec![1; CHUNK_SIZE_MAX as usize]);
    let (peers, id) = (a.peers(), ContentId([1; 12]).chunk(0));
    let mut sink = peers.create(b.id, write_of(id, data.len())).await.unwrap();
    sink.send(data.slice(..1_000_000)).await.unwrap();
    b.service.store.insert(ContentId([2; 12]).chunk(0), data.clone());
    let mut body = peers.read(b.id, ContentId([2; 12]).chunk(0), 0..data.len() as u32);
    body.try_next().await.unwrap().unwrap();
    let service = Arc::clone(&b.service);
    drop(b);
    let error = async {
        loop {
            sink.send(Bytes::from_static(&[1; 1000])).await?;
        }
    };
    let error: Result<(), PeerError> = error.await;
    // Mostly by what the node said when it stopped. QUIC does not send that past a full congestion window (the node was
    // sending a body as fast as it could), and repeats it for a moment only: then its silence tells.
    assert!(matches!(error, Err(PeerError::Unreachable { .. })), "{error:?}");
    let rest: Result<Vec<Bytes>, ChunkError> = body.try_collect().await;
    assert!(matches!(rest, Err(ChunkError::Unavailable(_))), "the body ended as if it were whole");
    drop(sink);
    eventually("the peer drops the sink", || service.store.sinks_open() == 0).await;
    assert!(service.store.payload(id).is_none());
}

/// A relay of datagrams between two sockets, while it is not cut.
struct Relay {
    address: SocketAddr,
    cut: Arc<AtomicBool>,
    to: Arc<Mutex<SocketAddr>>,
}

async fn relay(to: SocketAddr) -> Relay {
    let front = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let back = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let (cut, to) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(to)));
    let relay = Relay { address: front.local_addr().unwrap(), cut: Arc::clone(&cut), to: Arc::clone(&to) };
    let is_cut = cut;
    tokio::spawn(async move {
        let (mut out, mut home) = (vec![0; 65_536], vec![0; 65_536]);
        let mut client = None;
        loop {
            tokio::select! {
                Ok((size, from)) = front.recv_from(&mut out) => {
                    client = Some(from);
                    if !is_cut.load(Ordering::Relaxed) {
                        let to = *to.lock();
                        back.send_to(&out[..size], to).await.ok();
                    }
                }
                Ok((size, _)) = back.recv_from(&mut home) => {
                    if let (Some(client), false) = (client, is_cut.load(Ordering::Relaxed)) {
                        front.send_to(&home[..size], client).await.ok();
                    }
                }
                else => return,
            }
        }
    });
    relay
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peer_that_falls_silent_is_noticed_and_found_again() {
    let mut cluster = Cluster::new(ClusterId::generate());
    let (a, b) = (cluster.node(impatient()), cluster.node(impatient()));
    let Relay { address, cut, .. } = relay(b.address()).await;
    cluster.addresses.lock().insert(b.id, address.to_string());
    let peers = a.peers();
    // On a busy machine not at once.
    let begin = async || peers.create(b.id, write_of(ContentId([1; 12]).chunk(0), 10_000_000)).await;
    let mut sink = until_ok("it is reached", begin).await;
    cut.store(true, Ordering::Relaxed);
    let begin = Instant::now();
    let failed = async {
        loop {
            sink.send(Bytes::from(vec![0; 100_000])).await?;
        }
    };
    let failed: Result<(), PeerError> = failed.await;
    assert!(failed.unwrap_err().is_transient());
    assert!(begin.elapsed() < Duration::from_secs(60), "noticed only after {:?}", begin.elapsed());
    drop(sink);
    // At the peer too: what was half written goes with its connection.
    eventually("the peer drops the sink", || b.service.store.sinks_open() == 0).await;
    assert!(peers.health(b.id).await.unwrap_err().is_transient());
    cut.store(false, Ordering::Relaxed);
    let ask = async || peers.health(b.id).await.inspect_err(|error| assert!(error.is_transient(), "{error}"));
    until_ok("it is reached again", ask).await;
}

/// Nobody was told, and no connection ends by its silence here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peer_that_was_killed_says_so_itself_when_it_is_back() {
    let endless = PeerOptions { idle_timeout: Duration::from_secs(3_600), ..impatient() };
    let mut cluster = Cluster::new(ClusterId::generate());
    let (a, b) = (cluster.node(endless.clone()), cluster.node(endless.clone()));
    let relay = relay(b.address()).await;
    cluster.addresses.lock().insert(b.id, relay.address.to_string());
    let peers = a.peers();
    until_ok("it is reached", async || peers.health(b.id).await).await;
    relay.cut.store(true, Ordering::Relaxed);
    let (id, membership) = b.stop().await;
    let b = cluster.start_again(id, membership, endless);
    *relay.to.lock() = b.address();
    cluster.addresses.lock().insert(id, relay.address.to_string());
    relay.cut.store(false, Ordering::Relaxed);
    until_ok("it is found again", async || peers.health(id).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_peer_times_out_and_holds_no_more_than_its_window() {
    let mut cluster = Cluster::new(ClusterId::generate());
    let options = steady(Duration::from_secs(3));
    let a = cluster.node(options.clone());
    // Its first write of payload never ends.
    let store = Arc::new(MemoryChunkStore::stalling_at(1));
    let b = cluster.node_on(options, Arc::clone(&store));
    let (peers, id) = (a.peers(), ContentId([1; 12]).chunk(0));
    let mut sink = peers.create(b.id, write_of(id, CHUNK_SIZE_MAX as usize)).await.unwrap();
    let mut taken = 0;
    let error = loop {
        match sink.send(Bytes::from(vec![0; 64 << 10])).await {
            Ok(()) => taken += 64 << 10,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, PeerError::Timeout { .. }), "{error}");
    // What the stream's window took, and what of the send window was not acknowledged.
    assert!(taken <= 4 << 20, "{taken} bytes were taken for a peer that takes none");
    // One stalled chunk holds nobody else up, but for a machine that stands still.
    let other = ContentId([2; 12]).chunk(0);
    let data = Bytes::from(vec![5; 3_000_000]);
    until_ok("another one is taken", async || put(&peers, b.id, write_of(other, data.len()), &data, 1 << 20).await)
        .await;
    drop(sink);
    eventually("the peer drops the stalled sink", || store.sinks_open() == 0).await;
    assert!(store.payload(id).is_none());
}

/// The caller's client is slow, or the caller has forgotten the write: neither its connection nor time ends it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn write_that_is_taken_back_ends_while_nothing_comes() {
    let mut cluster = Cluster::new(ClusterId::generate());
    let endless = PeerOptions { payload_timeout: Duration::from_secs(3_600), ..steady(Duration::from_secs(60)) };
    let (a, b) = (cluster.node(endless.clone()), cluster.node(endless));
    let peers = a.peers();
    let mut sink = peers.create(b.id, write_of(ContentId([1; 12]).chunk(0), CHUNK_SIZE_MAX as usize)).await.unwrap();
    sink.send(Bytes::from(vec![1; 100_000])).await.unwrap();
    assert_eq!(b.service.store.sinks_open(), 1);
    b.service.take_back_writes();
    eventually("the peer drops the sink", || b.service.store.sinks_open() == 0).await;
    // It takes no more than its window has room for.
    let error = async {
        loop {
            sink.send(Bytes::from(vec![1; 100_000])).await?;
        }
    };
    let error: Result<(), PeerError> = error.await;
    assert!(matches!(error, Err(PeerError::Busy)), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peer_that_does_not_answer_times_out() {
    let mut cluster = Cluster::new(ClusterId::generate());
    let patient = steady(Duration::from_secs(3));
    let options = PeerOptions { durable_timeout: Duration::from_millis(300), ..patient.clone() };
    let a = cluster.node(options);
    let store = Arc::new(MemoryChunkStore::stalling_at(0));
    let b = cluster.node_on(patient, store);
    let error = a.peers().delete(b.id, &[ContentId([1; 12]).chunk(0)]).await.unwrap_err();
    assert!(matches!(error, PeerError::Timeout { node } if node == b.id), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_peer_is_not_dialled_by_every_call() {
    let mut cluster = Cluster::new(ClusterId::generate());
    let options = PeerOptions { backoff_min: Duration::from_secs(60), ..impatient() };
    let a = cluster.node(options);
    let gone = holdfast_protocol::NodeId::generate();
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    cluster.addresses.lock().insert(gone, silent.local_addr().unwrap().to_string());
    let first = Instant::now();
    assert!(a.peers().health(gone).await.unwrap_err().is_transient());
    assert!(first.elapsed() >= Duration::from_millis(900), "it was dialled for a second");
    let then = Instant::now();
    for _ in 0..100 {
        assert!(matches!(a.peers().health(gone).await, Err(PeerError::Unreachable { .. })));
    }
    // Of a second each, if each of them dialled.
    assert!(then.elapsed() < Duration::from_secs(40), "calls wait for a node that is known to be gone");
}
