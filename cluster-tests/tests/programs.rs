//! Real programs use a node as if it were AWS: aws-cli, rclone, s3cmd, restic, curl.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::{Path, PathBuf};

use holdfast_cluster_tests::content::{self, Random};
use holdfast_cluster_tests::node::{ACCESS_KEY, Node, SECRET_KEY};
use holdfast_cluster_tests::program::Program;

/// A tree as people have it: deep directories, empty files, odd names, one file that needs multipart.
fn make_tree(root: &Path) {
    let mut random = Random::new(42);
    let odd = [
        "plain.txt",
        "with space.txt",
        "ümläut-日本.txt",
        "a+b&c=d.txt",
        "per%20cent.txt",
        "quote'\"s.txt",
        "#hash?.txt",
    ];
    for directory in ["", "a", "a/b", "a/b/c", "other dir"] {
        fs::create_dir_all(root.join(directory)).unwrap();
        for (n, name) in odd.iter().enumerate() {
            let size = random.below(40_000) as usize;
            fs::write(root.join(directory).join(name), content::bytes(random.next_u64() + n as u64, size)).unwrap();
        }
        fs::write(root.join(directory).join("empty"), b"").unwrap();
    }
    fs::create_dir_all(root.join("many")).unwrap();
    for n in 0..150 {
        fs::write(root.join(format!("many/{n:04}.bin")), content::bytes(n, 100 + n as usize)).unwrap();
    }
    fs::write(root.join("big.bin"), content::bytes(7, 33 << 20)).unwrap();
}

fn files(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![root.to_owned()];
    while let Some(directory) = todo.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { todo.push(path) } else { found.push(path.strip_prefix(root).unwrap().to_owned()) }
        }
    }
    found.sort();
    found
}

