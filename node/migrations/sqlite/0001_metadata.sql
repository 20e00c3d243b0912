-- The metadata of a node. Keys and ids are BLOBs, so that they compare byte by byte. Times are milliseconds since 1970.

-- Numbers that only rise. `sequence` is the end of the range of object sequence numbers handed to the writer.
CREATE TABLE counters (
    name  TEXT PRIMARY KEY NOT NULL,
    value INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO counters (name, value) VALUES ('sequence', 1);

CREATE TABLE buckets (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    name       TEXT NOT NULL UNIQUE,
    owner      TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    versioning INTEGER NOT NULL,
    revision   INTEGER NOT NULL
);
CREATE INDEX buckets_by_owner ON buckets (owner, name);

CREATE TABLE bucket_configs (
    bucket INTEGER NOT NULL,
    kind   TEXT NOT NULL,
    value  TEXT NOT NULL,
    PRIMARY KEY (bucket, kind)
) WITHOUT ROWID;

-- Bytes that versions refer to. `refs` counts them; at zero the content stands in `reclaims` too, and a copy may still
-- take it until the row is removed by a claim.
CREATE TABLE contents (
    id         BLOB PRIMARY KEY NOT NULL,
    refs       INTEGER NOT NULL,
    size_bytes INTEGER NOT NULL,
    manifest   BLOB NOT NULL,
    etag_md5   BLOB NOT NULL,
    etag_parts INTEGER,
    checksum   BLOB,
    parts      TEXT
) WITHOUT ROWID;

-- Which content of several extents holds an extent. A plain content is its own only extent and has no row here.
CREATE TABLE extents (
    extent  BLOB PRIMARY KEY NOT NULL,
    content BLOB NOT NULL
) WITHOUT ROWID;

-- The latest version of each key whose latest version is an object: what GET without a version and listings see.
CREATE TABLE objects (
    bucket      INTEGER NOT NULL,
    key         BLOB NOT NULL,
    sequence    INTEGER NOT NULL,
    version     BLOB NOT NULL,
    content     BLOB NOT NULL,
    modified_ms INTEGER NOT NULL,
    owner       TEXT NOT NULL,
    attributes  TEXT,
    tags        TEXT,
    acl         INTEGER NOT NULL,
    PRIMARY KEY (bucket, key)
) WITHOUT ROWID;

-- All other versions, and all delete markers (`content` is NULL). The newest row of a key without a row in `objects` is a
-- delete marker.
CREATE TABLE history (
    bucket      INTEGER NOT NULL,
    key         BLOB NOT NULL,
    sequence    INTEGER NOT NULL,
    version     BLOB NOT NULL,
    content     BLOB,
    modified_ms INTEGER NOT NULL,
    owner       TEXT NOT NULL,
    attributes  TEXT,
    tags        TEXT,
    acl         INTEGER NOT NULL,
    PRIMARY KEY (bucket, key, sequence DESC)
) WITHOUT ROWID;
CREATE UNIQUE INDEX history_by_version ON history (bucket, key, version);

CREATE TABLE uploads (
    id         BLOB PRIMARY KEY NOT NULL,
    bucket     INTEGER NOT NULL,
    key        BLOB NOT NULL,
    owner      TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    attributes TEXT,
    tags       TEXT,
    acl        INTEGER NOT NULL,
    checksum   BLOB
) WITHOUT ROWID;
CREATE INDEX uploads_by_key ON uploads (bucket, key, id);
CREATE INDEX uploads_by_age ON uploads (created_ms);

CREATE TABLE parts (
    upload      BLOB NOT NULL,
    number      INTEGER NOT NULL,
    content     BLOB NOT NULL,
    size_bytes  INTEGER NOT NULL,
    md5         BLOB NOT NULL,
    checksum    BLOB,
    modified_ms INTEGER NOT NULL,
    PRIMARY KEY (upload, number)
) WITHOUT ROWID;
CREATE UNIQUE INDEX parts_by_content ON parts (content);

-- Contents and parts that nothing refers to, until their chunks are deleted. `content` without a row in `contents` is
-- claimed: no copy can take it.
CREATE TABLE reclaims (
    id        INTEGER PRIMARY KEY AUTOINCREMENT,
    content   BLOB NOT NULL UNIQUE,
    manifest  BLOB NOT NULL,
    queued_ms INTEGER NOT NULL
);
CREATE INDEX reclaims_by_age ON reclaims (queued_ms);

CREATE TABLE users (
    name       TEXT PRIMARY KEY NOT NULL,
    admin      INTEGER NOT NULL,
    enabled    INTEGER NOT NULL,
    created_ms INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE access_keys (
    access_key    TEXT PRIMARY KEY NOT NULL,
    user          TEXT NOT NULL,
    sealed_secret BLOB NOT NULL,
    enabled       INTEGER NOT NULL,
    description   TEXT NOT NULL,
    created_ms    INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX access_keys_by_user ON access_keys (user, access_key);
