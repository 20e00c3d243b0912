//! Operations on the versions of keys, many at a time: one statement loads the rows of all keys, the rules of
//! `domain::objects::versioning` decide each, and few statements apply all decisions.
//!
//! A group never holds a key twice, so its decisions do not depend on each other; what they share, the reference counts of
//! contents, is added up before it is applied.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use holdfast_actors::domain::events::EventOutcome;
use holdfast_actors::domain::objects::versioning::{
    Current, CurrentFate, History, Past, Promotion, check_only_if, delete_needs_history, plan_delete, plan_put,
    put_touches_history,
};
use holdfast_actors::ports::metadata::{
    BucketId, Committed, Content, ContentPlace, ContentSource, DeleteRequest, Deleted, MetadataError, MetadataResult,
    MoveReason, NewObject, ObjectVersion, OnlyIf, ReplicaEvidence, Versioning,
};
use holdfast_protocol::{ChunkId, ContentId, Epoch, NodeId, ShardId, TierName, VersionId};
use sqlx::AssertSqlSafe;

use super::locks::Epochs;
use super::moves::NewMove;
use super::outbox::NewRow;
use super::reads::{Cold, content_from_row};
use super::shapes::OBJECT_COLUMNS;
use super::{Fields, Locks, Session, Shape, Value, lifecycle, moves, outbox, replicas, values};
use crate::metadata::rows;

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

/// The current row of a key and the state of its bucket, as loaded.
struct Loaded {
    /// `None`: no such bucket.
    versioning: Option<Versioning>,
    /// Of the bucket.
    revision: Option<u64>,
    current: Option<(Current, ContentId)>,
    /// Whether the content that a put brings was given up.
    condemned: bool,
}

/// A row of history, as loaded.
#[derive(Clone, Copy)]
struct PastRow {
    past: Past,
    content: Option<ContentId>,
}

/// History of a key as far as a plan needs it.
#[derive(Default)]
struct LoadedHistory {
    newest: [Option<PastRow>; 2],
    named: Option<PastRow>,
}

impl LoadedHistory {
    fn view(&self) -> History {
        History { newest: self.newest.map(|row| row.map(|row| row.past)), named: self.named.map(|row| row.past) }
    }
}

/// The place of a key.
pub(super) type Key<'a> = (BucketId, &'a str);

