//! `/v1/buckets`

use axum::Json;
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use holdfast_actors::ports::metadata::{self, BucketConfigKind, CannedAcl, Versioning};
use holdfast_protocol::admin::{Bucket, ErrorBody, NewBucket, Page, SetStorageClass};
use holdfast_protocol::tiers::STANDARD;

use super::audit::Made;
use super::error::{Body, Path};
use super::page::{List, Params};
use super::{AdminState, ApiError};

fn to_api(bucket: &metadata::Bucket) -> Bucket {
    let versioning = match bucket.versioning {
        Versioning::Unversioned => "unversioned",
        Versioning::Enabled => "enabled",
        Versioning::Suspended => "suspended",
    };
    Bucket {
        name: bucket.name.clone(),
        owner: bucket.owner.clone(),
        versioning: versioning.into(),
        configured: bucket.configs.iter().map(|(kind, _)| kind.as_str().to_owned()).collect(),
        storage_class: bucket.config(BucketConfigKind::StorageClass).unwrap_or(STANDARD).to_owned(),
        created_ms: bucket.created_ms,
    }
}

/// Buckets in order of their names, of one owner or of all.
#[utoipa::path(
    get, path = "/v1/buckets", tag = "buckets", operation_id = "list_buckets",
    params(("after" = Option<String>, Query, description = "The last name of the page before"), ("limit" = Option<u32>, Query, description = "1 to 1,000"), ("user" = Option<String>, Query, description = "Only buckets of this owner")),
    responses(
        (status = 200, description = "A page", body = Page<Bucket>),
        (status = "default", description = "An error", body = ErrorBody),
    )
)]
pub(super) async fn list(
    State(state): State<AdminState>,
    Params(list): Params<List>,
) -> Result<Json<Page<Bucket>>, ApiError> {
    let asked = list.asked()?;
    let buckets = state.metadata.list_buckets(list.user.as_deref(), asked.after.as_deref(), asked.fetch()).await?;
    Ok(Json(asked.page(buckets.iter().map(|bucket| to_api(bucket)).collect(), |bucket| bucket.name.clone())))
}

/// One bucket.
#[utoipa::path(
    get, path = "/v1/buckets/{name}", tag = "buckets", operation_id = "show_bucket",
    params(("name" = String, Path, description = "The bucket")),
    responses(
        (status = 200, description = "The bucket", body = Bucket),
        (status = "default", description = "An error", body = ErrorBody),
    )
)]
pub(super) async fn show(State(state): State<AdminState>, Path(name): Path<String>) -> Result<Json<Bucket>, ApiError> {
    Ok(Json(to_api(&*state.metadata.bucket(&name).await?)))
}

/// Makes a bucket for a user.
#[utoipa::path(
    post, path = "/v1/buckets", tag = "buckets", operation_id = "create_bucket",
    request_body = NewBucket,
    responses(
        (status = 201, description = "The bucket", body = Bucket),
        (status = "default", description = "An error", body = ErrorBody),
    )
)]
pub(super) async fn create(
    State(state): State<AdminState>,
    Body(new): Body<NewBucket>,
) -> Result<(StatusCode, Extension<Made>, Json<Bucket>), ApiError> {
    holdfast_actors::domain::access::names::validate_bucket_name(&new.name)
        .map_err(|error| ApiError::invalid(error.to_string()))?;
    let owner = state.metadata.user(&new.owner).await?;
    let bucket = metadata::NewBucket {
        name: new.name,
        owner: owner.name.clone(),
        acl: CannedAcl::Private,
        now_ms: state.clock.now_ms(),
    };
    let bucket = state.metadata.create_bucket(bucket).await?;
    tracing::info!(bucket = bucket.name, owner = bucket.owner, "bucket created");
    Ok((StatusCode::CREATED, Made::named(bucket.name.as_str()), Json(to_api(&bucket))))
}

/// Removes an empty bucket.
#[utoipa::path(
    delete, path = "/v1/buckets/{name}", tag = "buckets", operation_id = "delete_bucket",
    params(("name" = String, Path, description = "The bucket")),
    responses(
        (status = 204, description = "The bucket is gone"),
        (status = "default", description = "An error", body = ErrorBody),
    )
)]
pub(super) async fn delete(State(state): State<AdminState>, Path(name): Path<String>) -> Result<StatusCode, ApiError> {
    let bucket = state.metadata.bucket(&name).await?;
    state.metadata.delete_bucket(&name, bucket.id).await?;
    tracing::info!(bucket = name, "bucket deleted");
    Ok(StatusCode::NO_CONTENT)
}

/// Sets the storage class of objects that are stored in a bucket without one. Those that are there stay where they are.
#[utoipa::path(
    put, path = "/v1/buckets/{name}/storage-class", tag = "buckets", operation_id = "set_bucket_storage_class",
    request_body = SetStorageClass,
    params(("name" = String, Path, description = "The bucket")),
    responses(
        (status = 200, description = "The bucket", body = Bucket),
        (status = "default", description = "An error", body = ErrorBody),
    )
)]
pub(super) async fn set_storage_class(
    State(state): State<AdminState>,
    Path(name): Path<String>,
    Body(set): Body<SetStorageClass>,
) -> Result<Json<Bucket>, ApiError> {
    let class = state.class(&set.class).await?.map(|tier| tier.to_string());
    let bucket = state.metadata.bucket(&name).await?;
    state.metadata.set_bucket_config(&name, bucket.id, BucketConfigKind::StorageClass, class).await?;
    tracing::info!(bucket = name, class = set.class, "default storage class set");
    Ok(Json(to_api(&*state.metadata.bucket(&name).await?)))
}
