//! Lifecycle configuration of buckets, and what answers tell of when an object expires.
//!
//! The rules are in `holdfast_actors::domain::lifecycle`; they are carried out in the background
//! (`holdfast_actors::flow::lifecycle`). Here they are read from XML and written to it, and shown in
//! `x-amz-expiration`. Rules that move objects to a class that there is not are refused whole, rather than taken and
//! never done.
//!
//! s3s knows nothing of days since the last read. In what it reads and writes they are negative [`Days`] of a
//! Transition: see [`super::strict_xml`], which lets no others through.
//!
//! [`Days`]: dto::Transition::days

use std::convert::Infallible;
use std::sync::Arc;

use holdfast_actors::domain::lifecycle::{
    Day, Expiration, FilterForm, LifecycleRule, LifecycleRules, NoncurrentExpiration, NoncurrentTransition, RULES_MAX,
    RuleFault, RuleFilter, Transition, TransitionMinimum,
};
use holdfast_actors::flow::accesses::ReadRecorder;
use holdfast_actors::ports::metadata::{Bucket, BucketConfigKind, ObjectVersion, Tag};
use holdfast_protocol::TierName;
use s3s::dto::{self, *};
use s3s::{S3Error, S3ErrorCode, S3Request, S3Response, S3Result, s3_error};
use time::OffsetDateTime;

use super::bucket_config::{stored, to_bounded_json};
use super::convert::{http_date, timestamp};
use super::errors::{ResultExt as _, ToS3 as _, invalid_argument, no_such_class, not_configured};
use super::parsed::Parsed;
use super::{S3Front, classes};

/// What a byte of stored rules takes when they are parsed: the shortest rule has some hundred of them.
pub(super) const RULES_BYTES_PER_BYTE: u64 = 6;

/// The rules of a bucket, in bytes as they are stored: a thousand with some hundred characters each.
pub(super) const DOCUMENT_BYTES_MAX: usize = 512 * 1024;

/// What the front end knows of rules: how long a day is, the rules of buckets, parsed, and where to note reads.
pub(crate) struct LifecycleView {
    reads: Option<Arc<ReadRecorder>>,
    pub(super) day: Day,
    parsed: Parsed<Option<Arc<LifecycleRules>>>,
}

impl LifecycleView {
    /// Without `reads` none are noted.
    pub(crate) fn new(day: Day, reads: Option<Arc<ReadRecorder>>) -> Self {
        Self { reads, day, parsed: Parsed::new(RULES_BYTES_PER_BYTE) }
    }

    /// Notes that an object is read, if rules ask for it: what counts is its latest version.
    pub(super) fn note_read(&self, bucket: &Bucket, object: &ObjectVersion, now_ms: u64) {
        let Some(reads) = self.reads.as_ref().filter(|_| object.is_latest) else { return };
        if self.rules(bucket).is_some_and(|rules| rules.asks_for_reads()) {
            reads.note(bucket.id, &object.key, now_ms);
        }
    }

    /// The rules of a bucket, if it has any that are understood.
    fn rules(&self, bucket: &Bucket) -> Option<Arc<LifecycleRules>> {
        let text = bucket.config(BucketConfigKind::Lifecycle)?;
        let read = || stored::<LifecycleRules>(bucket, BucketConfigKind::Lifecycle).ok().flatten().map(Arc::new);
        let parsed = self.parsed.of(bucket.id, text, |_| Ok::<_, Infallible>(read()));
        parsed.unwrap_or_else(|never| match never {})
    }
}

impl Default for LifecycleView {
    fn default() -> Self {
        Self::new(Day::REAL, None)
    }
}

impl S3Front {
    /// `x-amz-expiration` of a latest version: when it expires, and by which rule.
    pub(crate) fn expiration(&self, bucket: &Bucket, object: &ObjectVersion) -> Option<String> {
        let content = object.content.as_ref().filter(|_| object.is_latest)?;
        let rules = self.lifecycle.rules(bucket)?;
        let (due_ms, id) = rules.expiry(
            &object.key,
            content.size_bytes(),
            &object.tags,
            object.last_modified_ms,
            self.lifecycle.day,
        )?;
        let date = http_date(&timestamp(due_ms)).ok()?;
        Some(format!("expiry-date=\"{date}\", rule-id=\"{}\"", encoded(id)))
    }

