//! A node as a process of its own.
//!
//! A [`Node`] has a data directory that is removed when it is dropped, free ports, and its own log, which is printed
//! when the test fails. It ends only the process that it started, by its id.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::client::{Client, Connection, Response};
use crate::services::process::{Process, free_ports};

/// How long a node may take from its start to its ready line. A second is promised; a loaded test machine gets more.
const READY_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a node may take to stop after SIGTERM.
const STOP_TIMEOUT: Duration = Duration::from_secs(120);
/// The exit code of a command to which a node that runs gave no answer, or none for now: what it asks for may be done.
pub const UNAVAILABLE: i32 = 5;
/// That of one that asks for what is not there.
pub const NOT_FOUND: i32 = 3;
/// That of one that asks for what is in the way of something else, or is done already.
pub const CONFLICT: i32 = 4;
/// For how long it may be so, while other nodes come and go.
const UNAVAILABLE_MAX: Duration = Duration::from_secs(120);
/// The last bytes of the log that a failing test prints.
const LOG_SHOWN_BYTES: usize = 24 << 10;

/// What gives a process another clock.
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

/// The key pair of every test node.
pub const ACCESS_KEY: &str = "HFTESTACCESSKEY00001";
/// Its secret.
pub const SECRET_KEY: &str = "holdfast-test-secret-key-of-40-characters";

/// The binary under test: `HOLDFAST_BIN`, or the one beside the test's own.
///
/// # Panics
/// When there is none: build it first.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("HOLDFAST_BIN") {
        return path.into();
    }
    let test = std::env::current_exe().unwrap();
    let path = test.ancestors().nth(2).unwrap().join("holdfast");
    assert!(path.is_file(), "{} is missing: `cargo build -p holdfast-node` first", path.display());
    path
}

/// A running (or stopped) node.
#[derive(Debug)]
pub struct Node {
    // Before the directory that it writes into: fields drop in order.
    child: Option<Process>,
    scratch: TempDir,
    data_dir: PathBuf,
    /// Shown with its log.
    name: String,
    /// Run by `node` from its configuration file instead of `dev`.
    configured: bool,
    /// Further arguments of `dev`.
    arguments: Vec<String>,
    /// What its last start told.
    ready: serde_json::Value,
    environment: BTreeMap<String, String>,
    s3: SocketAddr,
    admin: SocketAddr,
    starts: u32,
}

impl Node {
    /// A new node with defaults.
    ///
    /// # Panics
    /// When it does not become ready.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// A new node with variables such as `("HOLDFAST_LIMITS_HEADER_TIMEOUT", "2s")`.
    ///
    /// # Panics
    /// When it does not become ready.
    pub fn start_with(environment: &[(&str, &str)]) -> Self {
        let scratch = scratch();
        let data_dir = scratch.path().join("data");
        Self::start_in(scratch, data_dir, environment)
    }

    /// A new node on `data_dir`, which may lie outside its scratch directory and then stays.
    ///
    /// # Panics
    /// When it does not become ready.
    pub fn start_on(data_dir: &Path, environment: &[(&str, &str)]) -> Self {
        Self::start_in(scratch(), data_dir.to_owned(), environment)
    }

    /// A cluster of `count` nodes in one process.
    ///
    /// # Panics
    /// When it does not become ready.
    pub fn start_several(count: usize, environment: &[(&str, &str)]) -> Self {
        let scratch = scratch();
        let data_dir = scratch.path().join("data");
        let mut node = Self::stopped(scratch, data_dir, environment, count);
        node.arguments = vec!["--nodes".into(), count.to_string()];
        node.restart();
        node
    }

    /// The S3 addresses of all nodes of the process.
    pub fn s3_of_all(&self) -> Vec<SocketAddr> {
        match self.ready["nodes"].as_array() {
            Some(nodes) => nodes.iter().map(|node| address(node, "s3_addr").unwrap()).collect(),
            None => vec![self.s3],
        }
    }

    fn start_in(scratch: TempDir, data_dir: PathBuf, environment: &[(&str, &str)]) -> Self {
        let mut node = Self::stopped(scratch, data_dir, environment, 1);
        node.restart();
        node
    }

    /// Its ports stay its own while it is down, and are none that a client may connect from: one that tries again and
    /// again to reach a port which the system gives away may come to be connected with itself.
    fn stopped(scratch: TempDir, data_dir: PathBuf, environment: &[(&str, &str)], count: usize) -> Self {
        let environment = environment.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        // Each further node of the process takes the two ports behind.
        let first = free_ports(2 * count as u16);
        let [s3, admin] = [first, first + 1].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        Self {
            child: None,
            scratch,
            data_dir,
            name: "node".into(),
            configured: false,
            arguments: Vec::new(),
            ready: serde_json::Value::Null,
            environment,
            s3,
            admin,
            starts: 0,
        }
    }

