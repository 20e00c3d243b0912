//! How values stand in the cache: one byte that says what follows, then fields in a fixed order, each with its length.
//!
//! Nothing here outlives a keyspace for long. Another version of the program that finds a form that it does not know takes it
//! for nothing, and forgets it. So whoever changes the fields of an entry gives it a new [`Entry::FORM`], or two versions that
//! run side by side would misread each other.

use std::sync::Arc;

use holdfast_actors::ports::metadata::{
    AccessKey, Bucket, BucketConfigKind, BucketId, CannedAcl, Content, ContentPlace, ETag, MetadataError, ObjectPart,
    ObjectVersion, Restore, User, Versioning,
};
use holdfast_protocol::checksum::Checksum;
use holdfast_protocol::{ChecksumAlgorithm, ChecksumType, ColdPlace, ContentId, Manifest, TierName, VersionId};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// It is known not to exist.
const ABSENT: u8 = 0;

/// What is kept in the cache.
pub(super) trait Entry: Sized + Send + Sync + 'static {
    /// Names it in metrics.
    const CACHE: &'static str;
    /// Tells its keys from others.
    const KIND: char;

    /// The first byte of a value, which says which fields follow: not that of [`ABSENT`], and another one with each change.
    const FORM: u8 = 1;

    /// The error that says that there is none.
    fn absent() -> MetadataError;
    /// Whether an error says so.
    fn is_absent(error: &MetadataError) -> bool {
        std::mem::discriminant(error) == std::mem::discriminant(&Self::absent())
    }
    /// Whether it may be kept in the cache at all.
    fn is_whole(&self) -> bool {
        true
    }
    /// The fields.
    fn write(&self, out: &mut Writer);
    /// Reads the fields; `None`: they cannot be understood.
    fn read(fields: &mut Reader<'_>) -> Option<Self>;
}

/// The form of a value; `None`: it must not be kept.
pub(super) fn encode<E: Entry>(value: &E) -> Option<Vec<u8>> {
    value.is_whole().then(|| {
        let mut out = Writer(vec![E::FORM]);
        value.write(&mut out);
        out.0
    })
}

/// The form of there being none.
pub(super) fn encode_absent() -> Vec<u8> {
    vec![ABSENT]
}

/// Reads a form: a value, or that there is none. `None`: it cannot be understood.
pub(super) fn decode<E: Entry>(bytes: &[u8]) -> Option<Result<E, MetadataError>> {
    match bytes.split_first()? {
        (&ABSENT, []) => Some(Err(E::absent())),
        (form, fields) if *form == E::FORM => {
            let mut fields = Reader(fields);
            let value = E::read(&mut fields)?;
            fields.0.is_empty().then_some(Ok(value))
        }
        _ => None,
    }
}

/// Appends fields.
pub(super) struct Writer(Vec<u8>);

impl Writer {
    pub(super) fn number(&mut self, number: u64) {
        self.0.extend_from_slice(&number.to_be_bytes());
    }

    fn byte(&mut self, byte: u8) {
        self.0.push(byte);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
        self.0.extend_from_slice(bytes);
    }

    fn json<T: Serialize + Default + PartialEq>(&mut self, value: &T) {
        let text =
            if *value == T::default() { String::new() } else { serde_json::to_string(value).unwrap_or_default() };
        self.bytes(text.as_bytes());
    }
}

