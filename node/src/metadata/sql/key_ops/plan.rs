//! Deciding one operation: what `domain::objects::versioning` says of it, turned into effects.

use std::collections::HashMap;
use std::sync::Arc;

use holdfast_actors::domain::events::EventOutcome;
use holdfast_actors::domain::objects::versioning::{
    Current, CurrentFate, Promotion, check_only_if, delete_needs_history, plan_delete, plan_put, put_touches_history,
};
use holdfast_actors::ports::metadata::{
    BucketId, Committed, Content, ContentPlace, ContentSource, DeleteRequest, MetadataError, MetadataResult,
    MoveReason, NewObject, ObjectVersion, OnlyIf, Versioning,
};
use holdfast_protocol::{Epoch, ShardId, VersionId};

use super::effects::Effects;
use super::load::{Loaded, LoadedHistory, load, load_content, load_history, load_past};
use super::{Key, KeyDone};
use crate::metadata::rows;
use crate::metadata::sql::moves::NewMove;
use crate::metadata::sql::{Session, lifecycle, outbox};

pub(super) async fn put<'a, S: Session>(
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
    effects.settle_current(key, plan.current, loaded, true);
    if current.is_none() && versioning != Versioning::Unversioned {
        effects.supersede.push(key);
    }
    let sequence = tx.take_sequence();
    effects.put.push((object, plan.version, sequence, content.id));
    note_class(effects, object, key, plan.version, &content);
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

/// Queues a move, where a new version does not lie where its class says.
fn note_class<'a>(effects: &mut Effects<'a>, object: &NewObject, key: Key<'a>, version: VersionId, content: &Content) {
    let lies_in = content.cold().map(|place| &place.tier);
    if object.class.as_ref() != lies_in
        && let Some(lane) = object.class.as_ref().or(lies_in)
    {
        effects.moves.push(NewMove {
            place: key,
            version,
            content: content.id,
            lane: lane.clone(),
            to: object.class.clone(),
            reason: MoveReason::Stored,
            queued_ms: object.now_ms,
            due_ms: object.now_ms,
        });
    } else if matches!(object.content, ContentSource::Shared(_)) {
        // A copy onto itself has the content that a move of the version before is about: that move is over. Of a new
        // content a move finds that out by itself.
        effects.settled.push((key, version));
    }
}

pub(super) async fn delete<'a, S: Session>(
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
    effects.settle_current(key, plan.current, loaded, false);
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
    let current = loaded.current.as_ref().map(|(current, _)| current);
    check_only_if(only_if, version, current, &history.view())?;
    if let (Some(noncurrent), Some(version)) = (&only_if.noncurrent, version)
        && current.is_none_or(|current| current.version != version)
    {
        lifecycle::check_noncurrent(tx, key, version, only_if.sequence, noncurrent).await?;
    }
    Ok(())
}

/// Holds a version against what was judged before.
///
/// # Errors
/// `PreconditionFailed`.
pub(in crate::metadata::sql) async fn check_judged<S: Session>(
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