    /// A node that is not started yet, to be run by `holdfast node` with what `configuration` makes for its scratch
    /// directory, in which its data directory is `data`.
    ///
    /// # Panics
    /// When the file cannot be written.
    pub fn configured(
        name: &str,
        addresses: [SocketAddr; 2],
        environment: &[(&str, &str)],
        configuration: impl FnOnce(&Path) -> String,
    ) -> Self {
        let scratch = scratch();
        let file = scratch.path().join("holdfast.toml");
        fs::write(&file, configuration(scratch.path())).unwrap();
        let mut environment: BTreeMap<String, String> =
            environment.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        environment.insert("HOLDFAST_CONFIG".into(), file.to_str().unwrap().into());
        let [s3, admin] = addresses;
        let data_dir = scratch.path().join("data");
        Self {
            child: None,
            scratch,
            data_dir,
            name: name.into(),
            configured: true,
            arguments: Vec::new(),
            ready: serde_json::Value::Null,
            environment,
            s3,
            admin,
            starts: 0,
        }
    }

    /// Sets a variable for its next start, or takes it away.
    pub fn set_variable(&mut self, name: &str, value: Option<&str>) {
        match value {
            Some(value) => self.environment.insert(name.into(), value.into()),
            None => self.environment.remove(name),
        };
    }

    /// From its next start on the node's clock is so many seconds ahead (or behind) of the machine's. Commands that are
    /// run for it have that clock too. The clock that only measures how time passes stays right.
    ///
    /// # Panics
    /// When libfaketime is missing.
    pub fn set_clock(&mut self, seconds_ahead: i64) {
        let candidates = [FAKETIME.to_owned(), FAKETIME.replace("x86_64", "aarch64")];
        let library = candidates.iter().find(|path| Path::new(path).exists());
        let library =
            library.expect("these tests need libfaketime: apt-get install --no-install-recommends libfaketime");
        let ahead = format!("{seconds_ahead:+}");
        let variables = [
            ("LD_PRELOAD", library.as_str()),
            ("FAKETIME", &ahead),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            ("NO_FAKE_STAT", "1"),
            // It has a shared memory of its own otherwise, whose name ends with the process.
            ("FAKETIME_NO_CACHE", "1"),
        ];
        for (name, value) in variables {
            self.set_variable(name, (seconds_ahead != 0).then_some(value));
        }
    }

    /// Whether its process was started and not ended by the test.
    pub fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// Starts the process (again), on the same directory and the same ports.
    ///
    /// # Panics
    /// When it does not become ready.
    pub fn restart(&mut self) {
        if let Err(error) = self.try_restart() {
            panic!("the node did not start: {error:#}");
        }
    }

    /// Like [`Node::restart`], for starts that are meant to fail.
    ///
    /// # Errors
    /// When the process ends or says nothing in time.
    pub fn try_restart(&mut self) -> Result<()> {
        self.try_restart_within(READY_TIMEOUT)
    }

