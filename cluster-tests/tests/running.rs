//! Starting, stopping, health, metrics, memory, and the commands that an operator uses.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use holdfast_cluster_tests::client::{Client, Connection, Payload, Request};
use holdfast_cluster_tests::cluster::private_file;
use holdfast_cluster_tests::content::Random;
use holdfast_cluster_tests::node::{ACCESS_KEY, Node, SECRET_KEY};
use holdfast_cluster_tests::services::process::{Process, free_ports};
use holdfast_cluster_tests::{content, eventually, parameter};
use rustix::process::Signal;
use time::OffsetDateTime;

#[test]
fn what_was_stored_is_there_after_sigterm_and_after_kill_9() {
    let mut node = Node::start();
    node.client().create_bucket("kept");
    let body = content::bytes(1, 1_500_000);
    assert_eq!(node.client().put("kept", "a", &body).unwrap().status, 200);
    node.stop();
    node.restart();
    assert_eq!(node.client().get("kept", "a").unwrap().body, body);
    assert_eq!(node.client().put("kept", "b", &body).unwrap().status, 200);
    node.kill();
    node.restart();
    assert_eq!(node.client().get("kept", "b").unwrap().body, body);
    assert_eq!(node.client().list("kept", "").unwrap(), ["a", "b"]);
}

/// Begins an upload of so many bytes, and returns when the node asks for its body: what only lies in a socket is not in
/// flight yet.
fn begin_upload(client: &Client, path: &str, length: usize) -> Connection {
    let length = length.to_string();
    let headers = [("content-length", length.as_str()), ("expect", "100-continue")];
    let put = Request { method: "PUT", path, headers: &headers, ..Request::default() };
    let head = client.head(&put, Payload::Literal("UNSIGNED-PAYLOAD"), OffsetDateTime::now_utc());
    let mut connection = client.connect().unwrap();
    connection.write(head.as_bytes()).unwrap();
    assert_eq!(connection.read_head().unwrap().0, 100);
    connection
}

#[test]
fn sigterm_drains_requests_in_flight_and_refuses_new_connections() {
    // Far longer than the test waits for its end: it ends because its last request is answered.
    let mut node = Node::start_with(&[("HOLDFAST_NODE_SHUTDOWN_TIMEOUT", "10min")]);
    let client = node.client();
    client.create_bucket("drain");
    let body = content::bytes(2, 4 << 20);
    assert_eq!(client.put("drain", "down", &body).unwrap().status, 200);

    // An upload that is half sent, and a download that is half read.
    let mut up = begin_upload(&client, "/drain/up", body.len());
    up.write(&body[..1 << 20]).unwrap();
    let get = Request { method: "GET", path: "/drain/down", ..Request::default() };
    let mut down = client.connect().unwrap();
    down.write(client.head(&get, Payload::Hash(b""), OffsetDateTime::now_utc()).as_bytes()).unwrap();
    down.read_head().unwrap();

    node.signal(Signal::TERM);
    eventually("the node to stop accepting", Duration::from_secs(60), || {
        client.connect().is_err() || client.get("drain", "down").is_err()
    });
    up.write(&body[1 << 20..]).unwrap();
    assert_eq!(up.read_response("PUT").unwrap().status, 200, "the upload in flight was not drained");
    let mut got = Vec::new();
    let mut buffer = vec![0; 1 << 20];
    while got.len() < body.len() {
        let n = down.read(&mut buffer).unwrap();
        assert_ne!(n, 0, "the download in flight was cut at {} bytes", got.len());
        got.extend_from_slice(&buffer[..n]);
    }
    assert!(got == body);
    let begin = Instant::now();
    assert!(node.wait().success());
    println!("stopped {:?} after its last request", begin.elapsed());
    node.restart();
    assert_eq!(node.client().get("drain", "up").unwrap().body, body);
}