fn assert_same_trees(left: &Path, right: &Path) {
    assert_eq!(files(left), files(right));
    for file in files(left) {
        assert!(
            fs::read(left.join(&file)).unwrap() == fs::read(right.join(&file)).unwrap(),
            "{} differs",
            file.display()
        );
    }
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn aws(node: &Node, arguments: &[&str]) -> Program {
    Program::aws("aws", node).args(&["--endpoint-url", &node.endpoint()]).args(arguments)
}

#[test]
fn aws_cli_copies_lists_syncs_and_presigns() {
    let node = Node::start();
    let (tree, back) = (node.scratch().join("tree"), node.scratch().join("back"));
    make_tree(&tree);
    aws(&node, &["s3", "mb", "s3://cli"]).ok();
    aws(&node, &["s3", "cp", path(&tree.join("big.bin")), "s3://cli/copied.bin"]).ok();
    assert!(aws(&node, &["s3", "ls", "s3://cli/"]).ok().contains("34603008 copied.bin"));
    aws(&node, &["s3", "cp", "s3://cli/copied.bin", "s3://cli/again.bin"]).ok();
    aws(&node, &["s3", "cp", "s3://cli/again.bin", path(&node.scratch().join("again.bin"))]).ok();
    assert!(fs::read(node.scratch().join("again.bin")).unwrap() == fs::read(tree.join("big.bin")).unwrap());

    aws(&node, &["s3", "sync", path(&tree), "s3://cli/tree"]).ok();
    // A second sync has nothing to do: sizes and times that the listing gives are right.
    assert_eq!(aws(&node, &["s3", "sync", path(&tree), "s3://cli/tree"]).ok().trim(), "");
    aws(&node, &["s3", "sync", "s3://cli/tree", path(&back)]).ok();
    assert_same_trees(&tree, &back);

    aws(&node, &["s3", "mv", "s3://cli/copied.bin", "s3://cli/moved.bin"]).ok();
    assert!(!aws(&node, &["s3", "ls", "s3://cli/"]).ok().contains("copied.bin"));
    let url = aws(&node, &["s3", "presign", "s3://cli/tree/a/plain.txt"]).ok();
    let got = Program::new("curl", node.scratch()).args(&["-sf", "-o", "presigned", url.trim()]);
    got.ok();
    assert_eq!(fs::read(node.scratch().join("presigned")).unwrap(), fs::read(tree.join("a/plain.txt")).unwrap());
    aws(&node, &["s3", "rb", "--force", "s3://cli"]).ok();
    assert_eq!(aws(&node, &["s3", "ls"]).ok().trim(), "");
}

#[test]
fn aws_cli_s3api_answers_are_parsed_and_errors_are_understood() {
    let node = Node::start();
    aws(&node, &["s3api", "create-bucket", "--bucket", "api"]).ok();
    let file = node.scratch().join("file");
    fs::write(&file, b"hello").unwrap();
    let put = ["s3api", "put-object", "--bucket", "api", "--key", "k", "--body", path(&file), "--tagging", "a=1&b=2"];
    aws(&node, &put).ok();
    let head: serde_json::Value =
        serde_json::from_str(&aws(&node, &["s3api", "head-object", "--bucket", "api", "--key", "k"]).ok()).unwrap();
    assert_eq!(head["ContentLength"], 5);
    assert_eq!(head["ETag"], "\"5d41402abc4b2a76b9719d911017c592\"");
    let tags = aws(&node, &["s3api", "get-object-tagging", "--bucket", "api", "--key", "k"]).ok();
    assert!(tags.contains("\"b\""), "{tags}");
    let missing = aws(&node, &["s3api", "get-object", "--bucket", "api", "--key", "none", "/dev/null"]).run();
    assert_ne!(missing.code, 0);
    assert!(missing.stderr.contains("NoSuchKey"), "{}", missing.stderr);
    let full = aws(&node, &["s3api", "delete-bucket", "--bucket", "api"]).run();
    assert!(full.stderr.contains("BucketNotEmpty"), "{}", full.stderr);
}

fn rclone(node: &Node, arguments: &[&str]) -> Program {
    Program::new("rclone", node.scratch())
        .env("RCLONE_CONFIG_HF_TYPE", "s3")
        .env("RCLONE_CONFIG_HF_PROVIDER", "Other")
        .env("RCLONE_CONFIG_HF_ENDPOINT", &node.endpoint())
        .env("RCLONE_CONFIG_HF_ACCESS_KEY_ID", ACCESS_KEY)
        .env("RCLONE_CONFIG_HF_SECRET_ACCESS_KEY", SECRET_KEY)
        .env("RCLONE_CONFIG_HF_REGION", "us-east-1")
        .env("RCLONE_CONFIG", "/dev/null")
        .args(&["--retries", "1", "--low-level-retries", "1"])
        .args(arguments)
}

#[test]
fn rclone_syncs_a_real_tree_checks_it_and_updates_times() {
    let node = Node::start();
    let (tree, back) = (node.scratch().join("tree"), node.scratch().join("back"));
    make_tree(&tree);
    rclone(&node, &["mkdir", "hf:sync"]).ok();
    let multipart = ["--s3-upload-cutoff", "8M", "--s3-chunk-size", "5M"];
    rclone(&node, &["sync", path(&tree), "hf:sync/t"]).args(&multipart).ok();
    rclone(&node, &["check", path(&tree), "hf:sync/t", "--one-way"]).ok();
    rclone(&node, &["check", path(&tree), "hf:sync/t", "--download"]).ok();

    // One file changes, one only its time, one goes away: rclone has to see exactly that.
    fs::write(tree.join("a/plain.txt"), b"changed").unwrap();
    fs::remove_file(tree.join("a/b/empty")).unwrap();
    let time = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_500_000_000);
    fs::File::options().write(true).open(tree.join("big.bin")).unwrap().set_modified(time).unwrap();
    rclone(&node, &["sync", path(&tree), "hf:sync/t"]).args(&multipart).ok();
    let listed = rclone(&node, &["lsl", "hf:sync/t/big.bin"]).ok();
    assert!(listed.contains("2017-07-14"), "{listed}");
    rclone(&node, &["sync", "hf:sync/t", path(&back)]).ok();
    assert_same_trees(&tree, &back);

    rclone(&node, &["copyto", "hf:sync/t/big.bin", "hf:sync/server-side.bin"]).ok();
    assert!(rclone(&node, &["size", "hf:sync/server-side.bin", "--json"]).ok().contains("34603008"));
    rclone(&node, &["purge", "hf:sync"]).ok();
}

