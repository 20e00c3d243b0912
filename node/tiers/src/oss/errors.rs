//! What an error of the store asks of whom.

use std::error::Error;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use holdfast_actors::ports::tiers::{PieceName, TierError};

/// An error and all that caused it, in one line.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        // Many say what their cause says.
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
        source = error.source();
    }
    text
}

/// The code of S3 that an error came with, if it came with one.
pub(super) fn code_of<E: ProvideErrorMetadata>(error: &SdkError<E>) -> Option<&str> {
    error.as_service_error().and_then(ProvideErrorMetadata::code)
}

/// The status of HTTP that an error came with, if there was an answer.
pub(super) fn status_of<E>(error: &SdkError<E>) -> Option<u16> {
    error.raw_response().map(|response| response.status().as_u16())
}

/// An error of an operation on a piece.
pub(super) fn of_piece<E>(error: SdkError<E>, doing: &str, name: &PieceName) -> TierError
where
    E: ProvideErrorMetadata + Error + Send + Sync + 'static,
{
    match code_of(&error) {
        Some("NoSuchKey") => TierError::NotFound(name.clone()),
        Some(code @ ("BadDigest" | "InvalidDigest" | "XAmzContentSHA256Mismatch" | "XAmzContentChecksumMismatch")) => {
            TierError::Corrupt { piece: name.clone(), detail: format!("what came was not what was sent ({code})") }
        }
        Some("InvalidRange") => {
            TierError::Corrupt { piece: name.clone(), detail: "it is shorter than the bytes that were wanted".into() }
        }
        _ => of_bucket(error, &format!("{doing} {name}")),
    }
}

/// An error of an operation on the bucket, or one that has nothing to do with the piece.
pub(super) fn of_bucket<E>(error: SdkError<E>, doing: &str) -> TierError
where
    E: ProvideErrorMetadata + Error + Send + Sync + 'static,
{
    let (code, status) = (code_of(&error).unwrap_or_default(), status_of(&error));
    let said = match error.as_service_error().and_then(ProvideErrorMetadata::message) {
        Some(message) => format!("{code}: {message}"),
        None if !code.is_empty() => code.to_owned(),
        None => chain(&error),
    };
    let text = match status {
        Some(status) => format!("{doing}: status {status}, {said}"),
        None => format!("{doing}: {said}"),
    };
    if status == Some(507) || code.contains("Quota") || code.contains("StorageFull") {
        return TierError::Full(text);
    }
    if let Some(remedy) = remedy_of(code) {
        return TierError::Denied(format!("{remedy} ({text})"));
    }
    match status {
        // An answer that began well: S3 tells in its body how a completion ended, and any body may break off.
        Some(200..=299) => TierError::Unavailable(text),
        Some(408 | 425 | 429 | 500 | 502..) => TierError::Unavailable(text),
        // By somebody else, such as a rule of the bucket that tidies up, or an operator.
        _ if matches!(code, "NoSuchUpload" | "InvalidPart") => TierError::Unavailable(text),
        Some(400 | 409) if matches!(code, "RequestTimeout" | "OperationAborted" | "ConditionalRequestConflict") => {
            TierError::Unavailable(text)
        }
        Some(401 | 403) => TierError::Denied(format!("the store refuses these credentials ({text})")),
        Some(404) => {
            TierError::Denied(format!("the endpoint is no store that speaks S3, or the bucket is gone ({text})"))
        }
        Some(300..=399 | 501) => TierError::Denied(format!("the endpoint does not take this ({text})")),
        Some(_) => TierError::Denied(format!("the store does not take this ({text})")),
        None => without_answer(&error, text),
    }
}

/// What to do about an error that time does not mend.
fn remedy_of(code: &str) -> Option<&'static str> {
    Some(match code {
        "NoSuchBucket" => "the bucket does not exist there: create it, or correct bucket, region and endpoint",
        "AccessDenied" | "AllAccessDisabled" => {
            "the credentials lack a right: allow getting, putting and deleting objects, and listing and aborting uploads"
        }
        "InvalidAccessKeyId" => "the store does not know the access key: correct access_key_id",
        "SignatureDoesNotMatch" => "the signature is wrong: correct secret_access_key, and look at the region",
        "ExpiredToken" | "InvalidToken" | "InvalidSecurityToken" | "SecurityTokenExpired" => {
            "the session token is not valid any more: renew the credentials"
        }
        "RequestTimeTooSkewed" => "the clock of this machine is wrong: set it by NTP",
        "AuthorizationHeaderMalformed" | "PermanentRedirect" | "TemporaryRedirect" | "InvalidRegionName" => {
            "the bucket is in another region: correct region and endpoint"
        }
        "SecondLevelDomainForbidden" => "the store takes virtual-hosted addresses only: do not use path style",
        "UserDisable" | "AccountProblem" | "InvalidPayer" => "the account is disabled: see to its bills",
        "InvalidObjectState" => "the object was moved to an archive: take away the rule of the bucket that does so",
        "InvalidStorageClass" => "the store does not know the storage class: correct it",
        "MethodNotAllowed" => "the bucket forbids this: look at its retention rules",
        code if code.starts_with("KMS.") || code.starts_with("Kms") => {
            "the store may not use the key: correct the key id and its rights"
        }
        _ => return None,
    })
}

/// There was no answer: for want of credentials, or because the store was not reached.
fn without_answer(error: &(dyn Error + 'static), text: String) -> TierError {
    let mut source = Some(error);
    while let Some(error) = source {
        match error.downcast_ref::<CredentialsError>() {
            Some(CredentialsError::CredentialsNotLoaded(_) | CredentialsError::InvalidConfiguration(_)) => {
                return TierError::Denied(format!("there are no credentials ({text})"));
            }
            _ => source = error.source(),
        }
    }
    TierError::Unavailable(text)
}
