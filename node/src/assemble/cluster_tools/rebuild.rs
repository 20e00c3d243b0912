//! Metadata from the labels of chunks (promise D10), for when the database and its backups are lost.
//!
//! A label holds bucket, key, version, size and time of the content, and on a content's first chunk the owner, the
//! headers, the tags and the ACL. So any chunk of a content is enough to know its name and all of its chunks, wherever
//! they are; the last one proves that it was stored whole, and the first one gives what else its object had. The label
//! of a part says which part of which upload it is; whether the upload was completed no label says. So parts come back
//! as unfinished uploads ([`uploads`]), which are kept, can be listed, and can be completed here or by a client; which
//! of them were objects is for the operator to say.
//!
//! A content in a cold tier has no chunks here but its stub ([`stubs`]), whose payload says where in the tier the bytes
//! are. It is a small chunk, and every node that holds it brings the object back alone; a damaged one counts as
//! unreadable, and the next node's replica is as good.
//!
//! | what | comes back |
//! |---|---|
//! | objects and versions of one PUT | yes, with key, version, size, owner, headers, user metadata, tags and ACL |
//! | ETag and checksums | the MD5 where all chunks are on this node; else a value that is unique, and is no MD5 |
//! | objects in a cold tier | yes, with their ETag, checksums and parts; their storage class is the tier |
//! | cold tiers | no: add them again under the names that the report gives, before anybody reads. Moves and restores: no |
//! | pieces in tiers that no stub names | no: they stay in the tier, and nothing deletes them |
//! | storage classes of objects that wait for their move | yes, and the move is queued anew |
//! | overwritten and deleted objects whose chunks are not reclaimed yet | yes: labels do not know that they went |
//! | multipart objects | their parts, as unfinished uploads; as objects when completing is asked for. The version id is new |
//! | copies that share the bytes of another object | no: labels name the object that was written |
//! | objects of no bytes | no: they have no chunk |
//! | buckets | their names; versioning is on where a version has an id. They belong to the user named. Policies, CORS, tags, ACLs: no |
//! | users | the names of those who own objects, without keys: make keys with `holdfast root create` and `holdfast key create` |
//!
//! **Between several contents of one version** the later one counts: that of the later time in its label, then the
//! younger one. What a move writes bears the time of the version, which is no earlier than that of the content that
//! came in by a PUT. So a stub wins over the chunks that it was moved from and that are not reclaimed yet, chunks that
//! a restore brought win over the stub that they were restored from, and an overwrite wins over both. The content that
//! lost is an orphan from then on. A content without its last chunk loses against any other.
//!
//! But a stub may be of a move that was never committed, and then its pieces are deleted sooner or later. So where all
//! chunks that it was moved from are still here and have the MD5 that the stub tells, they are taken, with the tier as
//! storage class: the object is moved once more. What the first move left in the tier stays there. For the same reason
//! an upload that is the same multipart object as one that came back by its stub is completed, over it, only if all of
//! its parts are whole.
//!
//! **On top of a backup** that was put back, only what was moved since is looked for ([`RebuildOptions::moved_only`]):
//! labels do not know of copies, and what is deleted under one name may be there under another. What came back from a
//! tier counts where its last chunk is: a recall that broke off is no reason to let go of what lies in the tier.
//!
//! **Torn writes.** A label tells the size of the whole content, and the last chunk is stored when those before it are:
//! a content whose last chunk is nowhere is of a write that broke off. A node that runs alone sees that at once. In a
//! cluster the end of what begins here may be on another node, and brings the object back there ([`begun`]); so what
//! ends nowhere does not come back, nor takes the place of what it was to replace, unless that is asked for
//! ([`RebuildOptions::unended`]).
//!
//! **The next node of a cluster** has other chunks, or older ones. What it finds is held against what the nodes before
//! it have brought back by the same rules ([`known`]), and takes its place among the versions of its key by its time.
//! So the nodes may be walked in any order. A run that broke off is made again, and so are those before it: it may have
//! taken out what only they can bring back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::{Context, bail};
use holdfast_actors::ports::chunks::ReplicaStore;
use holdfast_actors::ports::coordination::{Coordination, CoordinationError};
use holdfast_actors::ports::metadata::{CannedAcl, NewBucket, User, Versioning};
use holdfast_actors::ports::{Clock, MetadataError, MetadataStore, SystemClock};
use holdfast_protocol::{NodeId, TierName, VersionId};

