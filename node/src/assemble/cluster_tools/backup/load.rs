//! Lines to metadata.

use std::collections::HashSet;
use std::io::{BufRead, Read};
use std::sync::Arc;

use anyhow::{Context, bail};
use holdfast_actors::ports::metadata::{
    AccessKey, Bucket, CannedAcl, Content, ContentPlace, ContentSource, DeleteRequest, NewBucket, NewObject, NewUpload,
    Part, ReplicaEvidence, User, Versioning, WritePrecondition,
};
use holdfast_actors::ports::{MetadataError, MetadataStore, TierLedger};
use holdfast_protocol::{ColdPlace, ContentId, Manifest, UploadId, VersionId};

use super::Counts;
use super::format::{ContentLine, FORMAT, Line, PartLine, UploadLine, VersionLine};

/// Longest line that is read: an object of 10,000 parts is about 2 MB, the place in a tier at most twice the 16 MiB of
/// a stub.
const LINE_BYTES_MAX: u64 = 64 << 20;

/// Puts a backup into `metadata`, and its tiers into `ledger`.
///
/// # Errors
/// As [`super::restore`].
pub async fn load(
    metadata: &dyn MetadataStore,
    ledger: &dyn TierLedger,
    from: &mut impl Read,
) -> anyhow::Result<Counts> {
    refuse_used(metadata).await?;
    let mut lines = Lines::new(from);
    let mut loader = Loader { metadata, ledger, counts: Counts::default(), bucket: None, seen: HashSet::new() };
    loop {
        match lines.read_next()? {
            Line::End(told) => {
                loader.close_bucket().await?;
                return agreed(told, loader.counts);
            }
            line => {
                let restored = loader.take(line).await;
                restored.with_context(|| format!("restore line {}", lines.number))?;
            }
        }
    }
}

/// Refuses metadata that somebody works with.
///
/// # Errors
/// When it holds buckets, or what was in some; those of metadata.
pub(super) async fn refuse_used(metadata: &dyn MetadataStore) -> anyhow::Result<()> {
    if !metadata.list_buckets(None, None, 1).await.context("look at the metadata")?.is_empty() {
        bail!("the metadata holds buckets already: a backup is put back into empty metadata only");
    }
    let waiting = metadata.waiting_reclaims(i64::MAX as u64, 1).await.context("look at the metadata")?;
    if !waiting.is_empty() {
        // Half-way through they would be met again, and with the backup's objects there.
        bail!(
            "the metadata holds deleted objects that wait to be reclaimed: a backup is put back into empty metadata only"
        );
    }
    Ok(())
}

/// Reads a backup to its end, and says what is in it. Nothing is written anywhere.
///
/// # Errors
/// When it is no backup, is damaged, or was cut off.
pub(super) fn check(from: &mut impl Read) -> anyhow::Result<Counts> {
    let mut lines = Lines::new(from);
    let mut counts = Counts::default();
    loop {
        *match lines.read_next()? {
            Line::End(told) => return agreed(told, counts),
            Line::HoldfastMetadata { .. } => bail!("line {} has its place elsewhere", lines.number),
            Line::User { .. } => &mut counts.users,
            Line::Key { .. } => &mut counts.keys,
            Line::Tier { .. } => &mut counts.tiers,
            Line::Bucket { .. } => &mut counts.buckets,
            Line::Version(_) => &mut counts.versions,
            Line::Upload(_) => &mut counts.uploads,
            Line::Part(_) => &mut counts.parts,
        } += 1;
    }
}

fn agreed(told: Counts, counted: Counts) -> anyhow::Result<Counts> {
    if told != counted {
        bail!("the backup holds {} but says {}", counted.text(), told.text());
    }
    Ok(told)
}

/// The lines of a backup after its first one.
struct Lines<R: Read> {
    reader: std::io::BufReader<R>,
    /// Of the line that was read last.
    number: u64,
}

impl<R: Read> Lines<R> {
    fn new(from: R) -> Self {
        Self { reader: std::io::BufReader::new(from), number: 0 }
    }

