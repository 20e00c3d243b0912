//! What is taken and what is not.

use holdfast_protocol::fuzz::{Target, damage};
use proptest::prelude::*;
use s3s::dto::{
    AbortIncompleteMultipartUpload, BucketLifecycleConfiguration, Delete, ExpirationStatus, LifecycleExpiration,
    LifecycleRule, LifecycleRuleAndOperator, LifecycleRuleFilter, NoncurrentVersionExpiration, ObjectIdentifier, Tag,
};
use s3s::xml::{Deserialize, Deserializer, Serialize, Serializer};

use super::*;

fn check(text: &[u8], document: Document) -> Result<(), String> {
    read(text, document).map(drop)
}

fn rule(rest: &str) -> String {
    format!("<LifecycleConfiguration><Rule><Status>Enabled</Status>{rest}</Rule></LifecycleConfiguration>")
}

fn lifecycle(rest: &str) -> Result<(), String> {
    check(rule(rest).as_bytes(), Document::Lifecycle)
}

fn restore(rest: &str) -> Result<(), String> {
    check(format!("<RestoreRequest>{rest}</RestoreRequest>").as_bytes(), Document::Restore)
}

fn delete(rest: &str) -> Result<(), String> {
    check(format!("<Delete>{rest}</Delete>").as_bytes(), Document::Delete)
}

#[test]
fn damaged_documents_are_refused_or_rewritten_to_good_ones() {
    fn body(text: &[u8]) {
        for document in [Document::Lifecycle, Document::Delete, Document::Restore] {
            let Ok(idle) = read(text, document) else { continue };
            assert!(idle.is_empty() || document == Document::Lifecycle);
            if idle.is_empty() {
                continue;
            }
            // What takes the place of the extension is negative days, which are refused from clients.
            let rewritten = text_of(&idle::rewritten(text, &idle));
            assert!(rewritten.contains("<Days>-"), "{rewritten}");
            assert_eq!(read(rewritten.replace("<Days>-", "<Days>").as_bytes(), document), Ok(vec![]), "{rewritten}");
        }
    }
    fn text_of(text: &[u8]) -> String {
        String::from_utf8_lossy(text).into_owned()
    }
    fn seeds() -> Vec<Vec<u8>> {
        let days = "<DaysSinceLastAccess>30</DaysSinceLastAccess><StorageClass>OSS</StorageClass>";
        let all = [
            rule("<ID>a &amp; b</ID><Filter><And><Prefix>p</Prefix><Tag><Key>k</Key><Value/></Tag></And></Filter><Expiration><Days> 3 </Days></Expiration>"),
            rule(&format!("<Transition>{days}</Transition><Filter/>")),
            format!("\u{feff}<?xml version=\"1.0\"?>{}", rule(&format!("<Transition>\n{days}</Transition><Transition>{days}</Transition>"))),
            "<Delete><Quiet>true</Quiet><Object><Key>a</Key><VersionId>null</VersionId><Size>5</Size></Object><Other><x/></Other></Delete>".into(),
            "<RestoreRequest><Days>1</Days><GlacierJobParameters><Tier>Bulk</Tier></GlacierJobParameters></RestoreRequest>".into(),
        ];
        all.into_iter().map(String::into_bytes).collect()
    }
    damage::run(&[Target { name: "strict_xml", body, seeds }], 10_000);
}

#[test]
fn the_extension_is_none_in_other_documents_however_deep_it_stands_there() {
    let days = |inside: &str| format!("<Transition><DaysSinceLastAccess>{inside}</DaysSinceLastAccess></Transition>");
    for inside in [String::new(), days(""), days(&days(""))] {
        let delete = format!("<Delete>{}<Object><Key>a</Key></Object></Delete>", days(&inside));
        assert_eq!(read(delete.as_bytes(), Document::Delete), Ok(vec![]), "{inside}");
        let restore =
            format!("<RestoreRequest><SelectParameters>{}</SelectParameters></RestoreRequest>", days(&inside));
        assert_eq!(read(restore.as_bytes(), Document::Restore), Ok(vec![]), "{inside}");
    }
}

