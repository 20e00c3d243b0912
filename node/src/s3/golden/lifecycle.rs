//! Lifecycle configuration, and when objects expire.

use super::*;

fn xml(rules: &str) -> String {
    format!("<LifecycleConfiguration>{rules}</LifecycleConfiguration>")
}

fn rule(rest: &str) -> String {
    xml(&format!("<Rule><ID>a</ID><Status>Enabled</Status>{rest}</Rule>"))
}

const DAYS: &str = "<Expiration><Days>3</Days></Expiration>";
const ALL: &str = "<Filter><Prefix></Prefix></Filter>";

#[tokio::test]
async fn rules_are_read_back_as_they_were_put_until_they_are_deleted() {
    let world = World::new().await;
    world.get("/bucket?lifecycle").send().await.expect_error(404, "NoSuchLifecycleConfiguration");
    let rules = "<Rule><ID>one</ID><Prefix>old/</Prefix><Status>Disabled</Status><Expiration><Date>2030-01-01T00:00:00Z</Date>\
         </Expiration></Rule>\
         <Rule><Filter><And><Prefix>logs/</Prefix><Tag><Key>k</Key><Value>v</Value></Tag>\
         <ObjectSizeGreaterThan>5</ObjectSizeGreaterThan><ObjectSizeLessThan>50</ObjectSizeLessThan></And></Filter>\
         <Status>Enabled</Status><Expiration><Days>7</Days></Expiration>\
         <NoncurrentVersionExpiration><NoncurrentDays>2</NoncurrentDays>\
         <NewerNoncurrentVersions>3</NewerNoncurrentVersions></NoncurrentVersionExpiration></Rule>\
         <Rule><ID>three</ID><Filter></Filter><Status>Enabled</Status><Expiration>\
         <ExpiredObjectDeleteMarker>true</ExpiredObjectDeleteMarker></Expiration>\
         <AbortIncompleteMultipartUpload><DaysAfterInitiation>4</DaysAfterInitiation></AbortIncompleteMultipartUpload></Rule>";
    world.put("/bucket?lifecycle").body(xml(rules)).send().await.expect(200);
    let answer = world.get("/bucket?lifecycle").send().await.expect(200);
    let ids = answer.tags("ID");
    assert_eq!((ids.len(), ids[0].as_str(), ids[2].as_str()), (3, "one", "three"));
    assert!(!ids[1].is_empty(), "an id is made");
    for (element, values) in [
        ("Status", vec!["Disabled", "Enabled", "Enabled"]),
        ("Prefix", vec!["old/", "logs/"]),
        ("Days", vec!["7"]),
        ("NoncurrentDays", vec!["2"]),
        ("NewerNoncurrentVersions", vec!["3"]),
        ("ObjectSizeGreaterThan", vec!["5"]),
        ("ObjectSizeLessThan", vec!["50"]),
        ("Key", vec!["k"]),
        ("ExpiredObjectDeleteMarker", vec!["true"]),
        ("DaysAfterInitiation", vec!["4"]),
    ] {
        assert_eq!(answer.tags(element), values, "{element}");
    }
    assert!(answer.tag("Date").starts_with("2030-01-01T00:00:00"), "{}", answer.text());
    world.delete("/bucket?lifecycle").send().await.expect(204);
    world.get("/bucket?lifecycle").send().await.expect_error(404, "NoSuchLifecycleConfiguration");
    world.delete("/bucket?lifecycle").send().await.expect(204);
    world.get("/no-such-bucket?lifecycle").send().await.expect_error(404, "NoSuchBucket");
    world.put("/bucket?lifecycle").body(xml(rules)).user(Some("bob")).send().await.expect_error(403, "AccessDenied");
}

