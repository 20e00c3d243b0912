//! ListObjects (V1 and V2), ListObjectVersions and ListMultipartUploads.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use holdfast_actors::domain::objects::{KEY_SIZE_MAX, PAGE_SIZE_MAX};
use holdfast_actors::ports::metadata::{
    ListAfter, ListEntry, ListPage, ListQuery, ListUploadsPage, ListUploadsQuery, ListVersionsPage, ListVersionsQuery,
};
use holdfast_protocol::checksum::{ChecksumAlgorithm, ChecksumType};
use http::Extensions;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use s3s::dto::{
    self, CommonPrefix, EncodingType, ListMultipartUploadsInput, ListMultipartUploadsOutput, ListObjectVersionsInput,
    ListObjectVersionsOutput, ListObjectsInput, ListObjectsOutput, ListObjectsV2Input, ListObjectsV2Output,
};
use s3s::{S3Request, S3Response, S3Result};

use super::S3Front;
use super::checksums::{dto_algorithm, dto_type};
use super::classes::{self, RestoreStatuses};
use super::convert::{etag, owner, timestamp, upload_id, version_id};
use super::errors::{ResultExt as _, invalid_argument};
use super::version_order::VersionOrder;

/// What `encoding-type=url` leaves as it is.
const KEPT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'*');

/// A name as `encoding-type=url` shows it.
pub(crate) fn url_encode(text: &str) -> String {
    utf8_percent_encode(text, KEPT).to_string()
}

/// Reads `max-keys` and its kin: at most 1,000, whatever is asked for.
pub(crate) fn page_limit(asked: Option<i32>, name: &str) -> S3Result<u32> {
    match u32::try_from(asked.unwrap_or(PAGE_SIZE_MAX as i32)) {
        Ok(limit) => Ok(limit.min(PAGE_SIZE_MAX)),
        Err(_) => Err(invalid_argument(format!("Argument {name} must be an integer between 0 and 2147483647"))),
    }
}

/// Reads `part-number-marker`.
pub(crate) fn part_marker(marker: Option<i32>) -> S3Result<u16> {
    u16::try_from(marker.unwrap_or(0))
        .map_err(|_| invalid_argument("Argument part-number-marker must be an integer between 0 and 10000"))
}

/// Who started an upload.
pub(crate) fn initiator(name: &str) -> dto::Initiator {
    dto::Initiator { display_name: Some(name.to_owned()), id: Some(name.to_owned()) }
}

/// How names are written in an answer.
#[derive(Clone, Copy)]
struct Names {
    url: bool,
}

impl Names {
    fn of(encoding: Option<&EncodingType>) -> S3Result<Self> {
        match encoding.map(|encoding| encoding.as_str()) {
            None => Ok(Self { url: false }),
            Some(EncodingType::URL) => Ok(Self { url: true }),
            Some(_) => Err(invalid_argument("Invalid Encoding Method specified in Request")),
        }
    }

    fn show(self, text: &str) -> String {
        if self.url { url_encode(text) } else { text.to_owned() }
    }

    fn show_some(self, text: Option<&str>) -> Option<String> {
        text.map(|text| self.show(text))
    }

    fn prefixes(self, prefixes: &[String]) -> Option<dto::CommonPrefixList> {
        (!prefixes.is_empty())
            .then(|| prefixes.iter().map(|prefix| CommonPrefix { prefix: Some(self.show(prefix)) }).collect())
    }

    fn encoding(self) -> Option<EncodingType> {
        self.url.then(|| EncodingType::from_static(EncodingType::URL))
    }
}

/// Where a listing goes on after a marker that the client chose or was given: a marker that is a common prefix stands
/// for everything below it.
fn after_marker(marker: Option<&str>, prefix: &str, delimiter: Option<&str>) -> ListAfter {
    let Some(marker) = marker.filter(|marker| !marker.is_empty()) else { return ListAfter::Start };
    let is_common_prefix = delimiter.is_some_and(|delimiter| {
        marker.strip_prefix(prefix).and_then(|rest| rest.find(delimiter).map(|at| at + delimiter.len() == rest.len()))
            == Some(true)
    });
    if is_common_prefix { ListAfter::Prefix(marker.to_owned()) } else { ListAfter::Key(marker.to_owned()) }
}

