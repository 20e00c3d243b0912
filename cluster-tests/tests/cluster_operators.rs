//! What operators and disks do to a cluster: disks that fill up, rot and are replaced, and nodes that do not belong.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use holdfast_cluster_tests::client::Client;
use holdfast_cluster_tests::cluster::{CHROOT, Cluster, HEAL, Options};
use holdfast_cluster_tests::disk::{SmallDisk, flip_bytes, locate_all};
use holdfast_cluster_tests::{content, eventually, until_some};
use zookeeper_client as zk;

const BUCKET: &str = "disks";

/// Every object is read through this node, byte by byte.
fn read_all(cluster: &Cluster, at: usize, objects: u64, len: usize) {
    read_through(&cluster.client(at), at, objects, len);
}

fn read_through(client: &Client, at: usize, objects: u64, len: usize) {
    for n in 0..objects {
        let response = client.get_until_served(BUCKET, &format!("k{n}"));
        assert_eq!(response.status, 200, "k{n} through node {at}: {}", response.text());
        assert!(response.body == content::bytes(n, len), "k{n} through node {at} has other bytes");
    }
}

/// All clients do something at the same time, each of which has a node of its own.
fn by_each(clients: &[Client], work: impl Fn(usize, &Client) + Sync) {
    std::thread::scope(|scope| {
        for (at, client) in clients.iter().enumerate() {
            let work = &work;
            scope.spawn(move || work(at, client));
        }
    });
}

fn repairs_waiting(cluster: &Cluster, at: usize) -> Option<u64> {
    cluster.status(at)?["repairs"].as_u64()
}

#[test]
fn disks_that_fill_up_rot_or_are_replaced_cost_no_object() {
    const SIZE: usize = 4 << 20;
    let scratch = tempfile::tempdir_in(holdfast_cluster_tests::node::binary().parent().unwrap()).unwrap();
    let disk = SmallDisk::new(scratch.path(), 300);
    let options = Options { disks: vec![None, None, Some(disk.path().join("disk"))], ..Options::default() };
    let mut cluster = Cluster::start_with(3, options);
    cluster.client(0).create_bucket(BUCKET);

    // One disk of three is full: writes go on, reads too, also through the node that has no room.
    let objects = 80;
    let clients = [0, 1, 2].map(|at| cluster.client(at));
    by_each(&clients, |at, client| {
        for n in (at as u64..objects).step_by(3) {
            let put = client.put_until_served(BUCKET, &format!("k{n}"), &content::bytes(n, SIZE));
            assert_eq!(put.status, 200, "k{n} of {objects}: {}", put.text());
        }
    });
    by_each(&clients, |at, client| read_through(client, at, objects, SIZE));
    eventually("a node without room is told of", HEAL, || {
        cluster.status(0).is_some_and(|status| status["health"] != "healthy")
    });
    for n in 20..objects {
        assert_eq!(cluster.client(0).delete_until_served(BUCKET, &format!("k{n}")).status, 204);
    }
    let objects = 20;
    cluster.wait_until_healthy("the full disk has room again", HEAL);
    eventually("no repair waits", HEAL, || repairs_waiting(&cluster, 0) == Some(0));

    // Rot in one replica: never served, told of, repaired.
    cluster.members[0].node.stop();
    let bytes = content::bytes(7, SIZE);
    // Compaction may have left it behind in another place.
    for (file, at) in locate_all(cluster.members[0].node.data_dir(), &bytes[SIZE / 2..SIZE / 2 + 64]) {
        flip_bytes(&file, at, 16);
    }
    cluster.members[0].node.restart();
    read_all(&cluster, 0, objects, SIZE);
    eventually("the corruption is counted", HEAL, || {
        // A node that came back has others read for it until it belongs again.
        read_all(&cluster, 0, objects, SIZE);
        cluster.members[0].node.corruption_found() > 0.0
    });
    cluster.wait_until_healthy("the bad replica was replaced", HEAL);
    eventually("no repair waits", HEAL, || repairs_waiting(&cluster, 0) == Some(0));
    eventually("scrub finds nothing any more", HEAL, || {
        cluster.members[0].node.try_cli(&["scrub", "run"]).status.code() == Some(0)
    });

    // A disk that is not mounted is not taken for an empty one.
    cluster.members[1].node.stop();
    let disk = cluster.members[1].node.data_dir().join("disks/0");
    fs::remove_dir_all(&disk).unwrap();
    let output = cluster.members[1].node.command(&["node"]).output().unwrap();
    refused("a disk that is not mounted", &output, &["is it mounted?", "replaced"]);

    // A replaced disk: an empty directory where the chunks were, and somebody says so.
    fs::create_dir_all(&disk).unwrap();
    fs::write(disk.join("replaced"), "").unwrap();
    cluster.members[1].node.restart();
    read_all(&cluster, 1, objects, SIZE);
    eventually("everything is on the new disk", HEAL, || {
        (0..objects).all(|n| {
            let output = cluster.members[0].node.try_cli(&["object", "stat", &format!("{BUCKET}/k{n}"), "--json"]);
            if !output.status.success() {
                return false;
            }
            let stat: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            let chunks = stat["chunks"].as_array().unwrap();
            let replicas = chunks.iter().map(|chunk| chunk["replicas"].as_array().unwrap());
            replicas.flatten().filter(|replica| replica["state"] == "present").count() == 3 * chunks.len()
        })
    });
    cluster.wait_until_healthy("the disk was replaced", HEAL);
    // The proof: the node reads everything without the others.
    cluster.members[0].node.kill();
    cluster.members[2].node.kill();
    read_all(&cluster, 1, objects, SIZE);
}

