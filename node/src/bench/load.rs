//! Runs a workload: fill, warm up, measure, clean up.
//!
//! Workers live on the client's own threads, each with a current-thread runtime, so that a request costs the client as
//! little as possible; the coordinator (this module's `run`) stays on the caller's runtime. All of them meet at
//! barriers between the phases. What is measured lies between two of them: each request that began while measuring is
//! finished and counted, so that the server's CPU seconds and the counts belong to the same requests.
//!
//! The loop is closed: a worker sends its next request when the last one is answered, so a slow server is asked less.
//! Each phase ends by itself: filling and cleaning have their keys, warming up and measuring a time, each request a
//! limit.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use parking_lot::Mutex;
use tokio::sync::{Barrier, oneshot};

use super::args::LoadArgs;
use super::bucket;
use super::client::{Call, Connection, Failure, Target, element, encode_path, encode_query};
use super::content::Pattern;
use super::plan::{Object, Plan, Script, Step, Workload};
use super::process::{self, Memory};
use super::report::{Measured, Report, Stats};

/// How often the server's memory is looked at.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(50);
/// Waits after a failure, doubling, so that a refusing server is not flooded.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));
/// Failures in a row after which a worker gives up.
const FAILURES_IN_A_ROW_MAX: u32 = 30;
/// Tries for each object of the fill.
const FILL_TRIES_MAX: u32 = 8;

/// What all workers share.
struct Shared {
    plan: Arc<Plan>,
    target: Arc<Target>,
    pattern: Pattern,
    bucket: String,
    warmup: Duration,
    duration: Duration,
    max_keys: u32,
    fill: bool,
    seed: u64,
    /// Where the phases change: all workers and the coordinator.
    barrier: Barrier,
    /// The next object to fill.
    next_fill: AtomicU64,
    /// Requests that may still begin while measuring.
    budget: AtomicU64,
    /// Set when the run is to end early: interrupted, or a worker could not go on.
    stop: AtomicBool,
    /// Why it was set by a worker.
    broken: Mutex<Option<String>>,
    done_requests: AtomicU64,
}

