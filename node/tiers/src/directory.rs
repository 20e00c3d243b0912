//! The directory adapter: pieces as files below one directory, for a single machine, for a mounted file server, and for
//! tests.
//!
//! A piece is written to a temporary name beside its own, made durable, and renamed, so that what has a piece's name is
//! whole. The directory carries a marker with an id of its own. It is compared before each operation: where a file
//! system is not mounted, or another one is, the tier is refused rather than taken for one without pieces. Only
//! [`DirectoryTier::create`] marks a directory, and only an empty one; who knows that the tier has pieces calls
//! [`DirectoryTier::open`].
//!
//! All calls of the system are made on tokio's blocking threads, one step of a piece at a time, so that a slow source
//! pins no thread. A step that does not end in time is [`TierError::Unavailable`]; its thread keeps the piece's name
//! until it ends.
//!
//! A file server that is gone may keep such threads for ever, and tokio has a bounded number of them, which the node's
//! disks and its look-ups of names need too. So a directory has [`STEPS_MAX`] of them at most, whatever is asked of it.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write as _;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use holdfast_actors::ports::tiers::{ColdBody, ColdTier, PieceName, PieceSpec, TierError, TierHealth, TierResult};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use self::place::Place;
use self::root::{Root, Temporary, TierId};
use crate::in_flight::{Claim, InFlight, PutBody, size_is_allowed};

mod place;
mod root;

/// What is read or written on a blocking thread at a time: enough to hide the hand-over between threads.
const STEP_BYTES: usize = 1 << 20;

/// Steps on one directory at the same time, those that hang included. A runtime of tokio has 512 blocking threads.
const STEPS_MAX: usize = 64;

/// Where steps on a directory get their places. Kept by those that have one, not by an adapter: while its directory
/// does not answer, an adapter is made anew again and again.
static PLACES: LazyLock<Mutex<HashMap<PathBuf, Weak<Semaphore>>>> = LazyLock::new(Mutex::default);

/// Where the tier is and what it takes.
#[derive(Debug, Clone)]
pub struct DirectoryConfig {
    /// The directory; an absolute path.
    pub root: PathBuf,
    /// The largest piece, in bytes.
    pub piece_bytes_max: u64,
    /// How long one step on the file system may take, the syncing of a whole piece included.
    pub patience: Duration,
}

impl DirectoryConfig {
    /// The defaults: pieces up to 5 GiB, two minutes a step.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), piece_bytes_max: 5 << 30, patience: Duration::from_secs(120) }
    }
}

/// A tier in a directory.
pub struct DirectoryTier {
    config: Arc<DirectoryConfig>,
    id: TierId,
    in_flight: InFlight,
}

impl DirectoryTier {
    /// Opens a directory that is a tier already.
    ///
    /// # Errors
    /// [`TierError::Denied`] when it does not exist or is not marked as a tier, [`TierError::Unavailable`];
    /// [`TierError::Invalid`] when the path is relative.
    pub async fn open(config: DirectoryConfig) -> TierResult<Self> {
        Self::with(config, Root::id_of).await
    }

    /// As [`DirectoryTier::open`], but an empty directory becomes a tier.
    ///
    /// # Errors
    /// As [`DirectoryTier::open`]; [`TierError::Denied`] when there is something in a directory that is not marked.
    pub async fn create(config: DirectoryConfig) -> TierResult<Self> {
        Self::with(config, Root::mark).await
    }

    async fn with(
        config: DirectoryConfig,
        identify: impl FnOnce(&Path) -> TierResult<TierId> + Send + 'static,
    ) -> TierResult<Self> {
        if !config.root.is_absolute() {
            let relative = config.root.display();
            return Err(TierError::Invalid(format!("the tier's directory {relative} must be an absolute path")));
        }
        let config = Arc::new(config);
        let id = blocking(&config, None, {
            let config = config.clone();
            move || identify(&config.root)
        })
        .await?;
        let in_flight = InFlight::new(config.patience);
        Ok(Self { config, id, in_flight })
    }

