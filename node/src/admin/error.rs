//! Errors of the admin API, and how the ports' errors become them.

use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use holdfast_actors::domain::placement::LayoutError;
use holdfast_actors::ports::MetadataError;
use holdfast_actors::ports::coordination::CoordinationError;
use holdfast_actors::service::node::ActorUnavailable;
use holdfast_protocol::admin::{ErrorBody, ErrorCode, ErrorDetail};
use serde::de::DeserializeOwned;

use super::server::current_request_id;

/// An error answer.
#[derive(Debug)]
pub struct ApiError {
    code: ErrorCode,
    message: String,
}

impl ApiError {
    pub(super) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidRequest, message)
    }

    pub(super) fn not_possible(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::NotPossible, message)
    }

    pub(super) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Unavailable, message)
    }

    /// What kind of error.
    pub fn code(&self) -> ErrorCode {
        self.code
    }

    /// What happened, for people.
    pub fn message(&self) -> &str {
        &self.message
    }

    fn status(&self) -> StatusCode {
        match self.code {
            ErrorCode::InvalidRequest => StatusCode::BAD_REQUEST,
            ErrorCode::Unauthorized => StatusCode::UNAUTHORIZED,
            ErrorCode::NotFound => StatusCode::NOT_FOUND,
            ErrorCode::Exists | ErrorCode::InUse | ErrorCode::Conflict | ErrorCode::NotPossible => StatusCode::CONFLICT,
            ErrorCode::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            ErrorCode::Internal | ErrorCode::Other => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = self.status();
        if status.is_server_error() {
            tracing::warn!(code = ?self.code, message = self.message, "admin request failed");
        }
        let detail = ErrorDetail { code: self.code, message: self.message, request_id: current_request_id() };
        let mut response = (status, Json(ErrorBody { error: detail })).into_response();
        let headers = response.headers_mut();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert("retry-after", const { http::HeaderValue::from_static("1") });
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert("www-authenticate", const { http::HeaderValue::from_static("Bearer") });
        }
        response
    }
}

impl From<MetadataError> for ApiError {
    fn from(error: MetadataError) -> Self {
        let code = match &error {
            MetadataError::NoSuchBucket
            | MetadataError::NoSuchKey
            | MetadataError::NoSuchVersion
            | MetadataError::NotFound(_) => ErrorCode::NotFound,
            MetadataError::BucketExists { .. } | MetadataError::Exists(_) => ErrorCode::Exists,
            MetadataError::BucketNotEmpty | MetadataError::TierInUse => ErrorCode::InUse,
            MetadataError::PreconditionFailed | MetadataError::Superseded | MetadataError::NotCold => {
                ErrorCode::Conflict
            }
            MetadataError::Busy
            | MetadataError::NoSpace(_)
            | MetadataError::Unavailable(_)
            | MetadataError::Unknown(_)
            | MetadataError::Condemned
            | MetadataError::Fenced { .. }
            | MetadataError::StaleEpoch { .. } => ErrorCode::Unavailable,
            _ => ErrorCode::Internal,
        };
        if let MetadataError::Unavailable(_) = error {
            return Self::new(
                code,
                format!("{error}: is the database up, and does this node reach it (metadata.url)?"),
            );
        }
        if let Some(list) = list_of(&error) {
            return Self::new(code, format!("{error}: `{list}` shows those there are"));
        }
        Self::new(code, error.to_string())
    }
}

/// The command that shows what something that is not there is not among.
fn list_of(error: &MetadataError) -> Option<&'static str> {
    match error {
        MetadataError::NoSuchBucket => Some("holdfast bucket list"),
        MetadataError::NotFound(what) => match *what {
            "user" => Some("holdfast user list"),
            "access key" => Some("holdfast key list"),
            "dead letter" => Some("holdfast events dead list"),
            _ => None,
        },
        _ => None,
    }
}

