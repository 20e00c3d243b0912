//! A real MariaDB server, with databases for the tests of one program.

#![allow(dead_code, reason = "each test crate uses a part")]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use holdfast_node::metadata::MysqlOptions;
use sqlx::mysql::{MySqlConnectOptions, MySqlConnection};
use sqlx::{AssertSqlSafe, ConnectOptions as _};

use crate::services::mariadb::Mariadb;

/// Names a server that runs already, as `mysql://user:password@host:port`, for the tests that do not harm it: so the
/// suite runs on MySQL too, of which Debian's stable has no server. The user must be allowed to make databases.
const ELSEWHERE: &str = "HOLDFAST_TEST_MYSQL";

/// Tests that run side by side each have a pool of connections.
const ARGUMENTS: [&str; 2] = ["--innodb-buffer-pool-size=64M", "--max-connections=500"];

/// For a connection, new or of a pool, on a busy machine.
const CONNECT_PATIENCE: Duration = Duration::from_secs(20);

/// Databases that nobody needs any more.
static LEFT: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// A database of one test; once this is dropped the next test that asks for one removes it.
#[derive(Debug)]
pub struct Scratch(String);

impl Drop for Scratch {
    fn drop(&mut self) {
        // What a test that failed began may hold locks.
        if !std::thread::panicking() {
            LEFT.lock().unwrap().push(std::mem::take(&mut self.0));
        }
    }
}

/// One server, running or not.
pub enum Server {
    /// The tests' own.
    Own(Mariadb),
    /// It was there before, and stays.
    Elsewhere(String),
}

impl Server {
    pub fn start() -> Self {
        Self::Own(Mariadb::start_in_memory(&ARGUMENTS))
    }

    /// The one that the environment names, or one of the test's own.
    pub fn shared() -> Self {
        std::env::var(ELSEWHERE).map_or_else(|_| Self::start(), Self::Elsewhere)
    }

    fn own(&mut self) -> &mut Mariadb {
        match self {
            Self::Own(server) => server,
            Self::Elsewhere(url) => panic!("{url} is not to be harmed"),
        }
    }

    /// Where the test's own one listens.
    pub fn address(&self) -> std::net::SocketAddr {
        match self {
            Self::Own(server) => server.address(),
            Self::Elsewhere(url) => panic!("{url} is not to be harmed"),
        }
    }

    /// Starts it, again after [`Server::kill`].
    pub fn run(&mut self) {
        self.own().restart();
    }

    /// kill -9; it can be started again.
    pub fn kill(&mut self) {
        self.own().kill();
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

    /// The options for a new, empty database on the server that tests share: two hundred that stay would fill memory.
    pub async fn scratch(&self) -> (MysqlOptions, Scratch) {
        let left = std::mem::take(&mut *LEFT.lock().unwrap());
        let mut conn = self.connect("mysql").await;
        for name in left {
            let sql = format!("SET SESSION lock_wait_timeout = 10; DROP DATABASE IF EXISTS {name}");
            // Then it stays.
            drop(sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut conn).await);
        }
        let name = self.database().await;
        (self.options(&name), Scratch(name))
    }

    /// A connection of the test's own.
    pub async fn connect(&self, database: &str) -> MySqlConnection {
        let options = match self {
            Self::Own(server) => {
                MySqlConnectOptions::new().host("127.0.0.1").port(server.address().port()).username("root")
            }
            Self::Elsewhere(url) => url.parse().unwrap_or_else(|error| panic!("{ELSEWHERE}: {error}")),
        };
        options.database(database).connect().await.unwrap()
    }

    pub fn options(&self, database: &str) -> MysqlOptions {
        let options = match self {
            Self::Own(server) => MysqlOptions::new(format!("mysql://root@{}/{database}", server.address())),
            Self::Elsewhere(url) => {
                let mut url = url::Url::parse(url).unwrap();
                let password = url.password().map(str::to_owned);
                url.set_password(None).unwrap();
                url.set_path(database);
                MysqlOptions { password, ..MysqlOptions::new(url) }
            }
        };
        MysqlOptions { acquire_timeout: CONNECT_PATIENCE, connect_timeout: CONNECT_PATIENCE, ..options }
    }
}

/// Which of the two it is. The tables about connections that they have in common fail on MySQL where any statement has
/// binary values.
pub async fn is_mariadb(conn: &mut MySqlConnection) -> bool {
    let version: String = sqlx::query_scalar("SELECT VERSION()").fetch_one(conn).await.unwrap();
    version.contains("MariaDB")
}