/// Runs `workload` as `args` say and reports on stdout.
///
/// # Errors
/// When the arguments make no sense, the server cannot be reached, or the fill failed. Failing requests while measuring
/// are no error: they are reported, and the exit code tells.
pub(super) async fn run(workload: Workload, args: LoadArgs) -> Result<ExitCode> {
    let plan = Arc::new(Plan::new(workload, &args)?);
    process::cpu_of(&args.pid)?;
    let target = Arc::new(Target::new(&args)?);
    let mut control = Connection::new(target.clone());
    let created = target.is_s3() && bucket::create(&mut control, &args.bucket).await?;

    let threads = args.threads.min(args.concurrency);
    let shared = Arc::new(Shared {
        plan: plan.clone(),
        target,
        pattern: Pattern::new(args.seed),
        bucket: args.bucket.clone(),
        warmup: args.warmup,
        duration: args.duration,
        max_keys: args.max_keys,
        fill: workload.needs_objects() && !args.no_fill,
        seed: args.seed,
        barrier: Barrier::new(args.concurrency as usize + 1),
        next_fill: AtomicU64::new(0),
        budget: AtomicU64::new(args.count.unwrap_or(u64::MAX)),
        stop: AtomicBool::new(false),
        broken: Mutex::new(None),
        done_requests: AtomicU64::new(0),
    });
    let interrupt = tokio::spawn({
        let shared = shared.clone();
        async move {
            if tokio::signal::ctrl_c().await.is_ok() {
                shared.stop.store(true, Ordering::Relaxed);
            }
        }
    });
    let mut finished = Vec::new();
    for thread in 0..threads {
        let workers: Vec<u32> = (0..args.concurrency).filter(|worker| worker % threads == thread).collect();
        finished.push(spawn_thread(shared.clone(), workers)?);
    }

    let bar = progress(&args);
    let measured = coordinate(&shared, &args, &bar, finished).await;
    bar.finish_and_clear();
    interrupt.abort();
    let broken = shared.broken.lock().take();
    let outcome = measured.and_then(|done| match broken {
        Some(reason) => bail!("{reason}"),
        None => Ok(done),
    });
    if !args.keep {
        let filled = if shared.fill { shared.next_fill.load(Ordering::Relaxed).min(plan.filled()) } else { 0 };
        let filled = (0..filled).map(|n| plan.filled_nth(n));
        let scripts = outcome.as_ref().map(|(_, scripts)| scripts.as_slice()).unwrap_or_default();
        let objects = filled.chain(scripts.iter().flat_map(Script::own_objects));
        if let Err(error) = bucket::clean(&mut control, &args, objects, created).await {
            tracing::warn!(%error, "objects of the run are left behind");
            eprintln!("warning: objects of the run are left behind: {error:#}");
        }
    }
    let (report, _) = outcome?;
    if args.json {
        println!("{}", serde_json::to_string(&report).context("write the report")?);
    } else {
        report.print();
    }
    Ok(if report.is_success(args.errors_max) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Walks the phases with the workers and samples the server meanwhile.
async fn coordinate(
    shared: &Arc<Shared>,
    args: &LoadArgs,
    bar: &ProgressBar,
    finished: Vec<oneshot::Receiver<(Stats, Vec<Script>)>>,
) -> Result<(Report, Vec<Script>)> {
    bar.set_message("filling");
    shared.barrier.wait().await;
    bar.set_message("warming up");
    shared.barrier.wait().await;

    let me = [std::process::id()];
    let cpu_before = process::cpu_of(&args.pid);
    let client_before = process::cpu_of(&me)?;
    let begin = Instant::now();
    shared.barrier.wait().await;

    let all = futures::future::try_join_all(finished);
    tokio::pin!(all);
    let mut memory = Memory::default();
    let mut tick = tokio::time::interval(SAMPLE_INTERVAL);
    let threads = loop {
        tokio::select! {
            done = &mut all => break done.context("a thread of the client failed")?,
            _ = tick.tick() => {
                memory = memory.max(process::memory_of(&args.pid).unwrap_or_default());
                let elapsed = begin.elapsed().min(args.duration);
                bar.set_position(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX));
                let done = shared.done_requests.load(Ordering::Relaxed);
                bar.set_message(format!("{done} requests, {:.0}/s", done as f64 / begin.elapsed().as_secs_f64()));
            }
        }
    };
    let elapsed = begin.elapsed();
    let client = process::cpu_of(&me)?.since(client_before);
    let server = if args.pid.is_empty() {
        None
    } else {
        let spent = process::cpu_of(&args.pid).context("the server ended while it was measured")?.since(cpu_before?);
        Some((spent, memory.max(process::memory_of(&args.pid)?)))
    };
    let mut stats = Stats::new();
    let mut scripts = Vec::new();
    for (part, mut done) in threads {
        stats.merge(&part);
        scripts.append(&mut done);
    }
    let measured = Measured {
        workload: shared.plan.workload.name(),
        sizes_bytes: shared.plan.sizes.clone(),
        concurrency: args.concurrency,
        elapsed,
        client,
        server,
        interrupted: shared.stop.load(Ordering::Relaxed),
    };
    Ok((Report::new(&stats, measured), scripts))
}

/// A bar on a terminal, nothing elsewhere.
fn progress(args: &LoadArgs) -> ProgressBar {
    let bar = ProgressBar::new(u64::try_from(args.duration.as_millis()).unwrap_or(u64::MAX));
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {msg}") {
        bar.set_style(style);
    }
    bar
}

fn spawn_thread(shared: Arc<Shared>, workers: Vec<u32>) -> Result<oneshot::Receiver<(Stats, Vec<Script>)>> {
    let (reply, finished) = oneshot::channel();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a client runtime")?;
    let run = move || {
        let stats = Arc::new(Mutex::new(Stats::new()));
        let scripts = runtime.block_on(async {
            let workers = workers.into_iter().map(|id| tokio::spawn(work(shared.clone(), id, stats.clone())));
            futures::future::join_all(workers).await
        });
        // A worker that panicked has no script; its objects stay, and the panic was printed.
        let scripts = scripts.into_iter().filter_map(Result::ok).collect();
        let stats = stats.lock().clone();
        // Nobody waits any more when the run was given up: nothing to do then.
        let _ = reply.send((stats, scripts));
    };
    std::thread::Builder::new().name("bench".into()).spawn(run).context("start a client thread")?;
    Ok(finished)
}

/// One worker through all phases.
async fn work(shared: Arc<Shared>, id: u32, stats: Arc<Mutex<Stats>>) -> Script {
    let mut worker = Worker {
        connection: Connection::new(shared.target.clone()),
        script: Script::new(shared.plan.clone(), id, shared.seed),
        failures_in_a_row: 0,
        shared,
    };
    if worker.shared.fill {
        worker.fill().await;
    }
    worker.shared.barrier.wait().await;
    let end = Instant::now() + worker.shared.warmup;
    while Instant::now() < end && worker.may_go_on() {
        worker.step(None).await;
    }
    worker.shared.barrier.wait().await;
    worker.shared.barrier.wait().await;
    let end = Instant::now() + worker.shared.duration;
    while Instant::now() < end && worker.may_go_on() && worker.take_from_budget() {
        worker.step(Some(&stats)).await;
    }
    worker.script
}

