"""What is learnt, as token ids: rows of a dataset file read by the chat's own prompt function, and what their teacher believed."""
