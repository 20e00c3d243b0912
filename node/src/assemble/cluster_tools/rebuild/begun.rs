//! Contents of several chunks that begin on this node and end elsewhere, or nowhere.
//!
//! A label tells the size of the whole content, so that it is known which chunk is the last one, and the last one is
//! stored only when those before it are. So **a content whose last chunk is on some node is whole, and one whose last
//! chunk is on none broke off**. But the chunks of a content are of different shards, and a run sees the disks of one
//! node. What begins here and does not end here therefore is no object by that: the node that has the end brings it
//! back, under its name, of its size and time. What it cannot tell is what only the first chunk says: owner, headers,
//! tags and ACL. That is added here, when the object is there.
//!
//! An upload is begun by the first chunk of any of its parts, and gets each part by that part's last chunk.
//!
//! So of nodes that are walked in any order the first round brings all objects back, and the second one gives them all
//! that they had.

use std::collections::BTreeSet;

use anyhow::Context;
use holdfast_actors::ports::MetadataError;
use holdfast_protocol::label::PartLabel;
use holdfast_protocol::{UploadId, VersionId};

use super::commit::{commit, version_before};
use super::found::{Begun, Found, Of};
use super::{Run, known, uploads};

/// The parts that begin here.
pub(super) fn parts(begun: &[Begun]) -> BTreeSet<(UploadId, u16)> {
    let part = |begun: &Begun| match begun.of {
        Of::Version(_) => None,
        Of::Part(part) => Some((part.upload, part.number)),
    };
    begun.iter().filter_map(part).collect()
}

/// Adds what the first chunks tell to what the last ones have brought back. Gives back the keys of versions that need
/// nothing more.
///
/// # Errors
/// Those of metadata.
pub(super) async fn follow(run: &mut Run<'_>, begun: Vec<Begun>) -> anyhow::Result<BTreeSet<(String, String)>> {
    let mut finished = BTreeSet::new();
    for Begun { bucket, key, of, found } in begun {
        match of {
            Of::Version(version) => {
                let before = run.report.known;
                follow_version(run, (&bucket, &key, version), found).await?;
                if run.report.known > before {
                    finished.insert((bucket, key));
                }
            }
            Of::Part(part) => {
                let followed = follow_part(run, (&bucket, &key, part), found).await;
                followed.with_context(|| format!("rebuild upload {} of {bucket}/{key}", part.upload))?;
            }
        }
    }
    Ok(finished)
}

async fn follow_version(
    run: &mut Run<'_>,
    (bucket, key, version): (&str, &str, VersionId),
    found: Found,
) -> anyhow::Result<()> {
    let metadata = run.metadata;
    let failed = || format!("rebuild {bucket}/{key}");
    let id = metadata.bucket(bucket).await.with_context(failed)?.id;
    let before = version_before(metadata, id, key, version).await.with_context(failed)?;
    // It was there by its end: a run broke off when it had taken the version out to put it back. Nothing else knows of
    // its content.
    if before.is_none() && !metadata.known_contents(&[found.content]).await.with_context(failed)?.is_empty() {
        return commit(run, (bucket, key, version), found).await;
    }
    match before.as_deref().and_then(|before| Some((before, before.content.as_deref()?))) {
        Some((_, there)) if there.id == found.content => {
            commit(run, (bucket, key, version), found).await?;
        }
        // Whole or not, it was overwritten.
        Some((before, there)) if !known::outranks(&found, before, there) => run.report.superseded += 1,
        _ => run.report.unended += 1,
    }
    Ok(())
}

async fn follow_part(
    run: &mut Run<'_>,
    (bucket, key, part): (&str, &str, PartLabel),
    found: Found,
) -> Result<(), MetadataError> {
    let metadata = run.metadata;
    if !metadata.known_contents(&[found.content]).await?.is_empty() {
        run.report.known += 1;
        return Ok(());
    }
    let bucket = metadata.bucket(bucket).await?;
    match metadata.upload(bucket.id, key, part.upload).await {
        Ok(_) => {}
        Err(MetadataError::NoSuchUpload) => {
            uploads::create(run, &bucket, key, part.upload, found.head).await?;
            run.report.uploads += 1;
        }
        Err(error) => return Err(error),
    }
    run.report.unended += 1;
    Ok(())
}
