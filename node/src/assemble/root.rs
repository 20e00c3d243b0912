//! The root credential: a node without one could be used by nobody.

use anyhow::{Context, anyhow, bail};
use holdfast_actors::ports::metadata::{AccessKey, User};
use holdfast_actors::ports::{MetadataError, MetadataStore};
use holdfast_protocol::admin::ErrorCode;
use zeroize::Zeroizing;

use super::vault::NodeVault;
use crate::admin::{Pair, add_key, new_pair};
use crate::secrets::SecretOpener as _;

/// Name of the user that the first credential belongs to.
pub const ROOT_USER: &str = "root";

/// What the key of [`Root::Generate`] and [`Root::Given`] is described as, to find it again.
const ROOT_KEY_DESCRIPTION: &str = "root credential";

/// Where the root credential comes from.
pub enum Root {
    /// There must be one already.
    Require,
    /// The stored one, or a new one at the first start; its secret is told.
    Generate,
    /// This one; it replaces a stored secret of the same access key.
    Given(Pair),
}

/// Refuses a start that could not end with a root credential. Changes nothing, so that it can be asked before others
/// are told of the node.
///
/// # Errors
/// As [`ensure`].
pub(super) async fn check(metadata: &dyn MetadataStore, vault: &NodeVault, root: &Root) -> anyhow::Result<()> {
    match root {
        Root::Require => require(metadata).await,
        Root::Generate => match stored_root_key(metadata).await? {
            Some(key) => open(vault, &key).map(drop),
            None => Ok(()),
        },
        Root::Given(pair) => match metadata.key(&pair.access_key).await {
            Ok(key) => require_root(&key),
            Err(MetadataError::NotFound(_)) => Ok(()),
            Err(error) => Err(error).context("look up the root credential"),
        },
    }
}

async fn require(metadata: &dyn MetadataStore) -> anyhow::Result<()> {
    if !has_admin_key(metadata).await? {
        bail!(
            "this node has no credentials yet: set HOLDFAST_ROOT_ACCESS_KEY and HOLDFAST_ROOT_SECRET_KEY, or run \
             `holdfast root create` with the same configuration"
        );
    }
    Ok(())
}

fn require_root(key: &AccessKey) -> anyhow::Result<()> {
    if key.user.name != ROOT_USER {
        bail!("access key {} belongs to user {}, not to root", key.access_key, key.user.name);
    }
    Ok(())
}

fn open(vault: &NodeVault, key: &AccessKey) -> anyhow::Result<Zeroizing<String>> {
    let opened = vault.open_secret(&key.sealed_secret, &key.access_key);
    opened.context(
        "is node.secret the one that this data directory was made with? If that is lost, give a pair of your own: `holdfast root create \
         --access-key KEY --secret-key-file FILE`",
    )
}

/// Makes sure that there is a root credential. Returns it where the caller may know it.
///
/// # Errors
/// When there is none and none may be made; those of the metadata store.
pub(super) async fn ensure(
    metadata: &dyn MetadataStore,
    vault: &NodeVault,
    root: Root,
    now_ms: u64,
) -> anyhow::Result<Option<Pair>> {
    match root {
        Root::Require => require(metadata).await.map(|()| None),
        Root::Generate => match stored_root_key(metadata).await? {
            Some(key) => {
                let secret_key = open(vault, &key)?;
                Ok(Some(Pair { access_key: key.access_key.clone(), secret_key }))
            }
            None => {
                let pair = new_pair();
                store(metadata, vault, &pair, now_ms).await?;
                Ok(Some(pair))
            }
        },
        Root::Given(pair) => {
            match metadata.key(&pair.access_key).await {
                Ok(key) => {
                    let same = vault
                        .open_secret(&key.sealed_secret, &key.access_key)
                        .is_ok_and(|secret| *secret == *pair.secret_key);
                    let good = same && key.enabled && key.user.name == ROOT_USER && key.user.enabled;
                    if !good {
                        require_root(&key)?;
                        match metadata.delete_key(&pair.access_key).await {
                            // Another node was faster.
                            Ok(()) | Err(MetadataError::NotFound(_)) => {}
                            Err(error) => return Err(error).context("replace the root credential"),
                        }
                        store(metadata, vault, &pair, now_ms).await?;
                    }
                }
                Err(MetadataError::NotFound(_)) => store(metadata, vault, &pair, now_ms).await?,
                Err(error) => return Err(error).context("look up the root credential"),
            }
            Ok(Some(pair))
        }
    }
}

/// Two nodes may do this at the same time: who comes second finds the user, and for a given pair the key, and is
/// content.
async fn store(metadata: &dyn MetadataStore, vault: &NodeVault, pair: &Pair, now_ms: u64) -> anyhow::Result<()> {
    let user = User { name: ROOT_USER.into(), admin: true, enabled: true, created_ms: now_ms };
    match metadata.create_user(user.clone()).await {
        Ok(()) => {}
        Err(MetadataError::Exists(_)) => {
            metadata.set_user_enabled(ROOT_USER, true).await.context("enable the root user")?;
        }
        Err(error) => return Err(error).context("create the root user"),
    }
    match add_key(metadata, vault, user, pair, ROOT_KEY_DESCRIPTION, now_ms).await {
        Ok(_) => Ok(()),
        Err(error) if error.code() == ErrorCode::Exists => {
            let stored = metadata.key(&pair.access_key).await.context("read the root credential")?;
            let secret =
                vault.open_secret(&stored.sealed_secret, &stored.access_key).map_err(|e| anyhow!("{}", e.0))?;
            anyhow::ensure!(*secret == *pair.secret_key, "another node stored another secret for {}", pair.access_key);
            Ok(())
        }
        Err(error) => Err(anyhow!("store the root credential: {}", error.message())),
    }
}

async fn stored_root_key(metadata: &dyn MetadataStore) -> anyhow::Result<Option<std::sync::Arc<AccessKey>>> {
    let keys = match metadata.list_keys(Some(ROOT_USER), None, 1_000).await {
        Ok(keys) => keys,
        Err(MetadataError::NotFound(_)) => vec![],
        Err(error) => return Err(error).context("look up the root credential"),
    };
    Ok(keys.into_iter().find(|key| key.enabled && key.user.enabled && key.description == ROOT_KEY_DESCRIPTION))
}

async fn has_admin_key(metadata: &dyn MetadataStore) -> anyhow::Result<bool> {
    let mut after: Option<String> = None;
    loop {
        let keys = metadata.list_keys(None, after.as_deref(), 1_000).await.context("look up credentials")?;
        if keys.iter().any(|key| key.enabled && key.user.enabled && key.user.admin) {
            return Ok(true);
        }
        match keys.last() {
            Some(key) => after = Some(key.access_key.clone()),
            None => return Ok(false),
        }
    }
}
