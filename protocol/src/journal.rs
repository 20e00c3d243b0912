//! What is written down for operators: errors worth a look, and who did what.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What went wrong. More kinds may come; an unknown one is [`ErrorKind::Other`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorKind {
    /// Stored bytes do not match their checksum, or a cold tier has not got them any more.
    Corruption,
    /// A disk is not used any more.
    DiskFenced,
    /// A write reached a quorum, but not every replica.
    ReplicationShort,
    /// A cold tier failed.
    TierFailed,
    /// Work that was to be done later failed too often and waits for an operator.
    TaskFailed,
    /// Something else.
    #[serde(other)]
    Other,
}

impl ErrorKind {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Corruption, Self::DiskFenced, Self::ReplicationShort, Self::TierFailed, Self::TaskFailed, Self::Other];

    /// Its name, as it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Corruption => "corruption",
            Self::DiskFenced => "disk-fenced",
            Self::ReplicationShort => "replication-short",
            Self::TierFailed => "tier-failed",
            Self::TaskFailed => "task-failed",
            Self::Other => "other",
        }
    }

    /// The kind of that name; what this version does not know is [`ErrorKind::Other`].
    pub fn named(name: &str) -> Self {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name).unwrap_or(Self::Other)
    }
}

/// An error worth an operator's look: the body of a message of the topic for errors, and a row of the error log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorRecord {
    /// Of this report, by which a repetition is told.
    pub id: String,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// Which node says so.
    pub node: String,
    /// What went wrong.
    pub kind: ErrorKind,
    /// With what: a chunk, a disk, a task.
    pub subject: String,
    /// For people.
    pub detail: String,
}

/// Something that an operator did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditRecord {
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// On which node.
    pub node: String,
    /// Who: what the request was authorised by.
    pub actor: String,
    /// From where: the address of the client.
    pub source: String,
    /// What: the operation of the API.
    pub action: String,
    /// With what: the path of the request; of what a request has made, its own.
    pub target: String,
    /// How it ended: the status of the answer.
    pub result: u16,
    /// Also in the node's log.
    pub request_id: String,
}

/// An entry of a journal, with its place in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Entry<T> {
    /// Rises with each entry.
    pub number: u64,
    /// The entry.
    #[serde(flatten)]
    pub record: T,
}

/// A message that failed too often.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeadLetter {
    /// By which it is shown and requeued.
    pub number: u64,
    /// The message's id.
    pub id: String,
    /// Where it was published.
    pub topic: String,
    /// The group of consumers that gave it up.
    pub group: String,
    /// What kind of message it is.
    pub tag: String,
    /// What it is ordered by.
    pub order_key: String,
    /// Words by which it may be looked for.
    pub keys: Vec<String>,
    /// How often it was tried.
    pub attempts: u32,
    /// Why it failed the last time.
    pub error: String,
    /// When it was given up, in milliseconds since 1970.
    pub buried_ms: u64,
    /// Its body, if it is text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_read_as_they_are_written() {
        for kind in ErrorKind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
            assert_eq!(ErrorKind::named(kind.as_str()), kind);
        }
        assert_eq!(serde_json::from_str::<ErrorKind>("\"of-a-later-version\"").unwrap(), ErrorKind::Other);
    }
}
