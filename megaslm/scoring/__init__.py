"""The `score` and `mask` verbs: compute columns beside the tokens once."""
