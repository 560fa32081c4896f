"""From weights to a measured release, or a refusal."""
