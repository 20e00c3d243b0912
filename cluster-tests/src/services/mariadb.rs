//! A real MariaDB server on a free port in a temporary directory, with a database and a user for Holdfast.

use std::fs;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::directory::Directory;
use super::process::{Process, free_port, wait_until};
use super::tls::Tls;
use rustix::process::Signal;

const INSTALL: &str =
    "these tests need MariaDB: apt-get install --no-install-recommends mariadb-server-core mariadb-client-core";
const START_PATIENCE: Duration = Duration::from_secs(120);

/// The database's name.
pub const DATABASE: &str = "holdfast";
/// The user, who may do everything in databases whose names begin with [`DATABASE`].
pub const USER: &str = "holdfast";
/// The user's password.
pub const PASSWORD: &str = "a password of the tests";

/// Run at each start, before the first connection.
const PREPARE: &str = "CREATE DATABASE IF NOT EXISTS holdfast;\n\
    CREATE USER IF NOT EXISTS 'holdfast'@'%' IDENTIFIED BY 'a password of the tests';\n\
    GRANT ALL ON `holdfast%`.* TO 'holdfast'@'%';\n";

/// An initialised data directory, to be copied: making one takes five seconds. It stays in the target directory.
fn template() -> PathBuf {
    // target/debug/deps/<test>
    let exe = std::env::current_exe().unwrap();
    let parent = exe.ancestors().nth(3).unwrap().join("cluster-tests");
    let template = parent.join("mariadb-template");
    if template.exists() {
        return template;
    }
    fs::create_dir_all(&parent).unwrap();
    let made = tempfile::tempdir_in(&parent).unwrap();
    // Its own: a server that starts removes what it takes for the rest of its own temporary tables.
    let temporary = tempfile::tempdir().unwrap();
    let output = Command::new("mariadb-install-db")
        .env("TMPDIR", temporary.path())
        .args(["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve"])
        .arg(format!("--datadir={}", made.path().display()))
        .args(run_as_root())
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("mariadb-install-db: {e}; {INSTALL}"));
    assert!(output.status.success(), "mariadb-install-db: {}", String::from_utf8_lossy(&output.stderr));
    // Another test program may have been faster.
    if fs::rename(made.path(), &template).is_err() {
        assert!(template.exists(), "{} cannot be made", template.display());
    }
    template
}

/// Without this the server refuses to run as root; with it, it refuses to run as somebody else.
fn run_as_root() -> Option<&'static str> {
    rustix::process::geteuid().is_root().then_some("--user=root")
}

/// One server, running or not.
#[derive(Debug)]
pub struct Mariadb {
    running: Option<Process>,
    dir: Directory,
    port: u16,
    arguments: Vec<String>,
    tls: Option<Directory>,
}

impl Mariadb {
    /// Starts a server with further arguments, and waits until it serves.
    ///
    /// # Panics
    /// When it does not.
    pub fn start_with(arguments: &[&str]) -> Self {
        Self::start_in(Directory::new(), arguments)
    }

    /// The same in memory, where there is room: the tables of a database take two seconds on a disk that flushes in
    /// some milliseconds. What was written outlives kill -9 there too.
    ///
    /// # Panics
    /// When it does not serve.
    pub fn start_in_memory(arguments: &[&str]) -> Self {
        Self::start_in(Directory::in_memory(), arguments)
    }

    fn start_in(dir: Directory, arguments: &[&str]) -> Self {
        copy(&template(), &dir.path().join("data"));
        fs::write(dir.path().join("prepare.sql"), PREPARE).unwrap();
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let mut server = Self { running: None, dir, port: free_port(), arguments, tls: None };
        server.restart();
        server
    }

