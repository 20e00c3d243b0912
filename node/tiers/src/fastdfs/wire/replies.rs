//! The bodies of replies. An address is 15 or 45 bytes long, which depends on the server's version and settings: it
//! follows from the body's length, and where two forms have the same length, from which of them gives addresses.

use std::net::IpAddr;

use super::{Fields, FileId, GROUP_BYTES, GROUPS_MAX, GroupName, PATH_BYTES_MAX, SERVERS_MAX, WireError, WireResult};

/// Lengths of an address, of IPv4 and of IPv6.
const IP_BYTES: [usize; 2] = [15, 45];
const PORT_BYTES: usize = 8;

/// Where a server listens, by its own account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    /// Its address.
    pub ip: IpAddr,
    /// Its port.
    pub port: u16,
}

/// Where to store a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreTarget {
    /// In which group.
    pub group: GroupName,
    /// On which server.
    pub address: Address,
    /// On which of its paths.
    pub path_index: u8,
}

/// Where a file was stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// In which group.
    pub group: GroupName,
    /// Under which path.
    pub path: String,
}

/// What a storage says of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileInfo {
    /// How long the file on its disk is.
    pub size_bytes: u64,
    /// Its time, in seconds since 1970.
    pub created_s: u64,
    /// Its checksum: of plain files that of the upload, of slave files and appenders read from the disk.
    pub crc32: u32,
}

/// What a tracker says of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupStat {
    /// Its name.
    pub name: GroupName,
    /// Space on its smallest server.
    pub total_mib: u64,
    /// Free space on its fullest server.
    pub free_mib: u64,
    /// How much of it the servers keep free; 0 where the tracker does not tell.
    pub reserved_mib: u64,
    /// How many servers it has, dead ones too.
    pub servers: usize,
    /// Where its servers listen, if they all listen at the same port.
    pub port: Option<u16>,
}

impl GroupStat {
    /// What can still be stored.
    pub fn usable_bytes(&self) -> u64 {
        self.free_mib.saturating_sub(self.reserved_mib).saturating_mul(1 << 20)
    }
}

/// What a tracker thinks of a storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StorageStatus(pub u8);

impl StorageStatus {
    /// It was taken out of the group.
    pub const DELETED: Self = Self(4);
    /// It works.
    pub const ACTIVE: Self = Self(7);

    /// As the operators' tools say it.
    pub fn caption(self) -> &'static str {
        match self.0 {
            0 => "INIT",
            1 => "WAIT_SYNC",
            2 => "SYNCING",
            3 => "IP_CHANGED",
            4 => "DELETED",
            5 => "OFFLINE",
            6 => "ONLINE",
            7 => "ACTIVE",
            9 => "RECOVERY",
            _ => "UNKNOWN",
        }
    }
}

/// What a tracker says of a storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StorageStat {
    /// What the tracker thinks of it.
    pub status: StorageStatus,
    /// What the tracker calls it: its address, or its number.
    pub id: String,
    /// Its address, where it is one.
    pub ip: Option<IpAddr>,
    /// Its port, where this form of the reply is known.
    pub port: Option<u16>,
}

fn port(number: u64) -> WireResult<u16> {
    u16::try_from(number).ok().filter(|port| *port != 0).ok_or_else(|| WireError::new(format!("port {number}")))
}

fn ip(fields: &mut Fields<'_>, bytes: usize) -> WireResult<IpAddr> {
    let text = fields.text(bytes, "an address")?;
    text.parse().map_err(|_| WireError::new(format!("{text:?} is no address")))
}

fn address(fields: &mut Fields<'_>, ip_bytes: usize) -> WireResult<Address> {
    Ok(Address { ip: ip(fields, ip_bytes)?, port: port(fields.u64("the port")?)? })
}

fn length(body: &[u8], what: &str) -> WireError {
    WireError::new(format!("{} bytes of {what}", body.len()))
}