/// Without a region, as it comes: it begins with `US` and has to be told another one.
fn s3cmd(node: &Node, arguments: &[&str]) -> Program {
    let address = node.s3().to_string();
    Program::new("s3cmd", node.scratch())
        .args(&["-c", "/dev/null", "--no-ssl", "--access_key", ACCESS_KEY, "--secret_key", SECRET_KEY])
        .args(&["--host", &address, "--host-bucket", &address, "--no-progress"])
        .args(arguments)
}

#[test]
fn s3cmd_puts_gets_syncs_lists_deletes_and_publishes() {
    let node = Node::start();
    let (tree, back) = (node.scratch().join("tree"), node.scratch().join("back"));
    make_tree(&tree);
    s3cmd(&node, &["mb", "s3://cmd"]).ok();
    // 33 MiB in parts of 15 MiB, s3cmd's own default.
    s3cmd(&node, &["put", path(&tree.join("big.bin")), "s3://cmd/big.bin"]).ok();
    s3cmd(&node, &["get", "s3://cmd/big.bin", path(&node.scratch().join("big.back"))]).ok();
    assert!(fs::read(node.scratch().join("big.back")).unwrap() == fs::read(tree.join("big.bin")).unwrap());
    s3cmd(&node, &["sync", &format!("{}/", path(&tree)), "s3://cmd/tree/"]).ok();
    fs::create_dir_all(&back).unwrap();
    s3cmd(&node, &["sync", "s3://cmd/tree/", &format!("{}/", path(&back))]).ok();
    assert_same_trees(&tree, &back);
    assert!(s3cmd(&node, &["ls", "s3://cmd/tree/many/"]).ok().lines().count() == 150);
    assert!(s3cmd(&node, &["info", "s3://cmd/big.bin"]).ok().contains("34603008"));

    let url = format!("{}/cmd/tree/a/plain.txt", node.endpoint());
    let anonymous =
        || Program::new("curl", node.scratch()).args(&["-s", "-o", "/dev/null", "-w", "%{http_code}", &url]).ok();
    assert_eq!(anonymous(), "403");
    s3cmd(&node, &["setacl", "--acl-public", "s3://cmd/tree/a/plain.txt"]).ok();
    assert_eq!(anonymous(), "200");
    s3cmd(&node, &["setacl", "--acl-private", "s3://cmd/tree/a/plain.txt"]).ok();
    assert_eq!(anonymous(), "403");

    s3cmd(&node, &["cp", "s3://cmd/big.bin", "s3://cmd/copy.bin"]).ok();
    s3cmd(&node, &["del", "s3://cmd/big.bin"]).ok();
    s3cmd(&node, &["del", "--recursive", "--force", "s3://cmd/"]).ok();
    s3cmd(&node, &["rb", "s3://cmd"]).ok();
}

#[test]
fn restic_backs_up_checks_restores_and_prunes() {
    let node = Node::start();
    let (tree, back) = (node.scratch().join("tree"), node.scratch().join("back"));
    make_tree(&tree);
    let restic = |arguments: &[&str]| {
        Program::aws("restic", &node)
            .env("RESTIC_PASSWORD", "test")
            .args(&["-r", &format!("s3:{}/backups/repo", node.endpoint()), "--no-cache"])
            .args(arguments)
    };
    restic(&["init"]).ok();
    restic(&["backup", path(&tree)]).ok();
    restic(&["check", "--read-data"]).ok();
    fs::write(tree.join("new.bin"), content::bytes(99, 6 << 20)).unwrap();
    fs::remove_file(tree.join("many/0001.bin")).unwrap();
    restic(&["backup", path(&tree)]).ok();
    restic(&["restore", "latest", "--target", path(&back)]).ok();
    assert_same_trees(&tree, &back.join(path(&tree).trim_start_matches('/')));
    restic(&["forget", "--keep-last", "1", "--prune"]).ok();
    restic(&["check", "--read-data"]).ok();
    assert!(restic(&["snapshots"]).ok().contains("1 snapshots"));
}

