//! Joins ports, adapters, actors and front ends into a running node.
//!
//! | module | what |
//! |---|---|
//! | `start` | the start of a node, in order |
//! | `running` | a node that serves, and its stop, in order |
//! | `data_dir`, `limits`, `root`, `vault`, `locks`, `journal`, `parts`, `front`, `admin_server` | what every node is made of |
//! | `storage`, `known_disks` | metadata and disks, and which directories were disks |
//! | `cluster`, `transport` | what makes a node one of a cluster, whatever stands behind the ports |
//! | `events` | the bus, and the relay to it |
//! | `tasks` | slow work that is given out to all nodes, and the loop that carries it out |
//! | `lifecycle` | the loops that carry lifecycle rules out, and note reads for them |
//! | `tiers` | cold tiers, and the loops that move objects to and from them |
//! | `zookeeper`, `predecessors` | a cluster of ZooKeeper, MySQL and QUIC, and whom a node that was killed replaces |
//! | `dev` | a cluster in one process |
//! | `cluster_tools` | what is done to a node that is stopped: make a cluster, join one, save and rebuild metadata |
//!
//! **Order of the start.** The data directory is locked; the admin port answers that the node lives and is starting; in
//! a cluster, coordination is connected and the cluster compared with the one that the data directory belongs to;
//! metadata and disks are opened, each disk recovered; peers are served; actors start and look at them; whether there
//! is, or may be, a root credential is looked up, certificates for S3 are read and its address is tried; then, since
//! nothing is left that is likely to refuse the start, the node registers in its cluster, which fails if another
//! process has its id; the loops of cold tiers and events start, the root credential is made sure of, and those of
//! lifecycle rules start; S3 is served, the admin API answers in full, and the others are told so. A start that
//! fails after all takes the registration back.
//!
//! **Order of the stop.** The others are told, new requests are refused, those at hand end within the deadline;
//! lifecycle rules are carried out and objects moved to and from cold tiers no more (a move that is cut off is begun
//! anew by another node); events are published no more; in a cluster the actors of shards stop, peers are served no
//! more and the session ends, so that the others see the node leave at once; the other actors stop; metadata is closed,
//! disks write their index files, and last the admin port goes. Whatever the stop leaves out costs the next start time,
//! never data: what was acknowledged is durable already.
//!
//! Several nodes can run in one process: nothing here is global but logs, metrics and the limits of the process.

use std::time::Duration;

use anyhow::anyhow;
use holdfast_actors::ports::{Clock as _, SystemClock};

use crate::admin::Pair;
use crate::config::Config;

mod admin_server;
mod cluster;
pub mod cluster_tools;
mod data_dir;
pub mod dev;
mod events;
mod front;
mod journal;
mod known_disks;
mod lifecycle;
mod limits;
mod locks;
mod parts;
mod predecessors;
mod root;
mod running;
mod start;
mod storage;
mod tasks;
mod tiers;
mod transport;
mod vault;
mod zookeeper;

use data_dir::DataDir;
pub use data_dir::InUse;
pub use root::{ROOT_USER, Root};
pub use running::RunningNode;

/// How long actors, metadata and disks may take to stop, each.
const STOP_STEP_MAX: Duration = Duration::from_secs(10);

/// Where a node gets its cluster from.
enum Setting {
    /// It is its own.
    Alone,
    /// From the services that the configuration names.
    Services,
    /// From the process that it is one node of.
    Process(dev::Shared),
}

/// Starts a node. Must be called on a multi-threaded runtime, on which actors and the admin API then live.
///
/// # Errors
/// When a part cannot be opened or an address cannot be bound, or when the cluster refuses the node; nothing is left
/// running then.
pub async fn start(config: Config, root: Root) -> anyhow::Result<RunningNode> {
    let setting = if config.cluster.is_on() { Setting::Services } else { Setting::Alone };
    start::start_in(setting, config, root).await
}

/// Makes sure of a root credential in a data directory on which no node runs, and tells it.
///
/// # Errors
/// When the directory is in use; those of the metadata store.
pub async fn prepare_root(config: &Config, root: Root) -> anyhow::Result<Pair> {
    let data_dir = DataDir::open(&config.node.data_dir)?;
    let metadata = cluster_tools::open_metadata(config, &data_dir, cluster_tools::Claim::Require).await?;
    // After the check that a node of a cluster has joined: the secret comes with that.
    let vault = vault::of(&data_dir)?;
    let pair = root::ensure(&*metadata, &vault, root, SystemClock.now_ms()).await;
    metadata.close().await;
    zookeeper::invalidate_cache(config).await?;
    pair?.ok_or_else(|| anyhow!("no root credential was asked for"))
}
