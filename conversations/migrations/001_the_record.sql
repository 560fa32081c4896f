CREATE TABLE customers (
    customer_id TEXT PRIMARY KEY,
    created_at_utc TEXT NOT NULL
) STRICT;

-- state says who answers now; release_id is the release that the conversation holds on to.
CREATE TABLE conversations (
    conversation_id TEXT PRIMARY KEY,
    customer_id TEXT NOT NULL REFERENCES customers,
    channel TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('bot', 'waiting', 'human', 'resolved')),
    consent TEXT NOT NULL CHECK (consent IN ('yes', 'no', 'unknown')),
    release_id TEXT REFERENCES releases,
    source_id TEXT,
    labels_json TEXT NOT NULL DEFAULT '{}',
    tools_json TEXT NOT NULL DEFAULT '',
    content_hash TEXT NOT NULL DEFAULT '',
    flagged_reason TEXT,
    created_at_utc TEXT NOT NULL,
    updated_at_utc TEXT NOT NULL
) STRICT;
CREATE INDEX conversations_by_customer ON conversations (customer_id);
CREATE UNIQUE INDEX conversations_by_source ON conversations (source_id, content_hash) WHERE source_id IS NOT NULL;

-- parent_turn_id makes a retry or an edit a branch and not an overwrite.
-- turn_seq is written out because VACUUM renumbers a hidden rowid, and the search index points at it.
CREATE TABLE turns (
    turn_seq INTEGER PRIMARY KEY,
    turn_id TEXT NOT NULL UNIQUE,
    conversation_id TEXT NOT NULL REFERENCES conversations,
    parent_turn_id TEXT REFERENCES turns (turn_id),
    position INTEGER NOT NULL,
    role TEXT NOT NULL CHECK (role IN ('system', 'user', 'assistant', 'tool')),
    author TEXT NOT NULL CHECK (author IN ('customer', 'student', 'operator', 'imported')),
    status TEXT NOT NULL CHECK (status IN ('pending', 'streaming', 'complete', 'stopped', 'interrupted', 'failed')),
    content TEXT NOT NULL,
    extra_json TEXT NOT NULL DEFAULT '',
    content_hash TEXT NOT NULL,
    release_id TEXT REFERENCES releases,
    prompt_version TEXT,
    decoding_json TEXT,
    prompt_tokens INTEGER,
    completion_tokens INTEGER,
    first_token_ms REAL,
    latency_ms REAL,
    mean_token_logprob REAL,
    failure_code TEXT,
    process_token TEXT,
    created_at_utc TEXT NOT NULL,
    finished_at_utc TEXT
) STRICT;
CREATE INDEX turns_by_conversation ON turns (conversation_id, position);
CREATE INDEX turns_open ON turns (status) WHERE status IN ('pending', 'streaming');

CREATE TABLE feedback (
    turn_id TEXT NOT NULL REFERENCES turns (turn_id),
    customer_id TEXT NOT NULL REFERENCES customers,
    vote TEXT NOT NULL CHECK (vote IN ('up', 'down')),
    reason TEXT NOT NULL DEFAULT '',
    given_at_utc TEXT NOT NULL,
    PRIMARY KEY (turn_id, customer_id)
) STRICT;

-- One assistant turn, or one open question, asked again on its logged history. turn_id is the last customer turn of it.
CREATE TABLE decisions (
    decision_id TEXT PRIMARY KEY,
    conversation_id TEXT NOT NULL REFERENCES conversations,
    question_turn_id TEXT NOT NULL UNIQUE REFERENCES turns (turn_id),
    reply_turn_id TEXT REFERENCES turns (turn_id),
    cluster_id TEXT NOT NULL,
    split TEXT NOT NULL CHECK (split IN ('train', 'validation', 'test')),
    topic TEXT NOT NULL,
    history_hash TEXT NOT NULL,
    chosen_by_run_id TEXT NOT NULL REFERENCES runs,
    chosen_because TEXT NOT NULL,
    chosen_at_utc TEXT NOT NULL
) STRICT;
CREATE INDEX decisions_by_cluster ON decisions (cluster_id);