/// Reply to [`STORE`](super::command::STORE) and [`STORE_IN_GROUP`](super::command::STORE_IN_GROUP).
///
/// # Errors
/// The body is none.
pub fn store_target(body: &[u8]) -> WireResult<StoreTarget> {
    let ip_bytes = IP_BYTES.into_iter().find(|bytes| body.len() == GROUP_BYTES + bytes + PORT_BYTES + 1);
    let ip_bytes = ip_bytes.ok_or_else(|| length(body, "where to store"))?;
    let mut fields = Fields::new(body);
    Ok(StoreTarget {
        group: fields.group()?,
        address: address(&mut fields, ip_bytes)?,
        path_index: fields.u8("the path")?,
    })
}

/// Reply to [`STORE_ALL`](super::command::STORE_ALL) and [`STORE_IN_GROUP_ALL`](super::command::STORE_IN_GROUP_ALL).
///
/// # Errors
/// The body is none.
pub fn store_targets(body: &[u8]) -> WireResult<Vec<StoreTarget>> {
    let (path_index, servers) = body.split_last().ok_or_else(|| length(body, "where to store"))?;
    let mut fields = Fields::new(servers);
    let group = fields.group()?;
    let addresses = same_form(&fields).ok_or_else(|| length(body, "where to store"))?;
    let target = |address| StoreTarget { group: group.clone(), address, path_index: *path_index };
    Ok(addresses.into_iter().map(target).collect())
}

/// Addresses with a port each, to the end.
fn same_form(fields: &Fields<'_>) -> Option<Vec<Address>> {
    IP_BYTES.into_iter().find_map(|ip_bytes| {
        let mut fields = fields.clone();
        let each = ip_bytes + PORT_BYTES;
        let count = fields.left() / each;
        let fits = fields.left().is_multiple_of(each) && (1..=SERVERS_MAX).contains(&count);
        let mut all = || (0..count).map(|_| address(&mut fields, ip_bytes)).collect::<WireResult<Vec<_>>>();
        if fits { all().ok() } else { None }
    })
}

/// Addresses of which only the first has a port, to the end: trackers up to V6.15.
fn old_form(fields: &Fields<'_>) -> Option<Vec<Address>> {
    IP_BYTES.into_iter().find_map(|ip_bytes| {
        let mut fields = fields.clone();
        let first = address(&mut fields, ip_bytes).ok()?;
        let count = fields.left() / ip_bytes;
        if !fields.left().is_multiple_of(ip_bytes) || count >= SERVERS_MAX {
            return None;
        }
        let mut all = vec![first];
        for _ in 0..count {
            all.push(Address { ip: ip(&mut fields, ip_bytes).ok()?, port: first.port });
        }
        Some(all)
    })
}

/// Reply to [`FETCH`](super::command::FETCH) and [`UPDATE`](super::command::UPDATE).
///
/// # Errors
/// The body is none.
pub fn fetch_target(body: &[u8]) -> WireResult<Address> {
    let ip_bytes = IP_BYTES.into_iter().find(|bytes| body.len() == GROUP_BYTES + bytes + PORT_BYTES);
    let ip_bytes = ip_bytes.ok_or_else(|| length(body, "where to fetch"))?;
    let mut fields = Fields::new(body);
    fields.group()?;
    address(&mut fields, ip_bytes)
}

/// Reply to [`FETCH_ALL`](super::command::FETCH_ALL), of all versions.
///
/// # Errors
/// The body is none.
pub fn fetch_targets(body: &[u8]) -> WireResult<Vec<Address>> {
    let mut fields = Fields::new(body);
    fields.group()?;
    same_form(&fields).or_else(|| old_form(&fields)).ok_or_else(|| length(body, "where to fetch"))
}

/// Reply to an upload.
///
/// # Errors
/// The body is none, or the path is no path of a file.
pub fn stored(body: &[u8]) -> WireResult<Stored> {
    let mut fields = Fields::new(body);
    let group = fields.group()?;
    let bytes = fields.left();
    if !(1..=PATH_BYTES_MAX).contains(&bytes) {
        return Err(length(body, "a stored file"));
    }
    let path = fields.text(bytes, "the path")?;
    Ok(Stored { path: FileId::new(group.clone(), path)?.path, group })
}

