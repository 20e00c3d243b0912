-- The metadata of a cluster, for MySQL 8 and MariaDB 10.11. Everything that is text is kept as bytes, so that it compares
-- byte by byte. Times are milliseconds since 1970. The longest index has a key of 1,024 bytes in 1,044; InnoDB allows 3,072.

-- One row for each transaction, kept for a while. Its number orders transactions that waited for each other. Its token tells
-- whether a transaction was committed whose connection broke: whoever inserts the token again waits for it, and learns.
CREATE TABLE commits (
    id       BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
    token    BINARY(16) NOT NULL,
    UNIQUE KEY commits_by_token (token)
) ENGINE = InnoDB DEFAULT CHARACTER SET = binary;

-- Rows that stand for things in locks, which may not exist yet; the last one is for the epochs of all shards.
CREATE TABLE lock_slots (
    slot INT NOT NULL PRIMARY KEY
) ENGINE = InnoDB DEFAULT CHARACTER SET = binary;
INSERT INTO lock_slots (slot)
WITH RECURSIVE d (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM d WHERE n < 31)
SELECT a.n * 1024 + b.n * 32 + c.n FROM d a CROSS JOIN d b CROSS JOIN d c;
INSERT INTO lock_slots (slot) VALUES (32768);

CREATE TABLE buckets (
    id         BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
    name       VARBINARY(255) NOT NULL,
    owner      VARBINARY(512) NOT NULL,
    created_ms BIGINT NOT NULL,
    versioning INT NOT NULL,
    revision   BIGINT NOT NULL,
    UNIQUE KEY buckets_by_name (name),
    KEY buckets_by_owner (owner, name)
) ENGINE = InnoDB DEFAULT CHARACTER SET = binary;

CREATE TABLE bucket_configs (
    bucket BIGINT NOT NULL,
    kind   VARBINARY(32) NOT NULL,
    value  MEDIUMBLOB NOT NULL,
    PRIMARY KEY (bucket, kind)
) ENGINE = InnoDB DEFAULT CHARACTER SET = binary;

-- Bytes that versions refer to. `refs` counts them; at zero the content stands in `reclaims` too, and a copy may still
-- take it until the row is removed by a claim.
CREATE TABLE contents (
    id         BINARY(12) NOT NULL PRIMARY KEY,
    refs       BIGINT NOT NULL,
    size_bytes BIGINT NOT NULL,
    manifest   MEDIUMBLOB NOT NULL,
    etag_md5   BINARY(16) NOT NULL,
    etag_parts BIGINT,
    checksum   VARBINARY(64),
    parts      MEDIUMBLOB
) ENGINE = InnoDB DEFAULT CHARACTER SET = binary;

-- Which content of several extents holds an extent. A plain content is its own only extent and has no row here.
CREATE TABLE extents (
    extent  BINARY(12) NOT NULL PRIMARY KEY,
    content BINARY(12) NOT NULL
) ENGINE = InnoDB DEFAULT CHARACTER SET = binary;

-- The latest version of each key whose latest version is an object: what GET without a version and listings see.
CREATE TABLE objects (
    bucket      BIGINT NOT NULL,
    `key`       VARBINARY(1024) NOT NULL,
    sequence    BIGINT NOT NULL,
    version     BINARY(12) NOT NULL,
    content     BINARY(12) NOT NULL,
    modified_ms BIGINT NOT NULL,
    owner       VARBINARY(512) NOT NULL,
    attributes  MEDIUMBLOB,
    tags        MEDIUMBLOB,
    acl         INT NOT NULL,
    PRIMARY KEY (bucket, `key`)
) ENGINE = InnoDB DEFAULT CHARACTER SET = binary;

-- All other versions, and all delete markers (`content` is NULL). The newest row of a key without a row in `objects` is a
-- delete marker.
CREATE TABLE history (
    bucket      BIGINT NOT NULL,
    `key`       VARBINARY(1024) NOT NULL,
    sequence    BIGINT NOT NULL,
    version     BINARY(12) NOT NULL,
    content     BINARY(12),
    modified_ms BIGINT NOT NULL,
    owner       VARBINARY(512) NOT NULL,
    attributes  MEDIUMBLOB,
    tags        MEDIUMBLOB,
    acl         INT NOT NULL,
    PRIMARY KEY (bucket, `key`, sequence DESC),
    UNIQUE KEY history_by_version (bucket, `key`, version)
) ENGINE = InnoDB DEFAULT CHARACTER SET = binary;

