//! PUT, GET, HEAD, DELETE, tags and buckets.

use super::*;

#[tokio::test]
async fn put_then_get_and_head_give_back_everything() {
    let world = World::new().await;
    let data = pattern(100_000);
    let put = world
        .put("/bucket/dir/a%20b.txt")
        .header("content-type", "text/plain")
        .header("cache-control", "no-store")
        .header("content-disposition", "attachment")
        .header("content-language", "de")
        .header("content-encoding", "gzip")
        .header("expires", "Wed, 21 Oct 2065 07:28:00 GMT")
        .header("x-amz-meta-color", "green")
        .header("x-amz-tagging", "a=1&b=2")
        .body(data.clone())
        .send()
        .await
        .expect(200);
    let etag = format!("\"{}\"", md5_hex(&data));
    assert_eq!(put.header("etag"), etag);
    assert_eq!(put.header("x-amz-checksum-type"), "FULL_OBJECT");
    assert!(put.headers.contains_key("x-amz-checksum-crc64nvme"));
    assert!(!put.headers.contains_key("x-amz-version-id"));
    for answer in [
        world.get("/bucket/dir/a%20b.txt").send().await.expect(200),
        world.head("/bucket/dir/a%20b.txt").send().await.expect(200),
    ] {
        for (name, value) in [
            ("etag", etag.as_str()),
            ("content-length", "100000"),
            ("content-type", "text/plain"),
            ("cache-control", "no-store"),
            ("content-disposition", "attachment"),
            ("content-language", "de"),
            ("content-encoding", "gzip"),
            ("expires", "Wed, 21 Oct 2065 07:28:00 GMT"),
            ("x-amz-meta-color", "green"),
            ("accept-ranges", "bytes"),
        ] {
            assert_eq!(answer.header(name), value);
        }
        assert!(!answer.headers.contains_key("x-amz-checksum-crc64nvme"), "only when asked for");
        assert!(answer.body().is_empty() || answer.body() == data);
    }
    assert_eq!(world.get("/bucket/dir/a%20b.txt").send().await.header("x-amz-tagging-count"), "2");
    let overridden = world.head("/bucket/dir/a%20b.txt?response-expires=Thu%2C%2001%20Dec%201994%2016%3A00%3A00%20GMT");
    for head in [world.head("/bucket/dir/a%20b.txt"), overridden] {
        assert_eq!(head.send().await.expect(200).header("x-amz-tagging-count"), "2");
    }
    let checked = world.head("/bucket/dir/a%20b.txt").header("x-amz-checksum-mode", "ENABLED").send().await;
    assert_eq!(checked.header("x-amz-checksum-crc64nvme"), put.header("x-amz-checksum-crc64nvme"));
}

#[tokio::test]
async fn empty_object_has_an_etag_and_no_chunk() {
    let world = World::new().await;
    world.put("/bucket/empty").send().await.expect(200);
    let got = world.get("/bucket/empty").send().await.expect(200);
    assert_eq!((got.header("content-length"), got.header("content-type")), ("0".into(), "binary/octet-stream".into()));
    assert_eq!(got.header("etag"), "\"d41d8cd98f00b204e9800998ecf8427e\"");
    world.get("/bucket/empty").header("range", "bytes=0-").send().await.expect_error(416, "InvalidRange");
    world.assert_chunks(0).await;
}

