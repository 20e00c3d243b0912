//! The S3 front end, served.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use holdfast_actors::flow::accesses::ReadRecorder;
use holdfast_actors::flow::cold::read::ColdReads;
use holdfast_actors::ports::coordination::Ownership;
use holdfast_actors::ports::tiers::Tiers;
use holdfast_actors::ports::{ChunkStore, Clock, Locks, MetadataStore};
use holdfast_actors::service::NodeHandle;
use holdfast_storage::buf::BufferPool;

use crate::addresses::AddressBlock;
use crate::admission_layer::Admitted;
use crate::config::{Config, RuntimeKind};
use crate::http::pace::Pace;
use crate::http::server::{self, ConnInfo, DataPlane, HttpServer, ServerConfig};
use crate::http::tls::{Tls, TlsFiles};
use crate::s3::facts::ClientConnection;
use crate::s3::host::HostNames;
use crate::s3::http_service::{S3HttpOptions, S3HttpService};
use crate::s3::{LifecycleView, S3Front};
use crate::secrets::SecretOpener;

/// What S3 is served from.
pub(super) struct FrontParts {
    pub(super) metadata: Arc<dyn MetadataStore>,
    pub(super) chunks: Arc<dyn ChunkStore>,
    pub(super) cold: Arc<ColdReads>,
    pub(super) tiers: Arc<dyn Tiers>,
    pub(super) reads: Arc<ReadRecorder>,
    pub(super) locks: Arc<dyn Locks>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) opener: Arc<dyn SecretOpener>,
    pub(super) actors: NodeHandle,
    pub(super) rings: Option<Arc<BufferPool>>,
    /// What answers tell of which node gave them.
    pub(super) node_name: String,
    /// In a cluster: up to when this node may answer that something was changed.
    pub(super) ownership: Option<Ownership>,
}

/// What the configuration says of the front end, looked at before anybody is told of the node.
pub(super) struct Prepared {
    hosts: HostNames,
    tls: Option<Tls>,
    exempt_addresses: Vec<AddressBlock>,
}

/// Reads what can refuse a start: host names, certificates, addresses.
///
/// # Errors
/// When they cannot be used.
pub(super) fn prepare(config: &Config) -> anyhow::Result<Prepared> {
    let hosts = HostNames::new(config.s3.domains.iter().map(String::as_str)).context("s3.domains")?;
    let tls = match (&config.s3.tls_cert, &config.s3.tls_key) {
        (Some(certificate), Some(key)) => {
            Some(Tls::load(TlsFiles { certificate: certificate.clone(), key: key.clone() }).context("s3.tls_cert")?)
        }
        _ => None,
    };
    let exempt_addresses = config.limits.connections_exempt.iter().map(|block| block.parse::<AddressBlock>());
    let exempt_addresses = exempt_addresses.collect::<Result<Vec<_>, _>>().map_err(anyhow::Error::msg);
    Ok(Prepared { hosts, tls, exempt_addresses: exempt_addresses.context("limits.connections_exempt")? })
}

/// Starts to listen and to serve.
pub(super) fn serve_s3(config: &Config, prepared: Prepared, parts: FrontParts) -> anyhow::Result<HttpServer> {
    let Prepared { hosts, tls, exempt_addresses } = prepared;
    let FrontParts { metadata, chunks, cold, tiers, reads, locks, clock, opener, actors, rings, node_name, ownership } =
        parts;
    let front = S3Front {
        metadata: metadata.clone(),
        chunks,
        cold,
        locks,
        clock: clock.clone(),
        region: config.s3.region.as_str().into(),
        tiers,
        events_from: config.events.is_on().then(|| node_name.as_str().into()),
        lifecycle: Arc::new(LifecycleView::new(super::lifecycle::day(config), Some(reads))),
    };
    let options = S3HttpOptions { hosts, node_name, region: config.s3.region.clone() };
    let service = S3HttpService::new(front, metadata, opener, clock, options);
    let admitted =
        Admitted::new(service, actors.admission().clone(), config.limits.write_window.get()).owned_by(ownership);
    let threads = match config.data_plane.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads as usize,
    };
    let limits = &config.limits;
    let server = ServerConfig {
        addr: config.s3.addr,
        data_plane: match config.data_plane.runtime {
            RuntimeKind::PerCore => DataPlane::PerCore { threads, rings },
            RuntimeKind::MultiThread => DataPlane::MultiThread,
        },
        limits: server::Limits {
            connections_max: limits.connections as usize,
            connections_per_address: limits.connections_of_address() as usize,
            exempt_addresses,
            head_timeout: limits.header_timeout.duration(),
            pace: Pace { window: limits.idle_timeout.duration(), ..Pace::default() },
            ..server::Limits::default()
        },
        tls,
    };
    HttpServer::start(server, move |connection: ConnInfo| {
        admitted.on(ClientConnection { address: connection.peer.ip(), tls: connection.tls })
    })
    .with_context(|| format!("listen on s3.addr {}", config.s3.addr))
}

/// An address that can be listened on now, with a free port in place of 0. Another process could take it before it is.
///
/// # Errors
/// When somebody else has it, or it is none of this machine.
pub(super) fn free_addr(addr: SocketAddr) -> anyhow::Result<SocketAddr> {
    let probe = std::net::TcpListener::bind(addr).with_context(|| match addr.port() {
        0 => format!("find a free port at {}", addr.ip()),
        _ => format!("listen on s3.addr {addr}"),
    })?;
    Ok(probe.local_addr()?)
}
