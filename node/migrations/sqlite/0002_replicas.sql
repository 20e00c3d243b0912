-- What a cluster adds: epochs of shards, replicas to be repaired, contents that were given up.

-- Chunks of a shard that were written under an older epoch are not committed. A shard without a row takes all.
CREATE TABLE shard_epochs (
    shard INTEGER PRIMARY KEY NOT NULL,
    epoch INTEGER NOT NULL
);

-- Replicas that lack a chunk or have it damaged, each once.
CREATE TABLE repairs (
    id        INTEGER PRIMARY KEY AUTOINCREMENT,
    node      BLOB NOT NULL,
    chunk     BLOB NOT NULL,
    queued_ms INTEGER NOT NULL
);
CREATE INDEX repairs_by_node ON repairs (node, id);
CREATE UNIQUE INDEX repairs_by_chunk ON repairs (chunk, node);

-- Contents that the reaper of orphans gave up: none of them stands in another table, and no commit brings one there.
CREATE TABLE condemned (
    content      BLOB PRIMARY KEY NOT NULL,
    condemned_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX condemned_by_age ON condemned (condemned_ms);

-- The cluster that this metadata belongs to: no row, or one.
CREATE TABLE claims (
    place   INTEGER PRIMARY KEY NOT NULL CHECK (place = 1),
    cluster BLOB NOT NULL
);
