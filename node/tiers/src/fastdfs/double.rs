//! A FastDFS cluster in this process, for tests: trackers and storages on 127.0.0.1 that speak the protocol, with the
//! traps of the real one and with faults on demand.
//!
//! What it does as a real cluster was seen to do (V6.16.1):
//! * storages close the connection after status 22, and refuse a request as soon as they have its head;
//! * a second request before the answer to the first is never answered, nor is the first;
//! * ranges are clipped at the end of a file, and an offset at or behind it is status 22;
//! * what lies on the disk is served as it is, with status 0, however damaged;
//! * replicas lag, as long as [`Double::set_lag`] says so, and the trackers name only the source of a slave file;
//! * trackers notice a dead storage late: when [`Double::set_status`] says so;
//! * storages tell addresses that nobody can reach (10.77.0.0/16): the [`FastdfsConfig`] maps them.

mod server;
mod state;
mod storage;
mod tracker;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::TcpListener;

use super::FastdfsConfig;
use server::Server;
pub use state::Faults;
use state::{State, Storage};

/// What cluster to be.
#[derive(Debug, Clone)]
pub struct DoubleConfig {
    /// How many trackers.
    pub trackers: usize,
    /// How many groups: `group1`, `group2`, …
    pub groups: usize,
    /// How many storages each group has. They are counted through all groups, from 0.
    pub storages_a_group: usize,
    /// Whether addresses take 45 bytes instead of 15.
    pub long_addresses: bool,
    /// Whether storages have numbers, which file ids then tell instead of addresses.
    pub server_ids: bool,
}

impl Default for DoubleConfig {
    fn default() -> Self {
        Self { trackers: 1, groups: 1, storages_a_group: 1, long_addresses: false, server_ids: false }
    }
}

/// A running cluster. It ends when this is dropped.
#[derive(Debug)]
pub struct Double {
    state: Arc<Mutex<State>>,
    trackers: Vec<Server>,
    storages: Vec<Server>,
}

impl Double {
    /// Starts a cluster.
    ///
    /// # Panics
    /// When a port cannot be had.
    pub async fn start(config: DoubleConfig) -> Self {
        let state = Arc::new(Mutex::new(State::new(&config)));
        let bind = || async { TcpListener::bind("127.0.0.1:0").await.expect("a free port") };
        let mut storages = Vec::new();
        for number in 0..config.groups * config.storages_a_group {
            let listener = bind().await;
            let port = listener.local_addr().expect("an address").port();
            state.lock().storages.push(Storage::new(&config, number, port));
            let shared = state.clone();
            storages.push(Server::start(listener, move |link| storage::serve(shared.clone(), number, link)));
        }
        let mut trackers = Vec::new();
        for number in 0..config.trackers {
            let listener = bind().await;
            state.lock().tracker_faults.push(Faults::default());
            let shared = state.clone();
            trackers.push(Server::start(listener, move |link| tracker::serve(shared.clone(), number, link)));
        }
        Self { state, trackers, storages }
    }

    /// How to reach it, with timeouts for tests.
    pub fn config(&self) -> FastdfsConfig {
        let state = self.state.lock();
        FastdfsConfig {
            trackers: self.trackers.iter().map(|server| server.address().to_string()).collect(),
            address_map: state
                .storages
                .iter()
                .map(|storage| (storage.ip.to_string(), format!("127.0.0.1:{}", storage.port)))
                .collect(),
            connect_timeout: Duration::from_secs(20),
            idle_timeout: Duration::from_secs(20),
            ..FastdfsConfig::default()
        }
    }

    /// Changes the faults of a storage.
    pub fn storage_faults(&self, storage: usize, change: impl FnOnce(&mut Faults)) {
        change(&mut self.state.lock().storages[storage].faults);
    }

    /// Changes the faults of a tracker.
    pub fn tracker_faults(&self, tracker: usize, change: impl FnOnce(&mut Faults)) {
        change(&mut self.state.lock().tracker_faults[tracker]);
    }

    /// A storage dies: nothing listens any more, and its connections end.
    pub async fn stop_storage(&self, storage: usize) {
        self.storages[storage].stop().await;
    }

    /// A storage comes back where it was.
    pub async fn start_storage(&self, storage: usize) {
        self.storages[storage].restart().await;
    }

    /// A tracker dies.
    pub async fn stop_tracker(&self, tracker: usize) {
        self.trackers[tracker].stop().await;
    }

    /// A tracker comes back where it was.
    pub async fn start_tracker(&self, tracker: usize) {
        self.trackers[tracker].restart().await;
    }

    /// All servers close the connections on which nothing is under way.
    pub fn close_idle_connections(&self) {
        self.trackers.iter().chain(&self.storages).for_each(Server::close_idle_connections);
    }

    /// What the trackers think of a storage: 7 is active, 5 is offline, 4 deleted.
    pub fn set_status(&self, storage: usize, status: u8) {
        self.state.lock().storages[storage].status = status;
    }

    /// Whether changes stay at the storage that made them; the end of it carries them over.
    pub fn set_lag(&self, lag: bool) {
        self.state.lock().set_lag(lag);
    }

    /// Whether the trackers have never heard of the groups.
    pub fn set_groups_vanished(&self, vanished: bool) {
        self.state.lock().groups_vanished = vanished;
    }

    /// Space that a group's storages still have, in MiB.
    pub fn set_free_mib(&self, free_mib: u64) {
        self.state.lock().free_mib = free_mib;
    }

    /// How many storages there are.
    pub fn storage_count(&self) -> usize {
        self.storages.len()
    }

    /// What a storage has: paths and lengths.
    pub fn files(&self, storage: usize) -> Vec<(String, u64)> {
        let state = self.state.lock();
        state.storages[storage].files.iter().map(|(path, bytes)| (path.clone(), bytes.len() as u64)).collect()
    }

    /// Changes the bytes of every file of a storage that has some, as a failing disk does.
    pub fn damage(&self, storage: usize, mut change: impl FnMut(&mut Vec<u8>)) {
        let mut state = self.state.lock();
        state.storages[storage].files.values_mut().filter(|bytes| !bytes.is_empty()).for_each(&mut change);
    }

    /// A storage loses its disk: it has nothing any more, and the others keep what they have.
    pub fn wipe(&self, storage: usize) {
        self.state.lock().storages[storage].files.clear();
    }

    /// How many connections a storage has taken.
    pub fn storage_connections(&self, storage: usize) -> u64 {
        self.storages[storage].connections()
    }

    /// How many requests with this command the storages have had.
    pub fn storage_requests(&self, command: u8) -> u64 {
        self.state.lock().requests.get(&command).copied().unwrap_or(0)
    }

    /// Whether some client sent a request before it had the answer to the one before.
    pub fn saw_pipelining(&self) -> bool {
        self.storages.iter().any(|server| server.pipelined().load(Ordering::Relaxed))
    }
}