    pub(crate) async fn put_bucket_lifecycle_configuration(
        &self,
        req: S3Request<PutBucketLifecycleConfigurationInput>,
    ) -> S3Result<S3Response<PutBucketLifecycleConfigurationOutput>> {
        let bucket = self.config_bucket(&req, &req.input.bucket).await?;
        let configuration = req
            .input
            .lifecycle_configuration
            .ok_or_else(|| s3_error!(MissingRequestBodyError, "Request Body is empty"))?;
        if configuration.rules.len() > RULES_MAX {
            return Err(RuleFault::Malformed("a configuration has 1 to 1000 rules").to_s3());
        }
        let minimum = req.input.transition_default_minimum_object_size;
        let mut rules = LifecycleRules {
            // Below 2⁶³, as databases count.
            generation: rand::random::<u64>() >> 1,
            transition_minimum: minimum.map(|size| size.as_str().to_owned()),
            reads_since_ms: None,
            rules: Vec::with_capacity(configuration.rules.len()),
        };
        for rule in configuration.rules {
            rules.rules.push(self.rule(rule).await?);
        }
        if rules.transition_minimum.as_deref().is_some_and(|text| TransitionMinimum::named(text).is_none()) {
            return Err(invalid_argument("The transition default minimum object size specified is not valid"));
        }
        rules.check().s3()?;
        if rules.asks_for_reads() {
            // Where they were noted before, they still count.
            let before = stored::<LifecycleRules>(&bucket, BucketConfigKind::Lifecycle).ok().flatten();
            let since_ms = before.filter(LifecycleRules::asks_for_reads).and_then(|rules| rules.reads_since_ms);
            rules.reads_since_ms = Some(since_ms.unwrap_or_else(|| self.clock.now_ms()));
        }
        let document = to_bounded_json(&rules, DOCUMENT_BYTES_MAX)?;
        self.set_config(&bucket, BucketConfigKind::Lifecycle, Some(document)).await?;
        Ok(S3Response::new(PutBucketLifecycleConfigurationOutput {
            transition_default_minimum_object_size: Some(transition_minimum(&rules)),
        }))
    }

    pub(crate) async fn get_bucket_lifecycle_configuration(
        &self,
        req: S3Request<GetBucketLifecycleConfigurationInput>,
    ) -> S3Result<S3Response<GetBucketLifecycleConfigurationOutput>> {
        let bucket = self.config_bucket(&req, &req.input.bucket).await?;
        let rules: LifecycleRules = stored(&bucket, BucketConfigKind::Lifecycle)?.ok_or_else(|| {
            not_configured(S3ErrorCode::NoSuchLifecycleConfiguration, "The lifecycle configuration does not exist")
        })?;
        Ok(S3Response::new(GetBucketLifecycleConfigurationOutput {
            transition_default_minimum_object_size: Some(transition_minimum(&rules)),
            rules: Some(rules.rules.into_iter().map(shown).collect()),
        }))
    }

    pub(crate) async fn delete_bucket_lifecycle(
        &self,
        req: S3Request<DeleteBucketLifecycleInput>,
    ) -> S3Result<S3Response<DeleteBucketLifecycleOutput>> {
        let bucket = self.config_bucket(&req, &req.input.bucket).await?;
        self.set_config(&bucket, BucketConfigKind::Lifecycle, None).await?;
        Ok(S3Response::new(DeleteBucketLifecycleOutput::default()))
    }
}

fn transition_minimum(rules: &LifecycleRules) -> TransitionDefaultMinimumObjectSize {
    TransitionDefaultMinimumObjectSize::from_static(rules.minimum().as_str())
}

/// An id as it stands in a header.
fn encoded(id: &str) -> String {
    let mut encoded = String::with_capacity(id.len());
    for byte in id.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => encoded.push(char::from(byte)),
            other => encoded.push_str(&format!("%{other:02X}")),
        }
    }
    encoded
}

/// A number of days or versions; what is negative is as wrong as nought.
fn count(number: i32) -> u32 {
    u32::try_from(number).unwrap_or(0)
}

fn malformed(what: &'static str) -> S3Error {
    RuleFault::Malformed(what).to_s3()
}

