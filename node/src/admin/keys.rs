//! `/v1/keys`

use axum::Json;
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use holdfast_actors::ports::metadata::{AccessKey, User};
use holdfast_protocol::admin::{CreatedKey, ErrorBody, Key, NewKey, Page, RotateKey, SetEnabled};
use zeroize::Zeroizing;

use super::audit::Made;
use super::credentials::{Pair, add_key, new_pair};
use super::error::{Body, Path};
use super::page::{List, Params};
use super::{AdminState, ApiError};

pub(super) fn to_api(key: &AccessKey) -> Key {
    Key {
        access_key: key.access_key.clone(),
        user: key.user.name.clone(),
        enabled: key.enabled,
        description: key.description.clone(),
        created_ms: key.created_ms,
    }
}

/// Access keys in order, of one user or of all.
#[utoipa::path(
    get, path = "/v1/keys", tag = "users", operation_id = "list_keys",
    params(("after" = Option<String>, Query, description = "The last name of the page before"), ("limit" = Option<u32>, Query, description = "1 to 1,000"), ("user" = Option<String>, Query, description = "Only keys of this user")),
    responses(
        (status = 200, description = "A page", body = Page<Key>),
        (status = "default", description = "An error", body = ErrorBody),
    )
)]
pub(super) async fn list(
    State(state): State<AdminState>,
    Params(list): Params<List>,
) -> Result<Json<Page<Key>>, ApiError> {
    let asked = list.asked()?;
    if let Some(user) = &list.user {
        // "No keys" and "no such user" are different answers.
        state.metadata.user(user).await?;
    }
    let keys = state.metadata.list_keys(list.user.as_deref(), asked.after.as_deref(), asked.fetch()).await?;
    Ok(Json(asked.page(keys.iter().map(|key| to_api(key)).collect(), |key| key.access_key.clone())))
}

/// One key, without its secret.
#[utoipa::path(
    get, path = "/v1/keys/{key}", tag = "users", operation_id = "show_key",
    params(("key" = String, Path, description = "The access key")),
    responses(
        (status = 200, description = "The key", body = Key),
        (status = "default", description = "An error", body = ErrorBody),
    )
)]
pub(super) async fn show(State(state): State<AdminState>, Path(key): Path<String>) -> Result<Json<Key>, ApiError> {
    Ok(Json(to_api(&*state.metadata.key(&key).await?)))
}

/// Makes a key, or imports a given pair.
#[utoipa::path(
    post, path = "/v1/keys", tag = "users", operation_id = "create_key",
    request_body = NewKey,
    responses(
        (status = 201, description = "The key with its secret, which is told this once", body = CreatedKey),
        (status = "default", description = "An error", body = ErrorBody),
    )
)]
pub(super) async fn create(
    State(state): State<AdminState>,
    Body(new): Body<NewKey>,
) -> Result<(StatusCode, Extension<Made>, Json<CreatedKey>), ApiError> {
    let secret = new.secret_key.map(Zeroizing::new);
    let pair = match (&new.access_key, &secret) {
        (Some(access_key), Some(secret)) => Pair::given(access_key, secret)?,
        (None, None) => new_pair(),
        _ => return Err(ApiError::invalid("give both halves of the pair, or none")),
    };
    let user = state.metadata.user(&new.user).await?;
    let created = store(&state, (*user).clone(), &pair, &new.description).await?;
    Ok((StatusCode::CREATED, Made::named(created.key.access_key.as_str()), Json(created)))
}

/// Makes a new key for the same user and disables the old one.
#[utoipa::path(
    post, path = "/v1/keys/{key}/rotate", tag = "users", operation_id = "rotate_key",
    params(("key" = String, Path, description = "The access key")),
    request_body = RotateKey,
    responses(
        (status = 201, description = "The new key with its secret", body = CreatedKey),
        (status = "default", description = "An error", body = ErrorBody),
    )
)]
pub(super) async fn rotate(
    State(state): State<AdminState>,
    Path(access_key): Path<String>,
    Body(RotateKey { keep_old }): Body<RotateKey>,
) -> Result<(StatusCode, Extension<Made>, Json<CreatedKey>), ApiError> {
    let old = state.metadata.key(&access_key).await?;
    let created = store(&state, old.user.clone(), &new_pair(), &old.description).await?;
    if !keep_old {
        state.metadata.set_key_enabled(&access_key, false).await?;
        tracing::info!(access_key, enabled = false, "access key changed");
    }
    Ok((StatusCode::CREATED, Made::named(created.key.access_key.as_str()), Json(created)))
}

async fn store(state: &AdminState, user: User, pair: &Pair, description: &str) -> Result<CreatedKey, ApiError> {
    let now_ms = state.clock.now_ms();
    let key = add_key(&*state.metadata, &*state.sealer, user, pair, description, now_ms).await?;
    tracing::info!(access_key = key.access_key, user = key.user.name, "access key created");
    Ok(CreatedKey { key: to_api(&key), secret_key: pair.secret_key.to_string() })
}

/// Enables or disables a key.
#[utoipa::path(
    patch, path = "/v1/keys/{key}", tag = "users", operation_id = "set_key_enabled",
    params(("key" = String, Path, description = "The access key")),
    request_body = SetEnabled,
    responses(
        (status = 200, description = "The key", body = Key),
        (status = "default", description = "An error", body = ErrorBody),
    )
)]
pub(super) async fn set_enabled(
    State(state): State<AdminState>,
    Path(access_key): Path<String>,
    Body(SetEnabled { enabled }): Body<SetEnabled>,
) -> Result<Json<Key>, ApiError> {
    state.metadata.set_key_enabled(&access_key, enabled).await?;
    tracing::info!(access_key, enabled, "access key changed");
    show(State(state), Path(access_key)).await
}

/// Removes a key.
#[utoipa::path(
    delete, path = "/v1/keys/{key}", tag = "users", operation_id = "delete_key",
    params(("key" = String, Path, description = "The access key")),
    responses(
        (status = 204, description = "The key is gone"),
        (status = "default", description = "An error", body = ErrorBody),
    )
)]
pub(super) async fn delete(
    State(state): State<AdminState>,
    Path(access_key): Path<String>,
) -> Result<StatusCode, ApiError> {
    state.metadata.delete_key(&access_key).await?;
    tracing::info!(access_key, "access key deleted");
    Ok(StatusCode::NO_CONTENT)
}
