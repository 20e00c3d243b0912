//! Multipart uploads.

use super::*;

const MIB: usize = 1 << 20;

impl World {
    async fn create_upload(&self, key: &str, headers: &[(&'static str, &str)]) -> String {
        let mut call = self.post(&format!("/bucket/{key}?uploads"));
        for (name, value) in headers {
            call = call.header(name, *value);
        }
        call.send().await.expect(200).tag("UploadId")
    }

    fn part(&self, key: &str, upload: &str, number: u32, data: &[u8]) -> Call<'_> {
        self.put(&format!("/bucket/{key}?partNumber={number}&uploadId={upload}")).body(data)
    }

    fn complete(&self, key: &str, upload: &str, parts: &[(u32, String)]) -> Call<'_> {
        let parts: String = parts
            .iter()
            .map(|(number, etag)| format!("<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>"))
            .collect();
        let body = format!("<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>");
        self.post(&format!("/bucket/{key}?uploadId={upload}")).body(body)
    }
}

#[tokio::test]
async fn an_upload_is_decided_about_by_the_tags_of_what_it_overwrites_and_of_no_other_version() {
    let world = World::new().await;
    let put = r#""Principal":{"AWS":"bob"},"Action":"s3:PutObject","Resource":"arn:aws:s3:::bucket/*""#;
    let held = r#""Condition":{"StringEquals":{"s3:ExistingObjectTag/state":"held"}}"#;
    let statements = format!(r#"{{"Effect":"Allow",{put}}},{{"Effect":"Deny",{put},{held}}}"#);
    let policy = format!(r#"{{"Version":"2012-10-17","Statement":[{statements}]}}"#);
    world.put("/bucket?policy").body(policy).send().await.expect(204);
    let bob = Some("bob");
    let begun = world.post("/bucket/k?uploads").user(bob).send().await.expect(200);
    let upload = begun.tag("UploadId");
    let etag = world.part("k", &upload, 1, b"new").user(bob).send().await.expect(200).header("etag");
    world.put("/bucket/k").header("x-amz-tagging", "state=held").body("kept").send().await.expect(200);

    // Of a version that is not there no tag denies anything.
    let version = "versionId=0123456789abcdef01234567";
    let parts = format!("<Part><PartNumber>1</PartNumber><ETag>{etag}</ETag></Part>");
    let document = format!("<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>");
    for target in ["uploads".to_owned(), format!("uploadId={upload}")] {
        let sent = |target: String| world.post(&target).user(bob).body(document.clone()).send();
        sent(format!("/bucket/k?{target}")).await.expect_error(403, "AccessDenied");
        sent(format!("/bucket/k?{target}&{version}")).await.expect_error(400, "InvalidArgument");
    }
    assert_eq!(world.get("/bucket/k").send().await.expect(200).body(), b"kept");
}

#[tokio::test]
async fn parts_become_an_object() {
    let world = World::new().await;
    let (first, last) = (pattern(5 * MIB), pattern(1000));
    let headers = [
        ("content-type", "video/mp4"),
        ("x-amz-meta-a", "1"),
        ("x-amz-checksum-algorithm", "CRC32"),
        ("x-amz-checksum-type", "FULL_OBJECT"),
    ];
    let upload = world.create_upload("k", &headers).await;
    let two = world.part("k", &upload, 2, &last).header("x-amz-checksum-crc32", crc32(&last)).send().await.expect(200);
    let one = world.part("k", &upload, 1, &first).send().await.expect(200);
    assert_eq!(two.header("x-amz-checksum-crc32"), crc32(&last));
    let listed = world.get(&format!("/bucket/k?uploadId={upload}")).send().await.expect(200);
    assert_eq!(listed.tags("PartNumber"), ["1", "2"]);
    assert_eq!(listed.tags("ChecksumCRC32"), [crc32(&first), crc32(&last)]);
    let page = world.get(&format!("/bucket/k?max-parts=1&uploadId={upload}")).send().await.expect(200);
    assert_eq!(
        (page.tags("PartNumber"), page.tag("IsTruncated"), page.tag("NextPartNumberMarker")),
        (vec!["1".into()], "true".into(), "1".into())
    );
    assert_eq!(world.get("/bucket?uploads").send().await.expect(200).tags("UploadId"), [upload.as_str()]);

    let parts = [(1, one.header("etag")), (2, two.header("etag"))];
    let done = world.complete("k", &upload, &parts).send().await.expect(200);
    let digests = [md5::Md5::digest(&first), md5::Md5::digest(&last)].concat();
    let etag = format!("\"{}-2\"", md5_hex(&digests));
    let whole = [first.clone(), last.clone()].concat();
    assert_eq!((done.tag("ETag"), done.tag("ChecksumCRC32")), (etag.clone(), crc32(&whole)));
    // Who did not hear the answer asks again.
    let again = world.complete("k", &upload, &parts).send().await.expect(200);
    assert_eq!((again.tag("ETag"), again.tag("ChecksumCRC32")), (done.tag("ETag"), done.tag("ChecksumCRC32")));
    world.complete("k", &upload, &parts[..1]).send().await.expect_error(404, "NoSuchUpload");
    let once = world.complete("k", &upload, &parts).header("if-none-match", "*").send().await;
    once.expect_error(404, "NoSuchUpload");

    let got = world.get("/bucket/k").header("x-amz-checksum-mode", "ENABLED").send().await.expect(200);
    assert!(got.body() == whole);
    for (name, value) in [
        ("etag", etag),
        ("content-type", "video/mp4".into()),
        ("x-amz-meta-a", "1".into()),
        ("x-amz-checksum-crc32", crc32(&whole)),
        ("x-amz-checksum-type", "FULL_OBJECT".into()),
    ] {
        assert_eq!(got.header(name), value);
    }
    let part = world.get("/bucket/k?partNumber=2").header("x-amz-checksum-mode", "ENABLED").send().await.expect(206);
    assert_eq!(part.body(), last);
    assert_eq!((part.header("x-amz-mp-parts-count"), part.header("x-amz-checksum-crc32")), ("2".into(), crc32(&last)));
    let border = world.get("/bucket/k").header("range", format!("bytes={}-{}", 5 * MIB - 2, 5 * MIB + 1)).send().await;
    assert_eq!(border.expect(206).body(), &whole[5 * MIB - 2..5 * MIB + 2]);
    let attributes = world.get("/bucket/k?attributes").header("x-amz-object-attributes", "ObjectParts").send().await;
    assert_eq!(
        (attributes.tag("PartsCount"), attributes.tags("PartNumber")),
        ("2".into(), vec!["1".into(), "2".into()])
    );
    world.assert_chunks(2).await;
}

#[tokio::test]
async fn parts_of_an_object_are_listed_without_checksums_too() {
    let world = World::new().await;
    let upload = world.create_upload("k", &[]).await;
    let (long, short) = (pattern(5 * MIB), b"last".to_vec());
    let mut parts = Vec::new();
    for (number, data) in [(1, &long), (2, &long), (7, &short)] {
        parts.push((number, world.part("k", &upload, number, data).send().await.expect(200).header("etag")));
    }
    world.complete("k", &upload, &parts).send().await.expect(200);
    let attributes = |names: &str| world.get("/bucket/k?attributes").header("x-amz-object-attributes", names);
    let all = attributes("ETag,Checksum,ObjectParts,StorageClass,ObjectSize").send().await.expect(200);
    assert_eq!(all.tags("PartNumber"), ["1", "2", "7"]);
    let size = (5 * MIB).to_string();
    assert_eq!(all.tags("Size"), [size.as_str(), size.as_str(), "4"]);
    assert_eq!((all.tag("PartsCount"), all.tag("IsTruncated")), ("3".into(), "false".into()));
    assert_eq!(all.tags("ChecksumCRC64NVME").len(), 1, "that of the object, which has one by default");
    let page = attributes("ObjectParts").header("x-amz-max-parts", "1").header("x-amz-part-number-marker", "1");
    let page = page.send().await.expect(200);
    assert_eq!((page.tags("PartNumber"), page.tag("PartsCount")), (vec!["2".into()], "3".into()));
    assert_eq!((page.tag("MaxParts"), page.tag("PartNumberMarker")), ("1".into(), "1".into()));
    assert_eq!((page.tag("IsTruncated"), page.tag("NextPartNumberMarker")), ("true".into(), "2".into()));

    world.put("/bucket/k").body("whole").send().await.expect(200);
    let whole = attributes("ObjectParts,ObjectSize").send().await.expect(200);
    assert_eq!((whole.tag("ObjectSize"), whole.tags("ObjectParts").len()), ("5".into(), 0));
}

#[tokio::test]
async fn composite_checksums() {
    let world = World::new().await;
    let upload = world.create_upload("k", &[("x-amz-checksum-algorithm", "SHA256")]).await;
    let part = world.part("k", &upload, 1, b"x").send().await.expect(200);
    assert_eq!(part.header("x-amz-checksum-sha256"), base64(Sha256::digest(b"x")));
    let wrong = world.part("k", &upload, 1, b"x").header("x-amz-checksum-crc32", crc32(b"x"));
    wrong.send().await.expect_error(400, "InvalidRequest");
    let done = world.complete("k", &upload, &[(1, part.header("etag"))]).send().await.expect(200);
    assert_eq!(done.tag("ChecksumSHA256"), format!("{}-1", base64(Sha256::digest(Sha256::digest(b"x")))));
    assert_eq!(done.tag("ChecksumType"), "COMPOSITE");
}

#[tokio::test]
async fn refusals() {
    let world = World::new().await;
    let upload = world.create_upload("k", &[]).await;
    let small = world.part("k", &upload, 1, b"small").send().await.expect(200).header("etag");
    let last = world.part("k", &upload, 2, b"last").send().await.expect(200).header("etag");
    for number in [0, 10_001] {
        world.part("k", &upload, number, b"x").send().await.expect_error(400, "InvalidArgument");
    }
    world.part("other", &upload, 1, b"x").send().await.expect_error(404, "NoSuchUpload");
    world.part("k", "junk", 1, b"x").send().await.expect_error(404, "NoSuchUpload");
    world
        .part("k", &upload, 3, b"x")
        .header("content-md5", base64([0; 16]))
        .send()
        .await
        .expect_error(400, "BadDigest");
    let complete = |parts: &[(u32, &str)]| {
        let parts: Vec<_> = parts.iter().map(|(n, etag)| (*n, (*etag).to_owned())).collect();
        world.complete("k", &upload, &parts)
    };
    complete(&[]).send().await.expect_error(400, "MalformedXML");
    complete(&[(2, &last), (1, &small)]).send().await.expect_error(400, "InvalidPartOrder");
    complete(&[(1, &last)]).send().await.expect_error(400, "InvalidPart");
    complete(&[(1, &small), (3, &last)]).send().await.expect_error(400, "InvalidPart");
    complete(&[(1, &small), (2, &last)]).send().await.expect_error(400, "EntityTooSmall");
    let size = complete(&[(1, &small)]).header("x-amz-mp-object-size", "4");
    size.send().await.expect_error(400, "InvalidRequest");
    world.put("/bucket/k").body("there").send().await.expect(200);
    complete(&[(1, &small)]).header("if-none-match", "*").send().await.expect_error(412, "PreconditionFailed");
    complete(&[(1, &small)]).header("x-amz-mp-object-size", "5").send().await.expect(200);
    assert_eq!(world.get("/bucket/k").send().await.expect(200).text(), "small");
}

#[tokio::test]
async fn abort_ends_an_upload() {
    let world = World::new().await;
    let upload = world.create_upload("k", &[]).await;
    world.part("k", &upload, 1, b"x").send().await.expect(200);
    world.delete(&format!("/bucket/k?uploadId={upload}")).send().await.expect(204);
    world.delete(&format!("/bucket/k?uploadId={upload}")).send().await.expect_error(404, "NoSuchUpload");
    world.part("k", &upload, 1, b"x").send().await.expect_error(404, "NoSuchUpload");
    assert!(world.get("/bucket?uploads").send().await.expect(200).tags("UploadId").is_empty());
}

#[tokio::test]
async fn who_began_an_upload_may_list_its_parts_and_end_it() {
    let world = World::new().await;
    let statement = |effect: &str, action: &str| {
        format!(
            r#"{{"Effect":"{effect}","Principal":{{"AWS":"bob"}},"Action":"{action}","Resource":"arn:aws:s3:::bucket/*"}}"#
        )
    };
    let put_policy = |statements: String| {
        world.put("/bucket?policy").body(format!(r#"{{"Version":"2012-10-17","Statement":[{statements}]}}"#))
    };
    let allow = statement("Allow", "s3:PutObject");
    put_policy(allow.clone()).send().await.expect(204);
    let bobs = world.post("/bucket/k?uploads").user(Some("bob")).send().await.expect(200).tag("UploadId");
    let alices = world.create_upload("k", &[]).await;
    let (own, other) = (format!("/bucket/k?uploadId={bobs}"), format!("/bucket/k?uploadId={alices}"));
    let elsewhere = format!("/bucket/l?uploadId={bobs}");
    for target in [&other, &elsewhere] {
        world.get(target).user(Some("bob")).send().await.expect_error(403, "AccessDenied");
        world.delete(target).user(Some("bob")).send().await.expect_error(403, "AccessDenied");
    }
    world.get(&own).user(None).send().await.expect_error(403, "AccessDenied");
    world.get(&own).user(Some("bob")).send().await.expect(200);
    let deny = statement("Deny", "s3:AbortMultipartUpload");
    put_policy(format!("{allow},{deny}")).send().await.expect(204);
    world.delete(&own).user(Some("bob")).send().await.expect_error(403, "AccessDenied");
    world.delete("/bucket?policy").send().await.expect(204);
    world.delete(&own).user(Some("bob")).send().await.expect(204);
    assert_eq!(world.get("/bucket?uploads").send().await.expect(200).tags("UploadId"), [alices]);
}

#[tokio::test]
async fn unfinished_uploads_do_not_keep_a_bucket_without_objects() {
    let world = World::new().await;
    let upload = world.create_upload("k", &[]).await;
    world.part("k", &upload, 1, b"x").send().await.expect(200);
    world.create_upload("l", &[]).await;
    world.put("/bucket/object").body("x").send().await.expect(200);
    world.delete("/bucket").send().await.expect_error(409, "BucketNotEmpty");
    let uploads = world.get("/bucket?uploads").send().await.expect(200).tags("UploadId");
    assert_eq!(uploads.len(), 2, "a bucket that stays keeps its uploads");
    world.delete("/bucket/object").send().await.expect(204);
    world.delete("/bucket").user(Some("bob")).send().await.expect_error(403, "AccessDenied");
    let uploads = world.get("/bucket?uploads").send().await.expect(200).tags("UploadId");
    assert_eq!(uploads.len(), 2, "who may not delete the bucket ends nothing");
    for number in 0..20 {
        world.create_upload(&format!("more/{number}"), &[]).await;
    }
    world.delete("/bucket").send().await.expect(204);
    world.part("k", &upload, 1, b"x").send().await.expect_error(404, "NoSuchBucket");
    world.put("/bucket").send().await.expect(200);
    assert!(world.get("/bucket?uploads").send().await.expect(200).tags("UploadId").is_empty());
}

#[tokio::test]
async fn a_bucket_that_is_deleted_while_an_upload_completes_goes_or_has_the_object() {
    let world = World::new().await;
    for _ in 0..20 {
        let upload = world.create_upload("k", &[]).await;
        let parts = [(1, world.part("k", &upload, 1, b"x").send().await.expect(200).header("etag"))];
        let (completed, deleted) =
            tokio::join!(world.complete("k", &upload, &parts).send(), world.delete("/bucket").send());
        match (completed.status.as_u16(), deleted.status.as_u16()) {
            (200, 409) => {
                assert_eq!(world.get("/bucket/k").send().await.expect(200).text(), "x");
                world.delete("/bucket/k").send().await.expect(204);
            }
            (404, 204) => {
                world.put("/bucket").send().await.expect(200);
            }
            _ => panic!("{completed:?} {deleted:?}"),
        }
    }
}

#[tokio::test]
async fn two_completions_at_once_make_one_object_and_are_answered_alike() {
    let world = World::new().await;
    let upload = world.create_upload("k", &[]).await;
    let etag = world.part("k", &upload, 1, b"x").send().await.expect(200).header("etag");
    let parts = [(1, etag)];
    let (a, b) = tokio::join!(world.complete("k", &upload, &parts).send(), world.complete("k", &upload, &parts).send());
    assert_eq!(a.expect(200).tag("ETag"), b.expect(200).tag("ETag"));
    assert_eq!(world.get("/bucket/k").send().await.expect(200).text(), "x");
}

/// Only the upload that became the object may be answered as if it was completed just now: whoever completes another
/// one would take its headers for stored, and in a bucket with versions a version for their own.
#[tokio::test]
async fn an_upload_that_was_aborted_is_not_answered_with_the_object_of_another() {
    let world = World::new().await;
    let headers = [("x-amz-meta-a", "1")];
    let upload = world.create_upload("k", &headers).await;
    let parts = [(1, world.part("k", &upload, 1, b"x").send().await.expect(200).header("etag"))];
    world.complete("k", &upload, &parts).send().await.expect(200);
    let aborted = world.create_upload("k", &[("x-amz-meta-a", "2")]).await;
    assert_eq!(world.part("k", &aborted, 1, b"x").send().await.expect(200).header("etag"), parts[0].1);
    world.delete(&format!("/bucket/k?uploadId={aborted}")).send().await.expect(204);
    world.complete("k", &aborted, &parts).send().await.expect_error(404, "NoSuchUpload");
    // Nor with a copy, which has the same content under another key.
    world.put("/bucket/copy").header("x-amz-copy-source", "bucket/k").send().await.expect(200);
    world.complete("copy", &upload, &parts).send().await.expect_error(404, "NoSuchUpload");
    world.complete("k", &upload, &parts).send().await.expect(200);
    assert_eq!(world.get("/bucket/k").send().await.expect(200).header("x-amz-meta-a"), "1");
}

#[tokio::test]
async fn a_completion_is_answered_alike_after_its_object_was_moved() {
    let world = World::new().await;
    let begun = async || {
        let upload = world.create_upload("k", &[("x-amz-storage-class", "OSS")]).await;
        let parts = [(1, world.part("k", &upload, 1, b"x").send().await.expect(200).header("etag"))];
        (upload, parts)
    };
    let (upload, parts) = begun().await;
    let (aborted, _) = begun().await;
    let done = world.complete("k", &upload, &parts).send().await.expect(200);
    world.delete(&format!("/bucket/k?uploadId={aborted}")).send().await.expect(204);
    assert_eq!(world.finish_moves().await, 1);
    let again = world.complete("k", &upload, &parts).send().await.expect(200);
    assert_eq!(again.tag("ETag"), done.tag("ETag"));
    world.complete("k", &aborted, &parts).send().await.expect_error(404, "NoSuchUpload");
    world.put("/bucket/k").body("y").send().await.expect(200);
    world.complete("k", &upload, &parts).send().await.expect_error(404, "NoSuchUpload");
}

/// An attempt at sending a part that its client gave up may be committed late, while the upload is completed.
#[tokio::test]
async fn a_part_that_comes_once_more_does_not_keep_its_upload_from_being_completed() {
    let world = World::new().await;
    for round in 0..20 {
        let key = format!("k{round}");
        let upload = world.create_upload(&key, &[]).await;
        let parts = [(1, world.part(&key, &upload, 1, b"x").send().await.expect(200).header("etag"))];
        let (done, again) =
            tokio::join!(world.complete(&key, &upload, &parts).send(), world.part(&key, &upload, 1, b"x").send());
        done.expect(200);
        assert!(matches!(again.status.as_u16(), 200 | 404), "{again:?}");
        assert_eq!(world.get(&format!("/bucket/{key}")).send().await.expect(200).text(), "x");
    }
}

#[tokio::test]
async fn parts_are_copied_by_range() {
    let world = World::new().await;
    let data = pattern(6 * MIB);
    world.put("/bucket/source").body(data.clone()).send().await.expect(200);
    let upload = world.create_upload("k", &[]).await;
    let copy = |number: u32| {
        world
            .put(&format!("/bucket/k?partNumber={number}&uploadId={upload}"))
            .header("x-amz-copy-source", "bucket/source")
    };
    let one = copy(1).send().await.expect(200).tag("ETag");
    let two = copy(2).header("x-amz-copy-source-range", "bytes=10-19").send().await.expect(200).tag("ETag");
    for bad in ["bytes=0-18446744073709551615", "bytes=0-6291456", "bytes=5-", "0-5"] {
        copy(3).header("x-amz-copy-source-range", bad).send().await.expect_error(400, "InvalidArgument");
    }
    copy(3).header("x-amz-copy-source-if-match", "\"junk\"").send().await.expect_error(412, "PreconditionFailed");
    world.complete("k", &upload, &[(1, one), (2, two)]).send().await.expect(200);
    world.delete("/bucket/source").send().await.expect(204);
    assert!(world.get("/bucket/k").send().await.expect(200).body() == [&data[..], &data[10..20]].concat());
}
