//! `/v1/buckets`

use axum::Json;
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use holdfast_actors::ports::metadata::{self, BucketConfigKind, CannedAcl, Versioning};
use holdfast_actors::ports::{MetadataError, MetadataStore};
use holdfast_protocol::admin::{Bucket, ErrorBody, NewBucket, Page, SetStorageClass};
use holdfast_protocol::tiers::STANDARD;

use super::audit::Made;
use super::error::{Body, Path};
use super::page::{Asked, List, Params};
use super::{AdminState, ApiError};

/// Buckets read at a time: each comes with its documents, more than half a megabyte if its owner wants that.
pub(super) const BUCKETS: u32 = 50;

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
    let found = read(&*state.metadata, list.user.as_deref(), &asked).await?;
    Ok(Json(asked.page(found, |bucket| bucket.name.clone())))
}

/// The buckets of a page, and the one behind it.
async fn read(
    metadata: &dyn MetadataStore,
    owner: Option<&str>,
    asked: &Asked<String>,
) -> Result<Vec<Bucket>, MetadataError> {
    let (mut found, mut after) = (Vec::new(), asked.after.clone());
    loop {
        let wanted = (asked.fetch() - found.len() as u32).min(BUCKETS);
        let some = metadata.list_buckets(owner, after.as_deref(), wanted).await?;
        found.extend(some.iter().map(|bucket| to_api(bucket)));
        if some.len() < wanted as usize || found.len() == asked.fetch() as usize {
            return Ok(found);
        }
        after = some.last().map(|last| last.name.clone());
    }
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

#[cfg(test)]
mod tests {
    use holdfast_actors::ports::metadata::samples;

    use super::*;
    use crate::metadata::{SqliteMetadataStore, SqliteOptions};

    #[tokio::test]
    async fn pages_larger_than_what_is_read_at_a_time_are_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metadata.sqlite");
        let store = SqliteMetadataStore::open(&path, SqliteOptions::default()).await.unwrap();
        let names: Vec<String> = (0..2 * BUCKETS + 10).map(|number| format!("bucket-{number:03}")).collect();
        for name in &names {
            samples::bucket(&store, name).await;
        }
        let all = names.len();
        for (skipped, limit) in [(0, all), (0, all - 1), (0, all + 1), (0, 2 * BUCKETS as usize), (all - 1, 5), (3, 1)]
        {
            let after = skipped.checked_sub(1).map(|last| names[last].as_str());
            let asked = Asked::new(after, limit as u32).unwrap();
            let page = asked.page(read(&store, None, &asked).await.unwrap(), |bucket| bucket.name.clone());
            let end = (skipped + limit).min(all);
            let listed: Vec<String> = page.items.into_iter().map(|bucket| bucket.name).collect();
            assert_eq!(listed, names[skipped..end], "{skipped} {limit}");
            assert_eq!(page.next, (end < all).then(|| names[end - 1].clone()), "{skipped} {limit}");
        }
        let nobody = Asked::new(None, 10).unwrap();
        assert!(read(&store, Some("nobody"), &nobody).await.unwrap().is_empty());
    }
}
