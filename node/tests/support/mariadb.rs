//! A real MariaDB server for tests: started on a free port in a temporary directory, and ended with the test, whatever way
//! that ends.

#![allow(dead_code, reason = "each test crate uses a part")]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use holdfast_node::metadata::MysqlOptions;
use sqlx::mysql::{MySqlConnectOptions, MySqlConnection};
use sqlx::{AssertSqlSafe, ConnectOptions as _};

const INSTALL: &str =
    "these tests need MariaDB: apt-get install --no-install-recommends mariadb-server-core mariadb-client-core";
const START_PATIENCE: Duration = Duration::from_secs(60);

/// Starts the server in the background, prints its pid and ends it when standard input closes: so it ends with this
/// process, even if that is killed. The directory goes too, unless the server is to be started again.
const KEEPER: &str = r#"dir=$1; shift; "$@" >>"$dir/log" 2>&1 </dev/null & pid=$!; echo $pid; cat >/dev/null
kill -9 $pid; wait $pid; [ -e "$dir/again" ] || rm -rf "$dir""#;

/// Names a server that runs already, as `mysql://user:password@host:port`, for the tests that do not harm it: so the suite
/// runs on MySQL 8 too, which is in no package registry. The user must be allowed to make databases.
const ELSEWHERE: &str = "HOLDFAST_TEST_MYSQL";

/// One server, running or not.
pub struct Server {
    dir: PathBuf,
    /// It was there before, and stays.
    elsewhere: Option<MySqlConnectOptions>,
    port: u16,
    keeper: Option<Child>,
}

fn program(name: &str) -> PathBuf {
    let places = ["/usr/sbin", "/usr/bin", "/usr/local/bin"];
    let found = places.iter().map(|place| Path::new(place).join(name)).find(|path| path.exists());
    found.unwrap_or_else(|| panic!("{name} is missing; {INSTALL}"))
}

/// An initialised data directory, made once: initialising takes seconds, copying does not.
fn template() -> PathBuf {
    let template = Path::new(env!("CARGO_TARGET_TMPDIR")).join("mariadb-template");
    if !template.exists() {
        let made = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap().keep();
        // Its own: a server that starts removes what it takes for the rest of its own temporary tables.
        let temporary = tempfile::tempdir().unwrap();
        let output = Command::new(program("mariadb-install-db"))
            .env("TMPDIR", temporary.path())
            .args(["--no-defaults", "--user=root", "--auth-root-authentication-method=normal"])
            .args(["--skip-test-db", "--skip-name-resolve"])
            .arg(format!("--datadir={}", made.display()))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        // Another test process may have been faster.
        if std::fs::rename(&made, &template).is_err() {
            std::fs::remove_dir_all(&made).unwrap();
        }
    }
    template
}

impl Server {
    pub fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("holdfast-mariadb-").tempdir().unwrap().keep();
        let copied = Command::new("cp").arg("-a").arg(template()).arg(dir.join("data")).status().unwrap();
        assert!(copied.success());
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let mut server = Self { dir, elsewhere: None, port, keeper: None };
        server.run();
        server
    }

    /// The one that the environment names, or one of the test's own.
    pub fn shared() -> Self {
        let Ok(url) = std::env::var(ELSEWHERE) else { return Self::start() };
        let elsewhere = url.parse().unwrap_or_else(|error| panic!("{ELSEWHERE}: {error}"));
        Self { dir: tempfile::tempdir().unwrap().keep(), elsewhere: Some(elsewhere), port: 0, keeper: None }
    }

    /// Starts it, again after [`Server::kill`].
    pub fn run(&mut self) {
        assert!(self.keeper.is_none(), "it runs");
        std::fs::remove_file(self.dir.join("again")).ok();
        let mut keeper = Command::new("sh")
            .env("TMPDIR", &self.dir)
            .args(["-c", KEEPER, "keeper"])
            .arg(&self.dir)
            .arg(program("mariadbd"))
            .args(["--no-defaults", "--user=root", "--bind-address=127.0.0.1", "--skip-name-resolve"])
            .args(["--innodb-buffer-pool-size=64M", "--max-connections=500"])
            .arg(format!("--datadir={}", self.dir.join("data").display()))
            .arg(format!("--socket={}", self.dir.join("socket").display()))
            .arg(format!("--port={}", self.port))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut pid = String::new();
        BufReader::new(keeper.stdout.take().unwrap()).read_line(&mut pid).unwrap();
        self.keeper = Some(keeper);
        let deadline = Instant::now() + START_PATIENCE;
        while !self.serves() {
            if Instant::now() > deadline {
                let log = std::fs::read_to_string(self.dir.join("log")).unwrap_or_default();
                panic!("MariaDB does not serve after {START_PATIENCE:?}:\n{log}\n{INSTALL}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whether it greets.
    fn serves(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect_timeout(&self.address(), Duration::from_secs(1)) else { return false };
        stream.set_read_timeout(Some(Duration::from_secs(2))).ok();
        let mut greeting = [0; 5];
        // A packet header, and the version of the protocol.
        stream.read_exact(&mut greeting).is_ok() && greeting[4] == 10
    }

    /// kill -9; it can be started again.
    pub fn kill(&mut self) {
        std::fs::write(self.dir.join("again"), "").unwrap();
        self.end();
    }

    fn end(&mut self) {
        if let Some(mut keeper) = self.keeper.take() {
            drop(keeper.stdin.take());
            keeper.wait().unwrap();
        }
    }

    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// A new, empty database on it.
    pub async fn database(&self) -> String {
        static DATABASES: AtomicU32 = AtomicU32::new(0);
        let name = format!("holdfast_test_{}", DATABASES.fetch_add(1, Ordering::Relaxed));
        let mut conn = self.connect("mysql").await;
        // A server that stays has those of the run before.
        let sql = format!("DROP DATABASE IF EXISTS {name}; CREATE DATABASE {name}");
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut conn).await.unwrap();
        name
    }

    /// A connection of the test's own.
    pub async fn connect(&self, database: &str) -> MySqlConnection {
        let here = || MySqlConnectOptions::new().host("127.0.0.1").port(self.port).username("root");
        self.elsewhere.clone().unwrap_or_else(here).database(database).connect().await.unwrap()
    }

    pub fn options(&self, database: &str) -> MysqlOptions {
        match std::env::var(ELSEWHERE).ok().filter(|_| self.elsewhere.is_some()) {
            None => MysqlOptions::new(format!("mysql://root@{}/{database}", self.address())),
            Some(url) => {
                let mut url = url::Url::parse(&url).unwrap();
                let password = url.password().map(str::to_owned);
                url.set_password(None).unwrap();
                url.set_path(database);
                MysqlOptions { password, ..MysqlOptions::new(url) }
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        std::fs::remove_file(self.dir.join("again")).ok();
        match self.keeper {
            Some(_) => self.end(),
            None => drop(std::fs::remove_dir_all(&self.dir)),
        }
    }
}