-- Immutable versions: a correction is a new row.
CREATE TABLE answers (
    answer_id TEXT PRIMARY KEY,
    decision_id TEXT NOT NULL REFERENCES decisions,
    version INTEGER NOT NULL,
    author_kind TEXT NOT NULL CHECK (author_kind IN ('teacher', 'operator', 'student', 'logged')),
    author_name TEXT NOT NULL,
    content TEXT NOT NULL,
    content_hash TEXT NOT NULL,
    passages_json TEXT NOT NULL DEFAULT '[]',
    run_id TEXT REFERENCES runs,
    request_hash TEXT REFERENCES teacher_replies,
    verdict TEXT CHECK (verdict IN ('accepted', 'rejected', 'unscored')),
    verdict_reason TEXT,
    answered_at_utc TEXT NOT NULL,
    UNIQUE (decision_id, author_kind, author_name, version)
) STRICT;

-- The raw reply of a teacher, kept under the hash of everything that decided it, before anybody parses it.
CREATE TABLE teacher_replies (
    request_hash TEXT PRIMARY KEY,
    decision_id TEXT NOT NULL REFERENCES decisions,
    teacher TEXT NOT NULL,
    reply_json TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    cost_usd REAL NOT NULL,
    latency_ms REAL NOT NULL,
    replied_at_utc TEXT NOT NULL
) STRICT;

-- Money and calls, reserved before a request leaves and settled when its answer is in.
CREATE TABLE spending (
    spending_id TEXT PRIMARY KEY,
    run_id TEXT NOT NULL REFERENCES runs,
    teacher TEXT NOT NULL,
    reserved_usd REAL NOT NULL,
    settled_usd REAL,
    reserved_at_utc TEXT NOT NULL,
    settled_at_utc TEXT
) STRICT;
CREATE INDEX spending_by_run ON spending (run_id);

CREATE TABLE editions (
    edition INTEGER PRIMARY KEY,
    digest TEXT NOT NULL,
    made_by_run_id TEXT NOT NULL REFERENCES runs,
    made_at_utc TEXT NOT NULL
) STRICT;
CREATE TABLE edition_decisions (
    edition INTEGER NOT NULL REFERENCES editions,
    decision_id TEXT NOT NULL REFERENCES decisions,
    row_json TEXT NOT NULL,
    PRIMARY KEY (edition, decision_id)
) STRICT;

CREATE TABLE run_requests (
    request_id TEXT PRIMARY KEY,
    requested_by TEXT NOT NULL,
    requested_at_utc TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('waiting', 'taken', 'done', 'cancelled')),
    run_id TEXT REFERENCES runs,
    outcome TEXT
) STRICT;
-- A double click or two operators ask for one run, not two.
CREATE UNIQUE INDEX one_waiting_request ON run_requests (state) WHERE state = 'waiting';

CREATE TABLE runs (
    run_id TEXT PRIMARY KEY,
    state TEXT NOT NULL CHECK (state IN ('running', 'complete', 'failed', 'interrupted')),
    path TEXT NOT NULL,
    settings_digest TEXT NOT NULL,
    stage TEXT NOT NULL DEFAULT '',
    progress REAL NOT NULL DEFAULT 0,
    outcome TEXT,
    report_json TEXT,
    process_token TEXT,
    started_at_utc TEXT NOT NULL,
    heartbeat_at_utc TEXT NOT NULL,
    finished_at_utc TEXT
) STRICT;
CREATE UNIQUE INDEX one_running_run ON runs (state) WHERE state = 'running';
CREATE TABLE run_events (
    run_event_id INTEGER PRIMARY KEY AUTOINCREMENT,
    run_id TEXT NOT NULL REFERENCES runs,
    stage TEXT NOT NULL,
    event TEXT NOT NULL,
    detail_json TEXT NOT NULL DEFAULT '{}',
    happened_at_utc TEXT NOT NULL
) STRICT;
CREATE INDEX run_events_by_run ON run_events (run_id);