#[test]
fn curl_signs_by_itself_and_reads_ranges() {
    let node = Node::start();
    node.client().create_bucket("curl");
    let file = node.scratch().join("file");
    fs::write(&file, content::bytes(3, 300_000)).unwrap();
    let url = format!("{}/curl/some/key", node.endpoint());
    // curl 7.88 signs without x-amz-content-sha256 unless told to.
    let curl = |arguments: &[&str]| {
        Program::new("curl", node.scratch())
            .args(&["-sS", "--fail-with-body", "--aws-sigv4", "aws:amz:us-east-1:s3", "--user"])
            .args(&[&format!("{ACCESS_KEY}:{SECRET_KEY}"), "-H", "x-amz-content-sha256: UNSIGNED-PAYLOAD"])
            .args(arguments)
    };
    curl(&["-T", path(&file), &url]).ok();
    curl(&["-o", "back", &url]).ok();
    assert!(fs::read(node.scratch().join("back")).unwrap() == fs::read(&file).unwrap());
    curl(&["-r", "1000-1999", "-o", "range", &url]).ok();
    assert!(fs::read(node.scratch().join("range")).unwrap() == fs::read(&file).unwrap()[1000..2000]);
    // Many ranges on one connection and a resumed download.
    fs::write(node.scratch().join("resumed"), &fs::read(&file).unwrap()[..100_000]).unwrap();
    curl(&["-C", "-", "-o", "resumed", &url]).ok();
    assert!(fs::read(node.scratch().join("resumed")).unwrap() == fs::read(&file).unwrap());
    curl(&["-X", "DELETE", &url]).ok();
    assert_eq!(curl(&["-o", "/dev/null", "-w", "%{http_code}", &url]).run().stdout, "404");
}

/// What SDKs do that are given `http://localhost:PORT`, and what path style does beside it.
#[test]
fn a_bucket_is_found_before_localhost_and_in_the_path() {
    let node = Node::start();
    node.client().create_bucket("styles");
    let body = content::bytes(4, 20_000);
    let file = node.scratch().join("file");
    fs::write(&file, &body).unwrap();
    let port = node.s3().port();
    let get = |host: &str, path: &str| {
        // No resolver is asked, whatever it makes of names under localhost.
        Program::new("curl", node.scratch())
            .args(&["-sS", "--fail-with-body", "--aws-sigv4", "aws:amz:us-east-1:s3", "--user"])
            .args(&[&format!("{ACCESS_KEY}:{SECRET_KEY}"), "-H", "x-amz-content-sha256: UNSIGNED-PAYLOAD"])
            .args(&["--resolve", &format!("{host}:{port}:127.0.0.1"), &format!("http://{host}:{port}{path}")])
    };
    get("styles.localhost", "/some/key").args(&["-T", path(&file)]).ok();
    for (host, at) in
        [("styles.localhost", "/some/key"), ("localhost", "/styles/some/key"), ("127.0.0.1", "/styles/some/key")]
    {
        get(host, at).args(&["-o", "back"]).ok();
        assert!(fs::read(node.scratch().join("back")).unwrap() == body, "{host}{at}");
        fs::remove_file(node.scratch().join("back")).unwrap();
    }
    for host in ["localhost", "127.0.0.1"] {
        assert!(get(host, "/").ok().contains("<Name>styles</Name>"), "the list of buckets is not at {host}");
    }
    assert!(get("styles.localhost", "/?list-type=2").ok().contains("<Key>some/key</Key>"));
}
