//! What an operator says of a FastDFS cluster.

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_actors::ports::tiers::{TierError, TierResult};

use super::wire::GroupName;

/// The most trackers that a cluster can have.
const TRACKERS_MAX: usize = 16;
/// The largest piece that can be asked for: the tier is to be read and verified piece by piece.
const PIECE_BYTES_LIMIT: u64 = 16 << 30;
/// A storage takes a few hundred connections in all, from all nodes.
const CONNECTIONS_LIMIT: usize = 1024;

/// How to reach a FastDFS cluster, and how to use it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FastdfsConfig {
    /// The trackers, as `host:port`. Names are resolved at each connection.
    pub trackers: Vec<String>,
    /// The only group to store in; none leaves the choice to the tracker.
    pub group: Option<String>,
    /// Where storages can be reached whose own address cannot, behind NAT or in containers: `ip` or `ip:port` as the
    /// tracker tells it → `host` or `host:port`.
    pub address_map: BTreeMap<String, String>,
    /// The largest piece, in bytes.
    pub piece_bytes_max: u64,
    /// The longest that a connection may take to be made, name resolution included.
    pub connect_timeout: Duration,
    /// The longest that a server may keep this side waiting without a byte.
    pub idle_timeout: Duration,
    /// The longest that a server may keep this side waiting in one exchange, all waits together.
    pub overall_timeout: Duration,
    /// The most connections to one server.
    pub connections_max: usize,
}

impl Default for FastdfsConfig {
    fn default() -> Self {
        Self {
            trackers: Vec::new(),
            group: None,
            address_map: BTreeMap::new(),
            piece_bytes_max: 64 << 20,
            connect_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(30),
            overall_timeout: Duration::from_secs(600),
            connections_max: 64,
        }
    }
}

impl FastdfsConfig {
    /// Says what is wrong with it.
    ///
    /// # Errors
    /// [`TierError::Invalid`], with the field.
    pub fn validate(&self) -> TierResult<()> {
        let wrong = |what: String| Err(TierError::Invalid(format!("FastDFS: {what}")));
        if self.trackers.is_empty() || self.trackers.len() > TRACKERS_MAX {
            return wrong(format!("trackers: 1 to {TRACKERS_MAX} are needed, {} are given", self.trackers.len()));
        }
        if let Some(tracker) = self.trackers.iter().find(|tracker| !has_host_and_port(tracker)) {
            return wrong(format!("trackers: {tracker:?} is not host:port"));
        }
        if let Some(Err(error)) = self.group.as_deref().map(GroupName::new) {
            return wrong(format!("group: {error}: 1 to 16 letters and digits"));
        }
        if let Some((from, to)) = self.address_map.iter().find(|(from, to)| !is_storage(from) || to.is_empty()) {
            return wrong(format!("address_map: {from:?} = {to:?} is not ip or ip:port = host or host:port"));
        }
        if !(1..=PIECE_BYTES_LIMIT).contains(&self.piece_bytes_max) {
            return wrong(format!("piece_bytes_max: 1 to {PIECE_BYTES_LIMIT}, not {}", self.piece_bytes_max));
        }
        let timeouts = [
            ("connect_timeout", self.connect_timeout),
            ("idle_timeout", self.idle_timeout),
            ("overall_timeout", self.overall_timeout),
        ];
        if let Some((name, _)) = timeouts.iter().find(|(_, timeout)| timeout.is_zero()) {
            return wrong(format!("{name}: must not be zero"));
        }
        if !(1..=CONNECTIONS_LIMIT).contains(&self.connections_max) {
            return wrong(format!("connections_max: 1 to {CONNECTIONS_LIMIT}, not {}", self.connections_max));
        }
        Ok(())
    }
}

/// Whether it is `host:port` with a port that can be dialled.
pub(super) fn has_host_and_port(text: &str) -> bool {
    let parts = text.rsplit_once(':');
    parts.is_some_and(|(host, port)| {
        let bare_ipv6 = host.contains(':') && !host.starts_with('[');
        !host.is_empty() && !bare_ipv6 && port.parse().is_ok_and(|port: u16| port != 0)
    })
}

fn is_storage(text: &str) -> bool {
    text.parse::<std::net::IpAddr>().is_ok() || text.parse::<std::net::SocketAddr>().is_ok()
}