impl S3Front {
    async fn rule(&self, rule: dto::LifecycleRule) -> S3Result<LifecycleRule> {
        let (mut transitions, mut noncurrent_transitions) = (Vec::new(), Vec::new());
        for transition in rule.transitions.unwrap_or_default() {
            transitions.push(self.transition(transition).await?);
        }
        for transition in rule.noncurrent_version_transitions.unwrap_or_default() {
            noncurrent_transitions.push(self.noncurrent_transition(transition).await?);
        }
        let enabled = match rule.status.as_str() {
            ExpirationStatus::ENABLED => true,
            ExpirationStatus::DISABLED => false,
            _ => return Err(malformed("Status is Enabled or Disabled")),
        };
        let filter = match (rule.prefix, rule.filter) {
            (Some(_), Some(_)) => return Err(malformed("a rule has a Filter or a Prefix, not both")),
            (None, None) => return Err(malformed("a rule has a Filter")),
            (Some(prefix), None) => {
                RuleFilter { form: FilterForm::Prefix, prefix: Some(prefix), ..RuleFilter::default() }
            }
            (None, Some(filter)) => filter_of(filter)?,
        };
        let noncurrent = match rule.noncurrent_version_expiration {
            None => None,
            Some(expiration) => Some(NoncurrentExpiration {
                days: count(
                    expiration
                        .noncurrent_days
                        .ok_or_else(|| malformed("NoncurrentVersionExpiration has NoncurrentDays"))?,
                ),
                keep: expiration.newer_noncurrent_versions.map(count),
            }),
        };
        let abort_uploads_days = match rule.abort_incomplete_multipart_upload {
            None => None,
            Some(abort) => Some(count(
                abort
                    .days_after_initiation
                    .ok_or_else(|| malformed("AbortIncompleteMultipartUpload has DaysAfterInitiation"))?,
            )),
        };
        Ok(LifecycleRule {
            id: rule.id.filter(|id| !id.is_empty()).unwrap_or_else(|| format!("{:032x}", rand::random::<u128>())),
            enabled,
            filter,
            expiration: rule.expiration.map(expiration_of).transpose()?,
            noncurrent,
            transitions,
            noncurrent_transitions,
            abort_uploads_days,
        })
    }

    /// Where rules move objects.
    async fn target(&self, class: Option<TransitionStorageClass>) -> S3Result<Option<TierName>> {
        let class = class.ok_or_else(|| malformed("a transition has a StorageClass"))?;
        self.class(class.as_str()).await?.ok_or_else(|| no_such_class(&self.tiers.names()))
    }

    async fn transition(&self, transition: dto::Transition) -> S3Result<Transition> {
        Ok(Transition {
            days: transition.days.and_then(|days| u32::try_from(days).ok()),
            date_ms: transition.date.map(date_ms).transpose()?,
            idle_days: transition.days.filter(|days| *days < 0).map(i32::unsigned_abs),
            to: self.target(transition.storage_class).await?,
        })
    }

    async fn noncurrent_transition(&self, transition: NoncurrentVersionTransition) -> S3Result<NoncurrentTransition> {
        let days = transition.noncurrent_days;
        let days = days.ok_or_else(|| malformed("NoncurrentVersionTransition has NoncurrentDays"))?;
        let days = u32::try_from(days).map_err(|_| {
            invalid_argument("'NoncurrentDays' for NoncurrentVersionTransition action must be a nonnegative integer")
        })?;
        Ok(NoncurrentTransition {
            days,
            keep: transition.newer_noncurrent_versions.map(count),
            to: self.target(transition.storage_class).await?,
        })
    }
}

fn expiration_of(expiration: LifecycleExpiration) -> S3Result<Expiration> {
    Ok(Expiration {
        days: expiration.days.map(count),
        date_ms: expiration.date.map(date_ms).transpose()?,
        lone_markers: expiration.expired_object_delete_marker,
    })
}

fn date_ms(date: Timestamp) -> S3Result<u64> {
    let ms = OffsetDateTime::from(date).unix_timestamp_nanos() / 1_000_000;
    u64::try_from(ms).map_err(|_| RuleFault::Argument("'Date' is before 1970").to_s3())
}