fn run_briefly(cluster: &Cluster, at: usize, change: impl FnOnce(&mut Command)) -> Output {
    let mut command = cluster.members[at].node.command(&["node", "--json"]);
    change(&mut command);
    // A node that starts after all would never end by itself.
    let mut limited = Command::new("timeout");
    limited.args(["-s", "KILL", "120"]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => limited.env(name, value),
            None => limited.env_remove(name),
        };
    }
    limited.current_dir(command.get_current_dir().unwrap()).output().unwrap()
}

fn refused(what: &str, output: &Output, words: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr).to_lowercase();
    let code = output.status.code();
    assert!(matches!(code, Some(1 | 2 | 4)), "{what}: exit {code:?}\n{text}");
    assert!(words.iter().any(|word| text.contains(word)), "{what}: none of {words:?} is in\n{text}");
}

fn try_copy_dir(from: &Path, to: &Path) -> bool {
    Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success()
}

fn copy_dir(from: &Path, to: &Path) {
    assert!(try_copy_dir(from, to));
}

/// Of a node that runs, which puts files in the place of others meanwhile.
fn copy_dir_in_use(from: &Path, to: &Path) {
    eventually("no file goes while the directory is copied", HEAL, || {
        // There is none at first.
        let _ = fs::remove_dir_all(to);
        try_copy_dir(from, to)
    });
}

/// Other ports than those of the node whose configuration is used.
fn on_other_ports(command: &mut Command) {
    command
        .env("HOLDFAST_S3_ADDR", "127.0.0.1:0")
        .env("HOLDFAST_ADMIN_ADDR", "127.0.0.1:0")
        .env("HOLDFAST_CLUSTER_PEER_ADDR", "127.0.0.1:0");
}

/// Does something in ZooKeeper beside the nodes.
fn in_zookeeper<T>(cluster: &Cluster, work: impl AsyncFnOnce(zk::Client) -> T) -> T {
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        // A connection is given up after two fifths of it.
        let connector = zk::Client::connector().with_session_timeout(Duration::from_secs(60));
        work(connector.connect(&cluster.ensemble.connect_string()).await.unwrap()).await
    })
}

fn registration(cluster: &Cluster, at: usize) -> Option<zk::Stat> {
    let path = format!("{CHROOT}/nodes/{}", cluster.members[at].id);
    in_zookeeper(cluster, async |client| client.check_stat(&path).await.unwrap())
}

