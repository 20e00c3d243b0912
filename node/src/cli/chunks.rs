//! `holdfast object of-chunk`

use clap::Args;
use holdfast_protocol::admin::{ChunkHeader, ChunkOwner, ChunkReference, Page};

use super::client::{ApiClient, ClientArgs};
use super::output::{Output, bytes, one_line, table, timestamp};
use super::{CliResult, Failure};

/// Digits of a chunk's id.
const ID_DIGITS: usize = 32;

/// The most references that are collected: beyond them only their number is told.
const REFERENCES_MAX: usize = 10_000;

#[derive(Args)]
pub(super) struct OfChunkArgs {
    /// The chunk: its id, or what a log or a list writes around it.
    #[arg(value_name = "CHUNK_ID", required = true, num_args = 1..=2)]
    chunk: Vec<String>,
    /// Look through the versions of all buckets, for copies and for chunks of which no header is left. It takes some
    /// seconds for a million versions.
    #[arg(long)]
    search: bool,
    #[command(flatten)]
    client: ClientArgs,
}

pub(super) async fn of_chunk(args: OfChunkArgs, out: Output) -> CliResult {
    let id = chunk_id(&args.chunk)?;
    let api = args.client.connect()?;
    let mut owner: ChunkOwner = api.get(&format!("/chunks/{id}")).await?;
    if args.search && owner.references_total > owner.references.len() as u64 {
        owner.references = search(&api, &id, owner.references_total).await?;
    }
    Ok(out.print(&owner, |owner| text(owner, args.search))?)
}

/// The id among what was given. Logs write `ChunkId(…)` around it, and the error log `chunk` before it.
fn chunk_id(words: &[String]) -> CliResult<String> {
    let runs = words.iter().flat_map(|word| word.split(|c: char| !c.is_ascii_hexdigit()));
    let mut ids = runs.filter(|run| run.len() == ID_DIGITS);
    match (ids.next(), ids.next()) {
        (Some(id), None) => Ok(id.to_ascii_lowercase()),
        _ => Err(Failure::usage(anyhow::anyhow!("write the id of one chunk: {ID_DIGITS} hexadecimal digits"))),
    }
}

/// The versions that refer to the content of a chunk; it ends as soon as all are found.
async fn search(api: &ApiClient, id: &str, total: u64) -> CliResult<Vec<ChunkReference>> {
    let mut found: Vec<ChunkReference> = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let mut path = format!("/chunks/{id}/references");
        if let Some(after) = &after {
            let query = url::form_urlencoded::Serializer::new(String::new()).append_pair("after", after).finish();
            path = format!("{path}?{query}");
        }
        let page: Page<ChunkReference> = api.get(&path).await?;
        found.extend(page.items);
        found.truncate(REFERENCES_MAX);
        after = page.next;
        if after.is_none() || found.len() as u64 >= total || found.len() == REFERENCES_MAX {
            return Ok(found);
        }
    }
}

fn text(owner: &ChunkOwner, searched: bool) -> String {
    let size = owner.size_bytes.map_or_else(|| "of unknown size".into(), |size| bytes(u64::from(size)));
    let shard = owner.shard.map(|shard| format!(", shard {shard}")).unwrap_or_default();
    let mut text = format!("chunk {}: {size}{shard}\n  belongs to  {}\n", owner.chunk, belongs_to(owner));
    text.push_str(&header_text(owner));
    if !owner.references.is_empty() {
        text.push('\n');
        text.push_str(&reference_rows(&owner.references));
    }
    text.push_str(&not_shown(owner, searched));
    text.push('\n');
    if owner.replicas.is_empty() {
        text.push_str("its shard is not placed yet: nobody should have it\n");
        return text;
    }
    text.push_str(&table(
        ["NODE", "ROLE", "STATE"],
        owner.replicas.iter().map(|replica| [replica.node.clone(), replica.role.clone(), replica.state.clone()]),
    ));
    text
}

