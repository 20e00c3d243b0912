//! `[cluster]`, `[metadata]`, `[cache]`, `[redis]` and `[locks]`: with whom a node works together.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Bytes, Span};

/// `[cluster]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClusterConfig {
    /// ZooKeeper's servers and the cluster's place there: `host:port,host:port/chroot`. Empty: the node runs alone.
    pub zookeeper: String,
    /// File with `user:password` for ZooKeeper's digest scheme.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zookeeper_auth_file: Option<PathBuf>,
    /// Where peers are served, by QUIC (UDP). Port 0 takes a free one.
    #[serde(deserialize_with = "super::addr::deserialize")]
    pub peer_addr: SocketAddr,
    /// `host:port` at which other nodes reach `peer_addr`; needed where that is a wildcard. Default: `peer_addr`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advertise_peer: Option<String>,
    /// `host:port` at which clients reach `s3.addr`. Default: `s3.addr`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advertise_s3: Option<String>,
    /// `host:port` at which other nodes and operators reach `admin.addr`. Default: `admin.addr`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advertise_admin: Option<String>,
    /// What fails together with this node: a rack, a room. A hint for `layout assign`.
    pub zone: String,
    /// How long ZooKeeper waits for a node that it does not hear of.
    pub session_timeout: Span,
    /// How long a node may be gone before its data is rebuilt elsewhere.
    pub rebuild_delay: Span,
    /// How long a node that left a shard goes on serving readers with an older map before it deletes.
    pub leave_grace: Span,
    /// Bytes a second that repair and moves may copy to this node.
    pub repair_bandwidth: Bytes,
}

impl Default for ClusterConfig {
    fn default() -> Self {
        Self {
            zookeeper: String::new(),
            zookeeper_auth_file: None,
            peer_addr: SocketAddr::from(([127, 0, 0, 1], 9002)),
            advertise_peer: None,
            advertise_s3: None,
            advertise_admin: None,
            zone: "default".into(),
            session_timeout: Span::seconds(10),
            rebuild_delay: Span::minutes(10),
            leave_grace: Span::minutes(10),
            repair_bandwidth: Bytes::mib(64),
        }
    }
}

impl ClusterConfig {
    /// Whether the node is one of a cluster.
    pub fn is_on(&self) -> bool {
        !self.zookeeper.is_empty()
    }

    /// ZooKeeper's servers and the chroot.
    pub fn ensemble(&self) -> Option<(&str, &str)> {
        let at = self.zookeeper.find('/')?;
        let (servers, chroot) = self.zookeeper.split_at(at);
        Some((servers, chroot))
    }

    /// A pause that is `usual` with the default session, and shorter in proportion with a shorter one: whoever wants a
    /// lost node noticed soon wants the rest soon, too. A longer session makes no pause longer.
    pub fn in_proportion(&self, usual: Duration) -> Duration {
        let default = Self::default().session_timeout.duration();
        let session = self.session_timeout.duration().min(default);
        usual * session.as_millis() as u32 / default.as_millis() as u32
    }
}

/// `[metadata]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetadataConfig {
    /// `mysql://user@host:port/database` of a MySQL or MariaDB server. Only for a cluster, which needs it.
    pub url: String,
    /// File with that user's password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// Whether the connection is encrypted, and whom it trusts.
    pub tls: MetadataTls,
    /// PEM file with the CA that signed the server's certificate. Default: the system's CAs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_ca: Option<PathBuf>,
    /// Connections to the server at once; 0: by the number of nodes, see [`Self::connections_of`].
    pub connections: u32,
}

/// Connections that all nodes have together, as long as none has fewer than [`CONNECTIONS_MIN`]. With 32 prepared
/// statements each they stay below the 16,382 that a server keeps by default.
const CONNECTIONS_OF_ALL: usize = 500;
/// The fewest that are chosen for a node: four commit, one walks for orphans, the others are for requests.
const CONNECTIONS_MIN: usize = 8;
/// The most that are chosen for a node.
const CONNECTIONS_MAX: usize = 32;

impl MetadataConfig {
    /// Connections of one of so many nodes.
    pub fn connections_of(&self, nodes: usize) -> u32 {
        match self.connections {
            0 => (CONNECTIONS_OF_ALL / nodes.max(1)).clamp(CONNECTIONS_MIN, CONNECTIONS_MAX) as u32,
            set => set,
        }
    }
}

