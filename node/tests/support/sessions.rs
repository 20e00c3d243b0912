//! Sessions with ZooKeeper servers that may have just started, on a busy machine.

#![allow(dead_code, reason = "each test crate uses a part")]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::Duration;

use holdfast_actors::ports::coordination::{CoordinationError, CoordinationResult};
use holdfast_actors::wait::{PATIENCE, until_ok};
use holdfast_node::coordination::{ZookeeperConfig, ZookeeperCoordination};
use tokio::time::{Instant, sleep};

const PAUSE: Duration = Duration::from_millis(50);

/// Connects, or says why not. One try has to end within the session timeout, which is short in tests: that the servers
/// were too slow for it is no answer.
pub async fn try_connect(config: &ZookeeperConfig) -> CoordinationResult<ZookeeperCoordination> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match ZookeeperCoordination::connect(config.clone()).await {
            Err(CoordinationError::Unavailable(_) | CoordinationError::SessionExpired) if Instant::now() < deadline => {
                sleep(PAUSE).await;
            }
            result => return result,
        }
    }
}

/// Connects.
pub async fn connect(config: &ZookeeperConfig) -> ZookeeperCoordination {
    try_connect(config).await.unwrap()
}

/// A client without the adapter.
pub async fn raw(servers: &str) -> zookeeper_client::Client {
    until_ok("a session begins", async || zookeeper_client::Client::connect(servers).await).await
}
