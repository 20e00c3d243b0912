//! The services beside a node: Redis, with what is kept there, and RocketMQ.

use super::super::{Bytes, Config, LocksBackend, Span};
use super::{Key, is_host_and_port};
use crate::metadata::RedisAddress;
use crate::metadata::redis::RedisPlace;

/// The Redis server that keeps locks.
pub(super) fn redis(config: &Config, require: &mut impl FnMut(bool, Key, &str, &str)) {
    let redis = &config.redis;
    let used = config.locks.backend == LocksBackend::Redis;
    if redis.url.is_empty() {
        require(
            !used,
            ("redis", "url"),
            "locks.backend is \"redis\", and no server is named",
            "set redis.url, such as \"redis://cache.example.com:6379/0\"",
        );
        for (set, key) in [
            (redis.user.is_some(), ("redis", "user")),
            (redis.password_file.is_some(), ("redis", "password_file")),
            (redis.tls_ca.is_some(), ("redis", "tls_ca")),
        ] {
            require(!set, key, "there is no server to use it for", "set redis.url");
        }
    } else {
        require(
            used,
            ("redis", "url"),
            "nothing uses it: locks are not in Redis, and the cache has an address of its own",
            "set locks.backend = \"redis\", or remove it and set cache.redis",
        );
        let url = url::Url::parse(&redis.url).ok();
        let url = url.filter(|url| matches!(url.scheme(), "redis" | "rediss") && url.has_host());
        require(
            url.is_some(),
            ("redis", "url"),
            "not the address of a Redis server",
            "write \"redis://host:6379/0\", or \"rediss://host:6379/0\" for TLS",
        );
        require(
            url.is_none_or(|url| url.password().is_none()),
            ("redis", "url"),
            "a password does not belong where every reader of the configuration sees it",
            "put it into a file and name that in redis.password_file",
        );
        require(
            redis.user.is_none() || redis.password_file.is_some(),
            ("redis", "user"),
            "a user needs a password",
            "name a file with it in redis.password_file",
        );
        require(
            redis.tls_ca.is_none() || redis.url.starts_with("rediss:"),
            ("redis", "tls_ca"),
            "the connection is not encrypted",
            "write redis.url with rediss://",
        );
    }
    require(
        (Span::milliseconds(10)..=Span::seconds(30)).contains(&redis.timeout),
        ("redis", "timeout"),
        "too short for any network, or longer than a request waits",
        "write a time from \"10 ms\" to \"30 s\"",
    );
}

/// Where locks are, and for how long.
pub(super) fn locks(config: &Config, require: &mut impl FnMut(bool, Key, &str, &str)) {
    let (redis, locks) = (&config.redis, &config.locks);
    let used = locks.backend == LocksBackend::Redis;
    require(
        (Span::seconds(2)..=Span::seconds(120)).contains(&locks.time_limit),
        ("locks", "time_limit"),
        "too short to outlast a pause, or too long to notice a loss",
        "write a time from \"2 s\" to \"120 s\"",
    );
    require(
        !used || locks.time_limit.duration() >= redis.timeout.duration() * 5,
        ("locks", "time_limit"),
        "one slow command would lose a lock",
        "write at least five times what redis.timeout is",
    );
    let clustered = config.cluster.is_on();
    require(
        locks.backend != LocksBackend::Zookeeper || clustered,
        ("locks", "backend"),
        "a node that runs alone has no ZooKeeper",
        "write \"auto\", or set cluster.zookeeper",
    );
    require(
        locks.backend != LocksBackend::InProcess || !clustered,
        ("locks", "backend"),
        "the other nodes of the cluster would not see the locks of this one",
        "write \"auto\", \"zookeeper\" or \"redis\"",
    );
}

