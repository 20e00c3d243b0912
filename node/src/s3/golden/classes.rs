//! Storage classes: where they are taken, and where they are shown.

use holdfast_actors::ports::metadata::BucketConfigKind;

use super::*;

impl World {
    async fn put_class(&self, target: &str, class: &str) -> Answer {
        self.put(target).header("x-amz-storage-class", class).body("xyz").send().await
    }

    /// What HEAD and GET say, which must be the same.
    async fn class_of(&self, target: &str) -> Option<String> {
        let head = self.head(target).send().await.expect(200);
        let get = self.get(target).send().await.expect(200);
        let shown = |answer: &Answer| answer.headers.get("x-amz-storage-class").map(|c| c.to_str().unwrap().to_owned());
        assert_eq!(shown(&head), shown(&get));
        shown(&head)
    }

    async fn default_class(&self, class: Option<&str>) {
        let value = class.map(str::to_owned);
        let id = self.metadata.bucket("bucket").await.unwrap().id;
        self.metadata.set_bucket_config("bucket", id, BucketConfigKind::StorageClass, value).await.unwrap();
    }

    async fn listed_class(&self, query: &str) -> String {
        self.get(&format!("/bucket?{query}")).send().await.expect(200).tag("StorageClass")
    }
}

#[tokio::test]
async fn class_is_shown_by_reads_and_listings() {
    let world = World::new().await;
    let put = world.put_class("/bucket/k", "OSS").await.expect(200);
    assert!(!put.headers.contains_key("x-amz-storage-class"), "S3 does not tell it in the answer of a PUT");
    assert_eq!(world.class_of("/bucket/k").await.as_deref(), Some("OSS"));
    for query in ["", "list-type=2", "versions"] {
        assert_eq!(world.listed_class(query).await, "OSS", "{query}");
    }
    let attributes = world.get("/bucket/k?attributes").header("x-amz-object-attributes", "StorageClass").send().await;
    assert_eq!(attributes.expect(200).tag("StorageClass"), "OSS");
    let part = world.get("/bucket/k").header("range", "bytes=0-1").send().await.expect(206);
    assert_eq!(part.header("x-amz-storage-class"), "OSS");

    world.put_class("/bucket/k", "STANDARD").await.expect(200);
    assert_eq!(world.class_of("/bucket/k").await, None, "headers keep silent about STANDARD");
    for query in ["", "list-type=2", "versions"] {
        assert_eq!(world.listed_class(query).await, "STANDARD", "{query}");
    }
}

#[tokio::test]
async fn what_is_no_class_is_refused_and_the_message_names_those_that_are() {
    let world = World::new().await;
    for class in ["GLACIER", "oss", "OSS ,FASTDFS", "REDUCED_REDUNDANCY"] {
        let refused = world.put_class("/bucket/k", class).await.expect_error(400, "InvalidStorageClass");
        let message = refused.tag("Message");
        assert!(message.ends_with("STANDARD, FASTDFS, OSS"), "{class}: {message}");
        let upload = world.post("/bucket/k?uploads").header("x-amz-storage-class", class);
        upload.send().await.expect_error(400, "InvalidStorageClass");
    }
    world.get("/bucket/k").send().await.expect_error(404, "NoSuchKey");
    world.put("/bucket/k").body("x").send().await.expect(200);
    let copy =
        world.put("/bucket/copy").header("x-amz-copy-source", "bucket/k").header("x-amz-storage-class", "GLACIER");
    copy.send().await.expect_error(400, "InvalidStorageClass");
}

#[tokio::test]
async fn default_class_of_the_bucket_holds_for_writes_that_name_none() {
    let world = World::new().await;
    world.default_class(Some("FASTDFS")).await;
    world.put("/bucket/k").body("x").send().await.expect(200);
    assert_eq!(world.class_of("/bucket/k").await.as_deref(), Some("FASTDFS"));
    world.put_class("/bucket/hot", "STANDARD").await.expect(200);
    assert_eq!(world.class_of("/bucket/hot").await, None);
    let upload = world.post("/bucket/m?uploads").send().await.expect(200).tag("UploadId");
    let listed = world.get(&format!("/bucket/m?uploadId={upload}")).send().await.expect(200);
    assert_eq!(listed.tag("StorageClass"), "FASTDFS");
    world.put("/bucket/copy").header("x-amz-copy-source", "bucket/hot").send().await.expect(200);
    assert_eq!(world.class_of("/bucket/copy").await.as_deref(), Some("FASTDFS"));

    world.default_class(None).await;
    world.put("/bucket/k").body("x").send().await.expect(200);
    assert_eq!(world.class_of("/bucket/k").await, None);
}