/// The marker that says where a page ended.
fn marker_of(after: &ListAfter) -> Option<String> {
    match after {
        ListAfter::Start => None,
        ListAfter::Key(key) => Some(key.clone()),
        ListAfter::Prefix(prefix) => Some(prefix.clone()),
    }
}

/// A continuation token: a letter that says what follows, and the name, in base64.
fn encode_token(after: &ListAfter) -> Option<String> {
    let (kind, name) = match after {
        ListAfter::Start => return None,
        ListAfter::Key(key) => ('k', key),
        ListAfter::Prefix(prefix) => ('p', prefix),
    };
    Some(URL_SAFE_NO_PAD.encode(format!("{kind}{name}")))
}

fn decode_token(token: &str) -> S3Result<ListAfter> {
    let decoded = URL_SAFE_NO_PAD.decode(token).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    match decoded.as_deref().and_then(|text| text.split_at_checked(1)) {
        Some(("k", key)) if (1..=KEY_SIZE_MAX).contains(&key.len()) => Ok(ListAfter::Key(key.to_owned())),
        Some(("p", prefix)) if (1..=KEY_SIZE_MAX).contains(&prefix.len()) => Ok(ListAfter::Prefix(prefix.to_owned())),
        _ => Err(invalid_argument("The continuation token provided is incorrect")),
    }
}

fn checksum_fields(
    checksum: Option<(ChecksumAlgorithm, ChecksumType)>,
) -> (Option<dto::ChecksumAlgorithmList>, Option<dto::ChecksumType>) {
    (checksum.map(|(algorithm, _)| vec![dto_algorithm(algorithm)]), checksum.map(|(_, t)| dto_type(t)))
}

fn object(entry: &ListEntry, names: Names, restores: RestoreStatuses, with_owner: bool) -> dto::Object {
    let (checksum_algorithm, checksum_type) = checksum_fields(entry.checksum);
    dto::Object {
        checksum_algorithm,
        checksum_type,
        e_tag: Some(etag(&entry.etag)),
        key: Some(names.show(&entry.key)),
        last_modified: Some(timestamp(entry.last_modified_ms)),
        owner: with_owner.then(|| owner(&entry.owner)),
        restore_status: restores.show(entry.restore),
        size: Some(entry.size_bytes as i64),
        storage_class: Some(classes::shown(entry.class.as_ref())),
    }
}

/// A delimiter that groups; an empty one does not.
fn delimiter_of(delimiter: Option<&String>) -> Option<String> {
    delimiter.filter(|delimiter| !delimiter.is_empty()).cloned()
}

impl S3Front {
    /// One page of objects; no lookup for a page of none.
    async fn list_page(
        &self,
        extensions: &Extensions,
        bucket: &str,
        expected_owner: Option<&str>,
        query: ListQuery,
    ) -> S3Result<ListPage> {
        let bucket = self.bucket_of(extensions, bucket, expected_owner).await?;
        if query.limit == 0 {
            return Ok(ListPage::default());
        }
        self.metadata.list_objects(bucket.id, query).await.s3()
    }

    /// Lists objects, first version of the API.
    pub(crate) async fn list_objects(
        &self,
        req: S3Request<ListObjectsInput>,
    ) -> S3Result<S3Response<ListObjectsOutput>> {
        let S3Request { input, extensions, .. } = req;
        let names = Names::of(input.encoding_type.as_ref())?;
        let restores = RestoreStatuses::of(input.optional_object_attributes.as_deref(), self.clock.now_ms())?;
        let limit = page_limit(input.max_keys, "max-keys")?;
        let prefix = input.prefix.unwrap_or_default();
        let delimiter = delimiter_of(input.delimiter.as_ref());
        let query = ListQuery {
            after: after_marker(input.marker.as_deref(), &prefix, delimiter.as_deref()),
            prefix: prefix.clone(),
            delimiter: delimiter.clone(),
            limit,
        };
        let page = self.list_page(&extensions, &input.bucket, input.expected_bucket_owner.as_deref(), query).await?;
        // Without a delimiter clients go on after the last key.
        let next = page.next.as_ref().filter(|_| delimiter.is_some()).and_then(marker_of);
        Ok(S3Response::new(ListObjectsOutput {
            contents: Some(page.entries.iter().map(|entry| object(entry, names, restores, true)).collect()),
            common_prefixes: names.prefixes(&page.common_prefixes),
            is_truncated: Some(page.next.is_some()),
            next_marker: names.show_some(next.as_deref()),
            marker: Some(names.show(input.marker.as_deref().unwrap_or_default())),
            prefix: Some(names.show(&prefix)),
            delimiter: names.show_some(delimiter.as_deref()),
            encoding_type: names.encoding(),
            max_keys: Some(limit as i32),
            name: Some(input.bucket),
            ..Default::default()
        }))
    }

