//! Users and their access keys.

use std::fmt;

/// A user of the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Unique name; also the canonical id that S3 shows as owner.
    pub name: String,
    /// May use the admin API and every bucket.
    pub admin: bool,
    /// A disabled user's keys are refused.
    pub enabled: bool,
    /// When the user was made.
    pub created_ms: u64,
}

/// An access key. Its secret is sealed (encrypted under the node's secret) and only opened to check a signature.
#[derive(Clone, PartialEq, Eq)]
pub struct AccessKey {
    /// The public half.
    pub access_key: String,
    /// The secret half, sealed.
    pub sealed_secret: Vec<u8>,
    /// The user it speaks for.
    pub user: User,
    /// A disabled key is refused.
    pub enabled: bool,
    /// What the operator noted.
    pub description: String,
    /// When it was made.
    pub created_ms: u64,
}

impl fmt::Debug for AccessKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessKey")
            .field("access_key", &self.access_key)
            .field("user", &self.user.name)
            .field("enabled", &self.enabled)
            .finish_non_exhaustive()
    }
}
