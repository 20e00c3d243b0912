//! Where the cache's server is, and the bounds of what is kept there.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// A server's port when the address names none.
const PORT: u16 = 6379;
/// A Sentinel's port when the address names none.
const SENTINEL_PORT: u16 = 26379;

/// The way to the server that holds the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisAddress {
    /// Whether the connection is encrypted and the server's certificate checked.
    pub tls: bool,
    /// ACL user; the server's default user without one.
    pub user: Option<String>,
    /// Whom to ask.
    pub place: RedisPlace,
}

/// Whom to ask for the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedisPlace {
    /// The server itself.
    Server(HostPort),
    /// Sentinels, which know which server is the primary of this name.
    Sentinels(Vec<HostPort>, String),
}

/// A host and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    /// Name or address.
    pub host: String,
    /// Port.
    pub port: u16,
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (open, close) = if self.host.contains(':') { ("[", "]") } else { ("", "") };
        write!(f, "{open}{}{close}:{}", self.host, self.port)
    }
}

impl RedisAddress {
    /// Reads `redis://[user@]host[:port]` or `redis+sentinel://[user@]host[:port],…/name`; `rediss` in place of `redis`
    /// for TLS.
    ///
    /// # Errors
    /// What is wrong, for the operator.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (scheme, rest) = text.split_once("://").ok_or("no address: write redis://host:6379")?;
        let (tls, sentinel) = match scheme {
            "redis" => (false, false),
            "rediss" => (true, false),
            "redis+sentinel" => (false, true),
            "rediss+sentinel" => (true, true),
            "redis+cluster" | "rediss+cluster" => {
                return Err(
                    "Redis Cluster cannot be used, since no connection could be held to one process: name one primary \
                            by redis://, or Sentinels by redis+sentinel://"
                        .into(),
                );
            }
            other => return Err(format!("{other}: write redis, rediss, redis+sentinel or rediss+sentinel")),
        };
        let (user, rest) = match rest.rsplit_once('@') {
            Some((user, _)) if user.contains(':') => {
                return Err(
                    "a password does not belong there: put it into a file and name that in cache.password_file".into(),
                );
            }
            Some((user, rest)) => (Some(user.to_owned()).filter(|user| !user.is_empty()), rest),
            None => (None, rest),
        };
        let (hosts, name) = rest.split_once('/').unwrap_or((rest, ""));
        let port = if sentinel { SENTINEL_PORT } else { PORT };
        let mut hosts = hosts.split(',').map(|host| host_port(host, port)).collect::<Result<Vec<_>, _>>()?;
        let place = if sentinel {
            if name.is_empty() || name.contains('/') {
                return Err(
                    "the name of the primary is missing: write redis+sentinel://host:26379,host:26379/name".into()
                );
            }
            RedisPlace::Sentinels(hosts, name.to_owned())
        } else {
            if !name.is_empty() {
                return Err(format!("/{name}: the cache has keys of its own and needs no database number"));
            }
            match (hosts.pop(), hosts.is_empty()) {
                (Some(host), true) => RedisPlace::Server(host),
                _ => return Err("several servers: name one primary, or Sentinels by redis+sentinel://".into()),
            }
        };
        Ok(Self { tls, user, place })
    }
}

fn host_port(text: &str, default: u16) -> Result<HostPort, String> {
    let wrong = || format!("{text:?} is no host:port");
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']').ok_or_else(wrong)?;
            (host, rest.strip_prefix(':').or(rest.is_empty().then_some("")).ok_or_else(wrong)?)
        }
        None => text.split_once(':').unwrap_or((text, "")),
    };
    let plausible = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b'_');
    if host.is_empty() || !host.bytes().all(plausible) {
        return Err(wrong());
    }
    let port = if port.is_empty() { default } else { port.parse().map_err(|_| wrong())? };
    Ok(HostPort { host: host.to_owned(), port })
}

/// Settings of a [`RedisCachedStore`](super::RedisCachedStore).
#[derive(Clone)]
pub struct RedisCacheOptions {
    /// Where the server is.
    pub address: RedisAddress,
    /// The user's password.
    pub password: Option<String>,
    /// The password that Sentinels ask for.
    pub sentinel_password: Option<String>,
    /// PEM file with the certificates of the authorities to trust; the system's without one.
    pub tls_ca: Option<PathBuf>,
    /// How long a reader waits for the cache before it asks the database.
    pub read_timeout: Duration,
    /// How long a writer waits for the cache before it has it switched off.
    pub write_timeout: Duration,
    /// How long connecting may take.
    pub connect_timeout: Duration,
    /// How long a value is kept at most. What makes values right is the protocol, not this.
    pub value_ttl: Duration,
    /// How long it is remembered that something does not exist.
    pub absent_ttl: Duration,
    /// Largest value that is kept, in bytes.
    pub value_bytes_max: usize,
    /// How long the cache stays off before it is tried again; longer when it fails again and again.
    pub retry: Duration,
    /// How long a writer waits until every node has seen that the cache is off.
    pub off_patience: Duration,
}

impl RedisCacheOptions {
    /// The defaults, for a server.
    pub fn new(address: RedisAddress) -> Self {
        Self {
            address,
            password: None,
            sentinel_password: None,
            tls_ca: None,
            read_timeout: Duration::from_millis(50),
            write_timeout: Duration::from_millis(500),
            connect_timeout: Duration::from_secs(2),
            value_ttl: Duration::from_secs(3600),
            absent_ttl: Duration::from_secs(10),
            value_bytes_max: 32 << 10,
            retry: Duration::from_secs(1),
            off_patience: Duration::from_secs(15),
        }
    }
}

impl fmt::Debug for RedisCacheOptions {
    /// Without the passwords.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisCacheOptions").field("address", &self.address).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(host: &str, port: u16) -> HostPort {
        HostPort { host: host.into(), port }
    }

    #[test]
    fn addresses_are_understood() {
        let parsed = RedisAddress::parse("redis://cache.example.com").unwrap();
        assert_eq!(parsed.place, RedisPlace::Server(host("cache.example.com", 6379)));
        let parsed = RedisAddress::parse("rediss://holdfast@[::1]:7000").unwrap();
        assert_eq!((parsed.tls, parsed.user.as_deref()), (true, Some("holdfast")));
        assert_eq!(parsed.place, RedisPlace::Server(host("::1", 7000)));
        let parsed = RedisAddress::parse("redis+sentinel://a,b:1/main").unwrap();
        let sentinels = vec![host("a", 26379), host("b", 1)];
        assert_eq!(parsed.place, RedisPlace::Sentinels(sentinels, "main".into()));
        assert_eq!(host("::1", 7).to_string(), "[::1]:7");
    }

    #[test]
    fn what_cannot_work_is_refused_with_the_remedy() {
        for (text, remedy) in [
            ("cache:6379", "redis://host:6379"),
            ("http://cache", "write redis"),
            ("redis://u:secret@cache", "cache.password_file"),
            ("redis://cache/3", "needs no database number"),
            ("redis://a,b", "redis+sentinel://"),
            ("redis+cluster://a,b", "one primary"),
            ("redis+sentinel://a,b", "name of the primary"),
            ("redis://", "host:port"),
            ("redis://a:b", "host:port"),
            ("redis://[::1", "host:port"),
        ] {
            let error = RedisAddress::parse(text).unwrap_err();
            assert!(error.contains(remedy), "{text}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