use super::super::data_dir::DataDir;
use super::super::storage;
use super::beside::Beside;
use super::{Claim, Misused, Stopped};
use crate::chunks::DiskChunks;
use crate::config::{Config, NodeConfig};

mod begun;
mod commit;
mod contents;
mod found;
mod known;
mod report;
mod stubs;
mod uploads;
mod walk;

use commit::commit;
use found::{Contents, in_order};
pub use report::RebuildReport;
use walk::walk;

/// What to do beside reading labels.
#[derive(Debug, Clone, Copy, Default)]
pub struct RebuildOptions {
    /// Only count.
    pub dry_run: bool,
    /// Go on where metadata holds buckets already, as on the second node of a cluster.
    pub add: bool,
    /// Complete every unfinished upload whose parts make an object. Only after all nodes were walked are all parts
    /// there.
    pub complete_uploads: bool,
    /// Only give versions that the metadata has the contents that they were moved to: what a backup that was put back
    /// does not know of them. Nothing else comes back, such as names that objects had before they were copied to others
    /// and deleted.
    pub moved_only: bool,
    /// Also bring back contents whose end was found nowhere, where nothing else has their name: what is left of writes
    /// that broke off, and of objects that lost their end. Only after all nodes of a cluster were walked is it known
    /// which those are.
    pub unended: bool,
    /// These disks are all that there are: a chunk that is not here is nowhere.
    pub alone: bool,
}

/// What the steps of a rebuild work with, and what they have done so far.
struct Run<'a> {
    chunks: &'a dyn ReplicaStore,
    metadata: &'a dyn MetadataStore,
    /// The owner of what neither a label nor the metadata names one for.
    owner: &'a str,
    options: RebuildOptions,
    report: RebuildReport,
}