#[tokio::test]
async fn lost_default_class_refuses_writes_rather_than_storing_them_elsewhere() {
    let world = World::new().await;
    world.default_class(Some("GONE")).await;
    let refused = world.put("/bucket/k").body("x").send().await.expect_error(503, "ServiceUnavailable");
    assert!(refused.tag("Message").contains("GONE"), "{}", refused.text());
    assert_eq!(refused.header("retry-after"), "60");
    world.post("/bucket/k?uploads").send().await.expect_error(503, "ServiceUnavailable");
    world.assert_chunks(0).await;
    world.put_class("/bucket/k", "STANDARD").await.expect(200);
    world.put_class("/bucket/cold", "OSS").await.expect(200);
    let copy = world.put("/bucket/copy").header("x-amz-copy-source", "bucket/k");
    copy.send().await.expect_error(503, "ServiceUnavailable");
    assert_eq!(world.get("/bucket/k").send().await.expect(200).text(), "xyz", "reads are not concerned");
}

#[tokio::test]
async fn upload_keeps_its_class_from_begin_to_end() {
    let world = World::new().await;
    let create = world.post("/bucket/k?uploads").header("x-amz-storage-class", "OSS");
    let upload = create.send().await.expect(200).tag("UploadId");
    assert_eq!(world.listed_class("uploads").await, "OSS");
    let part = world.put(&format!("/bucket/k?partNumber=1&uploadId={upload}")).body("part").send().await.expect(200);
    let listed = world.get(&format!("/bucket/k?uploadId={upload}")).send().await.expect(200);
    assert_eq!(listed.tag("StorageClass"), "OSS");
    let body = format!(
        "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>{}</ETag></Part></CompleteMultipartUpload>",
        part.header("etag")
    );
    world.post(&format!("/bucket/k?uploadId={upload}")).body(body).send().await.expect(200);
    assert_eq!(world.class_of("/bucket/k").await.as_deref(), Some("OSS"));
    assert_eq!(world.get("/bucket/k").send().await.expect(200).text(), "part");
}

#[tokio::test]
async fn copy_onto_itself_changes_the_class_and_nothing_else() {
    let world = World::new().await;
    let put = world.put("/bucket/k").header("x-amz-meta-a", "1").header("x-amz-tagging", "t=1").body("xyz");
    let etag = put.send().await.expect(200).header("etag");
    for class in ["OSS", "FASTDFS", "STANDARD"] {
        let copy = world.put("/bucket/k").header("x-amz-copy-source", "bucket/k").header("x-amz-storage-class", class);
        let copied = copy.send().await.expect(200);
        assert!(!copied.headers.contains_key("x-amz-storage-class"));
        assert_eq!(world.class_of("/bucket/k").await.as_deref().unwrap_or("STANDARD"), class);
        let got = world.get("/bucket/k").send().await.expect(200);
        assert_eq!((got.text(), got.header("etag")), ("xyz", etag.clone()));
        assert_eq!((got.header("x-amz-meta-a"), got.header("x-amz-tagging-count")), ("1".into(), "1".into()));
    }
    world.assert_chunks(1).await;
    let nothing = world.put("/bucket/k").header("x-amz-copy-source", "bucket/k");
    nothing.send().await.expect_error(400, "InvalidRequest");
}

#[tokio::test]
async fn class_of_a_copy_is_not_that_of_its_source() {
    let world = World::new().await;
    world.put_class("/bucket/cold", "OSS").await.expect(200);
    world.put("/bucket/hot").header("x-amz-copy-source", "bucket/cold").send().await.expect(200);
    assert_eq!(world.class_of("/bucket/hot").await, None);
    assert_eq!(world.class_of("/bucket/cold").await.as_deref(), Some("OSS"));
    let colder =
        world.put("/bucket/colder").header("x-amz-copy-source", "bucket/cold").header("x-amz-storage-class", "FASTDFS");
    colder.send().await.expect(200);
    assert_eq!(world.class_of("/bucket/colder").await.as_deref(), Some("FASTDFS"));
}

#[tokio::test]
async fn conditions_and_checksums_do_not_depend_on_the_class() {
    let world = World::new().await;
    let mut answers = vec![];
    for (key, class) in [("hot", "STANDARD"), ("cold", "OSS")] {
        let target = format!("/bucket/{key}");
        let etag = world.put_class(&target, class).await.expect(200).header("etag");
        world.get(&target).header("if-none-match", &etag).send().await.expect(304);
        world.get(&target).header("if-match", "\"junk\"").send().await.expect_error(412, "PreconditionFailed");
        let got = world.get(&target).header("x-amz-checksum-mode", "ENABLED").send().await.expect(200);
        answers.push((etag, got.header("x-amz-checksum-crc64nvme"), got.header("content-length")));
    }
    assert_eq!(answers[0], answers[1]);
}

#[tokio::test]
async fn versions_keep_their_own_class() {
    let world = World::new().await;
    world.enable_versioning().await;
    let old = world.put_class("/bucket/k", "OSS").await.expect(200).header("x-amz-version-id");
    world.put_class("/bucket/k", "FASTDFS").await.expect(200);
    assert_eq!(world.class_of(&format!("/bucket/k?versionId={old}")).await.as_deref(), Some("OSS"));
    world.delete("/bucket/k").send().await.expect(204);
    let listed = world.get("/bucket?versions").send().await.expect(200);
    assert_eq!(listed.tags("StorageClass"), ["FASTDFS", "OSS"], "delete markers have none");
}
