-- What operators look up: errors, who did what, and messages that were given up. Bounded by age and number.

CREATE TABLE error_log (
    id      BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
    report  VARBINARY(100) NOT NULL,
    at_ms   BIGINT NOT NULL,
    node    VARBINARY(1024) NOT NULL,
    kind    VARBINARY(100) NOT NULL,
    subject VARBINARY(1024) NOT NULL,
    detail  BLOB NOT NULL,
    UNIQUE KEY error_log_by_report (report)
) ENGINE = InnoDB DEFAULT CHARACTER SET = binary;

CREATE TABLE audit_log (
    id      BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
    at_ms   BIGINT NOT NULL,
    node    VARBINARY(1024) NOT NULL,
    actor   VARBINARY(1024) NOT NULL,
    source  VARBINARY(1024) NOT NULL,
    action  VARBINARY(1024) NOT NULL,
    target  VARBINARY(1024) NOT NULL,
    result  INT NOT NULL,
    request VARBINARY(100) NOT NULL
) ENGINE = InnoDB DEFAULT CHARACTER SET = binary;

CREATE TABLE dead_letters (
    id         BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
    message    VARBINARY(100) NOT NULL,
    consumers  VARBINARY(100) NOT NULL,
    topic      INT NOT NULL,
    order_key  BLOB NOT NULL,
    tag        VARBINARY(255) NOT NULL,
    words      BLOB NOT NULL,
    body       MEDIUMBLOB NOT NULL,
    attempts   BIGINT NOT NULL,
    error      BLOB NOT NULL,
    buried_ms  BIGINT NOT NULL,
    UNIQUE KEY dead_letters_by_message (message, consumers)
) ENGINE = InnoDB DEFAULT CHARACTER SET = binary;
