"""Promises about the product, as sentences; `tests.bench` measures."""