/// The cache before the metadata of a cluster.
pub(super) fn cache(config: &Config, require: &mut impl FnMut(bool, Key, &str, &str)) {
    let cache = &config.cache;
    if cache.redis.is_empty() {
        for (set, key) in [
            (cache.password_file.is_some(), ("cache", "password_file")),
            (cache.sentinel_password_file.is_some(), ("cache", "sentinel_password_file")),
            (cache.tls_ca.is_some(), ("cache", "tls_ca")),
        ] {
            require(!set, key, "there is no server to use it for", "set cache.redis");
        }
        return;
    }
    require(
        config.cluster.is_on(),
        ("cache", "redis"),
        "a node that runs alone keeps its cache in memory",
        "remove it, or set cluster.zookeeper and metadata.url",
    );
    let address = RedisAddress::parse(&cache.redis);
    if let Err(wrong) = &address {
        require(false, ("cache", "redis"), wrong, "write \"redis://user@host:6379\"");
    }
    let is_tls = address.as_ref().is_ok_and(|address| address.tls);
    require(
        cache.tls_ca.is_none() || is_tls,
        ("cache", "tls_ca"),
        "the connection is not encrypted",
        "write rediss in place of redis in cache.redis",
    );
    let has_sentinels = address.is_ok_and(|address| matches!(address.place, RedisPlace::Sentinels(..)));
    require(
        cache.sentinel_password_file.is_none() || has_sentinels,
        ("cache", "sentinel_password_file"),
        "no Sentinel is asked",
        "write \"redis+sentinel://host:26379,host:26379/name\" in cache.redis",
    );
    for (value, key) in
        [(cache.read_timeout, ("cache", "read_timeout")), (cache.write_timeout, ("cache", "write_timeout"))]
    {
        let plausible = value >= Span::milliseconds(1) && value <= Span::seconds(10);
        require(plausible, key, "nobody could work with that", "write a time from \"1 ms\" to \"10 s\"");
    }
    for (value, key) in [(cache.ttl, ("cache", "ttl")), (cache.absent_ttl, ("cache", "absent_ttl"))] {
        require(value >= Span::seconds(1), key, "nothing would be found", "write at least \"1 s\"");
    }
    require(
        cache.value_max >= Bytes::kib(1) && cache.value_max <= Bytes::mib(8),
        ("cache", "value_max"),
        "most objects need less than a KiB, and Redis stands still while it copies",
        "write a size from \"1 KiB\" to \"8 MiB\"",
    );
}

/// What RocketMQ is reached by.
pub(super) fn events(config: &Config, require: &mut impl FnMut(bool, Key, &str, &str)) {
    let events = &config.events;
    require(
        events.rocketmq.is_empty() || events.rocketmq.split(',').all(|server| is_host_and_port(server.trim())),
        ("events", "rocketmq"),
        "not addresses of name servers",
        "write host:port of each, such as \"mq1.example.com:9876,mq2.example.com:9876\"",
    );
    require(
        events.access_key.is_some() == events.secret_key_file.is_some(),
        if events.access_key.is_some() { ("events", "access_key") } else { ("events", "secret_key_file") },
        "a user of RocketMQ needs both a name and a secret",
        "set both events.access_key and events.secret_key_file, or neither",
    );
    require(
        events.tls || events.tls_ca.is_none(),
        ("events", "tls_ca"),
        "no certificate is looked at without TLS",
        "set events.tls = true too",
    );
    require(
        events.tls || events.tls_server_name.is_none(),
        ("events", "tls_server_name"),
        "there is no certificate to compare it with",
        "set events.tls = true too",
    );
    let prefix_fits = (1..=64).contains(&events.topic_prefix.len())
        && events.topic_prefix.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    require(
        prefix_fits,
        ("events", "topic_prefix"),
        "not the beginning of a name of RocketMQ's",
        "write 1 to 64 letters, digits, '-' or '_'",
    );
    require(
        (1..=128).contains(&events.topic_queues),
        ("events", "topic_queues"),
        "a topic needs queues, and not so many",
        "write a number from 1 to 128; 8 suits most",
    );
    let is_name = |name: &str| {
        let name = name.trim();
        !name.is_empty()
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'|' | b'%'))
    };
    require(
        events.brokers.is_empty()
            || (events.brokers.split(',').all(is_name) && events.brokers.split(',').count() <= 64),
        ("events", "brokers"),
        "not names of brokers, or more than 64",
        "write the brokerName of each broker that has the topics, such as \"broker-a,broker-b\"",
    );
    require(
        events.replay_events <= 10_000_000,
        ("events", "replay_events"),
        "the database would hold little else",
        "write at most 10000000; set events.replay_age = \"0 s\" to keep none",
    );
}
