//! What no bucket has.

use super::*;

#[tokio::test]
async fn what_is_not_configured_is_answered_as_s3_answers_for_a_bucket_without_it() {
    let world = World::new().await;
    for (query, code) in [
        ("encryption", "ServerSideEncryptionConfigurationNotFoundError"),
        ("replication", "ReplicationConfigurationNotFoundError"),
        ("website", "NoSuchWebsiteConfiguration"),
        ("object-lock", "ObjectLockConfigurationNotFoundError"),
        ("publicAccessBlock", "NoSuchPublicAccessBlockConfiguration"),
    ] {
        world.get(&format!("/bucket?{query}")).send().await.expect_error(404, code);
    }
    for (query, element) in [
        ("accelerate", "AccelerateConfiguration"),
        ("logging", "BucketLoggingStatus"),
        ("notification", "NotificationConfiguration"),
    ] {
        let answer = world.get(&format!("/bucket?{query}")).send().await.expect(200);
        assert!(answer.text().contains(&format!("<{element}")), "{query}: {}", answer.text());
    }
    world.get("/no-such-bucket?encryption").send().await.expect_error(404, "NoSuchBucket");
    world.get("/bucket?encryption").user(Some("bob")).send().await.expect_error(403, "AccessDenied");
    let xml = "<ServerSideEncryptionConfiguration/>";
    world.put("/bucket?encryption").body(xml).send().await.expect_error(501, "NotImplemented");
}
