-- On which day the latest versions of keys were last read, in buckets whose lifecycle rules go by that.
CREATE TABLE accesses (
    bucket INTEGER NOT NULL,
    key    BLOB NOT NULL,
    day_ms INTEGER NOT NULL,
    PRIMARY KEY (bucket, key)
) WITHOUT ROWID;
CREATE INDEX accesses_by_day ON accesses (bucket, day_ms, key);
