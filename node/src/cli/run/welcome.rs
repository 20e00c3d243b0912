//! What a node that was started says first: where it is, and commands to paste.

use std::net::SocketAddr;
use std::path::Path;

use time::OffsetDateTime;

use crate::admin::Pair;
use crate::assemble::RunningNode;
use crate::config::Config;
use crate::presign::Presign;

/// How long the printed presigned URL is valid.
const PRESIGNED_SECONDS: u32 = 3600;

/// The endpoint as clients write it.
pub(super) fn endpoint(config: &Config, addr: SocketAddr) -> String {
    let scheme = if config.s3.tls_cert.is_some() { "https" } else { "http" };
    format!("{scheme}://{}", reachable(addr))
}

/// An address that a client on this machine can use.
fn reachable(addr: SocketAddr) -> SocketAddr {
    match addr {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => SocketAddr::from(([127, 0, 0, 1], v4.port())),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, v6.port())),
        addr => addr,
    }
}

/// The greeting of a node that is tried out.
pub(super) struct Welcome<'a> {
    /// The first one is the one that is named in the commands to paste.
    pub(super) nodes: Vec<&'a RunningNode>,
    pub(super) config: &'a Config,
    pub(super) pair: &'a Pair,
    pub(super) data_dir: &'a Path,
}

impl Welcome<'_> {
    fn first(&self) -> &RunningNode {
        self.nodes[0]
    }

    pub(super) fn json(&self) -> serde_json::Value {
        let nodes: Vec<_> = self
            .nodes
            .iter()
            .map(|node| {
                serde_json::json!({
                    "node_id": node.id().to_string(),
                    "endpoint": endpoint(self.config, node.s3_addr()),
                    "s3_addr": node.s3_addr(),
                    "admin_addr": node.admin_addr(),
                })
            })
            .collect();
        serde_json::json!({
            "event": "ready",
            "endpoint": endpoint(self.config, self.first().s3_addr()),
            "s3_addr": self.first().s3_addr(),
            "admin_addr": self.first().admin_addr(),
            "nodes": nodes,
            "access_key": self.pair.access_key,
            "secret_key": *self.pair.secret_key,
            "region": self.config.s3.region,
            "data_dir": self.data_dir,
            "pid": std::process::id(),
        })
    }

    pub(super) fn text(&self) -> String {
        let endpoint = endpoint(self.config, self.first().s3_addr());
        let (access, secret, region) = (&self.pair.access_key, self.pair.secret_key.as_str(), &self.config.s3.region);
        let (scheme, host) = endpoint.split_once("://").unwrap_or(("http", &endpoint));
        let presigned = Presign {
            method: "PUT",
            scheme,
            host,
            path: "/hello",
            region,
            access_key: access,
            secret_key: secret,
            expires_seconds: PRESIGNED_SECONDS,
        }
        .url(OffsetDateTime::now_utc());
        format!(
            "Holdfast {version} is ready.

  S3 endpoint  {endpoint}
  access key   {access}
  secret key   {secret}
  region       {region}
  data         {data}
  admin        http://{admin}
{others}
Paste one of these:

  AWS_ACCESS_KEY_ID={access} AWS_SECRET_ACCESS_KEY={secret} AWS_DEFAULT_REGION={region} aws --endpoint-url {endpoint} s3 mb s3://photos

  rclone lsd ':s3,provider=Other,access_key_id={access},secret_access_key={secret},endpoint=\"{endpoint}\":'

  curl -i -X PUT '{presigned}'

The last one makes a bucket named hello; its URL is valid for an hour. Ctrl-C stops the node.
",
            version = env!("CARGO_PKG_VERSION"),
            data = self.data_dir.display(),
            admin = reachable(self.first().admin_addr()),
            others = self.others(),
        )
    }

    /// The rest of a cluster.
    fn others(&self) -> String {
        if self.nodes.len() < 2 {
            return String::new();
        }
        let mut text =
            String::from("\nThis is a cluster: any node takes any request, and each object is on several of them.\n\n");
        for node in &self.nodes {
            let s3 = endpoint(self.config, node.s3_addr());
            text.push_str(&format!("  node {}  S3 {s3}  admin http://{}\n", node.id(), reachable(node.admin_addr())));
        }
        let dir = if self.config.node.data_dir == crate::config::NodeConfig::default().data_dir {
            String::new()
        } else {
            format!(" --data-dir {}", self.data_dir.display())
        };
        text.push_str(&format!(
            "\n  holdfast cluster status{dir} --admin-addr {admin}\n  holdfast object stat{dir} --admin-addr {admin} BUCKET/KEY\n",
            admin = reachable(self.first().admin_addr())
        ));
        text
    }
}
