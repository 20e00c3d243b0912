//! A storage.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::AsyncWriteExt;

use super::server::Link;
use super::state::{Faults, State};
use crate::fastdfs::crc32::Crc32;
use crate::fastdfs::wire::{
    EXTENSION_BYTES, Fields, FileId, GroupName, Header, INFO_WITHOUT_CRC, PATH_BYTES_MAX, PREFIX_BYTES, WireError,
    WireResult, command, status,
};

/// What a request comes to.
enum Done {
    Reply(u8, Vec<u8>),
    /// The connection ends.
    Close,
}

pub(super) async fn serve(state: Arc<Mutex<State>>, number: usize, mut link: Link) {
    while let Some(header) = link.header().await {
        let faults = {
            let mut state = state.lock();
            *state.requests.entry(header.command).or_default() += 1;
            state.storages[number].faults.clone()
        };
        if link.suffer(&faults, header.command).await.is_none() {
            return;
        }
        let done = match header.command {
            command::UPLOAD | command::UPLOAD_SLAVE => upload(&state, number, header, &mut link, &faults).await,
            _ => small(&state, number, header, &mut link).await,
        };
        let Some(done) = done else { return };
        let Done::Reply(status, body) = done else { return };
        if status == status::OK && faults.lose_answers.contains(&header.command) {
            return;
        }
        if header.command == command::DOWNLOAD
            && let Some(at) = faults.cut_downloads_at.filter(|at| *at < body.len())
        {
            let header = Header { body_bytes: body.len() as u64, command: command::REPLY, status };
            link.stream.write_all(&header.encode()).await.ok();
            link.stream.write_all(&body[..at]).await.ok();
            return;
        }
        if link.reply(status, &body).await.is_none() || status == status::INVALID {
            return;
        }
    }
}