#[tokio::test]
async fn what_cannot_be_carried_out_is_refused_and_changes_nothing() {
    let world = World::new().await;
    world.put("/bucket?lifecycle").body(rule(&format!("{ALL}{DAYS}"))).send().await.expect(200);
    let transition = "<Transition><Days>1</Days><StorageClass>GLACIER</StorageClass></Transition>";
    let noncurrent = "<NoncurrentVersionTransition><NoncurrentDays>1</NoncurrentDays>\
         <StorageClass>GLACIER</StorageClass></NoncurrentVersionTransition>";
    for (rest, code) in [
        (format!("{ALL}{transition}"), "InvalidStorageClass"),
        (format!("{ALL}{DAYS}{noncurrent}"), "InvalidStorageClass"),
        (DAYS.to_owned(), "MalformedXML"),
        (format!("<Prefix></Prefix>{ALL}{DAYS}"), "MalformedXML"),
        (ALL.to_owned(), "InvalidRequest"),
        (format!("{ALL}<Expiration><Days>0</Days></Expiration>"), "InvalidArgument"),
        (format!("{ALL}<Expiration><Days>-1</Days></Expiration>"), "InvalidArgument"),
        (format!("{ALL}<Expiration><Date>2030-01-01T00:00:01Z</Date></Expiration>"), "InvalidArgument"),
        (format!("{ALL}<NoncurrentVersionExpiration/>"), "MalformedXML"),
        (format!("{ALL}<AbortIncompleteMultipartUpload/>"), "MalformedXML"),
        (format!("<Filter><Prefix>a</Prefix><Tag><Key>k</Key><Value>v</Value></Tag></Filter>{DAYS}"), "MalformedXML"),
    ] {
        let answer = world.put("/bucket?lifecycle").body(rule(&rest)).send().await.expect_error(400, code);
        if code == "InvalidStorageClass" {
            assert!(answer.tag("Message").contains("STANDARD, FASTDFS, OSS"), "{}", answer.text());
        }
    }
    let status = xml(&format!("<Rule><Status>On</Status>{ALL}{DAYS}</Rule>"));
    world.put("/bucket?lifecycle").body(status).send().await.expect_error(400, "MalformedXML");
    let twice =
        rule(&format!("{ALL}{DAYS}")).repeat(2).replace("</LifecycleConfiguration><LifecycleConfiguration>", "");
    world.put("/bucket?lifecycle").body(twice).send().await.expect_error(400, "InvalidArgument");
    world.put("/bucket?lifecycle").body(xml("")).send().await.expect_error(400, "MalformedXML");
    let kept = world.get("/bucket?lifecycle").send().await.expect(200);
    assert_eq!((kept.tags("ID"), kept.tag("Days").as_str()), (vec!["a".to_owned()], "3"));
}

#[tokio::test]
async fn xml_that_would_be_passed_over_in_part_is_refused_and_changes_nothing() {
    let world = World::new().await;
    world.put("/bucket?lifecycle").body(rule(&format!("{ALL}{DAYS}"))).send().await.expect(200);
    let days = |days: &str| format!("{ALL}<Expiration><Days>{days}</Days></Expiration>");
    for (rest, element) in [
        (format!("<Filter><Prefix><![CDATA[logs/]]></Prefix></Filter>{DAYS}"), "Prefix"),
        (format!("<Filter>logs/</Filter>{DAYS}"), "Filter"),
        (format!("{ALL}{DAYS}<OnlyIf>cold</OnlyIf>"), "OnlyIf"),
        (days("1,000"), "Days"),
        (days("3.5"), "Days"),
        (days(""), "Days"),
    ] {
        let put = || world.put("/bucket?x-id=x&lifecycle").body(rule(&rest));
        let answer = put().send().await.expect_error(400, "MalformedXML");
        assert!(answer.tag("Message").contains(element), "{rest}: {}", answer.text());
        put().user(Some("bob")).send().await.expect_error(403, "AccessDenied");
        let framed = Payload::Trailer("x-amz-checksum-crc32", "AAAAAA==");
        put().payload(framed).send().await.expect_error(501, "NotImplemented");
    }
    // A number between spaces is a number, but s3s does not read it.
    world.put("/bucket?lifecycle").body(rule(&days(" 4 "))).send().await.expect_error(400, "MalformedXML");
    let mut large = rule(&days("5"));
    large.insert_str(0, &" ".repeat(8 * 1024 * 1024));
    world.put("/bucket?lifecycle").body(large).send().await.expect_error(400, "MaxMessageLengthExceeded");
    let forged = world.put("/bucket?lifecycle").payload(Payload::WronglySigned).body(rule(&days("5"))).send().await;
    assert!(!forged.status.is_success(), "{forged:?}");
    let kept = world.get("/bucket?lifecycle").send().await.expect(200);
    assert_eq!(kept.tag("Days"), "3");
    let written = format!("<?xml version=\"1.0\"?>\n<!-- x -->{}\n", rule(&format!("\n {}\n", days("6"))));
    world.put("/bucket?lifecycle").body(written).send().await.expect(200);
    assert_eq!(world.get("/bucket?lifecycle").send().await.expect(200).tag("Days"), "6");
}

