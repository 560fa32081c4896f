-- Tokens are capped beside money and calls. The sums of a run stand in one row, so that a reservation reads one row.
ALTER TABLE spending ADD COLUMN reserved_tokens INTEGER NOT NULL DEFAULT 0;
ALTER TABLE spending ADD COLUMN settled_tokens INTEGER;
CREATE TABLE run_spending (
    run_id TEXT PRIMARY KEY REFERENCES runs,
    calls INTEGER NOT NULL,
    usd REAL NOT NULL,
    tokens INTEGER NOT NULL
) STRICT;
INSERT INTO run_spending
    SELECT run_id, COUNT(*), SUM(COALESCE(settled_usd, reserved_usd)), 0 FROM spending GROUP BY run_id;
CREATE TRIGGER spending_reserved AFTER INSERT ON spending BEGIN
    INSERT INTO run_spending VALUES (
        new.run_id, 1, COALESCE(new.settled_usd, new.reserved_usd), COALESCE(new.settled_tokens, new.reserved_tokens)
    ) ON CONFLICT (run_id) DO UPDATE SET
        calls = calls + 1, usd = usd + excluded.usd, tokens = tokens + excluded.tokens;
END;
CREATE TRIGGER spending_settled AFTER UPDATE OF settled_usd, settled_tokens ON spending BEGIN
    UPDATE run_spending SET
        usd = usd + COALESCE(new.settled_usd, new.reserved_usd) - COALESCE(old.settled_usd, old.reserved_usd),
        tokens = tokens + COALESCE(new.settled_tokens, new.reserved_tokens) - COALESCE(old.settled_tokens, old.reserved_tokens)
    WHERE run_id = new.run_id;
END;
CREATE TRIGGER spending_taken_back AFTER DELETE ON spending BEGIN
    UPDATE run_spending SET
        calls = calls - 1,
        usd = usd - COALESCE(old.settled_usd, old.reserved_usd),
        tokens = tokens - COALESCE(old.settled_tokens, old.reserved_tokens)
    WHERE run_id = old.run_id;
END;

-- Requests that wait in a provider's batch, so that a killed run finds its batch again and pays nothing twice.
CREATE TABLE teacher_batches (
    batch_id TEXT PRIMARY KEY,
    run_id TEXT NOT NULL REFERENCES runs,
    teacher TEXT NOT NULL,
    input_file_id TEXT,
    provider_batch_id TEXT,
    state TEXT NOT NULL CHECK (state IN ('prepared', 'submitted', 'collected', 'failed')),
    detail TEXT NOT NULL DEFAULT '',
    made_at_utc TEXT NOT NULL,
    changed_at_utc TEXT NOT NULL
) STRICT;
CREATE INDEX teacher_batches_open ON teacher_batches (teacher) WHERE state IN ('prepared', 'submitted');
CREATE TABLE teacher_batch_requests (
    batch_id TEXT NOT NULL REFERENCES teacher_batches,
    request_hash TEXT NOT NULL,
    decision_id TEXT NOT NULL REFERENCES decisions,
    spending_id TEXT NOT NULL REFERENCES spending,
    PRIMARY KEY (batch_id, request_hash)
) STRICT;
CREATE INDEX teacher_batch_requests_by_decision ON teacher_batch_requests (decision_id);

-- What an answer says besides its text: tool calls, as the chat format has them.
ALTER TABLE answers ADD COLUMN extra_json TEXT NOT NULL DEFAULT '';
DROP TRIGGER answers_stay_as_given;
CREATE TRIGGER answers_stay_as_given
BEFORE UPDATE OF answer_id, decision_id, version, author_kind, author_name, content, extra_json, content_hash, passages_json,
    answered_at_utc ON answers
BEGIN
    SELECT RAISE(ABORT, 'an answer never changes; a correction is its next version');
END;

-- What operators say of an answer; the newest word counts, and every rule gives way to it.
CREATE TABLE answer_reviews (
    review_id TEXT PRIMARY KEY,
    answer_id TEXT NOT NULL REFERENCES answers,
    verdict TEXT NOT NULL CHECK (verdict IN ('approved', 'rejected')),
    reviewed_by TEXT NOT NULL,
    note TEXT NOT NULL DEFAULT '',
    reviewed_at_utc TEXT NOT NULL
) STRICT;
CREATE INDEX answer_reviews_by_answer ON answer_reviews (answer_id);
CREATE TRIGGER answer_reviews_never_change BEFORE UPDATE ON answer_reviews BEGIN
    SELECT RAISE(ABORT, 'a review never changes; a change of mind is the next one');
END;

-- The handbook passages that a run's training set rests on, so that a changed handbook finds who learned the old words.
CREATE TABLE run_passages (
    run_id TEXT NOT NULL REFERENCES runs,
    passage_hash TEXT NOT NULL,
    PRIMARY KEY (run_id, passage_hash)
) STRICT;

-- The embedding of a decision's question: half-precision floats, as the model's name says how many.
CREATE TABLE decision_vectors (
    decision_id TEXT PRIMARY KEY REFERENCES decisions,
    model TEXT NOT NULL,
    vector BLOB NOT NULL
) STRICT;
