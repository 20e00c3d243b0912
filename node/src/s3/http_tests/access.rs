//! Who may do what.

use holdfast_actors::ports::metadata::{CannedAcl, Tag};
use http::StatusCode;

use super::super::access::CopiedTags;
use super::signer::{amz_date, sha256_hex, unsigned};
use super::support::{Answer, Fixture, HOST};

fn allowed(answer: &Answer) -> bool {
    assert!(answer.status.is_success() || answer.code() == "AccessDenied" || answer.status == 403, "{answer:?}");
    answer.status.is_success()
}

#[tokio::test]
async fn without_a_policy_only_the_owner_and_admins_get_anywhere() {
    let fixture = Fixture::new();
    fixture.put_object("k", CannedAcl::Private, &[]);
    for (method, path) in [
        ("GET", "/photos/k"),
        ("PUT", "/photos/n"),
        ("DELETE", "/photos/n"),
        ("GET", "/photos"),
        ("GET", "/photos?acl"),
    ] {
        for (user, may) in [("ann", true), ("root", true), ("bob", false)] {
            assert_eq!(allowed(&fixture.call(user, method, path, &[], b"").await), may, "{user} {method} {path}");
        }
        assert!(!allowed(&fixture.anonymous(method, path, &[], b"").await), "{method} {path}");
    }
}

#[tokio::test]
async fn any_user_lists_and_creates_buckets_and_nobody_else() {
    let fixture = Fixture::new();
    assert!(allowed(&fixture.call("bob", "GET", "/", &[], b"").await));
    assert!(allowed(&fixture.call("bob", "PUT", "/new-bucket", &[], b"").await));
    assert!(!allowed(&fixture.anonymous("GET", "/", &[], b"").await));
    assert!(!allowed(&fixture.anonymous("PUT", "/new-bucket", &[], b"").await));
}

