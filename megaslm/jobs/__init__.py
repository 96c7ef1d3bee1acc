"""What lets a long job survive: files that are whole or not there, locks, and a ledger of its tasks."""