/// Whether something of a session is left: each node stands in the queue of those who would be the controller.
fn competes(cluster: &Cluster, session: i64) -> bool {
    in_zookeeper(cluster, async |client| {
        let queue = format!("{CHROOT}/controller");
        for candidate in client.list_children(&queue).await.unwrap() {
            let stat = client.check_stat(&format!("{queue}/{candidate}")).await.unwrap();
            if stat.is_some_and(|stat| stat.ephemeral_owner == session) {
                return true;
            }
        }
        false
    })
}

/// A node whose registration goes though it lives, and one that is killed: both come back by themselves, and soon.
fn registrations_are_made_again(cluster: &mut Cluster, put_in: impl Fn(&Cluster, u64)) {
    let before = until_some("the node is registered", HEAL, || registration(cluster, 0));
    let path = format!("{CHROOT}/nodes/{}", cluster.members[0].id);
    let removed = in_zookeeper(cluster, async |client| client.delete(&path, None).await);
    // Its session may have ended just now.
    assert!(matches!(removed, Ok(()) | Err(zk::Error::NoNode)), "{removed:?}");
    eventually("a node whose registration was removed registers again", HEAL, || {
        registration(cluster, 0).is_some_and(|now| now.czxid > before.czxid)
    });
    put_in(cluster, 0);
    cluster.wait_until_healthy("it is registered again", HEAL);

    // The session that the killed one leaves goes on for most of a minute.
    let node = &mut cluster.members[1].node;
    node.stop();
    for name in ["HOLDFAST_CLUSTER_SESSION_TIMEOUT", "HOLDFAST_CLUSTER_REBUILD_DELAY"] {
        node.set_variable(name, Some("60 s"));
    }
    node.restart();
    let session = registration(cluster, 1).unwrap().ephemeral_owner;
    eventually("it stands in a queue", HEAL, || competes(cluster, session));
    cluster.members[1].node.kill();
    cluster.members[1].node.restart();
    assert!(competes(cluster, session), "the old session was over when the node came back");
    put_in(cluster, 1);
    assert_ne!(registration(cluster, 1).unwrap().ephemeral_owner, session);
}