/// An upload: its head, a look whether it is allowed, and only then its bytes.
async fn upload(state: &Mutex<State>, number: usize, header: Header, link: &mut Link, faults: &Faults) -> Option<Done> {
    let head_bytes = if header.command == command::UPLOAD { 1 + 8 + EXTENSION_BYTES } else { 16 + PREFIX_BYTES + 6 };
    let head = link.take(head_bytes as u64).await?;
    let slave = if header.command == command::UPLOAD_SLAVE {
        let mut fields = Fields::new(&head);
        let master_bytes = fields.u64("the master's length").ok().filter(|bytes| *bytes <= PATH_BYTES_MAX as u64)?;
        let size_bytes = fields.u64("the size").ok()?;
        let prefix = fields.text(PREFIX_BYTES, "the prefix").ok()?.to_owned();
        let master = String::from_utf8(link.take(master_bytes).await?).ok()?;
        (header.body_bytes == head_bytes as u64 + master_bytes + size_bytes).then_some(())?;
        Some((master, prefix, size_bytes))
    } else {
        None
    };
    let size_bytes = match &slave {
        Some((_, _, size_bytes)) => *size_bytes,
        None => header.body_bytes.checked_sub(head_bytes as u64)?,
    };
    let refusal = {
        let mut state = state.lock();
        let storage = &mut state.storages[number];
        let refusal = storage.faults.refusal(header.command);
        let slave = slave.as_ref().and_then(|(master, prefix, _)| {
            if !storage.files.contains_key(master) {
                return Some(status::MISSING);
            }
            storage.files.contains_key(&format!("{master}{prefix}")).then_some(status::EXISTS)
        });
        refusal.or(slave)
    };
    if let Some(status) = refusal {
        // What else comes makes no sense to it.
        link.reply(status, &[]).await?;
        return Some(Done::Close);
    }
    let mut bytes = link.take(size_bytes).await?;
    link.trap_pipelining().await;
    while state.lock().storages[number].faults.hold_uploads {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    if let (true, Some(byte)) = (faults.corrupt_uploads, bytes.last_mut()) {
        *byte ^= 1;
    }
    if faults.truncate_uploads {
        bytes.pop();
    }
    let mut state = state.lock();
    let path = match slave {
        Some((master, prefix, _)) => format!("{master}{prefix}"),
        None => state.new_path(number, &bytes),
    };
    state.change(number, &path, Some(bytes));
    let mut body = group_of(&state, number).field().to_vec();
    body.extend(path.as_bytes());
    Some(Done::Reply(status::OK, body))
}

/// Every other request.
async fn small(state: &Mutex<State>, number: usize, header: Header, link: &mut Link) -> Option<Done> {
    let body = link.take(header.body_bytes.min(1024)).await?;
    link.trap_pipelining().await;
    let mut state = state.lock();
    if let Some(status) = state.storages[number].faults.refusal(header.command) {
        return Some(Done::Reply(status, Vec::new()));
    }
    let done = match header.command {
        command::QUIT => return Some(Done::Close),
        command::ACTIVE_TEST => Ok((status::OK, Vec::new())),
        command::DELETE => delete(&mut state, number, &body),
        command::DOWNLOAD => download(&state, number, &body),
        command::FILE_INFO => info(&state, number, header.status, &body),
        _ => Ok((status::INVALID, Vec::new())),
    };
    let (status, body) = done.unwrap_or((status::INVALID, Vec::new()));
    Some(Done::Reply(status, body))
}

fn group_of(state: &State, number: usize) -> GroupName {
    GroupName::new(&state.storages[number].group).expect("its name is one")
}

/// The path that a request is about, at the end of its body.
fn file(state: &State, number: usize, mut fields: Fields<'_>) -> WireResult<FileId> {
    let group = fields.group()?;
    if group != group_of(state, number) {
        return Err(WireError::new("another group"));
    }
    FileId::new(group, fields.text(fields.left(), "the path")?)
}

fn delete(state: &mut State, number: usize, body: &[u8]) -> WireResult<(u8, Vec<u8>)> {
    let id = file(state, number, Fields::new(body))?;
    if !state.storages[number].files.contains_key(&id.path) {
        return Ok((status::MISSING, Vec::new()));
    }
    state.change(number, &id.path, None);
    Ok((status::OK, Vec::new()))
}

fn download(state: &State, number: usize, body: &[u8]) -> WireResult<(u8, Vec<u8>)> {
    let mut fields = Fields::new(body);
    let offset = fields.u64("the offset")?;
    let count = fields.u64("the length")?;
    let id = file(state, number, fields)?;
    let storage = &state.storages[number];
    let Some(bytes) = storage.files.get(&id.path) else { return Ok((status::MISSING, Vec::new())) };
    let size = bytes.len() as u64;
    let end = if count == 0 { size } else { offset.saturating_add(count) };
    if offset >= size || (end > size && storage.faults.old_ranges) {
        return Ok((status::INVALID, Vec::new()));
    }
    Ok((status::OK, bytes[offset as usize..end.min(size) as usize].to_vec()))
}

fn info(state: &State, number: usize, flags: u8, body: &[u8]) -> WireResult<(u8, Vec<u8>)> {
    let id = file(state, number, Fields::new(body))?;
    let storage = &state.storages[number];
    let Some(bytes) = storage.files.get(&id.path) else { return Ok((status::MISSING, Vec::new())) };
    // Of a plain file it repeats what its id tells, of a slave it reads the file.
    let is_slave = id.suffix().len() > 7;
    let crc32 = match (is_slave, flags & INFO_WITHOUT_CRC) {
        (false, _) => id.crc32,
        (true, 0) => Crc32::of(bytes),
        (true, _) => 0,
    };
    let mut reply = (bytes.len() as u64).to_be_bytes().to_vec();
    reply.extend(u64::from(id.created_s).to_be_bytes());
    // With its sign.
    reply.extend(i64::from(crc32 as i32).to_be_bytes());
    let mut ip = storage.ip.to_string().into_bytes();
    ip.resize(state.ip_bytes + 1, 0);
    reply.extend(ip);
    Ok((status::OK, reply))
}
