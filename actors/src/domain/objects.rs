//! Rules about objects: conditions, ranges, checksums, parts of uploads, tags and limits.
//!
//! All of it is pure: the S3 front end brings what a request says and what the metadata holds, and gets a decision or
//! an error whose variants correspond to S3's codes.

pub mod attributes;
pub mod checksums;
pub mod conditions;
pub mod digests;
pub mod labels;
pub mod listing;
pub mod multipart;
pub mod ranges;
pub mod tags;
pub mod versioning;

/// Longest key, in bytes of UTF-8.
pub const KEY_SIZE_MAX: usize = 1024;

/// Most bytes of user metadata: names and values together.
pub const USER_METADATA_SIZE_MAX: usize = 2048;

/// Most bytes one PUT, one part or one UploadPartCopy may bring: 5 GiB.
pub const SINGLE_PUT_SIZE_MAX: u64 = 5 << 30;

/// Largest object: 5 TiB.
pub const OBJECT_SIZE_MAX: u64 = 5 << 40;

/// Most keys of one DeleteObjects request, and most entries of one page of any listing.
pub const PAGE_SIZE_MAX: u32 = 1000;
