//! `/v1/chunks`: whose a chunk is.
//!
//! Metadata knows what a chunk's content is and how many versions refer to it, but has no index of which ones. A chunk
//! says itself what it was written for, so it is looked for under that key, and found there unless the object was
//! deleted since while copies of it live on. [`references`] looks through all versions, for copies, and for chunks of
//! which no header is left.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use holdfast_actors::ports::metadata::{
    Bucket, ContentHolder, ContentPlace, ListAfter, ListVersionsQuery, MetadataError, MetadataResult, ObjectPart,
    ObjectVersion,
};
use holdfast_protocol::admin::{ChunkHeader, ChunkOwner, ChunkReference, ChunkUpload, ErrorBody, Page};
use holdfast_protocol::{CHUNK_SIZE_MAX, ChunkId, ChunkLabel, ContentId, Manifest, STUB_INDEX, VersionId};
use serde::Deserialize;
use tokio::time::timeout;

use super::error::Path;
use super::page::Params;
use super::replicas::{self, Answer, Replica};
use super::{AdminState, ApiError};

/// References that are told of one key.
const REFERENCES_SHOWN: usize = 100;
/// Versions in one question to the database.
const VERSIONS_LISTED: u32 = 1_000;
/// Such questions for one answer.
const LISTS_MAX: usize = 10;
/// How long one node may take for a header: its disk may hang.
const HEADER_MAX: Duration = Duration::from_secs(8);
/// How long the search for a header may take.
const HEADERS_MAX: Duration = Duration::from_secs(20);

fn chunk_id(text: &str) -> Result<ChunkId, ApiError> {
    text.parse::<ChunkId>().map_err(|error| ApiError::invalid(error.to_string()))
}

/// What a chunk belongs to, and which nodes have it: every live node is asked.
#[utoipa::path(
    get, path = "/v1/chunks/{chunk}", tag = "objects", operation_id = "chunk_owner",
    params(("chunk" = String, Path, description = "Its id, 32 hexadecimal digits")),
    responses(
        (status = 200, description = "Whose it is, also if it is nobody's", body = ChunkOwner),
        (status = "default", description = "An error", body = ErrorBody),
    )
)]
pub(super) async fn owner(
    State(state): State<AdminState>,
    Path(chunk): Path<String>,
) -> Result<Json<ChunkOwner>, ApiError> {
    let chunk = chunk_id(&chunk)?;
    let mut asked = replicas::named(&state, &[chunk]).await.pop().unwrap_or_default();
    let others = replicas::others(&state, chunk, &asked).await;
    asked.extend(others);
    let (header, header_error) = header_of(&state, chunk, &asked).await;
    let holder = state.metadata.content_holder(chunk.content()).await?;
    let matches = match (&holder, &header) {
        (Some(ContentHolder::Content { content, references: 1.., .. }), Some(Header { label, .. })) => {
            of_key(&state, label, *content, chunk).await?
        }
        _ => Vec::new(),
    };
    let Standing { state: stands, since_ms, references_total, tier, upload } = Standing::of(holder, &matches, &asked);
    let size_bytes = matches.iter().find_map(|found| found.size_bytes);
    let size_bytes = size_bytes.or_else(|| header.as_ref().and_then(|header| labelled_size(&header.label, chunk)));
    let size_bytes = size_bytes.or_else(|| usual_size(&asked));
    Ok(Json(ChunkOwner {
        chunk: chunk.to_string(),
        state: stands.into(),
        since_ms,
        size_bytes,
        shard: replicas::shard_of(&state, &chunk),
        tier,
        replicas: asked.into_iter().map(|replica| replica.told(size_bytes.unwrap_or(0))).collect(),
        header: header.map(Header::told),
        header_error,
        upload,
        references_total,
        references: matches.into_iter().map(|found| found.reference).collect(),
    }))
}

/// What metadata says of a chunk, with what its nodes say where it says nothing.
struct Standing {
    state: &'static str,
    since_ms: Option<u64>,
    references_total: u64,
    tier: Option<String>,
    upload: Option<ChunkUpload>,
}

