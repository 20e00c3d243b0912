//! Applying what was decided of a group, a statement for each kind of effect.

use std::collections::BTreeMap;

use holdfast_actors::domain::objects::versioning::CurrentFate;
use holdfast_actors::ports::metadata::{Content, MetadataResult, NewObject};
use holdfast_protocol::{ChunkId, ContentId, NodeId, TierName, VersionId};

use super::load::{Loaded, PastRow};
use super::{Key, key_values, version_values};
use crate::metadata::rows;
use crate::metadata::sql::moves::NewMove;
use crate::metadata::sql::outbox::NewRow;
use crate::metadata::sql::shapes::OBJECT_COLUMNS;
use crate::metadata::sql::{Fields as _, Session, Shape, lifecycle, moves, outbox, replicas, values};

/// Effects of a group, by the statement that applies them, in the order they are applied.
#[derive(Default)]
pub(super) struct Effects<'a> {
    pub(super) contents: Vec<&'a Content>,
    /// How much each content's count of references changes.
    pub(super) references: BTreeMap<ContentId, i64>,
    /// Contents that a copy takes: no longer to be reclaimed.
    pub(super) taken: Vec<ContentId>,
    pub(super) remove_past: Vec<(Key<'a>, VersionId)>,
    pub(super) archive: Vec<Key<'a>>,
    /// Keys whose latest version may be a delete marker that another version takes the place of.
    pub(super) supersede: Vec<Key<'a>>,
    pub(super) remove: Vec<Key<'a>>,
    pub(super) put: Vec<(&'a NewObject, VersionId, i64, ContentId)>,
    pub(super) markers: Vec<(Key<'a>, VersionId, i64, u64, &'a str)>,
    pub(super) promote: Vec<(Key<'a>, VersionId, i64)>,
    pub(super) raise_marker: Vec<(Key<'a>, VersionId, i64)>,
    /// What is told of the group.
    pub(super) events: Vec<NewRow>,
    /// Keys that lifecycle rules are to look at once more.
    pub(super) rechecks: Vec<Key<'a>>,
    /// Replicas that missed a chunk.
    pub(super) repairs: Vec<(ChunkId, NodeId, u64)>,
    /// Versions whose content does not lie where their class says.
    pub(super) moves: Vec<NewMove<'a>>,
    /// Versions whose content lies where their class says, and which somebody may have asked to be moved before.
    pub(super) settled: Vec<(Key<'a>, VersionId)>,
    /// Versions that go, and whose moves may wait for long.
    pub(super) gone: Vec<(Key<'a>, VersionId)>,
    pub(super) now_ms: u64,
}

impl<'a> Effects<'a> {
    pub(super) fn remove_past(&mut self, key: Key<'a>, past: PastRow) {
        self.remove_past.push((key, past.past.version));
        if let Some(content) = past.content {
            *self.references.entry(content).or_default() -= 1;
        }
        if past.is_restored {
            self.gone.push((key, past.past.version));
        }
    }

    /// A current row that a put replaces needs no statement of its own.
    pub(super) fn settle_current(&mut self, key: Key<'a>, fate: CurrentFate, loaded: &Loaded, replaced: bool) {
        match (fate, &loaded.current) {
            (CurrentFate::Keep, _) | (_, None) => return,
            (CurrentFate::Archive, _) => self.archive.push(key),
            (CurrentFate::Remove, Some((current, content))) => {
                *self.references.entry(*content).or_default() -= 1;
                if loaded.is_restored {
                    self.gone.push((key, current.version));
                }
            }
        }
        if !replaced {
            self.remove.push(key);
        }
    }
}

pub(super) async fn apply<S: Session>(tx: &mut S, effects: &Effects<'_>) -> MetadataResult<()> {
    insert_contents(tx, &effects.contents).await?;
    insert_extents(tx, &effects.contents).await?;
    for place in effects.contents.iter().filter_map(|content| content.cold()) {
        moves::keep_pieces(tx, place).await?;
    }
    for (key, version) in &effects.remove_past {
        remove_past(tx, *key, *version).await?;
    }
    let now = values![rows::signed(effects.now_ms)];
    supersede_markers(tx, effects).await?;
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
    for (key, version) in &effects.gone {
        // One that is under way finds out by itself, and tells what is to become of what it stored.
        let sql = "DELETE FROM moves WHERE bucket = ? AND `key` = ? AND version = ? AND owner IS NULL";
        tx.execute(sql, version_values(*key, *version)).await?;
    }
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

/// The newest row of history of a key without a current row is the marker that was its latest version. It is looked for
/// first: a key may have very many rows, and an update that names the key alone looks at all of them.
async fn supersede_markers<S: Session>(tx: &mut S, effects: &Effects<'_>) -> MetadataResult<()> {
    let mut markers = Vec::new();
    for row in tx.fetch_many(Shape::NewestPast, &effects.supersede, |key| key_values(*key)).await? {
        if row.number(3)? != 0 {
            markers.push((row.number(0)?, row.bytes(1)?.to_vec(), row.number(2)?));
        }
    }
    let now = values![rows::signed(effects.now_ms)];
    tx.execute_many(Shape::SupersedeMarkers, &now, &markers, |(bucket, key, sequence)| {
        values![*bucket, key.as_slice(), *sequence]
    })
    .await
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

pub(in crate::metadata::sql) async fn insert_contents<S: Session>(
    tx: &mut S,
    contents: &[&Content],
) -> MetadataResult<()> {
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

/// Makes the extents of contents known that are made of others: else their chunks would be orphans. An upload that is
/// completed has done that.
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
pub(in crate::metadata::sql) async fn dereference<S: Session>(
    tx: &mut S,
    contents: &[ContentId],
    now_ms: u64,
) -> MetadataResult<()> {
    tx.execute_many(Shape::Dereference, &[], contents, |id| values![id.as_bytes()]).await?;
    let head = values![rows::signed(now_ms)];
    tx.execute_many(Shape::QueueUnreferenced, &head, contents, |id| values![id.as_bytes()]).await
}