impl From<CoordinationError> for ApiError {
    fn from(error: CoordinationError) -> Self {
        let code = match &error {
            CoordinationError::Conflict(_) => ErrorCode::Conflict,
            CoordinationError::NotFound(_) => ErrorCode::NotFound,
            CoordinationError::Unavailable(_) | CoordinationError::Unknown(_) | CoordinationError::SessionExpired => {
                ErrorCode::Unavailable
            }
            _ => ErrorCode::Internal,
        };
        if matches!(error, CoordinationError::Unavailable(_) | CoordinationError::SessionExpired) {
            let message = format!("{error}: does this node reach ZooKeeper (cluster.zookeeper)?");
            return Self::new(code, message);
        }
        Self::new(code, error.to_string())
    }
}

impl From<LayoutError> for ApiError {
    fn from(error: LayoutError) -> Self {
        let code = match &error {
            LayoutError::NoSuchNode(_) => ErrorCode::NotFound,
            LayoutError::Version { .. } | LayoutError::NothingStaged => ErrorCode::Conflict,
            _ => ErrorCode::InvalidRequest,
        };
        Self::new(code, error.to_string())
    }
}

impl From<ActorUnavailable> for ApiError {
    fn from(error: ActorUnavailable) -> Self {
        Self::new(ErrorCode::Unavailable, error.to_string())
    }
}

impl From<JsonRejection> for ApiError {
    fn from(rejection: JsonRejection) -> Self {
        Self::invalid(rejection.body_text())
    }
}

impl From<QueryRejection> for ApiError {
    fn from(rejection: QueryRejection) -> Self {
        Self::invalid(rejection.body_text())
    }
}

impl From<PathRejection> for ApiError {
    fn from(rejection: PathRejection) -> Self {
        Self::invalid(rejection.body_text())
    }
}

/// What the path of a request names, with errors as ours.
pub(super) struct Path<T>(pub(super) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut http::request::Parts, state: &S) -> Result<Self, ApiError> {
        let axum::extract::Path(named) = axum::extract::Path::<T>::from_request_parts(parts, state).await?;
        Ok(Self(named))
    }
}

/// JSON from a request, with errors as ours.
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let Json(value) = Json::<T>::from_request(request, state).await?;
        Ok(Self(value))
    }
}

pub(super) async fn no_such_route() -> ApiError {
    ApiError::new(ErrorCode::NotFound, "there is no such path in the admin API")
}

pub(super) async fn no_such_method() -> ApiError {
    ApiError::invalid("this path does not take this method")
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use http_body_util::BodyExt as _;
    use tower::Service as _;

    use super::super::page::Params;
    use super::*;

    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Which {
        #[serde(default)]
        force: bool,
    }

    async fn show(Path(number): Path<u64>, Params(which): Params<Which>) -> String {
        format!("{number} {}", which.force)
    }

    #[test]
    fn what_is_not_there_is_told_with_the_command_that_shows_what_is() {
        for (error, list) in [
            (MetadataError::NoSuchBucket, "`holdfast bucket list`"),
            (MetadataError::NotFound("user"), "`holdfast user list`"),
            (MetadataError::NotFound("access key"), "`holdfast key list`"),
            (MetadataError::NotFound("dead letter"), "`holdfast events dead list`"),
        ] {
            let error = ApiError::from(error);
            assert!(error.code == ErrorCode::NotFound && error.message.contains(list), "{error:?}");
        }
        assert_eq!(ApiError::from(MetadataError::NoSuchKey).message, "no such key");
    }

    #[tokio::test]
    async fn what_a_path_or_a_query_says_wrongly_is_told_as_every_error_is() {
        let mut routes: axum::Router = axum::Router::new().route("/dead/{number}", get(show));
        for (path, expected) in [("7?force=true", 200), ("x", 400), ("7?froce=true", 400), ("%ff", 400)] {
            let request =
                http::Request::builder().uri(format!("/dead/{path}")).body(axum::body::Body::empty()).unwrap();
            let answer = routes.call(request).await.unwrap();
            assert_eq!(answer.status().as_u16(), expected, "{path}");
            let body = answer.into_body().collect().await.unwrap().to_bytes();
            let error = serde_json::from_slice::<ErrorBody>(&body).map(|body| body.error.code);
            assert_eq!(error.is_ok_and(|code| matches!(code, ErrorCode::InvalidRequest)), expected != 200, "{path}");
        }
    }
}
