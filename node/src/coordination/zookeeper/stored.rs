//! What is stored where, and in what form.
//!
//! ```text
//! <chroot>/cluster              identity                                  persistent
//!         /layout               layout document                           persistent
//!         /shards/<n>           shard state                               persistent
//!         /generation           state of the shared cache                 persistent
//!         /pauses               what the operator paused                  persistent, made with the first pause
//!         /nodes/<id>           what a node says of itself                ephemeral
//!         /seen/<id>            what a node says of the shared cache      ephemeral, made with /nodes/<id>
//!         /controller/<nonce>-<sequence>     candidates; the lowest sequence leads, its czxid is the token
//!         /leases/<name>/<nonce>-<sequence>  likewise                     ephemeral
//!         /locks                what is added to the tokens of locks      persistent, made with the first lock
//!         /locks/<name>         the queue of a lock                       container: removed when it is empty
//!         /locks/<name>/<nonce>-<sequence>   likewise                     ephemeral
//! ```
//!
//! Values are JSON in an envelope with a nonce of the writer. After a lost connection the nonce tells whether what is
//! there now is what was written, also when two writers wrote the same value.

use holdfast_actors::domain::placement::shard;
use holdfast_actors::ports::coordination::{
    CONTROLLER, CacheSeen, CacheState, CoordinationError, CoordinationResult, LeaseName, NodeAnnouncement,
};
use holdfast_protocol::cluster::ShardState;
use holdfast_protocol::{NodeId, ShardId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub(super) const ROOT: &str = "/";
pub(super) const CLUSTER: &str = "/cluster";
pub(super) const LAYOUT: &str = "/layout";
pub(super) const SHARDS: &str = "/shards";
pub(super) const GENERATION: &str = "/generation";
pub(super) const PAUSES: &str = "/pauses";
pub(super) const NODES: &str = "/nodes";
pub(super) const SEEN: &str = "/seen";
pub(super) const CONTROLLERS: &str = "/controller";
pub(super) const LEASES: &str = "/leases";
pub(super) const LOCKS: &str = "/locks";

/// What every node watches, with all that is below: each path that is a [`Topic`], and nothing else. Paths that do not
/// exist yet can be watched.
pub(super) const WATCHED: [&str; 8] = [LAYOUT, SHARDS, GENERATION, PAUSES, NODES, SEEN, CONTROLLERS, LEASES];

/// ZooKeeper refuses 1 MiB and more, and a multi-operation has to fit as a whole.
const VALUE_BYTES_MAX: usize = 512 * 1024;

pub(super) fn node_path(node: NodeId) -> String {
    format!("{NODES}/{node}")
}

pub(super) fn seen_path(node: NodeId) -> String {
    format!("{SEEN}/{node}")
}

pub(super) fn shard_path(shard: ShardId) -> String {
    format!("{SHARDS}/{shard}")
}

/// Where the candidates for a lease stand.
pub(super) fn lease_path(lease: &LeaseName) -> String {
    if lease.as_str() == CONTROLLER { CONTROLLERS.to_owned() } else { format!("{LEASES}/{lease}") }
}

/// Where those who want a lock stand.
pub(super) fn lock_path(name: &LeaseName) -> String {
    format!("{LOCKS}/{name}")
}

/// The place of a candidate in its queue, from its name.
pub(super) fn sequence(candidate: &str) -> Option<i64> {
    candidate.rsplit_once('-')?.1.parse().ok()
}

/// What an event or a path is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Topic {
    Layout,
    Generation,
    Pauses,
    Seen,
    Node(NodeId),
    Shard(ShardId),
    /// The lease of this name. Last: who reads what changed in this order sees the leases that were there before a node
    /// was.
    Lease(String),
}

impl Topic {
    /// The path of one of those of which there are many, and whose value is all that is to be read.
    pub(super) fn one_of_many(&self) -> Option<String> {
        match self {
            Self::Node(id) => Some(node_path(*id)),
            Self::Shard(id) => Some(shard_path(*id)),
            _ => None,
        }
    }