/// Effects of a group, by the statement that applies them, in the order they are applied.
#[derive(Default)]
struct Effects<'a> {
    contents: Vec<&'a Content>,
    /// How much each content's count of references changes.
    references: BTreeMap<ContentId, i64>,
    /// Contents that a copy takes: no longer to be reclaimed.
    taken: Vec<ContentId>,
    remove_past: Vec<(Key<'a>, VersionId)>,
    archive: Vec<Key<'a>>,
    /// Keys whose latest version may be a delete marker that another version takes the place of.
    supersede: Vec<Key<'a>>,
    remove: Vec<Key<'a>>,
    put: Vec<(&'a NewObject, VersionId, i64, ContentId)>,
    markers: Vec<(Key<'a>, VersionId, i64, u64, &'a str)>,
    promote: Vec<(Key<'a>, VersionId, i64)>,
    raise_marker: Vec<(Key<'a>, VersionId, i64)>,
    /// What is told of the group.
    events: Vec<NewRow>,
    /// Keys that lifecycle rules are to look at once more.
    rechecks: Vec<Key<'a>>,
    /// Replicas that missed a chunk.
    repairs: Vec<(ChunkId, NodeId, u64)>,
    /// Versions whose content does not lie where their class says.
    moves: Vec<NewMove<'a>>,
    /// Versions whose content lies where their class says, and which somebody may have asked to be moved before.
    settled: Vec<(Key<'a>, VersionId)>,
    now_ms: u64,
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
    let loaded = load(tx, &keys).await?;
    let evidence: Vec<_> = ops.iter().filter_map(KeyOp::evidence).collect();
    let epochs = replicas::load_epochs(tx, &evidence).await?;
    let mut effects = Effects::default();
    let mut results = Vec::with_capacity(ops.len());
    for (op, loaded) in ops.iter().zip(&loaded) {
        let result = match op {
            KeyOp::Put(object) => plan_one_put(tx, object, loaded, &epochs, &mut effects).await,
            KeyOp::Delete { bucket, request, now_ms } => {
                plan_one_delete(tx, *bucket, request, *now_ms, loaded, &mut effects).await
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
    apply(tx, &effects).await?;
    Ok(results)
}

/// Whether an error is an answer to the caller, not a failure of the store.
fn is_refusal(error: &MetadataError) -> bool {
    !matches!(
        error,
        MetadataError::Busy | MetadataError::Unavailable(_) | MetadataError::Unknown(_) | MetadataError::Corrupt(_)
    )
}

/// Loads keys, each with the content that is to be put there.
async fn load<S: Session>(tx: &mut S, keys: &[(BucketId, &str, Option<ContentId>)]) -> MetadataResult<Vec<Loaded>> {
    let found = tx.fetch_many(Shape::LoadKeys, keys, |(bucket, key, content)| {
        values![rows::signed(bucket.0), key.as_bytes(), content.map(|id| id.as_bytes().to_vec())]
    });
    let found = found.await?;
    let mut loaded: Vec<Loaded> =
        keys.iter().map(|_| Loaded { versioning: None, revision: None, current: None, condemned: false }).collect();
    for row in found {
        let place = row.number(0)?;
        let slot = usize::try_from(place).ok().and_then(|place| loaded.get_mut(place));
        let slot = slot.ok_or_else(|| MetadataError::Corrupt("a row of no key".into()))?;
        slot.versioning = row.number_or_null(1)?.map(rows::versioning).transpose()?;
        slot.condemned = row.number(6)? != 0;
        slot.revision = row.number_or_null(8)?.map(rows::unsigned).transpose()?;
        if let Some(version) = row.bytes_or_null(2)? {
            let etag = row.bytes_or_null(4)?;
            let etag = etag.ok_or_else(|| MetadataError::Corrupt("an object without its content".into()))?;
            slot.current = Some((
                Current {
                    version: rows::version_id(version)?,
                    etag: rows::etag(etag, row.number_or_null(5)?)?,
                    sequence: rows::unsigned(row.number(7)?)?,
                },
                rows::content_id(row.bytes(3)?)?,
            ));
        }
    }
    Ok(loaded)
}

async fn plan_one_put<'a, S: Session>(
    tx: &mut S,
    object: &'a NewObject,
    loaded: &Loaded,
    epochs: &HashMap<ShardId, Epoch>,
    effects: &mut Effects<'a>,
) -> MetadataResult<KeyDone> {
    let versioning = loaded.versioning.ok_or(MetadataError::NoSuchBucket)?;
    let current = loaded.current.as_ref();
    let plan = plan_put(versioning, object.version, current.map(|(current, _)| current), &object.precondition)?;
    if loaded.condemned {
        return Err(MetadataError::Condemned);
    }
    rows::check_epochs(&object.evidence, epochs)?;
    let content = match &object.content {
        ContentSource::New(content) => Arc::new(content.clone()),
        ContentSource::Shared(id) => load_content(tx, *id).await?.ok_or(MetadataError::NoSuchContent)?,
    };
    if content.place == ContentPlace::NotLoaded {
        return Err(MetadataError::Corrupt("a content is put whose place was not loaded".to_owned()));
    }
    let key: Key<'a> = (object.bucket, &object.key);
    let past_null = if plan.remove_past_null && put_touches_history(versioning) {
        load_past(tx, key, VersionId::NULL).await?
    } else {
        None
    };

    // Nothing can refuse from here on.
    match &object.content {
        ContentSource::New(content) => effects.contents.push(content),
        ContentSource::Shared(id) => {
            effects.taken.push(*id);
            *effects.references.entry(*id).or_default() += 1;
        }
    }
    effects.repairs.extend(object.evidence.missed.iter().map(|(chunk, node)| (*chunk, *node, object.now_ms)));
    if let Some(past) = past_null {
        effects.remove_past(key, past);
    }
    effects.settle_current(key, plan.current, current, true);
    if current.is_none() && versioning != Versioning::Unversioned {
        effects.supersede.push(key);
    }
    let sequence = tx.take_sequence();
    effects.put.push((object, plan.version, sequence, content.id));
    let lies_in = content.cold().map(|place| &place.tier);
    if object.class.as_ref() != lies_in
        && let Some(lane) = object.class.as_ref().or(lies_in)
    {
        effects.moves.push(NewMove {
            place: key,
            version: plan.version,
            content: content.id,
            lane: lane.clone(),
            to: object.class.clone(),
            reason: MoveReason::Stored,
            queued_ms: object.now_ms,
            due_ms: object.now_ms,
        });
    } else if matches!(object.content, ContentSource::Shared(_)) {
        // A copy onto itself has the content that a move of the version before is about: that move is over. Of a new content a
        // move finds that out by itself.
        effects.settled.push((key, plan.version));
    }
    if object.event.is_some() {
        let (etag, version) = (content.etag.to_string(), plan.version.to_string());
        let outcome = EventOutcome {
            key: &object.key,
            version: (versioning != Versioning::Unversioned).then_some(&*version),
            content: Some((content.size_bytes(), &etag)),
            made_marker: false,
            now_ms: object.now_ms,
        };
        effects.events.extend(outbox::row_of(tx, object.event.as_ref(), &outcome)?);
    }
    let object = Arc::new(ObjectVersion {
        bucket: object.bucket,
        key: object.key.clone(),
        version: plan.version,
        sequence: rows::unsigned(sequence)?,
        is_latest: true,
        last_modified_ms: object.now_ms,
        owner: object.owner.clone(),
        content: Some(content),
        attributes: object.attributes.clone(),
        tags: object.tags.clone(),
        acl: object.acl,
        class: object.class.clone(),
        restore: None,
    });
    Ok(KeyDone::Put(Committed { object, versioning }))
}

async fn plan_one_delete<'a, S: Session>(
    tx: &mut S,
    bucket: BucketId,
    request: &'a DeleteRequest,
    now_ms: u64,
    loaded: &Loaded,
    effects: &mut Effects<'a>,
) -> MetadataResult<KeyDone> {
    let versioning = loaded.versioning.ok_or(MetadataError::NoSuchBucket)?;
    let key: Key<'a> = (bucket, &request.key);
    let current = loaded.current.as_ref();
    let current_view = current.map(|(current, _)| current);
    let history = if delete_needs_history(versioning, request.version, current_view) {
        load_history(tx, key, request.version).await?
    } else {
        LoadedHistory::default()
    };
    if let Some(only_if) = &request.only_if {
        check_loaded(tx, key, request.version, only_if, loaded, &history).await?;
    }
    let plan = plan_delete(
        versioning,
        request.version,
        request.marker_version,
        &request.precondition,
        current_view,
        &history.view(),
    )?;
    if plan.remove_past.is_some()
        && let Some(past) = history.named
    {
        effects.remove_past(key, past);
    }
    effects.settle_current(key, plan.current, current, false);
    if let Some(version) = plan.add_marker {
        if current.is_none() {
            effects.supersede.push(key);
        }
        effects.markers.push((key, version, tx.take_sequence(), now_ms, &request.owner));
    }
    match plan.promotion {
        Promotion::None => {}
        Promotion::ToCurrent(version) => effects.promote.push((key, version, tx.take_sequence())),
        Promotion::MarkerStays(version) => effects.raise_marker.push((key, version, tx.take_sequence())),
    }
    if plan.promotion != Promotion::None || bares_marker(current_view, &history, plan.remove_past) {
        effects.rechecks.push(key);
    }
    let removed = plan.remove_past.is_some() && history.named.is_some()
        || plan.current == CurrentFate::Remove && current.is_some();
    // A deletion of what was not there is no change.
    if request.event.is_some() && (plan.add_marker.is_some() || removed) {
        let version = plan.deleted.version.map(|version| version.to_string());
        let outcome = EventOutcome {
            key: &request.key,
            version: version.as_deref(),
            content: None,
            made_marker: plan.add_marker.is_some(),
            now_ms,
        };
        effects.events.extend(outbox::row_of(tx, request.event.as_ref(), &outcome)?);
    }
    Ok(KeyDone::Deleted(plan.deleted))
}

async fn check_loaded<S: Session>(
    tx: &mut S,
    key: Key<'_>,
    version: Option<VersionId>,
    only_if: &OnlyIf,
    loaded: &Loaded,
    history: &LoadedHistory,
) -> MetadataResult<()> {
    if only_if.revision.is_some() && only_if.revision != loaded.revision {
        return Err(MetadataError::PreconditionFailed);
    }
    check_only_if(only_if, version, loaded.current.as_ref().map(|(current, _)| current), &history.view())?;
    if let (Some(noncurrent), Some(version)) = (&only_if.noncurrent, version) {
        lifecycle::check_noncurrent(tx, key, version, only_if.sequence, noncurrent).await?;
    }
    Ok(())
}

/// Holds a version against what was judged before.
///
/// # Errors
/// `PreconditionFailed`.
pub(super) async fn check_judged<S: Session>(
    tx: &mut S,
    key: Key<'_>,
    version: Option<VersionId>,
    only_if: &OnlyIf,
) -> MetadataResult<()> {
    let loaded = load(tx, &[(key.0, key.1, None)]).await?;
    let loaded = loaded.first().ok_or_else(|| MetadataError::Corrupt("a key was not loaded".to_owned()))?;
    let history = load_history(tx, key, version).await?;
    check_loaded(tx, key, version, only_if, loaded, &history).await
}

/// Whether the row of history that goes may be all that the key's latest version, a delete marker, still hides.
fn bares_marker(current: Option<&Current>, history: &LoadedHistory, gone: Option<VersionId>) -> bool {
    let [Some(newest), Some(second)] = history.newest else { return false };
    current.is_none() && newest.past.delete_marker && gone == Some(second.past.version)
}

impl<'a> Effects<'a> {
    fn remove_past(&mut self, key: Key<'a>, past: PastRow) {
        self.remove_past.push((key, past.past.version));
        if let Some(content) = past.content {
            *self.references.entry(content).or_default() -= 1;
        }
    }

    /// A current row that a put replaces needs no statement of its own.
    fn settle_current(
        &mut self,
        key: Key<'a>,
        fate: CurrentFate,
        current: Option<&(Current, ContentId)>,
        replaced: bool,
    ) {
        match (fate, current) {
            (CurrentFate::Keep, _) | (_, None) => return,
            (CurrentFate::Archive, _) => self.archive.push(key),
            (CurrentFate::Remove, Some((_, content))) => *self.references.entry(*content).or_default() -= 1,
        }
        if !replaced {
            self.remove.push(key);
        }
    }
}

fn key_values((bucket, key): Key<'_>) -> Vec<Value> {
    values![rows::signed(bucket.0), key.as_bytes()]
}

pub(super) fn version_values((bucket, key): Key<'_>, version: VersionId) -> Vec<Value> {
    values![rows::signed(bucket.0), key.as_bytes(), version.as_bytes()]
}

/// A content that a copy may take: also one that waits to be reclaimed and is not yet claimed.
async fn load_content<S: Session>(tx: &mut S, id: ContentId) -> MetadataResult<Option<Arc<Content>>> {
    let sql = format!(
        "SELECT manifest, etag_md5, etag_parts, checksum, parts, tier, cold FROM contents WHERE id = ?{}",
        S::DIALECT.for_update()
    );
    let row = tx.fetch_optional(AssertSqlSafe(sql), values![id.as_bytes()]).await?;
    row.map(|row| content_from_row(&row, id, 0, Cold::Loaded).map(Arc::new)).transpose()
}

fn past_from_row(row: &impl Fields) -> MetadataResult<PastRow> {
    let content = row.bytes_or_null(1)?.map(rows::content_id).transpose()?;
    let version = rows::version_id(row.bytes(0)?)?;
    let sequence = rows::unsigned(row.number(2)?)?;
    Ok(PastRow { past: Past { version, delete_marker: content.is_none(), sequence }, content })
}

async fn load_history<S: Session>(tx: &mut S, key: Key<'_>, named: Option<VersionId>) -> MetadataResult<LoadedHistory> {
    let newest = load_newest(tx, key).await?;
    let named = load_past(tx, key, named.unwrap_or(VersionId::NULL)).await?;
    Ok(LoadedHistory { newest, named })
}

async fn load_past<S: Session>(tx: &mut S, key: Key<'_>, version: VersionId) -> MetadataResult<Option<PastRow>> {
    let sql = "SELECT version, content, sequence FROM history WHERE bucket = ? AND `key` = ? AND version = ?";
    let row = tx.fetch_optional(sql, version_values(key, version)).await?;
    row.as_ref().map(past_from_row).transpose()
}

async fn load_newest<S: Session>(tx: &mut S, key: Key<'_>) -> MetadataResult<[Option<PastRow>; 2]> {
    let sql = "SELECT version, content, sequence FROM history WHERE bucket = ? AND `key` = ? \
         ORDER BY sequence DESC LIMIT 2";
    let found = tx.fetch(sql, key_values(key)).await?;
    let mut newest = [None; 2];
    for (slot, row) in newest.iter_mut().zip(&found) {
        *slot = Some(past_from_row(row)?);
    }
    Ok(newest)
}

pub(super) async fn insert_contents<S: Session>(tx: &mut S, contents: &[&Content]) -> MetadataResult<()> {
    tx.execute_many(Shape::InsertContents, &[], contents, |content| {
        values![
            content.id.as_bytes(),
            rows::signed(content.size_bytes()),
            content.manifest.encode(),
            &content.etag.md5,
            content.etag.parts.map(i64::from),
            content.checksum.as_ref().map(rows::checksum_bytes),
            rows::parts_text(&content.parts),
            content.cold().map(|place| place.tier.as_str()),
            content.cold().map(|place| place.encode()),
        ]
    })
    .await
}

/// Makes the extents of contents known that are made of others: else their chunks would be orphans. An upload that is completed
/// has done that.
async fn insert_extents<S: Session>(tx: &mut S, contents: &[&Content]) -> MetadataResult<()> {
    for content in contents {
        let extents = content.manifest.extents.iter().map(|extent| extent.content).filter(|id| *id != content.id);
        let extents: Vec<ContentId> = extents.collect();
        let Some(first) = extents.first() else { continue };
        let known = "SELECT 1 FROM extents WHERE extent = ? AND content = ?";
        if tx.fetch_optional(known, values![first.as_bytes(), content.id.as_bytes()]).await?.is_none() {
            let row = |extent: &ContentId| values![extent.as_bytes(), content.id.as_bytes()];
            tx.execute_many(Shape::InsertExtents, &[], &extents, row).await?;
        }
    }
    Ok(())
}

/// Takes a reference from each of some contents, and queues what nothing refers to any more.
pub(super) async fn dereference<S: Session>(tx: &mut S, contents: &[ContentId], now_ms: u64) -> MetadataResult<()> {
    tx.execute_many(Shape::Dereference, &[], contents, |id| values![id.as_bytes()]).await?;
    let head = values![rows::signed(now_ms)];
    tx.execute_many(Shape::QueueUnreferenced, &head, contents, |id| values![id.as_bytes()]).await
}

async fn apply<S: Session>(tx: &mut S, effects: &Effects<'_>) -> MetadataResult<()> {
    insert_contents(tx, &effects.contents).await?;
    insert_extents(tx, &effects.contents).await?;
    for (key, version) in &effects.remove_past {
        remove_past(tx, *key, *version).await?;
    }
    let now = values![rows::signed(effects.now_ms)];
    tx.execute_many(Shape::SupersedeMarkers, &now, &effects.supersede, |key| key_values(*key)).await?;
    tx.execute_many(Shape::Archive, &now, &effects.archive, |key| key_values(*key)).await?;
    tx.execute_many(Shape::RemoveObjects, &[], &effects.remove, |key| key_values(*key)).await?;
    tx.execute_many(Shape::PutObjects, &[], &effects.put, |(object, version, sequence, content)| {
        values![
            rows::signed(object.bucket.0),
            object.key.as_bytes(),
            *sequence,
            version.as_bytes(),
            content.as_bytes(),
            rows::signed(object.now_ms),
            &*object.owner,
            rows::attributes_text(&object.attributes),
            rows::tags_text(&object.tags),
            rows::acl_code(object.acl),
            object.class.as_ref().map(TierName::as_str),
        ]
    })
    .await?;
    tx.execute_many(
        Shape::InsertMarkers,
        &[],
        &effects.markers,
        |((bucket, key), version, sequence, now_ms, owner)| {
            values![
                rows::signed(bucket.0),
                key.as_bytes(),
                *sequence,
                version.as_bytes(),
                rows::signed(*now_ms),
                *owner,
                rows::signed(*now_ms),
            ]
        },
    )
    .await?;
    for (key, version, sequence) in &effects.promote {
        promote(tx, *key, *version, *sequence).await?;
    }
    for (key, version, sequence) in &effects.raise_marker {
        let mut values = values![*sequence];
        values.extend(version_values(*key, *version));
        let sql = "UPDATE history SET sequence = ?, latest = 1, since_ms = modified_ms \
             WHERE bucket = ? AND `key` = ? AND version = ?";
        tx.execute(sql, values).await?;
    }
    replicas::queue_repairs(tx, &effects.repairs).await?;
    moves::queue(tx, &effects.moves).await?;
    for (key, version) in &effects.settled {
        let sql = "DELETE FROM moves WHERE bucket = ? AND `key` = ? AND version = ?";
        tx.execute(sql, version_values(*key, *version)).await?;
    }
    outbox::insert(tx, &effects.events).await?;
    for (bucket, key) in &effects.rechecks {
        lifecycle::queue_recheck(tx, *bucket, key, None).await?;
    }
    apply_references(tx, effects).await
}

async fn remove_past<S: Session>(tx: &mut S, key: Key<'_>, version: VersionId) -> MetadataResult<()> {
    let sql = "DELETE FROM history WHERE bucket = ? AND `key` = ? AND version = ?";
    tx.execute(sql, version_values(key, version)).await.map(drop)
}

/// Moves a row of history to the current rows, under a new sequence number.
async fn promote<S: Session>(tx: &mut S, key: Key<'_>, version: VersionId, sequence: i64) -> MetadataResult<()> {
    debug_assert!(OBJECT_COLUMNS.starts_with("bucket, `key`, sequence, version,"));
    let mut values = values![sequence];
    values.extend(version_values(key, version));
    tx.execute(
        "INSERT INTO objects (bucket, `key`, sequence, version, content, modified_ms, owner, attributes, tags, acl, \
         class, restore_ms) \
         SELECT bucket, `key`, ?, version, content, modified_ms, owner, attributes, tags, acl, class, restore_ms \
         FROM history WHERE bucket = ? AND `key` = ? AND version = ?",
        values,
    )
    .await?;
    remove_past(tx, key, version).await
}

/// Applies the sums of all changes to reference counts, and queues what nothing refers to any more.
async fn apply_references<S: Session>(tx: &mut S, effects: &Effects<'_>) -> MetadataResult<()> {
    for content in &effects.taken {
        tx.execute("DELETE FROM reclaims WHERE content = ?", values![content.as_bytes()]).await?;
    }
    let mut lose_one = Vec::new();
    let mut lost = Vec::new();
    for (content, change) in &effects.references {
        if *change <= 0 {
            lost.push(*content);
        }
        match *change {
            0 => {}
            -1 => lose_one.push(*content),
            change => {
                let sql = "UPDATE contents SET refs = refs + ? WHERE id = ?";
                tx.execute(sql, values![change, content.as_bytes()]).await?;
            }
        }
    }
    tx.execute_many(Shape::Dereference, &[], &lose_one, |id| values![id.as_bytes()]).await?;
    let head = values![rows::signed(effects.now_ms)];
    tx.execute_many(Shape::QueueUnreferenced, &head, &lost, |id| values![id.as_bytes()]).await
}