#[tokio::test]
async fn a_bucket_that_does_not_exist_is_told_to_everybody() {
    let fixture = Fixture::new();
    assert_eq!(fixture.anonymous("GET", "/nowhere/k", &[], b"").await.code(), "NoSuchBucket");
    assert_eq!(fixture.call("bob", "PUT", "/nowhere/k", &[], b"").await.code(), "NoSuchBucket");
    assert_eq!(fixture.call("bob", "HEAD", "/nowhere", &[], b"").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn who_is_refused_by_a_bucket_is_told_its_region() {
    const REGION: &str = "x-amz-bucket-region";
    let fixture = Fixture::new();
    for (method, path) in [("HEAD", "/photos"), ("GET", "/photos"), ("GET", "/photos?list-type=2")] {
        let unsigned = fixture.anonymous(method, path, &[], b"").await;
        let refused = fixture.call("bob", method, path, &[], b"").await;
        for answer in [unsigned, refused] {
            let told = (answer.status, answer.header(REGION));
            assert_eq!(told, (StatusCode::FORBIDDEN, "us-east-1"), "{method} {path} {answer:?}");
            assert!(!answer.body.contains("<Region>"), "{answer:?}");
        }
    }
    for path in ["/nowhere", "/photos/k", "/"] {
        let answer = fixture.anonymous("GET", path, &[], b"").await;
        assert!(!answer.headers.contains_key(REGION), "{path} {answer:?}");
    }
}

#[tokio::test]
async fn an_object_of_the_acl_public_read_is_readable_and_its_neighbours_are_not() {
    let fixture = Fixture::new();
    fixture.put_object("open", CannedAcl::PublicRead, &[]);
    fixture.put_object("shut", CannedAcl::Private, &[]);
    assert!(allowed(&fixture.anonymous("GET", "/photos/open", &[], b"").await));
    assert!(allowed(&fixture.call("bob", "GET", "/photos/open", &[], b"").await));
    assert!(!allowed(&fixture.anonymous("GET", "/photos/shut", &[], b"").await));
    assert!(!allowed(&fixture.anonymous("PUT", "/photos/open", &[], b"x").await));
    assert!(!allowed(&fixture.anonymous("GET", "/photos/open?acl", &[], b"").await));
    let missing = fixture.anonymous("GET", "/photos/missing", &[], b"").await;
    assert_eq!(missing.code(), "AccessDenied", "which keys exist is not told");
    fixture.call("ann", "PUT", "/photos?acl", &[("x-amz-acl", "public-read")], b"").await;
    assert!(allowed(&fixture.anonymous("GET", "/photos", &[], b"").await));
    assert!(!allowed(&fixture.anonymous("GET", "/photos/shut", &[], b"").await), "a public listing opens no object");
    assert_eq!(fixture.anonymous("GET", "/photos/missing", &[], b"").await.code(), "NoSuchKey");
}

#[tokio::test]
async fn acls_are_read_and_written_as_canned_ones() {
    let fixture = Fixture::new();
    fixture.put_object("k", CannedAcl::Private, &[]);
    for path in ["/photos?acl", "/photos/k?acl"] {
        let before = fixture.call("ann", "GET", path, &[], b"").await;
        assert!(before.body.contains("FULL_CONTROL") && !before.body.contains("AllUsers"), "{}", before.body);
        let answer = fixture.call("ann", "PUT", path, &[("x-amz-acl", "public-read")], b"").await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        let public = fixture.call("ann", "GET", path, &[], b"").await;
        assert!(public.body.contains("global/AllUsers") && public.body.contains("READ"), "{}", public.body);
        // What was read can be put back, as a tool that copies ACLs does.
        fixture.call("ann", "PUT", path, &[("x-amz-acl", "private")], b"").await;
        let answer = fixture.call("ann", "PUT", path, &[], public.body.as_bytes()).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        assert!(fixture.call("ann", "GET", path, &[], b"").await.body.contains("AllUsers"));
        let more = public.body.replace("<Permission>READ<", "<Permission>WRITE<");
        assert_eq!(fixture.call("ann", "PUT", path, &[], more.as_bytes()).await.code(), "NotImplemented");
        let write = [("x-amz-acl", "public-read-write")];
        assert_eq!(fixture.call("ann", "PUT", path, &write, b"").await.code(), "NotImplemented");
        assert_eq!(fixture.call("ann", "PUT", path, &[("x-amz-acl", "none")], b"").await.code(), "InvalidArgument");
        let grant = [("x-amz-grant-read", "id=bob")];
        assert_eq!(fixture.call("ann", "PUT", path, &grant, b"").await.code(), "NotImplemented");
    }
}

#[tokio::test]
async fn a_policy_opens_what_it_names_and_is_read_back_as_written() {
    let fixture = Fixture::new();
    fixture.put_object("public/k", CannedAcl::Private, &[]);
    fixture.put_object("private/k", CannedAcl::Private, &[]);
    fixture
        .put_policy(
            r#"{"Effect":"Allow","Principal":"*","Action":"s3:GetObject","Resource":"arn:aws:s3:::photos/public/*"},
               {"Effect":"Allow","Principal":{"AWS":"bob"},"Action":"s3:PutObject","Resource":"arn:aws:s3:::photos/bob/*"}"#,
        )
        .await;
    assert!(fixture.call("ann", "GET", "/photos?policy", &[], b"").await.body.contains("photos/public/*"));
    assert!(fixture.call("ann", "GET", "/photos?policyStatus", &[], b"").await.body.contains("true"));
    assert!(allowed(&fixture.anonymous("GET", "/photos/public/k", &[], b"").await));
    assert!(!allowed(&fixture.anonymous("GET", "/photos/private/k", &[], b"").await));
    assert_eq!(fixture.anonymous("GET", "/photos/public/missing", &[], b"").await.code(), "AccessDenied");
    assert!(allowed(&fixture.call("bob", "PUT", "/photos/bob/x", &[], b"x").await));
    assert!(!allowed(&fixture.call("bob", "PUT", "/photos/other/x", &[], b"x").await));
    assert!(!allowed(&fixture.anonymous("PUT", "/photos/bob/x", &[], b"x").await));
    assert!(!allowed(&fixture.call("bob", "GET", "/photos?policy", &[], b"").await));
    let answer = fixture.call("ann", "DELETE", "/photos?policy", &[], b"").await;
    assert_eq!(answer.status, StatusCode::NO_CONTENT);
    assert!(!allowed(&fixture.anonymous("GET", "/photos/public/k", &[], b"").await), "at once");
    assert_eq!(fixture.call("ann", "GET", "/photos?policy", &[], b"").await.code(), "NoSuchBucketPolicy");
}

#[tokio::test]
async fn a_deny_binds_owner_and_admin_but_never_takes_the_policy_from_them() {
    let fixture = Fixture::new();
    fixture
        .put_policy(
            r#"{"Effect":"Deny","Principal":"*","Action":"s3:*","Resource":["arn:aws:s3:::photos","arn:aws:s3:::photos/*"]}"#,
        )
        .await;
    for user in ["ann", "root", "bob"] {
        assert!(!allowed(&fixture.call(user, "PUT", "/photos/k", &[], b"x").await), "{user}");
        assert!(!allowed(&fixture.call(user, "GET", "/photos", &[], b"").await), "{user}");
    }
    assert!(!allowed(&fixture.call("bob", "DELETE", "/photos?policy", &[], b"").await));
    assert!(allowed(&fixture.call("root", "GET", "/photos?policy", &[], b"").await));
    assert!(allowed(&fixture.call("ann", "DELETE", "/photos?policy", &[], b"").await));
    assert!(allowed(&fixture.call("ann", "PUT", "/photos/k", &[], b"x").await));
}

#[tokio::test]
async fn conditions_see_address_listing_parameters_headers_and_tags() {
    let fixture = Fixture::new();
    fixture.put_object("released", CannedAcl::Private, &[("state", "released")]);
    fixture.put_object("draft", CannedAcl::Private, &[("state", "draft")]);
    let with = |principal: &str, action: &str, resource: &str, condition: &str| {
        format!(
            r#"{{"Effect":"Allow","Principal":{principal},"Action":"{action}","Resource":"arn:aws:s3:::photos{resource}","Condition":{condition}}}"#
        )
    };
    fixture
        .put_policy(&with(r#""*""#, "s3:GetObject", "/*", r#"{"IpAddress":{"aws:SourceIp":"203.0.113.0/24"}}"#))
        .await;
    assert!(allowed(&fixture.anonymous("GET", "/photos/draft", &[], b"").await));
    fixture.put_policy(&with(r#""*""#, "s3:GetObject", "/*", r#"{"IpAddress":{"aws:SourceIp":"10.0.0.0/8"}}"#)).await;
    assert!(!allowed(&fixture.anonymous("GET", "/photos/draft", &[], b"").await));

    fixture.put_policy(&with(r#""*""#, "s3:ListBucket", "", r#"{"StringEquals":{"s3:prefix":"a b/"}}"#)).await;
    assert!(allowed(&fixture.anonymous("GET", "/photos?prefix=a%20b%2F", &[], b"").await));
    assert!(!allowed(&fixture.anonymous("GET", "/photos?prefix=", &[], b"").await));
    assert!(!allowed(&fixture.anonymous("GET", "/photos", &[], b"").await));

    fixture
        .put_policy(&with(
            r#""*""#,
            "s3:GetObject",
            "/*",
            r#"{"StringEquals":{"s3:ExistingObjectTag/state":"released"}}"#,
        ))
        .await;
    assert!(allowed(&fixture.anonymous("GET", "/photos/released", &[], b"").await));
    assert!(!allowed(&fixture.anonymous("GET", "/photos/draft", &[], b"").await));

    let bob = r#"{"AWS":"bob"}"#;
    fixture
        .put_policy(&with(bob, "s3:PutObject*", "/*", r#"{"StringEquals":{"s3:RequestObjectTag/team":"red"}}"#))
        .await;
    let put = async |tags| fixture.call("bob", "PUT", "/photos/x", &[("x-amz-tagging", tags)], b"x").await;
    assert!(allowed(&put("team=red").await) && !allowed(&put("team=blue").await));
    let tagging = |team: &str| {
        format!("<Tagging><TagSet><Tag><Key>team</Key><Value>{team}</Value></Tag></TagSet></Tagging>").into_bytes()
    };
    for (team, may) in [("red", true), ("blue", false)] {
        let answer = fixture.call("bob", "PUT", "/photos/draft?tagging", &[], &tagging(team)).await;
        assert_eq!(allowed(&answer), may, "tags in the body, {team}");
    }
}

#[tokio::test]
async fn a_header_without_a_value_is_none_to_a_condition() {
    let fixture = Fixture::new();
    let put = r#""Principal":{"AWS":"bob"},"Action":"s3:PutObject","Resource":"arn:aws:s3:::photos/*""#;
    // As AWS recommends it, so that nobody overwrites anything.
    let blind = r#""Condition":{"Null":{"s3:if-none-match":"true"}}"#;
    fixture.put_policy(&format!(r#"{{"Effect":"Allow",{put}}},{{"Effect":"Deny",{put},{blind}}}"#)).await;
    type Headers<'a> = &'a [(&'a str, &'a str)];
    let cases: [(Headers<'_>, bool); 3] =
        [(&[("if-none-match", "*")], true), (&[("if-none-match", "")], false), (&[], false)];
    for (headers, may) in cases {
        let answer = fixture.call("bob", "PUT", "/photos/x", headers, b"x").await;
        assert_eq!(allowed(&answer), may, "{headers:?} {answer:?}");
    }
    let unlinked = r#""Condition":{"Null":{"aws:Referer":"true"}}"#;
    fixture.put_policy(&format!(r#"{{"Effect":"Allow",{put}}},{{"Effect":"Deny",{put},{unlinked}}}"#)).await;
    for (referer, may) in [("https://app.example.com/", true), ("", false)] {
        let answer = fixture.call("bob", "PUT", "/photos/x", &[("referer", referer)], b"x").await;
        assert_eq!(allowed(&answer), may, "{referer:?} {answer:?}");
    }
}

#[tokio::test]
async fn a_policy_on_a_version_holds_however_its_id_is_written() {
    let fixture = Fixture::new();
    fixture.put_object("k", CannedAcl::Private, &[]);
    let get = r#""Principal":{"AWS":"bob"},"Action":"s3:GetObjectVersion","Resource":"arn:aws:s3:::photos/*""#;
    let withdrawn = r#""Condition":{"StringEquals":{"s3:VersionId":"00112233445566778899aabb"}}"#;
    fixture.put_policy(&format!(r#"{{"Effect":"Allow",{get}}},{{"Effect":"Deny",{get},{withdrawn}}}"#)).await;
    for (version, may) in [
        ("00112233445566778899aacc", true),
        ("00112233445566778899aabb", false),
        ("00112233445566778899AABB", false),
        ("00112233445566778899aAbB", false),
    ] {
        let answer = fixture.call("bob", "GET", &format!("/photos/k?versionId={version}"), &[], b"").await;
        assert_eq!(allowed(&answer), may, "{version} {answer:?}");
        let source = format!("/photos/k?versionId={version}");
        let answer = fixture.call("bob", "PUT", "/drafts/k", &[("x-amz-copy-source", &source)], b"").await;
        assert_eq!(allowed(&answer), may, "a copy of {version} {answer:?}");
    }
}

#[tokio::test]
async fn tags_of_a_body_count_for_the_work_of_a_decision() {
    let fixture = Fixture::new();
    fixture.put_object("k", CannedAcl::Private, &[]);
    let others: Vec<_> = (0..100).map(|n| format!(r#""s3:RequestObjectTag/x{n}":"y""#)).collect();
    fixture
        .put_policy(&format!(
            r#"{{"Effect":"Allow","Principal":{{"AWS":"bob"}},"Action":"s3:PutObjectTagging",
                "Resource":"arn:aws:s3:::photos/*","Condition":{{"StringNotEquals":{{{}}}}}}}"#,
            others.join(",")
        ))
        .await;
    for (count, may) in [(9, true), (20_000, false)] {
        let tags: String = (0..count).map(|n| format!("<Tag><Key>{n}</Key><Value>v</Value></Tag>")).collect();
        let body = format!("<Tagging><TagSet>{tags}</TagSet></Tagging>");
        let answer = fixture.call("bob", "PUT", "/photos/k?tagging", &[], body.as_bytes()).await;
        assert_eq!(allowed(&answer), may, "{count} tags: {answer:?}");
    }
}

#[tokio::test]
async fn the_age_of_a_signature_is_not_what_somebody_without_one_says() {
    let fixture = Fixture::new();
    fixture.put_object("k", CannedAcl::Private, &[]);
    fixture
        .put_policy(
            r#"{"Effect":"Allow","Principal":"*","Action":"s3:GetObject","Resource":"arn:aws:s3:::photos/*",
                "Condition":{"NumericLessThan":{"s3:signatureAge":"600000"}}}"#,
        )
        .await;
    let signer = fixture.signer("bob");
    let url = signer.presign("GET", HOST, "/photos/k", &[], "60");
    assert!(allowed(&fixture.send(unsigned("GET", HOST, &url, &[], b"")).await));
    let claimed = format!("/photos/k?X-Amz-Date={}", amz_date(signer.at_ms));
    assert!(!allowed(&fixture.anonymous("GET", &claimed, &[], b"").await));
    assert!(!allowed(&fixture.call("bob", "GET", &claimed, &[], b"").await));
}

#[tokio::test]
async fn the_age_of_a_signature_counts_for_each_key_of_a_list_and_for_the_source_of_a_copy() {
    let fixture = Fixture::new();
    fixture.put_object("k", CannedAcl::Private, &[]);
    fixture
        .put_policy(
            r#"{"Effect":"Allow","Principal":{"AWS":"bob"},"Action":["s3:DeleteObject","s3:DeleteObjectVersion","s3:GetObject"],
                "Resource":"arn:aws:s3:::photos/*"},
               {"Effect":"Deny","Principal":"*","Action":"s3:*","Resource":"arn:aws:s3:::photos/*",
                "Condition":{"NumericGreaterThan":{"s3:signatureAge":"600000"}}}"#,
        )
        .await;
    // The version is the client's text, and no part of a query.
    let list = b"<Delete><Object><Key>k</Key></Object><Object><Key>k</Key>\
        <VersionId>null&amp;X-Amz-Date=20990101T000000Z</VersionId></Object></Delete>";
    let mut signer = fixture.signer("bob");
    for (age_ms, deleted) in [(0, 2), (1_200_000, 0)] {
        signer.at_ms -= age_ms;
        let url = signer.presign("PUT", HOST, "/drafts/k", &[("x-amz-copy-source", "/photos/k")], "3600");
        let answer = fixture.send(unsigned("PUT", HOST, &url, &[], b"")).await;
        assert_eq!(allowed(&answer), deleted > 0, "{answer:?}");
        let url = signer.presign("POST", HOST, "/photos", &[("delete", "")], "3600");
        let answer = fixture.send(unsigned("POST", HOST, &url, &[], list)).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        assert_eq!(answer.body.matches("<Deleted>").count(), deleted, "{}", answer.body);
    }
}

#[tokio::test]
async fn the_payload_of_a_presigned_url_is_not_signed_whatever_hash_comes_with_it() {
    let fixture = Fixture::new();
    fixture
        .put_policy(
            r#"{"Effect":"Allow","Principal":{"AWS":"bob"},"Action":"s3:PutObject","Resource":"arn:aws:s3:::photos/*"},
               {"Effect":"Deny","Principal":"*","Action":"s3:PutObject","Resource":"arn:aws:s3:::photos/signed/*",
                "Condition":{"StringEquals":{"s3:x-amz-content-sha256":"UNSIGNED-PAYLOAD"}}}"#,
        )
        .await;
    let hash = sha256_hex(b"x");
    let signer = fixture.signer("bob");
    for (path, may) in [("/photos/any", true), ("/photos/signed/k", false)] {
        let url = signer.presign("PUT", HOST, path, &[], "60");
        for hash in [None, Some(&hash)] {
            let mut request = unsigned("PUT", HOST, &url, &[], b"x");
            if let Some(hash) = hash {
                request.headers_mut().insert("x-amz-content-sha256", hash.parse().unwrap());
            }
            assert_eq!(allowed(&fixture.send(request).await), may, "{path} {hash:?}");
        }
        assert!(allowed(&fixture.call("bob", "PUT", path, &[], b"x").await), "{path}");
    }
}

#[tokio::test]
async fn a_write_that_sets_an_acl_or_tags_needs_those_permissions_too() {
    let fixture = Fixture::new();
    fixture
        .put_policy(r#"{"Effect":"Allow","Principal":{"AWS":"bob"},"Action":"s3:PutObject","Resource":"arn:aws:s3:::photos/*"}"#)
        .await;
    assert!(allowed(&fixture.call("bob", "PUT", "/photos/x", &[], b"x").await));
    assert!(allowed(&fixture.call("bob", "PUT", "/photos/x", &[("x-amz-acl", "private")], b"x").await));
    assert!(!allowed(&fixture.call("bob", "PUT", "/photos/x", &[("x-amz-acl", "public-read")], b"x").await));
    assert!(!allowed(&fixture.call("bob", "PUT", "/photos/x", &[("x-amz-tagging", "a=b")], b"x").await));
}

#[tokio::test]
async fn a_copy_needs_to_read_its_source() {
    let fixture = Fixture::new();
    fixture.put_object("k", CannedAcl::Private, &[]);
    let copy = || fixture.call("bob", "PUT", "/drafts/copy", &[("x-amz-copy-source", "/photos/k")], b"");
    assert!(!allowed(&copy().await));
    fixture
        .put_policy(r#"{"Effect":"Allow","Principal":{"AWS":"bob"},"Action":"s3:GetObject","Resource":"arn:aws:s3:::photos/k"}"#)
        .await;
    assert!(allowed(&copy().await));
    let version = [("x-amz-copy-source", "/photos/k?versionId=null")];
    assert!(
        !allowed(&fixture.call("bob", "PUT", "/drafts/copy", &version, b"").await),
        "a version is another permission"
    );
    let missing = fixture.call("bob", "PUT", "/drafts/copy", &[("x-amz-copy-source", "/nowhere/k")], b"").await;
    assert_eq!(missing.code(), "NoSuchBucket");
}

#[tokio::test]
async fn a_policy_on_the_source_of_a_copy_holds_however_the_source_is_written() {
    let fixture = Fixture::new();
    for pattern in ["drafts/secret/*", "/drafts/secret/*"] {
        let put = r#""Principal":{"AWS":"bob"},"Action":"s3:PutObject","Resource":"arn:aws:s3:::photos/*""#;
        let condition = format!(r#""Condition":{{"StringLike":{{"s3:x-amz-copy-source":"{pattern}"}}}}"#);
        fixture.put_policy(&format!(r#"{{"Effect":"Allow",{put}}},{{"Effect":"Deny",{put},{condition}}}"#)).await;
        for (source, may) in [
            ("drafts/open/k", true),
            ("/drafts/open/k", true),
            ("drafts/secret/k", false),
            ("/drafts/secret/k", false),
            ("drafts/%73ecret/k", false),
            ("%64rafts%2Fsecret%2Fk", false),
            ("drafts/secret/a+b", false),
            ("drafts/secret/k?versionId=null", false),
        ] {
            let answer = fixture.call("bob", "PUT", "/photos/copy", &[("x-amz-copy-source", source)], b"").await;
            assert_eq!(allowed(&answer), may, "{pattern} {source} {answer:?}");
        }
    }
}

#[tokio::test]
async fn a_copy_takes_tags_over_only_for_who_may_read_and_set_them() {
    let fixture = Fixture::new();
    fixture.put_object("tagged", CannedAcl::Private, &[("state", "released")]);
    fixture.store.add_object("drafts", "tagged", CannedAcl::Private, &[("state", "released")]);
    fixture.store.add_object("drafts", "plain", CannedAcl::Private, &[]);
    let bob = |actions: &str, more: &str| {
        format!(
            r#"{{"Effect":"Allow","Principal":{{"AWS":"bob"}},"Action":[{actions}],"Resource":"arn:aws:s3:::photos/*"{more}}}"#
        )
    };
    let copy = async |to: &str, from: &str, directive: &str| {
        let headers = [("x-amz-copy-source", from), ("x-amz-tagging-directive", directive)];
        allowed(&fixture.call("bob", "PUT", to, &headers, b"").await)
    };

    let put = bob(r#""s3:PutObject""#, "");
    fixture.put_policy(&put).await;
    assert!(copy("/photos/k", "drafts/plain", "COPY").await);
    assert!(copy("/photos/k", "drafts/tagged", "REPLACE").await);
    assert!(!copy("/photos/k", "drafts/tagged", "COPY").await, "tags are set by another permission");
    assert!(copy("/drafts/k", "drafts/tagged", "COPY").await, "of his own he may do what he wants");
    for (state, may) in [("draft", false), ("released", true)] {
        let condition = format!(r#","Condition":{{"StringEquals":{{"s3:RequestObjectTag/state":"{state}"}}}}"#);
        fixture.put_policy(&[put.clone(), bob(r#""s3:PutObjectTagging""#, &condition)].join(",")).await;
        assert_eq!(copy("/photos/k", "drafts/tagged", "COPY").await, may, "{state}");
    }

    fixture.put_policy(&bob(r#""s3:GetObject""#, "")).await;
    assert!(!copy("/drafts/k", "photos/tagged", "COPY").await, "tags are read by another permission");
    assert!(copy("/drafts/k", "photos/tagged", "REPLACE").await);
    fixture.put_policy(&bob(r#""s3:GetObject","s3:GetObjectTagging""#, "")).await;
    assert!(copy("/drafts/k", "photos/tagged", "COPY").await);
}

#[tokio::test]
async fn tags_that_a_copy_passes_over_satisfy_no_policy() {
    let fixture = Fixture::new();
    fixture.store.add_object("drafts", "plain", CannedAcl::Private, &[]);
    let bob = r#""Effect":"Allow","Principal":{"AWS":"bob"},"Resource":"arn:aws:s3:::photos/*""#;
    let red = r#""Condition":{"StringEquals":{"s3:RequestObjectTag/team":"red"}}"#;
    fixture
        .put_policy(&format!(r#"{{{bob},"Action":"s3:PutObject",{red}}},{{{bob},"Action":"s3:PutObjectTagging"}}"#))
        .await;
    let tags = ("x-amz-tagging", "team=red");
    assert!(allowed(&fixture.call("bob", "PUT", "/photos/k", &[tags], b"x").await));
    for (directive, may) in [("REPLACE", true), ("COPY", false), ("", false)] {
        let headers = [("x-amz-copy-source", "drafts/plain"), tags, ("x-amz-tagging-directive", directive)];
        let answer = fixture.call("bob", "PUT", "/photos/k", &headers, b"").await;
        assert_eq!(allowed(&answer), may, "{directive} {answer:?}");
    }
}

#[tokio::test]
async fn what_is_no_copy_is_seen_with_its_tags_though_it_names_a_source() {
    let fixture = Fixture::new();
    let put = r#""Principal":{"AWS":"bob"},"Action":["s3:PutObject","s3:PutObjectTagging"],
        "Resource":"arn:aws:s3:::photos/*""#;
    let secret = r#""Condition":{"StringEquals":{"s3:RequestObjectTag/class":"secret"}}"#;
    fixture.put_policy(&format!(r#"{{"Effect":"Allow",{put}}},{{"Effect":"Deny",{put},{secret}}}"#)).await;
    let source = ("x-amz-copy-source", "drafts/plain");
    for (tags, code) in [("class=secret", "AccessDenied"), ("class=public", "NotImplemented")] {
        let headers = [source, ("x-amz-tagging", tags)];
        // Access control lets it through: the operations of this test have no uploads.
        let answer = fixture.call("bob", "POST", "/photos/k?uploads", &headers, b"").await;
        assert_eq!(answer.code(), code, "{tags} {answer:?}");
    }
}

#[tokio::test]
async fn to_pass_tags_over_needs_no_permission_to_set_any() {
    let fixture = Fixture::new();
    fixture.store.add_object("drafts", "plain", CannedAcl::Private, &[]);
    fixture
        .put_policy(
            r#"{"Effect":"Allow","Principal":{"AWS":"bob"},"Action":"s3:PutObject","Resource":"arn:aws:s3:::photos/*"}"#,
        )
        .await;
    for (directive, may) in [("COPY", true), ("", true), ("REPLACE", false)] {
        let headers = [
            ("x-amz-copy-source", "drafts/plain"),
            ("x-amz-tagging", "team=red"),
            ("x-amz-tagging-directive", directive),
        ];
        let answer = fixture.call("bob", "PUT", "/photos/k", &headers, b"").await;
        assert_eq!(allowed(&answer), may, "{directive} {answer:?}");
    }
}

#[test]
fn tags_that_changed_since_they_were_checked_are_not_copied() {
    let tags = |value: &str| vec![Tag { key: "state".into(), value: value.into() }];
    let mut extensions = http::Extensions::new();
    assert!(CopiedTags::allow(&extensions, &[]) && !CopiedTags::allow(&extensions, &tags("a")));
    extensions.insert(CopiedTags::These(tags("a")));
    assert!(CopiedTags::allow(&extensions, &tags("a")) && !CopiedTags::allow(&extensions, &tags("b")));
    assert!(!CopiedTags::allow(&extensions, &[]));
    extensions.insert(CopiedTags::Any);
    assert!(CopiedTags::allow(&extensions, &tags("b")));
}

#[tokio::test]
async fn of_many_deletions_only_the_permitted_ones_happen() {
    let fixture = Fixture::new();
    fixture
        .put_policy(r#"{"Effect":"Allow","Principal":{"AWS":"bob"},"Action":"s3:DeleteObject","Resource":"arn:aws:s3:::photos/bob/*"}"#)
        .await;
    let body = b"<Delete><Object><Key>bob/1</Key></Object><Object><Key>ann/1</Key></Object>\
        <Object><Key>bob/2</Key><VersionId>null</VersionId></Object></Delete>";
    let answer = fixture.call("bob", "POST", "/photos?delete", &[], body).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    assert!(answer.body.contains("<Deleted><Key>bob/1</Key></Deleted>"), "{}", answer.body);
    assert_eq!(answer.body.matches("<Code>AccessDenied</Code>").count(), 2, "{}", answer.body);
    assert_eq!(answer.body.matches("<Deleted>").count(), 1);
}

#[tokio::test]
async fn of_many_deletions_each_has_its_own_condition() {
    let fixture = Fixture::new();
    // As AWS recommends it, so that nobody deletes what he has not seen.
    let delete = r#""Principal":{"AWS":"bob"},"Action":"s3:DeleteObject","Resource":"arn:aws:s3:::photos/*""#;
    let blind = r#""Condition":{"Null":{"s3:if-match":"true"}}"#;
    fixture.put_policy(&format!(r#"{{"Effect":"Allow",{delete}}},{{"Effect":"Deny",{delete},{blind}}}"#)).await;
    let entry = |key: &str, etag: &str| format!("<Object><Key>{key}</Key>{etag}</Object>");
    let list = [
        entry("blind", ""),
        entry("any", "<ETag>*</ETag>"),
        entry("seen", "<ETag>5d41402abc4b2a76b9719d911017c592</ETag>"),
        entry("blind-too", ""),
    ];
    let body = format!("<Delete>{}</Delete>", list.concat());
    let headers: [&[(&str, &str)]; 2] = [&[], &[("if-match", "*")]];
    for headers in headers {
        let answer = fixture.call("bob", "POST", "/photos?delete", headers, body.as_bytes()).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        for (key, may) in [("blind", false), ("any", true), ("seen", true), ("blind-too", false)] {
            let is_deleted = answer.body.contains(&format!("<Deleted><Key>{key}</Key></Deleted>"));
            assert_eq!(is_deleted, may, "{key} {headers:?} {answer:?}");
        }
        assert_eq!(answer.body.matches("<Code>AccessDenied</Code>").count(), 2, "{headers:?} {answer:?}");
    }
    let of_any = r#""Condition":{"StringEquals":{"s3:if-match":"*"}}"#;
    fixture.put_policy(&format!(r#"{{"Effect":"Allow",{delete},{of_any}}}"#)).await;
    let answer = fixture.call("bob", "POST", "/photos?delete", &[], body.as_bytes()).await;
    assert_eq!(answer.body.matches("<Deleted>").count(), 1, "{answer:?}");
    assert!(answer.body.contains("<Deleted><Key>any</Key></Deleted>"), "{answer:?}");
}

#[tokio::test]
async fn what_no_key_can_be_is_not_looked_for() {
    let fixture = Fixture::new();
    fixture
        .put_policy(
            r#"{"Effect":"Allow","Principal":"*","Action":"s3:DeleteObject","Resource":"arn:aws:s3:::photos/*",
                "Condition":{"StringEquals":{"s3:ExistingObjectTag/state":"released"}}}"#,
        )
        .await;
    for (bytes, looked_for) in [(1_024, true), (1_025, false), (2_000_000, false)] {
        let key = "k".repeat(bytes);
        // It is there, for who looks.
        fixture.store.add_object("photos", &key, CannedAcl::Private, &[("state", "released")]);
        let list = format!("<Delete><Object><Key>{key}</Key></Object></Delete>");
        let answer = fixture.anonymous("POST", "/photos?delete", &[], list.as_bytes()).await;
        assert_eq!(answer.status, StatusCode::OK, "{bytes}");
        assert_eq!(answer.body.contains("<Deleted>"), looked_for, "{bytes}");
    }
}

#[tokio::test]
async fn the_expected_owner_guards_against_a_bucket_of_somebody_else() {
    let fixture = Fixture::new();
    let put =
        async |owner| fixture.call("root", "PUT", "/photos/k", &[("x-amz-expected-bucket-owner", owner)], b"x").await;
    assert!(allowed(&put("ann").await) && !allowed(&put("bob").await));
}

#[tokio::test]
async fn policies_cors_and_tags_that_are_not_valid_are_refused_and_change_nothing() {
    let fixture = Fixture::new();
    let put = |path: &'static str, body: &'static str| fixture.call("ann", "PUT", path, &[], body.as_bytes());
    let answer = put("/photos?policy", r#"{"Statement":[{"Effect":"Allow"}]}"#).await;
    assert_eq!(answer.code(), "MalformedPolicy");
    assert!(answer.body.contains("statement 1"), "{}", answer.body);
    let ghost = r#"{"Statement":[{"Effect":"Allow","Principal":{"AWS":"ghost"},"Action":"s3:GetObject","Resource":"arn:aws:s3:::photos/*"}]}"#;
    let answer = put("/photos?policy", ghost).await;
    assert_eq!(answer.code(), "MalformedPolicy");
    assert!(answer.body.contains("ghost"), "{}", answer.body);
    let cors = "<CORSConfiguration><CORSRule><AllowedMethod>PATCH</AllowedMethod><AllowedOrigin>*</AllowedOrigin></CORSRule></CORSConfiguration>";
    assert_eq!(put("/photos?cors", cors).await.code(), "InvalidRequest");
    for tags in [
        "<Tagging><TagSet><Tag><Key>aws:x</Key><Value>1</Value></Tag></TagSet></Tagging>",
        "<Tagging><TagSet><Tag><Key>AWS:x</Key><Value>1</Value></Tag></TagSet></Tagging>",
    ] {
        assert_eq!(put("/photos?tagging", tags).await.code(), "InvalidTag");
    }
    for (path, code) in
        [("policy", "NoSuchBucketPolicy"), ("cors", "NoSuchCORSConfiguration"), ("tagging", "NoSuchTagSet")]
    {
        assert_eq!(fixture.call("ann", "GET", &format!("/photos?{path}"), &[], b"").await.code(), code);
    }
    let tags = "<Tagging><TagSet><Tag><Key>cost</Key><Value>7</Value></Tag></TagSet></Tagging>";
    assert!(put("/photos?tagging", tags).await.status.is_success());
    assert!(fixture.call("ann", "GET", "/photos?tagging", &[], b"").await.body.contains("<Key>cost</Key>"));
}

#[tokio::test]
async fn a_subresource_that_nobody_knows_is_not_taken_for_a_write() {
    let fixture = Fixture::new();
    for (method, path) in [
        ("PUT", "/photos/k?renameObject"),
        ("PUT", "/photos/k?encryption="),
        ("DELETE", "/photos?metadataConfiguration"),
        ("PUT", "/photos?abac"),
        ("DELETE", "/photos/k?something"),
    ] {
        assert_eq!(fixture.call("ann", method, path, &[], b"").await.code(), "NotImplemented", "{method} {path}");
    }
    for path in [
        "/photos?abac",
        "/photos?x-id=GetBucketMetadataConfiguration&metadataConfiguration=",
        "/photos/k?annotation",
        "/photos/k?annotation=&annotationName=a",
    ] {
        assert_eq!(fixture.call("ann", "GET", path, &[], b"").await.code(), "NotImplemented", "{path}");
    }
    assert!(fixture.call("ann", "GET", "/photos?nobody-knows", &[], b"").await.status.is_success());
    assert!(fixture.call("ann", "PUT", "/photos/k?x-id=PutObject", &[], b"").await.status.is_success());
    let url = fixture.signer("ann").presign("DELETE", HOST, "/photos/k", &[("versionId", "")], "60");
    let answer = fixture.send(unsigned("DELETE", HOST, &url, &[], b"")).await;
    assert!(answer.status.is_success(), "{answer:?}");
}