#[test]
fn nodes_that_do_not_belong_are_refused_and_harm_nobody() {
    // No node dies here, and one that lost its session would make room for those that are to be refused.
    let environment = ["HOLDFAST_CLUSTER_SESSION_TIMEOUT", "HOLDFAST_CLUSTER_REBUILD_DELAY"].map(|name| (name, "6 s"));
    let environment = environment.to_vec();
    let mut cluster = Cluster::start_with(3, Options { environment, ..Options::default() });
    cluster.client(0).create_bucket(BUCKET);
    let put_in = |cluster: &Cluster, n: u64| {
        let client = cluster.client(n as usize % 3);
        let put = client.put_until_served(BUCKET, &format!("k{n}"), &content::bytes(n, 200_000));
        assert_eq!(put.status, 200, "{}", put.text());
    };
    put_in(&cluster, 0);

    // The same data directory a second time.
    let output = run_briefly(&cluster, 1, on_other_ports);
    refused("a second process on a data directory", &output, &["in use", "lock"]);
    put_in(&cluster, 1);

    // The same id: a copy of a running node's data directory.
    let copy = cluster.members[1].node.scratch().join("copy");
    copy_dir_in_use(cluster.members[1].node.data_dir(), &copy);
    let output = run_briefly(&cluster, 1, |command| {
        on_other_ports(command);
        command.env("HOLDFAST_DATA_DIR", &copy);
    });
    refused("a second node with one id", &output, &["is running already"]);
    put_in(&cluster, 2);

    // A node of another cluster, pointed at this one.
    let other = cluster.members[2].node.scratch().join("other");
    let config = fs::read_to_string(cluster.members[2].node.scratch().join("holdfast.toml")).unwrap();
    let elsewhere = cluster.members[2].node.scratch().join("other.toml");
    cluster.mariadb.sql("CREATE DATABASE holdfast_other");
    fs::write(
        &elsewhere,
        config.replace("/holdfast/test", "/holdfast/other").replace("/holdfast\"", "/holdfast_other\""),
    )
    .unwrap();
    let made = cluster.members[2]
        .node
        .command(&["cluster", "init", "--json"])
        .env("HOLDFAST_CONFIG", &elsewhere)
        .env("HOLDFAST_DATA_DIR", &other)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let output = run_briefly(&cluster, 2, |command| {
        on_other_ports(command);
        command.env("HOLDFAST_DATA_DIR", &other);
    });
    refused("a node of another cluster", &output, &["belongs to cluster", "another cluster"]);
    put_in(&cluster, 3);

    // A node that joined nothing.
    let output = run_briefly(&cluster, 2, |command| {
        on_other_ports(command);
        command.env("HOLDFAST_DATA_DIR", cluster.members[2].node.scratch().join("fresh"));
    });
    refused("a node that never joined", &output, &["cluster join"]);

    // A member that finds no cluster at its place, as when ZooKeeper has lost everything: it makes none anew.
    let lost = cluster.members[2].node.scratch().join("lost.toml");
    fs::write(&lost, config.replace("/holdfast/test", "/holdfast/lost")).unwrap();
    cluster.members[2].node.stop();
    let output = run_briefly(&cluster, 2, |command| {
        command.env("HOLDFAST_CONFIG", &lost);
    });
    refused("a node whose cluster is gone", &output, &["zookeeper has lost its data"]);
    let output = cluster.members[2].node.command(&["cluster", "init"]).env("HOLDFAST_CONFIG", &lost).output().unwrap();
    refused("making a cluster anew", &output, &["zookeeper has lost its data"]);
    // Said to be the same one again, beside nodes that have not lost it: two clusters would have one database.
    let again = ["cluster", "init", "--again", "--shards", "32"];
    let output = cluster.members[2].node.command(&again).env("HOLDFAST_CONFIG", &lost).output().unwrap();
    refused("making it again beside running nodes", &output, &["there are connections to"]);

    // A tool that fills the metadata while other nodes run: they would take what is not in them yet for left over.
    let rebuild = ["cluster", "rebuild-metadata", "--owner", "root", "--add"];
    let output = cluster.members[2].node.command(&rebuild).output().unwrap();
    refused("rebuilding beside running nodes", &output, &["would delete chunks"]);
    assert!(!cluster.members[2].node.data_dir().join("metadata.unfinished").exists(), "it has not begun");

    // A member with the certificate authority of another cluster: its peers would refuse it, and it says so itself
    // first.
    let (own, kept) =
        (cluster.members[2].node.data_dir().join("cluster"), cluster.members[2].node.scratch().join("kept"));
    fs::rename(&own, &kept).unwrap();
    copy_dir(&other.join("cluster"), &own);
    let output = run_briefly(&cluster, 2, |_| {});
    refused("a member with a foreign authority", &output, &["cluster"]);
    fs::remove_dir_all(&own).unwrap();
    fs::rename(&kept, &own).unwrap();

    // A member that has lost the cluster's secret makes none of its own: what it sealed would open nowhere else.
    let secret = cluster.members[2].node.data_dir().join("node.secret");
    let kept = cluster.members[2].node.scratch().join("node.secret");
    fs::rename(&secret, &kept).unwrap();
    let output = run_briefly(&cluster, 2, |_| {});
    refused("a member without the cluster's secret", &output, &["copy it from another node"]);
    assert!(!secret.exists(), "it made one");
    fs::rename(&kept, &secret).unwrap();
    let put = cluster.client(0).put_until_served(BUCKET, "k9", &content::bytes(9, 200_000));
    assert_eq!(put.status, 200, "{}", put.text());
    cluster.members[2].node.restart();

    for n in 0..4 {
        put_in(&cluster, n);
        for at in 0..3 {
            let got = cluster.client(at).get_until_served(BUCKET, &format!("k{n}"));
            assert!(got.body == content::bytes(n, 200_000), "k{n} through node {at}: {}", got.status);
        }
    }
    cluster.wait_until_healthy("after all of them", HEAL);
    registrations_are_made_again(&mut cluster, put_in);
}

/// The exit code of a command that nobody can answer for now.
const UNAVAILABLE: Option<i32> = Some(5);

