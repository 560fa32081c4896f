-- What a release did lately is read by its time; a record of a million turns answers while a page is drawn.
CREATE INDEX turns_of_release_by_time ON turns (release_id, created_at_utc, status, conversation_id) WHERE release_id IS NOT NULL;
CREATE INDEX turns_by_operators ON turns (created_at_utc, conversation_id) WHERE author = 'operator';
CREATE INDEX conversations_handed_over ON conversations (updated_at_utc) WHERE state IN ('waiting', 'human');
CREATE INDEX feedback_by_time ON feedback (given_at_utc);

-- How alike the shadow's words and the reply were, both as the models said them: the record keeps the reply with the customer's own
-- data put back, and the shadow's words with placeholders.
ALTER TABLE shadow_answers ADD COLUMN is_same INTEGER CHECK (is_same IN (0, 1));
ALTER TABLE shadow_answers ADD COLUMN length_ratio REAL;

-- An erasure asks who refers to an answer.
CREATE INDEX blind_votes_by_left ON blind_votes (left_answer_id);
CREATE INDEX blind_votes_by_right ON blind_votes (right_answer_id);
CREATE TRIGGER blind_votes_never_change BEFORE UPDATE ON blind_votes BEGIN
    SELECT RAISE(ABORT, 'a vote never changes; a change of mind is the next one');
END;