#[tokio::test]
async fn ranges() {
    let world = World::new().await;
    let data = pattern(1000);
    world.put("/bucket/k").body(data.clone()).send().await.expect(200);
    for (range, from, to) in [
        ("bytes=0-0", 0, 1),
        ("bytes=10-19", 10, 20),
        ("bytes=990-2000", 990, 1000),
        ("bytes=-5", 995, 1000),
        ("bytes=7-", 7, 1000),
    ] {
        let got = world.get("/bucket/k").header("range", range).send().await.expect(206);
        assert_eq!(got.body(), &data[from..to], "{range}");
        assert_eq!(got.header("content-range"), format!("bytes {from}-{}/1000", to - 1));
        assert_eq!(got.header("content-length"), (to - from).to_string());
        let head = world.head("/bucket/k").header("range", range).send().await.expect(206);
        assert_eq!(head.header("content-length"), (to - from).to_string());
    }
    for ignored in ["bytes=-", "bytes=5-2", "bytes=0-1,3-4"] {
        assert_eq!(world.get("/bucket/k").header("range", ignored).send().await.expect(200).body(), data, "{ignored}");
        assert_eq!(
            world.get("/bucket/k").unsigned("range", ignored).send().await.expect(200).body(),
            data,
            "{ignored}"
        );
    }
    let beyond = world.get("/bucket/k").header("range", "bytes=1000-").send().await.expect_error(416, "InvalidRange");
    assert_eq!(beyond.header("content-range"), "bytes */1000");
    assert_eq!((beyond.tag("RangeRequested"), beyond.tag("ActualObjectSize")), ("bytes=1000-".into(), "1000".into()));
    assert_eq!(world.get("/bucket/k?partNumber=1").send().await.expect(206).body(), data);
    world.get("/bucket/k?partNumber=2").send().await.expect_error(416, "InvalidPartNumber");
}

#[tokio::test]
async fn a_range_of_another_object_is_not_put_behind_what_a_client_has() {
    let world = World::new().await;
    let etag = world.put("/bucket/k").body("hello").send().await.expect(200).header("etag");
    let modified = world.head("/bucket/k").send().await.header("last-modified");
    let request = |method: &'static str, condition: &str| {
        world.request(method, "/bucket/k").header("range", "bytes=1-2").header("if-range", condition).send()
    };
    for same in [etag.as_str(), modified.as_str()] {
        assert_eq!(request("GET", same).await.expect(206).text(), "el", "{same}");
        assert_eq!(request("HEAD", same).await.expect(206).header("content-length"), "2", "{same}");
    }
    let weak = format!("W/{etag}");
    for other in ["\"5d41\"", weak.as_str(), "Wed, 21 Oct 2015 07:28:00 GMT", "junk"] {
        assert_eq!(request("GET", other).await.expect(200).text(), "hello", "{other}");
        assert_eq!(request("HEAD", other).await.expect(200).header("content-length"), "5", "{other}");
    }
    let beyond = world.get("/bucket/k").header("range", "bytes=9-").header("if-range", "\"5d41\"").send().await;
    assert_eq!(beyond.expect(200).text(), "hello");
    world.get("/bucket/k").header("if-range", "\"5d41\"").send().await.expect(200);
}

#[tokio::test]
async fn conditions_of_reads() {
    let world = World::new().await;
    let etag = world.put("/bucket/k").body("x").send().await.expect(200).header("etag");
    let modified = world.head("/bucket/k").send().await.header("last-modified");
    world.get("/bucket/k").header("if-match", &etag).send().await.expect(200);
    world.get("/bucket/k").header("if-match", "\"junk\"").send().await.expect_error(412, "PreconditionFailed");
    let unchanged = world.get("/bucket/k").header("if-none-match", &etag).send().await.expect(304);
    assert_eq!(unchanged.header("etag"), etag);
    world.get("/bucket/k").header("if-modified-since", &modified).send().await.expect(304);
    world.head("/bucket/k").header("if-modified-since", &modified).send().await.expect(304);
    world.get("/bucket/k").header("if-unmodified-since", &modified).send().await.expect(200);
    let past = "Wed, 21 Oct 2015 07:28:00 GMT";
    world.get("/bucket/k").header("if-modified-since", past).send().await.expect(200);
    world.get("/bucket/k").header("if-unmodified-since", past).send().await.expect(412);
}

#[tokio::test]
async fn response_overrides_need_a_signature() {
    let world = World::new().await;
    world.put("/bucket/k").header("x-amz-acl", "public-read").body("x").send().await.expect(200);
    let target = "/bucket/k?response-content-type=text%2Fhtml&response-cache-control=private";
    for got in [world.get(target).send().await.expect(200), world.head(target).send().await.expect(200)] {
        assert_eq!((got.header("content-type"), got.header("cache-control")), ("text/html".into(), "private".into()));
    }
    world.get("/bucket/k").user(None).send().await.expect(200);
    world.get(target).user(None).send().await.expect_error(400, "InvalidRequest");
    world.head(target).user(None).send().await.expect(400);
    for broken in ["type=a%0D%0Ab", "disposition=a%0Ab", "language=%00"] {
        let target = format!("/bucket/k?response-content-{broken}");
        world.get(&target).send().await.expect_error(400, "InvalidRequest");
        world.head(&target).send().await.expect(400);
    }
}

