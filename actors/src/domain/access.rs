//! Who may do what: bucket names, bucket policies, canned ACLs and CORS.
//!
//! All of it is pure: the S3 front end brings the caller, the request's facts and the stored documents, and gets a
//! decision. Nothing here panics on what a client sent; documents are validated when they are put and, since an older
//! build may have stored them, parsed defensively when they are used.

pub mod acl;
pub mod cors;
pub mod names;
pub mod policy;
