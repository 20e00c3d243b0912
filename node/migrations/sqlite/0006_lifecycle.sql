-- What lifecycle rules need: every version and upload of a bucket in order of age, how far each walk over them has come, and
-- keys to be looked at once more.

CREATE INDEX objects_by_age ON objects (bucket, modified_ms, key);
CREATE INDEX uploads_by_bucket_age ON uploads (bucket, created_ms, id);

-- `latest` is 1 for a delete marker that is its key's latest version; its `since_ms` is when it was made. All other rows are
-- noncurrent since `since_ms`. What a program writes that does not know of this comes of no age.
ALTER TABLE history ADD COLUMN latest INTEGER NOT NULL DEFAULT 0;
ALTER TABLE history ADD COLUMN since_ms INTEGER NOT NULL DEFAULT 9223372036854775807;
UPDATE history SET
    since_ms = COALESCE(
        (SELECT n.modified_ms FROM history n WHERE n.bucket = history.bucket AND n.key = history.key
             AND n.sequence > history.sequence ORDER BY n.sequence LIMIT 1),
        (SELECT o.modified_ms FROM objects o WHERE o.bucket = history.bucket AND o.key = history.key),
        modified_ms),
    latest = NOT EXISTS (SELECT 1 FROM history n WHERE n.bucket = history.bucket AND n.key = history.key
             AND n.sequence > history.sequence)
        AND NOT EXISTS (SELECT 1 FROM objects o WHERE o.bucket = history.bucket AND o.key = history.key);
CREATE INDEX history_by_age ON history (bucket, latest, since_ms, key, sequence);

-- Places in those orders up to which everything was looked at, under the rules of one generation.
CREATE TABLE lifecycle_cursors (
    bucket     INTEGER NOT NULL,
    stream     TEXT NOT NULL,
    generation INTEGER NOT NULL,
    at_ms      INTEGER NOT NULL,
    name       BLOB NOT NULL,
    sequence   INTEGER NOT NULL,
    PRIMARY KEY (bucket, stream)
) WITHOUT ROWID;

-- Keys of buckets with rules of which something changed that a walk may have passed: the latest version, or the one named.
CREATE TABLE lifecycle_rechecks (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    bucket  INTEGER NOT NULL,
    key     BLOB NOT NULL,
    version BLOB
);
CREATE INDEX lifecycle_rechecks_by_bucket ON lifecycle_rechecks (bucket, id);