/// Rebuilds metadata from this node's disks.
///
/// # Errors
/// When there is no such node; when it runs; unless it is a dry run also when any node of its cluster does, or another
/// tool that fills the metadata; when metadata holds buckets already (unless `add`); those of disks and metadata.
pub async fn rebuild(config: &Config, owner: &str, options: RebuildOptions) -> anyhow::Result<RebuildReport> {
    let options = RebuildOptions { alone: !config.cluster.is_on(), ..options };
    if options.alone {
        require_node(&config.node)?;
    }
    let data_dir = DataDir::open(&config.node.data_dir)?;
    if options.moved_only {
        // One that broke off may have taken out a version to put it back, and this one puts back only what is there.
        data_dir.refuse_unfinished().context("put the backup back again before what was moved is looked for")?;
    }
    let mut stopped = if options.dry_run {
        None
    } else {
        super::zookeeper::require_stopped(config, data_dir.node_id()).await.context("nothing was rebuilt")?
    };
    let claim = if options.dry_run { Claim::Untouched } else { Claim::Later };
    let metadata = super::open_metadata(config, &data_dir, claim).await?;
    let cluster = data_dir.cluster_id()?;
    if options.moved_only
        && !options.alone
        && let Some(cluster) = cluster
    {
        // Nobody's is what a restore that broke off has left.
        storage::require_claim(&*metadata, cluster, &config.metadata.url).await?;
    }
    if !options.add && !metadata.list_buckets(None, None, 1).await.context("look at the metadata")?.is_empty() {
        bail!(
            "the metadata holds buckets: rebuilding would bring overwritten and deleted objects back. For the next node of a \
             cluster whose metadata is being rebuilt give --add; else restore a backup"
        );
    }
    let lost = match stopped.as_ref().filter(|_| !options.moved_only).map(Stopped::coordination) {
        Some(coordination) => nodes_to_walk(&*coordination, &*metadata).await.context("nothing was rebuilt")?,
        None => None,
    };
    // With half of the objects a node would delete the chunks of the others.
    let beside = if options.alone && !options.dry_run {
        metadata.close().await;
        Some(Beside::begin(&data_dir.file("metadata.sqlite"))?)
    } else {
        None
    };
    let metadata: Arc<dyn MetadataStore> = match &beside {
        Some(beside) => Arc::new(beside.open().await?),
        None => metadata,
    };
    let cluster_bytes = cluster.map_or(data_dir.id(), |cluster| *cluster.as_bytes());
    let opened = storage::open_disks(config, cluster_bytes, &data_dir, None).await?;
    let chunks = DiskChunks::new(opened.disks.clone());
    // The database of a node that runs alone is filled beside its place.
    let leaves_mark = !options.dry_run && !options.alone;
    if leaves_mark {
        data_dir.begin_filling()?;
    }
    let rebuilding = async {
        if leaves_mark {
            // Nor does another node start with what a run that breaks off has taken out.
            metadata.disclaim().await.context("keep nodes from the metadata until all of it is there")?;
        }
        from_chunks(&chunks, &*metadata, owner, options).await
    };
    let rebuilt = Stopped::during(stopped.as_mut(), rebuilding).await;
    let rebuilt = match (rebuilt, lost) {
        (Ok(report), Some(nodes)) => {
            let (me, waits) = (data_dir.node_id(), report.waiting > 0);
            let left = metadata.note_walked(me, waits, &nodes).await.context("note which nodes were walked");
            left.map(|left| RebuildReport { unwalked: left.iter().map(NodeId::to_string).collect(), ..report })
        }
        (rebuilt, _) => rebuilt,
    };
    // Last, so that no node of the cluster starts with what a run that broke off has left, or has not even begun.
    let claimed = match cluster.filter(|_| leaves_mark && rebuilt.is_ok()) {
        Some(cluster) => storage::claim(&*metadata, cluster, &config.metadata.url).await,
        None => Ok(()),
    };
    metadata.close().await;
    // Also after an error: what was written stays.
    let invalidated = if options.dry_run { Ok(()) } else { super::zookeeper::invalidate_cache(config).await };
    // Nothing was written there, and what a disk has is not told by how it ends: one that could not be read whole ends
    // fenced.
    if let Err(error) = opened.disks.shutdown().await {
        tracing::warn!(%error, "a disk was not closed cleanly, the next start looks through it");
    }
    let rebuilt = rebuilt.and_then(|report| claimed.map(|()| report));
    let report = if leaves_mark { rebuilt.context(way_out(options))? } else { rebuilt? };
    beside.map_or(Ok(()), Beside::put_in_place)?;
    invalidated?;
    if !options.dry_run {
        data_dir.end_filling()?;
    }
    if let Some(stopped) = stopped {
        stopped.end().await;
    }
    Ok(report)
}

/// A directory that is not there is another one than was meant. Opening it would make it, and nothing, found on no
/// disk, would be taken for all that there is.
fn require_node(node: &NodeConfig) -> anyhow::Result<()> {
    let is_there = node.data_dir.try_exists().with_context(|| format!("look for {}", node.data_dir.display()))?;
    if is_there || node.disk_dirs().iter().any(|dir| super::holds_files(dir)) {
        return Ok(());
    }
    bail!(Misused(format!(
        "there is no {}, and so nothing to rebuild from: name the node's configuration with --config or its data directory \
         with --data-dir",
        node.data_dir.display()
    )))
}

/// The nodes that are to be walked for what the database lost, before orphans are given up again; `None`: it has lost
/// nothing.
///
/// # Errors
/// When nobody knows which those are: with the first one that is walked all would count as walked.
async fn nodes_to_walk(
    coordination: &dyn Coordination,
    metadata: &dyn MetadataStore,
) -> anyhow::Result<Option<Vec<NodeId>>> {
    if !metadata.lost_commits().await.context("ask whether the database has lost commits")? {
        return Ok(None);
    }
    match coordination.layout().await {
        Ok(layout) => {
            let nodes: Vec<NodeId> = layout.value.applied.nodes.into_keys().collect();
            if nodes.is_empty() {
                // As after `cluster init --again`.
                tracing::warn!(
                    "the database has lost commits, and the layout names no node: orphans are kept, also after all nodes were walked, \
                     until that is ended as docs/operations.md says under \"A dump of the database's own\""
                );
            }
            Ok(Some(nodes))
        }
        Err(CoordinationError::NotFound(_)) => bail!(
            "the database has lost commits, and ZooKeeper does not know which nodes have to be walked for them: give it back what \
             it held first, see \"Lose ZooKeeper\" in docs/operations.md"
        ),
        Err(error) => Err(error).context("ask which nodes the cluster has"),
    }
}