const MOVES: &str = "<Transition><Days>0</Days><StorageClass>OSS</StorageClass></Transition>\
     <Transition><DaysSinceLastAccess>30</DaysSinceLastAccess><StorageClass>FASTDFS</StorageClass></Transition>\
     <Transition><Days>7</Days><StorageClass>STANDARD</StorageClass></Transition>\
     <NoncurrentVersionTransition><NoncurrentDays>0</NoncurrentDays>\
     <NewerNoncurrentVersions>2</NewerNoncurrentVersions><StorageClass>OSS</StorageClass></NoncurrentVersionTransition>";

#[tokio::test]
async fn moves_are_read_back_as_they_were_put() {
    let world = World::new().await;
    let dated = "<Transition><Date>2030-01-01T00:00:00Z</Date><StorageClass>OSS</StorageClass></Transition>";
    world.put("/bucket?lifecycle").body(rule(&format!("{ALL}{dated}"))).send().await.expect(200);
    let answer = world.get("/bucket?lifecycle").send().await.expect(200);
    assert_eq!((answer.tags("StorageClass"), answer.tags("Days")), (vec!["OSS".to_owned()], Vec::<String>::new()));
    assert!(answer.tag("Date").starts_with("2030-01-01T00:00:00"), "{}", answer.text());
    for (put, bytes) in [("/bucket?lifecycle", ""), ("/bucket?x-id=x&lifecycle", "\u{feff}<?xml version=\"1.0\"?>\n")] {
        let text = format!("{bytes}{}", rule(&format!("{ALL}{MOVES}")));
        world.put(put).body(text).send().await.expect(200);
        let answer = world.get("/bucket?lifecycle").send().await.expect(200);
        for (element, values) in [
            ("StorageClass", vec!["OSS", "OSS", "FASTDFS", "STANDARD"]),
            ("Days", vec!["0", "7"]),
            ("DaysSinceLastAccess", vec!["30"]),
            ("NoncurrentDays", vec!["0"]),
            ("NewerNoncurrentVersions", vec!["2"]),
        ] {
            let mut found = answer.tags(element);
            found.sort();
            let mut values: Vec<String> = values.into_iter().map(str::to_owned).collect();
            values.sort();
            assert_eq!(found, values, "{element}: {}", answer.text());
        }
        let moved = "<DaysSinceLastAccess>30</DaysSinceLastAccess><StorageClass>FASTDFS</StorageClass>";
        assert!(answer.text().contains(moved), "{}", answer.text());
    }
    // What was answered can be put as it is.
    let text = world.get("/bucket?lifecycle").send().await.expect(200).text().to_owned();
    world.put("/bucket?lifecycle").body(text.clone()).send().await.expect(200);
    assert_eq!(world.get("/bucket?lifecycle").send().await.expect(200).text(), text);
}

