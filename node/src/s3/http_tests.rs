//! The front end from HTTP request to HTTP answer, in one process: requests signed by a signer of our own, the real
//! service, access control and bucket configuration, over a small metadata store and operations that keep bytes in
//! memory.

mod access;
mod cold;
mod cors;
mod forms;
mod judged;
mod operations;
mod restores;
mod signatures;
mod signer;
mod store;
mod support;