#[tokio::test]
async fn missing_things_have_their_codes() {
    let world = World::new().await;
    world.get("/bucket/none").send().await.expect_error(404, "NoSuchKey");
    world.head("/bucket/none").send().await.expect(404);
    world.get("/nobucket/none").send().await.expect_error(404, "NoSuchBucket");
    world.get("/bucket/none?versionId=0123456789abcdef01234567").send().await.expect_error(404, "NoSuchVersion");
    world.get("/bucket/none?versionId=junk").send().await.expect_error(400, "InvalidArgument");
    world.delete("/bucket/none").send().await.expect(204);
    world.get("/bucket?uploads&max-uploads=-1").send().await.expect_error(400, "InvalidArgument");
}

#[tokio::test]
async fn keys_of_1024_bytes_and_odd_bytes() {
    let world = World::new().await;
    let longest = format!("/bucket/{}", "k".repeat(1024));
    world.put(&longest).body("x").send().await.expect(200);
    assert_eq!(world.get(&longest).send().await.expect(200).text(), "x");
    world.put(&format!("/bucket/{}", "k".repeat(1025))).body("x").send().await.expect_error(400, "KeyTooLongError");
    for key in
        ["%01%02", "a//b", "../..", "%C3%A4%E2%98%83", "a%2Bb%20c%26d%3De%3Ff%23g", "trailing/", "%22%3C%3E%5C%27"]
    {
        let target = format!("/bucket/odd/{key}");
        world.put(&target).body(key).send().await.expect(200);
        assert_eq!(world.get(&target).send().await.expect(200).text(), key);
    }
}

#[tokio::test]
async fn wrong_digests_leave_nothing() {
    let world = World::new().await;
    for len in [10, 300_000] {
        let data = pattern(len);
        let put = || world.put("/bucket/k").body(data.clone());
        let wrong_md5 = base64([1; 16]);
        put().header("content-md5", wrong_md5).send().await.expect_error(400, "BadDigest");
        put().header("content-md5", "short").send().await.expect_error(400, "InvalidDigest");
        put().header("x-amz-checksum-crc32", "AAAAAA==").send().await.expect_error(400, "BadDigest");
        put().header("x-amz-checksum-sha256", base64([0; 32])).send().await.expect_error(400, "BadDigest");
        put().header("x-amz-checksum-sha256", "AAAA").send().await.expect_error(400, "InvalidRequest");
        put().payload(Payload::WronglySigned).send().await.expect_error(400, "XAmzContentSHA256Mismatch");
        put().payload(Payload::Trailer("x-amz-checksum-crc32", "AAAAAA==")).send().await.expect_error(400, "BadDigest");
        world.get("/bucket/k").send().await.expect_error(404, "NoSuchKey");
        world.assert_chunks(0).await;
        put().header("content-md5", base64(md5::Md5::digest(&data))).send().await.expect(200);
        world.delete("/bucket/k").send().await.expect(204);
        world.put("/bucket/k").send().await.expect(200);
        world.delete("/bucket/k").send().await.expect(204);
        // What is left belongs to the version that was deleted, and waits for its grace.
        for chunk in world.chunks.list(None, 10) {
            world.chunks.delete(&[chunk.id]).await.unwrap();
        }
    }
}

