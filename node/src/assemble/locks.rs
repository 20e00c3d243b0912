//! Which locks a node uses.

use std::sync::Arc;

use anyhow::Context as _;
use holdfast_actors::ports::locks::Locks;

use crate::config::{Config, LocksBackend, RedisConfig};
use crate::locks::{InProcessLocks, MeteredLocks, RedisLocks};
use crate::redis::{Redis, RedisOptions, exposure};
use crate::secret_file;

/// Makes ready to connect to the Redis server of the configuration.
///
/// # Errors
/// When a file that it names cannot be read, or the URL not be understood.
pub(super) fn redis(config: &RedisConfig) -> anyhow::Result<Redis> {
    let password = config.password_file.as_deref().map(secret_file::read).transpose()?;
    let url = url::Url::parse(&config.url).ok();
    let way = url.as_ref().and_then(|url| Some((url.host_str()?, url.scheme() == "rediss")));
    if let Some(exposure) = way.and_then(|(host, tls)| exposure([host], tls)) {
        tracing::warn!("{exposure}; write rediss:// in redis.url");
    }
    let options = RedisOptions {
        url: config.url.clone(),
        user: config.user.clone(),
        password: password.map(|password| password.to_string()),
        tls_ca: config.tls_ca.clone(),
        timeout: config.timeout.duration(),
    };
    Redis::open(&options).with_context(|| format!("redis.url {}", config.url))
}

/// The locks that the configuration chooses; `auto` are those that `automatic` makes. `cluster` keeps clusters that
/// share a server apart.
///
/// # Errors
/// Those of [`redis()`].
pub(super) fn choose(
    config: &Config,
    cluster: &str,
    automatic: (Arc<dyn Locks>, &'static str),
) -> anyhow::Result<Arc<dyn Locks>> {
    let (locks, backend): (Arc<dyn Locks>, _) = match config.locks.backend {
        LocksBackend::Auto | LocksBackend::Zookeeper | LocksBackend::InProcess => automatic,
        LocksBackend::Redis => {
            let prefix = format!("holdfast:{cluster}:");
            let time_limit = config.locks.time_limit.duration();
            (Arc::new(RedisLocks::new(redis(&config.redis)?, &prefix, time_limit)), "redis")
        }
    };
    Ok(Arc::new(MeteredLocks::new(locks, backend)))
}

/// Locks within this process.
pub(super) fn in_process(locks: InProcessLocks) -> (Arc<dyn Locks>, &'static str) {
    (Arc::new(locks), "in-process")
}
