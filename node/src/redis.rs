//! The way to a Redis server, shared by everything that uses one.
//!
//! A connection that breaks is made again by itself; a server that is gone costs a caller at most the time limit, and
//! what it asked for may have happened. Nothing is connected before the first command, so a node starts without its
//! Redis.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::io::tcp::TcpSettings;
use redis::{
    Client, ErrorKind, FromRedisValue, IntoConnectionInfo as _, RedisError, RedisResult, ScriptInvocation,
    TlsCertificates,
};

use crate::addresses::is_this_machine;

/// How to reach a server.
#[derive(Clone, Default)]
pub struct RedisOptions {
    /// `redis://host:port/database`, or `rediss://…` for TLS.
    pub url: String,
    /// The ACL user; the server's default user otherwise.
    pub user: Option<String>,
    /// The password of that user.
    pub password: Option<String>,
    /// PEM file with the CA that signed the server's certificate, instead of the system's CAs.
    pub tls_ca: Option<PathBuf>,
    /// How long a command may take, and a connection to be made.
    pub timeout: Duration,
}

impl std::fmt::Debug for RedisOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RedisOptions({}, user {:?}, …)", self.url, self.user)
    }
}

/// A server. Cheap to clone.
#[derive(Clone)]
pub struct Redis {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client,
    connection: ArcSwap<ConnectionManager>,
    timeout: Duration,
}

impl Redis {
    /// Makes ready to connect. Must be called on a runtime of tokio.
    ///
    /// # Errors
    /// When the options cannot work: a URL or a CA that cannot be read.
    pub fn open(options: &RedisOptions) -> RedisResult<Self> {
        let info = options.url.as_str().into_connection_info()?;
        let mut settings = info.redis_settings().clone();
        if let Some(user) = &options.user {
            settings = settings.set_username(user);
        }
        if let Some(password) = &options.password {
            settings = settings.set_password(password);
        }
        // A command is small and waited for: it must not wait for the acknowledgement of the one before.
        let info = info.set_redis_settings(settings).set_tcp_settings(TcpSettings::default().set_nodelay(true));
        let client = match &options.tls_ca {
            None => Client::open(info)?,
            Some(file) => {
                let root_cert = std::fs::read(file).map_err(|error| {
                    let detail = format!("{}: {error}", file.display());
                    RedisError::from((ErrorKind::InvalidClientConfig, "the CA cannot be read", detail))
                })?;
                Client::build_with_tls(info, TlsCertificates { client_tls: None, root_cert: Some(root_cert) })?
            }
        };
        let connection = ArcSwap::from_pointee(connection(client.clone(), options.timeout)?);
        Ok(Self { inner: Arc::new(Inner { client, connection, timeout: options.timeout }) })
    }

    /// How long a command may take.
    pub fn timeout(&self) -> Duration {
        self.inner.timeout
    }

    /// Runs a script; it is sent whole only to a server that does not have it.
    ///
    /// # Errors
    /// Those of the server, of the connection, and a timeout. It may have run all the same.
    pub async fn invoke<T: FromRedisValue>(&self, script: &ScriptInvocation<'_>) -> RedisResult<T> {
        let mut connection = ConnectionManager::clone(&self.inner.connection.load());
        // The connection has limits of its own; this one covers both and the script's second sending.
        let result = match tokio::time::timeout(self.inner.timeout * 2, script.invoke_async(&mut connection)).await {
            Ok(result) => result,
            Err(_) => Err(late()),
        };
        match result {
            // A server closes the connection of a stranger who says too much, without telling him why.
            Err(error) if error.is_connection_dropped() => match self.ping().await {
                Err(reason) if is_denied(&reason) => Err(reason),
                _ => Err(error),
            },
            Err(error) if is_denied(&error) => {
                self.forget_connection();
                Err(error)
            }
            result => result,
        }
    }

    /// Whether the server answers this user.
    ///
    /// # Errors
    /// Those of the server, of the connection, and a timeout.
    pub async fn ping(&self) -> RedisResult<()> {
        let mut connection = ConnectionManager::clone(&self.inner.connection.load());
        let pong = async { redis::cmd("PING").query_async::<String>(&mut connection).await.map(drop) };
        let result = tokio::time::timeout(self.inner.timeout * 2, pong).await.unwrap_or_else(|_| Err(late()));
        if result.as_ref().is_err_and(is_denied) {
            self.forget_connection();
        }
        result
    }

    /// A connection that was refused is kept as refused; the next command is to ask anew, the operator may have put it
    /// right.
    fn forget_connection(&self) {
        if let Ok(connection) = connection(self.inner.client.clone(), self.inner.timeout) {
            self.inner.connection.store(Arc::new(connection));
        }
    }
}

fn connection(client: Client, timeout: Duration) -> RedisResult<ConnectionManager> {
    // Whoever calls decides about trying again: a command on a server that is gone fails at once, or at the limit.
    let config = ConnectionManagerConfig::new()
        .set_number_of_retries(0)
        .set_connection_timeout(Some(timeout))
        .set_response_timeout(Some(timeout));
    ConnectionManager::new_lazy_with_config(client, config)
}

fn late() -> RedisError {
    RedisError::from((ErrorKind::Io, "no answer in time"))
}

/// What somebody between this node and a server at one of these hosts could do, if there is somewhere to stand; for the
/// log.
pub(crate) fn exposure<'a>(hosts: impl IntoIterator<Item = &'a str>, tls: bool) -> Option<&'static str> {
    (!tls && !hosts.into_iter().all(is_this_machine)).then_some(
        "connections to Redis are not encrypted: whoever is on the way reads its password, and can change what is answered",
    )
}

/// Whether the server refuses the user, rather than the command.
pub fn is_denied(error: &RedisError) -> bool {
    error.kind() == ErrorKind::AuthenticationFailed || matches!(error.code(), Some("NOAUTH" | "WRONGPASS" | "NOPERM"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_ways_to_other_machines_are_warned_of() {
        for local in ["localhost", "127.0.0.1", "::1", "[::1]"] {
            assert_eq!(exposure([local], false), None, "{local}");
        }
        assert_eq!(exposure(["cache.example.com"], true), None);
        assert!(exposure(["cache.example.com"], false).is_some());
        assert!(exposure(["localhost", "10.0.0.7"], false).is_some(), "one of several");
    }
}