    pub(super) fn of(path: &str) -> Option<Self> {
        let mut parts = path.strip_prefix('/')?.splitn(3, '/');
        let (first, second) = (parts.next()?, parts.next());
        match (first, second) {
            ("layout", None) => Some(Self::Layout),
            ("generation", None) => Some(Self::Generation),
            ("pauses", None) => Some(Self::Pauses),
            ("seen", _) => Some(Self::Seen),
            ("nodes", Some(id)) => id.parse().ok().map(Self::Node),
            ("shards", Some(id)) => id.parse().ok().map(|id| Self::Shard(ShardId(id))),
            ("controller", _) => Some(Self::Lease(CONTROLLER.to_owned())),
            ("leases", Some(name)) => Some(Self::Lease(name.to_owned())),
            _ => None,
        }
    }
}

/// A node as it is stored.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct NodeRecord {
    /// Which process wrote it: one that lost its session may replace what it wrote in it.
    pub(super) owner: String,
    pub(super) announcement: NodeAnnouncement,
}

/// The state of the shared cache as it is stored: clusters made before there was one hold only a number.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum StoredCache {
    Generation(u64),
    State(CacheState),
}

impl From<StoredCache> for CacheState {
    fn from(stored: StoredCache) -> Self {
        match stored {
            StoredCache::Generation(generation) => Self { generation, ..Self::initial() },
            StoredCache::State(state) => state,
        }
    }
}

/// What a node says of the shared cache as it is stored, likewise.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum StoredSeen {
    Generation(u64),
    Seen(CacheSeen),
}

impl From<StoredSeen> for CacheSeen {
    fn from(stored: StoredSeen) -> Self {
        match stored {
            StoredSeen::Generation(generation) => Self { generation, ..Self::default() },
            StoredSeen::Seen(seen) => seen,
        }
    }
}

/// The state of a shard as it is stored: one that no shard can have is not taken, wherever it is read.
#[derive(Debug, Deserialize)]
#[serde(try_from = "ShardState")]
pub(super) struct StoredShard(ShardState);

impl TryFrom<ShardState> for StoredShard {
    type Error = String;

    fn try_from(state: ShardState) -> Result<Self, String> {
        shard::check(&state)?;
        Ok(Self(state))
    }
}

impl From<StoredShard> for ShardState {
    fn from(stored: StoredShard) -> Self {
        stored.0
    }
}

/// A candidate for a lease as it is stored.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct CandidateRecord {
    pub(super) node: NodeId,
}

#[derive(Serialize, Deserialize)]
struct Envelope<T> {
    nonce: String,
    value: T,
}

/// A value ready to be written, and the nonce in it.
pub(super) struct Encoded {
    pub(super) bytes: Vec<u8>,
    pub(super) nonce: String,
}

/// 64 random bits as text.
pub(super) fn nonce() -> String {
    hex::encode(rand::random::<[u8; 8]>())
}

pub(super) fn encode<T: Serialize>(value: &T) -> CoordinationResult<Encoded> {
    let nonce = nonce();
    let bytes = serde_json::to_vec(&Envelope { nonce: nonce.clone(), value })
        .map_err(|e| CoordinationError::Invalid(format!("cannot be encoded: {e}")))?;
    if bytes.len() > VALUE_BYTES_MAX {
        let size = bytes.len();
        return Err(CoordinationError::Invalid(format!("{size} bytes are more than {VALUE_BYTES_MAX}")));
    }
    Ok(Encoded { bytes, nonce })
}

pub(super) fn decode<T: DeserializeOwned>(path: &str, bytes: &[u8]) -> CoordinationResult<T> {
    let envelope: Result<Envelope<T>, _> = serde_json::from_slice(bytes);
    envelope.map(|e| e.value).map_err(|e| CoordinationError::Corrupt(format!("{path}: {e}")))
}

