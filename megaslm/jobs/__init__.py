"""The ledger of a long job's tasks, the processes that draw them, and the job's progress."""
