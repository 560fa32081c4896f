-- conversation_seq is the order in which conversations came into the record, and is never given twice. A turn's turn_seq is
-- conversation_seq * 1048576 + its place, so that the search index, which knows turn_seq alone, knows the conversation too.
CREATE TABLE counters (
    name TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT;
ALTER TABLE conversations ADD COLUMN conversation_seq INTEGER NOT NULL DEFAULT 0;
ALTER TABLE conversations ADD COLUMN extra_json TEXT NOT NULL DEFAULT '';
ALTER TABLE conversations ADD COLUMN language TEXT NOT NULL DEFAULT '';
ALTER TABLE conversations ADD COLUMN turn_count INTEGER NOT NULL DEFAULT 0;
ALTER TABLE conversations ADD COLUMN votes_up INTEGER NOT NULL DEFAULT 0;
ALTER TABLE conversations ADD COLUMN votes_down INTEGER NOT NULL DEFAULT 0;
ALTER TABLE conversations ADD COLUMN has_disagreement INTEGER NOT NULL DEFAULT 0 CHECK (has_disagreement IN (0, 1));
UPDATE conversations SET
    conversation_seq = rowid,
    turn_count = (SELECT COUNT(*) FROM turns t WHERE t.conversation_id = conversations.conversation_id),
    votes_up = (SELECT COUNT(*) FROM feedback f JOIN turns t USING (turn_id)
        WHERE t.conversation_id = conversations.conversation_id AND f.vote = 'up'),
    votes_down = (SELECT COUNT(*) FROM feedback f JOIN turns t USING (turn_id)
        WHERE t.conversation_id = conversations.conversation_id AND f.vote = 'down');
INSERT INTO counters SELECT 'conversation_seq', COALESCE(MAX(conversation_seq), 0) FROM conversations;
-- Two customers may have said the same under one id.
DROP INDEX conversations_by_source;
CREATE UNIQUE INDEX conversations_by_source ON conversations (source_id, content_hash, customer_id) WHERE source_id IS NOT NULL;
CREATE UNIQUE INDEX conversations_by_entry ON conversations (conversation_seq);
CREATE INDEX conversations_by_change ON conversations (updated_at_utc, conversation_seq);
CREATE INDEX conversations_by_beginning ON conversations (created_at_utc, conversation_seq);
CREATE INDEX conversations_by_language ON conversations (language, updated_at_utc);
CREATE INDEX conversations_voted_up ON conversations (updated_at_utc) WHERE votes_up > 0;
CREATE INDEX conversations_voted_down ON conversations (updated_at_utc) WHERE votes_down > 0;
CREATE INDEX conversations_in_disagreement ON conversations (updated_at_utc) WHERE has_disagreement = 1;
CREATE INDEX conversations_flagged ON conversations (updated_at_utc) WHERE flagged_reason IS NOT NULL;

-- What people call a conversation, to find it again.
CREATE TABLE conversation_tags (
    conversation_id TEXT NOT NULL REFERENCES conversations,
    tag TEXT NOT NULL CHECK (tag <> ''),
    tagged_by TEXT NOT NULL,
    tagged_at_utc TEXT NOT NULL,
    PRIMARY KEY (conversation_id, tag)
) STRICT;
CREATE INDEX conversation_tags_by_tag ON conversation_tags (tag);

DROP TRIGGER turns_search_insert;
DROP TRIGGER turns_search_delete;
DROP TRIGGER turns_search_update;
DROP TABLE turn_search;

-- Old numbers fit below the new ones, because a conversation's first number is 1048576 at least; negative ones stand between.
UPDATE turns SET turn_seq = -turn_seq;
UPDATE turns SET turn_seq = (SELECT conversation_seq FROM conversations c WHERE c.conversation_id = turns.conversation_id) * 1048576 + n.place
FROM (SELECT turn_id, ROW_NUMBER() OVER (PARTITION BY conversation_id ORDER BY turn_seq DESC) - 1 AS place FROM turns) n
WHERE n.turn_id = turns.turn_id;
DROP INDEX turns_by_conversation;
CREATE INDEX turns_by_conversation ON turns (conversation_id);
CREATE INDEX turns_by_status ON turns (status, conversation_id) WHERE status <> 'complete';
CREATE INDEX turns_by_release ON turns (release_id, conversation_id) WHERE release_id IS NOT NULL;

CREATE TRIGGER turns_follow_their_own BEFORE INSERT ON turns
WHEN new.parent_turn_id IS NOT NULL AND NOT EXISTS (
    SELECT 1 FROM turns p WHERE p.turn_id = new.parent_turn_id AND p.conversation_id = new.conversation_id AND p.turn_seq < new.turn_seq
) BEGIN
    SELECT RAISE(ABORT, 'a turn follows an earlier turn of its own conversation');
END;
CREATE TRIGGER turns_keep_their_place
BEFORE UPDATE OF turn_seq, turn_id, conversation_id, parent_turn_id, position, role, author, created_at_utc ON turns BEGIN
    SELECT RAISE(ABORT, 'the place of a turn never changes');
END;
CREATE TRIGGER turns_stay_as_said BEFORE UPDATE OF content, extra_json, content_hash ON turns
WHEN old.status NOT IN ('pending', 'streaming') BEGIN
    SELECT RAISE(ABORT, 'a finished turn never changes');
END;
CREATE TRIGGER turns_counted AFTER INSERT ON turns BEGIN
    UPDATE conversations SET turn_count = turn_count + 1 WHERE conversation_id = new.conversation_id;
END;
CREATE TRIGGER turns_uncounted AFTER DELETE ON turns BEGIN
    UPDATE conversations SET turn_count = turn_count - 1 WHERE conversation_id = old.conversation_id;
END;

CREATE TRIGGER votes_counted AFTER INSERT ON feedback BEGIN
    UPDATE conversations SET votes_up = votes_up + (new.vote = 'up'), votes_down = votes_down + (new.vote = 'down')
    WHERE conversation_id = (SELECT conversation_id FROM turns WHERE turn_id = new.turn_id);
END;
CREATE TRIGGER votes_recounted AFTER UPDATE OF vote ON feedback BEGIN
    UPDATE conversations SET
        votes_up = votes_up + (new.vote = 'up') - (old.vote = 'up'),
        votes_down = votes_down + (new.vote = 'down') - (old.vote = 'down')
    WHERE conversation_id = (SELECT conversation_id FROM turns WHERE turn_id = new.turn_id);
END;
CREATE TRIGGER votes_uncounted AFTER DELETE ON feedback BEGIN
    UPDATE conversations SET votes_up = votes_up - (old.vote = 'up'), votes_down = votes_down - (old.vote = 'down')
    WHERE conversation_id = (SELECT conversation_id FROM turns WHERE turn_id = old.turn_id);
END;

-- A conversation is in disagreement where two people or teachers gave different answers for one decision of it.
CREATE INDEX decisions_by_conversation ON decisions (conversation_id);
CREATE TRIGGER answers_compared AFTER INSERT ON answers WHEN new.author_kind <> 'student' AND EXISTS (
    SELECT 1 FROM answers a WHERE a.decision_id = new.decision_id AND a.author_kind <> 'student'
    AND (a.author_kind, a.author_name) <> (new.author_kind, new.author_name) AND a.content_hash <> new.content_hash
) BEGIN
    UPDATE conversations SET has_disagreement = 1
    WHERE conversation_id = (SELECT conversation_id FROM decisions WHERE decision_id = new.decision_id);
END;
UPDATE conversations SET has_disagreement = 1 WHERE conversation_id IN (
    SELECT d.conversation_id FROM answers a JOIN answers b USING (decision_id) JOIN decisions d USING (decision_id)
    WHERE a.author_kind <> 'student' AND b.author_kind <> 'student'
    AND (a.author_kind, a.author_name) <> (b.author_kind, b.author_name) AND a.content_hash <> b.content_hash
);
CREATE TRIGGER answers_stay_as_given
BEFORE UPDATE OF answer_id, decision_id, version, author_kind, author_name, content, content_hash, passages_json, answered_at_utc ON answers BEGIN
    SELECT RAISE(ABORT, 'an answer never changes; a correction is its next version');
END;

-- The rows of an edition never change. Only an erasure takes rows out, and says how many.
ALTER TABLE editions ADD COLUMN rows_hash TEXT NOT NULL DEFAULT '';
ALTER TABLE editions ADD COLUMN erased_rows INTEGER NOT NULL DEFAULT 0;
CREATE TRIGGER editions_stay_as_frozen BEFORE UPDATE OF edition, digest, made_by_run_id, made_at_utc ON editions BEGIN
    SELECT RAISE(ABORT, 'an edition never changes');
END;
CREATE TRIGGER edition_rows_stay_as_frozen BEFORE UPDATE ON edition_decisions BEGIN
    SELECT RAISE(ABORT, 'an edition never changes');
END;
CREATE INDEX edition_decisions_by_decision ON edition_decisions (decision_id);
CREATE INDEX teacher_replies_by_decision ON teacher_replies (decision_id);
CREATE INDEX decisions_by_reply ON decisions (reply_turn_id) WHERE reply_turn_id IS NOT NULL;
CREATE INDEX feedback_by_customer ON feedback (customer_id);
CREATE INDEX turns_by_parent ON turns (parent_turn_id) WHERE parent_turn_id IS NOT NULL;
CREATE INDEX answers_by_request ON answers (request_hash) WHERE request_hash IS NOT NULL;

-- Exports and backups are noted beside the files of runs, so that an erasure finds them too.
CREATE TABLE artefacts_next (
    path TEXT PRIMARY KEY,
    kind TEXT NOT NULL CHECK (kind IN ('run', 'export', 'backup')),
    run_id TEXT REFERENCES runs,
    stage TEXT NOT NULL,
    holds_text INTEGER NOT NULL,
    digest TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    written_at_utc TEXT NOT NULL
) STRICT;
INSERT INTO artefacts_next SELECT path, 'run', run_id, stage, holds_text, digest, bytes, written_at_utc FROM artefacts;
DROP TABLE artefacts;
ALTER TABLE artefacts_next RENAME TO artefacts;

CREATE TRIGGER releases_never_change BEFORE UPDATE ON releases BEGIN
    SELECT RAISE(ABORT, 'a release never changes');
END;
CREATE TRIGGER release_events_never_change BEFORE UPDATE ON release_events BEGIN
    SELECT RAISE(ABORT, 'what happened to a release never changes');
END;
CREATE TRIGGER release_events_are_kept BEFORE DELETE ON release_events BEGIN
    SELECT RAISE(ABORT, 'what happened to a release never changes');
END;
CREATE TRIGGER tombstones_never_change BEFORE UPDATE ON tombstones BEGIN
    SELECT RAISE(ABORT, 'a tombstone never changes');
END;
CREATE TRIGGER tombstones_are_kept BEFORE DELETE ON tombstones BEGIN
    SELECT RAISE(ABORT, 'a tombstone never changes');
END;

-- The index holds finished turns, cut by search_words so that a character of a script without spaces is a word.
CREATE VIEW turn_words AS
    SELECT turn_seq, search_words(content) AS words FROM turns WHERE status NOT IN ('pending', 'streaming');
CREATE VIRTUAL TABLE turn_search USING fts5(
    words, content='turn_words', content_rowid='turn_seq', tokenize='unicode61 remove_diacritics 2', prefix='3'
);
CREATE TRIGGER turns_search_insert AFTER INSERT ON turns WHEN new.status NOT IN ('pending', 'streaming') BEGIN
    INSERT INTO turn_search(rowid, words) VALUES (new.turn_seq, search_words(new.content));
END;
CREATE TRIGGER turns_search_finish AFTER UPDATE OF status ON turns
WHEN old.status IN ('pending', 'streaming') AND new.status NOT IN ('pending', 'streaming') BEGIN
    INSERT INTO turn_search(rowid, words) VALUES (new.turn_seq, search_words(new.content));
END;
CREATE TRIGGER turns_search_delete AFTER DELETE ON turns WHEN old.status NOT IN ('pending', 'streaming') BEGIN
    INSERT INTO turn_search(turn_search, rowid, words) VALUES ('delete', old.turn_seq, search_words(old.content));
END;
INSERT INTO turn_search(turn_search) VALUES ('rebuild');