#[test]
fn sigterm_does_not_wait_for_ever_for_a_client_that_does_nothing() {
    let mut node = Node::start_with(&[("HOLDFAST_NODE_SHUTDOWN_TIMEOUT", "1s")]);
    let client = node.client();
    client.create_bucket("idle");
    let _stuck = begin_upload(&client, "/idle/k", 1000);
    let _idle = client.connect().unwrap();
    node.signal(Signal::TERM);
    let begin = Instant::now();
    node.wait();
    // Half a minute is what it waits without being told.
    assert!(begin.elapsed() < Duration::from_secs(28), "stopped only after {:?}", begin.elapsed());
}

#[test]
fn a_second_sigterm_ends_a_node_that_waits_for_its_requests() {
    // Both far longer than the test waits for the end of a process.
    let patient = [("HOLDFAST_NODE_SHUTDOWN_TIMEOUT", "10min"), ("HOLDFAST_LIMITS_IDLE_TIMEOUT", "10min")];
    let mut node = Node::start_with(&patient);
    let client = node.client();
    client.create_bucket("stuck");
    let _stuck = begin_upload(&client, "/stuck/k", 1000);
    node.signal(Signal::TERM);
    eventually("the node to stop accepting", Duration::from_secs(60), || {
        client.connect().is_err() || client.get("stuck", "k").is_err()
    });
    node.signal(Signal::TERM);
    assert_eq!(node.wait().code(), Some(130));
}

#[test]
fn sighup_stops_a_node_as_sigterm_does() {
    let mut node = Node::start();
    let status = format!("/proc/{}/status", node.pid());
    let has_hangup = |mask: &str| {
        let text = fs::read_to_string(&status).unwrap();
        let mask = text.lines().find_map(|line| line.strip_prefix(mask)).unwrap();
        u64::from_str_radix(mask.trim(), 16).unwrap() & 1 != 0
    };
    eventually("the node decides about SIGHUP", Duration::from_secs(60), || {
        has_hangup("SigCgt:") || has_hangup("SigIgn:")
    });
    if has_hangup("SigIgn:") {
        println!("the tests were told to ignore SIGHUP, and so is the node");
        return;
    }
    node.signal(Signal::HUP);
    assert!(node.wait().success(), "the node was killed by it");
}

/// As session managers send them. Only a second SIGTERM is somebody's wish not to wait.
#[test]
fn sigterm_together_with_sighup_stops_a_node_cleanly() {
    let mut node = Node::start();
    node.signal(Signal::HUP);
    node.signal(Signal::TERM);
    assert!(node.wait().success(), "it was cut off");
}

/// It ends by itself, and not because the kernel ends it: the first process of a container would go on otherwise.
#[test]
fn sigterm_during_the_start_ends_a_node_at_once() {
    let first = free_ports(2);
    let [s3, admin] = [first, first + 1].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
    // Nobody answers there, and a node tries for a minute to reach it.
    let nowhere = "127.0.0.1:1";
    let node = Node::configured("node", [s3, admin], &[], |scratch| {
        format!(
            "[node]\ndata_dir = \"{}\"\n[s3]\naddr = \"{s3}\"\n[admin]\naddr = \"{admin}\"\n\
             [cluster]\nzookeeper = \"{nowhere}/holdfast\"\n\
             [metadata]\nurl = \"mysql://holdfast@{nowhere}/holdfast\"\ntls = \"off\"\n",
            scratch.join("data").display()
        )
    });
    let mut process = Process::start(node.command(&["node"]).stdin(Stdio::null()).stderr(Stdio::null())).unwrap();
    eventually("the node begins to start", Duration::from_secs(60), || {
        assert!(process.ended().is_none(), "it does not even begin");
        node.admin_get("/health/live").is_ok_and(|answer| answer.status == 200)
    });
    assert_eq!(node.admin_get("/health/ready").unwrap().status, 503);
    process.signal(Signal::TERM);
    let mut ended = None;
    eventually("the node ends", Duration::from_secs(60), || {
        ended = process.ended();
        ended.is_some()
    });
    assert!(ended.is_some_and(|status| status.success()), "{ended:?}");
}