#[test]
fn a_character_that_s3s_does_not_read_by_its_number_is_named() {
    let key = |text: &str| delete(&format!("<Object><Key>{text}</Key></Object>"));
    for (text, named) in [("&#128512;", "U+1F600"), ("x&#x1;", "U+0001"), ("&#xFFFE;y", "U+FFFE")] {
        let error = key(text).unwrap_err();
        assert!(error.starts_with("Key ") && error.contains(named), "{error}");
    }
    for text in ["\u{1F600}", "\u{1}", "&#8364;", "&#9;&#10;&#13;", "&#x10FFFD;"] {
        assert_eq!(key(text), Ok(()), "{text}");
    }
}

#[test]
fn documents_of_clients_are_taken() {
    let pretty = "\u{feff}<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<!-- of the operator -->\n\
        <LifecycleConfiguration xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\r\n  <Rule>\n\t<ID>a &amp; b</ID>\n\
        <Filter>\n  <And>\n  <Prefix>logs/&#x41;<!-- and -->b</Prefix>\n  <Tag><Key>k</Key><Value/></Tag>\n\
        <ObjectSizeLessThan>9223372036854775807</ObjectSizeLessThan></And>\n </Filter>\n <Status>Enabled</Status>\n\
        <Expiration><Days> 3 </Days></Expiration>\n\
        <NoncurrentVersionExpiration><NoncurrentDays>2147483647</NoncurrentDays></NoncurrentVersionExpiration>\n\
        <Transition><Days>0</Days><StorageClass>GLACIER</StorageClass></Transition>\n </Rule>\n</LifecycleConfiguration>\n";
    assert_eq!(check(pretty.as_bytes(), Document::Lifecycle), Ok(()));
    for rest in [
        "<Filter/>",
        "<Filter></Filter>",
        "<Filter><Prefix/></Filter>",
        "<Filter><Prefix> </Prefix></Filter>",
        "<Prefix></Prefix>",
        "<Expiration><Days>-1</Days></Expiration>",
        "<Expiration><ExpiredObjectDeleteMarker>true</ExpiredObjectDeleteMarker></Expiration>",
    ] {
        assert_eq!(lifecycle(rest), Ok(()), "{rest}");
    }
    for rest in [
        "<Object><Key>a&#13;b&lt;</Key><VersionId/></Object><Quiet>true</Quiet>",
        "\n<Object>\n<Key> </Key>\n<ETag>\"x\"</ETag></Object>\n",
        "<Unknown><Object></Object></Unknown>",
    ] {
        assert_eq!(delete(rest), Ok(()), "{rest}");
    }
    for rest in [
        "<Days> 3 </Days>",
        "<Days>1</Days><GlacierJobParameters><Tier>Bulk</Tier></GlacierJobParameters>",
        "<Days>1</Days><Tier>Standard</Tier><Description>a &amp; b</Description>",
        // That it is not to be had is for the operation to say.
        "<Type>SELECT</Type><SelectParameters><Expression>a<b>c</b> d</Expression></SelectParameters>",
        "<OutputLocation><S3><BucketName>b</BucketName></S3></OutputLocation>",
    ] {
        assert_eq!(restore(rest), Ok(()), "{rest}");
    }
    // That nothing is there s3s says.
    assert_eq!(check(b"", Document::Delete), Ok(()));
}