    /// The same for a node that is killed if it is not ready by then: in the middle of its recovery, where that is
    /// short.
    ///
    /// # Errors
    /// When the process ends or says nothing in time.
    pub fn try_restart_within(&mut self, limit: Duration) -> Result<()> {
        assert!(self.child.is_none(), "the node is running");
        self.starts += 1;
        let log = OpenOptions::new().create(true).append(true).open(self.log_path())?;
        let (s3, admin) = (self.s3.to_string(), self.admin.to_string());
        let mut command = if self.configured {
            self.command(&["node", "--json"])
        } else {
            let data_dir = self.data_dir.to_str().context("a data directory in UTF-8")?;
            let keys = ["--access-key", ACCESS_KEY, "--secret-key", SECRET_KEY];
            let mut command = self.command(&["dev", "--json", "--data-dir", data_dir]);
            command.args(["--s3-addr", &s3, "--admin-addr", &admin]).args(keys).args(&self.arguments);
            command
        };
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        let child = Process::start(&mut command).context("start holdfast")?;
        let child = self.child.insert(child);
        let stdout = child.take_stdout().context("stdout")?;
        let (told, ready) = mpsc::channel();
        // Reads to the end, so that the node never blocks on a full pipe.
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = told.send(line);
            }
        });
        let begin = Instant::now();
        let line = loop {
            match ready.recv_timeout(limit.saturating_sub(begin.elapsed())) {
                Ok(line) if line.trim_start().starts_with('{') => break line,
                Ok(_) => {}
                Err(_) => {
                    self.kill();
                    bail!("no ready line after {:?}", begin.elapsed());
                }
            }
        };
        let told: serde_json::Value = serde_json::from_str(&line).with_context(|| format!("parse `{line}`"))?;
        self.s3 = address(&told, "s3_addr")?;
        self.admin = address(&told, "admin_addr")?;
        self.ready = told;
        Ok(())
    }

    /// A command of the binary, with the node's environment and nothing of the caller's configuration.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary());
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("HOLDFAST_")) {
            command.env_remove(name);
        }
        command.args(arguments).envs(&self.environment).current_dir(self.scratch.path());
        command
    }

    /// Runs a command of the binary against this node's admin API and gives back its standard output. It is run again
    /// while a node that runs has no answer: in a cluster it may lose its session at any time on a busy machine.
    ///
    /// # Panics
    /// When it fails.
    pub fn cli(&self, arguments: &[&str]) -> String {
        let begin = Instant::now();
        let mut output = self.try_cli(arguments);
        while output.status.code() == Some(UNAVAILABLE) && self.is_running() && begin.elapsed() < UNAVAILABLE_MAX {
            println!("holdfast {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
            std::thread::sleep(Duration::from_millis(200));
            output = self.try_cli(arguments);
        }
        assert!(
            output.status.success(),
            "holdfast {arguments:?}: {}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// Like [`Node::cli`], whatever its exit code.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn try_cli(&self, arguments: &[&str]) -> std::process::Output {
        let mut command = self.command(arguments);
        command.env("HOLDFAST_ADMIN_ADDR", self.admin.to_string()).env("HOLDFAST_DATA_DIR", &self.data_dir);
        command.output().unwrap()
    }

    /// Its S3 address.
    pub fn s3(&self) -> SocketAddr {
        self.s3
    }

    /// Its S3 endpoint as a URL.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.s3)
    }

    /// Its admin address.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// A client with its key pair.
    pub fn client(&self) -> Client {
        Client { addr: self.s3, access_key: ACCESS_KEY.into(), secret_key: SECRET_KEY.into() }
    }

    /// Where its data is.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// A directory for the test's own files, removed with the node.
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// Its process id.
    ///
    /// # Panics
    /// When it is not running.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    fn log_path(&self) -> PathBuf {
        self.scratch.path().join("node.log")
    }

    /// Everything it has logged so far, all of its starts together.
    pub fn log(&self) -> String {
        fs::read(self.log_path()).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// kill -9.
    pub fn kill(&mut self) {
        self.child = None;
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// When it is not running.
    pub fn signal(&self, signal: Signal) {
        self.child.as_ref().unwrap().signal(signal);
    }

    /// Waits until the process ends by itself.
    ///
    /// # Panics
    /// When it does not within the limit.
    pub fn wait(&mut self) -> ExitStatus {
        let child = self.child.as_mut().unwrap();
        let status = crate::until_some("the node stops", STOP_TIMEOUT, || child.ended());
        self.child = None;
        status
    }

    /// SIGTERM, then waits for a clean end.
    ///
    /// # Panics
    /// When the node does not stop with exit code 0.
    pub fn stop(&mut self) {
        self.signal(Signal::TERM);
        let status = self.wait();
        assert!(status.success(), "the node stopped with {status}");
    }

    /// GET of the admin address.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn admin_get(&self, path: &str) -> Result<Response> {
        let mut connection = Connection::open(self.admin)?;
        connection
            .write(format!("GET {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", self.admin).as_bytes())?;
        Ok(connection.read_response("GET")?)
    }

    /// The sum of all series of a metric whose labels contain each of `labels`; none when there is no such series.
    ///
    /// # Errors
    /// When `/metrics` does not answer 200.
    pub fn metric(&self, name: &str, labels: &[&str]) -> Result<Option<f64>> {
        let response = self.admin_get("/metrics")?;
        ensure!(response.status == 200, "/metrics answered {}", response.status);
        let mut sum = None;
        for line in response.text().lines().filter(|line| !line.starts_with('#')) {
            let Some((series, value)) = line.rsplit_once(' ') else { continue };
            let (have, rest) = series.split_once('{').unwrap_or((series, ""));
            if have == name && labels.iter().all(|label| rest.contains(label)) {
                sum = Some(sum.unwrap_or(0.0) + value.parse::<f64>().context("a number in /metrics")?);
            }
        }
        Ok(sum)
    }

    /// How much corruption the node has counted so far, in reads and by scrub.
    ///
    /// # Panics
    /// When `/metrics` does not answer.
    pub fn corruption_found(&self) -> f64 {
        let response = self.admin_get("/metrics").unwrap();
        let counts = response.text();
        let lines = counts.lines().filter(|line| line.starts_with("holdfast_") && line.contains("corrupt"));
        lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
    }

    /// Resident memory now: all of it and the anonymous part, bytes.
    ///
    /// # Panics
    /// When it is not running.
    pub fn memory(&self) -> (u64, u64) {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim_start_matches(':').trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() * 1024
        };
        (field("VmRSS"), field("RssAnon"))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let from = log.char_indices().map(|(at, _)| at).find(|at| log.len() - at <= LOG_SHOWN_BYTES).unwrap_or(0);
            println!("--- log of {} ({} starts) ---\n{}\n---", self.name, self.starts, &log[from..]);
        }
    }
}

/// A directory on a real disk: `/tmp` may be a tmpfs, which has no O_DIRECT. The build directory is on one.
fn scratch() -> TempDir {
    let target = binary().parent().unwrap().join("cluster-tests-data");
    fs::create_dir_all(&target).unwrap();
    tempfile::Builder::new().prefix("node-").tempdir_in(target).unwrap()
}

fn address(told: &serde_json::Value, name: &str) -> Result<SocketAddr> {
    let text = told.get(name).and_then(|value| value.as_str()).with_context(|| format!("no `{name}` in {told}"))?;
    text.parse().with_context(|| format!("`{text}` is no address"))
}
