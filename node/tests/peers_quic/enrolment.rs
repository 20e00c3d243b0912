//! Join tokens, and joining with one.

use std::time::{Duration, SystemTime};

use holdfast_actors::ports::Peers as _;
use holdfast_actors::wait::eventually;
use holdfast_node::pki::enrol::{EnrolError, Token, join};
use holdfast_node::pki::{PkiError, cluster_of, init_cluster};
use holdfast_protocol::{ClusterId, NodeId};

use super::support::{Cluster, Node, load, options};

const SECRET: [u8; 32] = [0x5e; 32];
const TOKEN_LIFETIME: Duration = Duration::from_secs(3600);

fn issuer() -> (Cluster, Node) {
    let mut cluster = Cluster::new(ClusterId::generate());
    let node = cluster.node(options());
    write_secret(node.data_dir.path(), &SECRET);
    (cluster, node)
}

fn write_secret(dir: &std::path::Path, secret: &[u8]) {
    use std::os::unix::fs::PermissionsExt as _;
    let path = dir.join("node.secret");
    std::fs::write(&path, secret).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

fn token(node: &Node) -> Token {
    node.issuer.issue_token(vec![node.address().to_string()], TOKEN_LIFETIME).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn joined_node_is_a_peer_and_has_the_clusters_secret() {
    let (mut cluster, first) = issuer();
    let (dir, id) = (tempfile::tempdir().unwrap(), NodeId::generate());
    write_secret(dir.path(), &[1; 32]);
    let text = token(&first).to_text();
    let read: Token = format!(" {}\n", *text).parse().unwrap();
    assert!(!format!("{read:?}").contains("PRIVATE"), "a key in a debug form");
    assert_eq!(join(dir.path(), id, &read).await.unwrap(), cluster.id);
    assert_eq!(cluster_of(dir.path()).unwrap(), Some(cluster.id));
    assert_eq!(std::fs::read(dir.path().join("node.secret")).unwrap(), SECRET);
    assert_eq!(std::fs::read(dir.path().join("node.secret.before-join")).unwrap(), [1; 32]);

    let second = cluster.start_again(id, dir, options());
    assert_eq!(second.peers().health(first.id).await.unwrap().node, first.id);
    assert_eq!(first.peers().health(second.id).await.unwrap().node, second.id);
    // It can renew by itself, and let others in.
    second.identity.renew().unwrap();
    let (dir, id) = (tempfile::tempdir().unwrap(), NodeId::generate());
    join(dir.path(), id, &token(&second)).await.unwrap();
    let third = cluster.start_again(id, dir, options());
    first.peers().health(third.id).await.unwrap();
    cluster.lifetime = Duration::from_secs(60);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn token_is_good_for_one_node() {
    let (_cluster, first) = issuer();
    let token = token(&first);
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    join(dirs[0].path(), NodeId::generate(), &token).await.unwrap();
    let error = join(dirs[1].path(), NodeId::generate(), &token).await.unwrap_err();
    assert!(matches!(&error, EnrolError::Refused(reason) if reason.contains("used already")), "{error}");
    assert_eq!(cluster_of(dirs[1].path()).unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expired_token_is_refused() {
    let (_cluster, first) = issuer();
    let token = first.issuer.issue_token(vec![first.address().to_string()], Duration::from_secs(1)).unwrap();
    let expired = SystemTime::now() + Duration::from_secs(2);
    eventually("it is over by the clock of the system", || SystemTime::now() >= expired).await;
    let dir = tempfile::tempdir().unwrap();
    let error = join(dir.path(), NodeId::generate(), &token).await.unwrap_err();
    assert!(matches!(&error, EnrolError::Refused(reason) if reason.contains("token has expired")), "{error}");
    assert_eq!(cluster_of(dir.path()).unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn issuer_of_another_cluster_is_not_believed() {
    let ((_ours, first), (_theirs, other)) = (issuer(), issuer());
    let misled = first.issuer.issue_token(vec![other.address().to_string()], TOKEN_LIFETIME).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let error = join(dir.path(), NodeId::generate(), &misled).await.unwrap_err();
    assert!(error.to_string().contains("another cluster"), "{error}");
    assert_eq!(cluster_of(dir.path()).unwrap(), None);
    // Tried in turn: the second address is right.
    let addresses = vec![other.address().to_string(), first.address().to_string()];
    let token = first.issuer.issue_token(addresses, TOKEN_LIFETIME).unwrap();
    join(dir.path(), NodeId::generate(), &token).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn token_of_an_issuer_that_was_restarted_is_refused() {
    let (cluster, first) = issuer();
    let mut token = token(&first);
    let (id, dir) = first.stop().await;
    let again = cluster.start_again(id, dir, options());
    write_secret(again.data_dir.path(), &SECRET);
    token.addresses = vec![again.address().to_string()];
    let dir = tempfile::tempdir().unwrap();
    let error = join(dir.path(), NodeId::generate(), &token).await.unwrap_err();
    assert!(matches!(&error, EnrolError::Refused(reason) if reason.contains("restarted")), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn member_of_another_cluster_does_not_join() {
    let (cluster, first) = issuer();
    let (dir, mine) = (tempfile::tempdir().unwrap(), ClusterId::generate());
    init_cluster(dir.path(), NodeId::generate(), mine).unwrap();
    let error = join(dir.path(), NodeId::generate(), &token(&first)).await.unwrap_err();
    assert!(matches!(error, EnrolError::Pki(PkiError::OtherCluster { .. })), "{error}");
    let text = error.to_string();
    assert!(text.contains(&mine.to_string()) && text.contains(&cluster.id.to_string()), "{text}");
    let error = join(first.data_dir.path(), first.id, &token(&first)).await.unwrap_err();
    assert!(matches!(error, EnrolError::Pki(PkiError::AlreadyMember(id)) if id == cluster.id));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn issuers_own_id_is_not_given_away() {
    let (_cluster, first) = issuer();
    let dir = tempfile::tempdir().unwrap();
    let token = token(&first);
    let error = join(dir.path(), first.id, &token).await.unwrap_err();
    assert!(matches!(&error, EnrolError::Refused(_)), "{error}");
    // And it cost no token.
    let id = NodeId::generate();
    join(dir.path(), id, &token).await.unwrap();
    assert_eq!(load(dir.path(), id, Duration::from_secs(60)).node(), id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn id_of_a_node_that_runs_is_not_given_away() {
    let (mut cluster, first) = issuer();
    let second = cluster.node(options());
    let (dir, token) = (tempfile::tempdir().unwrap(), token(&first));
    let error = join(dir.path(), second.id, &token).await.unwrap_err();
    assert!(matches!(&error, EnrolError::Refused(reason) if reason.contains("is running")), "{error}");
    assert_eq!(cluster_of(dir.path()).unwrap(), None);
    // When it is gone its machine may be set up anew under its id. And it cost no token.
    let (id, _gone) = second.stop().await;
    cluster.addresses.lock().remove(&id);
    join(dir.path(), id, &token).await.unwrap();
}

#[test]
fn damaged_tokens_are_refused() {
    for text in ["", "hfjoin1.", "hfjoin1.%%%", "hfjoin2.abcd", "hfjoin1.e30", &"x".repeat(100_000)] {
        let error = text.parse::<Token>().unwrap_err();
        assert!(matches!(error, EnrolError::BadToken(_)), "{error}");
    }
}
