//! A real Apache RocketMQ 5: a name server and a broker on free ports in a temporary directory.
//!
//! The jars come from Maven Central: `cluster-tests/run` fetches them by `cluster-tests/rocketmq/pom.xml` into the
//! target directory; [`INSTALL`] is the command. What keeps a broker small, and alone:
//!
//! | setting | why |
//! |---|---|
//! | `-Xmx256m`, serial collector | 280 MB resident for the broker, 120 MB for the name server |
//! | `-XX:MaxDirectMemorySize=1g` | each of its threads keeps a buffer of 4 MiB; with 128 MiB sends fail under load |
//! | `mappedFileSizeCommitLog`, `…ConsumeQueue`, `…TimerLog`, `maxIndexNum`, `maxHashSlotNum` | files of MiB, not GiB |
//! | `listenPort`, `haListenPort`, and the port two below `listenPort` | the three that a broker listens on |
//! | `brokerIP1=127.0.0.1`, `bindAddress` | what the name server tells clients, and where it listens |
//! | `-Dtls.…` ([`Tls`]) | encrypted like in production, where a test wants it |
//! | `storePathRootDir`, `-Drocketmq.home.dir`, `-Duser.home`, `-Djava.io.tmpdir` | nothing outside of the directory, logs neither |
//! | in memory ([`Directory::in_memory`]) | on a disk that is used up to 90 % a broker refuses to store, whatever is configured |
//! | `authenticationEnabled` and its like | users, as in production |
//! | `waitTimeMillsInSendQueue=5000` | a busy test machine is not flow control |
//! | `timerFlushIntervalMs=10000` | by default a broker copies 38 MB once a second, a sixth of a core, for messages with a delay |
//! | `flushDiskType=SYNC_FLUSH` | what a broker acknowledged outlives it |
//! | `registerNameServerPeriod=10000` | a broker whose first registration was lost is heard of sooner than after half a minute |
//!
//! Ready 3 to 6 seconds after the start.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::directory::Directory;
use super::process::{Process, free_port, wait_until};
use super::tls::Tls;
use rustix::process::Signal;

/// The user that brokers know.
pub const ACCESS_KEY: &str = "holdfast";
/// That user's secret.
pub const SECRET_KEY: &str = "a-secret-of-the-tests";

/// How to get the jars.
pub const INSTALL: &str = "these tests need RocketMQ's jars: mvn -B -q -f cluster-tests/rocketmq/pom.xml \
     dependency:copy-dependencies -DoutputDirectory=$PWD/target/cluster-tests/rocketmq";
const START_PATIENCE: Duration = Duration::from_secs(180);

/// What differs from an unencrypted broker that stores in a directory of its own.
#[derive(Debug, Clone, Default)]
pub struct Setup {
    /// Where the broker stores.
    pub store: Option<PathBuf>,
    /// The certificate of both servers. With one they take TLS and nothing else.
    pub tls: Option<Tls>,
    /// Further lines of the broker's configuration.
    pub broker: &'static str,
}

/// A name server and a broker.
#[derive(Debug)]
pub struct RocketMq {
    tls: bool,
    name_server_port: u16,
    broker_port: u16,
    name_server: Option<Process>,
    broker: Option<Process>,
    // After the processes: they write into it.
    dir: Directory,
}

/// The directory with the jars.
///
/// # Panics
/// When it is not there.
pub fn jars() -> PathBuf {
    let named = std::env::var_os("HOLDFAST_TEST_ROCKETMQ_JARS").map(PathBuf::from);
    let jars = named.unwrap_or_else(|| {
        // target/debug/deps/<test>
        let exe = std::env::current_exe().unwrap();
        exe.ancestors().nth(3).unwrap().join("cluster-tests/rocketmq")
    });
    assert!(jars.join("rocketmq-broker-5.3.3.jar").exists(), "{} lacks a broker; {INSTALL}", jars.display());
    jars
}

/// A free port with another one two below it that nobody else was given either.
fn broker_port() -> u16 {
    let mut given = Vec::new();
    loop {
        let port = free_port();
        if given.contains(&(port - 2)) {
            return port;
        }
        given.push(port);
    }
}

impl RocketMq {
    /// Starts both and waits until the name server knows the broker. Blocks.
    ///
    /// # Panics
    /// When that takes too long.
    pub fn start() -> Self {
        Self::start_with(Setup::default())
    }

