//! Who is a node of this cluster: the cluster's certificate authority, the certificates it signs, and how a node gets
//! one.
//!
//! Every cluster has a CA of its own. Its certificate names the cluster, a node's certificate names cluster and node,
//! in a URI as SPIFFE writes them. Whoever dials and whoever answers verify chain, validity, cluster and role before
//! either reads a byte of the other's.
//!
//! Every node holds the CA's key, so that each renews its own certificate without asking another; whoever has the data
//! directory of one node therefore has the cluster, under any node's id, until the CA is replaced: no list of refused
//! certificates could help (docs/adr/0020). The files stand under `cluster/` in the data directory:
//!
//! | file | what |
//! |---|---|
//! | `ca.pem` | the CA's certificate |
//! | `ca.key` | its key, mode 0600 |
//! | `node.pem` | this node's certificate |
//! | `node.key` | its key, mode 0600 |
//!
//! * [`ca`]: makes and reads the CA, signs certificates; what a certificate says.
//! * [`identity`]: this node's membership; renews its certificate, replaces the CA.
//! * [`verify`]: decides about the certificates of others.
//! * [`enrol`]: join tokens, and joining with one.
//!
//! Private directories and files are made by [`files`], durable and whole or not at all: a crash at any point leaves a
//! node that belongs to the cluster or one that does not.

use std::io;
use std::path::PathBuf;

use holdfast_protocol::ClusterId;

use crate::secret_file::Exposed;

pub mod ca;
pub mod enrol;
pub mod files;
pub mod identity;
pub mod verify;

pub use ca::{ClusterCa, Role, Subject, Validity};
pub use identity::{AUTHORITY_FILES, IdentityOptions, NodeIdentity, cluster_of, init_cluster, replace_authority};

/// Why keys or certificates cannot be made, read or used.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Others may read a key.
    #[error(transparent)]
    TooOpen(#[from] Exposed),
    /// A file does not hold what Holdfast wrote.
    #[error("{path}: {detail}")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// The data directory belongs to a cluster already.
    #[error("this data directory belongs to cluster {0} already")]
    AlreadyMember(ClusterId),
    /// The data directory belongs to another cluster.
    #[error("this data directory belongs to cluster {mine}, not to cluster {theirs}")]
    OtherCluster {
        /// The one that it belongs to.
        mine: ClusterId,
        /// The one that it was to belong to.
        theirs: ClusterId,
    },
    /// A certificate or key cannot be made or understood.
    #[error("certificate: {0}")]
    Certificate(String),
}

impl From<rcgen::Error> for PkiError {
    fn from(error: rcgen::Error) -> Self {
        Self::Certificate(error.to_string())
    }
}
