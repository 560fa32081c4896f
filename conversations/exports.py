"""Placeholder until the formats branch lands."""

from pathlib import Path


def forget(path: Path, conversation_ids: set[str], source_ids: set[str]) -> bool:
    """Remove."""
    return False
