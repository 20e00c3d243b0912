//! The admin front end: JSON API, health, metrics.
//!
//! It listens apart from S3, on loopback by default, and speaks plain HTTP. `/v1/…` needs the bearer token of the
//! node's token file; `/health/…` and `/metrics` need none. It runs on the control runtime, so a busy data plane does
//! not make health checks fail, and answers from state in memory wherever it can.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use axum::Router;
use axum::routing::{delete, get, patch, post, put};
use holdfast_actors::flow::report::Reporter;
use holdfast_actors::ports::chunks::ReplicaStore;
use holdfast_actors::ports::{Clock, Disk, Journal, MetadataStore};
use holdfast_actors::service::NodeHandle;
use metrics_exporter_prometheus::PrometheusHandle;

use crate::secrets::SecretSealer;
use crate::tiers::TierRegistry;

mod audit;
mod buckets;
mod chunks;
mod cluster;
mod credentials;
mod error;
mod events;
mod health;
mod journal;
mod keys;
mod layout;
mod nodes;
mod objects;
pub mod openapi;
mod page;
mod repair;
mod replicas;
mod server;
mod shards;
mod status;
mod tiers;
mod token;
mod users;

pub use cluster::{ClusterAdmin, Enrolment};
pub use credentials::{Pair, add_key, new_pair};
pub use error::ApiError;
pub use events::EventsAdmin;
pub use server::serve;
pub use token::{Token, TokenError};
pub(crate) use users::{USER_NAME, is_user_name};

/// What the admin API works on, as soon as it is there. Cheap to clone.
///
/// The server listens before disks are recovered, so that the process is seen to live; until [`AdminState::ready`] only
/// health answers, and says that the node is starting.
#[derive(Clone, Default)]
pub struct AdminState {
    inner: Arc<OnceLock<AdminParts>>,
}

/// What an [`AdminState`] is made of.
pub struct AdminParts {
    /// Metadata.
    pub metadata: Arc<dyn MetadataStore>,
    /// The error log, the audit log and dead letters.
    pub journal: Arc<dyn Journal>,
    /// Disks, for their status.
    pub disks: Vec<Arc<dyn Disk>>,
    /// This node's own chunks.
    pub local: Arc<dyn ReplicaStore>,
    /// The actors.
    pub node: NodeHandle,
    /// The cluster that the node is one of.
    pub cluster: Option<ClusterAdmin>,
    /// Events.
    pub events: EventsAdmin,
    /// Cold tiers.
    pub tiers: TierRegistry,
    /// Where damage is reported.
    pub reporter: Reporter,
    /// Time of day.
    pub clock: Arc<dyn Clock>,
    /// Seals the secrets of new keys.
    pub sealer: Arc<dyn SecretSealer>,
    /// The bearer token.
    pub token: Token,
    /// Renders metrics.
    pub metrics: PrometheusHandle,
    /// The node's identity.
    pub node_id: String,
    /// Where S3 is served.
    pub s3_addr: SocketAddr,
    /// When the node started.
    pub started: Instant,
}

impl AdminState {
    /// Opens the API. Further calls have no effect.
    pub fn ready(&self, parts: AdminParts) {
        drop(self.inner.set(parts));
    }

    /// Whether the parts are there.
    fn is_ready(&self) -> bool {
        self.inner.get().is_some()
    }
}

impl std::ops::Deref for AdminState {
    type Target = AdminParts;

    fn deref(&self) -> &AdminParts {
        self.inner.get().expect("the outermost layer lets nothing pass before the parts are there")
    }
}

/// All routes.
pub fn router(state: AdminState) -> Router {
    let api = Router::new()
        .route("/users", get(users::list).post(users::create))
        .route("/users/{name}", get(users::show).patch(users::set_enabled).delete(users::delete))
        .route("/keys", get(keys::list).post(keys::create))
        .route("/keys/{key}", get(keys::show).delete(keys::delete))
        .route("/keys/{key}", patch(keys::set_enabled))
        .route("/keys/{key}/rotate", post(keys::rotate))
        .route("/buckets", get(buckets::list).post(buckets::create))
        .route("/buckets/{name}", get(buckets::show).delete(buckets::delete))
        .route("/buckets/{name}/storage-class", put(buckets::set_storage_class))
        .route("/buckets/{name}/moves", post(tiers::moves::request))
        .route("/objects/{bucket}/{key}", get(objects::stat))
        .route("/chunks/{chunk}", get(chunks::owner))
        .route("/chunks/{chunk}/references", get(chunks::references))
        .route("/tiers", get(tiers::list).post(tiers::add))
        .route("/tiers/{tier}", get(tiers::show).put(tiers::change).delete(tiers::removal::remove))
        .route("/tiers/{tier}/check", post(tiers::check))
        .route("/tiers/{tier}/status", get(tiers::status))
        .route("/tiers/{tier}/retry", post(tiers::retry))
        .route("/tiers/{tier}/verify", post(tiers::verify::verify))
        .route("/moves", get(tiers::moves::list))
        .route("/cluster", get(cluster::status::status))
        .route("/cluster/join-tokens", post(cluster::join::join_token))
        .route("/nodes", get(nodes::list))
        .route("/nodes/{node}", delete(nodes::remove))
        .route("/nodes/{node}/drain", get(nodes::drain_status).post(nodes::drain))
        .route("/nodes/{node}/undrain", post(nodes::undrain))
        .route("/layout", get(layout::show))
        .route("/layout/changes", post(layout::stage))
        .route("/layout/diff", get(layout::diff))
        .route("/layout/apply", post(layout::apply))
        .route("/layout/revert", post(layout::revert))
        .route("/shards", get(shards::list))
        .route("/shards/{shard}", get(shards::show))
        .route("/repair", get(repair::status))
        .route("/repair/start", post(repair::start))
        .route("/repair/pause", post(repair::pause))
        .route("/repair/resume", post(repair::resume))
        .route("/events/lag", get(events::lag))
        .route("/events/tail", get(events::tail))
        .route("/events/replay", post(events::replay))
        .route("/errors", get(journal::errors))
        .route("/audit", get(journal::audit))
        .route("/events/dead", get(journal::dead_list))
        .route("/events/dead/{number}", get(journal::dead_show).delete(journal::dead_discard))
        .route("/events/dead/{number}/requeue", post(journal::dead_requeue))
        .route("/openapi.json", get(openapi::openapi))
        .route("/status", get(status::status))
        .route("/cleanup", post(status::run_cleanup))
        .route("/scrub", post(status::start_scrub))
        .fallback(error::no_such_route)
        .method_not_allowed_fallback(error::no_such_method)
        .layer(axum::middleware::from_fn_with_state(state.clone(), audit::record))
        .layer(axum::middleware::from_fn_with_state(state.clone(), token::require));
    Router::new()
        .nest("/v1", api)
        .route("/health/live", get(health::live))
        .route("/health/ready", get(health::ready))
        .route("/health/maintenance", get(health::maintenance))
        .route("/metrics", get(health::metrics))
        .fallback(error::no_such_route)
        .layer(axum::extract::DefaultBodyLimit::max(64 << 10))
        .layer(axum::middleware::from_fn_with_state(state.clone(), health::until_ready))
        .layer(axum::middleware::from_fn(server::request_id))
        .with_state(state)
}