/// Reply to [`FILE_INFO`](super::command::FILE_INFO).
///
/// # Errors
/// The body is none.
pub fn file_info(body: &[u8]) -> WireResult<FileInfo> {
    if !IP_BYTES.iter().any(|bytes| body.len() == 24 + bytes + 1) {
        return Err(length(body, "facts of a file"));
    }
    let mut fields = Fields::new(body);
    let size_bytes = fields.u64("the size")?;
    if i64::try_from(size_bytes).is_err() {
        return Err(WireError::new(format!("a size of {size_bytes:#x} bytes")));
    }
    let created_s = fields.u64("the time")?;
    // It comes with its sign: the upper half is all zeros or all ones.
    let crc32 = (fields.u64("the checksum")? & 0xffff_ffff) as u32;
    Ok(FileInfo { size_bytes, created_s, crc32 })
}

/// Reply to [`LIST_GROUPS`](super::command::LIST_GROUPS) and [`LIST_ONE_GROUP`](super::command::LIST_ONE_GROUP).
///
/// # Errors
/// The body is none.
pub fn groups(body: &[u8]) -> WireResult<Vec<GroupStat>> {
    // Since V6.13.1 with the reserve, before without.
    let form = [(113, true), (105, false)].into_iter().find(|(each, _)| body.len().is_multiple_of(*each));
    let (each, with_reserve) = form.ok_or_else(|| length(body, "groups"))?;
    if body.len() / each > GROUPS_MAX {
        return Err(length(body, "groups"));
    }
    let group = |record: &[u8]| {
        let mut fields = Fields::new(record);
        let name = GroupName::new(fields.text(GROUP_BYTES + 1, "the group")?)?;
        let total_mib = fields.u64("the space")?;
        let free_mib = fields.u64("the free space")?;
        let reserved_mib = if with_reserve { fields.u64("the reserve")? } else { 0 };
        fields.u64("the trunk space")?;
        let servers = usize::try_from(fields.u64("the servers")?).ok().filter(|count| *count <= SERVERS_MAX);
        let servers = servers.ok_or_else(|| WireError::new("more servers than a group can have"))?;
        // -1 where they differ.
        let port = port(fields.u64("the port")?).ok();
        Ok(GroupStat { name, total_mib, free_mib, reserved_mib, servers, port })
    };
    body.chunks_exact(each).map(group).collect()
}

/// Reply to [`LIST_STORAGES`](super::command::LIST_STORAGES) for one storage: of its record, whose length differs
/// between versions, only the beginning is read.
///
/// # Errors
/// The body is none.
pub fn storage(body: &[u8]) -> WireResult<StorageStat> {
    let mut fields = Fields::new(body);
    let status = StorageStatus(fields.u8("the status")?);
    // Since V6.13 there is the mode, 0 to 6; before, the id begins here.
    if body.get(1).is_some_and(|byte| *byte < b' ') {
        fields.u8("the mode")?;
    }
    let id = fields.text(16, "the id")?.to_owned();
    // One byte more than the address is long; 16 of them are enough for those of IPv4, and the rest is zeros.
    let with_ipv6 = fields.clone().text(46, "the address").ok().and_then(|text| text.parse().ok());
    let ip = with_ipv6.or_else(|| fields.text(16, "the address").ok().and_then(|text| text.parse().ok()));
    let port_at = match body.len() {
        487 => Some(130),
        517 => Some(160),
        _ => None,
    };
    let port = port_at.and_then(|at| {
        let mut fields = Fields::new(body.get(at..)?);
        port(fields.u64("the port").ok()?).ok()
    });
    Ok(StorageStat { status, id, ip, port })
}

/// Reply to [`LIST_STORAGES`](super::command::LIST_STORAGES) for all storages, of which there are `count`.
///
/// # Errors
/// The body is none, or has another number of storages.
pub fn storages(body: &[u8], count: usize) -> WireResult<Vec<StorageStat>> {
    if body.is_empty() && count == 0 {
        return Ok(Vec::new());
    }
    if body.is_empty() || count == 0 || count > SERVERS_MAX || !body.len().is_multiple_of(count) {
        return Err(length(body, "storages"));
    }
    body.chunks_exact(body.len() / count).map(storage).collect()
}
