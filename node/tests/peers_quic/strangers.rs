//! Who is refused, and what is refused from those who are not.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::TryStreamExt as _;
use holdfast_actors::ports::peers::Fence;
use holdfast_actors::ports::{ChunkError, PeerError, Peers as _};
use holdfast_actors::wait::{PATIENCE, eventually, until_ok};
use holdfast_node::peers::{HANDSHAKES_MAX, PeerOptions};
use holdfast_node::pki::{AUTHORITY_FILES, replace_authority};
use holdfast_protocol::peer::block::BlockHead;
use holdfast_protocol::peer::{self, ALPN_ENROL, ALPN_PEER, Answer, PREFIX_BYTES, Request, WireError, WireInfo};
use holdfast_protocol::{ChunkId, ClusterId, ContentId, Epoch, NodeId, ShardId, chunk_order};
use quinn::crypto::rustls::QuicServerConfig;
use rustls::crypto::ring;

use super::support::{Cluster, Node, Shows, dial_by_hand, options};

async fn refused(from: &Node, to: NodeId) -> String {
    match from.peers().health(to).await.expect_err("must be refused") {
        PeerError::Unreachable { node, detail } => {
            assert_eq!(node, to);
            detail
        }
        other => panic!("{other}"),
    }
}

fn two(options: PeerOptions) -> (Cluster, Node, Node) {
    let mut cluster = Cluster::new(ClusterId::generate());
    let (a, b) = (cluster.node(options.clone()), cluster.node(options));
    (cluster, a, b)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_node_at_the_address_is_refused() {
    let (cluster, a, b) = two(options());
    let expected = NodeId::generate();
    cluster.addresses.lock().insert(expected, b.address().to_string());
    let detail = refused(&a, expected).await;
    assert!(detail.contains(&expected.to_string()) && detail.contains(&b.id.to_string()), "{detail}");
    assert!(b.service.callers().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_of_another_cluster_are_refused() {
    let (ours, a, _b) = two(options());
    let (_theirs, other, _) = two(options());
    ours.addresses.lock().insert(other.id, other.address().to_string());
    let detail = refused(&a, other.id).await;
    assert!(detail.contains("another cluster"), "{detail}");
    assert!(other.service.callers().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreign_ca_that_claims_the_same_cluster_is_refused() {
    let (ours, a, b) = two(options());
    let mut foreign = Cluster::new(ours.id);
    let stranger = foreign.node(options());
    ours.addresses.lock().insert(stranger.id, stranger.address().to_string());
    foreign.addresses.lock().insert(b.id, b.address().to_string());
    assert!(refused(&a, stranger.id).await.contains("CA"));
    let named = a.peers().refusals();
    assert!(matches!(&named[..], [(node, why)] if *node == stranger.id && why.contains("CA")), "{named:?}");
    // The other way round: it trusts nobody here, and nobody here trusts it, even if it did.
    refused(&stranger, b.id).await;
    let connection = dial_by_hand(&b, Some(stranger.identity.certified_key()), ALPN_PEER).await;
    never_served(connection).await;
    assert!(b.service.callers().is_empty());
}

/// The other side verifies after this one believes that the connection stands: the refusal shows then.
async fn never_served(connection: Result<quinn::Connection, quinn::ConnectionError>) {
    if let Ok(connection) = connection {
        let reason = tokio::time::timeout(PATIENCE, connection.closed()).await.expect("refused");
        assert!(!matches!(reason, quinn::ConnectionError::TimedOut), "{reason}");
    }
}

/// Whoever has the files of a node has the key that signs certificates: nothing less than another CA shuts him out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_has_the_authority_before_is_refused() {
    let (mut cluster, a, b) = two(options());
    let taken = cluster.node(options());
    taken.peers().health(b.id).await.unwrap();
    let ((a, of_a), (b, of_b)) = (a.stop().await, b.stop().await);
    replace_authority(of_a.path(), cluster.id).unwrap();
    for name in AUTHORITY_FILES {
        let [made, copy] = [&of_a, &of_b].map(|dir| dir.path().join("cluster").join(name));
        std::fs::copy(made, copy).unwrap();
    }
    let a = cluster.start_again(a, of_a, options());
    let b = cluster.start_again(b, of_b, options());
    a.peers().health(b.id).await.unwrap();
    b.peers().health(a.id).await.unwrap();

    // First it may still notice that the connection which it had is gone.
    let is_refused = async || {
        let detail = refused(&taken, b.id).await;
        if detail.contains("CA") { Ok(()) } else { Err(detail) }
    };
    until_ok("it is refused for its authority", is_refused).await;
    assert!(refused(&a, taken.id).await.contains("new authority"));
    taken.identity.renew().unwrap();
    never_served(dial_by_hand(&b, Some(taken.identity.certified_key()), ALPN_PEER).await).await;
    assert!(!b.service.callers().contains(&taken.id));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expired_certificate_is_refused() {
    let (mut cluster, a, b) = two(options());
    cluster.lifetime = Duration::from_secs(3);
    let late = cluster.node(options());
    late.identity.renew().unwrap();
    let certificate = late.identity.certified_key();
    let expired = SystemTime::now() + Duration::from_secs(4);
    // Meanwhile the node goes on renewing its own.
    eventually("it is over by the clock of the system", || SystemTime::now() >= expired).await;
    let connection = dial_by_hand(&b, Some(certificate), ALPN_PEER).await;
    never_served(connection).await;
    assert!(b.service.callers().is_empty());
    // Its own renewal has gone on, so the node itself is welcome, on a busy machine a moment later.
    until_ok("it is welcome", async || a.peers().health(late.id).await).await;
    until_ok("others are for it", async || late.peers().health(b.id).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn caller_without_certificate_is_refused() {
    let (_cluster, _a, b) = two(options());
    never_served(dial_by_hand(&b, None, ALPN_PEER).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn role_and_protocol_must_fit() {
    let (_cluster, a, b) = two(options());
    // A node has no business enrolling, and what is no protocol of the cluster does not come about.
    never_served(dial_by_hand(&b, Some(a.identity.certified_key()), ALPN_ENROL).await).await;
    never_served(dial_by_hand(&b, Some(a.identity.certified_key()), b"h3").await).await;
    assert!(b.service.callers().is_empty());
}

/// Carries datagrams to `to` and none back: whoever dials through it never hears anything, as a forged source would
/// not.
async fn one_way(to: std::net::SocketAddr) -> std::net::SocketAddr {
    let front = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = front.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = vec![0; 65_536];
        // A socket for each packet's sender would look like one each to the node: a few are enough.
        let back = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        while let Ok((size, _)) = front.recv_from(&mut buffer).await {
            back.send_to(&buffer[..size], to).await.ok();
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flood_of_strangers_is_bounded_and_peers_still_get_in() {
    let (_cluster, a, b) = two(PeerOptions { dial_timeout: Duration::from_secs(15), ..PeerOptions::default() });
    let into = one_way(b.address()).await;
    let tls = tls_of_strangers();
    let stranger = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    // Each of them goes on sending its first packet for as long as it is kept.
    let mut flood = Vec::new();
    for _ in 0..20 {
        for _ in 0..50 {
            let config = quinn::ClientConfig::new(tls.clone());
            flood.push(stranger.connect_with(config, into, "nobody.node.holdfast").unwrap());
        }
        // They come over a tenth of a second, and are counted in between.
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert!(b.handshakes() <= HANDSHAKES_MAX, "{} handshakes", b.handshakes());
    }
    // Those that were let in without a proof of their address are far fewer than a thousand.
    eventually("strangers are shaking hands", || b.handshakes() > 0).await;
    assert!(b.handshakes() <= HANDSHAKES_MAX / 4, "{} handshakes of forged addresses", b.handshakes());
    // In the middle of it: a peer proves its address and is let in.
    a.peers().health(b.id).await.unwrap();
    drop(flood);
    eventually("the handshakes time out", || b.handshakes() == 0).await;
    a.peers().health(b.id).await.unwrap();
}

fn tls_of_strangers() -> Arc<quinn::crypto::rustls::QuicClientConfig> {
    let provider = Arc::new(ring::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    tls.alpn_protocols = vec![ALPN_PEER.to_vec()];
    Arc::new(quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap())
}

async fn answer_to(connection: &quinn::Connection, bytes: &[u8]) -> Answer {
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    send.write_all(bytes).await.unwrap();
    send.finish().ok();
    let answer = recv.read_to_end(1 << 20).await.unwrap();
    peer::decode(&answer).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_that_break_the_rules_are_answered_and_the_connection_lives() {
    let (_cluster, a, b) = two(options());
    let connection = dial_by_hand(&b, Some(a.identity.certified_key()), ALPN_PEER).await.unwrap();

    let mut oversize = peer::encode(&Request::Health).unwrap();
    oversize[4..PREFIX_BYTES].copy_from_slice(&u32::MAX.to_be_bytes());
    let answer = answer_to(&connection, &oversize).await;
    assert!(matches!(&answer, Answer::Error(WireError::Protocol { detail }) if detail.contains("limit")), "{answer:?}");

    let mut newer = peer::encode(&Request::Health).unwrap();
    newer[2] = 9;
    assert_eq!(answer_to(&connection, &newer).await, Answer::Error(WireError::Version { found: 9, known: 1 }));

    let cut = &peer::encode(&Request::Health).unwrap()[..12];
    for bytes in [b"GET / HTTP/1.1\r\n\r\n".as_slice(), cut, b""] {
        let answer = answer_to(&connection, bytes).await;
        assert!(matches!(answer, Answer::Error(WireError::Protocol { .. })), "{answer:?}");
    }
    let answer = answer_to(&connection, &peer::encode(&Request::Health).unwrap()).await;
    assert!(matches!(answer, Answer::Health(health) if health.node == b.id));
}

/// A peer that is a node of the cluster, and sends what it likes.
fn liar(of: &Node, say: impl Fn() -> Vec<u8> + Send + Sync + 'static) -> (quinn::Endpoint, String) {
    let provider = Arc::new(ring::default_provider());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Shows(of.identity.certified_key())));
    tls.alpn_protocols = vec![ALPN_PEER.to_vec()];
    let config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap()));
    let endpoint = quinn::Endpoint::server(config, "127.0.0.1:0".parse().unwrap()).unwrap();
    let address = endpoint.local_addr().unwrap().to_string();
    let accepting = endpoint.clone();
    tokio::spawn(async move {
        while let Some(incoming) = accepting.accept().await {
            let connection = incoming.await.unwrap();
            while let Ok((mut send, mut recv)) = connection.accept_bi().await {
                recv.read_to_end(1 << 20).await.ok();
                send.write_all(&say()).await.ok();
                send.finish().ok();
            }
        }
    });
    (endpoint, address)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changed_block_is_noticed_before_it_is_handed_out() {
    let (cluster, a, b) = two(options());
    let good = Bytes::from(vec![1; 1000]);
    let checksum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, &good) as u32;
    let (_endpoint, address) = liar(&b, move || {
        let head = BlockHead { size_bytes: 1000, crc32c: checksum }.encode().unwrap();
        let mut bytes = peer::encode(&Answer::Data { size_bytes: 2000 }).unwrap();
        bytes.extend_from_slice(&head);
        bytes.extend_from_slice(&good);
        bytes.extend_from_slice(&head);
        bytes.extend_from_slice(&good);
        let last = bytes.len() - 500;
        bytes[last] ^= 1;
        bytes
    });
    cluster.addresses.lock().insert(b.id, address);
    let id = ContentId([1; 12]).chunk(0);
    let mut body = a.peers().read(b.id, id, 0..2000);
    assert_eq!(body.try_next().await.unwrap().unwrap().len(), 1000);
    let error = body.try_next().await.unwrap_err();
    assert!(matches!(error, ChunkError::Corrupt { chunk, .. } if chunk == id), "{error}");
    assert!(body.try_next().await.unwrap().is_none(), "an error ends the body");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_answers_are_errors_of_the_protocol() {
    let (cluster, a, b) = two(options());
    let mut oversize = peer::encode(&Answer::Done).unwrap();
    oversize[4..PREFIX_BYTES].copy_from_slice(&u32::MAX.to_be_bytes());
    let mut newer = peer::encode(&Answer::Done).unwrap();
    newer[2] = 7;
    for (answer, expected) in [
        (oversize, "limit"),
        (newer, "version 7"),
        (peer::encode(&Answer::Ready).unwrap(), "something else"),
        (peer::encode(&Answer::Probed { sizes_bytes: vec![] }).unwrap(), "something else"),
        (peer::encode(&Answer::Error(WireError::Version { found: 1, known: 8 })).unwrap(), "version 8"),
    ] {
        let (endpoint, address) = liar(&b, move || answer.clone());
        cluster.addresses.lock().insert(b.id, address);
        let id = ContentId([1; 12]).chunk(0);
        let error = a.peers().probe(b.id, &[id]).await.unwrap_err();
        assert!(matches!(&error, PeerError::Protocol(detail) if detail.contains(expected)), "{error}");
        // So that the next one is dialled.
        a.identity.renew().unwrap();
        endpoint.close(0_u32.into(), b"");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_that_does_not_rise_is_refused() {
    let (cluster, a, b) = two(options());
    let mut ids: Vec<ChunkId> = (1..=3).map(|index| ContentId([1; 12]).chunk(index)).collect();
    ids.sort_unstable_by_key(|id| (chunk_order::place(id), *id));
    let (first, second, third) = (ids[0], ids[1], ids[2]);
    let fence = Fence { shard: ShardId(1), epoch: Epoch(1) };
    for (listed, after, is_good) in [
        (vec![second, third], Some(first), true),
        (vec![first, third], None, true),
        (vec![], Some(third), true),
        // The same page once more, which would be asked for without end.
        (vec![first, second], Some(second), false),
        (vec![second, third], Some(second), false),
        (vec![second, first], None, false),
        (vec![second, second], Some(first), false),
    ] {
        let chunks = listed.iter().map(|id| WireInfo(*id, 5)).collect();
        let answer = peer::encode(&Answer::Listed { chunks }).unwrap();
        let (endpoint, address) = liar(&b, move || answer.clone());
        cluster.addresses.lock().insert(b.id, address);
        match a.peers().list(b.id, fence, after, 10).await {
            Ok(page) => assert!(is_good && page.iter().map(|info| info.id).eq(listed), "{page:?}"),
            Err(PeerError::Protocol(detail)) => {
                assert!(!is_good && detail.contains(&b.id.to_string()) && detail.contains("out of order"), "{detail}");
            }
            Err(error) => panic!("{error}"),
        }
        // So that the next one is dialled.
        a.identity.renew().unwrap();
        endpoint.close(0_u32.into(), b"");
    }
}