#[tokio::test]
async fn checksums_are_kept_and_given_back() {
    let world = World::new().await;
    let data = pattern(200_000);
    let crc = crc32(&data);
    let put = world.put("/bucket/header").header("x-amz-checksum-crc32", &crc).body(data.clone()).send().await;
    assert_eq!(put.expect(200).header("x-amz-checksum-crc32"), crc);
    let leaked: &'static str = Box::leak(crc.clone().into_boxed_str());
    let trailer = Payload::Trailer("x-amz-checksum-crc32", leaked);
    let put = world
        .put("/bucket/trailer")
        .header("x-amz-sdk-checksum-algorithm", "CRC32")
        .payload(trailer)
        .body(data.clone())
        .send()
        .await;
    assert_eq!(put.expect(200).header("x-amz-checksum-crc32"), crc);
    for key in ["header", "trailer"] {
        let target = format!("/bucket/{key}");
        let got = world.get(&target).header("x-amz-checksum-mode", "ENABLED").send().await.expect(200);
        assert_eq!(got.header("x-amz-checksum-crc32"), crc);
        assert_eq!(got.body(), data);
        assert!(!got.headers.contains_key("content-encoding"), "aws-chunked is no encoding of the object");
        let part = world.get(&target).header("x-amz-checksum-mode", "ENABLED").header("range", "bytes=0-9");
        assert!(!part.send().await.expect(206).headers.contains_key("x-amz-checksum-crc32"));
    }
    let attributes = world
        .get("/bucket/header?attributes")
        .header("x-amz-object-attributes", "ETag,Checksum,ObjectSize,StorageClass,ObjectParts")
        .send()
        .await
        .expect(200);
    assert_eq!(attributes.tag("ChecksumCRC32"), crc);
    assert_eq!((attributes.tag("ObjectSize"), attributes.tag("StorageClass")), ("200000".into(), "STANDARD".into()));
}

#[tokio::test]
async fn an_object_may_come_as_one_chunk_unless_that_is_signed() {
    let world = World::new().await;
    let data = pattern(3 << 20);
    let mut framed = format!("{:x}\r\n", data.len()).into_bytes();
    framed.extend(&data);
    framed.extend(format!("\r\n0\r\nx-amz-checksum-crc32:{}\r\n\r\n", crc32(&data)).into_bytes());
    let put = |length: usize| world.put("/bucket/k").header("x-amz-decoded-content-length", length.to_string());
    let unsigned = Payload::Framed("STREAMING-UNSIGNED-PAYLOAD-TRAILER");
    let sent = put(data.len())
        .header("x-amz-trailer", "x-amz-checksum-crc32")
        .header("x-amz-sdk-checksum-algorithm", "CRC32")
        .payload(unsigned)
        .body(framed);
    sent.send().await.expect(200);
    assert_eq!(world.get("/bucket/k").send().await.expect(200).body(), data);
    let signed = Payload::Framed("STREAMING-AWS4-HMAC-SHA256-PAYLOAD");
    let large = format!("ffffffff;chunk-signature={}\r\nand so on", "0".repeat(64));
    put(0xffff_ffff).payload(signed).body(large).send().await.expect_error(400, "InvalidRequest");
}

#[tokio::test]
async fn sdk_algorithm_without_a_checksum_is_refused() {
    let world = World::new().await;
    let put = world.put("/bucket/k").header("x-amz-sdk-checksum-algorithm", "CRC32").body("x");
    put.send().await.expect_error(400, "InvalidRequest");
}

#[tokio::test]
async fn conditional_writes() {
    let world = World::new().await;
    let create = || world.put("/bucket/k").header("if-none-match", "*").body("1");
    let etag = create().send().await.expect(200).header("etag");
    create().send().await.expect_error(412, "PreconditionFailed");
    world
        .put("/bucket/k")
        .header("if-match", "\"junk\"")
        .body("2")
        .send()
        .await
        .expect_error(412, "PreconditionFailed");
    world.put("/bucket/none").header("if-match", &etag).body("2").send().await.expect_error(404, "NoSuchKey");
    world.put("/bucket/k").header("if-none-match", &etag).body("2").send().await.expect_error(501, "NotImplemented");
    world.assert_chunks(1).await;
    assert_eq!(world.get("/bucket/k").send().await.text(), "1");
    world.delete("/bucket/k").header("if-match", "\"junk\"").send().await.expect_error(412, "PreconditionFailed");
    world.put("/bucket/k").header("if-match", &etag).body("2").send().await.expect(200);
    assert_eq!(world.get("/bucket/k").send().await.text(), "2");
}

