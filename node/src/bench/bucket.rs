//! The bucket of a run: made before, emptied and deleted after.

use anyhow::{Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::HeaderName;
use http::{HeaderValue, Method};
use md5::{Digest, Md5};

use super::args::LoadArgs;
use super::client::{Call, Connection, encode_path};
use super::content::BenchBody;
use super::plan::Object;

/// Keys deleted by one request: S3's limit.
const DELETE_KEYS_MAX: usize = 1000;

/// Creates `bucket`. True when it was not there before.
///
/// # Errors
/// When the server refuses or cannot be reached.
pub(super) async fn create(control: &mut Connection, bucket: &str) -> Result<bool> {
    let path = format!("/{bucket}");
    if control.ask(Call::new(Method::HEAD, &path)).await.is_ok() {
        return Ok(false);
    }
    match control.ask(Call::new(Method::PUT, &path)).await {
        Ok(_) => Ok(true),
        Err(failure) if failure.kind.contains("BucketAlreadyOwnedByYou") => Ok(false),
        Err(failure) => bail!("create bucket `{bucket}`: {}", failure.kind),
    }
}

/// Deletes `objects`, and the bucket when this run created it.
///
/// # Errors
/// At the first request that fails; what was not deleted yet stays.
pub(super) async fn clean(
    control: &mut Connection,
    args: &LoadArgs,
    objects: impl Iterator<Item = Object>,
    created: bool,
) -> Result<()> {
    let bucket = format!("/{}", args.bucket);
    let mut objects = objects.peekable();
    if args.unsigned {
        for object in objects {
            let path = format!("{bucket}/{}", encode_path(&object.key));
            match control.ask(Call::new(Method::DELETE, &path)).await {
                Ok(_) => {}
                // A put that failed left nothing: that is as clean as it gets.
                Err(failure) if failure.kind.starts_with("404") => {}
                Err(failure) => bail!("delete `{}`: {}", object.key, failure.kind),
            }
        }
        return Ok(());
    }
    while objects.peek().is_some() {
        let mut xml = String::from("<Delete><Quiet>true</Quiet>");
        for object in objects.by_ref().take(DELETE_KEYS_MAX) {
            xml.push_str("<Object><Key>");
            xml.push_str(&quick_xml::escape::escape(object.key.as_str()));
            xml.push_str("</Key></Object>");
        }
        xml.push_str("</Delete>");
        let md5 = STANDARD.encode(Md5::digest(xml.as_bytes()));
        let header = HeaderValue::try_from(md5).expect("base64 is ASCII");
        let call = Call {
            query: "delete=",
            body: BenchBody::whole(xml.into()),
            header: Some((HeaderName::from_static("content-md5"), header)),
            ..Call::new(Method::POST, &bucket)
        };
        match control.ask(call).await {
            Ok(answer) if answer.windows(7).any(|bytes| bytes == b"<Error>") => {
                bail!("delete objects: some were refused")
            }
            Ok(_) => {}
            Err(failure) => bail!("delete objects: {}", failure.kind),
        }
    }
    if created && let Err(failure) = control.ask(Call::new(Method::DELETE, &bucket)).await {
        bail!("delete bucket `{}`: {}", args.bucket, failure.kind);
    }
    Ok(())
}