#[test]
fn what_s3s_would_pass_over_is_refused_with_the_name_of_the_element() {
    for (rest, element) in [
        ("<Filter><Prefix><![CDATA[logs/]]></Prefix></Filter>", "Prefix"),
        ("<Filter>logs/</Filter>", "Filter"),
        ("<Filter>&amp;</Filter>", "Filter"),
        ("<Filter><Prefix>a</Prefix>b</Filter>", "Filter"),
        ("<Filter><Prefix>a<b/></Prefix></Filter>", "Prefix"),
        ("<Filter><Scope>a</Scope></Filter>", "Scope"),
        ("<Filter><?php x ?></Filter>", "Filter"),
        ("<OnlyIf/>", "OnlyIf"),
        ("Expiration", "Rule"),
        ("<Expiration><Days>1,000</Days></Expiration>", "Days"),
        ("<Expiration><Days>3.5</Days></Expiration>", "Days"),
        ("<Expiration><Days>1e3</Days></Expiration>", "Days"),
        ("<Expiration><Days>3 0</Days></Expiration>", "Days"),
        ("<Expiration><Days>+3</Days></Expiration>", "Days"),
        ("<Expiration><Days>-</Days></Expiration>", "Days"),
        ("<Expiration><Days>\u{663}</Days></Expiration>", "Days"),
        ("<Expiration><Days>1&#48;</Days></Expiration>", "Days"),
        ("<Expiration><Days></Days></Expiration>", "Days"),
        ("<Expiration><Days/></Expiration>", "Days"),
        ("<Expiration><Days>2147483648</Days></Expiration>", "Days"),
        (
            "<NoncurrentVersionExpiration><NoncurrentDays>1x</NoncurrentDays></NoncurrentVersionExpiration>",
            "NoncurrentDays",
        ),
        (
            "<NoncurrentVersionExpiration><NewerNoncurrentVersions>1x</NewerNoncurrentVersions>\
             </NoncurrentVersionExpiration>",
            "NewerNoncurrentVersions",
        ),
        (
            "<AbortIncompleteMultipartUpload><DaysAfterInitiation>1x</DaysAfterInitiation>\
             </AbortIncompleteMultipartUpload>",
            "DaysAfterInitiation",
        ),
        ("<Transition><Days>1x</Days></Transition>", "Days"),
        ("<Filter><ObjectSizeGreaterThan>1 MB</ObjectSizeGreaterThan></Filter>", "ObjectSizeGreaterThan"),
        (
            "<Filter><And><ObjectSizeLessThan>9223372036854775808</ObjectSizeLessThan></And></Filter>",
            "ObjectSizeLessThan",
        ),
    ] {
        let refused = lifecycle(rest).expect_err(rest);
        assert!(refused.contains(element), "{rest}: {refused}");
    }
    for (rest, element) in [
        ("<Object><Key>a<![CDATA[/b]]></Key></Object>", "Key"),
        ("<Object>a<Key>b</Key></Object>", "Object"),
        ("<Object><Key>a<b>c</b></Key></Object>", "Key"),
        ("<Prefix>a</Prefix>", "Prefix"),
        ("<Unknown><Object><Key>a</Key></Object></Unknown>", "Key"),
        ("<Object><Key>a</Key><Size>1,000</Size></Object>", "Size"),
    ] {
        let refused = delete(rest).expect_err(rest);
        assert!(refused.contains(element), "{rest}: {refused}");
    }
    for (rest, element) in [
        ("<Days>1<![CDATA[0]]></Days>", "Days"),
        ("<Days>1,000</Days>", "Days"),
        ("<Days>1d</Days>", "Days"),
        ("<Days/>", "Days"),
        ("3", "RestoreRequest"),
        ("<Hours>1</Hours>", "Hours"),
        ("<GlacierJobParameters>Bulk</GlacierJobParameters>", "GlacierJobParameters"),
    ] {
        let refused = restore(rest).expect_err(rest);
        assert!(refused.contains(element), "{rest}: {refused}");
    }
    for text in [
        "<!DOCTYPE Delete [<!ENTITY a \"b\">]><Delete><Object><Key>a</Key></Object></Delete>",
        "<?x y?><Delete></Delete>",
        "x<Delete></Delete>",
        "<Delete></Delete>x",
        "<Delete></Delete><![CDATA[x]]>",
        "<Delete>",
        "<Delete></Object>",
        "</Delete>",
        "x",
    ] {
        assert!(check(text.as_bytes(), Document::Delete).is_err(), "{text}");
    }
    let deep = "<a>".repeat(100_000);
    assert!(delete(&deep).expect_err("too deep").contains("too deep"));
}

