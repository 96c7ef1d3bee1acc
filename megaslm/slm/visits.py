"""How often a row may come in one step. Imports no torch, so that a run's data can be checked before it is loaded."""

VISIT_BITS = 8
MOST_VISITS = 1 << VISIT_BITS
"""Most copies of a row in one step."""
