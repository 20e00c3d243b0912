//! A cluster of real node processes on a real ZooKeeper ensemble and a real MariaDB, made as an operator would make it.
//!
//! Each node reaches ZooKeeper and MariaDB through TCP proxies of its own and its peers through the [`UdpNetwork`], so
//! that it can be cut off from each of them. Times are short (sessions of 3 s, a lost node is rebuilt after 5 s) and
//! buffers are small, so that five nodes fit a small machine.

use std::fs::Permissions;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::certificates::Authority;
use crate::client::Client;
use crate::node::{ACCESS_KEY, CONFLICT, NOT_FOUND, Node, SECRET_KEY, UNAVAILABLE};
use crate::services::mariadb::{Mariadb, PASSWORD};
use crate::services::process::free_port;
use crate::services::redis::Server as Redis;
use crate::services::tcp_proxy::{Flow, TcpProxy};
use crate::services::udp_network::UdpNetwork;
use crate::services::zookeeper::Ensemble;

/// The session timeout of the nodes.
pub const SESSION: Duration = Duration::from_secs(3);
/// How long a node may be gone before its data is rebuilt.
pub const REBUILD_DELAY: Duration = Duration::from_secs(5);
/// How long becoming healthy may take on a loaded machine.
pub const HEAL: Duration = Duration::from_secs(180);
/// Name and password under which the nodes of a secured cluster come to ZooKeeper.
pub const ZOOKEEPER_AUTH: &str = "holdfast:a secret of the tests";
/// Where the cluster is in ZooKeeper.
pub const CHROOT: &str = "/holdfast/test";
/// Few, so that a test waits for data and not for bookkeeping.
const SHARDS: &str = "32";

/// One of the cluster's nodes, with its ways to everything else.
#[derive(Debug)]
pub struct Member {
    /// Its process.
    pub node: Node,
    /// Its id.
    pub id: String,
    /// Its ways to ZooKeeper's servers.
    pub zookeeper: Vec<TcpProxy>,
    /// Its way to MariaDB.
    pub database: TcpProxy,
    /// Its way to Redis, if the cluster has one.
    pub redis: Option<TcpProxy>,
}

/// See the module's page.
#[derive(Debug)]
pub struct Cluster {
    /// The nodes, in the order in which they came. The first one made the cluster.
    pub members: Vec<Member>,
    /// The way between nodes, by their place in `members`.
    pub network: UdpNetwork,
    /// ZooKeeper.
    pub ensemble: Ensemble,
    /// MariaDB.
    pub mariadb: Mariadb,
    /// Redis, if there is a cache.
    pub redis: Option<Redis>,
    options: Options,
    // Given back last.
    _alone: MutexGuard<'static, ()>,
}

/// One cluster at a time: several on a small machine would take each other's time for lost sessions.
static ALONE: Mutex<()> = Mutex::new(());

/// How a cluster differs from the usual one.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Variables that change each node's configuration, such as `("HOLDFAST_STORAGE_LARGE_BUFFERS", "80")`.
    pub environment: Vec<(&'static str, &'static str)>,
    /// Nodes reach each other, the database and Redis directly: relays cost CPU.
    pub direct: bool,
    /// Directories for the disks of the first nodes, in place of one in their data directory.
    pub disks: Vec<Option<PathBuf>>,
    /// ZooKeeper's tree is closed to whoever does not have [`ZOOKEEPER_AUTH`], and MariaDB takes connections over TLS
    /// only, whose certificate nodes verify.
    pub secured: bool,
    /// Whether there is a cache in Redis.
    pub cache: bool,
}

impl Cluster {
    /// A healthy cluster of `count` nodes, three replicas each.
    ///
    /// # Panics
    /// When it does not become healthy.
    pub fn start(count: usize) -> Self {
        Self::start_with(count, Options::default())
    }

    /// The same with options.
    ///
    /// # Panics
    /// When it does not become healthy.
    pub fn start_with(count: usize, options: Options) -> Self {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let begin = Instant::now();
        let ensemble = Ensemble::begin(3);
        let authority = options.secured.then(|| Authority::new("tests of Holdfast", None));
        let mariadb = match authority {
            Some(authority) => Mariadb::start_with_tls(&authority.service("mariadb")),
            None => Mariadb::start_in_memory(&[]),
        };
        ensemble.wait_until_it_serves();
        let network = UdpNetwork::default();
        let redis = options.cache.then(Redis::start);
        let mut cluster = Self { members: Vec::new(), network, ensemble, mariadb, redis, options, _alone: alone };
        let services = begin.elapsed();
        cluster.prepare();
        let made = cluster.offline(0, &["cluster", "init", "--shards", SHARDS, "--replicas", "3", "--json"]);
        cluster.members[0].id = text(&made, "node_id");
        cluster.members[0].node.restart();
        for _ in 1..count {
            cluster.add_node();
        }
        cluster.assign_and_apply();
        cluster.wait_until_healthy("a new cluster", HEAL);
        println!("services after {services:?}, a healthy cluster of {count} after {:?}", begin.elapsed());
        cluster
    }