/// Takes fields off the front.
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*array)
    }

    pub(super) fn number(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    fn byte(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn flag(&mut self) -> Option<bool> {
        match self.byte()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = self.array().map(u32::from_be_bytes)? as usize;
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }

    fn text(&mut self) -> Option<String> {
        String::from_utf8(self.bytes()?.to_vec()).ok()
    }

    fn json<T: DeserializeOwned + Default>(&mut self) -> Option<T> {
        let text = self.bytes()?;
        if text.is_empty() { Some(T::default()) } else { serde_json::from_slice(text).ok() }
    }
}

impl Entry for ObjectVersion {
    const CACHE: &'static str = "objects";
    const KIND: char = 'o';
    // 1 had no storage class, no restore and no place in a tier: a reader of it would look for chunks of a cold object.
    const FORM: u8 = 2;

    fn absent() -> MetadataError {
        MetadataError::NoSuchKey
    }

    fn is_whole(&self) -> bool {
        self.content.as_ref().is_none_or(|content| content.place != ContentPlace::NotLoaded)
    }

    fn write(&self, out: &mut Writer) {
        out.number(self.bucket.0);
        out.bytes(self.key.as_bytes());
        out.0.extend_from_slice(&self.version.0);
        out.number(self.sequence);
        out.byte(u8::from(self.is_latest));
        out.number(self.last_modified_ms);
        out.bytes(self.owner.as_bytes());
        out.byte(match self.acl {
            CannedAcl::Private => 0,
            CannedAcl::PublicRead => 1,
        });
        out.json(&self.attributes);
        out.json(&self.tags);
        out.bytes(self.class.as_ref().map_or("", TierName::as_str).as_bytes());
        match self.restore {
            None => out.byte(0),
            Some(Restore::Ongoing) => out.byte(1),
            Some(Restore::Until(until_ms)) => {
                out.byte(2);
                out.number(until_ms);
            }
        }
        out.byte(u8::from(self.content.is_some()));
        if let Some(content) = &self.content {
            write_content(content, out);
        }
    }

    fn read(fields: &mut Reader<'_>) -> Option<Self> {
        Some(Self {
            bucket: BucketId(fields.number()?),
            key: fields.text()?,
            version: VersionId(fields.array()?),
            sequence: fields.number()?,
            is_latest: fields.flag()?,
            last_modified_ms: fields.number()?,
            owner: fields.text()?,
            acl: match fields.byte()? {
                0 => CannedAcl::Private,
                1 => CannedAcl::PublicRead,
                _ => return None,
            },
            attributes: fields.json()?,
            tags: fields.json()?,
            class: match fields.text()?.as_str() {
                "" => None,
                name => Some(name.parse().ok()?),
            },
            restore: match fields.byte()? {
                0 => None,
                1 => Some(Restore::Ongoing),
                2 => Some(Restore::Until(fields.number()?)),
                _ => return None,
            },
            content: if fields.flag()? { Some(Arc::new(read_content(fields)?)) } else { None },
        })
    }
}

fn write_content(content: &Content, out: &mut Writer) {
    out.0.extend_from_slice(&content.id.0);
    out.bytes(&content.manifest.encode());
    out.0.extend_from_slice(&content.etag.md5);
    out.number(content.etag.parts.map_or(u64::MAX, u64::from));
    out.byte(u8::from(content.checksum.is_some()));
    if let Some(checksum) = &content.checksum {
        out.byte(algorithm_code(checksum.algorithm));
        out.byte(match checksum.checksum_type {
            ChecksumType::FullObject => 0,
            ChecksumType::Composite => 1,
        });
        out.bytes(&checksum.value);
        out.number(checksum.parts.map_or(u64::MAX, u64::from));
    }
    out.json(&content.parts);
    match &content.place {
        ContentPlace::Cluster => out.byte(0),
        ContentPlace::Tier(place) => {
            out.byte(1);
            out.bytes(&place.encode());
        }
        // No reader takes it; `is_whole` keeps it out.
        ContentPlace::NotLoaded => out.byte(u8::MAX),
    }
}

fn read_content(fields: &mut Reader<'_>) -> Option<Content> {
    let parts = |number: u64| if number == u64::MAX { Some(None) } else { u32::try_from(number).ok().map(Some) };
    Some(Content {
        id: ContentId(fields.array()?),
        manifest: Manifest::decode(fields.bytes()?).ok()?,
        etag: ETag { md5: fields.array()?, parts: parts(fields.number()?)? },
        checksum: if fields.flag()? {
            Some(Checksum {
                algorithm: ChecksumAlgorithm::ALL.into_iter().nth(usize::from(fields.byte()?))?,
                checksum_type: match fields.byte()? {
                    0 => ChecksumType::FullObject,
                    1 => ChecksumType::Composite,
                    _ => return None,
                },
                value: fields.bytes()?.to_vec(),
                parts: parts(fields.number()?)?,
            })
        } else {
            None
        },
        parts: fields.json::<Vec<ObjectPart>>().filter(|parts| can_be_added_up(parts))?,
        place: match fields.byte()? {
            0 => ContentPlace::Cluster,
            1 => ContentPlace::Tier(Arc::new(ColdPlace::decode(fields.bytes()?).ok()?)),
            _ => return None,
        },
    })
}

/// Whether readers can reckon with the sizes of parts.
fn can_be_added_up(parts: &[ObjectPart]) -> bool {
    parts.iter().try_fold(0_u64, |sum, part| sum.checked_add(part.size_bytes)).is_some()
}

fn algorithm_code(algorithm: ChecksumAlgorithm) -> u8 {
    ChecksumAlgorithm::ALL.iter().position(|other| *other == algorithm).map_or(u8::MAX, |at| at as u8)
}

impl Entry for Bucket {
    const CACHE: &'static str = "buckets";
    const KIND: char = 'b';

    fn absent() -> MetadataError {
        MetadataError::NoSuchBucket
    }

    fn write(&self, out: &mut Writer) {
        out.number(self.id.0);
        out.bytes(self.name.as_bytes());
        out.bytes(self.owner.as_bytes());
        out.number(self.created_ms);
        out.byte(match self.versioning {
            Versioning::Unversioned => 0,
            Versioning::Enabled => 1,
            Versioning::Suspended => 2,
        });
        out.number(self.revision);
        out.number(self.configs.len() as u64);
        for (kind, text) in &self.configs {
            out.bytes(kind.as_str().as_bytes());
            out.bytes(text.as_bytes());
        }
    }

    fn read(fields: &mut Reader<'_>) -> Option<Self> {
        Some(Self {
            id: BucketId(fields.number()?),
            name: fields.text()?,
            owner: fields.text()?,
            created_ms: fields.number()?,
            versioning: match fields.byte()? {
                0 => Versioning::Unversioned,
                1 => Versioning::Enabled,
                2 => Versioning::Suspended,
                _ => return None,
            },
            revision: fields.number()?,
            configs: {
                let count = fields.number()?;
                let configs = (0..count.min(BucketConfigKind::ALL.len() as u64)).map(|_| {
                    let name = fields.bytes()?;
                    let kind = BucketConfigKind::ALL.into_iter().find(|kind| kind.as_str().as_bytes() == name)?;
                    Some((kind, fields.text()?))
                });
                configs.collect::<Option<Vec<_>>>()?
            },
        })
    }
}

/// A user, and the name of this reading of it: what was derived from another one counts no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Profile {
    pub(super) user: User,
    pub(super) reading: [u8; 16],
}

