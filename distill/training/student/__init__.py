"""The student while it learns: loaded, proven to be computed as its own code does, and what its layers see and keep."""
