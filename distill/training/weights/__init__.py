"""What a training writes, and what it begins with: adapters, whole checkpoints, their cards, and the embedded student."""
