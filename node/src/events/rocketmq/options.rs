//! Where RocketMQ is, who this node is there, and how patient to be.

use std::fmt;
use std::time::Duration;

use zeroize::Zeroizing;

use super::tls::Tls;

/// Text that no log shows.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes it.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// A user of RocketMQ's ACL.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// The user's name.
    pub access_key: String,
    /// The user's password.
    pub secret_key: Secret,
}

/// Settings of a [`RocketMqEventBus`](super::RocketMqEventBus).
#[derive(Debug, Clone)]
pub struct RocketMqOptions {
    /// `host:port` of each name server.
    pub name_servers: Vec<String>,
    /// What the names of topics and groups begin with.
    pub topic_prefix: String,
    /// Who this node is, where the brokers ask.
    pub credentials: Option<Credentials>,
    /// Encryption, if it is on.
    pub tls: Option<Tls>,
    /// Whether a topic or group that is missing is made.
    pub create_topics: bool,
    /// Queues that a topic gets on each broker when it is made.
    pub topic_queues: u32,
    /// Names of the brokers whose queues the topics have, each with [`Self::topic_queues`]. None: what the name servers
    /// say.
    pub brokers: Vec<String>,
    /// How long making a connection may take.
    pub connect_timeout: Duration,
    /// How long an answer may take where the caller gives no deadline.
    pub request_timeout: Duration,
}

impl RocketMqOptions {
    /// The defaults, for name servers.
    pub fn new(name_servers: Vec<String>) -> Self {
        Self {
            name_servers,
            topic_prefix: "holdfast".into(),
            credentials: None,
            tls: None,
            create_topics: true,
            topic_queues: 8,
            brokers: Vec::new(),
            connect_timeout: Duration::from_secs(3),
            request_timeout: Duration::from_secs(5),
        }
    }
}
