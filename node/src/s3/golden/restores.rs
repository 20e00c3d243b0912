//! RestoreObject: what the front end says of it. The movers' part is played by the tests.

use holdfast_actors::ports::Clock as _;
use holdfast_actors::ports::metadata::{Content, ContentPlace, MoveEnd, Moved, ReplicaEvidence};
use holdfast_actors::ports::tiering::Claim;
use holdfast_actors::ports::tiers::PieceName;
use holdfast_protocol::events::PARTITIONS;
use holdfast_protocol::tiers::BLOCK_BYTES_MIN;
use holdfast_protocol::{ColdPlace, ContentId, Manifest, NodeId, VersionId};

use super::*;

const FIVE_DAYS: &str = "<RestoreRequest><Days>5</Days>\
     <GlacierJobParameters><Tier>Bulk</Tier></GlacierJobParameters></RestoreRequest>";

impl World {
    fn restore(&self, target: &str) -> Call<'_> {
        self.post(target).body(FIVE_DAYS)
    }

    /// A world with an object of class OSS.
    async fn with_cold() -> Self {
        let world = Self::new().await;
        let put = world.put("/bucket/cold").header("x-amz-storage-class", "OSS").body("xyz");
        put.send().await.expect(200);
        world
    }
}

#[tokio::test]
async fn restore_is_refused_for_what_is_not_cold_or_not_there() {
    let world = World::with_cold().await;
    world.put("/bucket/hot").body("x").send().await.expect(200);
    world.restore("/bucket/hot?restore").send().await.expect_error(403, "InvalidObjectState");
    world.restore("/bucket/none?restore").send().await.expect_error(404, "NoSuchKey");
    world.restore("/none/k?restore").send().await.expect_error(404, "NoSuchBucket");
    world.restore("/bucket/cold?restore&versionId=junk").send().await.expect_error(400, "InvalidArgument");
    let version = VersionId::generate(1);
    world.restore(&format!("/bucket/cold?restore&versionId={version}")).send().await.expect_error(404, "NoSuchVersion");
    world.restore("/bucket/cold?restore").user(Some("bob")).send().await.expect_error(403, "AccessDenied");
    world.restore("/bucket/cold?restore").user(None).send().await.expect_error(403, "AccessDenied");
}

#[tokio::test]
async fn delete_markers_cannot_be_restored() {
    let world = World::with_cold().await;
    world.enable_versioning().await;
    let marker = world.delete("/bucket/cold").send().await.expect(204).header("x-amz-version-id");
    world.restore("/bucket/cold?restore").send().await.expect_error(404, "NoSuchKey");
    let named = world.restore(&format!("/bucket/cold?restore&versionId={marker}"));
    named.send().await.expect_error(405, "MethodNotAllowed");
}

#[tokio::test]
async fn requests_that_are_not_understood_change_nothing() {
    let world = World::with_cold().await;
    for (body, status, code) in [
        ("", 400, "MissingRequestBodyError"),
        ("<RestoreRequest/>", 400, "MalformedXML"),
        ("<RestoreRequest><Tier>Bulk</Tier></RestoreRequest>", 400, "MalformedXML"),
        ("<RestoreRequest><Days>1<![CDATA[0]]></Days></RestoreRequest>", 400, "MalformedXML"),
        ("<RestoreRequest><Days>1,000</Days></RestoreRequest>", 400, "MalformedXML"),
        ("<RestoreRequest><Hours>1</Hours></RestoreRequest>", 400, "MalformedXML"),
        ("<RestoreRequest><Days>0</Days></RestoreRequest>", 400, "InvalidArgument"),
        ("<RestoreRequest><Days>-1</Days></RestoreRequest>", 400, "InvalidArgument"),
        ("<RestoreRequest><Type>SELECT</Type></RestoreRequest>", 501, "NotImplemented"),
    ] {
        world.post("/bucket/cold?restore").body(body).send().await.expect_error(status, code);
    }
    let head = world.head("/bucket/cold").send().await.expect(200);
    assert!(!head.headers.contains_key("x-amz-restore"), "{head:?}");
}

const STATUS: &str = "x-amz-optional-object-attributes";

impl World {
    /// Ends the moves that wait for OSS as a mover would, but that no byte moves; how many there were.
    pub(super) async fn finish_moves(&self) -> usize {
        let now_ms = SystemClock.now_ms();
        let claim = Claim {
            owner: NodeId::from(1),
            now_ms,
            until_ms: now_ms + 60_000,
            spares_restored: false,
            to_cluster_only: false,
        };
        let moves = self.ledger.claim_moves(&"OSS".parse().unwrap(), claim, 10).await.unwrap();
        for job in &moves {
            let object = self.metadata.object(job.bucket, &job.key, Some(job.version)).await.unwrap();
            let old = object.content.as_ref().unwrap();
            let (id, size_bytes) = (ContentId::generate(now_ms / 1_000), old.size_bytes());
            let place = match &job.to {
                None => ContentPlace::Cluster,
                Some(tier) => {
                    let name = PieceName::new(id.to_string()).unwrap();
                    let names = std::slice::from_ref(&name);
                    self.ledger.reserve_pieces(job.id, job.attempt, tier, names, now_ms + 600_000).await.unwrap();
                    ContentPlace::Tier(Arc::new(ColdPlace {
                        tier: tier.clone(),
                        size_bytes,
                        piece_bytes: u64::from(BLOCK_BYTES_MIN),
                        block_bytes: BLOCK_BYTES_MIN,
                        names: vec![name.as_str().to_owned()],
                        sums: vec![0],
                    }))
                }
            };
            let content = Content { id, manifest: Manifest::single(id, size_bytes), place, ..(**old).clone() };
            let moved = Moved::To { content, evidence: ReplicaEvidence::default() };
            let commit = job.commit(moved, None, now_ms);
            assert_eq!(self.metadata.commit_move(commit).await.unwrap(), MoveEnd::Done);
        }
        moves.len()
    }