#[tokio::test]
async fn what_is_not_implemented_says_so() {
    let world = World::new().await;
    for (name, value) in [
        ("x-amz-server-side-encryption", "AES256"),
        ("x-amz-server-side-encryption-customer-algorithm", "AES256"),
        ("x-amz-object-lock-mode", "GOVERNANCE"),
        ("x-amz-object-lock-legal-hold", "ON"),
        ("x-amz-grant-read", "id=alice"),
        ("x-amz-acl", "public-read-write"),
        ("x-amz-write-offset-bytes", "5"),
    ] {
        world.put("/bucket/k").header(name, value).body("x").send().await.expect_error(501, "NotImplemented");
    }
    world
        .put("/bucket/k")
        .header("x-amz-storage-class", "GLACIER")
        .send()
        .await
        .expect_error(400, "InvalidStorageClass");
    world.put("/bucket/k").header("x-amz-storage-class", "STANDARD").send().await.expect(200);
    world
        .put("/bucket/k")
        .header("x-amz-meta-big", "v".repeat(2100))
        .send()
        .await
        .expect_error(400, "MetadataTooLarge");
    world.put("/bucket/k").header("x-amz-expected-bucket-owner", "bob").send().await.expect_error(403, "AccessDenied");
}

#[tokio::test]
async fn a_form_that_asks_for_encryption_or_a_lock_is_not_stored_without() {
    let world = World::new().await;
    let policy = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":"*","Action":"s3:PutObject",
        "Resource":"arn:aws:s3:::bucket/*"}]}"#;
    world.put("/bucket?policy").body(policy).send().await.expect(204);
    let post = |fields: &[(&str, &str)]| {
        let fields = fields.iter().chain(&[("key", "k"), ("file", "x")]);
        let parts = fields
            .map(|(name, value)| format!("--B\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n"));
        let body = parts.collect::<String>() + "--B--\r\n";
        world.post("/bucket").user(None).header("content-type", "multipart/form-data; boundary=B").body(body).send()
    };
    for field in [("x-amz-object-lock-mode", "GOVERNANCE"), ("x-amz-server-side-encryption", "AES256")] {
        post(&[field]).await.expect_error(501, "NotImplemented");
    }
    post(&[]).await.expect(204);
}

#[tokio::test]
async fn disk_faults_are_told_by_status() {
    use holdfast_actors::ports::chunks::memory::Fault;
    let world = World::new().await;
    world.chunks.fail(Fault::Create, 0);
    let full = world.put("/bucket/k").body("x").send().await.expect_error(507, "InsufficientStorage");
    assert!(full.headers.contains_key("retry-after"));
    world.chunks.fail(Fault::Finish, 0);
    world.put("/bucket/k").body("x").send().await.expect_error(500, "InternalError");
    world.put("/bucket/k").body("x").send().await.expect(200);
    let chunk = world.chunks.list(None, 1)[0].id;
    world.chunks.corrupt(chunk);
    world.get("/bucket/k").send().await.expect_error(500, "InternalError");
}

#[tokio::test]
async fn damage_behind_the_first_chunk_cuts_the_connection() {
    let world = World::new().await;
    let data = pattern((16 << 20) + 5);
    world.put("/bucket/k").body(data.clone()).send().await.expect(200);
    let whole = world.get("/bucket/k").send().await.expect(200);
    assert!(whole.body() == data);
    let chunks = world.chunks.list(None, 10);
    world.chunks.corrupt(chunks.iter().find(|c| c.size_bytes == 5).unwrap().id);
    let cut = world.get("/bucket/k").send().await.expect(200);
    assert!(cut.body.is_err(), "the promised length must not be kept with wrong bytes");
}

#[tokio::test]
async fn expires_that_is_no_date_is_kept_as_it_came() {
    let world = World::new().await;
    world.put("/bucket/zero").unsigned("expires", "0").body("x").send().await.expect(200);
    world.put("/bucket/copied").header("x-amz-copy-source", "/bucket/zero").send().await.expect(200);
    let replaced = world.put("/bucket/soon").header("x-amz-copy-source", "/bucket/zero");
    let replaced = replaced.header("x-amz-metadata-directive", "REPLACE").unsigned("expires", "soon, I hope");
    replaced.send().await.expect(200);
    for (key, expires) in [("zero", "0"), ("copied", "0"), ("soon", "soon, I hope")] {
        for method in ["GET", "HEAD"] {
            let got = world.request(method, &format!("/bucket/{key}")).send().await.expect(200);
            let all: Vec<_> = got.headers.get_all("expires").iter().collect();
            assert_eq!(all, [expires], "{method} {key}");
        }
    }
    let overridden = "/bucket/zero?response-expires=Wed%2C%2021%20Oct%202065%2007%3A28%3A00%20GMT";
    for method in ["GET", "HEAD"] {
        let got = world.request(method, overridden).send().await.expect(200);
        assert_eq!(got.header("expires"), "Wed, 21 Oct 2065 07:28:00 GMT", "{method}");
    }
    // What is signed cannot be taken away from s3s.
    world.put("/bucket/signed").header("expires", "0").body("x").send().await.expect_error(400, "InvalidArgument");
    world.get("/bucket/signed").send().await.expect_error(404, "NoSuchKey");
}

