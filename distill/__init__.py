"""The room that teaches: from recorded turns to a measured release of the student."""
