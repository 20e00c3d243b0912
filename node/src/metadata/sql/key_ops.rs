//! Operations on the versions of keys, many at a time: one statement loads the rows of all keys, the rules of
//! `domain::objects::versioning` decide each, and few statements apply all decisions.
//!
//! A group never holds a key twice, so its decisions do not depend on each other; what they share, the reference counts
//! of contents, is added up before it is applied.
//!
//! | module | what |
//! |---|---|
//! | `load` | what is there |
//! | `plan` | what one operation does |
//! | `effects` | what the group does, applied |

use holdfast_actors::ports::metadata::{
    BucketId, Committed, ContentSource, DeleteRequest, Deleted, MetadataError, MetadataResult, NewObject,
    ReplicaEvidence,
};
use holdfast_protocol::{ContentId, VersionId};

use super::locks::Epochs;
use super::{Locks, Session, Value, replicas, values};
use crate::metadata::rows;

mod effects;
mod load;
mod plan;

use effects::Effects;
pub(super) use effects::{dereference, insert_contents};
pub(super) use plan::check_judged;

/// One operation on the versions of one key.
pub(in crate::metadata) enum KeyOp {
    /// A new version.
    Put(Box<NewObject>),
    /// A deletion.
    Delete {
        /// Where.
        bucket: BucketId,
        /// What.
        request: DeleteRequest,
        /// When.
        now_ms: u64,
    },
}

/// What an operation did.
pub(in crate::metadata) enum KeyDone {
    /// Of a [`KeyOp::Put`].
    Put(Committed),
    /// Of a [`KeyOp::Delete`].
    Deleted(Deleted),
}

impl KeyOp {
    pub(in crate::metadata) fn put(object: NewObject) -> Self {
        Self::Put(Box::new(object))
    }

    pub(in crate::metadata) fn delete(bucket: BucketId, request: DeleteRequest, now_ms: u64) -> Self {
        Self::Delete { bucket, request, now_ms }
    }

    pub(in crate::metadata) fn bucket(&self) -> BucketId {
        match self {
            Self::Put(object) => object.bucket,
            Self::Delete { bucket, .. } => *bucket,
        }
    }

    pub(in crate::metadata) fn key(&self) -> &str {
        match self {
            Self::Put(object) => &object.key,
            Self::Delete { request, .. } => &request.key,
        }
    }

    /// What a put brings.
    fn new_content(&self) -> Option<ContentId> {
        match self {
            Self::Put(object) => match &object.content {
                ContentSource::New(content) => Some(content.id),
                ContentSource::Shared(_) => None,
            },
            Self::Delete { .. } => None,
        }
    }

    /// What is known about the replicas of what a put brings.
    fn evidence(&self) -> Option<&ReplicaEvidence> {
        match self {
            Self::Put(object) => Some(&object.evidence),
            Self::Delete { .. } => None,
        }
    }

    /// What must not change while it runs.
    pub(in crate::metadata) fn lock(&self, locks: Locks) -> Locks {
        let mut locks = locks.key(self.bucket(), self.key()).in_bucket(self.bucket());
        if let Some(content) = self.new_content() {
            locks = locks.content(content);
        }
        if self.evidence().is_some_and(|evidence| !evidence.epochs.is_empty()) {
            locks = locks.epochs(Epochs::Held);
        }
        locks
    }

    fn now_ms(&self) -> u64 {
        match self {
            Self::Put(object) => object.now_ms,
            Self::Delete { now_ms, .. } => *now_ms,
        }
    }
}

/// The place of a key.
pub(super) type Key<'a> = (BucketId, &'a str);

fn key_values((bucket, key): Key<'_>) -> Vec<Value> {
    values![rows::signed(bucket.0), key.as_bytes()]
}

pub(super) fn version_values((bucket, key): Key<'_>, version: VersionId) -> Vec<Value> {
    values![rows::signed(bucket.0), key.as_bytes(), version.as_bytes()]
}

/// Runs operations on distinct keys. A refusal is that operation's result and has no effect.
///
/// # Errors
/// Something failed: the caller must roll back to the savepoint.
pub(in crate::metadata) async fn run_group<S: Session>(
    tx: &mut S,
    ops: &[KeyOp],
) -> MetadataResult<Vec<MetadataResult<KeyDone>>> {
    let keys: Vec<_> = ops.iter().map(|op| (op.bucket(), op.key(), op.new_content())).collect();
    let loaded = load::load(tx, &keys).await?;
    let evidence: Vec<_> = ops.iter().filter_map(KeyOp::evidence).collect();
    let epochs = replicas::load_epochs(tx, &evidence).await?;
    let mut effects = Effects::default();
    let mut results = Vec::with_capacity(ops.len());
    for (op, loaded) in ops.iter().zip(&loaded) {
        let result = match op {
            KeyOp::Put(object) => plan::put(tx, object, loaded, &epochs, &mut effects).await,
            KeyOp::Delete { bucket, request, now_ms } => {
                plan::delete(tx, *bucket, request, *now_ms, loaded, &mut effects).await
            }
        };
        match result {
            Ok(done) => {
                effects.now_ms = effects.now_ms.max(op.now_ms());
                results.push(Ok(done));
            }
            Err(error) if is_refusal(&error) => results.push(Err(error)),
            Err(error) => return Err(error),
        }
    }
    effects::apply(tx, &effects).await?;
    Ok(results)
}

/// Whether an error is an answer to the caller, not a failure of the store.
fn is_refusal(error: &MetadataError) -> bool {
    !matches!(
        error,
        MetadataError::Busy
            | MetadataError::NoSpace(_)
            | MetadataError::Unavailable(_)
            | MetadataError::Unknown(_)
            | MetadataError::Corrupt(_)
    )
}