impl Entry for Profile {
    const CACHE: &'static str = "users";
    const KIND: char = 'u';

    fn absent() -> MetadataError {
        MetadataError::NotFound("user")
    }

    fn write(&self, out: &mut Writer) {
        out.0.extend_from_slice(&self.reading);
        out.bytes(self.user.name.as_bytes());
        out.byte(u8::from(self.user.admin));
        out.byte(u8::from(self.user.enabled));
        out.number(self.user.created_ms);
    }

    fn read(fields: &mut Reader<'_>) -> Option<Self> {
        Some(Self {
            reading: fields.array()?,
            user: User {
                name: fields.text()?,
                admin: fields.flag()?,
                enabled: fields.flag()?,
                created_ms: fields.number()?,
            },
        })
    }
}

/// An access key without what changes with its user: that is in the [`Profile`] of which it was read together.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Credential {
    /// Of the profile.
    pub(super) reading: [u8; 16],
    pub(super) user: String,
    pub(super) access_key: String,
    pub(super) sealed_secret: Vec<u8>,
    pub(super) enabled: bool,
    pub(super) description: String,
    pub(super) created_ms: u64,
}

impl Credential {
    pub(super) fn of(key: &AccessKey, profile: &Profile) -> Self {
        Self {
            reading: profile.reading,
            user: key.user.name.clone(),
            access_key: key.access_key.clone(),
            sealed_secret: key.sealed_secret.clone(),
            enabled: key.enabled,
            description: key.description.clone(),
            created_ms: key.created_ms,
        }
    }

    /// The key, if the profile is the one that it was read with.
    pub(super) fn with(&self, profile: &Profile) -> Option<AccessKey> {
        (self.reading == profile.reading && self.user == profile.user.name).then(|| AccessKey {
            access_key: self.access_key.clone(),
            sealed_secret: self.sealed_secret.clone(),
            user: profile.user.clone(),
            enabled: self.enabled,
            description: self.description.clone(),
            created_ms: self.created_ms,
        })
    }
}

impl Entry for Credential {
    const CACHE: &'static str = "keys";
    const KIND: char = 'k';

    fn absent() -> MetadataError {
        MetadataError::NotFound("access key")
    }

    fn write(&self, out: &mut Writer) {
        out.0.extend_from_slice(&self.reading);
        out.bytes(self.user.as_bytes());
        out.bytes(self.access_key.as_bytes());
        out.bytes(&self.sealed_secret);
        out.byte(u8::from(self.enabled));
        out.bytes(self.description.as_bytes());
        out.number(self.created_ms);
    }

