-- The highest fencing token seen of each lock that guards writes: what is begun under a lower one is refused.
CREATE TABLE lock_fences (
    name  BLOB PRIMARY KEY NOT NULL,
    token INTEGER NOT NULL
) WITHOUT ROWID;
