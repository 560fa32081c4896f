"""Conversations in and out as files: what a line says, what it meets in the record, and how it is written again."""
