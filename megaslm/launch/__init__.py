"""How a verb is started on a cluster: the exact command, and nothing that a shell would have to read."""
