//! `/v1/users`

use axum::Json;
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use holdfast_actors::ports::metadata;
use holdfast_protocol::admin::{ErrorBody, NewUser, Page, SetEnabled, User};

use super::audit::Made;
use super::error::{Body, Path};
use super::page::{List, Params};
use super::{AdminState, ApiError};

pub(super) fn to_api(user: &metadata::User) -> User {
    User { name: user.name.clone(), admin: user.admin, enabled: user.enabled, created_ms: user.created_ms }
}

/// Users in order of their names.
#[utoipa::path(
    get, path = "/v1/users", tag = "users", operation_id = "list_users",
    params(("after" = Option<String>, Query, description = "The last name of the page before"), ("limit" = Option<u32>, Query, description = "1 to 1,000")),
    responses(
        (status = 200, description = "A page", body = Page<User>),
        (status = "default", description = "An error", body = ErrorBody),
    )
)]
pub(super) async fn list(
    State(state): State<AdminState>,
    Params(list): Params<List>,
) -> Result<Json<Page<User>>, ApiError> {
    let asked = list.asked()?;
    let users = state.metadata.list_users(asked.after.as_deref(), asked.fetch()).await?;
    Ok(Json(asked.page(users.iter().map(|user| to_api(user)).collect(), |user| user.name.clone())))
}

/// What [`is_user_name`] asks for.
pub(crate) const USER_NAME: &str = "a user name has 1 to 64 letters, digits and _ . - @ +";

/// Whether a user may be called so.
pub(crate) fn is_user_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-' | b'@' | b'+'))
}

/// Adds a user.
#[utoipa::path(
    post, path = "/v1/users", tag = "users", operation_id = "create_user",
    request_body = NewUser,
    responses(
        (status = 201, description = "The user", body = User),
        (status = "default", description = "An error", body = ErrorBody),
    )
)]
pub(super) async fn create(
    State(state): State<AdminState>,
    Body(new): Body<NewUser>,
) -> Result<(StatusCode, Extension<Made>, Json<User>), ApiError> {
    if !is_user_name(&new.name) {
        return Err(ApiError::invalid(USER_NAME));
    }
    let user = metadata::User { name: new.name, admin: new.admin, enabled: true, created_ms: state.clock.now_ms() };
    state.metadata.create_user(user.clone()).await?;
    tracing::info!(user = user.name, admin = user.admin, "user created");
    Ok((StatusCode::CREATED, Made::named(user.name.as_str()), Json(to_api(&user))))
}

/// One user.
#[utoipa::path(
    get, path = "/v1/users/{name}", tag = "users", operation_id = "show_user",
    params(("name" = String, Path, description = "The user")),
    responses(
        (status = 200, description = "The user", body = User),
        (status = "default", description = "An error", body = ErrorBody),
    )
)]
pub(super) async fn show(State(state): State<AdminState>, Path(name): Path<String>) -> Result<Json<User>, ApiError> {
    Ok(Json(to_api(&*state.metadata.user(&name).await?)))
}

/// Enables or disables a user's keys.
#[utoipa::path(
    patch, path = "/v1/users/{name}", tag = "users", operation_id = "set_user_enabled",
    params(("name" = String, Path, description = "The user")),
    request_body = SetEnabled,
    responses(
        (status = 200, description = "The user", body = User),
        (status = "default", description = "An error", body = ErrorBody),
    )
)]
pub(super) async fn set_enabled(
    State(state): State<AdminState>,
    Path(name): Path<String>,
    Body(SetEnabled { enabled }): Body<SetEnabled>,
) -> Result<Json<User>, ApiError> {
    state.metadata.set_user_enabled(&name, enabled).await?;
    tracing::info!(user = name, enabled, "user changed");
    show(State(state), Path(name)).await
}

/// Removes a user who owns no buckets, and the keys of the user.
#[utoipa::path(
    delete, path = "/v1/users/{name}", tag = "users", operation_id = "delete_user",
    params(("name" = String, Path, description = "The user")),
    responses(
        (status = 204, description = "The user is gone"),
        (status = "default", description = "An error", body = ErrorBody),
    )
)]
pub(super) async fn delete(State(state): State<AdminState>, Path(name): Path<String>) -> Result<StatusCode, ApiError> {
    state.metadata.delete_user(&name).await.map_err(|error| match error {
        metadata::MetadataError::BucketNotEmpty => {
            let message =
                format!("the user owns buckets: delete them first (`holdfast bucket list --owner {name}` shows them)");
            ApiError::new(holdfast_protocol::admin::ErrorCode::InUse, message)
        }
        error => error.into(),
    })?;
    tracing::info!(user = name, "user deleted");
    Ok(StatusCode::NO_CONTENT)
}
