//! Sessions with ZooKeeper servers that may have just started, on a busy machine.

#![allow(dead_code, reason = "each test crate uses a part")]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::Duration;

use holdfast_actors::ports::coordination::{CoordinationError, CoordinationResult};
use holdfast_actors::wait::PATIENCE;
use holdfast_node::coordination::{Claim, ZookeeperConfig, ZookeeperCoordination};
use tokio::time::{Instant, sleep};

const PAUSE: Duration = Duration::from_millis(50);

/// Connects, or says why not. One try has to end within the session timeout, which is short in tests: that the servers
/// were too slow for it is no answer.
pub async fn try_connect(config: &ZookeeperConfig) -> CoordinationResult<ZookeeperCoordination> {
    try_connect_as(config, Claim::default()).await
}

async fn try_connect_as(config: &ZookeeperConfig, claim: Claim) -> CoordinationResult<ZookeeperCoordination> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match ZookeeperCoordination::connect_as(config.clone(), claim.clone()).await {
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

/// Connects under a name.
pub async fn connect_as(config: &ZookeeperConfig, claim: Claim) -> ZookeeperCoordination {
    try_connect_as(config, claim).await.unwrap()
}

/// A client without the adapter. It is waited for here, since a harness needs a future that may go from thread to
/// thread.
pub async fn raw(servers: &str) -> zookeeper_client::Client {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match zookeeper_client::Client::connect(servers).await {
            Ok(client) => return client,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        sleep(PAUSE).await;
    }
}
