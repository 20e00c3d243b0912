//! Who is kept out: of ZooKeeper's tree, of the database, and of the way between nodes.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use holdfast_cluster_tests::certificates::Authority;
use holdfast_cluster_tests::client::is_broken;
use holdfast_cluster_tests::cluster::{CHROOT, Cluster, HEAL, Options, ZOOKEEPER_AUTH, private_file};
use holdfast_cluster_tests::node::ACCESS_KEY;
use holdfast_cluster_tests::{content, eventually};
use zookeeper_client as zk;

const BUCKET: &str = "guarded";
/// A day of a node's clock.
const DAY: i64 = 24 * 3600;

/// The two nodes that are well go on. While the third one leaves or is refused they may put a client off for a while.
fn others_go_on(cluster: &Cluster, name: &str) {
    for at in 0..2 {
        let key = format!("{name}/{at}");
        let bytes = content::bytes(at as u64, 300_000);
        let put = cluster.client(at).put_until_served(BUCKET, &key, &bytes);
        assert_eq!(put.status, 200, "{key}: {}", put.text());
        let got = cluster.client(1 - at).get_until_served(BUCKET, &key);
        assert!(got.status == 200 && got.body == bytes, "{key} is another one: {}", got.status);
    }
}

/// Runs the stopped node 2 with another configuration, which it must refuse soon.
fn refuses(cluster: &Cluster, what: &str, change: impl FnOnce(String) -> String, words: &[&str]) {
    let node = &cluster.members[2].node;
    let config = fs::read_to_string(node.scratch().join("holdfast.toml")).unwrap();
    let file = node.scratch().join("changed.toml");
    let changed = change(config.clone());
    assert_ne!(changed, config, "{what}: nothing was changed");
    fs::write(&file, changed).unwrap();
    let begin = Instant::now();
    let mut command = Command::new("timeout");
    let wanted = node.command(&["node", "--json"]);
    // A node that starts after all would never end by itself.
    command.args(["-s", "KILL", "120"]).arg(wanted.get_program()).args(wanted.get_args());
    command.envs(wanted.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = command.env("HOLDFAST_CONFIG", &file).current_dir(node.scratch()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        matches!(output.status.code(), Some(1 | 2 | 4)),
        "{what}: {} after {:?}\n{text}",
        output.status,
        begin.elapsed()
    );
    for word in words {
        assert!(text.contains(word), "{what}: `{word}` is not in\n{text}");
    }
    println!("{what}: {}", text.lines().last().unwrap_or_default());
}

/// The ids of the nodes that are registered at this moment: who has a new session sees all that was done before.
fn registered(cluster: &Cluster) -> Vec<String> {
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let insider = connect(cluster, Some(ZOOKEEPER_AUTH)).await;
        insider.list_children(&format!("{CHROOT}/nodes")).await.unwrap()
    })
}

/// A node that was stopped, and could not end its session on a busy machine, is registered until that is over. A
/// registration of node 2 that is found after this is a new one.
fn is_forgotten(cluster: &Cluster) {
    let id = &cluster.members[2].id;
    eventually("the node that was stopped is not registered", HEAL, || !registered(cluster).contains(id));
}

/// The others were never told of node 2, which has just tried to start. A registration would outlast its process by a
/// session.
fn is_not_registered(cluster: &Cluster, what: &str) {
    let id = &cluster.members[2].id;
    // Another one may have lost its session for a moment.
    eventually("a node that runs is registered", HEAL, || {
        let registered = registered(cluster);
        assert!(!registered.contains(id), "{what}: {registered:?}");
        registered.contains(&cluster.members[0].id)
    });
}

async fn connect(cluster: &Cluster, auth: Option<&str>) -> zk::Client {
    // A connection is given up after two fifths of it.
    let mut connector = zk::Client::connector().with_session_timeout(Duration::from_secs(60));
    if let Some(auth) = auth {
        connector = connector.with_auth("digest", auth.as_bytes());
    }
    connector.connect(&cluster.ensemble.connect_string()).await.unwrap()
}