/// Exit code, what was printed, and what was complained of.
fn told_at_once(cluster: &Cluster, at: usize, arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = cluster.members[at].node.try_cli(arguments);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// The same of a node that may have lost its session for a moment, as on a busy machine any may.
fn told(cluster: &Cluster, at: usize, arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut told = (None, String::new(), String::new());
    eventually(&format!("{arguments:?} has an answer"), HEAL, || {
        told = told_at_once(cluster, at, arguments);
        told.0 != UNAVAILABLE
    });
    told
}

fn has_reason(status: &serde_json::Value, code: &str) -> bool {
    status["reasons"].as_array().is_some_and(|reasons| reasons.iter().any(|reason| reason["code"] == code))
}

/// What a dashboard adds up over all nodes is told by one of them, also after the controller was cut off for a while.
/// The first `nodes` run.
fn one_node_counts_the_shards(cluster: &Cluster, nodes: usize) {
    let metric = |at: usize, name: &str| cluster.members[at].node.metric(name, &[]).unwrap().unwrap_or(0.0);
    let governs = |at: usize| metric(at, "holdfast_controller") > 0.0 && metric(at, "holdfast_shards") > 0.0;
    let old = until_some("a node is the controller", HEAL, || (0..nodes).find(|at| governs(*at)));
    cluster.cut_zookeeper(old, true);
    eventually("another node is the controller", HEAL, || (0..nodes).any(|at| at != old && governs(at)));
    cluster.cut_zookeeper(old, false);
    eventually("the one that was it counts no shards any more", HEAL, || {
        metric(old, "holdfast_controller") + metric(old, "holdfast_shards") == 0.0
    });
}

/// Figures that an operator has to hear of before anything is wrong, on each of the first `nodes`.
fn what_alerts_need_is_told(cluster: &Cluster, nodes: usize) {
    let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    for at in 0..nodes {
        let metric = |name: &str, labels: &[&str]| {
            let found = cluster.members[at].node.metric(name, labels).unwrap();
            found.unwrap_or_else(|| panic!("node {at} tells no {name} {labels:?}"))
        };
        for certificate in ["peer", "authority"] {
            let label = format!("certificate=\"{certificate}\"");
            let until = metric("holdfast_certificate_expiry_timestamp_seconds", &[label.as_str()]);
            assert!(until > now() + 3_600.0, "node {at}: the certificate {certificate} ends at {until}");
        }
        let (before, told) = (now(), metric("holdfast_time_seconds", &[]));
        assert!(before <= told && told <= now(), "node {at} has the time {told}");
        assert!(metric("process_start_time_seconds", &[]) <= told);
        let lent = metric("holdfast_metadata_connections_in_use", &[]);
        let max = metric("holdfast_metadata_connections_max", &[]);
        assert!(lent >= 0.0 && max >= 2.0 && lent <= max, "node {at}: {lent} of {max} connections");
        for name in ["holdfast_storage_fences_total", "holdfast_clock_leaps_total", "holdfast_metadata_refused_total"] {
            metric(name, &[]);
        }
    }
}

#[test]
fn what_the_cli_tells_is_true_at_each_step_of_losing_a_node_and_zookeeper() {
    // Each node is asked how it is while one is lost, and waits for that one before it answers: all of them are to have
    // answered before the lost one's data is rebuilt.
    let environment = vec![("HOLDFAST_CLUSTER_REBUILD_DELAY", "15 s")];
    let mut cluster = Cluster::start_with(4, Options { environment, ..Options::default() });
    cluster.client(0).create_bucket(BUCKET);
    for n in 0..8 {
        let put = cluster.client(0).put_until_served(BUCKET, &format!("k{n}"), &content::bytes(n, 100_000));
        assert_eq!(put.status, 200, "{}", put.text());
    }
    let lost = cluster.members[3].id.clone();

    // What is typed wrong has an exit code and a way out.
    let (code, _, complaint) = told(&cluster, 0, &["shard", "list", "--node", "zzzz"]);
    assert!(code == Some(3) && complaint.contains("node list"), "{code:?} {complaint}");
    for list in ["errors", "audit"] {
        let (code, _, complaint) = told(&cluster, 0, &[list, "list", "--node", "zzzz"]);
        assert!(code == Some(3) && complaint.contains("node list"), "{list}: {code:?} {complaint}");
        assert_eq!(told(&cluster, 0, &[list, "list", "--node", &lost[..10]]).0, Some(0));
    }
    let (code, rows, _) = told(&cluster, 0, &["shard", "list", "--node", &lost[..10], "--json"]);
    let rows: serde_json::Value = serde_json::from_str(&rows).unwrap();
    assert!(code == Some(0) && rows.as_array().is_some_and(|rows| !rows.is_empty()), "{code:?} {rows}");
    assert_eq!(told(&cluster, 0, &["layout", "set-replicas", "5"]).0, Some(0));
    let (code, cost, complaint) = told(&cluster, 0, &["layout", "diff"]);
    assert!(code == Some(1) && cost.contains("NOT POSSIBLE"), "{code:?} {cost} {complaint}");
    assert_eq!(told(&cluster, 0, &["layout", "revert"]).0, Some(0));
    assert_eq!(told(&cluster, 0, &["layout", "diff"]).0, Some(0));
    let (code, _, complaint) = told(&cluster, 0, &["cluster", "init"]);
    assert!(code == Some(4) && complaint.contains("in use"), "{code:?} {complaint}");
    assert_eq!(told(&cluster, 0, &["repair", "pause"]).0, Some(0));
    // The operator means the cluster, whichever node was asked.
    for at in [0, 1] {
        eventually("each node says so", HEAL, || {
            cluster.status(at).is_some_and(|status| has_reason(&status, "repairs_paused"))
        });
    }
    assert_eq!(told(&cluster, 1, &["repair", "resume"]).0, Some(0));
    for at in [1, 0] {
        eventually("each node says that it is over", HEAL, || {
            cluster.status(at).is_some_and(|status| !has_reason(&status, "repairs_paused"))
        });
    }

    // Healthy is not said of a node that is gone, although its session goes on for a while; nor may another one go now.
    cluster.members[3].node.kill();
    let status = cluster.status(0).unwrap();
    assert_ne!(status["health"], "healthy", "{status:#}");
    assert!(has_reason(&status, "no_answer") || has_reason(&status, "absent"), "{status:#}");
    let asked = (0..3).map(|at| cluster.members[at].node.admin_get("/health/maintenance").unwrap().status);
    assert!(asked.clone().any(|status| status == 412), "{:?}", asked.collect::<Vec<_>>());

    // Its shards are rebuilt on the others: that is said, and what to do if it will not come back.
    let (code, status, _) = told(&cluster, 0, &["cluster", "status", "--wait", "--timeout", "180 s"]);
    assert!(code == Some(0) && status.contains("is healthy"), "{code:?} {status}");
    assert!(status.contains(&format!("holdfast node remove {lost} --force")), "{status}");

    // A node that starts is waited for.
    cluster.members[1].node.stop();
    let mut waiting =
        cluster.members[1].node.command(&["cluster", "status", "--wait", "--timeout", "180 s"]).spawn().unwrap();
    cluster.members[1].node.restart();
    assert!(waiting.wait().unwrap().success(), "`cluster status --wait` did not wait for the node");

    // Without ZooKeeper nothing is certain.
    cluster.ensemble.kill_all();
    eventually("the loss of ZooKeeper is told of", HEAL, || {
        let Some(status) = cluster.status(0) else { return false };
        let noticed = status["session"] != "connected";
        assert!(!noticed || status["health"] == "unknown", "{status:#}");
        noticed
    });
    let (code, _, complaint) = told_at_once(&cluster, 0, &["node", "undrain", &lost]);
    assert!(code == UNAVAILABLE && complaint.contains("cluster.zookeeper"), "{code:?} {complaint}");
    cluster.ensemble.start_all();
    cluster.wait_until_healthy("after all of them", HEAL);

    what_alerts_need_is_told(&cluster, 3);
    one_node_counts_the_shards(&cluster, 3);
    cluster.wait_until_healthy("another controller", HEAL);
}
