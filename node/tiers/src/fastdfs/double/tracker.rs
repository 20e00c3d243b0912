//! A tracker.

use std::sync::Arc;

use parking_lot::Mutex;

use super::server::Link;
use super::state::{State, Storage};
use crate::fastdfs::wire::{Fields, FileId, GroupName, PATH_BYTES_MAX, command, status};

/// A refusal.
struct Refused(u8);

type Reply = Result<Vec<u8>, Refused>;

const MISSING: Refused = Refused(status::MISSING);
const INVALID: Refused = Refused(status::INVALID);

pub(super) async fn serve(state: Arc<Mutex<State>>, number: usize, mut link: Link) {
    while let Some(header) = link.header().await {
        let Some(body) = link.take(header.body_bytes.min(1024)).await else { return };
        let faults = state.lock().tracker_faults[number].clone();
        if link.suffer(&faults, header.command).await.is_none() {
            return;
        }
        if header.command == command::QUIT {
            return;
        }
        let reply = {
            let mut state = state.lock();
            match state.tracker_faults[number].refusal(header.command) {
                Some(status) => Err(Refused(status)),
                None => answer(&mut state, header.command, &body),
            }
        };
        let sent = match reply {
            Ok(body) => link.reply(status::OK, &body).await,
            Err(Refused(status)) => link.reply(status, &[]).await,
        };
        if sent.is_none() {
            return;
        }
    }
}

fn answer(state: &mut State, command: u8, body: &[u8]) -> Reply {
    if command == command::ACTIVE_TEST {
        return Ok(Vec::new());
    }
    if state.groups_vanished {
        return if command == command::LIST_GROUPS { Ok(Vec::new()) } else { Err(MISSING) };
    }
    let mut fields = Fields::new(body);
    if matches!(command, command::STORE | command::STORE_ALL | command::LIST_GROUPS) {
        return match command {
            command::LIST_GROUPS => Ok(groups(state).iter().flat_map(|group| group_record(state, group)).collect()),
            _ => store(state, None, command == command::STORE_ALL),
        };
    }
    let group = fields.group().map_err(|_| INVALID)?;
    if !groups(state).iter().any(|known| known == group.as_str()) {
        return Err(MISSING);
    }
    match command {
        command::STORE_IN_GROUP => store(state, Some(&group), false),
        command::STORE_IN_GROUP_ALL => store(state, Some(&group), true),
        command::LIST_ONE_GROUP => Ok(group_record(state, group.as_str())),
        command::LIST_STORAGES => list_storages(state, &group, fields),
        command::FETCH | command::UPDATE | command::FETCH_ALL => {
            let path = fields.text(fields.left(), "the path").map_err(|_| INVALID)?;
            if path.len() > PATH_BYTES_MAX {
                return Err(INVALID);
            }
            fetch(state, command, &FileId::new(group, path).map_err(|_| INVALID)?)
        }
        _ => Err(INVALID),
    }
}

fn groups(state: &State) -> Vec<String> {
    let mut groups: Vec<_> = state.storages.iter().map(|storage| storage.group.clone()).collect();
    groups.dedup();
    groups
}

fn members<'a>(state: &'a State, group: &'a str) -> impl Iterator<Item = (usize, &'a Storage)> {
    state.storages.iter().enumerate().filter(move |(_, storage)| storage.group == group)
}

fn field(text: &str, bytes: usize) -> Vec<u8> {
    let mut field = text.as_bytes().to_vec();
    field.resize(bytes, 0);
    field
}

fn address(state: &State, storage: &Storage) -> Vec<u8> {
    let mut address = field(&storage.ip.to_string(), state.ip_bytes);
    address.extend(u64::from(storage.port).to_be_bytes());
    address
}

fn store(state: &mut State, group: Option<&GroupName>, all: bool) -> Reply {
    if state.free_mib == 0 {
        return Err(Refused(status::FULL));
    }
    state.turn += 1;
    let fits = |storage: &&Storage| storage.is_active() && group.is_none_or(|group| group.as_str() == storage.group);
    let active: Vec<&Storage> = state.storages.iter().filter(fits).collect();
    let chosen = *active.get(state.turn % active.len().max(1)).ok_or(MISSING)?;
    let mut body = field(&chosen.group, 16);
    if all {
        for storage in active.iter().filter(|storage| storage.group == chosen.group) {
            body.extend(address(state, storage));
        }
    } else {
        body.extend(address(state, chosen));
    }
    body.push(0);
    Ok(body)
}

fn fetch(state: &State, command: u8, id: &FileId) -> Reply {
    let group = id.group.as_str();
    let active: Vec<_> = members(state, group).filter(|(_, storage)| storage.is_active()).collect();
    let source = active.iter().find(|(_, storage)| storage.source() == id.source);
    let is_slave = id.suffix().len() > 7;
    let mut named: Vec<&(usize, &Storage)> = match (command, is_slave) {
        (command::FETCH_ALL, false) => {
            // Who is known to have all that the source had.
            let complete = source.is_none_or(|(number, _)| !state.is_ahead(*number));
            active.iter().filter(|(_, storage)| complete || storage.source() == id.source).collect()
        }
        _ => Vec::from_iter(source),
    };
    if named.is_empty() {
        named.extend(active.first());
    }
    if named.is_empty() {
        return Err(MISSING);
    }
    let mut body = field(group, 16);
    for (_, storage) in named {
        body.extend(address(state, storage));
    }
    Ok(body)
}

fn group_record(state: &State, group: &str) -> Vec<u8> {
    let count = members(state, group).count() as u64;
    let mut ports: Vec<_> = members(state, group).map(|(_, storage)| u64::from(storage.port)).collect();
    ports.dedup();
    let port = if let [port] = ports[..] { port } else { u64::MAX };
    let mut record = field(group, 17);
    // Total, free, reserved, in trunk files, servers, port, readable, writable, and four more.
    let numbers = [state.free_mib + 100, state.free_mib, 0, 0, count, port, count, count, 0, 1, 256, 0];
    record.extend(numbers.iter().flat_map(|number| number.to_be_bytes()));
    record
}

fn list_storages(state: &State, group: &GroupName, mut fields: Fields<'_>) -> Reply {
    let id = fields.text(fields.left(), "the id").map_err(|_| INVALID)?;
    let listed: Vec<_> =
        members(state, group.as_str()).filter(|(_, storage)| id.is_empty() || storage.id() == id).collect();
    if listed.is_empty() {
        return Err(MISSING);
    }
    let record = |storage: &Storage| {
        let mut record = vec![storage.status, 6];
        record.extend(field(&storage.id(), 16));
        record.extend(field(&storage.ip.to_string(), state.ip_bytes + 1));
        record.extend(field("", 16));
        record.extend(field("6.16.1", 8));
        record.extend([0; 9 * 8]);
        record.extend(u64::from(storage.port).to_be_bytes());
        record.resize(487 + state.ip_bytes - 15, 0);
        record
    };
    Ok(listed.into_iter().flat_map(|(_, storage)| record(storage)).collect())
}