/// Every node of the cluster's tree.
async fn tree(client: &zk::Client) -> Vec<String> {
    let (mut found, mut at) = (vec![CHROOT.to_owned()], 0);
    while at < found.len() {
        // What is registered for a moment may be gone by now.
        for child in client.list_children(&found[at]).await.unwrap_or_default() {
            found.push(format!("{}/{child}", found[at]));
        }
        at += 1;
    }
    found
}

/// Whoever has no credentials, or wrong ones, reads and changes nothing.
async fn outsiders_are_kept_out(cluster: &Cluster) {
    let insider = connect(cluster, Some(ZOOKEEPER_AUTH)).await;
    let paths = tree(&insider).await;
    assert!(paths.len() > 40 && paths.iter().any(|path| path.contains("/nodes/")), "{paths:?}");
    for auth in [None, Some("holdfast:wrong"), Some("other:a secret of the tests")] {
        let outsider = connect(cluster, auth).await;
        for path in &paths {
            let denied = |what: &str, result: Result<(), zk::Error>| match result {
                Err(zk::Error::NoAuth) => {}
                // Gone meanwhile, for the insider too.
                Err(zk::Error::NoNode) if !path.ends_with("test") => {}
                other => panic!("{what} of {path} by {auth:?}: {other:?}"),
            };
            denied("get", outsider.get_data(path).await.map(drop));
            denied("list", outsider.list_children(path).await.map(drop));
            denied("set", outsider.set_data(path, b"x", None).await.map(drop));
            let open = zk::CreateMode::Persistent.with_acls(zk::Acls::anyone_all());
            denied("create", outsider.create(&format!("{path}/intruder"), b"", &open).await.map(drop));
            denied(
                "ACL",
                outsider
                    .set_acl(path, &[zk::Acl::new(zk::Permission::ALL, zk::AuthId::anyone())], None)
                    .await
                    .map(drop),
            );
            if path != CHROOT {
                denied("delete", outsider.delete(path, None).await);
            }
        }
        assert!(outsider.delete(CHROOT, None).await.is_err());
    }
    let after = tree(&insider).await;
    assert!(!after.iter().any(|path| path.contains("intruder")), "{after:?}");
}

/// Node 2 keeps its id and gets what somebody made who has no key of the cluster.
fn forge(cluster: &Cluster, dir: &Path) {
    let id = &cluster.members[2].id;
    let of_cluster = cluster.cli(0, &["cluster", "status"])["cluster_id"].as_str().unwrap().to_owned();
    let of_cluster = format!("spiffe://holdfast/{of_cluster}");
    let authority = Authority::new("CA of the cluster", Some(&format!("{of_cluster}/ca")));
    let node = authority.issue("node", Some(&format!("{of_cluster}/node/{id}")));
    let ca = authority.pair();
    for (name, text) in
        [("ca.pem", ca.certificate), ("ca.key", ca.key), ("node.pem", node.certificate), ("node.key", node.key)]
    {
        private_file(&dir.join(name), &text);
    }
}

