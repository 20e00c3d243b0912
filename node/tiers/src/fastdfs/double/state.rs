//! What the servers of a cluster know and have.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::time::Duration;

use super::DoubleConfig;
use crate::fastdfs::crc32::Crc32;
use crate::fastdfs::wire::{FileId, FileSize, Source, StorageStatus};

/// What goes wrong at a server.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// Refuses so many requests of a command with a status.
    pub refuse: Vec<(u8, u8, usize)>,
    /// Takes requests of these commands and never answers.
    pub hang: Vec<u8>,
    /// Waits before each answer.
    pub delay: Option<Duration>,
    /// Flips a bit of all that is uploaded.
    pub corrupt_uploads: bool,
    /// Loses the end of all that is uploaded, and says nothing.
    pub truncate_uploads: bool,
    /// Closes the connection after so many bytes of a download.
    pub cut_downloads_at: Option<usize>,
    /// Does what a request of these commands asks for, and closes the connection instead of an answer.
    pub lose_answers: Vec<u8>,
    /// Answers status 22 to a range that ends behind the file, as up to V6.15.3.
    pub old_ranges: bool,
    /// Answers nonsense.
    pub babble: bool,
    /// Holds back the answer to uploads until this is gone.
    pub hold_uploads: bool,
}

impl Faults {
    /// The status to refuse a request with.
    pub(super) fn refusal(&mut self, command: u8) -> Option<u8> {
        let (_, status, left) = self.refuse.iter_mut().find(|(of, _, left)| *of == command && *left > 0)?;
        *left -= 1;
        Some(*status)
    }
}

/// One storage.
#[derive(Debug)]
pub(super) struct Storage {
    pub(super) group: String,
    /// Where it says it is.
    pub(super) ip: Ipv4Addr,
    /// Where it is, on 127.0.0.1.
    pub(super) port: u16,
    pub(super) number: Option<u32>,
    pub(super) status: u8,
    pub(super) files: BTreeMap<String, Vec<u8>>,
    pub(super) faults: Faults,
}

impl Storage {
    pub(super) fn new(config: &DoubleConfig, number: usize, port: u16) -> Self {
        let group = number / config.storages_a_group + 1;
        let count = number + 1;
        Self {
            group: format!("group{group}"),
            ip: Ipv4Addr::new(10, 77, group as u8, count as u8),
            port,
            number: config.server_ids.then_some(100_000 + count as u32),
            status: StorageStatus::ACTIVE.0,
            files: BTreeMap::new(),
            faults: Faults::default(),
        }
    }

    /// What the trackers call it.
    pub(super) fn id(&self) -> String {
        self.source().to_string()
    }

    /// What it writes into ids.
    pub(super) fn source(&self) -> Source {
        self.number.map_or(Source::Ip(self.ip), Source::Server)
    }

    pub(super) fn is_active(&self) -> bool {
        self.status == StorageStatus::ACTIVE.0
    }
}

/// The whole cluster.
#[derive(Debug)]
pub(super) struct State {
    pub(super) storages: Vec<Storage>,
    pub(super) tracker_faults: Vec<Faults>,
    pub(super) ip_bytes: usize,
    pub(super) free_mib: u64,
    pub(super) groups_vanished: bool,
    pub(super) requests: HashMap<u8, u64>,
    /// How often trackers were asked where to store.
    pub(super) turn: usize,
    serial: u64,
    lag: bool,
    /// Changes that are not everywhere: who made them, the path, and what it has since.
    pending: Vec<(usize, String, Option<Vec<u8>>)>,
}

impl State {
    pub(super) fn new(config: &DoubleConfig) -> Self {
        Self {
            storages: Vec::new(),
            tracker_faults: Vec::new(),
            ip_bytes: if config.long_addresses { 45 } else { 15 },
            free_mib: 1 << 20,
            groups_vanished: false,
            requests: HashMap::new(),
            turn: 0,
            serial: 0,
            lag: false,
            pending: Vec::new(),
        }
    }

    pub(super) fn set_lag(&mut self, lag: bool) {
        self.lag = lag;
        if !lag {
            for (storage, path, bytes) in std::mem::take(&mut self.pending) {
                self.copy(storage, &path, bytes.as_deref());
            }
        }
    }

    /// Storages that have changes the others of their group do not have.
    pub(super) fn is_ahead(&self, storage: usize) -> bool {
        self.pending.iter().any(|(of, _, _)| *of == storage)
    }

    /// Changes a file at a storage: here now, at the others of its group now or later.
    pub(super) fn change(&mut self, storage: usize, path: &str, bytes: Option<Vec<u8>>) {
        if self.lag {
            self.pending.push((storage, path.into(), bytes.clone()));
        } else {
            self.copy(storage, path, bytes.as_deref());
        }
        set(&mut self.storages[storage], path, bytes);
    }

    fn copy(&mut self, from: usize, path: &str, bytes: Option<&[u8]>) {
        let group = self.storages[from].group.clone();
        let others = self.storages.iter_mut().enumerate().filter(|(n, other)| *n != from && other.group == group);
        for (_, other) in others {
            set(other, path, bytes.map(<[u8]>::to_vec));
        }
    }

    /// A new path for a file with these bytes.
    pub(super) fn new_path(&mut self, storage: usize, bytes: &[u8]) -> String {
        self.serial += 1;
        let serial = self.serial;
        let size = FileSize(1 << 63 | (serial & 0x7f_ffff) << 32 | bytes.len() as u64);
        let created_s = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs() as u32);
        let facts = FileId::facts(self.storages[storage].source(), created_s, size, Crc32::of(bytes));
        format!("M00/{:02X}/{:02X}/{facts}{:07}", serial & 0x3, serial >> 2 & 0x3, serial % 10_000_000)
    }
}

fn set(storage: &mut Storage, path: &str, bytes: Option<Vec<u8>>) {
    match bytes {
        Some(bytes) => storage.files.insert(path.into(), bytes),
        None => storage.files.remove(path),
    };
}