    /// A server that takes TCP connections over TLS only.
    ///
    /// # Panics
    /// When it does not serve.
    pub fn start_with_tls(tls: &Tls) -> Self {
        let dir = Directory::new();
        let at = |name: &str| dir.path().join(name);
        for (name, pem) in [("ca.pem", &tls.ca), ("server.pem", &tls.certificate), ("server.key", &tls.key)] {
            fs::write(at(name), pem).unwrap();
        }
        let files = [("ssl-ca", "ca.pem"), ("ssl-cert", "server.pem"), ("ssl-key", "server.key")];
        let mut arguments: Vec<String> =
            files.iter().map(|(option, name)| format!("--{option}={}", at(name).display())).collect();
        arguments.push("--require-secure-transport=ON".into());
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let mut server = Self::start_with(&arguments);
        server.tls = Some(dir);
        server
    }

    /// The authority of its certificate, if it has one.
    pub fn tls_ca(&self) -> Option<PathBuf> {
        self.tls.as_ref().map(|tls| tls.path().join("ca.pem"))
    }

    /// Starts it (again, with what it had) and waits until it serves.
    ///
    /// # Panics
    /// When it runs, or does not serve in time.
    pub fn restart(&mut self) {
        assert!(self.running.is_none(), "it runs");
        let at = |name: &str| self.dir.path().join(name).display().to_string();
        let mut server = Command::new(program("mariadbd"));
        server
            .env("TMPDIR", self.dir.path())
            .arg("--no-defaults")
            .args(run_as_root())
            .args([format!("--datadir={}", at("data")), format!("--socket={}", at("s.sock"))])
            .args([format!("--init-file={}", at("prepare.sql")), format!("--pid-file={}", at("pid"))])
            .args([format!("--port={}", self.port), "--bind-address=127.0.0.1".into(), "--skip-name-resolve".into()])
            .args(["--innodb-buffer-pool-size=32M", "--innodb-log-file-size=32M", "--performance-schema=OFF"])
            .args(&self.arguments);
        let process = Process::start_logged(&mut server, &self.dir.path().join("log"));
        self.running = Some(process.unwrap_or_else(|e| panic!("mariadbd: {e}; {INSTALL}")));
        let log = self.dir.path().join("log");
        wait_until("MariaDB serves", START_PATIENCE, &log, || {
            let runs = self.running.as_mut().is_some_and(|process| process.ended().is_none());
            assert!(runs, "MariaDB ended:\n{}", fs::read_to_string(&log).unwrap_or_default());
            self.serves()
        });
    }

    /// Whether it greets.
    fn serves(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect_timeout(&self.address(), Duration::from_secs(1)) else { return false };
        let mut greeting = [0; 5];
        // Length and number of the packet, then the version of the protocol.
        stream.set_read_timeout(Some(Duration::from_secs(2))).is_ok()
            && stream.read_exact(&mut greeting).is_ok()
            && greeting[4] == 10
    }

    /// kill -9.
    pub fn kill(&mut self) {
        self.running = None;
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// When it does not run.
    pub fn signal(&self, signal: Signal) {
        self.running.as_ref().expect("it runs").signal(signal);
    }

    /// Where clients find it.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// The database as a URL without the password, reached at `address` (its own, or a proxy's).
    pub fn url_at(&self, address: SocketAddr) -> String {
        format!("mysql://{USER}@{address}/{DATABASE}")
    }

    /// Runs SQL as root and gives back what it prints.
    ///
    /// # Panics
    /// When it fails.
    pub fn sql(&self, sql: &str) -> String {
        let output = Command::new("mariadb")
            .args(["--no-defaults", "--batch", "--skip-column-names", "-uroot"])
            .arg(format!("--socket={}", self.dir.path().join("s.sock").display()))
            .args(["-e", sql])
            .output()
            .unwrap_or_else(|e| panic!("mariadb: {e}; {INSTALL}"));
        assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

/// Debian has servers in `sbin`, which is not in everybody's PATH.
fn program(name: &str) -> PathBuf {
    let sbin = Path::new("/usr/sbin").join(name);
    if sbin.exists() { sbin } else { name.into() }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}