    /// Makes configuration and proxies for one more node; gives back its place.
    fn prepare(&mut self) -> usize {
        let at = self.members.len();
        let [s3, admin, peer] =
            [free_port(), free_port(), free_port()].map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        let advertised = if self.options.direct { peer } else { self.network.relay(at, peer) };
        let zookeeper: Vec<TcpProxy> =
            self.ensemble.servers.iter().map(|server| TcpProxy::start(server.address())).collect();
        let database = TcpProxy::start(self.mariadb.address());
        let redis = self.redis.as_ref().map(|redis| TcpProxy::start(redis.address()));
        let cache = self.redis.as_ref().zip(redis.as_ref()).map_or_else(String::new, |(server, proxy)| {
            let address = if self.options.direct { server.address() } else { proxy.address() };
            // Where nobody measures, a busy machine is not to look like a slow Redis.
            let patience = if self.options.direct { "" } else { "read_timeout = \"200 ms\"\n" };
            format!("[cache]\nredis = \"redis://{address}\"\n{patience}")
        });
        let servers: Vec<String> = zookeeper.iter().map(|proxy| proxy.address().to_string()).collect();
        let (servers, url) = (
            servers.join(","),
            self.mariadb.url_at(if self.options.direct { self.mariadb.address() } else { database.address() }),
        );
        let disk = self.options.disks.get(at).cloned().flatten();
        let disks = disk.map_or_else(String::new, |disk| format!("disks = [\"{}\"]\n", disk.display()));
        let mut environment = vec![("HOLDFAST_ROOT_ACCESS_KEY", ACCESS_KEY), ("HOLDFAST_ROOT_SECRET_KEY", SECRET_KEY)];
        environment.extend_from_slice(&self.options.environment);
        let node = Node::configured(&format!("node {at}"), [s3, admin], &environment, |scratch| {
            let (data, password, auth) = (scratch.join("data"), scratch.join("password"), scratch.join("zookeeper"));
            private_file(&password, PASSWORD);
            private_file(&auth, ZOOKEEPER_AUTH);
            let (data, password) = (data.display(), password.display());
            let (zookeeper_auth, tls) = match self.mariadb.tls_ca() {
                Some(ca) => (
                    format!("zookeeper_auth_file = \"{}\"\n", auth.display()),
                    format!("tls = \"verify-identity\"\ntls_ca = \"{}\"\n", ca.display()),
                ),
                None => (String::new(), "tls = \"off\"\n".to_owned()),
            };
            format!(
                "[node]\ndata_dir = \"{data}\"\nshutdown_timeout = \"5 s\"\n{disks}\
                 [s3]\naddr = \"{s3}\"\n[admin]\naddr = \"{admin}\"\n\
                 [storage]\nsegment_size = \"64 MiB\"\nreserve = \"16 MiB\"\nlarge_buffers = 24\nsmall_buffers = 64\n\
                 [limits]\nchunk_timeout = \"10 s\"\n[cleanup]\ngrace = \"3 s\"\ninterval = \"1 s\"\norphan_age = \"20 s\"\norphan_interval = \"3 s\"\n\
                 [cluster]\nzookeeper = \"{servers}/holdfast/test\"\npeer_addr = \"{peer}\"\n\
                 advertise_peer = \"{advertised}\"\nzone = \"zone-{at}\"\nsession_timeout = \"3 s\"\n\
                 rebuild_delay = \"5 s\"\nleave_grace = \"2 s\"\nrepair_bandwidth = \"256 MiB\"\n{zookeeper_auth}\
                 [metadata]\nurl = \"{url}\"\npassword_file = \"{password}\"\n{tls}connections = 12\n{cache}"
            )
        });
        self.members.push(Member { node, id: String::new(), zookeeper, database, redis });
        at
    }

