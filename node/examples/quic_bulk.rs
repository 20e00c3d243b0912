//! What a GiB costs between two nodes over QUIC, in CPU of both sides together: chunks written through `QuicPeers`
//! against the same bytes over quinn as it comes, with one stream a chunk, on loopback and in one process. The receiver
//! copies each byte once, as the disk engine's buffers do, and forgets it.
//!
//! `cargo run --release --example quic_bulk [GiB a run] [rounds]`

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use holdfast_actors::ports::chunks::{ChunkBody, ChunkError, ChunkInfo, ChunkReceipt, ChunkSink, ChunkSpec};
use holdfast_actors::ports::peers::{
    Fence, PeerError, PeerHealth, Peers as _, ReplicaService, ReplicaWrite, ShardDigest, ShardReport,
};
use holdfast_node::peers::{AddressBook, PeerEndpoint, PeerOptions, PeerParts, QuicPeers};
use holdfast_node::pki::{IdentityOptions, NodeIdentity, init_cluster};
use holdfast_protocol::{ChunkId, ClusterId, ContentId, Epoch, NodeId, ShardId};
use tokio::runtime::Handle;

const CHUNK_BYTES: usize = 16 << 20;
const PIECE_BYTES: usize = 1 << 20;
/// Chunks under way at a time.
const CHUNKS_AT_A_TIME: usize = 4;

/// A disk that forgets.
struct Forgets {
    buffer: Vec<u8>,
    at: usize,
}

impl Forgets {
    fn new() -> Self {
        Self { buffer: vec![0; PIECE_BYTES], at: 0 }
    }

    fn copy(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            let take = data.len().min(PIECE_BYTES - self.at);
            self.buffer[self.at..self.at + take].copy_from_slice(&data[..take]);
            self.at = (self.at + take) % PIECE_BYTES;
            data = &data[take..];
        }
        std::hint::black_box(&self.buffer);
    }
}

#[async_trait]
impl ChunkSink for Forgets {
    async fn write(&mut self, data: &[u8]) -> Result<Vec<Bytes>, ChunkError> {
        self.copy(data);
        Ok(Vec::new())
    }

    fn finish_input(&mut self) -> Result<Option<Bytes>, ChunkError> {
        Ok(None)
    }

    async fn finish(self: Box<Self>) -> Result<ChunkReceipt, ChunkError> {
        Ok(ChunkReceipt::default())
    }
}

struct Forgetting;

#[async_trait]
impl ReplicaService for Forgetting {
    async fn create(&self, _from: NodeId, _write: ReplicaWrite) -> Result<Box<dyn ChunkSink>, PeerError> {
        Ok(Box::new(Forgets::new()))
    }

    fn read(&self, _from: NodeId, _chunk: ChunkId, range: Range<u32>) -> Result<ChunkBody, PeerError> {
        let zeros = Bytes::from(vec![0; range.len()]);
        Ok(Box::pin(futures::stream::iter([Ok(zeros)])))
    }

    async fn probe(&self, _from: NodeId, _chunks: &[ChunkId]) -> Result<Vec<Option<ChunkInfo>>, PeerError> {
        Err(PeerError::Fenced)
    }

    async fn label(&self, _from: NodeId, _chunk: ChunkId) -> Result<Bytes, PeerError> {
        Err(PeerError::Fenced)
    }

    async fn list(
        &self,
        _from: NodeId,
        _fence: Fence,
        _after: Option<ChunkId>,
        _limit: usize,
    ) -> Result<Vec<ChunkInfo>, PeerError> {
        Err(PeerError::Fenced)
    }

    async fn digest(&self, _from: NodeId, _fence: Fence) -> Result<ShardDigest, PeerError> {
        Err(PeerError::Fenced)
    }

    async fn delete(&self, _from: NodeId, _chunks: &[ChunkId]) -> Result<(), PeerError> {
        Err(PeerError::Fenced)
    }

    async fn report(&self, _from: NodeId, _report: ShardReport) -> Result<(), PeerError> {
        Err(PeerError::Fenced)
    }

    async fn health(&self, _from: NodeId) -> Result<PeerHealth, PeerError> {
        Err(PeerError::Fenced)
    }
}

/// CPU of this process so far, in seconds.
fn cpu_seconds() -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let after_name = stat.rsplit_once(')').context("a process has a name")?.1;
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let ticks: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
    Ok(ticks / rustix::param::clock_ticks_per_second() as f64)
}

struct Figures {
    cpu_per_gib: f64,
    gib_per_second: f64,
}

