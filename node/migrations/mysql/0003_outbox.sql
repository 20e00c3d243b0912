-- Events that are to be published, each written in the transaction of the change that it tells of. What is ordered has one
-- partition; within it `id` rises, as it is given under the locks of the transaction. Rows of things that do not concern each
-- other become visible in any order: whoever publishes reads the lowest rows and removes what was taken.
CREATE TABLE outbox (
    part      INT NOT NULL,
    id        BIGINT NOT NULL,
    nonce     BIGINT NOT NULL,
    topic     INT NOT NULL,
    queued_ms BIGINT NOT NULL,
    order_key BLOB NOT NULL,
    tag       VARBINARY(255) NOT NULL,
    words     BLOB NOT NULL,
    body      MEDIUMBLOB NOT NULL,
    PRIMARY KEY (part, id)
) ENGINE = InnoDB DEFAULT CHARACTER SET = binary;

-- What was published lately, so that it can be published again. Bounded by age and by number.
CREATE TABLE published (
    part         INT NOT NULL,
    id           BIGINT NOT NULL,
    nonce        BIGINT NOT NULL,
    topic        INT NOT NULL,
    queued_ms    BIGINT NOT NULL,
    order_key    BLOB NOT NULL,
    tag          VARBINARY(255) NOT NULL,
    words        BLOB NOT NULL,
    body         MEDIUMBLOB NOT NULL,
    published_ms BIGINT NOT NULL,
    PRIMARY KEY (part, id)
) ENGINE = InnoDB DEFAULT CHARACTER SET = binary;
