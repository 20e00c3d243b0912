//! `/v1/cluster/join-tokens`: how machines are let in.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use holdfast_protocol::admin::{ErrorBody, JoinToken, NewJoinToken};

use crate::admin::error::Body;
use crate::admin::{AdminState, ApiError};

/// Bounds of a token's validity.
const TOKEN_SECONDS: std::ops::RangeInclusive<u32> = 60..=86_400;

/// Makes tokens with which machines join.
pub trait Enrolment: Send + Sync + 'static {
    /// A token that is valid for `seconds`, and until when in milliseconds since 1970.
    ///
    /// # Errors
    /// In words for the operator.
    fn issue_token(&self, seconds: u32) -> Result<(String, u64), String>;
}

/// Makes a token with which machines can join. Whoever has it is given the cluster's keys.
#[utoipa::path(
    post, path = "/v1/cluster/join-tokens", tag = "cluster", operation_id = "create_join_token", request_body = NewJoinToken,
    responses(
        (status = 201, description = "The token, which is told this once", body = JoinToken),
        (status = "default", description = "An error", body = ErrorBody),
    )
)]
pub(in crate::admin) async fn join_token(
    State(state): State<AdminState>,
    Body(new): Body<NewJoinToken>,
) -> Result<(StatusCode, Json<JoinToken>), ApiError> {
    let cluster = state.cluster()?;
    if !TOKEN_SECONDS.contains(&new.valid_seconds) {
        return Err(ApiError::invalid("a token is valid for 60 to 86,400 seconds"));
    }
    let Some(enrolment) = &cluster.enrolment else {
        return Err(ApiError::not_possible(
            "the nodes of this cluster live in one process: start it with more of them (`holdfast dev --nodes`)",
        ));
    };
    let issued = enrolment.issue_token(new.valid_seconds);
    let (token, expires_ms) = issued.map_err(|error| ApiError::unavailable(format!("make a token: {error}")))?;
    tracing::info!(expires_ms, "join token made");
    Ok((StatusCode::CREATED, Json(JoinToken { token, expires_ms })))
}