fn filter_of(filter: LifecycleRuleFilter) -> S3Result<RuleFilter> {
    let bytes = |size: Option<i64>| {
        let bytes = size.map(u64::try_from).transpose();
        bytes.map_err(|_| RuleFault::Argument("a size in a Filter is negative").to_s3())
    };
    let LifecycleRuleFilter { and, object_size_greater_than, object_size_less_than, prefix, tag } = filter;
    let single = RuleFilter {
        form: FilterForm::Single,
        prefix,
        tags: tag.into_iter().map(tag_of).collect(),
        larger_than_bytes: bytes(object_size_greater_than)?,
        smaller_than_bytes: bytes(object_size_less_than)?,
    };
    let Some(and) = and else { return Ok(single) };
    if single != RuleFilter::default() {
        return Err(malformed("a Filter has nothing beside And"));
    }
    Ok(RuleFilter {
        form: FilterForm::And,
        prefix: and.prefix,
        tags: and.tags.unwrap_or_default().into_iter().map(tag_of).collect(),
        larger_than_bytes: bytes(and.object_size_greater_than)?,
        smaller_than_bytes: bytes(and.object_size_less_than)?,
    })
}

fn tag_of(tag: dto::Tag) -> Tag {
    Tag { key: tag.key.unwrap_or_default(), value: tag.value.unwrap_or_default() }
}

/// A list of XML, which is left out when it is empty.
fn listed<T, U>(list: Vec<T>, show: impl Fn(T) -> U) -> Option<Vec<U>> {
    (!list.is_empty()).then(|| list.into_iter().map(show).collect())
}

/// A rule as it was written.
fn shown(rule: LifecycleRule) -> dto::LifecycleRule {
    let days = |days: u32| i32::try_from(days).unwrap_or(i32::MAX);
    let bytes = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    let shown_tag = |tag: Tag| dto::Tag { key: Some(tag.key), value: Some(tag.value) };
    let RuleFilter { form, prefix, tags, larger_than_bytes, smaller_than_bytes } = rule.filter;
    let (greater, less) = (larger_than_bytes.map(bytes), smaller_than_bytes.map(bytes));
    let (prefix, filter) = match form {
        FilterForm::Prefix => (prefix, None),
        FilterForm::Single => {
            let filter = LifecycleRuleFilter {
                and: None,
                object_size_greater_than: greater,
                object_size_less_than: less,
                prefix,
                tag: tags.into_iter().next().map(shown_tag),
            };
            (None, Some(filter))
        }
        FilterForm::And => {
            let tags: Vec<dto::Tag> = tags.into_iter().map(shown_tag).collect();
            let and = LifecycleRuleAndOperator {
                object_size_greater_than: greater,
                object_size_less_than: less,
                prefix,
                tags: (!tags.is_empty()).then_some(tags),
            };
            (None, Some(LifecycleRuleFilter { and: Some(and), ..LifecycleRuleFilter::default() }))
        }
    };
    let status = if rule.enabled { ExpirationStatus::ENABLED } else { ExpirationStatus::DISABLED };
    dto::LifecycleRule {
        abort_incomplete_multipart_upload: rule
            .abort_uploads_days
            .map(|after| AbortIncompleteMultipartUpload { days_after_initiation: Some(days(after)) }),
        expiration: rule.expiration.map(|expiration| LifecycleExpiration {
            date: expiration.date_ms.map(timestamp),
            days: expiration.days.map(days),
            expired_object_delete_marker: expiration.lone_markers,
        }),
        filter,
        id: Some(rule.id),
        noncurrent_version_expiration: rule.noncurrent.map(|noncurrent| NoncurrentVersionExpiration {
            newer_noncurrent_versions: noncurrent.keep.map(days),
            noncurrent_days: Some(days(noncurrent.days)),
        }),
        noncurrent_version_transitions: listed(rule.noncurrent_transitions, |one| NoncurrentVersionTransition {
            newer_noncurrent_versions: one.keep.map(days),
            noncurrent_days: Some(days(one.days)),
            storage_class: Some(classes::shown(one.to.as_ref())),
        }),
        prefix,
        status: ExpirationStatus::from_static(status),
        transitions: listed(rule.transitions, |one| dto::Transition {
            date: one.date_ms.map(timestamp),
            days: one.days.map(days).or(one.idle_days.map(|idle| -days(idle))),
            storage_class: Some(classes::shown(one.to.as_ref())),
        }),
    }
}
