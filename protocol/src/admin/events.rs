//! Events that wait, that pass, and that are published again.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `GET /v1/events/lag`: what waits to be published, on all nodes together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EventsLag {
    /// Whether changes of objects are told at all.
    pub on: bool,
    /// Why the node that answers could not publish now; absent if it could.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bus_error: Option<String>,
    /// Events that wait.
    pub rows: u64,
    /// Age of the oldest of them, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_age_ms: Option<u64>,
    /// Published events that can be published again.
    pub published: u64,
    /// The partitions of the outbox.
    pub partitions: Vec<PartitionLag>,
}

/// One partition of the outbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PartitionLag {
    /// Its number.
    pub partition: u16,
    /// The node that publishes from it; absent if none does at the moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Events that wait.
    pub rows: u64,
    /// When the lowest of them was committed, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_ms: Option<u64>,
    /// Published events that can be published again.
    pub published: u64,
    /// Why its owner could not publish last, if that is the node that answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// `GET /v1/events/tail`: events as a consumer sees them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EventsPage {
    /// Those of one object are in order.
    pub events: Vec<EventInfo>,
    /// Where to go on: the next request's `after`.
    pub next: String,
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EventInfo {
    /// Its id; repetitions have the same.
    pub id: String,
    /// Its name, by which consumers filter.
    pub tag: String,
    /// What it is ordered by.
    pub order_key: String,
    /// Its body, if that is JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<serde_json::Value>,
}

/// `POST /v1/events/replay`: which published events are to be published again, with the ids that they had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReplayEvents {
    /// Committed then or later, in milliseconds since 1970.
    pub from_ms: u64,
    /// Committed before; absent: up to now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_ms: Option<u64>,
    /// Only of this bucket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bucket: Option<String>,
    /// Only of keys that begin so; needs `bucket`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
}

/// What a replay did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReplayedEvents {
    /// Events that wait again.
    pub events: u64,
}