#[tokio::test]
async fn tags_of_objects() {
    let world = World::new().await;
    world.put("/bucket/k").header("x-amz-tagging", "a=1").body("x").send().await.expect(200);
    assert_eq!(world.get("/bucket/k?tagging").send().await.expect(200).tags("Key"), ["a"]);
    let set = |tags: &str| format!("<Tagging><TagSet>{tags}</TagSet></Tagging>");
    let tag = |key: &str, value: &str| format!("<Tag><Key>{key}</Key><Value>{value}</Value></Tag>");
    let body = set(&(tag("b", "2") + &tag("c", "")));
    world.put("/bucket/k?tagging").body(body).send().await.expect(200);
    assert_eq!(world.get("/bucket/k?tagging").send().await.expect(200).tags("Key"), ["b", "c"]);
    let eleven: String = (0..11).map(|i| tag(&i.to_string(), "")).collect();
    world.put("/bucket/k?tagging").body(set(&eleven)).send().await.expect_error(400, "BadRequest");
    world.put("/bucket/k?tagging").body(set(&tag(&"k".repeat(129), ""))).send().await.expect_error(400, "InvalidTag");
    world.put("/bucket/none?tagging").body(set("")).send().await.expect_error(404, "NoSuchKey");
    world.delete("/bucket/k?tagging").send().await.expect(204);
    assert!(world.get("/bucket/k?tagging").send().await.expect(200).tags("Key").is_empty());
    world.put("/bucket/k").header("x-amz-tagging", "a=%zz").send().await.expect_error(400, "InvalidArgument");
}

#[tokio::test]
async fn tags_of_the_system_are_not_set_by_clients() {
    let world = World::new().await;
    world.put("/bucket/k").header("x-amz-tagging", "a=1").body("x").send().await.expect(200);
    let refusals = [
        world.put("/bucket/new").header("x-amz-tagging", "a=1&aws%3Ax=2").body("x"),
        world
            .put("/bucket/new")
            .header("x-amz-copy-source", "/bucket/k")
            .header("x-amz-tagging-directive", "REPLACE")
            .header("x-amz-tagging", "AWS:x=2"),
        world.post("/bucket/new?uploads").header("x-amz-tagging", "aws:x=2"),
        world
            .put("/bucket/k?tagging")
            .body("<Tagging><TagSet><Tag><Key>aws:x</Key><Value>2</Value></Tag></TagSet></Tagging>"),
    ];
    for refusal in refusals {
        let refused = refusal.send().await.expect_error(400, "InvalidTag");
        assert_eq!(refused.tag("Message"), "System tags cannot be added/updated by requester");
    }
    world.get("/bucket/new").send().await.expect_error(404, "NoSuchKey");
    assert_eq!(world.get("/bucket/k?tagging").send().await.expect(200).tags("Key"), ["a"]);
}

#[tokio::test]
async fn keys_to_delete_are_read_whole_or_not_at_all() {
    let world = World::new().await;
    for key in ["a", "a/b"] {
        world.put(&format!("/bucket/{key}")).body("x").send().await.expect(200);
    }
    for (object, element) in [("<Key>a<![CDATA[/b]]></Key>", "Key"), ("<Key>a</Key>/b", "Object")] {
        let body = format!("<Delete><Object>{object}</Object></Delete>");
        let answer = world.post("/bucket?delete").body(body.clone()).send().await.expect_error(400, "MalformedXML");
        assert!(answer.tag("Message").contains(element), "{}", answer.text());
        let framed = Payload::Trailer("x-amz-checksum-crc32", "AAAAAA==");
        world.post("/bucket?delete").payload(framed).body(body).send().await.expect_error(501, "NotImplemented");
    }
    world.get("/bucket/a").send().await.expect(200);
    let body = "<?xml version=\"1.0\"?>\n<Delete>\n<Object><Key>a&#x2f;b</Key></Object></Delete>";
    let answer = world.post("/bucket?delete").body(body).send().await.expect(200);
    assert_eq!(answer.tags("Key"), ["a/b"]);
    world.get("/bucket/a").send().await.expect(200);
    world.get("/bucket/a/b").send().await.expect_error(404, "NoSuchKey");
}

