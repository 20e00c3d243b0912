//! Adapters of the `MetadataStore` port.
//!
//! * [`SqliteMetadataStore`]: one database file, for a node that runs alone.
//! * [`MysqlMetadataStore`]: a MySQL or MariaDB server, for a cluster.
//! * [`CachedMetadataStore`]: decorates any store with a coherent cache in memory, for a node that runs alone.
//! * [`RedisCachedStore`]: decorates a cluster's store with a coherent cache that all nodes share.
//!
//! What the versions of a key become is decided in `holdfast_actors::domain::objects::versioning`, and how a listing
//! walks in `listing` beside it; adapters fetch, apply and commit.

mod cached;
mod caching;
pub mod mysql;
pub mod redis;
mod room;
mod rows;
mod sql;
pub mod sqlite;
mod walk;
mod weights;

pub use cached::{CacheOptions, CachedMetadataStore};
pub use mysql::{MysqlMetadataStore, MysqlOptions, MysqlTls};
pub use redis::{RedisAddress, RedisCacheOptions, RedisCachedStore};
pub use sqlite::{OpenError, SqliteMetadataStore, SqliteOptions};
