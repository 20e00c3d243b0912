//! Metadata to lines.

use std::io::Write;
use std::sync::Arc;

use anyhow::Context;
use holdfast_actors::ports::metadata::{
    Bucket, ContentPlace, ListUploadsQuery, ListVersionsQuery, ObjectVersion, Upload, User,
};
use holdfast_actors::ports::tiering::TierRecord;
use holdfast_actors::ports::{Clock, MetadataError, MetadataStore, SystemClock, TierLedger};
use holdfast_protocol::VersionId;

use super::Counts;
use super::format::{ContentLine, FORMAT, Line, PartLine, UploadLine, VersionLine};

/// Rows a page.
const PAGE: u32 = 1_000;
/// Buckets read at a time: each comes with its documents, more than half a megabyte if its owner wants that.
const BUCKETS: u32 = 50;
/// Versions of a key whose lines are kept until all are known. A key may have more than memory has room for, and each
/// may be of ten thousand parts: of more only their names are kept, and each is read once more.
const KEPT_LINES_MAX: usize = 256;

fn put(out: &mut impl Write, line: &Line) -> anyhow::Result<()> {
    serde_json::to_writer(&mut *out, line)?;
    Ok(out.write_all(b"\n")?)
}

/// Writes all of `metadata`.
///
/// # Errors
/// As [`super::backup`].
pub async fn dump(
    metadata: &dyn MetadataStore,
    ledger: &dyn TierLedger,
    out: &mut impl Write,
) -> anyhow::Result<Counts> {
    let mut counts = Counts::default();
    put(out, &Line::HoldfastMetadata { format: FORMAT, made_ms: SystemClock.now_ms() })?;
    let mut after: Option<String> = None;
    loop {
        let users = metadata.list_users(after.as_deref(), PAGE).await.context("read users")?;
        for user in &users {
            let User { name, admin, enabled, created_ms } = (**user).clone();
            put(out, &Line::User { name, admin, enabled, created_ms })?;
            counts.users += 1;
        }
        let Some(last) = users.last() else { break };
        after = Some(last.name.clone());
    }
    let mut after: Option<String> = None;
    loop {
        let keys = metadata.list_keys(None, after.as_deref(), PAGE).await.context("read access keys")?;
        for key in &keys {
            put(
                out,
                &Line::Key {
                    access_key: key.access_key.clone(),
                    sealed_secret: hex::encode(&key.sealed_secret),
                    user: key.user.name.clone(),
                    enabled: key.enabled,
                    description: key.description.clone(),
                    created_ms: key.created_ms,
                },
            )?;
            counts.keys += 1;
        }
        let Some(last) = keys.last() else { break };
        after = Some(last.access_key.clone());
    }
    for tier in ledger.tiers().await.context("read cold tiers")? {
        let TierRecord { name, settings, created_ms, revision: _ } = tier;
        put(out, &Line::Tier { name, settings, created_ms })?;
        counts.tiers += 1;
    }
    let mut after: Option<String> = None;
    loop {
        let buckets = metadata.list_buckets(None, after.as_deref(), BUCKETS).await.context("read buckets")?;
        for bucket in &buckets {
            put(
                out,
                &Line::Bucket {
                    name: bucket.name.clone(),
                    owner: bucket.owner.clone(),
                    created_ms: bucket.created_ms,
                    versioning: bucket.versioning,
                    configs: bucket.configs.clone(),
                },
            )?;
            counts.buckets += 1;
            dump_versions(metadata, bucket, out, &mut counts, KEPT_LINES_MAX).await?;
            dump_uploads(metadata, bucket, out, &mut counts).await?;
        }
        let Some(last) = buckets.last() else { break };
        after = Some(last.name.clone());
    }
    put(out, &Line::End(counts))?;
    out.flush()?;
    Ok(counts)
}

/// The versions of one key. They come newest first and are written oldest first.
#[derive(Default)]
struct OfKey {
    key: String,
    names: Vec<VersionId>,
    /// None if they are too many to be kept.
    lines: Vec<Line>,
}