async fn measured(gib: usize, run: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<Figures> {
    let (cpu, begin) = (cpu_seconds()?, Instant::now());
    run.await?;
    let (cpu, elapsed) = (cpu_seconds()? - cpu, begin.elapsed().as_secs_f64());
    Ok(Figures { cpu_per_gib: cpu / gib as f64, gib_per_second: gib as f64 / elapsed })
}

fn chunks(gib: usize) -> usize {
    gib * ((1 << 30) / CHUNK_BYTES)
}

async fn write_all(peers: &QuicPeers, node: NodeId, gib: usize, piece: &Bytes) -> anyhow::Result<()> {
    let mut writes = futures::stream::iter(0..chunks(gib))
        .map(|index| async move {
            let id = ContentId([1; 12]).chunk(index as u32);
            let fence = Fence { shard: ShardId(0), epoch: Epoch(1) };
            let spec = ChunkSpec { id, size_bytes: CHUNK_BYTES as u32, label: Bytes::from_static(b"{}") };
            let mut sink = peers.create(node, ReplicaWrite { fence, spec }).await?;
            for _ in 0..CHUNK_BYTES / PIECE_BYTES {
                sink.send(piece.clone()).await?;
            }
            sink.finish().await
        })
        .buffer_unordered(CHUNKS_AT_A_TIME);
    while let Some(written) = writes.next().await {
        written?;
    }
    Ok(())
}

async fn read_all(peers: &QuicPeers, node: NodeId, gib: usize) -> anyhow::Result<()> {
    let mut reads = futures::stream::iter(0..chunks(gib))
        .map(|index| async move {
            let id = ContentId([1; 12]).chunk(index as u32);
            let mut body = peers.read(node, id, 0..CHUNK_BYTES as u32);
            while let Some(block) = body.next().await {
                std::hint::black_box(block?);
            }
            Ok::<_, ChunkError>(())
        })
        .buffer_unordered(CHUNKS_AT_A_TIME);
    while let Some(read) = reads.next().await {
        read?;
    }
    Ok(())
}

/// quinn as it comes: a self-signed certificate, no options.
async fn defaults() -> anyhow::Result<(quinn::Endpoint, quinn::Endpoint, quinn::Connection)> {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])?;
    let der = made.cert.der().clone();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let config = quinn::ServerConfig::with_single_cert(vec![der.clone()], key.into())?;
    let server = quinn::Endpoint::server(config, "127.0.0.1:0".parse()?)?;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(der)?;
    let client = quinn::Endpoint::client("127.0.0.1:0".parse()?)?;
    let config = quinn::ClientConfig::with_root_certificates(Arc::new(roots))?;
    let accepting = server.clone();
    tokio::spawn(async move {
        let Some(incoming) = accepting.accept().await else { return };
        let Ok(connection) = incoming.await else { return };
        while let Ok((mut send, mut recv)) = connection.accept_bi().await {
            tokio::spawn(async move {
                let mut disk = Forgets::new();
                while let Ok(Some(chunk)) = recv.read_chunk(usize::MAX, true).await {
                    disk.copy(&chunk.bytes);
                }
                send.write_all(b"done").await.ok();
            });
        }
    });
    let connection = client.connect_with(config, server.local_addr()?, "localhost")?.await?;
    Ok((server, client, connection))
}

async fn write_defaults(connection: &quinn::Connection, gib: usize, piece: &Bytes) -> anyhow::Result<()> {
    let mut writes = futures::stream::iter(0..chunks(gib))
        .map(|_| async move {
            let (mut send, mut recv) = connection.open_bi().await?;
            for _ in 0..CHUNK_BYTES / PIECE_BYTES {
                send.write_chunk(piece.clone()).await?;
            }
            send.finish()?;
            recv.read_to_end(16).await?;
            anyhow::Ok(())
        })
        .buffer_unordered(CHUNKS_AT_A_TIME);
    while let Some(written) = writes.next().await {
        written?;
    }
    Ok(())
}

fn node(
    cluster: ClusterId,
    first: Option<&NodeIdentity>,
    book: AddressBook,
) -> anyhow::Result<(NodeId, Arc<NodeIdentity>, PeerEndpoint, tempfile::TempDir)> {
    let (id, dir) = (NodeId::generate(), tempfile::tempdir()?);
    init_cluster(dir.path(), id, cluster)?;
    if let Some(first) = first {
        std::fs::write(dir.path().join("cluster/ca.pem"), first.ca().certificate_pem())?;
        std::fs::write(dir.path().join("cluster/ca.key"), first.ca().key_pem().as_bytes())?;
    }
    let identity = NodeIdentity::load(dir.path(), id, IdentityOptions::default())?.context("a member")?;
    let mut endpoint = PeerEndpoint::bind(PeerParts {
        runtime: Handle::current(),
        bind: "127.0.0.1:0".parse()?,
        identity: Arc::clone(&identity),
        addresses: book,
        options: PeerOptions::default(),
    })?;
    endpoint.serve(Arc::new(Forgetting), None)?;
    Ok((id, identity, endpoint, dir))
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    rustls::crypto::ring::default_provider().install_default().ok();
    let mut args = std::env::args().skip(1).map(|arg| arg.parse::<usize>());
    let gib = args.next().transpose()?.unwrap_or(2);
    let rounds = args.next().transpose()?.unwrap_or(3);

    let cluster = ClusterId::generate();
    let (id, identity, server, _dir) = node(cluster, None, Arc::new(|_| None))?;
    let address = server.local_addr().to_string();
    let (_, _, client, _client_dir) = node(cluster, Some(&identity), Arc::new(move |_| Some(address.clone())))?;
    let (_server, _client, connection) = defaults().await?;
    let piece = Bytes::from(vec![0x5a; PIECE_BYTES]);
    let peers = client.peers();

    let (mut ours, mut theirs) = (f64::MAX, f64::MAX);
    for round in 0..rounds {
        let default = measured(gib, write_defaults(&connection, gib, &piece)).await?;
        let write = measured(gib, write_all(&peers, id, gib, &piece)).await?;
        let read = measured(gib, read_all(&peers, id, gib)).await?;
        ours = ours.min(write.cpu_per_gib);
        theirs = theirs.min(default.cpu_per_gib);
        for (name, figures) in [("quinn's defaults", default), ("write", write), ("read", read)] {
            println!(
                "round {round}: {name:>16}: {:.2} CPU-s/GiB, {:.2} GiB/s",
                figures.cpu_per_gib, figures.gib_per_second
            );
        }
    }
    println!("write against quinn's defaults, best of {rounds}: {:.2}", ours / theirs);
    Ok(())
}
