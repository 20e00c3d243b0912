use std::borrow::Cow;
use std::collections::HashMap;

use super::*;

/// Facts by the name of the key as a policy has it.
#[derive(Default)]
struct TestFacts(HashMap<&'static str, Vec<&'static str>>);

impl Facts for TestFacts {
    fn values(&self, key: &ConditionKey) -> Vec<Cow<'_, str>> {
        self.0
            .iter()
            .filter(|(name, _)| ConditionKey::parse(name).as_ref() == Some(key))
            .flat_map(|(_, values)| values.iter().map(|v| Cow::Borrowed(*v)))
            .collect()
    }
}

fn facts<const N: usize>(pairs: [(&'static str, &'static str); N]) -> TestFacts {
    let mut facts = TestFacts::default();
    for (key, value) in pairs {
        assert!(ConditionKey::parse(key).is_some(), "{key}");
        facts.0.entry(key).or_default().push(value);
    }
    facts
}

fn attempt<'a>(user: Option<&'a str>, action: &'a str, key: Option<&'a str>) -> Attempt<'a> {
    Attempt { user, action, bucket: "photos", key }
}

fn policy(statements: &str) -> Policy {
    Policy::parse(&format!(r#"{{"Version":"2012-10-17","Statement":[{statements}]}}"#), "photos").unwrap()
}

fn refusal(text: &str) -> String {
    Policy::parse(text, "photos").unwrap_err().to_string()
}

#[test]
fn anonymous_reading_is_granted_for_the_named_prefix_only() {
    let policy = policy(
        r#"{"Effect":"Allow","Principal":"*","Action":"s3:GetObject","Resource":"arn:aws:s3:::photos/public/*"}"#,
    );
    let none = TestFacts::default();
    let verdict = |action, key| policy.evaluate(&attempt(None, action, key), &none);
    assert_eq!(verdict("s3:GetObject", Some("public/a.jpg")), Verdict::Allow);
    assert_eq!(verdict("s3:GetObject", Some("public/")), Verdict::Allow);
    assert_eq!(verdict("s3:GetObject", Some("private/a.jpg")), Verdict::Silent);
    assert_eq!(verdict("s3:GetObject", Some("Public/a.jpg")), Verdict::Silent, "keys have case");
    assert_eq!(verdict("s3:PutObject", Some("public/a.jpg")), Verdict::Silent);
    assert_eq!(verdict("s3:ListBucket", None), Verdict::Silent);
    assert!(policy.is_public());
}

#[test]
fn an_explicit_deny_wins_wherever_it_stands() {
    let allow = r#"{"Effect":"Allow","Principal":{"AWS":"ann"},"Action":"s3:*","Resource":["arn:aws:s3:::photos","arn:aws:s3:::photos/*"]}"#;
    let deny = r#"{"Effect":"Deny","Principal":"*","Action":"s3:Delete*","Resource":"arn:aws:s3:::photos/keep/*"}"#;
    for policy in [policy(&format!("{allow},{deny}")), policy(&format!("{deny},{allow}"))] {
        let verdict = |action, key| policy.evaluate(&attempt(Some("ann"), action, Some(key)), &TestFacts::default());
        assert_eq!(verdict("s3:DeleteObject", "keep/x"), Verdict::Deny);
        assert_eq!(verdict("s3:DeleteObject", "other/x"), Verdict::Allow);
        assert_eq!(verdict("s3:GetObject", "keep/x"), Verdict::Allow);
    }
}

#[test]
fn principals_are_users_by_name_or_arn() {
    for (principal, user, expected) in [
        (r#""*""#, None, true),
        (r#"{"AWS":"*"}"#, None, true),
        (r#"{"AWS":"ann"}"#, Some("ann"), true),
        (r#"{"AWS":["bob","ann"]}"#, Some("ann"), true),
        (r#"{"AWS":"arn:aws:iam::123456789012:user/ann"}"#, Some("ann"), true),
        (r#"{"AWS":"arn:aws:iam:::user/team/ann"}"#, Some("ann"), true),
        (r#"{"AWS":"arn:aws:iam::*:user/ann"}"#, Some("ann"), true),
        (r#"{"CanonicalUser":"ann"}"#, Some("ann"), true),
        (r#"{"AWS":"ann"}"#, Some("Ann"), false),
        (r#"{"AWS":"ann"}"#, Some("bob"), false),
        (r#"{"AWS":"ann"}"#, None, false),
    ] {
        let policy = policy(&format!(
            r#"{{"Effect":"Allow","Principal":{principal},"Action":"s3:GetObject","Resource":"arn:aws:s3:::photos/*"}}"#
        ));
        let verdict = policy.evaluate(&attempt(user, "s3:GetObject", Some("k")), &TestFacts::default());
        assert_eq!(verdict == Verdict::Allow, expected, "{principal} {user:?}");
    }
}

#[test]
fn users_are_told_once_however_often_they_are_named() {
    let allow = |principal: &str| {
        format!(
            r#"{{"Effect":"Allow","Principal":{principal},"Action":"s3:GetObject","Resource":"arn:aws:s3:::photos/*"}}"#
        )
    };
    let many = format!(r#"{{"AWS":[{}"arn:aws:iam:::user/ann","bob"]}}"#, r#""ann","#.repeat(2_000));
    let policy = policy(&[allow(&many), allow(r#"{"AWS":"ann"}"#), allow(r#""*""#)].join(","));
    assert_eq!(Vec::from_iter(policy.users()), ["ann", "bob"]);
}

#[test]
fn not_principal_denies_everybody_else_also_anonymous() {
    let policy =
        policy(r#"{"Effect":"Deny","NotPrincipal":{"AWS":"ann"},"Action":"s3:*","Resource":"arn:aws:s3:::photos/*"}"#);
    for (user, verdict) in [(Some("ann"), Verdict::Silent), (Some("bob"), Verdict::Deny), (None, Verdict::Deny)] {
        assert_eq!(policy.evaluate(&attempt(user, "s3:GetObject", Some("k")), &TestFacts::default()), verdict);
    }
}

#[test]
fn actions_match_without_case_and_negated_ones_by_exclusion() {
    let p = policy(
        r#"{"Effect":"Allow","Principal":"*","Action":["S3:getobject","s3:List*"],"Resource":["arn:aws:s3:::photos","arn:aws:s3:::photos/*"]}"#,
    );
    let none = TestFacts::default();
    assert_eq!(p.evaluate(&attempt(None, "s3:GetObject", Some("k")), &none), Verdict::Allow);
    assert_eq!(p.evaluate(&attempt(None, "s3:GetObjectVersion", Some("k")), &none), Verdict::Silent);
    assert_eq!(p.evaluate(&attempt(None, "s3:ListBucketVersions", None), &none), Verdict::Allow);
    let p =
        policy(r#"{"Effect":"Deny","Principal":"*","NotAction":"s3:Get*","NotResource":"arn:aws:s3:::photos/open/*"}"#);
    assert_eq!(p.evaluate(&attempt(None, "s3:PutObject", Some("k")), &none), Verdict::Deny);
    assert_eq!(p.evaluate(&attempt(None, "s3:GetObject", Some("k")), &none), Verdict::Silent);
    assert_eq!(p.evaluate(&attempt(None, "s3:PutObject", Some("open/k")), &none), Verdict::Silent);
}

#[test]
fn a_bucket_resource_does_not_cover_its_objects_nor_the_other_way_round() {
    let none = TestFacts::default();
    let bucket = policy(r#"{"Effect":"Allow","Principal":"*","Action":"s3:*","Resource":"arn:aws:s3:::photos"}"#);
    assert_eq!(bucket.evaluate(&attempt(None, "s3:GetObject", Some("k")), &none), Verdict::Silent);
    assert_eq!(bucket.evaluate(&attempt(None, "s3:ListBucket", None), &none), Verdict::Allow);
    let objects = policy(r#"{"Effect":"Allow","Principal":"*","Action":"s3:*","Resource":"arn:aws:s3:::photos/*"}"#);
    assert_eq!(objects.evaluate(&attempt(None, "s3:ListBucket", None), &none), Verdict::Silent);
    assert_eq!(objects.evaluate(&attempt(None, "s3:GetObject", Some("a/b/c")), &none), Verdict::Allow);
}

#[test]
fn a_user_is_confined_to_the_own_prefix_by_a_variable() {
    let p = policy(
        r#"{"Effect":"Allow","Principal":"*","Action":"s3:PutObject","Resource":"arn:aws:s3:::photos/home/${aws:username}/*"}"#,
    );
    let of = |user| facts([("aws:username", user)]);
    let key = Some("home/ann/x");
    assert_eq!(p.evaluate(&attempt(Some("ann"), "s3:PutObject", key), &of("ann")), Verdict::Allow);
    assert_eq!(p.evaluate(&attempt(Some("bob"), "s3:PutObject", key), &of("bob")), Verdict::Silent);
    assert_eq!(p.evaluate(&attempt(None, "s3:PutObject", Some("home//x")), &TestFacts::default()), Verdict::Silent);
}

#[test]
fn variables_have_no_meaning_in_the_older_version() {
    let text = r#"{"Version":"2008-10-17","Statement":{"Effect":"Allow","Principal":"*","Action":"s3:GetObject","Resource":"arn:aws:s3:::photos/${aws:username}/*"}}"#;
    let p = Policy::parse(text, "photos").unwrap();
    let ann = facts([("aws:username", "ann")]);
    assert_eq!(p.evaluate(&attempt(Some("ann"), "s3:GetObject", Some("ann/x")), &ann), Verdict::Silent);
    assert_eq!(p.evaluate(&attempt(Some("ann"), "s3:GetObject", Some("${aws:username}/x")), &ann), Verdict::Allow);
}

/// Whether a condition holds for facts.
fn holds(condition: &str, facts: &TestFacts) -> bool {
    let p = policy(&format!(
        r#"{{"Effect":"Allow","Principal":"*","Action":"s3:GetObject","Resource":"arn:aws:s3:::photos/*","Condition":{condition}}}"#
    ));
    p.evaluate(&attempt(None, "s3:GetObject", Some("k")), facts) == Verdict::Allow
}

#[test]
fn every_condition_operator_compares_as_iam_says() {
    let request = facts([
        ("aws:SourceIp", "203.0.113.7"),
        ("aws:SecureTransport", "true"),
        ("aws:Referer", "https://example.com/page"),
        ("aws:username", "Ann"),
        ("aws:CurrentTime", "2026-01-02T03:04:05Z"),
        ("aws:EpochTime", "1767323045"),
        ("s3:max-keys", "100"),
        ("s3:prefix", "home/"),
        ("s3:ExistingObjectTag/state", "released"),
        ("s3:RequestObjectTagKeys", "a"),
        ("s3:RequestObjectTagKeys", "b"),
    ]);
    for (condition, expected) in [
        (r#"{"StringEquals":{"aws:username":"Ann"}}"#, true),
        (r#"{"StringEquals":{"aws:username":"ann"}}"#, false),
        (r#"{"StringEquals":{"aws:username":["bob","Ann"]}}"#, true),
        (r#"{"StringEquals":{"AWS:UserName":"Ann"}}"#, true),
        (r#"{"StringNotEquals":{"aws:username":["bob","Ann"]}}"#, false),
        (r#"{"StringNotEquals":{"aws:username":"bob"}}"#, true),
        (r#"{"StringEqualsIgnoreCase":{"aws:username":"aNN"}}"#, true),
        (r#"{"StringNotEqualsIgnoreCase":{"aws:username":"aNN"}}"#, false),
        (r#"{"StringLike":{"aws:Referer":"https://example.com/*"}}"#, true),
        (r#"{"StringEquals":{"aws:Referer":"https://example.com/*"}}"#, false),
        (r#"{"StringNotLike":{"aws:Referer":"https://example.com/*"}}"#, false),
        (r#"{"StringEquals":{"aws:Referer":"x","aws:username":"Ann"}}"#, false),
        (r#"{"NumericLessThanEquals":{"s3:max-keys":"100"}}"#, true),
        (r#"{"NumericLessThan":{"s3:max-keys":100}}"#, false),
        (r#"{"NumericGreaterThan":{"s3:max-keys":"99.5"}}"#, true),
        (r#"{"NumericGreaterThanEquals":{"s3:max-keys":"101"}}"#, false),
        (r#"{"NumericEquals":{"s3:max-keys":["7","100.0"]}}"#, true),
        (r#"{"NumericNotEquals":{"s3:max-keys":"100"}}"#, false),
        (r#"{"NumericEquals":{"s3:prefix":"1"}}"#, false),
        (r#"{"DateGreaterThan":{"aws:CurrentTime":"2026-01-01T00:00:00Z"}}"#, true),
        (r#"{"DateLessThan":{"aws:CurrentTime":"2026-01-01T00:00:00Z"}}"#, false),
        (r#"{"DateLessThanEquals":{"aws:EpochTime":"1767323045"}}"#, true),
        (r#"{"DateGreaterThanEquals":{"aws:EpochTime":"2026-01-02T03:04:06Z"}}"#, false),
        (r#"{"DateEquals":{"aws:CurrentTime":"2026-01-02T04:04:05+01:00"}}"#, true),
        (r#"{"DateNotEquals":{"aws:CurrentTime":"2026-01-02T03:04:05Z"}}"#, false),
        (r#"{"Bool":{"aws:SecureTransport":"true"}}"#, true),
        (r#"{"Bool":{"aws:SecureTransport":false}}"#, false),
        (r#"{"IpAddress":{"aws:SourceIp":"203.0.113.0/24"}}"#, true),
        (r#"{"IpAddress":{"aws:SourceIp":["10.0.0.0/8","203.0.113.7"]}}"#, true),
        (r#"{"IpAddress":{"aws:SourceIp":"203.0.114.0/24"}}"#, false),
        (r#"{"IpAddress":{"aws:SourceIp":"2001:db8::/32"}}"#, false),
        (r#"{"IpAddress":{"aws:SourceIp":"0.0.0.0/0"}}"#, true),
        (r#"{"NotIpAddress":{"aws:SourceIp":"203.0.113.0/24"}}"#, false),
        (r#"{"Null":{"aws:Referer":"false"}}"#, true),
        (r#"{"Null":{"aws:Referer":"true"}}"#, false),
        (r#"{"Null":{"s3:delimiter":true}}"#, true),
        (r#"{"StringEquals":{"s3:delimiter":"/"}}"#, false),
        (r#"{"StringNotEquals":{"s3:delimiter":"/"}}"#, true),
        (r#"{"StringEqualsIfExists":{"s3:delimiter":"/"}}"#, true),
        (r#"{"StringEqualsIfExists":{"aws:username":"bob"}}"#, false),
        (r#"{"StringEquals":{"s3:ExistingObjectTag/state":"released"}}"#, true),
        (r#"{"StringEquals":{"s3:ExistingObjectTag/other":"released"}}"#, false),
        (r#"{"ForAllValues:StringEquals":{"s3:RequestObjectTagKeys":["a","b","c"]}}"#, true),
        (r#"{"ForAllValues:StringEquals":{"s3:RequestObjectTagKeys":["a"]}}"#, false),
        (r#"{"ForAnyValue:StringEquals":{"s3:RequestObjectTagKeys":["b","z"]}}"#, true),
        (r#"{"ForAnyValue:StringEquals":{"s3:RequestObjectTagKeys":["z"]}}"#, false),
        (r#"{"ForAllValues:StringEquals":{"s3:delimiter":"/"}}"#, true),
        (r#"{"ForAnyValue:StringEquals":{"s3:delimiter":"/"}}"#, false),
        (r#"{"ForAllValues:StringNotEquals":{"s3:RequestObjectTagKeys":["b"]}}"#, false),
        (r#"{"ForAnyValue:StringNotEquals":{"s3:RequestObjectTagKeys":["b"]}}"#, true),
        (r#"{"StringEquals":{"s3:prefix":"home/"},"Bool":{"aws:SecureTransport":"true"}}"#, true),
        (r#"{"StringEquals":{"s3:prefix":"home/"},"Bool":{"aws:SecureTransport":"false"}}"#, false),
    ] {
        assert_eq!(holds(condition, &request), expected, "{condition}");
    }
}

#[test]
fn ipv4_clients_of_a_dual_stack_socket_match_ipv4_networks() {
    let request = facts([("aws:SourceIp", "::ffff:203.0.113.7")]);
    assert!(holds(r#"{"IpAddress":{"aws:SourceIp":"203.0.113.0/24"}}"#, &request));
    for (mapped, expected) in
        [("::ffff:203.0.113.0/120", true), ("::ffff:0:0/96", true), ("::ffff:10.0.0.0/104", false)]
    {
        let condition = format!(r#"{{"IpAddress":{{"aws:SourceIp":"{mapped}"}}}}"#);
        assert_eq!(holds(&condition, &request), expected, "{mapped}");
    }
    let request = facts([("aws:SourceIp", "2001:db8:1::5")]);
    assert!(holds(r#"{"IpAddress":{"aws:SourceIp":"2001:db8::/32"}}"#, &request));
    assert!(holds(r#"{"IpAddress":{"aws:SourceIp":"::/0"}}"#, &request));
    assert!(!holds(r#"{"IpAddress":{"aws:SourceIp":"2001:db8:1::4"}}"#, &request));
}

#[test]
fn public_means_granted_to_everybody_without_fixed_callers() {
    let with = |principal: &str, condition: &str| {
        policy(&format!(
            r#"{{"Effect":"Allow","Principal":{principal},"Action":"s3:GetObject","Resource":"arn:aws:s3:::photos/*","Condition":{condition}}}"#
        ))
        .is_public()
    };
    assert!(with(r#""*""#, "{}"));
    assert!(with(r#""*""#, r#"{"StringLike":{"aws:Referer":"https://example.com/*"}}"#));
    assert!(with(r#""*""#, r#"{"IpAddress":{"aws:SourceIp":"0.0.0.0/0"}}"#));
    assert!(with(r#""*""#, r#"{"NotIpAddress":{"aws:SourceIp":"10.0.0.0/8"}}"#));
    assert!(!with(r#""*""#, r#"{"IpAddress":{"aws:SourceIp":"10.0.0.0/8"}}"#));
    assert!(!with(r#"{"AWS":"ann"}"#, "{}"));
}

#[test]
fn a_refusal_names_the_statement_and_the_field() {
    let statement = |fields: &str| format!(r#"{{"Version":"2012-10-17","Statement":[{{{fields}}}]}}"#);
    let ok = r#""Effect":"Allow","Principal":"*","Action":"s3:GetObject","Resource":"arn:aws:s3:::photos/*""#;
    assert!(Policy::parse(&statement(ok), "photos").is_ok());
    let with = |extra: &str| statement(&format!("{ok},{extra}"));
    let without = |field: &str, instead: &str| {
        let kept: Vec<String> = [
            ("Effect", r#""Allow""#),
            ("Principal", r#""*""#),
            ("Action", r#""s3:GetObject""#),
            ("Resource", r#""arn:aws:s3:::photos/*""#),
        ]
        .iter()
        .filter(|(name, _)| *name != field)
        .map(|(name, value)| format!(r#""{name}":{value}"#))
        .chain((!instead.is_empty()).then(|| instead.to_owned()))
        .collect();
        statement(&kept.join(","))
    };
    let big = with(&format!(r#""Sid":"{}""#, "x".repeat(POLICY_BYTES_MAX)));
    for (text, parts) in [
        ("", vec!["JSON"]),
        ("[]", vec!["a list"]),
        (r#"{"Statement":[]}"#, vec!["Statement", "empty"]),
        (r#"{"Version":"2012-10-17"}"#, vec!["Statement", "missing"]),
        (r#"{"Version":"2020-01-01","Statement":[]}"#, vec!["Version"]),
        (r#"{"Statement":[1]}"#, vec!["statement 1", "a number"]),
        (r#"{"Statment":[]}"#, vec!["Statment"]),
        (&big, vec!["larger than 20480"]),
        (&with(r#""Effect":"Deny""#), vec!["Effect", "twice"]),
        (&with(r#""NotAction":"s3:GetObject""#), vec!["statement 1", "exclude"]),
        (&with(r#""Extra":1"#), vec!["Extra", "not a known field"]),
        (&with(r#""Sid":"s1","Condition":{"StringSame":{"aws:Referer":"x"}}"#), vec!["\"s1\"", "StringSame"]),
        (&with(r#""Condition":{"StringEquals":{"aws:SourceVpc":"x"}}"#), vec!["aws:SourceVpc"]),
        (&with(r#""Condition":{"IpAddress":{"aws:SourceIp":"10.0.0.0/33"}}"#), vec!["10.0.0.0/33"]),
        (&with(r#""Condition":{"IpAddress":{"aws:Referer":"10.0.0.0/8"}}"#), vec!["IpAddress", "aws:Referer"]),
        (&with(r#""Condition":{"StringEquals":{"aws:SourceIp":"10.0.0.1"}}"#), vec!["StringEquals", "aws:SourceIp"]),
        (&with(r#""Condition":{"Bool":{"aws:SecureTransport":"yes"}}"#), vec!["yes", "boolean"]),
        (&with(r#""Condition":{"DateLessThan":{"aws:CurrentTime":"soon"}}"#), vec!["soon", "date"]),
        (&with(r#""Condition":{"NullIfExists":{"aws:Referer":"true"}}"#), vec!["NullIfExists"]),
        (&with(r#""Condition":{"StringEquals":{"aws:Referer":[]}}"#), vec!["no values"]),
        (&without("Effect", ""), vec!["Effect", "missing"]),
        (&without("Effect", r#""Effect":"allow""#), vec!["Effect"]),
        (&without("Principal", ""), vec!["Principal", "missing"]),
        (&without("Principal", r#""Principal":{"Service":"x"}"#), vec!["Service"]),
        (&without("Principal", r#""Principal":{"AWS":"arn:aws:iam::1:role/r"}"#), vec!["arn:aws:iam::1:role/r"]),
        (&without("Principal", r#""Principal":{"AWS":"arn:aws:iam::1:root"}"#), vec!["root"]),
        (&without("Principal", r#""Principal":{"AWS":"a*"}"#), vec!["wildcard"]),
        (&without("Principal", r#""NotPrincipal":"*""#), vec!["NotPrincipal"]),
        (&without("Action", r#""Action":"s3:GetObjekt""#), vec!["Action", "s3:GetObjekt"]),
        (&without("Action", r#""Action":"ec2:*""#), vec!["ec2:*"]),
        (&without("Action", r#""Action":[]"#), vec!["Action", "empty"]),
        (&without("Action", r#""Action":"s3:ListBucket""#), vec!["s3:ListBucket", "does not apply"]),
        (&without("Resource", r#""Resource":"arn:aws:s3:::other/*""#), vec!["other", "photos"]),
        (&without("Resource", r#""Resource":"arn:aws:s3:::photos2/*""#), vec!["photos2"]),
        (&without("Resource", r#""Resource":"*""#), vec!["Resource", "form"]),
        (&without("Resource", r#""Resource":"arn:aws:s3:::photos""#), vec!["does not apply"]),
        (&without("Resource", r#""Resource":"arn:aws:s3:::photos/${nothing}""#), vec!["${nothing}"]),
    ] {
        let message = refusal(text);
        for part in parts {
            assert!(message.contains(part), "{part:?} is not in {message:?}");
        }
    }
}

#[test]
fn policies_written_for_s3_are_accepted() {
    for text in [
        // Force TLS.
        r#"{"Version":"2012-10-17","Id":"x","Statement":[{"Sid":"tls","Effect":"Deny","Principal":"*","Action":"s3:*",
            "Resource":["arn:aws:s3:::photos","arn:aws:s3:::photos/*"],"Condition":{"Bool":{"aws:SecureTransport":"false"}}}]}"#,
        // A prefix for a user.
        r#"{"Version":"2012-10-17","Statement":{"Effect":"Allow","Principal":{"AWS":["arn:aws:iam::111122223333:user/ann"]},
            "Action":["s3:ListBucket"],"Resource":["arn:aws:s3:::photos"],"Condition":{"StringLike":{"s3:prefix":["","home/*"]}}}}"#,
        // Uploads only with full control.
        r#"{"Statement":[{"Effect":"Allow","Principal":{"AWS":"*"},"Action":["s3:PutObject","s3:PutObjectAcl"],
            "Resource":"arn:aws:s3:::photos/*","Condition":{"StringEquals":{"s3:x-amz-acl":["bucket-owner-full-control"]}}}]}"#,
    ] {
        Policy::parse(text, "photos").unwrap();
    }
}

mod any_input {
    use proptest::prelude::*;

    use super::*;

    /// JSON that looks like a policy, with every part now and then of the wrong kind.
    fn value() -> impl Strategy<Value = serde_json::Value> {
        let word = prop_oneof![
            Just("Version"),
            Just("2012-10-17"),
            Just("Statement"),
            Just("Effect"),
            Just("Allow"),
            Just("Deny"),
            Just("Principal"),
            Just("NotPrincipal"),
            Just("AWS"),
            Just("*"),
            Just("Action"),
            Just("NotAction"),
            Just("s3:*"),
            Just("s3:GetObject"),
            Just("Resource"),
            Just("arn:aws:s3:::photos/${aws:username}*"),
            Just("arn:aws:s3:::photos"),
            Just("Condition"),
            Just("StringLike"),
            Just("IpAddress"),
            Just("aws:SourceIp"),
            Just("10.0.0.0/8"),
            Just("${"),
            Just("ForAnyValue:Bool"),
            Just(""),
            Just("é"),
        ];
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            any::<f64>().prop_map(Into::into),
            word.clone().prop_map(Into::into),
            "\\PC{0,12}".prop_map(Into::into),
        ];
        leaf.prop_recursive(5, 64, 6, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Into::into),
                prop::collection::vec((word.clone(), inner), 0..6).prop_map(|members| {
                    members.into_iter().map(|(k, v)| (k.to_owned(), v)).collect::<serde_json::Map<_, _>>().into()
                }),
            ]
        })
    }

    proptest! {
        #[test]
        fn no_json_panics(document in value(), key in "\\PC{0,20}") {
            if let Ok(policy) = Policy::parse(&document.to_string(), "photos") {
                policy.evaluate(&attempt(Some("ann"), "s3:GetObject", Some(&key)), &TestFacts::default());
                policy.is_public();
            }
        }

        #[test]
        fn no_statement_panics(
            effect in value(), condition in value(), resource in "[a-z/*?${}:.é]{0,24}", key in "\\PC{0,20}",
        ) {
            let statement = serde_json::json!({
                "Effect": effect, "Principal": "*", "Action": "s3:*",
                "Resource": format!("arn:aws:s3:::photos/{resource}"), "Condition": condition,
            });
            let _ = Policy::parse(&serde_json::json!({"Statement": statement}).to_string(), "photos");
            let text = serde_json::json!({"Version": "2012-10-17", "Statement": {
                "Effect": "Deny", "Principal": "*", "Action": "s3:*", "Resource": format!("arn:aws:s3:::photos/{resource}"),
            }}).to_string();
            if let Ok(policy) = Policy::parse(&text, "photos") {
                let verdict = policy.evaluate(&attempt(None, "s3:GetObject", Some(&key)), &TestFacts::default());
                prop_assert_ne!(verdict, Verdict::Allow, "a Deny statement never allows");
            }
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,200}") {
            let _ = Policy::parse(&text, "photos");
        }
    }

    #[test]
    fn deep_nesting_is_an_error() {
        let text = format!("{}{}", "[".repeat(9_000), "]".repeat(9_000));
        assert!(refusal(&text).contains("JSON"));
    }
}

#[test]
fn a_decision_that_takes_too_much_work_is_a_deny() {
    let costly = format!("*{}?b*", "a".repeat(9_000));
    let policy = policy(&format!(
        r#"{{"Effect":"Allow","Principal":"*","Action":"s3:GetObject","Resource":"arn:aws:s3:::photos/*"}},
           {{"Effect":"Deny","Principal":"*","Action":"s3:GetObject","Resource":"arn:aws:s3:::photos/*",
             "Condition":{{"StringLike":{{"aws:UserAgent":"{costly}"}}}}}}"#
    ));
    let asked = |agent: &'static str| {
        policy.evaluate(&attempt(None, "s3:GetObject", Some("a")), &facts([("aws:UserAgent", agent)]))
    };
    assert_eq!(asked("curl"), Verdict::Allow);
    assert_eq!(asked("a".repeat(32 << 10).leak()), Verdict::Deny);
}

#[test]
fn comparisons_count_however_short_they_are() {
    // None of the values is empty, and that is seen without a look at any character.
    let operands = vec![r#""""#; 6_000].join(",");
    let policy = policy(&format!(
        r#"{{"Effect":"Allow","Principal":"*","Action":"s3:PutObject","Resource":"arn:aws:s3:::photos/*",
             "Condition":{{"ForAnyValue:StringEquals":{{"s3:RequestObjectTagKeys":[{operands}]}}}}}}"#
    ));
    let mut many = TestFacts::default();
    let asked = |facts: &TestFacts| policy.evaluate(&attempt(None, "s3:PutObject", Some("a")), facts);
    many.0.insert("s3:RequestObjectTagKeys", vec!["a"; 10]);
    assert_eq!(asked(&many), Verdict::Silent);
    many.0.insert("s3:RequestObjectTagKeys", vec!["a"; 10_000]);
    assert_eq!(asked(&many), Verdict::Deny);
}

#[test]
fn tags_of_the_object_are_needed_wherever_a_policy_names_them() {
    let of = |resource: &str, condition: &str| {
        policy(&format!(
            r#"{{"Effect":"Deny","Principal":"*","Action":"s3:GetObject","Resource":"arn:aws:s3:::photos/{resource}",
                 "Condition":{condition}}}"#
        ))
    };
    let plain = r#"{"StringEquals":{"s3:authType":"POST"}}"#;
    assert!(!of("*", plain).needs_object_tags());
    assert!(of("*", r#"{"StringEquals":{"s3:ExistingObjectTag/team":"red"}}"#).needs_object_tags());
    assert!(of("*", r#"{"StringEquals":{"aws:username":"${s3:ExistingObjectTag/team}"}}"#).needs_object_tags());
    assert!(of("${s3:ExistingObjectTag/team, 'none'}/*", plain).needs_object_tags());
}
