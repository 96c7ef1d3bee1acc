"""Tasks of lm-eval, on an exported model: the process that runs lm-eval, and its results in MegaSLM's form."""
