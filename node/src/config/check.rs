//! Values that are well formed but cannot work.

use std::net::SocketAddr;
use std::time::Duration;

use super::{Bytes, Config, MetadataTls, Span};
use crate::addresses::AddressBlock;

mod services;

/// A key with what is wrong about its value.
pub(super) struct Fault {
    /// Section and key.
    pub(super) key: (&'static str, &'static str),
    pub(super) message: String,
    pub(super) hint: String,
}

/// Every fault of `config`.
pub(super) fn faults(config: &Config) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut require = |holds: bool, key, message: &str, hint: &str| {
        if !holds {
            faults.push(Fault { key, message: message.into(), hint: hint.into() });
        }
    };

    limits_and_intervals(config, &mut require);
    disks(config, &mut require);
    front_ends(config, &mut require);
    logs_and_threads(config, &mut require);
    tiering(config, &mut require);
    cluster(config, &mut require);
    services::redis(config, &mut require);
    services::locks(config, &mut require);
    services::cache(config, &mut require);
    services::events(config, &mut require);
    faults
}

/// What a node takes on at once, and how often it looks after what it has.
fn limits_and_intervals(config: &Config, require: &mut impl FnMut(bool, Key, &str, &str)) {
    let limits = &config.limits;
    for (value, key) in [
        (limits.connections, ("limits", "connections")),
        (limits.read_jobs, ("limits", "read_jobs")),
        (limits.write_jobs, ("limits", "write_jobs")),
    ] {
        require(value > 0, key, "nothing could be served", "write a number from 1");
    }
    for block in &limits.connections_exempt {
        require(
            block.parse::<AddressBlock>().is_ok(),
            ("limits", "connections_exempt"),
            "not a block of addresses",
            "write IP addresses, or such with the length of a prefix: \"10.0.0.0/8\"",
        );
    }
    for (value, key) in [
        (limits.header_timeout, ("limits", "header_timeout")),
        (limits.idle_timeout, ("limits", "idle_timeout")),
        (limits.chunk_timeout, ("limits", "chunk_timeout")),
        (config.cleanup.interval, ("cleanup", "interval")),
        (config.cleanup.orphan_interval, ("cleanup", "orphan_interval")),
        (config.lifecycle.interval, ("lifecycle", "interval")),
        (config.tiering.poll, ("tiering", "poll")),
        (config.tiering.refresh, ("tiering", "refresh")),
        (config.storage.checkpoint_interval, ("storage", "checkpoint_interval")),
        (config.storage.compact_interval, ("storage", "compact_interval")),
    ] {
        require(value >= Span::milliseconds(100), key, "too short", "write at least \"100 ms\"");
    }
    require(
        limits.write_window.get() > 0 && limits.write_window <= limits.inflight_bytes,
        ("limits", "write_window"),
        "one write must fit into limits.inflight_bytes",
        "write at least \"1 B\" and at most what limits.inflight_bytes is",
    );
    require(
        limits.queue_wait <= Span::seconds(60),
        ("limits", "queue_wait"),
        "clients give up before",
        "write at most \"60 s\"",
    );

    require(
        config.cleanup.orphan_age.duration() >= limits.chunk_timeout.duration() * 2,
        ("cleanup", "orphan_age"),
        "a slow upload could be taken for left over",
        "write at least twice what limits.chunk_timeout is",
    );

    require(
        (Span::seconds(1)..=Span::days(1)).contains(&config.lifecycle.day),
        ("lifecycle", "day"),
        "no day of a lifecycle rule",
        "write \"1 d\"; anything shorter, from \"1 s\", is for tests: it makes objects expire early",
    );
}

/// Where chunks are, and how they are written.
fn disks(config: &Config, require: &mut impl FnMut(bool, Key, &str, &str)) {
    let storage = &config.storage;
    require(
        storage.segment_size >= Bytes::mib(64) && storage.segment_size <= Bytes::mib(4_096),
        ("storage", "segment_size"),
        "segments hold several chunks of 16 MiB and are at most 4 GiB",
        "write a size from \"64 MiB\" to \"4 GiB\"; \"1 GiB\" suits most disks",
    );
    require(
        storage.segment_size.get().is_multiple_of(1 << 20),
        ("storage", "segment_size"),
        "segments are made of whole MiB",
        "write a whole number of MiB",
    );
    let (silence, fence) = (storage.unresponsive_after, storage.fence_unresponsive_after);
    require(
        silence.nonzero().is_none() || silence >= Span::seconds(1),
        ("storage", "unresponsive_after"),
        "disks that work take as long now and then",
        "write at least \"1 s\", or \"0 s\" to have disks not watched",
    );
    require(
        fence.nonzero().is_none() || silence.nonzero().is_none() || fence >= silence,
        ("storage", "fence_unresponsive_after"),
        "a disk is found unresponsive before it is fenced for it",
        "write at least what storage.unresponsive_after is, or \"0 s\" for never",
    );
    require(storage.large_buffers >= 4, ("storage", "large_buffers"), "one upload needs 4", "write at least 4");
    require(storage.small_buffers >= 4, ("storage", "small_buffers"), "one read needs some", "write at least 4");

    for (at, disk) in config.node.disks.iter().enumerate() {
        require(
            !config.node.disks[..at].contains(disk),
            ("node", "disks"),
            "a directory is named twice",
            "name each disk once",
        );
    }
    require(!config.node.data_dir.as_os_str().is_empty(), ("node", "data_dir"), "empty", "name a directory");
}