/// The nonce of what is stored, if it can be read at all.
pub(super) fn nonce_of(bytes: &[u8]) -> Option<String> {
    serde_json::from_slice::<Envelope<serde::de::IgnoredAny>>(bytes).ok().map(|e| e.nonce)
}

#[cfg(test)]
mod tests {
    use holdfast_actors::ports::coordination::{ClusterIdentity, LiveNode, Membership, Pause, Pauses};
    use holdfast_protocol::Epoch;
    use holdfast_protocol::cluster::LayoutDocument;
    use holdfast_protocol::fuzz::{Target, damage};

    use super::*;

    #[test]
    fn paths_lead_back_to_their_topics() {
        let node = NodeId::generate();
        assert_eq!(Topic::of(&node_path(node)), Some(Topic::Node(node)));
        assert_eq!(Topic::of(&shard_path(ShardId(77))), Some(Topic::Shard(ShardId(77))));
        assert_eq!(Topic::of(&seen_path(node)), Some(Topic::Seen));
        assert_eq!(Topic::of(PAUSES), Some(Topic::Pauses));
        let lease = LeaseName::new("outbox-1").unwrap();
        let candidate = format!("{}/0123456789abcdef-0000000012", lease_path(&lease));
        assert_eq!(Topic::of(&candidate), Some(Topic::Lease("outbox-1".into())));
        assert_eq!(sequence(&candidate), Some(12));
        let controller = format!("{}/x-0000000003", lease_path(&LeaseName::controller()));
        assert_eq!(Topic::of(&controller), Some(Topic::Lease("controller".into())));
        for other in ["/", "", "/nodes", "/nodes/x", "/shards/-1", "/cluster", "/leases", "/unknown/x"] {
            assert_eq!(Topic::of(other), None, "{other}");
        }
    }

    #[test]
    fn what_is_watched_has_topics_and_locks_are_not_watched() {
        for watched in WATCHED {
            let of = |path: &str| Topic::of(path).is_some();
            let below = [node_path(NodeId::from(1)), "/shards/1".to_owned(), format!("{watched}/x")];
            let mut below = below.iter().filter(|path| path.starts_with(watched));
            assert!(of(watched) || below.any(|path| of(path)), "{watched}");
        }
        let lock = lock_path(&LeaseName::new("x").unwrap());
        assert!(!WATCHED.iter().any(|watched| lock.starts_with(watched)));
    }

    #[test]
    fn what_was_stored_before_there_was_a_shared_cache_is_understood() {
        let number = encode(&7_u64).unwrap().bytes;
        let state = CacheState::from(decode::<StoredCache>("/generation", &number).unwrap());
        assert_eq!(state, CacheState { generation: 7, ..CacheState::initial() });
        assert_eq!(CacheSeen::from(decode::<StoredSeen>("/seen/1", &number).unwrap()).generation, 7);
        let warming = state.warming(Some(NodeId::from(3)), "a server");
        let stored = encode(&warming).unwrap().bytes;
        assert_eq!(CacheState::from(decode::<StoredCache>("/generation", &stored).unwrap()), warming);
    }

    /// Nodes are brought up to date one after the other.
    #[test]
    fn what_a_node_of_another_version_says_of_itself_is_understood() {
        let id = NodeId::from(3);
        let older = serde_json::json!({
            "owner": "a process",
            "announcement": {
                "id": id,
                "addresses": { "peer": "a:1", "s3": "a:2", "admin": "a:3" },
                "zone": "", "capacity_bytes": 2, "free_bytes": 1, "version": "0.1.0", "state": "ready"
            }
        });
        let members = |record: &serde_json::Value| {
            let record: NodeRecord = decode("/nodes/3", &encode(record).unwrap().bytes).unwrap();
            Membership { nodes: [(id, LiveNode { announcement: record.announcement, incarnation: 1 })].into() }
        };
        let known = members(&older);
        assert!(known.holds(id) && !known.is_short(id), "it does not say how its disks are");
        let mut newer = older;
        newer["announcement"]["disks_working"] = 0.into();
        newer["announcement"]["disks_unrebuilt"] = 1.into();
        newer["announcement"]["something"] = "new".into();
        let known = members(&newer);
        assert!(!known.holds(id) && known.is_short(id));
    }

