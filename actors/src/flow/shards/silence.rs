//! Gives this node up as a holder of data while all of its disks are silent and those of the others are not.
//!
//! The last disk of a node is never fenced for its silence (docs/adr/0019): the node alone cannot tell a dead disk from
//! a hypervisor or a file server that stands still, and goes on, on all nodes at once. Together they can. When no disk
//! of this node has answered for [`ClusterSettings::give_up_silent_after`](super::ClusterSettings), it asks the others;
//! if most of all nodes have disks that take writes, it says that it has none that works. The controller takes it for
//! absent then, and what it held is rebuilt elsewhere after the usual delay. Nothing is decided for good: the node
//! takes that back as soon as a disk answers, and what it has counts again.
//!
//! **Time** counts only while this runs: a look counts for no longer than the pause before it, however late it comes.
//! A process that stood still has not waited for its disks.

use std::convert::Infallible;
use std::time::Duration;

use futures::{StreamExt as _, stream};
use holdfast_protocol::NodeId;
use tokio::time::{sleep, timeout};

use super::Context;
use crate::domain::admission::DiskHealth;

/// Pause between two looks at the disks, which are made from memory.
const LOOK: Duration = Duration::from_secs(1);
/// Pause until the others are asked again.
const ASK_AGAIN: Duration = Duration::from_secs(60);
/// Nodes asked at once.
const ASKED_AT_ONCE: usize = 32;
/// How long one of them may take.
const ASK_MAX: Duration = Duration::from_secs(5);

/// Looks at the disks for as long as it is polled.
pub(super) async fn watch(context: &Context) -> Infallible {
    let (mut silent_for, mut ask_at) = (Duration::ZERO, Duration::ZERO);
    loop {
        sleep(LOOK).await;
        let disks: Vec<DiskHealth> = context.parts.disks.iter().map(|disk| disk.status().health).collect();
        if !are_silent(&disks) {
            (silent_for, ask_at) = (Duration::ZERO, Duration::ZERO);
            if context.shared.silent.send_if_modified(|silent| std::mem::replace(silent, false)) {
                tracing::warn!("a disk of this node answers again: what the node holds counts again");
            }
            continue;
        }
        silent_for += LOOK;
        let limit = context.parts.settings.give_up_silent_after;
        let is_due = limit.is_some_and(|limit| silent_for >= limit.max(ask_at));
        if !is_due || *context.shared.silent.borrow() {
            continue;
        }
        ask_at = silent_for + ASK_AGAIN;
        let (others, writable) = ask(context).await;
        if most_write(others, writable) {
            context.shared.silent.send_replace(true);
            tracing::error!(
                seconds = silent_for.as_secs(),
                "no disk of this node answers, those of the others do: it counts as a node that is gone until one does"
            );
        }
    }
}

/// Whether no disk answers, and not for the reason alone that all of them failed.
fn are_silent(disks: &[DiskHealth]) -> bool {
    let answers = |disk: &DiskHealth| !matches!(disk, DiskHealth::Unresponsive | DiskHealth::Fenced);
    disks.contains(&DiskHealth::Unresponsive) && !disks.iter().any(answers)
}

/// How many other nodes there are, and how many of them say that they have disks that take writes.
async fn ask(context: &Context) -> (usize, usize) {
    let membership = context.parts.view.membership().borrow().clone();
    let others: Vec<NodeId> = membership.nodes.keys().copied().filter(|node| *node != context.me()).collect();
    let count = others.len();
    let peers = &context.parts.peers;
    let asked = stream::iter(others).map(|node| async move {
        let answer = timeout(ASK_MAX, peers.health(node)).await;
        answer.is_ok_and(|health| health.is_ok_and(|health| health.writable))
    });
    let answers: Vec<bool> = asked.buffer_unordered(ASKED_AT_ONCE).collect().await;
    (count, answers.into_iter().filter(|writable| *writable).count())
}

/// Whether more than half of all nodes write; this one does not. What silences half of them may be something that they
/// share, and ends.
fn most_write(others: usize, writable: usize) -> bool {
    2 * writable > others + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_given_up_only_when_no_disk_answers_and_most_nodes_write() {
        use DiskHealth::{Fenced, Full, Healthy, Unresponsive};
        for silent in [&[Unresponsive][..], &[Unresponsive, Unresponsive], &[Fenced, Unresponsive]] {
            assert!(are_silent(silent), "{silent:?}");
        }
        for others in [&[][..], &[Fenced, Fenced], &[Unresponsive, Healthy], &[Full, Unresponsive]] {
            assert!(!are_silent(others), "{others:?}");
        }
        assert!(!most_write(0, 0), "a node alone knows of nobody whose disks answer");
        assert!(most_write(2, 2) && most_write(3, 3) && most_write(4, 3) && most_write(5, 4));
        assert!(!most_write(2, 1) && !most_write(4, 2) && !most_write(3, 0));
        assert!(!most_write(1, 1) && !most_write(3, 2), "half of two, and of four");
    }
}
