//! Connecting to the server that holds the cache: by name or by Sentinel, with TLS or without, and asking who it is.

use std::sync::Arc;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, FromRedisValue as _, RedisConnectionInfo, RedisError};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::link::Identity;
use super::options::{HostPort, RedisCacheOptions, RedisPlace};

/// Scripts with clocks and effects of their own need this.
const VERSION_MIN: u64 = 7;

/// A connection, which is closed when this is dropped. By itself it would stay until everything asked on it is
/// answered, which a server that hangs never does.
pub(super) struct Connected {
    pub(super) connection: MultiplexedConnection,
    driver: JoinHandle<()>,
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// A new connection to the primary, and who that is.
///
/// # Errors
/// For the operator: what kept it.
pub(super) async fn connect(options: &RedisCacheOptions) -> Result<(Connected, Identity), String> {
    let mut info = RedisConnectionInfo::default().set_skip_set_lib_name();
    if let Some(user) = &options.address.user {
        info = info.set_username(user);
    }
    if let Some(password) = &options.password {
        info = info.set_password(password);
    }
    match &options.address.place {
        RedisPlace::Server(at) => open_and_identify(options, at, &info).await,
        RedisPlace::Sentinels(sentinels, name) => {
            let mut problems = Vec::new();
            for sentinel in sentinels {
                match ask(options, sentinel, name).await {
                    Ok(at) => match open_and_identify(options, &at, &info).await {
                        Ok(found) => return Ok(found),
                        Err(problem) => problems.push(problem),
                    },
                    Err(problem) => problems.push(format!("sentinel {sentinel}: {problem}")),
                }
            }
            Err(problems.join("; "))
        }
    }
}

/// Asks a Sentinel where the primary is.
async fn ask(options: &RedisCacheOptions, sentinel: &HostPort, name: &str) -> Result<HostPort, String> {
    let mut info = RedisConnectionInfo::default().set_skip_set_lib_name();
    if let Some(password) = &options.sentinel_password {
        info = info.set_password(password);
    }
    let asked = async {
        let mut connection = open(options, sentinel, &info).await?;
        let mut command = redis::cmd("SENTINEL");
        command.arg("get-master-addr-by-name").arg(name);
        let value = connection.connection.send_packed_command(&command).await.map_err(|error| said(&error))?;
        let found = Option::<(String, u16)>::from_redis_value(value).map_err(|error| error.to_string())?;
        let (host, port) = found.ok_or_else(|| format!("it knows no primary {name:?}"))?;
        Ok(HostPort { host, port })
    };
    timeout(options.connect_timeout, asked).await.unwrap_or_else(|_| Err("no answer".into()))
}

async fn open_and_identify(
    options: &RedisCacheOptions,
    at: &HostPort,
    info: &RedisConnectionInfo,
) -> Result<(Connected, Identity), String> {
    let opened = async {
        let mut connection = open(options, at, info).await?;
        let identity = identify(&mut connection.connection).await?;
        Ok((connection, identity))
    };
    let opened = timeout(options.connect_timeout, opened).await.unwrap_or_else(|_| Err("no answer".into()));
    opened.map_err(|problem: String| format!("{at}: {problem}"))
}

/// A connection to this one server. It does not reconnect.
async fn open(options: &RedisCacheOptions, at: &HostPort, info: &RedisConnectionInfo) -> Result<Connected, String> {
    // Limits of time are the callers', who know what hangs on an answer.
    let config = AsyncConnectionConfig::new().set_response_timeout(None).set_connection_timeout(None);
    let stream = TcpStream::connect((at.host.as_str(), at.port)).await.map_err(|error| error.to_string())?;
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    // What is cut off without a word is noticed by those who wait; this closes what nobody waits for.
    rustix::net::sockopt::set_socket_keepalive(&stream, true).ok();
    if options.address.tls {
        let name = ServerName::try_from(at.host.clone()).map_err(|error| error.to_string())?;
        let stream = tls(options)?.connect(name, stream).await.map_err(|error| error.to_string())?;
        drive(MultiplexedConnection::new_with_config(info, stream, config).await)
    } else {
        drive(MultiplexedConnection::new_with_config(info, stream, config).await)
    }
}

fn drive<D>(opened: Result<(MultiplexedConnection, D), RedisError>) -> Result<Connected, String>
where
    D: Future<Output = ()> + Send + 'static,
{
    let (connection, driver) = opened.map_err(|error| said(&error))?;
    Ok(Connected { connection, driver: tokio::spawn(driver) })
}

fn tls(options: &RedisCacheOptions) -> Result<TlsConnector, String> {
    let mut roots = RootCertStore::empty();
    match &options.tls_ca {
        Some(file) => {
            let certificates = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
            for certificate in certificates.map_err(|error| format!("{}: {error}", file.display()))? {
                roots.add(certificate).map_err(|error| format!("{}: {error}", file.display()))?;
            }
            if roots.is_empty() {
                return Err(format!(
                    "{} has no certificate in it: cache.tls_ca must name the server's CA",
                    file.display()
                ));
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err("this system has no CAs: name the server's in cache.tls_ca".into());
            }
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Who the server at the other end is.
///
/// # Errors
/// For the operator: why it cannot hold the cache.
pub(super) async fn identify(connection: &mut MultiplexedConnection) -> Result<Identity, String> {
    let mut command = redis::cmd("INFO");
    command.arg("server").arg("replication");
    let value = connection.send_packed_command(&command).await.map_err(|error| said(&error))?;
    let text = String::from_redis_value(value).map_err(|error| error.to_string())?;
    judge(&text)
}

fn judge(info: &str) -> Result<Identity, String> {
    let field = |name: &str| {
        let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map(str::trim).ok_or_else(|| format!("its INFO has no {name}"))
    };
    if field("redis_mode")? == "cluster" {
        return Err("it is one of a Redis Cluster, which cannot hold the cache: name one primary, or Sentinels".into());
    }
    let version = field("redis_version")?;
    let major = version.split('.').next().and_then(|major| major.parse::<u64>().ok());
    if major.is_none_or(|major| major < VERSION_MIN) {
        return Err(format!("its version is {version}: {VERSION_MIN}.0 or newer is needed"));
    }
    if field("role")? != "master" {
        return Err("it is a replica: name the primary, or Sentinels".into());
    }
    Ok(format!("{}-{}", field("run_id")?, field("master_replid")?))
}

/// An error of the server in its own words.
fn said(error: &RedisError) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests;
