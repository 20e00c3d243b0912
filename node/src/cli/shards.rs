//! `holdfast shard …` and `holdfast object …`

use clap::Subcommand;
use holdfast_protocol::admin::{ObjectChunk, ObjectRestore, ObjectStat, ShardInfo};

use super::chunks::{self, OfChunkArgs};
use super::client::{ClientArgs, segment};
use super::output::{Output, bytes, one_line, table, timestamp};
use super::{CliResult, Failure, nodes};

#[derive(Subcommand)]
pub(super) enum ShardCommand {
    /// List shards: their health, and who holds them.
    #[command(after_help = "Examples:
  holdfast shard list --unhealthy
  holdfast shard list --node 5f3a --json")]
    List {
        /// Only those that are not healthy.
        #[arg(long)]
        unhealthy: bool,
        /// Only those that have to do with this node: its id, or as much of its beginning as tells it apart.
        #[arg(long)]
        node: Option<String>,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Show one shard, with what each node has of it.
    Show {
        /// Its number.
        shard: u32,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Show which shards hold an object, and which nodes hold those.
    #[command(after_help = "Example:\n  holdfast shard where photos/2026/cat.jpg")]
    Where {
        /// Bucket and key.
        #[arg(value_name = "BUCKET/KEY")]
        object: String,
        #[command(flatten)]
        client: ClientArgs,
    },
}

#[derive(Subcommand)]
pub(super) enum ObjectCommand {
    /// Show an object with its chunks, and which node has each of them.
    #[command(after_help = "Every node that should have a chunk is asked. Example:
  holdfast object stat photos/2026/cat.jpg")]
    Stat {
        /// Bucket and key.
        #[arg(value_name = "BUCKET/KEY")]
        object: String,
        /// One version instead of the latest.
        #[arg(long)]
        version_id: Option<String>,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Show which object a chunk belongs to, and which nodes have it.
    #[command(after_help = "Every node is asked. Examples:
  holdfast object of-chunk 6930c7f0a1b2c3d4e5f6071800000002
  holdfast object of-chunk 6930c7f0a1b2c3d4e5f6071800000002 --search")]
    OfChunk(OfChunkArgs),
}

pub(super) async fn shard(command: ShardCommand, out: Output) -> CliResult {
    match command {
        ShardCommand::List { unhealthy, node, client } => {
            let api = client.connect()?;
            let node = match &node {
                Some(node) => Some(nodes::known(&api, node).await?),
                None => None,
            };
            let mut shards: Vec<ShardInfo> = api.get("/shards").await?;
            shards.retain(|shard| !unhealthy || shard.health != "healthy");
            if let Some(node) = node {
                shards.retain(|s| s.target.contains(&node) || s.replicas.iter().any(|r| r.node == node));
            }
            Ok(out.print(&shards, |shards| shard_rows(shards))?)
        }
        ShardCommand::Show { shard, client } => {
            let shard: ShardInfo = client.connect()?.get(&format!("/shards/{shard}")).await?;
            Ok(out.print(&shard, shard_text)?)
        }
        ShardCommand::Where { object, client } => {
            let api = client.connect()?;
            let stat: ObjectStat = api.get(&object_path(&object, None)?).await?;
            let stub = stat.cold.iter().map(|cold| &cold.stub);
            let mut numbers: Vec<u32> = stat.chunks.iter().chain(stub).filter_map(|chunk| chunk.shard).collect();
            numbers.sort_unstable();
            numbers.dedup();
            let mut shards: Vec<ShardInfo> = api.get("/shards").await?;
            shards.retain(|shard| numbers.contains(&shard.shard));
            Ok(out.print(&shards, |shards| shard_rows(shards))?)
        }
    }
}

pub(super) async fn object(command: ObjectCommand, out: Output) -> CliResult {
    match command {
        ObjectCommand::Stat { object, version_id, client } => {
            let stat: ObjectStat = client.connect()?.get(&object_path(&object, version_id.as_deref())?).await?;
            Ok(out.print(&stat, object_text)?)
        }
        ObjectCommand::OfChunk(args) => chunks::of_chunk(args, out).await,
    }
}

fn object_path(object: &str, version: Option<&str>) -> CliResult<String> {
    let Some((bucket, key)) = object.split_once('/').filter(|(bucket, key)| !bucket.is_empty() && !key.is_empty())
    else {
        return Err(Failure::usage(anyhow::anyhow!("write BUCKET/KEY, such as photos/2026/cat.jpg")));
    };
    let query = version.map_or_else(String::new, |version| format!("?version_id={}", segment(version)));
    Ok(format!("/objects/{}/{}{query}", segment(bucket), segment(key)))
}

fn shard_rows(shards: &[ShardInfo]) -> String {
    let with = |shard: &ShardInfo, role: &str| {
        let there = shard.replicas.iter().filter(|replica| replica.role == role);
        let names: Vec<String> =
            there.map(|r| if r.alive { r.node.clone() } else { format!("{} (absent)", r.node) }).collect();
        names.join(" ")
    };
    table(
        ["SHARD", "HEALTH", "EPOCH", "MEMBERS", "JOINING", "LEAVING"],
        shards.iter().map(|shard| {
            [
                shard.shard.to_string(),
                shard.health.clone(),
                shard.epoch.to_string(),
                with(shard, "member"),
                with(shard, "joining"),
                with(shard, "leaving"),
            ]
        }),
    )
}

fn shard_text(shard: &ShardInfo) -> String {
    let mut text = format!(
        "shard {}: {}, epoch {}, {} acknowledgements make a write durable\nwanted on {}\n\n",
        shard.shard,
        shard.health,
        shard.epoch,
        shard.write_quorum,
        shard.target.join(" ")
    );
    text.push_str(&table(
        ["NODE", "ROLE", "ALIVE", "CHUNKS", "BYTES"],
        shard.replicas.iter().map(|replica| {
            [
                replica.node.clone(),
                replica.role.clone(),
                if replica.alive { "yes" } else { "no" }.into(),
                replica.chunks.map_or_else(|| "?".into(), |n| n.to_string()),
                replica.bytes.map_or_else(|| "?".into(), bytes),
            ]
        }),
    ));
    text
}

fn object_text(stat: &ObjectStat) -> String {
    let mut text = format!(
        "{}/{}\n  version   {}{}\n  size      {}\n  etag      {}\n  modified  {}\n  owner     {}\n",
        stat.bucket,
        one_line(&stat.key),
        stat.version,
        if stat.is_latest { " (latest)" } else { "" },
        bytes(stat.size_bytes),
        stat.etag,
        timestamp(stat.last_modified_ms),
        stat.owner
    );
    if stat.is_delete_marker {
        text.push_str("  a delete marker: it has no bytes\n");
        return text;
    }
    if let Some(class) = &stat.storage_class {
        text.push_str(&format!("  class     {class}\n"));
    }
    match &stat.restore {
        None => {}
        Some(ObjectRestore { until_ms: None }) => text.push_str("  restore   under way\n"),
        Some(ObjectRestore { until_ms: Some(until) }) => {
            text.push_str(&format!("  restore   on the cluster until {}\n", timestamp(*until)));
        }
    }
    if let Some(cold) = &stat.cold {
        text.push_str(&format!(
            "  lies in   {}: {} pieces of up to {}; its stub on the cluster:\n\n{}",
            cold.tier,
            cold.pieces,
            bytes(cold.piece_bytes),
            chunk_rows([&cold.stub])
        ));
        return text;
    }
    text.push('\n');
    text.push_str(&chunk_rows(&stat.chunks));
    let shown = stat.chunks.len() as u64;
    if shown < stat.chunks_total {
        text.push_str(&format!("… and {} chunks more\n", stat.chunks_total - shown));
    }
    text
}

fn chunk_rows<'a>(chunks: impl IntoIterator<Item = &'a ObjectChunk>) -> String {
    table(
        ["CHUNK", "SIZE", "SHARD", "REPLICAS"],
        chunks.into_iter().map(|chunk| {
            let replicas: Vec<String> =
                chunk.replicas.iter().map(|r| format!("{} {} {}", r.node, r.role, r.state)).collect();
            [
                chunk.chunk.clone(),
                bytes(u64::from(chunk.size_bytes)),
                chunk.shard.map_or_else(|| "-".into(), |n| n.to_string()),
                replicas.join(", "),
            ]
        }),
    )
}

#[cfg(test)]
mod tests {
    use holdfast_protocol::admin::{ChunkReplica, ObjectCold};

    use super::*;

    #[test]
    fn a_cold_object_shows_its_tier_and_its_stub() {
        let replica = ChunkReplica { node: "5f3a".into(), role: "member".into(), state: "present".into() };
        let stub = ObjectChunk { chunk: "0a".into(), size_bytes: 100, shard: Some(7), replicas: vec![replica] };
        let stat = ObjectStat {
            bucket: "b".into(),
            key: "k\n  owner     mallory".into(),
            version: "null".into(),
            is_latest: true,
            is_delete_marker: false,
            size_bytes: 5,
            etag: "e".into(),
            last_modified_ms: 0,
            owner: "alice".into(),
            storage_class: Some("OSS".into()),
            restore: Some(ObjectRestore { until_ms: None }),
            cold: Some(ObjectCold { tier: "OSS".into(), pieces: 3, piece_bytes: 2, stub }),
            chunks_total: 0,
            chunks: vec![],
        };
        let text = object_text(&stat);
        assert!(!text.contains("\n  owner     mallory"), "the key goes on in a line of its own: {text}");
        for told in ["class     OSS", "restore   under way", "lies in   OSS: 3 pieces", "5f3a member present"] {
            assert!(text.contains(told), "{told} in {text}");
        }
    }

    #[test]
    fn keys_with_odd_characters_become_one_path_segment() {
        assert_eq!(object_path("b/a b/c?d", None).unwrap(), "/objects/b/a%20b%2Fc%3Fd");
        assert_eq!(object_path("b/k", Some("v 1")).unwrap(), "/objects/b/k?version_id=v%201");
        assert_eq!(object_path("b", None).unwrap_err().exit, super::super::Exit::Usage);
    }
}
