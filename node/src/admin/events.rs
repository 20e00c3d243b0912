//! `/v1/events`

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use holdfast_actors::domain::events::event_key;
use holdfast_actors::flow::relay::{RelayOwner, RelayStatus};
use holdfast_actors::ports::events::{EventError, Position, Topic};
use holdfast_actors::ports::outbox::ReplayFilter;
use holdfast_actors::ports::{EventBus, Outbox};
use holdfast_protocol::admin::{
    ErrorBody, ErrorCode, EventInfo, EventsLag, EventsPage, PartitionLag, ReplayEvents, ReplayedEvents,
};
use holdfast_protocol::events::PARTITIONS;
use serde::Deserialize;

use super::error::Body;
use super::page::{self, Params};
use super::{AdminState, ApiError};

/// Rows that one transaction of a replay moves.
const REPLAY_BATCH: u32 = 500;
/// Events on a page.
const LIMIT_DEFAULT: u32 = 100;
/// The longest wait for an event.
const WAIT_MAX: Duration = Duration::from_secs(20);

/// What the admin API does with events.
pub struct EventsAdmin {
    /// Whether changes of objects are told.
    pub on: bool,
    /// Where they are published.
    pub bus: Arc<dyn EventBus>,
    /// Where they wait.
    pub outbox: Arc<dyn Outbox>,
    /// This node's relay.
    pub relay: Arc<RelayStatus>,
    /// How partitions get their owners.
    pub owner: RelayOwner,
}

impl From<EventError> for ApiError {
    fn from(error: EventError) -> Self {
        let code = match &error {
            EventError::Invalid(_) => ErrorCode::InvalidRequest,
            EventError::NoTopic(_) | EventError::Denied(_) => ErrorCode::NotPossible,
            _ => ErrorCode::Unavailable,
        };
        Self::new(code, error.to_string())
    }
}

impl EventsAdmin {
    fn owner_of(&self, partition: u16, here: bool, me: &str) -> Option<String> {
        match &self.owner {
            RelayOwner::Alone => here.then(|| me.to_owned()),
            RelayOwner::Cluster { coordination, .. } => {
                let leases = coordination.leases();
                let leases = leases.borrow();
                leases.get(&format!("events-{partition}")).map(|holder| holder.node.to_string())
            }
        }
    }
}

/// What waits to be published, and who publishes it.
#[utoipa::path(
    get, path = "/v1/events/lag", tag = "events", operation_id = "events_lag",
    responses(
        (status = 200, description = "How it stands", body = EventsLag),
        (status = "default", description = "An error", body = ErrorBody),
    )
)]
pub(super) async fn lag(State(state): State<AdminState>) -> Result<Json<EventsLag>, ApiError> {
    let events = &state.events;
    let here = events.relay.partitions();
    let mut partitions = Vec::with_capacity(usize::from(PARTITIONS));
    for partition in 0..PARTITIONS {
        let backlog = events.outbox.backlog(partition).await?;
        let status = here.get(&partition);
        partitions.push(PartitionLag {
            partition,
            owner: events.owner_of(partition, status.is_some(), &state.node_id),
            rows: backlog.rows,
            oldest_ms: backlog.oldest_ms,
            published: backlog.published,
            last_error: status.and_then(|status| status.last_error.clone()),
        });
    }
    let now_ms = state.clock.now_ms();
    let oldest_ms = partitions.iter().filter_map(|partition| partition.oldest_ms).min();
    let topic = if events.on { Topic::Objects } else { Topic::Tasks };
    Ok(Json(EventsLag {
        on: events.on,
        bus_error: events.bus.check(topic).await.err().map(|error| error.to_string()),
        rows: partitions.iter().map(|partition| partition.rows).sum(),
        oldest_age_ms: oldest_ms.map(|oldest_ms| now_ms.saturating_sub(oldest_ms)),
        published: partitions.iter().map(|partition| partition.published).sum(),
        partitions,
    }))
}

