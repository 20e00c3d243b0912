-- Cold tiers: where contents lie, of which storage class versions are, what is to be moved, and what tiers are to delete.

-- The tier where a version's bytes are to lie; NULL: the cluster's disks. `restore_ms`: NULL none, 0 under way, else until when.
ALTER TABLE objects ADD COLUMN class TEXT;
ALTER TABLE objects ADD COLUMN restore_ms INTEGER;
ALTER TABLE history ADD COLUMN class TEXT;
ALTER TABLE history ADD COLUMN restore_ms INTEGER;
ALTER TABLE uploads ADD COLUMN class TEXT;

-- Where the bytes are: NULL on the cluster's disks, else the tier, and the stored form of the place in it.
ALTER TABLE contents ADD COLUMN tier TEXT;
ALTER TABLE contents ADD COLUMN cold BLOB;
CREATE INDEX contents_by_tier ON contents (tier, id) WHERE tier IS NOT NULL;

-- Of a content that lay in a tier. `cold` until its pieces stand in `tier_pieces`.
ALTER TABLE reclaims ADD COLUMN tier TEXT;
ALTER TABLE reclaims ADD COLUMN cold BLOB;

CREATE TABLE tiers (
    name       TEXT PRIMARY KEY NOT NULL,
    settings   TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    revision   INTEGER NOT NULL
) WITHOUT ROWID;

-- Versions whose bytes are to be moved. `lane` is the tier that a move works with; `target` NULL is the cluster. One that is
-- claimed has an `owner`, and is due again when the claim ends.
CREATE TABLE moves (
    id        INTEGER PRIMARY KEY AUTOINCREMENT,
    bucket    INTEGER NOT NULL,
    key       BLOB NOT NULL,
    version   BLOB NOT NULL,
    content   BLOB NOT NULL,
    lane      TEXT NOT NULL,
    target    TEXT,
    reason    INTEGER NOT NULL,
    keep_ms   INTEGER,
    queued_ms INTEGER NOT NULL,
    due_ms    INTEGER NOT NULL,
    attempt   INTEGER NOT NULL,
    owner     BLOB,
    failures  INTEGER NOT NULL,
    error     TEXT,
    UNIQUE (bucket, key, version)
);
CREATE INDEX moves_by_due ON moves (lane, due_ms);

-- Pieces that tiers are to delete. `attempt` of the move that reserved the name, 0 of a content that is reclaimed. A piece that
-- was given out to be deleted is `claimed`; while it is `unsure` somebody may still be writing it.
CREATE TABLE tier_pieces (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    tier    TEXT NOT NULL,
    name    TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    due_ms  INTEGER NOT NULL,
    unsure  INTEGER NOT NULL,
    claimed INTEGER NOT NULL
);
CREATE INDEX tier_pieces_by_due ON tier_pieces (tier, due_ms);
CREATE INDEX tier_pieces_by_attempt ON tier_pieces (attempt);
