//! Storage classes and restores: what requests ask for, and what answers show.
//!
//! The storage class of an object is `STANDARD`, the cluster's own disks, or the name of a cold tier that is set up. It
//! says where the bytes are to lie; when they are there is no matter of an answer.
//!
//! # Which class a write gets
//! The one that the request names, else the bucket's default, else `STANDARD`. A name that is no class is refused by
//! `InvalidStorageClass`.
//!
//! A bucket's default may come to name a tier that is not set up any more. Writes that rely on it are then refused by
//! 503: the request is not wrong, an operator can set things right, and a node that has not heard of a new tier yet
//! soon has. To store the object elsewhere would put it where its owner did not want it, and nobody would notice. Who
//! cannot wait names a class.

use holdfast_actors::ports::metadata::{Bucket, BucketConfigKind, Restore};
use holdfast_protocol::TierName;
use holdfast_protocol::tiers::STANDARD;
use s3s::S3Result;
use s3s::dto::{OptionalObjectAttributes, RestoreStatus, StorageClass};

use super::S3Front;
use super::convert::{http_date, timestamp};
use super::errors::{invalid_argument, lost_default_class, no_such_class, unavailable};

/// A class as XML shows it.
pub(super) fn shown<C: From<String>>(class: Option<&TierName>) -> C {
    class.map_or(STANDARD, TierName::as_str).to_owned().into()
}

/// `x-amz-storage-class` of an answer: S3 sends none for `STANDARD`.
pub(super) fn header(class: Option<&TierName>) -> Option<StorageClass> {
    class.map(|class| class.as_str().to_owned().into())
}

/// A restore as answers tell of it: when it ends, or `None` while it is under way.
fn told(restore: Option<Restore>, now_ms: u64) -> Option<Option<u64>> {
    match restore? {
        Restore::Ongoing => Some(None),
        Restore::Until(ms) => (ms > now_ms).then_some(Some(ms)),
    }
}

/// `x-amz-restore` of an answer.
pub(super) fn restore_header(restore: Option<Restore>, now_ms: u64) -> Option<String> {
    let Some(until_ms) = told(restore, now_ms)? else { return Some("ongoing-request=\"true\"".to_owned()) };
    let date = http_date(&timestamp(until_ms)).ok()?;
    Some(format!("ongoing-request=\"false\", expiry-date=\"{date}\""))
}

/// Whether a listing tells of restores, which it does on request only.
#[derive(Debug, Clone, Copy)]
pub(super) struct RestoreStatuses {
    /// The time by which they are over or not.
    now_ms: Option<u64>,
}

impl RestoreStatuses {
    /// As `x-amz-optional-object-attributes` asks for it. One header may list several.
    pub(super) fn of(asked: Option<&[OptionalObjectAttributes]>, now_ms: u64) -> S3Result<Self> {
        let mut this = Self { now_ms: None };
        for name in asked.into_iter().flatten().flat_map(|names| names.as_str().split(',')).map(str::trim) {
            match name {
                OptionalObjectAttributes::RESTORE_STATUS => this.now_ms = Some(now_ms),
                _ => return Err(invalid_argument("Invalid attribute name specified.")),
            }
        }
        Ok(this)
    }

    /// What is told of one object.
    pub(super) fn show(self, restore: Option<Restore>) -> Option<RestoreStatus> {
        let until_ms = told(restore, self.now_ms?)?;
        Some(RestoreStatus {
            is_restore_in_progress: Some(until_ms.is_none()),
            restore_expiry_date: until_ms.map(timestamp),
        })
    }
}

impl S3Front {
    /// The class of what a request writes, which may name one; `None`: `STANDARD`.
    pub(super) async fn class_of_write(
        &self,
        bucket: &Bucket,
        asked: Option<&StorageClass>,
    ) -> S3Result<Option<TierName>> {
        if let Some(asked) = asked {
            return self.class(asked.as_str()).await?.ok_or_else(|| no_such_class(&self.tiers.names()));
        }
        let Some(default) = bucket.config(BucketConfigKind::StorageClass) else { return Ok(None) };
        self.class(default).await?.ok_or_else(|| {
            tracing::warn!(
                bucket = bucket.name,
                default,
                "a write is refused: no tier is set up for the default class"
            );
            lost_default_class(default)
        })
    }

    /// A class by its name, if it is one.
    pub(super) async fn class(&self, name: &str) -> S3Result<Option<Option<TierName>>> {
        if name == STANDARD {
            return Ok(Some(None));
        }
        let Ok(tier) = name.parse::<TierName>() else { return Ok(None) };
        match self.tiers.is_set_up(&tier).await {
            Ok(is_set_up) => Ok(is_set_up.then_some(Some(tier))),
            Err(error) => {
                tracing::warn!(%tier, %error, "whether there is such a storage class cannot be found out");
                Err(unavailable())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restores_are_told_until_their_time_is_over() {
        // 23 December 2012, the example of S3's documentation.
        let midnight = 1_356_220_800_000;
        let ended = "ongoing-request=\"false\", expiry-date=\"Sun, 23 Dec 2012 00:00:00 GMT\"";
        for (restore, now_ms, header) in [
            (None, 0, None),
            (Some(Restore::Ongoing), midnight, Some("ongoing-request=\"true\"")),
            (Some(Restore::Until(midnight)), midnight - 1, Some(ended)),
            (Some(Restore::Until(midnight)), midnight, None),
        ] {
            assert_eq!(restore_header(restore, now_ms).as_deref(), header, "{restore:?} at {now_ms}");
        }
    }

    #[test]
    fn listings_tell_of_restores_on_request() {
        let asked = |names: &str| RestoreStatuses::of(Some(&[names.to_owned().into()]), 5);
        assert!(asked("Owner").is_err());
        assert!(RestoreStatuses::of(None, 5).unwrap().show(Some(Restore::Ongoing)).is_none());
        let statuses = asked("RestoreStatus").unwrap();
        assert!(statuses.show(None).is_none());
        assert!(statuses.show(Some(Restore::Until(5))).is_none());
        let ongoing = statuses.show(Some(Restore::Ongoing)).unwrap();
        assert_eq!((ongoing.is_restore_in_progress, ongoing.restore_expiry_date), (Some(true), None));
        let done = statuses.show(Some(Restore::Until(6))).unwrap();
        assert_eq!((done.is_restore_in_progress, done.restore_expiry_date), (Some(false), Some(timestamp(6))));
    }

    #[test]
    fn headers_keep_silent_about_standard_and_xml_does_not() {
        let oss: TierName = "OSS".parse().unwrap();
        assert_eq!(header(None), None);
        assert_eq!(header(Some(&oss)).unwrap().as_str(), "OSS");
        assert_eq!(shown::<StorageClass>(None).as_str(), "STANDARD");
        assert_eq!(shown::<StorageClass>(Some(&oss)).as_str(), "OSS");
    }
}