    /// How often an event told of a restore that begins.
    async fn restores_told(&self) -> usize {
        let mut told = 0;
        for part in 0..PARTITIONS {
            let rows = self.outbox.lowest(part, 1_000).await.unwrap();
            told += rows.iter().filter(|row| row.message.tag.to_string().contains("Restore")).count();
        }
        told
    }

    /// `x-amz-restore` of HEAD; empty if there is none.
    async fn restore_of(&self, target: &str) -> String {
        let head = self.head(target).send().await.expect(200);
        assert_eq!(head.header("x-amz-storage-class"), "OSS", "a restore changes no class");
        head.headers.get("x-amz-restore").map_or(String::new(), |value| value.to_str().unwrap().to_owned())
    }

    /// What the three listings say of the one restore in the bucket.
    async fn listed_restore(&self) -> (String, String) {
        let mut told = vec![];
        for query in ["", "list-type=2", "versions"] {
            let target = format!("/bucket?{query}");
            let silent = self.get(&target).send().await.expect(200);
            assert!(!silent.text().contains("RestoreStatus"), "{query} {silent:?}");
            let answer = self.get(&target).header(STATUS, "RestoreStatus").send().await.expect(200);
            told.push((answer.tag("IsRestoreInProgress"), answer.tag("RestoreExpiryDate")));
        }
        assert!(told.iter().all(|one| *one == told[0]), "{told:?}");
        told.swap_remove(0)
    }
}

#[tokio::test]
async fn restore_is_told_from_its_request_to_its_end() {
    let world = World::with_cold().await;
    let etag = world.head("/bucket/cold").send().await.expect(200).header("etag");
    assert_eq!(world.finish_moves().await, 1);
    let head = world.head("/bucket/cold").send().await.expect(200);
    assert_eq!((head.header("etag"), head.header("content-length")), (etag, "3".into()));
    assert_eq!((world.restore_of("/bucket/cold").await, world.listed_restore().await), Default::default());

    let queued = world.restore("/bucket/cold?restore").send().await.expect(202);
    assert!(queued.body().is_empty());
    assert_eq!(world.restore_of("/bucket/cold").await, "ongoing-request=\"true\"");
    assert_eq!(world.listed_restore().await, ("true".into(), String::new()));
    world.restore("/bucket/cold?restore").send().await.expect_error(409, "RestoreAlreadyInProgress");

    assert_eq!(world.finish_moves().await, 1);
    let restored = world.restore_of("/bucket/cold").await;
    assert!(restored.starts_with("ongoing-request=\"false\", expiry-date=\""), "{restored}");
    let (ongoing, until) = world.listed_restore().await;
    assert!(ongoing == "false" && until.contains('T'), "{ongoing} {until}");

    // Restored again, it ends at another time.
    let longer = "<RestoreRequest><Days>300</Days></RestoreRequest>";
    world.post("/bucket/cold?restore").body(longer).send().await.expect(200);
    assert_eq!(world.restores_told().await, 1, "only the one that began");
    assert_ne!(world.restore_of("/bucket/cold").await, restored);
    assert_ne!(world.listed_restore().await.1, until);
}

#[tokio::test]
async fn version_is_restored_by_its_id_and_others_are_not() {
    let world = World::with_cold().await;
    world.enable_versioning().await;
    let put = world.put("/bucket/cold").header("x-amz-storage-class", "OSS").body("new");
    let new = put.send().await.expect(200).header("x-amz-version-id");
    assert_eq!(world.finish_moves().await, 2);
    world.restore("/bucket/cold?restore&versionId=null").send().await.expect(202);
    assert_eq!(world.restore_of("/bucket/cold?versionId=null").await, "ongoing-request=\"true\"");
    assert_eq!(world.restore_of(&format!("/bucket/cold?versionId={new}")).await, "");
}

#[tokio::test]
async fn copies_of_cold_objects_share_their_content() {
    let world = World::with_cold().await;
    assert_eq!(world.finish_moves().await, 1);
    let copy =
        world.put("/bucket/copy").header("x-amz-copy-source", "bucket/cold").header("x-amz-storage-class", "OSS");
    let copied = copy.send().await.expect(200);
    assert_eq!(copied.tag("ETag"), format!("\"{}\"", md5_hex(b"xyz")));
    assert_eq!(world.finish_moves().await, 0, "it lies where it is to lie");
    let hot = world.put("/bucket/hot").header("x-amz-copy-source", "bucket/cold");
    hot.send().await.expect(200);
    assert_eq!(world.finish_moves().await, 1, "this one has to come back");
}

#[tokio::test]
async fn listings_know_one_optional_attribute() {
    let world = World::new().await;
    for query in ["", "list-type=2", "versions"] {
        let call = world.get(&format!("/bucket?{query}")).header(STATUS, "Owner");
        call.send().await.expect_error(400, "InvalidArgument");
    }
}
