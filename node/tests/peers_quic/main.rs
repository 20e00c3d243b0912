//! Peers over QUIC on loopback: the port's conformance suite, what breaks connections, who is refused, and enrolment.
#![allow(clippy::unwrap_used, reason = "tests")]

mod enrolment;
mod faults;
mod strangers;
mod support;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt as _;
use holdfast_actors::ports::Peers as _;
use holdfast_actors::ports::peers::conformance::{self, Pair, put, write_of};
use holdfast_actors::wait::{eventually, until_ok};
use holdfast_protocol::{ClusterId, ContentId, NodeId};

use support::{Cluster, Node, options};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quic_peers_keep_the_contract() {
    conformance::all(|| async {
        let mut cluster = Cluster::new(ClusterId::generate());
        let (a, b) = (cluster.node(options()), cluster.node(options()));
        Pair {
            peers: Arc::new(a.peers()),
            me: a.id,
            node: b.id,
            service: Arc::clone(&b.service),
            keep: Box::new((a, b, cluster)),
        }
    })
    .await;
}

/// The data plane's runtimes are single threads of their own: the endpoint's tasks must not land there.
#[test]
fn calls_work_from_a_runtime_of_one_thread() {
    let control = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (a, b) = {
        let _inside = control.enter();
        let mut cluster = Cluster::new(ClusterId::generate());
        (cluster.node(options()), cluster.node(options()))
    };
    let (peers, service, node) = (a.peers(), Arc::clone(&b.service), b.id);
    let id = ContentId([1; 12]).chunk(0);
    let data = Bytes::from(vec![7; 5_000_000]);
    for round in 0..2 {
        // The runtime that made the connection is gone in the second round, the connection is not.
        let plane = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        plane.block_on(async {
            if round == 0 {
                put(&peers, node, write_of(id, data.len()), &data, 1 << 20).await.unwrap();
            }
            let pieces: Vec<Bytes> = peers.read(node, id, 0..data.len() as u32).try_collect().await.unwrap();
            assert!(pieces.concat() == data);
        });
    }
    assert!(service.store.payload(id).unwrap() == data);
    drop((a, b));
}

/// Certificates that live for six seconds, renewed by their nodes after four: a machine may be busy for the two seconds
/// between. Transfers go on and on until the first ones are over, and a moment longer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transfers_go_on_while_certificates_are_renewed() {
    let mut cluster = Cluster::new(ClusterId::generate());
    cluster.lifetime = Duration::from_secs(6);
    let (a, b) = (cluster.node(options()), cluster.node(options()));
    for node in [&a, &b] {
        node.identity.renew().unwrap();
    }
    let (first_a, first_b) = (a.identity.certified_key(), b.identity.certified_key());
    let data = Bytes::from(vec![3; 1_000_000]);
    let begin = std::time::Instant::now();
    let (mut index, mut last) = (0, begin);
    while begin.elapsed() < cluster.lifetime + Duration::from_secs(1) {
        let id = ContentId([2; 12]).chunk(index);
        match put(&a.peers(), b.id, write_of(id, data.len()), &data, 100_000).await {
            Ok(_) => last = std::time::Instant::now(),
            // The machine stood still, and a certificate was over before it was renewed.
            Err(error) => assert!(last.elapsed() > Duration::from_secs(1), "{error}"),
        }
        b.service.store.insert(id, Bytes::new());
        index += 1;
        // So that a transfer begins at any moment, and the machine has time for others.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Whatever failed so slowly that it looked like a machine that stood still.
    let one_more = async || {
        index += 1;
        put(&a.peers(), b.id, write_of(ContentId([2; 12]).chunk(index), data.len()), &data, 100_000).await
    };
    until_ok("transfers go on by the certificates that came after", one_more).await;
    // It may be late on a busy machine, too.
    eventually("the caller's certificate is renewed", || !Arc::ptr_eq(&first_a, &a.identity.certified_key())).await;
    eventually("the peer's certificate is renewed", || !Arc::ptr_eq(&first_b, &b.identity.certified_key())).await;
}

/// A renewal leaves what is under way on the connection that it began on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn renewal_does_not_disturb_a_transfer_under_way() {
    let mut cluster = Cluster::new(ClusterId::generate());
    let (a, b) = (cluster.node(options()), cluster.node(options()));
    let id = ContentId([3; 12]).chunk(0);
    let data = Bytes::from(vec![9; 4_000_000]);
    let peers = a.peers();
    let mut sink = peers.create(b.id, write_of(id, data.len())).await.unwrap();
    sink.send(data.slice(..1_000_000)).await.unwrap();
    a.identity.renew().unwrap();
    b.identity.renew().unwrap();
    peers.health(b.id).await.unwrap();
    sink.send(data.slice(1_000_000..)).await.unwrap();
    sink.finish().await.unwrap();
    assert!(b.service.store.payload(id).unwrap() == data);
}

/// A node that starts again at another address is found there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peer_that_moved_is_found_again() {
    let mut cluster = Cluster::new(ClusterId::generate());
    let (a, b) = (cluster.node(options()), cluster.node(options()));
    let peers = a.peers();
    peers.health(b.id).await.unwrap();
    let (id, membership) = b.stop().await;
    assert!(peers.health(id).await.unwrap_err().is_transient());
    let b: Node = cluster.start_again(id, membership, options());
    let found = until_ok("it is found again", async || peers.health(b.id).await).await;
    assert_eq!(found.node, id);
    assert_ne!(id, NodeId::from(0));
}
