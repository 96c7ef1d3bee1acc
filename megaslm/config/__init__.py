"""Settings: read from YAML, checked, explained. It imports no torch."""