/// What to do after a run that broke off in a cluster's database.
fn way_out(options: RebuildOptions) -> &'static str {
    if options.moved_only {
        "start no node: what was found is in the database in part only. Put the backup back again, into a new database, before you run \
         this again"
    } else {
        "start no node: what was found is in the database in part only. Run this again with --add, and then on the nodes that were walked \
         before: it may have taken out a version that only they can bring back. After --complete-uploads begin anew, with an empty database"
    }
}

/// Rebuilds metadata from `chunks`.
///
/// # Errors
/// Those of metadata.
pub async fn from_chunks(
    chunks: &dyn ReplicaStore,
    metadata: &dyn MetadataStore,
    owner: &str,
    options: RebuildOptions,
) -> anyhow::Result<RebuildReport> {
    let report = RebuildReport { dry_run: options.dry_run, ..RebuildReport::default() };
    let mut run = Run { chunks, metadata, owner, options, report };
    let report = &mut run.report;
    let found = walk(chunks, options, report).await;
    report.buckets = found.buckets().len() as u64;
    report.tiers = found.classes().map(TierName::to_string).collect();
    if options.dry_run {
        report.objects = found.versions.len() as u64;
        report.bytes = found.versions.values().map(|found| found.size_bytes).sum();
        report.cold = found.versions.values().filter(|found| found.tier.is_some()).count() as u64;
        report.uploads = found.uploads.len() as u64;
        report.parts = found.uploads.values().map(|parts| parts.len() as u64).sum();
        report.unended = found.begun.len() as u64;
        return Ok(run.report);
    }
    if options.moved_only {
        follow_moves(&mut run, found).await?;
        return Ok(run.report);
    }
    make_owners_and_buckets(&run, &found).await?;
    let buckets: BTreeSet<String> = found.buckets().into_iter().cloned().collect();
    let mut again = BTreeSet::new();
    for ((bucket, key, version), found) in in_order(found.versions) {
        let before = run.report.known;
        commit(&mut run, (&bucket, &key, version), found).await?;
        if options.add && run.report.known > before {
            again.insert((bucket, key));
        }
    }
    let begun_parts = begun::parts(&found.begun);
    let finished = begun::follow(&mut run, found.begun).await?;
    again.extend(finished.into_iter().filter(|_| options.add));
    // A run that broke off may have left them otherwise.
    for (bucket, key) in again {
        let ordered = known::put_in_order(metadata, &bucket, &key).await;
        ordered.with_context(|| format!("put the versions of {bucket}/{key} in order"))?;
    }
    for bucket in &buckets {
        let failed = || format!("switch versioning of {bucket} on again");
        // It is off since a version without an id was put beside others. Left so, the next writes would overwrite
        // those.
        let now = metadata.bucket(bucket).await.with_context(failed)?;
        if now.versioning == Versioning::Suspended {
            metadata.set_versioning(bucket, now.id, Versioning::Enabled).await.with_context(failed)?;
        }
    }
    uploads::bring_back(&mut run, found.uploads).await?;
    if options.complete_uploads {
        uploads::complete(metadata, &begun_parts, &mut run.report).await?;
    }
    if options.alone {
        // At the end: until then, or where only moves are brought back, what the database lost is on the disks alone.
        // In a cluster on those of the other nodes, too: see `nodes_to_walk`.
        metadata.forget_lost_commits().await.context("forget that the database has lost commits")?;
    }
    Ok(run.report)
}

