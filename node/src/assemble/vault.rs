//! The node's secret as the front ends want it: the admin API seals, the S3 front end opens.

use std::path::Path;

use anyhow::{Context, bail};
use zeroize::Zeroizing;

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

/// The same for a node of a cluster, whose secret came with its membership. One that was made here would open nothing
/// that the others have sealed, and they nothing of this node's; and who joins by this node would be given it.
///
/// # Errors
/// Also when it is gone.
pub(super) fn open_of_cluster(path: &Path) -> anyhow::Result<NodeVault> {
    if !path.try_exists().with_context(|| format!("look for {}", path.display()))? {
        bail!(
            "{} is gone, which is the same on all nodes of the cluster: copy it from another node, or from its backup, with mode 0600",
            path.display()
        );
    }
    open(path)
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
    use super::*;

    #[test]
    fn a_node_of_a_cluster_makes_no_secret_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.secret");
        let refused = open_of_cluster(&path).map(drop).unwrap_err().to_string();
        assert!(refused.contains("copy it from another node"), "{refused}");
        assert!(!path.exists());
        let sealed = open(&path).unwrap().seal_secret("secret", "key").unwrap();
        assert_eq!(*open_of_cluster(&path).unwrap().open_secret(&sealed, "key").unwrap(), "secret");
    }
}