impl OfKey {
    async fn write(&self, metadata: &dyn MetadataStore, bucket: &Bucket, out: &mut impl Write) -> anyhow::Result<()> {
        if self.lines.len() == self.names.len() {
            return self.lines.iter().rev().try_for_each(|line| put(out, line));
        }
        for name in self.names.iter().rev() {
            let version = metadata.object(bucket.id, &self.key, Some(*name)).await;
            let version = version.with_context(|| format!("read {}/{}", bucket.name, self.key))?;
            put(out, &version_line(&bucket.name, &version))?;
        }
        Ok(())
    }
}

/// `lines_max`: see [`KEPT_LINES_MAX`].
async fn dump_versions(
    metadata: &dyn MetadataStore,
    bucket: &Bucket,
    out: &mut impl Write,
    counts: &mut Counts,
    lines_max: usize,
) -> anyhow::Result<()> {
    let mut query = ListVersionsQuery { limit: PAGE, ..ListVersionsQuery::default() };
    let mut of_key = OfKey::default();
    loop {
        let page = metadata.list_versions(bucket.id, query.clone()).await;
        let page = page.with_context(|| format!("read bucket {}", bucket.name))?;
        for version in &page.entries {
            if of_key.key != version.key {
                of_key.write(metadata, bucket, out).await?;
                of_key = OfKey { key: version.key.clone(), ..OfKey::default() };
            }
            of_key.names.push(version.version);
            if of_key.names.len() > lines_max {
                of_key.lines = Vec::new();
            } else {
                let whole = whole(metadata, bucket, version).await?;
                of_key.lines.push(version_line(&bucket.name, &whole));
            }
            counts.versions += 1;
        }
        let Some((after, after_version)) = page.next else { break };
        query.after = after;
        query.after_version = after_version;
    }
    of_key.write(metadata, bucket, out).await
}

/// A version with where in a tier its content is, which pages do not say.
async fn whole(
    metadata: &dyn MetadataStore,
    bucket: &Bucket,
    version: &Arc<ObjectVersion>,
) -> anyhow::Result<Arc<ObjectVersion>> {
    match &version.content {
        Some(content) if content.place == ContentPlace::NotLoaded => {
            let whole = metadata.object(bucket.id, &version.key, Some(version.version)).await;
            whole.with_context(|| format!("read {}/{}", bucket.name, version.key))
        }
        _ => Ok(version.clone()),
    }
}

fn version_line(bucket: &str, version: &ObjectVersion) -> Line {
    let content = version.content.as_ref().map(|content| ContentLine {
        id: hex::encode(content.id.0),
        manifest: hex::encode(content.manifest.encode()),
        etag: content.etag,
        checksum: content.checksum.clone(),
        parts: content.parts.clone(),
        cold: content.cold().map(|place| hex::encode(place.encode())),
    });
    Line::Version(Box::new(VersionLine {
        bucket: bucket.to_owned(),
        key: version.key.clone(),
        version: version.version.to_string(),
        last_modified_ms: version.last_modified_ms,
        owner: version.owner.clone(),
        content,
        attributes: version.attributes.clone(),
        tags: version.tags.clone(),
        acl: version.acl,
        class: version.class.clone(),
        restore: version.restore,
    }))
}

async fn dump_uploads(
    metadata: &dyn MetadataStore,
    bucket: &Bucket,
    out: &mut impl Write,
    counts: &mut Counts,
) -> anyhow::Result<()> {
    let mut query = ListUploadsQuery { limit: PAGE, ..ListUploadsQuery::default() };
    loop {
        let page = metadata.list_uploads(bucket.id, query.clone()).await;
        let page = page.with_context(|| format!("read uploads of bucket {}", bucket.name))?;
        for upload in &page.entries {
            dump_upload(metadata, bucket, upload, out, counts).await?;
        }
        let Some((after, after_upload)) = page.next else { return Ok(()) };
        query.after = after;
        query.after_upload = after_upload;
    }
}

