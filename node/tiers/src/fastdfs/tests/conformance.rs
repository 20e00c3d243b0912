//! The port's conformance suite: against the double, and against a real cluster.

use std::sync::Arc;

use async_trait::async_trait;
use holdfast_actors::cold_tier_conformance;
use holdfast_actors::ports::tiers::conformance::Harness;

use super::*;

#[async_trait]
impl Harness for Double {
    async fn tier(&self) -> Arc<dyn ColdTier> {
        Arc::new(FastdfsColdTier::new(self.config()).unwrap())
    }

    async fn contents(&self) -> Option<Vec<String>> {
        assert!(!self.saw_pipelining());
        let storages = 0..self.storage_count();
        Some(storages.flat_map(|storage| self.files(storage)).map(|file| format!("{file:?}")).collect())
    }
}

/// A real cluster, into which one cannot look. Without one, the double again.
enum Real {
    Cluster,
    Double(Double),
}

impl Real {
    async fn new() -> Self {
        match real() {
            Some(_) => Self::Cluster,
            None => Self::Double(Double::start(DoubleConfig::default()).await),
        }
    }
}

#[async_trait]
impl Harness for Real {
    async fn tier(&self) -> Arc<dyn ColdTier> {
        match (self, real()) {
            (Self::Cluster, Some(tier)) => Arc::new(tier),
            (Self::Double(double), _) => double.tier().await,
            _ => panic!("the real cluster is gone"),
        }
    }

    async fn contents(&self) -> Option<Vec<String>> {
        None
    }
}

mod single {
    use super::*;
    cold_tier_conformance!(Double::start(DoubleConfig::default()).await);
}

mod groups_of_two_with_ids_and_long_addresses {
    use super::*;
    cold_tier_conformance!({
        let kind = DoubleConfig { trackers: 2, groups: 2, storages_a_group: 2, long_addresses: true, server_ids: true };
        Double::start(kind).await
    });
}

mod real_cluster {
    use super::*;
    cold_tier_conformance!(Real::new().await);
}
