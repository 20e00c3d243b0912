//! CopyObject and UploadPartCopy.

use super::*;

#[tokio::test]
async fn copy_shares_the_content() {
    let world = World::new().await;
    let data = pattern(100_000);
    world
        .put("/bucket/source")
        .header("content-type", "text/plain")
        .header("x-amz-meta-a", "1")
        .header("x-amz-tagging", "t=1")
        .body(data.clone())
        .send()
        .await
        .expect(200);
    let copy = world.put("/bucket/copy").header("x-amz-copy-source", "/bucket/source").send().await.expect(200);
    assert_eq!(copy.tag("ETag"), format!("\"{}\"", md5_hex(&data)));
    world.assert_chunks(1).await;
    let got = world.get("/bucket/copy").send().await.expect(200);
    assert_eq!((got.header("x-amz-meta-a"), got.header("x-amz-tagging-count")), ("1".into(), "1".into()));
    world.delete("/bucket/source").send().await.expect(204);
    assert!(world.get("/bucket/copy").send().await.expect(200).body() == data);
}

#[tokio::test]
async fn a_plus_in_the_name_of_a_source_is_a_space() {
    let world = World::new().await;
    world.put("/bucket/a%20b").body("space").send().await.expect(200);
    world.put("/bucket/a%2Bb").body("plus").send().await.expect(200);
    for (source, expected) in [("bucket/a+b", "space"), ("/bucket/a%20b", "space"), ("bucket/a%2Bb", "plus")] {
        world.put("/bucket/copy").header("x-amz-copy-source", source).send().await.expect(200);
        assert_eq!(world.get("/bucket/copy").send().await.expect(200).text(), expected, "{source}");
    }
    let missing = world.put("/bucket/copy").header("x-amz-copy-source", "bucket/no+one").send().await;
    assert_eq!(missing.expect_error(404, "NoSuchKey").tag("Key"), "no one");
    let upload = world.post("/bucket/k?uploads").send().await.expect(200).tag("UploadId");
    let part = world.put(&format!("/bucket/k?partNumber=1&uploadId={upload}"));
    let copied = part.header("x-amz-copy-source", "bucket/a+b").send().await.expect(200);
    assert_eq!(copied.tag("ETag"), format!("\"{}\"", md5_hex(b"space")));
}

#[tokio::test]
async fn directives_replace_metadata_and_tags() {
    let world = World::new().await;
    world
        .put("/bucket/k")
        .header("x-amz-meta-a", "1")
        .header("x-amz-tagging", "t=1")
        .body("x")
        .send()
        .await
        .expect(200);
    // What rclone does to set a modification time.
    let touch = world
        .put("/bucket/k")
        .header("x-amz-copy-source", "bucket/k")
        .header("x-amz-metadata-directive", "REPLACE")
        .header("x-amz-meta-mtime", "5")
        .header("content-type", "text/css")
        .send();
    touch.await.expect(200);
    let got = world.get("/bucket/k").send().await.expect(200);
    assert_eq!((got.header("x-amz-meta-mtime"), got.header("content-type")), ("5".into(), "text/css".into()));
    assert!(!got.headers.contains_key("x-amz-meta-a"));
    assert_eq!(got.header("x-amz-tagging-count"), "1", "tags are copied unless replaced");
    let retag = world
        .put("/bucket/k2")
        .header("x-amz-copy-source", "bucket/k")
        .header("x-amz-tagging-directive", "REPLACE")
        .header("x-amz-tagging", "x=1&y=2")
        .send();
    retag.await.expect(200);
    assert_eq!(world.get("/bucket/k2?tagging").send().await.tags("Key"), ["x", "y"]);
    world.put("/bucket/k").header("x-amz-copy-source", "bucket/k").send().await.expect_error(400, "InvalidRequest");
    let bad =
        world.put("/bucket/k").header("x-amz-copy-source", "bucket/k").header("x-amz-metadata-directive", "MERGE");
    bad.send().await.expect_error(400, "InvalidArgument");
}

#[tokio::test]
async fn conditions_on_source_and_target() {
    let world = World::new().await;
    let etag = world.put("/bucket/source").body("x").send().await.header("etag");
    let copy = || world.put("/bucket/copy").header("x-amz-copy-source", "bucket/source");
    copy().header("x-amz-copy-source-if-match", "\"junk\"").send().await.expect_error(412, "PreconditionFailed");
    copy().header("x-amz-copy-source-if-none-match", &etag).send().await.expect_error(412, "PreconditionFailed");
    copy().header("x-amz-copy-source-if-match", &etag).header("if-none-match", "*").send().await.expect(200);
    copy().header("if-none-match", "*").send().await.expect_error(412, "PreconditionFailed");
    let missing = world.put("/bucket/copy").header("x-amz-copy-source", "bucket/none");
    missing.send().await.expect_error(404, "NoSuchKey");
}

#[tokio::test]
async fn another_checksum_writes_the_bytes_anew() {
    let world = World::new().await;
    let data = pattern(300_000);
    world.put("/bucket/source").body(data.clone()).send().await.expect(200);
    let copy = world
        .put("/bucket/copy")
        .header("x-amz-copy-source", "bucket/source")
        .header("x-amz-checksum-algorithm", "CRC32")
        .send()
        .await
        .expect(200);
    assert_eq!(copy.tag("ChecksumCRC32"), crc32(&data));
    world.assert_chunks(2).await;
    assert!(world.get("/bucket/copy").send().await.expect(200).body() == data);
}

#[tokio::test]
async fn old_versions_can_be_restored_by_copy() {
    let world = World::new().await;
    world.enable_versioning().await;
    let one = world.version_of("one").await;
    world.version_of("two").await;
    let source = format!("bucket/k?versionId={one}");
    let copy = world.put("/bucket/k").header("x-amz-copy-source", source).send().await.expect(200);
    assert_eq!(copy.header("x-amz-copy-source-version-id"), one);
    assert_eq!(world.get("/bucket/k").send().await.expect(200).text(), "one");
    let marker = world.delete("/bucket/k").send().await.header("x-amz-version-id");
    let from_marker = world.put("/bucket/x").header("x-amz-copy-source", format!("bucket/k?versionId={marker}"));
    from_marker.send().await.expect_error(400, "InvalidRequest");
    world.put("/bucket/x").header("x-amz-copy-source", "bucket/k").send().await.expect_error(404, "NoSuchKey");
}

#[tokio::test]
async fn others_cannot_copy_what_they_cannot_read() {
    let world = World::new().await;
    world.put("/bucket/k").body("x").send().await.expect(200);
    world.put("/bobs").user(Some("bob")).send().await.expect(200);
    let steal = world.put("/bobs/k").user(Some("bob")).header("x-amz-copy-source", "bucket/k");
    steal.send().await.expect_error(403, "AccessDenied");
}