impl Standing {
    fn of(holder: Option<ContentHolder>, matches: &[Match], asked: &[Replica]) -> Self {
        let mut standing = Self { state: "unknown", since_ms: None, references_total: 0, tier: None, upload: None };
        match holder {
            Some(ContentHolder::Content { references, tier, queued_ms, .. }) => {
                let is_elsewhere = !matches.is_empty() && matches.iter().all(|found| !found.has_chunk);
                standing.state = match references {
                    0 => "reclaim",
                    _ if is_elsewhere => "not_in_object",
                    _ => "object",
                };
                standing.since_ms = queued_ms;
                standing.references_total = references;
                standing.tier = tier.map(|tier| tier.to_string());
            }
            Some(ContentHolder::Part { bucket, key, upload, number }) => {
                standing.state = "upload";
                standing.upload = Some(ChunkUpload { bucket, key, upload: upload.to_string(), part: number });
            }
            Some(ContentHolder::Reclaim { queued_ms }) => {
                standing.state = "reclaim";
                standing.since_ms = Some(queued_ms);
            }
            Some(ContentHolder::Condemned { condemned_ms }) => {
                standing.state = "condemned";
                standing.since_ms = Some(condemned_ms);
            }
            None if asked.iter().any(|replica| matches!(replica.answer, Answer::Has(_))) => standing.state = "orphan",
            None => {}
        }
        standing
    }
}

/// A version that refers to the content of a chunk.
struct Match {
    reference: ChunkReference,
    /// Whether the content has that chunk. It may be a wrong number that was asked for.
    has_chunk: bool,
    /// Size that the chunk is to have. How long a stub is the version does not say.
    size_bytes: Option<u32>,
}

impl Match {
    /// Of a version, if it refers to `content`.
    fn of(bucket: &Bucket, version: &ObjectVersion, content: ContentId, chunk: ChunkId) -> Option<Self> {
        let content = version.content.as_ref().filter(|found| found.id == content)?;
        // No chunks stand behind the manifest of a cold content.
        let is_hot = content.place == ContentPlace::Cluster;
        let place = if is_hot { place_in(&content.manifest, chunk) } else { None };
        let offset_bytes = place.map(|(offset, _)| offset);
        Some(Self {
            reference: ChunkReference {
                bucket: bucket.name.clone(),
                key: version.key.clone(),
                version: version.version.to_string(),
                is_latest: version.is_latest,
                part: offset_bytes.and_then(|offset| part_at(&content.parts, offset)),
                offset_bytes,
            },
            has_chunk: if is_hot { place.is_some() } else { chunk == content.id.chunk(STUB_INDEX) },
            size_bytes: place.map(|(_, size)| size),
        })
    }
}

/// Where in an object a chunk begins, and how long it is.
fn place_in(manifest: &Manifest, chunk: ChunkId) -> Option<(u64, u32)> {
    let mut start = 0;
    for extent in &manifest.extents {
        if extent.content == chunk.content() {
            return size_in(extent.size_bytes, chunk)
                .map(|size| (start + u64::from(chunk.index()) * CHUNK_SIZE_MAX, size));
        }
        start += extent.size_bytes;
    }
    None
}

/// How long a chunk of a content is: all but the last are full.
fn size_in(content_size_bytes: u64, chunk: ChunkId) -> Option<u32> {
    let rest = content_size_bytes.checked_sub(u64::from(chunk.index()) * CHUNK_SIZE_MAX).filter(|rest| *rest > 0)?;
    Some(rest.min(CHUNK_SIZE_MAX) as u32)
}

/// The part that has the byte at `offset`.
fn part_at(parts: &[ObjectPart], offset: u64) -> Option<u16> {
    let mut end = 0;
    let holds = |part: &&ObjectPart| {
        end += part.size_bytes;
        offset < end
    };
    parts.iter().find(holds).map(|part| part.number)
}

/// How long a chunk is to be by a header of its content.
fn labelled_size(label: &ChunkLabel, chunk: ChunkId) -> Option<u32> {
    if chunk.index() == STUB_INDEX { None } else { size_in(label.content_size_bytes, chunk) }
}

/// The size that most nodes have; of several the one that was found first.
fn usual_size(asked: &[Replica]) -> Option<u32> {
    let sizes = asked.iter().filter_map(|replica| match replica.answer {
        Answer::Has(size_bytes) => Some(size_bytes),
        Answer::Lacks | Answer::Silent => None,
    });
    let sizes: Vec<u32> = sizes.collect();
    sizes.iter().rev().copied().max_by_key(|size| sizes.iter().filter(|found| *found == size).count())
}

/// A header that was read.
struct Header {
    label: ChunkLabel,
    chunk: ChunkId,
    node: String,
}

