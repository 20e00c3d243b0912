//! RestoreObject. That bytes move is the movers' business; here is what the front end says of it.

use super::*;

const FIVE_DAYS: &str = "<RestoreRequest><Days>5</Days>\
     <GlacierJobParameters><Tier>Bulk</Tier></GlacierJobParameters></RestoreRequest>";

impl World {
    fn restore(&self, target: &str) -> Call<'_> {
        self.post(target).body(FIVE_DAYS)
    }

    /// A world with an object of class OSS.
    async fn with_cold() -> Self {
        let world = Self::new().await;
        let put = world.put("/bucket/cold").header("x-amz-storage-class", "OSS").body("xyz");
        put.send().await.expect(200);
        world
    }
}

#[tokio::test]
async fn restore_is_refused_for_what_is_not_cold_or_not_there() {
    let world = World::with_cold().await;
    world.put("/bucket/hot").body("x").send().await.expect(200);
    world.restore("/bucket/hot?restore").send().await.expect_error(403, "InvalidObjectState");
    world.restore("/bucket/none?restore").send().await.expect_error(404, "NoSuchKey");
    world.restore("/none/k?restore").send().await.expect_error(404, "NoSuchBucket");
    world.restore("/bucket/cold?restore&versionId=junk").send().await.expect_error(400, "InvalidArgument");
    let version = "0".repeat(32);
    world.restore(&format!("/bucket/cold?restore&versionId={version}")).send().await.expect_error(404, "NoSuchVersion");
    world.restore("/bucket/cold?restore").user(Some("bob")).send().await.expect_error(403, "AccessDenied");
    world.restore("/bucket/cold?restore").user(None).send().await.expect_error(403, "AccessDenied");
}

#[tokio::test]
async fn delete_markers_cannot_be_restored() {
    let world = World::with_cold().await;
    world.enable_versioning().await;
    let marker = world.delete("/bucket/cold").send().await.expect(204).header("x-amz-version-id");
    world.restore("/bucket/cold?restore").send().await.expect_error(404, "NoSuchKey");
    let named = world.restore(&format!("/bucket/cold?restore&versionId={marker}"));
    named.send().await.expect_error(405, "MethodNotAllowed");
}

#[tokio::test]
async fn requests_that_are_not_understood_change_nothing() {
    let world = World::with_cold().await;
    for (body, status, code) in [
        ("", 400, "MissingRequestBodyError"),
        ("<RestoreRequest/>", 400, "MalformedXML"),
        ("<RestoreRequest><Tier>Bulk</Tier></RestoreRequest>", 400, "MalformedXML"),
        ("<RestoreRequest><Days>1<![CDATA[0]]></Days></RestoreRequest>", 400, "MalformedXML"),
        ("<RestoreRequest><Days>1,000</Days></RestoreRequest>", 400, "MalformedXML"),
        ("<RestoreRequest><Hours>1</Hours></RestoreRequest>", 400, "MalformedXML"),
        ("<RestoreRequest><Days>0</Days></RestoreRequest>", 400, "InvalidArgument"),
        ("<RestoreRequest><Days>-1</Days></RestoreRequest>", 400, "InvalidArgument"),
        ("<RestoreRequest><Type>SELECT</Type></RestoreRequest>", 501, "NotImplemented"),
    ] {
        world.post("/bucket/cold?restore").body(body).send().await.expect_error(status, code);
    }
    let head = world.head("/bucket/cold").send().await.expect(200);
    assert!(!head.headers.contains_key("x-amz-restore"), "{head:?}");
}
