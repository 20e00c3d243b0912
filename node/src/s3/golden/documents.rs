//! Documents that come damaged, requests that are half of another one, and what answers look like byte by byte.

use holdfast_actors::ports::metadata::{CannedAcl, NewBucket, Versioning};

use super::*;

fn md5_of(body: &[u8]) -> String {
    base64(md5::Md5::digest(body))
}

#[tokio::test]
async fn a_document_that_is_not_what_its_headers_say_is_not_carried_out() {
    const DELETE: &str = "<Delete><Object><Key>gone</Key></Object></Delete>";
    const TAGS: &str = "<Tagging><TagSet><Tag><Key>a</Key><Value>b</Value></Tag></TagSet></Tagging>";
    const VERSIONING: &str = "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
    let world = World::new().await;
    world.put("/bucket/k").body("kept").send().await.expect(200);
    world.put("/bucket/gone").body("at last").send().await.expect(200);
    let requests = [
        ("POST", "/bucket?delete", DELETE),
        ("PUT", "/bucket?tagging", TAGS),
        ("PUT", "/bucket/k?tagging", TAGS),
        ("PUT", "/bucket?versioning", VERSIONING),
        ("PUT", "/bucket?policy", "{}"),
    ];
    for (method, target, body) in requests {
        let request = || world.request(method, target).body(body);
        request().payload(Payload::WronglySigned).send().await.expect_error(400, "XAmzContentSHA256Mismatch");
        request().header("content-md5", md5_of(b"other")).send().await.expect_error(400, "BadDigest");
        request().header("content-md5", "junk").send().await.expect_error(400, "InvalidDigest");
        request().header("x-amz-checksum-crc32", crc32(b"other")).send().await.expect_error(400, "BadDigest");
    }
    let put = world.put("/another").body("<CreateBucketConfiguration/>").payload(Payload::WronglySigned);
    put.send().await.expect_error(400, "XAmzContentSHA256Mismatch");
    world.get("/bucket/gone").send().await.expect(200);
    world.get("/bucket?tagging").send().await.expect_error(404, "NoSuchTagSet");
    assert_eq!(world.get("/bucket?versioning").send().await.tag("Status"), "");

    for (method, target, body) in requests {
        let request = world.request(method, target).body(body).header("content-md5", md5_of(body.as_bytes()));
        let answer = request.header("x-amz-checksum-crc32", crc32(body.as_bytes())).send().await;
        assert!(answer.status.is_success() || answer.tag("Code") == "MalformedPolicy", "{target}: {answer:?}");
    }
    world.get("/bucket/gone").send().await.expect_error(404, "NoSuchKey");
}

#[tokio::test]
async fn a_cdata_section_is_not_passed_over() {
    let world = World::new().await;
    world.put("/bucket/k").header("x-amz-tagging", "a=1").body("x").send().await.expect(200);
    let tags = "<Tagging><TagSet><Tag><Key>a</Key><Value><![CDATA[2]]></Value></Tag></TagSet></Tagging>";
    for target in ["/bucket/k?tagging", "/bucket?tagging"] {
        let refused = world.put(target).body(tags).send().await.expect_error(400, "MalformedXML");
        assert!(refused.tag("Message").contains("CDATA"), "{refused:?}");
    }
    assert_eq!(world.get("/bucket/k?tagging").send().await.expect(200).tag("Value"), "1");
    // Other operations have JSON, or bytes that are nobody's business.
    let policy = r#"{"Version":"2012-10-17","Id":"<![CDATA[","Statement":[{"Effect":"Allow","Principal":"*",
        "Action":"s3:GetObject","Resource":"arn:aws:s3:::bucket/*"}]}"#;
    world.put("/bucket?policy").body(policy).send().await.expect(204);
    world.put("/bucket/k").body("<![CDATA[").send().await.expect(200);
}