impl Header {
    fn told(self) -> ChunkHeader {
        let Self { label, chunk, node } = self;
        ChunkHeader {
            bucket: label.bucket,
            key: label.key,
            version: label.part.is_none().then(|| label.version.to_string()),
            upload: label.part.map(|part| part.upload.to_string()),
            part: label.part.map(|part| part.number),
            content_size_bytes: label.content_size_bytes,
            created_ms: label.created_ms,
            chunk: chunk.to_string(),
            node,
        }
    }
}

/// The header of a chunk, else of another chunk of its content; and why a node that has the chunk could not read its
/// own.
async fn header_of(state: &AdminState, chunk: ChunkId, asked: &[Replica]) -> (Option<Header>, Option<String>) {
    let search = async {
        let mut failed = None;
        if let Some(header) = first_header(state, chunk, asked, &mut failed).await {
            return (Some(header), failed);
        }
        let siblings = siblings(chunk);
        for (sibling, asked) in siblings.iter().zip(replicas::named(state, &siblings).await) {
            if let Some(header) = first_header(state, *sibling, &asked, &mut None).await {
                return (Some(header), failed);
            }
        }
        (None, failed)
    };
    let late = |_| (None, Some("it was not read in time".to_owned()));
    timeout(HEADERS_MAX, search).await.unwrap_or_else(late)
}

/// Other chunks that its content may have: the first, and those beside it.
fn siblings(chunk: ChunkId) -> Vec<ChunkId> {
    let index = chunk.index();
    if index == STUB_INDEX {
        return Vec::new();
    }
    let mut indices = vec![0, index.saturating_sub(1), index + 1];
    indices.dedup();
    indices.retain(|other| *other != index && *other != STUB_INDEX);
    indices.into_iter().map(|index| chunk.content().chunk(index)).collect()
}

/// The header from the first node that can read it; `failed` says why the first of those that cannot does not.
async fn first_header(
    state: &AdminState,
    chunk: ChunkId,
    asked: &[Replica],
    failed: &mut Option<String>,
) -> Option<Header> {
    for replica in asked {
        if !matches!(replica.answer, Answer::Has(_)) {
            continue;
        }
        let read = timeout(HEADER_MAX, read_label(state, chunk, replica)).await;
        match read.unwrap_or_else(|_| Err("no answer".to_owned())) {
            Ok(label) => return Some(Header { label, chunk, node: replica.node.clone() }),
            Err(error) => {
                failed.get_or_insert_with(|| format!("node {}: {error}", replica.node));
            }
        }
    }
    None
}

async fn read_label(state: &AdminState, chunk: ChunkId, replica: &Replica) -> Result<ChunkLabel, String> {
    let encoded = match (replica.peer, &state.cluster) {
        (Some(node), Some(cluster)) => cluster.peers.label(node, chunk).await.map_err(|error| error.to_string())?,
        _ => state.local.label(chunk).await.map_err(|error| error.to_string())?,
    };
    ChunkLabel::decode(&encoded).map_err(|error| error.to_string())
}

/// Versions of the key of a label that refer to a content, newest first.
async fn of_key(
    state: &AdminState,
    label: &ChunkLabel,
    content: ContentId,
    chunk: ChunkId,
) -> MetadataResult<Vec<Match>> {
    let bucket = match state.metadata.bucket(&label.bucket).await {
        Ok(bucket) => bucket,
        Err(MetadataError::NoSuchBucket) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    // The key is the first of those that begin with it.
    let mut query =
        ListVersionsQuery { prefix: label.key.clone(), limit: VERSIONS_LISTED, ..ListVersionsQuery::default() };
    let mut matches = Vec::new();
    for _ in 0..LISTS_MAX {
        let page = state.metadata.list_versions(bucket.id, query.clone()).await?;
        let versions = page.entries.iter().take_while(|version| version.key == label.key);
        matches.extend(versions.filter_map(|version| Match::of(&bucket, version, content, chunk)));
        let goes_on = page.entries.last().is_some_and(|last| last.key == label.key);
        match page.next {
            Some((after, after_version)) if goes_on && matches.len() < REFERENCES_SHOWN => {
                query = ListVersionsQuery { after, after_version, ..query };
            }
            _ => break,
        }
    }
    matches.truncate(REFERENCES_SHOWN);
    Ok(matches)
}

/// Where a walk over all versions goes on: in a bucket after a version, or after all of it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    bucket: String,
    within: Option<(VersionId, String)>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.within {
            None => f.write_str(&self.bucket),
            Some((version, key)) => write!(f, "{}/{version}/{key}", self.bucket),
        }
    }
}

