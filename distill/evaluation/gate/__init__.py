"""The gate: what a report is held against, and the three things that it may say."""