    /// Lists objects, second version of the API.
    pub(crate) async fn list_objects_v2(
        &self,
        req: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let S3Request { input, extensions, .. } = req;
        let names = Names::of(input.encoding_type.as_ref())?;
        let restores = RestoreStatuses::of(input.optional_object_attributes.as_deref(), self.clock.now_ms())?;
        let limit = page_limit(input.max_keys, "max-keys")?;
        let prefix = input.prefix.unwrap_or_default();
        let delimiter = delimiter_of(input.delimiter.as_ref());
        let after = match input.continuation_token.as_deref() {
            Some(token) => decode_token(token)?,
            None => after_marker(input.start_after.as_deref(), &prefix, delimiter.as_deref()),
        };
        let query = ListQuery { prefix: prefix.clone(), delimiter: delimiter.clone(), after, limit };
        let page = self.list_page(&extensions, &input.bucket, input.expected_bucket_owner.as_deref(), query).await?;
        let with_owner = input.fetch_owner.unwrap_or(false);
        Ok(S3Response::new(ListObjectsV2Output {
            contents: Some(page.entries.iter().map(|entry| object(entry, names, restores, with_owner)).collect()),
            common_prefixes: names.prefixes(&page.common_prefixes),
            key_count: Some((page.entries.len() + page.common_prefixes.len()) as i32),
            is_truncated: Some(page.next.is_some()),
            next_continuation_token: page.next.as_ref().and_then(encode_token),
            continuation_token: input.continuation_token,
            start_after: names.show_some(input.start_after.as_deref()),
            prefix: Some(names.show(&prefix)),
            delimiter: names.show_some(delimiter.as_deref()),
            encoding_type: names.encoding(),
            max_keys: Some(limit as i32),
            name: Some(input.bucket),
            ..Default::default()
        }))
    }

