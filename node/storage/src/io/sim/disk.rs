//! The state of a simulated disk: what is in its cache, what is on its platter, and what a crash makes of the
//! difference.
//!
//! Synchronous and deterministic: the same calls with the same seed give the same disk.

use ::std::collections::{BTreeMap, BTreeSet, HashMap};
use ::std::io;
use ::std::path::{Path, PathBuf};
use ::std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{Fault, OpKind};

/// What a disk allocates at a time, and the larger of the two sizes at which writes tear.
pub(super) const PAGE_BYTES: usize = 4096;

/// The smaller size at which writes tear.
const SECTOR_BYTES: usize = 512;

pub(super) type FileId = u64;

fn errno(error: rustix::io::Errno) -> io::Error {
    error.into()
}

/// Contents of a file: pages that are not there are zeros.
#[derive(Clone, Default)]
struct Image {
    pages: HashMap<u64, Arc<[u8; PAGE_BYTES]>>,
    len: u64,
}

impl Image {
    fn write(&mut self, offset: u64, data: &[u8]) {
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            let (page, within) = (at / PAGE_BYTES as u64, (at % PAGE_BYTES as u64) as usize);
            let part = (PAGE_BYTES - within).min(data.len() - done);
            let bytes = Arc::make_mut(self.pages.entry(page).or_insert_with(|| Arc::new([0; PAGE_BYTES])));
            bytes[within..within + part].copy_from_slice(&data[done..done + part]);
            done += part;
        }
        self.len = self.len.max(offset + data.len() as u64);
    }

    fn zero(&mut self, offset: u64, len: u64) {
        let end = offset.saturating_add(len).min(self.len);
        let mut at = offset;
        while at < end {
            let (page, within) = (at / PAGE_BYTES as u64, (at % PAGE_BYTES as u64) as usize);
            let part = (PAGE_BYTES - within).min((end - at) as usize);
            if part == PAGE_BYTES {
                self.pages.remove(&page);
            } else if let Some(bytes) = self.pages.get_mut(&page) {
                Arc::make_mut(bytes)[within..within + part].fill(0);
            }
            at += part as u64;
        }
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> usize {
        let len = out.len().min(self.len.saturating_sub(offset) as usize);
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let (page, within) = (at / PAGE_BYTES as u64, (at % PAGE_BYTES as u64) as usize);
            let part = (PAGE_BYTES - within).min(len - done);
            match self.pages.get(&page) {
                Some(bytes) => out[done..done + part].copy_from_slice(&bytes[within..within + part]),
                None => out[done..done + part].fill(0),
            }
            done += part;
        }
        len
    }
}

/// A change to a file that no sync has covered yet.
#[derive(Clone)]
enum Change {
    Write { offset: u64, data: Arc<[u8]> },
    Extend { len: u64 },
    Punch { offset: u64, len: u64 },
}

impl Change {
    fn apply(&self, image: &mut Image) {
        match self {
            Change::Write { offset, data } => image.write(*offset, data),
            Change::Extend { len } => image.len = image.len.max(*len),
            Change::Punch { offset, len } => image.zero(*offset, *len),
        }
    }
}

struct Pending {
    ticket: u64,
    change: Change,
    /// False while the operation is in flight: it may reach the platter, but no sync covers it.
    done: bool,
}

#[derive(Default)]
struct FileState {
    cached: Image,
    durable: Image,
    pending: Vec<Pending>,
    /// Pages that count against the capacity.
    allocated: BTreeSet<u64>,
}

enum DirChange {
    Create { path: PathBuf, id: FileId },
    Rename { from: PathBuf, to: PathBuf },
    Unlink { path: PathBuf },
}

impl DirChange {
    fn dir(&self) -> Option<&Path> {
        match self {
            DirChange::Create { path, .. } | DirChange::Unlink { path } => path.parent(),
            DirChange::Rename { to, .. } => to.parent(),
        }
    }

    fn apply(&self, names: &mut BTreeMap<PathBuf, FileId>) {
        match self {
            DirChange::Create { path, id } => {
                names.insert(path.clone(), *id);
            }
            DirChange::Rename { from, to } => {
                if let Some(id) = names.remove(from) {
                    names.insert(to.clone(), id);
                }
            }
            DirChange::Unlink { path } => {
                names.remove(path);
            }
        }
    }
}

/// The second half of an operation.
pub(super) type Held = Box<dyn FnOnce(&mut Disk) + Send>;