#[tokio::test]
async fn an_element_with_a_namespace_prefix_is_not_passed_over() {
    let world = World::new().await;
    world.put("/bucket/k").header("x-amz-tagging", "a=1").body("x").send().await.expect(200);
    let space = "http://s3.amazonaws.com/doc/2006-03-01/";
    for tags in [
        format!("<Tagging xmlns:s=\"{space}\"><TagSet><s:Tag><Key>a</Key><Value>2</Value></s:Tag></TagSet></Tagging>"),
        format!("<s:Tagging xmlns:s=\"{space}\"><s:TagSet/></s:Tagging>"),
    ] {
        let refused = world.put("/bucket/k?tagging").body(tags).send().await.expect_error(400, "MalformedXML");
        assert!(refused.tag("Message").contains("prefix"), "{refused:?}");
    }
    assert_eq!(world.get("/bucket/k?tagging").send().await.expect(200).tag("Value"), "1");
    for attribute in [String::new(), format!(" xmlns=\"{space}\"")] {
        let tags = format!("<Tagging{attribute}><TagSet><Tag><Key>a</Key><Value>s:2</Value></Tag></TagSet></Tagging>");
        world.put("/bucket/k?tagging").body(tags).send().await.expect(200);
        assert_eq!(world.get("/bucket/k?tagging").send().await.expect(200).tag("Value"), "s:2");
    }
}

/// Whoever owns a bucket deletes it, and somebody makes one of the same name.
async fn replace_bucket(metadata: Arc<dyn MetadataStore>, owner: &'static str) {
    let id = metadata.bucket("bucket").await.unwrap().id;
    metadata.delete_bucket("bucket", id).await.unwrap();
    let bucket = NewBucket { name: "bucket".to_owned(), owner: owner.to_owned(), acl: CannedAcl::Private, now_ms: 0 };
    metadata.create_bucket(bucket).await.unwrap();
}

#[tokio::test]
async fn a_document_that_comes_slowly_is_not_given_to_a_bucket_that_was_made_meanwhile() {
    let world = World::new().await;
    let policy = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":"alice"},
        "Action":"s3:*","Resource":["arn:aws:s3:::bucket","arn:aws:s3:::bucket/*"]}]}"#;
    let lifecycle = "<LifecycleConfiguration><Rule><ID>all</ID><Filter><Prefix></Prefix></Filter>\
        <Status>Enabled</Status><Expiration><Days>1</Days></Expiration></Rule></LifecycleConfiguration>";
    let cors = "<CORSConfiguration><CORSRule><AllowedMethod>GET</AllowedMethod><AllowedOrigin>*</AllowedOrigin>\
        </CORSRule></CORSConfiguration>";
    let tags = "<Tagging><TagSet><Tag><Key>a</Key><Value>b</Value></Tag></TagSet></Tagging>";
    let versioning = "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
    for (target, body) in [
        ("/bucket?policy", policy),
        ("/bucket?lifecycle", lifecycle),
        ("/bucket?cors", cors),
        ("/bucket?tagging", tags),
        ("/bucket?versioning", versioning),
    ] {
        let put = || world.put(target).header("content-md5", md5_of(body.as_bytes())).body(body);
        let replaced = replace_bucket(Arc::clone(&world.metadata), "bob");
        put().meanwhile(replaced).send().await.expect_error(404, "NoSuchBucket");
        let bucket = world.metadata.bucket("bucket").await.unwrap();
        let found = (bucket.owner.as_str(), bucket.configs.len(), bucket.versioning);
        assert_eq!(found, ("bob", 0, Versioning::Unversioned), "{target}");
        replace_bucket(Arc::clone(&world.metadata), "alice").await;
        let answer = put().meanwhile(std::future::ready(())).send().await;
        assert!(answer.status.is_success(), "{target}: {answer:?}");
    }
}

#[tokio::test]
async fn a_bucket_is_made_with_its_tags_or_not_at_all() {
    let world = World::new().await;
    let document = |tags: &str| format!("<CreateBucketConfiguration><Tags>{tags}</Tags></CreateBucketConfiguration>");
    let tag = |key: &str| format!("<Tag><Key>{key}</Key><Value>of {key}</Value></Tag>");
    world.put("/tagged").body(document(&tag("a"))).send().await.expect(200);
    assert_eq!(world.get("/tagged?tagging").send().await.expect(200).tag("Value"), "of a");
    for bad in [tag("a").repeat(2), tag("aws:a"), tag("")] {
        world.put("/untagged").body(document(&bad)).send().await.expect_error(400, "InvalidTag");
    }
    world.get("/untagged?location").send().await.expect_error(404, "NoSuchBucket");
    world.put("/untagged").body(document("")).send().await.expect(200);
    world.get("/untagged?tagging").send().await.expect_error(404, "NoSuchTagSet");
}

