"""What is computed together: all rows as one forest of tokens, the order of the steps, and micro-batches of trees."""