    fn read(fields: &mut Reader<'_>) -> Option<Self> {
        Some(Self {
            reading: fields.array()?,
            user: fields.text()?,
            access_key: fields.text()?,
            sealed_secret: fields.bytes()?.to_vec(),
            enabled: fields.flag()?,
            description: fields.text()?,
            created_ms: fields.number()?,
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use holdfast_actors::domain::objects::ranges::part_range;
    use holdfast_actors::ports::metadata::{ObjectAttributes, Tag};
    use holdfast_protocol::fuzz::{Target, damage};
    use holdfast_protocol::tiers::BLOCK_BYTES_MIN;
    use proptest::prelude::*;

    use super::*;

    fn object(key: String, multipart: bool, marker: bool) -> ObjectVersion {
        let id = ContentId::generate(1);
        let content = Content {
            id,
            manifest: Manifest::single(id, 5 << 30),
            etag: ETag { md5: [7; 16], parts: multipart.then_some(2) },
            checksum: Some(Checksum {
                algorithm: ChecksumAlgorithm::Crc64Nvme,
                checksum_type: ChecksumType::FullObject,
                value: vec![1; 8],
                parts: multipart.then_some(2),
            }),
            parts: if multipart { vec![ObjectPart { number: 1, size_bytes: 5, checksum: None }] } else { vec![] },
            place: ContentPlace::Cluster,
        };
        ObjectVersion {
            bucket: BucketId(3),
            key,
            version: VersionId::generate(9),
            sequence: u64::MAX / 2,
            is_latest: true,
            last_modified_ms: 5,
            owner: "alice".into(),
            content: (!marker).then(|| Arc::new(content)),
            attributes: ObjectAttributes { content_type: Some("text/plain".into()), ..Default::default() },
            tags: vec![Tag { key: "a".into(), value: "b".into() }],
            acl: CannedAcl::PublicRead,
            class: None,
            restore: None,
        }
    }

    /// The same, cold.
    fn cold(object: ObjectVersion, restore: Option<Restore>) -> ObjectVersion {
        let place = ColdPlace {
            tier: "OSS".parse().unwrap(),
            size_bytes: 5,
            piece_bytes: u64::from(BLOCK_BYTES_MIN),
            block_bytes: BLOCK_BYTES_MIN,
            names: vec!["a/b".into()],
            sums: vec![7],
        };
        let content =
            Content { place: ContentPlace::Tier(Arc::new(place)), ..(**object.content.as_ref().unwrap()).clone() };
        ObjectVersion { class: Some("OSS".parse().unwrap()), restore, content: Some(Arc::new(content)), ..object }
    }

    fn comes_back<E: Entry + PartialEq>(value: &E) {
        let bytes = encode(value).unwrap();
        assert!(decode::<E>(&bytes).unwrap().unwrap() == *value);
        for end in 0..bytes.len() {
            assert!(decode::<E>(&bytes[..end]).is_none_or(|found| found.is_err()), "cut at {end}");
        }
        let longer = [&bytes[..], &[0]].concat();
        assert!(decode::<E>(&longer).is_none());
    }

    #[test]
    fn values_come_back_and_nothing_else_is_taken_for_one() {
        for (multipart, marker) in [(false, false), (true, false), (false, true)] {
            comes_back(&object("ein/schlüssel".into(), multipart, marker));
        }
        for restore in [None, Some(Restore::Ongoing), Some(Restore::Until(7))] {
            comes_back(&cold(object("k".into(), true, false), restore));
        }
        comes_back(&Bucket {
            id: BucketId(7),
            name: "b".into(),
            owner: "alice".into(),
            created_ms: 1,
            versioning: Versioning::Suspended,
            configs: BucketConfigKind::ALL.into_iter().map(|kind| (kind, "{}".to_owned())).collect(),
            revision: 4,
        });
        let user = User { name: "alice".into(), admin: true, enabled: false, created_ms: 8 };
        let profile = Profile { user: user.clone(), reading: [3; 16] };
        comes_back(&profile);
        let key = AccessKey {
            access_key: "A".into(),
            sealed_secret: vec![1, 2],
            user,
            enabled: true,
            description: "d".into(),
            created_ms: 2,
        };
        let credential = Credential::of(&key, &profile);
        comes_back(&credential);
        assert!(credential.with(&profile).unwrap() == key);
        assert!(credential.with(&Profile { reading: [4; 16], ..profile }).is_none());
    }

    #[test]
    fn the_form_of_an_object_is_as_written_down() {
        let mut object = cold(object("k".into(), false, false), Some(Restore::Until(7)));
        object.version = VersionId::NULL;
        let content = Arc::make_mut(object.content.as_mut().unwrap());
        content.id = ContentId([9; 12]);
        content.manifest = Manifest::single(content.id, 5);
        let head = "020000000000000003000000016b0000000000000000000000007fffffffffffffff01000000000000000500000005616c69636501";
        let attributes = hex::encode(r#"{"content_type":"text/plain"}"#);
        let tags = hex::encode(r#"[{"key":"a","value":"b"}]"#);
        let expected = [
            head,
            "0000001d",
            &attributes,
            "00000019",
            &tags,
            "000000034f5353",
            "020000000000000007",
            "01",
            "090909090909090909090909",
            "00000014",
            "0909090909090909090909090000000000000005",
            "07070707070707070707070707070707",
            "ffffffffffffffff",
            "010200000000080101010101010101ffffffffffffffff",
            "00000000",
            "010000002601034f53530000000000000005000000000002000000020000000000010003612f6200000007",
        ];
        assert_eq!(hex::encode(encode(&object).unwrap()), expected.concat());
    }

    #[test]
    fn forms_of_other_versions_of_the_program_are_taken_for_nothing() {
        let mut bytes = encode(&object("k".into(), false, false)).unwrap();
        for form in (0..=u8::MAX).filter(|form| *form != ObjectVersion::FORM) {
            bytes[0] = form;
            assert!(decode::<ObjectVersion>(&bytes).is_none(), "{form}");
        }
    }

    #[test]
    fn an_object_whose_place_is_not_known_is_not_kept() {
        let mut object = object("k".into(), false, false);
        Arc::make_mut(object.content.as_mut().unwrap()).place = ContentPlace::NotLoaded;
        assert!(encode(&object).is_none());
    }

    #[test]
    fn that_nothing_is_there_comes_back() {
        let absent = decode::<ObjectVersion>(&encode_absent()).unwrap();
        assert!(matches!(absent, Err(MetadataError::NoSuchKey)));
        assert!(ObjectVersion::is_absent(&MetadataError::NoSuchKey) && !ObjectVersion::is_absent(&MetadataError::Busy));
        assert!(Profile::is_absent(&MetadataError::NotFound("user")));
    }

    fn survives<E: Entry>(bytes: &[u8]) {
        if let Some(Ok(value)) = decode::<E>(bytes) {
            let form = encode(&value).unwrap();
            let Some(Ok(again)) = decode::<E>(&form) else { panic!("what was read is not read again") };
            assert_eq!(encode(&again).unwrap(), form);
        }
    }

    #[test]
    fn damaged_values_are_taken_for_nothing_or_for_what_can_be() {
        fn body(bytes: &[u8]) {
            survives::<ObjectVersion>(bytes);
            survives::<Bucket>(bytes);
            survives::<Profile>(bytes);
            survives::<Credential>(bytes);
            if let Some(Ok(object)) = decode::<ObjectVersion>(bytes)
                && let Some(content) = &object.content
            {
                // What a reader does with it.
                let size_bytes = content.size_bytes();
                for number in 1..=content.parts.len() as u32 + 1 {
                    let _ = part_range(content, number);
                }
                let _ = content.manifest.locate(0..size_bytes).take(10).count();
            }
        }
        fn seeds() -> Vec<Vec<u8>> {
            let whole = object("k".into(), true, false);
            let bucket = Bucket {
                id: BucketId(7),
                name: "b".into(),
                owner: "alice".into(),
                created_ms: 1,
                versioning: Versioning::Suspended,
                configs: BucketConfigKind::ALL.into_iter().map(|kind| (kind, "{}".to_owned())).collect(),
                revision: 4,
            };
            let user = User { name: "alice".into(), admin: true, enabled: false, created_ms: 8 };
            let profile = Profile { user, reading: [3; 16] };
            vec![
                encode(&whole).unwrap(),
                encode(&cold(whole, Some(Restore::Until(7)))).unwrap(),
                encode(&object("k".into(), false, true)).unwrap(),
                encode(&bucket).unwrap(),
                encode(&profile).unwrap(),
                encode_absent(),
            ]
        }
        damage::run(&[Target { name: "redis_value", body, seeds }], 5_000);
    }

    #[test]
    fn parts_that_cannot_be_added_up_are_taken_for_nothing() {
        let mut object = object("k".into(), true, false);
        let content = Arc::make_mut(object.content.as_mut().unwrap());
        content.parts = vec![ObjectPart { number: 1, size_bytes: u64::MAX, checksum: None }; 2];
        assert!(decode::<ObjectVersion>(&encode(&object).unwrap()).is_none());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_fall_over(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            for form in [Bucket::FORM, ObjectVersion::FORM] {
                let bytes = [&[form][..], &bytes].concat();
                decode::<ObjectVersion>(&bytes);
                decode::<Bucket>(&bytes);
                decode::<Profile>(&bytes);
                decode::<Credential>(&bytes);
            }
        }
    }
}