#[tokio::test]
async fn rules_by_the_last_read_are_put_by_those_who_may_and_signed_as_others() {
    let world = World::new().await;
    let text = rule(&format!("{ALL}{MOVES}"));
    let put = || world.put("/bucket?lifecycle").body(text.clone());
    put().user(Some("bob")).send().await.expect_error(403, "AccessDenied");
    put().user(None).send().await.expect_error(403, "AccessDenied");
    let forged = put().payload(Payload::WronglySigned).send().await;
    assert!(!forged.status.is_success(), "{forged:?}");
    world.get("/bucket?lifecycle").send().await.expect_error(404, "NoSuchLifecycleConfiguration");
    put().send().await.expect(200);
    world.put("/no-such-bucket?lifecycle").body(text.clone()).send().await.expect_error(404, "NoSuchBucket");
}

#[tokio::test]
async fn moves_that_cannot_be_are_refused_and_change_nothing() {
    let world = World::new().await;
    world.put("/bucket?lifecycle").body(rule(&format!("{ALL}{DAYS}"))).send().await.expect(200);
    let to = |time: &str, class: &str| format!("<Transition>{time}<StorageClass>{class}</StorageClass></Transition>");
    let later = |days: &str| {
        format!(
            "<NoncurrentVersionTransition><NoncurrentDays>{days}</NoncurrentDays><StorageClass>OSS</StorageClass>\
             </NoncurrentVersionTransition>"
        )
    };
    for (rest, code) in [
        (to("<Days>1</Days>", "glacier"), "InvalidStorageClass"),
        (to("<Days>-1</Days>", "OSS"), "MalformedXML"),
        (to("<Days>1</Days><DaysSinceLastAccess>1</DaysSinceLastAccess>", "OSS"), "MalformedXML"),
        (to("<DaysSinceLastAccess>0</DaysSinceLastAccess>", "OSS"), "MalformedXML"),
        (to("<DaysSinceLastAccess>1</DaysSinceLastAccess>", "STANDARD"), "InvalidArgument"),
        (to("", "OSS"), "MalformedXML"),
        ("<Transition><Days>1</Days></Transition>".to_owned(), "MalformedXML"),
        (to("<Days>3</Days>", "OSS") + DAYS, "InvalidArgument"),
        (to("<Date>2030-01-01T00:00:00Z</Date>", "OSS") + DAYS, "InvalidRequest"),
        (to("<Date>2030-01-01T00:00:01Z</Date>", "OSS"), "InvalidArgument"),
        (to("<Days>1</Days>", "OSS") + &to("<Days>2</Days>", "OSS"), "InvalidRequest"),
        (later("-1"), "InvalidArgument"),
        (later("1") + &later("2"), "InvalidRequest"),
        (
            later("3")
                + "<NoncurrentVersionExpiration><NoncurrentDays>3</NoncurrentDays></NoncurrentVersionExpiration>",
            "InvalidArgument",
        ),
    ] {
        let put = world.put("/bucket?lifecycle").body(rule(&format!("{ALL}{rest}"))).send().await;
        put.expect_error(400, code);
    }
    let kept = world.get("/bucket?lifecycle").send().await.expect(200);
    assert_eq!((kept.tag("Days").as_str(), kept.tags("StorageClass").len()), ("3", 0));
}

#[tokio::test]
async fn the_least_size_of_what_is_moved_is_kept_and_told() {
    const HEADER: &str = "x-amz-transition-default-minimum-object-size";
    let world = World::new().await;
    let put = || world.put("/bucket?lifecycle").body(rule(&format!("{ALL}{MOVES}")));
    for (asked, told) in [
        (None, "all_storage_classes_128K"),
        (Some("varies_by_storage_class"), "varies_by_storage_class"),
        (Some("all_storage_classes_128K"), "all_storage_classes_128K"),
    ] {
        let answer = match asked {
            Some(asked) => put().header(HEADER, asked).send().await.expect(200),
            None => put().send().await.expect(200),
        };
        assert_eq!(answer.header(HEADER), told);
        assert_eq!(world.get("/bucket?lifecycle").send().await.expect(200).header(HEADER), told);
    }
    put().header(HEADER, "none").send().await.expect_error(400, "InvalidArgument");
}