    /// Runs a command for a node that is stopped, and gives back what it prints as JSON.
    ///
    /// # Panics
    /// When it fails.
    pub fn offline(&self, at: usize, arguments: &[&str]) -> Value {
        let output = self.members[at].node.command(arguments).output().unwrap();
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "holdfast {arguments:?}: {}\n{stdout}\n{stderr}", output.status);
        serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("holdfast {arguments:?}: {e} in `{stdout}`"))
    }

    /// Joins one more node and starts it; it has no data before [`Cluster::assign_and_apply`]. Gives back its place.
    ///
    /// # Panics
    /// When it does not start.
    pub fn add_node(&mut self) -> usize {
        self.add_node_by(self.alive(), |_| {})
    }

    /// The same with a token of a certain node, after `change`.
    ///
    /// # Panics
    /// When it does not start.
    pub fn add_node_by(&mut self, issuer: usize, change: impl FnOnce(&mut Node)) -> usize {
        let at = self.prepare();
        change(&mut self.members[at].node);
        let token = self.members[at].node.scratch().join("token");
        let token = token.to_str().unwrap().to_owned();
        self.cli(issuer, &["cluster", "join-token", "--out", &token]);
        let id = text(&self.join(at, &token), "node_id");
        self.members[at].node.restart();
        crate::eventually("the others see the new node", HEAL, || {
            let status = self.status(self.alive()).unwrap_or_default();
            status["nodes"].as_array().is_some_and(|nodes| nodes.iter().any(|node| node["id"] == id.as_str()))
        });
        self.members[at].id = id;
        at
    }

    /// Makes a node that is stopped one of the cluster, and gives back what it is told. Whoever made the token may be
    /// too busy to answer.
    fn join(&self, at: usize, token: &str) -> Value {
        let arguments = ["cluster", "join", "--token-file", token, "--json"];
        let mut made = Value::Null;
        crate::eventually("whoever made the token answers", HEAL, || {
            let output = self.members[at].node.command(&arguments).output().unwrap();
            let complaint = String::from_utf8_lossy(&output.stderr);
            if !output.status.success() {
                assert!(
                    complaint.contains("cannot be reached"),
                    "holdfast {arguments:?}: {}\n{complaint}",
                    output.status
                );
                println!("holdfast {arguments:?}: {complaint}");
                return false;
            }
            made = serde_json::from_slice(&output.stdout).unwrap();
            true
        });
        made
    }

    /// Gives all nodes that have none a share of the data. One that has lost its session for a moment, as on a busy
    /// machine any may, is not among the new ones then, and an answer that the layout is in force may be lost: so that
    /// is asked for until each node that runs has its place.
    ///
    /// # Panics
    /// When that is refused.
    pub fn assign_and_apply(&self) {
        let at = self.alive();
        crate::eventually("each node that runs has its place in the layout", HEAL, || {
            let layout = self.cli(at, &["layout", "assign", "--all-new", "--weight", "100"]);
            let has_place = |member: &Member| !layout["preview"]["nodes"][member.id.as_str()].is_null();
            if !self.members.iter().filter(|member| member.node.is_running()).all(has_place) {
                return false;
            }
            if layout["staged"].as_array().is_some_and(Vec::is_empty) {
                return true;
            }
            let applied = self.members[at].node.try_cli(&["layout", "apply", "--yes"]);
            let complaint = String::from_utf8_lossy(&applied.stderr);
            let code = applied.status.code();
            assert!(matches!(code, Some(0 | CONFLICT | UNAVAILABLE)), "layout apply: {code:?} {complaint}");
            code == Some(0)
        });
    }

    /// Has a node take another one out of the layout: as soon as that is allowed, or by `force` at once. An answer that
    /// it is done may be lost: then it is not there when that is asked for again.
    ///
    /// # Panics
    /// When it is not allowed in time, or is refused in spite of `force`.
    pub fn remove_node(&self, asked: usize, node: &str, force: bool) {
        let arguments = if force { vec!["node", "remove", node, "--force"] } else { vec!["node", "remove", node] };
        let mut may_be_done = false;
        crate::eventually("a node is taken out of the layout", HEAL, || {
            let output = self.members[asked].node.try_cli(&arguments);
            match output.status.code() {
                Some(0) => true,
                Some(NOT_FOUND) if may_be_done => true,
                code => {
                    let complaint = String::from_utf8_lossy(&output.stderr);
                    assert!(!force || code == Some(UNAVAILABLE), "holdfast {arguments:?}: {code:?} {complaint}");
                    println!("holdfast {arguments:?}: {code:?} {complaint}");
                    may_be_done |= code == Some(UNAVAILABLE);
                    false
                }
            }
        });
    }

    /// A node that runs.
    fn alive(&self) -> usize {
        self.members.iter().position(|member| member.node.is_running()).expect("a node runs")
    }

    /// Runs a command against a node's admin API and gives back its answer.
    ///
    /// # Panics
    /// When it fails.
    pub fn cli(&self, at: usize, arguments: &[&str]) -> Value {
        let mut all = arguments.to_vec();
        all.push("--json");
        let output = self.members[at].node.cli(&all);
        serde_json::from_str(&output).unwrap_or_else(|e| panic!("holdfast {arguments:?}: {e} in `{output}`"))
    }

    /// What a node says of the cluster, if it answers.
    pub fn status(&self, at: usize) -> Option<Value> {
        let output = self.members[at].node.try_cli(&["cluster", "status", "--json"]);
        output.status.success().then(|| serde_json::from_slice(&output.stdout).unwrap())
    }

    /// Waits until all nodes that run call the cluster healthy.
    ///
    /// # Panics
    /// When they do not; it shows what they say instead.
    pub fn wait_until_healthy(&self, name: &str, limit: Duration) {
        let begin = Instant::now();
        for (at, member) in self.members.iter().enumerate() {
            let left = limit.saturating_sub(begin.elapsed());
            crate::until_ok(&format!("{name}: node {at} is healthy"), left, || {
                if !member.node.is_running() {
                    return Ok(());
                }
                match self.status(at) {
                    Some(status) if status["health"] == "healthy" => Ok(()),
                    Some(status) => Err(format!("{status:#}")),
                    None => Err("it says nothing".into()),
                }
            });
        }
        println!("{name}: healthy after {:?}", begin.elapsed());
    }

    /// The place of the node that is the controller.
    ///
    /// # Panics
    /// When there is none in time.
    pub fn controller(&self) -> usize {
        crate::until_some("a controller", HEAL, || {
            let status = self.status(self.alive());
            let id = status.and_then(|status| status["controller"].as_str().map(str::to_owned));
            id.and_then(|id| self.members.iter().position(|member| member.id == id))
        })
    }

    /// A client of a node.
    pub fn client(&self, at: usize) -> Client {
        self.members[at].node.client()
    }

    /// The S3 addresses of all nodes.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.members.iter().map(|member| member.node.s3()).collect()
    }

    /// Cuts a node off from ZooKeeper, or ends that.
    pub fn cut_zookeeper(&self, at: usize, cut: bool) {
        self.members[at].zookeeper.iter().for_each(|proxy| proxy.set(if cut { Flow::Stalled } else { Flow::Open }));
    }

    /// Cuts a node off from MariaDB, or ends that.
    pub fn cut_database(&self, at: usize, cut: bool) {
        self.members[at].database.set(if cut { Flow::Stalled } else { Flow::Open });
    }

    /// Cuts a node off from Redis, or ends that.
    ///
    /// # Panics
    /// When the cluster has no cache.
    pub fn cut_redis(&self, at: usize, cut: bool) {
        let proxy = self.members[at].redis.as_ref().expect("a cache");
        proxy.set(if cut { Flow::Stalled } else { Flow::Open });
    }

    /// Waits until the cache is on, as a node that runs says.
    ///
    /// # Panics
    /// When it is not in time; it shows what is said instead.
    pub fn wait_until_cached(&self, name: &str) {
        let begin = Instant::now();
        crate::until_ok(&format!("{name}: the cache is on"), HEAL, || {
            let status = self.status(self.alive());
            let cache = status.map(|status| status["cache"].clone()).unwrap_or_default();
            if cache["state"] == "on" { Ok(()) } else { Err(cache) }
        });
        println!("{name}: the cache is on after {:?}", begin.elapsed());
    }

    /// Cuts a node off from all its peers; [`UdpNetwork::heal`] ends that.
    pub fn cut_peers(&self, at: usize) {
        (0..self.members.len()).filter(|other| *other != at).for_each(|other| self.network.cut_both(at, other));
    }
}

/// A file that only this user reads.
///
/// # Panics
/// When it cannot be written.
pub fn private_file(path: &Path, text: &str) {
    std::fs::write(path, format!("{text}\n")).unwrap();
    std::fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
}

fn text(value: &Value, name: &str) -> String {
    value[name].as_str().unwrap_or_else(|| panic!("no `{name}` in {value}")).to_owned()
}
