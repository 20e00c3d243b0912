use std::sync::Arc;

use holdfast_actors::domain::objects::ranges::part_range;
use holdfast_actors::ports::metadata::{
    AccessKey, Bucket, BucketConfigKind, BucketId, CannedAcl, Content, ContentPlace, ETag, ObjectAttributes,
    ObjectPart, ObjectVersion, Restore, Tag, User, Versioning,
};
use holdfast_protocol::checksum::Checksum;
use holdfast_protocol::fuzz::{Target, damage};
use holdfast_protocol::tiers::BLOCK_BYTES_MIN;
use holdfast_protocol::{ChecksumAlgorithm, ChecksumType, ColdPlace, ContentId, Manifest, VersionId};
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
    let head =
        "020000000000000003000000016b0000000000000000000000007fffffffffffffff01000000000000000500000005616c69636501";
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
