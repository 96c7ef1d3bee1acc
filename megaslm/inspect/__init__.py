"""The `inspect` and `verify` verbs: show the content of a dataset, and check it for corruption."""