CREATE TABLE releases (
    release_id TEXT PRIMARY KEY,
    run_id TEXT REFERENCES runs,
    base TEXT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('base', 'lora', 'merged', 'full')),
    weights_path TEXT NOT NULL,
    weights_digest TEXT NOT NULL,
    metrics_json TEXT NOT NULL DEFAULT '{}',
    created_at_utc TEXT NOT NULL
) STRICT;
-- What happened to a release, in order: its state and the release in service are read from here.
CREATE TABLE release_events (
    release_event_id INTEGER PRIMARY KEY AUTOINCREMENT,
    release_id TEXT NOT NULL REFERENCES releases,
    event TEXT NOT NULL CHECK (event IN ('registered', 'promoted', 'refused', 'rolled_back', 'restored')),
    actor TEXT NOT NULL,
    reason TEXT NOT NULL,
    happened_at_utc TEXT NOT NULL
) STRICT;

-- distill writes what it wants loaded; the student's supervisor loads it in each of its servers and says so.
CREATE TABLE wanted_loads (
    release_id TEXT PRIMARY KEY REFERENCES releases,
    wanted_by TEXT NOT NULL,
    wanted_at_utc TEXT NOT NULL
) STRICT;
CREATE TABLE student_servers (
    server_id TEXT PRIMARY KEY,
    base_url TEXT NOT NULL,
    base TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('starting', 'ready', 'down')),
    process_id INTEGER,
    detail TEXT NOT NULL DEFAULT '',
    heartbeat_at_utc TEXT NOT NULL
) STRICT;
CREATE TABLE loads (
    server_id TEXT NOT NULL REFERENCES student_servers,
    release_id TEXT NOT NULL REFERENCES releases,
    state TEXT NOT NULL CHECK (state IN ('loaded', 'failed')),
    detail TEXT NOT NULL DEFAULT '',
    happened_at_utc TEXT NOT NULL,
    PRIMARY KEY (server_id, release_id)
) STRICT;

-- Files that a run wrote, so that an erase finds every copy of a person's words.
CREATE TABLE artefacts (
    path TEXT PRIMARY KEY,
    run_id TEXT NOT NULL REFERENCES runs,
    stage TEXT NOT NULL,
    holds_text INTEGER NOT NULL,
    digest TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    written_at_utc TEXT NOT NULL
) STRICT;
-- Which decisions a release has learnt from.
CREATE TABLE run_decisions (
    run_id TEXT NOT NULL REFERENCES runs,
    decision_id TEXT NOT NULL,
    used_as TEXT NOT NULL CHECK (used_as IN ('train', 'validation', 'test')),
    PRIMARY KEY (run_id, decision_id)
) STRICT;
CREATE INDEX run_decisions_by_decision ON run_decisions (decision_id);

CREATE TABLE audit (
    audit_seq INTEGER PRIMARY KEY AUTOINCREMENT,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    target TEXT NOT NULL,
    detail_json TEXT NOT NULL,
    previous_hash TEXT NOT NULL,
    entry_hash TEXT NOT NULL,
    happened_at_utc TEXT NOT NULL
) STRICT;
CREATE TRIGGER audit_is_never_changed BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END;
CREATE TRIGGER audit_is_never_deleted BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END;

CREATE TABLE tombstones (
    name_hash TEXT PRIMARY KEY,
    kind TEXT NOT NULL CHECK (kind IN ('customer', 'conversation')),
    erased_at_utc TEXT NOT NULL
) STRICT;

CREATE TABLE record_facts (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;
INSERT INTO record_facts VALUES ('split_salt', lower(hex(randomblob(16))));

CREATE VIRTUAL TABLE turn_search USING fts5(
    content, content='turns', content_rowid='turn_seq', tokenize='unicode61 remove_diacritics 2'
);
CREATE TRIGGER turns_search_insert AFTER INSERT ON turns BEGIN
    INSERT INTO turn_search(rowid, content) VALUES (new.turn_seq, new.content);
END;
CREATE TRIGGER turns_search_delete AFTER DELETE ON turns BEGIN
    INSERT INTO turn_search(turn_search, rowid, content) VALUES ('delete', old.turn_seq, old.content);
END;
CREATE TRIGGER turns_search_update AFTER UPDATE OF content ON turns BEGIN
    INSERT INTO turn_search(turn_search, rowid, content) VALUES ('delete', old.turn_seq, old.content);
    INSERT INTO turn_search(rowid, content) VALUES (new.turn_seq, new.content);
END;
