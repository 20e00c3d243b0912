//! The policy of a form: what the one who signed it allows its user to upload.

use base64::Engine;
use ring::hmac;
use s3s::{S3Error, S3Result, s3_error};
use serde_json::Value;

use super::super::auth::{Authenticator, FormCaller};
use super::super::signature::{SECURITY_TOKEN, invalid_token, parse_amz_date_ms};
use super::form::Form;

/// How far ahead of the node's clock a form may be dated.
const SKEW_MS_MAX: u64 = 15 * 60 * 1000;
/// How long a signing key serves, whatever the policy says: Signature Version 4 derives it from the day.
const SIGNING_KEY_AGE_MS_MAX: u64 = 7 * 24 * 60 * 60 * 1000;

/// A parsed policy.
pub(super) struct PostPolicy {
    expires_ms: i128,
    conditions: Vec<Condition>,
}

enum Condition {
    Equals { field: String, value: String },
    StartsWith { field: String, prefix: String },
    Size { min: u64, max: u64 },
}

fn invalid(problem: &str) -> S3Error {
    s3_error!(InvalidPolicyDocument, "Invalid Policy: {problem}")
}

fn violated(problem: impl std::fmt::Display) -> S3Error {
    s3_error!(AccessDenied, "Invalid according to Policy: {problem}")
}

impl PostPolicy {
    /// Parses a policy as a form carries it.
    ///
    /// # Errors
    /// `InvalidPolicyDocument`.
    pub(super) fn from_base64(encoded: &str) -> S3Result<Self> {
        // Some libraries break the text into lines.
        let compact: String = encoded.chars().filter(|c| !c.is_ascii_whitespace()).collect();
        let text = base64::prelude::BASE64_STANDARD.decode(compact).map_err(|_| invalid("it is not base64."))?;
        let document: Value = serde_json::from_slice(&text).map_err(|_| invalid("Invalid JSON."))?;
        let expiration = document["expiration"].as_str().ok_or_else(|| invalid("Policy missing expiration."))?;
        let expires = time::OffsetDateTime::parse(expiration, &time::format_description::well_known::Rfc3339)
            .map_err(|_| invalid("Invalid 'expiration' value."))?;
        let conditions = document["conditions"].as_array().ok_or_else(|| invalid("Policy missing conditions."))?;
        let conditions = conditions.iter().map(Condition::parse).collect::<S3Result<Vec<Vec<_>>>>()?;
        let conditions = conditions.into_iter().flatten().collect();
        Ok(Self { expires_ms: expires.unix_timestamp_nanos() / 1_000_000, conditions })
    }

    /// Checks all that can be checked before the file is read.
    ///
    /// # Errors
    /// `AccessDenied` naming what the policy forbids.
    pub(super) fn check(&self, form: &Form, bucket: &str, now_ms: u64) -> S3Result<()> {
        if self.expires_ms <= i128::from(now_ms) {
            return Err(violated("Policy expired."));
        }
        // Whoever signs may mean the key as the form has it, or as it is with the file's name.
        let key = form.key().ok();
        for condition in &self.conditions {
            let holds = |field: &str, fits: &dyn Fn(&str) -> bool| match field {
                // The address decides about the bucket; a field that differs is refused on its own.
                "bucket" => fits(bucket),
                "key" => form.get("key").is_some_and(fits) || key.as_deref().is_some_and(fits),
                field => form.get(field).is_some_and(fits),
            };
            match condition {
                Condition::Equals { field, value } if !holds(field, &|given| given == value) => {
                    return Err(violated(format_args!("Policy Condition failed: [\"eq\", \"${field}\", \"{value}\"]")));
                }
                // What begins with nothing need not be there.
                Condition::StartsWith { field, prefix }
                    if !prefix.is_empty() && !holds(field, &|given| given.starts_with(prefix.as_str())) =>
                {
                    return Err(violated(format_args!(
                        "Policy Condition failed: [\"starts-with\", \"${field}\", \"{prefix}\"]"
                    )));
                }
                _ => {}
            }
        }
        let covered = |name: &str| {
            self.conditions.iter().any(|condition| match condition {
                Condition::Equals { field, .. } | Condition::StartsWith { field, .. } => field == name,
                Condition::Size { .. } => false,
            })
        };
        // The bucket is a field that each form has, by its address: who signs must say which one is meant.
        if !covered("bucket") {
            return Err(violated("Extra input fields: bucket"));
        }
        for (name, _) in form.fields() {
            let exempt = matches!(name.as_str(), "policy" | "x-amz-signature" | "file" | "submit")
                || name.starts_with("x-ignore-");
            if !exempt && !covered(name) {
                return Err(violated(format_args!("Extra input fields: {name}")));
            }
        }
        Ok(())
    }

