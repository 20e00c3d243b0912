//! `[events]`: who is told of changes of objects.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Span;

/// `[events]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EventsConfig {
    /// Name servers of RocketMQ: `host:port,host:port`. Empty: changes of objects are told to nobody. The same on all
    /// nodes.
    pub rocketmq: String,
    /// User of RocketMQ's ACL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_key: Option<String>,
    /// File with that user's secret key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_key_file: Option<PathBuf>,
    /// Whether connections to RocketMQ are encrypted.
    pub tls: bool,
    /// PEM file with the CA that signed the servers' certificates. Default: the system's CAs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_ca: Option<PathBuf>,
    /// What the servers' certificates are made out to, if not to their addresses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_server_name: Option<String>,
    /// What the names of topics and consumer groups begin with.
    pub topic_prefix: String,
    /// Whether topics and consumer groups that are missing are made.
    pub create_topics: bool,
    /// Queues that a topic gets on each broker when it is made.
    pub topic_queues: u32,
    /// Names of the brokers that have the topics: `a,b`. Empty: those that the name servers know. The same on all
    /// nodes.
    pub brokers: String,
    /// How long published events can be published again by `holdfast events replay`; 0 keeps none.
    pub replay_age: Span,
    /// How many published events are kept for that at most.
    pub replay_events: u64,
}

impl Default for EventsConfig {
    fn default() -> Self {
        Self {
            rocketmq: String::new(),
            access_key: None,
            secret_key_file: None,
            tls: false,
            tls_ca: None,
            tls_server_name: None,
            topic_prefix: "holdfast".into(),
            create_topics: true,
            topic_queues: 8,
            brokers: String::new(),
            replay_age: Span::hours(1),
            replay_events: 200_000,
        }
    }
}

impl EventsConfig {
    /// Whether changes of objects are told.
    pub fn is_on(&self) -> bool {
        !self.rocketmq.is_empty()
    }

    /// `host:port` of each name server.
    pub fn name_servers(&self) -> Vec<String> {
        list(&self.rocketmq)
    }

    /// Each of the brokers that are named.
    pub fn broker_names(&self) -> Vec<String> {
        list(&self.brokers)
    }
}

fn list(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
}
