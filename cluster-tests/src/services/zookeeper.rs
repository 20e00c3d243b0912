//! Real ZooKeeper servers on free ports in a temporary directory.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::directory::Directory;
use super::process::{Process, free_port, wait_until};
use rustix::process::Signal;

const JARS: [&str; 2] = ["/usr/share/java/zookeeper.jar", "/usr/share/java/slf4j-simple.jar"];
const INSTALL: &str = "these tests need ZooKeeper: apt-get install --no-install-recommends zookeeper";
const START_PATIENCE: Duration = Duration::from_secs(120);

/// One server, running or not.
#[derive(Debug)]
pub struct Server {
    dir: PathBuf,
    port: u16,
    running: Option<Process>,
}

impl Server {
    /// Where clients find it.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// Starts it, again with what it had.
    ///
    /// # Panics
    /// When it runs, or cannot be started.
    pub fn start(&mut self) {
        assert!(self.running.is_none(), "it runs");
        if let Some(jar) = JARS.iter().find(|jar| !Path::new(jar).exists()) {
            panic!("{jar} is missing; {INSTALL}");
        }
        let mut java = Command::new("java");
        java.args(["-Xms32m", "-Xmx96m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"])
            .args(["-Dzookeeper.jmx.log4j.disable=true", "-Djava.net.preferIPv4Stack=true"])
            // Nobody cuts the power, and kill -9 loses nothing that the system has. A disk that is busy with what nodes
            // write would hold up answers until sessions end.
            .arg("-Dzookeeper.forceSync=no")
            .args(["-cp", &JARS.join(":"), "org.apache.zookeeper.server.quorum.QuorumPeerMain"])
            .arg(self.dir.join("zoo.cfg"));
        let process = Process::start_logged(&mut java, &self.dir.join("log"));
        self.running = Some(process.unwrap_or_else(|e| panic!("cannot start java ({e}); {INSTALL}")));
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

    /// `leader`, `follower` or `standalone`; nothing while it does not serve.
    pub fn mode(&self) -> Option<String> {
        let mut stream = TcpStream::connect_timeout(&self.address(), Duration::from_secs(1)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
        stream.write_all(b"srvr").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.lines().find_map(|l| l.strip_prefix("Mode: ")).map(str::to_owned)
    }

    /// Waits for an ensemble that has a leader.
    ///
    /// # Panics
    /// When that takes too long.
    pub fn wait_until_it_serves(&self) {
        wait_until("ZooKeeper serves", START_PATIENCE, &self.dir.join("log"), || self.mode().is_some());
    }
}

/// An ensemble of one or more servers.
#[derive(Debug)]
pub struct Ensemble {
    /// The servers.
    pub servers: Vec<Server>,
    // After the servers: they write into it.
    _dir: Directory,
}

impl Ensemble {
    /// Starts `count` servers and waits until they serve. Blocks.
    ///
    /// # Panics
    /// When they do not.
    pub fn start(count: usize) -> Self {
        let mut ensemble = Self::prepare(count);
        ensemble.start_all();
        ensemble
    }

    /// The same without waiting: [`Ensemble::wait_until_it_serves`] does.
    ///
    /// # Panics
    /// When they cannot be started.
    pub fn begin(count: usize) -> Self {
        let mut ensemble = Self::prepare(count);
        ensemble.servers.iter_mut().for_each(Server::start);
        ensemble
    }

    fn prepare(count: usize) -> Self {
        let dir = Directory::new();
        let ports: Vec<[u16; 3]> = (0..count).map(|_| [free_port(), free_port(), free_port()]).collect();
        let mut servers: Vec<Server> = Vec::new();
        for (i, [port, _, _]) in ports.iter().enumerate() {
            let home = dir.path().join(format!("server-{i}"));
            std::fs::create_dir_all(home.join("data")).unwrap();
            std::fs::write(home.join("data/myid"), format!("{}\n", i + 1)).unwrap();
            let data = home.join("data").display().to_string();
            // Sessions may be longer than twenty ticks, for tests in which the ensemble is away for a while.
            let mut config = format!(
                "tickTime=500\ninitLimit=20\nsyncLimit=10\nmaxSessionTimeout=60000\ndataDir={data}\nclientPort={port}\n\
                 clientPortAddress=127.0.0.1\nadmin.enableServer=false\nmaxClientCnxns=0\n\
                 4lw.commands.whitelist=ruok,srvr,stat,mntr\n"
            );
            if count > 1 {
                config.push_str("standaloneEnabled=false\n");
                for (j, [_, peer, election]) in ports.iter().enumerate() {
                    writeln!(config, "server.{}=127.0.0.1:{peer}:{election}", j + 1).unwrap();
                }
            }
            std::fs::write(home.join("zoo.cfg"), config).unwrap();
            servers.push(Server { dir: home, port: *port, running: None });
        }
        Self { servers, _dir: dir }
    }

    /// Starts those that do not run, and waits.
    pub fn start_all(&mut self) {
        self.servers.iter_mut().filter(|s| s.running.is_none()).for_each(Server::start);
        self.wait_until_it_serves();
    }

    /// Waits until all serve.
    pub fn wait_until_it_serves(&self) {
        self.servers.iter().for_each(Server::wait_until_it_serves);
    }

    /// kill -9 of all.
    pub fn kill_all(&mut self) {
        self.servers.iter_mut().for_each(Server::kill);
    }

    /// kill -9 of all, whose disks are lost: they know nothing any more when they are started again.
    ///
    /// # Panics
    /// When that cannot be removed.
    pub fn lose_data(&mut self) {
        self.kill_all();
        for server in &self.servers {
            // Snapshots and logs; `myid` beside them belongs to the configuration.
            std::fs::remove_dir_all(server.dir.join("data/version-2")).unwrap();
        }
    }

    /// Which server leads. It may be busy, or still to be elected.
    ///
    /// # Panics
    /// When none does in time.
    pub fn leader(&self) -> usize {
        let leads = |s: &Server| matches!(s.mode().as_deref(), Some("leader" | "standalone"));
        let deadline = Instant::now() + START_PATIENCE;
        loop {
            if let Some(leader) = self.servers.iter().position(leads) {
                return leader;
            }
            assert!(Instant::now() < deadline, "the ensemble has no leader after {START_PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// For clients.
    pub fn connect_string(&self) -> String {
        self.servers.iter().map(|s| s.address().to_string()).collect::<Vec<_>>().join(",")
    }
}