    /// Runs a step with the root, which is seen to be the right one.
    async fn at_root<T: Send + 'static>(
        &self,
        claim: Option<Claim>,
        step: impl FnOnce(Root) -> TierResult<T> + Send + 'static,
    ) -> TierResult<T> {
        let (config, id) = (self.config.clone(), self.id);
        blocking(&self.config, claim, move || step(Root::open(&config.root, id)?)).await
    }
}

/// The places for steps on a directory.
fn places_of(root: &Path) -> Arc<Semaphore> {
    let mut all = PLACES.lock();
    if let Some(places) = all.get(root).and_then(Weak::upgrade) {
        return places;
    }
    // Nobody has a place there.
    all.retain(|_, places| places.strong_count() > 0);
    let places = Arc::new(Semaphore::new(STEPS_MAX));
    all.insert(root.to_owned(), Arc::downgrade(&places));
    places
}

/// Runs a step on a blocking thread, which holds the claim and one of the directory's places until it is through.
async fn blocking<T: Send + 'static>(
    config: &DirectoryConfig,
    claim: Option<Claim>,
    step: impl FnOnce() -> TierResult<T> + Send + 'static,
) -> TierResult<T> {
    let silent = |why: &str| TierError::Unavailable(format!("{} does not answer{why}", config.root.display()));
    let deadline = Instant::now() + config.patience;
    let Ok(place) = timeout_at(deadline, places_of(&config.root).acquire_owned()).await else {
        // What a step holds may be a file to be removed, which is a thing for a blocking thread too.
        tokio::task::spawn_blocking(move || drop((step, claim)));
        return Err(silent(&format!(": {STEPS_MAX} steps wait for it already")));
    };
    let task = tokio::task::spawn_blocking(move || {
        let result = step();
        drop((claim, place));
        result
    });
    match timeout_at(deadline, task).await {
        Ok(Ok(result)) => result,
        Ok(Err(ended)) => Err(TierError::Unavailable(format!("a step on the directory ended early: {ended}"))),
        Err(_) => Err(silent("")),
    }
}

/// The work of a put.
async fn write(
    config: Arc<DirectoryConfig>,
    id: TierId,
    place: Place,
    mut body: PutBody,
    claim: Claim,
) -> TierResult<()> {
    let step_of =
        |step: Box<dyn FnOnce() -> TierResult<Temporary> + Send>| blocking(&config, Some(claim.clone()), step);
    let mut temporary = {
        let root = config.root.clone();
        step_of(Box::new(move || Root::open(&root, id)?.create_directory(&place)?.create_temporary(&place))).await?
    };
    loop {
        match gather(&mut body).await {
            Ok(steps) if steps.is_empty() => break,
            Ok(steps) => {
                temporary = step_of(Box::new(move || {
                    for step in steps {
                        temporary.file.write_all(&step).map_err(|error| temporary.directory.error("write", &error))?;
                    }
                    Ok(temporary)
                }))
                .await?;
            }
            Err(error) => {
                // It is removed when it is dropped, which is a thing for a blocking thread.
                let remove = move || {
                    drop(temporary);
                    Ok(())
                };
                blocking(&config, Some(claim.clone()), remove).await?;
                return Err(error);
            }
        }
    }
    blocking(&config, Some(claim), move || temporary.publish()).await
}

/// Bytes for one step; none after the last.
async fn gather(body: &mut PutBody) -> TierResult<Vec<Bytes>> {
    let (mut steps, mut room) = (Vec::new(), STEP_BYTES);
    while room > 0 {
        let Some(bytes) = body.next(room).await? else { break };
        room -= bytes.len();
        steps.push(bytes);
    }
    Ok(steps)
}