    fn read_next(&mut self) -> anyhow::Result<Line> {
        if self.number == 0 {
            match self.read().context("this is no backup of metadata")? {
                Line::HoldfastMetadata { format, .. } if format > FORMAT => {
                    bail!("the backup's format is {format}, but this program knows only up to {FORMAT}")
                }
                Line::HoldfastMetadata { .. } => {}
                _ => bail!("this is no backup of metadata"),
            }
        }
        self.read()
    }

    fn read(&mut self) -> anyhow::Result<Line> {
        let mut text = String::new();
        self.number += 1;
        let number = self.number;
        let read = (&mut self.reader).take(LINE_BYTES_MAX).read_line(&mut text);
        let read = read.with_context(|| format!("read line {number}"))?;
        if read == 0 {
            bail!("the backup ends in line {number} without its last line: it was cut off");
        }
        let line: Result<Line, _> = serde_json::from_str(&text);
        // What was cut off ends in the middle of a line, and the others each with a newline.
        line.with_context(|| match text.ends_with('\n') {
            true => format!("understand line {number}"),
            false => format!("the backup ends in the middle of line {number}: it was cut off"),
        })
    }
}

struct Loader<'a> {
    metadata: &'a dyn MetadataStore,
    ledger: &'a dyn TierLedger,
    counts: Counts,
    /// The bucket being filled, with the versioning that it is to have in the end.
    bucket: Option<(Arc<Bucket>, Versioning)>,
    /// Contents that are there already: further versions share them.
    seen: HashSet<ContentId>,
}

