-- A release on trial: a canary answers a share of new conversations, a shadow answers beside the student, out of the customer's sight.
CREATE TABLE rollouts (
    rollout_id TEXT PRIMARY KEY,
    kind TEXT NOT NULL CHECK (kind IN ('canary', 'shadow')),
    release_id TEXT NOT NULL REFERENCES releases,
    share REAL NOT NULL CHECK (share > 0 AND share <= 1),
    rules_json TEXT NOT NULL DEFAULT '{}',
    state TEXT NOT NULL CHECK (state IN ('running', 'promoted', 'rolled_back', 'stopped')),
    started_by TEXT NOT NULL,
    started_at_utc TEXT NOT NULL,
    ended_by TEXT,
    ended_because TEXT,
    ended_at_utc TEXT
) STRICT;
CREATE UNIQUE INDEX one_rollout_of_a_kind ON rollouts (kind) WHERE state = 'running';
CREATE TABLE shadow_answers (
    rollout_id TEXT NOT NULL REFERENCES rollouts,
    question_turn_id TEXT NOT NULL REFERENCES turns (turn_id),
    release_id TEXT NOT NULL REFERENCES releases,
    content TEXT NOT NULL,
    failure_code TEXT,
    first_token_ms REAL,
    latency_ms REAL,
    prompt_tokens INTEGER,
    completion_tokens INTEGER,
    -- How alike the shadow's words and the reply were, both as the models said them: the record keeps the reply with the customer's
    -- own data put back, and the shadow's words with placeholders.
    is_same INTEGER CHECK (is_same IN (0, 1)),
    length_ratio REAL,
    answered_at_utc TEXT NOT NULL,
    PRIMARY KEY (rollout_id, question_turn_id)
) STRICT;
CREATE INDEX shadow_answers_by_question ON shadow_answers (question_turn_id);
-- What a release did lately is read by its time; a record of a million turns answers while a page is drawn.
CREATE INDEX turns_of_release_by_time ON turns (release_id, created_at_utc, status, conversation_id) WHERE release_id IS NOT NULL;
CREATE INDEX turns_by_operators ON turns (created_at_utc, conversation_id) WHERE author = 'operator';
CREATE INDEX conversations_handed_over ON conversations (updated_at_utc) WHERE state IN ('waiting', 'human');
CREATE INDEX feedback_by_time ON feedback (given_at_utc);

-- Which of two answers an operator likes better, chosen without knowing whose they are.
CREATE TABLE blind_votes (
    vote_id TEXT PRIMARY KEY,
    decision_id TEXT NOT NULL REFERENCES decisions,
    left_answer_id TEXT NOT NULL REFERENCES answers,
    right_answer_id TEXT NOT NULL REFERENCES answers,
    choice TEXT NOT NULL CHECK (choice IN ('left', 'right', 'tie')),
    voted_by TEXT NOT NULL,
    voted_at_utc TEXT NOT NULL
) STRICT;
CREATE INDEX blind_votes_by_decision ON blind_votes (decision_id);
-- An erasure asks who refers to an answer.
CREATE INDEX blind_votes_by_left ON blind_votes (left_answer_id);
CREATE INDEX blind_votes_by_right ON blind_votes (right_answer_id);
CREATE TRIGGER blind_votes_never_change BEFORE UPDATE ON blind_votes BEGIN
    SELECT RAISE(ABORT, 'a vote never changes; a change of mind is the next one');
END;

-- A server may serve one whole release instead of the base with its adapters. What it takes is measured where it runs.
ALTER TABLE student_servers ADD COLUMN release_id TEXT REFERENCES releases;
ALTER TABLE student_servers ADD COLUMN memory_bytes INTEGER;
ALTER TABLE student_servers ADD COLUMN gpu_memory_bytes INTEGER;

-- One scheduler acts at a time; what it decided, and why, stands here.
CREATE TABLE leases (
    name TEXT PRIMARY KEY,
    holder TEXT NOT NULL,
    taken_at_utc TEXT NOT NULL,
    expires_at_utc TEXT NOT NULL
) STRICT;
CREATE TABLE schedule_log (
    schedule_seq INTEGER PRIMARY KEY AUTOINCREMENT,
    scheduler TEXT NOT NULL,
    decision TEXT NOT NULL CHECK (decision IN ('started', 'resumed', 'waits', 'stands_by', 'ended', 'canary')),
    reason TEXT NOT NULL,
    run_id TEXT,
    decided_at_utc TEXT NOT NULL
) STRICT;
ALTER TABLE run_requests ADD COLUMN taken_by TEXT;