/// Waits until each of the others names node 2 in its status and in its log, and node 2 says so too.
fn is_named(cluster: &Cluster, words: &str) {
    let id = cluster.members[2].id.clone();
    for at in 0..2 {
        let mut last = None;
        eventually("the status names the node that is not accepted", HEAL, || {
            others_go_on(cluster, "named");
            last = cluster.status(at);
            let reasons = last.as_ref().map(|status| status["reasons"].clone()).unwrap_or_default();
            reasons.as_array().is_some_and(|reasons| {
                reasons.iter().any(|reason| {
                    let message = reason["message"].as_str().unwrap();
                    reason["code"] == "peer_refused" && message.contains(&id) && message.contains(words)
                })
            })
        });
        println!("node {at}: {}", last.unwrap()["reasons"]);
        eventually("the log names it too", HEAL, || {
            let log = cluster.members[at].node.log();
            log.contains("do not accept each other's certificates") && log.contains(words)
        });
    }
    eventually("node 2 says so too", HEAL, || {
        cluster.members[2].node.log().contains("do not accept each other's certificates")
    });
    // It answers, whatever it can say, and takes no write that nobody else has.
    let bytes = content::bytes(1, 300_000);
    eventually("it answers a write", HEAL, || match cluster.client(2).put(BUCKET, "by the outcast", &bytes) {
        Ok(put) => {
            assert!(put.status >= 400, "the write was acknowledged with {}", put.status);
            true
        }
        // An answer before the end of the body is lost when the client is held up.
        Err(error) => {
            assert!(is_broken(&error), "{error}");
            false
        }
    });
    eventually("it says how it is", HEAL, || cluster.status(2).is_some());
}

fn outcast(cluster: &mut Cluster) {
    let own = cluster.members[2].node.data_dir().join("cluster");
    let kept = cluster.members[2].node.scratch().join("kept");
    assert!(Command::new("cp").arg("-a").args([&own, &kept]).status().unwrap().success());
    forge(cluster, &own);
    cluster.members[2].node.restart();
    is_named(cluster, "not signed by this cluster's CA");
    cluster.members[2].node.kill();
    fs::remove_dir_all(&own).unwrap();
    fs::rename(&kept, &own).unwrap();

    // Its clock stood still for long when it made its certificate, which has expired by now.
    cluster.members[2].node.set_clock(-100 * DAY);
    cluster.members[2].node.restart();
    is_named(cluster, "not valid now");
    cluster.members[2].node.kill();
    cluster.members[2].node.set_clock(0);
    cluster.members[2].node.restart();
    assert!(cluster.members[2].node.log().contains("this node's certificate cannot be used, making another"));
    cluster.wait_until_healthy("the node is accepted again", HEAL);
    eventually("nothing is wrong any more", HEAL, || {
        cluster.status(0).is_some_and(|status| status["reasons"].as_array().unwrap().is_empty())
    });
}

/// Gives a node the certificate authority of node 0.
fn give_authority(cluster: &Cluster, at: usize) {
    let of = |at: usize, name: &str| cluster.members[at].node.data_dir().join("cluster").join(name);
    for name in ["ca.pem", "ca.key"] {
        fs::copy(of(0, name), of(at, name)).unwrap();
    }
}

/// Node 2 is in the wrong hands: it has the key of the authority, and could sign itself a certificate under any name.
fn shut_out(cluster: &mut Cluster) {
    let command = ["cluster", "new-authority", "--json"];
    let output = cluster.members[0].node.command(&command).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("in use"), "a node that runs: {text}");

    (0..3).for_each(|at| cluster.members[at].node.stop());
    let made = cluster.offline(0, &command);
    assert_eq!(made["node_id"].as_str(), Some(&*cluster.members[0].id), "{made}");
    give_authority(cluster, 1);
    (0..3).for_each(|at| cluster.members[at].node.restart());
    is_named(cluster, "new authority");

    // It is given back, and is a node as before.
    cluster.members[2].node.kill();
    give_authority(cluster, 2);
    cluster.members[2].node.restart();
    cluster.wait_until_healthy("all have the new authority", HEAL);
    others_go_on(cluster, "again");
}