fn xml<T: Serialize>(value: &T) -> Vec<u8> {
    let mut text = Vec::new();
    value.serialize(&mut Serializer::new(&mut text)).expect("it is written");
    text
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z/<>&\"' ]{0,12}", "\\PC{0,12}"]
}

prop_compose! {
    fn any_tag()(key in text(), value in text()) -> Tag {
        Tag { key: Some(key), value: Some(value) }
    }
}

prop_compose! {
    fn any_filter()(
        prefix in proptest::option::of(text()),
        tag in proptest::option::of(any_tag()),
        tags in proptest::option::of(proptest::collection::vec(any_tag(), 1..3)),
        sizes in proptest::option::of((0..i64::MAX, 0..i64::MAX)),
        has_and: bool,
    ) -> LifecycleRuleFilter {
        let (greater, less) = sizes.unzip();
        let and = LifecycleRuleAndOperator {
            object_size_greater_than: greater,
            object_size_less_than: less,
            prefix: prefix.clone(),
            tags,
        };
        LifecycleRuleFilter {
            and: has_and.then_some(and),
            object_size_greater_than: greater,
            object_size_less_than: less,
            prefix,
            tag,
        }
    }
}

prop_compose! {
    fn any_rule()(
        abort in proptest::option::of(0..i32::MAX),
        days in proptest::option::of(0..i32::MAX),
        marker in proptest::option::of(any::<bool>()),
        filter in proptest::option::of(any_filter()),
        id in proptest::option::of(text()),
        noncurrent in proptest::option::of((0..i32::MAX, 0..i32::MAX)),
        prefix in proptest::option::of(text()),
    ) -> LifecycleRule {
        LifecycleRule {
            abort_incomplete_multipart_upload: abort
                .map(|days| AbortIncompleteMultipartUpload { days_after_initiation: Some(days) }),
            expiration: Some(LifecycleExpiration { date: None, days, expired_object_delete_marker: marker }),
            filter,
            id,
            noncurrent_version_expiration: noncurrent.map(|(days, keep)| NoncurrentVersionExpiration {
                newer_noncurrent_versions: Some(keep),
                noncurrent_days: Some(days),
            }),
            noncurrent_version_transitions: None,
            prefix,
            status: ExpirationStatus::from_static(ExpirationStatus::ENABLED),
            transitions: None,
        }
    }
}

proptest! {
    #[test]
    fn rules_as_s3s_writes_them_are_taken(rules in proptest::collection::vec(any_rule(), 1..4)) {
        let written = BucketLifecycleConfiguration { rules };
        let text = xml(&written);
        prop_assert_eq!(check(&text, Document::Lifecycle), Ok(()), "{}", String::from_utf8_lossy(&text));
        let read = BucketLifecycleConfiguration::deserialize(&mut Deserializer::new(&text));
        prop_assert_eq!(read.expect("s3s reads it"), written);
    }

    #[test]
    fn keys_as_s3s_writes_them_are_taken(
        keys in proptest::collection::vec((text(), proptest::option::of(text())), 0..4),
        quiet in proptest::option::of(any::<bool>()),
    ) {
        let objects: Vec<ObjectIdentifier> = keys
            .into_iter()
            .map(|(key, version_id)| ObjectIdentifier { key, version_id, ..ObjectIdentifier::default() })
            .collect();
        let text = xml(&Delete { objects, quiet });
        prop_assert_eq!(check(&text, Document::Delete), Ok(()), "{}", String::from_utf8_lossy(&text));
    }

    /// Whatever comes, it is taken or refused: nothing else happens.
    #[test]
    fn junk_is_no_harm(text in proptest::collection::vec(any::<u8>(), 0..64), tail in "[<>/a-z!\\[\\]?&;]{0,40}") {
        for document in [Document::Lifecycle, Document::Delete, Document::Restore] {
            let _ = check(&text, document);
            let _ = check(tail.as_bytes(), document);
            let _ = check(format!("<Delete>{tail}").as_bytes(), document);
        }
    }
}
