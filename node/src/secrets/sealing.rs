//! Sealing and opening, as asked for by whoever keeps secrets in the metadata: keys of users, credentials of cold
//! tiers.

use zeroize::Zeroizing;

/// Seals secrets under the node's secret.
pub trait SecretSealer: Send + Sync + 'static {
    /// The sealed form of `secret`, bound to `access_key`.
    ///
    /// # Errors
    /// When the node's secret cannot be used, in words for the log.
    fn seal_secret(&self, secret: &str, access_key: &str) -> Result<Vec<u8>, String>;
}

/// The sealed bytes of a key could not be opened: the node's secret is not the one that they were sealed with.
#[derive(Debug, thiserror::Error)]
#[error("open the secret of an access key: {0}")]
pub struct OpenSecretError(pub String);

/// Opens sealed secrets; the node's secret stands behind it.
pub trait SecretOpener: Send + Sync + 'static {
    /// The secret half of `access_key`. The access key is bound into the sealing, so that sealed bytes cannot be moved
    /// to another key.
    ///
    /// # Errors
    /// [`OpenSecretError`] when the bytes were not sealed for this key under this node's secret.
    fn open_secret(&self, sealed: &[u8], access_key: &str) -> Result<Zeroizing<String>, OpenSecretError>;
}

impl<F> SecretOpener for F
where
    F: Fn(&[u8], &str) -> Result<Zeroizing<String>, OpenSecretError> + Send + Sync + 'static,
{
    fn open_secret(&self, sealed: &[u8], access_key: &str) -> Result<Zeroizing<String>, OpenSecretError> {
        self(sealed, access_key)
    }
}
