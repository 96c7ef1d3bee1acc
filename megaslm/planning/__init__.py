"""The `plan` verb: what a run will need and cost, before it is started."""
