//! The OSS adapter: pieces as objects of a bucket at Alibaba Cloud OSS, AWS S3, or any store that speaks S3.
//!
//! A piece up to the size of a part is gathered and goes in one request, whose body can be sent again. A larger one is
//! uploaded in parts, a few at a time; memory does not grow with the piece. An upload that fails is aborted; one that a
//! crash left behind is aborted before its piece is put again, and when it is deleted.
//!
//! Every body goes with its MD5, which S3 and OSS compare with what they got, and the ETag of the answer is compared
//! with it where it is an MD5. The checksums that the SDK adds by itself are off: OSS refuses the trailers they come
//! in.
//!
//! # What an operator should know
//! * OSS takes virtual-hosted addresses only. Its endpoint for S3 is the usual one,
//!   `https://oss-<region>.aliyuncs.com`.
//! * The rights needed: get, put and delete objects below the prefix; list and abort uploads of the bucket.
//! * Versioning of the bucket should be off: what Holdfast deletes would stay, and be paid for. So should rules that
//!   move objects to classes that cannot be read at once.
//! * Deleting from classes of rare access before their least age costs what the rest of it would have.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::BucketVersioningStatus;
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use holdfast_actors::ports::tiers::{ColdBody, ColdTier, PieceName, PieceSpec, TierError, TierHealth, TierResult};

pub use self::config::{AccessKeys, Addressing, CredentialsSource, Encryption, OssConfig};
use self::store::Store;
use crate::in_flight::{InFlight, size_is_allowed};

mod config;
mod credentials;
mod errors;
mod key;
mod store;
mod upload;

/// A tier in a bucket.
pub struct OssTier {
    store: Arc<Store>,
    in_flight: InFlight,
}

impl OssTier {
    /// A tier, without asking the store for anything yet.
    ///
    /// # Errors
    /// [`TierError::Invalid`] when the configuration cannot be worked with, [`TierError::Denied`] when there are no
    /// credentials.
    pub fn new(config: OssConfig) -> TierResult<Self> {
        let store = Store::new(config.validated()?)?;
        let in_flight = InFlight::new(store.patience());
        Ok(Self { store: Arc::new(store), in_flight })
    }
}

/// The rest of an answer.
struct Reading {
    body: ByteStream,
    name: PieceName,
    left_bytes: u64,
    patience: Duration,
    ended: bool,
}

impl Reading {
    async fn next(&mut self) -> Option<TierResult<Bytes>> {
        if self.ended {
            return None;
        }
        let step = match tokio::time::timeout(self.patience, self.body.next()).await {
            Err(_) => Err(TierError::Unavailable(format!("the answer with {} stands still", self.name))),
            Ok(Some(Err(error))) => {
                let text = errors::chain(&error);
                Err(TierError::Unavailable(format!("the answer with {} broke off: {text}", self.name)))
            }
            Ok(None) if self.left_bytes == 0 => {
                self.ended = true;
                return None;
            }
            Ok(None) => Err(self.corrupt(format!("the answer ended {} bytes early", self.left_bytes))),
            Ok(Some(Ok(bytes))) => match self.left_bytes.checked_sub(bytes.len() as u64) {
                Some(left_bytes) => {
                    self.left_bytes = left_bytes;
                    Ok(bytes)
                }
                None => Err(self.corrupt("the answer is longer than it should be".into())),
            },
        };
        // Nothing comes after an error.
        self.ended = step.is_err();
        Some(step)
    }

    fn corrupt(&self, detail: String) -> TierError {
        TierError::Corrupt { piece: self.name.clone(), detail }
    }
}

#[async_trait]
impl ColdTier for OssTier {
    fn kind(&self) -> &'static str {
        "oss"
    }

    fn piece_bytes_max(&self) -> u64 {
        self.store.config.piece_bytes_max
    }

    async fn reserve(&self, piece: &PieceSpec) -> TierResult<PieceName> {
        let config = &self.store.config;
        size_is_allowed(piece.size_bytes, config.piece_bytes_max)?;
        key::name_of(&config.prefix, piece, piece.size_bytes > config.part_bytes)
    }

    async fn put(&self, name: &PieceName, piece: &PieceSpec, body: ColdBody) -> TierResult<()> {
        size_is_allowed(piece.size_bytes, self.store.config.piece_bytes_max)?;
        let in_parts = key::is_in_parts(name)?;
        let (store, spec, target) = (self.store.clone(), piece.clone(), name.clone());
        let work = move |mut body, claim| async move {
            let result = match in_parts {
                true => store.put_in_parts(&target, &spec, &mut body).await,
                false => store.put_at_once(&target, &spec, &mut body).await,
            };
            drop(claim);
            result
        };
        self.in_flight.put(name, piece.size_bytes, body, work).await
    }

    async fn get(&self, name: &PieceName, range: Range<u64>) -> TierResult<ColdBody> {
        key::is_in_parts(name)?;
        if range.is_empty() {
            return Err(TierError::Invalid(format!("an empty range of {name}")));
        }
        let reading = Reading {
            body: self.store.get(name, &range).await?,
            name: name.clone(),
            left_bytes: range.end - range.start,
            patience: self.store.config.request_timeout,
            ended: false,
        };
        let body = stream::unfold(reading, |mut reading| async move {
            let step = reading.next().await?;
            Some((step, reading))
        });
        Ok(body.boxed())
    }

    async fn size_bytes(&self, name: &PieceName) -> TierResult<u64> {
        key::is_in_parts(name)?;
        self.store.size_bytes(name).await
    }

    async fn delete(&self, name: &PieceName) -> TierResult<()> {
        let in_parts = key::is_in_parts(name)?;
        let _claim = self.in_flight.claim(name).await?;
        if in_parts {
            self.store.abort_uploads(name).await?;
        }
        self.store.delete(name).await
    }

    async fn check(&self) -> TierResult<TierHealth> {
        self.store.reach().await?;
        let mut health = TierHealth::default();
        if self.store.versioning().await == Some(BucketVersioningStatus::Enabled) {
            let bucket = &self.store.config.bucket;
            let note = format!("versioning of the bucket {bucket} is on: what is deleted stays, and is paid for");
            health.notes.push(note);
        }
        Ok(health)
    }
}
