-- The highest fencing token seen of each lock that guards writes: what is begun under a lower one is refused.
CREATE TABLE lock_fences (
    name  VARBINARY(128) NOT NULL PRIMARY KEY,
    token BIGINT NOT NULL
) ENGINE = InnoDB DEFAULT CHARACTER SET = binary;
