"""Starts a verb on a cluster: builds the exact command, without a shell."""