    /// Lists all versions and delete markers.
    pub(crate) async fn list_object_versions(
        &self,
        req: S3Request<ListObjectVersionsInput>,
    ) -> S3Result<S3Response<ListObjectVersionsOutput>> {
        let S3Request { input, extensions, .. } = req;
        let names = Names::of(input.encoding_type.as_ref())?;
        let restores = RestoreStatuses::of(input.optional_object_attributes.as_deref(), self.clock.now_ms())?;
        let limit = page_limit(input.max_keys, "max-keys")?;
        let prefix = input.prefix.unwrap_or_default();
        let delimiter = delimiter_of(input.delimiter.as_ref());
        let after_version = version_id(input.version_id_marker.as_deref().filter(|marker| !marker.is_empty()))?;
        let after = after_marker(input.key_marker.as_deref(), &prefix, delimiter.as_deref());
        if after_version.is_some() && !matches!(after, ListAfter::Key(_)) {
            return Err(invalid_argument("A version-id marker cannot be specified without a key marker."));
        }
        let bucket = self.bucket_of(&extensions, &input.bucket, input.expected_bucket_owner.as_deref()).await?;
        let page = if limit == 0 {
            ListVersionsPage::default()
        } else {
            let query =
                ListVersionsQuery { prefix: prefix.clone(), delimiter: delimiter.clone(), after, after_version, limit };
            self.metadata.list_versions(bucket.id, query).await.s3()?
        };
        let mut versions = Vec::new();
        let mut delete_markers = Vec::new();
        for entry in &page.entries {
            let version_id = Some(entry.version.to_string());
            let last_modified = Some(timestamp(entry.last_modified_ms));
            match &entry.content {
                Some(content) => {
                    let (checksum_algorithm, checksum_type) =
                        checksum_fields(content.checksum.as_ref().map(|c| (c.algorithm, c.checksum_type)));
                    versions.push(dto::ObjectVersion {
                        checksum_algorithm,
                        checksum_type,
                        e_tag: Some(etag(&content.etag)),
                        is_latest: Some(entry.is_latest),
                        key: Some(names.show(&entry.key)),
                        last_modified,
                        owner: Some(owner(&entry.owner)),
                        restore_status: restores.show(entry.restore),
                        size: Some(content.size_bytes() as i64),
                        storage_class: Some(classes::shown(entry.class.as_ref())),
                        version_id,
                    });
                }
                None => delete_markers.push(dto::DeleteMarkerEntry {
                    is_latest: Some(entry.is_latest),
                    key: Some(names.show(&entry.key)),
                    last_modified,
                    owner: Some(owner(&entry.owner)),
                    version_id,
                }),
            }
        }
        let next_key_marker = page.next.as_ref().and_then(|(after, _)| marker_of(after));
        let next_version = page.next.as_ref().and_then(|(_, version)| *version);
        let is_mixed = !versions.is_empty() && !delete_markers.is_empty();
        let mut response = S3Response::new(ListObjectVersionsOutput {
            versions: Some(versions),
            delete_markers: Some(delete_markers),
            common_prefixes: names.prefixes(&page.common_prefixes),
            is_truncated: Some(page.next.is_some()),
            next_key_marker: names.show_some(next_key_marker.as_deref()),
            next_version_id_marker: next_version.map(|version| version.to_string()),
            key_marker: Some(names.show(input.key_marker.as_deref().unwrap_or_default())),
            version_id_marker: Some(input.version_id_marker.unwrap_or_default()),
            prefix: Some(names.show(&prefix)),
            delimiter: names.show_some(delimiter.as_deref()),
            encoding_type: names.encoding(),
            max_keys: Some(limit as i32),
            name: Some(input.bucket),
            ..Default::default()
        });
        if is_mixed {
            let order = page.entries.iter().map(|entry| entry.content.is_none()).collect();
            response.extensions.insert(VersionOrder(order));
        }
        Ok(response)
    }

