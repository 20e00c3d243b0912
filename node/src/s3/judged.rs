//! What a decision about a request looked at of stored objects.
//!
//! Access control reads an object for its ACL or its tags, and the operation reads it once more: in between it may have
//! been overwritten by one that the caller may not read, and who asks often enough meets that moment. So access control
//! leaves a note of what it saw, and the operation compares it with the object at hand. Where both are alike, so would
//! be the decision.
//!
//! Writes that read nothing of the object, such as its deletion, are decided by what was there before.

use holdfast_actors::ports::metadata::{Bucket, BucketId, CannedAcl, ObjectVersion, Tag};
use http::Extensions;
use s3s::{S3Result, s3_error};

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
    /// None where there was no object.
    Tags(Vec<Tag>),
}

impl Judged {
    /// Notes that a decision was made by an object's ACL, or by there being none.
    pub(super) fn note_acl(&mut self, bucket: &Bucket, key: &str, version: Option<&str>, acl: Option<CannedAcl>) {
        self.note(bucket, key, version, Seen::Acl(acl));
    }

    /// Notes that a decision was made by an object's tags.
    pub(super) fn note_tags(&mut self, bucket: &Bucket, key: &str, version: Option<&str>, tags: &[Tag]) {
        self.note(bucket, key, version, Seen::Tags(tags.to_vec()));
    }

    fn note(&mut self, bucket: &Bucket, key: &str, version: Option<&str>, seen: Seen) {
        self.0.push(Look { bucket: bucket.id, key: key.to_owned(), version: version.map(str::to_owned), seen });
    }

    /// Keeps the notes for the operation, with those that are there.
    pub(super) fn keep(self, extensions: &mut Extensions) {
        if self.0.is_empty() {
            return;
        }
        match extensions.get_mut::<Self>() {
            Some(kept) => kept.0.extend(self.0),
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
        let of_this = |look: &&Look| look.bucket == bucket.id && look.key == key && look.version.as_deref() == version;
        let is_alike = looks.iter().filter(of_this).all(|look| match &look.seen {
            Seen::Acl(acl) => *acl == Some(object.acl),
            Seen::Tags(tags) => *tags == object.tags,
        });
        if is_alike {
            return Ok(());
        }
        Err(s3_error!(
            OperationAborted,
            "The object was changed while the request was decided about. Please try again."
        ))
    }
}
