//! The HTTP front: listeners, runtimes, connections, TLS and their limits. What is served is the caller's business.
//!
//! ```text
//! server   listeners, the data plane's runtimes, the limit on connections, shutdown
//!   conn     what hyper reads from and writes to: sends mapped slices by splice, counts copied bytes
//!     pace     the least progress that a peer must make
//!   shares   how many connections one address may have
//!   body     request bodies with that limit
//!   tls      certificates from PEM files, reloaded when they change
//! ```

pub mod body;
pub mod conn;
mod linger;
pub mod pace;
pub mod server;
pub(crate) mod shares;
pub mod tls;

pub use self::body::RequestBody;
pub use self::server::{ConnInfo, DataPlane, HttpServer, Limits, ServerConfig};
