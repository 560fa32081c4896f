"""Measurements that print a table; each names its command."""
