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
        ("analytics&id=I", "NoSuchConfiguration"),
        ("id=I&intelligent-tiering", "NoSuchConfiguration"),
        ("id=I&inventory", "NoSuchConfiguration"),
        ("id=I&metrics", "NoSuchConfiguration"),
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
    for (query, element) in [
        ("analytics", "ListBucketAnalyticsConfigurationResult"),
        ("intelligent-tiering", "ListBucketIntelligentTieringConfigurationsOutput"),
        ("inventory", "ListInventoryConfigurationsResult"),
        ("metrics", "ListMetricsConfigurationsResult"),
    ] {
        let answer = world.get(&format!("/bucket?{query}")).send().await.expect(200);
        assert!(answer.text().contains(&format!("<{element}")), "{query}: {}", answer.text());
        assert_eq!((answer.tag("IsTruncated"), answer.tags("Id")), ("false".into(), vec![]), "{query}");
        world.get(&format!("/bucket?{query}")).user(Some("bob")).send().await.expect_error(403, "AccessDenied");
    }
    world.get("/no-such-bucket?encryption").send().await.expect_error(404, "NoSuchBucket");
    world.get("/bucket?encryption").user(Some("bob")).send().await.expect_error(403, "AccessDenied");
    let xml = "<ServerSideEncryptionConfiguration/>";
    world.put("/bucket?encryption").body(xml).send().await.expect_error(501, "NotImplemented");
}

#[tokio::test]
async fn no_object_is_locked() {
    let world = World::new().await;
    world.put("/bucket/k").header("x-amz-acl", "public-read").body("x").send().await.expect(200);
    for query in ["legal-hold", "retention"] {
        for key in ["k", "none"] {
            world.get(&format!("/bucket/{key}?{query}")).send().await.expect_error(400, "InvalidRequest");
        }
        for user in [Some("bob"), None] {
            // Reading an object is not reading its lock.
            world.get(&format!("/bucket/k?{query}")).user(user).send().await.expect_error(403, "AccessDenied");
        }
        world.get(&format!("/no-such-bucket/k?{query}")).send().await.expect_error(404, "NoSuchBucket");
        world.put(&format!("/bucket/k?{query}")).body("<x/>").send().await.expect_error(501, "NotImplemented");
    }
}