pub(super) struct Disk {
    pub(super) rng: StdRng,
    /// Operations begun so far.
    pub(super) ops: u64,
    /// Rises with each crash; handles of an older generation are dead.
    pub(super) generation: u64,
    pub(super) down: bool,
    pub(super) sync_turns: u32,
    pub(super) lose_flushes: bool,
    pub(super) capacity_bytes: u64,
    pub(super) faults: Vec<(u64, Fault)>,
    pub(super) locks: BTreeSet<PathBuf>,
    /// Operations that begin do not end.
    pub(super) holding: bool,
    /// What is left to do of those that are held.
    pub(super) held: Vec<Held>,
    /// Pages that cannot be read.
    pub(super) unreadable: BTreeSet<(FileId, u64)>,
    dirs: BTreeSet<PathBuf>,
    names: BTreeMap<PathBuf, FileId>,
    durable_names: BTreeMap<PathBuf, FileId>,
    dir_changes: Vec<DirChange>,
    files: BTreeMap<FileId, FileState>,
    next_id: u64,
}

impl Disk {
    pub(super) fn new(seed: u64) -> Disk {
        Disk {
            rng: StdRng::seed_from_u64(seed),
            ops: 0,
            generation: 0,
            down: false,
            sync_turns: 0,
            lose_flushes: false,
            capacity_bytes: u64::MAX,
            faults: vec![],
            locks: BTreeSet::new(),
            holding: false,
            held: vec![],
            unreadable: BTreeSet::new(),
            dirs: BTreeSet::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            dir_changes: vec![],
            files: BTreeMap::new(),
            next_id: 0,
        }
    }

    /// Counts an operation and says which planned fault strikes it. A planned crash happens here.
    pub(super) fn begin(&mut self, kind: OpKind, generation: Option<u64>) -> io::Result<Option<Fault>> {
        if self.down || generation.is_some_and(|generation| generation != self.generation) {
            return Err(errno(rustix::io::Errno::IO));
        }
        self.ops += 1;
        let strikes = |(at_op, fault): &(u64, Fault)| *at_op <= self.ops && fault.strikes(kind);
        let Some(index) = self.faults.iter().position(strikes) else {
            return Ok(None);
        };
        match self.faults.remove(index).1 {
            Fault::Crash => {
                self.crash();
                Err(errno(rustix::io::Errno::IO))
            }
            Fault::Eio => Err(errno(rustix::io::Errno::IO)),
            Fault::NoDescriptors => Err(errno(rustix::io::Errno::MFILE)),
            fault => Ok(Some(fault)),
        }
    }

    /// Power loss: what no sync has covered is kept, lost or torn.
    pub(super) fn crash(&mut self) {
        self.generation += 1;
        self.down = true;
        self.locks.clear();
        for change in ::std::mem::take(&mut self.dir_changes) {
            if self.rng.random_bool(0.5) {
                change.apply(&mut self.durable_names);
            }
        }
        self.names = self.durable_names.clone();
        let kept: BTreeSet<FileId> = self.names.values().copied().collect();
        self.files.retain(|id, _| kept.contains(id));
        for file in self.files.values_mut() {
            for pending in ::std::mem::take(&mut file.pending) {
                settle(&pending.change, &mut file.durable, &mut self.rng);
            }
            file.cached = file.durable.clone();
            file.allocated.retain(|page| page * (PAGE_BYTES as u64) < file.durable.len);
            file.allocated.extend(file.durable.pages.keys());
        }
    }

    fn file(&mut self, id: FileId) -> io::Result<&mut FileState> {
        self.files.get_mut(&id).ok_or_else(|| errno(rustix::io::Errno::IO))
    }

    /// A write enters the disk's cache; from here on a crash may find it on the platter.
    pub(super) fn start_write(
        &mut self,
        id: FileId,
        offset: u64,
        data: &[u8],
        fault: Option<Fault>,
    ) -> io::Result<u64> {
        let mut offset = offset;
        let len = self.file(id)?.cached.len;
        if fault == Some(Fault::MisdirectedWrite) {
            let blocks = (len.max(offset + data.len() as u64) / SECTOR_BYTES as u64).max(2);
            let wrong = self.rng.random_range(0..blocks) * SECTOR_BYTES as u64;
            offset = if wrong == offset { wrong + SECTOR_BYTES as u64 } else { wrong };
        }
        self.reserve(id, offset, data.len() as u64)?;
        let ticket = self.ticket();
        if fault != Some(Fault::LostWrite) {
            let change = Change::Write { offset, data: data.into() };
            self.file(id)?.pending.push(Pending { ticket, change, done: false });
        }
        Ok(ticket)
    }