    /// Lists unfinished uploads.
    pub(crate) async fn list_multipart_uploads(
        &self,
        req: S3Request<ListMultipartUploadsInput>,
    ) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
        let S3Request { input, extensions, .. } = req;
        let names = Names::of(input.encoding_type.as_ref())?;
        let limit = page_limit(input.max_uploads, "max-uploads")?;
        let prefix = input.prefix.unwrap_or_default();
        let delimiter = delimiter_of(input.delimiter.as_ref());
        let after = after_marker(input.key_marker.as_deref(), &prefix, delimiter.as_deref());
        // S3 ignores an upload marker without a key marker.
        let after_upload = match (&after, input.upload_id_marker.as_deref().filter(|marker| !marker.is_empty())) {
            (ListAfter::Key(_), Some(marker)) => {
                Some(upload_id(marker).map_err(|_| invalid_argument("Invalid uploadId marker"))?)
            }
            _ => None,
        };
        let bucket = self.bucket_of(&extensions, &input.bucket, input.expected_bucket_owner.as_deref()).await?;
        let page = if limit == 0 {
            ListUploadsPage::default()
        } else {
            let query =
                ListUploadsQuery { prefix: prefix.clone(), delimiter: delimiter.clone(), after, after_upload, limit };
            self.metadata.list_uploads(bucket.id, query).await.s3()?
        };
        let uploads = page
            .entries
            .iter()
            .map(|upload| {
                let new = &upload.new;
                dto::MultipartUpload {
                    checksum_algorithm: new.checksum.map(|(algorithm, _)| dto_algorithm(algorithm)),
                    checksum_type: new.checksum.map(|(_, checksum_type)| dto_type(checksum_type)),
                    initiated: Some(timestamp(new.now_ms)),
                    initiator: Some(initiator(&new.owner)),
                    key: Some(names.show(&new.key)),
                    owner: Some(owner(&new.owner)),
                    storage_class: Some(classes::shown(new.class.as_ref())),
                    upload_id: Some(new.id.to_string()),
                }
            })
            .collect();
        let next_key_marker = page.next.as_ref().and_then(|(after, _)| marker_of(after));
        let next_upload = page.next.as_ref().and_then(|(_, upload)| *upload);
        Ok(S3Response::new(ListMultipartUploadsOutput {
            uploads: Some(uploads),
            common_prefixes: names.prefixes(&page.common_prefixes),
            is_truncated: Some(page.next.is_some()),
            next_key_marker: names.show_some(next_key_marker.as_deref()),
            next_upload_id_marker: next_upload.map(|upload| upload.to_string()),
            key_marker: Some(names.show(input.key_marker.as_deref().unwrap_or_default())),
            upload_id_marker: Some(input.upload_id_marker.unwrap_or_default()),
            prefix: Some(names.show(&prefix)),
            delimiter: names.show_some(delimiter.as_deref()),
            encoding_type: names.encoding(),
            max_uploads: Some(limit as i32),
            bucket: Some(input.bucket),
            ..Default::default()
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_round_trip_and_junk_is_refused() {
        for after in [ListAfter::Key("a b/ä\u{1}".into()), ListAfter::Prefix("photos/".into())] {
            assert_eq!(decode_token(&encode_token(&after).unwrap()).unwrap(), after);
        }
        let long = URL_SAFE_NO_PAD.encode(format!("k{}", "x".repeat(1025)));
        let ones = [
            String::new(),
            "!".into(),
            "YQ".into(),
            URL_SAFE_NO_PAD.encode("xname"),
            URL_SAFE_NO_PAD.encode("k"),
            long,
        ];
        for junk in ones.iter().chain(&[URL_SAFE_NO_PAD.encode([b'k', 0xff])]) {
            assert_eq!(decode_token(junk).unwrap_err().code().as_str(), "InvalidArgument", "{junk:?}");
        }
    }

    #[test]
    fn damaged_tokens_are_refused_or_name_what_can_be() {
        fn body(bytes: &[u8]) {
            let encoded = URL_SAFE_NO_PAD.encode(bytes);
            for token in [&*String::from_utf8_lossy(bytes), &encoded] {
                if let Ok(after) = decode_token(token) {
                    assert_eq!(decode_token(&encode_token(&after).unwrap()).unwrap(), after);
                }
            }
        }
        let seeds = || ["kname", "pphotos/", "a25hbWU"].map(Vec::from).to_vec();
        holdfast_protocol::fuzz::damage::run(
            &[holdfast_protocol::fuzz::Target { name: "continuation_token", body, seeds }],
            3_000,
        );
    }

    #[test]
    fn marker_that_is_a_common_prefix_skips_what_is_below() {
        let key = |k: &str| ListAfter::Key(k.into());
        assert_eq!(after_marker(None, "", None), ListAfter::Start);
        assert_eq!(after_marker(Some(""), "", Some("/")), ListAfter::Start);
        assert_eq!(after_marker(Some("a/"), "", None), key("a/"));
        assert_eq!(after_marker(Some("a/"), "", Some("/")), ListAfter::Prefix("a/".into()));
        assert_eq!(after_marker(Some("a/b"), "", Some("/")), key("a/b"));
        assert_eq!(after_marker(Some("a/b/"), "", Some("/")), key("a/b/"));
        assert_eq!(after_marker(Some("a/b/"), "a/", Some("/")), ListAfter::Prefix("a/b/".into()));
        assert_eq!(after_marker(Some("a/"), "a/", Some("/")), key("a/"));
    }

    #[test]
    fn limits_are_clamped() {
        assert_eq!(page_limit(None, "max-keys").unwrap(), 1000);
        assert_eq!(page_limit(Some(5000), "max-keys").unwrap(), 1000);
        assert_eq!(page_limit(Some(0), "max-keys").unwrap(), 0);
        assert!(page_limit(Some(-1), "max-keys").is_err());
    }

    #[test]
    fn names_are_url_encoded_on_request() {
        assert_eq!(url_encode("a b/c+d&ä\u{1}~"), "a%20b/c%2Bd%26%C3%A4%01~");
    }
}
