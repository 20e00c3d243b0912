-- Events that are to be published, each written in the transaction of the change that it tells of. What is ordered has one
-- partition; within it `id` rises. Whoever publishes reads the lowest rows and removes what was taken.
CREATE TABLE outbox (
    part      INTEGER NOT NULL,
    id        INTEGER NOT NULL,
    nonce     INTEGER NOT NULL,
    topic     INTEGER NOT NULL,
    queued_ms INTEGER NOT NULL,
    order_key BLOB NOT NULL,
    tag       TEXT NOT NULL,
    words     TEXT NOT NULL,
    body      BLOB NOT NULL,
    PRIMARY KEY (part, id)
) WITHOUT ROWID;

-- What was published lately, so that it can be published again. Bounded by age and by number.
CREATE TABLE published (
    part         INTEGER NOT NULL,
    id           INTEGER NOT NULL,
    nonce        INTEGER NOT NULL,
    topic        INTEGER NOT NULL,
    queued_ms    INTEGER NOT NULL,
    order_key    BLOB NOT NULL,
    tag          TEXT NOT NULL,
    words        TEXT NOT NULL,
    body         BLOB NOT NULL,
    published_ms INTEGER NOT NULL,
    PRIMARY KEY (part, id)
) WITHOUT ROWID;
