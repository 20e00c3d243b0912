//! Measures the data plane alone: ranges of one mapped segment over plain HTTP, without S3 and without metadata.
//!
//! ```text
//! serve_mapping serve per-core|per-core-rings|multi-thread 127.0.0.1:9100
//! serve_mapping load 127.0.0.1:9100 PATH CLIENTS SECONDS SERVER_PID...
//! ```
//!
//! `load` prints requests a second and the server's CPU: seconds for each GiB and microseconds for each request. It
//! discards what it reads; any HTTP server (nginx with sendfile, say) can be measured with it.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use holdfast_node::http::{DataPlane, HttpServer, Limits, RequestBody, ServerConfig};
use holdfast_storage::buf::{BufferPool, BufferPoolConfig};
use holdfast_storage::mapping::Mapping;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper::{Request, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const SEGMENT_BYTES: u64 = 256 << 20;

#[tokio::main]
async fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve", plane, addr] => serve(plane, addr.parse()?).await,
        ["load", addr, path, clients, seconds, ref pids @ ..] => {
            let pids = pids.iter().map(|pid| pid.parse()).collect::<Result<Vec<u32>, _>>()?;
            load(addr.parse()?, path, clients.parse()?, Duration::from_secs(seconds.parse()?), &pids).await
        }
        _ => bail!("arguments: see the head of the source"),
    }
}

async fn serve(plane: &str, addr: SocketAddr) -> Result<()> {
    let threads = std::thread::available_parallelism()?.get();
    let data_plane = match plane {
        "per-core" => DataPlane::PerCore { threads, rings: None },
        "per-core-rings" => DataPlane::PerCore { threads, rings: Some(BufferPool::new(BufferPoolConfig::default())?) },
        "multi-thread" => DataPlane::MultiThread,
        other => bail!("no data plane is called {other}"),
    };
    let file = tempfile::tempfile_in(".")?;
    let block: Vec<u8> = (0..1 << 20).map(|index: usize| (index * 31 / 7) as u8).collect();
    for offset in (0..SEGMENT_BYTES).step_by(block.len()) {
        file.write_all_at(&block, offset)?;
    }
    file.sync_all()?;
    let mapping = Mapping::new(file.as_fd(), SEGMENT_BYTES)?;
    let pin = Arc::new(());
    let handler = service_fn(move |request: Request<RequestBody>| {
        let mut parts = request.uri().path().trim_start_matches('/').split('/').map(|part| part.parse::<u64>());
        let range = match (parts.next(), parts.next()) {
            (Some(Ok(start)), Some(Ok(len))) if start.saturating_add(len) <= SEGMENT_BYTES => start..start + len,
            _ => 0..0,
        };
        let body: Bytes = mapping.bytes(range, pin.clone());
        async move { Ok::<_, Infallible>(Response::new(Full::new(body))) }
    });
    let config = ServerConfig { addr, data_plane, limits: Limits::default(), tls: None };
    let server = HttpServer::start(config, move |_| handler.clone())?;
    println!("serving on {}", server.local_addr());
    tokio::signal::ctrl_c().await?;
    let drained = server.shutdown(Duration::from_secs(5)).await;
    println!("{drained:?}");
    Ok(())
}

async fn load(addr: SocketAddr, path: &str, clients: usize, time: Duration, pids: &[u32]) -> Result<()> {
    let request = format!("GET {path} HTTP/1.1\r\nhost: bench\r\n\r\n");
    let deadline = Instant::now() + time;
    let (begun, cpu_before) = (Instant::now(), cpu_seconds(pids)?);
    let tasks: Vec<_> = (0..clients).map(|_| tokio::spawn(client(addr, request.clone(), deadline))).collect();
    let (mut requests, mut bytes) = (0, 0);
    for task in tasks {
        let (r, b) = task.await??;
        requests += r;
        bytes += b;
    }
    let (elapsed, cpu) = (begun.elapsed().as_secs_f64(), cpu_seconds(pids)? - cpu_before);
    let gib = bytes as f64 / f64::from(1 << 30);
    println!(
        "{path}: {:.0} requests/s, {:.2} GiB/s, server {:.3} CPU-s/GiB, {:.1} us CPU/request",
        requests as f64 / elapsed,
        gib / elapsed,
        cpu / gib,
        cpu * 1e6 / requests as f64
    );
    Ok(())
}

/// Requests over one connection until the deadline; gives their number and the bytes of their bodies.
async fn client(addr: SocketAddr, request: String, deadline: Instant) -> Result<(u64, u64)> {
    let mut stream = TcpStream::connect(addr).await?;
    stream.set_nodelay(true)?;
    let mut buf = vec![0; 1 << 20];
    let (mut requests, mut bytes) = (0, 0);
    while Instant::now() < deadline {
        stream.write_all(request.as_bytes()).await?;
        let mut filled = 0;
        let head_len = loop {
            let read = stream.read(&mut buf[filled..]).await?;
            if read == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            filled += read;
            if let Some(end) = buf[..filled].windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
        };
        let head = std::str::from_utf8(&buf[..head_len])?.to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).context("no length")?;
        let length: u64 = length.parse()?;
        let mut left = length - (filled - head_len) as u64;
        while left > 0 {
            match stream.read(&mut buf).await? {
                0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                read => left -= read as u64,
            }
        }
        requests += 1;
        bytes += length;
    }
    Ok((requests, bytes))
}

/// CPU time of processes so far, user and system.
fn cpu_seconds(pids: &[u32]) -> Result<f64> {
    let mut ticks = 0;
    for pid in pids {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        ticks += fields.skip(11).take(2).map(|field| field.parse().unwrap_or(0)).sum::<u64>();
    }
    Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}