/// What the chunk belongs to, in words.
fn belongs_to(owner: &ChunkOwner) -> String {
    let since = owner.since_ms.map(|ms| format!(" since {}", timestamp(ms))).unwrap_or_default();
    let versions = match owner.references_total {
        1 => "one version of an object has".to_owned(),
        total => format!("{total} versions of objects have"),
    };
    match owner.state.as_str() {
        "object" => match &owner.tier {
            None => format!("an object: {versions} its content"),
            Some(tier) => {
                format!("an object in {tier}: {versions} its content, and it says where the bytes are")
            }
        },
        "not_in_object" => {
            format!("nothing: {versions} the content of its id, which has no such chunk")
        }
        "upload" => match &owner.upload {
            Some(upload) => format!(
                "an upload that is not finished: {}/{}, part {} of {}",
                upload.bucket,
                one_line(&upload.key),
                upload.part,
                upload.upload
            ),
            None => "an upload that is not finished".into(),
        },
        "reclaim" => format!("no object any more{since}: it was overwritten or deleted, and waits for cleanup"),
        "condemned" => format!("no object: it was given up as an orphan{since}, and waits for cleanup"),
        "orphan" => "no object: it is being written, or is left over and waits for cleanup".into(),
        "unknown" if owner.replicas.iter().any(|replica| replica.state == "unreachable") => {
            "no object, and no node that answers has it".into()
        }
        "unknown" => "no object, and no node has it: it is known nowhere".into(),
        other => other.to_owned(),
    }
}

fn header_text(owner: &ChunkOwner) -> String {
    let mut text = String::new();
    if let Some(ChunkHeader { bucket, key, version, upload, part, created_ms, chunk, node, .. }) = &owner.header {
        let version = version.as_ref().map(|version| format!(", version {version}")).unwrap_or_default();
        let part = part.map(|part| format!(", part {part}")).unwrap_or_default();
        let upload = upload.as_ref().map(|upload| format!(" of upload {upload}")).unwrap_or_default();
        let whose = if *chunk == owner.chunk { "its header".into() } else { format!("the header of {chunk}") };
        text.push_str(&format!(
            "  written for {bucket}/{}{version}{part}{upload}\n              at {}, as {whose} on node {node} says\n",
            one_line(key),
            timestamp(*created_ms)
        ));
    } else if owner.header_error.is_none() && owner.state != "unknown" {
        text.push_str("  header      no node that answers has it, or a chunk beside it in the same content\n");
    }
    if let Some(error) = &owner.header_error {
        text.push_str(&format!("  header      cannot be read: {}\n", one_line(error)));
    }
    text
}

fn reference_rows(references: &[ChunkReference]) -> String {
    table(
        ["OBJECT", "VERSION", "LATEST", "PART", "FROM BYTE"],
        references.iter().map(|reference| {
            [
                format!("{}/{}", reference.bucket, reference.key),
                reference.version.clone(),
                if reference.is_latest { "yes" } else { "no" }.into(),
                reference.part.map_or_else(|| "-".into(), |part| part.to_string()),
                reference.offset_bytes.map_or_else(|| "-".into(), |offset| offset.to_string()),
            ]
        }),
    )
}

/// How many versions refer to it that are not listed, and how they are found.
fn not_shown(owner: &ChunkOwner, searched: bool) -> String {
    let more = owner.references_total.saturating_sub(owner.references.len() as u64);
    let what = if owner.references.is_empty() { "none is found".to_owned() } else { format!("… and {more} more") };
    match (more, searched) {
        (0, _) => String::new(),
        (_, true) => format!("{what}: they were written or deleted meanwhile, or are too many\n"),
        (_, false) => format!("{what}: `holdfast object of-chunk {} --search` looks in all buckets\n", owner.chunk),
    }
}

#[cfg(test)]
mod tests {
    use holdfast_protocol::admin::{ChunkReplica, ChunkUpload};

    use super::super::Exit;
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef";

    fn owner(state: &str) -> ChunkOwner {
        let replica = ChunkReplica { node: "5f3a".into(), role: "member".into(), state: "missing".into() };
        ChunkOwner {
            chunk: ID.into(),
            state: state.into(),
            since_ms: None,
            size_bytes: Some(100),
            shard: Some(7),
            tier: None,
            replicas: vec![replica],
            header: None,
            header_error: None,
            upload: None,
            references_total: 0,
            references: vec![],
        }
    }