#[tokio::test]
async fn delete_many() {
    let world = World::new().await;
    for key in ["a", "b", "c"] {
        world.put(&format!("/bucket/{key}")).body("x").send().await.expect(200);
    }
    let object = |key: &str| format!("<Object><Key>{key}</Key></Object>");
    let body = format!("<Delete>{}{}{}</Delete>", object("a"), object("none"), object(&"k".repeat(1025)));
    let answer = world.post("/bucket?delete").body(body).send().await.expect(200);
    assert_eq!(answer.text().matches("<Deleted>").count(), 2);
    assert_eq!(answer.tag("Code"), "KeyTooLongError");
    let quiet = format!("<Delete><Quiet>true</Quiet>{}</Delete>", object("b"));
    assert_eq!(
        world.post("/bucket?delete").body(quiet).send().await.expect(200).text().matches("<Deleted>").count(),
        0
    );
    world.get("/bucket/b").send().await.expect(404);
    world.get("/bucket/c").send().await.expect(200);
    let many: String = (0..1001).map(|i| object(&i.to_string())).collect();
    world
        .post("/bucket?delete")
        .body(format!("<Delete>{many}</Delete>"))
        .send()
        .await
        .expect_error(400, "MalformedXML");
    world.post("/bucket?delete").body("<Delete></Delete>").send().await.expect_error(400, "MalformedXML");
    world.post("/bucket?delete").body("<Delete><Obj").send().await.expect_error(400, "MalformedXML");
    let denied =
        world.post("/bucket?delete").user(Some("bob")).body(format!("<Delete>{}</Delete>", object("c"))).send();
    assert_eq!(denied.await.tag("Code"), "AccessDenied");
    world.get("/bucket/c").send().await.expect(200);
}

#[tokio::test]
async fn buckets() {
    let world = World::new().await;
    world.put("/bucket").send().await.expect_error(409, "BucketAlreadyOwnedByYou");
    world.put("/bucket").user(Some("bob")).send().await.expect_error(409, "BucketAlreadyExists");
    world.put("/Upper").send().await.expect_error(400, "InvalidBucketName");
    let constraint = |region: &str| {
        format!(
            "<CreateBucketConfiguration><LocationConstraint>{region}</LocationConstraint></CreateBucketConfiguration>"
        )
    };
    world.put("/elsewhere").body(constraint("mars")).send().await.expect_error(400, "InvalidLocationConstraint");
    world.put("/second").body(constraint(REGION)).send().await.expect(200);
    world.put("/bobs").user(Some("bob")).send().await.expect(200);
    assert_eq!(world.head("/bucket").send().await.expect(200).header("x-amz-bucket-region"), REGION);
    world.head("/none").send().await.expect(404);
    assert_eq!(world.get("/").send().await.expect(200).tags("Name"), ["bucket", "second"]);
    let page = world.get("/?max-buckets=1").send().await.expect(200);
    assert_eq!(page.tags("Name"), ["bucket"]);
    let token = page.tag("ContinuationToken");
    assert_eq!(world.get(&format!("/?continuation-token={token}")).send().await.expect(200).tags("Name"), ["second"]);
    assert_eq!(world.get("/?prefix=se").send().await.expect(200).tags("Name"), ["second"]);
    world.get("/bucket?location").send().await.expect(200);
    world.put("/second/k").body("x").send().await.expect(200);
    world.delete("/second").send().await.expect_error(409, "BucketNotEmpty");
    world.delete("/second/k").send().await.expect(204);
    world.delete("/second").send().await.expect(204);
    world.delete("/second").send().await.expect_error(404, "NoSuchBucket");
}
