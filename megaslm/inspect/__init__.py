"""The `inspect` and `verify` verbs: what a dataset holds, and whether it is what was written."""
