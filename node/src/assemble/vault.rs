//! The node's secret as the front ends want it: the admin API seals, the S3 front end opens.

use std::path::Path;

use anyhow::Context;
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
