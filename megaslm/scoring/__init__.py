"""The `score` and `mask` verbs: columns beside the tokens, computed once."""