impl FromStr for Place {
    type Err = ();

    /// Names of buckets and versions have no slash, keys may.
    fn from_str(text: &str) -> Result<Self, ()> {
        let Some((bucket, rest)) = text.split_once('/') else {
            return Ok(Self { bucket: text.to_owned(), within: None });
        };
        let (version, key) = rest.split_once('/').ok_or(())?;
        let version = version.parse().map_err(|_| ())?;
        Ok(Self { bucket: bucket.to_owned(), within: Some((version, key.to_owned())) })
    }
}

/// Which page of a walk is asked for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct After {
    after: Option<String>,
}

/// All versions of objects that refer to the content of a chunk: a part of a walk over the versions of all buckets,
/// since no index says so. A page may be empty, and is not the last one while it has a `next`.
#[utoipa::path(
    get, path = "/v1/chunks/{chunk}/references", tag = "objects", operation_id = "list_chunk_references",
    params(
        ("chunk" = String, Path, description = "Its id, 32 hexadecimal digits"),
        ("after" = Option<String>, Query, description = "`next` of the page before"),
    ),
    responses(
        (status = 200, description = "A page", body = Page<ChunkReference>),
        (status = "default", description = "An error", body = ErrorBody),
    )
)]
pub(super) async fn references(
    State(state): State<AdminState>,
    Path(chunk): Path<String>,
    Params(query): Params<After>,
) -> Result<Json<Page<ChunkReference>>, ApiError> {
    let chunk = chunk_id(&chunk)?;
    let place = query.after.as_deref().map(str::parse::<Place>).transpose();
    let mut place = place.map_err(|()| ApiError::invalid("`after` is the `next` of the page before"))?;
    let mut items = Vec::new();
    let holder = state.metadata.content_holder(chunk.content()).await?;
    let Some(ContentHolder::Content { content, references: 1.., .. }) = holder else {
        return Ok(Json(Page { items, next: None }));
    };
    for _ in 0..LISTS_MAX {
        let (bucket, query) = match place {
            Some(Place { bucket: name, within: Some((version, key)) }) => match state.metadata.bucket(&name).await {
                Ok(bucket) => (bucket, listed(ListAfter::Key(key), Some(version))),
                Err(MetadataError::NoSuchBucket) => {
                    place = Some(Place { bucket: name, within: None });
                    continue;
                }
                Err(error) => return Err(error.into()),
            },
            before => {
                let after = before.as_ref().map(|place| place.bucket.as_str());
                let Some(bucket) = state.metadata.list_buckets(None, after, 1).await?.pop() else {
                    return Ok(Json(Page { items, next: None }));
                };
                (bucket, listed(ListAfter::Start, None))
            }
        };
        let page = state.metadata.list_versions(bucket.id, query).await?;
        let found = page.entries.iter().filter_map(|version| Match::of(&bucket, version, content, chunk));
        items.extend(found.map(|found| found.reference));
        let within = page.next.and_then(|(after, version)| match after {
            ListAfter::Key(key) => Some((version?, key)),
            // Those are of listings with a delimiter.
            ListAfter::Start | ListAfter::Prefix(_) => None,
        });
        place = Some(Place { bucket: bucket.name.clone(), within });
    }
    Ok(Json(Page { items, next: place.map(|place| place.to_string()) }))
}

fn listed(after: ListAfter, after_version: Option<VersionId>) -> ListVersionsQuery {
    ListVersionsQuery { after, after_version, limit: VERSIONS_LISTED, ..ListVersionsQuery::default() }
}

#[cfg(test)]
mod tests {
    use holdfast_protocol::{Extent, UploadId};

    use super::*;

    const CONTENT: ContentId = ContentId([7; 12]);

    #[test]
    fn a_chunk_is_found_in_an_object_by_its_extent() {
        let extent = |n, size_bytes| Extent { content: ContentId([n; 12]), size_bytes };
        let manifest = Manifest { extents: vec![extent(1, 5), extent(7, 2 * CHUNK_SIZE_MAX + 9), extent(2, 1)] };
        let full = CHUNK_SIZE_MAX as u32;
        assert_eq!(place_in(&manifest, CONTENT.chunk(0)), Some((5, full)));
        assert_eq!(place_in(&manifest, CONTENT.chunk(2)), Some((5 + 2 * CHUNK_SIZE_MAX, 9)));
        assert_eq!(place_in(&manifest, CONTENT.chunk(3)), None, "it has three");
        assert_eq!(place_in(&manifest, CONTENT.chunk(STUB_INDEX)), None);
        assert_eq!(place_in(&manifest, ContentId([9; 12]).chunk(0)), None);
        assert_eq!(size_in(2 * CHUNK_SIZE_MAX, CONTENT.chunk(2)), None, "the last one is full");
    }

