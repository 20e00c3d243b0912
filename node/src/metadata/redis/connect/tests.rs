//! What a server says of itself, and real servers behind TLS, ACL users and a Sentinel.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use holdfast_actors::wait::until;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use super::super::options::RedisAddress;
use super::super::tests::services::process::{Process, free_port};
use super::super::tests::services::redis::Server;
use super::*;

/// Longer than a busy machine holds up an answer: what is told here is told by the server.
const CONNECT_MAX: Duration = Duration::from_secs(30);

const INFO: &str = "# Server\r\nredis_version:7.0.15\r\nredis_mode:standalone\r\nrun_id:abc\r\n# Replication\r\n\
                    role:master\r\nmaster_replid:def\r\n";

#[test]
fn a_primary_of_its_own_can_hold_the_cache() {
    assert_eq!(judge(INFO).unwrap(), "abc-def");
}

#[test]
fn what_cannot_hold_it_is_told_why() {
    for (from, to, why) in [
        ("standalone", "cluster", "Redis Cluster"),
        ("7.0.15", "6.2.1", "7.0 or newer"),
        ("role:master", "role:slave", "replica"),
        ("run_id:abc", "", "run_id"),
    ] {
        let error = judge(&INFO.replace(from, to)).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn a_file_without_a_certificate_is_named() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut options = RedisCacheOptions::new(RedisAddress::parse("rediss://127.0.0.1").unwrap());
    options.tls_ca = Some(file.path().to_owned());
    let refused = tls(&options).err().expect("nobody could be trusted");
    assert!(refused.contains("cache.tls_ca"), "{refused}");
}

/// A certificate of `127.0.0.1` by an authority of its own: `ca.pem`, `cert.pem` and `key.pem`.
fn certify(dir: &Path) {
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate =
        CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &authority).unwrap();
    std::fs::write(dir.join("ca.pem"), authority.pem()).unwrap();
    std::fs::write(dir.join("cert.pem"), certificate.pem()).unwrap();
    std::fs::write(dir.join("key.pem"), key.serialize_pem()).unwrap();
}

fn redis_server(dir: &Path, log: &str, arguments: &[&str]) -> Process {
    let mut command = Command::new("redis-server");
    command.args(arguments).args(["--dir", &dir.display().to_string()]);
    Process::start_logged(&mut command, &dir.join(log)).expect("redis-server starts: apt-get install redis-server")
}

/// Connects until it is the server that is wanted.
async fn connected(options: &RedisCacheOptions, wanted: impl Fn(&str) -> bool) -> Identity {
    let try_it = async || connect(options).await.map(|(_, identity)| identity);
    let found = until("it connects", try_it, |found| found.as_ref().is_ok_and(|identity| wanted(identity))).await;
    found.unwrap()
}

#[tokio::test]
async fn a_server_is_trusted_by_its_certificate_and_lets_in_a_user_by_its_password() {
    let dir = tempfile::tempdir().unwrap();
    certify(dir.path());
    let file = |name: &str| dir.path().join(name).display().to_string();
    let port = free_port();
    let (tls_port, cert, key, ca) = (port.to_string(), file("cert.pem"), file("key.pem"), file("ca.pem"));
    let arguments = [
        &["--port", "0", "--bind", "127.0.0.1", "--save", "", "--tls-port", &tls_port, "--tls-auth-clients", "no"][..],
        &["--tls-cert-file", &cert, "--tls-key-file", &key, "--tls-ca-cert-file", &ca],
        &["--user", "default", "off", "--user", "holdfast", "on", ">secret", "~*", "&*", "+@all"],
    ];
    let _server = redis_server(dir.path(), "log", &arguments.concat());
    let options = |user: &str, password: &str| {
        let at = format!("rediss://{user}@127.0.0.1:{port}");
        let mut options = RedisCacheOptions::new(RedisAddress::parse(&at).unwrap());
        options.connect_timeout = CONNECT_MAX;
        options.password = Some(password.to_owned());
        options.tls_ca = Some(dir.path().join("ca.pem"));
        options
    };
    connected(&options("holdfast", "secret"), |_| true).await;

    let denied = connect(&options("holdfast", "guessed")).await.err().expect("a wrong password");
    assert!(denied.contains("authentication failed"), "{denied}");
    let mut stranger = options("holdfast", "secret");
    let other = tempfile::tempdir().unwrap();
    certify(other.path());
    stranger.tls_ca = Some(other.path().join("ca.pem"));
    let refused = connect(&stranger).await.err().expect("a certificate of another authority");
    assert!(refused.contains("certificate"), "{refused}");
    let mut plain = options("holdfast", "secret");
    plain.address.tls = false;
    assert!(connect(&plain).await.is_err(), "without TLS");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sentinel_leads_to_the_primary_and_to_its_successor() {
    let dir = tempfile::tempdir().unwrap();
    let (mut first, second) = tokio::task::spawn_blocking(|| (Server::start(), Server::start())).await.unwrap();
    let (first_port, sentinel_port) = (first.address().port().to_string(), free_port());
    assert_eq!(second.command(&["REPLICAOF", "127.0.0.1", &first_port]), "+OK");
    let config = dir.path().join("sentinel.conf");
    // A primary that is only slow to answer must not be replaced before it is killed.
    let text = format!(
        "port {sentinel_port}\nbind 127.0.0.1\nsentinel monitor holdfast 127.0.0.1 {first_port} 1\n\
         sentinel down-after-milliseconds holdfast 3000\nsentinel failover-timeout holdfast 2000\n"
    );
    std::fs::write(&config, text).unwrap();
    let _sentinel = redis_server(dir.path(), "sentinel.log", &[&config.display().to_string(), "--sentinel"]);
    let at = format!("redis+sentinel://127.0.0.1:1,127.0.0.1:{sentinel_port}/holdfast");
    let mut options = RedisCacheOptions::new(RedisAddress::parse(&at).unwrap());
    options.connect_timeout = CONNECT_MAX;
    // A Sentinel that is gone is passed by.
    let primary = connected(&options, |_| true).await;

    // Its only successor is known to the Sentinel, and has all that the primary has.
    let replication = async || second.command(&["INFO", "replication"]);
    until("the replica follows", replication, |told| told.contains("master_link_status:up")).await;
    let mut sentinel = std::net::TcpStream::connect(("127.0.0.1", sentinel_port)).unwrap();
    let known = async || tokio::task::block_in_place(|| ask_sentinel(&mut sentinel));
    until("the Sentinel knows the replica", known, |told| told.contains("num-slaves\r\n$1\r\n1")).await;
    first.kill();
    let successor = connected(&options, |identity| identity != primary).await;
    assert_ne!(successor, primary);

    let mut unknown = options.clone();
    unknown.address = RedisAddress::parse(&format!("redis+sentinel://127.0.0.1:{sentinel_port}/other")).unwrap();
    let error = connect(&unknown).await.err().expect("nobody of that name");
    assert!(error.contains("knows no primary"), "{error}");
}

/// What a Sentinel says of its primary, as the protocol writes it.
fn ask_sentinel(stream: &mut std::net::TcpStream) -> String {
    use std::io::{Read as _, Write as _};

    stream.write_all(b"SENTINEL MASTER holdfast\r\n").unwrap();
    let mut answer = vec![0; 16 << 10];
    let read = stream.read(&mut answer).unwrap();
    String::from_utf8_lossy(&answer[..read]).into_owned()
}