#[tokio::test]
async fn answers_tell_when_a_latest_version_expires_and_by_which_rule() {
    let world = World::new().await;
    world.put("/bucket/logs/a").body("x").send().await.expect(200);
    let plain = world.head("/bucket/logs/a").send().await.expect(200);
    assert!(!plain.headers.contains_key("x-amz-expiration"));
    let rules = xml(
        "<Rule><ID>two days</ID><Status>Enabled</Status><Filter><Prefix>logs/</Prefix></Filter><Expiration><Days>2</Days>\
         </Expiration></Rule><Rule><ID>date</ID><Status>Enabled</Status><Filter><Prefix>d</Prefix></Filter><Expiration>\
         <Date>2040-02-29T00:00:00Z</Date></Expiration></Rule>",
    );
    world.put("/bucket?lifecycle").body(rules).send().await.expect(200);
    let put = world.put("/bucket/logs/b").body("x").send().await.expect(200).header("x-amz-expiration");
    let head = world.head("/bucket/logs/b").send().await.expect(200).header("x-amz-expiration");
    let got = world.get("/bucket/logs/a").send().await.expect(200).header("x-amz-expiration");
    for told in [&put, &head, &got] {
        assert!(told.starts_with("expiry-date=\"") && told.contains(" 00:00:00 GMT\""), "{told}");
        assert!(told.ends_with(", rule-id=\"two%20days\""), "{told}");
    }
    assert_eq!(put, head);
    let dated = world.put("/bucket/d").body("x").send().await.expect(200).header("x-amz-expiration");
    assert_eq!(dated, "expiry-date=\"Wed, 29 Feb 2040 00:00:00 GMT\", rule-id=\"date\"");
    let other = world.put("/bucket/other").body("x").send().await.expect(200);
    assert!(!other.headers.contains_key("x-amz-expiration"));

    // Of older versions nothing is told; and nothing at all without rules.
    world.enable_versioning().await;
    let old = world.put("/bucket/logs/a").body("y").send().await.expect(200).header("x-amz-version-id");
    world.put("/bucket/logs/a").body("z").send().await.expect(200);
    let old = world.head(&format!("/bucket/logs/a?versionId={old}")).send().await.expect(200);
    assert!(!old.headers.contains_key("x-amz-expiration"));
    world.delete("/bucket?lifecycle").send().await.expect(204);
    let plain = world.head("/bucket/logs/a").send().await.expect(200);
    assert!(!plain.headers.contains_key("x-amz-expiration"));
}

#[tokio::test]
async fn a_configuration_that_would_weigh_on_every_request_is_refused() {
    let world = World::new().await;
    let rules = |count: usize, prefix_chars: usize| {
        let prefix = "p".repeat(prefix_chars);
        let rule = |n: usize| {
            format!("<Rule><ID>{n}</ID><Status>Enabled</Status><Filter><Prefix>{prefix}</Prefix></Filter>{DAYS}</Rule>")
        };
        xml(&(0..count).map(rule).collect::<String>())
    };
    world.put("/bucket?lifecycle").body(rules(1_000, 100)).send().await.expect(200);
    world.put("/bucket?lifecycle").body(rules(1_000, 1_000)).send().await.expect_error(400, "InvalidRequest");
    world.put("/bucket?lifecycle").body(rules(1_001, 1)).send().await.expect_error(400, "MalformedXML");
    let kept = world.get("/bucket?lifecycle").send().await.expect(200);
    assert_eq!(kept.tags("ID").len(), 1_000);
}
