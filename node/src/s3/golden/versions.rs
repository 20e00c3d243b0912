//! Versioning and delete markers.

use super::*;

#[tokio::test]
async fn versions_and_delete_markers() {
    let world = World::new().await;
    assert_eq!(world.get("/bucket?versioning").send().await.expect(200).tag("Status"), "");
    world.put("/bucket/k").body("null").send().await.expect(200);
    world.enable_versioning().await;
    assert_eq!(world.get("/bucket?versioning").send().await.expect(200).tag("Status"), "Enabled");
    let one = world.version_of("one").await;
    let two = world.version_of("two").await;
    let latest = world.get("/bucket/k").send().await.expect(200);
    assert_eq!((latest.text(), latest.header("x-amz-version-id")), ("two", two.clone()));
    let old = world.get(&format!("/bucket/k?versionId={one}")).send().await.expect(200);
    assert_eq!((old.text(), old.header("x-amz-version-id")), ("one", one.clone()));
    assert_eq!(world.get("/bucket/k?versionId=null").send().await.expect(200).text(), "null");

    let deleted = world.delete("/bucket/k").send().await.expect(204);
    assert_eq!(deleted.header("x-amz-delete-marker"), "true");
    let marker = deleted.header("x-amz-version-id");
    let gone = world.get("/bucket/k").send().await.expect_error(404, "NoSuchKey");
    assert_eq!(gone.header("x-amz-delete-marker"), "true");
    assert_eq!(gone.header("x-amz-version-id"), marker);
    assert_eq!(world.head("/bucket/k").send().await.expect(404).header("x-amz-delete-marker"), "true");
    let named = world.get(&format!("/bucket/k?versionId={marker}")).send().await.expect_error(405, "MethodNotAllowed");
    assert_eq!(named.header("x-amz-delete-marker"), "true");
    assert_eq!(world.get(&format!("/bucket/k?versionId={two}")).send().await.expect(200).text(), "two");

    let undone = world.delete(&format!("/bucket/k?versionId={marker}")).send().await.expect(204);
    assert_eq!(undone.header("x-amz-delete-marker"), "true");
    assert_eq!(world.get("/bucket/k").send().await.expect(200).text(), "two");
    world.delete(&format!("/bucket/k?versionId={two}")).send().await.expect(204);
    assert_eq!(world.get("/bucket/k").send().await.expect(200).text(), "one");
    world.delete(&format!("/bucket/k?versionId={two}")).send().await.expect(204);
    for key in ["k", "none"] {
        let gone = world.get(&format!("/bucket/{key}?acl&versionId={two}")).send().await;
        gone.expect_error(404, "NoSuchVersion");
    }
}

#[tokio::test]
async fn versions_and_delete_markers_are_listed_in_one_order() {
    let world = World::new().await;
    world.enable_versioning().await;
    let delete =
        async |key: &str| world.delete(&format!("/bucket/{key}")).send().await.expect(204).header("x-amz-version-id");
    let (oldest, marker, newest) = (world.version_of("1").await, delete("k").await, world.version_of("2").await);
    let other = world.put("/bucket/a").body("a").send().await.expect(200).header("x-amz-version-id");
    let expected = [delete("a").await, other, newest, marker, oldest];
    let listed = world.get("/bucket?versions").send().await.expect(200);
    assert_eq!(listed.tags("VersionId"), expected);
    assert_eq!(listed.tags("Key"), ["a", "a", "k", "k", "k"]);
    assert_eq!((listed.tags("DeleteMarker").len(), listed.tags("Version").len()), (2, 3));
    assert!(listed.text().ends_with("</ListVersionsResult>"), "{}", listed.text());
}

#[tokio::test]
async fn listing_of_versions_pages_through_all() {
    let world = World::new().await;
    world.enable_versioning().await;
    let mut expected = Vec::new();
    for body in ["1", "2", "3"] {
        expected.insert(0, world.version_of(body).await);
    }
    let marker = world.delete("/bucket/k").send().await.header("x-amz-version-id");
    expected.insert(0, marker);
    let whole = world.get("/bucket?versions").send().await.expect(200);
    assert_eq!(whole.text().matches("<DeleteMarker>").count(), 1);
    assert_eq!(whole.tags("IsLatest").iter().filter(|latest| *latest == "true").count(), 1);
    let mut seen = Vec::new();
    let mut query = String::from("/bucket?max-keys=1&versions");
    loop {
        let page = world.get(&query).send().await.expect(200);
        seen.extend(page.tags("VersionId"));
        if page.tag("IsTruncated") == "false" {
            break;
        }
        query = format!(
            "/bucket?key-marker={}&max-keys=1&version-id-marker={}&versions",
            page.tag("NextKeyMarker"),
            page.tag("NextVersionIdMarker")
        );
    }
    assert_eq!(seen, expected);
    let alone = format!("/bucket?version-id-marker={}&versions", expected[0]);
    world.get(&alone).send().await.expect_error(400, "InvalidArgument");
}