    #[test]
    fn damaged_values_are_corrupt_and_no_harm() {
        fn same<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
            if let Ok(value) = decode::<T>("/x", bytes) {
                assert_eq!(decode::<T>("/x", &encode(&value).unwrap().bytes).unwrap(), value);
            }
        }
        fn body(bytes: &[u8]) {
            same::<LayoutDocument>(bytes);
            same::<ClusterIdentity>(bytes);
            same::<Pauses>(bytes);
            nonce_of(bytes);
            if let Ok(stored) = decode::<StoredShard>("/x", bytes) {
                assert_eq!(shard::check(&ShardState::from(stored)), Ok(()));
            }
            let _ = decode::<StoredCache>("/x", bytes).map(|stored| CacheState::from(stored).warming(None, "a server"));
            let _ = decode::<StoredSeen>("/x", bytes).map(CacheSeen::from);
            let _ = decode::<NodeRecord>("/x", bytes).map(|record| record.announcement);
            let _ = decode::<CandidateRecord>("/x", bytes).map(|record| record.node);
            if let Ok(text) = std::str::from_utf8(bytes) {
                Topic::of(text);
                sequence(text);
            }
        }
        fn seeds() -> Vec<Vec<u8>> {
            let node = NodeId::from(1);
            let values = [
                encode(&LayoutDocument::new(3)),
                encode(&ShardState::founding(vec![node, NodeId::from(2)])),
                encode(&CacheState::initial()),
                encode(&CacheSeen::default()),
                encode(&ClusterIdentity::new(256, 5)),
                encode(&CandidateRecord { node }),
                encode(&Pauses { repairs: Some(Pause { since_ms: 5, by: "somebody".into(), node }) }),
                encode(&7_u64),
            ];
            let paths = [node_path(node), shard_path(ShardId(7)), "/controller/0123456789abcdef-0000000012".into()];
            // Nonces are random; the damage is to be the same each time.
            let fixed =
                |value: Encoded| String::from_utf8(value.bytes).unwrap().replace(&value.nonce, "0123456789abcdef");
            values.map(|value| fixed(value.unwrap())).into_iter().chain(paths).map(String::into_bytes).collect()
        }
        damage::run(&[Target { name: "zookeeper_value", body, seeds }], 5_000);
    }

    #[test]
    fn a_state_that_no_shard_can_have_is_not_taken() {
        let good = ShardState::founding(vec![NodeId::from(1)]);
        let taken = |state: &ShardState| decode::<StoredShard>("/shards/7", &encode(state).unwrap().bytes);
        assert_eq!(ShardState::from(taken(&good).unwrap()), good);
        for bad in [
            ShardState { members: vec![], ..good.clone() },
            ShardState { target: vec![NodeId::from(1); 2], ..good.clone() },
            ShardState { epoch: Epoch(u64::MAX), ..good.clone() },
        ] {
            assert!(matches!(taken(&bad), Err(CoordinationError::Corrupt(_))), "{bad:?}");
        }
    }

    #[test]
    fn stored_values_have_a_nonce_and_a_bound() {
        let encoded = encode(&vec![1, 2]).unwrap();
        assert_eq!(nonce_of(&encoded.bytes), Some(encoded.nonce.clone()));
        assert_eq!(decode::<Vec<u32>>("/x", &encoded.bytes).unwrap(), [1, 2]);
        assert!(encode(&vec![1, 2]).unwrap().nonce != encoded.nonce);
        assert!(matches!(encode(&"x".repeat(VALUE_BYTES_MAX)), Err(CoordinationError::Invalid(_))));
        let error = decode::<Vec<u32>>("/shards/7", b"{").unwrap_err();
        assert!(matches!(&error, CoordinationError::Corrupt(text) if text.contains("/shards/7")), "{error}");
    }
}
