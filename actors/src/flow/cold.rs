//! Cold objects: bringing their bytes to a tier and back, and reading them there.

mod backoff;
pub mod blocks;
mod events;
pub mod mover;
mod offload;
mod recall;
mod source;
pub mod sweep;
mod work;
pub mod stub;
