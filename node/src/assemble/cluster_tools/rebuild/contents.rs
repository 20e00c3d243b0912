//! Contents, made anew of what labels and bytes tell.

use futures::StreamExt;
use holdfast_actors::ports::chunks::ReplicaStore;
use holdfast_actors::ports::metadata::{Content, ContentPlace, ETag};
use holdfast_protocol::{ContentId, Manifest};
use md5::{Digest, Md5};

use super::found::Found;
use super::{RebuildReport, stubs};

/// The content that was found; `None`: its stub cannot be read any more.
pub(super) async fn made_of(chunks: &dyn ReplicaStore, found: &Found, report: &mut RebuildReport) -> Option<Content> {
    match &found.tier {
        None => Some(content_here(chunks, found, report).await),
        Some(_) => cold_content(chunks, found).await,
    }
}

/// A content in a tier; or the one that it was moved from, if that is whole.
async fn cold_content(chunks: &dyn ReplicaStore, found: &Found) -> Option<Content> {
    let cold = stubs::read(chunks, found.content, found.size_bytes).await?;
    if let Some((_, id)) = found.moved_from
        && cold.etag.parts.is_none()
    {
        let manifest = Manifest::single(id, found.size_bytes);
        if md5_of(chunks, &manifest).await == Some(cold.etag.md5) {
            return Some(Content { id, manifest, place: ContentPlace::Cluster, ..cold });
        }
    }
    Some(cold)
}

/// A content on the disks of the cluster.
async fn content_here(chunks: &dyn ReplicaStore, found: &Found, report: &mut RebuildReport) -> Content {
    let manifest = Manifest::single(found.content, found.size_bytes);
    let etag = match md5_of(chunks, &manifest).await {
        Some(md5) => ETag { md5, parts: None },
        None => {
            report.without_md5 += 1;
            // The number of parts tells clients that it is no MD5 of the bytes.
            ETag { md5: stand_in(found.content), parts: Some(1) }
        }
    };
    Content { id: found.content, manifest, etag, checksum: None, parts: vec![], place: ContentPlace::Cluster }
}

/// Unique and stable, where the MD5 of bytes is not known.
pub(super) fn stand_in(content: ContentId) -> [u8; 16] {
    let mut md5 = [0; 16];
    md5[..12].copy_from_slice(&content.0);
    md5
}

/// The MD5 of all bytes, if all chunks are here and whole.
pub(super) async fn md5_of(chunks: &dyn ReplicaStore, manifest: &Manifest) -> Option<[u8; 16]> {
    let mut md5 = Md5::new();
    for extent in &manifest.extents {
        for chunk in extent.chunks() {
            let size_bytes = chunks.stat(chunk)?.size_bytes;
            let mut body = chunks.read_copied(chunk, 0..size_bytes).ok()?;
            while let Some(piece) = body.next().await {
                md5.update(&piece.ok()?);
            }
        }
    }
    Some(md5.finalize().into())
}