    /// The write becomes visible to reads, and to syncs that start later.
    pub(super) fn finish_write(&mut self, id: FileId, ticket: u64) -> io::Result<()> {
        let Some(file) = self.files.get_mut(&id) else {
            return Err(errno(rustix::io::Errno::IO));
        };
        if let Some(pending) = file.pending.iter_mut().find(|pending| pending.ticket == ticket) {
            pending.done = true;
            pending.change.apply(&mut file.cached);
            if let Change::Write { offset, data } = &pending.change {
                let (first, end) =
                    (offset / PAGE_BYTES as u64, (offset + data.len() as u64).div_ceil(PAGE_BYTES as u64));
                self.unreadable.retain(|(file, page)| *file != id || !(first..end).contains(page));
            }
        }
        Ok(())
    }

    /// What a sync that starts now covers.
    pub(super) fn start_sync(&mut self, id: FileId) -> io::Result<Vec<u64>> {
        Ok(self.file(id)?.pending.iter().filter(|pending| pending.done).map(|pending| pending.ticket).collect())
    }

    pub(super) fn finish_sync(&mut self, id: FileId, covered: &[u64], fault: Option<Fault>) -> io::Result<()> {
        if self.lose_flushes {
            return Ok(());
        }
        let failed = fault == Some(Fault::FailedSync);
        let Some(file) = self.files.get_mut(&id) else {
            return Err(errno(rustix::io::Errno::IO));
        };
        for pending in file.pending.extract_if(.., |pending| covered.contains(&pending.ticket)) {
            if failed {
                // As a kernel does: the pages are now clean, no later sync writes them, and what is on the platter is
                // chance.
                settle(&pending.change, &mut file.durable, &mut self.rng);
            } else {
                pending.change.apply(&mut file.durable);
            }
        }
        if failed { Err(errno(rustix::io::Errno::IO)) } else { Ok(()) }
    }

    pub(super) fn read(&mut self, id: FileId, offset: u64, out: &mut [u8]) -> io::Result<usize> {
        let (first, end) = (offset / PAGE_BYTES as u64, (offset + out.len() as u64).div_ceil(PAGE_BYTES as u64));
        if self.unreadable.range((id, first)..(id, end)).next().is_some() {
            return Err(errno(rustix::io::Errno::IO));
        }
        Ok(self.file(id)?.cached.read(offset, out))
    }

    pub(super) fn len(&mut self, id: FileId) -> io::Result<u64> {
        Ok(self.file(id)?.cached.len)
    }

    pub(super) fn allocate(&mut self, id: FileId, len: u64) -> io::Result<()> {
        let reserved = self.reserve(id, 0, len);
        let file = self.file(id)?;
        // ENOSPC leaves what could be allocated.
        let reached = match reserved {
            Ok(()) => len,
            Err(_) => file.allocated.last().map_or(0, |page| (page + 1) * PAGE_BYTES as u64).min(len),
        };
        self.change(id, Change::Extend { len: reached })?;
        reserved
    }

    pub(super) fn punch_hole(&mut self, id: FileId, offset: u64, len: u64) -> io::Result<()> {
        let first = offset.div_ceil(PAGE_BYTES as u64);
        let end = (offset + len) / PAGE_BYTES as u64;
        self.file(id)?.allocated.retain(|page| !(first..end).contains(page));
        self.unreadable.retain(|(file, page)| *file != id || !(first..end).contains(page));
        self.change(id, Change::Punch { offset, len })
    }

    fn change(&mut self, id: FileId, change: Change) -> io::Result<()> {
        let ticket = self.ticket();
        let file = self.file(id)?;
        change.apply(&mut file.cached);
        file.pending.push(Pending { ticket, change, done: true });
        Ok(())
    }

