//! The S3 front end, on s3s.
//!
//! [`S3Front`] holds what every operation needs. The operations are inherent methods in the files of `s3/`, one file a
//! subject; `s3/service.rs` maps the `s3s::S3` trait onto them.

use std::sync::Arc;

use holdfast_actors::flow::cold::read::ColdReads;
use holdfast_actors::ports::tiers::Tiers;
use holdfast_actors::ports::{ChunkStore, Clock, Locks, MetadataStore};

pub mod access;
pub mod auth;
mod bucket_config;
mod cors;
pub mod facts;
pub mod host;
pub mod http_service;
pub mod operations;
mod post;
pub mod request_id;
pub mod signature;

mod answers;
mod buckets;
mod checksums;
mod chunked;
mod classes;
mod convert;
mod copy;
mod copy_source;
mod delete;
mod encoded_words;
mod error_details;
mod errors;
mod expires;
mod if_range;
mod ignored;
mod judged;
mod lifecycle;
mod listing;
pub(crate) mod meters;
mod multipart;
mod notify;
mod parsed;
mod presigned;
mod put;
mod read;
mod repeated;
mod restore;
mod service;
mod strict_xml;
mod tagging;
mod unconfigured;
mod version_order;

#[cfg(test)]
mod golden;
#[cfg(test)]
mod http_tests;

pub(crate) use lifecycle::LifecycleView;
pub(crate) use post::is_form;

/// The S3 front end of a node. Cheap to clone.
#[derive(Clone)]
pub struct S3Front {
    /// Metadata, behind its cache.
    pub(crate) metadata: Arc<dyn MetadataStore>,
    /// Chunks.
    pub(crate) chunks: Arc<dyn ChunkStore>,
    /// Objects in cold tiers.
    pub(crate) cold: Arc<ColdReads>,
    /// What two nodes must not do at once.
    pub(crate) locks: Arc<dyn Locks>,
    /// Time of day.
    pub(crate) clock: Arc<dyn Clock>,
    /// What GetBucketLocation answers.
    pub(crate) region: Arc<str>,
    /// The node's name in events; `None`: nobody is told of changes.
    pub(crate) events_from: Option<Arc<str>>,
    /// The cold tiers, whose names are the storage classes beside `STANDARD`.
    pub(crate) tiers: Arc<dyn Tiers>,
    /// When objects expire.
    pub(crate) lifecycle: Arc<LifecycleView>,
}