/// What is read, and from where on.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tail {
    topic: Option<String>,
    after: Option<String>,
    #[serde(default)]
    oldest: bool,
    limit: Option<u32>,
    wait_ms: Option<u64>,
}

/// Events as consumers see them, read without being one.
#[utoipa::path(
    get, path = "/v1/events/tail", tag = "events", operation_id = "tail_events",
    params(
        ("topic" = Option<String>, Query, description = "objects (the default), tasks or errors"),
        ("after" = Option<String>, Query, description = "What the answer before called next; else what comes from now on"),
        ("oldest" = Option<bool>, Query, description = "Without after: begin with the oldest that there is"),
        ("limit" = Option<usize>, Query, description = "About so many, 1 to 1,000"),
        ("wait_ms" = Option<u64>, Query, description = "How long to wait while there is none, up to 20,000"),
    ),
    responses(
        (status = 200, description = "Events, or none in time", body = EventsPage),
        (status = "default", description = "An error", body = ErrorBody),
    )
)]
pub(super) async fn tail(
    State(state): State<AdminState>,
    Params(tail): Params<Tail>,
) -> Result<Json<EventsPage>, ApiError> {
    let topic = tail.topic.as_deref().map_or(Ok(Topic::Objects), str::parse)?;
    if topic == Topic::Objects && !state.events.on {
        return Err(ApiError::not_possible("changes of objects are told to nobody: set events.rocketmq"));
    }
    let from = match (tail.after, tail.oldest) {
        (Some(after), _) => Position::After(after),
        (None, true) => Position::Oldest,
        (None, false) => Position::Newest,
    };
    let wait = Duration::from_millis(tail.wait_ms.unwrap_or(0)).min(WAIT_MAX);
    let limit = page::limit(tail.limit, LIMIT_DEFAULT) as usize;
    let page = state.events.bus.read(topic, from, limit, wait).await?;
    let events = page.messages.into_iter().map(|message| EventInfo {
        id: message.id.to_string(),
        tag: message.tag,
        order_key: message.order_key,
        body: serde_json::from_slice(&message.body).ok(),
    });
    let events = events.collect();
    match page.next {
        Position::After(next) => Ok(Json(EventsPage { events, next })),
        Position::Oldest | Position::Newest => Err(ApiError::unavailable("the bus gave no position")),
    }
}

/// Publishes published events again, with the ids that they had.
#[utoipa::path(
    post, path = "/v1/events/replay", tag = "events", operation_id = "replay_events", request_body = ReplayEvents,
    responses(
        (status = 200, description = "They wait to be published", body = ReplayedEvents),
        (status = "default", description = "An error", body = ErrorBody),
    )
)]
pub(super) async fn replay(
    State(state): State<AdminState>,
    Body(wanted): Body<ReplayEvents>,
) -> Result<Json<ReplayedEvents>, ApiError> {
    if !state.events.on {
        return Err(ApiError::not_possible("changes of objects are told to nobody: set events.rocketmq"));
    }
    let order_key_prefix = match (&wanted.bucket, &wanted.prefix) {
        (None, None) => String::new(),
        (Some(bucket), prefix) => format!("{bucket}/{}", event_key(prefix.as_deref().unwrap_or_default())),
        (None, Some(_)) => return Err(ApiError::invalid("a prefix needs a bucket")),
    };
    let to_ms = wanted.to_ms.unwrap_or_else(|| state.clock.now_ms());
    let filter = ReplayFilter { topic: Topic::Objects, from_ms: wanted.from_ms, to_ms, order_key_prefix };
    let mut events = 0;
    for partition in 0..PARTITIONS {
        let mut after = 0;
        loop {
            let (moved, last) = state.events.outbox.replay(partition, &filter, after, REPLAY_BATCH).await?;
            events += moved;
            match last {
                Some(last) => after = last,
                None => break,
            }
        }
    }
    metrics::counter!("holdfast_events_replayed_total").increment(events);
    tracing::info!(events, bucket = wanted.bucket, "events are published again");
    Ok(Json(ReplayedEvents { events }))
}