#[test]
fn a_node_whose_log_cannot_be_written_serves_on() {
    let mut node = Node::start();
    node.client().create_bucket("quiet");
    node.stop();
    // Its log lies on a disk that is full.
    let log = node.scratch().join("node.log");
    fs::remove_file(&log).unwrap();
    symlink("/dev/full", &log).unwrap();
    let started = node.try_restart();
    // What shows logs after a failure would read there for ever.
    fs::remove_file(&log).unwrap();
    started.unwrap();
    let body = content::bytes(6, 100_000);
    assert_eq!(node.client().put("quiet", "key", &body).unwrap().status, 200);
    assert_eq!(node.client().get("quiet", "key").unwrap().body, body);
    node.stop();
}

#[test]
fn a_variable_that_nothing_reads_is_told_of_and_ends_no_node() {
    let node = Node::start_with(&[("HOLDFAST_METADTA_URL", "mysql://db/holdfast")]);
    let meant = "did you mean `HOLDFAST_METADATA_URL`?";
    let log = node.log();
    assert!(log.contains("HOLDFAST_METADTA_URL") && log.contains(meant), "{log}");
    let told = |arguments: &[&str]| {
        let output = node.try_cli(arguments);
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, complaint) = told(&["config", "check"]);
    assert!(code == Some(2) && complaint.contains("HOLDFAST_METADTA_URL"), "{code:?} {complaint}");
    assert!(complaint.contains(meant), "{complaint}");
    let (code, warning) = told(&["config", "show"]);
    assert!(
        code == Some(0) && warning.contains("HOLDFAST_METADTA_URL") && warning.contains(meant),
        "{code:?} {warning}"
    );
    // Who asks a node is not told of what is the node's.
    assert_eq!(told(&["status"]), (Some(0), String::new()));
}

#[test]
fn a_node_becomes_ready_and_says_how_it_is() {
    let begin = Instant::now();
    let node = Node::start();
    // A second is promised and measured elsewhere: here many tests share the machine, and one that hangs is found out.
    println!("ready after {:?}", begin.elapsed());
    assert_eq!(node.admin_get("/health/live").unwrap().status, 200);
    assert_eq!(node.admin_get("/health/ready").unwrap().status, 200);
    node.client().create_bucket("metrics");
    let body = content::bytes(1, 100_000);
    assert_eq!(node.client().put("metrics", "k", &body).unwrap().status, 200);
    assert_eq!(node.client().get("metrics", "k").unwrap().status, 200);
    let metrics = node.admin_get("/metrics").unwrap();
    assert_eq!(metrics.status, 200);
    let text = metrics.text();
    for wanted in ["holdfast_s3_requests_total", "holdfast_s3_request_seconds_bucket", "holdfast_storage_syncs_total"] {
        // Counted a moment after the answer.
        eventually(wanted, Duration::from_secs(60), || node.metric(wanted, &[]).unwrap().unwrap_or(0.0) > 0.0);
    }
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        assert!(line.starts_with("holdfast_") || line.starts_with("process_"), "`{line}`");
    }
    for path in ["/v1/users", "/v1/keys"] {
        let response = node.admin_get(path).unwrap();
        assert!(matches!(response.status, 401 | 403 | 404), "{path} answers {} without a token", response.status);
    }
}

#[test]
fn large_resident_bodies_leave_without_being_copied() {
    let node = Node::start();
    let client = node.client();
    client.create_bucket("zerocopy");
    let body = content::bytes(3, 8 << 20);
    assert_eq!(client.put("zerocopy", "k", &body).unwrap().status, 200);
    let copied = || node.metric("holdfast_http_copied_bytes_total", &[]).unwrap().expect("the metric exists");
    let range = Request {
        method: "GET",
        path: "/zerocopy/k",
        headers: &[("range", "bytes=4096-266239")],
        ..Request::default()
    };
    // A machine that is short of memory may take pages away at any moment.
    eventually("a round in which nothing but heads is copied", Duration::from_secs(180), || {
        // The first GET after an O_DIRECT write is cold: it brings the pages in.
        for _ in 0..3 {
            assert_eq!(client.get("zerocopy", "k").unwrap().body, body);
        }
        let before = copied();
        for _ in 0..10 {
            assert_eq!(client.get("zerocopy", "k").unwrap().body.len(), 8 << 20);
            assert_eq!(client.send(&range).unwrap().body, body[4096..266_240]);
        }
        // Twenty heads, and the same for the scrapes' own; far below one body.
        let more = copied() - before;
        println!("{more} bytes copied while 82.5 MiB were sent");
        more < 40_000.0
    });
}

