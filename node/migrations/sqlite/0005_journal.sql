-- What operators look up: errors, who did what, and messages that were given up. Bounded by age and number.

CREATE TABLE error_log (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    report  TEXT NOT NULL UNIQUE,
    at_ms   INTEGER NOT NULL,
    node    TEXT NOT NULL,
    kind    TEXT NOT NULL,
    subject TEXT NOT NULL,
    detail  TEXT NOT NULL
);

CREATE TABLE audit_log (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    at_ms   INTEGER NOT NULL,
    node    TEXT NOT NULL,
    actor   TEXT NOT NULL,
    source  TEXT NOT NULL,
    action  TEXT NOT NULL,
    target  TEXT NOT NULL,
    result  INTEGER NOT NULL,
    request TEXT NOT NULL
);

CREATE TABLE dead_letters (
    id        INTEGER PRIMARY KEY AUTOINCREMENT,
    message   TEXT NOT NULL,
    consumers TEXT NOT NULL,
    topic     INTEGER NOT NULL,
    order_key BLOB NOT NULL,
    tag       TEXT NOT NULL,
    words     TEXT NOT NULL,
    body      BLOB NOT NULL,
    attempts  INTEGER NOT NULL,
    error     TEXT NOT NULL,
    buried_ms INTEGER NOT NULL,
    UNIQUE (message, consumers)
);
