//! The brokers that there are, and topics that are made at them.

use std::collections::BTreeMap;

use holdfast_actors::ports::events::{EventError, EventResult};
use serde::Deserialize;
use tokio::time::Instant;

use super::super::connection::Connections;
use super::super::error::{refused, unexpected};
use super::super::wire::{Command, quote_numeric_names, request, response};
use super::{BrokerData, MASTER, READABLE, Route, WRITABLE, ask_any};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ClusterData {
    broker_addr_table: BTreeMap<String, BrokerData>,
}

/// The masters of all brokers that the name servers know: name and address.
pub(in super::super) async fn masters(
    connections: &Connections,
    deadline: Instant,
) -> EventResult<BTreeMap<String, String>> {
    let answer = ask_any(connections, Command::new(request::GET_CLUSTER), deadline).await?;
    if answer.code != response::SUCCESS {
        return Err(refused("the cluster", &answer));
    }
    let data: ClusterData = serde_json::from_slice(&quote_numeric_names(&answer.body))
        .map_err(|error| unexpected("the cluster's brokers", &error))?;
    let brokers = data.broker_addr_table.into_iter();
    let masters: BTreeMap<String, String> =
        brokers.filter_map(|(name, mut broker)| Some((name, broker.broker_addrs.remove(MASTER)?))).collect();
    if masters.is_empty() {
        return Err(EventError::Unavailable("the name servers know no broker".into()));
    }
    Ok(masters)
}

/// Makes a topic at some brokers. Two nodes may do so at once: they make the same.
pub(super) async fn create(
    connections: &Connections,
    topic: &str,
    brokers: &BTreeMap<String, String>,
    deadline: Instant,
) -> EventResult<()> {
    let queues = connections.options().topic_queues;
    for (broker, master) in brokers {
        let command = Command::new(request::UPDATE_AND_CREATE_TOPIC)
            .field("topic", topic)
            .field("defaultTopic", "TBW102")
            .field("readQueueNums", queues)
            .field("writeQueueNums", queues)
            .field("perm", READABLE | WRITABLE)
            .field("topicFilterType", "SINGLE_TAG")
            .field("topicSysFlag", 0)
            .field("order", false);
        let answer = connections.call(master, command, deadline).await?;
        if answer.code != response::SUCCESS {
            return Err(refused(topic, &answer));
        }
        tracing::info!(topic, broker, queues, "topic created");
    }
    Ok(())
}

/// Makes a topic at those of its brokers that are there and lack it: they were missing when it was made elsewhere.
pub(super) async fn complete(
    connections: &Connections,
    topic: &str,
    route: &mut Route,
    deadline: Instant,
) -> EventResult<()> {
    let named = &connections.options().brokers;
    // What is there already must not be late for what is added.
    let begin = Instant::now();
    let deadline = begin + deadline.saturating_duration_since(begin) / 2;
    let mut without = masters(connections, deadline).await?;
    without.retain(|broker, _| named.contains(broker) && !route.is_at(broker));
    let (mut outcome, mut left) = (Ok(()), without.len() as u32);
    for (broker, addr) in without {
        // One that hangs, or refuses, does not keep the topic from the others.
        let now = Instant::now();
        let limit = now + deadline.saturating_duration_since(now) / left;
        left -= 1;
        match create(connections, topic, &BTreeMap::from([(broker.clone(), addr.clone())]), limit).await {
            Ok(()) => drop(route.masters.insert(broker.into(), addr)),
            Err(error) => outcome = Err(error),
        }
    }
    outcome
}