    fn header(chunk: &str) -> ChunkHeader {
        ChunkHeader {
            bucket: "b".into(),
            key: "k\n  belongs to  mallory".into(),
            version: Some("null".into()),
            upload: None,
            part: None,
            content_size_bytes: 100,
            created_ms: 0,
            chunk: chunk.into(),
            node: "77aa".into(),
        }
    }

    #[test]
    fn an_id_is_taken_as_logs_and_lists_write_it() {
        let of = |words: &[&str]| chunk_id(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
        let written = [ID.to_owned(), format!("ChunkId({ID})"), format!("Some(ChunkId({ID}))"), ID.to_uppercase()];
        for word in &written {
            assert_eq!(of(&[word.as_str()]).ok().as_deref(), Some(ID), "{word}");
        }
        assert_eq!(of(&["chunk", ID]).ok().as_deref(), Some(ID));
        let (quoted, longer) = (format!("chunk {ID}:"), format!("{ID}0"));
        assert_eq!(of(&[quoted.as_str()]).ok().as_deref(), Some(ID));
        let wrongs = [vec!["abc"], vec![&ID[1..]], vec![ID, ID], vec![longer.as_str()]];
        for wrong in &wrongs {
            assert_eq!(of(wrong).err().map(|failure| failure.exit), Some(Exit::Usage), "{wrong:?}");
        }
    }

    #[test]
    fn an_object_is_shown_with_what_is_not() {
        let reference = ChunkReference {
            bucket: "b".into(),
            key: "k".into(),
            version: "null".into(),
            is_latest: true,
            part: Some(3),
            offset_bytes: Some(16_777_216),
        };
        let shown = ChunkOwner {
            header: Some(header(ID)),
            references_total: 3,
            references: vec![reference],
            ..owner("object")
        };
        let text = text(&shown, false);
        for told in ["3 versions of objects", "b/k ", "16777216", "as its header on node 77aa", "5f3a  member  missing"]
        {
            assert!(text.contains(told), "{told} in {text}");
        }
        assert!(text.contains(&format!("… and 2 more: `holdfast object of-chunk {ID} --search`")), "{text}");
        assert!(!text.contains("\n  belongs to  mallory"), "the key goes on in a line of its own: {text}");
        assert!(super::text(&shown, true).contains("… and 2 more: they were"), "it was searched for");
        let hidden = ChunkOwner { references_total: 1, ..owner("object") };
        assert!(super::text(&hidden, false).contains("none is found: `holdfast"), "a copy, or there is no header");
    }

    #[test]
    fn what_belongs_to_no_object_is_said() {
        let upload = ChunkUpload { bucket: "b".into(), key: "k".into(), upload: "77".into(), part: 3 };
        let shown = ChunkOwner { upload: Some(upload), ..owner("upload") };
        assert!(text(&shown, false).contains("not finished: b/k, part 3 of 77"));
        for (state, told) in [
            ("reclaim", "no object any more since 1970-01-01T00:00:05Z"),
            ("condemned", "given up as an orphan since 1970"),
            ("orphan", "left over"),
            ("unknown", "known nowhere"),
            ("not_in_object", "has no such chunk"),
        ] {
            let text = text(&ChunkOwner { since_ms: Some(5_000), ..owner(state) }, false);
            assert!(text.contains(told), "{told} in {text}");
        }
        let mut hidden = owner("unknown");
        hidden.replicas[0].state = "unreachable".into();
        assert!(!text(&hidden, false).contains("known nowhere"), "that node may have it");
    }

    #[test]
    fn a_header_that_cannot_be_read_is_said_and_another_one_is_named() {
        let other = "ff".repeat(16);
        let shown = ChunkOwner {
            header: Some(header(&other)),
            header_error: Some("node 5f3a: checksum".into()),
            ..owner("object")
        };
        let told = text(&shown, false);
        assert!(told.contains(&format!("the header of {other}")), "{told}");
        assert!(told.contains("cannot be read: node 5f3a: checksum"), "{told}");
        assert!(text(&owner("object"), false).contains("no node that answers has it"));
    }
}
