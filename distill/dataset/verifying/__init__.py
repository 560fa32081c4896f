"""What `verify` is made of: the checks, each with its reason code, and the judge."""