    /// Smallest and largest size of the file, in bytes.
    pub(super) fn size_range(&self) -> (u64, u64) {
        self.conditions.iter().fold((0, u64::MAX), |(low, high), condition| match condition {
            Condition::Size { min, max } => (low.max(*min), high.min(*max)),
            _ => (low, high),
        })
    }
}

impl Condition {
    fn parse(value: &Value) -> S3Result<Vec<Self>> {
        let field = |name: &str| name.strip_prefix('$').unwrap_or(name).to_ascii_lowercase();
        let text = |value: &Value| {
            value.as_str().map(str::to_owned).ok_or_else(|| invalid("Invalid Condition: values must be strings."))
        };
        let number = |value: &Value| {
            let number = value.as_u64().or_else(|| value.as_str().and_then(|s| s.parse().ok()));
            number.ok_or_else(|| invalid("Invalid content-length-range."))
        };
        match value {
            Value::Object(members) if !members.is_empty() => members
                .iter()
                .map(|(name, value)| Ok(Self::Equals { field: field(name), value: text(value)? }))
                .collect(),
            Value::Array(items) => match items.as_slice() {
                [Value::String(operator), Value::String(name), value] if operator.eq_ignore_ascii_case("eq") => {
                    Ok(vec![Self::Equals { field: field(name), value: text(value)? }])
                }
                [Value::String(operator), Value::String(name), value]
                    if operator.eq_ignore_ascii_case("starts-with") =>
                {
                    Ok(vec![Self::StartsWith { field: field(name), prefix: text(value)? }])
                }
                [Value::String(operator), min, max] if operator.eq_ignore_ascii_case("content-length-range") => {
                    Ok(vec![Self::Size { min: number(min)?, max: number(max)? }])
                }
                _ => Err(invalid("Invalid Condition: unknown operation or wrong number of values.")),
            },
            _ => Err(invalid("Invalid Condition: it must be a list or an object.")),
        }
    }
}

/// Checks the signature of a form's policy and tells who signed it, and when.
///
/// # Errors
/// What is missing or wrong; an unknown key; `SignatureDoesNotMatch`; `InvalidToken`.
pub(super) async fn check_signature(
    authenticator: &Authenticator,
    form: &Form,
    policy: &str,
    now_ms: u64,
) -> S3Result<FormCaller> {
    let field = |name: &'static str| {
        form.get(name).ok_or_else(|| s3_error!(InvalidArgument, "Bucket POST must contain a field named '{name}'."))
    };
    if field("x-amz-algorithm")? != "AWS4-HMAC-SHA256" {
        return Err(s3_error!(InvalidArgument, "X-Amz-Algorithm only supports AWS4-HMAC-SHA256"));
    }
    let credential = field("x-amz-credential")?;
    let mut scope = credential.rsplitn(5, '/');
    let (Some("aws4_request"), Some("s3"), Some(region), Some(day), Some(access_key)) =
        (scope.next(), scope.next(), scope.next(), scope.next(), scope.next())
    else {
        return Err(s3_error!(
            InvalidArgument,
            "the Credential is mal-formed; expecting \"<YOUR-AKID>/YYYYMMDD/REGION/s3/aws4_request\""
        ));
    };
    let date = field("x-amz-date")?;
    let date_ms =
        parse_amz_date_ms(date).ok_or_else(|| s3_error!(InvalidArgument, "X-Amz-Date must be in ISO 8601."))?;
    if !date.starts_with(day) {
        return Err(s3_error!(InvalidArgument, "The date in X-Amz-Credential does not match X-Amz-Date."));
    }
    // A form may be used until its policy expires; only the signing key has an age.
    if date_ms > now_ms.saturating_add(SKEW_MS_MAX) {
        return Err(s3_error!(RequestTimeTooSkewed, "The form is dated in the future."));
    }
    if now_ms.saturating_sub(date_ms) > SIGNING_KEY_AGE_MS_MAX {
        return Err(violated("Policy expired."));
    }
    let mismatch = || {
        s3_error!(
            SignatureDoesNotMatch,
            "The request signature we calculated does not match the signature you provided. Check your key and signing \
             method."
        )
    };
    let signature = hex::decode(field("x-amz-signature")?).map_err(|_| mismatch())?;
    let secret = authenticator.secret_of(access_key).await?;
    let sign = |key: &[u8], text: &str| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes());
    let first = zeroize::Zeroizing::new(format!("AWS4{}", secret.expose()));
    let key = [day, region, "s3", "aws4_request"]
        .iter()
        .fold(first.as_bytes().to_vec(), |key, text| sign(&key, text).as_ref().to_vec());
    let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
    // Compares in constant time.
    hmac::verify(&key, policy.as_bytes(), &signature).map_err(|_| mismatch())?;
    if form.get(SECURITY_TOKEN).is_some_and(|token| !token.is_empty()) {
        return Err(invalid_token());
    }
    Ok(FormCaller { caller: authenticator.caller(access_key).await?, signed_ms: Some(date_ms) })
}