#[tokio::test]
async fn characters_may_be_written_by_their_numbers() {
    let world = World::new().await;
    let target = "/bucket/%F0%9F%98%80";
    world.put(target).body("x").send().await.expect(200);
    // So Python's XML writes what is not ASCII.
    let tags = "<Tagging><TagSet><Tag><Key>t</Key><Value>&#128512;</Value></Tag></TagSet></Tagging>";
    world.put(&format!("{target}?tagging")).body(tags).send().await.expect(200);
    assert_eq!(world.get(&format!("{target}?tagging")).send().await.expect(200).tag("Value"), "\u{1F600}");

    let body = "<Delete><Object><Key>&#128512;</Key></Object><Object><Key>a&#x1;&#x1F600;</Key></Object></Delete>";
    let delete = || world.post("/bucket?delete").user(Some("bob")).header("content-md5", md5_of(body.as_bytes()));
    let policy = |signing: &str| {
        format!(
            r#"{{"Version":"2012-10-17","Statement":[{{"Effect":"Allow","Principal":{{"AWS":"bob"}},
            "Action":"s3:DeleteObject","Resource":"arn:aws:s3:::bucket/*",
            "Condition":{{"StringEquals":{{"s3:authType":"{signing}"}}}}}}]}}"#
        )
    };
    world.put("/bucket?policy").body(policy("REST-QUERY-STRING")).send().await.expect(204);
    assert_eq!(delete().body(body).send().await.expect(200).tags("Code"), ["AccessDenied", "AccessDenied"]);
    world.get(target).send().await.expect(200);
    // What is decided for each key is decided about the request as it was signed.
    world.put("/bucket?policy").body(policy("REST-HEADER")).send().await.expect(204);
    let deleted = delete().body(body).send().await.expect(200);
    assert_eq!(deleted.text().matches("<Deleted>").count(), 2, "{deleted:?}");
    world.get(target).send().await.expect_error(404, "NoSuchKey");
    delete().body(format!("{body} ")).send().await.expect_error(400, "BadDigest");
}

#[tokio::test]
async fn a_checksum_of_an_unknown_kind_is_not_passed_over() {
    let world = World::new().await;
    let put = world.put("/bucket/k").body("x").header("x-amz-checksum-crc99", "AAAA");
    put.send().await.expect_error(400, "InvalidRequest");
    world.get("/bucket/k").send().await.expect_error(404, "NoSuchKey");
}

#[tokio::test]
async fn half_a_request_for_a_part_does_not_touch_the_object() {
    let world = World::new().await;
    world.put("/bucket/k").body("kept").send().await.expect(200);
    let upload = world.post("/bucket/k?uploads").send().await.expect(200).tag("UploadId");
    for (method, query) in [
        ("PUT", "partNumber=1".to_owned()),
        ("PUT", format!("uploadId={upload}")),
        ("PUT", "versionId=null".to_owned()),
        ("DELETE", "partNumber=1".to_owned()),
    ] {
        let answer = world.request(method, &format!("/bucket/k?{query}")).body("part").send().await;
        answer.expect_error(400, "InvalidArgument");
    }
    // Nor is a bucket made of a part whose key was lost: its document would be passed over.
    world.put("/made?uploadId=u").body("part").send().await.expect_error(400, "InvalidArgument");
    world.get("/made").send().await.expect_error(404, "NoSuchBucket");
    let copy = world.put("/bucket/k?partNumber=1").header("x-amz-copy-source", "bucket/k").send().await;
    copy.expect_error(400, "InvalidArgument");
    assert_eq!(world.get("/bucket/k").send().await.expect(200).text(), "kept");
}

#[tokio::test]
async fn a_carriage_return_of_a_key_survives_readers_of_xml() {
    let world = World::new().await;
    world.put("/bucket/a%0Db").body("x").send().await.expect(200);
    for target in ["/bucket?list-type=2", "/bucket", "/bucket?versions"] {
        assert_eq!(world.get(target).send().await.expect(200).tags("Key"), ["a&#13;b"], "{target}");
    }
    assert_eq!(world.get("/bucket?encoding-type=url").send().await.expect(200).tags("Key"), ["a%0Db"]);
    let delete = world.post("/bucket?delete").body("<Delete><Object><Key>a&#13;b</Key></Object></Delete>");
    assert_eq!(delete.send().await.expect(200).tags("Key"), ["a&#13;b"]);
    world.get("/bucket/a%0Db").send().await.expect_error(404, "NoSuchKey");
}