impl Loader<'_> {
    async fn take(&mut self, line: Line) -> anyhow::Result<()> {
        match line {
            Line::HoldfastMetadata { .. } | Line::End(_) => bail!("that line has its place elsewhere"),
            Line::User { name, admin, enabled, created_ms } => {
                let user = User { name: name.clone(), admin, enabled, created_ms };
                match self.metadata.create_user(user).await {
                    Ok(()) => {}
                    // The root user may be there already.
                    Err(MetadataError::Exists(_)) => self.metadata.set_user_enabled(&name, enabled).await?,
                    Err(error) => return Err(error.into()),
                }
                self.counts.users += 1;
            }
            Line::Key { access_key, sealed_secret, user, enabled, description, created_ms } => {
                let user = (*self.metadata.user(&user).await?).clone();
                let sealed_secret = hex::decode(sealed_secret)?;
                let key = AccessKey { access_key, sealed_secret, user, enabled, description, created_ms };
                match self.metadata.create_key(key).await {
                    Ok(()) | Err(MetadataError::Exists(_)) => {}
                    Err(error) => return Err(error.into()),
                }
                self.counts.keys += 1;
            }
            Line::Tier { name, settings, created_ms } => {
                match self.ledger.add_tier(name.clone(), settings.clone(), created_ms, None).await {
                    Ok(_) => {}
                    // An operator may have added it already.
                    Err(MetadataError::Exists(_)) => drop(self.ledger.change_tier(&name, settings, None).await?),
                    Err(error) => return Err(error.into()),
                }
                self.counts.tiers += 1;
            }
            Line::Bucket { name, owner, created_ms, versioning, configs } => {
                self.close_bucket().await?;
                let new = NewBucket { name: name.clone(), owner, acl: CannedAcl::Private, now_ms: created_ms };
                let bucket = match self.metadata.create_bucket(new.clone()).await {
                    // An older version may have let a bucket be made while its owner was removed.
                    Err(MetadataError::NotFound(_)) => {
                        let user = User { name: new.owner.clone(), admin: false, enabled: false, created_ms };
                        self.metadata.create_user(user).await?;
                        self.metadata.create_bucket(new).await?
                    }
                    made => made?,
                };
                for (kind, value) in configs {
                    self.metadata.set_bucket_config(&name, bucket.id, kind, Some(value)).await?;
                }
                self.bucket = Some((bucket, versioning));
                self.counts.buckets += 1;
            }
            Line::Version(line) => self.version(*line).await?,
            Line::Upload(line) => self.upload(*line).await?,
            Line::Part(line) => self.part(*line).await?,
        }
        Ok(())
    }

    fn bucket_of(&self, name: &str) -> anyhow::Result<(Arc<Bucket>, Versioning)> {
        let (bucket, versioning) =
            self.bucket.as_ref().filter(|(bucket, _)| bucket.name == name).context("no such bucket")?;
        Ok((bucket.clone(), *versioning))
    }

    /// Versions with and without an id are made under different states of the bucket; the last one is the one it is to
    /// have.
    async fn close_bucket(&mut self) -> anyhow::Result<()> {
        if let Some((bucket, versioning)) = self.bucket.take()
            && versioning != Versioning::Unversioned
        {
            self.metadata.set_versioning(&bucket.name, bucket.id, versioning).await?;
        }
        Ok(())
    }

    async fn version(&mut self, line: VersionLine) -> anyhow::Result<()> {
        let (bucket, versioning) = self.bucket_of(&line.bucket)?;
        let version: VersionId = line.version.parse().map_err(|e| anyhow::anyhow!("{e}"))?;
        if versioning != Versioning::Unversioned {
            let state = if version == VersionId::NULL { Versioning::Suspended } else { Versioning::Enabled };
            if self.metadata.bucket(&bucket.name).await?.versioning != state {
                self.metadata.set_versioning(&bucket.name, bucket.id, state).await?;
            }
        }
        self.counts.versions += 1;
        let Some(content) = line.content else {
            let request = DeleteRequest {
                key: line.key,
                version: None,
                marker_version: version,
                owner: line.owner,
                precondition: WritePrecondition::default(),
                only_if: None,
                event: None,
            };
            let deleted = self.metadata.delete_objects(bucket.id, vec![request], line.last_modified_ms).await?;
            for one in deleted {
                one?;
            }
            return Ok(());
        };
        let id = content_id(&content.id)?;
        let source = if self.seen.insert(id) {
            let manifest = Manifest::decode(&hex::decode(&content.manifest)?).map_err(|e| anyhow::anyhow!("{e}"))?;
            let ContentLine { etag, checksum, parts, cold, .. } = content;
            let place = match cold {
                None => ContentPlace::Cluster,
                Some(cold) => ContentPlace::Tier(Arc::new(ColdPlace::decode(&hex::decode(cold)?)?)),
            };
            ContentSource::New(Content { id, manifest, etag, checksum, parts, place })
        } else {
            ContentSource::Shared(id)
        };
        let object = NewObject {
            bucket: bucket.id,
            key: line.key,
            version,
            now_ms: line.last_modified_ms,
            owner: line.owner,
            content: source,
            attributes: line.attributes,
            tags: line.tags,
            acl: line.acl,
            precondition: WritePrecondition::default(),
            event: None,
            evidence: ReplicaEvidence::default(),
            // Where the content does not lie there, the commit queues its move.
            class: line.class,
        };
        self.metadata.commit_object(object).await?;
        Ok(())
    }

    async fn upload(&mut self, line: UploadLine) -> anyhow::Result<()> {
        let (bucket, _) = self.bucket_of(&line.bucket)?;
        let upload = NewUpload {
            id: upload_id(&line.id)?,
            bucket: bucket.id,
            key: line.key,
            owner: line.owner,
            now_ms: line.begun_ms,
            attributes: line.attributes,
            tags: line.tags,
            acl: line.acl,
            checksum: line.checksum,
            class: line.class,
        };
        self.metadata.create_upload(upload).await?;
        self.counts.uploads += 1;
        Ok(())
    }

    async fn part(&mut self, line: PartLine) -> anyhow::Result<()> {
        let (bucket, _) = self.bucket_of(&line.bucket)?;
        let mut md5 = [0; 16];
        hex::decode_to_slice(&line.md5, &mut md5)?;
        let part = Part {
            number: line.number,
            content: content_id(&line.content)?,
            size_bytes: line.size_bytes,
            md5,
            checksum: line.checksum,
            last_modified_ms: line.last_modified_ms,
        };
        let upload = upload_id(&line.upload)?;
        self.metadata.put_part(bucket.id, &line.key, upload, part, ReplicaEvidence::default()).await?;
        self.counts.parts += 1;
        Ok(())
    }
}

fn content_id(text: &str) -> anyhow::Result<ContentId> {
    let mut id = [0; 12];
    hex::decode_to_slice(text, &mut id)?;
    Ok(ContentId(id))
}

fn upload_id(text: &str) -> anyhow::Result<UploadId> {
    text.parse().map_err(|e| anyhow::anyhow!("{e}"))
}
