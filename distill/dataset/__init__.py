"""From conversations to a training set: choose, teach, verify, assemble."""
