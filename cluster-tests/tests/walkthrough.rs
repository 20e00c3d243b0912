//! The README's walkthrough of a cluster, run as it is printed: only ports, the way to the binary and the keys are put
//! in.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use holdfast_cluster_tests::node::binary;
use holdfast_cluster_tests::services::process::free_port;

/// It takes twenty seconds on an idle machine.
const PATIENCE: Duration = Duration::from_secs(600);

/// The blocks of shell commands in a section of a document.
fn blocks(document: &str, section: &str) -> Vec<String> {
    let text = document.split_once(section).unwrap().1;
    let text = text.split("\n## ").next().unwrap();
    text.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
}

/// The first three digits of node addresses that are printed as `90`, such that `9010` to `9032` are free.
fn free_prefix() -> String {
    let is_free = |port: u16| {
        TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() && UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
    };
    let ports = |prefix: u16| [10, 11, 12, 20, 21, 22, 30, 31, 32].map(|last| prefix * 100 + last);
    // Below the ports that the system gives away by itself.
    let prefix = (200..320).rev().find(|prefix| ports(*prefix).into_iter().all(is_free));
    prefix.expect("free ports").to_string()
}

/// The blocks as one script, for another place than the reader's.
fn script(blocks: &[String]) -> String {
    let text = blocks.concat();
    let line = |start: &str| {
        text.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("no line begins with {start}"))
    };
    let mut text = text
        .replace(line("cargo build"), &format!("export PATH={}:$PATH", binary().parent().unwrap().display()))
        .replace(line("holdfast root create"), "holdfast root create --config node1.toml | tee keys")
        .replace(
            line("export AWS_ACCESS_KEY_ID"),
            "export AWS_ACCESS_KEY_ID=$(sed -n 's/^access key: //p' keys) \
             AWS_SECRET_ACCESS_KEY=$(sed -n 's/^secret key: //p' keys) AWS_DEFAULT_REGION=us-east-1\n\
             head -c 3000000 /dev/urandom > cat.jpg",
        )
        .replace("12181", &free_port().to_string())
        .replace("13306", &free_port().to_string());
    let prefix = free_prefix();
    for (printed, own) in [("90${n}", "${n}"), ("901", "1"), ("902", "2"), ("903", "3")] {
        text = text.replace(&format!("127.0.0.1:{printed}"), &format!("127.0.0.1:{prefix}{own}"));
    }
    assert!(!text.contains("127.0.0.1:9"), "an address is printed in another way:\n{text}");
    if rustix::process::getuid().is_root() {
        for program in ["mariadb-install-db", "mariadbd"] {
            text = text.replace(&format!("{program} --no-defaults"), &format!("{program} --no-defaults --user=root"));
        }
    }
    // Jobs as a terminal has them, for `%5`; the first command that fails ends it, which a reader would notice too.
    format!("set -m -e\n{text}\necho WALKED TO THE END\n")
}

/// Runs it in a session of its own, of which nothing is left afterwards.
fn run(script: &Path) -> Output {
    let dir = script.parent().unwrap();
    let files = ["out", "err"].map(|name| fs::File::create(dir.join(name)).unwrap());
    let [out, err] = files;
    let mut command = Command::new("setsid");
    command.args(["--wait", "bash"]).arg(script).current_dir(dir).stdin(Stdio::null()).stdout(out).stderr(err);
    for name in ["HOLDFAST_CONFIG", "HOLDFAST_DATA_DIR", "HOLDFAST_ADMIN_ADDR", "AWS_PROFILE", "AWS_ENDPOINT_URL"] {
        command.env_remove(name);
    }
    // Debian's programs first: a version manager's shims may hide them.
    let path = format!("/usr/bin:{}", std::env::var("PATH").unwrap_or_default());
    command.env("AWS_EC2_METADATA_DISABLED", "true").env("HOME", dir).env("PIDFILE", dir.join("pid")).env("PATH", path);
    let mut child = command.spawn().unwrap();
    let begun = Instant::now();
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break Some(status),
            None if begun.elapsed() > PATIENCE => break None,
            None => std::thread::sleep(Duration::from_millis(50)),
        }
    };
    let session = fs::read_to_string(dir.join("pid")).unwrap_or_default();
    let _killed = Command::new("pkill").args(["-KILL", "-s", session.trim()]).status().unwrap();
    let [stdout, stderr] = ["out", "err"].map(|name| fs::read(dir.join(name)).unwrap());
    let shown = || format!("{}\n{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    let status = status.unwrap_or_else(|| panic!("it does not end:\n{}", shown()));
    assert!(status.success(), "{status}:\n{}", shown());
    Output { status, stdout, stderr }
}

#[test]
fn the_walkthrough_of_the_readme_works_as_printed() {
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md")).unwrap();
    let script = script(&blocks(&readme, "\n## A cluster\n"));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("walkthrough.sh");
    fs::write(&file, format!("echo $$ > $PIDFILE\n{script}")).unwrap();
    let output = run(&file);
    let text = String::from_utf8_lossy(&output.stdout);
    let at = |what: &str| text.find(what).unwrap_or_else(|| panic!("{what:?} was not said:\n{text}"));
    // Made, one node lost, and healed: in this order.
    let (made, lost) = (at("is healthy"), at("is DEGRADED"));
    let healed = text.rfind("is healthy").unwrap();
    assert!(made < lost && lost < healed, "{text}");
    assert!(text.contains("256 shards: 256 healthy"), "{text}");
}