/// Samples the node's memory until `done`, and gives back the largest anonymous part.
fn peak_while(node: &Node, work: impl FnOnce() + Send) -> u64 {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sampler = scope.spawn(|| {
            let mut peak = 0;
            while !done.load(Ordering::Relaxed) {
                peak = peak.max(node.memory().1);
                // A sample now and then.
                std::thread::sleep(Duration::from_millis(20));
            }
            peak
        });
        // A failed assertion must reach the test, and not leave it waiting for the sampler.
        let worked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        done.store(true, Ordering::Relaxed);
        let peak = sampler.join().unwrap();
        worked.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        peak
    })
}

const MEMORY_MAX: u64 = 256 << 20;
/// For how long an upload is tried again.
const PATIENCE: Duration = Duration::from_secs(300);

/// `HOLDFAST_TEST_UPLOAD_MIB` sets the size of each upload: 1024 is the figure of the promise, 64 fits into CI.
#[test]
fn memory_stays_bounded_with_64_large_uploads_at_once() {
    let node = Node::start();
    let client = node.client();
    client.create_bucket("memory");
    let mib = parameter("HOLDFAST_TEST_UPLOAD_MIB", 32) as usize;
    let piece = content::bytes(1, 1 << 20);
    let length = (mib << 20).to_string();
    let peak = peak_while(&node, || {
        std::thread::scope(|scope| {
            for n in 0..64 {
                let (client, piece, length) = (&client, &piece, &length);
                scope.spawn(move || {
                    let path = format!("/memory/{n}");
                    let headers = [("content-length", length.as_str())];
                    let put = Request { method: "PUT", path: &path, headers: &headers, ..Request::default() };
                    // SlowDown is an allowed answer to 64 at once; then the client tries again.
                    let begin = Instant::now();
                    loop {
                        let mut connection = client.connect().unwrap();
                        let head = client.head(&put, Payload::Literal("UNSIGNED-PAYLOAD"), OffsetDateTime::now_utc());
                        connection.write(head.as_bytes()).unwrap();
                        let sent = (0..mib).try_for_each(|_| connection.write(piece));
                        match connection.read_response("PUT") {
                            Ok(response) if response.status == 200 => {
                                sent.unwrap();
                                return;
                            }
                            Ok(response) => assert_eq!(response.status, 503, "{}", response.text()),
                            // Refused before all of the body was read, and closed: what is on its way is lost then.
                            Err(error) => {
                                assert!(sent.is_err() || error.kind() == ErrorKind::ConnectionReset, "{error}")
                            }
                        }
                        assert!(begin.elapsed() < PATIENCE, "refused for {PATIENCE:?}");
                        // A client that was told to slow down does, each in its own time.
                        std::thread::sleep(Duration::from_millis(100 + 13 * n));
                    }
                });
            }
        });
    });
    assert!(peak <= MEMORY_MAX, "{} MiB of anonymous memory with 64 uploads", peak >> 20);
    println!("64 uploads of {mib} MiB: at most {} MiB anonymous", peak >> 20);
}

