-- The first version of the schema, as stores that are out there have it: it never changes.
CREATE TABLE ownership (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    epoch INTEGER NOT NULL,     -- whose writes are taken
    position INTEGER NOT NULL,  -- the newest batch of that epoch which is here
    canary BLOB                 -- sealed with the key, where there is one
);
INSERT INTO ownership VALUES (1, 0, 0, NULL);
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY,
    job_id TEXT NOT NULL UNIQUE,
    principal TEXT NOT NULL,
    agent TEXT NOT NULL,
    trace_id TEXT NOT NULL,
    created_at_ms INTEGER NOT NULL,
    parent_job_id TEXT,
    accepted BLOB NOT NULL,
    last_seq INTEGER NOT NULL DEFAULT 0,  -- of the terminal event; while it runs its events say it
    floor INTEGER NOT NULL DEFAULT 0,
    status TEXT,                          -- NULL while it runs
    ended_at_ms INTEGER,
    evicted INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX jobs_running ON jobs (number) WHERE status IS NULL;
CREATE INDEX jobs_ended ON jobs (ended_at_ms, number) WHERE status IS NOT NULL AND evicted = 0;
CREATE TABLE owners (job INTEGER, session_id TEXT, PRIMARY KEY (job, session_id)) WITHOUT ROWID;
CREATE TABLE outcomes (job INTEGER PRIMARY KEY, content BLOB NOT NULL);
CREATE TABLE events (
    id INTEGER PRIMARY KEY,  -- the job's number, then the event's
    feature TEXT,
    content BLOB NOT NULL
);
CREATE TABLE sessions (
    number INTEGER PRIMARY KEY,
    session_id TEXT NOT NULL UNIQUE,
    principal TEXT NOT NULL,
    opened_at_ms INTEGER NOT NULL,
    detail BLOB NOT NULL,
    tokens TEXT NOT NULL DEFAULT '',  -- the hashes in hexadecimal, with blanks between
    acked INTEGER NOT NULL DEFAULT 0,
    floor INTEGER NOT NULL DEFAULT 0,
    waiting_since_ms INTEGER,
    ended INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE spans (
    session INTEGER,
    first INTEGER,
    last INTEGER NOT NULL,
    job INTEGER NOT NULL,
    job_first INTEGER NOT NULL,
    PRIMARY KEY (session, first)
) WITHOUT ROWID;
CREATE INDEX spans_of_job ON spans (job, job_first);
CREATE TABLE own (
    session INTEGER, event_seq INTEGER, content BLOB NOT NULL, PRIMARY KEY (session, event_seq)
) WITHOUT ROWID;
CREATE TABLE riders (
    id INTEGER PRIMARY KEY,
    session INTEGER NOT NULL,
    event_seq INTEGER NOT NULL,  -- of the entry behind it
    content BLOB NOT NULL
);
CREATE INDEX riders_of_session ON riders (session, event_seq, id);
CREATE TABLE follows (session INTEGER, job INTEGER, PRIMARY KEY (session, job)) WITHOUT ROWID;
CREATE INDEX follows_job ON follows (job);
CREATE TABLE keys (
    principal TEXT, key TEXT, digest BLOB NOT NULL, job_id TEXT NOT NULL, PRIMARY KEY (principal, key)
) WITHOUT ROWID;
CREATE INDEX keys_of_job ON keys (job_id);
CREATE TABLE ledger (
    entry_id TEXT PRIMARY KEY,
    job_id TEXT NOT NULL,
    principal TEXT NOT NULL,
    state TEXT NOT NULL,
    handle BLOB,
    attempts INTEGER NOT NULL,
    problem TEXT NOT NULL,
    noted_at_ms INTEGER NOT NULL
) WITHOUT ROWID;
