//! RestoreObject: the bytes of a cold object come to the cluster's disks for some days.
//!
//! Cold objects can be read at all times; a restore makes reading them as fast as that of others. The request only
//! queues the move: 202. When the bytes are there already, it sets the end anew: 200. S3's retrieval tiers (`Tier`)
//! mean nothing here, and programs send them, so they are taken and ignored.

use holdfast_actors::ports::MetadataError;
use holdfast_actors::ports::metadata::{MoveQueued, MoveReason, MoveRequest};
use holdfast_protocol::EventName;
use s3s::dto::{RestoreObjectInput, RestoreObjectOutput, RestoreRequest};
use s3s::{S3Request, S3Response, S3Result, s3_error};

use super::S3Front;
use super::errors::{invalid_argument, not_implemented};
use super::judged::{self, Judged};

/// The longest restore, in days: a hundred years, so that its end is a date that every client understands.
const DAYS_MAX: u32 = 36_500;

/// Marks an answer that is to be 202: s3s knows one status for RestoreObject.
#[derive(Debug, Clone, Copy)]
pub(super) struct Accepted;

impl S3Front {
    /// Asks for a cold object to lie on the cluster's disks.
    pub(crate) async fn restore_object(
        &self,
        req: S3Request<RestoreObjectInput>,
    ) -> S3Result<S3Response<RestoreObjectOutput>> {
        let input = &req.input;
        let days = days_of(input.restore_request.as_ref())?;
        let bucket = self.bucket_of(&req.extensions, &input.bucket, input.expected_bucket_owner.as_deref()).await?;
        let (object, _) = self.readable(&bucket, &input.key, input.version_id.as_deref()).await?;
        Judged::check(&req.extensions, &bucket, &input.key, input.version_id.as_deref(), &object)?;
        let now_ms = self.clock.now_ms();
        let request = MoveRequest {
            bucket: bucket.id,
            key: input.key.clone(),
            // The version that was looked at, not one that is written in between.
            version: Some(object.version),
            to: None,
            reason: MoveReason::Restore { keep_ms: self.lifecycle.day.due_ms(now_ms, days).saturating_sub(now_ms) },
            only_if: Judged::only_this(&req.extensions, &bucket, &input.key, input.version_id.as_deref(), &object),
            event: self.event(&req.extensions, &bucket, EventName::RestorePost),
            now_ms,
        };
        let queued = self.metadata.request_move(request).await.map_err(|error| match error {
            MetadataError::NoSuchVersion if input.version_id.is_none() => MetadataError::NoSuchKey,
            MetadataError::NoSuchKey if input.version_id.is_some() => MetadataError::NoSuchVersion,
            error => error,
        });
        let mut response = S3Response::new(RestoreObjectOutput::default());
        match queued.map_err(judged::refused)? {
            MoveQueued::Queued => {
                response.extensions.insert(Accepted);
            }
            MoveQueued::InPlace | MoveQueued::Extended => {}
            MoveQueued::Ongoing | MoveQueued::Waiting => {
                return Err(s3_error!(RestoreAlreadyInProgress, "Object restore is already in progress"));
            }
        }
        Ok(response)
    }
}

/// For how many days a request wants a restore.
fn days_of(request: Option<&RestoreRequest>) -> S3Result<u32> {
    let request = request.ok_or_else(|| s3_error!(MissingRequestBodyError, "Request Body is empty"))?;
    // The one type that S3 knows selects from the object.
    if request.type_.is_some() || request.select_parameters.is_some() || request.output_location.is_some() {
        return Err(not_implemented("restoring what a query selects, or to another place"));
    }
    let days = request.days.ok_or_else(|| {
        s3_error!(
            MalformedXML,
            "The XML you provided was not well-formed or did not validate against our published schema: a \
             RestoreRequest has Days"
        )
    })?;
    let days = u32::try_from(days).ok().filter(|days| (1..=DAYS_MAX).contains(days));
    days.ok_or_else(|| invalid_argument(format!("Days of a restore must be between 1 and {DAYS_MAX}")))
}

#[cfg(test)]
mod tests {
    use s3s::dto::{OutputLocation, RestoreRequestType, Tier};

    use super::*;

    #[test]
    fn days_are_counted_from_one_and_queries_are_not_answered() {
        let code = |request: Option<RestoreRequest>| {
            days_of(request.as_ref()).map_err(|error| error.code().as_str().to_owned())
        };
        let of = |days: Option<i32>| RestoreRequest { days, ..RestoreRequest::default() };
        assert_eq!(code(Some(of(Some(1)))), Ok(1));
        assert_eq!(code(Some(of(Some(36_500)))), Ok(36_500));
        let expedited = Some(Tier::from_static(Tier::EXPEDITED));
        assert_eq!(code(Some(RestoreRequest { tier: expedited, ..of(Some(2)) })), Ok(2));
        for days in [0, -1, 36_501, i32::MAX] {
            assert_eq!(code(Some(of(Some(days)))), Err("InvalidArgument".into()), "{days}");
        }
        assert_eq!(code(None), Err("MissingRequestBodyError".into()));
        assert_eq!(code(Some(of(None))), Err("MalformedXML".into()));
        let select = Some(RestoreRequestType::from_static(RestoreRequestType::SELECT));
        assert_eq!(code(Some(RestoreRequest { type_: select, ..of(None) })), Err("NotImplemented".into()));
        let output_location = Some(OutputLocation::default());
        assert_eq!(code(Some(RestoreRequest { output_location, ..of(Some(1)) })), Err("NotImplemented".into()));
    }
}
