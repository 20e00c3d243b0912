-- On which day the latest versions of keys were last read, in buckets whose lifecycle rules go by that.
CREATE TABLE accesses (
    bucket BIGINT NOT NULL,
    `key`  VARBINARY(1024) NOT NULL,
    day_ms BIGINT NOT NULL,
    PRIMARY KEY (bucket, `key`),
    KEY accesses_by_day (bucket, day_ms, `key`)
) ENGINE = InnoDB DEFAULT CHARACTER SET = binary;