#[cfg(test)]
mod tests {
    use holdfast_protocol::fuzz::Target;

    use super::*;

    fn policy(conditions: &str) -> S3Result<PostPolicy> {
        let text = format!(r#"{{"expiration":"2026-01-02T00:00:00.000Z","conditions":{conditions}}}"#);
        PostPolicy::from_base64(&base64::prelude::BASE64_STANDARD.encode(text))
    }

    const NOW_MS: u64 = 1_767_225_600_000; // 2026-01-01

    #[test]
    fn conditions_hold_or_name_what_they_forbid() {
        let all = r#"[{"bucket":"photos"},["starts-with","$key","up/"],["eq","$acl","private"],["content-length-range",1,10]]"#;
        let check = |fields: &[(&str, &str)]| {
            policy(all).unwrap().check(&Form::of(fields), "photos", NOW_MS).map_err(|e| e.message().unwrap().to_owned())
        };
        let good = [("key", "up/a"), ("acl", "private"), ("policy", "p"), ("x-ignore-me", "1")];
        assert_eq!(check(&good), Ok(()));
        assert!(check(&[("key", "down/a"), ("acl", "private")]).unwrap_err().contains("$key"));
        assert!(check(&[("key", "up/a"), ("acl", "public-read")]).unwrap_err().contains("$acl"));
        assert!(check(&[("key", "up/a")]).unwrap_err().contains("$acl"), "a required field may not be left out");
        assert!(check(&[&good[..], &[("content-type", "x")]].concat()).unwrap_err().contains("content-type"));
        let policy = policy(all).unwrap();
        assert!(policy.check(&Form::of(&good), "other", NOW_MS).is_err(), "a policy is for one bucket");
        assert!(policy.check(&Form::of(&good), "photos", NOW_MS + 86_400_000).is_err(), "it expires");
        assert_eq!(policy.size_range(), (1, 10));
    }

    #[test]
    fn a_policy_names_its_bucket() {
        let check = |conditions: &str| {
            let policy = policy(conditions).unwrap();
            policy.check(&Form::of(&[("key", "a")]), "photos", NOW_MS).map_err(|e| e.message().unwrap().to_owned())
        };
        assert!(check(r#"[{"key":"a"}]"#).unwrap_err().contains("bucket"), "it would hold for every bucket");
        assert_eq!(check(r#"[{"key":"a"},{"bucket":"photos"}]"#), Ok(()));
        assert_eq!(check(r#"[{"key":"a"},["starts-with","$bucket",""]]"#), Ok(()));
    }

    #[test]
    fn damaged_policies_are_refused_and_no_harm() {
        fn body(bytes: &[u8]) {
            let Ok(text) = std::str::from_utf8(bytes) else { return };
            let _ = PostPolicy::from_base64(text);
            // The same inside of its wrapping.
            if let Ok(policy) = PostPolicy::from_base64(&base64::prelude::BASE64_STANDARD.encode(bytes)) {
                let _ = policy.check(&Form::of(&[("key", "up/a"), ("acl", "private")]), "photos", NOW_MS);
                let _ = policy.size_range();
            }
        }
        fn seeds() -> Vec<Vec<u8>> {
            let text = r#"{"expiration":"2026-01-02T00:00:00.000+01:00","conditions":[{"bucket":"photos"},["starts-with","$key","up/"],["eq","$acl","private"],["content-length-range",1,"10"]]}"#;
            vec![text.into(), base64::prelude::BASE64_STANDARD.encode(text).into_bytes()]
        }
        holdfast_protocol::fuzz::damage::run(&[Target { name: "post_policy", body, seeds }], 5_000);
    }

    #[test]
    fn what_is_no_policy_is_refused() {
        for conditions in [
            "1",
            "[1]",
            r#"[["eq","$key"]]"#,
            r#"[["like","$key","x"]]"#,
            r#"[["content-length-range","a",1]]"#,
            r#"[["content-length-range",-1,1]]"#,
            r#"[{"key":1}]"#,
            "[{}]",
        ] {
            assert!(policy(conditions).is_err(), "{conditions}");
        }
        assert!(PostPolicy::from_base64("***").is_err());
        assert!(PostPolicy::from_base64("e30=").is_err());
    }
}
