//! What labels tell of, held against each other.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use holdfast_actors::domain::objects::labels::WITHOUT_TAGS;
use holdfast_actors::ports::metadata::{
    BucketId, CannedAcl, Content, ContentSource, NewObject, ObjectAttributes, ObjectVersion, ReplicaEvidence, Tag,
    WritePrecondition,
};
use holdfast_protocol::label::PartLabel;
use holdfast_protocol::{ContentId, TierName, UploadId, VersionId};
use serde::Deserialize;

use super::RebuildReport;

/// A content, by one of its labels.
pub(super) struct Found {
    pub(super) content: ContentId,
    pub(super) created_ms: u64,
    pub(super) size_bytes: u64,
    /// Whether all of it may have been stored: the last chunk is ended when those before it are durable.
    pub(super) is_ended: bool,
    /// Whether `head` was told: by the first chunk, or by a stub.
    pub(super) has_head: bool,
    /// What is here is a stub: the bytes lie in this tier.
    pub(super) tier: Option<TierName>,
    /// Of a stub: time and id of the latest other content of this name and size that has chunks here.
    pub(super) moved_from: Option<(u64, ContentId)>,
    pub(super) head: Head,
}

impl Found {
    /// Whether this content counts, of two that would have one name: a whole one before one of a write that broke off,
    /// of equals the later one.
    fn is_later_than(&self, other: &Self) -> bool {
        let rank = |found: &Self| {
            let seconds = found.content.unix_seconds();
            (found.is_ended, found.created_ms, seconds, found.tier.is_some(), found.content)
        };
        rank(self) > rank(other)
    }

    /// Remembers one that counts less.
    fn replaces(&mut self, other: &Self) {
        if self.tier.is_some() && self.size_bytes == other.size_bytes {
            let here = if other.tier.is_some() { other.moved_from } else { Some((other.created_ms, other.content)) };
            self.moved_from = self.moved_from.max(here);
        }
    }

    /// The version, with the content that was made of it.
    pub(super) fn object(
        self,
        bucket: BucketId,
        (key, version): (&str, VersionId),
        owner: &str,
        content: Content,
    ) -> NewObject {
        let class = self.class().cloned();
        let Head { owner: told, attributes, tags, acl, .. } = self.head;
        NewObject {
            bucket,
            key: key.to_owned(),
            version,
            now_ms: self.created_ms,
            owner: told.unwrap_or_else(|| owner.to_owned()),
            content: ContentSource::New(content),
            attributes,
            tags,
            acl,
            precondition: WritePrecondition::default(),
            event: None,
            evidence: ReplicaEvidence::default(),
            class,
        }
    }

    /// The storage class that the version is to have.
    pub(super) fn class(&self) -> Option<&TierName> {
        self.tier.as_ref().or(self.head.class.as_ref())
    }
}

/// What a label tells beside the key.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Head {
    pub(super) owner: Option<String>,
    #[serde(flatten)]
    pub(super) attributes: ObjectAttributes,
    pub(super) tags: Vec<Tag>,
    pub(super) acl: CannedAcl,
    pub(super) class: Option<TierName>,
    /// What the object had and the label has no room for.
    pub(super) left_out: Option<String>,
}

impl Head {
    /// Takes what the label had no room for from what the metadata knows of the same write.
    pub(super) fn fill_in(&mut self, before: &ObjectVersion) {
        let Some(left_out) = self.left_out.take() else { return };
        self.tags.clone_from(&before.tags);
        if left_out != WITHOUT_TAGS {
            self.attributes.clone_from(&before.attributes);
        }
    }
}

/// What a content is of.
#[derive(Clone, Copy)]
pub(super) enum Of {
    /// An object of one PUT.
    Version(VersionId),
    /// A multipart upload.
    Part(PartLabel),
}

/// A content whose beginning is here, and whose end is not.
pub(super) struct Begun {
    pub(super) bucket: String,
    pub(super) key: String,
    pub(super) of: Of,
    pub(super) found: Found,
}

/// By bucket, key and version id.
pub(super) type Versions = BTreeMap<(String, String, VersionId), Found>;

