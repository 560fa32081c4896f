-- The release whose weights learned on to become this one; null where it started from the base student. What the older one
-- learned, the newer one has learned too.
ALTER TABLE releases ADD COLUMN started_from TEXT REFERENCES releases;
CREATE INDEX releases_by_start ON releases (started_from) WHERE started_from IS NOT NULL;
