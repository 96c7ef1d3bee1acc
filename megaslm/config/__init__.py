"""Settings: read from YAML, checked, explained. Nothing here imports torch."""