async fn dump_upload(
    metadata: &dyn MetadataStore,
    bucket: &Bucket,
    upload: &Upload,
    out: &mut impl Write,
    counts: &mut Counts,
) -> anyhow::Result<()> {
    let new = &upload.new;
    put(
        out,
        &Line::Upload(Box::new(UploadLine {
            bucket: bucket.name.clone(),
            id: new.id.to_string(),
            key: new.key.clone(),
            owner: new.owner.clone(),
            begun_ms: new.now_ms,
            attributes: new.attributes.clone(),
            tags: new.tags.clone(),
            acl: new.acl,
            checksum: new.checksum,
            class: new.class.clone(),
        })),
    )?;
    counts.uploads += 1;
    let mut after = 0;
    loop {
        let parts = match metadata.list_parts(new.id, after, PAGE).await {
            Ok(parts) => parts,
            // Completed or aborted since: it comes back without parts, and ends as a stale upload.
            Err(MetadataError::NoSuchUpload) => return Ok(()),
            Err(error) => return Err(error).context("read parts"),
        };
        for part in &parts {
            put(
                out,
                &Line::Part(Box::new(PartLine {
                    bucket: bucket.name.clone(),
                    key: new.key.clone(),
                    upload: new.id.to_string(),
                    number: part.number,
                    content: hex::encode(part.content.0),
                    size_bytes: part.size_bytes,
                    md5: hex::encode(part.md5),
                    checksum: part.checksum.clone(),
                    last_modified_ms: part.last_modified_ms,
                })),
            )?;
            counts.parts += 1;
        }
        let Some(last) = parts.last() else { return Ok(()) };
        after = last.number;
    }
}

#[cfg(test)]
mod tests {
    use holdfast_actors::ports::metadata::{DeleteRequest, MetadataDirect as _, NewObject, Versioning, samples};

    use super::*;
    use crate::metadata::{SqliteMetadataStore, SqliteOptions};

    #[tokio::test]
    async fn versions_come_oldest_first_however_few_are_kept_in_memory() {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteMetadataStore::open(&dir.path().join("metadata"), SqliteOptions::default()).await.unwrap();
        let id = samples::bucket(&store, "bucket").await.id;
        store.set_versioning("bucket", id, Versioning::Enabled).await.unwrap();
        let bucket = store.bucket("bucket").await.unwrap();
        for at_ms in [2, 3, 5, 6, 7, 8] {
            let object = samples::object(bucket.id, if at_ms < 5 { "few" } else { "many" });
            let object = NewObject { version: VersionId::generate(at_ms), now_ms: at_ms, ..object };
            store.commit_object(object).await.unwrap();
        }
        let marker = DeleteRequest { marker_version: VersionId::generate(9), ..samples::deletion("many") };
        for deleted in store.delete_objects(bucket.id, vec![marker], 9).await.unwrap() {
            deleted.unwrap();
        }
        let listed =
            store.list_versions(bucket.id, ListVersionsQuery { limit: 10, ..Default::default() }).await.unwrap();
        assert_eq!(listed.entries.len(), 7);
        let mut dumps = Vec::new();
        for lines_max in [0, 1, 2, 4, 100] {
            let (mut out, mut counts) = (Vec::new(), Counts::default());
            dump_versions(&store, &bucket, &mut out, &mut counts, lines_max).await.unwrap();
            assert_eq!(counts.versions, 7);
            dumps.push(String::from_utf8(out).unwrap());
        }
        let times: Vec<u64> = dumps[0]
            .lines()
            .map(|line| match serde_json::from_str::<Line>(line).unwrap() {
                Line::Version(version) => version.last_modified_ms,
                _ => unreachable!("there are versions only"),
            })
            .collect();
        assert_eq!(times, [2, 3, 5, 6, 7, 8, 9]);
        dumps.dedup();
        assert_eq!(dumps.len(), 1, "they are the same");
        store.close().await;
    }
}