struct Worker {
    shared: Arc<Shared>,
    connection: Connection,
    script: Script,
    failures_in_a_row: u32,
}

impl Worker {
    fn may_go_on(&self) -> bool {
        !self.shared.stop.load(Ordering::Relaxed) && self.failures_in_a_row < FAILURES_IN_A_ROW_MAX
    }

    fn take_from_budget(&self) -> bool {
        let take = |left: u64| left.checked_sub(1);
        self.shared.budget.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }

    fn path(&self, key: &str) -> String {
        format!("/{}/{}", self.shared.bucket, encode_path(key))
    }

    async fn put(&mut self, object: &Object) -> Result<(), Failure> {
        let path = self.path(&object.key);
        let body = self.shared.pattern.body(&object.key, object.size);
        self.connection.put(&path, body).await
    }

    /// Writes its share of the objects that will be read.
    async fn fill(&mut self) {
        while self.may_go_on() {
            let n = self.shared.next_fill.fetch_add(1, Ordering::Relaxed);
            if n >= self.shared.plan.filled() {
                return;
            }
            let object = self.shared.plan.filled_nth(n);
            let mut tries = 1;
            while let Err(failure) = self.put(&object).await {
                if tries == FILL_TRIES_MAX {
                    let reason = format!("write `{}` before measuring: {}", object.key, failure.kind);
                    *self.shared.broken.lock() = Some(reason);
                    self.shared.stop.store(true, Ordering::Relaxed);
                    return;
                }
                tokio::time::sleep(backoff(tries)).await;
                tries += 1;
            }
        }
    }

    /// One request; counted when `stats` are given.
    async fn step(&mut self, stats: Option<&Mutex<Stats>>) {
        let step = self.script.next();
        let operation = step.operation();
        let begin = Instant::now();
        let result = match step {
            Step::Put(object) => {
                let result = self.put(&object).await.map(|()| object.size);
                if result.is_ok() {
                    self.script.acknowledged(object);
                }
                result
            }
            Step::Get(object) => {
                let path = self.path(&object.key);
                let check = self.shared.pattern.check(&object.key, object.size);
                self.connection.get(&path, check).await.map(|()| object.size)
            }
            Step::Head(object) => {
                let path = self.path(&object.key);
                self.connection.head(&path, object.size).await.map(|()| 0)
            }
            Step::List => self.list().await,
        };
        let latency = begin.elapsed();
        match result {
            Ok(bytes) => {
                self.failures_in_a_row = 0;
                if let Some(stats) = stats {
                    stats.lock().succeeded(operation, bytes, latency);
                    self.shared.done_requests.fetch_add(1, Ordering::Relaxed);
                }
            }
            Err(failure) => {
                self.failures_in_a_row += 1;
                if let Some(stats) = stats {
                    stats.lock().failed(failure.kind, failure.wrong_content);
                }
                tokio::time::sleep(backoff(self.failures_in_a_row)).await;
            }
        }
    }

    /// Asks for the first page of the filled objects of one size and checks how many it has.
    async fn list(&mut self) -> Result<u64, Failure> {
        let plan = &self.shared.plan;
        let (size, objects) = (plan.sizes[0], plan.objects[0]);
        let prefix = encode_query(&format!("{}{size}/", plan.prefix));
        let path = format!("/{}", self.shared.bucket);
        let query = format!("list-type=2&max-keys={}&prefix={prefix}", self.shared.max_keys);
        let call = Call { query: &query, ..Call::new(http::Method::GET, &path) };
        let answer = self.connection.ask(call).await?;
        let text = String::from_utf8_lossy(&answer);
        let want = objects.min(u64::from(self.shared.max_keys));
        let told = element(&text, "KeyCount").and_then(|count| count.parse::<u64>().ok());
        if told != Some(want) || text.matches("<Key>").count() as u64 != want {
            return Err(Failure { kind: "wrong listing".into(), wrong_content: true });
        }
        Ok(answer.len() as u64)
    }
}

fn backoff(failures: u32) -> Duration {
    BACKOFF.0.saturating_mul(1 << failures.min(16)).min(BACKOFF.1)
}
