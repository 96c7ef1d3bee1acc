"""A dataset on disk: its files, what is written of them, and whether they still are what was written."""
