//! `/v1/objects`

use axum::Json;
use axum::extract::State;
use holdfast_actors::flow::cold::stub::stub_of;
use holdfast_actors::ports::metadata::{Content, Restore};
use holdfast_protocol::admin::{ErrorBody, ObjectChunk, ObjectCold, ObjectRestore, ObjectStat};
use holdfast_protocol::tiers::STANDARD;
use holdfast_protocol::{CHUNK_SIZE_MAX, ChunkId, Manifest, STUB_INDEX, TierName, VersionId};
use serde::Deserialize;

use super::error::Path;
use super::page::Params;
use super::replicas::{self, Replica};
use super::{AdminState, ApiError};

/// Chunks that are looked up: as many as one question to a peer may name.
const CHUNKS_SHOWN: usize = 1_000;

/// Parameters of a look at an object.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Which {
    version_id: Option<String>,
}

/// An object with its chunks, and which node has each of them: every node that should is asked. Of an object in a cold
/// tier the tier is told instead, and who has the chunk that says where in it the bytes are.
#[utoipa::path(
    get, path = "/v1/objects/{bucket}/{key}", tag = "objects", operation_id = "stat_object",
    params(
        ("bucket" = String, Path, description = "Its bucket"),
        ("key" = String, Path, description = "Its key, with slashes escaped"),
        ("version_id" = Option<String>, Query, description = "One version instead of the latest"),
    ),
    responses(
        (status = 200, description = "The object", body = ObjectStat),
        (status = "default", description = "An error", body = ErrorBody),
    )
)]
pub(super) async fn stat(
    State(state): State<AdminState>,
    Path((bucket, key)): Path<(String, String)>,
    Params(which): Params<Which>,
) -> Result<Json<ObjectStat>, ApiError> {
    let version = which.version_id.map(|text| text.parse::<VersionId>()).transpose();
    let version = version.map_err(|_| ApiError::invalid("that is no version id"))?;
    let found = state.metadata.bucket(&bucket).await?;
    let object = state.metadata.object(found.id, &key, version).await?;
    let content = object.content.as_ref();
    // No chunks stand behind the manifest of a cold content.
    let stub = content.and_then(|content| stub_size(content));
    let hot = content.filter(|_| stub.is_none());
    let manifest = hot.map(|content| content.manifest.clone()).unwrap_or_default();
    let sizes = stub.map_or_else(|| chunk_sizes(&manifest), |stub| vec![stub]);
    let ids: Vec<ChunkId> = sizes.iter().map(|(chunk, _)| *chunk).collect();
    let asked = replicas::named(&state, &ids).await;
    let mut chunks: Vec<ObjectChunk> =
        sizes.iter().zip(asked).map(|(of, asked)| object_chunk(&state, of, asked)).collect();
    let cold = content.and_then(|content| content.cold()).and_then(|place| {
        Some(ObjectCold {
            tier: place.tier.to_string(),
            pieces: place.piece_count(),
            piece_bytes: place.piece_bytes,
            stub: chunks.pop()?,
        })
    });
    Ok(Json(ObjectStat {
        bucket,
        key,
        version: object.version.to_string(),
        is_latest: object.is_latest,
        is_delete_marker: object.is_delete_marker(),
        size_bytes: content.map_or(0, |content| content.size_bytes()),
        etag: content.map(|content| content.etag.to_string()).unwrap_or_default(),
        last_modified_ms: object.last_modified_ms,
        owner: object.owner.clone(),
        storage_class: content.map(|_| object.class.as_ref().map_or(STANDARD, TierName::as_str).to_owned()),
        restore: object.restore.and_then(|restore| match restore {
            Restore::Ongoing => Some(ObjectRestore { until_ms: None }),
            Restore::Until(until_ms) => {
                (until_ms > state.clock.now_ms()).then_some(ObjectRestore { until_ms: Some(until_ms) })
            }
        }),
        cold,
        chunks_total: manifest.extents.iter().map(|extent| u64::from(extent.chunk_count())).sum(),
        chunks,
    }))
}

/// The stub of a content in a tier, with its size.
fn stub_size(content: &Content) -> Option<(ChunkId, u32)> {
    // One that is too long for a chunk cannot have been written, and is missing.
    let size = stub_of(content)?.encode().map_or(0, |payload| payload.len() as u32);
    Some((content.id.chunk(STUB_INDEX), size))
}

/// The first chunks with their sizes: all of an extent but its last are full.
fn chunk_sizes(manifest: &Manifest) -> Vec<(ChunkId, u32)> {
    let sizes = manifest.extents.iter().flat_map(|extent| {
        let total = extent.size_bytes;
        extent.chunks().enumerate().map(move |(at, chunk)| {
            let rest = total.saturating_sub(at as u64 * CHUNK_SIZE_MAX);
            (chunk, rest.min(CHUNK_SIZE_MAX) as u32)
        })
    });
    sizes.take(CHUNKS_SHOWN).collect()
}

fn object_chunk(state: &AdminState, (chunk, size_bytes): &(ChunkId, u32), asked: Vec<Replica>) -> ObjectChunk {
    ObjectChunk {
        chunk: chunk.to_string(),
        size_bytes: *size_bytes,
        shard: replicas::shard_of(state, chunk),
        replicas: asked.into_iter().map(|replica| replica.told(*size_bytes)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use holdfast_protocol::ContentId;

    use super::*;

    #[test]
    fn chunk_sizes_add_up_to_the_object() {
        let content = ContentId([7; 12]);
        let manifest = Manifest::single(content, 2 * CHUNK_SIZE_MAX + 5);
        let sizes: Vec<u32> = chunk_sizes(&manifest).into_iter().map(|(_, size)| size).collect();
        assert_eq!(sizes, [CHUNK_SIZE_MAX as u32, CHUNK_SIZE_MAX as u32, 5]);
    }
}
