"""What `choose` is made of: candidates and their signals, clusters and splits, topics."""