/// Where requests come in.
fn front_ends(config: &Config, require: &mut impl FnMut(bool, Key, &str, &str)) {
    let s3 = &config.s3;
    require(
        s3.tls_cert.is_some() == s3.tls_key.is_some(),
        if s3.tls_cert.is_some() { ("s3", "tls_cert") } else { ("s3", "tls_key") },
        "HTTPS needs both a certificate and a key",
        "set both s3.tls_cert and s3.tls_key, or neither",
    );
    for domain in &s3.domains {
        let plausible = !domain.is_empty()
            && domain.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':'))
            && !domain.starts_with('.');
        require(plausible, ("s3", "domains"), "not a host name", "write names such as \"s3.example.com\"");
    }
    let region_fits = !s3.region.is_empty()
        && s3.region.len() <= 64
        && s3.region.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    require(region_fits, ("s3", "region"), "not a region", "write letters, digits and hyphens, such as \"us-east-1\"");
    let same = config.admin.addr == s3.addr && s3.addr.port() != 0;
    require(!same, ("admin", "addr"), "the S3 port is there too", "choose another port");
}

/// What is kept of what happened, and what carries out requests.
fn logs_and_threads(config: &Config, require: &mut impl FnMut(bool, Key, &str, &str)) {
    for (value, key) in
        [(config.journal.errors_age, ("journal", "errors_age")), (config.journal.audit_age, ("journal", "audit_age"))]
    {
        require(value >= Span::hours(1), key, "entries would go before anybody sees them", "write at least \"1 h\"");
    }
    for (value, key) in
        [(config.journal.errors_max, ("journal", "errors_max")), (config.journal.audit_max, ("journal", "audit_max"))]
    {
        let fits = (100..=100_000_000).contains(&value);
        require(
            fits,
            key,
            "too few to be of use, or more than a database should keep",
            "write a number from 100 to 100000000",
        );
    }
    require(
        is_log_filter(&config.log.level),
        ("log", "level"),
        "not a level or filter",
        "write error, warn, info, debug or trace, or a filter such as \"info,holdfast_storage=debug\"",
    );
    require(
        config.data_plane.threads <= 1_024,
        ("data_plane", "threads"),
        "more threads than any machine has cores",
        "write 0 for one thread a core",
    );
}

/// Whether this chooses what is logged. A filter may also be a bare name, which stands for all that is logged under it,
/// and for nothing else: a level with a slip of the pen would silence the node.
fn is_log_filter(text: &str) -> bool {
    let is_level = |word: &str| word.is_empty() || word.parse::<tracing_subscriber::filter::LevelFilter>().is_ok();
    let named = |directive: &str| directive.contains(['=', '[']) || is_level(directive);
    text.split(',').all(|directive| named(directive.trim())) && text.parse::<tracing_subscriber::EnvFilter>().is_ok()
}

type Key = (&'static str, &'static str);

/// Moves to cold tiers, and reads from them.
fn tiering(config: &Config, require: &mut impl FnMut(bool, Key, &str, &str)) {
    let tiering = &config.tiering;
    require(
        (1..=256).contains(&tiering.moves_per_tier),
        ("tiering", "moves_per_tier"),
        "nothing would be moved, or more at once than a tier takes well",
        "write a number from 1 to 256; tiering.enabled = false leaves moves to other nodes",
    );
    require(
        tiering.bandwidth.get() == 0 || tiering.bandwidth >= Bytes::mib(1),
        ("tiering", "bandwidth"),
        "no move of a large object would ever end",
        "write at least \"1 MiB\", or \"0 B\" for no limit",
    );
    require(
        (Span::seconds(1)..=Span::hours(1)).contains(&tiering.claim),
        ("tiering", "claim"),
        "too short to outlast a pause, or too long to notice a loss",
        "write a time from \"1 s\" to \"1 h\"",
    );
    require(
        tiering.piece_grace >= tiering.claim,
        ("tiering", "piece_grace"),
        "what a move that goes on has written could be deleted",
        "write at least what tiering.claim is",
    );
    require(
        (1..=4_096).contains(&tiering.reads_max),
        ("tiering", "reads_max"),
        "nothing could be read, or more at once than a tier takes well",
        "write a number from 1 to 4096",
    );
}