    fn ticket(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    pub(super) fn allocated_bytes(&self) -> u64 {
        self.files.values().map(|file| (file.allocated.len() * PAGE_BYTES) as u64).sum()
    }

    fn reserve(&mut self, id: FileId, offset: u64, len: u64) -> io::Result<()> {
        let limited = self.capacity_bytes != u64::MAX;
        let mut free = if limited { self.capacity_bytes.saturating_sub(self.allocated_bytes()) } else { u64::MAX };
        let file = self.file(id)?;
        for page in offset / PAGE_BYTES as u64..(offset + len).div_ceil(PAGE_BYTES as u64) {
            if file.allocated.contains(&page) {
                continue;
            }
            if free < PAGE_BYTES as u64 {
                return Err(errno(rustix::io::Errno::NOSPC));
            }
            free -= PAGE_BYTES as u64;
            file.allocated.insert(page);
        }
        Ok(())
    }

    pub(super) fn create_dir(&mut self, path: &Path) {
        self.dirs.extend(path.ancestors().map(Path::to_path_buf));
    }

    pub(super) fn is_dir(&self, path: &Path) -> bool {
        self.dirs.contains(path)
    }

    pub(super) fn open(&self, path: &Path) -> io::Result<FileId> {
        self.names.get(path).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    pub(super) fn create(&mut self, path: &Path) -> io::Result<FileId> {
        if self.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        if !path.parent().is_some_and(|dir| self.dirs.contains(dir)) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let id = self.ticket();
        self.files.insert(id, FileState::default());
        self.change_dir(DirChange::Create { path: path.to_path_buf(), id });
        Ok(id)
    }

    pub(super) fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        if !self.dirs.contains(dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(self.names.keys().filter(|path| path.parent() == Some(dir)).cloned().collect())
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        self.open(from)?;
        self.change_dir(DirChange::Rename { from: from.to_path_buf(), to: to.to_path_buf() });
        Ok(())
    }

    pub(super) fn unlink(&mut self, path: &Path) -> io::Result<()> {
        let id = self.open(path)?;
        // The space is free at once, the file is gone for good only with the directory's sync.
        self.file(id)?.allocated.clear();
        self.change_dir(DirChange::Unlink { path: path.to_path_buf() });
        Ok(())
    }

    fn change_dir(&mut self, change: DirChange) {
        change.apply(&mut self.names);
        self.dir_changes.push(change);
    }

    pub(super) fn sync_dir(&mut self, dir: &Path, fault: Option<Fault>) -> io::Result<()> {
        if !self.dirs.contains(dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        if self.lose_flushes {
            return Ok(());
        }
        let failed = fault == Some(Fault::FailedSync);
        for change in self.dir_changes.extract_if(.., |change| change.dir() == Some(dir)) {
            if !failed || self.rng.random_bool(0.5) {
                change.apply(&mut self.durable_names);
            }
        }
        if failed { Err(errno(rustix::io::Errno::IO)) } else { Ok(()) }
    }

    /// Flips one bit, in the cache and on the platter.
    pub(super) fn rot(&mut self, path: &Path, offset: u64, bit: u8) -> io::Result<()> {
        let id = self.open(path)?;
        let file = self.file(id)?;
        for image in [&mut file.cached, &mut file.durable] {
            let mut byte = [0];
            if image.read(offset, &mut byte) == 1 {
                image.write(offset, &[byte[0] ^ (1 << (bit % 8))]);
            }
        }
        Ok(())
    }

    pub(super) fn set_unreadable(&mut self, path: &Path, range: ::std::ops::Range<u64>) -> io::Result<()> {
        let id = self.open(path)?;
        let pages = range.start / PAGE_BYTES as u64..range.end.div_ceil(PAGE_BYTES as u64);
        self.unreadable.extend(pages.map(|page| (id, page)));
        Ok(())
    }

    pub(super) fn files(&self) -> Vec<(PathBuf, u64)> {
        self.names
            .iter()
            .map(|(path, id)| (path.clone(), self.files.get(id).map_or(0, |file| file.cached.len)))
            .collect()
    }
}

/// Decides what of an uncovered change the platter has: all, nothing, or any part of it.
fn settle(change: &Change, durable: &mut Image, rng: &mut StdRng) {
    match (rng.random_range(0..3), change) {
        (0, _) => {}
        (1, Change::Write { offset, data }) => {
            let grain = if rng.random_bool(0.5) { SECTOR_BYTES } else { PAGE_BYTES };
            for (index, part) in data.chunks(grain).enumerate() {
                if rng.random_bool(0.5) {
                    durable.write(offset + (index * grain) as u64, part);
                }
            }
        }
        _ => change.apply(durable),
    }
}