    #[test]
    fn a_part_is_told_by_where_its_bytes_are() {
        let part = |number, size_bytes| ObjectPart { number, size_bytes, checksum: None };
        // A part without bytes stands in no manifest.
        let parts = [part(2, 5), part(3, 0), part(9, 4)];
        let found = [0, 4, 5, 8, 9].map(|offset| part_at(&parts, offset));
        assert_eq!(found, [Some(2), Some(2), Some(9), Some(9), None]);
        assert_eq!(part_at(&[], 0), None);
    }

    #[test]
    fn headers_are_looked_for_in_chunks_that_may_be_there() {
        let indices = |index| siblings(CONTENT.chunk(index)).iter().map(ChunkId::index).collect::<Vec<_>>();
        assert_eq!(indices(0), [1]);
        assert_eq!(indices(1), [0, 2]);
        assert_eq!(indices(7), [0, 6, 8]);
        assert_eq!(indices(STUB_INDEX), [0_u32; 0], "a stub is alone");
        assert_eq!(indices(STUB_INDEX - 1), [0, STUB_INDEX - 2], "and is no chunk of bytes");
    }

    #[test]
    fn a_walk_goes_on_where_it_says() {
        let within = Some((VersionId::NULL, "2026/a/b ä".to_owned()));
        for place in [Place { bucket: "b".into(), within: None }, Place { bucket: "b".into(), within }] {
            assert_eq!(place.to_string().parse::<Place>(), Ok(place));
        }
        assert!("b/null".parse::<Place>().is_err());
        assert!("b/x/key".parse::<Place>().is_err());
    }

    fn of_object(references: u64) -> Option<ContentHolder> {
        let queued_ms = (references == 0).then_some(5);
        Some(ContentHolder::Content { content: CONTENT, references, tier: None, queued_ms })
    }

    fn found(has_chunk: bool) -> Match {
        let reference = ChunkReference {
            bucket: "b".into(),
            key: "k".into(),
            version: "null".into(),
            is_latest: true,
            part: None,
            offset_bytes: None,
        };
        Match { reference, has_chunk, size_bytes: None }
    }

    #[test]
    fn every_chunk_stands_somewhere() {
        let part = ContentHolder::Part { bucket: "b".into(), key: "k".into(), upload: UploadId([1; 16]), number: 3 };
        let condemned = Some(ContentHolder::Condemned { condemned_ms: 6 });
        let cases = [
            (of_object(2), vec![found(true)], "object", None),
            (of_object(2), vec![], "object", None),
            (of_object(1), vec![found(false)], "not_in_object", None),
            (of_object(0), vec![], "reclaim", Some(5)),
            (Some(part), vec![], "upload", None),
            (Some(ContentHolder::Reclaim { queued_ms: 4 }), vec![], "reclaim", Some(4)),
            (condemned, vec![], "condemned", Some(6)),
            (None, vec![], "unknown", None),
        ];
        for (holder, matches, state, since_ms) in cases {
            let standing = Standing::of(holder, &matches, &[]);
            assert_eq!((standing.state, standing.since_ms), (state, since_ms));
            assert_eq!(standing.upload.is_some(), state == "upload");
        }
        let on_nodes = |answer| Standing::of(None, &[], &[Replica::answering(answer)]).state;
        assert_eq!(on_nodes(Answer::Has(1)), "orphan");
        assert_eq!([on_nodes(Answer::Lacks), on_nodes(Answer::Silent)], ["unknown", "unknown"]);
    }

    #[test]
    fn the_size_that_most_have_is_the_usual_one() {
        let usual = |answers: &[Answer]| {
            let asked: Vec<Replica> = answers.iter().copied().map(Replica::answering).collect();
            usual_size(&asked)
        };
        assert_eq!(usual(&[Answer::Lacks, Answer::Silent]), None);
        assert_eq!(usual(&[Answer::Has(1), Answer::Has(2), Answer::Lacks, Answer::Has(2)]), Some(2));
        assert_eq!(usual(&[Answer::Has(1), Answer::Has(2)]), Some(1));
    }
}