/// What the nodes of a cluster need to find each other and their metadata.
fn cluster(config: &Config, require: &mut impl FnMut(bool, Key, &str, &str)) {
    let (cluster, metadata) = (&config.cluster, &config.metadata);
    for (told, key) in [
        (&cluster.advertise_peer, ("cluster", "advertise_peer")),
        (&cluster.advertise_s3, ("cluster", "advertise_s3")),
        (&cluster.advertise_admin, ("cluster", "advertise_admin")),
    ] {
        let fits = told.as_deref().is_none_or(is_host_and_port);
        require(fits, key, "not an address", "write a host and a port, such as \"node1.example.com:9002\"");
    }
    require(
        (Span::seconds(1)..=Span::seconds(120)).contains(&cluster.session_timeout),
        ("cluster", "session_timeout"),
        "too short to outlast a pause, or too long to notice a loss",
        "write a time from \"1 s\" to \"120 s\"",
    );
    require(
        cluster.repair_bandwidth >= Bytes::mib(1),
        ("cluster", "repair_bandwidth"),
        "nothing would ever be repaired",
        "write at least \"1 MiB\"; to stop repairs for a while, use `holdfast repair pause`",
    );
    let zone_fits = (1..=64).contains(&cluster.zone.len())
        && cluster.zone.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    require(zone_fits, ("cluster", "zone"), "not a zone", "write 1 to 64 letters, digits, '-', '_' or '.'");
    require(
        metadata.connections != 1,
        ("metadata", "connections"),
        "one waits for another",
        "write at least 2, or 0 for as many as suit the number of nodes",
    );
    require(
        metadata.password_file.is_none() || !metadata.url.is_empty(),
        ("metadata", "password_file"),
        "there is no server to use it for",
        "set metadata.url",
    );
    require(
        metadata.tls_ca.is_none() || matches!(metadata.tls, MetadataTls::VerifyCa | MetadataTls::VerifyIdentity),
        ("metadata", "tls_ca"),
        "it would not be used: the server's certificate is not checked",
        "set metadata.tls = \"verify-identity\" too",
    );
    if !cluster.is_on() {
        require(
            metadata.url.is_empty(),
            ("metadata", "url"),
            "a node that runs alone keeps its metadata in SQLite, in its data directory",
            "set cluster.zookeeper too, or take metadata.url away",
        );
        return;
    }
    in_cluster(config, require);
}

/// What a node needs that is one of several.
fn in_cluster(config: &Config, require: &mut impl FnMut(bool, Key, &str, &str)) {
    let (cluster, metadata) = (&config.cluster, &config.metadata);
    let ensemble_fits = cluster.ensemble().is_some_and(|(servers, chroot)| {
        servers.split(',').all(is_host_and_port)
            // With a path behind each server there would be one server, and the others a part of its path.
            && !chroot.contains(',')
            && chroot[1..].split('/').all(|part| !part.is_empty() && part != "." && part != "..")
    });
    require(
        ensemble_fits,
        ("cluster", "zookeeper"),
        "not an ensemble with the cluster's place in it",
        "write host:port of each server and a path of the cluster's own, such as \"zk1:2181,zk2:2181,zk3:2181/holdfast\"",
    );
    require(
        !metadata.url.is_empty(),
        ("cluster", "zookeeper"),
        "a cluster keeps its metadata in MySQL or MariaDB, and none is named",
        "set metadata.url, such as \"mysql://holdfast@db.example.com:3306/holdfast\"",
    );
    if !metadata.url.is_empty() {
        let url = url::Url::parse(&metadata.url).ok().filter(|url| {
            matches!(url.scheme(), "mysql" | "mariadb") && url.has_host() && !url.path().trim_matches('/').is_empty()
        });
        require(
            url.is_some(),
            ("metadata", "url"),
            "not the address of a database",
            "write \"mysql://user@host:3306/database\"",
        );
        require(
            url.is_none_or(|url| url.password().is_none()),
            ("metadata", "url"),
            "a password does not belong where every reader of the configuration sees it",
            "put it into a file and name that in metadata.password_file",
        );
    }
    let reached = |addr: SocketAddr, told: &Option<String>| !addr.ip().is_unspecified() || told.is_some();
    for (addr, told, key, hint) in [
        (cluster.peer_addr, &cluster.advertise_peer, ("cluster", "peer_addr"), "cluster.advertise_peer"),
        (config.s3.addr, &cluster.advertise_s3, ("s3", "addr"), "cluster.advertise_s3"),
        (config.admin.addr, &cluster.advertise_admin, ("admin", "addr"), "cluster.advertise_admin"),
    ] {
        let hint = format!("set {hint} = \"host:port\" to what others reach it by");
        require(reached(addr, told), key, "others cannot be told a wildcard address", &hint);
    }
    require(
        cluster.leave_grace.duration() >= Duration::from_secs(1),
        ("cluster", "leave_grace"),
        "readers with an older shard map would find nothing",
        "write at least \"1 s\"; more than a download of one chunk takes is right",
    );
    require(
        cluster.rebuild_delay.duration() >= cluster.session_timeout.duration(),
        ("cluster", "rebuild_delay"),
        "a restart would move data",
        "write at least what cluster.session_timeout is",
    );
}

fn is_host_and_port(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        let plausible = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b'[' | b']' | b'_');
        !host.is_empty() && host.bytes().all(plausible) && port.parse::<u16>().is_ok()
    })
}
