"""The customers' chat page."""
