//! Users and their access keys.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct User {
    /// Unique name.
    pub name: String,
    /// May use every bucket.
    pub admin: bool,
    /// A disabled user's keys are refused.
    pub enabled: bool,
    /// When it was made.
    pub created_ms: u64,
}

/// `POST /v1/users`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewUser {
    /// 1 to 64 letters, digits and `_ . - @ +`.
    pub name: String,
    /// May use every bucket.
    #[serde(default)]
    pub admin: bool,
}

/// `PATCH /v1/users/{name}` and `PATCH /v1/keys/{access_key}`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetEnabled {
    /// Whether it may be used.
    pub enabled: bool,
}

/// An access key, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Key {
    /// The public half.
    pub access_key: String,
    /// Name of the user that it speaks for.
    pub user: String,
    /// A disabled key is refused.
    pub enabled: bool,
    /// What the operator noted.
    pub description: String,
    /// When it was made.
    pub created_ms: u64,
}

/// `POST /v1/keys`. With both halves it imports a given pair, with none the node makes one.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewKey {
    /// The user that it speaks for.
    pub user: String,
    /// Up to 256 bytes.
    #[serde(default)]
    pub description: String,
    /// 3 to 128 letters, digits and `_ . -`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_key: Option<String>,
    /// 8 to 128 printable ASCII characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_key: Option<String>,
}

impl fmt::Debug for NewKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewKey").field("user", &self.user).field("access_key", &self.access_key).finish_non_exhaustive()
    }
}

/// `POST /v1/keys/{access_key}/rotate`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RotateKey {
    /// Leaves the old key enabled, to be disabled when nobody uses it any more.
    #[serde(default)]
    pub keep_old: bool,
}

/// A key just made. The only answer that holds a secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CreatedKey {
    /// The key.
    #[serde(flatten)]
    pub key: Key,
    /// Its secret half, which is told this once.
    pub secret_key: String,
}

impl fmt::Debug for CreatedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CreatedKey").field("key", &self.key).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_do_not_reach_debug_output() {
        let new = NewKey {
            user: "u".into(),
            description: String::new(),
            access_key: Some("AK".into()),
            secret_key: Some("very-secret".into()),
        };
        assert!(!format!("{new:?}").contains("very-secret"));
        let key =
            Key { access_key: "AK".into(), user: "u".into(), enabled: true, description: String::new(), created_ms: 1 };
        assert!(!format!("{:?}", CreatedKey { key, secret_key: "very-secret".into() }).contains("very-secret"));
    }
}