/// Makes the users and buckets that versions belong to.
async fn make_owners_and_buckets(run: &Run<'_>, found: &Contents) -> anyhow::Result<()> {
    let Run { metadata, owner, .. } = *run;
    let now_ms = SystemClock.now_ms();
    for name in found.owners().into_iter().map(String::as_str).chain([owner]) {
        let admin = name == super::super::ROOT_USER;
        let user = User { name: name.to_owned(), admin, enabled: true, created_ms: now_ms };
        match metadata.create_user(user).await {
            Ok(()) | Err(MetadataError::Exists(_)) => {}
            Err(error) => return Err(error).with_context(|| format!("make user {name}")),
        }
    }
    for bucket in found.buckets() {
        let new = NewBucket { name: bucket.clone(), owner: owner.to_owned(), acl: CannedAcl::Private, now_ms };
        match metadata.create_bucket(new).await {
            Ok(_) | Err(MetadataError::BucketExists { .. }) => {}
            Err(error) => return Err(error).with_context(|| format!("make bucket {bucket}")),
        }
        let has_ids = found.versions.keys().any(|(b, _, version)| b == bucket && *version != VersionId::NULL);
        if has_ids {
            let failed = || format!("switch versioning of {bucket} on");
            let id = metadata.bucket(bucket).await.with_context(failed)?.id;
            metadata.set_versioning(bucket, id, Versioning::Enabled).await.with_context(failed)?;
        }
    }
    Ok(())
}

/// Gives the versions of `metadata` the contents that they were moved to.
async fn follow_moves(run: &mut Run<'_>, found: Contents) -> anyhow::Result<()> {
    let metadata = run.metadata;
    let mut before = BTreeMap::new();
    for bucket in found.buckets() {
        match metadata.bucket(bucket).await {
            Ok(there) => {
                before.insert(bucket.clone(), there.versioning);
            }
            Err(MetadataError::NoSuchBucket) => {}
            Err(error) => return Err(error).with_context(|| format!("look for bucket {bucket}")),
        }
    }
    for ((bucket, key, version), found) in in_order(found.versions) {
        if before.contains_key(&bucket) {
            commit(run, (&bucket, &key, version), found).await?;
        }
    }
    for (bucket, versioning) in before {
        let failed = || format!("set versioning of {bucket} back");
        let now = metadata.bucket(&bucket).await.with_context(failed)?;
        if now.versioning != versioning {
            metadata.set_versioning(&bucket, now.id, versioning).await.with_context(failed)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use holdfast_actors::ports::coordination::ClusterIdentity;
    use holdfast_protocol::cluster::LayoutDocument;
    use sqlx::{Connection as _, SqliteConnection};

    use super::*;
    use crate::coordination::InProcessCluster;
    use crate::metadata::{SqliteMetadataStore, SqliteOptions};

    #[tokio::test]
    async fn a_directory_that_is_not_there_is_no_node_to_rebuild_from() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.node.data_dir = dir.path().join("node");
        let refused = rebuild(&config, "root", RebuildOptions::default()).await.unwrap_err().to_string();
        assert!(refused.contains("nothing to rebuild from") && refused.contains("--data-dir"), "{refused}");
        assert!(!config.node.data_dir.exists());
        let disk = dir.path().join("disk");
        config.node.disks.push(disk.clone());
        std::fs::create_dir(&disk).unwrap();
        assert!(require_node(&config.node).is_err(), "an empty disk");
        std::fs::write(disk.join("superblock"), "").unwrap();
        require_node(&config.node).unwrap();
    }

    #[tokio::test]
    async fn no_node_is_the_last_one_to_be_walked_where_nobody_knows_which_nodes_there_are() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metadata");
        let open = async || SqliteMetadataStore::open(&path, SqliteOptions::default()).await.unwrap();
        let participant = InProcessCluster::new(Duration::from_secs(3)).participant();
        let store = open().await;
        assert_eq!(nodes_to_walk(&participant, &store).await.unwrap(), None, "nothing was lost");
        store.close().await;

        let mut conn = SqliteConnection::connect(&format!("sqlite:{}", path.display())).await.unwrap();
        let lost = "INSERT INTO lock_fences (name, token) VALUES (CAST('SET-BACK' AS BLOB), 1)";
        sqlx::raw_sql(lost).execute(&mut conn).await.unwrap();
        conn.close().await.unwrap();
        let store = open().await;
        let refused = nodes_to_walk(&participant, &store).await.unwrap_err().to_string();
        assert!(refused.contains("ZooKeeper does not know"), "{refused}");
        participant.create_cluster(&ClusterIdentity::new(4, 1), &LayoutDocument::new(3)).await.unwrap();
        assert_eq!(nodes_to_walk(&participant, &store).await.unwrap(), Some(Vec::new()));
        store.close().await;
    }
}