/// The rest of a piece that is being read.
struct Reading {
    config: Arc<DirectoryConfig>,
    file: Arc<File>,
    name: PieceName,
    range: Range<u64>,
}

impl Reading {
    async fn next(&mut self) -> Option<TierResult<Bytes>> {
        if self.range.is_empty() {
            return None;
        }
        let (file, name, at) = (self.file.clone(), self.name.clone(), self.range.start);
        let len = (self.range.end - at).min(STEP_BYTES as u64) as usize;
        let read = blocking(&self.config, None, move || {
            let mut buffer = vec![0; len];
            file.read_exact_at(&mut buffer, at).map_err(|error| match error.kind() {
                std::io::ErrorKind::UnexpectedEof => {
                    TierError::Corrupt { piece: name.clone(), detail: "the file became shorter".into() }
                }
                _ => TierError::Unavailable(format!("read {name}: {error}")),
            })?;
            Ok(Bytes::from(buffer))
        })
        .await;
        // Nothing comes after an error.
        self.range.start = if read.is_ok() { at + len as u64 } else { self.range.end };
        Some(read)
    }
}

#[async_trait]
impl ColdTier for DirectoryTier {
    fn kind(&self) -> &'static str {
        "directory"
    }

    fn piece_bytes_max(&self) -> u64 {
        self.config.piece_bytes_max
    }

    fn store_id(&self) -> Option<String> {
        Some(self.id.to_string())
    }

    async fn reserve(&self, piece: &PieceSpec) -> TierResult<PieceName> {
        size_is_allowed(piece.size_bytes, self.config.piece_bytes_max)?;
        Ok(Place::of(piece)?.piece)
    }

    async fn put(&self, name: &PieceName, piece: &PieceSpec, body: ColdBody) -> TierResult<()> {
        size_is_allowed(piece.size_bytes, self.config.piece_bytes_max)?;
        let place = Place::parse(name)?;
        let (config, id) = (self.config.clone(), self.id);
        let work = |body, claim| write(config, id, place, body, claim);
        self.in_flight.put(name, piece.size_bytes, body, work).await
    }

    async fn get(&self, name: &PieceName, range: Range<u64>) -> TierResult<ColdBody> {
        let place = Place::parse(name)?;
        let (file, size_bytes) = self
            .at_root(None, move |root| {
                let missing = || TierError::NotFound(place.piece.clone());
                root.directory(&place)?.ok_or_else(missing)?.open_piece(&place)?.ok_or_else(missing)
            })
            .await?;
        if range.is_empty() {
            return Err(TierError::Invalid(format!("an empty range of {name}")));
        }
        if range.end > size_bytes {
            let detail = format!("bytes {} to {} were wanted, and it has {size_bytes}", range.start, range.end);
            return Err(TierError::Corrupt { piece: name.clone(), detail });
        }
        let reading = Reading { config: self.config.clone(), file: Arc::new(file), name: name.clone(), range };
        let body = stream::unfold(reading, |mut reading| async move {
            let step = reading.next().await?;
            Some((step, reading))
        });
        Ok(body.boxed())
    }

    async fn size_bytes(&self, name: &PieceName) -> TierResult<u64> {
        let place = Place::parse(name)?;
        self.at_root(None, move |root| {
            let size = root.directory(&place)?.map(|directory| directory.size_bytes(&place)).transpose()?.flatten();
            size.ok_or_else(|| TierError::NotFound(place.piece.clone()))
        })
        .await
    }

    async fn delete(&self, name: &PieceName) -> TierResult<()> {
        let place = Place::parse(name)?;
        let claim = self.in_flight.claim(name).await?;
        self.at_root(Some(claim), move |root| match root.directory(&place)? {
            Some(directory) => directory.remove(&place),
            None => Ok(()),
        })
        .await
    }

    async fn check(&self) -> TierResult<TierHealth> {
        self.at_root(None, |root| root.health()).await
    }
}

#[cfg(test)]
mod tests;