#[test]
fn memory_stays_bounded_with_64_slow_readers() {
    let node = Node::start();
    let client = node.client();
    client.create_bucket("memory");
    let size = 64 << 20;
    assert_eq!(client.put("memory", "k", &content::bytes(1, size)).unwrap().status, 200);
    let peak = peak_while(&node, || {
        std::thread::scope(|scope| {
            for _ in 0..64 {
                scope.spawn(|| {
                    let get = Request { method: "GET", path: "/memory/k", ..Request::default() };
                    let mut connection = client.connect().unwrap();
                    let head = client.head(&get, Payload::Hash(b""), OffsetDateTime::now_utc());
                    connection.write(head.as_bytes()).unwrap();
                    let (status, _) = connection.read_head().unwrap();
                    assert_eq!(status, 200);
                    let mut buffer = vec![0; 64 << 10];
                    for _ in 0..40 {
                        assert_ne!(connection.read(&mut buffer).unwrap(), 0);
                        // It is slow: that is what is tried.
                        std::thread::sleep(Duration::from_millis(50));
                    }
                });
            }
        });
    });
    assert!(peak <= MEMORY_MAX, "{} MiB of anonymous memory with 64 slow readers", peak >> 20);
    println!("64 slow readers: at most {} MiB anonymous", peak >> 20);
}

#[test]
fn users_and_keys_are_made_used_disabled_and_rotated_by_the_cli() {
    let mut node = Node::start();
    node.client().create_bucket("owned");
    node.cli(&["user", "create", "alice"]);
    let made: serde_json::Value = serde_json::from_str(&node.cli(&["key", "create", "alice", "--json"])).unwrap();
    let field = |value: &serde_json::Value, name: &str| value[name].as_str().unwrap().to_owned();
    let (access_key, secret_key) = (field(&made, "access_key"), field(&made, "secret_key"));
    let alice = Client { access_key: access_key.clone(), secret_key: secret_key.clone(), ..node.client() };
    alice.create_bucket("alices");
    assert_eq!(alice.put("alices", "k", b"x").unwrap().status, 200);
    assert_eq!(alice.get("owned", "k").unwrap().status, 403, "another user's bucket is open");

    let file = node.scratch().join("secret");
    private_file(&file, "an-imported-secret-of-some-length");
    let import = ["key", "import", "alice", "--access-key", "HFIMPORTED0000000001", "--secret-key-file"];
    let import = [&import[..], &[file.to_str().unwrap()]].concat();
    std::fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
    assert!(!node.try_cli(&import).status.success(), "a secret that everybody can read is taken");
    std::fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    node.cli(&import);
    let imported = Client {
        access_key: "HFIMPORTED0000000001".into(),
        secret_key: "an-imported-secret-of-some-length".into(),
        ..node.client()
    };
    assert_eq!(imported.get("alices", "k").unwrap().body, b"x");

    node.cli(&["key", "disable", &access_key]);
    assert_eq!(alice.get("alices", "k").unwrap().status, 403, "a disabled key still opens");
    let mut directories = vec![node.data_dir().to_owned()];
    while let Some(directory) = directories.pop() {
        // Files come and go while the node runs.
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            let Ok(about) = entry.metadata() else { continue };
            assert_eq!(about.permissions().mode() & 0o077, 0, "others may use {}", entry.path().display());
            directories.extend(about.is_dir().then(|| entry.path()));
        }
    }
    // All of it is kept over a restart, and no secret is on disk or in the log as it is.
    node.stop();
    node.restart();
    let imported = Client { addr: node.s3(), ..imported };
    assert_eq!(imported.get("alices", "k").unwrap().body, b"x");
    assert!(!node.log().contains(SECRET_KEY) && !node.log().contains(&secret_key), "a secret is in the log");
    assert!(node.cli(&["key", "list", "--json"]).contains("HFIMPORTED0000000001"));

    // Who did what is kept too, newest first, without secrets.
    let audit = node.cli(&["audit", "list", "--since", "1 h", "--action", "POST", "--json"]);
    let entries: serde_json::Value = serde_json::from_str(&audit).unwrap();
    let actions: Vec<&str> = entries.as_array().unwrap().iter().map(|e| e["action"].as_str().unwrap()).collect();
    assert_eq!(actions, ["POST /v1/keys", "POST /v1/keys", "POST /v1/users"]);
    assert!(!audit.contains(&secret_key) && !audit.contains("an-imported-secret"), "a secret is in the audit log");
    assert_eq!(node.cli(&["errors", "list", "--json"]).trim(), "[]");
    assert_eq!(node.cli(&["events", "dead", "list", "--json"]).trim(), "[]");
}