CREATE TABLE uploads (
    id         BINARY(16) NOT NULL PRIMARY KEY,
    bucket     BIGINT NOT NULL,
    `key`      VARBINARY(1024) NOT NULL,
    owner      VARBINARY(512) NOT NULL,
    created_ms BIGINT NOT NULL,
    attributes MEDIUMBLOB,
    tags       MEDIUMBLOB,
    acl        INT NOT NULL,
    checksum   VARBINARY(64),
    KEY uploads_by_key (bucket, `key`, id),
    KEY uploads_by_age (created_ms)
) ENGINE = InnoDB DEFAULT CHARACTER SET = binary;

CREATE TABLE parts (
    upload      BINARY(16) NOT NULL,
    number      INT NOT NULL,
    content     BINARY(12) NOT NULL,
    size_bytes  BIGINT NOT NULL,
    md5         BINARY(16) NOT NULL,
    checksum    VARBINARY(64),
    modified_ms BIGINT NOT NULL,
    PRIMARY KEY (upload, number),
    UNIQUE KEY parts_by_content (content)
) ENGINE = InnoDB DEFAULT CHARACTER SET = binary;

-- Contents and parts that nothing refers to, until their chunks are deleted. `content` without a row in `contents` is
-- claimed: no copy can take it.
CREATE TABLE reclaims (
    id        BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
    content   BINARY(12) NOT NULL,
    manifest  MEDIUMBLOB NOT NULL,
    queued_ms BIGINT NOT NULL,
    UNIQUE KEY reclaims_by_content (content),
    KEY reclaims_by_age (queued_ms)
) ENGINE = InnoDB DEFAULT CHARACTER SET = binary;

-- Chunks of a shard that were written under an older epoch are not committed. A shard without a row takes all.
CREATE TABLE shard_epochs (
    shard BIGINT NOT NULL PRIMARY KEY,
    epoch BIGINT NOT NULL
) ENGINE = InnoDB DEFAULT CHARACTER SET = binary;

-- Replicas that lack a chunk or have it damaged, each once.
CREATE TABLE repairs (
    id        BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
    node      BINARY(8) NOT NULL,
    chunk     BINARY(16) NOT NULL,
    queued_ms BIGINT NOT NULL,
    UNIQUE KEY repairs_by_chunk (chunk, node),
    KEY repairs_by_node (node, id)
) ENGINE = InnoDB DEFAULT CHARACTER SET = binary;

-- Contents that the reaper of orphans gave up: none of them stands in another table, and no commit brings one there.
CREATE TABLE condemned (
    content      BINARY(12) NOT NULL PRIMARY KEY,
    condemned_ms BIGINT NOT NULL,
    KEY condemned_by_age (condemned_ms)
) ENGINE = InnoDB DEFAULT CHARACTER SET = binary;

CREATE TABLE users (
    name       VARBINARY(512) NOT NULL PRIMARY KEY,
    admin      INT NOT NULL,
    enabled    INT NOT NULL,
    created_ms BIGINT NOT NULL
) ENGINE = InnoDB DEFAULT CHARACTER SET = binary;

CREATE TABLE access_keys (
    access_key    VARBINARY(255) NOT NULL PRIMARY KEY,
    user          VARBINARY(512) NOT NULL,
    sealed_secret BLOB NOT NULL,
    enabled       INT NOT NULL,
    description   BLOB NOT NULL,
    created_ms    BIGINT NOT NULL,
    KEY access_keys_by_user (user, access_key)
) ENGINE = InnoDB DEFAULT CHARACTER SET = binary;

-- The cluster that this metadata belongs to: no row, or one.
CREATE TABLE claims (
    place   INT NOT NULL PRIMARY KEY,
    cluster BINARY(16) NOT NULL
) ENGINE = InnoDB DEFAULT CHARACTER SET = binary;
