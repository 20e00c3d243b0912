-- Cold tiers: where contents lie, of which storage class versions are, what is to be moved, and what tiers are to delete.

-- The tier where a version's bytes are to lie; NULL: the cluster's disks. `restore_ms`: NULL none, 0 under way, else until when.
ALTER TABLE objects ADD COLUMN class VARBINARY(32);
ALTER TABLE objects ADD COLUMN restore_ms BIGINT;
ALTER TABLE history ADD COLUMN class VARBINARY(32);
ALTER TABLE history ADD COLUMN restore_ms BIGINT;
ALTER TABLE uploads ADD COLUMN class VARBINARY(32);

-- Where the bytes are: NULL on the cluster's disks, else the tier, and the stored form of the place in it.
ALTER TABLE contents ADD COLUMN tier VARBINARY(32);
ALTER TABLE contents ADD COLUMN cold MEDIUMBLOB;
ALTER TABLE contents ADD KEY contents_by_tier (tier, id);

-- Of a content that lay in a tier. `cold` until its pieces stand in `tier_pieces`.
ALTER TABLE reclaims ADD COLUMN tier VARBINARY(32);
ALTER TABLE reclaims ADD COLUMN cold MEDIUMBLOB;

CREATE TABLE tiers (
    name       VARBINARY(32) NOT NULL PRIMARY KEY,
    settings   MEDIUMBLOB NOT NULL,
    created_ms BIGINT NOT NULL,
    revision   BIGINT NOT NULL
) ENGINE = InnoDB DEFAULT CHARACTER SET = binary;

-- Versions whose bytes are to be moved. `lane` is the tier that a move works with; `target` NULL is the cluster. One that is
-- claimed has an `owner`, and is due again when the claim ends.
CREATE TABLE moves (
    id        BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
    bucket    BIGINT NOT NULL,
    `key`     VARBINARY(1024) NOT NULL,
    version   BINARY(12) NOT NULL,
    content   BINARY(12) NOT NULL,
    lane      VARBINARY(32) NOT NULL,
    target    VARBINARY(32),
    reason    INT NOT NULL,
    keep_ms   BIGINT,
    queued_ms BIGINT NOT NULL,
    due_ms    BIGINT NOT NULL,
    attempt   BIGINT NOT NULL,
    owner     BINARY(8),
    failures  BIGINT NOT NULL,
    error     BLOB,
    UNIQUE KEY moves_by_version (bucket, `key`, version),
    KEY moves_by_due (lane, due_ms)
) ENGINE = InnoDB DEFAULT CHARACTER SET = binary;

-- Pieces that tiers are to delete. `attempt` of the move that reserved the name, 0 of a content that is reclaimed. A piece that
-- was given out to be deleted is `claimed`; while it is `unsure` somebody may still be writing it.
CREATE TABLE tier_pieces (
    id      BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
    tier    VARBINARY(32) NOT NULL,
    name    VARBINARY(512) NOT NULL,
    attempt BIGINT NOT NULL,
    due_ms  BIGINT NOT NULL,
    unsure  INT NOT NULL,
    claimed INT NOT NULL,
    KEY tier_pieces_by_due (tier, due_ms),
    KEY tier_pieces_by_attempt (attempt)
) ENGINE = InnoDB DEFAULT CHARACTER SET = binary;
