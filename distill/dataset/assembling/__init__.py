"""What `assemble` is made of: balance, editions of the test set, the data card."""