#[test]
fn outsiders_are_kept_out_and_named_and_everybody_else_goes_on() {
    let mut cluster = Cluster::start_with(3, Options { secured: true, ..Options::default() });
    cluster.client(0).create_bucket(BUCKET);
    others_go_on(&cluster, "secured");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(outsiders_are_kept_out(&cluster));
    drop(runtime);

    cluster.members[2].node.stop();
    is_forgotten(&cluster);
    let scratch = cluster.members[2].node.scratch();
    private_file(&scratch.join("wrong"), "holdfast:wrong");
    private_file(&scratch.join("nonsense"), "no colon");
    private_file(&scratch.join("other.pem"), &Authority::new("somebody else", None).pair().certificate);
    let auth = scratch.join("zookeeper").display().to_string();
    let with_auth = |name: &str| {
        let (auth, other) = (auth.clone(), scratch.join(name).display().to_string());
        move |config: String| config.replace(&auth, &other)
    };
    refuses(&cluster, "a wrong password for ZooKeeper", with_auth("wrong"), &["cluster.zookeeper_auth_file"]);
    refuses(&cluster, "half a password", with_auth("nonsense"), &["does not hold user:password"]);
    let without = |config: String| config.replace("zookeeper_auth_file", "#");
    refuses(&cluster, "no password for ZooKeeper", without, &["cluster.zookeeper_auth_file"]);

    let ca = cluster.mariadb.tls_ca().unwrap().display().to_string();
    let other = scratch.join("other.pem").display().to_string();
    let words = ["certificate of the metadata server is not accepted", "metadata.tls_ca"];
    refuses(&cluster, "another CA", |config| config.replace(&ca, &other), &words);
    let verify_ca = |config: String| config.replace(&ca, &other).replace("verify-identity", "verify-ca");
    refuses(&cluster, "another CA, identity unchecked", verify_ca, &words);
    refuses(&cluster, "another host", |config| config.replace("holdfast@127.0.0.1", "holdfast@localhost"), &words);
    let unused = |config: String| config.replace("\"verify-identity\"", "\"preferred\"");
    refuses(&cluster, "a CA that would check nothing", unused, &["metadata.tls_ca", "not checked"]);
    let plain = |config: String| config.replace("\"verify-identity\"", "\"off\"").replace("\ntls_ca", "\n#");
    refuses(&cluster, "no TLS", plain, &["metadata.tls is off"]);

    let (cert, key) = (scratch.join("s3.pem"), scratch.join("s3.key"));
    let pair = Authority::new("the front", None).pair();
    private_file(&cert, &pair.certificate);
    private_file(&key, &pair.key);
    fs::set_permissions(&key, Permissions::from_mode(0o644)).unwrap();
    let with_key = |key: &Path| {
        let lines = format!("[s3]\ntls_cert = \"{}\"\ntls_key = \"{}\"\n", cert.display(), key.display());
        move |config: String| config.replace("[s3]\n", &lines)
    };
    for (what, key, words) in [
        ("a key of S3 that others can read", &key, ["private key", "chmod 640"]),
        ("a key of S3 that is not there", &scratch.join("absent"), ["s3.tls_cert", "absent"]),
    ] {
        refuses(&cluster, what, with_key(key), &words);
        is_not_registered(&cluster, what);
    }
    cluster.cli(0, &["user", "create", "somebody"]);
    let made = cluster.cli(0, &["key", "create", "somebody"]);
    let node = &mut cluster.members[2].node;
    node.set_variable("HOLDFAST_ROOT_ACCESS_KEY", Some(made["access_key"].as_str().unwrap()));
    let what = "somebody's key for root's";
    refuses(&cluster, what, |config| format!("{config}# the same\n"), &["belongs to user somebody"]);
    is_not_registered(&cluster, what);
    cluster.members[2].node.set_variable("HOLDFAST_ROOT_ACCESS_KEY", Some(ACCESS_KEY));

    // Whoever signed it is all that counts for verify-ca.
    let file = cluster.members[2].node.scratch().join("holdfast.toml");
    let config = fs::read_to_string(&file).unwrap();
    fs::write(
        &file,
        config.replace("verify-identity", "verify-ca").replace("holdfast@127.0.0.1", "holdfast@localhost"),
    )
    .unwrap();
    cluster.members[2].node.restart();
    cluster.wait_until_healthy("one node verifies the CA alone", HEAL);
    cluster.members[2].node.stop();

    outcast(&mut cluster);
    shut_out(&mut cluster);
}
