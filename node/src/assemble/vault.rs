//! The node's secret as the front ends want it: the admin API seals, the S3 front end opens.

use std::path::Path;

use anyhow::Context;
use zeroize::Zeroizing;

use super::data_dir::DataDir;
use crate::secrets::{NodeSecret, OpenSecretError, SecretOpener, SecretSealer};

/// The node's secret.
pub(super) struct NodeVault {
    secret: NodeSecret,
}

/// Reads the node's secret from `path`, or makes it.
pub(super) fn open(path: &Path) -> anyhow::Result<NodeVault> {
    let secret = NodeSecret::load_or_create(path).context("open the node's secret")?;
    Ok(NodeVault { secret })
}

/// Reads the secret of a node, or makes it if the node runs alone. That of a cluster is made with the cluster and
/// brought by a join, never later: under one of its own a node would seal keys that open nowhere else, replace a given
/// root key by such a one, and hand it to those whom it lets in.
pub(super) fn of(data_dir: &DataDir) -> anyhow::Result<NodeVault> {
    let path = data_dir.file("node.secret");
    match data_dir.cluster_id()? {
        None => open(&path),
        Some(_) => Ok(NodeVault { secret: NodeSecret::load(&path).context("open the cluster's secret")? }),
    }
}

impl SecretSealer for NodeVault {
    fn seal_secret(&self, secret: &str, access_key: &str) -> Result<Vec<u8>, String> {
        self.secret.seal(access_key, secret).map_err(|error| error.to_string())
    }
}

impl SecretOpener for NodeVault {
    fn open_secret(&self, sealed: &[u8], access_key: &str) -> Result<Zeroizing<String>, OpenSecretError> {
        self.secret.open(access_key, sealed).map_err(|error| OpenSecretError(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use holdfast_protocol::ClusterId;

    use super::*;

    #[test]
    fn secret_that_is_lost_is_made_anew_by_nodes_that_run_alone_only() {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = DataDir::open(dir.path()).unwrap();
        let path = data_dir.file("node.secret");
        of(&data_dir).unwrap();
        std::fs::remove_file(&path).unwrap();
        of(&data_dir).unwrap();

        data_dir.set_cluster_id(ClusterId([1; 16])).unwrap();
        of(&data_dir).unwrap();
        std::fs::remove_file(&path).unwrap();
        let error = format!("{:#}", of(&data_dir).err().expect("the others have another one"));
        assert!(error.contains("node.secret") && error.contains("from another node"), "{error}");
        assert!(!path.exists(), "it was made");
    }
}
