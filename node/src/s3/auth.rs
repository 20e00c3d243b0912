//! Who sent a request: access keys, their secrets, and the caller that they speak for.
//!
//! s3s computes the signature; it asks [`Authenticator`] for the secret of the access key that the request names. A key
//! is read from the metadata store for every request, so that disabling a key or a user holds for the next request on
//! every node; only the *opened* secret is kept in memory, since opening costs an AEAD decryption. It is found again by
//! access key and sealed bytes, so a rotated key never meets an old secret.
//!
//! The cache holds at most [`CACHED_KEYS_MAX`] secrets. One older than [`CACHED_KEY_TTL_MS`] is not used any more and
//! is dropped when the next is opened; secrets are wiped when dropped.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use holdfast_actors::ports::metadata::AccessKey;
use holdfast_actors::ports::{Clock, MetadataError, MetadataStore};
use http::Extensions;
use parking_lot::RwLock;
use s3s::auth::{S3Auth, SecretKey};
use s3s::{S3Error, S3Result, s3_error};

use super::errors::ToS3 as _;
pub use crate::secrets::{OpenSecretError, SecretOpener};

/// Most opened secrets kept. Beyond it the cache is emptied: so many active keys are rare and refilling is cheap.
const CACHED_KEYS_MAX: usize = 1024;

/// How long an opened secret stays in memory without being sealed anew.
const CACHED_KEY_TTL_MS: u64 = 60_000;

/// The longest access key, as the admin API takes them.
const ACCESS_KEY_BYTES_MAX: usize = 128;

/// Who sent a request. Access control puts it into the request's extensions, where operations find it with
/// [`Caller::of`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// Nobody who signed.
    Anonymous,
    /// The holder of an access key, its signature checked.
    User(Arc<AccessKey>),
}

impl Caller {
    /// The caller of a request that passed access control. A request without one counts as anonymous.
    pub fn of(extensions: &Extensions) -> &Caller {
        extensions.get::<Caller>().unwrap_or(&Caller::Anonymous)
    }

    /// The user's name, or `None` for anonymous callers.
    pub fn user_name(&self) -> Option<&str> {
        match self {
            Self::Anonymous => None,
            Self::User(key) => Some(&key.user.name),
        }
    }

    /// The access key's public half, or `None` for anonymous callers.
    pub fn access_key(&self) -> Option<&str> {
        match self {
            Self::Anonymous => None,
            Self::User(key) => Some(&key.access_key),
        }
    }

    /// Whether the caller may use every bucket.
    pub fn is_admin(&self) -> bool {
        matches!(self, Self::User(key) if key.user.admin)
    }

    /// Who owns what the caller writes: the caller, or, for anonymous writes that a policy allows, the bucket's owner.
    pub fn owner_of_writes<'a>(&'a self, bucket_owner: &'a str) -> &'a str {
        self.user_name().unwrap_or(bucket_owner)
    }
}

/// The caller of a form upload, whose signature [`super::post`] has checked already. In the extensions of the PutObject
/// that stands for the form it takes the place of a signature; clients cannot set it.
#[derive(Debug, Clone)]
pub(crate) struct FormCaller {
    pub(crate) caller: Caller,
    /// When the form was signed, as it says, in milliseconds since 1970; `None` for one without a signature.
    pub(crate) signed_ms: Option<u64>,
}

/// An opened secret.
struct CachedKey {
    key: Arc<AccessKey>,
    secret: SecretKey,
    opened_ms: u64,
}

/// Finds access keys and opens their secrets.
pub struct Authenticator {
    metadata: Arc<dyn MetadataStore>,
    opener: Arc<dyn SecretOpener>,
    clock: Arc<dyn Clock>,
    opened: RwLock<HashMap<String, CachedKey>>,
}

impl Authenticator {
    /// An authenticator over the keys of a metadata store.
    pub fn new(metadata: Arc<dyn MetadataStore>, opener: Arc<dyn SecretOpener>, clock: Arc<dyn Clock>) -> Self {
        Self { metadata, opener, clock, opened: RwLock::default() }
    }

    /// The secret to check a signature of `access_key` with.
    ///
    /// # Errors
    /// `InvalidAccessKeyId` for a key that does not exist or is disabled, `AccessDenied` for a disabled user,
    /// `SlowDown` and `ServiceUnavailable` when the metadata store does not answer.
    pub async fn secret_of(&self, access_key: &str) -> S3Result<SecretKey> {
        let key = self.active_key(access_key).await?;
        let now_ms = self.clock.now_ms();
        if let Some(cached) = self.opened.read().get(access_key)
            && cached.key == key
            && now_ms.saturating_sub(cached.opened_ms) < CACHED_KEY_TTL_MS
        {
            return Ok(cached.secret.clone());
        }
        let opened = self.opener.open_secret(&key.sealed_secret, &key.access_key).map_err(|error| {
            tracing::error!(access_key, %error, "cannot open a stored secret");
            s3_error!(InternalError, "the secret of this access key cannot be opened")
        })?;
        let secret = SecretKey::from(opened.as_str());
        let mut cache = self.opened.write();
        cache.retain(|_, cached| now_ms.saturating_sub(cached.opened_ms) < CACHED_KEY_TTL_MS);
        if cache.len() >= CACHED_KEYS_MAX && !cache.contains_key(access_key) {
            cache.clear();
        }
        cache.insert(access_key.to_owned(), CachedKey { key, secret: secret.clone(), opened_ms: now_ms });
        Ok(secret)
    }

    /// The caller behind an access key whose signature was just checked. Answers from what [`Self::secret_of`] read for
    /// the same request, or reads again.
    ///
    /// # Errors
    /// As [`Self::secret_of`].
    pub async fn caller(&self, access_key: &str) -> S3Result<Caller> {
        if let Some(cached) = self.opened.read().get(access_key) {
            return Ok(Caller::User(Arc::clone(&cached.key)));
        }
        Ok(Caller::User(self.active_key(access_key).await?))
    }

    async fn active_key(&self, access_key: &str) -> S3Result<Arc<AccessKey>> {
        // Nothing is proven yet: what no key can be called is not asked for, nor remembered by caches.
        if access_key.len() > ACCESS_KEY_BYTES_MAX {
            return Err(unknown_access_key());
        }
        let key = match self.metadata.key(access_key).await {
            Ok(key) => key,
            Err(MetadataError::NotFound(_)) => return Err(unknown_access_key()),
            Err(error) => return Err(error.to_s3()),
        };
        if !key.enabled {
            return Err(unknown_access_key());
        }
        if !key.user.enabled {
            return Err(s3_error!(AccessDenied, "the user of this access key is disabled"));
        }
        Ok(key)
    }
}

/// Of a key, or its user, that is not there.
pub(super) fn unknown_access_key() -> S3Error {
    s3_error!(InvalidAccessKeyId, "The AWS Access Key Id you provided does not exist in our records.")
}

/// What s3s holds: a share of the authenticator.
#[derive(Clone)]
pub struct SharedAuthenticator(pub Arc<Authenticator>);

#[async_trait]
impl S3Auth for SharedAuthenticator {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        self.0.secret_of(access_key).await
    }
}
