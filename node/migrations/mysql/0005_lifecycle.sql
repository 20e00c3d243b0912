-- What lifecycle rules need: every version and upload of a bucket in order of age, how far each walk over them has come, and
-- keys to be looked at once more.

ALTER TABLE objects ADD KEY objects_by_age (bucket, modified_ms, `key`);
ALTER TABLE uploads ADD KEY uploads_by_bucket_age (bucket, created_ms, id);

-- `latest` is 1 for a delete marker that is its key's latest version, its `since_ms` is when it was made. All other rows are
-- noncurrent since `since_ms`. What a program writes that does not know of this comes of no age.
ALTER TABLE history ADD COLUMN latest INT NOT NULL DEFAULT 0;
ALTER TABLE history ADD COLUMN since_ms BIGINT NOT NULL DEFAULT 9223372036854775807;
UPDATE history h
    JOIN (SELECT bucket, `key`, sequence,
                 LEAD(modified_ms) OVER (PARTITION BY bucket, `key` ORDER BY sequence) AS next_ms FROM history) n
        ON n.bucket = h.bucket AND n.`key` = h.`key` AND n.sequence = h.sequence
    LEFT JOIN objects o ON o.bucket = h.bucket AND o.`key` = h.`key`
    SET h.since_ms = COALESCE(n.next_ms, o.modified_ms, h.modified_ms),
        h.latest = CASE WHEN n.next_ms IS NULL AND o.bucket IS NULL THEN 1 ELSE 0 END;
ALTER TABLE history ADD KEY history_by_age (bucket, latest, since_ms, `key`, sequence);

-- Places in those orders up to which everything was looked at, under the rules of one generation.
CREATE TABLE lifecycle_cursors (
    bucket     BIGINT NOT NULL,
    stream     VARBINARY(64) NOT NULL,
    generation BIGINT NOT NULL,
    at_ms      BIGINT NOT NULL,
    name       VARBINARY(1024) NOT NULL,
    sequence   BIGINT NOT NULL,
    PRIMARY KEY (bucket, stream)
) ENGINE = InnoDB DEFAULT CHARACTER SET = binary;

-- Keys of buckets with rules of which something changed that a walk may have passed: the latest version, or the one named.
CREATE TABLE lifecycle_rechecks (
    id      BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
    bucket  BIGINT NOT NULL,
    `key`   VARBINARY(1024) NOT NULL,
    version BINARY(12),
    KEY lifecycle_rechecks_by_bucket (bucket, id)
) ENGINE = InnoDB DEFAULT CHARACTER SET = binary;