/// Parts by number, by bucket, key and upload.
pub(super) type Uploads = BTreeMap<(String, String, UploadId), BTreeMap<u16, Found>>;

/// What the labels tell of.
#[derive(Default)]
pub(super) struct Contents {
    pub(super) versions: Versions,
    pub(super) uploads: Uploads,
    pub(super) begun: Vec<Begun>,
}

impl Contents {
    /// Of everything that was found.
    pub(super) fn buckets(&self) -> BTreeSet<&String> {
        let versions = self.versions.keys().map(|(bucket, ..)| bucket);
        let uploads = self.uploads.keys().map(|(bucket, ..)| bucket);
        versions.chain(uploads).chain(self.begun.iter().map(|begun| &begun.bucket)).collect()
    }

    fn all(&self) -> impl Iterator<Item = &Found> {
        let parts = self.uploads.values().flat_map(BTreeMap::values);
        self.versions.values().chain(parts).chain(self.begun.iter().map(|begun| &begun.found))
    }

    /// The storage classes that are named.
    pub(super) fn classes(&self) -> impl Iterator<Item = &TierName> {
        self.all().filter_map(Found::class)
    }

    /// The owners that are named.
    pub(super) fn owners(&self) -> BTreeSet<&String> {
        self.all().filter_map(|found| found.head.owner.as_ref()).collect()
    }

    /// Takes in one more.
    pub(super) fn add(&mut self, (bucket, key): (String, String), of: Of, found: Found, report: &mut RebuildReport) {
        match of {
            Of::Version(version) => keep(&mut self.versions, (bucket, key, version), found, report),
            Of::Part(part) => {
                let upload = self.uploads.entry((bucket, key, part.upload)).or_default();
                keep(upload, part.number, found, report);
            }
        }
    }
}

/// Keeps the later of two contents of one name.
fn keep<K: Ord>(known: &mut BTreeMap<K, Found>, name: K, mut found: Found, report: &mut RebuildReport) {
    match known.entry(name) {
        Entry::Vacant(entry) => drop(entry.insert(found)),
        Entry::Occupied(mut entry) => {
            report.superseded += 1;
            if found.is_later_than(entry.get()) {
                found.replaces(entry.get());
                entry.insert(found);
            } else {
                entry.get_mut().replaces(&found);
            }
        }
    }
}

/// In the order of time, so that the latest version is the latest again.
pub(super) fn in_order(versions: Versions) -> Vec<((String, String, VersionId), Found)> {
    let mut versions: Vec<_> = versions.into_iter().collect();
    versions.sort_by_key(|(_, found)| (found.created_ms, found.content));
    versions
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Labels are never written again: those of every version that ever ran are on the disks.
    #[test]
    fn what_labels_of_another_version_tell_is_read_and_what_is_not_known_is_passed_over() {
        let older = concat!(
            r#"{"owner":"alice","content_type":"text/plain","user_metadata":[["a","b"]],"#,
            r#""tags":[{"key":"k","value":"v"}],"acl":"public-read"}"#
        );
        let newer = concat!(
            r#"{"owner":"alice","content_type":"text/plain","user_metadata":[["a","b"]],"completion":"00ff","#,
            r#""of_a_newer_version":{"x":[1]},"tags":[{"key":"k","value":"v"}],"acl":"public-read"}"#
        );
        for (label, completion) in [(older, None), (newer, Some("00ff"))] {
            let head: Head = serde_json::from_str(label).unwrap();
            let Head { owner, attributes, tags, acl, class, left_out: _ } = head;
            assert_eq!((owner.as_deref(), class), (Some("alice"), None), "{label}");
            assert_eq!(attributes.content_type.as_deref(), Some("text/plain"), "{label}");
            assert_eq!(attributes.user_metadata, [("a".to_owned(), "b".to_owned())], "{label}");
            assert_eq!(attributes.completion.as_deref(), completion, "{label}");
            assert_eq!((tags, acl), (vec![Tag { key: "k".into(), value: "v".into() }], CannedAcl::PublicRead));
        }
    }
}
