"""What an answer is worth, metric by metric, each from the stored row alone."""
