//! Cold objects: bringing their bytes to a tier and back, and reading them there.

pub mod blocks;
pub mod read;