#[tokio::test]
async fn errors_name_what_they_are_about() {
    let world = World::new().await;
    let missing = world.get("/bucket/a%20b%3C").send().await.expect_error(404, "NoSuchKey");
    assert_eq!((missing.tag("Key").as_str(), missing.tag("Resource").as_str()), ("a b&lt;", "/bucket/a b&lt;"));
    assert_eq!(world.get("/nowhere").send().await.expect_error(404, "NoSuchBucket").tag("BucketName"), "nowhere");
    let taken = world.put("/bucket").user(Some("bob")).send().await.expect_error(409, "BucketAlreadyExists");
    assert_eq!(taken.tag("BucketName"), "bucket");
    let policy = world.get("/bucket?policy").send().await.expect_error(404, "NoSuchBucketPolicy");
    assert_eq!(policy.tag("BucketName"), "bucket");
    let copy = world.put("/bucket/k").header("x-amz-copy-source", "/bucket/none").send().await;
    assert_eq!(copy.expect_error(404, "NoSuchKey").tag("Key"), "none", "the source is missing, not the target");

    world.enable_versioning().await;
    let version = world.version_of("x").await;
    world.delete("/bucket").send().await.expect_error(409, "BucketNotEmpty");
    let target = format!("/bucket/k?versionId={version}");
    world.delete(&target).send().await.expect(204);
    let missing = world.get(&target).send().await.expect_error(404, "NoSuchVersion");
    assert_eq!((missing.tag("Key"), missing.tag("VersionId")), ("k".to_owned(), version));
    let upload = world.post("/bucket/k?uploads").send().await.expect(200).tag("UploadId");
    let target = format!("/bucket/k?uploadId={upload}");
    world.delete(&target).send().await.expect(204);
    assert_eq!(world.get(&target).send().await.expect_error(404, "NoSuchUpload").tag("UploadId"), upload);
    let denied = world.get("/bucket/k").user(Some("bob")).send().await.expect_error(403, "AccessDenied");
    assert!(denied.tags("Key").is_empty() && denied.tags("BucketName").is_empty(), "{}", denied.text());
}

#[tokio::test]
async fn small_print_of_answers() {
    let world = World::new().await;
    let put = world.put("/bucket/k").body("x").send().await.expect(200);
    let attributes = world.get("/bucket/k?attributes").header("x-amz-object-attributes", "ETag");
    assert_eq!(attributes.send().await.expect(200).tag("ETag"), md5_hex(b"x"), "the one ETag without quotes");
    let unchanged = world.get("/bucket/k").header("if-none-match", put.header("etag")).send().await.expect(304);
    assert!(!unchanged.headers.contains_key("content-type"));
    assert_eq!(unchanged.header("etag"), put.header("etag"));
    let malformed = world.put("/bucket?tagging").body("<a/>").send().await.expect_error(400, "MalformedXML");
    assert_ne!(malformed.tag("Message"), "");
    for method in ["PATCH", "TRACE"] {
        world.request(method, "/bucket/k").send().await.expect_error(405, "MethodNotAllowed");
    }
}

#[tokio::test]
async fn what_s3_ignores_is_ignored_although_it_is_signed() {
    let world = World::new().await;
    world.put("/bucket/k").body("0123456789").send().await.expect(200);
    for (name, value) in [
        ("range", "bytes=0-1,4-5"),
        ("range", "lines=1-2"),
        ("if-modified-since", "yesterday"),
        ("if-unmodified-since", "2026-11-30"),
    ] {
        let got = world.get("/bucket/k").header(name, value).send().await.expect(200);
        assert_eq!(got.text(), "0123456789", "{name}: {value}");
        let head = world.head("/bucket/k").header(name, value).send().await.expect(200);
        assert_eq!(head.header("content-length"), "10");
        world.get("/bucket/none").header(name, value).send().await.expect_error(404, "NoSuchKey");
        let stranger = world.get("/bucket/k").header(name, value).user(Some("bob")).send().await;
        stranger.expect_error(403, "AccessDenied");
        let nobody = world.get("/bucket/k").header(name, value).user(None).send().await;
        nobody.expect_error(403, "AccessDenied");
    }
    let overridden = world.get("/bucket/k?response-content-type=a%2Fb").header("range", "x").send().await.expect(200);
    assert_eq!(overridden.header("content-type"), "a/b");
}
