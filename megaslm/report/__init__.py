"""The `report` verb: runs as one page that works offline."""