    /// The same with something different. A name server that takes TLS only is not asked whether it knows the broker.
    ///
    /// # Panics
    /// When that takes too long.
    pub fn start_with(setup: Setup) -> Self {
        let dir = Directory::in_memory();
        let (name_server_port, broker_port, ha_port) = (free_port(), broker_port(), free_port());
        let store = setup.store.unwrap_or_else(|| dir.path().join("store"));
        let (store, more) = (store.display(), setup.broker);
        let home = dir.path().display();
        std::fs::write(
            dir.path().join("namesrv.conf"),
            format!("listenPort={name_server_port}\nbindAddress=127.0.0.1\nkvConfigPath={home}/kv.json\n"),
        )
        .unwrap();
        let user = format!(r#"{{"username":"{ACCESS_KEY}","password":"{SECRET_KEY}"}}"#);
        let inner = format!(r#"{{"accessKey":"{ACCESS_KEY}","secretKey":"{SECRET_KEY}"}}"#);
        std::fs::write(
            dir.path().join("broker.conf"),
            format!(
                "brokerClusterName=tests\nbrokerName=broker-a\nbrokerId=0\nbrokerRole=ASYNC_MASTER\n\
                 flushDiskType=SYNC_FLUSH\nnamesrvAddr=127.0.0.1:{name_server_port}\nbrokerIP1=127.0.0.1\n\
                 bindAddress=127.0.0.1\nlistenPort={broker_port}\nhaListenPort={ha_port}\n\
                 storePathRootDir={store}\nstorePathCommitLog={store}/commitlog\n\
                 mappedFileSizeCommitLog=8388608\nmappedFileSizeConsumeQueue=600000\nmappedFileSizeTimerLog=1048576\n\
                 maxIndexNum=20000\nmaxHashSlotNum=5000\nautoCreateTopicEnable=false\n\
                 waitTimeMillsInSendQueue=5000\ntimerFlushIntervalMs=10000\nregisterNameServerPeriod=10000\n\
                 authenticationEnabled=true\ninitAuthenticationUser={user}\n\
                 innerClientAuthenticationCredentials={inner}\n\
                 authenticationProvider=org.apache.rocketmq.auth.authentication.provider.DefaultAuthenticationProvider\n\
                 authenticationMetadataProvider=\
                 org.apache.rocketmq.auth.authentication.provider.LocalAuthenticationMetadataProvider\n{more}\n"
            ),
        )
        .unwrap();
        if let Some(tls) = &setup.tls {
            for (name, pem) in [("cert.pem", &tls.certificate), ("key.pem", &tls.key), ("ca.pem", &tls.ca)] {
                std::fs::write(dir.path().join(name), pem).unwrap();
            }
            // The broker is a client of the name server, and looks at its certificate.
            let settings = format!(
                "tls.test.mode.enable=false\ntls.server.need.client.auth=none\ntls.server.authClient=false\n\
                 tls.server.certPath={home}/cert.pem\ntls.server.keyPath={home}/key.pem\n\
                 tls.client.authServer=true\ntls.client.trustCertPath={home}/ca.pem\n"
            );
            std::fs::write(dir.path().join("tls.properties"), settings).unwrap();
        }
        let tls = setup.tls.is_some();
        let mut service = Self { tls, name_server_port, broker_port, name_server: None, broker: None, dir };
        service.name_server = Some(service.java(&["-Xms32m", "-Xmx96m"], "namesrv.NamesrvStartup", "namesrv.conf"));
        service.wait_for(name_server_port, "the name server");
        service.restart_broker();
        service
    }

    /// A broker that serves has not always been heard of yet: on a busy machine its first registration comes too late,
    /// and the next one ten seconds later.
    fn wait_until_registered(&self) {
        wait_until("the name server knows the broker", START_PATIENCE, &self.log(), || {
            self.known_brokers().is_ok_and(|answer| answer.contains("broker-a"))
        });
    }

    /// What the name server answers to `GET_BROKER_CLUSTER_INFO`. A frame is its length, the length of its head, the
    /// head as JSON, and the body; lengths in four bytes, big-endian.
    fn known_brokers(&self) -> std::io::Result<String> {
        let head = br#"{"code":106,"language":"OTHER","version":0,"opaque":1,"flag":0}"#;
        let mut request = Vec::new();
        request.extend_from_slice(&(head.len() as u32 + 4).to_be_bytes());
        request.extend_from_slice(&(head.len() as u32).to_be_bytes());
        request.extend_from_slice(head);
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.name_server_port))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(&request)?;
        let mut length = [0; 4];
        stream.read_exact(&mut length)?;
        let mut answer = vec![0; u32::from_be_bytes(length).min(1 << 20) as usize];
        stream.read_exact(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    fn java(&self, memory: &[&str], class: &str, config: &str) -> Process {
        let home = self.dir.path().display();
        let mut java = Command::new("java");
        java.args(memory)
            .args(["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Djava.net.preferIPv4Stack=true"])
            .args([format!("-Duser.home={home}"), format!("-Djava.io.tmpdir={home}")])
            .arg(format!("-Drocketmq.home.dir={home}"))
            .args(self.tls_arguments())
            .args(["-cp", &format!("{}/*", jars().display())])
            .args([&format!("org.apache.rocketmq.{class}"), "-c"])
            .arg(self.dir.path().join(config))
            .current_dir(self.dir.path());
        let process = Process::start_logged(&mut java, &self.log());
        process.unwrap_or_else(|error| panic!("cannot start java ({error}); {INSTALL}"))
    }

    /// For servers and clients alike, if they use TLS.
    fn tls_arguments(&self) -> Vec<String> {
        let file = format!("-Dtls.config.file={}/tls.properties", self.dir.path().display());
        let switches = ["-Dtls.server.mode=enforcing", "-Dtls.enable=true", "-Dtls.test.mode.enable=false"];
        let switches = switches.into_iter().map(str::to_owned).chain([file]);
        if self.tls { switches.collect() } else { Vec::new() }
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    fn wait_for(&self, port: u16, what: &str) {
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        wait_until(&format!("{what} serves"), START_PATIENCE, &self.log(), || {
            TcpStream::connect_timeout(&addr, Duration::from_secs(1)).is_ok()
        });
    }

    /// For clients.
    pub fn name_servers(&self) -> String {
        format!("127.0.0.1:{}", self.name_server_port)
    }

    /// kill -9 of the broker.
    pub fn kill_broker(&mut self) {
        self.broker = None;
    }

    /// Starts the broker, again with what it had, and waits until it says that it serves, and the name server does.
    ///
    /// # Panics
    /// When it runs, or takes too long.
    pub fn restart_broker(&mut self) {
        assert!(self.broker.is_none(), "it runs");
        let said = |log: &Path| std::fs::read_to_string(log).unwrap_or_default().matches("broker-a, ").count();
        let before = said(&self.log());
        let memory = ["-Xms128m", "-Xmx256m", "-XX:MaxDirectMemorySize=1g"];
        self.broker = Some(self.java(&memory, "broker.BrokerStartup", "broker.conf"));
        wait_until("the broker says that it serves", START_PATIENCE, &self.log(), || said(&self.log()) != before);
        self.wait_for(self.broker_port, "the broker");
        if !self.tls {
            self.wait_until_registered();
        }
    }

    /// Sends the broker a signal.
    ///
    /// # Panics
    /// When it does not run.
    pub fn signal_broker(&self, signal: Signal) {
        self.broker.as_ref().expect("it runs").signal(signal);
    }
}

/// What a consumer got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// Of which queue.
    pub queue: u32,
    /// At which place of it.
    pub offset: u64,
    /// Id of the event.
    pub id: String,
    /// Its name.
    pub tag: String,
    /// The notification, as JSON.
    pub body: String,
}

/// The consumer of `docs/examples/events`, on RocketMQ's own client. That client looks every second for queues that it
/// could read, not every twenty; but a topic that it did not find, or whose broker was gone, it looks for again half a
/// minute later.
#[derive(Debug)]
pub struct JavaConsumer {
    _process: Process,
    log: PathBuf,
    received: Arc<Mutex<Vec<Received>>>,
}

impl JavaConsumer {
    /// Starts it on a topic from its beginning; best when there is that topic, and its broker runs.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(service: &RocketMq, topic: &str, group: &str) -> Self {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/examples/events/EventsConsumer.java");
        let log = service.dir.path().join(format!("consumer-{group}.log"));
        let mut java = Command::new("java");
        java.args(["-Xmx96m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"])
            .arg(format!("-Duser.home={}", service.dir.path().display()))
            .args(["-Drocketmq.client.rebalance.waitInterval=1000", "-Drocketmq.client.rebalance.lockInterval=1000"])
            .args(service.tls_arguments())
            .args(["-cp", &format!("{}/*", jars().display())])
            .arg(source)
            .args([&service.name_servers(), topic, group, "*", ACCESS_KEY, SECRET_KEY])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&log).unwrap());
        let mut process = Process::start(&mut java).unwrap_or_else(|error| panic!("cannot start java ({error})"));
        let lines = BufReader::new(process.take_stdout().unwrap());
        let received = Arc::<Mutex<Vec<Received>>>::default();
        let taken = received.clone();
        std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                let mut parts = line.splitn(5, '\t');
                let mut next = || parts.next().map(str::to_owned);
                if let (Some(queue), Some(offset), Some(id), Some(tag), Some(body)) =
                    (next(), next(), next(), next(), next())
                {
                    let (queue, offset) = (queue.parse().unwrap(), offset.parse().unwrap());
                    taken.lock().unwrap().push(Received { queue, offset, id, tag, body });
                }
            }
        });
        Self { _process: process, log, received }
    }

    /// The ids of the events that it took for repetitions so far.
    ///
    /// # Panics
    /// When what it says cannot be read.
    pub fn repeated(&self) -> Vec<String> {
        let said = std::fs::read_to_string(&self.log).unwrap();
        let lines = said.lines().filter_map(|line| line.strip_prefix("repeated\t"));
        lines.filter_map(|line| line.split('\t').nth(2).map(str::to_owned)).collect()
    }

    /// All that came so far.
    pub fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }
}