impl Default for MetadataConfig {
    fn default() -> Self {
        Self { url: String::new(), password_file: None, tls: MetadataTls::Preferred, tls_ca: None, connections: 0 }
    }
}

/// `[cache]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CacheConfig {
    /// `redis://user@host:port`, or `redis+sentinel://user@host:port,host:port/name`; `rediss` for TLS. Only for a
    /// cluster, and the same on all its nodes. Empty: no cache.
    pub redis: String,
    /// File with that user's password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// File with the password that Sentinels ask for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sentinel_password_file: Option<PathBuf>,
    /// PEM file with the CA that signed the server's certificate. Default: the system's CAs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_ca: Option<PathBuf>,
    /// How long a reader waits for Redis before it asks the database.
    pub read_timeout: Span,
    /// How long a writer waits for Redis before it has the cache switched off for all nodes.
    pub write_timeout: Span,
    /// How long a value is kept at most.
    pub ttl: Span,
    /// How long it is remembered at most that something does not exist.
    pub absent_ttl: Span,
    /// Largest value that is kept.
    pub value_max: Bytes,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self {
            redis: String::new(),
            password_file: None,
            sentinel_password_file: None,
            tls_ca: None,
            read_timeout: Span::milliseconds(50),
            write_timeout: Span::milliseconds(500),
            ttl: Span::hours(1),
            absent_ttl: Span::seconds(10),
            value_max: Bytes::kib(32),
        }
    }
}

/// How the connection to the metadata server is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MetadataTls {
    /// In the clear.
    Off,
    /// Encrypted where the server can; the server is not checked.
    Preferred,
    /// Encrypted, by a certificate of a trusted CA.
    VerifyCa,
    /// Encrypted, by a certificate of a trusted CA for the host named in the URL.
    VerifyIdentity,
}

/// `[redis]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RedisConfig {
    /// `redis://host:port/database`, or `rediss://…` for TLS. Only for `locks.backend = "redis"`; the cache has
    /// `cache.redis`.
    pub url: String,
    /// The ACL user. Default: the server's default user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// File with that user's password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// PEM file with the CA that signed the server's certificate. Default: the system's CAs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_ca: Option<PathBuf>,
    /// How long a command may take, and a connection to be made.
    pub timeout: Span,
}

impl Default for RedisConfig {
    fn default() -> Self {
        Self { url: String::new(), user: None, password_file: None, tls_ca: None, timeout: Span::seconds(1) }
    }
}

/// `[locks]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LocksConfig {
    /// Where locks are. All nodes of a cluster must have the same.
    pub backend: LocksBackend,
    /// How long Redis waits for a holder that it does not hear of. With ZooKeeper it is `cluster.session_timeout`.
    pub time_limit: Span,
}

impl Default for LocksConfig {
    fn default() -> Self {
        Self { backend: LocksBackend::Auto, time_limit: Span::seconds(10) }
    }
}

/// Where locks are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LocksBackend {
    /// ZooKeeper in a cluster, else within the process.
    Auto,
    /// ZooKeeper, by the session of the cluster.
    Zookeeper,
    /// The server of `[redis]`.
    Redis,
    /// Within the process: for a node that runs alone.
    InProcess,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_of_many_nodes_do_not_exceed_what_a_database_takes() {
        let unset = MetadataConfig::default();
        let chosen = [1, 3, 15, 20, 40, 62, 200, 1024].map(|nodes| unset.connections_of(nodes));
        assert_eq!(chosen, [32, 32, 32, 25, 12, 8, 8, 8]);
        let set = MetadataConfig { connections: 50, ..unset };
        assert_eq!(set.connections_of(200), 50);
    }

    #[test]
    fn pauses_shrink_with_a_shorter_session_and_never_grow() {
        let pause = |session| {
            let cluster = ClusterConfig { session_timeout: session, ..ClusterConfig::default() };
            cluster.in_proportion(Duration::from_secs(5))
        };
        assert_eq!(pause(Span::seconds(10)), Duration::from_secs(5));
        assert_eq!(pause(Span::seconds(3)), Duration::from_millis(1_500));
        assert_eq!(pause(Span::seconds(1)), Duration::from_millis(500));
        assert_eq!(pause(Span::seconds(120)), Duration::from_secs(5));
    }
}