#[test]
fn a_command_finds_its_node_by_name_by_url_and_by_address() {
    let node = Node::start();
    let port = node.admin().port();
    let run = |variable: Option<&str>, flags: &[&str]| {
        let mut command = node.command(&["user", "list", "--json"]);
        command.args(flags).env("HOLDFAST_DATA_DIR", node.data_dir());
        if let Some(variable) = variable {
            command.env("HOLDFAST_ADMIN_ADDR", variable);
        }
        command.output().unwrap()
    };
    for place in [format!("localhost:{port}"), format!("http://localhost:{port}/"), format!("127.0.0.1:{port}")] {
        for output in [run(Some(place.as_str()), &[]), run(None, &["--admin-addr", &place])] {
            assert!(output.status.success(), "{place}: {}", String::from_utf8_lossy(&output.stderr));
            assert!(String::from_utf8_lossy(&output.stdout).contains("root"), "{place}");
        }
    }
    let nowhere = run(None, &["--admin-addr", "localhost"]);
    assert_eq!(nowhere.status.code(), Some(2));
    let text = String::from_utf8_lossy(&nowhere.stderr).into_owned();
    assert!(text.contains("host:port"), "{text}");
}

#[test]
fn bench_measures_a_node_checks_it_and_cleans_up() {
    let node = Node::start();
    for workload in ["put", "get", "list", "mixed"] {
        let pid = node.pid().to_string();
        let output = node
            .command(&["bench", workload, "--size", "4KiB,300KiB", "-c", "4", "-d", "2s", "--warmup", "0s"])
            .args([
                "--objects",
                "40",
                "--endpoint",
                &node.endpoint(),
                "--access-key",
                ACCESS_KEY,
                "--secret-key",
                SECRET_KEY,
            ])
            .args(["--pid", &pid, "--json", "--payload", "signed"])
            .output()
            .unwrap();
        assert!(output.status.success(), "{workload}: {}", String::from_utf8_lossy(&output.stderr));
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(report["requests"].as_u64().unwrap() > 0, "{report}");
        assert_eq!(report["wrong_contents"], 0);
        assert!(report["server"]["memory_max"]["rss_bytes"].as_u64().unwrap() > 0, "{report}");
        assert!(report["operations"][0]["latency_ms"]["p50"].as_f64().unwrap() > 0.0, "{report}");
    }
    let buckets = node.client().send(&Request { method: "GET", path: "/", ..Request::default() }).unwrap();
    assert!(!buckets.text().contains("holdfast-bench"), "the bucket was left behind");
}

#[test]
fn a_replaced_object_is_read_as_the_old_or_the_new_one_never_mixed() {
    let node = Node::start();
    let client = node.client();
    client.create_bucket("replace");
    let versions: Vec<Vec<u8>> = (0..4).map(|seed| content::bytes(seed, 700_000 + seed as usize)).collect();
    assert_eq!(client.put("replace", "k", &versions[0]).unwrap().status, 200);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut connection = client.connect().unwrap();
                let get = Request { method: "GET", path: "/replace/k", ..Request::default() };
                while !stop.load(Ordering::Relaxed) {
                    let got = client.send_on(&mut connection, &get).unwrap();
                    assert_eq!(got.status, 200);
                    assert!(versions.contains(&got.body), "{} bytes that were never put", got.body.len());
                }
            });
        }
        let mut random = Random::new(1);
        for _ in 0..60 {
            let n = random.below(4) as usize;
            assert_eq!(client.put("replace", "k", &versions[n]).unwrap().status, 200);
            assert!(client.get("replace", "k").unwrap().body == versions[n], "a read after a write is old");
        }
        stop.store(true, Ordering::Relaxed);
    });
}
