"""The record: every conversation, what was learned from it, and which student is in service."""
