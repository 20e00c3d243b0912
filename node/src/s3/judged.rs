//! What a decision about a request looked at of stored objects.
//!
//! Access control reads an object for its ACL or its tags, and the operation reads it once more: in between it may have
//! been overwritten by one that the caller may not read, and who asks often enough meets that moment. So access control
//! leaves a note of what it saw, and the operation compares it with the object at hand. Where both are alike, so would
//! be the decision.
//!
//! A deletion reads nothing: it is carried out only on the version that was looked at, and where there was none, on
//! none ([`Judged::only_if`]). What sets tags or an ACL reads the object, compares it, and changes that one only
//! ([`Judged::only_this`]). That an object is overwritten is decided by the one that was there before.

use holdfast_actors::ports::MetadataError;
use holdfast_actors::ports::metadata::{
    Bucket, BucketId, CannedAcl, ObjectVersion, OnlyIf, OnlyNoncurrent, Tag, Versioning,
};
use http::Extensions;
use s3s::{S3Error, S3Result, s3_error};

use super::errors::ToS3 as _;

/// A sequence number that no version gets.
const NO_SEQUENCE: u64 = u64::MAX;

/// Notes of what was looked at. In the extensions of a request.
#[derive(Debug, Clone, Default)]
pub(crate) struct Judged(Vec<Look>);

/// One look at an object.
#[derive(Debug, Clone)]
struct Look {
    bucket: BucketId,
    key: String,
    /// As the request names it.
    version: Option<String>,
    seen: Seen,
}

#[derive(Debug, Clone)]
enum Seen {
    /// `None`: there was no object.
    Acl(Option<CannedAcl>),
    /// The tags, none where there was no object, and its sequence number.
    Tags(Vec<Tag>, Option<u64>),
}

impl Look {
    fn is_of(&self, bucket: &Bucket, key: &str, version: Option<&str>) -> bool {
        self.bucket == bucket.id && self.key == key && self.version.as_deref() == version
    }
}

impl Judged {
    /// Notes that a decision was made by an object's ACL, or by there being none.
    pub(super) fn note_acl(&mut self, bucket: &Bucket, key: &str, version: Option<&str>, acl: Option<CannedAcl>) {
        self.note(bucket, key, version, Seen::Acl(acl));
    }

    /// Notes that a decision was made by the tags of an object, if there was one.
    pub(super) fn note_tags(
        &mut self,
        bucket: &Bucket,
        key: &str,
        version: Option<&str>,
        object: Option<&ObjectVersion>,
    ) {
        let tags = object.map_or_else(Vec::new, |object| object.tags.clone());
        self.note(bucket, key, version, Seen::Tags(tags, object.map(|object| object.sequence)));
    }

    fn note(&mut self, bucket: &Bucket, key: &str, version: Option<&str>, seen: Seen) {
        self.0.push(Look { bucket: bucket.id, key: key.to_owned(), version: version.map(str::to_owned), seen });
    }

    /// Takes other notes in.
    pub(super) fn append(&mut self, mut other: Self) {
        self.0.append(&mut other.0);
    }

    /// Keeps the notes for the operation, with those that are there.
    pub(super) fn keep(self, extensions: &mut Extensions) {
        if self.0.is_empty() {
            return;
        }
        match extensions.get_mut::<Self>() {
            Some(kept) => kept.append(self),
            None => {
                extensions.insert(self);
            }
        }
    }

    /// Checks that an object is as it was when the request was decided about; `version` as the request names it.
    ///
    /// # Errors
    /// `OperationAborted` if it is not: asked again, the decision is made anew.
    pub(super) fn check(
        extensions: &Extensions,
        bucket: &Bucket,
        key: &str,
        version: Option<&str>,
        object: &ObjectVersion,
    ) -> S3Result<()> {
        let Some(Self(looks)) = extensions.get::<Self>() else { return Ok(()) };
        // `versionId=` names none.
        let version = version.filter(|version| !version.is_empty());
        let is_alike = looks.iter().filter(|look| look.is_of(bucket, key, version)).all(|look| match &look.seen {
            Seen::Acl(acl) => *acl == Some(object.acl),
            Seen::Tags(tags, _) => *tags == object.tags,
        });
        if is_alike { Ok(()) } else { Err(changed()) }
    }

    /// On which version alone a deletion may be carried out that was allowed by its tags; `version` as the request
    /// names it. If another one is there, it fails with `PreconditionFailed`, which is to be told as [`changed`]. A new
    /// sequence number tells of new tags, but for those of a noncurrent version, as the latest one may be by then.
    ///
    /// Where there was none, it is carried out on none: it fails likewise, and what is there then tells why
    /// ([`Judged::is_of_nothing`]). Not where a deletion keeps the bytes.
    pub(super) fn only_if(
        extensions: &Extensions,
        bucket: &Bucket,
        key: &str,
        version: Option<&str>,
    ) -> Option<OnlyIf> {
        let version = version.filter(|version| !version.is_empty());
        let (tags, sequence) = extensions.get::<Self>()?.0.iter().find_map(|look| match &look.seen {
            Seen::Tags(tags, sequence) if look.is_of(bucket, key, version) => Some((tags, sequence)),
            _ => None,
        })?;
        let Some(sequence) = *sequence else {
            let takes_bytes = match bucket.versioning {
                Versioning::Unversioned => true,
                // A version that is named may be a delete marker, which is no object either.
                Versioning::Suspended => version.is_none(),
                Versioning::Enabled => false,
            };
            return takes_bytes.then(|| OnlyIf { sequence: NO_SEQUENCE, ..OnlyIf::default() });
        };
        Some(OnlyIf {
            sequence,
            noncurrent: Some(OnlyNoncurrent { tags: tags.clone(), newer: 0 }),
            ..OnlyIf::default()
        })
    }

    /// On which version alone a change may be made that was allowed by tags: on this one, which was [checked].
    /// `version` is as the request names it. If another one is there, the change fails with `PreconditionFailed`: see
    /// [`refused`].
    ///
    /// [checked]: Self::check
    pub(super) fn only_this(
        extensions: &Extensions,
        bucket: &Bucket,
        key: &str,
        version: Option<&str>,
        object: &ObjectVersion,
    ) -> Option<OnlyIf> {
        let version = version.filter(|version| !version.is_empty());
        let mut looks = extensions.get::<Self>()?.0.iter();
        looks.any(|look| matches!(look.seen, Seen::Tags(..)) && look.is_of(bucket, key, version)).then(|| OnlyIf {
            sequence: object.sequence,
            noncurrent: Some(OnlyNoncurrent { tags: object.tags.clone(), newer: 0 }),
            ..OnlyIf::default()
        })
    }

    /// Whether there was nothing when a deletion was allowed.
    pub(super) fn is_of_nothing(only_if: &OnlyIf) -> bool {
        only_if.sequence == NO_SEQUENCE
    }

    /// Whether an object is the one on which alone a deletion may be carried out.
    pub(super) fn is_meant(only_if: &OnlyIf, object: &ObjectVersion) -> bool {
        let has_same_tags = only_if.noncurrent.as_ref().is_none_or(|noncurrent| noncurrent.tags == object.tags);
        only_if.sequence == object.sequence && has_same_tags
    }
}

/// Why a change was not made whose only condition is what was judged.
pub(super) fn refused(error: MetadataError) -> S3Error {
    match error {
        MetadataError::PreconditionFailed => changed(),
        error => error.to_s3(),
    }
}

/// An object is not any more what was decided about. Asked again, the decision is made anew.
pub(super) fn changed() -> S3Error {
    s3_error!(OperationAborted, "The object was changed while the request was decided about. Please try again.")
}
