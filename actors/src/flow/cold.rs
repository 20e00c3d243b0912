//! Cold objects: bringing their bytes to a tier and back, and reading them there.

mod backoff;
pub mod blocks;
mod events;
pub mod mover;
mod offload;
pub mod read;
mod recall;
pub mod run;
mod source;
pub mod stub;
pub mod sweep;
mod work;
