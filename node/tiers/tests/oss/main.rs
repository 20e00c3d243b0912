//! The OSS adapter against a server that checks signatures: the conformance suite, and what happens when the server
//! fails.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use holdfast_actors::ports::ColdTier;
use holdfast_actors::ports::tiers::conformance::Harness;
use holdfast_tiers::oss::{Addressing, CredentialsSource, OssConfig, OssTier};
use tempfile::TempDir;

use self::server::{ACCESS_KEY, BUCKET, SECRET_KEY, Server};

mod faults;
mod server;

/// A server and the file with the keys to it.
struct Rig {
    server: Server,
    folder: TempDir,
}

impl Rig {
    async fn start() -> Self {
        let rig = Self { server: Server::start().await, folder: tempfile::tempdir().unwrap() };
        rig.write_keys(ACCESS_KEY, SECRET_KEY);
        rig
    }

    fn write_keys(&self, access_key: &str, secret: &str) {
        let file = self.folder.path().join("keys");
        fs::write(&file, format!("access_key_id={access_key}\nsecret_access_key={secret}\n")).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn remove_keys(&self) {
        fs::remove_file(self.folder.path().join("keys")).unwrap();
    }

    fn config(&self) -> OssConfig {
        OssConfig {
            prefix: "clusters/one".into(),
            addressing: Addressing::Path,
            credentials: CredentialsSource::File(self.folder.path().join("keys")),
            part_bytes: 5 << 20,
            parts_in_flight: 2,
            backoff: Duration::from_millis(1),
            ..OssConfig::new(format!("http://{}", self.server.address), "us-east-1", BUCKET)
        }
    }

    fn tier(&self) -> OssTier {
        OssTier::new(self.config()).unwrap()
    }
}

#[async_trait]
impl Harness for Rig {
    async fn tier(&self) -> Arc<dyn ColdTier> {
        Arc::new(Rig::tier(self))
    }

    async fn contents(&self) -> Option<Vec<String>> {
        Some(self.server.contents())
    }
}

holdfast_actors::cold_tier_conformance!(Rig::start().await);
